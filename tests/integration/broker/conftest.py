"""A real broker process, and peers that speak its dialogues over real sockets.

The ledger here is a small conforming peer: it applies the outbox in order, once each, and keeps
what it has when it is stopped and started again.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest
import zmq

from gristmill.broker.principals import make_token
from gristmill.wire import client as wc
from gristmill.wire import ledger as wl
from gristmill.wire import limits
from gristmill.wire import worker as ww
from gristmill.wire.curve import be_client
from gristmill.wire.frames import encode
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec
from gristmill.wire.tokens import parse_token
from gristmill.wire.values import pack_plain

FUNCTION = b"def f(x): return x"
DEADLINE_S = 20.0
CONTEXT = zmq.Context()


def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Polls a condition; the test fails by name when it never holds."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.002)
    raise AssertionError(f"never: {what}")


def function_spec(**fields: Any) -> JobSpec:
    fields.setdefault("tier", "batch")
    fields.setdefault("cap_ucredits", 10**9)
    return JobSpec("function", function=hashlib.sha256(FUNCTION).hexdigest(), **fields)


class Link:
    """A DEALER and what came on it."""

    def __init__(self, address: str, decode: Any, token: str = "") -> None:
        self.socket = CONTEXT.socket(zmq.DEALER)
        if token:
            its = parse_token(token)
            be_client(self.socket, its.key, its.broker)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self.socket.connect(address)
        self.decode = decode

    def send(self, header: msgspec.Struct, *bodies: bytes) -> None:
        self.socket.send_multipart([encode(header), *bodies])

    def receive(self, timeout_s: float = DEADLINE_S) -> tuple[Any, list[bytes]] | None:
        if not self.socket.poll(int(timeout_s * 1000)):
            return None
        header, *bodies = self.socket.recv_multipart()
        return self.decode.decode(header), bodies

    def close(self) -> None:
        self.socket.close()


class ClientPeer(Link):
    """A client: requests wait for their answer; results and cards are gathered on the way."""

    def __init__(
        self, address: str, tenant: str = "local", credit: int = 1 << 40, token: str = ""
    ) -> None:
        super().__init__(address, wc.decode_broker, token)
        self.id, self.tenant, self.credit = os.urandom(16), tenant, credit
        self.session = b""
        self.request = 0
        self.results: list[tuple[wc.Results, list[bytes]]] = []
        self.cards: list[wc.JobStatus] = []
        self.committed: dict[int, int] = {}
        self.allowed: dict[int, int] = {}
        self.refusals: list[wc.Refused] = []

    def hello(self, protocol: int = limits.PROTOCOL) -> Any:
        self.send(wc.Hello(protocol, self.id, self.tenant, "3.11", "test"))
        answer = self.wait_for(lambda m: isinstance(m, wc.Welcome | wc.Refused))
        if isinstance(answer, wc.Welcome):
            self.session = answer.session
        return answer

    def _take(self, message: Any, bodies: list[bytes]) -> None:
        if isinstance(message, wc.Results):
            self.results.append((message, bodies))
        elif isinstance(message, wc.JobEvent):
            self.cards.append(message.status)
        elif isinstance(message, wc.InputCredit):
            self.committed[message.job] = message.committed
            self.allowed[message.job] = message.bytes_allowed
        elif isinstance(message, wc.Refused):
            self.refusals.append(message)

    def wait_for(self, wanted: Callable[[Any], bool], deadline_s: float = DEADLINE_S) -> Any:
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            got = self.receive(max(0.0, end - time.monotonic()))
            if got is None:
                break
            self._take(*got)
            if wanted(got[0]):
                return got[0]
        raise AssertionError("the broker did not answer in time")

    def drain(self) -> None:
        """Takes what is there."""
        while got := self.receive(0):
            self._take(*got)

    def watch(self, condition: Callable[[], Any], what: str = "condition") -> Any:
        """Takes messages until a condition about them holds."""
        end = time.monotonic() + DEADLINE_S
        while not (found := condition()):
            assert time.monotonic() < end, f"never: {what}"
            if got := self.receive(0.02):
                self._take(*got)
        return found

    def call(self, kind: Any, *args: Any, bodies: tuple[bytes, ...] = (), **fields: Any) -> Any:
        self.request += 1
        request = self.request
        self.send(kind(self.session, request, *args, **fields), *bodies)
        return self.wait_for(lambda m: getattr(m, "request", None) == request)

    def submit(self, spec: JobSpec | None = None, submission: bytes = b"") -> Any:
        spec = spec or function_spec()
        submission = submission or os.urandom(16)
        body = FUNCTION if spec.kind == "function" else b""
        return self.call(wc.Submit, submission, spec, bodies=(body,))

    def parcel(self, job: int, first: int, values: list[Any]) -> None:
        packed = pack_plain(values)
        assert packed
        self.send(wc.Parcel(self.session, job, first, len(values), packed[0]), packed[1])

    def upload(self, job: int, count: int, each: int = 100) -> None:
        for first in range(0, count, each):
            self.parcel(job, first, list(range(first, min(first + each, count))))

    def close_upload(self, job: int, count: int) -> Any:
        return self.call(wc.CloseUpload, job, count)

    def subscribe(self, job: int, after: int = 0, credit: int | None = None) -> Any:
        allowed = self.credit if credit is None else credit
        return self.call(wc.Subscribe, job, after, allowed)

    def ask(self, about: str, kind: Any = None, **fields: Any) -> Any:
        answer = self.call(wc.Ask, about, **fields)
        if isinstance(answer, wc.Refused):
            return answer
        return msgspec.msgpack.decode(answer.body, type=kind or Any)

    def finish(self, job: int) -> wc.JobStatus:
        """The final card of a job that this client is subscribed to."""
        return self.watch(
            lambda: next(
                (c for c in self.cards if c.job == job and c.state in wc.FINAL_JOB_STATES), None
            ),
            f"job {job} is final",
        )


class WorkerPeer(Link):
    """A worker that answers every lease with results, in a thread or step by step."""

    def __init__(self, address: str, name: str, node: str = "", slots: int = 2) -> None:
        super().__init__(address, ww.decode_orders)
        self.name, self.node, self.slots = (
            name,
            node or hashlib.sha256(name.encode()).hexdigest(),
            slots,
        )
        self.instance = os.urandom(16)
        self.session = b""
        self.numbers = {"report": 0, "result": 0}
        self.leases: list[tuple[ww.LeaseGrant, list[bytes]]] = []
        self.openings: dict[int, ww.JobOpening] = {}
        self.functions: dict[int, bytes] = {}
        self.acked = 0
        self.answers = 0
        self.refusals: list[ww.Refused] = []
        self.closed: list[int] = []
        self.stop = threading.Event()
        self.thread: threading.Thread | None = None

    def hello(self, protocol: int = limits.PROTOCOL, **fields: Any) -> Any:
        given = {
            "cpus_milli": 64_000, "memory_bytes": 1 << 40, "disk_bytes": 1 << 40, "labels": {},
            "tiers": ["strict", "job", "batch"], "pythons": ["3.11.7"], "metering": "wait4",
            "version": "test", "slots": self.slots, **fields,
        }  # fmt: skip
        hello = ww.Hello(
            protocol, self.name, self.node, self.instance, given["slots"],
            given["cpus_milli"], given["memory_bytes"], given["disk_bytes"],
            given["labels"], given["tiers"], given["pythons"], given["metering"],
            given["version"],
        )  # fmt: skip
        self.send(hello)
        while (got := self.receive()) and isinstance(got[0], ww.Refused):
            if got[0].code == "RECOVERING":
                self.send(hello)
            elif got[0].code != "REJOIN":  # that is what an earlier session is told
                break
        assert got, "no answer to HELLO"
        if isinstance(got[0], ww.Welcome):
            self.session = got[0].session
            self.numbers = {"report": 0, "result": 0}
        return got[0]

    def take(self, timeout_s: float = 0.02) -> Any:
        got = self.receive(timeout_s)
        if got is None:
            return None
        message, bodies = got
        if isinstance(message, ww.Orders):
            self.acked = max(self.acked, message.acked)
            self.answers = max(self.answers, message.answers)
            self.closed += message.close
            for opening in message.openings:
                self.openings[opening.job] = opening
                self.functions[opening.job] = bodies.pop(0)
            for lease in message.leases:
                cut = len(lease.parcels)
                self.leases.append((lease, bodies[:cut]))
                bodies = bodies[cut:]
        elif isinstance(message, ww.Refused):
            self.refusals.append(message)
        return message

    def heads(
        self, lease: ww.LeaseGrant, split: int = 1 << 20
    ) -> tuple[list[ww.ResultHead], list[bytes]]:
        heads, bodies = [], []
        pieces = [
            (at, min(split, first + length - at))
            for first, length in lease.runs
            for at in range(first, first + length, split)
        ]
        for first, count in pieces:
            self.numbers["result"] += 1
            heads.append(
                ww.ResultHead(self.numbers["result"], lease.lease_id, lease.job, first, count, "q",
                             count, count, 100, "wait4")
            )  # fmt: skip
            packed = pack_plain(list(range(first, first + count)))
            assert packed
            bodies += [packed[1], pack_meter(count, Outcome.OK), b"", b""]
        return heads, bodies

    def report(
        self,
        heads: Sequence[ww.ResultHead] = (),
        bodies: Sequence[bytes] = (),
        is_full: bool = False,
        open_jobs: Sequence[tuple[int, int]] = (),
    ) -> int:
        self.numbers["report"] += 1
        held = [ww.Held(lease.lease_id, lease.slot, -1, 0) for lease, _ in self.leases]
        self.send(
            ww.Report(self.session, self.numbers["report"], is_full, list(range(self.slots)), held,
                     heads, [], open_jobs=open_jobs),
            *bodies,
        )  # fmt: skip
        return self.numbers["report"]

    def work_off(self, split: int = 1 << 20) -> int:
        """Answers the leases at hand, at most ``split`` subtasks a result; returns how many."""
        leases, self.leases = self.leases, []
        for lease, _ in leases:
            heads, bodies = self.heads(lease, split)
            for at in range(0, len(heads), 32):
                self.report(heads[at : at + 32], bodies[4 * at : 4 * at + 128])
        return len(leases)

    def start(self) -> "WorkerPeer":
        """Works until the end of the test."""

        def run() -> None:
            renew_at = 0.0
            while not self.stop.is_set():
                message = self.take()
                is_refused = isinstance(message, ww.Refused) and message.code == "REJOIN"
                if is_refused and message.session in (b"", self.session):
                    self.hello()
                self.work_off()
                if time.monotonic() >= renew_at:
                    renew_at = time.monotonic() + 0.3
                    self.report(is_full=True)

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        return self

    def close(self) -> None:
        self.stop.set()
        if self.thread:
            self.thread.join(10)
        super().close()


class LedgerPeer:
    """Applies the outbox in order, once each; ``entries`` outlive ``stop`` and ``start``."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.entries: list[Any] = []
        self.faults: list[str] = []
        self.repeated = 0
        self.refuse: dict[str, tuple[str, str]] = {}
        self.is_mute = False
        self.questions_lost = 0  #: so many more will be
        self.late: list[wl.Acked] = []  #: said in the place of answers to the next pings
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> "LedgerPeer":
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(10)
            self._thread = None

    def _run(self) -> None:
        socket = CONTEXT.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(self.address)
        try:
            while not self._stop.is_set():
                if socket.poll(10):
                    routing, frame = socket.recv_multipart()
                    answer = self._handle(wl.decode_to_ledger.decode(frame))
                    if answer is not None and not self.is_mute:
                        socket.send_multipart([routing, encode(answer)])
        finally:
            socket.close()

    def _handle(self, message: Any) -> Any:
        if isinstance(message, wl.Ping):
            return self.late.pop(0) if self.late else wl.Acked(message.broker, len(self.entries))
        if self.questions_lost and isinstance(message, wl.AskBalance | wl.AskUsage):
            self.questions_lost -= 1
            return None
        if isinstance(message, wl.AskBalance):
            body = wc.BalanceAnswer([wc.AccountRow(message.tenant, 5, 0, 5)], 0, len(self.entries))
            return wl.LedgerAnswer(message.request, msgspec.Raw(msgspec.msgpack.encode(body)))
        if isinstance(message, wl.AskUsage):
            rows = [wc.UsageRow(message.ref or message.by, 1, 0, 1, 1, 1, 0)]
            return wl.LedgerAnswer(message.request, msgspec.Raw(msgspec.msgpack.encode(rows)))
        verdicts = []
        for sequence, entry in enumerate(message.entries, message.first):
            if sequence <= len(self.entries):
                self.repeated += 1
                if self.entries[sequence - 1] != entry:
                    self.faults.append(f"entry {sequence} came again with another content")
            elif sequence == len(self.entries) + 1:
                self.entries.append(entry)
            else:
                self.faults.append(f"a gap before {sequence}")
            if isinstance(entry, wl.Hold):
                verdicts.append(wl.Verdict(sequence, entry.ref, *self.refuse.get(entry.tenant, ())))
        return wl.Acked(message.broker, len(self.entries), verdicts)


class Process:
    """``python -m gristmill.broker`` and its addresses."""

    function = FUNCTION
    function_spec = staticmethod(function_spec)
    until = staticmethod(until)

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.run = pathlib.Path(tempfile.mkdtemp(prefix="gm-"))  # short: sun_path
        self.front, self.back = f"ipc://{self.run}/front", f"ipc://{self.run}/back"
        self.ledger_address = f"ipc://{self.run}/ledger"
        self.settings: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "broker.log"
        self.closers: list[Any] = []

    def command(self, *more: str) -> list[str]:
        return [
            sys.executable, "-P", "-m", "gristmill.broker", "--state", str(self.state),
            "--front", self.front, "--back", self.back, "--ledger", self.ledger_address,
            "--store", f"unix://{self.run}/store", *more,
        ]  # fmt: skip

    def start(self, **settings: Any) -> "Process":
        self.settings |= {name.upper(): str(value) for name, value in settings.items()}
        environment = {
            **os.environ,
            **{f"GRISTMILL_BROKER_{k}": v for k, v in self.settings.items()},
        }
        reader, writer = os.pipe()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command("--ready-fd", str(writer), "--die-with-parent"),
                stderr=log, pass_fds=(writer,), env=environment,
            )  # fmt: skip
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            assert file.read() == b"READY\n", self.log.read_text()
        return self

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait(10)

    def terminate(self) -> int:
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def text(self) -> str:
        return self.log.read_text()

    def ledger(self) -> LedgerPeer:
        peer = self.ledger_peer = LedgerPeer(self.ledger_address)
        self.closers.append(peer.stop)
        return peer

    def token(self) -> str:
        """An operator's, where clients come by tcp."""
        if self.front.startswith("ipc://"):
            return ""
        return make_token(self.state, "local", is_operator=True)

    def client(self, **fields: Any) -> ClientPeer:
        peer = ClientPeer(self.front, token=self.token(), **fields)
        self.closers.append(peer.close)
        assert isinstance(peer.hello(), wc.Welcome)
        return peer

    def worker(self, name: str = "w0", **fields: Any) -> WorkerPeer:
        peer = WorkerPeer(self.back, name, **fields)
        self.closers.append(peer.close)
        return peer

    def end(self) -> None:
        for close in reversed(self.closers):
            with contextlib.suppress(zmq.ZMQError):
                close()
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        shutil.rmtree(self.run, ignore_errors=True)


@pytest.fixture
def broker(tmp_path: pathlib.Path) -> Iterator[Process]:
    """A broker that is not started."""
    process = Process(tmp_path)
    try:
        yield process
    finally:
        process.end()


@pytest.fixture
def grid(broker: Process) -> Process:
    """A broker with a ledger beside it, both running."""
    broker.ledger().start()
    return broker.start()
