"""Jails made ahead, warm or cold: taken by a job of their limits, made again, gone at the end."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from process_rig import descendants, is_mother

from gristmill.sandbox.interpreter import find_interpreter
from gristmill.wire.spec import Command, Limits

#: Without cgroups nothing would meter a warm jail, so jails are cold.
WARM_AND_COLD = pytest.mark.parametrize("options", [(), ("--no-cgroups",)], ids=["warm", "cold"])


def _warmth() -> Callable[[int], bool]:
    """A function that tells whether its jail is warm; made here, so that it travels by value."""

    def is_warm(x: int) -> bool:  # process 1 of a mother's child has one argument more
        with open("/proc/1/cmdline", "rb") as file:
            return b"program" in file.read()

    return is_warm


@WARM_AND_COLD
def test_jobs_of_other_limits_and_pythons_get_jails_of_their_own(
    start: Any, options: tuple[str, ...]
) -> None:
    def where(x: int) -> list[object]:
        import os

        return [os.getpid(), sorted(os.listdir("/tmp"))]

    # A Python below /tmp, as in a checkout there, is mounted at its own path.
    targets = [bind.target.split("/") for bind in find_interpreter().binds]
    seen = sorted({"work", *(parts[2] for parts in targets if parts[1] == "tmp")})

    pair = start("--spares", "1", *options).greet()
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


@WARM_AND_COLD
def test_spares_end_with_their_worker(start: Any, options: tuple[str, ...]) -> None:
    pair = start("--spares", "2", "--slots", "2", *options).greet()
    pair.pump(lambda: len(_spares(descendants(pair.worker.pid))) == 2)
    _end(pair)


@WARM_AND_COLD
def test_spares_fit_both_kinds_of_jobs(start: Any, options: tuple[str, ...]) -> None:
    pair = start("--spares", "1", *options).greet()

    spare = _settled(pair, 1)
    for _ in range(2):
        pair.peer.forget()
        pair.run_command(Command(["/bin/echo", "{}"]), ["x"], tier="job")
        assert pair.peer.values()[0]["stdout"] == b"x\n"
        pair.peer.order(close=[pair.job])
        before, spare = spare, _settled(pair, 1 if options else 2)  # hers, and one of nobody's
        assert len(before.keys() - spare.keys()) == 1, "one was taken"
        assert set(spare.values()) == {b"function"}


def test_jails_of_one_tenant_come_from_one_mother_and_of_another_from_another(start: Any) -> None:
    pair = start("--spares", "2", "--slots", "2", "--parked", "1").greet()

    def mothers() -> set[int]:
        return set(_mothers(descendants(pair.worker.pid)))

    def run(tenant: str) -> None:
        """A job to its end; its jail is warm."""
        pair.peer.forget()
        pair.run_function(_warmth(), [0], tier="batch", tenant=tenant)
        assert pair.peer.values() == {0: True}
        pair.peer.order(close=[pair.job])

    pair.pump(lambda: len(_spares(descendants(pair.worker.pid))) == 2)
    (hers,) = mothers()
    run("ada")
    pair.pump(lambda: len(mothers()) == 2)  # ada's, and one that is nobody's
    (nobodys,) = mothers() - {hers}
    for _ in range(3):
        pair.pump(lambda: len(_spares(descendants(pair.worker.pid))) == 4)
        run("ada")
        assert mothers() == {hers, nobodys}, "her jobs share her mother"
    run("bob")
    # Bob has the one that was nobody's. One idle mother is kept: his, which was used last.
    pair.pump(lambda: len(mothers()) == 2 and hers not in mothers())
    assert nobodys in mothers()
    _end(pair)


def test_a_mother_that_a_command_asked_for_first_will_do_for_functions(start: Any) -> None:
    def site(x: int) -> bool:
        import sys

        return not sys.flags.no_site

    pair = start("--spares", "1").greet()
    limits = {"memory_bytes": 96 << 20}  # nobody has a mother for it
    pair.run_command(Command(["/bin/true"]), ["x"], tier="job", limits=limits)
    pair.peer.order(close=[pair.job])
    _settled(pair, 2)
    for function in (_warmth(), site):
        pair.peer.forget()
        pair.run_function(function, [0], tier="job", limits=limits)
        pair.peer.order(close=[pair.job])
        assert pair.peer.values() == {0: True}


def test_jobs_of_two_kinds_that_alternate_keep_their_mothers(start: Any) -> None:
    pair = start("--spares", "1").greet()
    seen: list[set[int]] = []
    for number in range(8):
        # the one that was used last has a jail ahead, and so has the one that is nobody's
        least = min(2, number + 1)
        pair.pump(lambda least=least: len(_spares(descendants(pair.worker.pid))) >= least)
        pair.peer.forget()
        limits = {"memory_bytes": (64 << 20) << (number % 2)}
        pair.run_function(_warmth(), [0], tier="batch", limits=limits)
        pair.peer.order(close=[pair.job])
        if number >= 4:  # both kinds have one by now
            assert pair.peer.values() == {0: True}
            seen.append(set(_mothers(descendants(pair.worker.pid))))
    assert len(seen[0]) == 3 and seen == [seen[0]] * 4


@WARM_AND_COLD
def test_a_spare_made_for_another_tier_allows_no_process_more(
    start: Any, options: tuple[str, ...]
) -> None:
    """Tier ``batch`` has a thread of ours beside the subtask, tier ``job`` has not."""

    def count_forks(x: int) -> int:
        import os

        made = 0
        while made < 1_000:
            try:
                pid = os.fork()
            except OSError:
                return made
            if pid == 0:
                os.closerange(0, 1_000)
                while True:
                    __import__("time").sleep(60)
            made += 1
        return made

    pair = start("--spares", "1", "--parked", "0", *options).greet()
    counted = []
    for number, tier in enumerate(("job", "batch", "job")):
        _settled(pair, 1 if options or number == 0 else 2)
        pair.peer.forget()
        function = count_forks if tier == "job" else _warmth()
        pair.run_function(function, [0], tier=tier)
        counted += pair.peer.values().values() if tier == "job" else []
        pair.peer.order(close=[pair.job])
    pids_max = Limits().pids_max
    assert counted == [pids_max - 1] * 2


def test_each_subtask_of_tier_strict_has_a_warm_jail_once_its_jobs_mother_is_ready(
    start: Any,
) -> None:
    pair = start("--spares", "2", "--slots", "2").greet()

    def mothers() -> dict[int, bytes]:
        return _mothers(descendants(pair.worker.pid))

    job = pair.next_job()
    pair.peer.open_function(job, _warmth(), tier="strict")
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
    pair.pump(lambda: len(_spares(descendants(pair.worker.pid))) == 2)
    pair.peer.open_function(job, _warmth(), tier="strict")
    pair.peer.lease(job, list(range(20)))
    pair.all_told(20)
    assert sum(pair.peer.values().values()) >= 10, "the mother was there before the job"
    pair.pump(lambda: len(mothers()) == 2)
    assert spare in mothers() and first.keys() != mothers().keys()

    _end(pair)


@pytest.mark.parametrize("tier", ["strict", "job", "batch"])
def test_a_job_goes_on_when_its_mother_is_killed_or_stands_still(start: Any, tier: str) -> None:
    import os
    import signal

    pair = start("--spares", "1").greet()
    job = pair.next_job()
    _settled(pair, 1)
    pair.peer.open_function(job, lambda x: x, tier=tier)
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
        for pid in _mothers(descendants(pair.worker.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                hit += 1
    assert hit


def _end(pair: Any) -> None:
    """The worker ends well, and nothing of it is left."""
    left = _slots(descendants(pair.worker.pid))
    pair.worker.terminate()
    pair.peer.pump(lambda: pair.worker.poll() is not None)
    assert pair.worker.returncode == 0 and left
    pair.peer.pump(lambda: not _slots(left))


def _settled(pair: Any, count: int) -> dict[int, bytes]:
    """The spares, once they are so many and the same for a while: one made for trial soon goes."""
    seen: list[dict[int, bytes]] = []

    def are_settled() -> bool:
        seen.append(_spares(descendants(pair.worker.pid)))
        return len(seen[-1]) == count and len(seen) > 20 and seen[-20:] == [seen[-1]] * 20

    pair.pump(are_settled)
    return seen[-1]


def _mothers(pids: list[int]) -> dict[int, bytes]:
    return _kinds(pids, lambda pid, words: words[-1].startswith(b"{") and is_mother(pid))


def _spares(pids: list[int]) -> dict[int, bytes]:
    """Jails that are up, warm or cold: of the tests that ask, nothing runs in them."""
    return _kinds(pids, lambda pid, _: not is_mother(pid))


def _kinds(pids: list[int], fits: Callable[[int, list[bytes]], bool]) -> dict[int, bytes]:
    """Processes that run boot.py, without the nsjail around each: what they were made for."""
    found = {}
    for pid in _slots(pids):
        with contextlib.suppress(OSError):  # it may have ended since
            words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            if len(words) > 1 and b"--" not in words and fits(pid, words):
                found[pid] = words[-2] if words[-1].startswith(b"{") else words[-1]
    return found


def _slots(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if b"boot.py" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found
