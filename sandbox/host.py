"""The ground for jails on this machine: one ``Host`` per worker, made once at its start.

``prepare_host`` writes what jails need into the state directory (seccomp policy, a small /etc),
finds and prepares the place for cgroups, and starts the spawner process (spawner.py says why there
is one). ``Host.start`` starts a jail; ``run.run`` is the blocking convenience over it.

A Host may be used from any thread, one call at a time per Host (a lock sees to it).
"""

import contextlib
import dataclasses
import json
import mmap
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gristmill.sandbox.argv import (
    CONFIG_FD,
    LOG_FD,
    NOBODY,
    build_argv,
    config_text,
    nsjail_path,
    policy_text,
)
from gristmill.sandbox.cgroup import NSJAIL_PROCESSES, Group
from gristmill.sandbox.delegation import (
    Ground,
    Place,
    agent_name,
    find_place,
    is_alive,
    is_delegated_by_systemd,
)
from gristmill.sandbox.errors import SandboxError
from gristmill.sandbox.jail import Jail
from gristmill.sandbox.limits import Limits
from gristmill.sandbox.page import make_shared_page
from gristmill.sandbox.procfs import is_stopped
from gristmill.sandbox.spec import INSIDE_ID, JailSpec
from gristmill.sandbox.warm import Mother, WarmJail

READY_TIMEOUT_S = 10.0  #: an interpreter starts within this
#: A spawner that says nothing for this long does not get on (a stopped one is not even asked).
REPLY_TIMEOUT_S = 5.0
_STAGE = "gristmillstage"
_LENGTH = struct.Struct("!I")

_ETC = {
    "passwd": f"jail:x:{INSIDE_ID}:{INSIDE_ID}::/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    "group": f"jail:x:{INSIDE_ID}:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost jail\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


def prepare_host(state_dir: Path, *, has_cgroups: bool = True) -> "Host":
    """Make this process able to start jails. The one call to make at a worker's start.

    Args:
        state_dir: a directory of the worker's own; made (0700) when missing.
        has_cgroups: False does without, as on a host that delegates none (rlimits stand in).

    Raises:
        SandboxError: with a remedy; this host cannot start jails at all. That jails really hold
            is another question: ask ``probe.probe``.
    """
    return Host(state_dir, has_cgroups)


class Host:
    """See the module.

    Attributes:
        place: where cgroups go; ``place.version`` 0 with ``reason`` and ``remedy`` when nowhere.
        is_root: jails run as nobody (or another chosen uid) rather than as this process's user.
        jail_uid, jail_gid: the host identity of jails that choose none: writable binds must be
            writable by it.
        nsjail: the executable.
    """

    def __init__(self, state_dir: Path, has_cgroups: bool) -> None:
        self.is_root = os.geteuid() == 0
        self.jail_uid = NOBODY if self.is_root else os.geteuid()
        self.jail_gid = NOBODY if self.is_root else os.getegid()
        self.nsjail = nsjail_path()
        self.state_dir = state_dir.absolute()
        self._lock = threading.RLock()
        self._stage = _make_stage() if self.is_root else None
        self._aliases: dict[str, str] = {}
        self._staged: dict[str, str] = {}  # as this spawner has them
        self._ground: Ground | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._jails: list[Jail] = []
        self._is_silent = False
        self._until_fd = make_shared_page("until", mmap.PAGESIZE)
        self._until = memoryview(mmap.mmap(self._until_fd, mmap.PAGESIZE)).cast("Q")
        self._write_files()
        self.place = self._find_ground() if has_cgroups else Place(0, reason="switched off")
        self._start_spawner()

    def start(self, spec: JailSpec) -> Jail:
        """Start a jail. About 1 ms here; the jail is up some 10 ms later.

        Raises:
            SandboxError: the spec cannot be expressed, or the spawner is gone. A set-up that fails
                later (a missing mount source) is an ``Ending`` with SETUP.
        """
        with self._lock:
            if self._socket is None:
                raise SandboxError("this host is closed")
            if self.is_stopped:
                raise SandboxError("the process that starts jails stands still")
            return self._start(spec)

    def start_mother(self, spec: JailSpec, control_fd: int) -> Mother:
        """Start a mother: she makes jails of her children (warm.py).

        Args:
            spec: with ``is_mother``; its rlimits and mounts are those of her children.
            control_fd: the number of her control socket in her jail.

        Raises:
            SandboxError: as ``start``; also where no cgroup would meter her children.
        """
        if self._ground is None:
            raise SandboxError("no cgroup to meter warm jails in", self.place.remedy)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                trial = self._make_group(spec.limits)
                assert trial is not None
                try:
                    fds = {**spec.fds, control_fd: theirs.fileno()}
                    jail = self.start(dataclasses.replace(spec, fds=fds))
                except BaseException:
                    self._leave_group(trial)
                    raise
                mother = Mother(jail, ours, trial, self._leave_group)
                with _opened(trial.procs_files) as doors:
                    mother.order(doors)
                return mother
            except BaseException:
                ours.close()
                raise

    def start_warm(
        self, mother: Mother, limits: Limits, slot: int, page: int, stdout: int, stderr: int
    ) -> WarmJail:
        """Have a mother make a jail; the descriptors are the caller's, as in ``JailSpec``.

        Raises:
            SandboxError: no cgroup for it, or she is gone.
        """
        with self._lock:
            # A group has room for nsjail itself, which is not in this one.
            group = self._make_group(
                dataclasses.replace(limits, pids_max=limits.pids_max - NSJAIL_PROCESSES)
            )
            assert group is not None
            ours, theirs = socket.socketpair()
            try:
                with theirs, _opened(group.procs_files) as doors:
                    mother.order([theirs.fileno(), slot, page, stdout, stderr, *doors])
            except OSError as error:
                ours.close()
                self._leave_group(group)
                raise SandboxError(f"the process that makes warm jails: {error}") from error
            jail = WarmJail(ours, mother.jail, limits, group, self._leave_group, self._is_past)
            self._jails = [other for other in self._jails if other.fileno() >= 0]
            self._jails.append(jail)
            return jail

    def _is_past(self) -> bool:
        return 0 < self._until[0] <= time.monotonic() * 1000

    def reach(self, path: str) -> str:
        """A path that leads to the same file and that a jail's identity can open.

        As root a jail is nobody, who cannot pass a 0700 directory: such paths are bind-mounted at
        a reachable place in the spawner's mount namespace. A colon, which nsjail cannot take, is
        got round in the same way, or by a symbolic link.
        """
        if self.is_root:
            if ":" not in path and _is_passable(path):
                return path
            source = os.path.realpath(path)
            if source not in self._staged:
                self._staged[source] = str(self._ask({"op": "stage", "source": source})["path"])
            return self._staged[source]
        if ":" not in path:
            return path
        if path not in self._aliases:
            link = self.state_dir / "links" / str(len(self._aliases))
            link.unlink(missing_ok=True)
            link.symlink_to(path)
            self._aliases[path] = str(link)
        return self._aliases[path]

    def run_until(self, until_ms: int) -> None:
        """Jails that still run at this time of CLOCK_MONOTONIC are ended, even if we stand still.

        0 is no limit. May be called as often as one likes: it writes a word of shared memory.
        """
        self._until[0] = until_ms

    @property
    def is_alive(self) -> bool:
        """False when the spawner has died, or was asked and said nothing: ``replace_spawner``."""
        return self._process is not None and self._process.poll() is None and not self._is_silent

    @property
    def is_stopped(self) -> bool:
        """Whether the spawner stands still by a signal: no jail starts, no end is told."""
        return self._process is not None and is_stopped(self._process.pid)

    def replace_spawner(self) -> None:
        """End the spawner, and with it every jail, for certain; start a new one.

        The jails' ``poll`` then gives an ``Ending`` without a wait status.

        Raises:
            SandboxError: the new one does not start.
        """
        with self._lock:
            self._end_spawner()
            self._start_spawner()
            self._is_silent = False

    def close(self) -> None:
        """End every jail, remove every cgroup and mount. Idempotent."""
        with self._lock:
            for jail in self._jails:
                jail.kill()
            for jail in self._jails:
                jail.close()
            self._jails.clear()
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            if self._process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(READY_TIMEOUT_S)
                self._end_spawner()
            if self._until_fd >= 0:
                os.close(self._until_fd)
                self._until_fd = -1
            if self._ground is not None:
                self._ground.close()
            if self._stage is not None:
                _remove_stage(self._stage)

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end_spawner(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _write_files(self) -> None:
        if ":" in str(self.state_dir):
            raise SandboxError(
                f"the state directory {self.state_dir} has a colon in its path", "choose another"
            )
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("etc", "links"):
            (self.state_dir / name).mkdir(mode=0o755, exist_ok=True)
        for name, text in _ETC.items():
            path = self.state_dir / "etc" / name
            path.write_text(text)
            path.chmod(0o644)
        for is_mother in (False, True):
            text = policy_text(is_mother=is_mother)
            (self.state_dir / _policy_name(is_mother)).write_text(text)

    def _find_ground(self) -> Place:
        place = find_place(
            Path("/proc/self/mountinfo").read_text(),
            Path("/proc/self/cgroup").read_text(),
            self.is_root,
            is_delegated_by_systemd,
        )
        if place.version:
            try:
                self._ground = Ground(place, os.getpid())
            except OSError as error:
                where = ", ".join(sorted({str(at) for at in place.directories.values()}))
                return Place(0, reason=f"cgroups under {where} are refused: {error}")
        return place

    def _start_spawner(self) -> None:
        self._staged.clear()
        config: dict[str, Any] = {
            "owner": os.getpid(),
            "groups": self._ground.roots if self._ground else [],
            "place": self._stage,
            "until": self._until_fd,
        }
        ours, theirs = socket.socketpair()
        ours.settimeout(READY_TIMEOUT_S)
        self._socket = ours
        script = str(Path(__file__).with_name("spawner.py"))
        command = [sys.executable, "-I", "-S", "-B", script, str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                [*command, json.dumps(config)],
                pass_fds=[theirs.fileno(), self._until_fd],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is for the worker alone
                cwd="/",
                env={},
            )
        try:
            self._receive()
        except SandboxError:
            self.close()
            raise
        ours.settimeout(REPLY_TIMEOUT_S)

    def _start(self, spec: JailSpec) -> Jail:
        argv = build_argv(
            spec,
            nsjail=self.nsjail,
            policy_file=str(self.state_dir / _policy_name(spec.is_mother)),
            etc=str(self.state_dir / "etc"),
            is_root=self.is_root,
            has_group=self._ground is not None,
            reach=self.reach,
        )
        group = self._make_group(spec.limits)
        end_read, end_write = os.pipe()
        log_fd = os.memfd_create("nsjail-log")
        config_fd = os.memfd_create("nsjail-config")
        os.write(config_fd, config_text(spec))
        targets = {LOG_FD: log_fd, CONFIG_FD: config_fd, **spec.fds}
        for number, fd in enumerate((spec.stdin, spec.stdout, spec.stderr)):
            if fd is not None:
                targets[number] = fd
        request = {
            "op": "start",
            "argv": argv,
            "targets": list(targets),
            "log": LOG_FD,
            "groups": group.procs_files if group else (),
        }
        try:
            pid, pidfd = self._ask_start(request, [end_write, *targets.values()])
        except BaseException:
            os.close(end_read)
            os.close(log_fd)
            if group is not None and self._ground is not None:
                self._ground.leave(group)
            raise
        finally:
            os.close(end_write)
            os.close(config_fd)
        jail = Jail(pid, pidfd, end_read, log_fd, spec.limits, group, self._leave_group)
        self._jails = [other for other in self._jails if other.fileno() >= 0]
        self._jails.append(jail)
        return jail

    def _make_group(self, limits: Limits) -> Group | None:
        if self._ground is None:
            return None
        try:
            return self._ground.make(limits)
        except OSError as error:
            raise SandboxError(f"no cgroup for the jail: {error}") from error

    def _leave_group(self, group: Group) -> None:
        with self._lock:
            if self._ground is not None:
                self._ground.leave(group)

    def _ask_start(self, request: dict[str, Any], fds: Sequence[int]) -> tuple[int, int]:
        with self._lock:
            self._send(request, fds)
            reply, received = self._receive()
            if not received:  # the kernel drops what we have no descriptor for
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(reply["pid"]), signal.SIGKILL)
                raise SandboxError("Too many open files: a jail's handle could not be taken")
            return int(reply["pid"]), received[0]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._send(request, ())
            return self._receive()[0]

    def _send(self, request: dict[str, Any], fds: Sequence[int]) -> None:
        if self._socket is None:
            raise SandboxError("this host is closed")
        payload = json.dumps(request).encode()
        try:
            socket.send_fds(self._socket, [_LENGTH.pack(len(payload))], list(fds))
            self._socket.sendall(payload)
        except OSError as error:
            raise SandboxError(f"the process that starts jails is gone: {error}") from error

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        assert self._socket is not None
        try:
            head, fds, _, _ = socket.recv_fds(
                self._socket, _LENGTH.size, 4, socket.MSG_CMSG_CLOEXEC
            )
            payload = b""
            while head and len(payload) < _LENGTH.unpack(head)[0]:
                part = self._socket.recv(_LENGTH.unpack(head)[0] - len(payload))
                if not part:
                    break
                payload += part
        except OSError as error:
            self._is_silent = True  # a late answer would be taken for the next one
            raise SandboxError(f"the process that starts jails does not answer: {error}") from error
        if not payload:
            raise SandboxError("the process that starts jails ended")
        reply: dict[str, Any] = json.loads(payload)
        if "error" in reply:
            for fd in fds:
                os.close(fd)
            raise SandboxError(f"the process that starts jails says: {reply['error']}")
        return reply, fds


@contextlib.contextmanager
def _opened(paths: Sequence[str]) -> Iterator[list[int]]:
    """Descriptors to write to; closed afterwards."""
    fds: list[int] = []
    try:
        for path in paths:
            fds.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def _policy_name(is_mother: bool) -> str:
    return "policy-mother.kafel" if is_mother else "policy.kafel"


def _is_passable(path: str) -> bool:
    """Everybody may pass every directory above the path and above where it leads."""
    for start in {path, os.path.realpath(path)}:
        parent = os.path.dirname(os.path.normpath(start))
        while True:
            try:
                mode = os.stat(parent).st_mode
            except OSError:
                return True  # let nsjail name what is missing
            if not mode & stat.S_IXOTH:
                return False
            if parent == "/":
                break
            parent = os.path.dirname(parent)
    return True


def _make_stage() -> str:
    """An empty directory that everybody may reach, for the spawner to mount over.

    Not in the state directory, which is 0700 and often below a 0700 home. On the host's side it
    stays empty. The spawner removes it, the host does if the spawner could not, and those of dead
    processes go at the next start.
    """
    for parent in ("/run", tempfile.gettempdir(), "/tmp"):
        if os.access(parent, os.W_OK) and _is_passable(f"{parent}/x"):
            for old in Path(parent).glob(f"{_STAGE}-*-*-*"):
                _, pid, started, _ = old.name.split("-")
                if not is_alive(pid, started):
                    _remove_stage(str(old))
            return tempfile.mkdtemp(prefix=f"{_STAGE}-{agent_name(os.getpid())}-", dir=parent)
    raise SandboxError(
        "no directory that everybody may reach: not /run, not /tmp", "chmod 1777 /tmp"
    )


def _remove_stage(path: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(path)  # never more: an empty directory of ours is all that can be there
