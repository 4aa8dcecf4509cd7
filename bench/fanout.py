"""What a lease costs the broker with few and many workers, and few and many jobs.

Simulated workers speak the worker's wire from a few processes and answer each lease after a time,
chosen so that all of them together take about ``--rate`` leases of one subtask a second: what
differs is only how many they are (of one slot each; of the fewest, more). Each slot has two leases
all the time, whatever their number, and as many end as are given. CPU of the broker is read while
they do, and while nothing does, which is taken off. Then 64 real slots beside 2, and
``multiprocessing.Pool`` with 64 and 2 processes. All subtasks are counted and billed in the end.
"""

import concurrent.futures
import multiprocessing
import time
from typing import Any

from harness import floor
from harness.light import Fleet
from harness.measure import Runs, arguments, memory_bytes, process_cpu_us
from harness.ours import Bill, measured_map

from gristmill.cli.grid import Grid
from gristmill.client import Client

POSTERS = 16  #: threads that submit jobs, so that their commits are shared
END_S = 240.0
IDLE_S, SETTLE_TRIES = 1.5, 12
NEVER_S = 1e6  #: leases are taken and kept
#: of all workers together: with fewer, a lease would be answered within the 20 ms of work that it
#: is made to have, and would grow
SLOTS_MIN = 30


def post(client: Client, jobs: int, each: int) -> None:
    """That many jobs of ``each`` subtasks."""
    spec, function = client.make_spec(
        floor.no_op, tier="batch", cap="5"
    )  # all together within the fund
    with concurrent.futures.ThreadPoolExecutor(POSTERS) as pool:
        list(pool.map(lambda _: client.post(spec, function, range(each)), range(jobs)))


def idle_share(grid: Grid) -> float:
    """Share of a core that the broker takes when nothing happens; it is left to settle first."""
    share = 2.0
    for _ in range(SETTLE_TRIES):
        cpu, began = process_cpu_us(grid.pid("broker")), time.perf_counter()
        time.sleep(IDLE_S)
        spent = process_cpu_us(grid.pid("broker")) - cpu
        before, share = share, spent / 1e6 / (time.perf_counter() - began)
        if share > 0.8 * before:
            break
    return share


def flow(grid: Grid, client: Client, wanted: int, seconds: float) -> tuple[float, int, float]:
    """(CPU us, leases, seconds) of the broker, until it gave so many leases.

    A busy machine gets a few times as long as they should take. As many leases end as are given:
    else the cost of the one would be counted as the other's.
    """
    before = client.grid()
    cpu, began = process_cpu_us(grid.pid("broker")), time.perf_counter()
    while True:
        time.sleep(seconds / 4)
        now = client.grid()
        given = now["leases"] - before["leases"]
        spent = process_cpu_us(grid.pid("broker")) - cpu
        passed = time.perf_counter() - began
        if given >= wanted or passed > 4 * seconds:
            ended = now["results_kept"] - before["results_kept"]
            assert 0.9 < ended / max(1, given) < 1.1, f"{given} leases were given, {ended} ended"
            return spent, given, passed


def jobs_of(options: Any, workers: int) -> list[int]:
    """The most jobs, which take long to submit, for the fewest and the most workers only."""
    is_end = workers in (min(options.workers), max(options.workers))
    return [jobs for jobs in options.jobs if is_end or jobs < max(options.jobs)]


def simulated(options: Any, runs: Runs, workers: int) -> None:
    """A new grid with so many workers; one run for each number of jobs."""
    slots = max(1, SLOTS_MIN // workers)
    held = 2 * workers * slots  # leases that are out at any time
    settings = {"GRISTMILL_BROKER_JOBS_PER_TENANT_MAX": str(max(options.jobs) + 10)}
    with (
        Grid.temporary(workers=0, environment=settings) as grid,
        Client(grid.address, timeout=60) as client,
        Fleet(grid.back, workers, slots=slots, processes=min(4, workers)) as fleet,
    ):
        idle = idle_share(grid)
        runs.add(
            f"{workers} workers idle",
            workers=workers,
            cpu_percent=100 * idle,
            pss_bytes=memory_bytes(grid.pid("broker"))["pss"],
        )
        for jobs in jobs_of(options, workers):
            subtasks = int(2 * held + 1.5 * options.rate * options.seconds)
            each = max(1, -(-subtasks // jobs))
            bill = Bill(client)
            rejoins = fleet.tell("delay", NEVER_S)["rejoins"]
            post(client, jobs, each)
            deadline = time.monotonic() + END_S
            goal = min(held, jobs * each) * 0.9
            while fleet.tell("ask")["held"] < goal:
                assert time.monotonic() < deadline, "the workers are not busy"
                time.sleep(0.1)
            fleet.tell("delay", held / options.rate)
            wanted = int(0.9 * options.rate * options.seconds)
            cpu_us, leases, passed = flow(grid, client, wanted, options.seconds)
            fleet.tell("delay", 0.0)
            while client.grid()["queued_subtasks"]:
                assert time.monotonic() < deadline, "the queue does not end"
                time.sleep(0.1)
            billed = bill.settle(jobs * each)
            runs.add(
                f"{workers} workers, {jobs} jobs",
                workers=workers,
                jobs=jobs,
                n=jobs * each,
                leases=leases,
                leases_s=leases / passed,
                cpu_us=(cpu_us - 1e6 * idle * passed) / max(1, leases),
                rejoins=fleet.tell("ask")["rejoins"] - rejoins,
                busy_percent=cpu_us / passed / 1e4,
                billed_ucredits=billed,
            )


def real(options: Any, runs: Runs) -> None:
    """Slots with jails, and the pool, few and many of them."""
    values = list(range(options.n))
    for slots in (2, options.slots):
        workers = max(1, slots // 8)
        with (
            Grid.temporary(workers=workers, slots=slots // workers) as grid,
            Client(grid.address) as client,
        ):
            for _ in range(2):  # all jails are up
                measured_map(client, floor.no_op, values, tier="batch")
            for _ in range(options.rounds):
                figures = measured_map(client, floor.no_op, values, tier="batch")
                runs.add(f"gristmill {slots} slots", n=options.n, slots=slots, **figures)
    for slots in (2, options.slots):
        with multiprocessing.get_context("fork").Pool(slots) as pool:
            pool.map(floor.no_op, values, chunksize=1_000)
            for _ in range(options.rounds):
                began = time.perf_counter()
                got = pool.map(floor.no_op, values, chunksize=1_000)
                seconds = time.perf_counter() - began
                assert got == values
                rate = options.n / seconds
                runs.add(f"mp.Pool {slots} processes", n=options.n, slots=slots, rate=rate)


def main() -> None:
    """Simulated workers, then real slots."""
    options = arguments(
        __doc__ or "",
        quick={
            "workers": (2, 16), "jobs": (1, 10), "seconds": 1, "n": 5_000, "slots": 4, "rounds": 1,
        },
        workers=(2, 64, 1_000, 10_000), jobs=(1, 100, 10_000), rate=1_000, seconds=4, n=300_000,
        slots=64, rounds=3,
    )  # fmt: skip
    runs = Runs("fanout", vars(options))
    for workers in options.workers:
        simulated(options, runs, workers)
    real(options, runs)
    few, many = min(options.workers), max(options.workers)
    summary: dict[str, float] = {}
    for workers in options.workers:
        for jobs in jobs_of(options, workers):
            cost = runs.median(f"{workers} workers, {jobs} jobs", "cpu_us")
            summary[f"cpu_us_{workers}_workers_{jobs}_jobs"] = round(cost, 1)
    for jobs in options.jobs:
        base = summary[f"cpu_us_{few}_workers_{jobs}_jobs"]
        ratio = summary[f"cpu_us_{many}_workers_{jobs}_jobs"] / base
        summary[f"many_over_few_{jobs}_jobs"] = round(ratio, 2)
    for what, unit in (("gristmill", "slots"), ("mp.Pool", "processes")):
        rates = [runs.median(f"{what} {slots} {unit}", "rate") for slots in (2, options.slots)]
        name = what.removeprefix("mp.").lower()
        summary[f"{name}_rate_{options.slots}_over_2"] = round(rates[1] / rates[0], 3)
    runs.finish(**summary)


if __name__ == "__main__":
    main()
