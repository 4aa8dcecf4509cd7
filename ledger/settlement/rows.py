"""settlement.db: intents, the lane, blocks, facts, epochs and vouchers, in one SQLite file.

WAL with ``synchronous=FULL``, one writer (a lock file says so). Each row has a checksum: a row
that is not what was written stops the process at its start, before it could be sent or paid.
"""

import contextlib
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, TypeVar

import apsw
import msgspec

from gristmill.ledger.settlement.core.chain_log import Block, Fact, Log
from gristmill.ledger.settlement.core.queue_records import Intent, Lane
from gristmill.wire.errors import RemoteError
from gristmill.wire.process import own_folder

VERSION = 1
FILE = "settlement.db"
_TABLES = """
CREATE TABLE rows (kind TEXT NOT NULL, key ANY NOT NULL, body BLOB NOT NULL, sum INTEGER NOT NULL,
  PRIMARY KEY (kind, key)) STRICT, WITHOUT ROWID;
CREATE TABLE facts (block INTEGER NOT NULL, at INTEGER NOT NULL, body BLOB NOT NULL,
  sum INTEGER NOT NULL, PRIMARY KEY (block, at)) STRICT, WITHOUT ROWID;
"""
_encode = msgspec.msgpack.Encoder().encode
_Kind = TypeVar("_Kind")


class _LaneRow(msgspec.Struct):
    next_nonce: int
    day: int
    spent_wei: int


class _LogRow(msgspec.Struct):
    start: int
    tip: int
    applied: int
    witnessed: int
    halted: str


class Rows:
    """One file of a settlement.

    Args:
        path: of the file; None for one in memory, which the simulator hands on itself.

    Raises:
        RemoteError: ``ALREADY_RUNNING``; ``INVALID_SPEC``: another release made it, or it is
            damaged.
    """

    def __init__(self, path: pathlib.Path | None) -> None:
        self.shown = str(path or "memory")
        self._lock = -1
        if path is not None:
            self._lock = own_folder(path.parent, "settlement")
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self.db = apsw.Connection(str(path) if path else ":memory:")
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.set_busy_timeout(5_000)
        ((version,),) = self.db.execute("PRAGMA user_version")
        if version == 0:
            self.db.execute(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version={VERSION}; COMMIT;")
        elif version != VERSION:
            raise self._refused(f"is of version {version}; this release reads {VERSION}")
        for (told,) in self.db.execute("PRAGMA quick_check(1)"):
            if told != "ok":
                raise self._refused(f"is damaged: {told}")

    def _refused(self, told: str) -> RemoteError:
        return RemoteError(
            "INVALID_SPEC",
            f"{self.shown} {told}",
            "restore it from a backup; without one, let the account's transactions become final, "
            "then begin with an empty folder: the chain and the ledger have the rest",
        )

    def close(self) -> None:
        """Close the file; what is committed is safe without it, too."""
        self.db.close()
        if self._lock >= 0:
            os.close(self._lock)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """All that is written in it is one transaction."""
        with self.db:
            yield

    # ------------------------------------------------------------ rows by kind and key

    def put(self, kind: str, key: str | int, value: Any) -> None:
        """Write a record; the one that was there is replaced."""
        body = _encode(value)
        self.db.execute(
            "INSERT INTO rows VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " body = excluded.body, sum = excluded.sum",
            (kind, key, body, _sum(f"{kind}/{key}", body)),
        )

    def remove(self, kind: str, key: str | int) -> None:
        """Remove a record, if it is there."""
        self.db.execute("DELETE FROM rows WHERE kind = ? AND key = ?", (kind, key))

    def get(self, kind: str, key: str | int, of: type[_Kind]) -> _Kind | None:
        """A record, or None."""
        for body, total in self.db.execute(
            "SELECT body, sum FROM rows WHERE kind = ? AND key = ?", (kind, key)
        ):
            return self._read(f"{kind}/{key}", body, total, of)
        return None

    def all(self, kind: str, of: type[_Kind]) -> list[_Kind]:
        """Every record of a kind, by key."""
        query = "SELECT key, body, sum FROM rows WHERE kind = ? ORDER BY key"
        return [
            self._read(f"{kind}/{key}", body, total, of)
            for key, body, total in self.db.execute(query, (kind,))
        ]

    def _read(self, name: str, body: bytes, total: int, of: type[_Kind]) -> _Kind:
        if _sum(name, body) != total:
            raise self._refused(f"is damaged: the row {name} is not what was written")
        return msgspec.msgpack.decode(body, type=of)

    # ------------------------------------------------------------ the queue

    def save_intent(self, intent: Intent) -> None:
        """Write an intent with all its attempts."""
        self.put("intent", intent.purpose, intent)

    def save_lane(self, next_nonce: int, day: int, spent_wei: int) -> None:
        """Write the lane's figures."""
        self.put("lane", 0, _LaneRow(next_nonce, day, spent_wei))

    def load_lane(self, lane: Lane) -> list[Intent]:
        """Fill in the lane's figures; every intent that was written."""
        row = self.get("lane", 0, _LaneRow)
        if row is not None:
            lane.next_nonce, lane.day, lane.spent_wei = row.next_nonce, row.day, row.spent_wei
        return self.all("intent", Intent)

    # ------------------------------------------------------------ the log of blocks

    def save_log(self, log: Log) -> None:
        """Write the cursor."""
        row = _LogRow(log.start, log.tip, log.applied, log.witnessed, log.halted)
        self.put("log", 0, row)

    def save_block(self, block: Block) -> None:
        """Write an unconfirmed block."""
        self.put("block", block.number, block)

    def forget_blocks(self, first: int, last: int) -> None:
        """Remove blocks of this range, both ends included."""
        self.db.execute(
            "DELETE FROM rows WHERE kind = 'block' AND key BETWEEN ? AND ?", (first, last)
        )

    def load_log(self, log: Log) -> bool:
        """Fill in the log; False when there was none."""
        row = self.get("log", 0, _LogRow)
        if row is None:
            return False
        log.start, log.tip, log.applied = row.start, row.tip, row.applied
        log.witnessed, log.halted = row.witnessed, row.halted
        log.blocks = {block.number: block for block in self.all("block", Block)}
        return True

    # ------------------------------------------------------------ facts

    def add_facts(self, facts: list[Fact]) -> None:
        """Write certain facts; one that is there is there once."""
        self.db.executemany(
            "INSERT INTO facts VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [(f.block, f.index, b := _encode(f), _sum(f"{f.block}/{f.index}", b)) for f in facts],
        )

    def drop_facts(self, above: int) -> None:
        """Remove facts of blocks above this one."""
        self.db.execute("DELETE FROM facts WHERE block > ?", (above,))

    def facts(self) -> Iterator[Fact]:
        """Every certain fact, in the chain's order."""
        query = "SELECT block, at, body, sum FROM facts ORDER BY block, at"
        for block, at, body, total in self.db.execute(query):
            yield self._read(f"{block}/{at}", body, total, Fact)


def _sum(name: str, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(name.encode()))
