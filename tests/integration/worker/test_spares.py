"""Spare jails: taken by a job of their limits, made again, gone with the worker."""

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

    pair = start("--spares", "2", "--slots", "2").greet()
    below = modules["gristmill_tests_worker_peer"].descendants
    pair.pump(lambda: len(_slots(below(pair.worker.pid))) >= 4)  # nsjail and Python of each
    left = _slots(below(pair.worker.pid))
    pair.worker.terminate()
    pair.peer.pump(lambda: pair.worker.poll() is not None)
    assert pair.worker.returncode == 0
    pair.peer.pump(lambda: not _slots(left))


def test_spares_fit_both_kinds_of_jobs_and_are_made_for_commands_where_each_takes_one(
    start: Any,
) -> None:
    from sys import modules

    pair = start("--spares", "1").greet()
    below = modules["gristmill_tests_worker_peer"].descendants

    def is_another(kind: bytes, spare: dict[int, bytes]) -> bool:
        now = _kinds(below(pair.worker.pid))
        return list(now.values()) == [kind] and not spare.keys() & now.keys()

    for tier, kind in (("job", b"function"), ("strict", b"command"), ("job", b"function")):
        pair.pump(lambda: len(_kinds(below(pair.worker.pid))) == 1)
        spare = _kinds(below(pair.worker.pid))
        pair.peer.forget()
        pair.run_command(Command(["/bin/echo", "{}"]), ["x"], tier=tier)
        assert pair.peer.values()[0]["stdout"] == b"x\n"
        pair.peer.order(close=[pair.job])
        pair.pump(lambda kind=kind, spare=spare: is_another(kind, spare))


def _kinds(pids: list[int]) -> dict[int, bytes]:
    """Slots, without the nsjail around each: what they were made for."""
    found = {}
    for pid in _slots(pids):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if len(words) > 1 and b"--" not in words:  # it may have ended since
            found[pid] = words[-2]
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
