"""Large bodies of rows, beside the database: written once, to files that only grow.

SQLite writes what is in a row twice and page by page, to its log and then to its file: 3.4 ms of
CPU and 6 ms of disk for each MB. So the frame of a parcel and the values of a result of
``LARGE_BYTES`` and more go to a *segment*, a file of ``bodies/``, and their row has a *reference*
in their place. A row's checksum is that of the body wherever it lies: a segment that is damaged,
cut or gone shows as damaged rows.

The order is the law. Bodies are synced before the transaction that adds their rows is committed;
space is given back after the one that deletes them is. How many rows refer to a segment is in
``meta`` and changes in these same transactions, so that a crash at any moment leaves at worst some
bytes that nobody refers to, and they go with their segment. The number of a new segment is
committed before its file is made: a file whose number is unknown is not ours to delete.

A freed body becomes a hole in its segment soon, because one row may keep a segment for weeks; most
segments go whole before that. Where the file system has no holes, bodies stay in their rows. A
count is never too low: what is counted and was not added, or was deleted one by one because it was
damaged, keeps its segment.
"""

import contextlib
import ctypes
import errno
import logging
import os
import pathlib
import struct
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

import apsw

from gristmill.broker import schema

log = logging.getLogger("gristmill.broker.bodies")

FOLDER = "bodies"
LARGE_BYTES = 16 << 10  #: below it a row costs less than a sync of another file
SEGMENT_BYTES = 64 << 20  #: a segment that has as many gets no more
KEY = "segment:"  #: before a segment's number: key of its count in ``meta``
HOLE_AFTER_S = 5.0  #: by then most segments have gone as a whole, which costs less
BLOCK_BYTES = 4_096  #: each body begins at a multiple, so that a hole frees all of it
#: no body in a row begins with this: one that does is put into a segment however short it is
MAGIC = b"\xc1gmbody\0"
_REFERENCE = struct.Struct("<8sIQI")  # MAGIC, segment, offset, bytes
REFERENCE_BYTES = _REFERENCE.size
#: tables whose rows end with a body
_TABLES = {"parcels": schema.ADD_PARCEL, "results": schema.ADD_RESULT}
_PUNCH = 0x03  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_LOW = (1 << 32) - 1

Rows = list[tuple[str, tuple[Any, ...]]]


class Reference(bytes):
    """What a row has in place of a body: where it is."""

    def __new__(cls, segment: int, offset: int, size: int) -> "Reference":
        """Of ``size`` bytes at ``offset`` of a segment."""
        return super().__new__(cls, _REFERENCE.pack(MAGIC, segment, offset, size))


def place_of(body: Any) -> tuple[int, int, int] | None:
    """(segment, offset, bytes) where a row has a reference; None where it has the body itself."""
    if isinstance(body, bytes) and len(body) == REFERENCE_BYTES and body.startswith(MAGIC):
        _, segment, offset, size = _REFERENCE.unpack(body)
        return segment, offset, size
    return None


def register(connection: apsw.Connection, state: pathlib.Path) -> None:
    """For a connection that reads rows: see ``functions``."""
    for name, function in functions(state).items():
        connection.create_scalar_function(name, function, 1)


def functions(state: pathlib.Path) -> dict[str, Callable[..., Any]]:
    """SQL functions of one argument, by name: ``whole(body)`` and ``size_of(body)``.

    ``whole`` is NULL for a body that is not there, which no checksum fits.
    """
    folder = state / FOLDER

    def whole(body: Any) -> Any:
        place = place_of(body)
        return body if place is None else _read(folder, *place)

    def size_of(body: Any) -> Any:
        place = place_of(body)
        if place is None:
            return len(body) if isinstance(body, bytes | str) else None
        return place[2]

    return {"whole": whole, "size_of": size_of}


def _path(folder: pathlib.Path, segment: int) -> pathlib.Path:
    return folder / f"{segment:010d}"


def _read(folder: pathlib.Path, segment: int, offset: int, size: int) -> bytes | None:
    try:
        file = os.open(_path(folder, segment), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return body if len(body := os.pread(file, size, offset)) == size else None
        finally:
            os.close(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EIO:  # a bad sector is damage
            return None
        raise apsw.IOError(f"segment {segment} cannot be read: {error}") from error


class Bodies:
    """The writer's side; the committer's thread owns it, ``release`` is the reader's.

    Args:
        state: the broker's state folder.
    """

    def __init__(self, state: pathlib.Path) -> None:
        self._folder = state / FOLDER
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._counts: dict[int, int | None] = {}  # None: damaged, the segment is kept
        self._next = 1
        self._segment = 0  # the one that grows; 0 for none yet
        self._file = -1
        self._end = 0
        self._is_on = True
        self._freed: deque[tuple[float, tuple[int, int, int]]] = deque()  # from when on
        self._dead: deque[int] = deque()
        self._gone: deque[int] = deque()

    # ------------------------------------------------------------ the committer's thread

    def load(self, connection: apsw.Connection) -> None:
        """Counts from the journal; segments that nobody refers to go. Before anything is added."""
        self._counts.clear()
        for key, value in connection.execute(
            "SELECT key, value FROM meta WHERE key >= ? AND key < ?", (KEY, KEY + "~")
        ).fetchall():
            number = str(key).removeprefix(KEY)
            if number.isascii() and number.isdigit():
                self._counts[int(number)] = _count_of(int(number), value)
        files = [int(path.name) for path in self._folder.iterdir() if path.name.isdigit()]
        self._next = 1 + max([0, *self._counts, *files])
        for segment in [number for number, count in self._counts.items() if count == 0]:
            _path(self._folder, segment).unlink(missing_ok=True)
            del self._counts[segment]
            connection.execute(schema.DROP_META, (_key(segment),))
        for segment, count in self._counts.items():
            if count is None:
                log.error("journal damaged meta %s: its segment is kept for ever", _key(segment))

    def place(self, tables: dict[str, Rows], connection: apsw.Connection) -> None:
        """Puts large bodies of new rows to disk, synced, and references into these rows.

        Rows that were placed before keep their references.

        Raises:
            OSError: the disk failed, or is full (``is_full``): nothing was placed.
        """
        found = [
            (rows, at)
            for table, statement in _TABLES.items()
            if (rows := tables.get(table)) is not None
            for at, (added, row) in enumerate(rows)
            if added == statement and _is_large(row[-1])
        ]
        if not found or not (self._is_on and self._has_segment(connection)):
            return
        end, references = self._end, []
        for rows, at in found:
            body = rows[at][1][-1]
            self._write(body, end)
            references.append(Reference(self._segment, end, len(body)))
            end += -(-len(body) // BLOCK_BYTES) * BLOCK_BYTES
        os.fdatasync(self._file)
        self._end = end
        for (rows, at), reference in zip(found, references, strict=True):
            statement, row = rows[at]
            rows[at] = statement, (*row[:-1], reference)

    def added(self, tables: dict[str, Rows]) -> Counter[int]:
        """How many references these new rows have, by segment."""
        return Counter(
            place[0]
            for table, statement in _TABLES.items()
            for added, row in tables.get(table, ())
            if added == statement and type(row[-1]) is Reference and (place := place_of(row[-1]))
        )

    def rows(self, change: Counter[int]) -> list[tuple[str, Any]]:
        """Rows of ``SET_META`` with the counts after a change."""
        return [
            (_key(segment), _counted(segment, count + more))
            for segment, more in change.items()
            if (count := self._counts.get(segment)) is not None
        ]

    def committed(self, change: Counter[int], freed: Iterable[tuple[int, int, int]] = ()) -> None:
        """The change is on disk, and so is that these bodies are not referred to any more."""
        for segment, more in change.items():
            count = self._counts.get(segment)
            if count is not None:
                self._counts[segment] = count + more
        due_s = time.monotonic() + HOLE_AFTER_S
        self._freed.extend((due_s, place) for place in freed)
        for segment in change:
            self._look(segment)

    def forgotten(self) -> list[int]:
        """Segments whose files have gone, so that their counts may."""
        found = []
        while self._gone:
            found.append(self._gone.popleft())
        return found

    def close(self) -> None:
        """No more is placed."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._segment = 0

    def _look(self, segment: int) -> None:
        if segment != self._segment and self._counts.get(segment) == 0:
            del self._counts[segment]
            self._dead.append(segment)

    def _has_segment(self, connection: apsw.Connection) -> bool:
        if self._segment and self._end < SEGMENT_BYTES:
            return True
        before = self._segment
        self.close()
        self._look(before)
        segment, self._next = self._next, self._next + 1
        connection.execute(schema.SET_META, (_key(segment), _counted(segment, 0)))
        self._counts[segment] = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = os.open(_path(self._folder, segment), flags, 0o600)
        self._is_on = _punch(file, 0, BLOCK_BYTES)
        if not self._is_on:
            log.info("folder %s has no holes: bodies stay in their rows", self._folder)
            os.close(file)
            self._look(segment)
            return False
        for folder in (self._folder, self._folder.parent):
            _sync(folder)
        self._segment, self._file, self._end = segment, file, 0
        return True

    def _write(self, body: bytes, offset: int) -> None:
        view = memoryview(body)
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written

    # ------------------------------------------------------------ the reader's thread

    @property
    def has_freed(self) -> bool:
        """``release`` has something to do."""
        return bool(self._dead or (self._freed and self._freed[0][0] <= time.monotonic()))

    def release(self) -> None:
        """Gives back the space of what was freed a while ago.

        In the thread that reads: whoever reads there has a view of the rows before or after this.
        """
        while self._dead:
            segment = self._dead.popleft()
            _path(self._folder, segment).unlink(missing_ok=True)
            self._gone.append(segment)
        opened, file = 0, -1
        try:
            while self._freed and self._freed[0][0] <= time.monotonic():
                _, (segment, offset, size) = self._freed.popleft()
                if segment != opened:
                    if file >= 0:
                        os.close(file)
                    opened, file = segment, -1
                    with contextlib.suppress(FileNotFoundError):  # it went as a whole
                        file = os.open(_path(self._folder, segment), os.O_WRONLY | os.O_CLOEXEC)
                if file >= 0:
                    _punch(file, offset, -(-size // BLOCK_BYTES) * BLOCK_BYTES)
        finally:
            if file >= 0:
                os.close(file)


def freed_by(rows: Iterable[tuple[Any, ...]]) -> list[tuple[int, int, int]]:
    """Places that deleted rows referred to; see ``schema.DROP_RESULTS``."""
    return [place for (body,) in rows if (place := place_of(body)) is not None]


def is_full(error: OSError) -> bool:
    """Whether it says that there is no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _is_large(body: Any) -> bool:
    return type(body) is not Reference and (len(body) >= LARGE_BYTES or body.startswith(MAGIC))


def _key(segment: int) -> str:
    return f"{KEY}{segment}"


def _counted(segment: int, count: int) -> int:
    """A count with its checksum: one that bit rot made too low would cost bodies."""
    return count << 32 | zlib.crc32(b"%d:%d" % (segment, count))


def _count_of(segment: int, value: Any) -> int | None:
    if isinstance(value, int) and 0 <= value and _counted(segment, value >> 32) == value:
        return value >> 32
    return None


def _sync(folder: pathlib.Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _punch(file: int, offset: int, size: int) -> bool:
    """Whether the file system made a hole there."""
    done: int = _fallocate(file, _PUNCH, offset, size)
    return done == 0


def _find_fallocate() -> Any:
    found = ctypes.CDLL(None, use_errno=True).fallocate
    found.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    found.restype = ctypes.c_int
    return found


_fallocate = _find_fallocate()
