"""The process that starts jails: small, single-threaded, alone in a mount namespace of its own.

Run as ``python -I -S spawner.py FD CONFIG`` by host.py; standard library only. Why a process:

- PR_SET_PDEATHSIG counts the death of the starting *thread*, and fork without exec in a threaded
  program may deadlock in the child. Here is one thread, so both are right, whatever the worker is.
- Entering a cgroup and setting the parent-death signal must happen between fork and exec.
- As root it unshares its mount namespace, where it shows interpreters that lie under a 0700 home
  at a reachable place (``stage``), unseen by the rest of the host.
- It is the subreaper of its jails: what a killed nsjail leaves behind becomes its child and is
  killed. When its owner dies, even by SIGKILL, it kills every jail, removes cgroups and scratch.
- It keeps the owner's word when the owner stands still (SIGSTOP, a debugger, a machine that swaps):
  a shared page says until when jails may run (ms of CLOCK_MONOTONIC, 0 for no limit); past it they
  are killed, and their records say ``is_lapsed``.
- ``ru_maxrss`` is never below the forking process's own size; this one is small.

Protocol, on a stream socket: a 4-byte big-endian length and a JSON object, descriptors by
SCM_RIGHTS with the length. Requests are answered in order. ``start`` gives back a pid and a pidfd;
the end of a jail is one line of JSON on its own pipe (the first descriptor of the request), then
EOF. EOF without a line: this process was killed.
"""

import array
import ctypes
import fcntl
import json
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any, Final

LENGTH: Final = struct.Struct("!I")
REQUEST_BYTES_MAX: Final = 4 << 20
DESCRIPTORS_MAX: Final = 64
HIGH: Final = 300  #: descriptors are parked from here up while they are moved to their numbers

#: Signals whose handling changed here (some by Python itself) and would be inherited by jails.
RESTORED: Final = (
    signal.SIGCHLD,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGPIPE,
    signal.SIGXFSZ,
)

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
CLONE_NEWNS: Final = 0x00020000
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

#: nsjail 3.6 checks for the end of its child and then pauses: an end in between is seen by its
#: next 1 s timer only. A stray SIGCHLD makes it look again; these are the pauses between them.
NUDGE_FIRST_S: Final = 0.03
NUDGE_LAST_S: Final = 0.25

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None) -> None:
    _check(
        _libc.mount(
            source.encode(),
            target.encode(),
            None if kind is None else kind.encode(),
            flags,
            None if options is None else options.encode(),
        ),
        target,
    )


def children_of(pid: int) -> list[int]:
    """Direct children of a process; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:
        if not os.path.exists(f"/proc/{pid}"):
            return []
    except ProcessLookupError:
        return []
    found = []  # a kernel without CONFIG_PROC_CHILDREN: look at every process's parent
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    if int(stat.read().rpartition(b")")[2].split()[1]) == pid:
                        found.append(int(name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


class _Jail:
    __slots__ = ("end", "is_lapsed", "nudge_at", "nudge_pause")

    def __init__(self, end: int) -> None:
        self.end = end
        self.is_lapsed = False
        self.nudge_pause = NUDGE_FIRST_S
        self.nudge_at = time.monotonic() + NUDGE_FIRST_S


class Spawner:
    """The loop and its jails.

    ``config``: owner pid, place to stage at, directories to remove, descriptor of the shared page.
    """

    def __init__(self, control: socket.socket, config: dict[str, Any]) -> None:
        self.control = control
        self.place: str | None = config.get("place")
        self.groups: list[str] = config.get("groups", [])
        self.jails: dict[int, _Jail] = {}
        self.ended: list[tuple[int, bytes]] = []  # (end pipe, record) not yet handed over
        self.orphans: set[int] = set()
        self.staged: dict[str, str] = {}
        self.owner = os.pidfd_open(int(config["owner"]))
        self.until = memoryview(mmap.mmap(int(config["until"]), 0, prot=mmap.PROT_READ)).cast("Q")
        self.pid = os.getpid()
        _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "subreaper")
        if self.place is not None:
            _check(_libc.unshare(CLONE_NEWNS), "unshare")
            _mount("none", "/", None, MS_REC | MS_PRIVATE, None)
            _mount("gristmill", self.place, "tmpfs", 0, "mode=0711,size=1m")
        self.wake, wake = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def run(self) -> None:
        """Serve until the owner closes its end or dies, then leave nothing behind."""
        poll = select.poll()
        for fd in (self.control.fileno(), self.owner, self.wake):
            poll.register(fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll(self._pause_ms())}
            if self.wake in ready:
                self._drain_wake()
            self._reap()
            self._nudge()
            self._lapse()
            if self.owner in ready:
                break
            if self.control.fileno() in ready and not self._serve():
                break
        self._shut_down()

    def _pause_ms(self) -> int | None:
        if self.ended:
            return 5
        if not self.jails:
            return None
        soonest = min(jail.nudge_at for jail in self.jails.values())
        if self.until[0] and not all(jail.is_lapsed for jail in self.jails.values()):
            soonest = min(soonest, self.until[0] / 1000)
        return max(0, int((soonest - time.monotonic()) * 1000) + 1)

    def _drain_wake(self) -> None:
        try:
            while os.read(self.wake, 4096):
                pass
        except BlockingIOError:
            pass

    def _serve(self) -> bool:
        try:
            request, fds = self._receive()
        except (EOFError, ConnectionError):
            return False
        try:
            if request["op"] == "start":
                self._reply(*self._start(request, fds))
            elif request["op"] == "stage":
                self._reply({"path": self._stage(request["source"])}, [])
            else:
                self._reply({"error": f"unknown request {request['op']!r}"}, [])
        except OSError as error:
            self._reply({"error": f"{error.strerror}: {error.filename or request['op']}"}, [])
        finally:
            for fd in fds:
                if fd not in {jail.end for jail in self.jails.values()}:
                    os.close(fd)
        return True

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        fds = array.array("i")
        head, ancillary, _, _ = self.control.recvmsg(
            LENGTH.size, socket.CMSG_LEN(DESCRIPTORS_MAX * fds.itemsize), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        head += self._exactly(LENGTH.size - len(head)) if head else b""
        if not head:
            raise EOFError
        length = LENGTH.unpack(head)[0]
        if length > REQUEST_BYTES_MAX:
            raise EOFError
        return json.loads(self._exactly(length)), fds.tolist()

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            part = self.control.recv(min(count, 1 << 16))
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _reply(self, body: dict[str, Any], fds: list[int]) -> None:
        payload = json.dumps(body).encode()
        try:
            socket.send_fds(self.control, [LENGTH.pack(len(payload)) + payload], fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _start(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        end, passed = fds[0], fds[1:]
        pid = os.fork()
        if pid == 0:
            self._become(request, passed)
        self.jails[pid] = _Jail(end)
        return {"pid": pid}, [os.pidfd_open(pid)]  # a zombie's pidfd opens: we have not reaped yet

    def _become(self, request: dict[str, Any], passed: list[int]) -> None:
        """In the child: never returns. Whatever fails is said on the log descriptor."""
        log = 2
        try:
            signal.set_wakeup_fd(-1)
            for number in RESTORED:
                signal.signal(number, signal.SIG_DFL)
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != self.pid:
                os._exit(255)
            os.setsid()
            os.umask(0o022)
            parked = [_park(fd) for fd in passed]
            log = parked[request["targets"].index(request["log"])]
            for path in request["groups"]:
                group = os.open(path, os.O_WRONLY)
                os.write(group, b"0")
                os.close(group)
            null = _park(os.open("/dev/null", os.O_RDWR))
            for standard in range(3):
                os.dup2(null, standard)
            for fd, target in zip(parked, request["targets"], strict=True):
                os.dup2(fd, target)
            os.execve(request["argv"][0], request["argv"], {})
        except BaseException as error:
            os.write(log, f"[F] starting {request['argv'][0]}: {error}\n".encode())
        finally:
            os._exit(255)

    def _stage(self, source: str) -> str:
        if self.place is None:
            raise OSError(1, "not root, nothing can be staged", source)
        if source not in self.staged:
            target = f"{self.place}/{len(self.staged)}"
            if os.path.isdir(source):
                os.mkdir(target, 0o755)
            else:
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
            _mount(source, target, None, MS_BIND | MS_REC, None)
            self.staged[source] = target
        return self.staged[source]

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self.orphans.discard(pid)
            jail = self.jails.pop(pid, None)
            if jail is not None:
                self.ended.append((jail.end, _record(status, usage, jail.is_lapsed)))
        if not self.ended:
            return
        # What a dead nsjail left is our child by now: no jail has ended before that is gone too.
        for pid in children_of(self.pid):
            if pid not in self.jails:
                self.orphans.add(pid)
                os.kill(pid, signal.SIGKILL)  # our own unreaped child: the number is not reused
        if self.orphans:
            return
        for end, record in self.ended:
            try:
                os.write(end, record)
            except BrokenPipeError:
                pass  # the owner has already given this jail up
            os.close(end)
        self.ended.clear()

    def _nudge(self) -> None:
        now = time.monotonic()
        for pid, jail in self.jails.items():
            if now >= jail.nudge_at:
                os.kill(pid, signal.SIGCHLD)
                jail.nudge_pause = min(jail.nudge_pause * 2, NUDGE_LAST_S)
                jail.nudge_at = now + jail.nudge_pause

    def _lapse(self) -> None:
        """The owner's right to run is over, and it did not end its jails by itself."""
        until_ms = self.until[0]
        if not until_ms or time.monotonic() * 1000 < until_ms:
            return
        for pid, jail in self.jails.items():
            if not jail.is_lapsed:
                jail.is_lapsed = True
                for inner in children_of(pid):
                    _kill(inner)
                _kill(pid)

    def _shut_down(self) -> None:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            for pid in children_of(self.pid):
                for inner in children_of(pid):
                    _kill(inner)  # process 1 of the jail first: its whole namespace dies with it
                _kill(pid)
            self._reap()
            if not self.jails and not children_of(self.pid):
                break
            select.select([self.wake], [], [], 0.01)
            self._drain_wake()
        for path in self.groups:
            _remove_groups(path)
            _remove_if_empty(os.path.dirname(path))  # shared with other agents
        if self.place is not None:
            for path in self.staged.values():
                _libc.umount2(path.encode(), MNT_DETACH)
            _libc.umount2(self.place.encode(), MNT_DETACH)
            _remove_if_empty(self.place)


def _park(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _record(status: int, usage: resource.struct_rusage, is_lapsed: bool) -> bytes:
    body = {
        "status": status,
        "cpu_us": int((usage.ru_utime + usage.ru_stime) * 1_000_000),
        "rss_bytes": usage.ru_maxrss * 1024,
        "read_bytes": usage.ru_inblock * 512,
        "written_bytes": usage.ru_oublock * 512,
        "is_lapsed": is_lapsed,
    }
    return json.dumps(body).encode() + b"\n"


def _remove_groups(path: str) -> None:
    """An agent's cgroup directory and the jails' below it; busy ones are left to the next start."""
    for root, directories, _ in os.walk(path, topdown=False):
        for name in directories:
            _remove_directory(os.path.join(root, name))
    _remove_directory(path)


def _remove_directory(path: str) -> None:
    for _ in range(100):
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.005)  # the kernel lets a group go a moment after its last process


def _remove_if_empty(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass  # in use, or gone already


def main() -> None:
    """Serve on the descriptor named by the first argument."""
    config = json.loads(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the owner decides; its end is noticed by itself
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        spawner = Spawner(control, config)
    except OSError as error:
        body = json.dumps({"error": f"{error.strerror}: {error.filename}"}).encode()
        control.sendall(LENGTH.pack(len(body)) + body)
        return
    spawner._reply({"ready": os.getpid()}, [])
    spawner.run()


if __name__ == "__main__":
    main()
