"""The journal alone: groups, full and failing disks, chores, damage."""

import pathlib
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import apsw
import pytest

from gristmill.broker import bodies, records, schema
from gristmill.broker.delivery import read_results
from gristmill.broker.journal import Journal
from gristmill.broker.metrics import Metrics
from gristmill.broker.reader import Reader
from gristmill.wire.client import Results
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.worker import ResultHead

EVENT = schema.ADD_EVENT


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + 10
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.001)
    return found


class Opened:
    """A journal whose wake-ups are counted."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.woken = threading.Event()
        self.metrics = Metrics()
        self.journal = Journal(folder, self.woken.set, self.metrics)

    def event(self, job: int, text: str = "{}") -> int:
        self.journal.record("events", EVENT, (job, 0, "name", text, 0), len(text))
        return self.journal.group

    def wait(self, group: int) -> None:
        until(lambda: (self.journal.pump(), self.journal.committed >= group)[1])


@pytest.fixture
def opened(tmp_path: pathlib.Path) -> Iterator[Opened]:
    opened = Opened(tmp_path)
    yield opened
    if opened.journal.failure is None:
        opened.journal.close()


def jobs(opened: Opened) -> list[int]:
    db = apsw.Connection(str(opened.journal.path), flags=apsw.SQLITE_OPEN_READONLY)
    found = [job for (job,) in db.execute("SELECT job FROM events ORDER BY seq")]
    db.close()
    return found


def test_what_queues_during_a_group_is_the_next_group(opened: Opened) -> None:
    first = opened.event(1)
    opened.journal.pump()  # group 1 is on its way; what follows waits for it
    second = opened.event(2)
    third = opened.event(3)
    assert (first, second, third) == (1, 2, 2)
    opened.wait(2)
    assert jobs(opened) == [1, 2, 3]
    assert opened.metrics.groups_committed == 2 and opened.journal.is_idle
    assert opened.journal.backlog_bytes == 0
    assert opened.journal.group == opened.journal.committed


def test_a_reader_sees_a_group_whole_and_only_when_it_is_committed(opened: Opened) -> None:
    group = opened.event(1)
    opened.event(2)
    assert jobs(opened) == []
    opened.wait(group)
    assert jobs(opened) == [1, 2]


def test_close_commits_what_was_recorded(tmp_path: pathlib.Path) -> None:
    opened = Opened(tmp_path)
    for number in range(100):
        opened.event(number)
        opened.journal.pump()
    opened.journal.close()
    assert jobs(opened) == list(range(100))


def test_a_full_disk_keeps_the_group_and_tries_again(opened: Opened) -> None:
    opened.wait(opened.event(1))
    (pages,) = next(iter(opened.journal._connection.execute("PRAGMA page_count")))
    opened.journal._connection.execute(f"PRAGMA max_page_count = {pages}")
    group = opened.event(2, "x" * 100_000)
    opened.journal.pump()
    until(lambda: opened.journal.is_full)
    later = opened.event(3)
    assert not opened.journal.pump() and opened.journal.committed < group
    assert jobs(opened) == [1]
    opened.journal._connection.execute("PRAGMA max_page_count = 1000000")
    opened.wait(later)
    assert jobs(opened) == [1, 2, 3]
    assert not opened.journal.is_full and opened.metrics.journal_full == 1


def test_any_other_error_ends_the_process(opened: Opened) -> None:
    opened.journal.record("events", "INSERT INTO no_such_table VALUES(?)", (1,), 1)
    opened.journal.pump()
    until(opened.woken.is_set)
    until(lambda: opened.journal.failure)
    with pytest.raises(OSError, match="no_such_table"):
        opened.journal.pump()


def test_chores_run_in_chunks_until_nothing_is_left(opened: Opened) -> None:
    total = 3 * schema.CHUNK_ROWS + 5
    for first in range(total):
        row = records.parcel_row(1, first, 1, "q", b"x")
        opened.journal.record("parcels", schema.ADD_PARCEL, row, 1)
    opened.journal.record("parcels", schema.ADD_PARCEL, records.parcel_row(2, 0, 1, "q", b"y"), 1)
    opened.wait(opened.journal.group)
    opened.journal.add_chore(schema.DROP_PARCELS, (1,))

    def left() -> int:
        opened.journal.pump()
        # Not by another copy of SQLite: its locks are the process's, and end with its file.
        db = apsw.Connection(str(opened.journal.path), flags=apsw.SQLITE_OPEN_READONLY)
        ((count,),) = db.execute("SELECT count(*) FROM parcels")
        db.close()
        return int(count)

    until(lambda: left() == 1)


def test_a_close_during_chores_ends(tmp_path: pathlib.Path) -> None:
    for _ in range(20):
        opened = Opened(tmp_path)
        for job in range(20):
            opened.journal.add_chore(schema.DROP_PARCELS, (job,))
        opened.journal.pump()
        opened.journal.close(timeout_s=5)


def test_a_second_journal_in_the_folder_is_refused(opened: Opened, tmp_path: pathlib.Path) -> None:
    with pytest.raises(RemoteError) as caught:
        Journal(tmp_path, lambda: None, Metrics())
    assert caught.value.code == "ALREADY_RUNNING"


def test_each_start_is_an_incarnation_of_the_same_broker(tmp_path: pathlib.Path) -> None:
    seen = []
    for _ in range(3):
        opened = Opened(tmp_path)
        seen.append((opened.journal.broker, opened.journal.incarnation))
        opened.journal.close()
    assert [incarnation for _, incarnation in seen] == [1, 2, 3]
    assert len({broker for broker, _ in seen}) == 1


def test_another_schema_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    Opened(tmp_path).journal.close()
    with sqlite3.connect(tmp_path / "journal.db") as db:
        db.execute("UPDATE meta SET value = 99 WHERE key = 'schema_version'")
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(RemoteError, match="schema 99"):
        Opened(tmp_path)


def test_the_reader_answers_in_order_and_tells_damage(opened: Opened) -> None:
    woken = threading.Event()
    reader = Reader(opened.journal.path, woken.set)
    got: list[Any] = []
    for number in range(5):
        reader.ask(lambda db, n=number: n, got.append, got.append)  # type: ignore[misc]
    until(lambda: (reader.deliver() and len(got) == 5) or len(got) == 5)
    assert got == [0, 1, 2, 3, 4]

    def damaged(_: apsw.Connection) -> None:
        raise apsw.CorruptError("page 7")

    faults: list[Exception] = []
    reader.ask(damaged, got.append, faults.append)
    until(lambda: reader.deliver() or faults)
    assert "page 7" in str(faults[0])

    def broken(_: apsw.Connection) -> None:
        raise apsw.IOError("the disk is gone")

    reader.ask(broken, got.append, faults.append)
    until(lambda: reader.failure)
    with pytest.raises(OSError, match="the disk is gone"):
        reader.deliver()
    reader.close()
    with pytest.raises(apsw.ReadOnlyError):
        apsw.Connection(str(opened.journal.path), flags=apsw.SQLITE_OPEN_READONLY).execute(
            "DELETE FROM meta"
        )


class _CountingFile(apsw.VFSFile):
    writes = 0

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        _CountingFile.writes += 1
        super().xWrite(data, offset)


class _CountingVfs(apsw.VFS):
    def __init__(self) -> None:
        super().__init__("counting", "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _CountingFile("", name, flags)


_COUNTING = _CountingVfs()  # as long as the process: a connection must not outlive its VFS


def test_every_connection_goes_through_the_vfs_that_was_named(tmp_path: pathlib.Path) -> None:
    journal = Journal(tmp_path, lambda: None, Metrics(), vfs="counting")
    begun = _CountingFile.writes
    assert begun
    journal.record("events", EVENT, (1, 0, "name", "{}", 0), 2)
    journal.close()
    assert _CountingFile.writes > begun
    reader = Reader(journal.path, lambda: None, vfs="counting")
    reader.close()


def test_a_page_of_zeros_where_the_start_writes_does_not_keep_it_down(
    tmp_path: pathlib.Path,
) -> None:
    first = Opened(tmp_path)
    first.journal.close()
    with sqlite3.connect(first.journal.path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (root,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'meta'").fetchone()
    db.close()
    with open(first.journal.path, "r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(bytes(4096))
    second = Opened(tmp_path)
    assert second.journal.broker != first.journal.broker
    assert len(list(tmp_path.glob("journal.db.unreadable-*"))) >= 1
    second.wait(second.event(1))
    second.journal.close()


def test_a_log_that_lost_commits_is_named_and_kept(tmp_path: pathlib.Path, caplog: Any) -> None:
    (tmp_path / "first").mkdir()
    first = Opened(tmp_path / "first")
    for job in range(5):
        first.wait(first.event(job))
    shutil.copytree(tmp_path / "first", tmp_path / "killed")
    first.journal.close()
    log = tmp_path / "killed" / "journal.db-wal"
    body = bytearray(log.read_bytes())
    body[len(body) // 2] ^= 1
    log.write_bytes(body)
    second = Opened(tmp_path / "killed")
    assert second.metrics.journal_cuts == 1
    assert "transactions after that are cut off" in caplog.text
    (kept,) = log.parent.glob("journal.db-wal.damaged-*")
    assert kept.read_bytes() == body
    second.journal.close()
    third = Opened(tmp_path / "killed")
    assert third.metrics.journal_cuts == 0
    third.journal.close()


def test_a_result_that_is_gone_from_between_others_is_told() -> None:
    db = apsw.Connection(":memory:")
    bodies.register(db, pathlib.Path("nowhere"))
    db.execute(schema.SCHEMA)
    for sequence in (3, 4, 6):  # 1 and 2 were freed, 5 is gone
        head = ResultHead(sequence, 2, 1, sequence, 1, "q", 9, 8, 7, "proc")
        message = Results(1, sequence, head, 1, "n")
        row = records.result_row(encode(message), message, [b"p", b"m", b"", b""], (0, 0, 0), 2)
        db.execute(schema.ADD_RESULT, row)
    assert [(n, body is None) for n, body in read_results(db, 1, 0, 6)] == [
        (3, False), (4, False), (5, True), (6, False),
    ]  # fmt: skip
    assert [n for n, _ in read_results(db, 1, 4, 6)] == [5, 6]
