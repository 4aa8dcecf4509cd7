"""Inputs to parcels: large enough to be cheap, small enough to pass at once.

Memory stays flat: nothing is read from the source before it is asked for.
"""

import concurrent.futures
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, NamedTuple

from gristmill.client.pickling import dump_values
from gristmill.wire import limits
from gristmill.wire.values import (
    ROW_KINDS,
    BlobRef,
    encode_ref,
    join_rows,
    pack_plain,
    pack_range,
    pack_rows,
    raw_rows,
)

FIRST_ITEMS = 16  #: a small first parcel starts dispatch early
RANGE_ITEMS = 16_384  #: inputs in one parcel of an arithmetic progression
SLOW_SOURCE_S = 0.005  #: a source slower than this is sent on as it comes
_INT64_MAX = (1 << 63) - 1


class Packed(NamedTuple):
    """``items`` inputs, ready to travel once ``put`` is done, if there is one."""

    items: int
    codec: str
    frame: bytes
    put: concurrent.futures.Future[BlobRef] | None = None
    put_bytes: int = 0


def pack(values: Sequence[Any]) -> tuple[str, bytes]:
    """(codec, frame) of at least one value: plain, numpy rows, or a pickle.

    Raises:
        UnpicklableError: an input cannot be serialised.
    """
    packed = pack_plain(values) or pack_rows(values, has_scalars=True)
    return packed or ("p", dump_values(list(values)))


class Parcels:
    """Cuts a source of inputs into parcels.

    Args:
        source: a range, list, tuple, numpy array (its rows) or any iterable.
        items_max: inputs in one parcel at most; by default what is best for their codec.
        store: puts the frame of one large input away and returns its reference.
        begin: the same, meanwhile: for who looks at ``Packed.put``.
    """

    def __init__(
        self,
        source: Iterable[Any],
        items_max: int | None,
        store: Callable[[bytes], BlobRef],
        begin: Callable[[bytes], tuple[BlobRef, concurrent.futures.Future[BlobRef]]] | None = None,
    ) -> None:
        self._store = store
        self._begin = begin
        self._items_max = max(
            1, min(items_max or limits.PARCEL_NUMBERS_TARGET, limits.PARCEL_ITEMS_MAX)
        )
        self._is_asked = items_max is not None
        self._items = min(FIRST_ITEMS, self._items_max)
        self._at = 0
        self._ready: list[Packed] = []
        self._whole: Any = None
        self._rest: Iterator[Any] = iter(())
        self._range_items = items_max or RANGE_ITEMS
        self.is_done = False
        self.length: int | None = None
        if isinstance(source, range | list | tuple) or _is_array(source):
            self._whole = source
            self.length = len(self._whole)
            self.is_done = self.length == 0
        else:
            self._rest = iter(source)
            self.length = len(source) if isinstance(source, Sized) else None
        self._is_range = isinstance(source, range) and _fits(source)

    def take(self, items_max: int) -> Packed | None:
        """The next parcel with at most this many inputs; None at the end of the source."""
        if self._ready:
            return self._ready.pop(0)
        if self.is_done:
            return None
        if self._is_range:
            return self._take_range(max(1, min(items_max, self._range_items)))
        values = self._take_values(max(1, min(items_max, self._items)))
        if not len(values):
            self.is_done = True
            return None
        fitting = _fitting(values, _least_bytes(values))
        if self._whole is not None and fitting < len(values):  # the rest has its own turns
            self._at -= len(values) - fitting
            self._items_max = min(self._items_max, fitting)
            self.is_done = False
            values = values[:fitting]
        self._pack(values)
        self._items = min(self._items_max, max(self._items * 8, 1))
        return self._ready.pop(0)

    @property
    def next_items(self) -> int:
        """How many inputs the next parcel would like to have."""
        return self._range_items if self._is_range else self._items

    @property
    def may_wait(self) -> bool:
        """Whether the next parcel may have to wait for the source."""
        return self._whole is None and not self._ready

    @property
    def is_empty(self) -> bool:
        """Whether the source has ended and everything read from it was taken."""
        return self.is_done and not self._ready

    def _take_range(self, items: int) -> Packed:
        if self._at == 0:
            items = min(items, limits.PARCEL_OBJECTS_TARGET)
        part = self._whole[self._at : self._at + items]
        self._at += len(part)
        self.is_done = self._at >= len(self._whole)
        return Packed(len(part), *pack_range(part.start, part.step))

    def _take_values(self, items: int) -> Any:
        if self._whole is not None:
            part = self._whole[self._at : self._at + items]
            self._at += len(part)
            self.is_done = self._at >= len(self._whole)
            return part
        # A source may be slow (a file that grows, a socket): what it has is sent on after a
        # moment. The first value alone tells nothing, so the pieces grow.
        deadline = time.monotonic() + SLOW_SOURCE_S
        values: list[Any] = list(itertools.islice(self._rest, 1))
        piece = 1
        while values and len(values) < items and time.monotonic() < deadline:
            piece = min(piece * 4, items - len(values))
            got = list(itertools.islice(self._rest, piece))
            values += got
            if len(got) < piece:
                self.is_done = True
                break
        return values

    def _pack(self, values: Any) -> None:
        size, count = _least_bytes(values), len(values)
        if count > 1 and not fits(size, count):  # to encode all would be in vain
            self._split(values, size)
            return
        codec, frame = self._encode(values)
        if not self._is_asked:
            self._items_max = min(self._items_max, _most(codec))
        if fits(len(frame), count):
            self._ready.append(Packed(len(values), codec, frame))
        elif len(values) == 1:
            put = None
            if self._begin is None:
                reference = self._store(frame)
            else:
                reference, put = self._begin(frame)
            self._ready.append(Packed(1, f"@{codec}", encode_ref(reference), put, len(frame)))
        else:
            self._split(values, len(frame))

    def _split(self, values: Any, size_bytes: int) -> None:
        fitting = _fitting(values, size_bytes)
        self._items_max = min(self._items_max, fitting)
        middle = max(1, min(fitting, len(values) // 2))
        for start in range(0, len(values), middle):
            self._pack(values[start : start + middle])

    def _encode(self, values: Any) -> tuple[str, bytes]:
        if isinstance(values, list | tuple | range):
            return pack(values)
        if values.dtype.kind in ROW_KINDS:
            return "r", join_rows(values.dtype.str, values.shape[1:], raw_rows(values))
        return pack(list(values))


def _most(codec: str) -> int:
    """Inputs in one parcel of a codec, by what it costs a slot to have some of them."""
    if codec in ("q", "d"):
        return limits.PARCEL_NUMBERS_TARGET
    return limits.PARCEL_TUPLES_TARGET if codec.startswith("t:") else limits.PARCEL_OBJECTS_TARGET


def fits(size_bytes: int, count: int) -> bool:
    """Whether inputs make a parcel: several share a larger one, if they are small themselves."""
    share = min(limits.PARCEL_BYTES_MAX, count * limits.FRAME_BYTES_MAX)
    return size_bytes <= share


def _fitting(values: Sequence[Any], size_bytes: int) -> int:
    """How many of these values make a parcel: all, or what leaves it some room."""
    count = len(values)
    if fits(size_bytes, count):
        return count
    if size_bytes > count * limits.FRAME_BYTES_MAX:
        return 1
    # What each takes in a frame beside its bytes; and they may not be all of one size.
    return max(1, count * (limits.PARCEL_BYTES_MAX * 15 // 16) // (size_bytes + 8 * count))


def _least_bytes(values: Any) -> int:
    """What the values take at least where that is known without encoding them: arrays, bytes."""
    if _is_array(values):
        return int(values.nbytes)
    first = values[0]
    if type(first) in (bytes, str):
        return sum(len(value) for value in values if type(value) is type(first))
    if _is_array(first):
        return sum(value.nbytes for value in values if type(value) is type(first))
    return 0


def _is_array(source: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(source) is numpy.ndarray and source.ndim > 0


def _fits(source: range) -> bool:
    bounds = (source.start, source.stop, source.step)
    return all(-_INT64_MAX < bound < _INT64_MAX for bound in bounds)
