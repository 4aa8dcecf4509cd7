"""Submit to result, one at a time, warm: p50 and p99.

Beside a bare ZeroMQ echo and the disk's own fsync: a durable result waits for two commits, so the
floor is an echo and two of them. The *chain* is the echo with an agent between broker and slot, as
ours has: what as many processes cost that do nothing. ``at 50 % load``: other subtasks, which sleep
for 10 ms and come by chance (Poisson), keep half of the slots busy; they belong to the same job as
what is timed, or to another client's. With ``durable=False`` the result does not wait for its
commit.
"""

import contextlib
import multiprocessing
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

from harness import floor
from harness.measure import Runs, arguments, percentile
from harness.ours import Bill

from gristmill.cli.grid import Grid
from gristmill.client import Client

LOAD_S = 0.010  #: that a subtask of the load sleeps
SLOTS = 2
WARM = 3


def nap(seconds: float) -> float:
    """What is timed (no time at all), and what the load is made of."""
    time.sleep(seconds)
    return seconds


def nap_of_another(seconds: float) -> float:
    """The same for the other client: a job of its own."""
    time.sleep(seconds)
    return seconds


def ours(client: Client, count: int, **options: Any) -> list[float]:
    """Seconds from submit to result, sorted."""
    times = []
    submitter = client.with_options(**options)
    for index in range(count + WARM):
        began = time.perf_counter()
        got = submitter.submit(nap, 0.0).result(timeout=60)
        times.append(time.perf_counter() - began)
        assert got == 0.0, index
    return sorted(times[WARM:])


def push(client: Client, work: Any, is_over: Any, share: float) -> int:
    """Submit subtasks by chance until it is over; how many, all of them checked."""
    chance = random.Random(7)
    submitter = client.with_options(tier="batch")
    waiting, due = [], time.perf_counter()
    while not is_over():
        due += chance.expovariate(share * SLOTS / LOAD_S)
        time.sleep(max(0.0, due - time.perf_counter()))
        waiting.append(submitter.submit(work, LOAD_S))
    assert [each.result(timeout=60) for each in waiting] == [LOAD_S] * len(waiting)
    return len(waiting)


def _another(address: str, share: float, wire: Any) -> None:
    """A client in a process of its own."""
    with Client(address) as client:
        nap_of_another.__module__ = "__main__"  # travels by value: a jail has no bench/
        wire.send("warm")
        wire.send(push(client, nap_of_another, wire.poll, share))


@contextlib.contextmanager
def load(client: Client, address: str, share: float, is_same_job: bool) -> Iterator[list[int]]:
    """Half of the slots are busy; afterwards the list has the number of subtasks of the load."""
    count: list[int] = []
    if is_same_job:
        over = threading.Event()
        thread = threading.Thread(
            target=lambda: count.append(push(client, nap, over.is_set, share))
        )
        thread.start()
        time.sleep(0.5)
        yield count
        over.set()
        thread.join()
        return
    ours_end, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_another, args=(address, share, theirs)
    )
    process.start()
    ours_end.recv()
    time.sleep(1.0)
    yield count
    ours_end.send("enough")
    count.append(ours_end.recv())
    process.join()


def main() -> None:
    """Floors, us idle, us loaded, and again."""
    options = arguments(
        __doc__ or "",
        quick={"n": 10, "beside": 1, "rounds": 1},
        n=500, beside=20, rounds=3, load_percent=50,
    )  # fmt: skip
    runs = Runs("latency", vars(options))
    share = options.load_percent / 100

    def add(what: str, times: list[float], **more: Any) -> None:
        p50, p90, p99 = (percentile(times, at) * 1e3 for at in (0.5, 0.9, 0.99))
        runs.add(what, p50_ms=p50, p90_ms=p90, p99_ms=p99, n=len(times), **more)

    with Grid.temporary(workers=1, slots=SLOTS) as grid, Client(grid.address) as client:
        bill, count = Bill(client), 0
        for _ in range(options.rounds):
            add("echo", floor.serial_echo(options.n))
            add("chain", floor.serial_echo(options.n, is_chain=True))
            add("fsync", floor.fsync_times(200))
            for what, kind in (
                ("gristmill batch", {"tier": "batch"}),
                ("gristmill batch, durable=False", {"tier": "batch", "durable": False}),
                ("gristmill job", {"tier": "job"}),
            ):
                add(what, ours(client, options.n, **kind))
                count += options.n + WARM
            for what, is_same_job, timed in (
                ("same job", True, options.n), ("another job", False, options.beside),
            ):  # fmt: skip
                with load(client, grid.address, share, is_same_job) as loaded:
                    times = ours(client, timed, tier="batch")
                add(f"gristmill batch at load, {what}", times, load_subtasks=loaded[0])
                count += timed + WARM + loaded[0]
        bill.settle(count)
        assert client.balance().sum_ucredits == 0
    bounds = {
        figure: runs.median("echo", figure) + 2 * runs.median("fsync", figure)
        for figure in ("p50_ms", "p99_ms")
    }
    names = dict.fromkeys(run["what"] for run in runs.line["runs"])
    found: dict[str, float] = {}
    for what in names:
        key = what.removeprefix("gristmill ").translate(str.maketrans(" =", "__", ","))
        for figure in ("p50_ms", "p99_ms"):
            found[f"{key}_{figure}"] = round(runs.median(what, figure), 3)
    bare = runs.median("gristmill batch, durable=False", "p50_ms") / runs.median("echo", "p50_ms")
    runs.finish(
        **found,
        batch_p50_over_floor=round(found["batch_p50_ms"] / bounds["p50_ms"], 2),
        batch_p99_over_floor=round(found["batch_p99_ms"] / bounds["p99_ms"], 2),
        not_durable_p50_over_echo=round(bare, 2),
    )


if __name__ == "__main__":
    main()
