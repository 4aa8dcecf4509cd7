"""Process 1 of a mother jail: an interpreter with all imports done, whose children are jails.

A jail for each subtask (tier ``strict``) is mostly the start of an interpreter. So a job has one
that was started once, in a jail, and never hears of a tenant: no function, no input, no setting.
For each subtask it clones a child, which seals itself (seal.py) and only then reads from the agent.
A child cannot see its mother, nor any other child; what it writes is in its own memory and mounts.

On the control socket, datagrams: the first from the agent has a cgroup's files, for a trial child;
the mother says ``b"ready"`` after that, or why there can be none. Each further one is an order for
a child, with its descriptors:

    end, slot, page, stdout, stderr, and the cgroup's files to write "0" to

What becomes of a child is told on its own ``end`` socket: a pidfd (with ``b"p"``) when it is there,
lines ``[F] ...`` from the child itself where it could not be sealed, and at last, when the child is
gone and reaped, one line of JSON as the spawner writes it. The end of the control socket, and the
agent's death, end the mother, and so all children: she is process 1 of the namespace they are in.
"""

import _socket
import array
import fcntl
import os
import resource
import select
from typing import Final, NoReturn

import msgspec

from gristmill.worker.runners.lean import clone
from gristmill.worker.runners.seal import NAMESPACES, Sealer, Walls

READY: Final = b"ready"
ORDER_FDS: Final = 5  #: beside the cgroup's
ORDER_FDS_MAX: Final = 32
SLOT_FD, PAGE_FD = 3, 4
SAID_BYTES_MAX: Final = 4096
PARKED_FROM: Final = 64  #: descriptors are moved to their numbers from here
FD_END: Final = 4096


class Born(BaseException):
    """Raised in a sealed child, to leave the mother's loop: it is a slot from now on."""


def bear(control_fd: int, walls: str) -> tuple[int, int]:
    """Serve as a mother; comes back in each child, with its slot's descriptors."""
    control = _socket.socket(fileno=control_fd)
    mother = _Mother(control, Sealer(msgspec.json.decode(walls, type=Walls)))
    try:
        mother.run()
    except Born:
        del mother
        return SLOT_FD, PAGE_FD


class _Mother:
    def __init__(self, control: _socket.socket, sealer: Sealer) -> None:
        self._control = control
        self._sealer = sealer
        self._poll = select.poll()
        self._poll.register(control.fileno(), select.POLLIN)
        self._children: dict[int, tuple[int, int]] = {}  # pidfd -> pid, its end socket

    def run(self) -> NoReturn:
        self._try()
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._control.fileno():
                    self._serve()
                else:
                    self._bury(fd)

    def _try(self) -> None:
        """Whether this host lets a child be sealed: told by one that is, and then ends."""
        groups = self._receive()
        read, write = os.pipe()
        try:
            pid = clone(NAMESPACES)
            if pid == 0:
                self._try_seal(groups, write)
            os.close(write)
            said = os.read(read, SAID_BYTES_MAX)
            status = os.waitpid(pid, 0)[1]
            said = said or f"a child ended with status {status}".encode()
        except OSError as error:
            said = str(error).encode()
        for fd in (read, *groups):
            os.close(fd)
        self._control.send(said)

    def _try_seal(self, groups: "array.array[int]", write: int) -> NoReturn:
        try:
            self._sealer.seal(groups)
            os.write(write, READY)
        except BaseException as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)

    def _receive(self) -> "array.array[int]":
        """The descriptors of the next datagram."""
        fds = array.array("i")
        space = _socket.CMSG_SPACE(ORDER_FDS_MAX * fds.itemsize)
        data, ancillary, _, _ = self._control.recvmsg(16, space, _socket.MSG_CMSG_CLOEXEC)
        for level, kind, told in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                fds.frombytes(told[: len(told) - len(told) % fds.itemsize])
        if not data:
            os._exit(0)  # the agent closed the socket
        return fds

    def _serve(self) -> None:
        fds = self._receive()
        end = fds[0]
        try:
            pid = clone(NAMESPACES)
        except OSError as error:
            os.write(end, f"[F] the warm jail: {error}\n".encode() + _record(255 << 8, None))
            os.close(end)
        else:
            if pid == 0:
                self._begin(fds)
            self._keep(pid, end)
        for fd in fds[1:]:
            os.close(fd)

    def _keep(self, pid: int, end: int) -> None:
        pidfd = os.pidfd_open(pid)
        self._poll.register(pidfd, select.POLLIN)
        self._children[pidfd] = pid, end
        told = _socket.socket(fileno=os.dup(end))
        try:
            rights = array.array("i", [pidfd])
            told.sendmsg([b"p"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        except OSError:
            pass  # the agent has given this one up: it reads the end of its socket
        finally:
            told.close()

    def _begin(self, fds: "array.array[int]") -> NoReturn:
        """In the child; leaves by an exception, or ends."""
        end = fds[0]
        self._control.detach()  # its number may be the slot's from now on
        try:
            self._sealer.seal(fds[ORDER_FDS:])
            parked = [_park(fd) for fd in fds[1:ORDER_FDS]]
            for fd, target in zip(parked, (SLOT_FD, PAGE_FD, 1, 2), strict=True):
                os.dup2(fd, target)
        except BaseException as error:
            os.write(end, f"[F] the warm jail: {error}\n".encode())
            os._exit(255)
        os.closerange(PAGE_FD + 1, FD_END)  # the control socket, other children's, its own end
        raise Born

    def _bury(self, pidfd: int) -> None:
        """A child is gone, and with it, as process 1, all that it started."""
        pid, end = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status, usage = os.wait4(pid, 0)
        try:
            os.write(end, _record(status, usage))
        except BrokenPipeError:
            pass
        finally:
            os.close(end)


def _park(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, PARKED_FROM)


def _record(status: int, usage: resource.struct_rusage | None) -> bytes:
    body = {
        "status": status,
        "read_bytes": usage.ru_inblock * 512 if usage else 0,
        "written_bytes": usage.ru_oublock * 512 if usage else 0,
    }
    return msgspec.json.encode(body) + b"\n"
