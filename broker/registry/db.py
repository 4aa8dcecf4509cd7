"""The registry's file: principals, tokens of nodes (their digests), and the log of every act.

WAL with ``synchronous=FULL``, one connection that writes (a lock file says so). Records of the log
are chained: each has the sha-256 of the chain before it and of its own columns, so that nobody
changes, drops or inserts one without changing all that follow. Triggers forbid it at once to
whoever comes with a SQLite shell. No secret is in the file: a person's token is a key of which the
public part is here, a node's token is here as its digest.
"""

import hashlib
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import apsw
import msgspec

from gristmill.broker.registry.core.changes import adopt_row, adopt_token
from gristmill.broker.registry.core.records import (
    Append,
    Effect,
    Policy,
    Row,
    SaveRow,
    SaveToken,
    State,
    Token,
)
from gristmill.wire.errors import RemoteError
from gristmill.wire.process import own_folder
from gristmill.wire.registry import Record

VERSION = 1  #: of the tables
FILE_NAME = "registry.db"
NO_CHAIN = bytes(32)  #: before the first record
_COLUMNS = (
    "number, at_ms, by, act, subject, name, version_before, version_after, state_before,"
    " state_after, why"
)
TABLES = f"""
CREATE TABLE principal(
  public TEXT PRIMARY KEY CHECK(length(public) = 64),
  name TEXT NOT NULL,
  role TEXT NOT NULL,
  state TEXT NOT NULL,
  version INTEGER NOT NULL CHECK(version > 0),
  change INTEGER NOT NULL REFERENCES record,
  body BLOB NOT NULL,
  crc INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX one_node_of_a_name ON principal(name) WHERE role = 'worker'
  AND state IN ('pending', 'approved', 'active', 'draining', 'quarantined');
CREATE UNIQUE INDEX one_token_of_a_name ON principal(name)
  WHERE role <> 'worker' AND state = 'active';

CREATE TABLE token(
  digest TEXT PRIMARY KEY CHECK(length(digest) = 64),
  name TEXT NOT NULL,
  state TEXT NOT NULL CHECK(state IN ('open', 'used', 'revoked', 'expired')),
  body BLOB NOT NULL,
  crc INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX one_open_token ON token(name) WHERE state = 'open';

CREATE TABLE record(
  number INTEGER PRIMARY KEY,
  at_ms INTEGER NOT NULL,
  by TEXT NOT NULL CHECK(by <> ''),
  act TEXT NOT NULL,
  subject TEXT NOT NULL,
  name TEXT NOT NULL,
  version_before INTEGER NOT NULL,
  version_after INTEGER NOT NULL,
  state_before TEXT NOT NULL,
  state_after TEXT NOT NULL,
  why TEXT NOT NULL,
  chain BLOB NOT NULL CHECK(length(chain) = 32)
) STRICT;
CREATE INDEX record_of_subject ON record(subject);

CREATE TRIGGER record_next BEFORE INSERT ON record
  WHEN NEW.number <> (SELECT coalesce(max(number), 0) + 1 FROM record)
  BEGIN SELECT RAISE(ABORT, 'not the next record'); END;
CREATE TRIGGER record_immutable BEFORE UPDATE ON record
  BEGIN SELECT RAISE(ABORT, 'no record is ever changed'); END;
CREATE TRIGGER record_stays BEFORE DELETE ON record
  BEGIN SELECT RAISE(ABORT, 'no record is ever deleted'); END;
CREATE TRIGGER principal_stays BEFORE DELETE ON principal
  BEGIN SELECT RAISE(ABORT, 'no principal is ever deleted'); END;
CREATE TRIGGER principal_version BEFORE UPDATE ON principal WHEN NOT (
    NEW.public = OLD.public AND NEW.name = OLD.name AND NEW.role = OLD.role AND (
      NEW.version = OLD.version AND NEW.state = OLD.state AND NEW.change = OLD.change
      OR NEW.version = OLD.version + 1 AND NEW.change > OLD.change))
  BEGIN SELECT RAISE(ABORT, 'a principal changes with its next version and a record'); END;
CREATE TRIGGER token_stays BEFORE DELETE ON token
  BEGIN SELECT RAISE(ABORT, 'no token is ever deleted'); END;
CREATE TRIGGER token_once BEFORE UPDATE ON token
  WHEN NEW.digest <> OLD.digest OR NEW.name <> OLD.name
    OR OLD.state <> 'open' AND NEW.state <> OLD.state
  BEGIN SELECT RAISE(ABORT, 'a token is used once'); END;
PRAGMA user_version = {VERSION};
"""

_encode = msgspec.msgpack.Encoder().encode
_decode_row = msgspec.msgpack.Decoder(Row).decode
_decode_token = msgspec.msgpack.Decoder(Token).decode


def chained(chain: bytes, record: Record) -> bytes:
    """The chain of a record after the one with ``chain``."""
    return hashlib.sha256(chain + _encode(_values(record))).digest()


def _values(record: Record) -> tuple[Any, ...]:
    return msgspec.structs.astuple(record)[:-1]  # all but the chain


class RegistryFile:
    """The file of one registry, opened for writing.

    Args:
        folder: has ``registry.db``; made with mode 0700 if it is missing.

    Raises:
        RemoteError: ``ALREADY_RUNNING``; ``INVALID_SPEC`` when it is not in order, or of another
            release.
        apsw.Error: it cannot be read at all.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.path = folder / FILE_NAME
        self._lock = own_folder(folder, "registry")
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self.db = apsw.Connection(str(self.path))
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        self.head = self._head()

    def _open(self) -> None:
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute("PRAGMA foreign_keys=ON")
        self.db.set_busy_timeout(5_000)  # a person with a SQLite shell may be reading
        version = _one(self.db, "PRAGMA user_version")
        if version == 0 and not self.db.execute("SELECT 1 FROM sqlite_schema").fetchone():
            self.db.execute(f"BEGIN IMMEDIATE; {TABLES} COMMIT;")
        elif version != VERSION:
            raise RemoteError(
                "INVALID_SPEC",
                f"{self.path} is of version {version}; this release reads {VERSION}",
                "start the release that made it, or restore it from a backup",
            )
        faults = [fault for fault, _ in zip(verify(self.db), range(5), strict=False)]
        if faults:
            raise RemoteError(
                "INVALID_SPEC",
                f"{self.path} is not in order: {'; '.join(faults)}",
                "restore it from a backup; brokers go on with what they know. See: gristmill audit"
                " verify",
            )

    def load(self, policy: Policy) -> State:
        """The state as of the last record."""
        state = State(policy)
        state.number = _one(self.db, "SELECT coalesce(max(number), 0) FROM record")
        for (body,) in self.db.execute("SELECT body FROM principal ORDER BY change"):
            adopt_row(state, _decode_row(body))
        for (body,) in self.db.execute("SELECT body FROM token"):
            adopt_token(state, _decode_token(body))
        return state

    def apply(self, effects: Iterable[Effect]) -> None:
        """Commit what is to be kept, all of it or nothing.

        Raises:
            apsw.Error: nothing was kept.
        """
        kept = [one for one in effects if isinstance(one, Append | SaveRow | SaveToken)]
        if not kept:
            return
        head = self.head
        self.db.execute("BEGIN IMMEDIATE")
        try:
            for effect in kept:
                if isinstance(effect, Append):
                    head = chained(head, effect.record)
                    self.db.execute(
                        f"INSERT INTO record({_COLUMNS}, chain) VALUES({'?, ' * 11}?)",
                        (*_values(effect.record), head),
                    )
                elif isinstance(effect, SaveRow):
                    self._save_row(effect.row)
                else:
                    self._save_token(effect.token)
            self.db.execute("COMMIT")
        except BaseException:
            if not self.db.get_autocommit():
                self.db.execute("ROLLBACK")
            raise
        self.head = head

    def _save_row(self, row: Row) -> None:
        principal, body = row.principal, _encode(row)
        self.db.execute(
            "INSERT INTO principal VALUES(?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(public) DO UPDATE SET"
            " state = excluded.state, version = excluded.version, change = excluded.change,"
            " body = excluded.body, crc = excluded.crc",
            (
                principal.public, principal.name, principal.role, principal.state,
                principal.version, row.change, body, zlib.crc32(body),
            ),
        )  # fmt: skip

    def _save_token(self, token: Token) -> None:
        body = _encode(token)
        self.db.execute(
            "INSERT INTO token VALUES(?, ?, ?, ?, ?) ON CONFLICT(digest) DO UPDATE SET"
            " state = excluded.state, body = excluded.body, crc = excluded.crc",
            (token.digest, token.name, token.state, body, zlib.crc32(body)),
        )

    def _head(self) -> bytes:
        row = self.db.execute("SELECT chain FROM record ORDER BY number DESC LIMIT 1").fetchone()
        return row[0] if row else NO_CHAIN

    def close(self) -> None:
        """Close the file; what is committed is safe without it too."""
        self.db.close()
        os.close(self._lock)


def _one(db: apsw.Connection, query: str) -> Any:
    row = db.execute(query).fetchone()
    assert row is not None
    return row[0]


def records(db: apsw.Connection, after: int, name: str, count: int) -> list[Record]:
    """The next records of the log, of one name where it is given."""
    rows = db.execute(
        f"SELECT {_COLUMNS}, lower(hex(chain)) FROM record WHERE number > ?"
        " AND (? = '' OR name = ? OR subject = ?) ORDER BY number LIMIT ?",
        (after, name, name, name, count),
    )
    return [Record(*row) for row in rows]


def open_for_reading(path: pathlib.Path) -> apsw.Connection:
    """A registry's file, also while its process writes it.

    Raises:
        RemoteError: ``INVALID_SPEC``: there is none, or it is another release's.
    """
    if not path.exists():
        raise RemoteError(
            "INVALID_SPEC", f"there is no registry at {path}", "name its state folder: --state DIR"
        )
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    db.set_busy_timeout(10_000)
    version = _one(db, "PRAGMA user_version")
    if version != VERSION:
        db.close()
        raise RemoteError(
            "INVALID_SPEC", f"{path} is of version {version}; this release reads {VERSION}"
        )
    return db


def verify(db: apsw.Connection) -> Iterator[str]:
    """What is not in order, in words: SQLite's own look, the chain from row one, the rows."""
    for (told,) in db.execute("PRAGMA quick_check(5)"):
        if told != "ok":
            yield f"SQLite says: {told}"
    yield from _list_faults(db)
    chain, expected = NO_CHAIN, 1
    last: dict[str, Record] = {}
    for *values, found in db.execute(f"SELECT {_COLUMNS}, chain FROM record ORDER BY number"):
        record = Record(*values)
        chain = chained(chain, record)
        if record.number != expected:
            yield f"record {expected} is missing: {record.number} is there instead"
            return
        if found != chain:
            yield (
                f"record {record.number} ({record.act} of {record.name} by {record.by}) is not what"
                " was written, or one before it"
            )
            return
        before = last.get(record.subject)
        if before and (before.version_after, before.state_after) != (
            record.version_before, record.state_before,
        ):  # fmt: skip
            yield (
                f"record {record.number} says that {record.name} was {record.state_before} in"
                f" version {record.version_before}; record {before.number} left it"
                f" {before.state_after} in version {before.version_after}"
            )
        last[record.subject] = record
        expected += 1
    yield from _row_faults(db, last)
    yield from _token_faults(db, last)


def _list_faults(db: apsw.Connection) -> Iterator[str]:
    """A trigger that somebody dropped."""
    fresh = apsw.Connection(":memory:")
    fresh.execute(TABLES)
    query = "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL"
    missing = {row[:2] for row in set(fresh.execute(query)) - set(db.execute(query))}
    fresh.close()
    for kind, name in sorted(missing):
        yield f"{kind} {name} is not as it was made"


def _row_faults(db: apsw.Connection, last: dict[str, Record]) -> Iterator[str]:
    query = "SELECT public, name, role, state, version, change, body, crc FROM principal"
    for public, name, role, state, version, change, body, crc in db.execute(query):
        record = last.get(public)
        try:
            row = _decode_row(body)
        except msgspec.DecodeError as error:
            yield f"{role} {name} cannot be read: {error}"
            continue
        kept = row.principal
        if zlib.crc32(body) != crc or (public, name, role, state, version, change) != (
            kept.public, kept.name, kept.role, kept.state, kept.version, row.change,
        ):  # fmt: skip
            yield f"the row of {role} {name} does not agree with itself"
        elif record is None or (state, version) != (record.state_after, record.version_after):
            there = (
                f"{record.state_after} in version {record.version_after}" if record else "nothing"
            )
            yield f"{role} {name} is {state} in version {version}; the log says {there}"


def _token_faults(db: apsw.Connection, last: dict[str, Record]) -> Iterator[str]:
    for digest, name, state, body, crc in db.execute("SELECT * FROM token"):
        try:
            token = _decode_token(body)
        except msgspec.DecodeError as error:
            yield f"the token of {name} cannot be read: {error}"
            continue
        record = last.get(token.subject)
        told = (token.digest, token.name, token.state)
        if zlib.crc32(body) != crc or told != (digest, name, state):
            yield f"the token of {name} does not agree with itself"
        elif record is None or record.state_after != state:
            yield f"the token of {name} is {state}; the log says otherwise"
