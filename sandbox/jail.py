"""One running jail: its end, its meters, its certain kill. Nothing here blocks but ``close``.

Made by ``Host.start``. In an event loop, watch ``fileno()``: it is readable when the jail has
ended, every process of it gone; ``poll()`` then gives the ``Ending``. Forgotten jails die with the
spawner, so with the worker.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import time
from collections.abc import Callable

from gristmill.sandbox.cgroup import Group, Reading, Usage
from gristmill.sandbox.limits import Limits
from gristmill.sandbox.procfs import Sampler, children_of, is_stopped, proportional_bytes
from gristmill.sandbox.verdict import Deed, LogFacts, Verdict, judge, parse_log

LOG_BYTES_MAX = 64 << 10
RECORD_BYTES_MAX = 4096
CLOSE_TIMEOUT_S = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """How a jail ended and what it used in all.

    Attributes:
        wait_status: of nsjail, as wait4 gave it; None when the spawner died first.
        reading: the last one, after every process was gone.
        log: nsjail's own words.
        wall_ms: from ``Host.start`` to the first ``poll`` that saw the end.
        read_bytes, written_bytes: block device traffic of waited-for processes (wait4).
        is_lapsed: the spawner ended it because ``Host.run_until`` had passed.
    """

    wait_status: int | None
    reading: Reading
    log: LogFacts
    wall_ms: float
    read_bytes: int = 0
    written_bytes: int = 0
    is_lapsed: bool = False


class Jail:
    """A started jail; see the module. ``pid`` and ``pidfd`` are nsjail's own, outside."""

    def __init__(
        self,
        pid: int,
        pidfd: int,
        end_fd: int,
        log_fd: int,
        limits: Limits,
        group: Group | None,
        leave_group: Callable[[Group], None],
    ) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.limits = limits
        self.started_at = time.monotonic()
        self.ending: Ending | None = None
        self._end_fd = end_fd
        self._log_fd = log_fd
        self._group = group
        self._leave_group = leave_group
        self._sampler = Sampler(pid)
        self._record = b""
        self._inner: int | None = None
        os.set_blocking(end_fd, False)

    def fileno(self) -> int:
        """Readable when the jail has ended."""
        return self._end_fd

    @property
    def source(self) -> str:
        """Where its meters come from: ``cgroup-v1``, ``cgroup-v2`` or ``proc``."""
        return self._group.source if self._group else "proc"

    def cpu_us(self) -> int:
        """Cpu time so far. A microsecond with a cgroup; a walk over /proc without."""
        if self.ending is not None:
            return self.ending.reading.cpu_us
        return self._group.cpu_us() if self._group else self._sampler.sample().cpu_us

    def reading(self) -> Reading:
        """All meters now; the last ones after the end.

        Without a cgroup a peak is only as good as the looks are frequent: look each 50 ms or so.
        """
        if self.ending is not None:
            return self.ending.reading
        return self._group.reading() if self._group else self._sampler.sample()

    def is_over_memory(self) -> bool:
        """Without a cgroup: the jail's processes together hold more than ``memory_bytes``.

        RLIMIT_AS sees one process at a time; many of them pass it together. Call it as often as
        ``cpu_us``, then kill and judge as MEMORY_SPENT. With a cgroup the kernel does all this,
        and the answer is False.
        """
        if self._group is not None or self.ending is not None:
            return False
        if self._sampler.reading().memory_peak_bytes <= self.limits.memory_bytes:
            return False
        return proportional_bytes(self.pid) > self.limits.memory_bytes

    def is_stopped(self) -> bool:
        """Whether nsjail or process 1 of the jail stands still: neither gets on by itself."""
        if self.ending is not None:
            return False
        if self._inner is None:
            self._inner = next(iter(children_of(self.pid)), None)
        return is_stopped(self.pid) or (self._inner is not None and is_stopped(self._inner))

    def usage(self) -> Usage:
        """What it uses at this moment; nothing after the end."""
        if self.ending is not None:
            return Usage(cpu_us=self.ending.reading.cpu_us)
        return self._group.usage() if self._group else self._sampler.usage()

    def reset_peak(self) -> bool:
        """Start ``memory_peak_bytes`` again from the present use; False where impossible."""
        if self._group is None:
            self._sampler.reset_peak()
            return True
        return self._group.reset_peak()

    def kill(self) -> None:
        """End every process of the jail, for certain. Returns at once; watch ``fileno()``.

        Process 1 of the jail first, and the kernel ends the rest with it: left alive it would see
        its children die and tell that as the way in which they ended.
        """
        if self.ending is not None:
            return
        if self._group is None:
            self._sampler.sample()  # a killed nsjail takes its child's accounts with it
        for inner in children_of(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(inner, signal.SIGKILL)
        if self._group is not None:
            self._group.kill()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def poll(self) -> Ending | None:
        """The ending, or None while the jail lives."""
        if self.ending is None and self._is_record_complete():
            self.ending = self._finish()
        return self.ending

    def judge(self, deed: Deed = Deed.NOTHING, output_bytes: int = 0) -> Verdict:
        """The verdict; call after the end. See ``verdict.judge``."""
        assert self.ending is not None, "judge before the end of the jail"
        ending = self.ending
        return judge(
            deed,
            ending.wait_status,
            ending.log,
            ending.reading,
            self.limits,
            ending.wall_ms,
            output_bytes,
        )

    def close(self) -> None:
        """Kill if need be, wait for the end, free everything. Idempotent.

        The one call that may wait, at most ``CLOSE_TIMEOUT_S``; after ``poll`` gave the ending it
        does not.
        """
        if self._end_fd < 0:
            return
        self.kill()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        ended = select.poll()  # not select(): an agent of many slots has descriptors above 1,024
        ended.register(self._end_fd, select.POLLIN)
        while self.poll() is None and time.monotonic() < deadline:
            ended.poll(50)
        for fd in (self._end_fd, self._log_fd, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self._end_fd = self._log_fd = self.pidfd = -1
        if self._group is not None:
            self._leave_group(self._group)
            self._group = None

    def _is_record_complete(self) -> bool:
        while True:
            try:
                part = os.read(self._end_fd, RECORD_BYTES_MAX)
            except BlockingIOError:
                return False
            self._record += part
            if not part or self._record.endswith(b"\n"):
                return True  # end of file without a line: the spawner died

    def _finish(self) -> Ending:
        record = json.loads(self._record) if self._record.endswith(b"\n") else {}
        if self._group is not None:
            if not record:  # else nothing is left: the spawner died half way
                self._group.kill()
            reading = self._group.reading()
        else:
            self._sampler.raise_to(record.get("cpu_us", 0), record.get("rss_bytes", 0))
            reading = self._sampler.reading()
        return Ending(
            wait_status=record.get("status"),
            reading=reading,
            log=self._facts(record.get("status")),
            wall_ms=(time.monotonic() - self.started_at) * 1000,
            read_bytes=record.get("read_bytes", 0),
            written_bytes=record.get("written_bytes", 0),
            is_lapsed=record.get("is_lapsed", False) or (not record and self._has_lapsed()),
        )

    def _has_lapsed(self) -> bool:
        """Where nothing was told of the end: whether our right to run was over then."""
        return False

    def _facts(self, _: int | None) -> LogFacts:
        """What is known of the end; the argument is the wait status."""
        return parse_log(os.pread(self._log_fd, LOG_BYTES_MAX, 0).decode(errors="replace"))
