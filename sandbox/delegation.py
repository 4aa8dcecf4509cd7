"""Where this process may make cgroups: found once at start, then one ``Group`` per jail.

Layout: ``<place>/gristmill/<agent>/<jail>``, with the agent named by pid and start time, so that
names are unique and the groups of dead agents are recognised and removed at the next start.

Version 2: a group with processes of its own cannot give controllers to its children. Under a
delegated group (systemd ``Delegate=yes``) everything in it is first moved to a child ``self``;
systemd before 254 cannot do that for us. Root without a delegated group of its own uses the top.
Version 1 has no such rule: root uses the top of each tree; another user its own group there or a
``gristmill`` directory that an administrator made for it.
"""

import contextlib
import dataclasses
import os
import secrets
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from gristmill.sandbox.cgroup import Group, GroupV1, GroupV2
from gristmill.sandbox.limits import Limits
from gristmill.sandbox.remedies import DELEGATE_REMEDY

CONTROLLERS_V1 = ("memory", "pids", "cpu", "cpuacct")
CONTROLLERS_V2 = ("memory", "pids")  #: needed; cpu is taken where it is on offer
NAME = "gristmill"
CLOSE_TIMEOUT_S = 2.0
#: What a plain user types to be given a delegated group under systemd.
SCOPE_REMEDY = "systemd-run --user --scope -p Delegate=yes -- gristmill up"


@dataclasses.dataclass(frozen=True, slots=True)
class Mount:
    """A mounted cgroup tree: its controllers (version 1), where it is, from which root on."""

    version: int
    controllers: frozenset[str]
    point: Path
    root: str


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where jails' groups go. ``version`` 0: nowhere, and ``reason`` and ``remedy`` say why.

    ``directories``: controller -> parent directory (version 1), or ``unified`` -> it (version 2).
    """

    version: int
    directories: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    reason: str = ""
    remedy: str = ""
    has_cpu_quota: bool = False


def find_place(
    mountinfo: str, own_groups: str, is_root: bool, is_delegated: Callable[[Path], bool]
) -> Place:
    """Choose a place from the texts of /proc/self/mountinfo and /proc/self/cgroup.

    Version 2 is preferred when it has the memory controller. Looks at the file system for what is
    writable; changes nothing. ``is_delegated`` tells whether a group was handed to this process.
    """
    mounts = parse_mounts(mountinfo)
    own = parse_own(own_groups)
    unified = next((mount for mount in mounts if mount.version == 2), None)
    if unified is not None and "memory" in _words(unified.point / "cgroup.controllers"):
        return _place_v2(unified, own.get("", "/"), is_root, is_delegated)
    if all(_mount_of(mounts, name) for name in CONTROLLERS_V1):
        return _place_v1(mounts, own, is_root)
    return Place(
        0,
        reason="no cgroup memory, pids and cpu controllers are mounted",
        remedy="sudo mount -t cgroup2 none /sys/fs/cgroup",
    )


def parse_mounts(mountinfo: str) -> list[Mount]:
    """Cgroup mounts of a mountinfo text (proc(5)); a later mount on one point hides an earlier."""
    found: dict[str, Mount] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        options = frozenset(kind[2].split(",")) - {"rw", "ro"}
        version = 2 if kind[0] == "cgroup2" else 1
        found[fields[4]] = Mount(version, options, Path(fields[4]), fields[3])
    return list(found.values())


def parse_own(text: str) -> dict[str, str]:
    """Controller -> path, from /proc/self/cgroup; the unified tree is the empty name."""
    own = {}
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            own[name] = path
    return own


def is_delegated_by_systemd(directory: Path) -> bool:
    """Systemd marks the groups it delegates with an extended attribute."""
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(directory, name) == b"1":
                return True
        except OSError:
            continue
    return False


def agent_name(pid: int) -> str:
    """What no other process of this boot is called: pid and start time in clock ticks."""
    return f"{pid}-{_start_time(pid)}"


def is_alive(pid: str, started: str) -> bool:
    """The process of an ``agent_name`` still runs; False for what is no such name.

    One that /proc hides from us (``ProtectProc=``, another user namespace) is there all the same:
    its groups are not ours to remove.
    """
    try:
        return _start_time(int(pid)) == int(started)
    except ValueError:
        return False
    except (FileNotFoundError, ProcessLookupError):
        return _is_there(int(pid))


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return pid > 0


class Ground:
    """This agent's groups: makes one per jail, sweeps those of dead agents, removes all at close.

    Raises:
        OSError: at construction, when the place turns out not to be usable after all.
    """

    def __init__(
        self,
        place: Place,
        pid: int,
        make_directory: Callable[[Path], None] = Path.mkdir,
    ) -> None:
        self.place = place
        self._make_directory = make_directory
        self._sequence = 0
        self._leaving: list[Group] = []
        name = f"{agent_name(pid)}-{secrets.token_hex(4)}"  # a process may have several grounds
        if place.version == 2:
            _hand_down(place.directories["unified"], make_directory)
        self.directories = {}
        for controller, parent in place.directories.items():
            own = self._own_directory(parent / NAME, name)
            self.directories[controller] = own

    def _own_directory(self, base: Path, name: str) -> Path:
        for _ in range(100):
            try:
                if not base.is_dir():
                    self._make_directory(base)
                _remove_dead(base)
                if self.place.version == 2:
                    _enable(base)
                if not (base / name).is_dir():
                    self._make_directory(base / name)
            except (FileExistsError, FileNotFoundError):
                continue  # another agent makes or, leaving last, removes the shared one just now
            if self.place.version == 2:
                _enable(base / name)
            return base / name
        raise OSError(f"{base} comes and goes")

    def make(self, limits: Limits) -> Group:
        """A new, empty, limited group."""
        self.sweep()
        self._sequence += 1
        name = f"j{self._sequence}"
        if self.place.version == 2:
            at = self.directories["unified"] / name
            return GroupV2(at, limits, self._make_directory)
        return GroupV1({key: at / name for key, at in self.directories.items()}, limits)

    def leave(self, group: Group) -> None:
        """Remove a group whose jail has ended, now or, if the kernel still holds it, later."""
        if not group.remove():
            self._leaving.append(group)

    def sweep(self) -> None:
        """Try again to remove what could not be removed."""
        self._leaving = [group for group in self._leaving if not group.remove()]

    def close(self) -> None:
        """Remove what is still there of this agent, as the spawner does when it can.

        Waits up to ``CLOSE_TIMEOUT_S`` for killed processes to leave. Idempotent.
        """
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        while any(at.exists() for at in self.directories.values()):
            self.sweep()
            for at in dict.fromkeys(self.directories.values()):
                for directory in (at, at.parent):  # the parent is shared: the last one removes it
                    with contextlib.suppress(OSError):
                        directory.rmdir()
            if time.monotonic() > deadline:
                break  # the next start on this machine removes it
            time.sleep(0.002)

    @property
    def roots(self) -> list[str]:
        """The agent's directories: whoever outlives this process removes these."""
        return [str(at) for at in dict.fromkeys(self.directories.values())]


def _place_v2(mount: Mount, own: str, is_root: bool, is_delegated: Callable[[Path], bool]) -> Place:
    here = mount.point / _below(mount.root, own).lstrip("/")
    if here.name == "self" and (here.parent / NAME).is_dir():
        here = here.parent  # we have moved there ourselves, or our parent process has
    writable = os.access(here / "cgroup.procs", os.W_OK) and os.access(
        here / "cgroup.subtree_control", os.W_OK
    )
    if writable and (not is_root or is_delegated(here)):
        at = here
    elif is_root and os.access(mount.point / "cgroup.subtree_control", os.W_OK):
        at = mount.point
    else:
        return Place(
            0,
            reason=f"cgroup {here} is not delegated to uid {os.geteuid()}",
            remedy=SCOPE_REMEDY,
        )
    offered = _words(at / "cgroup.controllers")
    missing = [name for name in CONTROLLERS_V2 if name not in offered]
    if missing:
        return Place(
            0,
            reason=f"cgroup {at} does not offer {', '.join(missing)}",
            remedy=DELEGATE_REMEDY,
        )
    return Place(2, {"unified": at}, has_cpu_quota="cpu" in offered)


def _place_v1(mounts: list[Mount], own: Mapping[str, str], is_root: bool) -> Place:
    directories = {}
    for name in CONTROLLERS_V1:
        mount = _mount_of(mounts, name)
        assert mount is not None, name
        mine = mount.point / _below(mount.root, own.get(name, "/")).lstrip("/")
        at = next(
            (
                at
                for at in ((mount.point,) if is_root else (mine, mount.point))
                if os.access(at / NAME if (at / NAME).is_dir() else at, os.W_OK)
            ),
            None,
        )
        if at is None:
            return Place(
                0,
                reason=f"cgroup v1 tree {mount.point} is not writable by uid {os.geteuid()}",
                remedy=_remedy_v1(mounts),
            )
        directories[name] = at
    return Place(1, directories, has_cpu_quota=True)


def _remedy_v1(mounts: list[Mount]) -> str:
    """One line to paste that makes our directory in every tree."""
    found = [_mount_of(mounts, name) for name in CONTROLLERS_V1]
    made = {str(mount.point / NAME): None for mount in found if mount is not None}
    words = shlex.join(made)
    return f"sudo mkdir -p {words} && sudo chown -R {os.geteuid()} {words}"


def _mount_of(mounts: list[Mount], controller: str) -> Mount | None:
    return next((m for m in mounts if m.version == 1 and controller in m.controllers), None)


def _below(root: str, path: str) -> str:
    """A path of /proc/self/cgroup as seen from a mount whose root is ``root`` (containers)."""
    if root != "/" and (path == root or path.startswith(root + "/")):
        return path[len(root) :] or "/"
    return path if root == "/" else "/"


def _hand_down(at: Path, make_directory: Callable[[Path], None]) -> None:
    """Move the processes of a delegated group to its child ``self`` and enable its controllers."""
    if (at / "cgroup.type").exists():  # every group but the top one, which is exempt
        inner = at / "self"
        if not inner.is_dir():
            make_directory(inner)
        for _ in range(10):  # processes may fork while they are moved
            pids = (at / "cgroup.procs").read_text().split()
            if not pids:
                break
            for pid in pids:
                try:
                    _append(inner / "cgroup.procs", pid)
                except ProcessLookupError:
                    continue
    _enable(at)


def _enable(at: Path) -> None:
    offered = _words(at / "cgroup.controllers")
    enabled = _words(at / "cgroup.subtree_control")
    for name in (*CONTROLLERS_V2, "cpu"):
        if name in offered and name not in enabled:
            _append(at / "cgroup.subtree_control", f"+{name}")


def _append(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


def _words(path: Path) -> frozenset[str]:
    try:
        return frozenset(path.read_text().split())
    except OSError:
        return frozenset()


def _start_time(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return int(stat.rpartition(b")")[2].split()[19])


def _remove_dead(base: Path) -> None:
    """Kill and remove the groups of agents that are no more."""
    for agent in base.iterdir():
        if not agent.is_dir():
            continue
        pid, started = [*agent.name.split("-"), ""][:2]
        if not (pid.isdigit() and started.isdigit()) or is_alive(pid, started):
            continue
        for directory in [*(path for path in agent.iterdir() if path.is_dir()), agent]:
            _kill_group(directory)
            try:
                directory.rmdir()
            except OSError:
                continue  # still dying: the next start removes it


def _kill_group(directory: Path) -> None:
    try:
        pids = (directory / "cgroup.procs").read_text().split()
    except OSError:
        return
    for pid in pids:
        try:
            os.kill(int(pid), 9)
        except (ProcessLookupError, PermissionError):
            continue
