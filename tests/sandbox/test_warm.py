"""A warm jail has the walls of a cold one, and nothing of its mother or of its siblings.

The attacks of test_attacks.py are tried in warm jails too; here is what is new about them.
"""

import contextlib
import dataclasses
import errno
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import pytest
from warm_rig import WarmHost

from gristmill.sandbox.argv import below_scratch, policy_text
from gristmill.sandbox.errors import SandboxError
from gristmill.sandbox.host import prepare_host
from gristmill.sandbox.limits import Limits
from gristmill.sandbox.procfs import tree_of
from gristmill.sandbox.run import run
from gristmill.sandbox.spec import Bind, JailSpec
from gristmill.wire.outcome import Outcome

DEADLINE_S = 20


def until(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        select.select([], [], [], 0.005)
    return found


def ended(jail):
    return until(lambda: jail.poll(), "the jail did not end")


@pytest.fixture
def code(python, tight, mark):
    """The jail of some Python."""

    def make(text, *arguments, limits=tight):
        argv = (python.executable, "-I", "-S", "-c", textwrap.dedent(text), *arguments)
        return JailSpec(argv=argv, binds=python.binds, limits=limits, env={"MARK": mark})

    return make


def answer(result):
    assert result.verdict.outcome is Outcome.OK, (result.verdict, result.stderr)
    return json.loads(result.stdout)


# ------------------------------------------------------------------------- the walls are the same

LOOK = """
    import fcntl, json, os, resource, socket, struct
    def mounts():
        seen = {}
        with open("/proc/self/mountinfo") as file:
            for line in file:
                left, _, right = line.partition(" - ")
                fields = left.split()
                kind, _, options = right.split(maxsplit=2)
                words = {w for w in options.split(",") if w.split("=")[0] in ("size", "nr_inodes")}
                seen[fields[4]] = [fields[5].split(",")[0], kind, sorted(words)]
        return seen
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\\n").split(":\\t", 1) for line in file if ":\\t" in line)
    keys = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "Gid",
            "Groups", "NSpid", "NSsid", "NSpgid", "SigBlk", "Umask", "THP_enabled"]
    server = socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(server.getsockname(), 5):
        pass
    print(json.dumps({
        "status": {key: status.get(key) for key in keys},
        "limits": [resource.getrlimit(n) for n in range(16)],
        "mounts": mounts(),
        "tmp": [os.listdir("/tmp"), os.stat("/tmp").st_mode, os.stat("/tmp").st_uid],
        "shm": [os.listdir("/dev/shm"), os.stat("/dev/shm").st_mode],
        "root": sorted(os.listdir("/")),
        "pids": [name for name in os.listdir("/proc") if name.isdigit()],
        "interfaces": [line.split(":")[0].strip() for line in open("/proc/net/dev")][2:],
        "flags": fcntl.ioctl(server, 0x8913, struct.pack("16sh14x", b"lo", 0)).hex(),
        "hostname": os.uname().nodename,
        "groups": sorted({line.split(":")[2] for line in open("/proc/self/cgroup")}),
        "nice": os.nice(0),
        "fds": sorted(os.listdir("/proc/self/fd"), key=int)[:3],
        "environment": dict(os.environ),
        "cwd": os.getcwd(),
        "uid_map": open("/proc/self/uid_map").read().split()[0::2],
    }))
"""


def test_a_warm_jail_looks_as_a_cold_one(host, warm, code):
    spec = dataclasses.replace(code(LOOK), cwd="/tmp")
    cold, made = answer(run(host, spec)), answer(run(warm, spec))
    assert made["environment"].pop("SEALED")
    ours = {"/run/gristmill", "/warm_boot.py"}  # what a slot's jail has, a bare one has not
    for seen in (cold, made):
        seen["mounts"] = {
            at: what
            for at, what in seen["mounts"].items()
            if not any(at == mine or at.startswith(f"{mine}/") for mine in ours)
        }
        seen["root"] = [name for name in seen["root"] if name not in ("run", "warm_boot.py")]
    assert made["status"]["NSpid"] == "1" and made["pids"] == ["1"]
    assert made["status"]["CapBnd"] == "0000000000000000" and made["status"]["Seccomp"] == "2"
    assert made == cold


def test_namespaces_are_its_own(warm, code):
    """None of the host's, the mother's or a sibling's."""
    kinds = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"]
    jails = [warm.start(code("import time; time.sleep(600)")) for _ in range(2)]
    try:
        until(lambda: all(not jail.poll() and pid_of(jail) for jail in jails), "not up")
        mother = next(iter(warm.mothers.values())).jail
        inside = [pid for pid in tree_of(mother.pid)][1]
        pids = [os.getpid(), inside, *(jail.pid for jail in jails)]
        for jail in jails:
            until(lambda jail=jail: b"sleep" in line(jail.pid), "not executed")
        for kind in kinds:
            assert len({os.readlink(f"/proc/{pid}/ns/{kind}") for pid in pids}) == 4, kind
    finally:
        for jail in jails:
            jail.close()


def pid_of(jail):
    jail.is_stopped()  # which listens
    return jail.pid


def line(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_limits_are_of_the_jail_and_not_shared_with_its_mother(warm, host, code, tight):
    """The same number of forks as in a cold jail, whatever else its mother has made."""
    forks = """
        import os, time
        count = 0
        try:
            while True:
                if os.fork() == 0:
                    time.sleep(600)
                count += 1
        except OSError:
            print(count)
    """
    other = warm.start(code(forks))
    try:
        until(lambda: other.reading().pids_denied, "the sibling did not fill its own group")
        cold, made = answer(run(host, code(forks))), answer(run(warm, code(forks)))
        assert made == cold == tight.pids_max - 1
    finally:
        other.close()


# ----------------------------------------------------------------- nothing of mother and siblings

#: what warm_boot.py found
SEALED = "import os; print(os.environ['SEALED'])"


def test_the_mother_cannot_be_seen_killed_or_traced(warm, code):
    attack = """
        import ctypes, errno, json, os, signal
        libc = ctypes.CDLL(None, use_errno=True)
        got = {}
        def attempt(what, function):
            try:
                got[what] = ["done", str(function())]
            except OSError as error:
                got[what] = errno.errorcode[error.errno]
        for pid in range(2, 50):
            attempt(f"kill {pid}", lambda: os.kill(pid, 9))
        attempt("kill all", lambda: os.kill(-1, 9))
        attempt("kill parent", lambda: os.kill(os.getppid(), 0) if os.getppid() else os.kill(2, 0))
        attempt("parent", lambda: os.readlink(f"/proc/{os.getppid()}/exe"))
        def check(result):
            if result < 0:
                raise OSError(ctypes.get_errno(), "")
        for pid in (0, 1, 2):  # 0 is what its parent is called here
            attempt(f"ptrace {pid}", lambda: check(libc.ptrace(16, pid, 0, 0)))
        for name in ("user", "pid", "mnt", "net"):
            attempt(f"setns {name}", lambda: check(
                libc.setns(os.open(f"/proc/1/ns/{name}", os.O_RDONLY), 0)))
        for at in (b"/tmp", b"/proc", b"/dev/shm", b"/"):
            attempt(f"umount {at}", lambda: check(libc.umount2(at, 2)))
            attempt(f"remount {at}", lambda: check(libc.mount(None, at, None, 32, None)))
            attempt(f"move {at}", lambda: check(libc.mount(at, b"/tmp", None, 8192, None)))
        for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000,
                     0x40000000, 0x80):
            attempt(f"unshare {flag:#x}", lambda: check(libc.unshare(flag)))
        for name in ("uid_map", "gid_map", "setgroups"):
            attempt(name, lambda: open(f"/proc/self/{name}", "w").write("0 0 1"))
        print(json.dumps(got))
    """
    got = answer(run(warm, code(attack)))
    assert {got.pop(f"kill {pid}") for pid in range(2, 50)} == {"ESRCH"}
    assert got.pop("kill all") == got.pop("kill parent") == "ESRCH"
    assert got.pop("parent") == "ENOENT"
    assert {got.pop(name) for name in ("uid_map", "gid_map", "setgroups")} <= {"EROFS", "EACCES"}
    assert set(got.values()) == {"EPERM"} and len(got) == 27, got
    assert all(mother.jail.poll() is None for mother in warm.mothers.values())


def test_no_descriptor_is_inherited_but_its_own(warm, code):
    """Not the control socket, not the cgroup's files, not those of siblings that live."""
    sibling = warm.start(code("import time; time.sleep(600)"))
    try:
        got = answer(run(warm, code(SEALED)))
    finally:
        sibling.close()
    assert sorted(name.split(":")[0] for name in got["fds"]) == ["pipe", "pipe", "pipe"]


def test_it_is_sealed_before_it_executes_anything(warm, code):
    """A slot executes nothing: what an exec would take away has to be gone before."""
    got = answer(run(warm, code(SEALED)))
    assert got["capabilities"] == ["0000000000000000"] * 5
    assert got["is_in_tmp"]


def test_what_is_shown_below_scratch_is_shown_there_and_read_only(warm, host, code, tmp_path):
    """As an interpreter that lies below /tmp."""
    (tmp_path / "a file").write_text("word")
    (tmp_path / "a file").chmod(0o666)  # so that only its mount refuses
    tmp_path.chmod(0o755)
    look = """
        import json
        found = []
        for path in ("/tmp/a folder/of it/a file", "/dev/shm/more/file"):
            try:
                open(path, "w")
            except OSError as error:
                found.append([open(path).read(), error.errno])
        open("/tmp/a folder/mine", "w").close()
        print(json.dumps(found))
    """
    jail = code(look)
    binds = (
        *jail.binds,
        Bind(str(tmp_path), "/tmp/a folder/of it"),
        Bind(str(tmp_path / "a file"), "/dev/shm/more/file"),
    )
    jail = dataclasses.replace(jail, binds=binds)
    for where in (warm, host):
        assert answer(run(where, jail)) == [["word", errno.EROFS]] * 2


def test_what_one_leaves_no_other_finds(warm, code, python):
    """Files in scratch, shared memory, semaphores, sockets without a name in the file system."""
    leave = """
        import ctypes, json, os, socket, sys
        libc = ctypes.CDLL(None)
        word = sys.argv[1]
        found = {
            "files": os.listdir("/tmp") + os.listdir("/dev/shm") + os.listdir("."),
            "memory": libc.shmget(7777, 4096, 0) >= 0, "semaphore": libc.semget(7777, 1, 0) >= 0,
        }
        there = socket.socket(socket.AF_UNIX)
        found["socket"] = there.connect_ex("\\0left") == 0
        print(json.dumps(found), flush=True)
        open("/tmp/left", "w").write(word)
        open("/dev/shm/left", "w").write(word)
        open("left", "w").write(word)
        os.chmod("/tmp", 0o000)
        assert libc.shmget(7777, 4096, 0o1666) >= 0 and libc.semget(7777, 1, 0o1666) >= 0
        server = socket.socket(socket.AF_UNIX)
        server.bind("\\0left")
        server.listen()
        if os.fork() == 0:
            os.setsid()
            import time
            time.sleep(600)
    """
    clean = {"files": [], "memory": False, "semaphore": False, "socket": False}
    shown = {path.split("/")[2] for path in below_scratch(python.binds)}  # its Python, perhaps
    for number in range(3):
        found = answer(run(warm, code(leave, f"word{number}")))
        found["files"] = sorted(set(found["files"]) - shown)
        assert found == clean, number


@pytest.mark.root
def test_the_mother_has_no_word_of_what_her_children_got(warm, code):
    """All her memory is searched, and a younger child's: for what an older one was told and made.

    The word comes by stdin: the spec of a jail in these tests passes no mother either.
    """
    word = uuid.uuid4().hex.encode()
    hold = """
        import sys, time
        text = sys.stdin.readline().strip()
        held = [text * 2 for _ in range(100)]
        open("/tmp/x", "w").write(text)
        print("held", flush=True)
        time.sleep(600)
    """
    feed_read, feed = os.pipe()
    said, said_end = os.pipe()
    jail = warm.start(dataclasses.replace(code(hold), stdin=feed_read, stdout=said_end))
    try:
        os.write(feed, word + b"\n")
        assert os.read(said, 100) == b"held\n"
        assert holds(pid_of(jail), word), "the search finds what is there"
        mothers = list(warm.mothers.values())
        younger = warm.start(code("import time; time.sleep(600)"))
        until(lambda: pid_of(younger), "not up")
        for pid in (younger.pid, *(pid for each in mothers for pid in tree_of(each.jail.pid))):
            if pid != jail.pid:
                assert not holds(pid, word), pid
        younger.close()
    finally:
        jail.close()
        for fd in (feed_read, feed, said, said_end):
            os.close(fd)


def holds(pid, word):
    """Whether a process has these bytes in its memory."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for row in maps:
            at, end = (int(word, 16) for word in row.split()[0].split("-"))
            if "rw" in row.split()[1] and end < 1 << 63:
                with contextlib.suppress(OSError):
                    memory.seek(at)
                    if word in memory.read(end - at):
                        return True
    return False


# ---------------------------------------------------------------------------------- ends and falls


def test_a_killed_mother_takes_her_jails_along_and_they_are_lost(host, code, mark, processes_of):
    warm = WarmHost(host)
    jails = [warm.start(code("import time; time.sleep(600)")) for _ in range(3)]
    (mother,) = warm.mothers.values()
    until(lambda: all(pid_of(jail) for jail in jails), "not up")
    pids = [jail.pid for jail in jails]
    os.kill(next(pid for pid in list(tree_of(mother.jail.pid))[1:]), signal.SIGKILL)
    for jail in jails:
        assert ended(jail).wait_status is None
        assert jail.judge().outcome is Outcome.LOST
        jail.close()
    until(lambda: not processes_of(mark), "jails outlived their mother")
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "not reaped")
    with pytest.raises(SandboxError):
        for _ in range(100):  # her socket may hold some
            host.start_warm(mother, Limits(), 2, 2, 2, 2).close()
    warm.close()


def test_a_jail_is_killed_at_any_moment_and_its_siblings_go_on(warm, code):
    sibling = warm.start(code("import time; time.sleep(600)"))
    until(lambda: pid_of(sibling), "not up")
    for number in range(10):
        jail = warm.start(code("import time; time.sleep(600)"))
        if number % 2:
            until(lambda jail=jail: pid_of(jail), "not up")
        jail.kill()
        assert ended(jail).log.signal_number == signal.SIGKILL
        jail.close()
    assert sibling.poll() is None
    sibling.close()


def test_a_mother_that_stands_still_is_seen_and_does_not_hold_up_a_kill(host, code):
    warm = WarmHost(host)
    jail = warm.start(code("import time; time.sleep(600)"))
    until(lambda: pid_of(jail), "not up")
    (mother,) = warm.mothers.values()
    inner = list(tree_of(mother.jail.pid))[1]
    os.kill(inner, signal.SIGSTOP)
    until(jail.is_stopped, "not seen")
    jail.kill()
    ended(jail)
    jail.close()
    warm.close()


def test_a_jail_that_cannot_be_sealed_is_not_run(warm, code, monkeypatch):
    """Here: its cgroup takes nobody. Then it says so, and nothing of the command is run."""
    spec = code("print('ran')")
    mother = warm.mother(spec.limits, spec.binds)  # she is ready: her trial is over
    group = type(mother.jail._group)
    monkeypatch.setattr(group, "procs_files", property(lambda _: ("/dev/full",)))
    result = run(warm, spec)
    assert result.verdict.outcome is Outcome.SETUP
    assert "No space left" in result.verdict.detail and result.stdout == b""
    assert mother.jail.poll() is None


def test_where_no_jail_can_be_made_in_a_jail_the_mother_says_why(scratch, able):
    """With the policy of all other jails she may not even clone."""
    with prepare_host(scratch / "strict") as host:
        if not host.place.version:
            pytest.skip(host.place.reason)
        (host.state_dir / "policy-mother.kafel").write_text(policy_text())
        with pytest.raises(AssertionError, match="Operation not permitted"):
            WarmHost(host).mother(Limits())


def test_where_the_cgroup_takes_no_child_the_mother_says_why(warm, monkeypatch, tight):
    """Kernels before 5.16 ask who writes, not who opened: a child of a root's jail is nobody."""
    group = type(warm.mother(tight).jail._group)
    good, asked = group.procs_files, []

    def files(self):  # of her own cgroup first
        asked.append(self)
        return good.fget(self) if len(asked) == 1 else ("/dev/full",)

    monkeypatch.setattr(group, "procs_files", property(files))
    with pytest.raises(AssertionError, match="No space left"):
        warm.mother(dataclasses.replace(tight, wall_ms=7))


def test_a_host_without_cgroups_has_no_warm_jails(bare_host):
    with pytest.raises(SandboxError, match="no cgroup"):
        WarmHost(bare_host).mother(Limits())


def test_a_killed_owner_leaves_no_process_group_or_mount(scratch, able, mark, processes_of):
    script = f"""
        import os, pathlib, signal, sys, time
        sys.path[:0] = {sys.path!r}
        from gristmill.sandbox.host import prepare_host
        from gristmill.sandbox.limits import Limits
        from gristmill.sandbox.spec import JailSpec
        from warm_rig import WarmHost
        host = prepare_host(pathlib.Path(sys.argv[1]))
        warm = WarmHost(host)
        jails = [warm.start(JailSpec(argv=("sleep", "600"), env={{"MARK": sys.argv[2]}}))
                 for _ in range(3)]
        while not all(jail.is_stopped() or jail.pid for jail in jails):
            time.sleep(0.005)
        print(*host._ground.roots, flush=True)
        time.sleep(600)
    """
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(scratch / "owner"), mark],
        stdout=subprocess.PIPE,
    )
    roots = owner.stdout.readline().split()
    assert roots and all(os.path.isdir(root) for root in roots)
    assert sum(len(os.listdir(root)) > 20 for root in roots)
    until(lambda: len(processes_of(mark)) >= 3, "the jails did not come up")
    owner.kill()
    owner.wait()
    owner.stdout.close()
    until(lambda: processes_of(mark) == [], "jails outlive their owner")
    until(lambda: not any(os.path.isdir(root) for root in roots), "cgroups outlive their owner")
    assert "warm_boot" not in Path("/proc/self/mountinfo").read_text()
