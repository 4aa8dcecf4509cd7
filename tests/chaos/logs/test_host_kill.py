"""The host of a worker dies mid-print: what it had printed a second before is readable."""

import itertools
import random
import time
from collections.abc import Callable
from typing import Any

from grid_rig import until
from logs_rig import TALKING, kill_host, row_of, stalls, talk, times_of
from logs_rig import post as post_job

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.wire.client import LogRow
from gristmill.wire.spec import Command

PROMISED_MS = 1_000
LONG_S = 120.0


def judged(row: LogRow | None, killed_ms: int, allowed_ms: float) -> int:
    """The age of the newest readable line at the kill; nothing before it is missing."""
    assert row is not None, "nothing is readable"
    assert row.attempt == 1 and not row.is_cut and row.stdout_bytes == len(row.stdout)
    times = times_of(row)
    age_ms = killed_ms - times[-1]
    assert age_ms <= allowed_ms, f"the newest readable line was {age_ms} ms old"
    steps = [later - before for before, later in itertools.pairwise(times)]
    assert max(steps) <= allowed_ms, "a line is missing"
    return age_ms


def test_lines_older_than_a_second_survive_the_host_by_attempt(
    grid_of: Callable[..., Grid], figures: Callable[..., None]
) -> None:
    grid = grid_of(slots=3)
    with Client(grid.address) as client, stalls() as late:
        jobs: dict[str, Any] = {
            "job": post_job(client, talk, [LONG_S], tier="job"),
            "batch": post_job(client, talk, [LONG_S], tier="batch"),
            "command": post_job(client, Command(TALKING), [str(LONG_S)]),
        }

        def has_talked(job: Any) -> bool:
            row = row_of(client, job, "running")
            return row is not None and bool(times_of(row))

        for job in jobs.values():
            until("its lines are shown while it runs", lambda job=job: has_talked(job))
        # Nothing is waited for: a kill right after lines were seen would find them always.
        time.sleep(random.uniform(1.2, 2.4))
        killed_ms = kill_host(grid, "worker-0")
        allowed_ms = PROMISED_MS + late.longest_ms

        def lost(job: Any) -> LogRow | None:
            return row_of(client, job, "lost")

        for job in jobs.values():
            until("the attempt is known to be lost", lambda job=job: lost(job))
        before = {name: lost(job) for name, job in jobs.items()}
        ages = [judged(row, killed_ms, allowed_ms) for row in before.values()]
        grid.kill("broker")
        grid.restart("broker")
        assert {name: lost(job) for name, job in jobs.items()} == before

        grid.add_worker("other")
        for name, job in jobs.items():
            again = until("the other's lines", lambda job=job: row_of(client, job, "running"))
            assert again.attempt == 2
            assert min(times_of(again)) > killed_ms, "lines of two attempts are mixed"
            assert lost(job) == before[name]
        for job in jobs.values():
            client.cancel(job)
        for job in jobs.values():  # the last words of what was ended stay, too
            assert job.wait(60).state == "cancelled"
            row = row_of(client, job, "ended")
            assert row is not None and row.attempt == 2 and min(times_of(row)) > killed_ms
    figures(
        newest_line_ms=max(ages), stall_ms=round(late.longest_ms),
        lines=sum(len(times_of(row)) for row in before.values() if row),
    )  # fmt: skip
