"""Submit to result, one at a time, warm.

P50 and p99, beside a bare ZeroMQ echo and the disk's own fsync.
"""

import time

from harness import floor
from harness.measure import Runs, arguments, percentile

from gristmill.cli.grid import Grid
from gristmill.client import Client


def ours(client: Client, tier: str, count: int) -> list[float]:
    """Seconds from submit to result, sorted."""
    times = []
    submitter = client.with_options(tier=tier)
    for index in range(count + 10):
        began = time.perf_counter()
        assert submitter.submit(floor.no_op, index).result(timeout=60) == index
        times.append(time.perf_counter() - began)
    return sorted(times[10:])


def main() -> None:
    """Echo, fsync, us (batch and job tier), echo again."""
    options = arguments(__doc__ or "", n=500, rounds=3)
    runs = Runs("latency", vars(options))
    with Grid.temporary(workers=1, slots=2) as grid, Client(grid.address) as client:
        for _ in range(options.rounds):
            for what, times in (
                ("echo", floor.serial_echo(options.n)),
                ("fsync", floor.fsync_times(200)),
                ("gristmill batch", ours(client, "batch", options.n)),
                ("gristmill job", ours(client, "job", options.n)),
            ):
                p50, p99 = percentile(times, 0.5) * 1e3, percentile(times, 0.99) * 1e3
                runs.add(what, p50_ms=p50, p99_ms=p99)
    bound = runs.median("echo", "p50_ms") + 2 * runs.median("fsync", "p50_ms")
    summary = {
        f"{what.replace(' ', '_')}_{figure}": round(runs.median(what, figure), 3)
        for what in ("echo", "fsync", "gristmill batch", "gristmill job")
        for figure in ("p50_ms", "p99_ms")
    }
    runs.finish(
        **summary, batch_p50_over_floor=round(runs.median("gristmill batch", "p50_ms") / bound, 2)
    )


if __name__ == "__main__":
    main()
