"""A grid whose workers come and go while it works: restarted, drained, killed, stuck behind one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from grid_rig import until
from lease_rig import billed_twice, events, post, settled, started, values
from process_rig import is_running

from gristmill.cli.grid import Grid
from gristmill.client import Client, Job

GRACE_S = 20
#: Where nobody is to be missed: no expiry on a busy machine.
CALM_MS = 30_000


def nap(seconds: float) -> float:
    import time

    time.sleep(seconds)
    return seconds


def account(grid: Grid, client: Client, job: Job, count: int) -> Any:
    """Every subtask is done, in the order of its input, and billed once; the job's card."""
    number = job.status().job
    assert billed_twice(settled(grid, number), count) == []
    status = client.status(number)
    assert (status.done, status.failed, status.cancelled) == (count, 0, 0)
    return status


def test_a_worker_that_was_killed_is_missed_long_before_its_ttl(
    grid_of: Callable[..., Grid],
) -> None:
    grid = grid_of(workers=2, slots=1, ttl_ms=600_000, report_ms=500)
    with Client(grid.address) as client:
        job = post(client, time.sleep, [1.5, 1.5], tier="job")
        until("both run", lambda: job.status().leased == 2)
        grid.kill("worker-1")
        assert values(job, 60) == [None, None]
        assert job.status().lost == 1


def restart(grid: Grid, name: str) -> float:
    """SIGTERM, the end, a new process of the same name; seconds that the end took."""
    pid, began = grid.pid(name), time.monotonic()
    grid.signal(name, signal.SIGTERM)
    until(f"{name} has drained", lambda: not is_running(pid), GRACE_S + 30)
    took = time.monotonic() - began
    assert {each.name: each.returncode for each in grid.dead()} == {name: 0}
    grid.restart(name)
    return took


def test_a_rolling_restart_under_load_loses_and_doubles_nothing(
    grid_of: Callable[..., Grid],
    sized: Callable[[int, int], int],
    figures: Callable[..., None],
) -> None:
    workers = sized(4, 10)
    options = {"worker": ["--grace", f"{GRACE_S}s", "--spares", "1"]}
    grid = grid_of(workers=workers, options=options, ttl_ms=CALM_MS, report_ms=500)
    is_over = threading.Event()
    given: list[float] = []

    def source() -> Iterator[float]:
        while not is_over.is_set():
            given.append(0.01 * (1 + len(given) % 7))
            yield given[-1]

    with Client(grid.address) as client:
        got: list[float] = []
        stream = client.map(nap, source(), tier="job", window=100, chunk=10)
        reader = threading.Thread(target=lambda: got.extend(stream), daemon=True)
        reader.start()
        started(grid)
        took = [restart(grid, name) for name in list(grid.worker_names)]
        done = client.status(1).done
        is_over.set()
        reader.join(60)
        assert got == given
        assert len(given) > done > 0, "the load was there until the last restart"
        status = account(grid, client, client.job(1), len(given))
        # a drain spends nothing: no attempt was lost, none was made twice
        told = (status.lost, status.retried, status.superseded)
        assert told == (0, 0, 0), events(grid, "lease.rescued")
        assert max(took) < GRACE_S
    figures(workers=workers, restarts=len(took), subtasks=len(given), lost=0, billed_twice=0,
            slowest_s=round(max(took), 2))  # fmt: skip


def test_a_drain_at_its_deadline_returns_unspent_and_a_second_signal_hurries(
    grid_of: Callable[..., Grid],
) -> None:
    grid = grid_of(workers=0, ttl_ms=CALM_MS, report_ms=500)
    with Client(grid.address) as client:
        for name, grace in (("short", "300ms"), ("long", "600s")):
            grid.add_worker(name, "--grace", grace)
            job = post(client, nap, [600.0], tier="job")
            assert started(grid) == name
            pid = grid.pid(name)
            grid.signal(name, signal.SIGTERM)
            if name == "long":
                until("it drains", lambda: client.workers()[0].state == "draining")
                assert is_running(pid)
                grid.signal(name, signal.SIGTERM)
            until("it has ended", lambda pid=pid: not is_running(pid))
            grid.forget(name)
            number = job.status().job
            causes = {detail["cause"] for _, detail in events(grid, "lease.returned", number)}
            assert causes == {"drained"}
            status = job.status()
            assert (status.ready, status.lost, status.retried) == (1, 0, 0)
            job.cancel()


def gristmill(grid: Grid, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as an operator types it."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "gristmill.cli.main", *arguments],
        env={**os.environ, "GRISTMILL_ADDRESS": grid.address, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_node_drain_waits_shows_and_says_what_became_of_it(grid_of: Callable[..., Grid]) -> None:
    grid = grid_of(workers=2, ttl_ms=CALM_MS, report_ms=500)
    with Client(grid.address) as client:
        job = post(client, nap, [8.0], tier="job")
        name = started(grid)
        wrong = gristmill(grid, "node", "drain", "worker-O")
        assert wrong.returncode == 2
        assert "worker-0" in wrong.stderr and "gristmill node list" in wrong.stderr
        early = gristmill(grid, "node", "drain", name, "--wait", "--timeout", "10ms")
        assert early.returncode == 1 and "goes on draining" in early.stderr
        assert "draining" in gristmill(grid, "node", "list").stdout
        done = gristmill(grid, "node", "drain", "--wait", "--json", name)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told == {"schema": "gristmill/drain/1", "worker": name, "is_ended": True}
        assert "1 slot of 1 still at work" in done.stderr
        assert values(job) == [8.0]
        assert (job.status().lost, job.status().retried) == (0, 0)
        until("it has ended", grid.dead)
        assert {each.name: each.returncode for each in grid.dead()} == {name: 0}
        grid.restart(name)  # the way back
        rows = {row.name: row.state for row in client.workers()}
        assert rows[name] == "idle"


def test_a_cancel_works_while_its_worker_drains(grid_of: Callable[..., Grid]) -> None:
    grid = grid_of(workers=0, ttl_ms=CALM_MS, report_ms=500)
    with Client(grid.address) as client:
        grid.add_worker("w", "--grace", "600s")
        job = post(client, nap, [600.0, 600.0], tier="job")
        started(grid)
        pid = grid.pid("w")
        client.drain("w")
        until("it drains", lambda: client.workers()[0].state == "draining")
        job.cancel()
        assert job.wait(30).state == "cancelled"
        until("it has ended", lambda: not is_running(pid))
        assert {each.name: each.returncode for each in grid.dead()} == {"w": 0}
        grid.forget("w")


def test_the_grid_heals_when_workers_are_killed_again_and_again(
    grid_of: Callable[..., Grid],
    sized: Callable[[int, int], int],
    figures: Callable[..., None],
) -> None:
    workers, rounds = sized(4, 10), sized(2, 12)
    each = max(1, round(0.3 * workers))
    options = {"worker": ["--spares", "1"]}
    grid = grid_of(workers=workers, options=options)
    kills, batches = 0, 0
    naps = [0.02] * 50 * workers
    with Client(grid.address) as client:
        jobs: list[Job] = []
        for number in range(rounds):
            jobs.append(post(client, nap, naps, tier="job", losses=100))
            started(grid)
            victims = [f"worker-{(number * each + at) % workers}" for at in range(each)]
            for name in victims:
                grid.kill(name)
                kills += 1
            for name in victims:
                grid.restart(name)
        for job in jobs:
            assert values(job, 300) == naps
            account(grid, client, job, len(naps))
            batches += 1
        lost = sum(client.status(job.status().job).lost for job in jobs)
    figures(workers=workers, rounds=rounds, kills=kills, attempts_lost=lost,
            subtasks=batches * len(naps), subtasks_lost=0, billed_twice=0)  # fmt: skip


def test_short_subtasks_never_wait_behind_a_long_one(
    grid_of: Callable[..., Grid], figures: Callable[..., None]
) -> None:
    grid = grid_of(workers=2, ttl_ms=CALM_MS, report_ms=500)

    def work(index: int) -> int:
        import time

        if index == 0:
            time.sleep(600)
        return index

    with Client(grid.address) as client:
        job = post(client, work, list(range(101)), tier="job")
        # the long one never ends: that all others do is the proof that none is stuck behind it
        until("every short one is done", lambda: job.status().done == 100)
        status = job.status()
        assert (status.leased, status.lost, status.retried) == (1, 0, 0)
        rows = client.subtasks(status.job, limit=200, state="done")
        assert [row.index for row in rows] == list(range(1, 101))
        # and of two jobs: the long ones of one leave the slots to the short ones of the other
        other = post(client, work, list(range(1, 101)), tier="job")
        assert values(other) == list(range(1, 101))
        job.cancel()
        assert job.wait(30).state == "failed" or job.status().cancelled == 1
    figures(shorts=200, stuck=0)
