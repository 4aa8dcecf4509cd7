"""Journals with many rows, what spoils them, and a whole start on what is left."""

import pathlib
import sqlite3

import apsw

from gristmill.broker import records, replay, schema
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
        record = records.JobRecord(
            job, "t", b"s%d" % job, UTC, spec, {"standard": Tariff()}, b"f" * 500
        )
        db.execute(schema.ADD_JOB, records.job_row(record))
        db.execute(schema.ADD_OPEN, (job,))
        db.execute(schema.ADD_EVENT, records.event_row(job, UTC, "hold.granted", {}))
        for first in range(0, 100, 10):
            db.execute(schema.ADD_PARCEL, records.parcel_row(job, first, 10, "m", b"p" * 300))
    db.execute("COMMIT")
    db.close()
    return path


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
