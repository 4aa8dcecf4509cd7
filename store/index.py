"""Who put which blob, and until when it is pinned: the rows beside the files.

SQLite in WAL mode with ``synchronous=FULL`` and one connection; the owner of this object holds a
lock around every call. A file without a row is an orphan of a crash: nobody can read it.
"""

import pathlib
import sqlite3
from collections.abc import Iterable

from gristmill.wire.errors import RemoteError

VERSION = 1

_TABLES = f"""
BEGIN IMMEDIATE;
CREATE TABLE blob(
  digest TEXT PRIMARY KEY CHECK(length(digest) = 64),
  size_bytes INTEGER NOT NULL CHECK(size_bytes >= 0),
  touched_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX blob_touched ON blob(touched_ms);
CREATE TABLE owner(
  digest TEXT NOT NULL REFERENCES blob ON DELETE CASCADE,
  tenant TEXT NOT NULL,
  PRIMARY KEY(digest, tenant)
) STRICT, WITHOUT ROWID;
CREATE TABLE pin(
  digest TEXT NOT NULL,
  tenant TEXT NOT NULL,
  owner TEXT NOT NULL,
  until_ms INTEGER NOT NULL,
  PRIMARY KEY(digest, tenant, owner),
  FOREIGN KEY(digest, tenant) REFERENCES owner ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
PRAGMA user_version = {VERSION};
COMMIT;
"""


class Index:
    """The rows of one store folder.

    Raises:
        RemoteError: ``INVALID_SPEC`` when a newer release made the file.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA foreign_keys=ON")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(_TABLES)
        elif version != VERSION:
            raise RemoteError(
                "INVALID_SPEC",
                f"{path} is of version {version}; this release reads {VERSION}",
                "start the release that made it",
            )

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def totals(self) -> tuple[int, int]:
        """(blobs, bytes)."""
        count, size = self._db.execute(
            "SELECT count(*), ifnull(sum(size_bytes), 0) FROM blob"
        ).fetchone()
        return count, size

    def size(self, digest: str) -> int | None:
        """Bytes of a blob that anybody put."""
        row = self._db.execute("SELECT size_bytes FROM blob WHERE digest = ?", (digest,)).fetchone()
        return row[0] if row else None

    def size_for(self, tenant: str, digest: str) -> int | None:
        """Bytes of a blob that this tenant put."""
        row = self._db.execute(
            "SELECT size_bytes FROM blob NATURAL JOIN owner WHERE digest = ? AND tenant = ?",
            (digest, tenant),
        ).fetchone()
        return row[0] if row else None

    def add(self, tenant: str, digest: str, size_bytes: int, now_ms: int) -> None:
        """The blob is there and this tenant put it; on disk at return."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.execute(
                "INSERT INTO blob VALUES(?, ?, ?) ON CONFLICT DO UPDATE SET touched_ms = ?",
                (digest, size_bytes, now_ms, now_ms),
            )
            self._db.execute(
                "INSERT INTO owner VALUES(?, ?) ON CONFLICT DO NOTHING", (digest, tenant)
            )
            self._db.execute("COMMIT")
        except sqlite3.Error:
            self._rollback()
            raise

    def remove(self, digests: Iterable[str]) -> None:
        """Forget blobs with their owners and pins."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany("DELETE FROM blob WHERE digest = ?", [(d,) for d in digests])
            self._db.execute("COMMIT")
        except sqlite3.Error:
            self._rollback()
            raise

    def _rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    # ------------------------------------------------------------ pins, collection

    def pins(self, digest: str) -> int:
        """Owners that pin a blob."""
        row = self._db.execute("SELECT count(*) FROM pin WHERE digest = ?", (digest,)).fetchone()
        return int(row[0])

    def pin(self, tenant: str, digest: str, owner: str, until_ms: int) -> None:
        """Set or replace one pin; the tenant must have put the blob."""
        self._db.execute(
            "INSERT INTO pin VALUES(?, ?, ?, ?) ON CONFLICT DO UPDATE SET until_ms = ?",
            (digest, tenant, owner, until_ms, until_ms),
        )

    def unpin(self, tenant: str, digest: str, owner: str) -> None:
        """Drop one pin, if it is there."""
        self._db.execute(
            "DELETE FROM pin WHERE digest = ? AND tenant = ? AND owner = ?", (digest, tenant, owner)
        )

    def loose(self, now_ms: int, before_ms: int, after: str, limit: int) -> list[tuple[str, int]]:
        """Blobs that nobody pins, last put before a time: (digest, bytes), by digest."""
        return self._db.execute(
            "SELECT digest, size_bytes FROM blob WHERE touched_ms < ? AND digest > ?"
            " AND NOT EXISTS (SELECT 1 FROM pin WHERE pin.digest = blob.digest AND until_ms > ?)"
            " ORDER BY digest LIMIT ?",
            (before_ms, after, now_ms, limit),
        ).fetchall()
