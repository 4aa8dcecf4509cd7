"""Pain 6: a damaged file. It always starts, says what is damaged, and never says what is not so.

One real run is killed under load; copies of its journal and of its books are spoiled in every way
that ``disk_damage`` knows, and each value of each column in turn. What can be read from a spoiled
journal is compared with what the whole one says; books are compared row by row.
"""

import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import disk_client
import disk_damage
import pytest
from disk_cuts import memory_folder

from gristmill.cli.grid import Grid
from gristmill.ledger.sqlite import SqliteBook

FOLDER = pathlib.Path(__file__).parent
LOOK_S = 300.0
#: tables on which nothing hangs that anybody is told
UNREAD = frozenset({"quarantine", "live_workers"})


class Spoilable(NamedTuple):
    """State folders as a kill left them."""

    broker: pathlib.Path
    ledger: pathlib.Path


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoilable]:
    """A grid with finished and unfinished jobs, killed while its ledger was behind."""
    folder = tmp_path_factory.mktemp("killed")
    with Grid.temporary(workers=2, slots=1, fund="local=1000000") as grid:
        customer = disk_client.Customer(grid.address, 5, 3, ("moody", "picky"))
        orders = customer.orders
        try:
            assert customer.run_until(lambda: sum(o.final is not None for o in orders) >= 4, 60)
            for name in grid.worker_names:
                grid.kill(name)
            grid.kill("ledger")
            known = len([order for order in orders if order.job])
            customer.run_until(lambda: len([o for o in orders if o.job]) > known, 1)
            grid.kill("broker")
        finally:
            customer.close()
        made = Spoilable(folder / "broker", folder / "ledger")
        shutil.copytree(grid.state / "broker", made.broker)
        shutil.copytree(grid.state / "ledger", made.ledger)
    (made.broker / "jobs.json").write_text(json.dumps([o.job for o in orders if o.job]))
    yield made


def look(
    folder: pathlib.Path, damages: list[tuple[pathlib.Path, dict[str, int]]]
) -> tuple[collections.Counter[str], list[str]]:
    """Looks at damaged copies, each set in a process of its own."""
    running = []
    for number, (source, kinds) in enumerate(damages):
        job = folder / f"job-{number}.json"
        job.write_text(json.dumps({"state": str(source), "seed": number, "damages": kinds}))
        running.append(
            subprocess.Popen(
                [sys.executable, "-P", str(FOLDER / "disk_rot.py"), str(job)],
                env={**os.environ, "PYTHONPATH": str(FOLDER)},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    for process in running:
        told, _ = process.communicate(timeout=None)
        assert process.returncode == 0
        found = json.loads(told)
        faults += found["faults"]
        for name in ("copies", "reported", "unwritable"):
            counts[name] += sum(found[name].values())
            if name == "copies":
                counts.update(found[name])
    return counts, faults


def settle(path: pathlib.Path) -> None:
    """Everything in the file, nothing in its log, as a process leaves it that closed it."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for lock in path.parent.glob("*.lock"):
        lock.unlink()


@pytest.mark.slow
def test_a_spoiled_journal_starts_and_tells_no_lies(
    killed: Spoilable,
    tmp_path: pathlib.Path,
    sized: Callable[[int, int], int],
    figures: Callable[..., None],
) -> None:
    kinds = {
        "no-log": 1,
        "no-index": 1,
        "flips": sized(8, 300),
        "zeroed": sized(3, 150),
        "cut": sized(3, 150),
        "garbage": sized(1, 40),
    }
    whole = tmp_path / "whole"
    shutil.copytree(killed.broker, whole)
    settle(whole / "journal.db")
    # Pages of the file itself have no checksums of SQLite's: many trials, at release size.
    pages = {kind: copies // 2 for kind, copies in kinds.items()} if sized(0, 1) else {}
    counts, faults = look(tmp_path, [(killed.broker, kinds), (whole, pages)])
    figures(
        bits_flipped=counts["flips"] * disk_damage.FLIPS,
        **{name.replace("-", "_"): counts[name] for name in
           ("copies", "reported", "unwritable", *kinds)},
    )  # fmt: skip
    assert not faults, "\n".join(faults)
    assert counts["reported"] > 0, "no damage was noticed: the damages do not damage"


@pytest.mark.slow
def test_a_flipped_bit_in_any_column_of_the_journal_tells_no_lies(
    killed: Spoilable,
    tmp_path: pathlib.Path,
    sized: Callable[[int, int], int],
    figures: Callable[..., None],
) -> None:
    with tempfile_copy(killed.broker, tmp_path) as copy:
        columns = [
            f"cell:{table}.{column}"
            for table, column in disk_damage.columns_of(copy / "journal.db")
            if table not in UNREAD
        ]
    columns = columns[:: sized(3, 1)]
    times = sized(1, 20)
    halves = [(killed.broker, dict.fromkeys(columns[half::2], times)) for half in (0, 1)]
    counts, faults = look(tmp_path, halves)
    figures(columns=len(columns), copies=counts["copies"], reported=counts["reported"])
    assert not faults, "\n".join(faults)


@contextlib.contextmanager
def tempfile_copy(source: pathlib.Path, folder: pathlib.Path) -> Iterator[pathlib.Path]:
    copy = folder / "copy"
    shutil.copytree(source, copy)
    yield copy
    shutil.rmtree(copy)


# ---------------------------------------------------------------- the books


def rows_of(path: pathlib.Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of the books, by table."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        tables = [n for (n,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {name: sorted(db.execute(f"SELECT * FROM {name}"), key=repr) for name in tables}


def marked_rows(state: pathlib.Path, place: pathlib.Path) -> dict[str, list[tuple[object, ...]]]:
    """The books up to the mark of their log.

    The kill may have come between a commit and its mark; that commit was told to nobody.
    """
    shutil.copytree(state, place)
    _, _, _, frames = struct.unpack("<4sIIQ", (place / "ledger.lock").read_bytes()[:20])
    log = place / "ledger.db-wal"
    page_bytes = int.from_bytes(log.read_bytes()[8:12])
    os.truncate(log, 32 + frames * (24 + page_bytes))
    return rows_of(place / "ledger.db")


def open_books(state: pathlib.Path) -> list[str]:
    """What the ledger finds at its opening; it is read-only if there is anything."""
    try:
        book = SqliteBook(state)
    except Exception as error:  # it says so and does not serve
        return [repr(error)]
    try:
        faults = book.faults()
        try:
            book.load()
        except Exception as error:
            faults.append(repr(error))
        return faults
    finally:
        book.close()


@pytest.mark.slow
def test_spoiled_books_are_found_or_say_what_they_said(
    killed: Spoilable,
    sized: Callable[[int, int], int],
    figures: Callable[..., None],
) -> None:
    dice = random.Random(6)
    kinds = {"flips": sized(60, 3_000), "zeroed": sized(15, 400), "cut": sized(15, 400),
             "garbage": sized(5, 100), "no-log": 1, "no-index": 1}  # fmt: skip
    counts: collections.Counter[str] = collections.Counter()
    with contextlib.ExitStack() as stack:
        import tempfile

        place = pathlib.Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="gm-", dir=memory_folder()))
        )
        shutil.copytree(killed.ledger, place / "truth")
        truth = rows_of(place / "truth" / "ledger.db")
        marked = marked_rows(killed.ledger, place / "marked")
        for checkpointed in (False, True):
            source = killed.ledger
            if checkpointed:  # everything in the file, nothing in its log
                source = place / "truth"
                settle(source / "ledger.db")
            for kind, copies in kinds.items():
                for number in range(copies):
                    state = place / "copy"
                    shutil.copytree(source, state)
                    done = disk_damage.DAMAGES[kind](state / "ledger.db", dice)
                    faults = open_books(state)
                    counts["copies"] += 1
                    counts["reported"] += bool(faults)
                    if not faults:
                        rows = rows_of(state / "ledger.db")
                        assert rows in (truth, marked), f"{kind} {number}: {done}"
                    shutil.rmtree(state)
        columns = disk_damage.columns_of(place / "truth" / "ledger.db")
        for table, column in columns * sized(1, 20):
            state = place / "copy"
            shutil.copytree(killed.ledger, state)
            done = disk_damage.flip_cell(state / "ledger.db", table, column, dice)
            if "cannot be flipped" not in done:
                assert open_books(state), f"not found: {done}"
                counts["cells"] += 1
            shutil.rmtree(state)
    figures(**counts)
    assert counts["reported"] > counts["copies"] // 4
