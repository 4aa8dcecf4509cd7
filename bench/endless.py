"""Memory of a map that does not end: ``--rate`` subtasks a second from a generator, ``--seconds``.

Results are taken and compared as they come and are not kept (``keep=False``). Once a second: the
anonymous memory of client, broker, ledger, store and agent, and the bytes of the broker's state on
disk. Caches fill up first (64 MiB each for inputs and results, and SQLite's pages); what is told is
how much each has grown from the middle of the time to its end. Then one map over ``--n`` inputs,
streamed as fast as it goes. Run as ``make bench-endless``.
"""

import itertools
import os
import pathlib
import statistics
import time
from collections.abc import Iterator

from harness import floor
from harness.measure import Runs, arguments, memory_bytes
from harness.ours import Bill, Spent
from throughput import ours_streamed

from gristmill.cli.grid import Grid
from gristmill.client import Client

TURN_S = 0.02
PROCESSES = ("client", "broker", "ledger", "store", "worker")
MIB = 1 << 20


def source(rate: int, seconds: float) -> Iterator[tuple[int, str]]:
    """Inputs at a rate, until the time is over."""
    began, made = time.monotonic(), 0
    while (passed := time.monotonic() - began) < seconds:
        due = int(passed * rate)
        for index in range(made, due):
            yield index, "abc"
        made = due
        time.sleep(TURN_S)


def size_on_disk(folder: pathlib.Path) -> int:
    """Bytes that the files below this folder take."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def look(grid: Grid, worker: str, began: float, done: int) -> dict[str, float]:
    """One sample: seconds, results so far, MiB."""
    pids: dict[str, int | str] = {name: grid.pid(name) for name in PROCESSES[1:-1]}
    pids |= {"client": "self", "worker": grid.pid(worker)}
    memory = {name: memory_bytes(pid)["anonymous"] / MIB for name, pid in pids.items()}
    disk = size_on_disk(grid.state / "broker") / MIB
    return {"at_s": time.monotonic() - began, "done": done, **memory, "disk": disk}


def endless(
    grid: Grid, client: Client, rate: int, seconds: float, runs: Runs, worker: str = "worker-0"
) -> dict[str, float]:
    """The map; medians of a twentieth of the second half, at its end and its beginning."""
    bill, spent = Bill(client), Spent()
    began, next_look, samples = time.monotonic(), 0.0, []
    got = client.map(floor.no_op, source(rate, seconds), tier="batch", keep=False)
    done = 0
    while some := list(itertools.islice(got, 10_000)):
        assert some[0] == (done, "abc") and some[-1] == (done + len(some) - 1, "abc")
        done += len(some)
        if time.monotonic() - began >= next_look:
            samples.append(look(grid, worker, began, done))
            next_look = samples[-1]["at_s"] + 1
    passed = time.monotonic() - began
    told: dict[str, float] = {"subtasks": done, "rate": done / passed}
    late = [sample for sample in samples if sample["at_s"] > seconds / 2]
    for name in (*PROCESSES, "disk"):
        few = max(1, len(late) // 20)
        first, last = (
            statistics.median(sample[name] for sample in part) for part in (late[:few], late[-few:])
        )
        told[f"{name}_mib"] = last
        told[f"{name}_grown_mib"] = last - first
    cpu = spent.each(done)
    runs.add("endless", n=done, **told, **cpu, billed_ucredits=bill.settle(done))
    runs.line["samples"] = samples  # too many to print
    return told


def main() -> None:
    """The endless map, then the large one."""
    options = arguments(
        __doc__ or "",
        quick={"seconds": 1.0, "rate": 20_000, "n": 2_000},
        seconds=600.0, rate=100_000, n=10_000_000,
    )  # fmt: skip
    runs = Runs("endless", vars(options))
    with Grid.temporary(workers=1, slots=2) as grid, Client(grid.address) as client:
        list(client.map(floor.no_op, [(0, "abc")] * 1_000, tier="batch"))
        told = endless(grid, client, options.rate, options.seconds, runs)
        ours_streamed(grid, client, "tuples", options.n, runs)
        assert client.balance().sum_ucredits == 0
    runs.finish(**{name: round(value, 2) for name, value in told.items()})


if __name__ == "__main__":
    main()
