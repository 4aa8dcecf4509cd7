"""Books in a PostgreSQL database: the same tables, rules and chains as in a SQLite file.

One writer: an advisory lock says so. ``synchronous_commit`` is on, and a server without ``fsync``
is refused. The statements are those of the other books; what differs is said here.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from gristmill.ledger import chain_postgres, chain_rows, intent_postgres, intent_rows, schema
from gristmill.ledger.book import Book
from gristmill.ledger.engine import GoneError, PostponedError, RefusedError, Row
from gristmill.wire.errors import RemoteError
from gristmill.wire.units import format_bytes

_LOCK = 0x6D696C6C  #: of pg_advisory_lock: one ledger for each database
_PAGE_ROWS = 2_000  #: fetched at a time of what may be long
_TYPES = (
    (" STRICT, WITHOUT ROWID", ""),
    (" STRICT", ""),
    (" INTEGER", " BIGINT"),
    (" BLOB", " BYTEA"),
)
_FOR_NOW = (
    psycopg.errors.DiskFull,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    psycopg.errors.OutOfMemory,
)
_REFUSED = (
    psycopg.errors.IntegrityError,
    psycopg.errors.RaiseException,
    psycopg.errors.DataError,
    psycopg.errors.ProgrammingError,
)


class _Int(psycopg.adapt.Loader):
    """Sums of 64-bit numbers come as ``numeric``; ours are whole."""

    def load(self, data: Any) -> int:
        """The number."""
        return int(bytes(data))


class _Found:
    """Rows of a query, a page at a time."""

    def __init__(self, cursor: "psycopg.ServerCursor[Row]") -> None:
        self._cursor = cursor

    def __iter__(self) -> Iterator[Row]:
        with self._cursor as cursor:
            while page := cursor.fetchmany(_PAGE_ROWS):
                yield from page

    def fetchone(self) -> Row | None:
        """The first row; there are no more."""
        with self._cursor as cursor:
            return cursor.fetchone()


class Connection:
    """A connection as ``ledger/engine.py`` wants it."""

    def __init__(self, url: str) -> None:
        self._raw = psycopg.connect(url, autocommit=True)
        self._raw.adapters.register_loader("numeric", _Int)
        self._cursor = self._raw.cursor()
        self._cursors = 0
        info = self._raw.info
        self.place = f"the database {info.dbname} of {info.host or 'this host'}"

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """One statement, ``?`` for values; what a query without any finds comes in pages."""
        if values or not statement.startswith("SELECT"):
            return self._cursor.execute(_translated(statement), values or None)
        self._cursors += 1
        cursor = self._raw.cursor(f"found{self._cursors}", withhold=True)
        cursor.execute(statement)
        return _Found(cursor)

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """The same for each row of values."""
        self._cursor.executemany(_translated(statement), rows)

    @property
    def in_transaction(self) -> bool:
        """Between BEGIN and COMMIT, or the ROLLBACK that an error asks for."""
        return self._raw.info.transaction_status in (
            TransactionStatus.INTRANS,
            TransactionStatus.INERROR,
        )

    def close(self) -> None:
        """Close it; what is committed stays."""
        self._raw.close()


@functools.lru_cache(maxsize=256)
def _translated(statement: str) -> str:
    return statement.replace("%", "%%").replace("?", "%s")


class PostgresBook(Book):
    """The books of one database, opened for writing.

    Args:
        url: ``postgresql://...``; the role must own the database, or have none of its tables yet.

    Raises:
        RemoteError: ``ALREADY_RUNNING`` when another ledger has it open; ``INVALID_SPEC`` when
            another release made its tables, or the server does not sync; ``UNREACHABLE``.
    """

    db: Connection

    def __init__(self, url: str) -> None:
        try:
            db = Connection(url)
        except psycopg.OperationalError as error:
            raise RemoteError(
                "UNREACHABLE",
                f"the database of --books cannot be reached: {error}",
                "start PostgreSQL, or correct --books",
            ) from None
        super().__init__(db, db.place)
        try:
            self._open()
        except BaseException:
            db.close()
            raise

    def _open(self) -> None:
        (is_ours,) = self.db.execute(f"SELECT pg_try_advisory_lock({_LOCK})").fetchone()
        if not is_ours:
            raise RemoteError(
                "ALREADY_RUNNING",
                f"another ledger has {self.place} open",
                "stop it, or name another database with --books",
            )
        if self._one("SELECT current_setting('fsync')") != "on":
            raise RemoteError(
                "INVALID_SPEC",
                f"the server of {self.place} runs with fsync off: a commit would promise nothing",
                "set fsync = on in postgresql.conf",
            )
        self.db.execute("SET synchronous_commit = on")
        if self._one("SELECT to_regclass('ledger_version')") is None:
            self.db.execute("BEGIN")
            self.db.execute(_script())
            self.db.execute("INSERT INTO ledger_version VALUES(?)", (schema.VERSION,))
            self.db.execute("COMMIT")
        version = self._one("SELECT version FROM ledger_version")
        if version != schema.VERSION:
            raise RemoteError(
                "INVALID_SPEC",
                f"{self.place} is of version {version}; this release reads {schema.VERSION}",
                "start the release that made it",
            )

    def check(self) -> Iterator[str]:
        """Triggers that somebody took away or switched off."""
        return check(self.db)

    def explain(self, error: Exception) -> Exception:
        """No room is for now; what the tables refuse is not, and a lost server is neither."""
        if isinstance(error, _FOR_NOW):
            return PostponedError(f"the ledger cannot write now: {error}")
        if isinstance(error, psycopg.OperationalError) and self.db._raw.closed:
            return GoneError(f"{self.place} is gone: {str(error).strip()}")
        if isinstance(error, _REFUSED):
            return RefusedError(f"PostgreSQL refuses: {error}")
        return error

    def size(self) -> str:
        """Bytes of the database."""
        return format_bytes(self._one("SELECT pg_database_size(current_database())"))

    def close(self) -> None:
        """Close the connection, and let another ledger have the database."""
        self.db.close()


def check(db: Connection) -> Iterator[str]:
    """What of the triggers is not as this release makes them, in words."""
    query = "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgenabled = 'O'"
    there = {name for (name,) in db.execute(query)}
    for name in _TRIGGERS:
        if name not in there:
            yield f"the trigger {name} is missing or switched off"


# ---------------------------------------------------------------- what SQLite says otherwise

_HELD = """
  IF NOT EXISTS (SELECT 1 FROM transfer AS held WHERE held.number = NEW.pending
      AND held.kind = 1 AND held.debit = NEW.debit) THEN
    RAISE EXCEPTION 'not out of a pending transfer of this account';
  END IF;
  IF EXISTS (SELECT 1 FROM transfer AS ended
      WHERE ended.pending = NEW.pending AND ended.kind IN (3, 4)) THEN
    RAISE EXCEPTION 'the pending transfer is void';
  END IF;
"""
_OVERLAP = """
  IF NEW.first < (SELECT past.first + past.count FROM contribution AS past
      WHERE past.hold = NEW.hold AND past.replica = NEW.replica AND past.attempt = NEW.attempt
        AND past.first < NEW.first + NEW.count ORDER BY past.first DESC LIMIT 1) THEN
    RAISE EXCEPTION 'overlaps what is billed';
  END IF;
  IF EXISTS (SELECT 1 FROM hold WHERE id = NEW.hold AND closed_ms > 0) THEN
    RAISE EXCEPTION 'the hold is released';
  END IF;
"""
_ACCOUNT_NAME = """
  IF (NEW.id, NEW.name, NEW.may_overdraw) <> (OLD.id, OLD.name, OLD.may_overdraw) THEN
    RAISE EXCEPTION 'an account keeps its name';
  END IF;
"""
_HOLD_AMOUNT = """
  IF (NEW.id, NEW.ref, NEW.tenant, NEW.amount, NEW.rental)
      <> (OLD.id, OLD.ref, OLD.tenant, OLD.amount, OLD.rental) THEN
    RAISE EXCEPTION 'a hold keeps its amount';
  END IF;
  IF OLD.closed_ms > 0 THEN
    RAISE EXCEPTION 'the hold is released';
  END IF;
"""
#: name: (when, on which table, for which rows, what it does before it lets the row be)
_TRIGGERS: dict[str, tuple[str, str, str, str]] = {
    "transfer_of_hold": ("INSERT", "transfer", "WHEN (NEW.kind IN (2, 3, 4))", _HELD),
    "contribution_overlap": ("INSERT", "contribution", "", _OVERLAP),
    "account_identity": ("UPDATE", "account", "", _ACCOUNT_NAME),
    "hold_identity": ("UPDATE", "hold", "", _HOLD_AMOUNT),
    **{
        f"{table}_stays": (
            "DELETE",
            table,
            "",
            f"RAISE EXCEPTION 'no {table} is ever deleted';",
        )
        for table in schema.NEVER_DELETED
    },
    **{
        f"{table}_immutable": (
            "UPDATE",
            table,
            "",
            f"RAISE EXCEPTION 'no {table} is ever changed';",
        )
        for table in schema.NEVER_CHANGED
    },
    **intent_postgres.TRIGGERS,
    **chain_postgres.TRIGGERS,
}


def _script() -> str:
    """The tables of ``ledger/schema.py`` and their triggers, in PostgreSQL's words."""
    tables = schema.TABLES + intent_rows.TABLES + chain_rows.TABLES
    for theirs, ours in _TYPES:
        tables = tables.replace(theirs, ours)
    parts = [tables, "CREATE TABLE ledger_version(version BIGINT NOT NULL);"]
    for name, (when, table, which, body) in _TRIGGERS.items():
        parts.append(
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}"
            " RETURN NEW; END $$;"
            f"CREATE TRIGGER {name} BEFORE {when} ON {table} FOR EACH ROW {which}"
            f" EXECUTE FUNCTION {name}();"
        )
    return "\n".join(parts)
