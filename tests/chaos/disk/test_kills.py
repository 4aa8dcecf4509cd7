"""P1, P3, P4: kill -9 of any process at any moment, judged from the files and the clients' lists.

Real processes, started directly. Clients ask without a pause for jobs of several kinds while random
processes, sometimes two at once, are killed and started again. In the end the clients get all that
they are owed, everything is killed, and the judge reads what lies on the disk.
"""

import collections
import pathlib
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import disk_client
import disk_judge
import pytest

from gristmill.cli.grid import Grid
from gristmill.ledger import schema

PAUSE_S = 0.4  #: longest time between two kills
QUIET_S = 60.0
#: sessions that are gone are given up soon, so that short runs see rescues, too
ENVIRONMENT = {"GRISTMILL_BROKER_WORKER_TTL_MS": "1500", "GRISTMILL_BROKER_WORKER_REPORT_MS": "300"}
TARGETS = ("broker", "broker", "broker", "ledger", "ledger", "store", "worker", "worker")


class Customers:
    """Client processes; each writes its list when it is told to end."""

    def __init__(self, grid: Grid, folder: pathlib.Path, count: int, at_once: int) -> None:
        self.paths = [folder / f"list-{number}" for number in range(count)]
        self._processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-P", disk_client.__file__, grid.address, str(path)),
                    *(str(number), str(at_once)),
                ],
                stdin=subprocess.PIPE,
            )
            for number, path in enumerate(self.paths)
        ]

    def finish(self) -> list[list[disk_client.Order]]:
        """Their lists, when everything that they asked for is final."""
        for process in self._processes:
            assert process.stdin
            process.stdin.close()
        codes = [process.wait(150) for process in self._processes]
        assert codes == [0] * len(codes), "a client was not given all results in time"
        return [disk_client.read_list(path) for path in self.paths]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def kill_at_random(grid: Grid, dice: random.Random, kills: int) -> collections.Counter[str]:
    """Kills processes at random moments and starts them again; how many of each kind.

    Never more kills than jobs: on a slow machine the grid would be killed in its starts only.
    """
    done: collections.Counter[str] = collections.Counter()
    workers = len(grid.worker_names)
    while sum(done.values()) < kills:
        wait_for_jobs(grid, sum(done.values()) + 2)
        time.sleep(dice.random() * PAUSE_S)  # the moment is the chance that is tried
        victims = dice.sample(TARGETS, 2 if dice.random() < 0.2 else 1)
        named = [
            dice.choice([name for name in grid.worker_names if name in grid.pidfds()])
            if kind == "worker"
            else kind
            for kind in dict.fromkeys(victims)
        ]
        for name in named:
            grid.kill(name)
            done[name.partition("-")[0]] += 1
        # Workers last: one is ready when a broker has welcomed it.
        for name in sorted(named, key=lambda name: name.startswith("worker")):
            if name.startswith("worker"):
                grid.forget(name)  # its name is taken until its session is given up
                workers += 1
                grid.add_worker(f"worker-{workers}")
            else:
                grid.restart(name)
    return done


def wait_for_jobs(grid: Grid, count: int) -> None:
    """Until the journal has so many jobs."""
    deadline = time.monotonic() + QUIET_S
    while True:
        with disk_judge.opened(grid.state / "broker" / "journal.db") as db:
            (jobs,) = db.execute("SELECT count(*) FROM jobs").fetchone()
        if jobs >= count:
            return
        assert time.monotonic() < deadline, f"{jobs} jobs were accepted, {count} are wanted"
        time.sleep(0.02)


def wait_until_quiet(grid: Grid) -> None:
    """Until the outbox has gone to the ledger: read from the file, as the judge does."""
    deadline = time.monotonic() + QUIET_S
    while True:
        with disk_judge.opened(grid.state / "broker" / "journal.db") as db:
            (left,) = db.execute(
                "SELECT count(*) FROM outbox WHERE sequence >"
                " (SELECT ifnull(max(value), 0) FROM meta WHERE key = 'outbox_acked')"
            ).fetchone()
        if not left:
            return
        assert time.monotonic() < deadline, f"{left} entries of the outbox never left"
        time.sleep(0.05)


def judged(grid: Grid, lists: Sequence[list[disk_client.Order]]) -> disk_judge.Verdict:
    """The verdict about a grid all of whose processes were killed."""
    return disk_judge.judge(
        grid.state / "broker" / "journal.db",
        grid.state / "ledger" / "ledger.db",
        lists,
        blobs=grid.state / "store" / "blobs",
    )


@pytest.mark.slow
def test_kill_9_of_any_process_loses_and_doubles_nothing(
    grids: list[Grid],
    tmp_path: pathlib.Path,
    sized: Callable[[int, int], int],
    figures: Callable[..., None],
) -> None:
    kills = sized(50, 2_000)
    grid = Grid.temporary(workers=2, slots=1, environment=ENVIRONMENT)
    grids.append(grid)
    grid.start()
    customers = Customers(grid, tmp_path, count=2, at_once=4)
    try:
        done = kill_at_random(grid, random.Random(15), kills)
        lists = customers.finish()
        wait_until_quiet(grid)
    finally:
        customers.close()
    for name in list(grid.pidfds()):
        grid.kill(name)
    verdict = judged(grid, lists)
    figures(
        kills=sum(done.values()),
        **{f"kills_{kind}": number for kind, number in sorted(done.items())},
        **{name: verdict.counts[name] for name in
           ("accepted", "jobs", "subtasks", "acks", "contributions", "blobs", "sum_ucredits")},
        **{name: verdict.counts[name] for name in disk_judge.FAULT_KINDS},
    )  # fmt: skip
    assert not verdict.faults, "\n".join(verdict.faults)
    assert verdict.counts["accepted"] >= kills and verdict.counts["acks"] > 100 * kills
    audited = subprocess.run(
        [sys.executable, "-P", "-m", "gristmill.cli.main", "ledger", "audit", "--state",
         str(grid.state)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert audited.returncode == 0 and "is in order" in audited.stdout, audited
    _the_judge_sees_what_is_planted(grid, lists, tmp_path)


#: what is done to a copy of files that were judged good, and the kind of fault that must be seen
PLANTED = {
    "lost_jobs": ("journal", "DELETE FROM jobs WHERE job = (SELECT min(job) FROM jobs)"),
    "lost_results": (
        "journal",
        "DELETE FROM results WHERE rowid = (SELECT min(rowid) FROM results)",
    ),
    "lost_cards": (
        "journal",
        "UPDATE job_states SET status = (SELECT status FROM job_states WHERE job ="
        " (SELECT max(job) FROM job_states)) WHERE job = (SELECT min(job) FROM job_states)",
    ),
    "final_twice": (
        "journal",
        "INSERT INTO results SELECT job, sequence + 1000000, first, count, attempt, 0, node, codec,"
        " wall_us, cpu_us, peak_kib, metering, is_estimated, 0, ended_ms, body_bytes, crc, header,"
        " meter, failures, logs, payload FROM results WHERE job = (SELECT job FROM jobs WHERE"
        " name = 'triple' LIMIT 1) LIMIT 1",
    ),
    "missing": (
        "ledger",
        "DROP TRIGGER contribution_stays; DELETE FROM contribution WHERE hold ="
        " (SELECT min(hold) FROM contribution)",
    ),
    "phantom": (
        "ledger",
        "DROP TRIGGER contribution_immutable; UPDATE contribution SET attempt = attempt + 9"
        " WHERE hold = (SELECT min(hold) FROM contribution)",
    ),
    "double": (
        "ledger",
        "DROP TRIGGER contribution_overlap; DROP TRIGGER hold_closed; INSERT INTO contribution"
        f" SELECT {schema.CONTRIBUTION.replace('replica', 'replica + 1')}, crc FROM contribution"
        " LIMIT 1",
    ),
    "wrong_bill": (
        "ledger",
        "DROP TRIGGER contribution_immutable; UPDATE contribution SET amount = amount + 1"
        " WHERE hold = (SELECT min(hold) FROM contribution)",
    ),
    "unbalanced": (
        "ledger",
        "UPDATE account SET credits = credits + 1 WHERE name = 'toll'",
    ),
    "holds_left": (
        "ledger",
        "DROP TRIGGER hold_closed; UPDATE hold SET closed_ms = 0 WHERE id ="
        " (SELECT min(id) FROM hold)",
    ),
    "ledger_lost": ("ledger", "UPDATE outbox SET applied = applied - 1"),
}  # fmt: skip


def _the_judge_sees_what_is_planted(
    grid: Grid, lists: Sequence[list[disk_client.Order]], folder: pathlib.Path
) -> None:
    """A judge that finds nothing in damaged files would have proved nothing above."""
    source = {
        "journal": grid.state / "broker" / "journal.db",
        "ledger": grid.state / "ledger" / "ledger.db",
    }
    for kind, (name, statements) in PLANTED.items():
        copies = {}
        for each, path in source.items():
            copies[each] = folder / f"{each}-{kind}.db"
            with disk_judge.opened(path) as db, sqlite3.connect(copies[each]) as copy:
                db.backup(copy)
            copy.close()
        with disk_judge.opened(copies[name]) as db:
            db.executescript(statements)
        verdict = disk_judge.judge(copies["journal"], copies["ledger"], lists)
        assert verdict.counts[kind], f"planted {kind}, the judge said: {verdict.faults}"
        for path in copies.values():
            path.unlink()


@pytest.fixture(autouse=True)
def _enough_room(tmp_path: pathlib.Path) -> None:
    assert shutil.disk_usage(tmp_path).free > 1 << 30
