"""A conforming peer: it speaks the broker's side of RFC 0002 over a real socket and runs functions
itself, in its own thread.

It holds to the rules that a client may rely on (order of parcels, credit, sequences, sessions) and
raises ``AssertionError`` in its thread, kept in ``faults``, when the client breaks one. What it
does not do is journal, lease, jail or bill.
"""

import os
import pickle
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import msgspec
import zmq

from gristmill.wire import client as wire
from gristmill.wire import limits, values
from gristmill.wire.errors import CODES
from gristmill.wire.failure import Failure, pack_failures
from gristmill.wire.frames import encode
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.worker import ResultHead


class PeerJob:
    """A job of the peer."""

    def __init__(self, number: int, message: wire.Submit, function: bytes) -> None:
        self.number = number
        self.spec = message.spec
        self.submission = message.submission
        self.function: Any = cloudpickle.loads(function) if function else None
        self.uploaded = 0
        self.upload_bytes = 0
        self.count = -1
        self.results: list[tuple[wire.Results, list[bytes]]] = []
        self.done = self.failed = self.cancelled = 0
        self.state = "running"
        self.reason = ""
        self.parcels: list[tuple[int, int, str]] = []
        self.cancelled_indices: set[int] = set()
        self.held: list[tuple[wire.Parcel, bytes]] = []

    def status(self) -> wire.JobStatus:
        return wire.JobStatus(
            job=self.number, name=self.spec.name, kind=self.spec.kind, tenant="local",
            state=self.state, tier=self.spec.tier, priority=4, count=self.count,
            uploaded=self.uploaded, waiting=0, ready=0, leased=0, done=self.done,
            failed=self.failed, cancelled=self.cancelled, retried=0, lost=0, superseded=0,
            submitted_ms=1, started_ms=1, finished_ms=2, wall_us=0, cpu_us=0, peak_kib=0,
            spent_ucredits=10 * self.done, cap_ucredits=self.spec.cap_ucredits, eta_ms=0,
            results=len(self.results), reason=self.reason,
        )  # fmt: skip


class Subscription:
    """A session's reading of one job."""

    def __init__(self, routing: bytes, after: int, allowed: int) -> None:
        self.routing, self.cursor, self.allowed, self.sent = routing, after, allowed, 0


class Peer:
    """The peer: starts with the object, ends with ``stop``.

    ``jobs`` and ``sessions`` survive ``stop``: give them to the next peer to restart it.
    Hooks: ``on_message(message)`` returning True swallows a message; ``answers`` maps a question
    to its body; ``is_hostile``: pickles are sent where plain values were asked for;
    ``is_holding`` keeps parcels unrun until ``release``.
    """

    def __init__(
        self,
        address: str,
        *,
        jobs: dict[int, PeerJob] | None = None,
        is_fleet_trusted: bool = True,
        credit_bytes: int = limits.INPUT_CREDIT_BYTES,
        is_echo: bool = False,
        is_hostile: bool = False,
    ) -> None:
        self.address = address
        self.jobs = jobs if jobs is not None else {}
        self.is_fleet_trusted = is_fleet_trusted
        self.credit_bytes = credit_bytes
        self.is_echo = is_echo
        self.is_hostile = is_hostile
        self.faults: list[str] = []
        self.seen: list[Any] = []
        self.on_message: Callable[[Any], bool] = lambda message: False
        self.answers: dict[str, Any] = {}
        self.is_holding = False
        self.drop_results = 0
        self.submit_refusal: tuple[str, str] | None = None
        self._sessions: dict[bytes, bytes] = {}
        self._subscriptions: dict[tuple[bytes, int], Subscription] = {}
        self._stopping = threading.Event()
        self._released = threading.Event()
        self._forgetting = threading.Event()
        self._forgotten = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.bind(address)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(5)
        assert not self._thread.is_alive()

    def forget_sessions(self) -> None:
        """As if every session's time had run out; the peer's own thread forgets them."""
        self._forgotten.clear()
        self._forgetting.set()
        assert self._forgotten.wait(10), self.faults

    def release(self) -> None:
        """Run what was held back."""
        self._released.set()

    def count(self, kind: type) -> int:
        return sum(type(message) is kind for message in self.seen)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                if self._forgetting.is_set():
                    self._forgetting.clear()
                    self._sessions.clear()
                    self._subscriptions.clear()
                    self._forgotten.set()
                if self._released.is_set():
                    self._released.clear()
                    self.is_holding = False
                    for job in list(self.jobs.values()):
                        held, job.held = job.held, []
                        for parcel, frame in held:
                            self._work(job, parcel, frame)
                        self._end_if_over(job)
                if self._socket.poll(10):
                    routing, header, *frames = self._socket.recv_multipart()
                    self._handle(routing, wire.decode_client.decode(header), frames)
        except Exception:
            self.faults.append(traceback.format_exc())
        finally:
            self._socket.close()
            self._context.term()

    def _send(self, routing: bytes, message: Any, *frames: bytes) -> None:
        try:
            self._socket.send_multipart([routing, encode(message), *frames])
        except zmq.ZMQError:
            pass  # the client left

    def _refuse(self, routing: bytes, request: int, code: str, message: str, job: int = 0) -> None:
        hint = CODES[code].next_move
        self._send(routing, wire.Refused(request, code, message, hint, job))

    def _handle(self, routing: bytes, message: Any, frames: list[bytes]) -> None:
        self.seen.append(message)
        if self.on_message(message):
            return
        if isinstance(message, wire.Hello):
            session = os.urandom(16)
            self._sessions[session] = routing
            self._send(
                routing,
                wire.Welcome(
                    session, "peer", "local", limits.CLIENT_PING_MS, limits.CLIENT_TTL_MS,
                    "unix:///nowhere", self.is_fleet_trusted, ["3.11"],
                ),
            )  # fmt: skip
            return
        if message.session not in self._sessions:
            self._refuse(routing, getattr(message, "request", 0), "REJOIN", "unknown session")
            return
        getattr(self, f"_on_{type(message).__name__.lower()}")(routing, message, frames)

    def _on_ping(self, routing: bytes, message: wire.Ping, frames: list[bytes]) -> None:
        self._send(routing, wire.Pong())

    def _on_goodbye(self, routing: bytes, message: wire.Goodbye, frames: list[bytes]) -> None:
        del self._sessions[message.session]

    def _on_submit(self, routing: bytes, message: wire.Submit, frames: list[bytes]) -> None:
        if self.submit_refusal:
            self._refuse(routing, message.request, *self.submit_refusal)
            return
        if message.is_dry_run:
            self._answer(routing, message.request, wire.DryRun(message.spec, 1, 2, []))
            return
        for job in self.jobs.values():
            if job.submission == message.submission:
                self._send(
                    routing, wire.Accepted(message.request, job.number, True, self.credit_bytes)
                )
                return
        job = PeerJob(len(self.jobs) + 1, message, frames[0])
        self.jobs[job.number] = job
        self._send(routing, wire.Accepted(message.request, job.number, False, self.credit_bytes))

    def _on_parcel(self, routing: bytes, message: wire.Parcel, frames: list[bytes]) -> None:
        job = self.jobs[message.job]
        if message.first > job.uploaded:
            text = f"first is {message.first}, not {job.uploaded}"
            self._refuse(routing, 0, "PARCEL_ORDER", text, job.number)
            return
        if message.first == job.uploaded:
            assert len(frames[0]) <= limits.PARCEL_BYTES_MAX, len(frames[0])
            assert job.upload_bytes < job_allowed(job, self.credit_bytes), "beyond the credit"
            job.uploaded += message.count
            job.upload_bytes += len(frames[0])
            job.parcels.append((message.first, message.count, message.codec))
            if self.is_holding:
                job.held.append((message, frames[0]))
            else:
                self._work(job, message, frames[0])
        allowed = job.upload_bytes + self.credit_bytes
        self._send(routing, wire.InputCredit(job.number, job.uploaded, allowed))

    def _on_closeupload(self, routing: bytes, message: wire.CloseUpload, frames: Any) -> None:
        job = self.jobs[message.job]
        if message.count != job.uploaded:
            self._refuse(
                routing, message.request, "PARCEL_ORDER", "parcels are missing", job.number
            )
            return
        job.count = message.count
        self._answer(routing, message.request, None)
        self._end_if_over(job)

    def _on_subscribe(self, routing: bytes, message: wire.Subscribe, frames: list[bytes]) -> None:
        if message.job not in self.jobs:
            self._refuse(routing, message.request, "UNKNOWN_JOB", f"j{message.job}", message.job)
            return
        self._answer(routing, message.request, None)
        key = (message.session, message.job)
        self._subscriptions[key] = Subscription(routing, message.after, message.bytes_allowed)
        self._deliver(self.jobs[message.job])

    def _on_credit(self, routing: bytes, message: wire.Credit, frames: list[bytes]) -> None:
        subscription = self._subscriptions.get((message.session, message.job))
        if subscription:
            assert message.acked <= subscription.cursor
            subscription.allowed = max(subscription.allowed, message.bytes_allowed)
            self._deliver(self.jobs[message.job])

    def _on_unsubscribe(self, routing: bytes, message: wire.Unsubscribe, frames: Any) -> None:
        self._subscriptions.pop((message.session, message.job), None)

    def _on_cancel(self, routing: bytes, message: wire.Cancel, frames: list[bytes]) -> None:
        job = self.jobs[message.job]
        self._answer(routing, message.request, None)
        if not message.runs:
            job.state = "cancelled"
            job.held.clear()
            self._deliver(job)
        for start, length in message.runs:
            job.cancelled_indices.update(range(start, start + length))

    def _on_ask(self, routing: bytes, message: wire.Ask, frames: list[bytes]) -> None:
        if message.about == "job" and message.job in self.jobs:
            self._answer(routing, message.request, self.jobs[message.job].status())
        elif message.about in self.answers:
            body = self.answers[message.about]
            self._answer(routing, message.request, body(message) if callable(body) else body)
        elif message.about == "jobs":
            rows = [job.status() for job in self.jobs.values()]
            self._answer(routing, message.request, rows[: message.limit])
        else:
            self._refuse(routing, message.request, "UNKNOWN_JOB", f"no j{message.job}")

    def _answer(self, routing: bytes, request: int, body: Any) -> None:
        self._send(routing, wire.Answer(request, msgspec.Raw(msgspec.msgpack.encode(body))))

    # ------------------------------------------------------------ work

    def _work(self, job: PeerJob, parcel: wire.Parcel, frame: bytes) -> None:
        if self.is_echo:
            codec, outcomes, failures, body = parcel.codec, Outcome.OK, b"", frame
            job.done += parcel.count
        else:
            codec, outcomes, failures, body = self._call(job, parcel, frame)
        head = ResultHead(
            0, 1, job.number, parcel.first, parcel.count, codec, 1, 1, 1, "wait4", False
        )
        result = wire.Results(job.number, len(job.results) + 1, head, 1, "ab" * 32)
        frames = [body, pack_meter(parcel.count, outcomes), failures, b""]
        job.results.append((result, frames))
        self._deliver(job)

    def _call(self, job: PeerJob, parcel: wire.Parcel, frame: bytes) -> Any:
        if parcel.codec == "r":
            import numpy

            dtype, shape, raw = values.split_rows(frame)
            inputs = list(numpy.frombuffer(raw, dtype).reshape(parcel.count, *shape))
        else:
            inputs = values.unpack(parcel.codec, frame, parcel.count, pickle.loads)
        outcomes, found, failures = bytearray(), [], []
        for offset, value in enumerate(inputs):
            if parcel.first + offset in job.cancelled_indices:
                outcomes.append(Outcome.CANCELLED)
                job.cancelled += 1
                continue
            try:
                found.append(job.function(*value) if job.spec.is_star else job.function(value))
                outcomes.append(Outcome.OK)
                job.done += 1
            except Exception as error:
                if isinstance(error, Ends):
                    outcomes.append(error.outcome)
                    failures.append((offset, error.failure))
                else:
                    outcomes.append(Outcome.ERROR)
                    failures.append((offset, failure_of(error)))
                job.failed += 1
        codec, body = "", b""
        if found:
            if job.spec.results == "safe" and not self.is_hostile:
                codec, body = values.pack_safe(found)
            else:
                codec, body = values.pack_plain(found) or ("p", cloudpickle.dumps(found))
        return codec, bytes(outcomes), pack_failures(failures), body

    def _deliver(self, job: PeerJob) -> None:
        for (session, number), subscription in list(self._subscriptions.items()):
            if number != job.number:
                continue
            while subscription.cursor < len(job.results):
                if subscription.sent >= subscription.allowed:
                    break
                result, frames = job.results[subscription.cursor]
                subscription.cursor += 1
                subscription.sent += sum(map(len, frames))
                if self.drop_results:
                    self.drop_results -= 1
                    continue
                self._send(subscription.routing, result, *frames)
            if job.state in wire.FINAL_JOB_STATES and subscription.cursor == len(job.results):
                self._send(subscription.routing, wire.JobEvent(job.status()))
                del self._subscriptions[session, number]

    def _end_if_over(self, job: PeerJob) -> None:
        if job.count >= 0 and not job.held and job.done + job.failed + job.cancelled == job.count:
            job.state = "failed" if job.failed else "done"
            self._deliver(job)


class Ends(Exception):  # noqa: N818
    """A function raises it to end with another outcome than ERROR."""

    def __init__(self, outcome: Outcome, failure: Failure) -> None:
        self.outcome, self.failure = outcome, failure


def failure_of(error: BaseException) -> Failure:
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    text = "".join(traceback.format_exception(error))
    return Failure(str(error), kind, text, cloudpickle.dumps(error))


def job_allowed(job: PeerJob, credit_bytes: int) -> int:
    return job.upload_bytes + credit_bytes


def wait_until(condition: Callable[[], Any], seconds: float = 5.0) -> Any:
    """The condition's first true value; fails after a time."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.002)
    return found
