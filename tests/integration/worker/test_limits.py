"""Every limit, who keeps it, and what is told of it."""

from typing import Any

import pytest

from gristmill.wire.outcome import Outcome


def test_a_busy_loop_in_tier_batch_ends_at_its_wall_limit(pair: Any) -> None:
    def spin(x: int) -> int:
        while x == 2:
            pass
        return x

    pair.run_function(spin, [0, 1, 2, 3], tier="batch", limits={"wall_ms": 400})

    peer = pair.peer
    assert peer.outcomes()[2] is Outcome.TIME
    assert peer.failures()[2].limit == 400
    assert peer.failures()[2].peak >= 400
    assert 3 in peer.returned_indices()
    assert peer.results[-1].head.cpu_us > 0


@pytest.mark.parametrize("tier", ["job", "strict"])
def test_a_sleep_in_a_child_ends_at_its_wall_limit_and_the_rest_goes_on(
    pair: Any, tier: str
) -> None:
    def sleep(x: int) -> int:
        import time

        time.sleep(60 if x == 1 else 0)
        return x

    pair.run_function(sleep, [0, 1, 2], tier=tier, limits={"wall_ms": 400})

    assert pair.peer.outcomes() == {0: Outcome.OK, 1: Outcome.TIME, 2: Outcome.OK}
    assert pair.peer.returned == []


def is_by_cgroup(pair: Any) -> bool:
    return bool(pair.peer.hellos[-1].metering == "cgroup")


def test_memory_in_tier_job_costs_the_subtask_and_names_limit_and_peak(pair: Any) -> None:
    limit = 64 << 20

    def eat(x: int) -> int:
        return len(bytearray(b"x") * (x << 20))

    pair.run_function(eat, [1, 500, 2], tier="job", limits={"memory_bytes": limit})

    peer = pair.peer
    assert peer.outcomes() == {0: Outcome.OK, 1: Outcome.OOM, 2: Outcome.OK}
    failure = peer.failures()[1]
    assert failure.limit == limit
    # Without a cgroup an allocation past the limit is refused, not made: no use of it shows.
    floor = 0.8 if is_by_cgroup(pair) else 0.0
    assert limit * floor < failure.peak <= limit
    assert failure.suggested > limit


def test_memory_in_tier_batch_ends_the_jail_where_the_kernel_counts_it(pair: Any) -> None:
    def eat(x: int) -> int:
        return len(bytearray(b"x") * (x << 20))

    pair.run_function(eat, [500, 1], tier="batch", limits={"memory_bytes": 64 << 20})

    assert pair.peer.outcomes()[0] is Outcome.OOM
    assert pair.peer.failures()[0].limit == 64 << 20
    if is_by_cgroup(pair):
        assert pair.peer.returned_indices() == [1]
    else:  # the allocation is refused: a MemoryError, and the jail lives
        assert pair.peer.outcomes()[1] is Outcome.OK


@pytest.mark.parametrize("tier", ["job", "batch"])
def test_a_cpu_limit_ends_the_subtask(pair: Any, tier: str) -> None:
    def spin(x: int) -> None:
        while True:
            pass

    pair.run_function(spin, [0], tier=tier, limits={"cpu_ms": 1_000, "wall_ms": 30_000})

    assert pair.peer.outcomes() == {0: Outcome.CPU}
    assert pair.peer.failures()[0].limit == 1_000


@pytest.mark.parametrize("tier", ["job", "batch"])
def test_a_flood_of_output_is_cut_and_ends_the_subtask(pair: Any, tier: str) -> None:
    def flood(x: int) -> int:
        import sys

        while x == 0:
            sys.stdout.write("y" * 65536)
        return x

    pair.run_function(flood, [0, 1], tier=tier, limits={"output_bytes": 4096})

    peer = pair.peer
    assert peer.outcomes()[0] is Outcome.OUTPUT
    assert peer.failures()[0].limit == 4096
    (log,) = [log for result in peer.results for log in result.logs]
    assert log.is_cut
    assert log.stdout == b"y" * 4096


def test_too_many_processes_are_told_as_such(pair: Any) -> None:
    def breed(x: int) -> None:
        import os
        import time

        for _ in range(50):
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)

    pair.run_function(breed, [0, 0], tier="job", limits={"pids_max": 10})

    assert set(pair.peer.outcomes().values()) == {Outcome.PIDS}


def test_a_crash_is_a_signal(pair: Any) -> None:
    def crash(x: int) -> int:
        import os
        import signal

        if x == 0:
            os.kill(os.getpid(), signal.SIGSEGV)
        if x == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    pair.run_function(crash, [0, 1, 2], tier="job")

    assert pair.peer.outcomes() == {0: Outcome.SIGNAL, 1: Outcome.SIGNAL, 2: Outcome.OK}
    assert (pair.peer.failures()[0].signal, pair.peer.failures()[1].signal) == (11, 9)


def test_a_budget_stops_the_subtask_that_spends_it(pair: Any) -> None:
    def spin(x: int) -> None:
        while True:
            pass

    job = pair.next_job()
    pair.peer.open_function(job, spin, tier="batch")
    pair.peer.lease(job, [0, 1], budget=300_000)  # 0.3 s of cpu
    pair.all_told(2)

    assert pair.peer.outcomes() == {0: Outcome.BUDGET}
    assert pair.peer.returned_indices() == [1]
    assert {each.cause for each in pair.peer.returned} == {"stopped"}
    assert pair.peer.results[0].head.cpu_us > 200_000


def test_memory_that_does_not_even_hold_the_function_is_the_jobs_fault(pair: Any) -> None:
    pair.run_function(lambda x: x, [0, 1], tier="batch", limits={"memory_bytes": 8 << 20})

    assert pair.peer.outcomes()[0] is Outcome.OOM
    pair.peer.forget()
    pair.run_function(lambda x: x, [5], tier="batch")
    assert pair.peer.values() == {0: 5}, "the worker goes on"
