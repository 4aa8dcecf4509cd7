"""What a process of the grid and the one that starts it agree on: ready, and ending together.

Ready is one line on stderr, ``ready <what> <address>``, and ``READY`` on the descriptor that the
starter gave with ``--ready-fd``, which is then closed: whoever waits needs neither to poll nor to
sleep.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def announce_ready(what: str, address: str, ready_fd: int | None) -> None:
    """Say that this process answers at ``address``; a starter that is gone is no error."""
    print(f"ready {what} {address}", file=sys.stderr, flush=True)
    if ready_fd is None:
        return
    with contextlib.suppress(OSError):
        os.write(ready_fd, b"READY\n")
    with contextlib.suppress(OSError):
        os.close(ready_fd)


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the thread that started this process ends (Linux).

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def raise_descriptor_limit() -> int:
    """Allow this process as many descriptors as it may give itself; how many those are.

    Distributions start processes with a soft limit of 1,024 for the sake of ``select``, which
    nobody here calls; each connection is a descriptor.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
