"""MB/s of values in and out, from 1 KiB to 100 MiB each.

``both`` sends each value and has it back; ``in`` has its length back; ``out`` sends a length and
has so many bytes back. Every value is different, so that no digest is met twice. The floor is raw
ZeroMQ with the same values in frames much like ours (up to 256 KiB shared, larger ones alone; ours
share 384 KiB); ours go beside the broker, through the store, above 192 KiB. MB are 10^6 bytes, of
one way; ``both`` moves as much the other way in the same time. ``--rounds`` are of ``both`` below
10 MiB, the rest once.
"""

import multiprocessing
import os
import time
from typing import Any

from harness import floor
from harness.measure import Runs, arguments, own_cpu_us
from harness.ours import Bill, Spent

from gristmill.cli.grid import Grid
from gristmill.client import Client, Options

KIB = 1 << 10
#: bytes of a value: how many of them
COUNTS = {
    KIB: 20_000, 10 * KIB: 10_000, 100 * KIB: 300, KIB**2: 64, 10 * KIB**2: 8, 100 * KIB**2: 2,
}  # fmt: skip
MODES = ("both", "in", "out")
#: room for a few copies of the largest
OPTIONS: Options = {"tier": "batch", "memory": "1G", "scratch": "1G", "keep": False}


def values_of(size: int, count: int) -> list[bytes]:
    """Different bytes that do not shrink; quick to make."""
    noise = os.urandom(size)
    return [index.to_bytes(8, "little") + noise[8:] for index in range(count)]


def echo(value: Any) -> Any:
    """``both``."""
    return value


def measure_it(value: bytes) -> int:
    """``in``."""
    return len(value)


def make_it(size: int) -> bytes:
    """``out``: different for each process and time, so that the store has not got it yet."""
    return os.urandom(16) + bytes(size - 16)


WORK = {"both": echo, "in": measure_it, "out": make_it}


def check(mode: str, size: int, values: list[bytes], got: list[Any]) -> None:
    """Every result is what it should be."""
    if mode == "both":
        assert got == values, "results differ"
    elif mode == "in":
        assert got == [size] * len(values), "lengths differ"
    else:
        assert all(len(value) == size and not any(value[16:64]) for value in got)
        assert len({value[:16] for value in got}) == len(values)


def add(runs: Runs, what: str, mode: str, size: int, count: int, **figures: Any) -> None:
    """One run."""
    rate = size * count / figures["seconds"] / 1e6
    runs.add(what, mode=mode, size=size, n=count, mb_s=rate, **figures)


def wire(runs: Runs, mode: str, size: int, values: list[bytes]) -> None:
    """Raw ZeroMQ."""
    before = own_cpu_us()
    given = [b"8 bytes."] * len(values) if mode == "out" else values
    seconds = floor.carry(given, {"both": -1, "in": 8, "out": size}[mode])
    cpu = (own_cpu_us() - before) / len(values)
    add(runs, "floor", mode, size, len(values), seconds=seconds, cpu_us=cpu)


def peer(runs: Runs, mode: str, size: int, values: list[bytes]) -> None:
    """multiprocessing.Pool.imap, as many in a chunk as fill 64 KiB."""
    given: list[Any] = [size] * len(values) if mode == "out" else values
    before = own_cpu_us()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(measure_it, [b"x"] * 100)
        began = time.perf_counter()
        got = list(pool.imap(WORK[mode], given, chunksize=max(1, 64 * KIB // size)))
        seconds = time.perf_counter() - began
        pool.close()
        pool.join()
    cpu = (own_cpu_us() - before) / len(values)
    check(mode, size, values, got)
    add(runs, "mp.Pool", mode, size, len(values), seconds=seconds, cpu_us=cpu)


def ours(client: Client, runs: Runs, mode: str, size: int, values: list[bytes]) -> None:
    """``map``, tier ``batch``."""
    given: list[Any] = [size] * len(values) if mode == "out" else values
    bill, spent = Bill(client), Spent()
    began = time.perf_counter()
    got = list(client.map(WORK[mode], given, **OPTIONS))
    seconds = time.perf_counter() - began
    cpu = spent.each(len(values))
    check(mode, size, values, got)
    billed = bill.settle(len(values))
    add(
        runs, "gristmill", mode, size, len(values), seconds=seconds, billed_ucredits=billed, **cpu
    )  # fmt: skip


def main() -> None:
    """Floor, pool, us, for each size and mode, in turn."""
    options = arguments(
        __doc__ or "",
        quick={"rounds": 1, "part": 200, "sizes": (10 * KIB, 100 * KIB)},
        rounds=3, part=1, sizes=tuple(COUNTS),
    )  # fmt: skip
    runs = Runs("payload", vars(options))
    with Grid.temporary(workers=1, slots=2) as grid, Client(grid.address) as client:
        for work in WORK.values():
            list(client.map(work, [16], return_exceptions=True, **OPTIONS))
        for size in options.sizes:
            count = max(2, COUNTS[size] // options.part)
            for number in range(options.rounds if size < 10 * KIB**2 else 1):
                # one round each of the ways that tell less
                for mode in MODES if number == 0 else MODES[:1]:
                    values = values_of(size, count)
                    wire(runs, mode, size, values)
                    peer(runs, mode, size, values)
                    ours(client, runs, mode, size, values)
        assert client.balance().sum_ucredits == 0
    summary = {}
    for size in options.sizes:
        floor_rate, pool_rate, our_rate = (
            runs.median(what, "mb_s", size=size, mode="both")
            for what in ("floor", "mp.Pool", "gristmill")
        )
        summary[f"both_{size}_mb_s"] = round(our_rate, 1)
        summary[f"both_{size}_of_floor"] = round(our_rate / floor_rate, 3)
        summary[f"both_{size}_of_pool"] = round(our_rate / pool_rate, 3)
    runs.finish(**summary)


if __name__ == "__main__":
    main()
