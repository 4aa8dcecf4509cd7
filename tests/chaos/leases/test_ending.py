"""What must end ends, alone: cancelled loops that are deaf to signals, and memory hogs."""

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from grid_rig import until
from lease_rig import gone_at_ms, post, settled
from process_rig import descendants, groups_of, is_running, slot_processes

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.command import Command

#: Between a cancel and the last process gone: there is no grace for a jail, it is killed.
GONE_S = 1.0
#: What a busy machine may add to that before this is a failure of ours.
LATE_S = 4.0


def deaf(children: int) -> int:
    """Ignores every signal that can be ignored, forks, and spins in C without giving up the GIL."""
    import signal

    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except OSError:
            pass
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    for _ in range(children):
        if os.fork() == 0:
            os.setsid()
            break
    return pow(7, 10**9, 10 ** (10**6))  # one call of C, for hours


DEAF = "import signal\n" + "\n".join(
    [
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
        "import os",
        "os.fork() or os.setsid()",
        "pow(7, 10**9, 10 ** (10**6))",
    ]
)


def busy(grid: Grid, name: str, processes: int) -> list[int]:
    """Processes of the subtask's jail, once there are as many."""

    def found() -> list[int]:
        for slot in slot_processes(grid.pid(name)):
            below = descendants(slot)
            if len(below) >= processes:
                return [slot, *below]
        return []

    return until("it has forked and spins", found)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["job", "batch", "strict", "command"])
def test_a_cancelled_loop_that_is_deaf_to_signals_is_gone_and_costs_nothing_more(
    grid_of: Callable[..., Grid], kind: str, figures: Callable[..., None]
) -> None:
    grid = grid_of(ttl_ms=30_000, report_ms=500)
    with Client(grid.address) as client:
        work: Any = deaf
        inputs: list[Any] = [2]
        tier = "job" if kind == "command" else kind
        if kind == "command":
            work, inputs = Command([sys.executable, "-c", DEAF]), [""]
        job = post(client, work, inputs, tier=tier)
        below = busy(grid, started_any(grid, kind), 1 if kind == "command" else 2)
        groups = groups_of(below)
        asked_ms = time.time_ns() // 1_000_000
        job.cancel()
        answered_ms = time.time_ns() // 1_000_000
        status = job.wait(30)
        left = [pid for pid in below if is_running(pid)]
        assert left == [], "cancelled is said when it is really gone"
        gone_ms = gone_at_ms(below)
        assert gone_ms - asked_ms < (GONE_S + LATE_S) * 1000
        assert (status.state, status.cancelled, status.done) == ("cancelled", 1, 0)
        until("its cgroup is gone", lambda: not any(group.exists() for group in groups))
        number = status.job
        (bill,) = settled(grid, number)
        most_us = (answered_ms - status.started_ms + 50) * 1000  # clocks count in milliseconds
        assert bill.wall_us <= most_us
        assert bill.cpu_us <= most_us, "one cpu, up to the moment of the cancel"
        assert bill.subtasks == 0
    figures(gone_after_ms=gone_ms - asked_ms)


def started_any(grid: Grid, kind: str) -> str:
    """The grid's only worker."""
    return grid.worker_names[0]


def hog(x: int) -> int:
    """1 takes memory without end; others hold a little and work on."""
    import time

    if x == 1:
        heap = []
        while True:
            heap.append(bytearray(8 << 20))
    kept = bytearray(24 << 20)
    time.sleep(1.0)
    return len(kept)


def one_more_ms(client: Client) -> int:
    """How long one small job takes, from here and back."""
    began = time.monotonic()
    assert list(client.map(abs, [-1])) == [1]
    return round((time.monotonic() - began) * 1000)


@pytest.mark.root
def test_one_hog_and_three_innocents_on_a_full_node(
    grid_of: Callable[..., Grid],
    sized: Callable[[int, int], int],
    figures: Callable[..., None],
) -> None:
    runs = sized(5, 100)
    grid = grid_of(slots=4, ttl_ms=30_000, report_ms=500)
    calm_ms: list[int] = []
    next_ms: list[int] = []
    with Client(grid.address) as client:
        for number in range(runs):
            calm_ms.append(one_more_ms(client))  # what this machine takes for it just now
            order = [0, 0, 0, 0]
            order[number % 4] = 1
            jobs = [post(client, hog, [each], tier="job", memory="96M") for each in order]
            states = [job.wait(60).state for job in jobs]
            assert [state == "failed" for state in states] == [bool(each) for each in order]
            bad = jobs[number % 4].status()
            (row,) = client.subtasks(bad.job)
            assert row.outcome == "oom"
            assert "96" in row.message and "192" in row.message, row.message
            assert row.peak_kib >= 90 << 10
            next_ms.append(one_more_ms(client))
            assert grid.dead() == []
    calm, after = statistics.median(calm_ms), statistics.median(next_ms)
    # Told, not asserted: a starved machine takes seconds to start any jail (docs/testing.md).
    figures(runs=runs, hogs_dead=runs, innocents_dead=0, next_ms=after, calm_ms=calm)
