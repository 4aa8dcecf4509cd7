"""How inputs and results travel: a codec text beside an opaque frame.

The client and the slot meet here; the broker only compares codec texts. Codecs:

============  ======================================================================================
``m``         MessagePack array; every value is None, bool, int (64 bit), float, str or bytes
``t:DESC``    MessagePack array of one flat type, DESC one letter a field: ``t:(is)`` is
              ``tuple[int, str]``
``q`` ``d``   int64 or float64 column, little-endian, 8 bytes a value
``r``         numpy rows: u32 header length, MessagePack [dtype, shape of one value], raw rows
``range``     two int64: start, step; the count stands beside the frame
``p``         a pickle of the list of values (only where both ends trust each other)
``@CODEC``    the frame is a ``BlobRef``: the real frame has CODEC and lies in the store
============  ======================================================================================

``m``, ``t:`` and columns preserve every type exactly; nothing else is sent in them. The *safe*
rule (``JobSpec.results == "safe"``) admits everything but ``p``; values that MessagePack would
change (a tuple inside a list, say) are refused there rather than changed: see ``pack_safe``.
"""

import array
import gc
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gristmill.wire import limits
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import UNDECODABLE

_RANGE = struct.Struct("<qq")
_SCALARS: frozenset[type] = frozenset({type(None), bool, int, float, str, bytes})
_LETTERS: dict[type, str] = {int: "i", float: "f", str: "s", bytes: "b", bool: "o", type(None): "n"}
_TYPES: dict[str, Any] = {letter: kind for kind, letter in _LETTERS.items()}
_FIELDS_MAX = 32
_DEPTH_MAX = 32
ROW_KINDS = "biufcmMSU"  #: of numpy dtypes whose name and bytes are all there is to them
VIEW_BYTES_MIN = 4_096  #: a smaller array is copied faster than looked at
_EXACT = object()

_encode = msgspec.msgpack.Encoder().encode
_decode_any = msgspec.msgpack.Decoder(list[Any]).decode
_typed: dict[str, Callable[[Any], list[Any]]] = {}


class BlobRef(msgspec.Struct, array_like=True, frozen=True):
    """A frame that lies in the store."""

    digest: str
    size_bytes: int


_decode_ref = msgspec.msgpack.Decoder(BlobRef).decode


def encode_ref(ref: BlobRef) -> bytes:
    """The frame that stands for a blob (its codec begins with ``@``)."""
    return _encode(ref)


def decode_ref(frame: bytes | memoryview) -> BlobRef:
    """The blob that a frame of an ``@`` codec stands for.

    Raises:
        RemoteError: ``MALFORMED``.
    """
    try:
        return _decode_ref(frame)
    except UNDECODABLE as error:
        raise RemoteError("MALFORMED", f"a blob reference does not decode: {error}") from None


def _typed_decoder(description: str) -> Callable[[Any], list[Any]]:
    decode = _typed.get(description)
    if decode is None:
        fields = description[1:-1]
        if (
            description != f"({fields})"
            or not 1 <= len(fields) <= _FIELDS_MAX
            or any(field not in _TYPES for field in fields)
        ):
            raise RemoteError("MALFORMED", f"unknown value description {description!r}")
        kind: Any = tuple.__class_getitem__(tuple(_TYPES[field] for field in fields))
        if len(_typed) > 256:  # bounded: descriptions come from peers
            _typed.clear()
        decode = _typed[description] = msgspec.msgpack.Decoder(list[kind]).decode
    return decode


def _describe(values: Sequence[Any]) -> str | None:
    """The DESC of values that are all tuples, if they are flat and of one shape, else None.

    The collector lays all fields out in one call, at half the price of any iterator. It goes
    through a tuple from its end (CPython 3.11 to 3.14): the first tuple shows which way it is.
    """
    width, count = len(values[0]), len(values)
    if not 1 <= width <= _FIELDS_MAX or list(map(len, values)).count(width) != count:
        return None
    first = list(map(type, values[0]))
    kinds = list(map(type, gc.get_referents(*values)))
    if not (_LETTERS.keys() >= set(first) and kinds in (first[::-1] * count, first * count)):
        return None
    return f"({''.join(map(_LETTERS.__getitem__, first))})"


def pack_plain(values: Sequence[Any]) -> tuple[str, bytes] | None:
    """(codec, frame) when the values travel exactly without pickle, else None.

    ``values`` is a list of at least one value; numbers alike become columns, tuples alike become
    typed MessagePack. Costs about 0.03 us a number and 0.1 us a tuple; types are compared exactly,
    so subclasses are never flattened.
    """
    kinds, kind = list(map(type, values)), type(values[0])
    if kinds.count(kind) == len(kinds):
        if kind is int:
            try:
                return "q", struct.pack(f"<{len(kinds)}q", *values)
            except struct.error:  # beyond 64 bits somewhere
                pass
        if kind is float:
            return "d", struct.pack(f"<{len(kinds)}d", *values)
        if kind is tuple:
            description = _describe(values)
            if description is None:
                return None
            try:
                return f"t:{description}", _encode(values)
            except (OverflowError, UnicodeEncodeError):
                return None
    if _SCALARS.issuperset(kinds):
        try:
            return "m", _encode(values)
        except (OverflowError, UnicodeEncodeError):
            return None
    return None


def _first_inexact(value: Any, depth: int = 0) -> Any:
    """The first part of a value that MessagePack would change, or ``_EXACT``."""
    kind = type(value)
    if kind in _SCALARS:
        return _EXACT if kind is not int or -(1 << 63) <= value < 1 << 64 else value
    if depth > _DEPTH_MAX or kind not in (list, dict):
        return value
    if kind is dict and any(type(key) is not str for key in value):
        return value
    parts = value if kind is list else value.values()
    for part in parts:
        found = _first_inexact(part, depth + 1)
        if found is not _EXACT:
            return found
    return _EXACT


def pack_safe(values: Sequence[Any]) -> tuple[str, bytes]:
    """(codec, frame) under the safe rule: plain values, or lists and string-keyed dicts of them.

    Raises:
        TypeError: names the first value that would need pickle.
    """
    packed = pack_plain(values)
    if packed is not None:
        return packed
    for value in values:
        part = _first_inexact(value)
        if part is not _EXACT:
            raise TypeError(
                f"a value of type {type(part).__qualname__} ({part!r:.80}) "
                "cannot travel under the safe rule"
            )
    return "m", _encode(values)


def pack_range(start: int, step: int) -> tuple[str, bytes]:
    """(codec, frame) of an arithmetic progression of ints; its count stands beside it."""
    return "range", _RANGE.pack(start, step)


def unpack(
    codec: str, frame: Any, count: int, loads: Callable[[Any], Any] | None = None
) -> list[Any]:
    """The ``count`` values of a frame.

    ``loads`` unpickles; without it a frame of codec ``p`` is refused, which is how a client that
    does not trust its fleet stays safe. The ``r`` codec is for callers with numpy (``split_rows``).

    Raises:
        RemoteError: ``UNSAFE_RESULT`` for ``p`` without ``loads``; ``MALFORMED`` when the frame
            does not hold ``count`` values of its codec.
    """
    try:
        if codec in ("q", "d"):
            column = array.array(codec)
            column.frombytes(frame)
            if sys.byteorder == "big":
                column.byteswap()
            values: list[Any] = column.tolist()
        elif codec.startswith("t:"):
            values = _typed_decoder(codec[2:])(frame)
        elif codec == "m":
            values = _decode_any(frame)
        elif codec == "range":
            if not 0 <= count <= limits.RANGE_ITEMS_MAX:
                raise RemoteError(
                    "MALFORMED", f"a range of {count} values; at most {limits.RANGE_ITEMS_MAX}"
                )
            start, step = _RANGE.unpack(frame)
            values = list(range(start, start + step * count, step)) if step else [start] * count
        elif codec == "p":
            if loads is None:
                raise RemoteError("UNSAFE_RESULT")
            values = loads(frame)
        else:
            raise RemoteError("MALFORMED", f"unknown codec {codec!r}")
    except (*UNDECODABLE, ValueError, struct.error) as error:
        raise RemoteError(
            "MALFORMED", f"a frame of codec {codec!r} does not decode: {error}"
        ) from None
    if len(values) != count:
        raise RemoteError(
            "MALFORMED", f"a frame of codec {codec!r} holds {len(values)} values, not {count}"
        )
    return values


def pack_rows(values: Sequence[Any], has_scalars: bool = False) -> tuple[str, bytes] | None:
    """(codec, frame) of numpy arrays of one dtype and shape, else None. Never imports numpy.

    ``values`` is a list of at least one value. Arrays without dimensions and subclasses are not
    taken. ``has_scalars``: numpy scalars alike are taken, too.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    first = values[0]
    kind = type(first)
    if not (
        (kind is numpy.ndarray and first.ndim > 0)
        or (has_scalars and isinstance(first, numpy.generic))
    ):
        return None
    dtype, shape = first.dtype, first.shape
    if dtype.kind not in ROW_KINDS or not dtype.itemsize or dtype.metadata:
        return None
    if any(type(v) is not kind or v.dtype != dtype or v.shape != shape for v in values):
        return None
    return "r", join_rows(dtype.str, shape, *map(raw_rows, values))


def raw_rows(array: Any) -> bytes | memoryview:
    """The bytes of a numpy array or scalar, C-ordered: its own memory where that lies so."""
    if array.nbytes < VIEW_BYTES_MIN or not array.flags.c_contiguous:
        return array.tobytes()  # type: ignore[no-any-return]
    return memoryview(array.reshape(-1).view("u1"))


def join_rows(dtype: str, shape: tuple[int, ...], *raw: bytes | memoryview) -> bytes:
    """The frame of codec ``r``: ``raw`` are C-ordered rows of ``shape`` each, copied once."""
    head = _encode([dtype, list(shape)])
    return b"".join((struct.pack("<I", len(head)), head, *raw))


def split_rows(frame: bytes | memoryview) -> tuple[str, tuple[int, ...], memoryview]:
    """(dtype, shape of one value, raw rows) of a frame of codec ``r``.

    Raises:
        RemoteError: ``MALFORMED``.
    """
    view = memoryview(frame)
    try:
        (size,) = struct.unpack_from("<I", view)
        dtype, shape = msgspec.msgpack.decode(view[4 : 4 + size], type=tuple[str, list[int]])
    except (*UNDECODABLE, struct.error) as error:
        raise RemoteError("MALFORMED", f"a frame of codec 'r' does not decode: {error}") from None
    return dtype, tuple(shape), view[4 + size :]
