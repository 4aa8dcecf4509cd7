"""A small broker for one worker: real sockets, the real dialogue, every message checked and kept.

It grants what a test says, acknowledges results at once, and knows nothing of the worker's code.
"""

import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import cloudpickle
import msgspec
import zmq

from gristmill.wire import values as wire_values
from gristmill.wire.failure import Failure, LogEntry, unpack_failures, unpack_logs
from gristmill.wire.frames import encode
from gristmill.wire.ids import digest_of
from gristmill.wire.meter import Meter, unpack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.receipts import Receipt, is_signed
from gristmill.wire.spec import Command, JobSpec, Limits, Tariff
from gristmill.wire.worker import (
    Goodbye,
    Hello,
    JobOpening,
    LeaseGrant,
    Orders,
    ParcelHead,
    Refused,
    Report,
    ResultHead,
    Returned,
    Run,
    Welcome,
    decode_worker,
)

BROKER = "ab" * 32
TARIFF = Tariff()
PLENTY = 1 << 50


class Result:
    """A result with its frames decoded."""

    def __init__(self, head: ResultHead, frames: list[bytes]) -> None:
        self.head = head
        self.frames = frames
        self.meter: Meter = unpack_meter(frames[1], head.count)
        self.failures: dict[int, Failure] = {
            head.first + offset: failure for offset, failure in unpack_failures(frames[2])
        }
        self.logs: list[LogEntry] = unpack_logs(frames[3])
        self.outcomes = {
            head.first + offset: self.meter.outcome_at(offset) for offset in range(head.count)
        }

    def values(self) -> dict[int, Any]:
        """Index to value, of the OK ones."""
        good = [index for index, outcome in self.outcomes.items() if outcome is Outcome.OK]
        if not good:
            assert not self.frames[0]
            return {}
        found = wire_values.unpack(self.head.codec, self.frames[0], len(good), cloudpickle.loads)
        return dict(zip(good, found, strict=True))


class Peer:
    """See the module."""

    def __init__(self, folder: pathlib.Path, store: str = "") -> None:
        folder.chmod(0o700)
        self.address = f"ipc://{folder}/back"
        self.store = store
        self.put_grant = self.get_grant = ""
        self.context: zmq.Context[Any] = zmq.Context()
        self.report_ms, self.ttl_ms = 200, 3_500
        self.is_acking = True
        self.is_answering = True
        self.refusal: Refused | None = None
        self.sessions = 0
        self.hellos: list[Hello] = []
        self.reports: list[Report] = []
        self.results: list[Result] = []
        self.returned: list[Returned] = []
        self.goodbyes: list[Goodbye] = []
        self.acked = 0
        self.stop_at_welcome: list[int] = []
        self._lease = 0
        self._jobs: dict[int, JobSpec] = {}
        self._to: bytes = b""
        self._bind()

    def _bind(self) -> None:
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(self.address)

    def restart(self) -> None:
        """Lose every session, as a broker that is started again."""
        self.socket.close(0)
        self._bind()
        self.session = b""

    def close(self) -> None:
        self.socket.close(0)
        self.context.term()

    # ------------------------------------------------------------ in

    def pump(self, until: Callable[[], Any], timeout_s: float = 20.0, worker: Any = None) -> None:
        """Take messages until a condition holds."""
        deadline = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < deadline, self._story()
            if worker is not None and worker.poll() is not None and not self.socket.poll(0):
                raise AssertionError(f"the worker ended: {worker.returncode}\n{self._story()}")
            if self.socket.poll(20):
                self._take(self.socket.recv_multipart())

    def _story(self) -> str:
        return f"{len(self.hellos)} hellos, {len(self.reports)} reports; last: {self.reports[-3:]}"

    def _take(self, parts: list[bytes]) -> None:
        self._to, header, *body = parts
        message = decode_worker.decode(header)
        if isinstance(message, Hello):
            self.hellos.append(message)
            if self.refusal is not None:
                self._send(self.refusal)
                return
            self.sessions += 1
            self.acked = 0
            self.session = self.sessions.to_bytes(16, "big")
            self._send(
                Welcome(
                    self.session, 1, BROKER, self.report_ms, self.ttl_ms, self.store,
                    self.stop_at_welcome,
                )
            )  # fmt: skip
        elif message.session != getattr(self, "session", b""):
            self._send(Refused("REJOIN", "who are you", ""))
        elif isinstance(message, Goodbye):
            self.goodbyes.append(message)
        else:
            self._take_report(message, body)

    def _take_report(self, report: Report, body: list[bytes]) -> None:
        assert len(body) == 4 * len(report.results)
        self.reports.append(report)
        self.returned += report.returned
        for number, head in enumerate(report.results):
            assert head.number == self.acked + number + 1, "results are numbered in sequence"
            result = Result(head, body[4 * number : 4 * number + 4])
            self._check_receipt(result)
            self.results.append(result)
        if self.is_acking and report.results:
            self.acked = report.results[-1].number
        if self.is_answering:
            self.order(answers=report.number)

    def _check_receipt(self, result: Result) -> None:
        import hashlib

        digest = hashlib.sha256()
        for frame in result.frames:
            digest.update(len(frame).to_bytes(8, "little") + frame)
        head, spec = result.head, self._jobs[result.head.job]
        work = bytes.fromhex(spec.function)
        if spec.kind == "command":
            work = hashlib.sha256(msgspec.msgpack.encode(spec.command)).digest()
        receipt = Receipt(
            BROKER, head.job, head.lease_id, head.first, head.count,
            1, work, digest.digest(),
            head.wall_us, head.cpu_us, head.peak_kib, head.metering, "standard",
            TARIFF.cpu_second_ucredits, TARIFF.subtask_ucredits, TARIFF.gib_second_ucredits,
            spec.limits.memory_bytes,
        )  # fmt: skip
        assert is_signed(receipt, head.signature, self.hellos[-1].node)

    # ------------------------------------------------------------ out

    def _send(self, message: msgspec.Struct, *body: bytes) -> None:
        self.socket.send_multipart([self._to, encode(message), *body])

    def order(self, answers: int = 0, body: tuple[bytes, ...] = (), **fields: Any) -> None:
        """Orders with these fields."""
        base = Orders(answers, self.acked, [], [], [], [], [], self.report_ms, self.ttl_ms)
        self._send(msgspec.structs.replace(base, **fields), *body)

    def open_function(self, job: int, function: Any, **spec: Any) -> JobSpec:
        """Open a job over a function."""
        tenant = spec.pop("tenant", "tenant")
        body = function if isinstance(function, bytes) else cloudpickle.dumps(function)
        limits = Limits(**spec.pop("limits", {}))
        made = JobSpec(kind="function", function=digest_of(body), limits=limits, **spec)
        self._open(job, made, body, tenant)
        return made

    def open_command(self, job: int, command: Command, **spec: Any) -> JobSpec:
        """Open a job over a command."""
        limits = Limits(**spec.pop("limits", {}))
        made = JobSpec(kind="command", command=command, limits=limits, **spec)
        self._open(job, made, b"")
        return made

    def _open(self, job: int, spec: JobSpec, body: bytes, tenant: str = "tenant") -> None:
        self._jobs[job] = spec
        opening = JobOpening(job, tenant, spec, TARIFF, self.put_grant, self.get_grant)
        self.order(body=(body,), openings=[opening])

    def lease(
        self,
        job: int,
        inputs: list[Any],
        first: int = 0,
        runs: list[Run] | None = None,
        slot: int = 0,
        budget: int = PLENTY,
        packed: tuple[str, bytes] | None = None,
    ) -> int:
        """Grant a lease over inputs that begin at index ``first``."""
        self._lease += 1
        plain = packed or wire_values.pack_plain(inputs)
        codec, frame = plain or ("p", cloudpickle.dumps(inputs))
        count = len(inputs)
        parcel = ParcelHead(job, first, count, codec)
        grant = LeaseGrant(self._lease, slot, job, 1, runs or [(first, count)], budget, [parcel])
        self.order(body=(frame,), leases=[grant])
        return self._lease

    # ------------------------------------------------------------ what came of it

    def outcomes(self) -> dict[int, Outcome]:
        """Index to outcome, of all results."""
        return {k: v for result in self.results for k, v in result.outcomes.items()}

    def values(self) -> dict[int, Any]:
        """Index to value, of all results."""
        return {k: v for result in self.results for k, v in result.values().items()}

    def failures(self) -> dict[int, Failure]:
        """Index to failure, of all results."""
        return {k: v for result in self.results for k, v in result.failures.items()}

    def returned_indices(self) -> list[int]:
        """Everything that was handed back."""
        return [
            index
            for each in self.returned
            for start, length in each.runs
            for index in range(start, start + length)
        ]

    def forget(self) -> None:
        """Results, reports and returns so far."""
        self.results.clear()
        self.reports.clear()
        self.returned.clear()


class Worker:
    """The process under test."""

    def __init__(self, folder: pathlib.Path, address: str, *options: str, **popen: Any) -> None:
        self.log = folder / "log"
        self.state = folder / "state"
        self._file = self.log.open("ab")
        self.process = subprocess.Popen(
            [
                popen.pop("python", sys.executable), "-P", "-m", "gristmill.worker",
                "--broker", address, "--name", "w", "--slots", "1",
                "--state", str(self.state), *options,
            ],
            stdout=self._file, stderr=self._file, **popen,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.returncode

    def poll(self) -> int | None:
        return self.process.poll()

    def text(self) -> str:
        """What it said."""
        return self.log.read_text()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Whatever it does, it is gone after this."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self._file.close()
