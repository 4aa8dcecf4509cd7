"""A process's line to the ledger: one thread has the socket, others ask through it and wait."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import zmq
from nacl.signing import SigningKey

from gristmill.wire import chain, payments
from gristmill.wire.curve import be_client
from gristmill.wire.errors import CODES, RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.ledger import LedgerAnswer, LedgerRefused, decode_from_ledger
from gristmill.wire.limits import ZMQ_FRAME_BYTES_MAX
from gristmill.wire.payments import IntentChanged

RESEND_S = 1.0  #: a message without an answer is said again: each has a key
PATIENCE_S = 10.0


class _Asked:
    """A message that waits for its answer."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.said_s = 0.0
        self.is_answered = threading.Event()
        self.body: msgspec.Raw | None = None
        self.code = self.message = ""


class Line:
    """See the module's text.

    Args:
        address: of the ledger.
        key: what we speak as over TCP, to the ledger with ``ledger_key``.
        changed: told, on the line's thread, of each intent that wants its treasury; None where
            nobody sells.
        shown: told, there too, of each voucher that wants the settlement.
    """

    def __init__(
        self,
        address: str,
        key: SigningKey,
        ledger_key: str,
        changed: Callable[[str, str], None] | None = None,
        shown: Callable[[chain.ShowVoucher], None] | None = None,
    ) -> None:
        self._address = address
        self._key = key
        self._ledger_key = ledger_key
        self._changed, self._shown = changed, shown
        self._context = zmq.Context()
        self._new: queue.SimpleQueue[tuple[int, _Asked] | None] = queue.SimpleQueue()
        self._waiting: dict[int, _Asked] = {}
        self._lock = threading.Lock()
        self._last = 0
        self._bell = self._context.socket(zmq.PUSH)  # used under the lock
        self._door = self._context.socket(zmq.PULL)
        self._door.bind("inproc://bell")
        self._bell.connect("inproc://bell")
        self._thread = threading.Thread(target=self._run, name="ledger-line", daemon=True)
        self._thread.start()

    def ask(
        self,
        message: payments.Message | chain.Message,
        kind: Any,
        patience_s: float = PATIENCE_S,
    ) -> Any:
        """The answer to a message, whose ``request`` is set here; said again until it comes.

        Raises:
            RemoteError: what the ledger refused with, or ``LEDGER_DOWN`` after the patience.
        """
        with self._lock:
            self._last += 1
            request = self._last
            asked = _Asked(encode(msgspec.structs.replace(message, request=request)))
            self._new.put((request, asked))
            self._bell.send(b"")
        if not asked.is_answered.wait(patience_s):
            with self._lock:
                self._waiting.pop(request, None)
            told = f"the ledger at {self._address} did not answer within {patience_s:g} s"
            raise RemoteError("LEDGER_DOWN", told)
        if asked.body is None:
            code = asked.code if asked.code in CODES else "INTERNAL"
            raise RemoteError(code, asked.message)
        return msgspec.msgpack.decode(asked.body, type=kind)

    def tell(self, message: chain.Message) -> None:
        """Say what has no answer, once; it may be lost."""
        with self._lock:
            self._new.put((0, _Asked(encode(message))))
            self._bell.send(b"")

    def close(self) -> None:
        """End the thread and close the sockets; whoever still waits hears ``LEDGER_DOWN``."""
        with self._lock:
            self._new.put(None)
            self._bell.send(b"")
        self._thread.join()
        self._bell.close(0)
        self._context.term()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        dealer: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.RECONNECT_IVL, 50),
            (zmq.RECONNECT_IVL_MAX, 1_000),
            (zmq.MAXMSGSIZE, ZMQ_FRAME_BYTES_MAX),
        ):
            dealer.setsockopt(option, value)
        if self._ledger_key:
            be_client(dealer, self._key, self._ledger_key)
        dealer.connect(self._address)
        poller = zmq.Poller()
        poller.register(dealer, zmq.POLLIN)
        poller.register(self._door, zmq.POLLIN)
        is_open = True
        while is_open:
            ready = dict(poller.poll(int(RESEND_S * 500)))
            if self._door in ready:
                self._door.recv()
                new = self._new.get()
                if new is None:
                    is_open = False
                elif not new[0]:
                    with contextlib.suppress(zmq.Again):
                        dealer.send(new[1].frame, zmq.NOBLOCK)
                else:
                    with self._lock:
                        self._waiting[new[0]] = new[1]
            if dealer in ready:
                self._receive(dealer.recv())
            self._say(dealer)
        dealer.close(0)
        self._door.close(0)

    def _say(self, dealer: "zmq.Socket[bytes]") -> None:
        now_s = time.monotonic()
        with self._lock:
            waiting = list(self._waiting.values())
        for asked in waiting:
            if now_s - asked.said_s >= RESEND_S:
                asked.said_s = now_s
                try:
                    dealer.send(asked.frame, zmq.NOBLOCK)
                except zmq.Again:
                    return

    def _receive(self, frame: bytes) -> None:
        try:
            message = decode_from_ledger.decode(frame)
        except RemoteError:
            return  # not a ledger of this release: whoever asked hears nothing
        if isinstance(message, IntentChanged):
            if self._changed is not None:
                self._changed(message.backend, message.intent)
        elif isinstance(message, chain.ShowVoucher):
            if self._shown is not None:
                self._shown(message)
        elif isinstance(message, LedgerAnswer | LedgerRefused):
            with self._lock:
                asked = self._waiting.pop(message.request, None)
            if asked is None:
                return
            if isinstance(message, LedgerAnswer):
                asked.body = message.body
            else:
                asked.code, asked.message = message.code, message.message
            asked.is_answered.set()
