"""Shared objects: one large object of a client that many subtasks read.

The client lays an object out as a blob once and holds a ``Ref`` to it. A ref pickles as a call of
``load``: in a slot that gives the object, on arrays that lie in the node's one copy of the blob,
elsewhere the ref again. So a ref may stand in any input and in anything that a function captures.

A blob: 8 bytes ``MAGIC``, u32 bytes of its head, the head (MessagePack: bytes of the pickle, and of
each buffer), then the pickle and the buffers, each from a multiple of ``ALIGN_BYTES`` on.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import msgspec

from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import UNDECODABLE

MAGIC = b"gmshare1"
ALIGN_BYTES = 64  #: a cache line, and what vector instructions like
_SIZE = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, list[int]]).decode


class Ref:
    """An object in the grid's store, made by ``Client.put``.

    Pass it in inputs, or capture it in a function, as if it were the object: subtasks get the
    object. Here ``client.get(ref)`` gives it back. What is shared is read-only for subtasks.

    Attributes:
        digest: of the blob; equal objects have equal digests.
        size_bytes: of the blob.
    """

    __slots__ = ("digest", "size_bytes")

    def __init__(self, digest: str, size_bytes: int) -> None:
        self.digest = digest
        self.size_bytes = size_bytes

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return load, (self.digest, self.size_bytes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<gristmill Ref {self.digest[:12]}: {self.size_bytes} bytes>"

    def _is_no_object(self, *_: Any) -> NoReturn:
        raise TypeError(
            f"{self!r} stands for an object that subtasks get; here, client.get(ref) gives it"
        )

    __getitem__ = __len__ = __iter__ = __call__ = __array__ = _is_no_object

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{self!r} has no attribute {name!r}: it stands for an object that subtasks get; here, "
            "client.get(ref) gives it"
        )


class _Source:
    """Where this process has shared objects from; a slot sets it once, nobody else does."""

    load: Callable[[str, int], Any] | None = None


def load(digest: str, size_bytes: int) -> Any:
    """What the pickle of a ref calls: the object in a slot, the ref elsewhere."""
    source = _Source.load
    return Ref(digest, size_bytes) if source is None else source(digest, size_bytes)


def use_source(source: Callable[[str, int], Any] | None) -> None:
    """A slot: how ``load`` gets objects from now on."""
    _Source.load = source


def lay_out(pickled: bytes, buffers: Sequence[memoryview | bytes]) -> list[bytes | memoryview]:
    """A blob in parts, none of them copied. ``buffers`` are flat views of bytes."""
    head = _encode((len(pickled), [len(buffer) for buffer in buffers]))
    parts: list[bytes | memoryview] = [MAGIC + _SIZE.pack(len(head)) + head]
    at = len(parts[0])
    for part in (pickled, *buffers):
        gap = -at % ALIGN_BYTES
        parts += [bytes(gap), part]
        at += gap + len(part)
    return parts


def parts_of(blob: memoryview) -> tuple[memoryview, list[memoryview]]:
    """(pickle, buffers) of a blob: views of it.

    Raises:
        RemoteError: ``MALFORMED``: it is no shared object.
    """
    try:
        if bytes(blob[:8]) != MAGIC:
            raise RemoteError("MALFORMED", "the blob is no shared object")
        (size,) = _SIZE.unpack_from(blob, 8)
        at = 12 + size
        pickled, buffers = _decode(blob[12:at])
    except (*UNDECODABLE, struct.error) as error:
        raise RemoteError("MALFORMED", f"a shared object does not decode: {error}") from None
    views = []
    for length in (pickled, *buffers):
        at += -at % ALIGN_BYTES
        if length < 0 or at + length > len(blob):
            raise RemoteError("MALFORMED", "a shared object ends early")
        views.append(blob[at : at + length])
        at += length
    return views[0], views[1:]
