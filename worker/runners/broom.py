"""Nothing of a subtask is left for the next: no process, no file.

Files left behind would be seen by the next subtask, and count against its memory (scratch is
memory). As process 1 of its jail a slot may do both for the whole jail; without a jail it removes
the work folder only.
"""

import contextlib
import os
import shutil
import signal
from collections.abc import Callable
from typing import Any


class Broom:
    """Cleans one slot. What lies in /tmp when it is made stays: loading the function left it."""

    def __init__(self, work_dir: str) -> None:
        self._work_dir = work_dir
        self._is_init = os.getpid() == 1
        found = os.listdir("/tmp") if self._is_init else []
        self._kept = frozenset(found) - {os.path.basename(work_dir)}

    def sweep(self) -> None:
        """Kill every other process of the jail and wait for their ends."""
        if not self._is_init:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return

    def clean(self) -> None:
        """Remove what was written; no process of the subtask may live any more."""
        if not self._is_init:
            _remove(self._work_dir)
            return
        for name in os.listdir("/tmp"):
            if name not in self._kept:
                _remove(f"/tmp/{name}")
        for name in _listed("/dev/shm"):
            _remove(f"/dev/shm/{name}")


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, onerror=_unlock)
        return
    with contextlib.suppress(OSError):
        os.unlink(path)


def _unlock(function: Callable[..., Any], path: str, _: Any) -> None:
    """A subtask may take its own directories' permissions away; they are ours to give back."""
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
