"""Rows of job lifecycle at the worker: assign, jail, measure, report, store."""

import contextlib
import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable

import pytest
from grid_rig import gristmill, until
from process_rig import descendants, groups_of, inside, is_running, slot_processes

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.errors import (
    CpuLimit,
    NetworkRefused,
    OutOfMemory,
    OutputLimit,
    ProcessLimit,
    ScratchError,
    SetupFailed,
    SyscallRefused,
    TimeLimit,
)


def nap(seconds: float) -> float:
    import time

    time.sleep(seconds)
    return seconds


def test_a05_a_killed_agent_leaves_nothing_and_its_leases_move(
    own_grid: Callable[..., Grid],
) -> None:
    grid = own_grid(workers=2)
    with Client(grid.address) as client:
        stream = client.map(nap, [1.0] * 6, tier="job")
        first = next(stream)
        victim = "worker-0"
        below = until("its jails run", lambda: inside(grid.pid(victim)))
        groups = groups_of(below)
        assert groups or os.geteuid(), "as root each jail has a cgroup of its own"
        grid.kill(victim)
        until("its processes are gone", lambda: not any(map(is_running, below)))
        assert [first, *stream] == [1.0] * 6
        rows = client.subtasks(client.jobs(1)[0].job)
        assert all(row.state == "done" for row in rows)
        until("its cgroups are gone", lambda: not any(group.exists() for group in groups))


def test_a05_a_worker_cut_off_stops_its_own_jails(own_grid: Callable[..., Grid]) -> None:
    grid = own_grid()
    with Client(grid.address) as client:
        stream = client.map(nap, [300.0])
        runner = threaded(lambda: list(stream))
        worker = grid.pid("worker-0")

        def running() -> list[object]:
            readings = [row.reading for row in client.workers() if row.reading]
            return [slot for one in readings for slot in one.slots if slot.subtask >= 0]

        # Not just any jail: spares are up before a job is, and with nothing leased none lapses.
        until("the nap runs", running)
        napping = inside(worker)
        assert napping
        grid.signal("broker", signal.SIGSTOP)  # the worker hears nothing any more
        until("it stopped its jail", lambda: not any(map(is_running, napping)), 30)
        grid.signal("broker", signal.SIGCONT)
        client.cancel(client.jobs(1)[0].job)
        runner()


def threaded(call: Callable[[], object]) -> Callable[[], None]:
    """Runs a call in a thread; the result waits for it."""
    import threading

    def run() -> None:
        try:
            call()
        except Exception:  # a cancelled stream raises; the test looks at the job
            pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return lambda: thread.join(30)


def test_a12_nothing_hides_behind_a_long_subtask_and_a_lost_worker_loses_nothing(
    own_grid: Callable[..., Grid],
) -> None:
    grid = own_grid(workers=2)
    with Client(grid.address) as client:
        inputs = [8.0] + [0.05] * 40
        began = time.monotonic()
        stream = client.map(nap, inputs, ordered=False)
        got = []
        for value in stream:
            got.append(value)
            if len(got) == 40:
                break
        assert 8.0 not in got, "the short ones did not wait for the long one"
        assert time.monotonic() - began < 8.0
        rows = {row.name: row for row in client.workers()}
        assert all(row.busy <= row.slots for row in rows.values())
        grid.kill("worker-1")
        grid.kill("worker-0")
        grid.restart("worker-0")
        assert list(stream) == [8.0]


ATTACKS: dict[str, tuple[Callable[[], object], type[Exception], dict[str, object]]] = {}


def attack(error: type[Exception], **options: object) -> Callable[..., Callable[[], object]]:
    def note(call: Callable[[], object]) -> Callable[[], object]:
        ATTACKS[call.__name__] = (call, error, options)
        return call

    return note


@attack(ProcessLimit, pids=20)
def fork_bomb() -> None:
    import os

    while True:
        os.fork()


@attack(OutOfMemory, memory="128M")
def ten_gibibytes() -> int:
    held = []
    while True:
        held.append(b"x" * (16 << 20))


@attack(OutputLimit, output="1M")
def a_gibibyte_of_stdout() -> None:
    import sys

    for _ in range(1024):
        sys.stdout.write("x" * (1 << 20))


@attack(NetworkRefused)
def connect_out() -> None:
    import socket

    socket.create_connection(("8.8.8.8", 53), timeout=5)


@attack(ScratchError)
def write_outside_scratch() -> None:
    with open("/usr/owned", "w") as file:
        file.write("x")


@attack(SyscallRefused)
def ptrace_the_parent() -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, 1, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


@attack(TimeLimit, timeout=1.0)
def spin_past_the_wall() -> None:
    while True:
        pass


@attack(CpuLimit, cpu_timeout=1.0, timeout=60.0)
def burn_cpu() -> None:
    while True:
        pass


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_a13_each_hostile_subtask_ends_with_its_own_reason(
    name: str, grid: Grid, client: Client
) -> None:
    call, error, options = ATTACKS[name]
    neighbour = client.map(nap, [0.01] * 20)
    hostile = client.with_options(**options).submit(call)  # type: ignore[typeddict-item]
    caught = hostile.exception(timeout=60)
    assert isinstance(caught, error), repr(caught)
    assert list(neighbour) == [0.01] * 20, "a neighbour goes on"
    assert list(client.map(nap, [0.0] * 3)) == [0.0] * 3, "and so do the slots"


def test_a13_a_symlink_out_of_the_jail_is_not_collected(client: Client) -> None:
    script = "ln -s /etc/passwd stolen; ln -s / root; echo fine > good"
    with pytest.raises(ScratchError, match="symbolic link"):
        list(client.run(["sh", "-c", script], files_out=["stolen"]))
    (output,) = client.run(["sh", "-c", script], files_out=["root/etc/passwd"])
    assert not output.files, "a pattern does not go through a link"
    (output,) = client.run(["sh", "-c", script], files_out=["good"])
    assert output.read("good") == b"fine\n"


def test_a13_a_jail_that_cannot_be_set_up_says_why_costs_nothing_and_harms_no_other_job(
    client: Client,
) -> None:
    stream = client.map(nap, [0.0] * 4, environment="/nonexistent/bin/python")
    with pytest.raises(SetupFailed, match="nonexistent"):
        list(stream)
    job = client.jobs(1)[0].job
    client.wait(job, timeout=30)
    assert sum(row.amount_ucredits for row in client.usage(job=job)) == 0
    assert list(client.map(nap, [0.0] * 4)) == [0.0] * 4


def test_a13_a_worker_whose_jails_do_not_start_drains_itself_and_says_why(
    own_grid: Callable[..., Grid],
) -> None:
    grid = own_grid(workers=0)
    with Client(grid.address) as client:
        grid.add_worker("broken")
        # every jail needs the policy: without it nsjail itself refuses, once the worker is up
        (grid.state / "broken" / "jails" / "policy.kafel").unlink()
        jobs = [
            client.post(*client.make_spec(nap, count=1, memory=f"{200 + number}M"), [0.0])
            for number in range(3)  # jails of their own: no spare was started before
        ]
        until("it has drained itself", grid.dead)
        assert {each.name: each.returncode for each in grid.dead()} == {"broken": 78}
        words = grid.log("broken").read_text()
        assert "draining: 3 jails in a row did not start: the jail could not be set up" in words
        assert "policy.kafel" in words, "nsjail's own reason"
        grid.forget("broken")
        grid.add_worker("sound")
        for job in jobs:
            assert list(job.results()) == [0.0]
            status = job.status()
            assert (status.lost, status.retried) == (0, 0), "a drain costs its job nothing"


def test_a14_a_late_result_is_kept_as_superseded_and_shown(own_grid: Callable[..., Grid]) -> None:
    times = {
        "GRISTMILL_BROKER_WORKER_TTL_MS": "2000",
        "GRISTMILL_BROKER_WORKER_REPORT_MS": "200",
    }
    grid = own_grid(workers=1, environment=times)
    with Client(grid.address) as client:
        job = client.post(*client.make_spec(nap, count=1), [1.0])
        until("leased", lambda: job.status().leased == 1)
        agent = grid.pid("worker-0")
        until("its child runs", lambda: any(map(descendants, slot_processes(agent))))
        grid.signal("worker-0", signal.SIGSTOP)  # the agent alone: its jail goes on and ends
        try:
            grid.add_worker("worker-late")
            assert list(job.results()) == [1.0]
        finally:
            grid.signal("worker-0", signal.SIGCONT)
        until("the late result came", lambda: job.status().superseded == 1)
        assert "superseded" in gristmill(grid, "status", job.id).stdout
        row = client.subtasks(job)[0]
        assert (row.attempt, row.state, job.status().done) == (2, "done", 1)
        assert sum(line.subtasks for line in client.usage(job=job)) == 1


def test_a14_what_a_paused_worker_held_runs_elsewhere_and_is_billed_once(
    own_grid: Callable[..., Grid],
) -> None:
    grid = own_grid(workers=1)
    with Client(grid.address) as client:
        stream = client.map(nap, [2.0])
        runner = threaded(lambda: list(stream))
        job = until("it runs", lambda: (client.jobs(1) or [None])[0])
        until("leased", lambda: client.status(job.job).leased == 1)
        frozen = grid.pid("worker-0")
        send([frozen, *descendants(frozen)], signal.SIGSTOP)
        try:
            grid.add_worker("worker-late")
            status = until(
                "done elsewhere",
                lambda: client.status(job.job).state == "done" and client.status(job.job),
            )
        finally:
            send([*descendants(frozen), frozen], signal.SIGCONT)
        runner()
        row = client.subtasks(job.job)[0]
        assert (row.attempt, row.state, status.done) == (2, "done", 1)
        until("it rejoined", lambda: sum(r.state == "idle" for r in client.workers()) == 2)
        bill = client.usage(job=job.job)
        assert sum(line.subtasks for line in bill) == 1
        assert client.balance().sum_ucredits == 0


def send(pids: list[int], number: signal.Signals) -> None:
    """To each that is still there: spare jails come and go."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def test_a14_each_subtask_has_its_own_reading_and_reason(client: Client) -> None:
    def work(mebibytes: int) -> int:
        import time

        block = bytearray(mebibytes << 20)
        for at in range(0, len(block), 4096):
            block[at] = 1
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        return len(block)

    sizes = [10, 150]
    assert list(client.map(work, sizes, tier="job")) == [size << 20 for size in sizes]
    small, large = client.subtasks(client.jobs(1)[0].job)
    for row in (small, large):
        assert row.outcome == "ok" and row.node and row.metering
        assert row.cpu_us >= 190_000 and row.wall_us >= 190_000
    assert large.peak_kib - small.peak_kib > 100 * 1024


def test_a24_live_readings_come_each_second_and_outlive_nothing(grid: Grid, client: Client) -> None:
    def grow() -> int:
        import time

        block = bytearray(200 << 20)
        for at in range(0, len(block), 4096):
            block[at] = 1
        with open("scratch", "wb") as file:
            file.write(b"x" * (20 << 20))
        time.sleep(4)
        return len(block)

    future = client.submit(grow)

    def slots() -> list[object]:
        return [
            slot
            for worker in client.workers()
            if worker.reading
            for slot in worker.reading.slots
            if slot.memory_bytes > 190 << 20 and slot.disk_bytes >= 20 << 20 and slot.pids >= 2
        ]

    until("a live reading above 190 MiB", slots, 10)
    assert future.result(timeout=30) == 200 << 20
    row = client.subtasks(future.job, first=future.index, limit=1)[0]
    assert 200 <= row.peak_kib / 1024 < 260


def test_a25_a_large_result_is_stored_by_its_hash_once(grid: Grid, client: Client) -> None:
    def large(seed: int) -> bytes:
        return b"the same bytes " * 50_000

    blobs = grid.state / "store" / "blobs"

    def count() -> int:
        return sum(1 for path in blobs.rglob("*") if path.is_file())

    expected = large(0)
    assert list(client.map(large, [1])) == [expected]
    once = count()
    assert once > 0
    assert list(client.map(large, [2])) == [expected]
    assert count() == once, "equal bytes store nothing new"
    for path in blobs.rglob("*"):
        if path.is_file():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def test_a25_a_full_store_is_said_and_not_charged(own_grid: Callable[..., Grid]) -> None:
    grid = own_grid(options={"store": ["--size-max", "100000"]})
    with Client(grid.address) as client:
        future = client.with_options(losses=0).submit(os.urandom, 300_000)
        error = future.exception(timeout=60)
        assert error is not None and "STORE_FULL" in str(error), repr(error)
        rows = client.usage(job=future.job)
        assert sum(row.amount_ucredits for row in rows) == 0


def test_a26_a_corrupted_blob_is_found_and_never_given_out(
    own_grid: Callable[..., Grid],
) -> None:
    grid = own_grid()
    with Client(grid.address) as client:
        output = next(iter(client.run(["sh", "-c", "echo precious > out"], files_out=["out"])))
        digest = output.files["out"][0] if isinstance(output.files["out"], tuple) else None
        blobs = [p for p in (grid.state / "store" / "blobs").rglob("*") if p.is_file()]
        assert len(blobs) == 1 and digest in (None, blobs[0].name)
        assert output.read("out") == b"precious\n"
        grid.signal("store", signal.SIGTERM)
        until("the store ended", lambda: grid.dead())
        blobs[0].chmod(0o644)
        blobs[0].write_bytes(b"tampered\n")
        grid.restart("store")
        again = next(iter(client.results(client.jobs(1)[0].job)))
        with pytest.raises(Exception, match=r"BLOB_CORRUPT|BLOB_MISSING"):
            again.read("out")


def test_a13_the_user_environment_is_there_and_read_only(client: Client) -> None:
    def look() -> tuple[str, bool]:
        import os
        import sys

        return sys.executable, os.access(os.path.dirname(os.__file__), os.W_OK)

    assert client.submit(look).result(timeout=60) == (sys.executable, False)


def test_a12_drain_gives_back_what_has_not_started(own_grid: Callable[..., Grid]) -> None:
    grid = own_grid(workers=2)
    with Client(grid.address) as client:
        stream = client.map(nap, [0.2] * 30)
        first = next(stream)
        assert gristmill(grid, "worker", "drain", "worker-0").returncode == 0
        assert [first, *stream] == [0.2] * 30
        states = {row.name: row.state for row in client.workers()}
        assert states.get("worker-0", "gone") in ("gone", "draining"), states
