"""Functions in every tier, by a real worker over real sockets."""

import os
from typing import Any

import pytest

from gristmill.wire.limits import RESULT_VALUES_BYTES_MAX
from gristmill.wire.outcome import Outcome

JAILED = ["strict", "job", "batch"]


@pytest.mark.parametrize("tier", ["strict", "job", "batch", "trusted"])
def test_values_and_an_exception_come_back_with_their_indices(pair: Any, tier: str) -> None:
    def halve(x: int) -> float:
        return 12 / x

    pair.run_function(halve, [1, 2, 0, 4], tier=tier)

    peer = pair.peer
    assert peer.values() == {0: 12.0, 1: 6.0, 3: 3.0}
    assert peer.outcomes()[2] is Outcome.ERROR
    failure = peer.failures()[2]
    assert (failure.kind, failure.message) == ("ZeroDivisionError", "division by zero")
    assert "halve" in failure.traceback and "runners" not in failure.traceback
    assert all(result.head.metering for result in peer.results)


@pytest.mark.parametrize("tier", JAILED)
def test_a_jail_shows_nothing_of_the_host(pair: Any, tier: str) -> None:
    def look(path: str) -> list[bool]:
        import os

        return [os.path.exists(path), os.path.exists("/etc/shadow"), "SECRET" in os.environ]

    pair.run_function(look, [str(pair.worker.state)], tier=tier)

    assert pair.peer.values() == {0: [False, False, False]}


def test_a_lease_of_many_runs_is_cut_into_results_that_fit(pair: Any) -> None:
    job = pair.next_job()
    pair.peer.open_function(job, lambda x: bytes(x), tier="batch")
    pair.peer.lease(job, [100_000] * 40, runs=[(3, 10), (20, 15)])
    pair.pump(lambda: len(pair.peer.outcomes()) == 25)

    assert set(pair.peer.values()) == {*range(3, 13), *range(20, 35)}
    assert all(len(value) == 100_000 for value in pair.peer.values().values())
    assert len(pair.peer.results) > 4
    assert all(len(result.frames[0]) <= RESULT_VALUES_BYTES_MAX for result in pair.peer.results)


def test_a_star_job_spreads_its_arguments(pair: Any) -> None:
    pair.run_function(lambda a, b: a - b, [(5, 3), (1, 1)], tier="job", is_star=True)

    assert pair.peer.values() == {0: 2, 1: 0}


@pytest.mark.parametrize("tier", ["job", "batch"])
def test_objects_come_back_pickled_and_only_where_that_is_allowed(pair: Any, tier: str) -> None:
    pair.run_function(lambda x: {x, x + 1}, [1, 2], tier=tier)
    assert pair.peer.values() == {0: {1, 2}, 1: {2, 3}}
    assert {result.head.codec for result in pair.peer.results} == {"p"}

    pair.peer.forget()
    pair.run_function(lambda x: {x} if x else [x], [0, 7], tier=tier, results="safe")
    assert pair.peer.values() == {0: [0]}
    assert pair.peer.outcomes()[1] is Outcome.ENCODING
    assert "set" in pair.peer.failures()[1].message


@pytest.mark.parametrize("tier", ["job", "batch"])
def test_a_function_that_cannot_be_loaded_fails_every_subtask_with_the_reason(
    pair: Any, tier: str
) -> None:
    pair.run_function(b"\x80\x05cno_such_module\nrun\n.", [1, 2, 3], tier=tier)

    assert set(pair.peer.outcomes().values()) == {Outcome.ERROR}
    assert len(pair.peer.outcomes()) == 3
    assert "no_such_module" in pair.peer.failures()[0].message
    assert "environment" in pair.peer.failures()[0].traceback


@pytest.mark.parametrize("tier", ["job", "batch"])
def test_output_of_subtasks_is_kept(pair: Any, tier: str) -> None:
    def talk(x: int) -> int:
        import sys

        print("out", x)
        print("err", x, file=sys.stderr)
        return x

    pair.run_function(talk, [1, 2], tier=tier)

    logs = [log for result in pair.peer.results for log in result.logs]
    assert b"".join(log.stdout for log in logs) == b"out 1\nout 2\n"
    assert b"".join(log.stderr for log in logs) == b"err 1\nerr 2\n"
    if tier == "job":
        assert [log.count for log in logs] == [1, 1]


@pytest.mark.parametrize("way", ["quick", "slow"])
def test_a_subtask_that_shuts_scratch_shuts_it_for_itself_only(pair: Any, way: str) -> None:
    def shut(x: int) -> list[str]:
        import os

        if way == "slow":
            print("output is not taken the quick way")
        found = os.listdir("/tmp") + os.listdir("/dev/shm")
        for folder in ("/tmp", "/dev/shm"):
            with open(f"{folder}/{x}", "w"):
                os.chmod(folder, (0, 0o300, 0o500)[x])
        return found

    pair.run_function(shut, [0, 1, 2, 0, 2, 1], tier="job")

    found = list(pair.peer.values().values())
    assert "work" in found[0] and not {"0", "1", "2"} & set(found[0])
    assert found == found[:1] * 6


def test_nothing_of_a_subtask_is_left_for_the_next(pair: Any) -> None:
    def leave(x: int) -> list[str]:
        import os
        import subprocess

        found = sorted(os.listdir("/tmp")) + sorted(os.listdir("."))
        with open("/tmp/left", "w"), open("here", "w"):
            subprocess.Popen(["/bin/sleep", "60"], start_new_session=True)
        others = [name for name in os.listdir("/proc") if name.isdigit()]
        return [*found, str(len(others))]

    pair.run_function(leave, [0, 1, 2], tier="job")

    first = pair.peer.values()[0]
    assert pair.peer.values() == {0: first, 1: first, 2: first}


def test_a_child_cannot_speak_for_the_slot_or_read_it(pair: Any) -> None:
    def pry(x: int) -> list[str]:
        import os

        seen = []
        for path in ("/proc/1/mem", "/proc/1/fd", "/proc/1/environ"):
            try:
                if path.endswith("fd"):
                    os.listdir(path)
                else:
                    open(path, "rb").close()
                seen.append(path)
            except OSError:
                pass
        open_fds = []
        for fd in range(3, 64):
            try:
                os.fstat(fd)
                open_fds.append(str(fd))
            except OSError:
                pass
        return seen + open_fds

    pair.run_function(pry, [0], tier="job")

    assert pair.peer.values() == {0: ["3", "4"]}  # its own two ways to reply, nothing else


def test_what_a_child_does_to_its_pipes_ends_with_it(pair: Any) -> None:
    """The pipes serve one child after another; flags, leftovers and daemons do not."""

    def work(x: int) -> Any:
        import fcntl
        import os
        import sys
        import time

        if x % 2:
            flags = [fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK for fd in (1, 2, 3, 4)]
            print("mine", x)
            return [*flags, "x" * 50_000]
        for fd in (1, 2, 3, 4):
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)
        if os.fork() == 0:
            os.setsid()
            while True:  # slowly: neither a full pipe nor a passed limit is meant here
                for fd in (1, 2, 3, 4):
                    os.write(fd, b"forged")
                time.sleep(0.002)
        os.write(3, b"junk")
        os.write(4, b"junk")
        sys.stdout.write("unfinished")
        sys.stdout.flush()
        os._exit(x)

    pair.run_function(work, [0, 1, 2, 3, 4, 5], tier="job")

    assert pair.peer.values() == {x: [0, 0, 0, 0, "x" * 50_000] for x in (1, 3, 5)}
    ends = pair.peer.outcomes()
    bad = {Outcome.ERROR, Outcome.EXIT, Outcome.ENCODING}  # by how much of a reply was forged
    assert {ends[x] for x in (0, 2, 4)} <= bad
    said = {
        result.head.first + log.offset: log.stdout
        for result in pair.peer.results
        for log in result.logs
    }
    assert [said[x] for x in (1, 3, 5)] == [b"mine 1\n", b"mine 3\n", b"mine 5\n"]


def test_a_subtask_that_runs_long_does_not_hold_those_before_it(pair: Any) -> None:
    def work(x: int) -> int:
        import time

        time.sleep(60 * (x == 3))
        return x

    job = pair.next_job()
    pair.peer.open_function(job, work, tier="job", limits={"wall_ms": 1500})
    pair.peer.lease(job, [0, 1, 2, 3], runs=[(0, 4)])

    pair.pump(lambda: len(pair.peer.outcomes()) >= 3)
    assert set(pair.peer.outcomes()) == {0, 1, 2}
    pair.pump(lambda: len(pair.peer.outcomes()) == 4)
    assert pair.peer.values() == {0: 0, 1: 1, 2: 2}
    assert pair.peer.outcomes()[3] is Outcome.TIME


def test_a_child_has_threads_locks_and_forks_as_ever(pair: Any) -> None:
    """Though the slot's own fork goes without their hooks (lean.py)."""

    def work(x: int) -> list[Any]:
        import logging
        import os
        import random
        import threading

        ran = []
        thread = threading.Thread(target=lambda: ran.append(threading.current_thread().name))
        thread.start()
        thread.join()
        logging.getLogger("x").warning("hello")
        with threading.Lock():
            pid = os.fork()
        if pid == 0:
            threading._active_limbo_lock.acquire()  # type: ignore[attr-defined]
            os._exit(threading.active_count())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        is_main = threading.current_thread() is threading.main_thread()
        return [len(ran), status, is_main, threading.active_count(), random.random()]

    pair.run_function(work, [0, 1, 2], tier="job")

    found = pair.peer.values()
    assert [found[x][:4] for x in range(3)] == [[1, 1, True, 1]] * 3
    assert len({found[x][4] for x in range(3)}) == 3


def test_a_child_cannot_write_the_page_that_it_is_watched_by(pair: Any) -> None:
    def forge(x: int) -> int:
        import sys

        frame = sys._getframe()
        while "_page" not in vars(frame.f_locals.get("self", sys.modules["sys"])):
            frame = frame.f_back
        if x == 0:
            frame.f_locals["self"]._page.words[2] = 77
        return x

    pair.run_function(forge, [0, 1], tier="job")

    assert pair.peer.outcomes() == {0: Outcome.SIGNAL, 1: Outcome.OK}
    assert pair.peer.failures()[0].signal == 11


def test_a_child_cannot_end_its_slot_by_signals(pair: Any) -> None:
    def shoot(x: int) -> int:
        import os
        import signal

        for number in range(1, signal.NSIG):
            try:
                os.kill(1, number)
            except OSError:
                pass
        return x

    pair.run_function(shoot, [0, 1, 2], tier="job")

    assert pair.peer.values() == {0: 0, 1: 1, 2: 2}
    assert pair.peer.returned == []


def test_an_errno_names_the_wall_that_was_hit(pair: Any) -> None:
    def hit(what: str) -> None:
        import socket
        import subprocess

        if what == "net":
            socket.create_connection(("192.0.2.1", 9), 1)
        elif what == "fs":
            open("/usr/x", "w")
        elif what == "fill":
            with open("/tmp/big", "wb") as file:
                while True:
                    file.write(bytes(1 << 20))
        else:
            subprocess.run(["/no/such/program"])

    pair.run_function(
        hit, ["net", "fs", "fill", "none"], tier="job", limits={"scratch_bytes": 8 << 20}
    )

    outcomes = pair.peer.outcomes()
    assert outcomes[0] is Outcome.NET
    assert outcomes[1] is Outcome.FS
    assert outcomes[2] is Outcome.FS
    assert outcomes[3] is Outcome.ERROR


def test_the_tier_trusted_really_has_no_jail(pair: Any) -> None:
    pair.run_function(lambda x: __import__("os").getpid(), [0], tier="trusted")

    assert "tier 'trusted' is on" in pair.worker.text()
    assert "\x1b" not in pair.worker.text(), "a log is no terminal"

    assert pair.peer.values()[0] > 1
    assert os.path.exists(f"/proc/{pair.peer.values()[0]}")
    assert "no jail at all" in pair.worker.text()


def test_lone_exits_are_told_from_returns(pair: Any) -> None:
    def leave(x: int) -> int:
        import os
        import sys

        if x == 0:
            os._exit(3)
        if x == 1:
            sys.exit("by exception")
        return x

    pair.run_function(leave, [0, 1, 2], tier="job")

    assert pair.peer.outcomes() == {0: Outcome.EXIT, 1: Outcome.ERROR, 2: Outcome.OK}
    assert pair.peer.failures()[0].exit_code == 3
    assert pair.peer.failures()[1].kind == "SystemExit"


def test_an_exit_in_tier_batch_costs_its_subtask_and_gives_back_the_rest(pair: Any) -> None:
    pair.run_function(
        lambda x: __import__("os")._exit(0) if x == 2 else x, [0, 1, 2, 3, 4], tier="batch"
    )

    assert pair.peer.outcomes()[2] is Outcome.EXIT
    told = {*pair.peer.values(), *pair.peer.returned_indices(), 2}
    assert told == {0, 1, 2, 3, 4}
    assert {each.cause for each in pair.peer.returned} == {"jail"}


def test_numpy_rows_are_inputs(pair: Any) -> None:
    import struct

    import msgspec

    head = msgspec.msgpack.encode(["<f8", [2]])
    frame = struct.pack("<I", len(head)) + head + struct.pack("<4d", 1, 2, 3, 4)
    job = pair.next_job()
    pair.peer.open_function(job, lambda row: float(row.sum()), tier="batch")
    pair.peer.lease(job, [0, 0], packed=("r", frame))
    pair.all_told(2)

    assert pair.peer.values() == {0: 3.0, 1: 7.0}


def test_a_range_parcel_is_cut_where_the_lease_is(pair: Any) -> None:
    from gristmill.wire.values import pack_range

    job = pair.next_job()
    pair.peer.open_function(job, lambda x: x, tier="batch")
    pair.peer.lease(job, [0] * 1000, runs=[(10, 2), (998, 2)], packed=pack_range(5, 3))
    pair.all_told(4)

    assert pair.peer.values() == {10: 35, 11: 38, 998: 2999, 999: 3002}


def test_output_in_batch_lands_in_the_result_of_the_subtasks_that_wrote_it(pair: Any) -> None:
    def say(x: int) -> int:
        import os

        print("out", x)
        os.system(f"echo child {x} >&2")  # nothing that Python could count
        return x

    job = pair.next_job()
    pair.peer.open_function(job, say, tier="batch")
    for first in range(6):
        pair.peer.lease(job, [first], first=first)
    pair.peer.lease(job, list(range(6, 12)), first=6)
    pair.all_told(12)

    for result in pair.peer.results:
        (log,) = result.logs
        indices = list(result.outcomes)
        assert (log.offset, log.count) == (0, len(indices))
        assert log.stdout.decode() == "".join(f"out {index}\n" for index in indices)
        assert sorted(log.stderr.decode().splitlines()) == sorted(f"child {i}" for i in indices)


@pytest.mark.parametrize("results", ["any", "safe"])
@pytest.mark.parametrize("tier", ["strict", "job", "batch"])
def test_arrays_travel_as_rows(pair: Any, tier: str, results: Any) -> None:
    from gristmill.wire.values import split_rows

    def corner(x: int) -> Any:
        import numpy

        return numpy.arange(12, dtype="f4").reshape(3, 4).T[:x]

    pair.run_function(corner, [2, 2], tier=tier, results=results)

    assert pair.peer.outcomes() == {0: Outcome.OK, 1: Outcome.OK}, pair.peer.failures()
    count = 0
    for result in pair.peer.results:
        assert result.head.codec == "r"
        dtype, shape, raw = split_rows(result.frames[0])
        assert (dtype, shape) == ("<f4", (2, 3))
        assert raw.nbytes == 24 * result.head.count
        assert raw.cast("f")[:6].tolist() == [0, 4, 8, 1, 5, 9]
        count += result.head.count
    assert count == 2


def test_a_slot_imports_no_numpy_by_itself(pair: Any) -> None:
    def loaded(x: int) -> bool:
        import sys

        return "numpy" in sys.modules

    pair.run_function(loaded, [0], tier="batch")

    assert pair.peer.values() == {0: False}


def test_numpy_scalars_are_pickles_and_so_refused_where_those_are(pair: Any) -> None:
    def one(x: int) -> Any:
        import numpy

        return numpy.float32(x)

    pair.run_function(one, [1], tier="batch")
    assert pair.peer.results[0].head.codec == "p"
    pair.peer.forget()
    pair.run_function(one, [1], tier="batch", results="safe")
    assert pair.peer.outcomes() == {0: Outcome.ENCODING}
