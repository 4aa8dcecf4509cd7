"""A start on a damaged file: what was cut is counted and named, and the rest goes on."""

import pathlib
import shutil
import sqlite3

import apsw
import pytest

from gristmill.broker import records, replay, salvage, schema
from gristmill.broker.core.state import Config
from gristmill.broker.journal import Journal
from gristmill.broker.metrics import Metrics
from gristmill.wire.spec import JobSpec, Tariff

UTC = 1_700_000_000_000
JOBS = 60
PAGE = 4096


def write(folder: pathlib.Path) -> pathlib.Path:
    """A journal of ``JOBS`` unfinished jobs with ten parcels each, checkpointed and closed."""
    Journal(folder, lambda: None, Metrics()).close()
    path = folder / "journal.db"
    db = apsw.Connection(str(path))
    db.execute("BEGIN")
    for job in range(1, JOBS + 1):
        spec = JobSpec("function", function="0" * 64, count=100)
        record = records.JobRecord(job, "t", b"s%d" % job, UTC, spec, Tariff(), b"f" * 500)
        db.execute(schema.ADD_JOB, records.job_row(record))
        db.execute(schema.ADD_OPEN, (job,))
        db.execute(schema.ADD_EVENT, records.event_row(job, UTC, "hold.granted", {}))
        for first in range(0, 100, 10):
            db.execute(schema.ADD_PARCEL, records.parcel_row(job, first, 10, "m", b"p" * 300))
    db.execute("COMMIT")
    db.close()
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write(tmp_path_factory.mktemp("journal"))


@pytest.fixture
def path(written: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copy(written, tmp_path))


def pages_of(path: pathlib.Path, table: str, kind: str = "leaf") -> list[int]:
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    rows = db.execute(
        "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = ? ORDER BY pageno", (table, kind)
    ).fetchall()
    db.close()
    return [page for (page,) in rows]


def spoil(path: pathlib.Path, page: int, body: bytes = b"") -> None:
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write((body or b"\0" * PAGE)[:PAGE])


def start(path: pathlib.Path) -> tuple[replay.Recovered, Metrics]:
    """A whole start, and a write after it: what was salvaged can be worked with."""
    metrics = Metrics()
    journal = Journal(path.parent, lambda: None, metrics)
    found = replay.recover(journal, Config(), 0, UTC, metrics)
    journal.record("events", schema.ADD_EVENT, records.event_row(1, 0, "name", {}), 2)
    journal.close()
    return found, metrics


def quarantined(path: pathlib.Path) -> list[tuple[str, str]]:
    with sqlite3.connect(path) as db:
        return list(db.execute("SELECT table_name, row_key FROM quarantine ORDER BY rowid"))


def test_a_whole_file_is_left_as_it_is(path: pathlib.Path) -> None:
    found, metrics = start(path)
    assert len(found.state.jobs) == JOBS and metrics.journal_salvaged == 0
    assert quarantined(path) == []


@pytest.mark.parametrize("body", [b"", b"\xff" * PAGE, bytes(range(256)) * 16])
@pytest.mark.parametrize("table", ["parcels", "jobs", "events", "open_jobs"])
def test_a_spoilt_page_costs_its_rows_and_no_others(
    path: pathlib.Path, table: str, body: bytes
) -> None:
    pages = pages_of(path, table)
    spoil(path, pages[len(pages) // 2], body)
    found, metrics = start(path)
    assert metrics.journal_salvaged == 1
    assert (table,) in {(name,) for name, _ in quarantined(path)}
    aside = list(path.parent.glob("journal.db.unreadable-*"))
    assert aside
    if len(pages) > 1:
        assert len(found.state.jobs) >= JOBS - 12
    again, metrics = start(path)
    assert metrics.journal_salvaged == 0 and list(again.state.jobs) == list(found.state.jobs)


def test_unfinished_jobs_are_found_without_their_list(path: pathlib.Path) -> None:
    (page,) = pages_of(path, "open_jobs")
    spoil(path, page)
    found, _ = start(path)
    assert len(found.state.jobs) == JOBS  # from the jobs themselves


def test_a_spoilt_index_costs_nothing(path: pathlib.Path) -> None:
    for page in pages_of(path, "parcels_first"):
        spoil(path, page)
    found, metrics = start(path)
    assert metrics.journal_salvaged == 1 and len(found.state.jobs) == JOBS
    assert all(job.uploaded == 100 for job in found.state.jobs.values())
    assert quarantined(path) == []


def test_a_truncated_file_keeps_what_lies_before_the_cut(path: pathlib.Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    found, _ = start(path)
    assert quarantined(path) and isinstance(found.state.jobs, dict)


def test_zero_filled_from_the_first_page_on(path: pathlib.Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)
    found, _ = start(path)
    assert found.state.jobs == {} and list(path.parent.glob("journal.db.unreadable-*"))


def test_a_lost_shm_costs_nothing(path: pathlib.Path) -> None:
    crashed(path)
    path.with_name("journal.db-shm").unlink(missing_ok=True)
    found, _ = start(path)
    assert len(found.state.jobs) == JOBS


def test_a_file_that_vanished_leaves_its_log_aside(
    path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    crashed(path)
    path.unlink()
    found, _ = start(path)
    assert found.state.jobs == {} and "is empty or missing, its log is not" in caplog.text
    assert list(path.parent.glob("journal.db.unreadable-*-wal"))


def test_a_write_that_finds_damage_has_all_of_it_looked_at_by_the_next_start(
    path: pathlib.Path,
) -> None:
    salvage.suspect_mark(path).touch()
    for page in pages_of(path, "results_first"):
        spoil(path, page)  # no start reads it, and every write would fail
    found, _ = start(path)
    assert len(found.state.jobs) == JOBS and not salvage.suspect_mark(path).exists()


def test_a_salvage_that_was_cut_is_done_again(path: pathlib.Path) -> None:
    spoil(path, pages_of(path, "parcels")[1])
    salvage.salvage(path)
    new = path.with_name("journal.db.salvaged")
    path.rename(new)  # the crash came between the two renames
    found, _ = start(path)
    assert len(found.state.jobs) == JOBS and not new.exists()
    shutil.copy(path, new)  # or before the first
    start(path)
    assert not new.exists()


def crashed(path: pathlib.Path, groups: int = 5) -> bytes:
    """The file and its log as a kill -9 leaves them after some commits; returns the log."""
    folder = path.parent
    journal = Journal(folder, lambda: None, Metrics())
    for number in range(groups):
        journal.record("events", schema.ADD_EVENT, records.event_row(number, 0, "name", {}), 2)
        while journal.committed <= number:
            journal.pump()
    copies = {name: (folder / name).read_bytes() for name in ("journal.db", "journal.db-wal")}
    journal.close()
    for name, body in copies.items():
        (folder / name).write_bytes(body)
    (folder / "journal.db-shm").unlink(missing_ok=True)
    return copies["journal.db-wal"]
