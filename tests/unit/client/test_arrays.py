"""Numpy arrays travel out of band: how much memory each step takes beyond what it must make."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy
import pytest

from gristmill.client.encode import FIRST_ITEMS, Parcels
from gristmill.client.sharing import put_together, take_apart
from gristmill.wire.ids import digest_of
from gristmill.wire.limits import PARCEL_BYTES_MAX
from gristmill.wire.shared import ALIGN_BYTES, Ref, lay_out, parts_of
from gristmill.wire.values import BlobRef, raw_rows, split_rows

MIB = 1 << 20


def peak_bytes(work: Callable[[], Any]) -> tuple[Any, int]:
    """What ``work`` gives, and the most memory that it held at a time."""
    tracemalloc.start()
    try:
        answer = work()
        return answer, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("is_list", [False, True])
def test_an_input_is_copied_once(is_list: bool) -> None:
    rows = numpy.arange(4 * MIB).reshape(2, -1)  # two inputs of 16 MiB
    stored: list[bytes] = []

    def store(frame: bytes) -> BlobRef:
        stored.append(frame)
        return BlobRef(digest_of(b"x"), len(frame))

    parcels = Parcels(list(rows) if is_list else rows, 1, store)
    packed, peak = peak_bytes(lambda: parcels.take(1))
    assert packed.codec == "@r" and len(packed.frame) < 100
    assert stored[0].endswith(rows[0].tobytes())
    assert 16 * MIB < peak < 17 * MIB, peak


def test_many_small_rows_are_copied_once() -> None:
    rows = numpy.arange(6_000.0).reshape(-1, 6)
    parcels = Parcels(rows, 1_000, lambda frame: BlobRef("", 0))
    assert getattr(parcels.take(1_000), "items", 0) == FIRST_ITEMS
    packed, peak = peak_bytes(lambda: parcels.take(1_000))
    assert packed.codec == "r" and packed.items == 8 * FIRST_ITEMS
    sent = rows[FIRST_ITEMS : 9 * FIRST_ITEMS]
    assert bytes(split_rows(packed.frame)[2]) == sent.tobytes()
    assert peak < 1.5 * sent.nbytes, peak


@pytest.mark.parametrize("kind", ["array", "list", "iterator", "bytes"])
def test_large_inputs_are_taken_one_at_a_time(kind: str) -> None:
    """To encode the sixteen of a first parcel together would take sixteen times the memory."""
    rows: Any = numpy.arange(4 * MIB).reshape(16, -1)  # of 2 MiB
    stored: list[int] = []

    def store(frame: bytes) -> BlobRef:
        stored.append(len(frame))
        return BlobRef(digest_of(b"x"), len(frame))

    if kind == "bytes":
        rows = [row.tobytes() for row in rows]
    source = {"array": rows, "list": list(rows), "iterator": iter(list(rows)), "bytes": rows}[kind]
    parcels = Parcels(source, None, store)
    items, most = 0, 0
    while not parcels.is_empty:
        packed, peak = peak_bytes(lambda: parcels.take(1_000))
        if packed is not None:
            items, most = items + packed.items, max(most, peak)
    assert items == 16 and len(stored) == 16
    assert most < (5 if kind == "bytes" else 3) * MIB, most


def test_a_parcel_that_was_cut_short_loses_nothing() -> None:
    source = [b"x" * n for n in (10, 60_000, 60_000, 5, 400_000, 7, 30_000, 30_000, 30_000, 1)]
    parcels = Parcels(source, None, lambda frame: BlobRef(digest_of(frame), len(frame)))
    taken = []
    while not parcels.is_empty:
        packed = parcels.take(1_000)
        if packed is not None:
            assert len(packed.frame) <= PARCEL_BYTES_MAX
            taken.append((packed.items, packed.codec))
    assert sum(items for items, _ in taken) == len(source)
    assert [codec for _, codec in taken].count("@m") == 1


@pytest.mark.parametrize(
    ("size", "is_stored"), [(100_000, False), (190_000, False), (197_000, True)]
)
@pytest.mark.parametrize("kind", ["list", "iterator", "array"])
def test_only_a_value_beyond_the_limit_is_a_blob(kind: str, size: int, is_stored: bool) -> None:
    """A blob of its own costs more than the bytes of a value below it."""
    rows: Any = numpy.arange(10 * size, dtype="u4").view("u1")[: 10 * size].reshape(10, size)
    if kind != "array":
        rows = [row.tobytes() for row in rows]
    stored: list[int] = []

    def store(frame: bytes) -> BlobRef:
        stored.append(len(frame))
        return BlobRef(digest_of(b"x"), len(frame))

    parcels = Parcels(iter(rows) if kind == "iterator" else rows, None, store)
    items = 0
    while not parcels.is_empty:
        packed = parcels.take(1_000)
        if packed is not None:
            assert len(packed.frame) <= PARCEL_BYTES_MAX
            items += packed.items
    assert items == 10 and len(stored) == (10 if is_stored else 0)


@pytest.mark.parametrize(
    "array",
    [
        numpy.arange(6_000),
        numpy.arange(6_000)[::2],
        numpy.asfortranarray(numpy.arange(6_000).reshape(60, 100)),
        numpy.arange(6_000, dtype=">i4"),
        numpy.array(["text"] * 2_000),
        numpy.array(["2024-01-01"] * 2_000, "M8[s]"),
        numpy.empty((0, 3)),
        numpy.array(5.0),
        numpy.int32(7),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_raw_rows_are_the_bytes(array: Any) -> None:
    assert bytes(raw_rows(array)) == array.tobytes()


def test_a_shared_array_is_not_copied_at_all() -> None:
    array = numpy.arange(4 * MIB)
    parts, peak = peak_bytes(lambda: take_apart({"table": array, "name": "x"}))
    assert peak < MIB, peak
    assert sum(map(len, parts)) < array.nbytes + 1_000
    blob = b"".join(parts)
    back, peak = peak_bytes(lambda: put_together(blob))
    assert peak < MIB and back["name"] == "x" and (back["table"] == array).all()
    assert numpy.shares_memory(back["table"], numpy.frombuffer(blob, "u1"))


def test_arrays_of_a_blob_are_aligned_and_what_is_cut_is_told() -> None:
    arrays = [numpy.arange(n, dtype="u1") for n in (1, 63, 64, 1_000)]
    blob = b"".join(lay_out(b"pickle", [memoryview(a) for a in arrays]))
    pickled, buffers = parts_of(memoryview(blob))
    assert bytes(pickled) == b"pickle" and list(map(bytes, buffers)) == [
        a.tobytes() for a in arrays
    ]
    whole = numpy.frombuffer(blob, "u1").ctypes.data
    offsets = [numpy.frombuffer(b, "u1").ctypes.data - whole for b in buffers]
    assert [at % ALIGN_BYTES for at in offsets] == [0] * 4
    for cut in range(0, len(blob), 97):
        with pytest.raises(Exception, match="MALFORMED"):
            parts_of(memoryview(blob[:cut]))


def test_objects_that_are_no_arrays_come_back() -> None:
    for value in ([1, "two"], numpy.arange(10)[::2], numpy.array([{}, None]), lambda: 3):
        back = put_together(b"".join(take_apart(value)))
        if callable(value):
            assert back() == 3
        else:
            assert numpy.array_equal(back, value) if hasattr(value, "dtype") else back == value


def test_refs_compare_by_what_they_stand_for() -> None:
    one, same, other = Ref("ab" * 32, 5), Ref("ab" * 32, 5), Ref("cd" * 32, 5)
    assert one == same and hash(one) == hash(same) and one != other and bool(one)


@pytest.mark.parametrize(
    ("value", "most"),
    [(7, 8_000), ((1, "a"), 4_000), ("a", 2_000), ({"a": 1}, 2_000), (numpy.arange(2), 2_000)],
)
@pytest.mark.parametrize("asked", [None, 3_000])
def test_what_each_lease_decodes_anew_shares_a_parcel_with_fewer(
    value: Any, most: int, asked: int | None
) -> None:
    parcels = Parcels([value] * 20_000, asked, lambda frame: BlobRef("", 0))
    counts: list[int] = []
    while (packed := parcels.take(100_000)) is not None:
        counts.append(packed.items)
    assert sum(counts) == 20_000 and max(counts) == (asked or most)
