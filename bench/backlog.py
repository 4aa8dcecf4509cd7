"""What a queue costs: ``--n`` subtasks with no worker.

How fast they are queued (every input durable), the memory that each takes in broker and client,
and the CPU that it costs. The payload itself is told apart: parcels lie in the journal, and the
broker keeps up to 64 MiB of them in memory (``parcel_cache_bytes``). Then, with a worker that
waits, the time from the first input that the client reads to the first lease, while the rest still
streams in. In the end a real worker runs what was queued, and the results are compared.
"""

import gc
import time
from collections.abc import Iterator

from harness import floor
from harness.light import Fleet
from harness.measure import Runs, arguments, memory_bytes, percentile
from harness.ours import Bill, Spent

from gristmill.cli.grid import Grid
from gristmill.client import Client, Job

FIRST_S = 30.0


def inputs(count: int) -> Iterator[tuple[int, str]]:
    """Small Python values, made as they are asked for."""
    return ((index, "abc") for index in range(count))


def queue(client: Client, grid: Grid, count: int, runs: Runs) -> Job:
    """Queue them."""
    pids: dict[str, int | str] = {"broker": grid.pid("broker"), "client": "self"}
    gc.collect()
    before = {name: memory_bytes(pid) for name, pid in pids.items()}
    counted = client.grid()
    spec = client.make_spec(floor.no_op, tier="batch")
    spent, began = Spent(), time.perf_counter()
    job = client.post(*spec, inputs(count))
    seconds = time.perf_counter() - began
    cpu = spent.each(count)
    gc.collect()
    after, told = {name: memory_bytes(pid) for name, pid in pids.items()}, client.grid()
    assert told["queued_subtasks"] - counted["queued_subtasks"] == count
    cached = told["parcel_cache_bytes"] - counted["parcel_cache_bytes"]
    grown = {
        f"{name}_{kind}_bytes": (after[name][kind] - before[name][kind]) / count
        for name in pids
        for kind in ("pss", "anonymous")
    }
    runs.add(
        "gristmill queue",
        n=count,
        rate=count / seconds,
        seconds=seconds,
        **cpu,
        payload_bytes=(told["parcel_bytes"] - counted["parcel_bytes"]) / count,
        cached_bytes=cached / count,
        **grown,
        broker_beyond_bytes=grown["broker_anonymous_bytes"] - cached / count,
        client_beyond_bytes=grown["client_anonymous_bytes"],
    )
    return job


def first_dispatch(client: Client, fleet: Fleet, count: int) -> float:
    """Seconds from the first input that is read to the first lease; the job is then cancelled."""
    fleet.tell("delay", 60.0)  # leases are taken and kept
    first_read = 0.0

    def read() -> Iterator[tuple[int, str]]:
        nonlocal first_read
        first_read = time.monotonic()
        yield from inputs(count)

    job = client.post(*client.make_spec(floor.no_op, tier="batch"), read())
    deadline = time.monotonic() + FIRST_S
    while not (at := fleet.tell("ask")["first_lease_at"]):
        assert time.monotonic() < deadline, "no lease"
        time.sleep(0.01)
    client.cancel(job)
    fleet.tell("delay", 0.0)
    client.wait(job, timeout=FIRST_S)
    return at - first_read


def main() -> None:
    """Queue, dispatch, and run what was queued."""
    options = arguments(
        __doc__ or "",
        quick={"n": 20_000, "first": 1, "rounds": 1},
        n=1_000_000, first=10, rounds=3,
    )  # fmt: skip
    runs = Runs("backlog", vars(options))
    with Grid.temporary(workers=0) as grid, Client(grid.address) as client:
        jobs = [queue(client, grid, options.n, runs) for _ in range(options.rounds)]
        for job in jobs[:-1]:
            client.cancel(job)
            client.wait(job, timeout=FIRST_S)
        client.pause(jobs[-1])
        with Fleet(grid.back, 1, slots=2) as fleet:
            times = sorted(first_dispatch(client, fleet, options.n) for _ in range(options.first))
            for seconds in times:
                runs.add("first dispatch", ms=seconds * 1e3)
        bill = Bill(client)
        grid.add_worker("real", "--slots", "2")
        client.resume(jobs[-1])
        status = client.wait(jobs[-1], timeout=300)
        assert (status.done, status.failed) == (options.n, 0), status
        bill.settle(options.n)
        assert list(client.results(jobs[-1])) == list(inputs(options.n)), "results differ"
        assert client.balance().sum_ucredits == 0
    figures = (
        "rate", "cpu_us", "payload_bytes", "cached_bytes", "broker_anonymous_bytes",
        "broker_beyond_bytes", "client_beyond_bytes", "broker_pss_bytes", "client_pss_bytes",
    )  # fmt: skip
    runs.finish(
        **{figure: round(runs.median("gristmill queue", figure), 3) for figure in figures},
        first_dispatch_p50_ms=round(percentile(times, 0.5) * 1e3, 2),
        first_dispatch_max_ms=round(times[-1] * 1e3, 2),
    )


if __name__ == "__main__":
    main()
