"""What an outage costs: a worker is killed, a worker is cut off, the broker is killed.

``--n`` naps run on two workers, tier ``job``; each says when it began. In the midst of them one
worker's agent gets SIGKILL (*killed*), or SIGSTOP until all is over (*cut off*), or the broker is
killed and started again at once. Which subtasks ran again, how long after the signal they began,
and how long the client went without a result. Results are compared and the bill is summed: whatever
ran twice is billed once.
"""

import itertools
import signal
import time
from typing import Any

from harness.measure import Runs, arguments
from harness.ours import Bill

from gristmill.cli.grid import Grid
from gristmill.client import Client

VICTIM = "worker-1"


def nap(given: tuple[int, float]) -> tuple[int, float]:
    """Sleep; which one it was, and when it began."""
    began = time.time()
    index, seconds = given
    time.sleep(seconds)
    return index, began


def outage(grid: Grid, what: str) -> float:
    """Bring it about; when, in seconds since the epoch."""
    at = time.time()
    if what == "worker killed":
        grid.kill(VICTIM)
    elif what == "worker cut off":
        grid.signal(VICTIM, signal.SIGSTOP)
    else:
        grid.kill("broker")
        at = time.time()
        grid.restart("broker")
    return at


def run(grid: Grid, client: Client, what: str, count: int, seconds: float, runs: Runs) -> None:
    """One map with one outage in its midst."""
    bill = Bill(client)
    stream = client.map(nap, [(index, seconds) for index in range(count)], ordered=False)
    came: list[tuple[float, int, float]] = []
    at = 0.0
    for index, began in stream:
        came.append((time.time(), index, began))
        if len(came) == count // 4:
            at = outage(grid, what)
    assert sorted(index for _, index, _ in came) == list(range(count)), "results differ"
    again = [row.index for row in client.subtasks(stream.job, limit=count) if row.attempt > 1]
    begins = sorted(began - at for _, index, began in came if index in again)
    arrivals = [at, *(now for now, _, _ in came if now > at)]
    figures: dict[str, Any] = {"again": len(again)}
    if begins:
        figures |= {"first_again_s": begins[0], "last_again_s": begins[-1]}
    runs.add(
        what,
        n=count,
        **figures,
        silence_s=max(later - now for now, later in itertools.pairwise(arrivals)),
        lost=client.status(stream.job).lost,
        billed_ucredits=bill.settle(count),
    )


def main() -> None:
    """Each outage in turn."""
    options = arguments(
        __doc__ or "",
        quick={"n": 40, "seconds": 0.02, "rounds": 1},
        n=400, seconds=0.05, slots=2, rounds=5,
    )  # fmt: skip
    runs = Runs("losses", vars(options))
    with Grid.temporary(workers=2, slots=options.slots) as grid, Client(grid.address) as client:
        list(client.map(nap, [(0, 0.01)] * 4 * options.slots))
        for _ in range(options.rounds):
            for what in ("worker killed", "worker cut off", "broker killed"):
                run(grid, client, what, options.n, options.seconds, runs)
                if what != "broker killed":
                    grid.restart(VICTIM)
        assert client.balance().sum_ucredits == 0
    each = ("worker killed", "worker cut off")
    runs.finish(
        **{
            f"{what.replace(' ', '_')}_{name}": round(runs.median(what, name), 3)
            for what in each
            for name in ("again", "first_again_s")
        },
        **{
            f"{what.replace(' ', '_')}_slowest_s": round(
                max(run["last_again_s"] for run in runs.line["runs"] if run["what"] == what), 3
            )
            for what in each
        },
        broker_killed_silence_s=round(runs.median("broker killed", "silence_s"), 3),
        broker_killed_again=runs.median("broker killed", "again"),
    )


if __name__ == "__main__":
    main()
