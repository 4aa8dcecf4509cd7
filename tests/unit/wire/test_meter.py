"""What a result's subtasks took comes back as it was measured; nonsense is refused."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.wire.errors import RemoteError
from gristmill.wire.meter import PART_NS_MAX, STAMP_NS, pack_meter, unpack_meter, unpack_outcomes
from gristmill.wire.outcome import Outcome


def part_of(began: int, walls_ns: list[int]) -> bytes:
    """A slot's clock, eight bytes a reading."""
    readings = [began]
    for wall in walls_ns:
        readings.append(readings[-1] + wall)
    return struct.pack(f"{len(readings)}Q", *readings)


@given(
    st.lists(
        st.tuples(
            st.integers(1, (1 << 62)),
            st.lists(st.integers(0, 1 << 34), min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_stamps_tell_each_subtasks_time_wherever_their_clock_goes_round(told):
    walls = [wall for _, each in told for wall in each]
    parts = [part_of(began, each) for began, each in told]
    meter = unpack_meter(pack_meter(len(walls), parts=parts), len(walls))
    assert len(meter.wall_us) == len(walls)
    for wall_ns, wall_us in zip(walls, meter.wall_us, strict=True):
        assert abs(wall_ns / 1000 - wall_us) <= STAMP_NS / 1000 + 1
    assert meter.uniform == Outcome.OK and not meter.outcome


def test_the_longest_part_that_stamps_can_tell():
    parts = [part_of(5, [PART_NS_MAX - STAMP_NS])]
    meter = unpack_meter(pack_meter(1, parts=parts), 1)
    assert meter.wall_us == [(PART_NS_MAX - STAMP_NS) // 1000]


def test_bytes_of_a_meter_frame_never_change():
    parts = [part_of(0x0102030405060708, [256, 512]), part_of(1024, [256 * 255])]
    assert pack_meter(3, bytes((0, 1, 0)), parts=parts) == bytes.fromhex(
        "11 00 03000000"  # flags, no common outcome, count
        "00 01 00"
        "02000000 02000000 01000000"  # two parts
        "07060504 08060504 0a060504"  # as it began, and as its subtasks ended
        "04000000 03010000"
    )
    assert pack_meter(2, Outcome.OK, [7, 1 << 40]) == bytes.fromhex(
        "02 00 02000000 07000000 ffffffff"
    )


def test_stamps_that_do_not_add_up_are_refused():
    good = pack_meter(3, parts=[part_of(9, [1, 2]), part_of(9, [3])])
    assert unpack_outcomes(good, 3) == b"\0"
    column = good[6:]
    bad = [
        column[:-1],
        column + b"\0" * 4,
        b"\1" + column[1:],  # one part
        b"\xff" * 4 + column[4:],
        column[:4] + struct.pack("<II", 1, 1) + column[12:],
        column[:4] + struct.pack("<II", 1, (1 << 32) - 1) + column[12:],
        b"",
        struct.pack("<I", 0),
    ]
    for each in bad:
        with pytest.raises(RemoteError, match="stamps"):
            unpack_meter(good[:6] + each, 3)
    with pytest.raises(RemoteError):
        unpack_meter(bytes((32,)) + good[1:], 3)
