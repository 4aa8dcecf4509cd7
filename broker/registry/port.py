"""The enrolment port: the one socket of the grid that answers strangers.

CURVE with the registry's own key, any key of the client: the token decides. Nothing is remembered
of a peer before its token is found: the challenge is a keyed hash of what the peer said, which is
computed again when it comes back signed. What a source may ask is a bucket; a frame, a handshake
and a turn have their limits.
"""

import hashlib
import secrets

import zmq
from nacl.signing import SigningKey

from gristmill.wire.curve import be_server
from gristmill.wire.enrolment import (
    CHALLENGE_MS,
    ENROLMENT_FRAME_BYTES_MAX,
    Enrol,
    decode_to_enrolment,
)
from gristmill.wire.errors import RemoteError

HANDSHAKE_MS = 3_000  #: a peer that has not shown its key by then is dropped
QUEUE_MESSAGES = 64  #: of one peer, each way
TURN_MESSAGES = 64  #: taken before operators and brokers have their turn
SOURCES_MAX = 4_096  #: whose buckets are remembered; the oldest is forgotten
BURST, PER_SECOND = 40.0, 4.0  #: messages of one source: a node says two, then two every 2 s


class Sources:
    """A bucket of messages for each address that is heard."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, int]] = {}

    def is_allowed(self, source: str, now_ms: int) -> bool:
        """Take one message out of the bucket; False when it is empty."""
        left, last_ms = self._left.pop(source, (BURST, now_ms))
        left = min(BURST, left + (now_ms - last_ms) * PER_SECOND / 1_000)
        is_allowed = left >= 1
        self._left[source] = (left - 1 if is_allowed else left), now_ms
        if len(self._left) > SOURCES_MAX:
            del self._left[next(iter(self._left))]
        return is_allowed


class Challenges:
    """Challenges that need no memory of whom they were given to.

    A challenge is good in the span of ``CHALLENGE_MS`` in which it was made and in the next one.
    """

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def make(self, enrol: Enrol, now_ms: int) -> bytes:
        """The challenge of this node with this token, now."""
        return self._of(enrol, now_ms // CHALLENGE_MS)

    def is_fresh(self, enrol: Enrol, now_ms: int) -> bool:
        """Whether the challenge in the message was made for it, not long ago."""
        span = now_ms // CHALLENGE_MS
        given = enrol.challenge
        return any(secrets.compare_digest(self._of(enrol, at), given) for at in (span, span - 1))

    def _of(self, enrol: Enrol, span: int) -> bytes:
        words = f"{span}\0{enrol.token}\0{enrol.public}".encode()
        return hashlib.blake2b(words, key=self._secret, digest_size=32).digest()


def listen(context: "zmq.Context[zmq.Socket[bytes]]", address: str, key: SigningKey) -> zmq.Socket:  # type: ignore[type-arg]
    """The ROUTER at this address, with this key.

    Raises:
        RemoteError: ``INVALID_SPEC``: it cannot listen there.
    """
    router = context.socket(zmq.ROUTER)
    for option, value in (
        (zmq.ROUTER_MANDATORY, 1),
        (zmq.MAXMSGSIZE, ENROLMENT_FRAME_BYTES_MAX),
        (zmq.SNDHWM, QUEUE_MESSAGES),
        (zmq.RCVHWM, QUEUE_MESSAGES),
        (zmq.LINGER, 0),
        (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
        (zmq.BACKLOG, 128),
        (zmq.IPV6, int("[" in address)),
    ):
        router.setsockopt(option, value)
    be_server(router, key, "enrolment")  # no ZAP handler is there: any key may connect
    try:
        router.bind(address)
    except zmq.ZMQError as error:
        router.close(0)
        raise RemoteError(
            "INVALID_SPEC",
            f"cannot listen on {address}: {error}",
            "end the process that holds it, or choose another address with --enrolment",
        ) from None
    return router


def receive(socket: "zmq.Socket[bytes]") -> tuple[bytes, str, list[bytes]] | None:
    """(routing id, source address, frames) of the next message; None when none waits.

    Whatever a peer sends in one message is bounded by the queue, and looked at frame by frame.
    """
    try:
        parts = socket.recv_multipart(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return None
    try:
        source = str(parts[-1].get("Peer-Address"))
    except zmq.ZMQError:
        source = ""
    return parts[0].bytes, source, [part.bytes for part in parts[1:3]]


def decode(frames: list[bytes]) -> Enrol:
    """The one message of the port.

    Raises:
        RemoteError: ``MALFORMED``.
    """
    if len(frames) != 1:
        raise RemoteError("MALFORMED", "a message of several frames; the dialogue has one")
    message: Enrol = decode_to_enrolment.decode(frames[0])
    return message
