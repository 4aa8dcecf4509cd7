"""One backend's desk: a thread that makes its invoices, looks them up, and tells the ledger.

It decides nothing about money: what a look-up said is told as it is. A backend that is slow or
gone holds up its own desk and no other; its intents stay ``created`` until it answers.
"""

import functools
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from gristmill.ledger.payments.interface import (
    BackendDownError,
    BackendRefusedError,
    Payment,
    PaymentBackend,
)
from gristmill.ledger.payments.line import Line
from gristmill.wire.errors import RemoteError
from gristmill.wire.payments import (
    AskIntents,
    IntentView,
    Observe,
    ReportInvoice,
)
from gristmill.wire.units import format_credits

log = logging.getLogger("gristmill.treasury")

RAW_BYTES_MAX = 16 << 10  #: of a callback or an answer that is kept
TASKS_MAX = 10_000
PAGE = 100
HINT_PAUSES_S = (0.2, 1.0, 5.0, 30.0)
#: what became of a callback: kept and dealt with, or to be sent again
Verdict = Literal["done", "later"]


class Desk:
    """See the module's text.

    Args:
        reconcile_s: between two looks at every open intent.
        sweep_s: between two looks at those that ended and money may still come for.
    """

    def __init__(
        self,
        backend: PaymentBackend,
        line: Line,
        reconcile_s: float,
        sweep_s: float,
        clock: Callable[[], int],
    ) -> None:
        self.backend = backend
        self._line = line
        self._reconcile_s, self._sweep_s = reconcile_s, sweep_s
        self._clock = clock
        self._tasks: queue.Queue[Callable[[], None] | None] = queue.Queue(TASKS_MAX)
        self._stopping = threading.Event()
        self._told = ""  # the last trouble that was logged: once, until it is another
        self._next_look_s = self._next_sweep_s = 0.0
        self._threads = [threading.Thread(target=self._run, name=backend.name, daemon=True)]
        if backend.has_hints:
            self._threads.append(threading.Thread(target=self._listen, daemon=True))

    def start(self) -> None:
        """Begin: what is open is looked at first."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take no more tasks; what the backend is being asked is not waited for."""
        self._stopping.set()
        self._put(None)

    def wake(self, intent: str) -> None:
        """Look after this intent now."""
        self._put(lambda: self._tend(self._find(intent)))

    def callback(self, backend_id: str, body: bytes, timeout_s: float) -> Verdict:
        """A callback whose signature is good: ``done`` once the ledger has it on disk."""
        answered = threading.Event()
        verdict: list[Verdict] = ["later"]

        def task() -> None:
            verdict[0] = self._on_callback(backend_id, body)
            answered.set()

        if self._put(task):
            answered.wait(timeout_s)
        return verdict[0]

    def _put(self, task: Callable[[], None] | None) -> bool:
        try:
            self._tasks.put_nowait(task)
        except queue.Full:
            return False  # the timer finds what it was about
        return True

    # ------------------------------------------------------------ the threads

    def _run(self) -> None:
        while not self._stopping.is_set():
            left = self._next_look_s - time.monotonic()
            try:
                task = self._tasks.get(timeout=max(0.0, left)) if left > 0 else self.reconcile
            except queue.Empty:
                continue
            if task is not None:
                self._guard(task)

    def _guard(self, task: Callable[[], None]) -> bool:
        """Do it; trouble with the backend or the ledger is told once, and tried again later."""
        try:
            task()
        except (BackendDownError, BackendRefusedError, RemoteError) as error:
            is_refusal = isinstance(error, BackendRefusedError)
            told = f"{'ALARM ' if is_refusal else ''}{self.backend.name}: {error}"
            if told != self._told:
                self._told = told
                log.error("%.1000s", told)
            return False
        if self._told:
            self._told = ""
            log.info("%s answers again", self.backend.name)
        return True

    def _listen(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                for backend_id in self.backend.hints(self._stopping.is_set):
                    failures = 0
                    self._put(functools.partial(self._look, backend_id, "hint", b""))
            except (BackendDownError, BackendRefusedError):
                failures += 1
            self._stopping.wait(HINT_PAUSES_S[min(failures, len(HINT_PAUSES_S) - 1)])

    # ------------------------------------------------------------ intents

    def reconcile(self) -> None:
        """Look at every open intent, and now and then at those that ended not long ago.

        One that cannot be looked at does not keep the others from it.
        """
        now_s = time.monotonic()
        self._next_look_s = now_s + self._reconcile_s
        which: Literal["open", "watched"] = "open"
        if now_s >= self._next_sweep_s:
            which, self._next_sweep_s = "watched", now_s + self._sweep_s
        before = (1 << 62) - 1
        while not self._stopping.is_set():
            asked = AskIntents(0, "", "", self.backend.name, which, before, PAGE)
            views = self._line.ask(asked, list[IntentView])
            for view in views:
                if not self._guard(lambda view=view: self._tend(view)) and self._is_down():  # type: ignore[misc]
                    return
            if not views:
                return
            before = views[-1].number

    def _is_down(self) -> bool:
        return not self._told.startswith("ALARM")

    def _find(self, intent: str) -> IntentView:
        found: list[IntentView] = self._line.ask(AskIntents(0, "", intent), list[IntentView])
        return found[0]

    def _tend(self, view: IntentView) -> None:
        """Make its invoice if there is none, end it when its time is over, tell what came."""
        if view.follows:
            return  # a late payment's: it ended as it began
        now_ms = self._clock()
        if not view.reference:
            if view.state != "created":
                return
            memo = f"{format_credits(view.amount_ucredits)} credits, {view.intent}"
            left_ms = max(1_000, view.expires_ms - now_ms)
            invoice = self.backend.create(view.intent, view.due, memo, left_ms)
            report = ReportInvoice(
                0, view.intent, invoice.backend_id, invoice.reference, invoice.expires_ms
            )
            view = self._line.ask(report, IntentView)
            log.info("%s: invoice %s of %s", self.backend.name, view.backend_id, view.intent)
        payment = self.backend.look_up(view.backend_id)
        is_due = view.is_cancelling or now_ms >= view.expires_ms
        if view.state == "created" and is_due and payment.state == "open" and not payment.paid:
            # Nothing is called expired while it could be paid: it is closed first.
            self.backend.cancel(view.backend_id)
            payment = self.backend.look_up(view.backend_id)
        self._tell(view.backend_id, payment, "reconcile", payment.raw)

    def _look(self, backend_id: str, source: str, raw: bytes) -> None:
        payment = self.backend.look_up(backend_id)
        self._tell(backend_id, payment, source, raw or payment.raw)

    def _tell(self, backend_id: str, payment: Payment, source: str, raw: bytes) -> None:
        name = self.backend.name
        observe = Observe(
            0, name, backend_id, payment.state, payment.paid, source, raw[:RAW_BYTES_MAX]
        )
        self._line.ask(observe, msgspec.Raw)

    # ------------------------------------------------------------ callbacks

    def _on_callback(self, backend_id: str, body: bytes) -> Verdict:
        """The body is kept whatever it is about; only the look-up can move money."""
        payment = Payment("open", [])
        is_known = True
        if backend_id:
            try:
                payment = self.backend.look_up(backend_id)
            except BackendDownError as error:
                log.warning("%s: a callback waits for its look-up: %s", self.backend.name, error)
                is_known = False
            except BackendRefusedError as error:
                log.warning("%s: a callback about nothing: %s", self.backend.name, error)
        try:
            self._tell(backend_id, payment, "callback", body)
        except RemoteError as error:
            # Unknown or contradictory ones are on disk, too: more deliveries would tell no more.
            if error.code not in ("UNKNOWN_INTENT", "LEDGER_CONFLICT"):
                log.warning("%s: a callback is not kept: %s", self.backend.name, error.message)
                return "later"
        return "done" if is_known else "later"
