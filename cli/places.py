"""Where a grid on this machine keeps its state and its sockets, and where a client finds it.

State folder: ``GRISTMILL_STATE``, else ``XDG_STATE_HOME/gristmill``, else
``~/.local/state/gristmill``. Run folder (sockets, 0700, ours): ``GRISTMILL_RUN``, else
``XDG_RUNTIME_DIR/gristmill``, else ``/tmp/gristmill-<uid>``.
"""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gristmill.wire.errors import RemoteError
from gristmill.wire.login import read_login

SOCKETS = ("front", "back", "ledger", "store", "registry")
RECORD = "grid.json"  #: who holds a folder: pid, folders, address, and its processes
ENDING_WAIT_S = 15.0  #: processes of a grid that was killed end by themselves within this


class AlreadyRunningError(RemoteError):
    """A grid holds this folder. ``pid`` is that of its ``gristmill up``."""

    def __init__(self, folder: Path, pid: int, address: str) -> None:
        where = f" at {address}" if address else ""
        super().__init__(
            "ALREADY_RUNNING",
            f"a grid is already running in {folder} (pid {pid}){where}",
        )
        self.pid = pid


def state_folder(environment: Mapping[str, str]) -> Path:
    """Where jobs, money, blobs, keys and logs are kept."""
    if environment.get("GRISTMILL_STATE"):
        return Path(environment["GRISTMILL_STATE"])
    home = environment.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "gristmill"


def run_folder(environment: Mapping[str, str]) -> Path:
    """Where the sockets are."""
    if environment.get("GRISTMILL_RUN"):
        return Path(environment["GRISTMILL_RUN"])
    if environment.get("XDG_RUNTIME_DIR"):
        return Path(environment["XDG_RUNTIME_DIR"]) / "gristmill"
    return Path(f"/tmp/gristmill-{os.geteuid()}")


def default_address(environment: Mapping[str, str]) -> str:
    """``GRISTMILL_ADDRESS``, else that of ``gristmill login``, else that of ``gristmill up``."""
    if address := environment.get("GRISTMILL_ADDRESS"):
        return address
    login = read_login(environment)
    return login.address if login is not None else f"ipc://{run_folder(environment)}/front"


def make_private(folder: Path) -> Path:
    """The folder, made if missing, 0700 and ours; its absolute path.

    Raises:
        RemoteError: ``FORBIDDEN``: another user's folder (in /tmp anybody may have made it), a
            link, or no right to make it.
    """
    folder = Path(os.path.abspath(folder))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as error:
        reason = error.strerror or str(error)
        raise RemoteError("FORBIDDEN", f"cannot make {folder}: {reason}", _CHOOSE) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        told = "is not a folder" if not stat.S_ISDIR(found.st_mode) else "is another user's"
        raise RemoteError("FORBIDDEN", f"{folder} {told}", _CHOOSE)
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


_CHOOSE = "choose other folders with --state DIR and --run DIR"


class Claim:
    """A folder that one grid alone may use, from now until ``release``.

    The right is a lock on ``grid.json``, which the kernel gives back however the holder ends: what
    a dead grid left (sockets, its record) is stale by definition. Processes of a killed grid may
    still be ending: they are known by pid and start time, waited for, then killed.

    Raises:
        AlreadyRunningError: a live grid has the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = make_private(folder)
        self._fd = os.open(folder / RECORD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            record = self._read()
            os.close(self._fd)
            raise AlreadyRunningError(
                self.folder, int(record.get("pid", 0)), str(record.get("address", ""))
            ) from None
        _end_leftovers(self._read().get("children", {}))
        _unlink_sockets(self.folder)

    def write(self, record: dict[str, Any]) -> None:
        """Say who holds the folder: for whoever comes next, and for people."""
        body = json.dumps(record, indent=1).encode() + b"\n"
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, body, 0)

    def release(self) -> None:
        """Give the folder back; no socket file stays. Idempotent.

        The record is emptied, not removed: whoever waits for the lock has this very file open.
        """
        if self._fd < 0:
            return
        _unlink_sockets(self.folder)
        os.ftruncate(self._fd, 0)
        os.close(self._fd)
        self._fd = -1

    def _read(self) -> dict[str, Any]:
        try:
            record = json.loads(os.pread(self._fd, 1 << 16, 0) or b"{}")
        except ValueError:
            return {}  # its writer died while it wrote
        return record if isinstance(record, dict) else {}


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove folders of temporary grids that ended without clean-up (SIGKILL); what was removed.

    Only what says of itself that it was temporary, is ours, is held by nobody, and whose last
    process is gone. An empty record is left alone: its grid may be about to lock it.
    """
    removed = []
    for folder in sorted(parent.glob("gristmill-*")):
        try:
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            fd = os.open(folder / "run" / RECORD, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if os.fstat(fd).st_size and _is_abandoned(fd):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
        finally:
            os.close(fd)
    return removed


def _is_abandoned(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        record = json.loads(os.pread(fd, 1 << 16, 0))
        children = record["children"].values()
        is_temporary = record["is_temporary"] is True
        return is_temporary and all(start_ticks(pid) != ticks for pid, ticks in children)
    except (BlockingIOError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _unlink_sockets(folder: Path) -> None:
    """Only what is a socket: in a state folder these are the names of folders."""
    for name in SOCKETS:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK((folder / name).lstat().st_mode):
                (folder / name).unlink()


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 when there is none (or a zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[19])


def _end_leftovers(children: dict[str, list[int]]) -> None:
    """Wait for processes of a grid whose ``up`` was killed; kill what does not end by itself."""
    left = [(pid, ticks) for pid, ticks in children.values() if start_ticks(pid) == ticks != 0]
    deadline = time.monotonic() + ENDING_WAIT_S
    for pid, ticks in left:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                if start_ticks(pid) == ticks:
                    _end(fd, max(0.0, deadline - time.monotonic()))
            finally:
                os.close(fd)


def _end(pidfd: int, wait_s: float) -> None:
    ended = select.poll()  # select() fails above descriptor 1,023
    ended.register(pidfd, select.POLLIN)
    if not ended.poll(wait_s * 1_000):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        ended.poll(5_000)
