"""What is printed: bounded, marked with how much was cut, of one attempt only."""

import contextlib
import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from grid_rig import gristmill, until
from logs_rig import flood, peak_kib, post, row_of, talk, times_of

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.wire.spec import Command

LIMIT = 1 << 20
#: A logger of about 100 MB a second: it is ended long before it has said all.
FLOODING = [sys.executable, "-c", "import sys\nwhile True: sys.stdout.write('y' * 99999 + '\\n')"]
GROWTH_KIB_MAX = 48 << 10  #: of agent and broker; what the loggers want to say is gigabytes


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    with Grid.temporary(workers=1, slots=2) as grid:
        yield grid


def speak(count: int) -> int:
    """A line for each number, and what a batch has no room for."""
    print(count, "x" * 20_000)
    return count


def test_floods_are_capped_and_marked_and_memory_stays_flat(
    grid: Grid, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    with Client(grid.address) as client:
        quiet = post(client, talk, [1.0], tier="job")
        assert quiet.wait(60).state == "done"
        pids = [grid.pid("worker-0"), grid.pid("broker")]
        before = [peak_kib(pid) for pid in pids]
        count, cut = sized(2, 50), 0
        works: list[tuple[Any, list[Any], dict[str, Any]]] = [
            (flood, [20.0], {"tier": "job"}),
            (flood, [20.0], {"tier": "batch"}),
            (Command(FLOODING), ["20"], {}),
        ]
        for work, inputs, options in works:
            loud = post(client, work, inputs * count, output=LIMIT, **options)
            assert loud.wait(60).state == "failed"
            assert {row.outcome for row in client.subtasks(loud)} == {"output"}
            logs = client.logs(loud, limit=count)
            assert len(logs) == count
            for log in logs:
                assert log.is_cut and 0 < len(log.stdout) <= LIMIT < log.stdout_bytes
                cut += log.stdout_bytes - len(log.stdout)
        grown = [peak_kib(pid) - peak for pid, peak in zip(pids, before, strict=True)]
        assert max(grown) < GROWTH_KIB_MAX, f"agent and broker grew by {grown} KiB"
        told = gristmill(grid, "logs", f"{loud.id}/0")
        assert "output cut:" in told.stderr and "were written" in told.stderr
        (log,) = client.logs(quiet)
        assert not log.is_cut and len(times_of(log)) > 5
    figures(loggers=3 * count, agent_grew_kib=grown[0], broker_grew_kib=grown[1], cut_bytes=cut)


@pytest.mark.parametrize("tier", ["job", "batch"])
def test_each_noisy_subtask_of_a_batch_has_its_row(grid: Grid, tier: Any) -> None:
    count = 100
    with Client(grid.address) as client:
        job = post(client, speak, list(range(count)), tier=tier, output=64 << 20)
        assert job.wait(60).state == "done"
        rows, at = [], 0
        while found := client.logs(job, at, 50):
            rows += found
            at = max(row.index + row.count for row in found)
        covered = {index for row in rows for index in range(row.index, row.index + row.count)}
        assert covered == set(range(count))
        said = [int(line.split()[0]) for row in rows for line in row.stdout.splitlines()]
        assert sorted(said) == list(range(count)) and not any(row.is_cut for row in rows)
        told = gristmill(grid, "logs", job.id, "--json").stdout.splitlines()
        assert [json.loads(line)["index"] for line in told] == [row.index for row in rows]


def test_a_result_takes_the_place_of_its_lines(grid: Grid) -> None:
    with Client(grid.address) as client:
        job = post(client, talk, [1.5], tier="job")
        running = until("its lines are shown", lambda: row_of(client, job, "running"))
        shown = gristmill(grid, "logs", f"{job.id}/0")
        assert "attempt 1 (running)" in shown.stdout or job.status().state == "done"
        assert job.wait(60).state == "done"
        (log,) = until("the log is there", lambda: client.logs(job))
        assert (log.state, log.attempt, log.is_cut) == ("ended", 1, False)
        assert log.stdout.startswith(running.stdout) and log.stdout_bytes == len(log.stdout)

        def kept() -> int:
            path = grid.state / "broker" / "journal.db"
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
                number = int(job.id[1:])
                (found,) = db.execute("SELECT count(*) FROM lines WHERE job = ?", (number,))
                return int(found[0])

        until("the lines are gone", lambda: not kept())
