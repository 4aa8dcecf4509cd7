"""Large bodies beside the journal: where they lie, who reads them, what a crash may leave."""

import errno
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import apsw
import pytest

from gristmill.broker import bodies, records, salvage, schema
from gristmill.broker.core.state import Config
from gristmill.broker.delivery import read_results
from gristmill.broker.journal import Journal
from gristmill.broker.metrics import Metrics
from gristmill.broker.parcels import read_frames
from gristmill.broker.replay import recover
from gristmill.wire.client import Results
from gristmill.wire.frames import encode
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec, Tariff
from gristmill.wire.worker import ResultHead

UTC = 1_800_000_000_000
LARGE = bodies.LARGE_BYTES


class Disk:
    """A journal of one job, and a reader's connection."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.open()

    def open(self) -> None:
        folder = self.folder
        self.metrics = Metrics()
        self.journal = Journal(folder, lambda: None, self.metrics)
        self.db = apsw.Connection(str(folder / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)
        bodies.register(self.db, folder)

    def job(self) -> None:
        spec = JobSpec("function", function="0" * 64, count=1_000)
        record = records.JobRecord(1, "t", b"s", UTC, spec, {"standard": Tariff()}, b"f")
        self.journal.record("jobs", schema.ADD_JOB, records.job_row(record), 1)
        self.journal.record("open_jobs", schema.ADD_OPEN, (1,), 1)
        granted = records.event_row(1, UTC, "hold.granted", {})
        self.journal.record("events", schema.ADD_EVENT, granted, 1)

    def parcel(self, first: int, body: bytes) -> None:
        row = records.parcel_row(1, first, 10, "m", body)
        self.journal.record("parcels", schema.ADD_PARCEL, row, len(body))

    def result(self, sequence: int, body: bytes) -> None:
        head = ResultHead(sequence, 1, 1, 10 * sequence - 10, 10, "m", 1, 1, 1, "wait4")
        message = Results(1, sequence, head, 1, "n")
        frames = [body, pack_meter(10, Outcome.OK), b"", b""]
        row = records.result_row(encode(message), message, frames, (1, 1, 1), UTC)
        self.journal.record("results", schema.ADD_RESULT, row, len(body))

    def settle(self) -> None:
        self.until(lambda: self.journal.is_idle)

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            self.journal.pump()
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def drop(self, statement: str, *row: int) -> None:
        """A chore, to its end; then the space, as the reader's thread gives it back."""
        self.journal.add_chore(statement, row)
        self.until(lambda: not self.journal._chores and self.journal.is_idle)
        # The committer makes the deletion behind its group: one more group, and it has been made.
        self.journal.record("meta", schema.SET_META, ("test", 0), 1)
        self.settle()
        self.journal.bodies.release()

    @property
    def segments(self) -> dict[str, int]:
        """Bytes on the disk by file."""
        found = (self.folder / bodies.FOLDER).iterdir()
        return {path.name: path.stat().st_blocks * 512 for path in found}

    def close(self) -> None:
        self.db.close()
        if self.journal.failure is None:
            self.journal.close()

    def again(self) -> None:
        """The next start."""
        self.close()
        self.open()


@pytest.fixture
def disk(tmp_path: pathlib.Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    disk.job()
    yield disk
    disk.close()


def test_large_bodies_lie_beside_and_are_read_whole(disk: Disk) -> None:
    sent = {0: os.urandom(LARGE), 10: os.urandom(5 * LARGE + 1), 20: b"small"}
    for first, body in sent.items():
        disk.parcel(first, body)
    values = [os.urandom(3 * LARGE), b"few", os.urandom(LARGE - 1)]
    for sequence, body in enumerate(values, 1):
        disk.result(sequence, body)
    disk.settle()
    sizes = [size for (size,) in disk.db.execute("SELECT length(body) FROM parcels ORDER BY first")]
    assert sizes == [bodies.REFERENCE_BYTES, bodies.REFERENCE_BYTES, 5]
    assert read_frames(disk.db, [(1, first) for first in sent]) == {
        (1, first): body for first, body in sent.items()
    }
    found = read_results(disk.db, 1, 0, 3)
    assert [frames[1] for _, frames in found if frames] == values
    disk.again()
    state = recover(disk.journal, Config(), 0, UTC, disk.metrics).state
    assert (state.jobs[1].uploaded, state.jobs[1].done) == (30, 30)
    assert disk.metrics.rows_quarantined == 0


def test_a_body_that_looks_like_a_reference_is_a_body(disk: Disk) -> None:
    """Or a tenant could read what another one sent."""
    disk.parcel(0, os.urandom(LARGE))
    disk.settle()
    ((secret,),) = disk.db.execute("SELECT body FROM parcels")
    for body in (secret, bodies.MAGIC, secret + b"x"):
        assert isinstance(body, bytes)
        disk.parcel(10, body)
        disk.settle()
        assert read_frames(disk.db, [(1, 10)]) == {(1, 10): body}
        disk.drop("DELETE FROM parcels WHERE job = ? AND first = 10 RETURNING body", 1)


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_a_damaged_segment_is_damaged_rows_and_nothing_else(disk: Disk, damage: str) -> None:
    disk.parcel(0, os.urandom(LARGE))
    disk.parcel(10, b"in its row")
    disk.result(1, os.urandom(LARGE))
    disk.settle()
    (path,) = (disk.folder / bodies.FOLDER).iterdir()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, 100)
    else:
        with path.open("r+b") as file:
            for at in range(0, 2 * LARGE, 1_000):
                file.seek(at)
                byte = file.read(1)
                file.seek(at)
                file.write(bytes([byte[0] ^ 1]))
    assert read_frames(disk.db, [(1, 0), (1, 10)]) == {(1, 10): b"in its row"}
    assert read_results(disk.db, 1, 0, 1) == [(1, None)]
    disk.again()
    state = recover(disk.journal, Config(), 0, UTC, disk.metrics).state
    assert (state.jobs[1].uploaded, state.jobs[1].done) == (20, 0)  # its subtasks run again
    assert disk.metrics.rows_quarantined == 1


def test_what_is_freed_is_given_back(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "HOLE_AFTER_S", 0.0)
    monkeypatch.setattr(bodies, "SEGMENT_BYTES", 8 * LARGE)
    for number in range(12):  # one each in a group of its own: two segments
        disk.parcel(10 * number, os.urandom(LARGE))
        if number % 4 == 3:
            disk.result(1 + number // 4, os.urandom(LARGE))
        disk.settle()
    assert len(disk.segments) == 2
    before = disk.segments
    disk.drop(schema.DROP_PARCELS, 1)
    after = disk.segments
    for name in before:  # a file system may need a block to remember many holes
        freed = (7 if name == min(before) else 5) * LARGE
        assert freed - bodies.BLOCK_BYTES <= before[name] - after[name] <= freed
    assert [frames is not None for _, frames in read_results(disk.db, 1, 0, 3)] == [True] * 3
    disk.drop(schema.DROP_RESULTS, 1, 2)
    assert list(disk.segments) == [max(before)], "the first has no row any more"
    disk.drop(schema.DROP_RESULTS, 1, 3)
    disk.again()  # the segment that grew
    assert not disk.segments
    keys = disk.db.execute("SELECT key FROM meta WHERE key LIKE 'segment:%'").fetchall()
    assert keys == []


def test_a_crash_between_deletion_and_release_leaves_nothing_for_ever(disk: Disk) -> None:
    for first in (0, 10):
        disk.parcel(first, os.urandom(LARGE))
    disk.settle()
    disk.journal.add_chore(schema.DROP_PARCELS, (1,))
    disk.until(lambda: disk.journal.bodies._freed and disk.journal.is_idle)
    assert disk.segments
    disk.again()
    assert not disk.segments


def test_a_count_that_rotted_keeps_its_segment(disk: Disk) -> None:
    body = os.urandom(LARGE)
    disk.parcel(0, body)
    disk.settle()
    disk.close()
    db = apsw.Connection(str(disk.folder / "journal.db"))
    db.execute("UPDATE meta SET value = 0 WHERE key = 'segment:1'")
    db.close()
    disk.open()
    assert read_frames(disk.db, [(1, 0)]) == {(1, 0): body}
    disk.parcel(10, body)
    disk.settle()
    assert len(disk.segments) == 2, "a new start has a segment of its own"


def test_a_file_that_no_count_names_is_not_ours_to_delete(disk: Disk) -> None:
    stray = disk.folder / bodies.FOLDER / "0000000007"
    stray.write_bytes(b"of a journal that was set aside")
    disk.again()
    disk.parcel(0, os.urandom(LARGE))
    disk.settle()
    assert sorted(disk.segments) == ["0000000007", "0000000008"]


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_is_full_or_fails(
    disk: Disk, call: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, is_bad = getattr(os, call), True

    def bad(file: int, *given: Any) -> Any:
        if is_bad and f"/{bodies.FOLDER}/" in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(number, os.strerror(number))
        return plain(file, *given)

    monkeypatch.setattr(os, call, bad)
    monkeypatch.setattr("gristmill.broker.journal.RETRY_S", 0.01)
    body = os.urandom(LARGE)
    disk.parcel(0, body)
    if number == errno.EIO:
        with pytest.raises(OSError, match="cannot be written"):
            disk.settle()
        assert read_frames(disk.db, [(1, 0)]) == {}
        return
    disk.until(lambda: disk.journal.is_full)
    assert not disk.journal.is_idle and read_frames(disk.db, [(1, 0)]) == {}
    is_bad = False
    disk.settle()
    assert not disk.journal.is_full and read_frames(disk.db, [(1, 0)]) == {(1, 0): body}


def test_without_holes_bodies_stay_in_their_rows(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "_fallocate", lambda *given: -1)
    body = os.urandom(LARGE)
    for first in (0, 10):
        disk.parcel(first, body)
        disk.settle()
    assert disk.db.execute("SELECT DISTINCT length(body) FROM parcels").fetchall() == [(LARGE,)]
    disk.again()
    assert not disk.segments and read_frames(disk.db, [(1, 10)]) == {(1, 10): body}


def test_a_salvaged_journal_has_its_bodies(disk: Disk) -> None:
    body = os.urandom(LARGE)
    disk.parcel(0, body)
    disk.result(1, body)
    disk.settle()
    salvage.suspect_mark(disk.journal.path).touch()
    disk.again()
    assert disk.metrics.journal_salvaged == 1
    assert read_frames(disk.db, [(1, 0)]) == {(1, 0): body}
    disk.drop(schema.DROP_PARCELS, 1)
    assert list(disk.segments) == ["0000000001"], "the result is still there"
    disk.drop(schema.DROP_RESULTS, 1, 1)
    assert not disk.segments


def test_a_journal_from_before_bodies_is_read(
    disk: Disk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = os.urandom(LARGE)
    monkeypatch.setattr(bodies, "LARGE_BYTES", 1 << 30)
    disk.parcel(0, body)
    disk.settle()
    disk.close()
    db = apsw.Connection(str(disk.folder / "journal.db"))
    db.execute(schema.SET_META, ("schema_version", 4))
    db.execute("PRAGMA user_version = 4")
    db.close()
    monkeypatch.undo()
    disk.open()
    disk.parcel(10, body)
    disk.settle()
    disk.again()
    assert read_frames(disk.db, [(1, 0), (1, 10)]) == {(1, 0): body, (1, 10): body}
    assert disk.db.execute("PRAGMA user_version").fetchall() == [(schema.SCHEMA_VERSION,)]
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]
