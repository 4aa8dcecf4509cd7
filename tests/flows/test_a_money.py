"""Rows of job lifecycle about money and boundaries: recorded once, spooled, never adjusted."""

import pathlib
import signal
import sqlite3
from collections.abc import Callable

import pytest
from grid_rig import until

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.errors import GridError
from gristmill.wire.client import FINAL_JOB_STATES, JobStatus
from gristmill.wire.spec import TOLL_PERCENT


def double(x: int) -> int:
    return 2 * x


def accounts(client: Client) -> dict[str, int]:
    return {row.name: row.posted_ucredits for row in client.balance(everyone=True).accounts}


def test_a06_with_the_ledger_down_work_goes_on_and_the_tally_catches_up(
    own_grid: Callable[..., Grid],
) -> None:
    grid = own_grid()
    with Client(grid.address) as client:
        stream = client.map(double, range(4_000), tier="batch", window=1_000)
        first = next(stream)
        grid.kill("ledger")
        assert [first, *stream] == [2 * x for x in range(4_000)], "held jobs run on"
        job = client.jobs(1)[0].job
        waiting = client.submit(double, 21)
        until(
            "a new job waits as LEDGER_DOWN",
            lambda: waiting.job and client.status(waiting.job).reason.startswith("LEDGER_DOWN"),
        )
        assert not waiting.done()
        grid.restart("ledger")
        assert waiting.result(timeout=60) == 42, "it starts by itself"
        status = until(
            "the spool arrived",
            lambda: billed(client, job) == 4_000 and client.status(job),
        )
        bill = client.usage(job=job)
        assert sum(row.amount_ucredits for row in bill) == status.spent_ucredits
        assert client.balance().sum_ucredits == 0


def is_answering(client: Client) -> bool:
    try:
        return client.balance().sum_ucredits == 0
    except GridError as error:
        assert error.code == "LEDGER_DOWN", error
        return False


def billed(client: Client, job: int | None = None) -> int:
    """Billed subtasks; -1 while the ledger does not answer."""
    try:
        return sum(row.subtasks for row in client.usage(job=job))
    except GridError as error:
        assert error.code == "LEDGER_DOWN", error
        return -1


def test_a15_every_accepted_attempt_is_billed_once_and_a_replay_changes_nothing(
    own_grid: Callable[..., Grid],
) -> None:
    grid = own_grid(workers=2)

    def flaky(x: int) -> int:
        import os

        if os.urandom(1)[0] < 60:
            raise RuntimeError("again")
        return x

    with Client(grid.address) as client:
        stream = client.map(flaky, range(300), retries=50, tier="batch", window=20)
        first = next(stream)
        grid.signal(
            "ledger", signal.SIGSTOP
        )  # it hears everything, several times, and acks nothing
        assert [first, *stream] == list(range(300))
        until("the broker sent again", lambda: client.grid()["outbox_resends"] > 0)
        grid.signal("ledger", signal.SIGCONT)
        job = client.jobs(1)[0]
        status = client.wait(job.job)
        until("tallied", lambda: billed(client) >= 300 + status.retried)
        assert billed(client) == 300 + status.retried
        before = accounts(client)
        grid.kill("ledger")
        grid.restart("ledger")
        until("it answers again", lambda: is_answering(client))
        assert accounts(client) == before
        nodes = sum(value for name, value in before.items() if name.startswith("node:"))
        bill = sum(row.amount_ucredits for row in client.usage())
        toll = sum(row.toll_ucredits for row in client.usage())
        assert before["toll"] == toll and nodes == bill - toll
        assert abs(toll - bill * TOLL_PERCENT / 100) <= status.results + status.retried


def test_a15_a_cap_is_never_passed(own_grid: Callable[..., Grid]) -> None:
    grid = own_grid()

    def burn(x: int) -> int:
        import time

        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        return x

    with Client(grid.address) as client:
        with pytest.raises(Exception, match="cap"):
            list(client.map(burn, range(50), cap="0.9"))
        job = until("ended", lambda: client.jobs(1)[0].state == "failed" and client.jobs(1)[0])
        assert 0 < job.spent_ucredits <= 900_000
        until("released", lambda: all(row.held_ucredits == 0 for row in client.balance().accounts))
        poor = client.with_options(cap="99999999999").submit(double, 1)
        assert "99,999,999,999" in str(poor.exception(timeout=60))
        assert client.status(poor.job).reason.startswith("INSUFFICIENT_CREDITS")


def test_a18_each_file_has_one_writer_and_secrets_are_private(
    grid: Grid, client: Client, tmp_path: pathlib.Path
) -> None:
    assert list(client.map(double, [1, 2])) == [2, 4]
    ledger = next((grid.state / "ledger").glob("*.db"))
    held = {
        name: {
            str(path.readlink())
            for path in pathlib.Path(f"/proc/{grid.pid(name)}/fd").iterdir()
            if path.is_symlink()
        }
        for name in grid.names
    }
    for name, files in held.items():
        assert (str(ledger) in files) == (name == "ledger"), f"{name} holds the ledger's file"
    until("something was posted", lambda: billed(client) > 0)
    copy = sqlite3.connect(tmp_path / "copy.db")  # where nothing but the ledger's own rules holds
    sqlite3.connect(f"file:{ledger}?mode=ro", uri=True).backup(copy)
    assert copy.execute("SELECT count(*) FROM transfer").fetchone()[0] > 0
    for statement in ("UPDATE transfer SET amount = 1", "DELETE FROM transfer"):
        with pytest.raises(sqlite3.IntegrityError):
            copy.execute(statement)
    for key in grid.state.rglob("*.key"):
        assert key.stat().st_mode & 0o077 == 0, key


def test_c09_admission_is_never_more_generous_than_the_ledger(
    own_grid: Callable[..., Grid],
) -> None:
    grid = own_grid(fund="local=100", slots=2)

    def slow(x: int) -> int:
        import time

        time.sleep(0.3)
        return x

    with Client(grid.address) as client:
        held = client.map(slow, range(200), cap=80, tier="batch", window=20)
        first = next(held)
        status = client.status(held.job)

        def row() -> tuple[int, int, int]:
            (own,) = client.balance().accounts
            return own.posted_ucredits, own.held_ucredits, own.available_ucredits

        posted, reserved, available = row()
        assert reserved + 100_000_000 - posted == 80_000_000, "a running job's whole cap"
        assert available == 20_000_000, "however little of it is spent"
        # What nothing was spent of is spoken for: the next job that does not fit is refused.
        poor = client.with_options(cap=21).submit(double, 1)
        assert "the cap is 21 credits; tenant local has 20 available" in str(poor.exception(60))
        assert client.with_options(cap=19).submit(double, 4).result(timeout=60) == 8
        # Without the ledger only what it reserved before is used; the broker's view is not asked.
        grid.kill("ledger")
        values = [first, *(next(held) for _ in range(20))]
        assert values == list(range(21)), "a job with a reservation runs on"
        small = client.with_options(cap=1, name="small").submit(double, 21)
        until(
            "a job without one waits, though there was enough",
            lambda: small.job and client.status(small.job).reason.startswith("LEDGER_DOWN"),
        )
        assert not small.done() and client.status(small.job).leased == 0
        grid.restart("ledger")
        assert small.result(timeout=60) == 42
        held.close()
        card = until("it ended", lambda: ended(client, status.job))
        # (the calls' own jobs stay open for more calls, and hold 19 and 1)
        until("its rest is voided", lambda: is_answering(client) and row()[1] <= 20_000_000)
        assert card.spent_ucredits < 80_000_000


def ended(client: Client, job: int) -> JobStatus | None:
    status = client.status(job)
    return status if status.state in FINAL_JOB_STATES else None
