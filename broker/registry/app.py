"""The registry's process: who may speak on this grid, told to whoever follows.

One thread, two sockets: *control*, over ipc in a folder of ours alone, for brokers that follow and
operators that decide; *enrolment*, over TCP with CURVE, for nodes. A message is one event of the
core; what it changed is committed before anybody is told. While this process is away nothing
becomes active and nothing is revoked; brokers go on with what they know.
"""

import contextlib
import logging
import os
import pathlib
import secrets
import socket
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import apsw
import msgspec
import zmq

from gristmill.broker.registry.core.records import (
    AnswerRow,
    AnswerToken,
    Append,
    Ask,
    DecisionSaid,
    Effect,
    EnrolSaid,
    Event,
    PrincipalSaid,
    RefusalNoted,
    Refuse,
    Row,
    SaveRow,
    Ticked,
    TokenAsked,
)
from gristmill.broker.registry.core.step import changes_after, step, wait_ms
from gristmill.broker.registry.db import RegistryFile, records
from gristmill.broker.registry.port import (
    TURN_MESSAGES,
    Challenges,
    Sources,
    decode,
    listen,
    receive,
)
from gristmill.broker.registry.settings import Settings
from gristmill.wire import limits
from gristmill.wire.enrolment import (
    BrokerAt,
    Challenge,
    Enrolled,
    EnrolRefused,
    NodeToken,
    is_signed,
    parse_token,
    token_digest,
)
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK, RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.keys import REGISTRY_KEY, load_key
from gristmill.wire.process import (
    announce_ready,
    begin_logging,
    die_with_parent,
    ended_by,
    raise_descriptor_limit,
    stopping_socket,
)
from gristmill.wire.registry import (
    PAGE_ROWS,
    AddPrincipal,
    AskRows,
    Changes,
    Decide,
    Follow,
    IssueToken,
    NewToken,
    NodeRow,
    Note,
    PrincipalRow,
    RegistryAnswer,
    RegistryRefused,
    decode_to_registry,
)
from gristmill.wire.supervision import NOBODY, Supervisor, supervisor_of

log = logging.getLogger("gristmill.registry")
FOLLOW_TTL_MS = 35_000  #: a broker says Follow every 10 s
FOLLOWERS_MAX = 256
TICK_MS = 1_000
AGAIN_MS = 2_000  #: how often a node that waits asks
FOLLOW_ROWS = 300  #: principals in one message, where they are small
PAGE_BYTES = 48 << 10  #: of rows in one message, of 64 KiB
_MEMBERS = ("approved", "active", "draining")  #: states in which a node is told its brokers


class Follower(NamedTuple):
    """A broker that follows: what it knows, and when it last said so."""

    broker: str
    known: int
    heard_ms: int


class Registry:
    """One registry at its addresses.

    Raises:
        RemoteError: another one has the folder, its file is not in order, or it cannot listen.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.counts: Counter[str] = Counter()
        self._file = RegistryFile(settings.state)
        self._key = load_key(settings.state / REGISTRY_KEY)
        self.public = bytes(self._key.verify_key).hex()
        self.state = self._file.load(settings.policy)
        self._followers: dict[bytes, Follower] = {}
        self._sources, self._challenges = Sources(), Challenges()
        self._context = zmq.Context()
        self._port: zmq.Socket[bytes] | None = None
        try:
            self._control = self._listen()
            if settings.enrolment:
                self._port = listen(self._context, settings.enrolment, self._key)
        except RemoteError:
            self._context.destroy(0)  # with a socket that is left open the process would not end
            self._file.close()
            raise

    def _listen(self) -> "zmq.Socket[bytes]":
        address = self.settings.control
        path = pathlib.Path(address.removeprefix("ipc://"))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        router = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.MAXMSGSIZE, limits.ZMQ_FRAME_BYTES_MAX),
            (zmq.SNDHWM, 1_000),
            (zmq.RCVHWM, 1_000),
            (zmq.LINGER, 0),
            (zmq.HANDSHAKE_IVL, 1_000),
        ):
            router.setsockopt(option, value)
        try:
            router.bind(address)
        except zmq.ZMQError as error:
            raise RemoteError(
                "INVALID_SPEC",
                f"cannot listen on {address}: {error}",
                "choose another address with --control",
            ) from None
        if path.parent.stat().st_mode & 0o050:  # its group's, too: brokers with users of their own
            path.chmod(0o660)
        return router

    @property
    def enrolment_address(self) -> str:
        """Where nodes enrol, with the port that the kernel chose; empty for nowhere."""
        if self._port is None:
            return ""
        return self._port.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()  # type: ignore

    @property
    def _place(self) -> str:
        """``HOST:PORT`` that goes into tokens."""
        place = self.settings.told or self.enrolment_address.removeprefix("tcp://")
        if place.startswith(("0.0.0.0:", "[::]:")):
            place = f"{socket.getfqdn()}:{place.rpartition(':')[2]}"
        return place

    # ------------------------------------------------------------ the loop

    def run(self, stop: socket.socket, supervisor: Supervisor = NOBODY) -> None:
        """Serve until ``stop`` is readable; each turn feeds the watchdog."""
        rest_ms = TICK_MS
        if supervisor.watchdog_s:
            rest_ms = min(rest_ms, int(supervisor.feed_every_s * 1_000))
        poller = zmq.Poller()
        sockets = [one for one in (self._control, self._port) if one is not None]
        for one in sockets:
            poller.register(one, zmq.POLLIN)
        poller.register(stop.fileno(), zmq.POLLIN)
        while True:
            wait = wait_ms(self.state, _now_ms())
            ready = dict(poller.poll(rest_ms if wait is None else min(wait + 1, rest_ms)))
            if self._control in ready:
                self.turn()
            if self._port is not None and self._port in ready:
                self.turn_of_nodes()
            self.tick()
            supervisor.feed()
            if stop.fileno() in ready:
                supervisor.stopping("ends")
                return

    def tick(self) -> None:
        """What time does: expiries, and brokers that no longer follow."""
        now_ms = _now_ms()
        with contextlib.suppress(RemoteError):  # no room now: logged, and tried again
            self._do(Ticked())
        for peer, follower in list(self._followers.items()):
            if now_ms - follower.heard_ms > FOLLOW_TTL_MS:
                del self._followers[peer]
                log.warning("broker %.80s no longer follows", follower.broker)

    def _do(self, event: Event) -> list[Effect]:
        """One event, committed, told to followers; its effects.

        Raises:
            RemoteError: ``REGISTRY_DOWN``: nothing was kept, and nothing changed.
        """
        effects = step(self.state, event, _now_ms())
        try:
            self._file.apply(effects)
        except apsw.Error as error:
            self.counts["unkept"] += 1
            log.error("cannot write now: %s", error)
            self.state = self._file.load(self.settings.policy)
            raise RemoteError("REGISTRY_DOWN", f"the registry cannot write now: {error}") from None
        for effect in effects:
            if isinstance(effect, Append):
                record = effect.record
                log.info(
                    "%d %s of %s by %s: %s -> %s%s", record.number, record.act, record.name,
                    record.by, record.state_before, record.state_after,
                    f" ({record.why:.300})" * bool(record.why),
                )  # fmt: skip
        if any(isinstance(effect, SaveRow) for effect in effects):
            for peer in list(self._followers):
                self._push(peer)
        return effects

    # ------------------------------------------------------------ brokers and operators

    def turn(self) -> None:
        """Take what waits at the control socket."""
        for _ in range(TURN_MESSAGES):
            try:
                peer, *frames = self._control.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.counts["messages"] += 1
            message: Any = None
            try:
                if len(frames) != 1:
                    raise RemoteError(
                        "MALFORMED", f"a message of {len(frames)} frames; the dialogue has one"
                    )
                message = decode_to_registry.decode(frames[0])
                self._take(peer, message)
            except RemoteError as error:
                self.counts["refused"] += 1
                number = getattr(message, "request", 0)
                told = RegistryRefused(number, error.code, error.message[:4_000], error.hint)
                self._send(self._control, peer, told)

    def _take(self, peer: bytes, message: Any) -> None:
        if isinstance(message, Follow):
            self._follow(peer, message)
        elif isinstance(message, AskRows):
            self._answer(peer, message.request, self._rows(message))
        elif isinstance(message, Note):
            fields = msgspec.structs.asdict(message)
            self._do(RefusalNoted(**fields))
        elif isinstance(message, IssueToken):
            self._issue(peer, message)
        elif isinstance(message, Decide):
            fields = msgspec.structs.asdict(message)
            del fields["request"]
            self._told(peer, message.request, self._do(DecisionSaid(**fields)))
        else:
            assert isinstance(message, AddPrincipal)
            fields = msgspec.structs.asdict(message)
            del fields["request"]
            fields["scopes"] = tuple(fields["scopes"])
            self._told(peer, message.request, self._do(PrincipalSaid(**fields)))

    def _told(self, peer: bytes, request: int, effects: Sequence[Effect]) -> None:
        """The answer to whoever decided."""
        for effect in effects:
            if isinstance(effect, Refuse):
                raise RemoteError(effect.code, effect.message, effect.hint)
            if isinstance(effect, AnswerRow):
                row = effect.row
                is_node = row.principal.role == "worker"
                body = self._node_row(row) if is_node else _principal_row(row)
                self._answer(peer, request, body, effect.is_repeat)

    def _issue(self, peer: bytes, message: IssueToken) -> None:
        if self._port is None:
            raise RemoteError(
                "INVALID_SPEC",
                "this registry has no enrolment port: no node could use a token",
                "start it with --enrolment tcp://HOST:PORT",
            )
        secret = secrets.token_hex(16)
        fields = msgspec.structs.asdict(message)
        del fields["request"]
        for effect in self._do(TokenAsked(**fields, digest=token_digest(secret))):
            if isinstance(effect, Refuse):
                raise RemoteError(effect.code, effect.message, effect.hint)
            if isinstance(effect, AnswerToken):
                text = str(NodeToken(message.name, secret, self.public, self._place))
                at = BrokerAt(f"tcp://{self._place}", self.public)
                expires_ms, revoked = effect.token.expires_ms, effect.revoked
                told = NewToken(
                    text, message.name, expires_ms, at, self.settings.broker_list, revoked
                )
                self._answer(peer, message.request, told)

    def _rows(self, question: AskRows) -> list[Any]:
        found: list[Any]
        if question.what == "log":
            found = records(self._file.db, question.after, question.name, PAGE_ROWS)
        else:
            is_nodes = question.what == "nodes"
            rows = [
                row
                for row in self.state.rows.values()
                if row.change > question.after and (row.principal.role == "worker") == is_nodes
                and question.name in ("", row.principal.name)
            ][:PAGE_ROWS]  # fmt: skip
            found = [self._node_row(row) if is_nodes else _principal_row(row) for row in rows]
        return _page(found)

    def _node_row(self, row: Row) -> NodeRow:
        return NodeRow(
            principal=row.principal,
            change=row.change,
            source=row.source,
            report=row.report,
            enrolled_ms=row.enrolled_ms,
            seen_ms=row.seen_ms,
            until_ms=row.until_ms if row.principal.state == "pending" else 0,
            approvals=list(row.approvals),
            approvals_needed=self.settings.approvals,
            flags=row.flags,
            flagged=row.flagged,
            decided_by=row.decided_by,
            decided_ms=row.decided_ms,
        )

    def _answer(self, peer: bytes, request: int, body: Any, is_repeat: bool = False) -> None:
        raw = msgspec.Raw(msgspec.msgpack.encode(body))
        self._send(self._control, peer, RegistryAnswer(request, raw, is_repeat))

    # ------------------------------------------------------------ followers

    def _follow(self, peer: bytes, message: Follow) -> None:
        known = message.known
        if known > self.state.number:
            log.error(
                "ALARM broker %.80s follows from record %d, the log ends at %d: it followed"
                " another registry, or the end of this log is lost; it is told everything",
                message.broker, known, self.state.number,
            )  # fmt: skip
            known = 0
        if peer not in self._followers:
            log.info("broker %.80s follows, from record %d", message.broker, known)
            if len(self._followers) >= FOLLOWERS_MAX:
                raise RemoteError("QUOTA", f"{FOLLOWERS_MAX} brokers follow already")
        self._followers[peer] = Follower(message.broker, known, _now_ms())
        self._push(peer, is_asked=True)

    def _push(self, peer: bytes, is_asked: bool = False) -> None:
        """A page of what this broker does not know yet; it asks for the next one.

        ``is_asked``: it hears of it, too, if there is nothing new.
        """
        follower = self._followers[peer]
        rows, is_all = changes_after(self.state, follower.known, FOLLOW_ROWS)
        if not rows and not is_asked:
            return
        kept = _page([row.principal for row in rows])
        if len(kept) < len(rows):
            rows, is_all = rows[: len(kept)], False
        known = self.state.number if is_all else rows[-1].change
        if self._send(self._control, peer, Changes(known, kept, is_all, follower.known)):
            self._followers[peer] = follower._replace(known=known)
        else:
            del self._followers[peer]  # gone, or does not read: it will follow again

    # ------------------------------------------------------------ nodes

    def turn_of_nodes(self) -> None:
        """Take what waits at the enrolment port, a bounded number."""
        assert self._port is not None
        for _ in range(TURN_MESSAGES):
            received = receive(self._port)
            if received is None:
                return
            peer, source, frames = received
            self.counts["enrolments"] += 1
            try:
                if not self._sources.is_allowed(source, _monotonic_ms()):
                    raise RemoteError("RATE_LIMITED", f"{source} asks too often")
                self._send(self._port, peer, self._enrol(source, frames))
            except RemoteError as error:
                self.counts["enrolments_refused"] += 1
                self.counts[f"enrolment {error.code}"] += 1
                count = self.counts[f"enrolment {error.code}"]
                if count.bit_count() == 1:  # 1, 2, 4, ...: no flood
                    log.warning("refused %d, now from %s: %.300s", count, source, error.message)
                told = EnrolRefused(error.code, error.message[:2_000], error.hint[:2_000])
                self._send(self._port, peer, told)

    def _enrol(self, source: str, frames: list[bytes]) -> Challenge | Enrolled:
        message = decode(frames)
        token = parse_token(message.token)
        now_ms = _now_ms()
        if message.signature:
            if not self._challenges.is_fresh(message, now_ms):
                raise RemoteError(
                    "UNAUTHORISED",
                    "the challenge was not made for this node, or too long ago",
                    "ask for a new one: run 'gristmill node enrol' again",
                )
            if not is_signed(message, self.public):
                raise RemoteError(
                    "UNAUTHORISED",
                    "the signature is not of the key that enrols, or not over this challenge",
                    "compare the node's worker.key with the key that it names",
                )
        event = EnrolSaid(
            digest=token_digest(token.secret),
            public=message.public,
            name=message.name,
            report=message.report,
            source=source,
            is_proven=bool(message.signature),
            replaces=message.replaces,
        )
        for effect in self._do(event):
            if isinstance(effect, Refuse):
                raise RemoteError(effect.code, effect.message, effect.hint)
            if isinstance(effect, Ask):
                return Challenge(self._challenges.make(message, now_ms), now_ms)
            if isinstance(effect, AnswerRow):
                return self._enrolled(effect.row)
        raise AssertionError("an enrolment has an answer")

    def _enrolled(self, row: Row) -> Enrolled:
        principal = row.principal
        is_member = principal.state in _MEMBERS
        return Enrolled(
            name=principal.name,
            public=principal.public,
            state=principal.state,
            version=principal.version,
            reason=principal.reason,
            node_class=principal.node_class,
            slots_max=principal.slots_max,
            until_ms=row.until_ms,
            again_ms=AGAIN_MS,
            brokers=self.settings.broker_list if is_member else [],
        )

    # ------------------------------------------------------------ the rest

    def _send(self, to: "zmq.Socket[bytes]", peer: bytes, message: msgspec.Struct) -> bool:
        try:
            to.send_multipart([peer, encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError:  # gone, or does not read; everything here can be asked again
            self.counts["unsent"] += 1
            return False
        return True

    def close(self) -> None:
        """Close the sockets and the file."""
        self._control.close(0)
        if self._port is not None:
            self._port.close(0)
        self._context.term()
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.settings.control.removeprefix("ipc://"))


def _principal_row(row: Row) -> PrincipalRow:
    return PrincipalRow(row.principal, row.change, row.decided_by, row.decided_ms)


def _page(found: Iterable[Any]) -> list[Any]:
    """As many of them as one message takes; at least one."""
    kept: list[Any] = []
    size = 0
    for one in found:
        size += len(msgspec.msgpack.encode(one))
        if kept and size > PAGE_BYTES:
            break
        kept.append(one)
    return kept


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def serve(settings: Settings) -> int:
    """The process's life; an exit code of wire/errors.py."""
    os.umask(0o077)
    begin_logging("%(asctime)s %(name)s %(levelname)s %(message)s")
    raise_descriptor_limit()
    stop = stopping_socket()
    supervisor = supervisor_of(os.environ)
    if settings.is_dying_with_parent:
        die_with_parent()
    try:
        desk = Registry(settings)
    except RemoteError as error:
        return ended_by(error)
    except (OSError, apsw.Error) as error:
        log.critical("cannot open the registry in %s: %s", settings.state, error)
        return EXIT_FAILED
    where = desk.enrolment_address
    log.info("key %s, enrolment at %s", desk.public, where or "none")
    told = f"{settings.control} {where}".strip()
    announce_ready("registry", told, settings.ready_fd, supervisor)
    try:
        desk.run(stop, supervisor)
        log.info("ends: %s", dict(desk.counts))
    except apsw.Error as error:
        log.critical(
            "the disk of %s failed: %s. What was answered is on it; start again to read what is"
            " there", settings.state, error,
        )  # fmt: skip
        return EXIT_FAILED
    finally:
        desk.close()
    return EXIT_OK
