"""The broker knocks at its own door: the round trip that feeds its watchdog.

A message that the broker sends itself waits in the clients' socket among those of everybody else,
is taken in its turn and is answered through the same socket. It comes back only while the loop
turns, takes and sends: a broker that a peer starves of its turn, or that stands still at its disk,
does not feed. The way in is an address of this process alone, which needs neither port nor key.
"""

import contextlib
import secrets
from collections.abc import Callable

import zmq

from gristmill.broker.ports import User
from gristmill.wire.supervision import Supervisor

Take = Callable[[list[bytes], int, User], None]


class Knock:
    """See the module's text. Only where a watchdog is to be fed.

    ``take``: the handler of what others send to the router.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        router: "zmq.Socket[bytes]",
        supervisor: Supervisor,
        take: Take,
    ) -> None:
        self._router, self._supervisor, self._take = router, supervisor, take
        self._name = secrets.token_bytes(16)  # nobody else can have it, so nobody can answer for us
        address = f"inproc://knock-{self._name.hex()}"
        router.bind(address)
        self._door = context.socket(zmq.DEALER)
        self._door.setsockopt(zmq.LINGER, 0)
        self._door.setsockopt(zmq.ROUTING_ID, self._name)
        self._door.connect(address)
        self._is_out = False

    def receive(self, frames: list[bytes], now_ms: int, user: User) -> None:
        """One message of the router: our own is answered, another's is handed on."""
        if frames[0] == self._name:
            with contextlib.suppress(zmq.ZMQError):
                self._router.send_multipart(frames, zmq.NOBLOCK)
        else:
            self._take(frames, now_ms, user)

    def look(self) -> None:
        """Feed if the last knock has come back, and knock again; to be called now and then."""
        if self._is_out:
            try:
                self._door.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._is_out = False
            self._supervisor.feed()
        with contextlib.suppress(zmq.Again):
            self._door.send(b"", zmq.NOBLOCK)
            self._is_out = True

    def close(self) -> None:
        """Close our end."""
        self._door.close()
