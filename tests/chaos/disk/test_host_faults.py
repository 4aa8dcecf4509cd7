"""P15: a disk that fails, is full or slow, no descriptors, a clock that jumps, processes stopped.

Real processes; broker and ledger on a host that fails on command (``disk_faulty``). Whatever
happens, they refuse, wait or end with a clear message; once the fault is over work goes on, and the
judge finds everything that was promised.
"""

import os
import pathlib
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import disk_judge
import pytest
from disk_client import Customer
from disk_faulty import FULL, IO, Control
from grid_rig import until

from gristmill.cli.grid import Grid
from gristmill.wire.errors import EXIT_CANNOT_JAIL

TTL_S = 1.5
ENVIRONMENT = {"GRISTMILL_BROKER_WORKER_TTL_MS": "1500", "GRISTMILL_BROKER_WORKER_REPORT_MS": "300"}
WAIT_S = 60.0
HOUR_MS = 3_600_000
#: what the log of a process says when its disk failed
SAID = {"broker": "cannot be written: IOError", "ledger": "failed: IOError"}
KINDS = ("triple", "moody", "slow", "large")


class FaultyGrid(Grid):
    """A grid whose broker and ledger run on a host that fails on command."""

    def control(self, name: str) -> Control:
        """What fails for this process."""
        return Control(self.state / f"{name}.control")

    def command(self, name: str) -> list[str]:
        argv = super().command(name)
        if name == "store":
            return argv
        at = argv.index("-m")
        script = str(pathlib.Path(__file__).with_name("disk_faulty.py"))
        self.control(name)
        return [*argv[:at], script, str(self.state / f"{name}.control"), *argv[at + 1 :]]


class Load:
    """A client that asks without a pause, in a thread."""

    def __init__(self, grid: Grid, seed: int, kinds: tuple[str, ...] = KINDS) -> None:
        self.customer = Customer(grid.address, seed, 4, kinds)
        self._is_over = threading.Event()
        self._is_done = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.customer.run_until(self._is_over.is_set, 3_600)
        self._is_done = self.customer.finish(WAIT_S)
        self.customer.close()

    @property
    def accepted(self) -> int:
        return sum(order.job > 0 for order in list(self.customer.orders))

    @property
    def final(self) -> int:
        return sum(order.final is not None for order in list(self.customer.orders))

    def finish(self) -> None:
        """Everything that was asked for is final."""
        self._is_over.set()
        self._thread.join(2 * WAIT_S)
        assert self._is_done, "the client was not given what it was promised"


@pytest.fixture
def grid() -> Iterator[FaultyGrid]:
    made = FaultyGrid.temporary(workers=2, slots=1, environment=ENVIRONMENT)
    assert isinstance(made, FaultyGrid)
    try:
        yield made
    finally:
        made.stop(grace_s=0.0)


def goes_on(load: Load, jobs: int = 2) -> None:
    """Some more jobs are accepted and finished from now on."""
    accepted, final = load.accepted, load.final
    until("jobs are accepted", lambda: load.accepted >= accepted + jobs)
    until("jobs are finished", lambda: load.final >= final + jobs)


def judge(grid: Grid, load: Load) -> disk_judge.Verdict:
    """After the end of all that was asked for: everything is killed, and the files are read."""
    load.finish()
    journal = grid.state / "broker" / "journal.db"

    def left() -> int:
        with disk_judge.opened(journal) as db:
            (count,) = db.execute(
                "SELECT count(*) FROM outbox WHERE sequence >"
                " (SELECT ifnull(max(value), 0) FROM meta WHERE key = 'outbox_acked')"
            ).fetchone()
        return int(count)

    until("the outbox is empty", lambda: not left())
    for name in list(grid.pidfds()):
        grid.kill(name)
    verdict = disk_judge.judge(
        journal, grid.state / "ledger" / "ledger.db", [load.customer.orders],
        blobs=grid.state / "store" / "blobs",
    )  # fmt: skip
    assert not verdict.faults, "\n".join(verdict.faults)
    return verdict


def events(grid: Grid, *names: str) -> list[tuple[str, str]]:
    with disk_judge.opened(grid.state / "broker" / "journal.db") as db:
        marks = ",".join("?" * len(names))
        found = db.execute(f"SELECT name, detail FROM events WHERE name IN ({marks})", names)
        return [(name, detail) for name, detail in found]


def ended(grid: Grid, name: str) -> bool:
    return any(error.name == name for error in grid.dead())


# ---------------------------------------------------------------- disks


@pytest.mark.slow
def test_a_disk_that_fails_ends_the_process_with_a_message_and_nothing_is_lost(
    grid: FaultyGrid, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    grid.start()
    load = Load(grid, 1)
    goes_on(load, 1)
    rounds = sized(1, 20)
    for _ in range(rounds):
        for name in ("broker", "ledger"):
            for fault in ("sync_error", "write_error"):
                control = grid.control(name)
                control.set(**{fault: IO})
                until(f"{name} ends for its disk", lambda name=name: ended(grid, name))
                (error,) = [one for one in grid.dead() if one.name == name]
                assert error.returncode == 1 and SAID[name] in grid.tails(), error
                control.set(**{fault: 0})
                grid.restart(name)
                goes_on(load, 1)
    verdict = judge(grid, load)
    figures(faults=4 * rounds, acks=verdict.counts["acks"], lost=0)


@pytest.mark.slow
def test_a_full_disk_refuses_and_heals_by_itself(
    grid: FaultyGrid, figures: Callable[..., None]
) -> None:
    grid.start()
    load = Load(grid, 2)
    goes_on(load, 1)
    for name in ("broker", "ledger"):
        control = grid.control(name)
        control.set(write_error=FULL, fired=0)
        until(f"the disk of {name} was full, twice", lambda c=control: c.get("fired") >= 2)
        assert not ended(grid, name)
        control.set(write_error=0)
        goes_on(load, 1)
    assert not grid.dead()
    assert "journal full" in grid.log("broker").read_text()
    assert "cannot be written now" in grid.log("ledger").read_text()
    figures(acks=judge(grid, load).counts["acks"], lost=0)


@pytest.mark.slow
def test_a_slow_disk_makes_acks_wait_and_nobody_is_given_up(
    grid: FaultyGrid, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    grid.environment.clear()  # with the time-to-live that people have
    grid.start()
    load = Load(grid, 3)
    goes_on(load, 1)
    for delay_ms in (50, 500):
        for name in ("broker", "ledger"):
            grid.control(name).set(sync_delay_ms=delay_ms, fired=0)
        goes_on(load, sized(1, 10))
        assert grid.control("broker").get("fired") and grid.control("ledger").get("fired")
    for name in ("broker", "ledger"):
        grid.control(name).set(sync_delay_ms=0)
    joins = load.customer.joins
    verdict = judge(grid, load)
    assert joins == 1, "the client's session was given up"
    assert events(grid, "worker.lost", "lease.rescued") == []
    figures(acks=verdict.counts["acks"], given_up=0)


@pytest.mark.root
@pytest.mark.slow
def test_a_small_file_system_that_is_full(grid: FaultyGrid, figures: Callable[..., None]) -> None:
    """The real thing: a tmpfs with a ballast, below the journal and below the books."""
    mounted = []
    try:
        for name in ("broker", "ledger"):
            place = grid.state / name
            place.mkdir(mode=0o700, parents=True)
            command = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", str(place)]
            subprocess.run(command, check=True)
            mounted.append(place)
        grid.environment["GRISTMILL_BROKER_DISK_RESERVE_BYTES"] = "0"
        grid.start()
        load = Load(grid, 4)
        goes_on(load, 1)
        for name, said in (("broker", "journal full"), ("ledger", "cannot be written now")):
            ballast = grid.state / name / "ballast"
            with open(ballast, "wb", buffering=0) as file:
                _fill(file)
                until(f"{name} says so", lambda n=name, s=said: s in grid.log(n).read_text())
            ballast.unlink()
            goes_on(load, 1)
        assert not grid.dead()
        figures(acks=judge(grid, load).counts["acks"], lost=0)
    finally:
        grid.stop(grace_s=0.0)
        for place in mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def _fill(file: Any) -> None:
    """Writes until there is no room."""
    for size in (1 << 20, 4_096):
        try:
            while True:
                file.write(bytes(size))
        except OSError:
            continue


# ---------------------------------------------------------------- descriptors, clocks, signals


@pytest.mark.slow
def test_without_descriptors_it_waits_and_does_not_lie(
    grid: FaultyGrid, figures: Callable[..., None]
) -> None:
    grid.start()
    load = Load(grid, 5)
    goes_on(load, 1)
    before = {}
    for name in ("broker", "ledger", "worker-0", "worker-1"):
        pid = grid.pid(name)
        before[name] = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        have = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (have, before[name][1]))
    second = Load(grid, 6, ("slow", "triple", "large"))  # wants a connection, jails, blobs
    time.sleep(TTL_S + 0.5)  # longer than anybody is waited for
    for name, limit in before.items():
        if not ended(grid, name):
            resource.prlimit(grid.pid(name), resource.RLIMIT_NOFILE, limit)
    dead = list(grid.dead())
    for error in dead:
        ends = allowed_ends(error.name)
        assert error.returncode in ends, f"{error}\nnone of {ends}"
        assert ends[error.returncode] in str(error), f"it does not say what it lacked: {error}"
        grid.restart(error.name)
    goes_on(load)
    goes_on(second)
    second.finish()
    verdict = judge(grid, load)
    failed = [o for o in second.customer.orders if o.final and o.final.failed]
    assert not failed, f"somebody paid for our descriptors: {failed[0].final}"
    figures(acks=verdict.counts["acks"], ended=" ".join(error.name for error in dead), lost=0)


def allowed_ends(name: str) -> dict[int, str]:
    """How a process without descriptors may end: exit code, and what its last lines say.

    libzmq aborts whoever listens on ipc:// and cannot accept. A worker that could not start three
    jails in a row leaves with what it lacked. Anything else waits.
    """
    if name in ("broker", "ledger"):
        return {-signal.SIGABRT: "Too many open files (src/ipc_listener.cpp:"}
    return {EXIT_CANNOT_JAIL: "Too many open files"}


@pytest.mark.slow
def test_a_clock_that_jumps_an_hour_moves_no_lease(
    grid: FaultyGrid, figures: Callable[..., None]
) -> None:
    """Leases and sessions live by the monotonic clock; the wall clock only stamps what people read.

    The host's clock jumps for broker, ledger and workers alike.
    """
    began_ms = time.time_ns() // 1_000_000
    grid.start()
    load = Load(grid, 7)
    goes_on(load, 1)
    names = ("broker", "ledger", "worker-0", "worker-1")
    for clock_ms in (HOUR_MS, -HOUR_MS, 0):
        for name in names:
            grid.control(name).set(clock_ms=clock_ms)
        goes_on(load, 4)  # what was on its way has the clock of before; not all of it is
    joins = load.customer.joins
    verdict = judge(grid, load)
    assert joins == 1, "the client's session was given up"
    assert events(grid, "worker.lost", "lease.rescued") == []
    ended_ms = time.time_ns() // 1_000_000
    with disk_judge.opened(grid.state / "ledger" / "ledger.db") as db:
        stamps = [row[0] for row in db.execute("SELECT ended_ms FROM contribution")]
    slack = HOUR_MS + 60_000
    assert began_ms - slack < min(stamps) < began_ms - 60_000, "receipts carry the clock's time"
    assert ended_ms + 60_000 < max(stamps) < ended_ms + slack
    figures(acks=verdict.counts["acks"], given_up=0)


@pytest.mark.slow
def test_each_process_stopped_for_longer_than_a_lease(
    grid: FaultyGrid, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    grid.start()
    load = Load(grid, 8)
    goes_on(load, 1)
    rounds: list[tuple[str, ...]] = [("broker", "worker-0"), ("ledger", "store")]
    rounds += [("worker-1", "children of worker-0")]
    for stopped in rounds * sized(1, 10):
        pids = [pid for name in stopped for pid in _pids(grid, name)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(TTL_S + 0.5)  # this long they are silent
        for pid in pids:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue  # a stopped jail was given up and killed
        goes_on(load, 1)
    assert not grid.dead()
    verdict = judge(grid, load)
    figures(stops=len(rounds) * sized(1, 10), acks=verdict.counts["acks"], lost=0)


def _pids(grid: Grid, name: str) -> list[int]:
    """The process; or all that it started: spawner, jails, slots."""
    if not name.startswith("children of "):
        return [grid.pid(name)]
    found: list[int] = []
    todo = [grid.pid(name.removeprefix("children of "))]
    while todo:
        pid = todo.pop()
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                path = pathlib.Path(f"/proc/{pid}/task/{task}/children")
                children = [int(child) for child in path.read_text().split()]
                found += children
                todo += children
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
