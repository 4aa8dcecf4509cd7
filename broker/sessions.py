"""Who is who: sessions by random token. The routing id of a message is an address, never a name.

A token is good for one generation of a session: a new HELLO makes a new token and the old one is
answered with ``REJOIN`` from that moment on.
"""

import itertools
import os
from collections import OrderedDict
from collections.abc import Iterator

from gristmill.broker.core.meter import Meter
from gristmill.broker.mailbox import Peer
from gristmill.wire.client import Refused
from gristmill.wire.registry import Principal
from gristmill.wire.tariffs import class_of
from gristmill.wire.worker import Hello as WorkerHello
from gristmill.wire.worker import HostReading

TOKEN_BYTES = 16
DONE_MAX = 256  #: requests remembered for each client; it has few without an answer
REFUSED_MAX = 64  #: refusals remembered for each client


class ClientSession:
    """A client that said HELLO.

    ``number`` is the core's name for it and stays the same when the same client object says HELLO
    again before its time-to-live is over. ``done``: its newest requests whose repetition must
    change nothing more, in order. ``refused``: its newest refusals: a late copy of a submission is
    not accepted when its client was told no. ``meter``: of its key, None where there are no keys.
    """

    __slots__ = (
        "client", "done", "generation", "meter", "number", "peer", "public", "questions", "refused",
        "role", "scopes", "seen_ms", "tenant", "token",
    )  # fmt: skip

    def __init__(self, number: int, client: bytes, who: Principal, meter: Meter | None) -> None:
        self.number = number
        self.meter = meter
        self.client = client
        self.tenant = who.tenant
        self.public = who.public
        self.role = who.role
        self.scopes = frozenset(who.scopes)
        self.generation = 0
        self.token = b""
        self.peer = Peer(b"")
        self.seen_ms = 0
        self.questions = 0
        self.done: dict[int, None] = {}
        self.refused: dict[int, Refused] = {}

    @property
    def is_operator(self) -> bool:
        """Whether it may do what only operators may."""
        return self.role == "operator"

    def is_of(self, who: Principal | None) -> bool:
        """Whether this principal has the rights that the session was begun with."""
        return who is not None and who.state == "active" and (
            (who.role, frozenset(who.scopes)) == (self.role, self.scopes)
            and (self.is_operator or who.tenant == self.tenant)
        )  # fmt: skip

    def note_done(self, request: int) -> None:
        """This request took effect; said again it is only answered again."""
        self.done[request] = None
        if len(self.done) > DONE_MAX:
            del self.done[next(iter(self.done))]

    def note_refused(self, refused: Refused) -> None:
        """This request was refused; said again it gets the same answer."""
        self.refused[refused.request] = refused
        if len(self.refused) > REFUSED_MAX:
            del self.refused[next(iter(self.refused))]


class WorkerSession:
    """A worker whose HELLO was admitted.

    ``reading``: its last telemetry; ``open_jobs``: job to the time (UTC ms) at which its grants
    want renewal; ``openings``: job to the mark of the grants that it was sent last, and when.
    """

    __slots__ = (
        "generation", "hello", "is_draining", "node_class", "number", "open_jobs", "openings",
        "peer", "reading", "report_ms", "seen_ms", "seen_utc_ms", "terms", "token", "touched_ms",
        "ttl_ms",
    )  # fmt: skip

    def __init__(self, number: int, hello: WorkerHello, report_ms: int, ttl_ms: int) -> None:
        self.number = number
        self.hello = hello
        self.node_class = class_of(hello.labels)
        self.report_ms = report_ms
        self.ttl_ms = ttl_ms
        self.generation = 0
        self.token = b""
        self.peer = Peer(b"")
        self.seen_ms = 0
        self.seen_utc_ms = 0
        self.touched_ms = 0
        self.is_draining = False
        self.terms = 0, "", ""  # what its principal is approved for
        self.reading: HostReading | None = None
        self.open_jobs: dict[int, int] = {}
        self.openings: dict[int, tuple[int, int]] = {}

    def compare_grants(self, open_jobs: list[tuple[int, int]]) -> None:
        """What a full report says of its grants: where an opening was lost, another one is due.

        One that left within the last interval may be on its way still.
        """
        for job, mark in open_jobs:
            sent, sent_ms = self.openings.get(job, (mark, 0))
            if sent != mark and sent_ms + self.report_ms <= self.seen_utc_ms:
                self.open_jobs[job] = 0


class Clients:
    """The sessions of clients, by token, by number and by the client's own id."""

    def __init__(self) -> None:
        self._by_token: dict[bytes, ClientSession] = {}
        self._by_number: dict[int, ClientSession] = {}
        self._by_client: dict[tuple[str, str, bytes], ClientSession] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[ClientSession]:
        return iter(list(self._by_number.values()))

    def join(
        self,
        routing: bytes,
        client: bytes,
        who: Principal,
        now_ms: int,
        meter: Meter | None = None,
    ) -> ClientSession:
        """A session with a new token; the same client object keeps its number."""
        session = self.known(who, client)
        if session is None:
            self._last += 1
            session = ClientSession(self._last, client, who, meter)
            if meter is not None:
                meter.sessions += 1
            self._by_client[who.tenant, who.public, client] = session
            self._by_number[session.number] = session
        session.role, session.scopes = who.role, frozenset(who.scopes)
        self.suspend(session)
        session.token = os.urandom(TOKEN_BYTES)
        session.generation += 1
        session.peer = Peer(routing, session)
        session.seen_ms = now_ms
        self._by_token[session.token] = session
        return session

    def known(self, who: Principal, client: bytes) -> ClientSession | None:
        """The session that this client object has, live or waiting for its HELLO."""
        return self._by_client.get((who.tenant, who.public, client))

    def find(self, token: bytes) -> ClientSession | None:
        """The session of a token, if it is live."""
        return self._by_token.get(token)

    def get(self, number: int) -> ClientSession | None:
        """The session of a number, if its token is live."""
        session = self._by_number.get(number)
        return session if session is not None and session.token else None

    def suspend(self, session: ClientSession) -> None:
        """Its token is void; the number waits for a HELLO until the time-to-live is over."""
        self._by_token.pop(session.token, None)
        session.token = b""

    def remove(self, session: ClientSession) -> None:
        """The session is over."""
        self.suspend(session)
        if self._by_number.pop(session.number, None) is not None and session.meter is not None:
            session.meter.sessions -= 1
        self._by_client.pop((session.tenant, session.public, session.client), None)


class Workers:
    """The sessions of workers, by token, by number and by name.

    A session is *touched* when its worker is heard, or when its connection is tried.
    """

    def __init__(self) -> None:
        self._by_touch: OrderedDict[int, WorkerSession] = OrderedDict()
        self._by_token: dict[bytes, WorkerSession] = {}
        self._by_number: dict[int, WorkerSession] = {}
        self._by_name: dict[str, WorkerSession] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[WorkerSession]:
        return iter(list(self._by_number.values()))

    def join(
        self, routing: bytes, hello: WorkerHello, report_ms: int, ttl_ms: int, now_ms: int
    ) -> WorkerSession:
        """A new session; the caller has removed the one that had this name."""
        assert hello.name not in self._by_name
        self._last += 1
        session = WorkerSession(self._last, hello, report_ms, ttl_ms)
        session.token = os.urandom(TOKEN_BYTES)
        session.generation = 1
        session.peer = Peer(routing, session)
        session.seen_ms = now_ms
        self._by_token[session.token] = session
        self._by_number[session.number] = session
        self._by_name[hello.name] = session
        self._by_touch[session.number] = session
        session.touched_ms = now_ms
        return session

    def touch(self, session: WorkerSession, now_ms: int) -> None:
        """It was heard now, or is about to be tried."""
        session.touched_ms = now_ms
        self._by_touch.move_to_end(session.number)

    def untouched(self, since_ms: int, count_max: int) -> list[WorkerSession]:
        """Those that were not touched after this time, the longest ago first."""
        found = itertools.takewhile(lambda s: s.touched_ms <= since_ms, self._by_touch.values())
        return list(itertools.islice(found, count_max))

    def find(self, token: bytes) -> WorkerSession | None:
        """The session of a token, if it is live."""
        return self._by_token.get(token)

    def get(self, number: int) -> WorkerSession | None:
        """The session of a number, if it is live."""
        return self._by_number.get(number)

    def named(self, name: str) -> WorkerSession | None:
        """The live session of a worker's name."""
        return self._by_name.get(name)

    def remove(self, session: WorkerSession) -> None:
        """The session is over."""
        self._by_token.pop(session.token, None)
        self._by_number.pop(session.number, None)
        self._by_touch.pop(session.number, None)
        if self._by_name.get(session.hello.name) is session:
            del self._by_name[session.hello.name]
