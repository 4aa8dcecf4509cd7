"""Runs inside a jail: ``python attacks.py NAME [ARGUMENT]`` tries something and tells the result.

One JSON line a try on stdout: ``{"what", "errno", "kind", "got"}``; errno 0 means that it worked.
Standard library only: any Python must be able to run it.
"""

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

MEBIBYTE = 1 << 20
X32 = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {
    "x86_64": {
        "ptrace": 101, "clone": 56, "clone3": 435, "io_uring_setup": 425, "bpf": 321,
        "perf_event_open": 298, "userfaultfd": 323, "keyctl": 250, "kcmp": 312,
        "pidfd_getfd": 438, "process_vm_readv": 310, "open_tree": 428, "fsopen": 430,
        "kexec_load": 246, "name_to_handle_at": 303, "mount": 165,
    },
    "aarch64": {
        "ptrace": 117, "clone": 220, "clone3": 435, "io_uring_setup": 425, "bpf": 280,
        "perf_event_open": 241, "userfaultfd": 282, "keyctl": 219, "kcmp": 272,
        "pidfd_getfd": 438, "process_vm_readv": 270, "open_tree": 428, "fsopen": 430,
        "kexec_load": 104, "name_to_handle_at": 264, "mount": 40,
    },
}[os.uname().machine]  # fmt: skip


def say(what, number=0, kind="", got=None):
    print(json.dumps({"what": what, "errno": number, "kind": kind, "got": got}), flush=True)


def attempt(what, function):
    try:
        got = function()
    except OSError as error:
        say(what, error.errno, type(error).__name__)
    else:
        say(what, got=str(got)[:200])


def call(name, *arguments):
    """A system call by number, so that no library refuses it first."""
    result = libc.syscall(NUMBERS[name], *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def function(name, *arguments):
    result = getattr(libc, name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def touch(count):
    held = bytearray(count)
    for at in range(0, count, 4096):
        held[at] = 1
    return held


def fork_bomb():
    for _ in range(5000):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)


def thread_bomb():
    for _ in range(5000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


def malloc_10g():
    held = []
    for _ in range(160):
        held.append(touch(64 * MEBIBYTE))


def malloc_forks():
    """Each process small, the sum large: no per-process limit sees it."""
    for _ in range(12):
        if os.fork() == 0:
            held = touch(24 * MEBIBYTE)
            time.sleep(60)
            os._exit(len(held) & 0)
    sys.exit(1 if os.wait()[1] else 0)


def spin():
    while True:
        pass


def spin_forks():
    for _ in range(4):
        if os.fork() == 0:
            spin()
    os.wait()


def sleep():
    time.sleep(600)


def disk_fill():
    total = 0
    try:
        for number in range(1000):
            with open(f"/tmp/fill{number}", "wb") as file:
                for _ in range(4):
                    total += file.write(b"x" * MEBIBYTE)
    except OSError as error:
        say("fill", error.errno, type(error).__name__, total)


def many_files():
    number = 0
    try:
        for number in range(100_000):
            open(f"/tmp/n{number}", "w").close()
    except OSError as error:
        say("files", error.errno, type(error).__name__, number)


def big_file():
    """Python ignores SIGXFSZ, so the write fails."""
    total = 0
    for name in ("/tmp/big", "memfd"):
        fd = os.memfd_create("big") if name == "memfd" else os.open(name, os.O_CREAT | os.O_WRONLY)
        try:
            while total < 1 << 30:
                total += os.write(fd, b"x" * MEBIBYTE)
        except OSError as error:
            say(name, error.errno, type(error).__name__, total)
        total = 0
        os.close(fd)
        if name != "memfd":
            os.unlink(name)


def big_file_signal():
    """A child that takes the signal dies of it; process 1 of a namespace would not."""
    if os.fork() == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        with open("/tmp/big", "wb", buffering=0) as file:
            while True:
                file.write(b"x" * MEBIBYTE)
    number = os.WTERMSIG(os.wait()[1])
    say("child", got=number)
    sys.exit(128 + number)


def network(port, abstract):
    for address in (("8.8.8.8", 53), ("169.254.169.254", 80), ("127.0.0.1", int(port))):
        attempt(f"connect {address[0]}", lambda a=address: socket.create_connection(a, 5))

    def connect_abstract():
        with socket.socket(socket.AF_UNIX) as there:
            there.connect("\0" + abstract)

    attempt("connect abstract", connect_abstract)

    def send_datagram():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
            there.sendto(b"x", ("192.0.2.1", 53))

    attempt("datagram", send_datagram)
    socket.getaddrinfo("example.org", 80)


def socket_families():
    for name, arguments in (
        ("raw", (socket.AF_INET, socket.SOCK_RAW, 1)),
        ("netlink", (16, socket.SOCK_RAW, 0)),
        ("packet", (17, socket.SOCK_RAW, 0)),
        ("vsock", (40, socket.SOCK_STREAM, 0)),
        ("alg", (38, socket.SOCK_SEQPACKET, 0)),
    ):
        attempt(name, lambda a=arguments: socket.socket(*a))


def read_outside(*secrets):
    for path in (
        "/etc/shadow", os.path.join("/root", ".profile"), "/home", "/var/log",
        "/sys/kernel", "/sys/fs/cgroup", "/proc/1/root/etc/shadow", "/proc/kcore",
        "/dev/vda", "/dev/mem", "/dev/kmsg", *secrets,
    ):  # fmt: skip
        attempt(path, lambda p=path: os.listdir(p) if os.path.isdir(p) else open(p, "rb").read(64))


def write_outside():
    for path in (
        "/usr/x", "/bin/x", "/etc/x", "/x", "/dev/x", "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger", "/proc/self/oom_score_adj",
    ):  # fmt: skip
        attempt(path, lambda p=path: open(p, "w").write("-1000"))
    attempt("remove", lambda: os.unlink("/etc/passwd"))


def system_calls():
    me = os.getpid()
    new_user, new_mount = 0x10000000, 0x00020000
    attempt("ptrace attach", lambda: call("ptrace", 16, me, 0, 0))
    attempt("ptrace traceme", lambda: call("ptrace", 0, 0, 0, 0))
    attempt("process_vm_readv", lambda: call("process_vm_readv", me, 0, 0, 0, 0, 0))
    attempt("mount", lambda: function("mount", b"none", b"/tmp", b"tmpfs", 0, None))
    attempt("remount", lambda: function("mount", None, b"/", None, 32 | 4096, None))
    attempt("umount", lambda: function("umount2", b"/proc", 2))
    attempt("pivot_root", lambda: function("pivot_root", b"/tmp", b"/tmp"))
    attempt("chroot", lambda: os.chroot("/tmp"))
    attempt("open_tree", lambda: call("open_tree", -100, b"/", 1))
    attempt("fsopen", lambda: call("fsopen", b"tmpfs", 0))
    attempt("unshare user", lambda: function("unshare", new_user))
    attempt("unshare mount", lambda: function("unshare", new_mount))
    attempt("clone user", lambda: call("clone", new_user | signal.SIGCHLD, 0, 0, 0, 0))
    attempt("setns", lambda: function("setns", os.open("/proc/self/ns/net", 0), 0))
    attempt("bpf", lambda: call("bpf", 0, 0, 0))
    attempt("perf_event_open", lambda: call("perf_event_open", 0, 0, 0, 0, 0))
    attempt("userfaultfd", lambda: call("userfaultfd", 0))
    attempt("keyctl", lambda: call("keyctl", 0, -3, 0))
    attempt("kcmp", lambda: call("kcmp", me, me, 0, 0, 0))
    attempt("pidfd_getfd", lambda: call("pidfd_getfd", os.pidfd_open(me), 1, 0))
    attempt("kexec_load", lambda: call("kexec_load", 0, 0, 0, 0))
    attempt("name_to_handle_at", lambda: call("name_to_handle_at", -100, b"/", 0, 0, 0))
    attempt("sethostname", lambda: socket.sethostname("x"))
    attempt("mknod", lambda: os.mknod("/tmp/disk", 0o60660, os.makedev(254, 0)))
    attempt("setuid", lambda: os.setuid(0))
    attempt("setgroups", lambda: os.setgroups([0]))


def absent_calls():
    attempt("clone3", lambda: call("clone3", 0, 0))
    attempt("io_uring_setup", lambda: call("io_uring_setup", 8, 0))


def other_tables():
    """The i386 and x32 system call tables must not be a way round the filter."""
    if os.uname().machine != "x86_64":
        return

    def x32():
        result = libc.syscall(X32 | NUMBERS["mount"], b"none", b"/tmp", b"tmpfs", 0, None)
        if result < 0:
            raise OSError(ctypes.get_errno(), "")

    attempt("x32 mount", x32)
    code = mmap.mmap(-1, 4096, prot=7)
    code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, getpid; int 0x80; ret
    if os.fork() == 0:
        entry = ctypes.addressof(ctypes.c_char.from_buffer(code))
        os._exit(0 if ctypes.CFUNCTYPE(ctypes.c_int)(entry)() > 0 else 1)
    say("int 0x80", 0 if os.wait()[1] == 0 else errno.ENOSYS)


def own_text():
    """Write over read-only code through /proc/self/mem."""
    with open("/proc/self/maps") as maps:
        at = int(next(line for line in maps if " r-xp " in line).split("-")[0], 16)

    def write():
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(at)
            memory.write(b"\x90")

    attempt("/proc/self/mem", write)
    say("visible", got=len([name for name in os.listdir("/proc") if name.isdigit()]))


def kill_outside(pid):
    attempt("kill host", lambda: os.kill(int(pid), 0))
    attempt("kill all", lambda: os.kill(-1, signal.SIGKILL))
    attempt("kill group", lambda: os.killpg(int(pid), signal.SIGKILL))


def raise_limits():
    import resource

    for name in ("NOFILE", "NPROC", "AS", "CPU", "FSIZE", "CORE"):
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        if hard != resource.RLIM_INFINITY:

            def set_limit(number=number, hard=hard):
                try:
                    resource.setrlimit(number, (hard + 1, hard + 1))
                except ValueError:
                    raise OSError(errno.EPERM, "") from None

            attempt(name, set_limit)
    attempt("nice", lambda: os.nice(-5))


def become_root():
    result = subprocess.run(
        ["/bin/su", "-c", "id"], capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    say("su", 0 if result.returncode == 0 else errno.EPERM)


def type_into_terminal():
    import fcntl
    import termios

    attempt("TIOCSTI", lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x"))
    attempt("TIOCLINUX", lambda: fcntl.ioctl(0, 0x541C, b"\x02"))


def leave_traps():
    """What hostile code leaves for a naive collector, in /out."""
    os.symlink("/etc/passwd", "/out/link.txt")
    os.symlink("/", "/out/root")
    os.mkfifo("/out/fifo.txt")
    with socket.socket(socket.AF_UNIX) as there:
        there.bind("/out/socket.txt")
    os.makedirs("/out/deep/er")
    with open("/out/deep/er/good.txt", "w") as file:
        file.write("fine")
    with open("/out/sparse.txt", "w") as file:
        file.truncate(200 * MEBIBYTE)
    open(b"/out/\xff.txt", "w").close()


def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            say("daemon", got=open("/proc/self/stat").read().split()[0])
            time.sleep(600)
        os._exit(0)
    os.wait()
    time.sleep(0.05)


def flood():
    chunk = b"x" * 65536
    for _ in range(16384):
        os.write(1, chunk)


def look():
    fds = {}
    for fd in range(512):
        try:
            fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
    say(
        "look", got={"fds": fds, "environment": dict(os.environ), "ids": [os.getuid(), os.getgid()]}
    )


def signals():
    """Dispositions and mask that were inherited."""
    with open("/proc/self/status") as status:
        say(
            "signals", got={line.split(":")[0]: line.split()[1] for line in status if "Sig" in line}
        )


def cpu_and_memory():
    """A known use: 0.6 s of cpu in a child that is never waited for, 48 MiB held by it."""
    read, write = os.pipe()
    if os.fork() == 0:
        held = touch(48 * MEBIBYTE)
        while time.process_time() < 0.6:
            pass
        os.write(write, b"x")
        time.sleep(600 + len(held) * 0)
    os.read(read, 1)


def no_answer():
    ctypes.string_at(0)


def pass_fds():
    with socket.socket(fileno=5) as there:
        there.sendall(b"from the jail")
    with mmap.mmap(6, 4096) as page:
        page[0:4] = struct.pack("=I", 0xC0FFEE)
    refused = 0
    for size in (0, 1 << 20):
        try:
            os.ftruncate(6, size)
        except PermissionError:
            refused += 1
    if refused == 2:
        os.pwrite(6, b"kept", 4)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
