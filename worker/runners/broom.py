"""Nothing of a subtask is left for the next: no process, no file.

Files left behind would be seen by the next subtask, and count against its memory (scratch is
memory). As process 1 of its jail a slot may do both for the whole jail; without a jail it removes
the work folder only.

Most subtasks leave nothing, and then little is done. Process 1 without a child is alone: whoever
lost its parent would be its child. And a tmpfs counts its entries in a directory's size.
"""

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any, Final

WALL: Final = 0x40000000  #: __WALL of waitpid: children of every kind of clone
SCRATCH: Final = ("/tmp", "/dev/shm")


class Broom:
    """Cleans one slot. What lies in /tmp when it is made stays: loading the function left it.

    Attributes:
        is_init: we are process 1 of a jail.
    """

    def __init__(self, work_dir: str) -> None:
        self._work_dir = work_dir
        self.is_init = os.getpid() == 1
        found = os.listdir("/tmp") if self.is_init else []
        self._kept = frozenset(found) - {os.path.basename(work_dir)}
        self._empty: tuple[tuple[str, int], ...] | None = None
        self._is_dirty = True

    def sweep(self) -> None:
        """Kill every other process of the jail and wait for their ends."""
        if not self.is_init:
            return
        try:
            os.waitpid(-1, os.WNOHANG | WALL)
        except ChildProcessError:
            return  # there is none
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        while True:
            try:
                os.waitpid(-1, WALL)
            except ChildProcessError:
                return

    def prepare(self) -> None:
        """Clean, if that was not done since: a subtask is about to begin."""
        if self._is_dirty:
            self.clean()
        self._is_dirty = True

    def clean(self) -> None:
        """Remove what was written, and make the work folder anew; no process of a subtask lives."""
        if not self._is_dirty:
            return
        if not self.is_init:
            _remove(self._work_dir)
        elif not self._is_bare():
            for name in os.listdir("/tmp"):
                if name not in self._kept:
                    _remove(f"/tmp/{name}")
            for name in _listed("/dev/shm"):
                _remove(f"/dev/shm/{name}")
            if self._empty is None:
                self._empty = self._measure()
        os.makedirs(self._work_dir, mode=0o700, exist_ok=True)
        self._is_dirty = False

    def _is_bare(self) -> bool:
        """Whether nothing is left but an empty work folder, which is removed."""
        if not self._empty:
            return False
        try:
            os.rmdir(self._work_dir)
        except OSError:
            return False
        return all(os.stat(path).st_size == size for path, size in self._empty)

    def _measure(self) -> tuple[tuple[str, int], ...]:
        """The sizes of empty scratch folders; none where a size does not tell what is in one.

        Nor where something is kept: it could be replaced by another file.
        """
        sizes = []
        for path in SCRATCH if not self._kept else ():
            try:
                sizes.append((path, os.stat(path).st_size))
                os.mkdir(f"{path}/.size", 0o700)
                differs = os.stat(path).st_size > sizes[-1][1]
                os.rmdir(f"{path}/.size")
            except OSError:
                differs = path != "/tmp" and not os.path.exists(path)
                sizes = [size for size in sizes if size[0] != path]
            if not differs:
                return ()
        return tuple(sizes)


def _remove(path: str) -> None:
    import shutil  # and five compression libraries: not before it is needed

    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, onerror=_unlock)
        return
    with contextlib.suppress(OSError):
        os.unlink(path)


def _unlock(function: Callable[..., Any], path: str, _: Any) -> None:
    """A subtask may take its own directories' permissions away; they are ours to give back."""
    import shutil

    with contextlib.suppress(OSError):
        os.chmod(os.path.dirname(path), 0o700)
        os.chmod(path, 0o700)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
