"""Renewed when seen alive, expired by silence, never by age: whoever is frozen, cut off or killed.

Each test ends with the same account: every subtask has one result, and the ledger one bill for it.
"""

import os
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

from grid_rig import until
from lease_rig import TTL_MS, Line, billed_twice, events, gone_at_ms, post, settled, started, values
from process_rig import child_of, descendants, groups_of, inside, is_running, slot_processes

from gristmill.cli.grid import Grid
from gristmill.client import Client

#: Between what /proc shows and what the journal says on a busy machine.
CLOCKS_MS = 1_000


def nap(seconds: float) -> float:
    import time

    time.sleep(seconds)
    return seconds


def write_then_nap(path: str) -> str:
    """Of tier ``trusted``: one line for each start."""
    import os
    import time

    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(float(path.rpartition("-")[2]))
    return path


def account(grid: Grid, client: Client, job: int, count: int) -> Any:
    """Every subtask done, billed once; the job's card."""
    bills = settled(grid, job)
    assert billed_twice(bills, count) == []
    rows = client.subtasks(job)
    assert [row.index for row in rows] == list(range(count))
    assert {row.state for row in rows} == {"done"}
    return client.status(job)


def test_a_healthy_subtask_of_three_ttls_runs_once(
    grid_of: Callable[..., Grid], tmp_path: pathlib.Path, figures: Callable[..., None]
) -> None:
    grid = grid_of(workers=2, tiers=("trusted", "job"), ttl_ms=600, report_ms=100)
    starts = tmp_path / "starts-1.8"
    with Client(grid.address) as client:
        job = post(client, write_then_nap, [str(starts)], tier="trusted")
        assert list(client.map(nap, [1.8], tier="job")) == [1.8]
        assert values(job) == [str(starts)]
        assert len(starts.read_text().splitlines()) == 1
        for job in (1, 2):
            status = account(grid, client, job, 1)
            assert (status.lost, status.retried, status.superseded) == (0, 0, 0)
    figures(starts=1, ttls=3)


def test_an_agent_paused_past_its_ttl_runs_it_twice_and_counts_once(
    grid_of: Callable[..., Grid], figures: Callable[..., None]
) -> None:
    grid = grid_of()
    with Client(grid.address) as client:
        job = post(client, nap, [0.5], tier="job")
        victim = started(grid)
        grid.signal(victim, signal.SIGSTOP)
        try:
            grid.add_worker("worker-b")
            assert values(job) == [0.5]  # by the other one
            assert account(grid, client, 1, 1).superseded == 0
            (lost,) = events(grid, "lease.rescued", 1)
        finally:
            grid.signal(victim, signal.SIGCONT)
        # what its jail had finished is told late: kept, named on the card, never used or billed
        until("the late result is there", lambda: events(grid, "result.refused", 1))
        ((_, late),) = events(grid, "result.refused", 1)
        assert (late["lease"], late["runs"]) == (lost[1]["lease"], [[0, 1]])
        status = until("the card says so", lambda: (s := client.status(1)).superseded and s)
        assert (status.state, status.done, status.superseded) == ("done", 1, 1)
        assert [row.attempt for row in client.subtasks(1)] == [2]
        account(grid, client, 1, 1)
        assert list(client.map(nap, [0.0] * 4)) == [0.0] * 4  # and it works on
        until("it is back", lambda: victim in {row.name for row in client.workers()})
    grid.kill("broker")
    grid.restart("broker")
    with Client(grid.address) as client:
        assert client.status(1).superseded == 1
    figures(starts=2, accepted=1, billed=1, superseded=1)


def test_jails_of_a_frozen_agent_end_before_their_lease_is_given_away(
    grid_of: Callable[..., Grid], figures: Callable[..., None]
) -> None:
    grid = grid_of()
    with Client(grid.address) as client:
        job = post(client, nap, [5.0], tier="job")
        victim = started(grid)
        running = inside(grid.pid(victim))
        assert len(running) >= 2
        grid.signal(victim, signal.SIGSTOP)
        try:
            gone_ms = gone_at_ms(running)
            until("it is given away", lambda: events(grid, "lease.rescued", 1))
            ((rescued_ms, _),) = events(grid, "lease.rescued", 1)
            assert gone_ms <= rescued_ms + CLOCKS_MS
        finally:
            grid.signal(victim, signal.SIGCONT)
        assert values(job) == [5.0]
        status = account(grid, client, 1, 1)
        assert status.lost and not status.superseded, "nothing was finished, nothing is late"
    figures(gone_before_given_away_ms=rescued_ms - gone_ms)


def test_a_worker_that_is_cut_off_ends_its_jails_before_their_lease_is_given_away(
    grid_of: Callable[..., Grid], figures: Callable[..., None]
) -> None:
    grid = grid_of(workers=0)
    line = Line(grid.run / "line", grid.run / "back")
    try:
        with Client(grid.address) as client:
            grid.add_worker("far", "--broker", line.address)
            job = post(client, nap, [5.0], tier="job")
            assert started(grid) == "far"
            running = inside(grid.pid("far"))
            line.cut()
            gone_ms = gone_at_ms(running)
            until("it is given away", lambda: events(grid, "lease.rescued", 1))
            ((rescued_ms, _),) = events(grid, "lease.rescued", 1)
            assert gone_ms <= rescued_ms + CLOCKS_MS
            assert grid.dead() == []
            grid.add_worker("near")
            until("it runs elsewhere", lambda: started(grid) == "near")
            line.mend()
            assert values(job) == [5.0]
            until("it is back", lambda: "far" in {row.name for row in client.workers()})
            account(grid, client, 1, 1)
    finally:
        line.close()
    figures(gone_before_given_away_ms=rescued_ms - gone_ms)


def test_a_slot_process_that_is_stopped_is_made_new(grid_of: Callable[..., Grid]) -> None:
    grid = grid_of()
    with Client(grid.address) as client:
        job = post(client, nap, [1.0, 1.0], tier="job")
        name = started(grid)
        (slot,) = [pid for pid in slot_processes(grid.pid(name)) if descendants(pid)]
        os.kill(slot, signal.SIGSTOP)
        assert values(job) == [1.0, 1.0]
        assert not is_running(slot)
        status = account(grid, client, 1, 2)
        assert status.lost and not status.superseded
        assert "stands still" in grid.log(name).read_text()
        assert grid.dead() == []


def test_a_spawner_that_is_stopped_is_replaced(grid_of: Callable[..., Grid]) -> None:
    grid = grid_of()
    with Client(grid.address) as client:
        job = post(client, nap, [1.0, 1.0], tier="job")
        name = started(grid)
        running, spawner = inside(grid.pid(name)), child_of(grid.pid(name), b"spawner.py")
        os.kill(spawner, signal.SIGSTOP)
        assert values(job) == [1.0, 1.0]
        assert not any(map(is_running, [*running, spawner]))
        assert account(grid, client, 1, 2).superseded == 0
        assert grid.dead() == []
        # also when it stops while a jail is to be started: the loop waits, shorter than a ttl
        os.kill(child_of(grid.pid(name), b"spawner.py"), signal.SIGSTOP)
        assert list(client.map(nap, [0.0], tier="job", memory="300M")) == [0.0]
        assert grid.dead() == []


def test_a_killed_agents_leases_move_within_a_ttl_and_nothing_of_it_is_left(
    grid_of: Callable[..., Grid], figures: Callable[..., None]
) -> None:
    grid = grid_of(workers=2)
    with Client(grid.address) as client:
        job = post(client, nap, [1.0] * 6, tier="job")
        results = job.results()
        assert next(results) == 1.0
        victim = started(grid)
        below = descendants(grid.pid(victim))
        groups = groups_of(below)
        killed_ms = time.time_ns() // 1_000_000
        grid.kill(victim)
        gone_ms = gone_at_ms(below)
        until("its leases move", lambda: events(grid, "worker.lost"))
        ((lost_ms, _),) = events(grid, "worker.lost")
        assert lost_ms - killed_ms <= TTL_MS + CLOCKS_MS
        assert list(results) == [1.0] * 5
        account(grid, client, 1, 6)
        until("its cgroups are gone", lambda: not any(group.exists() for group in groups))
        assert groups or os.geteuid(), "as root each jail has a cgroup of its own"
    figures(moved_after_ms=lost_ms - killed_ms, gone_after_ms=gone_ms - killed_ms)
