"""Ends the process when it holds more memory than it may: no peer can take the host's.

libzmq keeps a message until its last frame is there, and bounds neither the number of frames nor
their sum (docs/adr/0003-a-memory-limit-ends-the-broker.md): what a peer sends without an end never
reaches us, so nobody here can refuse it. A thread looks at the resident memory twenty times a
second and ends the process at the limit; what was acknowledged is on disk, and whoever started us
starts us again. Should memory grow faster than it looks, the kernel's limit on private memory
(``RLIMIT_DATA``) makes the next allocation fail, which ends the process as well.
"""

import logging
import os
import resource
import threading

from gristmill.broker.metrics import Metrics
from gristmill.wire.errors import EXIT_MEMORY
from gristmill.wire.units import format_bytes

log = logging.getLogger("gristmill.broker.memory")

LOOK_S = 0.05
SHARE = 4  #: by default a quarter of the host's memory ...
BYTES_MIN = 1 << 30  #: ... and at least this
#: what memory may grow by between two looks (libzmq was seen to take 1 GiB/s), and what is private
#: memory without being resident: stacks of threads, arenas of malloc
SLACK_BYTES = 512 << 20


def default_limit() -> int:
    """The limit of a broker that was given none."""
    return max(BYTES_MIN, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // SHARE)


def resident_bytes() -> int:
    """What this process holds in memory now."""
    with open("/proc/self/statm", "rb", buffering=0) as file:
        return _resident(file.fileno())


def _resident(statm_fd: int) -> int:
    return int(os.pread(statm_fd, 256, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")


def limit_private_bytes(limit: int) -> None:
    """Sets the kernel's limit above ours, unless it is lower already."""
    wanted = limit + SLACK_BYTES
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft > wanted:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


class MemoryWatch:
    """See the module's text. ``peak``: the most that was seen; ``held``: at the last look."""

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self.limit = limit
        # Held open: where descriptors have run out, memory must still be looked at.
        self._statm_fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self.peak = self.held = _resident(self._statm_fd)
        self._metrics = metrics
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join(5)
        os.close(self._statm_fd)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            held = self.held = _resident(self._statm_fd)
            self.peak = max(self.peak, held)
            if held > self.limit:
                self._end(held)

    def _end(self, held: int) -> None:
        log.critical(
            "broker ends: it holds %s of memory; the limit is %s (GRISTMILL_BROKER_MEMORY_BYTES)."
            " Nothing acknowledged is lost. A peer that sends a message without an end does this;"
            " if there was none, raise the limit. front_messages=%d back_messages=%d",
            format_bytes(held), format_bytes(self.limit),
            self._metrics.front_messages, self._metrics.back_messages,
        )  # fmt: skip
        for handler in logging.getLogger().handlers:
            handler.flush()
        os._exit(EXIT_MEMORY)  # at once: every moment costs the host memory
