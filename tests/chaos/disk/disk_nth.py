"""A disk whose Nth call fails, for the journal, the books and the store in this process.

SQLite's own way of looking for forgotten errors (https://sqlite.org/testing.html#i_o_error_testing):
a fixed short story is told once to count its calls, then again with the first failing, with the
second, and so on. What SQLite does is counted by a VFS; marks in lock files are written past it,
and blobs by ``os``: these are counted in the same row.
"""

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import apsw

#: what fails in the ways of a disk that is full
WRITES = frozenset({"xWrite", "xTruncate", "write", "pwrite", "open"})
#: calls of ``os``; whether the first argument of each is a descriptor
CALLS = {
    "write": True, "pwrite": True, "fsync": True, "fdatasync": True, "fchmod": True,
    "replace": False, "open": False,
}  # fmt: skip
_CODES = {
    "xRead": apsw.SQLITE_IOERR_READ, "xWrite": apsw.SQLITE_IOERR_WRITE,
    "xSync": apsw.SQLITE_IOERR_FSYNC, "xTruncate": apsw.SQLITE_IOERR_TRUNCATE,
    "xFileSize": apsw.SQLITE_IOERR_FSTAT, "xOpen": apsw.SQLITE_CANTOPEN,
    "xDelete": apsw.SQLITE_IOERR_DELETE, "xAccess": apsw.SQLITE_IOERR_ACCESS,
}  # fmt: skip


class FailingDisk:
    """Counts calls, and fails one of them, or that and all behind it.

    ``calls``: so far; ``fired``: how many failed; ``last``: the name of the last one that did.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._vfs = _VFS(self)
        self.arm(0)

    def arm(self, at: int, is_full: bool = False, is_lasting: bool = False) -> None:
        """From now on the call number ``at`` fails (0: none does), by EIO or for want of room."""
        self.calls = self.fired = 0
        self.is_full = is_full
        self.last = ""
        self._at, self._is_lasting, self._is_away = at, is_lasting, False

    def does_fail(self, name: str) -> bool:
        """Counts a call; whether it fails."""
        if self._is_away or (self.is_full and name not in WRITES):
            return False
        self.calls += 1
        fails = bool(self._at) and (
            self.calls >= self._at if self._is_lasting else self.calls == self._at
        )
        if fails:
            self.fired += 1
            self.last = name
        return fails

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Meanwhile nothing fails, and nothing is counted."""
        self._is_away = True
        try:
            yield
        finally:
            self._is_away = False

    def count(self, name: str) -> None:
        """Counts a call of SQLite; raises what it would have met."""
        if self.does_fail(name):
            raise apsw.exception_for(apsw.SQLITE_FULL if self.is_full else _CODES[name])

    @contextlib.contextmanager
    def below(self, folder: pathlib.Path) -> Iterator[None]:
        """Calls of ``os`` on files in this folder are counted, too."""
        before = {name: getattr(os, name) for name in CALLS}
        for name, by_descriptor in CALLS.items():
            setattr(os, name, self._counted(before[name], name, by_descriptor, str(folder)))
        try:
            yield
        finally:
            for name, call in before.items():
                setattr(os, name, call)

    def _counted(
        self, call: Callable[..., Any], name: str, by_descriptor: bool, folder: str
    ) -> Callable[..., Any]:
        def counted(what: Any, *given: Any, **more: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{what}") if by_descriptor else os.fspath(what)
            if str(path).startswith(folder) and self.does_fail(name):
                code = errno.ENOSPC if self.is_full else errno.EIO
                raise OSError(code, os.strerror(code), str(path))
            return call(what, *given, **more)

        return counted


class _VFS(apsw.VFS):  # type: ignore[misc]
    def __init__(self, disk: FailingDisk) -> None:
        self._disk = disk
        super().__init__(disk.name, "unix")

    def xOpen(self, name: Any, flags: list[int]) -> Any:  # noqa: N802
        self._disk.count("xOpen")
        return _File(self._disk, name, flags)

    def xDelete(self, name: str, sync: bool) -> None:  # noqa: N802
        self._disk.count("xDelete")
        super().xDelete(name, sync)

    def xAccess(self, name: str, flags: int) -> bool:  # noqa: N802
        self._disk.count("xAccess")
        return bool(super().xAccess(name, flags))


class _File(apsw.VFSFile):  # type: ignore[misc]
    def __init__(self, disk: FailingDisk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        super().__init__("unix", name, flags)

    def xRead(self, amount: int, offset: int) -> Any:  # noqa: N802
        self._disk.count("xRead")
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._disk.count("xWrite")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._disk.count("xSync")
        super().xSync(flags)

    def xTruncate(self, size: int) -> None:  # noqa: N802
        self._disk.count("xTruncate")
        super().xTruncate(size)

    def xFileSize(self) -> int:  # noqa: N802
        self._disk.count("xFileSize")
        return int(super().xFileSize())


def as_killed(state: pathlib.Path, copy: pathlib.Path) -> pathlib.Path:
    """A copy of a state folder as ``kill -9`` leaves it: without the index in shared memory."""
    shutil.copytree(state, copy, ignore=shutil.ignore_patterns("*-shm"))
    return copy


def let_go(folder: pathlib.Path) -> None:
    """Closes the lock files of whatever did not get as far as its own close: it is dead."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{name}")
            if path.startswith(str(folder)) and path.endswith(".lock"):
                os.close(int(name))
