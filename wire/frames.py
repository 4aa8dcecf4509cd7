"""One message: a header frame (MessagePack of one tagged struct) and opaque body frames.

The broker reads headers and meter frames and never looks into a body. A header that does not
decode is the peer's fault: ``MALFORMED``, answered and counted, never fatal.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from gristmill.wire import limits
from gristmill.wire.errors import RemoteError

T = TypeVar("T")
#: a number that a peer may name; MessagePack alone would let it be up to 2**64 - 1
Integer = Annotated[int, msgspec.Meta(ge=-limits.INTEGER_MAX, le=limits.INTEGER_MAX)]

#: what msgspec raises for bytes of a peer; nesting ends its own recursion, in skipped fields too
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_encoder = msgspec.msgpack.Encoder()


def encode(header: msgspec.Struct) -> bytes:
    """The header frame of a message."""
    return _encoder.encode(header)


class HeaderDecoder(Generic[T]):
    """Decodes one direction of one dialogue: a union of tagged structs.

    Raises (from ``decode``):
        RemoteError: ``MALFORMED`` naming the field, when the bytes are not a message of
        this dialogue.
    """

    def __init__(self, union: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(union).decode

    def decode(self, frame: bytes | memoryview) -> T:
        """One header; bounded by ``limits.HEADER_BYTES_MAX``."""
        if len(frame) > limits.HEADER_BYTES_MAX:
            raise RemoteError(
                "MALFORMED",
                f"a header of {len(frame)} bytes; the limit is {limits.HEADER_BYTES_MAX}",
            )
        try:
            return self._decode(frame)  # type: ignore[no-any-return]
        except UNDECODABLE as error:
            raise RemoteError("MALFORMED", f"the header does not decode: {error}") from None


def take(frames: Sequence[Any], start: int, count: int) -> list[Any]:
    """``count`` body frames from ``start``; the header said they would be there.

    Raises:
        RemoteError: ``MALFORMED`` when the message is shorter than its header says.
    """
    if count < 0 or start + count > len(frames):
        raise RemoteError(
            "MALFORMED",
            f"the header speaks of {start + count} body frames; the message has {len(frames)}",
        )
    return list(frames[start : start + count])
