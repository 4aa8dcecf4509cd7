"""The thread that owns the client's socket: core in the middle, callbacks out.

Other threads leave commands in a deque and wake it; nobody else touches the socket or the core.
The sinks' ``on_...`` methods run in this thread: they must not block.
"""

import contextlib
import heapq
import itertools
import os
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from gristmill.client.core import effects as out
from gristmill.client.core import events as on
from gristmill.client.core.state import State
from gristmill.client.core.step import step
from gristmill.client.errors import GridError, grid_error
from gristmill.wire import limits
from gristmill.wire.client import (
    Ask,
    Hello,
    JobStatus,
    Refused,
    Results,
    Submit,
    Welcome,
    decode_broker,
)
from gristmill.wire.curve import be_client
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.tokens import Token, parse_token

_MESSAGES_PER_TURN = 64
CLOSE_S = 2.0  #: how long a close waits for what was said to leave
_PAUSE_S = 0.02  #: before another connection: a broker may drop each one at once
_UP = zmq.EVENT_HANDSHAKE_SUCCEEDED
_DOWN = zmq.EVENT_DISCONNECTED
_DENIED = zmq.EVENT_HANDSHAKE_FAILED_AUTH
_BROKEN_OFF = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


class Sink:
    """What happens to one job, told in the link's thread. Every method may be left out."""

    def on_accepted(self, job: int) -> None:
        """The job is on disk."""

    def on_moved(self, committed: int, unsent: int) -> None:
        """Inputs went to disk."""

    def on_continued(self, job: int, base: int) -> None:
        """The job was closed at ``base`` inputs of this upload; a new one takes the rest."""

    def on_upload_closed(self) -> None:
        """Every input is counted."""

    def on_upload_failed(self, error: GridError) -> None:
        """The submission or an input was refused."""

    def on_result(self, result: Results, frames: list[bytes]) -> None:
        """The next result."""

    def on_status(self, status: JobStatus, is_final: bool) -> None:
        """The job's card changed."""

    def on_results_failed(self, error: GridError) -> None:
        """No results come."""


class Link:
    """A connection to one broker.

    Args:
        address: of the broker's front.
        hello: who we are.
        token: the key with which we connect; not used over ``ipc://``.
        timeout_s: silence after which all that waits fails with ``BrokerUnavailable``.
        warn: tells a person one line.
    """

    def __init__(
        self,
        address: str,
        hello: Hello,
        token: str,
        timeout_s: float,
        warn: Callable[[str], None],
    ) -> None:
        self.address = address
        self._token = _read_token(address, token) if address.startswith("tcp://") else None
        self._is_stranger = False
        self.welcome: Welcome | None = None
        self._hello = hello
        self._timeout_ms = int(timeout_s * 1000)
        self._warn = warn
        self._commands: deque[Callable[[], None]] = deque()
        self._is_asleep = False
        self._is_stopping = False
        self._is_dead = False
        self._numbers = itertools.count(1)
        self._waiters: dict[int, Callable[[Any, GridError | None], None]] = {}
        self._uploads: dict[int, Sink] = {}
        self._jobs: dict[int, Sink] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []  # a heap
        self._wake_lock = threading.Lock()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._context = zmq.Context(io_threads=1)
        self._poller = zmq.Poller()
        self._poller.register(self._wake_fd, zmq.POLLIN)
        self._core = State(hello, self._timeout_ms, heard_ms=_now_ms())
        try:
            self._connect()
        except zmq.ZMQError as error:
            self._drop_sockets()
            raise grid_error(
                "INVALID_SPEC",
                f"{address!r} is not an address ({error})",
                "write ipc:///path or tcp://127.0.0.1:7031",
            ) from None
        self._thread = threading.Thread(target=self._run, name="gristmill-client", daemon=True)
        self._thread.start()

    def _connect(self) -> None:
        """A socket for one connection: with that, what is on its way either way is gone.

        IMMEDIATE would do that, too, but libzmq 4.3.5 then aborts the process when it drops a
        connection between two frames of a message that we are reading (src/fq.cpp).
        """
        self._is_up = False
        self._socket = self._context.socket(zmq.DEALER)
        self._monitor = self._socket.get_monitor_socket(_UP | _DOWN | _DENIED | _BROKEN_OFF)
        if self._token is not None:
            be_client(self._socket, self._token.key, self._token.broker)
        for option, value in (
            (zmq.LINGER, int(CLOSE_S * 1000)),
            (zmq.SNDHWM, 0),  # what may be on the way is bounded by credit
            (zmq.RCVHWM, 0),
            (zmq.MAXMSGSIZE, limits.ZMQ_FRAME_BYTES_MAX),
            (zmq.RECONNECT_IVL, 20),
            (zmq.RECONNECT_IVL_MAX, 500),
            (zmq.HEARTBEAT_IVL, 1000),
            (zmq.HEARTBEAT_TIMEOUT, 3000),
            (zmq.HEARTBEAT_TTL, 3000),
        ):
            self._socket.setsockopt(option, value)
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._socket.connect(self.address)

    # ------------------------------------------------------------ from other threads

    def do(self, command: Callable[[], None]) -> None:
        """Run this in the link's thread, soon."""
        self._commands.append(command)
        self.wake()

    def wake(self) -> None:
        """Have the thread look at what ``feed_later`` left for it."""
        if self._is_asleep:
            with self._wake_lock:  # the thread may have ended since, and closed the descriptor
                if self._is_asleep:
                    self._is_asleep = False
                    os.eventfd_write(self._wake_fd, 1)
        if self._is_dead:
            self._run_commands()

    def feed(self, event: on.AnyEvent) -> None:
        """Give the core an event."""
        self.do(lambda: self._step(event))

    def feed_later(self, event: on.AnyEvent) -> None:
        """Give the core an event at the next ``wake``: waking for each costs more than it."""
        self._commands.append(lambda: self._step(event))

    def request(
        self,
        message: Any,
        then: Callable[[Any, GridError | None], None],
        frames: list[bytes] | None = None,
    ) -> None:
        """Send a request; ``then(answer, error)`` runs in the link's thread."""
        token = next(self._numbers)
        self._waiters[token] = then
        self.feed(on.Requested(token, message, frames or []))

    def ask(self, message: Any, frames: list[bytes] | None = None) -> Any:
        """Send a request and wait for its answer.

        Raises:
            GridError: what the broker refused with; ``BrokerUnavailable`` when it does not
                answer.
        """
        if threading.current_thread() is self._thread:
            raise AssertionError("the link's thread would wait for itself")
        box: queue.SimpleQueue[tuple[Any, GridError | None]] = queue.SimpleQueue()
        self.request(message, lambda answer, error: box.put((answer, error)), frames)
        answer, error = box.get()
        if error is not None:
            raise error
        return answer

    def wait_welcome(self) -> Welcome:
        """The broker's greeting; waits for the first.

        Raises:
            BrokerUnavailable: it does not come in time.
        """
        if self.welcome is None:
            self.ask(Ask(b"", 0, "jobs", limit=1))  # fails by the same rules as every request
        assert self.welcome is not None
        return self.welcome

    def open_job(
        self, message: Submit, function: bytes, sink: Sink, *, may_continue: bool = False
    ) -> int:
        """Submit a job and subscribe to it; returns the number of its upload.

        ``may_continue``: the sink reads several jobs if it must, see ``Sink.on_continued``.
        """
        upload = next(self._numbers)
        self._uploads[upload] = sink
        self.feed(on.JobRequested(upload, message, function, may_continue))
        return upload

    def send_parcel(self, upload: int, count: int, codec: str, frame: bytes) -> None:
        """The next inputs of an upload; they leave at the next ``wake``."""
        self.feed_later(on.ParcelReady(upload, count, codec, frame))

    def end_upload(self, upload: int) -> None:
        """No more inputs."""
        self.feed(on.UploadEnded(upload))

    def watch(self, job: int, after: int, sink: Sink) -> None:
        """Subscribe to the results of a job.

        Raises:
            ValueError: somebody reads this job through this client already.
        """
        if job in self._jobs:
            raise ValueError(f"this client reads the results of j{job} already; use another Client")
        self._jobs[job] = sink
        self.feed(on.ResultsWanted(job, after))

    def taken(self, result: Results, size_bytes: int) -> None:
        """A result was taken: acknowledge it, at the next ``wake`` at the latest."""
        self.feed_later(on.ResultTaken(result.job, result.sequence, size_bytes))

    def unwatch(self, job: int) -> None:
        """No more results of a job."""
        self._jobs.pop(job, None)
        self.feed(on.ResultsUnwanted(job))

    def after(self, seconds: float, command: Callable[[], None]) -> None:
        """Run this in the link's thread after a time; from the link's thread only."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), command))

    @property
    def is_open(self) -> bool:
        """Whether it was not closed."""
        return not self._is_stopping

    def is_this_thread(self) -> bool:
        """Whether the caller runs in the link's thread."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Say goodbye and end the thread; again is harmless."""
        if self._is_stopping:
            return

        def stop() -> None:
            self._step(on.Closed())
            self._is_stopping = True

        self.do(stop)
        if not self.is_this_thread():
            self._thread.join(CLOSE_S + 3)

    # ------------------------------------------------------------ in the thread

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._turn()
        except Exception:  # the edge of the thread: whoever waits must hear of it
            self._warn(f"the client's thread failed:\n{traceback.format_exc()}")
            self._step(on.Closed())
        finally:
            # From here on a command meets a closed core, which fails whatever it asks for.
            self._is_stopping = True
            with self._wake_lock:
                self._is_dead = True
                self._is_asleep = False
            self._run_commands()
            self._drop_sockets()

    def _turn(self) -> None:
        self._is_asleep = True
        pause_ms = 0 if self._commands else self._pause_ms()
        ready = dict(self._poller.poll(pause_ms))
        self._is_asleep = False
        if self._wake_fd in ready:
            os.eventfd_read(self._wake_fd)
        if self._socket in ready:
            self._read_messages()
        if self._monitor in ready:
            self._read_monitor()
        self._run_commands()
        if _now_ms() >= self._core.next_ms:
            self._step(on.TimePassed())
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    def _run_commands(self) -> None:
        for _ in range(len(self._commands)):
            try:
                command = self._commands.popleft()
            except IndexError:
                return  # dead: several threads clear up together
            command()

    def _pause_ms(self) -> int:
        due_ms = self._core.next_ms - _now_ms()
        if self._timers:
            due_ms = min(due_ms, int((self._timers[0][0] - time.monotonic()) * 1000) + 1)
        return max(0, min(due_ms, 60_000))

    def _read_monitor(self) -> None:
        while self._monitor.poll(0):
            frames = self._monitor.recv_multipart()
            kind = int.from_bytes(frames[0][:2], sys.byteorder)
            if kind == _UP:
                self._is_up, self._is_stranger = True, False
                self._step(on.LinkUp())
            elif kind == _DENIED and self._token is not None:
                told = f"the token {self._token.name!r} is not known at {self.address}"
                self._step(on.Received(Refused(0, "UNAUTHORISED", told, ""), []))
            elif kind == _BROKEN_OFF:
                self._is_stranger = True
            elif kind == _DOWN and self._is_up:  # else libzmq tries again, ever more slowly
                self._disconnect(0)
                time.sleep(_PAUSE_S)
                self._connect()
                self._step(on.LinkLost())

    def _read_messages(self) -> None:
        for _ in range(_MESSAGES_PER_TURN):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode_broker.decode(frames[0])
            except RemoteError as error:
                self._warn(f"a message of the broker at {self.address}: {error.message}")
                continue
            self._step(on.Received(message, frames[1:]))

    def _step(self, event: on.AnyEvent) -> None:
        for effect in step(self._core, event, _now_ms()):
            self._perform(effect)

    def _perform(self, effect: out.AnyEffect) -> None:
        match effect:
            case out.Send():
                if not self._is_up:
                    return  # the core says it again
                with contextlib.suppress(zmq.Again):  # the simulator's queues have an end
                    self._socket.send_multipart(
                        [encode(effect.message), *effect.frames], zmq.NOBLOCK
                    )
            case out.ResultArrived():
                if sink := self._jobs.get(effect.result.job):
                    sink.on_result(effect.result, effect.frames)
            case out.UploadMoved():
                if sink := self._uploads.get(effect.upload):
                    sink.on_moved(effect.committed, effect.unsent)
            case out.StatusArrived():
                if sink := self._jobs.get(effect.status.job):
                    sink.on_status(effect.status, effect.is_final)
                if effect.is_final:
                    self._jobs.pop(effect.status.job, None)
            case out.Answered():
                self._waiters.pop(effect.token)(effect.answer, None)
            case out.RequestFailed():
                error = self._error(effect.code, effect.message, effect.hint)
                self._waiters.pop(effect.token)(None, error)
            case out.JobAccepted():
                self._jobs[effect.job] = self._uploads[effect.upload]
                self._uploads[effect.upload].on_accepted(effect.job)
            case out.UploadContinued():
                self._warn(
                    f"j{effect.job} was closed at {effect.base} inputs because this client was "
                    "silent for too long; a new job takes the rest"
                )
                self._uploads[effect.upload].on_continued(effect.job, effect.base)
            case out.UploadClosed():
                self._uploads.pop(effect.upload).on_upload_closed()
            case out.UploadFailed():
                error = self._error(effect.code, effect.message, effect.hint)
                self._uploads.pop(effect.upload).on_upload_failed(error)
            case out.ResultsFailed():
                if sink := self._jobs.pop(effect.job, None):
                    sink.on_results_failed(self._error(effect.code, effect.message, effect.hint))
            case out.Welcomed():
                self.welcome = effect.welcome
            case out.BrokerSilent():
                self._warn(
                    f"the broker at {self.address} has not answered for "
                    f"{effect.silent_ms / 1000:.3g} s; waiting {effect.left_ms / 1000:.3g} s more: "
                    "what was accepted goes on, and results resume when it is back"
                )
            case out.BrokerRecovering():
                self._warn(f"{effect.message}; waiting for it")
            case out.Held():
                self._warn(f"{effect.message}; this client waits and goes on by itself")
            case out.BrokerBack():
                self._warn(f"the broker at {self.address} is back")

    def _error(self, code: str, message: str, hint: str) -> GridError:
        if code == "UNREACHABLE" and self._is_stranger and self._token is not None:
            message = f"what listens at {self.address} does not have the key of this token's broker"
            hint = f"check the address; is the token {self._token.name!r} of another grid?"
        elif code == "UNREACHABLE":
            message = f"{message} (address {self.address})"
            hint = hint or (
                f"check the address {self.address}; start a grid here with 'gristmill up'"
            )
        return grid_error(code, message, hint)

    def _disconnect(self, linger_ms: int | None = None) -> None:
        self._poller.unregister(self._socket)
        self._poller.unregister(self._monitor)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger_ms)

    def _drop_sockets(self) -> None:
        self._disconnect()
        self._context.term()
        os.close(self._wake_fd)


def _read_token(address: str, text: str) -> Token:
    """The token for a grid on TCP.

    Raises:
        GridError: ``UNAUTHORISED``.
    """
    if not text:
        told = f"{address} asks for a token: a grid on TCP knows its clients by their keys"
        raise grid_error(
            "UNAUTHORISED", told, "gristmill login, or set GRISTMILL_TOKEN, or pass token="
        )
    try:
        return parse_token(text)
    except RemoteError as error:
        raise grid_error(error.code, error.message, error.hint) from None


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def decode_body(answer: Any, kind: Any) -> Any:
    """The body of an Answer as the struct that the question asks for."""
    return msgspec.msgpack.decode(answer.body, type=kind)
