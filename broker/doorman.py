"""Answers ZAP, libzmq's question whether a key may connect, in a thread of its own.

It has a thread so that who connects while the broker reads its journal, or is busy, is not turned
away by HANDSHAKE_IVL. What it may not know it cannot tell: it asks ``who`` and sends the answer.
"""

import logging
import threading
from collections.abc import Callable

import zmq

from gristmill.wire.curve import ZAP_ADDRESS, zap_answer

log = logging.getLogger("gristmill.broker.doorman")

_END = "inproc://gristmill.doorman.end"


class Doorman:
    """See the module's text. There is one for each ZeroMQ context, made before its sockets bind.

    Args:
        who: the public key that may speak at (domain, CURVE key), or an empty text. Called in the
            doorman's thread.
    """

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", who: Callable[[str, bytes], str]
    ) -> None:
        self.refused = 0  #: keys that were not let in
        self._who = who
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
        while self._ended not in (ready := dict(poller.poll())):
            if self._socket in ready:
                asked = self._socket.recv_multipart()
                answer = zap_answer(asked, self._who)
                if answer[2] != b"200":
                    self._note_refused(asked)
                self._socket.send_multipart(answer)
        self._socket.close()
        self._ended.close()

    def _note_refused(self, asked: list[bytes]) -> None:
        self.refused += 1
        if self.refused.bit_count() == 1:  # 1, 2, 4, ...: no flood
            port, address, key = (asked[at] if at < len(asked) else b"" for at in (2, 3, 6))
            log.warning(
                "refused keys=%d, now at %s: the CURVE key %s from %s",
                self.refused, port.decode("ascii", "replace"), key.hex(),
                address.decode("ascii", "replace"),
            )  # fmt: skip

    def close(self) -> None:
        """End the thread, when the sockets that it let people in at are closed."""
        self._end.send(b"")
        self._thread.join()
        self._end.close()
