"""The meter frame: what each subtask of a result took, as packed columns.

Layout: u8 flags, u8 uniform outcome, u32 count, then the columns that the flags name, each
``count`` long and little-endian: outcome u8, wall_us u32, cpu_us u32, peak_kib u32, and stamps. A
result whose subtasks all ended alike carries no outcome column. cpu and peak per subtask exist only
where the kernel measured each one (tiers ``job`` and ``strict``); otherwise the result's head has
the readings of the whole and says ``is_estimated``. Values saturate at 2**32 - 1 (71 minutes of
microseconds): the head's sums are exact.

Stamps stand for the wall_us of subtasks that ran one after another: u32 parts; u32 subtasks of each
part; then for each part the clock when it began and when each of its subtasks ended, u32 in units
of 256 ns, which go round after 18 minutes. They are what a slot has at hand: four bytes of each
reading of its clock, while differences in microseconds cost it a tenth of its time. Who writes them
sees to it that no part takes ``PART_NS_MAX``.
"""

import array
import operator
import struct
import sys
from collections.abc import Sequence

import msgspec

from gristmill.wire.errors import RemoteError
from gristmill.wire.outcome import Outcome

_HEAD = struct.Struct("<BBI")
_HAS_OUTCOME, _HAS_WALL, _HAS_CPU, _HAS_PEAK, _HAS_STAMPS = 1, 2, 4, 8, 16
_FLAGS = 31
STAMP_NS = 256
PART_NS_MAX = STAMP_NS << 32
#: where the four bytes of a stamp are in eight bytes of nanoseconds, as this machine lays them
_STAMP_AT = 1 if sys.byteorder == "little" else 3
U32_MAX = (1 << 32) - 1
_OUTCOMES = frozenset(int(outcome) for outcome in Outcome)


class Meter(msgspec.Struct, frozen=True):
    """A decoded meter frame; an absent column is empty.

    ``outcome``: u8[count] or empty when all ended as ``uniform``; ``walls``, ``cpu_us``,
    ``peak_kib``: u32[count] or empty. ``stamps``: as they came: few want to know.
    """

    count: int
    uniform: int
    outcome: bytes
    walls: Sequence[int]
    cpu_us: Sequence[int]
    peak_kib: Sequence[int]
    stamps: bytes = b""

    def outcome_at(self, offset: int) -> Outcome:
        """How the subtask at this offset of the range ended."""
        return Outcome(self.outcome[offset] if self.outcome else self.uniform)

    @property
    def wall_us(self) -> Sequence[int]:
        """u32[count] or empty; worked out at each call where it came as stamps."""
        if not self.stamps:
            return self.walls
        numbers = _u32s(self.stamps)
        parts, at = numbers[0], 1 + numbers[0]
        found: list[int] = []
        for count in numbers[1 : 1 + parts]:
            readings = numbers[at : at + count + 1]
            at += count + 1
            spent = map(operator.sub, readings[1:], readings)
            found += [(ticks & U32_MAX) * STAMP_NS // 1000 for ticks in spent]
        return found


def _u32(values: Sequence[int]) -> bytes:
    layout = f"<{len(values)}I"
    try:
        return struct.pack(layout, *values)
    except struct.error:
        return struct.pack(layout, *(min(max(value, 0), U32_MAX) for value in values))


def _u32s(column: bytes) -> "array.array[int]":
    values = array.array("I", column)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _stamps(part: bytes) -> bytes:
    """Four bytes of each eight, as they lie: no number is made of them."""
    lying = memoryview(part + bytes(_STAMP_AT))[_STAMP_AT:].cast("I")[::2]
    return lying.tobytes() if sys.byteorder == "little" else _u32s(lying.tobytes()).tobytes()


def pack_meter(
    count: int,
    outcome: bytes | bytearray | Outcome = Outcome.OK,
    wall_us: Sequence[int] = (),
    cpu_us: Sequence[int] = (),
    peak_kib: Sequence[int] = (),
    parts: Sequence[bytes] = (),
) -> bytes:
    """A meter frame.

    ``outcome`` is one for all, or u8[count]; an empty sequence is an absent column. ``parts``:
    readings of a clock in ns, u64 of this machine's order, one as the part begins, then one at the
    end of each of its subtasks; instead of ``wall_us``.
    """
    flags, uniform, columns = 0, 0, []
    if isinstance(outcome, Outcome):
        uniform = int(outcome)
    elif count and outcome.count(outcome[0]) == count:
        uniform = outcome[0]
    else:
        flags |= _HAS_OUTCOME
        columns.append(bytes(outcome))
    for bit, column in ((_HAS_WALL, wall_us), (_HAS_CPU, cpu_us), (_HAS_PEAK, peak_kib)):
        if len(column):
            assert len(column) == count
            flags |= bit
            columns.append(_u32(column))
    if parts:
        flags |= _HAS_STAMPS
        counts = [len(part) // 8 - 1 for part in parts]
        assert sum(counts) == count
        columns += [_u32([len(parts), *counts]), *map(_stamps, parts)]
    return b"".join((_HEAD.pack(flags, uniform, count), *columns))


def unpack_meter(frame: bytes | memoryview, count: int) -> Meter:
    """A meter frame of ``count`` subtasks.

    Raises:
        RemoteError: ``MALFORMED`` when it is of another length, count or an unknown outcome.
    """
    frame = bytes(frame)
    if len(frame) < _HEAD.size:
        raise RemoteError("MALFORMED", f"a meter frame of {len(frame)} bytes")
    flags, uniform, said = _HEAD.unpack_from(frame)
    if said != count or flags & ~_FLAGS or uniform not in _OUTCOMES:
        raise RemoteError(
            "MALFORMED", f"a meter frame of count {said}, flags {flags}, outcome {uniform}"
        )
    at, outcome, columns = _HEAD.size, b"", []
    if flags & _HAS_OUTCOME:
        outcome = frame[at : at + count]
        at += count
        if not _OUTCOMES.issuperset(outcome):
            raise RemoteError("MALFORMED", "a meter frame with an unknown outcome")
    for bit in (_HAS_WALL, _HAS_CPU, _HAS_PEAK):
        column = array.array("I")
        if flags & bit:
            column = _u32s(frame[at : at + 4 * count].ljust(4 * count, b"\0"))
            at += 4 * count
        columns.append(column)
    stamps = b""
    if flags & _HAS_STAMPS:
        stamps = _checked(frame[at:], count)
        at = len(frame)
    if at != len(frame):
        raise RemoteError(
            "MALFORMED", f"a meter frame of {len(frame)} bytes; its columns need {at}"
        )
    walls, cpu_us, peak_kib = columns
    return Meter(count, uniform, outcome, walls, cpu_us, peak_kib, stamps)


def _checked(stamps: bytes, count: int) -> bytes:
    """A column of stamps of so many subtasks."""
    parts = int.from_bytes(stamps[:4], "little")
    if parts <= count and len(stamps) == 4 * (1 + parts + count + parts):
        counts = _u32s(stamps[4 : 4 + 4 * parts])
        if sum(counts) == count:
            return stamps
    raise RemoteError("MALFORMED", f"a meter frame with stamps of {parts} parts, count {count}")


def unpack_outcomes(frame: bytes, count: int) -> bytes:
    """The outcomes of a meter frame: u8[count], or one byte when all ended alike.

    Raises:
        RemoteError: ``MALFORMED``, as ``unpack_meter``; the other columns are not looked at.
    """
    flags, uniform, said = _HEAD.unpack_from(frame) if len(frame) >= _HEAD.size else (255, 0, 0)
    outcome = bytes((uniform,))
    if flags & _HAS_OUTCOME:
        outcome = frame[_HEAD.size : _HEAD.size + count]
    if said != count or flags & ~_FLAGS or not _OUTCOMES.issuperset(outcome):
        raise RemoteError("MALFORMED", f"a meter frame of count {said}, flags {flags}")
    return outcome
