"""How many no-op subtasks a second, at what cpu each, beside the floor and multiprocessing.

Every subtask has its own state, timing and bill; jobs and results are durable; jails are on.
Results are compared, and the bill is summed, inside the run. ``--n`` subtasks, ``--rounds`` of
floor, peer, us, floor.
"""

import multiprocessing
from typing import Any

from harness import floor
from harness.measure import Runs, arguments, cpu_us_by_role, timed

from gristmill.cli.grid import Grid
from gristmill.client import Client


def values_of(kind: str, count: int) -> list[Any]:
    """The inputs: tuples of an int and a short text, or ints."""
    return [(i, "abc") for i in range(count)] if kind == "tuples" else list(range(count))


def ours(client: Client, kind: str, values: list[Any], runs: Runs, tier: str) -> None:
    """One map on the running grid, measured with the cpu of all its processes."""
    before = cpu_us_by_role()
    spent_before = sum(row.amount_ucredits for row in client.usage(by="job"))
    seconds, got = timed(lambda: list(client.map(floor.no_op, values, tier=tier)))
    after = cpu_us_by_role()
    assert got == values, "results differ"
    billed = sum(row.subtasks for row in client.usage(by="job"))
    spent = sum(row.amount_ucredits for row in client.usage(by="job")) - spent_before
    cpu = {role: (after[role] - before.get(role, 0)) / len(values) for role in sorted(after)}
    runs.add(
        f"gristmill {tier} {kind}",
        rate=len(values) / seconds,
        seconds=seconds,
        cpu_us=sum(cpu.values()),
        cpu_us_by_role={role: round(value, 3) for role, value in cpu.items() if value},
        billed_ucredits=spent,
        billed_subtasks=billed,
    )


def peer(kind: str, values: list[Any], runs: Runs) -> None:
    """multiprocessing.Pool.map with chunks of 1,000: no status, retry, jail or bill of an item."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(floor.no_op, values[:1000])
        seconds, got = timed(lambda: pool.map(floor.no_op, values, chunksize=1000))
    assert got == values
    runs.add(f"mp.Pool.map {kind}", rate=len(values) / seconds, seconds=seconds)


def main() -> None:
    """Floor, peer, us, floor again, in turn."""
    options = arguments(__doc__ or "", n=1_000_000, rounds=5, slots=2)
    runs = Runs("throughput", vars(options))
    summary: dict[str, float] = {}
    with Grid.temporary(workers=1, slots=options.slots) as grid, Client(grid.address) as client:
        for kind in ("tuples", "ints"):
            values = values_of(kind, options.n)
            list(client.map(floor.no_op, values[:20_000], tier="batch"))
            for _ in range(options.rounds):
                runs.add(f"floor {kind}", rate=len(values) / floor.echo(kind, values))
                peer(kind, values, runs)
                ours(client, kind, values, runs, "batch")
            rate = runs.median(f"gristmill batch {kind}", "rate")
            summary[f"{kind}_rate"] = round(rate)
            summary[f"{kind}_cpu_us"] = round(runs.median(f"gristmill batch {kind}", "cpu_us"), 3)
            summary[f"{kind}_of_floor"] = round(rate / runs.median(f"floor {kind}", "rate"), 3)
            summary[f"{kind}_of_pool"] = round(rate / runs.median(f"mp.Pool.map {kind}", "rate"), 3)
        job_values = values_of("ints", 2_000)
        for _ in range(options.rounds):
            ours(client, "ints", job_values, runs, "job")
        summary["job_tier_rate"] = round(runs.median("gristmill job ints", "rate"))
        assert client.balance().sum_ucredits == 0
    runs.finish(**summary)


if __name__ == "__main__":
    main()
