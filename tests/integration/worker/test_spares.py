"""Spare jails: taken by a job of their limits, made again, gone with the worker."""

import contextlib
from collections.abc import Callable
from typing import Any

from gristmill.sandbox.interpreter import find_interpreter
from gristmill.wire.spec import Command


def test_jobs_of_other_limits_and_pythons_get_jails_of_their_own(start: Any) -> None:
    def where(x: int) -> list[object]:
        import os

        return [os.getpid(), sorted(os.listdir("/tmp"))]

    # A Python below /tmp, as in a checkout there, is mounted at its own path.
    targets = [bind.target.split("/") for bind in find_interpreter().binds]
    seen = sorted({"work", *(parts[2] for parts in targets if parts[1] == "tmp")})

    pair = start("--spares", "1").greet()
    for number, memory in enumerate([1 << 30, 1 << 30, 64 << 20, 1 << 30]):
        pair.peer.forget()
        pair.run_function(where, [0], tier="batch", limits={"memory_bytes": memory})
        assert pair.peer.values() == {0: [1, seen]}, number
        assert pair.peer.results[0].head.cpu_us < 500_000, "the start is not on the bill"
        pair.peer.order(close=[pair.job])

    def eat(x: int) -> int:
        return len(bytearray(b"x") * (x << 20))

    pair.peer.forget()
    pair.run_function(eat, [100], tier="job", limits={"memory_bytes": 64 << 20})
    assert pair.peer.outcomes()[0].name == "OOM", "a spare of a larger limit was not taken"


def test_spares_end_with_their_worker(start: Any) -> None:
    from sys import modules

    def is_warm(x: int) -> bool:  # process 1 of a mother's child has one argument more
        with open("/proc/1/cmdline", "rb") as file:
            return b"program" in file.read()

    pair = start("--spares", "2", "--slots", "2").greet()
    below = modules["gristmill_tests_worker_peer"].descendants
    pair.pump(lambda: len(_slots(below(pair.worker.pid))) >= 4)  # nsjail and Python of each
    _end(pair, below)


def test_spares_fit_both_kinds_of_jobs(start: Any) -> None:
    from sys import modules

    pair = start("--spares", "1").greet()
    below = modules["gristmill_tests_worker_peer"].descendants

    def is_another(spare: dict[int, bytes]) -> bool:
        now = _kinds(below(pair.worker.pid))
        return list(now.values()) == [b"function"] and not spare.keys() & now.keys()

    for _ in range(2):
        pair.pump(lambda: len(_kinds(below(pair.worker.pid))) == 1)
        spare = _kinds(below(pair.worker.pid))
        pair.peer.forget()
        pair.run_command(Command(["/bin/echo", "{}"]), ["x"], tier="job")
        assert pair.peer.values()[0]["stdout"] == b"x\n"
        pair.peer.order(close=[pair.job])
        pair.pump(lambda spare=spare: is_another(spare))


def test_each_subtask_of_tier_strict_has_a_warm_jail_once_its_jobs_mother_is_ready(
    start: Any,
) -> None:
    from sys import modules

    def is_warm(x: int) -> bool:  # process 1 of a mother's child has one argument more
        with open("/proc/1/cmdline", "rb") as file:
            return b"program" in file.read()

    pair = start("--spares", "2", "--slots", "2").greet()
    below = modules["gristmill_tests_worker_peer"].descendants

    def mothers() -> dict[int, bytes]:
        """Those that are not a child of another one."""
        found = _kinds(below(pair.worker.pid), is_mother=True)
        return {pid: kind for pid, kind in found.items() if _parent(pid) not in found}

    job = pair.next_job()
    pair.peer.open_function(job, is_warm, tier="strict")
    warm: list[bool] = []
    for _ in range(100):
        pair.peer.forget()
        pair.peer.lease(job, [1, 2])
        pair.all_told(2)
        warm = list(pair.peer.values().values())
        if all(warm):
            break
    assert warm == [True, True]
    first = mothers()
    pair.pump(lambda: len(mothers()) == 2)  # the job's, and one for the next job
    pair.peer.order(close=[job])
    pair.pump(lambda: len(mothers()) == 1)
    (spare,) = mothers()

    pair.peer.forget()
    job = pair.next_job()
    pair.pump(lambda: len(_kinds(below(pair.worker.pid), is_mother=True)) == 1)
    pair.peer.open_function(job, is_warm, tier="strict")
    pair.peer.lease(job, list(range(20)))
    pair.all_told(20)
    assert sum(pair.peer.values().values()) >= 10, "the mother was there before the job"
    pair.pump(lambda: len(mothers()) == 2)
    assert spare in mothers() and first.keys() != mothers().keys()

    _end(pair, below)


def test_a_strict_job_goes_on_when_its_mother_is_killed_or_stands_still(start: Any) -> None:
    import os
    import signal
    from sys import modules

    pair = start("--spares", "1").greet()
    below = modules["gristmill_tests_worker_peer"].descendants
    job = pair.next_job()
    pair.peer.open_function(job, lambda x: x, tier="strict")
    hit = 0
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT):
        left = list(range(8))
        for _ in range(10):  # what was lost with a jail is given out again, as a broker does
            pair.peer.forget()
            pair.peer.lease(job, left)
            pair.all_told(len(left))
            assert {word.name for word in pair.peer.outcomes().values()} <= {"OK", "LOST"}
            left = left[len(pair.peer.values()) :]
            if not left:
                break
        assert not left
        for pid in _kinds(below(pair.worker.pid), is_mother=True):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                hit += 1
    assert hit


def _end(pair: Any, below: Callable[[int], list[int]]) -> None:
    """The worker ends well, and nothing of it is left."""
    left = _slots(below(pair.worker.pid))
    pair.worker.terminate()
    pair.peer.pump(lambda: pair.worker.poll() is not None)
    assert pair.worker.returncode == 0 and left
    pair.peer.pump(lambda: not _slots(left))


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def _kinds(pids: list[int], is_mother: bool = False) -> dict[int, bytes]:
    """Slots, without the nsjail around each: what they were made for. Or mothers."""
    found = {}
    for pid in _slots(pids):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if len(words) > 1 and b"--" not in words:  # it may have ended since
            if is_mother == words[-2].startswith(b"{"):
                found[pid] = words[-2 - is_mother]
    return found


def _slots(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if b"boot.py" in file.read():
                    found.append(pid)
        except OSError:
            continue
    return found
