"""What can be told of a SQLite file of books by looking at it, even while another writes it."""

import pathlib
from collections.abc import Iterator

import apsw

from gristmill.ledger import chain_rows, intent_rows, schema

TABLES = (
    f"{schema.TABLES}{intent_rows.TABLES}{chain_rows.TABLES}"
    f"{schema.TRIGGERS}{intent_rows.TRIGGERS}{chain_rows.TRIGGERS}"
    f"PRAGMA user_version = {schema.VERSION};"
)


def check(db: apsw.Connection) -> Iterator[str]:
    """What SQLite's own look at a file finds wrong, in words."""
    for (told,) in db.execute("PRAGMA quick_check(5)"):
        if told != "ok":
            yield f"SQLite says: {told}"
    for (told,) in db.execute("SELECT \"table\" || ' ' || rowid FROM pragma_foreign_key_check"):
        yield f"a row of {told} refers to nothing"


def list_fault(db: apsw.Connection) -> str:
    """What of SQLite's list of tables is not as this release makes it, in words; empty for nothing.

    The list has no checksum of its own: a flipped bit changes a name, a check or a trigger.
    """
    fresh = apsw.Connection(":memory:")
    fresh.execute(TABLES)
    query = "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL"
    try:
        missing = set(fresh.execute(query)) - set(db.execute(query))
    except (apsw.Error, UnicodeDecodeError) as error:
        return f"the list of tables cannot be read: {error}"
    finally:
        fresh.close()
    names = sorted(str(name) for _, name, *_ in missing)
    return f"the list of tables is damaged: {', '.join(names[:5])} not as made" if names else ""


def open_for_reading(path: pathlib.Path, patience_ms: int = 10_000) -> apsw.Connection:
    """A SQLite file that another process may be writing."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    db.set_busy_timeout(patience_ms)
    return db
