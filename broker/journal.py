"""The broker's journal: SQLite with one writing connection, one committer thread, group commit.

Each group is what was recorded during the last fsync; one that nobody waits for may grow for
``PATIENCE_S`` more, because a commit costs as much as the bookkeeping of a thousand subtasks. The
loop's thread records rows and calls ``pump``; the committer writes one group at a time in one
transaction (WAL, ``synchronous=FULL``) and wakes the loop. Whatever must not leave before the
commit waits for the number of its group.

A full disk loses nothing: the group is kept and tried again until there is room, and ``is_full``
says so meanwhile. Any other error of the disk is in ``failure``: the process must exit and
recover, because the kernel may have dropped the pages of the failed write.
"""

import contextlib
import itertools
import logging
import operator
import os
import pathlib
import queue
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import apsw

from gristmill.broker import bodies, catalog, indexes, salvage, schema
from gristmill.broker.metrics import Metrics
from gristmill.wire.errors import RemoteError
from gristmill.wire.process import own_folder
from gristmill.wire.write_ahead import Mark

log = logging.getLogger("gristmill.broker.journal")

JOURNAL_NAME = "journal.db"
RETRY_S = 0.5  #: a group that met a full disk is tried again after this long
PATIENCE_S = 0.005  #: how long rows wait that are in no hurry
PATIENCE_BYTES = 1 << 20  #: more of them than this do not
_CHECKPOINT_PAGES = 4_000
_STATEMENT = operator.itemgetter(0)

Rows = list[tuple[str, tuple[Any, ...]]]


class Group:
    """What is committed together: rows by table, so that one statement runs over many rows."""

    __slots__ = ("due_s", "number", "rows", "size_bytes", "tables")

    def __init__(self, number: int) -> None:
        self.number = number
        self.due_s = 0.0  # when it goes to disk, by the monotonic clock; 0 is at once
        self.tables: dict[str, Rows] = {}
        self.rows = 0
        self.size_bytes = 0


class Journal:
    """The file ``journal.db`` of a state folder; see the module's text.

    Args:
        folder: the state folder, there and ours.
        wake: called from the committer's thread when a group is on disk or failed.
        metrics: where groups and rows are counted.
        vfs: name of the SQLite VFS, None for the system's own; proofs of durability give theirs.

    ``committed``: number of the last group on disk. ``broker``: this broker's id, made at the first
    start. ``incarnation``: number of this start, from 1.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        wake: Callable[[], None],
        metrics: Metrics,
        vfs: str | None = None,
    ) -> None:
        self.path = folder / JOURNAL_NAME
        self.vfs = vfs
        self._lock = own_folder(folder, "broker")
        had_begun = os.fstat(self._lock).st_size > 0  # marked since the first commit
        self._metrics = metrics
        self._wake = wake
        self._log_path = self.path.with_name(self.path.name + "-wal")
        self._mark = Mark(self._lock, self._log_path)
        self._connection, is_salvaged = open_somehow(self.path, vfs, self._report_loss)
        metrics.journal_salvaged += is_salvaged
        self._connection.set_wal_hook(self._on_commit)
        try:
            self.broker, self.incarnation = _begin_incarnation(self._connection)
        except (*salvage.DAMAGED, apsw.ReadOnlyError, TypeError, ValueError) as error:
            if isinstance(error, apsw.ReadOnlyError) and not os.access(self.path, os.W_OK):
                raise
            log.critical("journal damaged file=%s error=%r: salvaged first", self.path, error)
            metrics.journal_salvaged += 1
            self._connection.close()
            self._mark.forget()
            self._connection = _open_salvaged(self.path, vfs)
            self._connection.set_wal_hook(self._on_commit)
            self.broker, self.incarnation = _begin_incarnation(self._connection)
        if had_begun and self.incarnation == 1:
            log.critical(
                "journal file=%s begins anew, although a broker had written it: it was removed or"
                " emptied, or cannot be read. Restore it from a backup to get its jobs back",
                self.path,
            )  # fmt: skip
        self.bodies = bodies.Bodies(folder)
        self.bodies.load(self._connection)
        self.committed = 0
        self.is_full = False
        self.failure: Exception | None = None
        self._open = Group(1)
        self._in_flight: Group | None = None
        self._finished = False
        self._chores: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._queue: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._commit_groups, name="committer", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ the loop's thread

    def record(
        self,
        table: str,
        statement: str,
        row: tuple[Any, ...],
        size_bytes: int,
        can_wait: bool = False,
    ) -> None:
        """Adds a row to the open group. Rows of one table keep their order.

        ``can_wait``: nobody waits for this row; it goes with the next that is awaited, or soon.
        """
        group = self._open
        if not can_wait:
            group.due_s = 0.0
        elif not group.rows:
            group.due_s = time.monotonic() + PATIENCE_S
        rows = group.tables.get(table)
        if rows is None:
            rows = group.tables[table] = []
        rows.append((statement, row))
        group.rows += 1
        group.size_bytes += size_bytes

    def add_chore(self, statement: str, row: tuple[Any, ...]) -> None:
        """A deletion that may be large: done chunk by chunk between groups.

        A chore that a crash interrupts is not taken up by itself: its owner finds what is left at
        the next start.
        """
        self._chores.append((statement, row))
        if self._in_flight is None and not self._open.rows:
            self.record("chore", "", (), 0)

    def salvage(self) -> None:
        """The file is damaged: goes on with a new one that has what can be read.

        Before anything was handed to the committer; what was recorded so far is recorded again.
        """
        assert self._in_flight is None
        self._open = Group(self._open.number)
        self._connection.close()
        self._mark.forget()
        self._connection = _open_salvaged(self.path, self.vfs)
        self._connection.set_wal_hook(self._on_commit)
        self.bodies.load(self._connection)

    def hurry(self) -> None:
        """Somebody waits for what was recorded so far."""
        self._open.due_s = 0.0

    @property
    def wait_s(self) -> float | None:
        """How long until ``pump`` has something to do by itself; None when it has not."""
        group = self._open
        if self._in_flight is not None or not group.rows:
            return None
        return max(0.0, group.due_s - time.monotonic())

    @property
    def group(self) -> int:
        """The group that everything recorded so far is part of (or came before)."""
        return self._open.number if self._open.rows else self._open.number - 1

    @property
    def is_idle(self) -> bool:
        """Everything recorded is on disk."""
        return self._in_flight is None and not self._open.rows

    @property
    def backlog_bytes(self) -> int:
        """What was recorded and is not on disk."""
        in_flight = self._in_flight
        return self._open.size_bytes + (in_flight.size_bytes if in_flight else 0)

    def pump(self) -> bool:
        """Takes note of a finished group, and hands the open one to an idle committer.

        Returns:
            whether a group was finished: look at ``committed``.

        Raises:
            OSError: the disk failed; the process must end.
        """
        if self.failure is not None:
            raise OSError(f"the journal {self.path} cannot be written: {self.failure!r}")
        is_done = False
        if self._finished:
            assert self._in_flight is not None
            self._finished = False
            self.committed = self._in_flight.number
            self._metrics.groups_committed += 1
            self._metrics.rows_committed += self._in_flight.rows
            self._in_flight = None
            is_done = True
        if self._in_flight is None:
            if not self._open.rows and self._chores and not self._stopping.is_set():
                self.record("chore", "", (), 0)
            if self._open.rows and self._is_due(self._open):
                self._in_flight, self._open = self._open, Group(self._open.number + 1)
                self._queue.put(self._in_flight)
        return is_done

    def _is_due(self, group: Group) -> bool:
        return (
            not group.due_s
            or group.size_bytes > PATIENCE_BYTES
            or self._stopping.is_set()
            or time.monotonic() >= group.due_s
        )

    def close(self, timeout_s: float = 30.0) -> None:
        """Commits everything recorded and closes the file.

        Raises:
            OSError: the disk failed or stayed full; what was not acknowledged is not on disk.
        """
        deadline = time.monotonic() + timeout_s
        self._stopping.set()
        self._chores.clear()
        while not self.is_idle and time.monotonic() < deadline:
            self.pump()
            if self._in_flight is not None and not self._finished:
                self._done.wait(0.05)
                self._done.clear()
        self._queue.put(None)
        self._thread.join(max(0.1, deadline - time.monotonic()))
        if not self.is_idle:
            raise OSError(f"the journal {self.path} could not be completed: {self.failure!r}")
        self.bodies.close()
        self._mark.close()
        self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        self._connection.close()
        os.close(self._lock)

    def _on_commit(self, connection: apsw.Connection, name: str, frames: int) -> int:
        """Notes how far the log has come; and what SQLite does where there is no hook."""
        self._mark.move(frames)
        if frames >= _CHECKPOINT_PAGES:
            with contextlib.suppress(apsw.Error):  # tried again after the next commit
                connection.wal_checkpoint(name, apsw.SQLITE_CHECKPOINT_PASSIVE)
        return apsw.SQLITE_OK

    def _report_loss(self, connection: apsw.Connection) -> None:
        """Names what SQLite leaves out of a damaged log, and keeps a copy of that log."""
        frames, _ = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        log_path = self._log_path
        loss = self._mark.find_loss(max(0, frames))
        if loss is None:
            return
        if not loss.is_certain:
            log.warning("journal tail: %s, as after a power cut", loss.told(log_path))
            return
        self._metrics.journal_cuts += 1
        aside = log_path.with_name(f"{log_path.name}.damaged-{time.time_ns()}")
        if log_path.exists():
            shutil.copyfile(log_path, aside)
            os.chmod(aside, 0o600)
        log.critical(
            "journal damaged: %s. This start has what was committed before; what was acknowledged "
            "after it is lost unless a backup has it. What is left of the log is kept as %s",
            loss.told(log_path), aside,
        )  # fmt: skip

    # ------------------------------------------------------------ the committer's thread

    def _commit_groups(self) -> None:
        try:
            while (group := self._queue.get()) is not None:
                while not self._write(group):
                    if self._stopping.wait(RETRY_S):
                        raise apsw.FullError("the disk stayed full while the broker ended")
                self._finish()
                self._run_chore()  # nobody waits for it
        except apsw.Error as error:
            self.failure = error
            if isinstance(error, salvage.DAMAGED):
                with contextlib.suppress(OSError):
                    salvage.suspect_mark(self.path).touch()  # the next start looks at all of it
        except BaseException as error:  # a thread's edge: the loop logs it and exits
            self.failure = error if isinstance(error, Exception) else RuntimeError(repr(error))
        finally:
            self._done.set()
            self._wake()

    def _finish(self) -> None:
        self._finished = True
        if self._stopping.is_set():  # nobody else waits by it
            self._done.set()
        self._wake()

    def _write(self, group: Group) -> bool:
        """Whether the group is on disk; False when the disk was full and nothing was changed."""
        cursor = self._connection.cursor()
        try:
            self.bodies.place(group.tables, self._connection)
            change, gone = self.bodies.added(group.tables), self.bodies.forgotten()
            cursor.execute("BEGIN IMMEDIATE")
            for table, rows in group.tables.items():
                if table == "chore":
                    continue
                for statement, run in itertools.groupby(rows, key=_STATEMENT):
                    cursor.executemany(statement, [row for _, row in run])
            cursor.executemany(schema.SET_META, self.bodies.rows(change))
            cursor.executemany(schema.DROP_META, [(f"{bodies.KEY}{number}",) for number in gone])
            cursor.execute("COMMIT")
        except (apsw.FullError, apsw.IOError, OSError) as error:
            if isinstance(error, OSError):
                is_full = bodies.is_full(error)
            else:
                is_full = isinstance(error, apsw.FullError)
            if not is_full and free_bytes(self.path.parent) >= 1 << 20:
                raise
            # SQLite has often rolled back by itself, so a savepoint would fail here.
            if self._connection.in_transaction:
                cursor.execute("ROLLBACK")
        else:
            self.bodies.committed(change)
            self.is_full = False
            return True
        if not self.is_full:
            log.error("journal full disk=%s rows=%d: kept, tried again", self.path, group.rows)
            self._metrics.journal_full += 1
            self.is_full = True
            self._wake()
        return False

    def _run_chore(self) -> None:
        if self._stopping.is_set():
            return
        try:
            statement, row = self._chores.popleft()
        except IndexError:
            return
        cursor = self._connection.cursor()
        try:
            cursor.execute("BEGIN IMMEDIATE")
            freed = bodies.freed_by(cursor.execute(statement, row).fetchall())
            is_over = self._connection.changes() == 0
            change = Counter(segment for segment, _, _ in freed)
            change = Counter({segment: -count for segment, count in change.items()})
            cursor.executemany(schema.SET_META, self.bodies.rows(change))
            cursor.execute("COMMIT")
            self.bodies.committed(change, freed)
        except apsw.FullError:
            is_over = False
            if self._connection.in_transaction:
                cursor.execute("ROLLBACK")
        if not is_over:
            self._chores.appendleft((statement, row))


def free_bytes(folder: pathlib.Path) -> int:
    """Free space of the file system that a folder is on, for us."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def open_somehow(
    path: pathlib.Path,
    vfs: str | None = None,
    inspect: Callable[[apsw.Connection], None] = lambda _: None,
) -> tuple[apsw.Connection, bool]:
    """(the journal's connection, whether the file was damaged).

    A damaged file is salvaged, one without anything is moved aside.

    ``inspect`` is called when the file can be read and nothing was written yet.
    """
    salvage.finish_interrupted(path)
    is_suspect = salvage.suspect_mark(path).exists()
    try:
        connection = _open(path, vfs, inspect, not is_suspect and indexes.is_small(path))
        if not is_suspect:
            return connection, False
        connection.close()
    except salvage.DAMAGED as error:
        log.critical("journal damaged file=%s error=%r", path, error)
    return _open_salvaged(path, vfs), True


def _open_salvaged(path: pathlib.Path, vfs: str | None) -> apsw.Connection:
    try:
        salvage.salvage(path, vfs)
    except salvage.DAMAGED as error:
        _set_aside(path, error)
    return _open(path, vfs, lambda _: None, False)  # its indexes are new


def _set_aside(path: pathlib.Path, error: Exception) -> None:
    aside = salvage.set_aside(path)
    log.critical(
        "journal unreadable file=%s error=%r: moved to %s; this start has no jobs. "
        "'sqlite3 %s .recover' may save rows",
        path, error, aside, aside,
    )  # fmt: skip


def _open(
    path: pathlib.Path,
    vfs: str | None,
    inspect: Callable[[apsw.Connection], None],
    is_looked_at: bool,
) -> apsw.Connection:
    connection = apsw.Connection(str(path), vfs=vfs)
    connection.set_busy_timeout(10_000)
    # A process that ends after a failure closes its files, too; a log that went by that, without
    # the mark that says so, would look like a loss at the next start.
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA journal_size_limit=67108864")
    connection.execute("PRAGMA cache_size=-32768")
    connection.execute("PRAGMA user_version").fetchall()  # from here on the log is read
    inspect(connection)
    catalog.check(connection)  # a table that is there by another name is no reason for an empty one
    if is_looked_at:
        indexes.check(connection)
    with connection:
        connection.execute(schema.SCHEMA)
    os.chmod(path, 0o600)
    return connection


def _begin_incarnation(connection: apsw.Connection) -> tuple[str, int]:
    """(id of this broker, number of this start); both on disk before anything else happens."""
    with connection:
        meta: dict[Any, Any] = dict(connection.execute("SELECT key, value FROM meta").fetchall())  # type: ignore[arg-type]
        version = meta.get("schema_version", schema.SCHEMA_VERSION)
        ((said, *_),) = connection.execute("PRAGMA user_version").fetchall()
        if said and said != version and schema.SCHEMA_VERSION in (said, version):
            log.error("journal damaged: schema %r by its meta, %r by its file", version, said)
            version = schema.SCHEMA_VERSION  # what both said when it was written here
        if not said:
            connection.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION}")
        if version in (1, 2, 3, 4, 5):
            connection.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION}")
            if version == 1:
                connection.execute(schema.LIST_OPEN)
            if not connection.execute(schema.HAS_EVENT_CRC).fetchall():
                connection.execute(schema.ADD_EVENT_CRC)
        elif version != schema.SCHEMA_VERSION:
            raise RemoteError(
                "PROTOCOL",
                f"the journal has schema {version}, this release writes {schema.SCHEMA_VERSION}",
                "start the release that wrote it, or give another --state",
            )
        broker = str(meta.get("broker") or os.urandom(8).hex())
        incarnation = int(meta.get("incarnation", 0)) + 1
        connection.executemany(
            schema.SET_META,
            [
                ("schema_version", schema.SCHEMA_VERSION),
                ("broker", broker),
                ("incarnation", incarnation),
                (catalog.SEAL, catalog.seal(connection)),
            ],
        )
    return broker, incarnation
