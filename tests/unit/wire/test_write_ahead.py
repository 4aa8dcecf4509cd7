"""What SQLite hides of a damaged log is found, and nothing is where it hides nothing."""

import os
import pathlib
import shutil
import struct
from collections.abc import Callable, Iterator

import apsw
import pytest

from gristmill.wire.write_ahead import Loss, Mark

FRAME = 24 + 4096


class Database:
    """A database with a mark, and copies of it as a crash leaves them."""

    def __init__(self, folder: pathlib.Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.path, self.log = folder / "x.db", folder / "x.db-wal"
        self.lock = os.open(folder / "x.lock", os.O_RDWR | os.O_CREAT)
        self.mark = Mark(self.lock, self.log)
        self.db = apsw.Connection(str(self.path))
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA wal_autocheckpoint=0")
        self.db.execute("PRAGMA user_version").fetchall()
        self.frames, _ = self.db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        self.loss = self.mark.find_loss(self.frames)
        self.db.set_wal_hook(self._moved)

    def _moved(self, db: apsw.Connection, name: str, frames: int) -> int:
        self.mark.move(frames)
        return apsw.SQLITE_OK

    def write(self, times: int) -> None:
        self.db.execute("CREATE TABLE IF NOT EXISTS t(x)")
        for number in range(times):
            self.db.execute("INSERT INTO t VALUES(?)", (number,))

    def rows(self) -> int:
        return int(self.db.execute("SELECT count(*) FROM t").fetchall()[0][0])

    def crash(self, to: pathlib.Path, damage: Callable[[pathlib.Path], None]) -> "Database":
        """What is found after a kill, when this was done to the log meanwhile."""
        shutil.copytree(self.folder, to)
        (to / "x.db-shm").unlink()
        damage(to / "x.db-wal")
        return Database(to)

    def close(self) -> None:
        self.db.close()
        os.close(self.lock)


@pytest.fixture
def database(tmp_path: pathlib.Path) -> Iterator[Database]:
    made = Database(tmp_path / "first")
    made.write(10)
    yield made
    made.close()


def flip(at: int) -> Callable[[pathlib.Path], None]:
    def damage(log: pathlib.Path) -> None:
        body = bytearray(log.read_bytes())
        body[at] ^= 4
        log.write_bytes(body)

    return damage


def test_a_kill_alone_loses_nothing(database: Database, tmp_path: pathlib.Path) -> None:
    found = database.crash(tmp_path / "second", lambda log: None)
    assert (found.loss, found.rows()) == (None, 10)
    found.close()


@pytest.mark.parametrize("frame", [0, 1, 5, 9])
@pytest.mark.parametrize("offset", [2, 9, 17, 24 + 100], ids=["page", "salt", "checksum", "body"])
@pytest.mark.parametrize("has_mark", [True, False])
def test_a_flipped_bit_in_a_frame(
    database: Database, tmp_path: pathlib.Path, frame: int, offset: int, has_mark: bool
) -> None:
    def damage(log: pathlib.Path) -> None:
        flip(32 + frame * FRAME + offset)(log)
        if not has_mark:
            log.with_name("x.lock").unlink()

    found = database.crash(tmp_path / "second", damage)
    assert found.frames <= frame
    assert found.loss is not None
    # The commit whose own salt is flipped is not known as one.
    assert found.loss.is_certain and 10 - frame - 1 <= found.loss.commits <= 11 - found.frames + 1
    assert "cut off" in found.loss.told(found.log)
    found.close()


@pytest.mark.parametrize("at", range(0, 32, 3))
def test_a_flipped_bit_in_the_header(database: Database, tmp_path: pathlib.Path, at: int) -> None:
    found = database.crash(tmp_path / "second", flip(at))
    assert found.frames == 0
    assert found.loss is not None and found.loss.is_certain and found.loss.commits >= 10
    found.close()


@pytest.mark.parametrize("size", [0, 20, 32, 5_000, 32 + 3 * FRAME, 32 + 9 * FRAME + 1])
def test_a_log_that_ends_too_soon(database: Database, tmp_path: pathlib.Path, size: int) -> None:
    found = database.crash(tmp_path / "second", lambda log: os.truncate(log, size))
    assert found.loss == Loss(found.frames, -1, True)
    found.close()


def test_a_log_that_is_gone(database: Database, tmp_path: pathlib.Path) -> None:
    found = database.crash(tmp_path / "second", lambda log: log.unlink())
    assert found.loss is not None and found.loss.is_certain
    assert "is missing" in found.loss.told(found.log)
    found.close()


def test_a_closed_database_has_no_log(database: Database, tmp_path: pathlib.Path) -> None:
    database.mark.close()
    database.db.close()
    assert not database.log.exists()
    shutil.copytree(database.folder, tmp_path / "second")
    found = Database(tmp_path / "second")
    assert (found.loss, found.rows()) == (None, 10)
    found.close()


def test_frames_of_a_log_before_the_last_checkpoint_are_no_loss(
    database: Database, tmp_path: pathlib.Path
) -> None:
    database.db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
    database.write(2)
    assert database.log.stat().st_size > 32 + 8 * FRAME  # the old ones are still behind
    for name, has_mark in (("marked", True), ("unmarked", False)):
        found = database.crash(
            tmp_path / name,
            lambda log, has_mark=has_mark: None if has_mark else log.with_name("x.lock").unlink(),
        )
        assert (found.loss, found.rows()) == (None, 12)
        found.close()


def test_a_mark_that_is_older_than_the_log_is_no_loss(
    database: Database, tmp_path: pathlib.Path
) -> None:
    old = (database.folder / "x.lock").read_bytes()
    database.db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
    database.write(1)
    found = database.crash(
        tmp_path / "second", lambda log: log.with_name("x.lock").write_bytes(old) and None
    )
    assert (found.loss, found.rows()) == (None, 11)
    found.close()


def test_a_last_transaction_that_was_never_synced_is_not_certain(
    database: Database, tmp_path: pathlib.Path
) -> None:
    before = (database.folder / "x.lock").read_bytes()
    database.write(1)

    def power_cut(log: pathlib.Path) -> None:
        log.with_name("x.lock").write_bytes(before)
        size = log.stat().st_size
        flip(size - 100)(log)

    found = database.crash(tmp_path / "second", power_cut)
    assert found.loss is not None and not found.loss.is_certain and found.loss.commits == 1
    assert found.rows() == 10
    found.close()


def test_no_log_and_no_mark_is_a_new_database(tmp_path: pathlib.Path) -> None:
    found = Database(tmp_path / "new")
    assert found.loss is None
    assert struct.calcsize("<4sIIQ") >= (tmp_path / "new" / "x.lock").stat().st_size
    found.close()


def test_a_log_that_began_anew_with_a_larger_commit_is_marked_as_itself(
    database: Database, tmp_path: pathlib.Path
) -> None:
    database.db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
    with database.db:  # one commit of more frames than the log ever had
        database.db.execute("CREATE TABLE large(x)")
        for _ in range(40):
            database.db.execute("INSERT INTO large VALUES(zeroblob(8000))")

    def cut(log: pathlib.Path) -> None:
        os.truncate(log, 32 + 3 * FRAME)

    found = database.crash(tmp_path / "cut", cut)
    assert found.loss is not None and found.loss.is_certain
    found.close()
