"""The journal's list of tables: whether it is what it was, and reading a file in which it is not.

SQLite keeps its list of tables (``sqlite_schema``) in a table without checksums, on the first page.
One flipped bit there gives a table another name, and a start that makes what is missing would then
work with an empty one; or it points a name to another page. So the list has a seal in ``meta``,
compared before anything is made.

A file whose list does not fit is read by a copy with a list that is made anew: tables lie where a
fresh journal has them (their order is fixed), or where what is left of the list says, or else where
the only rows of their shape are. (Format: https://sqlite.org/fileformat2.html.)
"""

import dataclasses
import logging
import mmap
import os
import pathlib
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import apsw

from gristmill.broker import schema

log = logging.getLogger("gristmill.broker.catalog")

SEAL = "schema"  #: key in ``meta``
PAGE = 4096
_HEADER_BYTES = 100
_ROWS = "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema ORDER BY type, name"
#: what files of a version may lack, from before their seal: made since, without a new version
_SINCE_4 = ("lines", "lines_at")
_SINCE_2 = (*_SINCE_4, "live_workers", "tombstones", "tombstones_submission")
_MAY_LACK: dict[int, tuple[str, ...]] = {
    1: (*_SINCE_2, "open_jobs", "checkpoints"),
    2: _SINCE_2,
    3: _SINCE_4,
    4: _SINCE_4,
}


class ListDamagedError(Exception):
    """The list of tables is not what it was."""


# ---------------------------------------------------------------- the seal


def seal(connection: apsw.Connection) -> str:
    """What ``meta`` keeps of the list as it is: SQLite's count of its changes, and a checksum."""
    rows = connection.execute(_ROWS).fetchall()
    return f"{_number(connection, 'schema_version')}:{zlib.crc32(repr(rows).encode()):08x}"


def check(connection: apsw.Connection) -> None:
    """Whether the list is what it was; before anything is written.

    Raises:
        ListDamagedError: it is not; the tables that it shows must not be believed.
        apsw.Error: SQLite itself cannot read it.
    """
    try:
        _check(connection)
    except UnicodeDecodeError as error:
        raise ListDamagedError(f"a name that is no text: {error}") from None


def _check(connection: apsw.Connection) -> None:
    rows = connection.execute(_ROWS).fetchall()
    version = _number(connection, "user_version")
    if not rows:
        pages = _number(connection, "page_count")
        if pages > 1 or version:
            raise ListDamagedError(f"no tables in a file of {pages} pages")
        return
    found = {str(name): _plain(sql) for _, name, _, _, sql in rows if sql}
    if "meta" not in found:
        raise ListDamagedError("meta is not in the list of tables")
    meta: dict[Any, Any] = dict(connection.execute("SELECT key, value FROM meta").fetchall())  # type: ignore[arg-type]
    if version and not meta:
        raise ListDamagedError("meta is empty")
    said = str(meta.get(SEAL, ""))
    now = seal(connection)
    if said == now:
        return
    if said.partition(":")[0] == now.partition(":")[0]:
        raise ListDamagedError("the list of tables does not have its checksum")
    # No seal yet, or somebody has changed the list by SQLite (VACUUM does): then its words count.
    if version == meta.get("schema_version", 0) > schema.SCHEMA_VERSION:
        return  # of a newer release; whoever reads meta refuses it
    versions = [v for v in (version, meta.get("schema_version")) if v in _MAY_LACK]
    may_lack = _MAY_LACK[max(versions)] if versions and not said else ()
    for name, sql in _model().words.items():
        if name not in found and name not in may_lack:
            raise ListDamagedError(f"{name} is not in the list of tables")
        if found.get(name, sql) not in (sql, _without_default(sql)):
            raise ListDamagedError(f"{name} is not made as it was: {found[name]:.200}")
    roots = Counter(root for *_, root, _ in rows if root)
    if max(roots.values()) > 1:
        raise ListDamagedError("two tables lie on one page")
    strangers = found.keys() - _model().words.keys()
    if strangers and not _model().words.keys() <= found.keys():
        raise ListDamagedError(f"not tables of a journal: {', '.join(sorted(strangers))}")


def check_size(connection: apsw.Connection, path: pathlib.Path) -> None:
    """Whether SQLite sees the whole file: its first page says how far it goes.

    Raises:
        ListDamagedError: there are pages behind that.
    """
    pages, there = _number(connection, "page_count"), path.stat().st_size // PAGE
    if pages < there:
        raise ListDamagedError(f"{there} pages, of which its first says {pages}")


def _number(connection: apsw.Connection, pragma: str) -> int:
    ((number, *_),) = connection.execute(f"PRAGMA {pragma}").fetchall()
    return int(number)  # type: ignore[arg-type]


def _plain(sql: Any) -> str:
    """A statement without its white space, which a change of a table moves."""
    return "".join(str(sql).split())


def _without_default(sql: str) -> str:
    """The same table before a column with a default value was added to it."""
    head, comma, last = sql.rpartition(",")
    return f"{head}){last.partition(')')[2]}" if comma and "DEFAULT" in last else sql


# ---------------------------------------------------------------- the list as it should be


@dataclasses.dataclass(frozen=True)
class _Table:
    """``shape``: a letter a column as a record has it; ``short``: columns that it has at least."""

    sql: str
    root: int
    shape: str
    short: int
    is_keyed: bool

    def fits(self, record: str) -> bool:
        if not self.short <= len(record) <= len(self.shape):
            return False
        return all(want in (have, "?") for want, have in zip(self.shape, record, strict=False))


@dataclasses.dataclass(frozen=True)
class _Model:
    words: dict[str, str]  #: what makes each table and index, without white space
    tables: dict[str, _Table]
    first_page: bytes


_LETTERS = {"TEXT": "t", "INTEGER": "i", "BLOB": "b", "ANY": "?"}
_made: list[_Model] = []


def _model() -> _Model:
    """A fresh journal: its list of tables and where they lie."""
    if not _made:
        fresh = apsw.Connection(":memory:")
        with fresh:
            fresh.execute(schema.SCHEMA)
        words, tables = {}, {}
        for kind, name, _, root, sql in fresh.execute(_ROWS).fetchall():
            if sql:
                words[str(name)] = _plain(sql)
            if kind == "table":
                tables[str(name)] = _table(fresh, str(name), int(root), str(sql))  # type: ignore[arg-type]
        _made.append(_Model(words, tables, fresh.serialize("main")[:PAGE]))
        fresh.close()
    return _made[0]


def _table(fresh: apsw.Connection, name: str, root: int, sql: str) -> _Table:
    columns: list[Any] = fresh.execute(f"PRAGMA table_info({name})").fetchall()
    is_keyed = "WITHOUT ROWID" in sql
    shape = "".join(
        # the rowid stands before the record, which has NULL in its place
        "n" if key and kind == "INTEGER" and not is_keyed else _LETTERS[kind]
        for _, _, kind, _, _, key in columns
    )
    short = len(shape) - sum(default is not None for *_, default, _ in columns)
    return _Table(sql, root, shape, short, is_keyed)


# ---------------------------------------------------------------- pages


@dataclasses.dataclass(slots=True)
class _Pages:
    """``trees``: pages of trees with what their first records look like; None for inner ones."""

    size: int
    trees: dict[int, tuple[bool, list[str] | None, list[int]]]
    inner: set[int]  #: pages that another page of a tree refers to, and free ones
    claims: dict[str, set[int]]  #: by name of a table or index, what is left of the list says

    def records(self, root: int) -> list[str]:
        """What the first records of the tree look like."""
        waiting, seen = [root], 0
        while waiting and seen < 200:
            number = waiting.pop()
            seen += 1
            if number in self.trees:
                _, shapes, children = self.trees[number]
                if shapes:
                    return shapes
                waiting += reversed(children)
        return []

    def is_empty(self, root: int) -> bool:
        """A whole tree without rows."""
        return root in self.trees and self.trees[root][1] == []


def _varint(page: bytes, at: int) -> tuple[int, int]:
    number = 0
    for step in range(8):
        byte = page[at + step]
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            return number, at + step + 1
    return number << 8 | page[at + 8], at + 9


def _letter(serial: int) -> str:
    if serial >= 12:
        return "t" if serial & 1 else "b"
    return "n" if not serial else "f" if serial == 7 else "i"


def _record(page: bytes, at: int, is_keyed: bool) -> tuple[list[int], int]:
    """(serial types, start of the values) of the cell at ``at`` of a leaf."""
    _, at = _varint(page, at)
    if not is_keyed:
        _, at = _varint(page, at)
    size, next_at = _varint(page, at)
    end, types = at + size, []
    while next_at < end:
        kind, next_at = _varint(page, next_at)
        types.append(kind)
    return types, end


def _claim(page: bytes, types: list[int], at: int) -> tuple[str, int] | None:
    """(table or index, its page) if this record is one of the list of tables."""
    if len(types) != 5 or "".join(map(_letter, types))[:4] != "ttti":
        return None
    sizes = [(kind - 13) // 2 for kind in types[:3]]
    words = []
    for size in sizes:
        words.append(page[at : at + size])
        at += size
    width = {1: 1, 2: 2, 3: 3, 4: 4}.get(types[3], 0)
    if words[0] != b"index" and (words[0] != b"table" or words[1] != words[2]):
        return None
    constant = {8: 0, 9: 1}.get(types[3])
    number = int.from_bytes(page[at : at + width], "big") if constant is None else constant
    return words[1].decode("latin-1"), number


def _scan(body: "mmap.mmap | bytes") -> _Pages:
    """Every page of a tree in the file."""
    pages = _Pages(len(body) // PAGE, {}, _free_pages(body), {})
    for number in range(1, pages.size + 1):
        page = body[(number - 1) * PAGE : number * PAGE]
        at = _HEADER_BYTES if number == 1 else 0
        kind = page[at]
        if kind not in (2, 5, 10, 13):
            continue
        is_keyed = kind in (2, 10)
        count = int.from_bytes(page[at + 3 : at + 5], "big")
        begin = at + (12 if kind in (2, 5) else 8)
        if begin + 2 * count > PAGE:
            continue
        cells = struct.unpack_from(f">{count}H", page, begin)
        if kind in (2, 5):
            children = [
                int.from_bytes(page[cell : cell + 4], "big") for cell in cells if cell < PAGE
            ]
            children.append(int.from_bytes(page[at + 8 : at + 12], "big"))
            pages.trees[number] = (is_keyed, None, children)
            pages.inner.update(child for child in children if child != number)
            continue
        shapes = []
        for place, cell in enumerate(cells):
            try:
                types, values = _record(page, cell, is_keyed)
                claim = None if is_keyed else _claim(page, types, values)
            except IndexError:
                continue
            if claim:
                pages.claims.setdefault(claim[0], set()).add(claim[1])
            if place < 8:
                shapes.append("".join(map(_letter, types)))
            elif len(types) != 5:
                break
        if shapes or not count:
            pages.trees[number] = (is_keyed, shapes, [])
    return pages


def _free_pages(body: "mmap.mmap | bytes") -> set[int]:
    """Pages that the file's own list calls free: their rows were deleted."""
    found: set[int] = set()
    trunk = int.from_bytes(body[32:36], "big")
    while 1 < trunk <= len(body) // PAGE and trunk not in found:
        found.add(trunk)
        begin = (trunk - 1) * PAGE
        following, count = struct.unpack(">II", body[begin : begin + 8])
        if count > PAGE // 4 - 2:
            break
        found.update(struct.unpack(f">{count}I", body[begin + 8 : begin + 8 + 4 * count]))
        trunk = following
    return found


# ---------------------------------------------------------------- where tables lie


def _find_roots(pages: _Pages, body: "mmap.mmap | bytes") -> tuple[dict[str, int], list[str]]:
    """The page of each table, and the tables (or pages of none) that were not found."""
    tables = _model().tables
    claims = {name: min(roots) for name, roots in pages.claims.items() if len(roots) == 1}
    shared = Counter(claims.values())
    claims = {name: root for name, root in claims.items() if shared[root] == 1}
    # Rows of a table with a key of its own look like an index: told apart if the list names those.
    indexes = _model().words.keys() - tables.keys()
    are_known = indexes <= claims.keys()
    taken = {root for name, root in claims.items() if name in indexes}
    claims = {name: root for name, root in claims.items() if name in tables}

    def fit(name: str, root: int) -> bool:
        """Whether the rows of this tree are of that table; at least one is there."""
        table = tables[name]
        if root not in pages.trees or pages.trees[root][0] != table.is_keyed:
            return False
        records = pages.records(root)
        if name == "meta" and not _has_meta(pages, body, root):
            return False
        return 0 < 2 * sum(map(table.fits, records)) >= len(records)

    agreeing = sum(tables[name].root == root for name, root in claims.items())
    if len(claims) >= 3:
        is_fresh = 4 * agreeing >= 3 * len(claims)
    else:
        is_fresh = any(fit(name, table.root) for name, table in tables.items()) and all(
            fit(name, table.root) or pages.is_empty(table.root) or table.root not in pages.trees
            for name, table in tables.items()
        )
    said = {name: table.root for name, table in tables.items()} if is_fresh else claims
    found = {name: root for name, root in said.items() if fit(name, root)}
    used = set(found.values())
    trees = [n for n in pages.trees if n > 1 and n not in pages.inner and pages.records(n)]
    lost = []
    for name, table in tables.items():
        if name in found:
            continue
        root = said.get(name, 0)
        if root and pages.is_empty(root) and (is_fresh or claims.get(name) == table.root):
            found[name] = root
            continue
        is_plain = are_known or name == "meta" or not table.is_keyed
        near = [n for n in trees if n not in used | taken and is_plain and fit(name, n)]
        if len(near) == 1 and not any(
            other != name and other not in found and fit(other, near[0]) for other in tables
        ):
            found[name] = near[0]
            used.add(near[0])
        elif root and (pages.is_empty(root) or root not in pages.trees) and not near:
            found[name] = root  # empty, or spoiled itself: whoever reads it finds out
        else:
            lost.append(name)
    names = {name.encode() for name in tables}
    for number in trees:
        is_list = number in pages.inner or _is_list(body, number, names)
        if number not in used and not pages.trees[number][0] and not is_list:
            lost.append(f"page {number}")
    return found, lost


def _has_meta(pages: _Pages, body: "mmap.mmap | bytes", root: int) -> bool:
    begin = (root - 1) * PAGE
    return b"incarnation" in body[begin : begin + PAGE]


def _is_list(body: "mmap.mmap | bytes", number: int, names: set[bytes]) -> bool:
    """A leaf of the list of tables itself, which its damaged first page does not name."""
    page = body[(number - 1) * PAGE : number * PAGE]
    return page.count(b"CREATE ") > 1 and any(name in page for name in names)


# ---------------------------------------------------------------- the copy


def readable_name(path: pathlib.Path) -> pathlib.Path:
    """Of the copy that ``copy_readable`` makes."""
    return path.with_name(path.name + ".readable")


def remove_readable(path: pathlib.Path) -> None:
    """Removes the copy, and what belongs to it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        name = readable_name(path)
        name.with_name(name.name + suffix).unlink(missing_ok=True)


def copy_readable(path: pathlib.Path) -> tuple[pathlib.Path, list[str]]:
    """A copy of a damaged file and its log with a list of tables that is made anew.

    Only for reading: it has no indexes. Returns it, and what was not found.

    Raises:
        apsw.Error: nothing of it can be read, or the disk is full.
    """
    remove_readable(path)
    copy = readable_name(path)
    shutil.copyfile(path, copy)
    os.chmod(copy, 0o600)
    wal = path.with_name(path.name + "-wal")
    if wal.exists():
        shutil.copyfile(wal, copy.with_name(copy.name + "-wal"))
    model = _model().first_page
    with open(copy, "r+b") as file:  # all of the header but its list of free pages
        pages = struct.pack(">I", -(-os.fstat(file.fileno()).st_size // PAGE))
        file.write(model[:18] + b"\2\2" + model[20:28] + pages)
        file.seek(40)
        file.write(model[40:92] + model[24:28] + model[96:_HEADER_BYTES])
    connection = apsw.Connection(str(copy))
    connection.execute("PRAGMA user_version").fetchall()  # from here on the log is read
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    connection.close()
    for suffix in ("-wal", "-shm"):
        copy.with_name(copy.name + suffix).unlink(missing_ok=True)
    with open(copy, "r+b") as file:
        file.seek(0, os.SEEK_END)
        file.truncate(-(-file.tell() // PAGE) * PAGE)  # whole pages, a torn one filled with zeros
        with mmap.mmap(file.fileno(), 0) as body:
            found = _scan(body)
            roots, lost = _find_roots(found, body)
            body[:PAGE] = _empty_first_page(found.size)
    connection = apsw.Connection(str(copy))
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    connection.execute("PRAGMA writable_schema=ON")
    with connection:
        for name, sql in _without_indexes(roots):
            connection.execute(
                "INSERT INTO sqlite_schema VALUES('table', ?, ?, ?, ?)",
                (name, name, roots[name], sql),
            )
    connection.close()
    log.critical(
        "journal damaged: the list of tables of %s is made anew: %d tables found at pages %s",
        path, len(roots), ", ".join(f"{name}={root}" for name, root in sorted(roots.items())),
    )  # fmt: skip
    return copy, lost


def _empty_first_page(pages: int) -> bytes:
    """A first page whose list of tables is empty, of a file with so many pages and none free."""
    page = bytearray(_model().first_page)
    page[24:28] = page[92:96] = struct.pack(">I", 1)
    page[28:32] = struct.pack(">I", pages)
    page[32:40] = bytes(8)
    page[_HEADER_BYTES:] = bytes(PAGE - _HEADER_BYTES)
    page[_HEADER_BYTES : _HEADER_BYTES + 8] = struct.pack(">BHHHB", 13, 0, 0, PAGE, 0)
    return bytes(page)


def _without_indexes(roots: dict[str, int]) -> Iterator[tuple[str, str]]:
    """(table, what makes it) without the key of ``quarantine``, which is an index beside it."""
    for name in roots:
        table = _model().tables[name]
        head, mark, _ = table.sql.partition("PRIMARY KEY(")
        yield name, f"{head.rstrip().rstrip(',')})" if mark else table.sql
