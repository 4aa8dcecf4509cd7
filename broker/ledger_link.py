"""The line to the ledger: posts the outbox, brings verdicts back, relays people's questions.

One DEALER. Batches go in order, a few ahead of their acks; after a silence everything that is not
acked is sent again (the ledger applies each entry once). The ledger is *up* while it takes what is
posted. One that takes nothing (read-only books, a full disk) still answers questions, and says why.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import msgspec
import zmq
from nacl.signing import SigningKey

from gristmill.broker.metrics import Metrics
from gristmill.broker.outbox import Outbox
from gristmill.broker.settings import BrokerSettings
from gristmill.wire import chain, payments
from gristmill.wire.curve import be_client
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.ledger import (
    Acked,
    AskBalance,
    AskReceipts,
    AskStatement,
    AskUsage,
    LedgerAnswer,
    LedgerRefused,
    Message,
    Ping,
    Verdict,
    decode_from_ledger,
)

log = logging.getLogger("gristmill.broker.ledger")

BATCHES_AHEAD = 4
QUESTIONS_MAX = 1_000
#: (body, "", "") of an answer or (None, code, message) of a refusal
Question = AskUsage | AskBalance | AskStatement | AskReceipts | payments.Message | chain.Message
Reply = Callable[[msgspec.Raw | None, str, str], None]


class _RawPost(Message, frozen=True, tag=1):
    """``wire.ledger.Post`` with entries that are encoded already."""

    broker: str
    first: int
    entries: list[msgspec.Raw]


@dataclasses.dataclass(slots=True)
class _Question:
    """One that waits for its answer: asked first, and said last, at these times."""

    message: Question
    reply: Reply
    asked_ms: int
    said_ms: int


class LedgerLink:
    """See the module's text.

    Args:
        verdict: called with (job, code, message) for each hold that was answered.
        seen: called with (is up, is full) when one of them changed.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        settings: BrokerSettings,
        key: SigningKey,
        broker: str,
        outbox: Outbox,
        verdict: Callable[[int, str, str], None],
        seen: Callable[[bool, bool], None],
        metrics: Metrics,
    ) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, 1_000)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1_000)
        self.socket.setsockopt(zmq.MAXMSGSIZE, 16 << 20)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)  # a dead ledger must not hoard old batches
        if settings.ledger_key:
            be_client(self.socket, key, settings.ledger_key)
        self.socket.connect(settings.ledger)
        self._settings = settings
        self._broker = broker
        self._outbox = outbox
        self._verdict = verdict
        self._seen = seen
        self._metrics = metrics
        self.is_up = False
        self._is_full = False
        self._heard_ms = 0
        self._refuses = ""  #: why it takes nothing, in its words; empty when it does, or is silent
        self._refused_ms = 0
        self._said_ms = -(1 << 40)
        self._progress_ms = 0
        self._ahead = 0
        self._questions: dict[int, _Question] = {}
        self._last_request = 0
        self._early: list[Any] = []

    # ------------------------------------------------------------ out

    def post(self, now_ms: int, is_due: bool = False) -> None:
        """Sends what may leave, a few batches ahead of their acks; ``is_due``: even a little."""
        outbox = self._outbox
        while self.is_up and self._ahead < BATCHES_AHEAD and (is_due or outbox.is_pressing):
            batch = outbox.take(lambda: self.post(now_ms, is_due=True))
            if batch is None or not batch[1]:
                return
            first, entries = batch
            if self._ahead == 0:
                self._progress_ms = now_ms
            post = _RawPost(self._broker, first, [msgspec.Raw(body) for body in entries])
            if not self._send(post, now_ms):
                self._outbox.rewind()
                self._ahead = 0
                return
            self._metrics.outbox_posts += 1
            self._ahead += 1

    def ask(self, make: Callable[[int], Question], now_ms: int, reply: Reply) -> None:
        """Relays a question, made with its number."""
        is_starting = not (self._heard_ms or self._refuses)  # it is asked when it is there
        if not (self.is_up or self._refuses or is_starting):
            reply(None, "LEDGER_DOWN", f"the ledger at {self._settings.ledger} does not answer")
            return
        if len(self._questions) >= QUESTIONS_MAX:
            reply(None, "QUEUE_FULL", f"{QUESTIONS_MAX} questions to the ledger wait already")
            return
        self.post(now_ms, is_due=True)  # the answer is to have what was done before the question
        self._last_request += 1
        request = self._last_request
        question = make(request)
        self._questions[request] = _Question(question, reply, now_ms, now_ms)
        if is_starting:
            self._early.append(question)
        elif not self._send(question, now_ms):
            del self._questions[request]
            reply(None, "LEDGER_DOWN", f"the ledger at {self._settings.ledger} is not there")

    def tick(self, now_ms: int) -> None:
        """Looks after silence: pings, sends again, and says when the ledger went down."""
        settings = self._settings
        if self.is_up and now_ms - self._heard_ms > settings.ledger_ttl_ms:
            self._set_up(False)
        if self._refuses and now_ms - self._refused_ms > settings.ledger_ttl_ms:
            self._refuses = ""  # it does not even say that any more
        resend_ms = settings.ledger_resend_ms
        if self._outbox.is_waiting and now_ms - self._progress_ms > resend_ms:
            self._outbox.rewind()
            self._ahead = 0
            self._metrics.outbox_resends += 1
            self._progress_ms = now_ms
        if now_ms - max(self._said_ms, self._heard_ms) >= resend_ms:
            self._send(Ping(self._broker), now_ms)
        self.post(now_ms, is_due=True)
        for request, question in list(self._questions.items()):
            if now_ms - question.asked_ms > settings.ledger_ttl_ms:
                del self._questions[request]
                text = self._refuses or f"the ledger at {settings.ledger} did not answer"
                question.reply(None, "LEDGER_DOWN", text)
            elif (self.is_up or self._refuses) and now_ms - question.said_ms >= resend_ms:
                question.said_ms = now_ms
                self._send(question.message, now_ms)
        if self._is_full != self._outbox.is_full:
            self._is_full = self._outbox.is_full
            self._seen(self.is_up, self._is_full)

    def _send(self, message: msgspec.Struct, now_ms: int) -> bool:
        self._said_ms = now_ms
        try:
            self.socket.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    # ------------------------------------------------------------ in

    def receive(self, frame: bytes, now_ms: int) -> None:
        """One message of the ledger."""
        try:
            message = decode_from_ledger.decode(frame)
        except RemoteError as error:
            self._metrics.malformed += 1
            log.error("ledger malformed: %s", error.message)
            return
        if isinstance(message, LedgerRefused) and not message.request:
            # It answers but takes nothing: its books are not in order, or its disk is full.
            if message.message != self._refuses:
                log.error("ledger refuses: %s %s", message.code, message.message)
            self._refuses, self._refused_ms = message.message, now_ms
            if self.is_up:
                self._set_up(False)
            self._ask_early(now_ms)
            return
        self._heard_ms = now_ms
        if isinstance(message, Acked):
            self._refuses = ""
            acked = self._outbox.acked
            self._on_acked(message)
            if self._outbox.acked > acked:
                self._progress_ms = now_ms
        elif isinstance(message, LedgerAnswer):
            self._reply(message.request, message.body, "", "")
        elif isinstance(message, LedgerRefused):
            self._reply(message.request, None, message.code, message.message)
        if not self.is_up and not self._refuses:
            self._outbox.rewind()
            self._ahead = 0
            self._set_up(True)
        self._ask_early(now_ms)
        self.post(now_ms)

    def _ask_early(self, now_ms: int) -> None:
        """What was asked before it was heard."""
        while self._early:
            self._send(self._early.pop(0), now_ms)

    def _on_acked(self, message: Acked) -> None:
        if message.broker and message.broker != self._broker:
            log.error("ledger acked another broker=%s ours=%s", message.broker, self._broker)
            return
        if self._outbox.is_waiting:
            self._ahead = max(0, self._ahead - 1)
        # Verdicts that are said again come in pieces, which may end before what is acked.
        is_behind = message.sequence < self._outbox.acked and not message.verdicts
        if self.is_up and is_behind:
            log.critical(
                "ledger is behind: it has entries up to %d, acked were %d; it lost what it acked",
                message.sequence, self._outbox.acked,
            )  # fmt: skip
        for verdict in message.verdicts:
            self._on_verdict(verdict)
        self._outbox.acknowledge(message.sequence, {one.sequence for one in message.verdicts})
        if not self._outbox.is_waiting:
            self._ahead = 0

    def _on_verdict(self, verdict: Verdict) -> None:
        if verdict.sequence <= self._outbox.acked:
            return  # heard before
        if self._outbox.is_hold(verdict.sequence):
            broker, _, job = verdict.ref.rpartition("/")
            if broker == self._broker and job.isdigit():
                self._verdict(int(job), verdict.code, verdict.message)
        elif verdict.code:
            self._metrics.ledger_refusals += 1
            log.error(
                "ledger refused sequence=%d ref=%s code=%s: %s",
                verdict.sequence, verdict.ref, verdict.code, verdict.message,
            )  # fmt: skip

    def _reply(self, request: int, body: msgspec.Raw | None, code: str, message: str) -> None:
        asked = self._questions.pop(request, None)
        if asked is not None:
            asked.reply(body, code, message)

    def _set_up(self, is_up: bool) -> None:
        self.is_up = is_up
        log.warning("ledger %s address=%s", "up" if is_up else "down", self._settings.ledger)
        self._seen(is_up, self._is_full)

    def close(self) -> None:
        """Closes the socket."""
        self.socket.close()
