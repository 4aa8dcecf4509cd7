"""Meters for a jail without a cgroup: the process tree under nsjail, read from /proc outside.

An estimate from outside, never what the jail says of itself: cpu of children that ended without
being waited for, and peaks between two looks, are missed. ``Sampler`` keeps the highest seen.
"""

import os
from collections.abc import Iterator

from gristmill.sandbox.cgroup import Reading, Usage

_TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def children_of(pid: int) -> list[int]:
    """Direct children of a process; empty when it is gone or the kernel cannot say."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def is_stopped(pid: int) -> bool:
    """Whether a process stands still by a signal or a debugger; False when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except (FileNotFoundError, ProcessLookupError):
        return False


def tree_of(pid: int) -> Iterator[int]:
    """A process and everything below it, parents first.

    Children started by a thread other than the main one are listed under that thread, so all
    threads are asked.
    """
    yield pid
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                children = file.read().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in children:
            yield from tree_of(int(child))


def proportional_bytes(pid: int) -> int:
    """Memory of a process and everything below it, each shared page counted once in all.

    Resident sets count what forked children share once for each; this looks properly and costs up
    to a millisecond for a process. A process that hides (not dumpable) counts as nothing.
    """
    kibibytes = 0
    for member in tree_of(pid):
        try:
            with open(f"/proc/{member}/smaps_rollup") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        kibibytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kibibytes * 1024


def _scratch_bytes(pid: int) -> int:
    """What lies in the /tmp of the jail below an nsjail, seen from outside; 0 where it cannot be.

    The jail's /tmp is a file system of its own: one that is our own /tmp is no jail's.
    """
    for child in children_of(pid)[:1]:
        try:
            scratch = f"/proc/{child}/root/tmp"
            if os.stat(scratch).st_dev != os.stat("/tmp").st_dev:
                found = os.statvfs(scratch)
                return (found.f_blocks - found.f_bfree) * found.f_frsize
        except OSError:
            return 0
    return 0


class Sampler:
    """Readings of one jail by its nsjail pid; cpu and peak never go down."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._cpu_us = 0
        self._peak_bytes = 0
        self._resident_bytes = 0
        self._pids = 0

    def sample(self) -> Reading:
        """Look now: about 20 us for each process of the jail."""
        cpu_us = resident_bytes = pids = 0
        for pid in tree_of(self._pid):
            try:
                with open(f"/proc/{pid}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # after the name: state is field 3; utime, stime, cutime, cstime 14-17; rss 24
            cpu_us += sum(int(field) for field in fields[11:15]) * _TICK_US
            resident_bytes += int(fields[21]) * _PAGE_BYTES
            pids += 1
        self._resident_bytes, self._pids = resident_bytes, pids
        self.raise_to(cpu_us, resident_bytes)
        return self.reading()

    def usage(self) -> Usage:
        """Present use."""
        self.sample()
        return Usage(self._cpu_us, self._resident_bytes, _scratch_bytes(self._pid), self._pids)

    def raise_to(self, cpu_us: int, peak_bytes: int) -> None:
        """Take in what wait4 said at the end, where it is more."""
        self._cpu_us = max(self._cpu_us, cpu_us)
        self._peak_bytes = max(self._peak_bytes, peak_bytes)

    def reset_peak(self) -> None:
        """Forget the highest sum seen."""
        self._peak_bytes = 0

    def reading(self) -> Reading:
        """The last state, without looking."""
        return Reading(cpu_us=self._cpu_us, memory_peak_bytes=self._peak_bytes, source="proc")
