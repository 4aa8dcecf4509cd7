"""What ``gristmill doctor`` knows of a host: plain data, so that each rule can be tried on any."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """What real jails showed; see ``sandbox.probe.HostReport``.

    ``is_able`` is None where nothing could be tried: the room ``worker`` is not installed.
    ``cgroup_*``: where its groups went, 0 for nowhere, why, and what to type.
    """

    is_able: bool | None = None
    cgroup_version: int = 0
    cgroup_reason: str = ""
    cgroup_remedy: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Cgroup:
    """The groups of this process, and who may make more below them.

    ``version``: 2 where the unified tree has controllers, 1 where the old trees have them, else 0.
    ``place``: the directory of our own group. ``uid``: its owner. ``controllers``: on offer there.
    ``is_delegated``: systemd says that it handed it over (``Delegate=``).
    """

    version: int = 0
    place: str = ""
    uid: int = 0
    controllers: frozenset[str] = frozenset()
    is_writable: bool = False
    is_delegated: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class AppArmor:
    """Whether the kernel has it switched on, and the profile that this process runs under."""

    is_enabled: bool = False
    profile: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Clock:
    """The wall clock. ``is_synchronised``: None where the kernel does not say.

    ``grid_ahead_ms``: the broker's clock minus ours, None without a grid; it is right to
    ``round_trip_ms``.
    """

    is_synchronised: bool | None = None
    grid_ahead_ms: int | None = None
    round_trip_ms: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Disk:
    """What lies under a folder.

    ``at``: the folder, or the nearest one above that exists. ``kind``: of its file system.
    ``inodes``: 0 where the file system has no fixed number. ``fsync_us``: of a small file written
    there, -1 where that failed with ``error``.
    """

    what: str
    path: str
    at: str
    kind: str
    free_bytes: int
    inodes: int = 0
    inodes_free: int = 0
    fsync_us: int = 0
    error: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Door:
    """An address that a process will listen on.

    ``refused``: why a process would not listen there at all, with the error's code and hint.
    ``error``: what the kernel said to a trial. ``holder``: who listens there, with its pid, and
    whether it is one of the grid that runs in our folders.
    """

    name: str
    address: str
    code: str = ""
    refused: str = ""
    hint: str = ""
    error: str = ""
    is_taken: bool = False
    holder: str = ""
    holder_pid: int = 0
    is_ours: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Secret:
    """A file that only its owner may read, or a folder that has such files.

    ``kind``: ``folder``, ``file`` or what else it is. ``owner_uid``: of the folder that it is in.
    ``has_key``: a file that should hold a key and does; None where nobody may look.
    """

    path: str
    kind: str
    mode: int
    uid: int
    owner_uid: int
    has_key: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Versions:
    """What is installed; empty for what is not. ``grid``: that of the broker that answers."""

    python: tuple[int, int, int]
    executable: str
    kernel: str
    pyzmq: str = ""
    libzmq: str = ""
    has_curve: bool = False
    sqlite: str = ""
    nsjail: str = ""
    own: str = ""
    grid: str = ""
    workers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """A host, as somebody of ``uid`` sees it. ``settings``: sysctls by path, absent if missing."""

    uid: int
    gid: int
    versions: Versions
    trial: Trial = Trial()
    nsjail: str = "nsjail"
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    apparmor: AppArmor = AppArmor()
    cgroup: Cgroup = Cgroup()
    clock: Clock = Clock()
    disks: tuple[Disk, ...] = ()
    doors: tuple[Door, ...] = ()
    secrets: tuple[Secret, ...] = ()
    files_soft: int = 1 << 20
    files_hard: int = 1 << 20
