"""Books in a SQLite file.

WAL with ``synchronous=FULL``, one connection in the whole machine (a lock file says so).
"""

import contextlib
import os
import pathlib
import shutil
import time
from collections.abc import Iterator

import apsw

from gristmill.ledger import schema
from gristmill.ledger.book import Book
from gristmill.ledger.engine import PostponedError, RefusedError
from gristmill.ledger.sqlite_checks import TABLES, check, list_fault
from gristmill.wire.errors import RemoteError
from gristmill.wire.process import own_folder
from gristmill.wire.units import format_bytes
from gristmill.wire.write_ahead import Mark

CHECKPOINT_PAGES = 1_000  #: of the log, between two checkpoints


class SqliteBook(Book):
    """One ledger file, opened for writing.

    Args:
        folder: has ``ledger.db``; made with mode 0700 if it is missing.
        vfs: name of the SQLite VFS, None for the system's own; proofs of durability give theirs.

    Raises:
        RemoteError: ``ALREADY_RUNNING`` when another process has it open; ``INVALID_SPEC`` when a
            newer release made it, or it is empty and was not.
        apsw.Error: it cannot be read at all.
    """

    begin = "BEGIN IMMEDIATE"
    db: apsw.Connection

    def __init__(self, folder: pathlib.Path, vfs: str | None = None) -> None:
        self.path = folder / "ledger.db"
        self._lock = own_folder(folder, "ledger")
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        super().__init__(apsw.Connection(str(self.path), vfs=vfs), str(self.path))
        # A process that ends after a failure closes its files, too; a log that went by that,
        # without the mark that says so, would look like a loss at the next start.
        self.db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._mark = Mark(self._lock, folder / "ledger.db-wal")
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute("PRAGMA foreign_keys=ON")
        self.db.execute("PRAGMA cache_size=-65536")
        self.db.set_busy_timeout(5_000)  # a person with a SQLite shell may be reading
        self.loss = self._find_loss()
        self.db.set_wal_hook(self._on_commit)
        try:
            self._make_tables()
        except RemoteError:
            self.db.close()
            os.close(self._lock)
            raise
        self.loss = self.loss or list_fault(self.db)

    def _make_tables(self) -> None:
        version = self._one("PRAGMA user_version")
        if version == 0:
            # The lock file has a mark since the first commit: these books were not always empty.
            is_new = self._one("PRAGMA page_count") <= 1 and not os.fstat(self._lock).st_size
            if not self.loss and not (is_new and self._one("SELECT 1 FROM sqlite_schema") is None):
                raise RemoteError(
                    "INVALID_SPEC",
                    f"{self.path} is damaged: its first page says that it has no books",
                    f"restore {self.path} from a backup; to begin with empty books, move "
                    f"{self.path.parent} away",
                )
            self.db.execute(f"BEGIN IMMEDIATE; {TABLES} COMMIT;")
        elif version != schema.VERSION:
            raise RemoteError(
                "INVALID_SPEC",
                f"{self.path} is of version {version}; this release reads {schema.VERSION}",
                "start the release that made it",
            )

    def _on_commit(self, connection: apsw.Connection, name: str, frames: int) -> int:
        """Notes how far the log has come; and what SQLite does where there is no hook."""
        self._mark.move(frames)
        if frames >= CHECKPOINT_PAGES:
            with contextlib.suppress(apsw.Error):  # tried again after the next commit
                connection.wal_checkpoint(name, apsw.SQLITE_CHECKPOINT_PASSIVE)
        return apsw.SQLITE_OK

    def _find_loss(self) -> str:
        """What SQLite leaves out of a damaged log without a word, in words; empty for nothing.

        What is found is kept beside the file and found again at each start, until somebody has
        looked at it and removed it: the books without it look like books in order.
        """
        log = self.path.with_name("ledger.db-wal")
        self._one("PRAGMA user_version")  # from here on the log is read
        frames, _ = self.db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        loss = self._mark.find_loss(max(0, frames))
        if loss is not None and loss.is_certain:
            aside = log.with_name(f"{log.name}.lost-{time.time_ns()}")
            if log.exists():
                shutil.copyfile(log, aside)
            with open(aside.with_name(aside.name + ".txt"), "w") as file:
                file.write(loss.told(log) + "\n")
        for kept in sorted(self.path.parent.glob("ledger.db-wal.lost-*.txt")):
            return f"{kept.read_text().strip()} (remove {kept} to accept that)"
        return ""

    def close(self) -> None:
        """Close the file; what is committed is safe without it too."""
        self._mark.close()
        self.db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        self.db.close()
        os.close(self._lock)

    def check(self) -> Iterator[str]:
        """What SQLite's own look at the file finds."""
        return check(self.db)

    def explain(self, error: Exception) -> Exception:
        """No room or a file that somebody holds is for now; what the tables refuse is not."""
        if isinstance(error, apsw.FullError | apsw.BusyError):
            return PostponedError(f"the ledger cannot write now: {error}")
        if isinstance(error, apsw.ConstraintError | apsw.CorruptError):
            return RefusedError(f"SQLite refuses: {error}")
        return error

    def size(self) -> str:
        """Bytes of the file and its log."""
        sizes = 0
        for name in (self.path, self.path.with_name("ledger.db-wal")):
            with contextlib.suppress(FileNotFoundError):
                sizes += name.stat().st_size
        return format_bytes(sizes)
