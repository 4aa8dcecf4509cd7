"""A new journal from what of a damaged one can be read.

A file with unreadable pages is copied row by row around them into a new one, which takes its place;
the damaged file stays beside it; each stretch that could not be read is named in ``quarantine``.
(What is cut from a torn log is found by ``wire/write_ahead.py``.)
"""

import dataclasses
import logging
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import apsw

from gristmill.broker import catalog, indexes, schema

log = logging.getLogger("gristmill.broker.salvage")

#: what is raised where a file makes no sense (its list of tables included: then tables or columns
#: of ours are unknown); an error of the disk is another thing
DAMAGED = (
    apsw.CorruptError, apsw.NotADBError, apsw.SQLError, apsw.TooBigError, catalog.ListDamagedError,
    indexes.IndexDamagedError,
)  # fmt: skip
#: while a damaged file is copied, a bad sector is no reason to stop
UNREADABLE = (*DAMAGED, apsw.IOError)

_LAST_ROWID = (1 << 63) - 1
_NUMBERS = ("schema_version", "incarnation", "outbox_acked")
_KEYED = ("meta", "nodes", "live_workers")  # without rowid: small, read from both ends
_BY_ROWID = (
    "jobs", "job_states", "open_jobs", "checkpoints", "parcels", "results", "events", "outbox",
    "quarantine", "tombstones", "lines",
)  # fmt: skip


# ---------------------------------------------------------------- files


def set_aside(path: pathlib.Path) -> pathlib.Path:
    """Moves a journal with its log to a name of its own; returns that name."""
    aside = path.with_name(f"{path.name}.unreadable-{time.time_ns()}")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def suspect_mark(path: pathlib.Path) -> pathlib.Path:
    """The file that says: a write found this journal damaged, look at all of it."""
    return path.with_name(path.name + ".suspect")


def _new_name(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".salvaged")


def finish_interrupted(path: pathlib.Path) -> None:
    """Before a journal is opened: what a crash left of a salvage, and a log without its file."""
    new = _new_name(path)
    if new.exists():
        if path.exists():
            new.unlink()  # it was not finished
        else:
            new.rename(path)
    wal = path.with_name(path.name + "-wal")
    is_empty = not path.exists() or not path.stat().st_size
    if is_empty and wal.exists() and wal.stat().st_size:
        aside = set_aside(path)
        log.critical(
            "journal file=%s is empty or missing, its log is not: both moved to %s; this start has"
            " no jobs. Restore the file from a backup beside its log to get them back",
            path, aside,
        )  # fmt: skip


# ---------------------------------------------------------------- rows


@dataclasses.dataclass(slots=True)
class Salvage:
    """What a salvage has done: rows by table, and stretches that could not be read."""

    aside: pathlib.Path
    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    lost: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def salvage(path: pathlib.Path, vfs: str | None = None) -> Salvage:
    """Puts a new journal in the place of a damaged one; nobody may have it open.

    Raises:
        apsw.Error: nothing of it can be read, or the disk is full.
    """
    new = _new_name(path)
    for suffix in ("", "-journal"):
        new.with_name(new.name + suffix).unlink(missing_ok=True)
    found = Salvage(path)
    source = _open_source(path, vfs, found)
    target = apsw.Connection(str(new), vfs=vfs)
    try:
        present = {name for (name,) in source.execute("SELECT name FROM sqlite_schema")}
        target.execute("PRAGMA synchronous=FULL")
        with target:
            target.execute(schema.SCHEMA)
            for table in (*_KEYED, *_BY_ROWID):
                if table in present:
                    _copy(source, target, table, found)
            target.execute(schema.LIST_OPEN)
            now_ms = time.time_ns() // 1_000_000
            for table, key in found.lost:
                row = (table, key, "could not be read", now_ms, b"")
                target.execute(schema.ADD_QUARANTINE, row)
    finally:
        source.close()
        target.close()
        catalog.remove_readable(path)
    found.aside = set_aside(path)
    os.rename(new, path)
    suspect_mark(path).unlink(missing_ok=True)
    for table, key in found.lost:
        log.critical("journal unreadable table=%s rows=%s: left out", table, key)
    log.critical(
        "journal salvaged file=%s rows=%d lost_stretches=%d: the damaged file is %s",
        path, sum(found.rows.values()), len(found.lost), found.aside,
    )  # fmt: skip
    return found


def _open_source(path: pathlib.Path, vfs: str | None, found: Salvage) -> apsw.Connection:
    """The damaged file; or, if its list of tables cannot be believed, a copy with another list."""
    source = apsw.Connection(str(path), vfs=vfs)
    source.set_busy_timeout(10_000)
    # So that a file that is shorter than its first page says is read as far as it goes.
    source.config(apsw.SQLITE_DBCONFIG_WRITABLE_SCHEMA, 1)
    try:
        catalog.check(source)
        catalog.check_size(source, path)
        return source
    except DAMAGED as error:
        source.close()
        log.critical("journal damaged file=%s error=%r: its list of tables", path, error)
    copy, lost = catalog.copy_readable(path)
    found.lost += [(name, "not found") for name in lost]
    source = apsw.Connection(str(copy), vfs=vfs)
    source.config(apsw.SQLITE_DBCONFIG_WRITABLE_SCHEMA, 1)
    return source


def _copy(source: apsw.Connection, target: apsw.Connection, table: str, found: Salvage) -> None:
    rows = _keyed(source, table, found) if table in _KEYED else _by_rowid(source, table, found)
    names = [row[1] for row in source.execute(f"PRAGMA table_info({table})")]  # of its own version
    insert = (
        f"INSERT OR IGNORE INTO {table}({','.join(names)}) VALUES({','.join('?' * len(names))})"
    )
    count = 0
    for row in rows:
        if table == "meta" and not _is_meta(row):
            if row[0] != catalog.SEAL:
                found.lost.append((table, f"row {row[0]!r:.60}"))
            continue
        try:
            target.execute(insert, row)
            count += target.changes()
            if not target.changes() and table in _BY_ROWID:  # another row has its unique key
                found.lost.append((table, f"row {row[0]!r:.60}"))
        except (apsw.ConstraintError, apsw.MismatchError):  # bit rot made it no row of ours
            found.lost.append((table, f"row {row[0]!r:.60}"))
    found.rows[table] = count


def _keyed(source: apsw.Connection, table: str, found: Salvage) -> Iterator[tuple[Any, ...]]:
    key = "key" if table == "meta" else "name"
    is_torn = False
    for order in ("", " DESC"):
        try:
            yield from _texts(
                source.execute(f"SELECT * FROM {table} ORDER BY {key}{order}"), table, found
            )
        except UNREADABLE:
            is_torn = True
        else:
            break
    if is_torn:
        found.lost.append((table, "some"))


def _is_meta(row: tuple[Any, ...]) -> bool:
    """Whether a start can use it. The new file's list of tables gets a seal of its own."""
    return row[0] != catalog.SEAL and (row[0] not in _NUMBERS or isinstance(row[1], int))


def _texts(rows: apsw.Cursor, table: str, found: Salvage) -> Iterator[tuple[Any, ...]]:
    """The rows without those in which bit rot made a text that is none."""
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except UnicodeDecodeError as error:  # the cursor is behind that row
            found.lost.append((table, f"a row: {error!s:.60}"))
        else:
            yield row


def _by_rowid(source: apsw.Connection, table: str, found: Salvage) -> Iterator[tuple[Any, ...]]:
    """Rows in order of rowid, around what cannot be read."""
    last = -1
    query = f"SELECT rowid, * FROM {table} NOT INDEXED WHERE rowid > ? ORDER BY rowid"
    while True:
        try:
            for rowid, *row in _texts(source.execute(query, (last,)), table, found):
                if rowid > last:
                    last = rowid
                    yield tuple(row)
            return
        except UNREADABLE:
            after = _next_readable(source, query, last)
        found.lost.append((table, f"{last + 1}..{'' if after is None else after}"))
        if after is None:
            return
        last = after


def _next_readable(source: apsw.Connection, query: str, last: int) -> int | None:
    """The lowest rowid found after which there is a row that can be read; None for no more."""
    low, step = last, 1
    while True:
        high = low + step
        if high > _LAST_ROWID >> 1:
            return None
        is_readable, is_end = _try(source, query, high)
        if is_end:
            return None
        if is_readable:
            break
        step *= 2
    while high - low > 1:
        middle = (low + high) // 2
        is_readable, _ = _try(source, query, middle)
        low, high = (low, middle) if is_readable else (middle, high)
    return high


def _try(source: apsw.Connection, query: str, after: int) -> tuple[bool, bool]:
    try:
        row = source.execute(query + " LIMIT 1", (after,)).fetchone()
    except UNREADABLE:
        return False, False
    except UnicodeDecodeError:
        return True, False
    return row is not None, row is None
