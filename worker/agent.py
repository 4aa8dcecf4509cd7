"""The agent: one loop over the broker's socket, the slots and the clock. It never runs user code.

Each turn takes what is ready, tells the core, does what the core says, and ends with ``TurnEnded``,
at which due reports leave. What may block is an errand (blobs.py); jails start from here.
"""

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence

import msgspec
import zmq
from nacl.signing import SigningKey

from gristmill.sandbox.host import Host
from gristmill.wire.errors import RemoteError
from gristmill.wire.process import told_once
from gristmill.wire.receipts import receipt_of, sign_receipt
from gristmill.wire.spec import JobSpec
from gristmill.wire.supervision import NOBODY, Supervisor
from gristmill.wire.tariffs import class_of
from gristmill.wire.worker import (
    Hello,
    JobOpening,
    Lines,
    Orders,
    Refused,
    ResultHead,
    Welcome,
)
from gristmill.worker.blobs import Blobs, Errands
from gristmill.worker.core import effects as do
from gristmill.worker.core import events as on
from gristmill.worker.core.state import Setting, new_state
from gristmill.worker.core.step import next_timer_ms, step
from gristmill.worker.link import Link, orders_event
from gristmill.worker.monitor import Monitor
from gristmill.worker.settings import WorkerSettings
from gristmill.worker.yard import Yard

LOOK_MS = 100  #: between two looks at the running slots
LOOK_SOON_MS = 2  #: after a stop list was written
READING_MS = 1_000
MESSAGES_PER_TURN = 32
LINES_PER_REPORT = 2  #: messages with the output of running subtasks, at most, in an interval
IDLE_MS = 1_000  #: the longest that a turn waits
RED, PLAIN = "\x1b[1;31m", "\x1b[0m"


class Agent:
    """See the module. ``run`` returns the exit code."""

    def __init__(
        self,
        settings: WorkerSettings,
        key: SigningKey,
        hello: Hello,
        host: Host | None,
        supervisor: Supervisor = NOBODY,
    ) -> None:
        self._key = key
        self._supervisor = supervisor
        self._node_class = class_of(hello.labels)
        self._errands = Errands()
        self._blobs = Blobs(settings.state / "cache", settings.cache)
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}
        self._masks: dict[int, int] = {}
        self._yard = Yard(
            settings.state, host, min(settings.spares, settings.slots), settings.parked,
            self._blobs, self._errands, self._watch, self._unwatch, now_ms,
        )  # fmt: skip
        self._monitor = Monitor(settings.state)
        seed = int.from_bytes(hello.instance[:4], "little")
        self._state = new_state(Setting(hello, settings.grace, seed))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._link = Link(
            self._context, settings.broker, self._poller, key, settings.broker_key, say
        )
        self._exit: do.Exit | None = None
        self._signals: list[int] = []
        self._was_asked = False
        self._is_ready_told = False
        self._until_ms = 0
        self._lines_at = 0
        self._on_open: Callable[[], None] = lambda: None

    def run(self, on_open: Callable[[], None]) -> int:
        """Until a drain or a refusal. ``on_open`` is called at the first welcome."""
        self._on_open = on_open
        self._watch(self._errands.fileno(), False, self._on_wake)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: self._signals.append(number))
        signal.set_wakeup_fd(self._errands.wake_fd, warn_on_full_buffer=False)
        self._poller.register(self._epoll.fileno(), zmq.POLLIN)
        try:
            self._tell(on.Began())
            self._yard.expect(JobSpec(kind="function"))
            self._loop()
        finally:
            signal.set_wakeup_fd(-1)
            self._yard.close()
            self._blobs.close()
            self._errands.close()
            self._link.close(linger_ms=500)
            self._context.term()
        assert self._exit is not None
        if self._exit.message:
            say(told_once(self._exit.message))
        return self._exit.code

    def _loop(self) -> None:
        look_at = reading_at = refill_at = now_ms()
        while self._exit is None:
            now = now_ms()
            due = min(next_timer_ms(self._state), reading_at)
            if self._yard.is_look_due:
                look_at = min(look_at, now + LOOK_SOON_MS)
            if not self._yard.is_empty:
                due = min(due, look_at)
            is_open = self._state.phase == "open"
            if is_open and self._yard.live.has_news:
                due = min(due, self._lines_at)
            if not self._yard.is_short_of_spares:
                refill_at = 0
            elif is_open and not self._state.is_draining:
                refill_at = refill_at or now + self._yard.refill_pause_ms
                due = min(due, refill_at)
                if now >= refill_at:
                    refill_at = now + self._yard.refill_pause_ms
                    self._yard.refill()
            ready = dict(self._poller.poll(max(0, min(due - now, IDLE_MS))))
            if self._link.socket in ready:
                self._on_messages()
            if self._link.monitor in ready:
                self._link.look()
            if self._epoll.fileno() in ready:
                for fd, _ in self._epoll.poll(0):
                    call = self._calls.get(fd)
                    if call is not None:
                        call()
            self._tell_all()
            now = now_ms()
            if now >= look_at:
                look_at = now + LOOK_MS
                if not self._yard.is_empty:
                    self._tell(self._yard.look())
            if now >= reading_at:
                reading_at = now + READING_MS
                reading = self._monitor.take(self._yard.ports())
                if reading is not None:
                    self._tell(on.ReadingTaken(reading))
            self._tell_all()
            if self._yard.live.has_news and self._state.phase == "open":
                self._send_lines(now)
            self._tell(on.TurnEnded())
            self._yard.sweep()

    def _on_messages(self) -> None:
        for _ in range(MESSAGES_PER_TURN):
            try:
                received = self._link.receive()
                if received is None:
                    return
                message, body = received
                if isinstance(message, Orders):
                    until_ms = self._state.lapse_at_ms
                    self._tell(orders_event(message, body))
                    if self._state.lapse_at_ms > until_ms:  # it answers a full report of ours
                        self._supervisor.feed()
                elif isinstance(message, Welcome):
                    self._blobs.use_store(message.store)
                    self._tell(on.Welcomed(message))
                    if not self._is_ready_told:
                        self._is_ready_told = True
                        self._on_open()
                elif isinstance(message, Refused):
                    self._tell(
                        on.WasRefused(
                            message.code, message.message, message.hint, message.session,
                            message.retry_after_ms,
                        )
                    )  # fmt: skip
            except RemoteError as error:
                say(f"a message of the broker is left out: {error.message}")

    def _on_wake(self) -> None:
        self._errands.settle()
        while self._signals:
            name = signal.Signals(self._signals.pop(0)).name
            self._supervisor.stopping(f"drains: {name} was received")
            self._tell(on.DrainAsked(f"{name} was received", is_hurried=self._was_asked))
            self._was_asked = True

    def _tell_all(self) -> None:
        while events := self._yard.take_events():
            for event in events:
                self._tell(event)

    def _tell(self, event: on.Event) -> None:
        effects = step(self._state, event, now_ms())
        state = self._state
        if state.lapse_at_ms != self._until_ms:
            self._until_ms = state.lapse_at_ms  # the spawner's turn comes after ours
            self._yard.run_until(state.lapse_at_ms + state.lapse_margin_ms // 2)
        for effect in effects:
            self._do(effect)

    def _do(self, effect: do.Effect) -> None:
        match effect:
            case do.FeedSlot():
                self._yard.feed(effect)
            case do.SendReport():
                self._send_report(effect)
            case do.StartJail():
                self._yard.start(effect)
            case do.KillJail():
                self._yard.kill(effect)
            case do.StopLeases():
                self._yard.stop_leases(effect)
            case do.OpenJob():
                self._yard.open_job(effect)
            case do.CloseJob():
                self._yard.close_job(effect)
            case do.ReplaceSpawner():
                self._yard.replace_spawner()
            case do.SendHello() | do.SendGoodbye():
                self._link.send(effect.message)
            case do.Tell():
                say(effect.text)
            case do.Exit():
                self._exit = effect

    def _send_report(self, effect: do.SendReport) -> None:
        message = effect.message
        if message.results:
            broker = self._state.broker
            signed = [
                sign_result(broker, head, frames, attempt, opening, self._node_class, self._key)
                for head, frames, attempt, opening in zip(
                    message.results, effect.frames, effect.attempts, effect.openings, strict=True
                )
            ]
            message = msgspec.structs.replace(message, results=signed)
        is_sent = self._link.send(message, [frame for each in effect.frames for frame in each])
        if not is_sent:
            is_empty = not (message.results or message.returned)
            self._tell(on.ReportDropped(message.number, is_empty))

    def _send_lines(self, now: int) -> None:
        """What running subtasks wrote: twice in a report's interval, and before a jail's end."""
        live = self._yard.live
        if now < self._lines_at and not live.is_urgent:
            return
        self._lines_at = now + self._state.report_ms // LINES_PER_REPORT
        for batch in live.batches():
            message = Lines(self._state.session, [piece for piece, _ in batch])
            if not self._link.send(message, [part for _, part in batch]):
                return  # no connection: again later

    def _watch(self, fd: int, is_write: bool, call: Callable[[], None]) -> None:
        mask = select.EPOLLIN | (select.EPOLLOUT if is_write else 0)
        known = self._masks.get(fd)
        self._calls[fd] = call
        if known is None:
            self._epoll.register(fd, mask)
        elif known != mask:
            self._epoll.modify(fd, mask)
        self._masks[fd] = mask

    def _unwatch(self, fd: int) -> None:
        if self._masks.pop(fd, None) is not None:
            del self._calls[fd]
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(fd)


def sign_result(
    broker: str,
    head: ResultHead,
    frames: Sequence[bytes],
    attempt: int,
    opening: JobOpening,
    node_class: str,
    key: SigningKey,
) -> ResultHead:
    """The head with the signature of its receipt."""
    receipt = receipt_of(broker, head, frames, attempt, opening.spec, opening.tariff, node_class)
    return msgspec.structs.replace(head, signature=sign_receipt(receipt, key))


def now_ms() -> int:
    """The loop's clock: milliseconds that never go back."""
    return time.monotonic_ns() // 1_000_000


def say(text: str, is_loud: bool = False) -> None:
    """One line for the person who runs this worker; a loud one is red where colours are seen."""
    if is_loud and sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        text = f"{RED}{text}{PLAIN}"
    print(text, file=sys.stderr, flush=True)


def tell_ready(fd: int) -> None:
    """``READY`` on the descriptor that the starter waits at."""
    with contextlib.suppress(OSError):
        os.write(fd, b"READY\n")
        os.close(fd)
