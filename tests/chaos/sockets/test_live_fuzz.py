"""P7: hostile peers with sessions at every socket of a running grid; the honest notice nothing."""

import concurrent.futures
import multiprocessing
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from grid_rig import until
from lease_rig import billed_twice, settled
from sockets_hostile import Target, attack

from gristmill.cli.grid import Grid
from gristmill.client import Client

INPUTS = 20  #: subtasks of each honest job
BEFORE = 25  #: honest jobs before the fuzz
WAIT_MAX_S = 5.0  #: no honest job takes longer; a busy machine alone takes a tenth of this
SAID = ("Traceback", "CRITICAL", "Error:", "Assertion")  #: what no log may have


def tripled(number: int) -> int:
    return 3 * number


@pytest.fixture
def grid() -> Iterator[Grid]:
    """Its clients come by tcp: with tokens, and nobody is an operator by his link."""
    options = {"ledger": ["--fund", "honest=1000000", "--fund", "mallory=1000"]}
    made = Grid.temporary(workers=2, slots=1, front="tcp://127.0.0.1:*", fund="", options=options)
    try:
        made.start()
        yield made
    finally:
        print(made.tails())  # seen when the test failed
        made.stop(grace_s=0.0)


def front(grid: Grid) -> str:
    """The address that the kernel chose."""
    ready = [line for line in grid.log("broker").read_text().splitlines()
             if line.startswith("ready broker ")]  # fmt: skip
    return ready[-1].split()[2]


class Honest:
    """A client that asks for one small job after the other, and checks each."""

    def __init__(self, grid: Grid, token: str) -> None:
        self.client = Client(front(grid), token=token, trust="fleet", environment=sys.executable)
        self.asked = 0

    def job(self) -> float:
        """One job; seconds from its submission to its last result."""
        first = self.asked * INPUTS
        self.asked += 1
        began = time.monotonic()
        inputs = range(first, first + INPUTS)
        assert list(self.client.map(tripled, inputs, tier="batch")) == [3 * n for n in inputs]
        return time.monotonic() - began

    def numbers(self) -> list[int]:
        """Of all its jobs."""
        return sorted(status.job for status in self.client.jobs(limit=10_000))


def quantiles(seconds: list[float]) -> tuple[float, float]:
    """p50 and p99 in ms."""
    ordered = sorted(seconds)
    at = lambda share: 1_000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
    return round(at(0.5), 1), round(at(0.99), 1)


def faults_said(grid: Grid) -> list[str]:
    """Lines of any log that only a fault writes."""
    return [
        f"{name}: {line}"
        for name in grid.names
        for line in grid.log(name).read_text(errors="replace").splitlines()
        if any(word in line for word in SAID)
    ]


@pytest.mark.slow
def test_hostile_sessions_at_every_socket_raise_nothing_and_delay_nobody(
    grid: Grid, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    frames, seed = sized(10_000, 100_000), sized(1, int(time.time()))
    folder = grid.state / "broker"
    honest = Honest(grid, grid.token("honest"))
    pids = {name: grid.pid(name) for name in grid.names}
    with sqlite3.connect(f"file:{folder / 'journal.db'}?mode=ro", uri=True) as db:
        (broker,) = db.execute("SELECT value FROM meta WHERE key = 'broker'").fetchone()
    target = Target(
        front(grid), grid.back, f"ipc://{grid.run}/ledger", grid.token("mallory"),
        str(broker),
    )  # fmt: skip
    honest.job()  # jails are warm
    before = [honest.job() for _ in range(BEFORE)]
    spawning = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawning) as pool:
        running = pool.submit(attack, seed, frames, target)
        meanwhile = []
        while not running.done() or len(meanwhile) < BEFORE // 2:
            assert not grid.dead(), f"seed {seed}: {grid.dead()}"
            meanwhile.append(honest.job())
        found = running.result()
    told = f"seed {seed}: {found}"
    assert not found.fault, told
    assert {name: grid.pid(name) for name in grid.names} == pids and not grid.dead(), told
    assert faults_said(grid) == [], told
    assert found.sent.total() == frames
    # It went deep: all that a session can be told was told, at every socket.
    for answer in (
        "front Accepted", "front InputCredit", "front Answer", "front Results", "front MALFORMED",
        "front UNKNOWN_JOB", "front PARCEL_ORDER", "front INVALID_SPEC", "front REJOIN",
        "front SUBMISSION_CONFLICT", "front FORBIDDEN", "front UPLOAD_CLOSED",
        "back Orders", "back MALFORMED", "back REJOIN", "back NAME_TAKEN",
        "ledger Acked", "ledger LedgerAnswer", "ledger MALFORMED", "ledger verdict yes",
        "ledger verdict LEDGER_CONFLICT", "ledger verdict FORBIDDEN",
        "ledger verdict INSUFFICIENT_CREDITS", "ledger verdict MALFORMED",
    ):  # fmt: skip
        assert found.answers[answer], f"never told: {answer}; {told}"
    assert max(meanwhile) < WAIT_MAX_S, told
    jobs = honest.numbers()
    assert len(jobs) == honest.asked
    for job in jobs:
        assert billed_twice(settled(grid, job), INPUTS) == []
    # What it left on the disks is whole: both start again, and go on.
    grid.restart("ledger")
    grid.restart("broker")
    again = Honest(grid, grid.token("honest"))
    again.job()
    until("the ledger takes posts", lambda: again.client.grid()["is_ledger_up"])
    assert again.client.grid()["rows_quarantined"] == 0
    assert faults_said(grid) == [], told
    (was50, was99), (p50, p99) = quantiles(before), quantiles(meanwhile)
    figures(
        frames=frames, seed=seed, exceptions=0, refused=sum(
            count for name, count in found.answers.items() if name.split()[-1].isupper()),
        frames_per_s=round(frames / found.seconds), honest_jobs=len(jobs), wrong=0,
        billed_twice=0, before_ms_p50=was50, before_ms_p99=was99, during_ms_p50=p50,
        during_ms_p99=p99, ratio_p50=round(p50 / was50, 2), ratio_p99=round(p99 / was99, 2),
    )  # fmt: skip
