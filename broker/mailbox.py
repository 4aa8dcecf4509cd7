"""Sends to the peers of a ROUTER socket without losing anything in silence.

``ROUTER_MANDATORY`` says when a peer is gone or does not read. What cannot leave now waits here, in
order, bounded by messages and bytes for each peer; a peer past its bound, or gone, is reported once
and everything for it is dropped: its session is over and it will be told to join again.
"""

from collections import deque
from collections.abc import Callable, Sequence

import zmq

from gristmill.broker.metrics import Metrics

_MORE = zmq.NOBLOCK | zmq.SNDMORE
#: what libzmq holds for one peer, in messages of up to ``RESULT_FRAME_BYTES_MAX``: 32 MiB, as much
#: as ``peer_queue_bytes``. It counts messages only; at its default of 1,000 a few subscribers that
#: do not read made the broker reach its memory limit.
PIPE_MESSAGES = 72


class Peer:
    """One live address on the socket: where to send, and what waits. Never a principal."""

    __slots__ = ("is_lost", "owner", "queue", "queued_bytes", "routing")

    def __init__(self, routing: bytes, owner: object = None) -> None:
        self.routing = routing
        self.owner = owner  # its session
        self.queue: deque[Sequence[bytes]] = deque()
        self.queued_bytes = 0
        self.is_lost = False


class Mailbox:
    """The sending side of one ROUTER.

    Args:
        socket: the ROUTER, with ``ROUTER_MANDATORY``.
        messages_max: messages that may wait for one peer.
        bytes_max: their bytes.
        lost: called once with a peer that is gone or over its bounds, and why.
    """

    def __init__(
        self,
        socket: "zmq.Socket[bytes]",
        messages_max: int,
        bytes_max: int,
        lost: Callable[[Peer, str], None],
        metrics: Metrics,
    ) -> None:
        self._socket = socket
        self._send = socket.send
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._lost = lost
        self._metrics = metrics
        self._slow: dict[Peer, None] = {}

    @property
    def has_waiting(self) -> bool:
        """Something waits for a peer that did not read: call ``retry`` soon."""
        return bool(self._slow)

    def send(self, peer: Peer, frames: Sequence[bytes]) -> None:
        """Sends now, or keeps the message for ``retry``; a lost peer's messages are dropped."""
        if peer.is_lost:
            return
        if peer.queue or not self._try(peer, frames):
            self._keep(peer, frames)

    def answer(self, routing: bytes, frames: Sequence[bytes]) -> None:
        """Sends to an address without a session; when it does not read, that is counted."""
        try:
            self._push(routing, frames)
        except zmq.ZMQError:
            self._metrics.peers_unreachable += 1

    def forget(self, peer: Peer) -> None:
        """Its session is over: nothing more is sent."""
        peer.is_lost = True
        peer.queue.clear()
        peer.queued_bytes = 0
        self._slow.pop(peer, None)

    def retry(self) -> None:
        """Sends what waits, as far as each peer reads."""
        for peer in list(self._slow):
            while peer.queue and not peer.is_lost:
                if not self._try(peer, peer.queue[0]):
                    break
                if peer.queue:
                    peer.queued_bytes -= _size_of(peer.queue.popleft())
            if not peer.queue:
                self._slow.pop(peer, None)

    def _push(self, routing: bytes, frames: Sequence[bytes]) -> None:
        send = self._send
        send(routing, _MORE)
        # The address was taken, so the rest of the message goes the same way.
        for frame in frames[:-1]:
            send(frame, _MORE)
        send(frames[-1], zmq.NOBLOCK)

    def _try(self, peer: Peer, frames: Sequence[bytes]) -> bool:
        try:
            self._push(peer.routing, frames)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._metrics.peers_unreachable += 1
            self._drop(peer, "its connection is gone")
        return True

    def _keep(self, peer: Peer, frames: Sequence[bytes]) -> None:
        size = _size_of(frames)
        if len(peer.queue) >= self._messages_max or peer.queued_bytes + size > self._bytes_max:
            self._drop(
                peer,
                f"it does not read: {len(peer.queue)} messages with {peer.queued_bytes} bytes wait",
            )
            return
        peer.queue.append(frames)
        peer.queued_bytes += size
        self._metrics.sends_queued += 1
        self._slow[peer] = None

    def _drop(self, peer: Peer, cause: str) -> None:
        self.forget(peer)
        self._metrics.peers_dropped += 1
        self._lost(peer, cause)


def _size_of(frames: Sequence[bytes]) -> int:
    return sum(map(len, frames))


def receive(socket: "zmq.Socket[bytes]") -> list[bytes] | None:
    """The next message that is there, or None."""
    try:
        return socket.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None
