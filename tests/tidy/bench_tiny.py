"""Each question of bench/ at a tiny size on one grid; run as a script with bench/ as its argument.

What a figure says is bench/'s own business: here every path is walked, with its own comparisons of
results and bills.
"""

import pathlib
import sys
import tempfile

sys.path.insert(0, sys.argv[1])

import backlog
import blobs
import endless
import jails
import latency
import mixed
import overhead
import payload
import recovery
import throughput
from harness.light import Fleet
from harness.measure import Runs, arguments
from harness.ours import measured_map

import ledger  # noqa: TID251  (bench/ledger.py)
from gristmill.cli.grid import Grid
from gristmill.client import Client


def without_a_worker(grid: Grid, client: Client, runs: Runs) -> None:
    """A queue, and workers that run nothing."""
    job = backlog.queue(client, grid, 5_000, runs)
    client.cancel(job)
    with Fleet(grid.back, 1, slots=2, processes=1) as fleet:
        assert backlog.first_dispatch(client, fleet, 5_000) > 0
        measured_map(client, throughput.floor.no_op, list(range(5_000)), tier="batch")


def with_a_worker(grid: Grid, client: Client, runs: Runs) -> None:
    """Maps, futures, values and naps."""
    throughput.wire("tuples", 2_000, runs)
    throughput.peer("tuples", 2_000, runs)
    throughput.ours(client, "tuples", 2_000, "batch", runs)
    throughput.ours_streamed(grid, client, "ints", 20_000, runs)
    assert endless.endless(grid, client, 5_000, 0.3, runs, "real")["subtasks"] > 0
    throughput.futures_alone(100, runs)
    throughput.futures_of_pool(100, runs)
    throughput.futures_of_ours(client, 100, runs)
    assert latency.ours(client, 3, tier="batch")
    size = 100 << 10
    values = payload.values_of(size, 2)
    payload.wire(runs, "both", size, values)
    payload.peer(runs, "both", size, values)
    payload.ours(client, runs, "both", size, values)
    turn = mixed.Turn([(index, 0.002) for index in range(12)], 2)
    turn.of_pool("chunks of one", 1)
    turn.of_ours(client, "batch")
    turn.judge(runs, shape="uniform", tier="batch")


def main() -> None:
    """Everything on one grid, then what needs none."""
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["tiny", "--quick", "--results", folder]
        options = arguments("tiny", quick={"alone": 0.001}, alone=1.0)
        runs = Runs("tiny", vars(options))
        with Grid.temporary(workers=0) as grid, Client(grid.address) as client:
            without_a_worker(grid, client, runs)
            grid.add_worker("real", "--slots", "1")
            with_a_worker(grid, client, runs)
        overhead.alone(runs, options, 0.01)
        assert jails.forks_outside(3)["fork_wall_us"] > 0
        scratch = pathlib.Path(folder)
        ledger.book(scratch / "book", 20, 8)
        ledger.rows(scratch, scratch / "book", 20, 8)
        for what, kind in (("files", blobs.Files), ("obstore, synced", blobs.Synced)):
            bodies = [blobs.body_of(1_024, number) for number in range(2)]
            blobs.turn(runs, what, kind(scratch / what), 1_024, bodies)
        (scratch / "half").mkdir(mode=0o700)
        recovery.fill(scratch / "half", "half_done", 2_000)
        assert recovery.probe(scratch / "half")["subtasks"] == 1_000
        runs.finish(contenders=len({run["what"] for run in runs.line["runs"]}))
        assert (scratch / "tiny.json").exists()


if __name__ == "__main__":
    main()
