"""The socket to the broker: one DEALER, never blocking, drops rather than waits."""

from collections.abc import Sequence

import zmq

from gristmill.wire import limits
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


class Link:
    """Sends and receives messages of the worker dialogue.

    What cannot be sent at once is dropped: the core sends again what is not answered. Without a
    connection nothing queues (IMMEDIATE), so a broker that comes back is not met by old reports.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", address: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        options = {
            zmq.LINGER: 0,
            zmq.IMMEDIATE: 1,
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
        self.socket.connect(address)
        self.dropped = 0

    def send(self, header: WorkerMessage, body: Sequence[Part] = ()) -> bool:
        """One message; False when there is no connection or no room for it."""
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
