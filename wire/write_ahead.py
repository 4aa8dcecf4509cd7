"""What SQLite leaves out of a damaged write-ahead log without a word.

SQLite reads a log up to the first frame whose checksum does not fit, and takes that for its end:
one flipped bit hides every transaction behind it, and so does a log that somebody removed. Whoever
promised that those were on disk must notice. Two ways: a mark outside of the log says how far it
had come; and frames behind the damage still name their log (its two salts) and which of them ended
a transaction, so they can be counted.

A power cut leaves at most one transaction that was not synced: one lost commit may be just that,
two are damage. (Format: https://sqlite.org/fileformat2.html#walformat.)
"""

import os
import pathlib
import struct
from collections import Counter
from typing import NamedTuple

_HEADER = struct.Struct(">IIIIIIII")  # magic, version, page size, sequence, salts, checksums
_FRAME = struct.Struct(">IIII")  # page, pages after the commit (0: none), salts
_FRAME_BYTES = 24
_MAGIC = 0x377F0682
_PAGE_SIZES = frozenset(1 << shift for shift in range(9, 17))
_MARK = struct.Struct("<4sIIQ")  # "open" or "shut", salts, frames


class Loss(NamedTuple):
    """What is missing. ``commits``: transactions behind the damage, -1 for an unknown number."""

    frames_read: int
    commits: int
    is_certain: bool  #: or else the last transaction may never have been synced

    def told(self, log: pathlib.Path) -> str:
        """For a person: exactly what was cut."""
        if not log.exists() or not log.stat().st_size:
            return f"{log.name} is missing, although the last process did not close it"
        many = "an unknown number of" if self.commits < 0 else str(self.commits)
        return (
            f"{log.name} ends or is damaged behind frame {self.frames_read}: {many} transactions "
            "after that are cut off"
        )


class Mark:
    """How far a log had come, in a few bytes of the lock file of its database.

    It is written after each commit and not synced: never ahead of what is on the disk.

    Args:
        lock: descriptor of the lock file.
        log: path of the write-ahead log.
    """

    def __init__(self, lock: int, log: pathlib.Path) -> None:
        self._lock = lock
        self._log = log
        self._file = -1  # kept open: there may be no descriptor left when it is wanted
        found = os.pread(lock, _MARK.size, 0)
        before = _MARK.unpack(found) if len(found) == _MARK.size else (b"shut", 0, 0, 0)
        self.was_open = before[0] == b"open"
        self._before = (before[1], before[2]), before[3]

    def find_loss(self, frames_read: int) -> Loss | None:
        """What is missing from the log, of which SQLite read ``frames_read`` frames.

        To be asked before anything is written.
        """
        try:
            with open(self._log, "rb") as file:
                header = os.pread(file.fileno(), _HEADER.size, 0)
                commits = _commits_behind(file.fileno(), frames_read) if header else 0
        except FileNotFoundError:
            header, commits = b"", 0
        if not self.was_open:
            return Loss(frames_read, commits, commits > 1) if commits else None
        salts, frames = self._before
        if len(header) < _HEADER.size or (_salts(header) == salts and frames_read < frames):
            return Loss(frames_read, commits or -1, True)
        return Loss(frames_read, commits, commits > 1) if commits else None

    def move(self, frames: int) -> None:
        """A commit made the log this long."""
        if self._file < 0:
            self._file = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
        salts = _salts(os.pread(self._file, _HEADER.size, 0))  # others when it began anew
        os.pwrite(self._lock, _MARK.pack(b"open", *salts, frames), 0)

    def close(self) -> None:
        """The database is about to be closed: its log may go."""
        os.pwrite(self._lock, _MARK.pack(b"shut", 0, 0, 0), 0)
        os.fdatasync(self._lock)
        self.forget()

    def forget(self) -> None:
        """Another file takes the place of the log, or nobody marks it any more."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _salts(header: bytes) -> tuple[int, int]:
    if len(header) < _HEADER.size:
        return (0, 0)
    found = _HEADER.unpack(header)
    return found[4], found[5]


def _commits_behind(file: int, frames_read: int) -> int:
    header = os.pread(file, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        return 0
    page_bytes = _HEADER.unpack(header)[2]
    salts: tuple[int, ...] | None = _salts(header)
    if not _is_whole(header):
        salts, page_bytes = None, _page_bytes(file, page_bytes)
    found: Counter[tuple[int, ...]] = Counter()
    size = page_bytes + _FRAME_BYTES
    total = (os.fstat(file).st_size - _HEADER.size) // size
    for number in range(frames_read, total):
        _, pages, *own = _FRAME.unpack(os.pread(file, _FRAME.size, _HEADER.size + number * size))
        if pages:
            found[tuple(own)] += 1
    if salts is None:  # the header itself is damaged: the log that most frames are of
        return max(found.values(), default=0)
    return found[salts]


def _is_whole(header: bytes) -> bool:
    """Whether the header has its checksum (the first words', in the byte order of the magic)."""
    magic = _HEADER.unpack(header)[0]
    if magic & ~1 != _MAGIC:
        return False
    words = struct.unpack(">6I" if magic & 1 else "<6I", header[:24])
    first = second = 0
    for at in range(0, 6, 2):
        first = (first + words[at] + second) & 0xFFFFFFFF
        second = (second + words[at + 1] + first) & 0xFFFFFFFF
    return (first, second) == _HEADER.unpack(header)[6:8]


def _page_bytes(file: int, said: int) -> int:
    """The page size of a log whose header is damaged: the one at which two frames agree."""
    for size in (said, 4096, *sorted(_PAGE_SIZES)):
        if size not in _PAGE_SIZES:
            continue
        salts = [os.pread(file, 8, _HEADER.size + at * (size + _FRAME_BYTES) + 8) for at in (0, 1)]
        if len(salts[1]) == 8 and salts[0] == salts[1]:
            return size
    return 4096
