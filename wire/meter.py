"""The meter frame: what each subtask of a result took, as packed columns.

Layout: u8 flags, u8 uniform outcome, u32 count, then the columns that the flags name, each
``count`` long and little-endian: outcome u8, wall_us u32, cpu_us u32, peak_kib u32. A result whose
subtasks all ended alike carries no outcome column. cpu and peak per subtask exist only where the
kernel measured each one (tiers ``job`` and ``strict``); otherwise the result's head has the
readings of the whole and says ``is_estimated``. Values saturate at 2**32 - 1 (71 minutes of
microseconds): the head's sums are exact.
"""

import array
import struct
import sys
from collections.abc import Sequence

import msgspec

from gristmill.wire.errors import RemoteError
from gristmill.wire.outcome import Outcome

_HEAD = struct.Struct("<BBI")
_HAS_OUTCOME, _HAS_WALL, _HAS_CPU, _HAS_PEAK = 1, 2, 4, 8
U32_MAX = (1 << 32) - 1
_OUTCOMES = frozenset(int(outcome) for outcome in Outcome)


class Meter(msgspec.Struct, frozen=True):
    """A decoded meter frame; an absent column is empty.

    ``outcome``: u8[count] or empty when all ended as ``uniform``; ``wall_us``, ``cpu_us``,
    ``peak_kib``: u32[count] or empty.
    """

    count: int
    uniform: int
    outcome: bytes
    wall_us: Sequence[int]
    cpu_us: Sequence[int]
    peak_kib: Sequence[int]

    def outcome_at(self, offset: int) -> Outcome:
        """How the subtask at this offset of the range ended."""
        return Outcome(self.outcome[offset] if self.outcome else self.uniform)


def _u32(values: Sequence[int]) -> bytes:
    layout = f"<{len(values)}I"
    try:
        return struct.pack(layout, *values)
    except struct.error:
        return struct.pack(layout, *(min(max(value, 0), U32_MAX) for value in values))


def pack_meter(
    count: int,
    outcome: bytes | bytearray | Outcome = Outcome.OK,
    wall_us: Sequence[int] = (),
    cpu_us: Sequence[int] = (),
    peak_kib: Sequence[int] = (),
) -> bytes:
    """A meter frame.

    ``outcome`` is one for all, or u8[count]; an empty sequence is an absent column.
    """
    flags, uniform, parts = 0, 0, []
    if isinstance(outcome, Outcome):
        uniform = int(outcome)
    elif count and outcome.count(outcome[0]) == count:
        uniform = outcome[0]
    else:
        flags |= _HAS_OUTCOME
        parts.append(bytes(outcome))
    for bit, column in ((_HAS_WALL, wall_us), (_HAS_CPU, cpu_us), (_HAS_PEAK, peak_kib)):
        if len(column):
            assert len(column) == count
            flags |= bit
            parts.append(_u32(column))
    return b"".join((_HEAD.pack(flags, uniform, count), *parts))


def unpack_meter(frame: bytes | memoryview, count: int) -> Meter:
    """A meter frame of ``count`` subtasks.

    Raises:
        RemoteError: ``MALFORMED`` when it is of another length, count or an unknown outcome.
    """
    frame = bytes(frame)
    if len(frame) < _HEAD.size:
        raise RemoteError("MALFORMED", f"a meter frame of {len(frame)} bytes")
    flags, uniform, said = _HEAD.unpack_from(frame)
    if said != count or flags & ~15 or uniform not in _OUTCOMES:
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
            column.frombytes(frame[at : at + 4 * count].ljust(4 * count, b"\0"))
            at += 4 * count
            if sys.byteorder == "big":
                column.byteswap()
        columns.append(column)
    if at != len(frame):
        raise RemoteError(
            "MALFORMED", f"a meter frame of {len(frame)} bytes; its columns need {at}"
        )
    return Meter(count, uniform, outcome, *columns)


def unpack_outcomes(frame: bytes, count: int) -> bytes:
    """The outcomes of a meter frame: u8[count], or one byte when all ended alike.

    Raises:
        RemoteError: ``MALFORMED``, as ``unpack_meter``; the other columns are not looked at.
    """
    flags, uniform, said = _HEAD.unpack_from(frame) if len(frame) >= _HEAD.size else (255, 0, 0)
    outcome = bytes((uniform,))
    if flags & _HAS_OUTCOME:
        outcome = frame[_HEAD.size : _HEAD.size + count]
    if said != count or flags & ~15 or not _OUTCOMES.issuperset(outcome):
        raise RemoteError("MALFORMED", f"a meter frame of count {said}, flags {flags}")
    return outcome
