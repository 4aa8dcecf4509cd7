"""Peers that were let in and then say everything: well-formed messages of hostile content.

Each has a live session (its HELLO was answered) and follows what it is told, so that its messages
name things that exist: its own jobs, leases and parcels, others', earlier ones, and numbers at
their limits; in any order, again, after GOODBYE, in another's name, with frames too many or too
few; among them real messages with flipped and spliced bytes. ``attack`` runs them in a process of
their own, next to honest ones.
"""

import dataclasses
import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import zmq
from fuzz_frames import INTS, Maker, _encode, _type_info, mutate

from gristmill.wire import client as wc
from gristmill.wire import ledger as wl
from gristmill.wire import limits
from gristmill.wire import worker as ww
from gristmill.wire.curve import be_client
from gristmill.wire.frames import encode
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import Command, JobSpec, Limits
from gristmill.wire.tokens import parse_token
from gristmill.wire.values import BlobRef, encode_ref, pack_plain, pack_range

FENCE_S = 30.0  #: an answer that does not come within this is a fault
BURST = 40  #: frames between two answered questions
LABEL = {"hostile": "yes"}  #: of their workers and their jobs: no honest worker is asked
PYTHON = "2.7"
FUNCTIONS = tuple(f"def f(x): return {n}".encode() for n in range(3))
NAMES = ("mallory-0", "mallory-1", "mallory-2", "worker-0", "worker-1", "*")
DIGESTS = tuple(hashlib.sha256(one).hexdigest() for one in FUNCTIONS)


@dataclasses.dataclass
class Target:
    """A running grid, as they know it. ``token``: of the tenant ``mallory``, no operator."""

    front: str
    back: str
    ledger: str
    token: str
    broker: str


@dataclasses.dataclass
class Attack:
    """What was sent and what was answered; ``fault``: why it ended early."""

    sent: Counter[str] = dataclasses.field(default_factory=Counter)
    kinds: Counter[str] = dataclasses.field(default_factory=Counter)
    answers: Counter[str] = dataclasses.field(default_factory=Counter)
    seconds: float = 0.0
    fault: str = ""


class Knowing(Maker):
    """Fields whose name is in ``known`` are mostly what the peer knows to be real."""

    def __init__(self, random_: random.Random) -> None:
        super().__init__(random_, hostile=0.02)
        self.known: dict[str, Callable[[], Any]] = {}

    def field(self, one: Any) -> Any:
        know = self.known.get(one.name)
        if know is not None and self.random.random() < 0.9:
            return know()
        return self.of(one.type)

    def near(self, number: int) -> int:
        """This number, one beside it, or one at a limit."""
        pick = self.random.random()
        if pick < 0.75:
            return number
        return number + self.random.choice((-1, 1)) if pick < 0.85 else self.random.choice(INTS)

    def message(self, kind: Any) -> bytes:
        """An encoded message of this type."""
        while True:
            try:
                return _encode(self._struct(_type_info(kind)))
            except OverflowError:  # a neighbour of a limit that MessagePack does not have
                continue


class Hostile:
    """One connection. Subclasses know a dialogue."""

    name = ""
    union: Any = None
    rare: tuple[Any, ...] = ()  #: messages that would end the session each time

    def __init__(
        self, address: str, found: Attack, random_: random.Random, decode: Any, token: str = ""
    ) -> None:
        self.found, self.random, self.decode = found, random_, decode
        self.maker = Knowing(random_)
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        for option, value in ((zmq.LINGER, 0), (zmq.SNDHWM, 0), (zmq.RCVHWM, 0)):
            self.socket.setsockopt(option, value)
        if token:
            its = parse_token(token)
            be_client(self.socket, its.key, its.broker)
        self.socket.connect(address)
        self.session, self.sessions = b"", [b"", bytes(16), b"x" * 16]
        self.kinds = [kind for kind in self.union.__args__ if kind not in self.rare]
        self.sent: list[list[bytes]] = []
        self.others: list[Hostile] = []

    # -------------------------------------------------------- what a dialogue has of its own

    def join(self) -> None:
        """Says HELLO and waits for its answer, where the dialogue has one."""

    def ask(self) -> None:
        """Sends an honest message that is answered."""
        raise NotImplementedError

    def take(self, message: Any, bodies: list[bytes]) -> bool:
        """Learns from an answer; whether it is one to ``ask``."""
        raise NotImplementedError

    def provoke(self) -> None:
        """Says what has a rare answer, once: that it is told must not be left to chance."""

    def bodies(self, kind: Any) -> list[bytes]:
        """Body frames that this message should have; called before its header is made."""
        return []

    # -------------------------------------------------------- what all have

    def known_session(self) -> bytes:
        """The live one, mostly; else an earlier one, another peer's or none."""
        if self.random.random() < 0.95:
            return self.session
        other = self.random.choice([self, *self.others])
        return self.random.choice([*self.sessions, other.session])

    def frames(self) -> list[bytes]:
        """The next hostile message."""
        pick = self.random.random()
        if pick < 0.06 and self.sent:
            return self.random.choice(self.sent)  # again, or after what came since
        other = self.random.choice([self, *self.others])
        if pick < 0.09 and other.sent:
            return self.random.choice(other.sent)  # of another session, or another dialogue
        kind = self.random.choice(self.kinds)
        if self.rare and pick > 0.985:
            kind = self.random.choice(self.rare)
        bodies = self.bodies(kind)
        made = [self.maker.message(kind), *bodies]
        self.found.kinds[f"{self.name} {kind.__name__}"] += 1
        if pick < 0.23 and self.sent:
            spoiled = self.random.randrange(len(made))
            made[spoiled] = mutate(made[spoiled], self.random.choice(self.sent)[0], self.random)
        elif pick < 0.26:
            del made[self.random.randrange(len(made)) :]  # too few; perhaps no header
        elif pick < 0.29:
            at = self.random.randrange(len(made) + 1)
            made[at:at] = [self.random.choice((b"", b"\xc0", made[0]))] * self.random.choice(
                (1, 4, 700)
            )
        return made or [b""]

    def burst(self, count: int) -> None:
        """So many hostile frames, then an honest question that must be answered."""
        for _ in range(count):
            made = self.frames()
            self.socket.send_multipart(made)
            self.found.sent[self.name] += 1
            if len(made) <= 8:
                self.sent.append(made)
        del self.sent[:-60]
        self.settle()

    def settle(self) -> None:
        """Until the other side has answered everything so far, in a live session."""
        deadline = time.monotonic() + FENCE_S
        asked_at = 0.0
        while True:
            now = time.monotonic()
            if now > deadline:
                raise AssertionError(f"{self.name}: an honest question was not answered")
            if now - asked_at > 2.0:
                asked_at = now
                self.ask()
            if not self.socket.poll(200):
                continue
            header, *bodies = self.socket.recv_multipart()
            message = self.decode.decode(header)
            told = getattr(message, "code", "") or type(message).__name__
            self.found.answers[f"{self.name} {told}"] += 1
            if isinstance(message, wc.Welcome | ww.Welcome):
                self.session = message.session
                self.sessions.append(message.session)
                del self.sessions[3:-5]
            rejoin = isinstance(message, wc.Refused | ww.Refused) and message.code == "REJOIN"
            if rejoin and message.session == self.session:
                self.session = b""
                self.join()
                asked_at = 0.0
            elif self.take(message, bodies):
                return


class HostileClient(Hostile):
    """A client with a token of its own tenant."""

    name = "front"
    union = wc.ClientMessage
    rare = (wc.Hello, wc.Goodbye)

    def __init__(self, target: Target, found: Attack, random_: random.Random) -> None:
        super().__init__(target.front, found, random_, wc.decode_broker, target.token)
        self.id = random_.randbytes(16)
        self.request = self.fence = 0
        self.jobs, self.newest = [1], 1
        self.function, self.at = 0, Counter[int]()
        self.submissions = [random_.randbytes(16) for _ in range(8)]
        r, near = random_, self.maker.near
        self.maker.known = {
            "session": self.known_session,
            "request": lambda: r.choice((r.randrange(1, 50), self._next())),
            "submission": lambda: r.choice([*self.submissions, r.randbytes(16)]),
            "spec": self.spec,
            "job": lambda: r.choice((*self.jobs[-6:], near(self.newest), near(1))),
            "first": lambda: near(self.at[self.jobs[-1]]),
            "count": lambda: near(10),
            "codec": lambda: r.choice(("q", "q", "range", "p", "@m", "m", "d")),
            "acked": lambda: near(3),
            "after": lambda: near(0),
            "bytes_allowed": lambda: near(1 << 20),
            "limit": lambda: near(100),
            "client": lambda: r.choice((self.id, self.id, r.randbytes(16))),
            "tenant": lambda: r.choice(("", "mallory", "honest")),
            "protocol": lambda: limits.PROTOCOL,
            "worker": lambda: r.choice(NAMES),
            "digest": lambda: r.choice((*DIGESTS, "*")),
        }

    def _next(self) -> int:
        self.request += 1
        return self.request

    def spec(self) -> Any:
        """One that passes, with a field or two that may not."""
        r = self.random
        if r.random() < 0.1:
            return self.maker._struct(_type_info(JobSpec))
        is_command = r.random() < 0.3
        spec = JobSpec(
            "command" if is_command else "function",
            function="" if is_command else DIGESTS[self.function],
            command=Command(["true", "{}"]) if is_command else None,
            count=r.choice((-1, 0, 10, 10, 1_000)), tier="batch", labels=LABEL,
            limits=Limits(cpus_milli=10), python="" if is_command else PYTHON,
            retries=r.choice((0, 0, 100)), cap_ucredits=r.choice((10**6, 10**6, 0, 1, 1 << 60)),
            keep=r.random() < 0.5, completion=r.choice(("all", "any", "5", "90%")),
            concurrency_max=r.choice((0, 0, 1)), failures_max=r.choice((0, 1)),
            retention_s=r.choice((0, 1, 86_400)), tariff=r.choice(("standard", "zero")),
        )  # fmt: skip
        made = msgspec.to_builtins(spec, builtin_types=(bytes,))
        made["labels"] = dict(LABEL)
        for _ in range(r.choice((0, 0, 0, 1, 2))):
            one = r.choice(_type_info(JobSpec).fields)
            if one.name not in ("labels", "python"):
                made[one.encode_name] = self.maker.of(one.type)
        return made

    def bodies(self, kind: Any) -> list[bytes]:
        r = self.random
        if kind is wc.Submit:
            self.function = r.randrange(3)
            blob = encode_ref(BlobRef(DIGESTS[0], 10))
            return [r.choice((FUNCTIONS[self.function], FUNCTIONS[self.function], b"", blob))]
        if kind is wc.Parcel:
            packed = pack_plain(list(range(10)))
            assert packed
            long = bytes(limits.PARCEL_BYTES_MAX + r.choice((-1, 0, 1)))
            return [r.choice((packed[1], packed[1], pack_range(0, 1)[1], b"", long))]
        return []

    def join(self) -> None:
        self.socket.send_multipart(
            [encode(wc.Hello(limits.PROTOCOL, self.id, "", "3.11", "hostile"))]
        )

    def provoke(self) -> None:
        key, known = self.random.randbytes(16), len(self.jobs)
        spec = JobSpec(
            "function", function=DIGESTS[0], tier="batch", labels=LABEL, python=PYTHON,
            limits=Limits(cpus_milli=10), cap_ucredits=10**6,
        )  # fmt: skip
        for count in (-1, 5):  # the second has other content under the same key
            submit = wc.Submit(
                self.session, 10**9 + self._next(), key, msgspec.structs.replace(spec, count=count)
            )
            self.socket.send_multipart([encode(submit), FUNCTIONS[0]])
        while len(self.jobs) == known:
            self.settle()
        packed = pack_plain([1])
        assert packed  # the job takes inputs, but not behind a gap
        gap = wc.Parcel(self.session, self.jobs[-1], 1_000, 1, packed[0])
        self.socket.send_multipart([encode(gap), packed[1]])

    def ask(self) -> None:
        if self.session:
            self.fence = 10**9 + self._next()
            self.socket.send_multipart([encode(wc.Ask(self.session, self.fence, "grid"))])
        else:
            self.join()

    def take(self, message: Any, bodies: list[bytes]) -> bool:
        if isinstance(message, wc.Welcome):
            self.ask()
        elif isinstance(message, wc.Accepted):
            self.newest = max(self.newest, message.job)
            self.jobs.append(message.job)
            # An honest first step in each, so that what follows is about a job that runs.
            packed = pack_plain(list(range(10)))
            assert packed
            parcel = wc.Parcel(self.session, message.job, 0, 10, packed[0])
            self.socket.send_multipart([encode(parcel), packed[1]])
            self.at[message.job] = 10
        elif isinstance(message, wc.InputCredit):
            self.at[message.job] = message.committed
        return getattr(message, "request", None) == self.fence


class HostileWorker(Hostile):
    """A worker that is given leases of hostile jobs, and talks of everybody's."""

    name = "back"
    union = ww.WorkerMessage
    rare = (ww.Hello, ww.Goodbye)

    def __init__(self, target: Target, found: Attack, random_: random.Random, number: int) -> None:
        super().__init__(target.back, found, random_, ww.decode_orders)
        self.own = NAMES[number]
        self.node = hashlib.sha256(self.own.encode()).hexdigest()
        self.instance = random_.randbytes(16)
        self.report = self.result = 0
        self.leases: list[ww.LeaseGrant] = []
        self.newest, self.job = 1 << 40, 1
        self.heads: list[Any] = []
        r, near = random_, self.maker.near
        self.maker.known = {
            "session": self.known_session,
            "number": lambda: near(self._next_report()),
            "results": lambda: self.heads,
            "held": self._held,
            "claims": self._claims,
            "returned": self._returned,
            "slots_alive": lambda: r.choice(([0, 1], [0], [], [0, near(1)])),
            "slots": lambda: near(2),
            "lease_id": lambda: near(self._lease().lease_id),
            "job": lambda: near(self._lease().job),
            "runs": lambda: r.choice((self._lease().runs, [(near(0), near(1))])),
            "first": lambda: near(self._lease().runs[0][0]),
            "count": lambda: near(self._lease().runs[0][1]),
            "attempt": lambda: near(self._lease().attempt),
            "name": lambda: r.choice((self.own, self.own, *NAMES)),
            "node": lambda: self.node,
            "instance": lambda: r.choice((self.instance, self.instance, r.randbytes(16))),
            "labels": lambda: dict(LABEL),
            "tiers": lambda: ["batch"],
            "pythons": lambda: [PYTHON],
            "cpus_milli": lambda: near(64_000),
            "memory_bytes": lambda: near(1 << 40),
            "protocol": lambda: limits.PROTOCOL,
            "is_draining": lambda: r.random() < 0.01,
        }

    def _next_report(self) -> int:
        self.report += 1
        return self.report

    def _lease(self) -> ww.LeaseGrant:
        """One at hand, mostly; else an earlier one, or one that an honest worker may have."""
        if self.leases and self.random.random() < 0.7:
            return self.random.choice(self.leases[-8:])
        number = self.newest + self.random.randrange(-60, 4)
        return ww.LeaseGrant(number, 0, self.random.randrange(1, self.job + 8), 1, [(0, 1)], 1, [])

    def _held(self) -> Any:
        return [(near.lease_id, 0, self.random.choice((-1, *INTS)), 0) for near in self._some()]

    def _some(self) -> list[ww.LeaseGrant]:
        return [self._lease() for _ in range(self.random.randrange(4))]

    def _claims(self) -> Any:
        near = self.maker.near
        return [
            (one.lease_id - self.random.choice((0, 1 << 40)), near(0), near(0), near(one.job),
             near(1), one.runs, near(1 << 20), near(1))
            for one in self._some()
        ]  # fmt: skip

    def _returned(self) -> Any:
        causes = ("recalled", "drained", "stopped", "jail", "set-up")
        if self.random.random() < 0.8:
            return []
        return [(one.lease_id, one.runs, self.random.choice(causes)) for one in self._some()]

    def _head(self) -> Any:
        """A result: of the right numbers in a third of the cases."""
        near, one = self.maker.near, self._lease()
        if self.random.random() < 0.3:
            near = lambda number: number  # noqa: E731
        self.result += 1
        first, count = self.random.choice(one.runs)
        return [
            near(self.result), near(one.lease_id), near(one.job), near(first), near(count), "q",
            near(10), near(10), near(10), "wait4", False,
            self.random.choice((b"", b"", b"", bytes(64), b"x", bytes(100))),
        ]  # fmt: skip

    def bodies(self, kind: Any) -> list[bytes]:
        if kind is not ww.Report:
            return []
        r, found = self.random, []
        self.heads = [self._head() for _ in range(r.choice((0, 0, 1, 1, 1, 2, 3)))]
        for head in self.heads:
            count = head[4] if 0 < head[4] <= limits.RANGE_ITEMS_MAX else 1
            outcomes: Any = r.choice((Outcome.OK, Outcome.OK, r.choice(list(Outcome))))
            if r.random() < 0.2:
                outcomes = bytes(r.choice((0, 1, 7, 18, 19, 255)) for _ in range(min(count, 50)))
            meter = pack_meter(len(outcomes) if isinstance(outcomes, bytes) else count, outcomes)
            values = pack_plain(list(range(min(count, 1_000))))
            assert values
            spoil = r.choice((b"", b"\x91", bytes(9)))
            found += [values[1], r.choice((meter, meter, meter, spoil)),
                      r.choice((b"", b"", b"", spoil)), r.choice((b"", b"", spoil))]  # fmt: skip
        return found

    def join(self) -> None:
        self.report = self.result = 0
        self.leases.clear()
        hello = ww.Hello(
            limits.PROTOCOL, self.own, self.node, self.instance, 2, 64_000, 1 << 40, 1 << 40,
            LABEL, ["batch"], [PYTHON], "wait4", "hostile",
        )  # fmt: skip
        self.socket.send_multipart([encode(hello)])

    def provoke(self) -> None:
        hello = ww.Hello(
            limits.PROTOCOL, "worker-0", self.node, self.instance, 2, 64_000, 1 << 40, 1 << 40,
            LABEL, ["batch"], [PYTHON], "wait4", "hostile",
        )  # fmt: skip
        self.socket.send_multipart([encode(hello)])  # a name that is another's

    def ask(self) -> None:
        if not self.session:
            self.join()
            return
        held = [ww.Held(one.lease_id, one.slot, -1, 0) for one in self.leases[-100:]]
        self._next_report()
        self.report = max(self.report, 1) & 0xFFFF | 1 << 40  # above what the hostile ones named
        self.fence = self.report
        report = ww.Report(self.session, self.fence, True, [0, 1], held, [], [])
        self.socket.send_multipart([encode(report)])

    def take(self, message: Any, bodies: list[bytes]) -> bool:
        if isinstance(message, ww.Welcome):
            self.ask()
        elif isinstance(message, ww.Refused) and message.code == "NAME_TAKEN":
            return not self.session  # until the session that it lost has died of silence
        elif isinstance(message, ww.Orders):
            for lease in message.leases:
                self.leases.append(lease)
                self.newest, self.job = max(self.newest, lease.lease_id), lease.job
            gone = {number for number, _ in message.stop}
            self.leases = [one for one in self.leases if one.lease_id not in gone][-64:]
            return message.answers >= self.fence
        return False


class HostileBroker(Hostile):
    """Another broker at the ledger, with names and tenants of its own."""

    name = "ledger"
    union = wl.ToLedger

    def __init__(self, target: Target, found: Attack, random_: random.Random) -> None:
        super().__init__(target.ledger, found, random_, wl.decode_from_ledger)
        self.target, self.request = target, 0
        self.applied: Counter[str] = Counter()
        r, near = random_, self.maker.near
        self.broker = "hostile-0"
        self.maker.known = {
            "broker": self._broker,
            "first": lambda: near(self.applied[self.broker] + 1),
            "tenant": lambda: r.choice(("mallory-1", "mallory-2", "mallory-3")),
            "ref": self._ref,
            "request": lambda: near(7),
            "amount_ucredits": lambda: near(r.choice((0, 10**6, 10**6, 10**9))),
            "toll_ucredits": lambda: near(r.choice((0, 30_000))),
            "count": lambda: near(1),
            "subtasks": lambda: near(1),
            "failed": lambda: 0,
            "attempt": lambda: near(1),
            "replica": lambda: near(0),
            "wall_us": lambda: near(5),
            "cpu_us": lambda: near(5),
            "peak_kib": lambda: near(5),
            "ended_ms": lambda: near(10**12),
            "lease_id": lambda: near(1 << 40),
            "node": lambda: r.choice((DIGESTS[0], DIGESTS[1], "")),
            "signature": lambda: r.choice((b"", bytes(64), b"x")),
        }

    def _broker(self) -> str:
        self.broker = self.random.choice(("hostile-0", "hostile-1", "hostile-2", "", "x" * 201))
        return self.broker

    def _ref(self) -> str:
        job = self.random.choice((*range(6), *INTS))
        owner = self.random.choice((self.broker, self.broker, self.broker, self.target.broker, ""))
        mark = "" if owner == self.target.broker else "h"  # what is theirs is told from the rest
        return f"{owner}/{mark}{job}" if self.random.random() < 0.95 else f"{owner}{mark}{job}"

    def provoke(self) -> None:
        broker, tenant = "hostile-3", "mallory-1"
        refs = f"{broker}/h1", f"{broker}/h2", f"{broker}/h2", f"{broker}h3"
        # more than anybody has; nothing; another amount for it; of a reference that is none
        amounts = 1 << 60, 0, 1, 1
        holds = [wl.Hold(ref, tenant, amount) for ref, amount in zip(refs, amounts, strict=True)]
        self.socket.send_multipart([encode(wl.Post(broker, 1, holds))])

    def ask(self) -> None:
        self.request = 10**9 + self.random.randrange(10**6)
        question = wl.AskBalance(self.request, "mallory-1")
        self.socket.send_multipart([encode(question)])

    def take(self, message: Any, bodies: list[bytes]) -> bool:
        if isinstance(message, wl.Acked):
            self.applied[message.broker] = message.sequence
            for verdict in message.verdicts:
                self.found.answers[f"ledger verdict {verdict.code or 'yes'}"] += 1
        return getattr(message, "request", None) == self.request


def attack(seed: int, frames: int, target: Target) -> Attack:
    """So many hostile messages, most at the front, some at the back, some at the ledger."""
    random_ = random.Random(seed)
    found = Attack()
    clients = [HostileClient(target, found, random_) for _ in range(3)]
    workers = [HostileWorker(target, found, random_, number) for number in range(3)]
    brokers = [HostileBroker(target, found, random_) for _ in range(2)]
    peers: list[Hostile] = [*clients, *workers, *brokers]
    for peer in peers:
        peer.others = [one for one in peers if one is not peer]
    began = time.monotonic()
    shares: list[Hostile] = [*clients, *clients, *workers, *brokers]
    try:
        for peer in peers:
            peer.settle()
        for peer in peers:  # the workers are there: what clients ask for can be had
            peer.provoke()
            peer.settle()
        while found.sent.total() < frames:
            random_.choice(shares).burst(min(BURST, frames - found.sent.total()))
    except Exception as error:  # told to the test: it has the seed
        found.fault = f"{type(error).__name__}: {error}"
    found.seconds = time.monotonic() - began
    for peer in peers:
        peer.socket.close()
    zmq.Context.instance().term()
    return found
