"""Ways in which a disk spoils a SQLite file at rest. Each says what it did."""

import contextlib
import pathlib
import random
import sqlite3
from collections.abc import Callable

BLOCK = 4_096
FLIPS = 5  #: bits flipped in one copy


def _parts(path: pathlib.Path) -> list[pathlib.Path]:
    """The file and its log, if that has something."""
    log = path.with_name(path.name + "-wal")
    return [path, log] if log.exists() and log.stat().st_size else [path]


def _pick(path: pathlib.Path, dice: random.Random) -> pathlib.Path:
    parts = _parts(path)
    return dice.choices(parts, [part.stat().st_size for part in parts])[0]


def flip_bits(path: pathlib.Path, dice: random.Random) -> str:
    """Single bits anywhere in the file and its log."""
    done = []
    for _ in range(FLIPS):
        part = _pick(path, dice)
        body = bytearray(part.read_bytes())
        at, bit = dice.randrange(len(body)), dice.randrange(8)
        body[at] ^= 1 << bit
        part.write_bytes(body)
        done.append(f"{part.name}:{at}.{bit}")
    return "flipped " + " ".join(done)


def zero_block(path: pathlib.Path, dice: random.Random) -> str:
    """A block of zeros, as after a crash of some file systems."""
    part = _pick(path, dice)
    body = bytearray(part.read_bytes())
    at = dice.randrange(0, len(body), BLOCK)
    body[at : at + BLOCK] = bytes(min(BLOCK, len(body) - at))
    part.write_bytes(body)
    return f"zeroed {part.name}:{at}"


def truncate(path: pathlib.Path, dice: random.Random) -> str:
    """The end is gone."""
    part = _pick(path, dice)
    size = dice.randrange(part.stat().st_size)
    with open(part, "r+b") as file:
        file.truncate(size)
    return f"cut {part.name} at {size}"


def lose_log(path: pathlib.Path, dice: random.Random) -> str:
    """Somebody copied or removed the one without the other."""
    path.with_name(path.name + "-wal").unlink(missing_ok=True)
    return "removed the log"


def lose_index(path: pathlib.Path, dice: random.Random) -> str:
    """The index of the log, which is made anew."""
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    return "removed the log's index"


def append_garbage(path: pathlib.Path, dice: random.Random) -> str:
    """Bytes behind the end."""
    part = _pick(path, dice)
    size = dice.randrange(1, 3 * BLOCK)
    with open(part, "ab") as file:
        file.write(dice.randbytes(size))
    return f"{size} bytes behind {part.name}"


def nothing(path: pathlib.Path, dice: random.Random) -> str:
    """For the truth."""
    return "nothing"


def columns_of(path: pathlib.Path) -> list[tuple[str, str]]:
    """(table, column) of every table that has rows, in order."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        tables = [
            name
            for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
            if db.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone()
        ]
        return [
            (table, row[1]) for table in tables for row in db.execute(f"PRAGMA table_info({table})")
        ]


def flip_cell(path: pathlib.Path, table: str, column: str, dice: random.Random) -> str:
    """One bit of one value of a column; indexes follow, checksums of ours do not.

    The file is left as by a process that closed it: SQLite's own log goes when it is closed here.
    """
    for lock in path.parent.glob("*.lock"):
        lock.unlink()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for (trigger,) in db.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'trigger'"
        ).fetchall():
            db.execute(f"DROP TRIGGER {trigger}")
        db.execute("PRAGMA ignore_check_constraints = 1")
        keys = [row[1] for row in db.execute(f"PRAGMA table_info({table})") if row[5]] or ["rowid"]
        names = ", ".join(keys)
        rows = db.execute(f"SELECT {column}, {names} FROM {table}").fetchall()
        value, *key = dice.choice([row for row in rows if row[0] not in (b"", "", None)] or rows)
        for _ in range(20):  # not every change is a text, or free
            changed = _flipped(value, dice)
            where = " AND ".join(f"{name} IS ?" for name in keys)
            try:
                db.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (changed, *key))
            except sqlite3.IntegrityError:
                continue
            return f"{table}.{column} of {key}: {value!r:.80} is {changed!r:.80}"
        return f"{table}.{column} cannot be flipped"


def _flipped(value: object, dice: random.Random) -> object:
    if isinstance(value, int):
        return value ^ 1 << dice.randrange(max(1, value.bit_length()))
    if isinstance(value, str):
        at = dice.randrange(len(value)) if value else 0
        return value[:at] + chr(ord(value[at : at + 1] or "?") ^ 1) + value[at + 1 :]
    if isinstance(value, bytes):
        if not value:
            return b"\0"
        at = dice.randrange(len(value))
        return value[:at] + bytes([value[at] ^ 1 << dice.randrange(8)]) + value[at + 1 :]
    return 1


DAMAGES: dict[str, Callable[[pathlib.Path, random.Random], str]] = {
    "none": nothing,
    "flips": flip_bits,
    "zeroed": zero_block,
    "cut": truncate,
    "no-log": lose_log,
    "no-index": lose_index,
    "garbage": append_garbage,
}
