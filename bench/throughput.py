"""How many no-op subtasks a second, at what CPU each, beside the floor and multiprocessing.

Every subtask has its own state, timing and bill; jobs and results are durable; jails are on (tier
``trusted`` has none). Results are compared, and the bill is summed, inside the run. Floor, peer,
us, in turn, ``--rounds`` times; smaller sizes have fewer. More than a million subtasks are
streamed: inputs from a generator, results compared as they come, and memory is told
(``--sizes 10000000``). ``--submits`` single calls are futures, beside ``apply_async``.
"""

import concurrent.futures
import itertools
import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

from harness import floor
from harness.measure import Runs, arguments, memory_bytes, own_cpu_us
from harness.ours import Bill, Spent, measured_map

from gristmill.cli.grid import Grid
from gristmill.client import Client

KINDS = ("tuples", "ints")
LISTED_MAX = 1_000_000  #: what is held as a list; the floor and the pool never get more
COMPARED = 10_000


def value_of(kind: str, index: int) -> Any:
    """An input: a tuple of an int and a short text, or an int."""
    return (index, "abc") if kind == "tuples" else index


def stream(kind: str, count: int) -> Iterator[Any]:
    """Inputs, made as they are asked for."""
    return ((i, "abc") for i in range(count)) if kind == "tuples" else iter(range(count))


def ours(client: Client, kind: str, count: int, tier: Any, runs: Runs) -> None:
    """One map with lists at both ends."""
    figures = measured_map(client, floor.no_op, list(stream(kind, count)), tier=tier)
    runs.add(f"gristmill {tier} {kind}", n=count, **figures)


def ours_streamed(grid: Grid, client: Client, kind: str, count: int, runs: Runs) -> None:
    """One map whose inputs and results never all exist at a time."""
    pids = {"broker": grid.pid("broker"), "client": "self"}
    before = {name: memory_bytes(pid)["anonymous"] for name, pid in pids.items()}
    peak = dict.fromkeys(pids, 0)
    bill, spent = Bill(client), Spent()
    began = time.perf_counter()
    got = client.map(floor.no_op, stream(kind, count), tier="batch")
    for first in range(0, count, COMPARED):
        some = list(itertools.islice(got, COMPARED))
        end = min(first + COMPARED, count)
        assert some == [value_of(kind, index) for index in range(first, end)], "results differ"
        if first % 500_000 == 0:
            for name, pid in pids.items():
                grown = memory_bytes(pid)["anonymous"] - before[name]
                peak[name] = max(peak[name], grown)
    assert next(got, None) is None
    seconds = time.perf_counter() - began
    runs.add(
        f"gristmill batch {kind}, streamed",
        n=count,
        rate=count / seconds,
        seconds=seconds,
        **spent.each(count),
        billed_ucredits=bill.settle(count),
        **{f"{name}_grown_mib": grown / (1 << 20) for name, grown in peak.items()},
    )


def peer(kind: str, count: int, runs: Runs) -> None:
    """multiprocessing.Pool.map with chunks of 1,000: no status, retry, jail or bill of an item."""
    values, before = list(stream(kind, count)), own_cpu_us()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(floor.no_op, values[:1_000])
        began = time.perf_counter()
        got = pool.map(floor.no_op, values, chunksize=1_000)
        seconds = time.perf_counter() - began
        pool.close()
        pool.join()
    assert got == values
    cpu_us = (own_cpu_us() - before) / count
    runs.add(f"mp.Pool.map {kind}", n=count, rate=count / seconds, seconds=seconds, cpu_us=cpu_us)


def wire(kind: str, count: int, runs: Runs) -> None:
    """The floor: raw ZeroMQ with a state byte per item."""
    values, before = list(stream(kind, count)), own_cpu_us()
    seconds = floor.echo(kind, values)
    cpu_us = (own_cpu_us() - before) / count
    runs.add(f"floor {kind}", n=count, rate=count / seconds, seconds=seconds, cpu_us=cpu_us)


# ---------------------------------------------------------------- one future each


def futures_alone(count: int, runs: Runs) -> None:
    """The floor of futures: made, set and read in one thread."""
    before, began = own_cpu_us(), time.perf_counter()
    futures = [concurrent.futures.Future[int]() for _ in range(count)]
    for index, future in enumerate(futures):
        future.set_result(index)
    assert [future.result() for future in futures] == list(range(count))
    seconds = time.perf_counter() - began
    cpu_us = (own_cpu_us() - before) / count
    runs.add("futures alone", n=count, rate=count / seconds, seconds=seconds, cpu_us=cpu_us)


def futures_of_pool(count: int, runs: Runs) -> None:
    """multiprocessing.Pool.apply_async."""
    before = own_cpu_us()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(floor.no_op, range(1_000))
        began = time.perf_counter()
        handles = [pool.apply_async(floor.no_op, (index,)) for index in range(count)]
        got = [handle.get() for handle in handles]
        seconds = time.perf_counter() - began
        pool.close()
        pool.join()
    assert got == list(range(count))
    cpu_us = (own_cpu_us() - before) / count
    runs.add("mp.Pool.apply_async", n=count, rate=count / seconds, seconds=seconds, cpu_us=cpu_us)


def futures_of_ours(client: Client, count: int, runs: Runs) -> None:
    """``submit`` for each, tier ``batch``."""
    submitter = client.with_options(tier="batch")
    bill, spent = Bill(client), Spent()
    began = time.perf_counter()
    futures = [submitter.submit(floor.no_op, index) for index in range(count)]
    submitted = time.perf_counter() - began
    got = [future.result(timeout=120) for future in futures]
    seconds = time.perf_counter() - began
    cpu = spent.each(count)
    assert got == list(range(count)), "results differ"
    runs.add(
        "gristmill submit", n=count, rate=count / seconds, seconds=seconds, submit_s=submitted,
        **cpu, billed_ucredits=bill.settle(count),
    )  # fmt: skip


# ---------------------------------------------------------------- the whole


def one_size(grid: Grid, client: Client, count: int, runs: Runs, is_largest: bool) -> None:
    """Floor, pool, us; at the largest size the tier without a jail too."""
    for kind in KINDS:
        wire(kind, min(count, LISTED_MAX), runs)
        peer(kind, min(count, LISTED_MAX), runs)
        if count > LISTED_MAX:
            ours_streamed(grid, client, kind, count, runs)
            continue
        ours(client, kind, count, "batch", runs)
        if is_largest:
            ours(client, kind, count, "trusted", runs)


def summary_of(runs: Runs, options: Any) -> dict[str, float]:
    """T1, T2, T3 from the runs at the largest size."""
    top = max(options.sizes)
    found: dict[str, float] = {}
    way = "" if top <= LISTED_MAX else ", streamed"
    for kind in KINDS:
        us = f"gristmill batch {kind}{way}"
        rate = runs.median(us, "rate", n=top)
        found[f"{kind}_rate"] = round(rate)
        found[f"{kind}_cpu_us"] = round(runs.median(us, "cpu_us", n=top), 3)
        for name, what in (("floor", f"floor {kind}"), ("pool", f"mp.Pool.map {kind}")):
            base = runs.median(what, "rate", n=min(top, LISTED_MAX))
            found[f"{kind}_of_{name}"] = round(rate / base, 3)
    for tier in ("job", "strict"):
        found[f"{tier}_tier_rate"] = runs.median(f"gristmill {tier} ints", "rate")
    found["submit_rate"] = round(runs.median("gristmill submit", "rate"))
    found["submit_cpu_us"] = round(runs.median("gristmill submit", "cpu_us"), 2)
    pool = runs.median("mp.Pool.apply_async", "rate")
    found["submit_of_pool"] = round(found["submit_rate"] / pool, 3)
    return found


def main() -> None:
    """Sizes from small to large, then the tiers with a process per subtask, then futures."""
    options = arguments(
        __doc__ or "",
        quick={"sizes": (2_000,), "rounds": 1, "job": 20, "strict": 2, "submits": 200},
        sizes=(10_000, 100_000, 1_000_000), rounds=5, slots=2, job=2_000, strict=40,
        submits=100_000,
    )  # fmt: skip
    runs = Runs("throughput", vars(options))
    tiers = ("strict", "job", "batch", "trusted")
    with (
        Grid.temporary(workers=1, slots=options.slots, tiers=tiers) as grid,
        Client(grid.address) as client,
    ):
        for kind in KINDS:  # what is only slow once
            for tier in ("batch", "trusted", "job"):
                measured_map(client, floor.no_op, list(stream(kind, 20)), tier=tier)
        top = max(options.sizes)
        for count in options.sizes:
            for _ in range(options.rounds if count == top else min(3, options.rounds)):
                one_size(grid, client, count, runs, count == top)
        for _ in range(min(3, options.rounds)):
            ours(client, "ints", options.job, "job", runs)
            ours(client, "ints", options.strict, "strict", runs)
            futures_alone(options.submits, runs)
            futures_of_pool(options.submits, runs)
            futures_of_ours(client, options.submits, runs)
        assert client.balance().sum_ucredits == 0
        runs.finish(**summary_of(runs, options))


if __name__ == "__main__":
    main()
