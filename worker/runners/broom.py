"""Nothing of a subtask is left for the next: no process, no file.

Files left behind would be seen by the next subtask, and count against its memory (scratch is
memory). As process 1 of its jail a slot may do both for the whole jail; without a jail it removes
the work folder only.

Most subtasks leave nothing, and then little is done, with few objects: after a fork each page that
is touched is a fault. Process 1 without a child is alone: whoever lost its parent would be its
child.
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
        self._scratch = [path for path in SCRATCH if self.is_init and os.path.exists(path)]
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
            for folder in self._scratch:
                os.chmod(folder, 0o1777)  # it may have been shut, to hide what is in it or for ever
                for name in os.listdir(folder):
                    if folder != "/tmp" or name not in self._kept:
                        _remove(f"{folder}/{name}")
        try:
            os.mkdir(self._work_dir, 0o700)
        except OSError:  # a folder of a host's may be deeper, or could not be removed
            os.makedirs(self._work_dir, mode=0o700, exist_ok=True)
        self._is_dirty = False

    def _is_bare(self) -> bool:
        """Whether nothing is left but an empty work folder, which is removed."""
        try:
            os.rmdir(self._work_dir)
        except OSError:
            return False
        for folder in self._scratch:
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                return False
            names = os.listdir(folder)
            if names and (folder != "/tmp" or not self._kept.issuperset(names)):
                return False
        return True


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
        return
    with contextlib.suppress(OSError):
        os.rmdir(path)
        return
    import shutil  # and five compression libraries: not before it is needed

    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, onerror=_unlock)


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
