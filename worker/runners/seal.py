"""A child of a mother becomes a jail of its own, before it hears anything of a tenant.

It begins (``lean.clone``) with user, pid, mount, net, ipc and uts namespaces of its own, but still
in its mother's cgroup, with all rights inside these namespaces, and with a copy of the mother's
mounts, descriptors and memory. ``seal`` then does what nsjail does for a cold jail, in this order:

1. enter the cgroup that was made for it: from here on all is metered and limited;
2. say who it is outside (the mother's own identity, nobody else's), and take a cgroup namespace;
3. cover what may be written to (/tmp, /dev/shm) and what shows processes (/proc) with its own.
   The kernel locks the mounts that came from the mother's namespace: nothing uncovers them. What
   the jail is given below /tmp and /dev/shm (an interpreter may lie there) is shown there again;
4. bring up the loopback, begin a session;
5. give up every capability, for ever, and load the seccomp policy of all jails.

Whatever fails ends the child: there is no jail with fewer walls.
"""

import binascii
import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from typing import Final

import msgspec

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
NAMESPACES: Final = (
    CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET
)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND_ALL = 0x1000 | 0x4000  #: MS_BIND | MS_REC
PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 22, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL, SECCOMP_MODE_FILTER = 4, 2
CAPABILITY_VERSION: Final = 0x20080522
CAPABILITIES_MAX: Final = 64
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
INTERFACE: Final = struct.Struct("16sh14x")


class Walls(msgspec.Struct, frozen=True):
    """What differs between jobs. ``tmp``, ``shm``: options of the tmpfs on /tmp and /dev/shm.

    ``shm`` may be empty: there is no /dev/shm. ``program``: the seccomp filter, as base64.
    ``shown``: what is mounted below the two for this jail, and stays.
    """

    tmp: str
    shm: str
    program: str
    shown: tuple[str, ...] = ()


class Sealer:
    """Made once by the mother, so that a child has little to make. See the module."""

    def __init__(self, walls: Walls) -> None:
        self._libc = ctypes.PyDLL(None, use_errno=True)
        self._tmp, self._shm = walls.tmp.encode(), walls.shm.encode()
        self._shown = walls.shown
        program = binascii.a2b_base64(walls.program)
        self._program = ctypes.create_string_buffer(program, len(program))
        # struct sock_fprog: a count of instructions and, aligned, where they are
        self._filter = ctypes.create_string_buffer(
            struct.pack("@HP", len(program) // 8, ctypes.addressof(self._program))
        )
        self._no_capabilities = ctypes.create_string_buffer(24)
        self._head = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITY_VERSION, 0))
        self._ids = {
            "setgroups": b"deny",
            "uid_map": b"%d %d 1" % (os.getuid(), os.getuid()),
            "gid_map": b"%d %d 1" % (os.getgid(), os.getgid()),
        }

    def seal(self, groups: Sequence[int]) -> None:
        """See the module. ``groups``: descriptors to write ``0`` to, to enter the cgroup.

        Raises:
            OSError: with what was being done; this process must end.
        """
        for fd in groups:
            os.write(fd, b"0")
        self._name()
        self._check(self._libc.unshare(CLONE_NEWCGROUP), "a cgroup namespace")
        self._cover()
        self._raise_loopback()
        os.setsid()
        self._give_up()

    def _name(self) -> None:
        for name, text in self._ids.items():
            fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
            try:
                os.write(fd, text)
            finally:
                os.close(fd)

    def _cover(self) -> None:
        private = MS_NOSUID | MS_NODEV
        shown = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in self._shown]
        self._mount(b"tmpfs", b"/tmp", private, self._tmp)
        if self._shm:
            self._mount(b"tmpfs", b"/dev/shm", private, self._shm)
        for path, fd in shown:
            self._show(path, fd)
        self._mount(b"proc", b"/proc", private | MS_NOEXEC | MS_RDONLY, None)
        os.chdir("/tmp")  # the mother's own stays below

    def _show(self, path: str, fd: int) -> None:
        """Mount what a descriptor is of at the same place again; it stays as it was, read-only."""
        is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        os.makedirs(path if is_directory else os.path.dirname(path), exist_ok=True)
        if not is_directory:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        source = f"/proc/self/fd/{fd}".encode()
        done = self._libc.mount(source, path.encode(), None, ctypes.c_ulong(MS_BIND_ALL), None)
        self._check(done, path)
        os.close(fd)

    def _mount(self, kind: bytes, at: bytes, flags: int, options: bytes | None) -> None:
        done = self._libc.mount(kind, at, kind, ctypes.c_ulong(flags), options)
        self._check(done, f"{kind.decode()} on {at.decode()}")

    def _raise_loopback(self) -> None:
        import _socket

        probe = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        told = fcntl.ioctl(probe.fileno(), SIOCGIFFLAGS, INTERFACE.pack(b"lo", 0))
        flags = INTERFACE.unpack(told)[1]
        fcntl.ioctl(probe.fileno(), SIOCSIFFLAGS, INTERFACE.pack(b"lo", flags | IFF_UP))
        probe.close()

    def _give_up(self) -> None:
        libc = self._libc
        self._check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
        self._check(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "ambient")
        for capability in range(CAPABILITIES_MAX):
            if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
                if ctypes.get_errno() == errno.EINVAL and capability:
                    break  # the kernel has no more
                self._check(-1, f"dropping capability {capability}")
        self._check(libc.capset(self._head, self._no_capabilities), "dropping all capabilities")
        done = libc.prctl(
            PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_void_p(ctypes.addressof(self._filter))
        )
        self._check(done, "the seccomp filter")

    def _check(self, result: int, what: str) -> None:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), what)
