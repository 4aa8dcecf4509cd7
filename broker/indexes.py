"""Whether the journal's indexes agree with its tables: what a lookup finds is all that there is.

No page of an index has a checksum. One flipped bit in it hides a whole row, or ends a search before
its time: a submission is taken as new for a second time, an answer lacks results. So each row is
looked for by each index of its table: by its key and its rowid, as they stand in the table. A row
that is found answers every lookup of it, however the rest of the index looks; an entry too many
leads to a row whose checksum does not fit, or to none, which SQLite reports.

A file of up to ``START_BYTES`` is looked at before anything else reads it; a larger one beside the
work: submissions before any other question to the journal, the rest in slices between them. A file
that fails is salvaged, which makes its indexes anew. (``PRAGMA integrity_check`` finds the same and
more; but it reads bodies, too, and all at once.)
"""

import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import apsw

from gristmill.broker import records
from gristmill.broker.metrics import Metrics

if TYPE_CHECKING:
    from gristmill.broker.reader import Reader

log = logging.getLogger("gristmill.broker.indexes")

START_BYTES = 32 << 20  #: of a journal with its log
SLICE_ROWS = 5_000  #: looked at in one question: 10 to 50 ms
FIRST_ROWID, LAST_ROWID = -(1 << 63), (1 << 63) - 1
COMPARE_ROWS = 1_000  #: of which the checksums of columns are compared: about 5 ms
NAMED_MAX = 20  #: damaged rows of one question that are named in the log
#: their index alone says whether a submission is new
SUBMISSIONS = ("jobs", "tombstones")


class IndexDamagedError(Exception):
    """A row is not found where its index should have it."""


class Index(NamedTuple):
    """An index of a table with rowids, or (without a name) the table's own tree.

    ``where``: of which rows; empty for all.
    """

    table: str
    name: str = ""
    columns: tuple[str, ...] = ()
    where: str = ""

    @property
    def query(self) -> str:
        """(last row looked at, one that the index lacks) of so many rows after a rowid."""
        by = f"INDEXED BY {self.name}" if self.name else "NOT INDEXED"
        where = f" AND {self.where}" if self.where else ""
        same = "".join(f" AND i.{column} IS t.{column}" for column in self.columns)
        return (
            f"SELECT max(t.row_id), min(CASE WHEN NOT EXISTS (SELECT 1 FROM {self.table} i {by}"
            f" WHERE i.rowid = t.row_id{same}{where}) THEN t.row_id END)"
            f" FROM (SELECT {', '.join(('rowid AS row_id', *self.columns))} FROM {self.table}"
            f" NOT INDEXED WHERE rowid >= ?{where} ORDER BY rowid LIMIT ?) t"
        )


def indexes(connection: apsw.Connection, tables: tuple[str, ...] = ()) -> list[Index]:
    """The trees of these tables, or of all."""
    found = []
    for table, sql in connection.execute(
        "SELECT name, sql FROM sqlite_schema WHERE type = 'table' ORDER BY name"
    ).fetchall():
        if not str(sql).endswith("WITHOUT ROWID") and (not tables or table in tables):
            found.append(Index(str(table)))
            found += _indexes_of(connection, str(table))
    return found


def _indexes_of(connection: apsw.Connection, table: str) -> Iterator[Index]:
    for name, sql in connection.execute(
        "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND tbl_name = ? ORDER BY name",
        (table,),
    ).fetchall():
        rows = connection.execute("SELECT name FROM pragma_index_info(?)", (name,)).fetchall()
        _, _, where = str(sql or "").partition(" WHERE ")
        yield Index(table, str(name), tuple(str(column) for (column,) in rows), where)


def look(connection: apsw.Connection, index: Index, begin: int, limit: int) -> int | None:
    """Looks at rows from this rowid on; returns where to go on, None behind the last.

    Raises:
        IndexDamagedError: the index lacks one of them, or it or the table cannot be read.
    """
    name = index.name or "the tree"
    try:
        ((last, lacking),) = connection.execute(index.query, (begin, limit))
    except apsw.IOError as error:  # whoever needs what is there meets it, too
        log.error("journal %s of %s is not looked at: %r", name, index.table, error)
        return None
    except (apsw.CorruptError, apsw.NotADBError, apsw.TooBigError) as error:
        raise IndexDamagedError(f"{name} of {index.table}: {error!r}") from error
    if lacking is not None:
        raise IndexDamagedError(f"{name} does not lead to row {lacking} of {index.table}")
    return None if last is None or last == LAST_ROWID else int(last) + 1


def check(connection: apsw.Connection, tables: tuple[str, ...] = ()) -> None:
    """Looks at every row of these tables, or of all. Raises as ``look`` does."""
    for index in indexes(connection, tables):
        look(connection, index, FIRST_ROWID, -1)


def is_small(path: pathlib.Path) -> bool:
    """Whether a start has the time to look at all of it."""
    parts = (path, path.with_name(path.name + "-wal"))
    return sum(part.stat().st_size for part in parts if part.exists()) <= START_BYTES


def find_changed(
    connection: apsw.Connection, begin: int, limit: int
) -> tuple[list[str], int | None]:
    """(results whose columns are not what they were, where to go on or None), from this rowid on.

    What is delivered has a checksum of its own; but by these columns a result is found, and one
    that covers fewer subtasks than it did is missing from answers about the others.
    """
    changed: list[str] = []
    last = None
    for row in connection.execute(
        f"SELECT rowid, crc, {records.HEAD_COLUMNS} FROM results NOT INDEXED"
        " WHERE rowid >= ? ORDER BY rowid LIMIT ?",
        (begin, limit),
    ):
        last, crc, *columns = row
        if not records.is_result_head_whole(tuple(columns), crc):
            changed.append(f"{columns[0]}/{columns[1]}")
    return changed, None if last is None or last == LAST_ROWID else int(last) + 1


def look_beside(reader: "Reader", metrics: Metrics, then: Callable[[], None]) -> None:
    """Looks at every row by questions to the reader, others' between them.

    Where a row is missing the reader fails, before it answers anything else. Results with changed
    columns are named and counted. ``then``: called at the end, if SQLite could read all of it.
    """

    def begin(connection: apsw.Connection) -> list[Index]:
        check(connection, SUBMISSIONS)
        return [one for one in indexes(connection) if one.table not in SUBMISSIONS]

    def look_on(waiting: list[Index], at: int = FIRST_ROWID) -> None:
        def looked(end: int | None) -> None:
            if end is not None:
                look_on(waiting, end)
            else:
                look_on(waiting[1:])

        if waiting:
            reader.ask(lambda db: look(db, waiting[0], at, SLICE_ROWS), looked, lambda _: None)
        else:
            compare_on()

    def compare_on(at: int = FIRST_ROWID) -> None:
        def compared(found: tuple[list[str], int | None]) -> None:
            changed, end = found
            metrics.rows_quarantined += len(changed)
            for key in changed[:NAMED_MAX]:
                log.error("journal damaged results %s: the checksum of its columns does not fit;"
                          " pages of subtasks, manifests and logs may lack it", key)  # fmt: skip
            if end is not None:
                compare_on(end)
            else:
                then()

        reader.ask(lambda db: find_changed(db, at, COMPARE_ROWS), compared, lambda _: None)

    reader.ask(begin, look_on, lambda _: None)
