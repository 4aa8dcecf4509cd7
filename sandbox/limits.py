"""What one jail may use: every limit of a jail in one frozen record, with its unit in its name."""

import dataclasses

MEBIBYTE = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one jail. Zero means "no limit" only where a field says so.

    Who enforces what: the caller's clock holds ``wall_ms`` and ``output_bytes_max``; the cgroup
    holds ``memory_bytes`` and ``pids_max`` for the whole jail, and the caller compares ``cpu_ms``
    with the cgroup's meter; rlimits hold the rest per process. On a host without a writable
    cgroup, rlimits stand in (``address_space_bytes`` for memory, RLIMIT_NPROC for processes,
    RLIMIT_CPU for cpu); readings then carry ``source="proc"``.

    Raises:
        ValueError: with every field that is out of range, at construction.
    """

    wall_ms: int = 60_000  #: wall clock, from start to end of the jail
    cpu_ms: int = 60_000  #: cpu time of the whole jail; RLIMIT_CPU, 1-2 s later, backs it up
    memory_bytes: int = 512 * MEBIBYTE  #: of the whole jail, page cache and scratch included
    pids_max: int = 64  #: processes and threads alive at once in the jail
    output_bytes_max: int = 1 * MEBIBYTE  #: stdout and stderr together
    file_bytes_max: int = 256 * MEBIBYTE  #: of one file (RLIMIT_FSIZE, rounded up to 1 MiB)
    files_max: int = 256  #: open descriptors of one process (RLIMIT_NOFILE)
    scratch_bytes: int = 64 * MEBIBYTE  #: of the tmpfs on /tmp
    scratch_files_max: int = 20_000  #: inodes of the tmpfs on /tmp
    shm_bytes: int = 16 * MEBIBYTE  #: of the tmpfs on /dev/shm; 0: no /dev/shm
    address_space_bytes: int = 0  #: of one process (RLIMIT_AS); 0: none, or memory_bytes w/o cgroup
    stack_bytes: int = 8 * MEBIBYTE  #: of one process (RLIMIT_STACK)
    cpu_quota_ms_per_s: int = 0  #: cgroup bandwidth: cpu time per second of wall; 0: none

    def __post_init__(self) -> None:
        faults = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in _MAY_BE_ZERO else 1
            if value < least:
                faults.append(f"{field.name} is {value}, least is {least}")
            elif value > _MOST:
                faults.append(f"{field.name} is {value}, most is {_MOST}")
        if faults:
            raise ValueError("limits out of range: " + "; ".join(faults))


_MAY_BE_ZERO = frozenset({"shm_bytes", "address_space_bytes", "cpu_quota_ms_per_s"})
_MOST = 1 << 53  # exact in every JSON reader
