"""Runs a process of the grid on a host that fails: ``disk_faulty.py CONTROL MODULE OPTIONS...``.

The module's own main runs unchanged. Its SQLite files go through a VFS that fails, or is slow, as
the control file says at that moment; its wall clock is off by what that says. No compiler, tracer
or preloaded library is needed, so it works wherever the tests do.
"""

import contextlib
import mmap
import pathlib
import runpy
import struct
import sys
import time
from typing import Any

import apsw

FIELDS = ("sync_error", "write_error", "sync_delay_ms", "clock_ms", "fired")
_FORMAT = struct.Struct(f"<{len(FIELDS)}q")
IO, FULL = 1, 2  #: kinds of errors


class Control:
    """A few numbers shared with a test, which sets them while the process runs."""

    def __init__(self, path: pathlib.Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_FORMAT.size))
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), _FORMAT.size)

    def get(self, name: str) -> int:
        return int(_FORMAT.unpack(self._map)[FIELDS.index(name)])

    def set(self, **values: int) -> None:
        for name, value in values.items():
            struct.pack_into("<q", self._map, 8 * FIELDS.index(name), value)


class _FaultyVFS(apsw.VFS):  # type: ignore[misc]
    def __init__(self, control: Control) -> None:
        self.control = control
        super().__init__("faulty", "unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> Any:  # noqa: N802
        return _FaultyFile(self.control, name, flags)


class _FaultyFile(apsw.VFSFile):  # type: ignore[misc]
    def __init__(self, control: Control, name: Any, flags: list[int]) -> None:
        self._control = control
        super().__init__("unix", name, flags)

    def _fail(self, kind: int, code: int) -> None:
        if kind:
            self._control.set(fired=self._control.get("fired") + 1)
            raise apsw.exception_for(apsw.SQLITE_FULL if kind == FULL else code)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._fail(self._control.get("write_error"), apsw.SQLITE_IOERR_WRITE)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        if delay_ms := self._control.get("sync_delay_ms"):
            self._control.set(fired=self._control.get("fired") + 1)
            time.sleep(delay_ms / 1000)
        self._fail(self._control.get("sync_error"), apsw.SQLITE_IOERR_FSYNC)
        super().xSync(flags)


def _shift_clock(control: Control) -> None:
    """The wall clock jumps; the monotonic one does not, as on a real host."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + control.get("clock_ms") / 1000
    time.time_ns = lambda: now_ns() + control.get("clock_ms") * 1_000_000


def _close_for_reading() -> None:
    """SQLite itself takes no notice that a file opened for reading cannot be locked at its close.

    apsw raises it when the VFS is in Python.
    """
    from gristmill.broker.reader import Reader

    close = Reader.close

    def quietly(self: Reader) -> None:
        with contextlib.suppress(apsw.IOError):
            close(self)

    Reader.close = quietly  # type: ignore[method-assign]


def main() -> None:
    """Becomes the module, on a faulty host."""
    control = Control(pathlib.Path(sys.argv[1]))
    module = sys.argv[2]
    sys.argv[1:] = sys.argv[3:]
    _shift_clock(control)
    vfs = _FaultyVFS(control)
    if module == "gristmill.broker":
        _close_for_reading()
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    del vfs


if __name__ == "__main__":
    main()
