"""What a worker tries before it says that it is ready, beside its jails: its disk and its clock.

Each fault is one line that names the thing, the limit, the value, and one line to paste.
"""

import contextlib
import os
import secrets
import time
from pathlib import Path

from gristmill.sandbox.errors import SandboxError
from gristmill.wire.units import format_bytes

DISK_BYTES_MIN = 64 << 20  #: free for the state folder: keys, logs of jails, the blob cache
TRIAL_BYTES = 4_096
CLOCK_SLACK_S = 86_400.0  #: files may come from a machine of another time zone


def check_disk(folder: Path, bytes_min: int = DISK_BYTES_MIN) -> None:
    """Write, sync, read back and remove a file of the state folder.

    Raises:
        SandboxError: what is wrong, and its remedy.
    """
    trial = folder / f"self-test.{secrets.token_hex(4)}"
    told = secrets.token_bytes(TRIAL_BYTES)
    try:
        free = os.statvfs(folder)
        left = free.f_bavail * free.f_frsize
        if left < bytes_min:
            raise SandboxError(
                f"the disk of {folder} has {format_bytes(left)} free; a worker needs "
                f"{format_bytes(bytes_min)}",
                f"free some: du -xsh {folder}/*",
            )
        with open(trial, "xb") as file:
            file.write(told)
            file.flush()
            os.fsync(file.fileno())
        is_kept = trial.read_bytes() == told
    except OSError as error:
        raise SandboxError(
            f"the disk of {folder} cannot be used: {error.strerror or error}",
            f"ls -ld {folder}; df -h {folder}",
        ) from None
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()
    if not is_kept:
        raise SandboxError(
            f"the disk of {folder} does not give back what was written", f"df {folder}; dmesg"
        )


def check_clock(now_s: float | None = None) -> None:
    """The clock is not before this very file: grants and receipts carry times.

    Raises:
        SandboxError: by how much it is behind.
    """
    now = time.time() if now_s is None else now_s
    written = os.stat(__file__).st_mtime
    if now < written - CLOCK_SLACK_S:
        shown, installed = (time.strftime("%Y-%m-%d", time.gmtime(at)) for at in (now, written))
        raise SandboxError(
            f"the clock says {shown}, but this software was installed on {installed}",
            "sudo timedatectl set-ntp true",
        )
