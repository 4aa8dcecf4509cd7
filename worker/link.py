"""The socket to the broker: one DEALER, never blocking, drops rather than waits."""

import sys
import time
from collections.abc import Callable, Sequence

import zmq
from nacl.signing import SigningKey

from gristmill.wire import limits
from gristmill.wire.curve import be_client
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import encode, take
from gristmill.wire.worker import (
    BrokerToWorker,
    Orders,
    WorkerMessage,
    decode_orders,
)
from gristmill.worker.core import events as on

Part = bytes | bytearray | memoryview
_PAUSE_S = 0.02  #: before another connection: a broker may drop each one at once
_UP = zmq.EVENT_HANDSHAKE_SUCCEEDED
_DOWN = zmq.EVENT_DISCONNECTED
_TOLD_AT = 3  #: connections in a row that ended before we were let in


class Link:
    """Sends and receives messages of the worker dialogue.

    What cannot be sent at once is dropped: the core sends again what is not answered. Without a
    connection nothing queues, so a broker that comes back is not met by old reports: each
    connection has a socket of its own. IMMEDIATE would do that, too, but libzmq 4.3.5 then aborts
    the process when it drops a connection while we are between two frames of a message
    (src/fq.cpp).
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        address: str,
        poller: zmq.Poller,
        key: SigningKey,
        broker_key: str,
        tell: Callable[[str], None],
    ) -> None:
        self._context = context
        self._key = key
        self._broker_key = broker_key
        self._tell = tell
        self._address = address
        self._poller = poller
        self.dropped = 0
        self._turned_away = 0
        self._connect()

    def _connect(self) -> None:
        self._is_up = False
        self.socket = self._context.socket(zmq.DEALER)
        self.monitor = self.socket.get_monitor_socket(_UP | _DOWN)
        if self._broker_key:
            be_client(self.socket, self._key, self._broker_key)
        options = {
            zmq.LINGER: 0,
            zmq.SNDHWM: 1_000,
            # A bound and a heartbeat together let a broker that ends abort us (libzmq 4.3.5); what
            # may be on the way is bounded by leases.
            zmq.RCVHWM: 0,
            zmq.MAXMSGSIZE: limits.ZMQ_FRAME_BYTES_MAX,
            zmq.RECONNECT_IVL: 100,
            zmq.RECONNECT_IVL_MAX: 2_000,
            zmq.HEARTBEAT_IVL: 1_000,
            zmq.HEARTBEAT_TIMEOUT: 3_000,
            zmq.HEARTBEAT_TTL: 3_000,
        }
        for option, value in options.items():
            self.socket.setsockopt(option, value)
        self._poller.register(self.socket, zmq.POLLIN)
        self._poller.register(self.monitor, zmq.POLLIN)
        self.socket.connect(self._address)

    def look(self) -> None:
        """Whether there is a connection; to be called when ``monitor`` is readable."""
        while self.monitor.poll(0):
            kind = int.from_bytes(self.monitor.recv_multipart()[0][:2], sys.byteorder)
            if kind == _UP:
                self._is_up, self._turned_away = True, 0
            elif self._is_up:
                self.close(0)
                time.sleep(_PAUSE_S)
                self._connect()
            else:  # libzmq tries again, ever more slowly
                self._turned_away += 1
                if self._turned_away == _TOLD_AT and self._broker_key:
                    self._tell(
                        f"the broker at {self._address} does not let this node in: it does not know"
                        f" its key {self._key.verify_key.encode().hex()} (yet), or has another one"
                        f" than --broker-key says; trying again"
                    )

    def send(self, header: WorkerMessage, body: Sequence[Part] = ()) -> bool:
        """One message; False when there is no connection or no room for it."""
        if not self._is_up:
            self.dropped += 1
            return False
        try:
            self.socket.send_multipart([encode(header), *body], zmq.DONTWAIT)
        except zmq.Again:
            self.dropped += 1
            return False
        return True

    def receive(self) -> "tuple[BrokerToWorker, list[bytes]] | None":
        """One message, or None when there is none now.

        Raises:
            RemoteError: ``MALFORMED``; the next call gives the next message.
        """
        try:
            parts = self.socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return None
        if len(parts) > limits.MESSAGE_FRAMES_MAX:
            raise RemoteError("MALFORMED", f"a message of {len(parts)} frames")
        return decode_orders.decode(parts[0]), parts[1:]

    def close(self, linger_ms: int) -> None:
        """Close; a goodbye may linger."""
        self._poller.unregister(self.socket)
        self._poller.unregister(self.monitor)
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(linger_ms)


def orders_event(orders: Orders, body: list[bytes]) -> on.OrdersArrived:
    """Orders with their frames sorted to where they belong.

    Raises:
        RemoteError: ``MALFORMED`` when the message is too short.
    """
    at = len(orders.openings)
    openings = tuple(take(body, 0, at))
    parcels = []
    for grant in orders.leases:
        parcels.append(tuple(take(body, at, len(grant.parcels))))
        at += len(grant.parcels)
    return on.OrdersArrived(orders, openings, tuple(parcels))
