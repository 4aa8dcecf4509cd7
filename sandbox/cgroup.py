"""One cgroup per jail, owned by the worker: limits, meters, a certain kill, removal.

nsjail can make cgroups itself but deletes them, with their figures, when it exits; so the worker
makes the group, nsjail and everything below it are started inside, and the figures outlive them.
Version 1 (one tree per controller) and version 2 (one tree) have the same face, ``Group``. Where
groups may be made at all is delegation.py's question.

Memory: version 1 needs memsw = memory, or swap is unlimited. ``memory.oom.group`` is left at 0 in
version 2, as version 1 has nothing like it: the kernel kills the largest process, and a zygote
survives its child.
"""

import abc
import contextlib
import dataclasses
import errno
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from gristmill.sandbox.limits import Limits

PERIOD_US = 100_000  #: of the cpu bandwidth limit
NSJAIL_PROCESSES = 1  #: nsjail's own process sits in the group too


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What a jail has used so far, read outside the jail.

    Attributes:
        cpu_us: cpu time of every process of the jail, ended ones and nsjail's start included.
        memory_peak_bytes: highest use since start or ``reset_peak``. ``cgroup-*``: the whole jail
            with page cache and scratch; ``proc``: largest sum of resident sets that was sampled.
        oom_kills: processes killed by the kernel for memory. Always 0 for ``proc``.
        pids_denied: forks refused. Always 0 for ``proc``.
        source: ``cgroup-v1``, ``cgroup-v2`` or ``proc`` (rlimits and /proc stand in).
    """

    cpu_us: int = 0
    memory_peak_bytes: int = 0
    oom_kills: int = 0
    pids_denied: int = 0
    source: str = "proc"

    @property
    def is_estimated(self) -> bool:
        """True where no cgroup meters the jail: short-lived processes may be missed."""
        return self.source == "proc"


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """What a jail uses at this moment, for people who watch; bills use ``Reading``.

    ``disk_bytes``: its scratch and other tmpfs, which count as memory too; 0 where not known.
    """

    cpu_us: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    pids: int = 0


class Group(abc.ABC):
    """One jail's cgroup. Not thread-safe; one owner."""

    source: str

    @property
    @abc.abstractmethod
    def procs_files(self) -> tuple[str, ...]:
        """Files to write ``0`` to, between fork and exec, to enter."""

    @abc.abstractmethod
    def cpu_us(self) -> int:
        """Cpu time so far, by an open descriptor: about a microsecond."""

    @abc.abstractmethod
    def reading(self) -> Reading:
        """All meters: about 100 us."""

    @abc.abstractmethod
    def usage(self) -> Usage:
        """Present use: about 100 us."""

    @abc.abstractmethod
    def reset_peak(self) -> bool:
        """Start the memory peak again from the present use; False where the kernel cannot."""

    @abc.abstractmethod
    def kill(self) -> None:
        """SIGKILL to every process inside, forks in flight included."""

    @abc.abstractmethod
    def pids(self) -> list[int]:
        """Processes inside now."""

    @abc.abstractmethod
    def remove(self) -> bool:
        """Remove the directories and close descriptors; False while a process is still inside.

        Call again later on False; a second call after True does nothing.
        """


class GroupV1(Group):
    """A directory in each of the version 1 trees ``memory``, ``pids``, ``cpu`` and ``cpuacct``.

    ``directories`` maps controller -> directory that does not exist yet; trees mounted together
    (``cpu,cpuacct``) give the same directory twice.
    """

    source = "cgroup-v1"

    def __init__(self, directories: Mapping[str, Path], limits: Limits) -> None:
        self._at = dict(directories)
        self._unique = tuple(dict.fromkeys(self._at.values()))
        self._cpu = -1
        try:
            for directory in self._unique:
                directory.mkdir()
            self._limit(limits)
            self._cpu = os.open(self._at["cpuacct"] / "cpuacct.usage", os.O_RDONLY)
        except BaseException:
            self.remove()
            raise

    def _limit(self, limits: Limits) -> None:
        memory = self._at["memory"]
        _write(memory / "memory.limit_in_bytes", limits.memory_bytes)
        with contextlib.suppress(FileNotFoundError):  # absent without swap accounting
            _write(memory / "memory.memsw.limit_in_bytes", limits.memory_bytes)
        _write(self._at["pids"] / "pids.max", limits.pids_max + NSJAIL_PROCESSES)
        if limits.cpu_quota_ms_per_s:
            _write(self._at["cpu"] / "cpu.cfs_period_us", PERIOD_US)
            quota = limits.cpu_quota_ms_per_s * PERIOD_US // 1000
            _write(self._at["cpu"] / "cpu.cfs_quota_us", quota)

    @property
    def procs_files(self) -> tuple[str, ...]:
        """See ``Group.procs_files``."""
        return tuple(str(directory / "cgroup.procs") for directory in self._unique)

    def cpu_us(self) -> int:
        """See ``Group.cpu_us``."""
        return int(os.pread(self._cpu, 64, 0)) // 1000

    def reading(self) -> Reading:
        """See ``Group.reading``."""
        memory, pids = self._at["memory"], self._at["pids"]
        return Reading(
            cpu_us=self.cpu_us(),
            memory_peak_bytes=int((memory / "memory.max_usage_in_bytes").read_text()),
            oom_kills=_table(memory / "memory.oom_control").get("oom_kill", 0),
            pids_denied=_table(pids / "pids.events").get("max", 0),
            source=self.source,
        )

    def usage(self) -> Usage:
        """See ``Group.usage``."""
        memory, pids = self._at["memory"], self._at["pids"]
        return Usage(
            cpu_us=self.cpu_us(),
            memory_bytes=int((memory / "memory.usage_in_bytes").read_text()),
            disk_bytes=_table(memory / "memory.stat").get("shmem", 0),
            pids=int((pids / "pids.current").read_text()),
        )

    def reset_peak(self) -> bool:
        """See ``Group.reset_peak``."""
        _write(self._at["memory"] / "memory.max_usage_in_bytes", 0)
        return True

    def kill(self) -> None:
        """See ``Group.kill``."""
        with contextlib.suppress(FileNotFoundError):
            _write(self._at["pids"] / "pids.max", 0)  # no fork outruns the loop below
        _kill_all(self.pids)

    def pids(self) -> list[int]:
        """See ``Group.pids``."""
        return _pids(self._at["pids"] / "cgroup.procs")

    def remove(self) -> bool:
        """See ``Group.remove``."""
        if self._cpu >= 0:
            os.close(self._cpu)
            self._cpu = -1
        return all([_remove(directory) for directory in self._unique])


class GroupV2(Group):
    """A directory of the unified tree, below one whose ``subtree_control`` has memory and pids.

    ``make_directory`` is the kernel's door: tests hand in one that fills a plain directory with
    the files that cgroup2 would show.
    """

    source = "cgroup-v2"

    def __init__(
        self,
        directory: Path,
        limits: Limits,
        make_directory: Callable[[Path], None] = Path.mkdir,
    ) -> None:
        self._at = directory
        self._cpu = self._peak = -1
        make_directory(directory)
        try:
            self._limit(limits)
            self._cpu = os.open(directory / "cpu.stat", os.O_RDONLY)
            self._peak = _open_peak(directory / "memory.peak")
        except BaseException:
            self.remove()
            raise

    def _limit(self, limits: Limits) -> None:
        _write(self._at / "memory.max", limits.memory_bytes)
        with contextlib.suppress(FileNotFoundError):  # absent without swap accounting
            _write(self._at / "memory.swap.max", 0)
        _write(self._at / "pids.max", limits.pids_max + NSJAIL_PROCESSES)
        if limits.cpu_quota_ms_per_s:
            quota = limits.cpu_quota_ms_per_s * PERIOD_US // 1000
            _write(self._at / "cpu.max", f"{quota} {PERIOD_US}")

    @property
    def procs_files(self) -> tuple[str, ...]:
        """See ``Group.procs_files``."""
        return (str(self._at / "cgroup.procs"),)

    def cpu_us(self) -> int:
        """See ``Group.cpu_us``."""
        first = os.pread(self._cpu, 256, 0).split(b"\n", 1)[0]
        return int(first.removeprefix(b"usage_usec "))

    def reading(self) -> Reading:
        """See ``Group.reading``."""
        return Reading(
            cpu_us=self.cpu_us(),
            memory_peak_bytes=self._peak_bytes(),
            oom_kills=_table(self._at / "memory.events").get("oom_kill", 0),
            pids_denied=_table(self._at / "pids.events").get("max", 0),
            source=self.source,
        )

    def usage(self) -> Usage:
        """See ``Group.usage``."""
        return Usage(
            cpu_us=self.cpu_us(),
            memory_bytes=int((self._at / "memory.current").read_text()),
            disk_bytes=_table(self._at / "memory.stat").get("shmem", 0),
            pids=int((self._at / "pids.current").read_text()),
        )

    def _peak_bytes(self) -> int:
        if self._peak >= 0:
            return int(os.pread(self._peak, 64, 0))
        return int((self._at / "memory.current").read_text())  # Linux before 5.19

    def reset_peak(self) -> bool:
        """See ``Group.reset_peak``."""
        if self._peak < 0:
            return False
        try:
            os.write(self._peak, b"0")  # since Linux 6.12; holds for this descriptor only
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """See ``Group.kill``."""
        try:
            _write(self._at / "cgroup.kill", 1)  # since Linux 5.14
            return
        except FileNotFoundError:
            pass
        with contextlib.suppress(FileNotFoundError):
            _write(self._at / "pids.max", 0)
        _kill_all(self.pids)

    def pids(self) -> list[int]:
        """See ``Group.pids``."""
        return _pids(self._at / "cgroup.procs")

    def remove(self) -> bool:
        """See ``Group.remove``."""
        for fd in {self._cpu, self._peak} - {-1}:
            os.close(fd)
        self._cpu = self._peak = -1
        return _remove(self._at)


def _write(path: Path, value: int | str) -> None:
    fd = os.open(path, os.O_WRONLY)  # never O_CREAT: a misspelt limit must fail
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def _table(path: Path) -> dict[str, int]:
    """``name number`` lines; empty where the kernel has no such file."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return {}
    return {name: int(value) for name, value in (line.split()[:2] for line in text.splitlines())}


def _pids(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text().split()]
    except (FileNotFoundError, OSError):
        return []


def _kill_all(list_pids: Callable[[], list[int]]) -> None:
    """SIGKILL everything listed until a look shows nobody new.

    With ``pids.max`` at 0 a fork that already passed that check is aborted by the signal pending
    on its parent, or shows in the next look.
    """
    seen: set[int] = set()
    while new := set(list_pids()) - seen:
        for pid in sorted(new):  # parents first, mostly: one left alive tells of its children's end
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        seen |= new


def _open_peak(path: Path) -> int:
    for flags in (os.O_RDWR, os.O_RDONLY):
        try:
            return os.open(path, flags)
        except OSError as error:
            if error.errno == errno.ENOENT:
                break
    return -1


def _remove(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise
    return True
