"""Zero-work workers: they speak the worker's wire and answer a lease at once, running nothing.

What is left is the runtime's own cost (Böhm and Beránek, *Runtime vs Scheduler*, 2020). Very many
fit in one process. A result is the subtask's own index, so that a map over ``range(n)`` can be
compared; it is signed, as the real worker's are. ``delay_s``: a lease is answered so much later on
average (uniform from nothing to twice as much), as if it had run for so long; 0 is at once.
"""

import array
import collections
import contextlib
import hashlib
import heapq
import math
import multiprocessing
import os
import random
import resource
import select
import time
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import msgspec
import zmq
from nacl.signing import SigningKey

from gristmill.wire import limits
from gristmill.wire import worker as ww
from gristmill.wire.frames import encode
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.receipts import receipt_of, sign_receipt

#: first pause between two HELLOs that were not answered, doubled each time; and between the first
#: HELLOs of two workers of a process: ten thousand at once would wait, and ask again meanwhile
HELLO_S, NEXT_HELLO_S = 1.0, 0.003
WAIT_S = 120.0  #: all workers are in session within this
#: more is not said of a subtask: behind one known to take above 1 s no second lease is stacked, so
#: that very many workers, which must answer slowly, would be another workload than a few
CLAIM_S_MAX = 0.5
_INDICES = array.array("q", range(1 << 20)).tobytes()


def _values(first: int, count: int) -> bytes:
    """The indices as a column."""
    if first + count <= 1 << 20:
        return _INDICES[8 * first : 8 * (first + count)]
    return array.array("q", range(first, first + count)).tobytes()


class Light:
    """One worker: HELLO, reports when asked, each lease answered."""

    def __init__(self, context: "zmq.Context[Any]", back: str, name: str, slots: int) -> None:
        self.socket = context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0), (zmq.IMMEDIATE, 1), (zmq.RECONNECT_IVL, 100), (zmq.RCVHWM, 0),
            (zmq.SNDHWM, 0),
        ):  # fmt: skip
            self.socket.setsockopt(option, value)
        self.socket.connect(back)
        self.name, self.slots = name, slots
        self.key = SigningKey(hashlib.sha256(name.encode()).digest())
        self.broker = ""
        self.openings: dict[int, ww.JobOpening] = {}
        self.instance, self.session = os.urandom(16), b""
        self.report = self.result = self.leases_taken = self.rejoins = 0
        self.report_s, self.due, self.pause_s = 1.0, 0.0, HELLO_S
        self.held: dict[int, tuple[ww.LeaseGrant, float]] = {}
        self.first_lease_at = 0.0

    def send(self, header: Any, *bodies: bytes) -> None:
        """Dropped when there is no connection: HELLO comes again, a report is missed."""
        with contextlib.suppress(zmq.Again):
            self.socket.send_multipart([encode(header), *bodies], zmq.DONTWAIT)

    def speak(self, now: float) -> None:
        """HELLO until it is answered, then full reports."""
        if not self.session:
            node = self.key.verify_key.encode().hex()
            self.send(
                ww.Hello(
                    limits.PROTOCOL, self.name, node, self.instance, self.slots, 64_000, 1 << 40,
                    1 << 40, {}, ["job", "batch"], ["3.11.7"], "wait4", "light",
                )
            )  # fmt: skip
            self.due = now + self.pause_s * (1 + self.instance[0] / 255)
            self.pause_s = min(2 * self.pause_s, 16 * HELLO_S)
            return
        self.report += 1
        held = [ww.Held(one.lease_id, one.slot, -1, 0) for one, _ in self.held.values()]
        self.send(ww.Report(self.session, self.report, True, list(range(self.slots)), held, [], []))
        self.due = now + self.report_s

    def take(self, now: float) -> list[int]:
        """Every message that waits; ids of the leases that came."""
        came: list[int] = []
        while True:
            try:
                frame = self.socket.recv_multipart(zmq.DONTWAIT)[0]
            except zmq.Again:
                break
            message = ww.decode_orders.decode(frame)
            if isinstance(message, ww.Welcome):
                self.session, self.report_s = message.session, message.report_ms / 1e3
                self.broker, self.pause_s = message.broker, HELLO_S
                self.held.clear()
                self.report = self.result = 0
                self.due = now + self.report_s * self.instance[1] / 255
            elif isinstance(message, ww.Orders):
                self.report_s = message.report_ms / 1e3
                self.openings |= {opening.job: opening for opening in message.openings}
                for lease in message.leases:
                    self.first_lease_at = self.first_lease_at or now
                    self.held[lease.lease_id] = lease, now
                    came.append(lease.lease_id)
            elif message.code == "REJOIN" and message.session == self.session:
                self.session, self.due, self.rejoins = b"", now, self.rejoins + 1
                self.held.clear()
            else:
                assert message.code in ("RECOVERING", "REJOIN"), message
        self.leases_taken += len(came)
        return came

    def answer(self, lease_ids: list[int], now: float) -> None:
        """Results of these leases; the time since they came is what they took."""
        heads: list[ww.ResultHead] = []
        bodies: list[bytes] = []
        for lease_id in lease_ids:
            if lease_id not in self.held:  # of an earlier session
                continue
            lease, since = self.held.pop(lease_id)
            items = sum(count for _, count in lease.runs)
            each_us = int(min(now - since, CLAIM_S_MAX) * 1e6 / items)
            for first, count in lease.runs:
                self.result += 1
                head = ww.ResultHead(
                    self.result, lease_id, lease.job, first, count, "q", each_us * count, 0, 100,
                    "wait4",
                )  # fmt: skip
                meter = pack_meter(count, Outcome.OK, [each_us] * count)
                frames = [_values(first, count), meter, b"", b""]
                opening = self.openings[lease.job]
                receipt = receipt_of(
                    self.broker, head, frames, lease.attempt, opening.spec, opening.tariff
                )
                signature = sign_receipt(receipt, self.key)
                heads.append(msgspec.structs.replace(head, signature=signature))
                bodies += frames
        self._flush(heads, bodies)

    def _flush(self, heads: list[ww.ResultHead], bodies: list[bytes]) -> None:
        for at in range(0, len(heads), limits.RESULTS_PER_REPORT_MAX):
            self.report += 1
            some = heads[at : at + limits.RESULTS_PER_REPORT_MAX]
            parts = bodies[4 * at : 4 * (at + len(some))]
            self.send(ww.Report(self.session, self.report, False, [], [], some, []), *parts)


class _Crowd:
    """The light workers of one process."""

    def __init__(self, wire: Connection, back: str, names: list[str], slots: int) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._wire = wire
        self._context: zmq.Context[Any] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, len(names) + 64)
        self._workers = [Light(self._context, back, name, slots) for name in names]
        began = time.monotonic()
        for number, worker in enumerate(self._workers):
            worker.due = began + NEXT_HELLO_S * number
        self._delay_s = 0.0
        self._due: list[tuple[float, int, Light]] = []  #: heap: when, lease, whose
        self._random = random.Random(names[0])

    def run(self) -> None:
        """Until told to end.

        The kernel watches the sockets' descriptors: to ask each of thousands of sockets by turns
        takes ten times as long. A descriptor wakes once, and sending may take the wake-up along:
        after each send the socket is read to its end.
        """
        by_fd = {worker.socket.getsockopt(zmq.FD): worker for worker in self._workers}
        epoll = select.epoll()
        for fd in (*by_fd, self._wire.fileno()):
            epoll.register(fd, select.EPOLLIN)
        speak_at = 0.0
        while True:
            wait_s = 0.02
            if self._due:
                wait_s = min(wait_s, max(0.0, self._due[0][0] - time.monotonic()))
            for fd, _ in epoll.poll(wait_s):
                if (worker := by_fd.get(fd)) is not None:
                    self._take(worker)
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                _, lease_id, worker = heapq.heappop(self._due)
                worker.answer([lease_id], now)
                self._take(worker)
            if now >= speak_at:  # to look at ten thousand clocks each turn would be the cost
                speak_at = now + 0.02
                for worker in self._workers:
                    if now >= worker.due:
                        worker.speak(now)
                        self._take(worker)
            if self._wire.poll() and not self._obey(*self._wire.recv()):
                return

    def _take(self, worker: Light) -> None:
        now = time.monotonic()
        while came := worker.take(now):
            if self._delay_s:
                self._put_off(worker, came, now)
            else:
                worker.answer(came, now)

    def _put_off(
        self, worker: Light, lease_ids: list[int], now: float, is_under_way: bool = False
    ) -> None:
        for lease_id in lease_ids:
            rest = self._random.random()
            if is_under_way:
                # Of what began at any time before, a half is not what is left to do: drawn so, the
                # leases end at their final rate from the first moment on.
                rest = 1 - math.sqrt(rest)
            heapq.heappush(self._due, (now + 2 * self._delay_s * rest, lease_id, worker))

    def _obey(self, command: str, argument: float) -> bool:
        if command == "delay":
            self._delay_s = argument
            self._due.clear()
            now = time.monotonic()
            for worker in self._workers:
                worker.first_lease_at = 0.0
                if argument:
                    self._put_off(worker, list(worker.held), now, is_under_way=True)
                else:
                    worker.answer(list(worker.held), now)
                    self._take(worker)
        elif command == "end":
            for worker in self._workers:
                if worker.session:
                    worker.send(ww.Goodbye(worker.session, "the benchmark is over"))
            self._context.destroy(1_000)
            self._wire.send({})
            return False
        firsts = [worker.first_lease_at for worker in self._workers if worker.first_lease_at]
        self._wire.send(
            {
                "in_session": sum(bool(worker.session) for worker in self._workers),
                "leases": sum(worker.leases_taken for worker in self._workers),
                "held": sum(len(worker.held) for worker in self._workers),
                "rejoins": sum(worker.rejoins for worker in self._workers),
                "first_lease_at": min(firsts, default=0.0),
            }
        )
        return True


def _live(wire: Connection, back: str, names: list[str], slots: int) -> None:
    """A process of light workers; commands come and answers go by ``wire``."""
    _Crowd(wire, back, names, slots).run()


class Fleet:
    """Light workers in a few processes; a context manager that waits until all are in session.

    Args:
        back: the broker's address for workers.
        count: workers.
        slots: of each.
        processes: they share the workers.
        prefix: of their names, which a broker keeps: a second fleet needs another.
    """

    def __init__(
        self, back: str, count: int, *, slots: int = 1, processes: int = 2,
        prefix: str = "light",
    ) -> None:  # fmt: skip
        spawning = multiprocessing.get_context("spawn")
        self._wires: list[Connection] = []
        self._processes = []
        self.count = count
        names = [f"{prefix}-{number}" for number in range(count)]
        for part in range(min(processes, count)):
            ours, theirs = spawning.Pipe()
            process = spawning.Process(
                target=_live, args=(theirs, back, names[part::processes], slots),
                daemon=True,
            )  # fmt: skip
            process.start()
            theirs.close()
            self._wires.append(ours)
            self._processes.append(process)

    def tell(self, command: str, argument: float = 0) -> dict[str, float]:
        """``delay`` (seconds, also of what waits) or ``ask``; sums over the processes."""
        for wire in self._wires:
            wire.send((command, argument))
        sums: dict[str, float] = collections.Counter()
        firsts = []
        for wire in self._wires:
            answer = wire.recv()
            firsts.append(answer.pop("first_lease_at", 0.0))
            for name, value in answer.items():
                sums[name] += value
        sums["first_lease_at"] = min((at for at in firsts if at), default=0.0)
        return sums

    def __enter__(self) -> "Fleet":
        deadline = time.monotonic() + WAIT_S
        while (there := self.tell("ask")["in_session"]) < self.count:
            assert time.monotonic() < deadline, f"{there} of {self.count} workers are in session"
            time.sleep(0.05)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.tell("end")
        for process in self._processes:
            process.join(5 if error is None else 0)
            process.kill()
            process.join()
