"""Answers ZAP, libzmq's question whether a key may connect, in a thread of its own.

It has a thread so that who connects while the broker reads its journal, or is busy, is not turned
away by HANDSHAKE_IVL. What it may not know it cannot tell: it asks ``who`` and sends the answer.

A known key has so many new connections a second, and so have all strangers of one address; more are
closed without a word (300 of RFC 27: come later). An address beyond its rate is not looked up on
the disk any more; known keys that share it are let in as before.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import zmq

from gristmill.broker.core.meter import Bucket
from gristmill.wire import limits
from gristmill.wire.curve import ZAP_ADDRESS, zap_answer
from gristmill.wire.refusals import SECOND_MS, Refusals

log = logging.getLogger("gristmill.broker.doorman")

_END = "inproc://gristmill.doorman.end"
_BUCKETS_MAX = 10_000  #: keys and addresses whose connections are counted; the oldest leave
_LATER = b"300"  #: of ZAP: not now


class Doorman:
    """See the module's text. There is one for each ZeroMQ context, made before its sockets bind.

    Args:
        who: the public key that may speak at (domain, CURVE key), or an empty text; the third says
            whether it may look on the disk for it. Called in the doorman's thread.
        per_s: new connections of a key, or of strangers from an address; 0 for no limit.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        who: Callable[[str, bytes, bool], str],
        per_s: int = 0,
    ) -> None:
        self.refused = 0  #: connections that were not let in
        self._who = who
        self._per_s = per_s
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._refusals = Refusals()
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ZAP_ADDRESS)
        self._end = context.socket(zmq.PAIR)
        self._end.bind(_END)
        self._ended = context.socket(zmq.PAIR)
        self._ended.connect(_END)
        self._thread = threading.Thread(target=self._run, name="gristmill-doorman", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._ended, zmq.POLLIN)
        while self._ended not in (ready := dict(poller.poll(self._pause_ms()))):
            now_ms = _now_ms()
            if self._socket in ready:
                self._socket.send_multipart(self._answer(self._socket.recv_multipart(), now_ms))
            for line in self._refusals.due(now_ms):
                log.warning("not let in: %s", line)
        self._socket.close()
        self._ended.close()

    def _pause_ms(self) -> int | None:
        return SECOND_MS // 2 if self._refusals.is_waiting else None

    def _answer(self, asked: list[bytes], now_ms: int) -> list[bytes]:
        port, address, key = (asked[at] if at < len(asked) else b"" for at in (2, 3, 6))
        place = address.decode("ascii", "replace")
        strangers = self._bucket(place, now_ms)
        may_read = strangers.has(now_ms)
        answer = zap_answer(asked, lambda domain, curve: self._who(domain, curve, may_read))
        public = answer[4].decode()
        code, words = "RATE_LIMITED", f"more than {self._per_s} new connections a second"
        if not public:
            wait_ms = strangers.take(1, now_ms)
            if not wait_ms:
                code = "UNAUTHORISED"
                words = f"no key for the port {port[:80].decode('ascii', 'replace')!r}"
            name = f"{place} (the CURVE key {key[:32].hex() or '-'})"
        else:
            wait_ms = self._bucket(public, now_ms).take(1, now_ms)
            name = public
            if not wait_ms:
                return answer
        self.refused += 1
        # Strangers are told apart by address: each has as many keys as it likes.
        if line := self._refusals.note(place if not public else name, code, words, now_ms):
            log.warning("not let in: %s", line._replace(name=name))
        if wait_ms:
            answer[2:] = [_LATER, b"come later", b"", b""]
        return answer

    def _bucket(self, name: str, now_ms: int) -> Bucket:
        bucket = self._buckets.get(name)
        if bucket is None:
            burst = self._per_s * limits.CONNECTIONS_BURST_S
            bucket = self._buckets[name] = Bucket(self._per_s, burst, now_ms)
            if len(self._buckets) > _BUCKETS_MAX:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(name)
        return bucket

    def close(self) -> None:
        """End the thread, when the sockets that it let people in at are closed."""
        self._end.send(b"")
        self._thread.join()
        self._end.close()


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
