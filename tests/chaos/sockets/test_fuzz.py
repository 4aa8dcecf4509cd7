"""P7: no frame of a peer makes a decoder raise anything but what it declares."""

import concurrent.futures
import multiprocessing
import time

import msgspec
from fuzz_frames import Target, fuzz, run

from gristmill.wire import values

_decode = msgspec.msgpack.Decoder(values.BlobRef).decode
PROCESSES = 2
SLICE = 25_000


def test_no_decoder_raises_what_it_does_not_declare(sized, figures):
    slices = sized(400_000, 5_000_000) // SLICE
    began = time.monotonic()
    spawning = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(PROCESSES, mp_context=spawning) as pool:
        found = list(pool.map(run, range(slices), [SLICE] * slices))
    seconds = time.monotonic() - began
    faults = [fault for one in found for fault in one.faults]
    assert not faults, "target, exception, frame in hex: " + "\n".join(map(str, faults[:5]))
    frames = sum(one.frames.total() for one in found)
    valid = sum(one.valid.total() for one in found)
    assert all(count for one in found for count in one.frames.values())
    assert frames > slices * SLICE * 0.99 and valid > frames // 100
    figures(
        frames=frames,
        still_valid=valid,
        rate=round(frames / seconds),
        seeds=slices,
        decoders=len(found[0].frames),
        exceptions=sum(one.exceptions for one in found),
    )


def test_a_decoder_that_forgets_deep_nesting_is_found():
    def careless(frame, random_):
        try:
            return _decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError):  # and the stack's end?
            return None

    planted = Target("blob", careless, values.BlobRef)
    found = fuzz(1, 10_000, [planted])
    assert found.exceptions and "RecursionError" in found.faults[0][1]


def test_a_decoder_that_trusts_a_length_is_found():
    def careless(frame, random_):
        return values.decode_ref(frame).digest[63] if frame[-1] else None

    found = fuzz(1, 2_000, [Target("blob", careless, values.BlobRef)])
    assert any("IndexError" in told for _, told, _ in found.faults)
