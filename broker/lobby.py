"""Answers whoever knocks while the broker reads its journal: not yet, and how far it is.

The sockets are bound first, so nobody takes a broker that recovers for a dead one. Nothing that is
said now is taken: whoever hears ``RECOVERING`` says HELLO again a little later.
"""

import contextlib
import time

import zmq

from gristmill.broker.mailbox import receive
from gristmill.broker.metrics import Metrics
from gristmill.wire import client, worker
from gristmill.wire.errors import CODES
from gristmill.wire.frames import encode
from gristmill.wire.supervision import NOBODY, Supervisor

MESSAGES_MAX = 256  #: answered at a time
STARTING_S = 60.0  #: while rows are read a service manager gives us this long for the next ones


class Lobby:
    """See the module's text. ``rows``: read so far; ``took_ms``: until ``close``, 0 before."""

    def __init__(
        self,
        front: "zmq.Socket[bytes]",
        back: "zmq.Socket[bytes]",
        metrics: Metrics,
        supervisor: Supervisor = NOBODY,
    ) -> None:
        self._front, self._back, self._metrics = front, back, metrics
        self._supervisor = supervisor
        self._began = time.monotonic()
        self.rows = 0
        self.took_ms = 0

    def note(self, rows: int) -> None:
        """So many rows were read: answers everybody who waits."""
        self.rows = rows
        seconds = time.monotonic() - self._began
        text = f"the broker reads its journal: {rows:,} rows in {seconds:.1f} s so far"
        hint = CODES["RECOVERING"].next_move
        self._supervisor.starting(text, STARTING_S)
        self._answer(self._front, encode(client.Refused(0, "RECOVERING", text, hint)))
        self._answer(self._back, encode(worker.Refused("RECOVERING", text, hint)))

    def close(self) -> None:
        """The journal is read: whoever knocks from now on is let in."""
        self.took_ms = int((time.monotonic() - self._began) * 1_000)

    def _answer(self, socket: "zmq.Socket[bytes]", refused: bytes) -> None:
        for _ in range(MESSAGES_MAX):
            frames = receive(socket)
            if frames is None:
                return
            self._metrics.recovering += 1
            with contextlib.suppress(zmq.ZMQError):  # it left, or does not read
                socket.send_multipart([frames[0], refused], zmq.NOBLOCK)
