"""Who dies with whom: jails, nsjail, the spawner and their owner. No sleeps: deadlines on facts."""

import dataclasses
import json
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from gristmill.sandbox.delegation import agent_name
from gristmill.sandbox.errors import SandboxError
from gristmill.sandbox.host import prepare_host
from gristmill.sandbox.limits import Limits
from gristmill.sandbox.page import make_shared_page
from gristmill.sandbox.procfs import tree_of
from gristmill.sandbox.run import run
from gristmill.sandbox.spec import Bind, JailSpec
from gristmill.sandbox.verdict import Deed
from gristmill.wire.outcome import Outcome

DEADLINE_S = 10


def until(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        select.select([], [], [], 0.005)


def ending_of(jail):
    until(lambda: jail.poll() is not None, "the jail did not end")
    return jail.poll()


def exists(pid):
    """Alive, a zombie not counted."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in (b"Z", b"X")


@pytest.fixture(params=["best_host", "bare_host"])
def any_host(request):
    """With cgroups and without."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def deep(mark):
    """A jail of three generations that ignores what it can."""
    script = "trap '' TERM HUP INT; setsid sh -c 'sleep 600 & wait' & sleep 600 & wait"
    return JailSpec(argv=("sh", "-c", script), env={"MARK": mark})


def started(host, spec):
    """A jail of ``deep`` with both its sleepers running."""
    jail = host.start(spec)
    until(lambda: sleepers(jail.pid) == 2, "the jail did not come up")
    return jail


def sleepers(pid):
    return sum(name_of(member) == "sleep" for member in tree_of(pid))


def name_of(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_kill_is_certain_and_poll_tells(any_host, deep):
    jail = started(any_host, deep)
    assert jail.poll() is None
    jail.kill()
    jail.kill()  # as often as one likes
    ending = ending_of(jail)
    until(lambda: select.select([jail.fileno()], [], [], 0)[0], "nobody is woken")
    assert ending.reading.source == jail.source
    assert jail.judge(Deed.CANCELLED).outcome is Outcome.CANCELLED
    jail.close()
    jail.close()


def test_process_1_is_the_first_to_be_killed(any_host, deep, monkeypatch):
    """Alive, it would tell how its children died: cancelled work was billed as a failure."""
    killed = []
    kill = os.kill
    monkeypatch.setattr(os, "kill", lambda pid, number: (killed.append(pid), kill(pid, number)))
    for _ in range(5):
        jail = started(any_host, deep)
        nsjail, process_1, *_ = tree_of(jail.pid)
        killed.clear()
        jail.kill()
        assert killed[0] == process_1 and nsjail == jail.pid
        ending_of(jail)
        jail.close()


def test_kill_right_after_the_start_leaves_nothing(any_host, deep):
    for _ in range(10):
        jail = any_host.start(deep)
        jail.kill()
        ending_of(jail)
        jail.close()


def test_nsjail_killed_from_outside_takes_its_jail_along(any_host, deep):
    jail = started(any_host, deep)
    inside = list(tree_of(jail.pid))[1:]
    os.kill(jail.pid, signal.SIGKILL)
    ending = ending_of(jail)
    assert not any(exists(pid) for pid in inside)  # before the end was told
    assert os.WTERMSIG(ending.wait_status) == signal.SIGKILL
    assert jail.judge().outcome is Outcome.SIGNAL
    jail.close()


@pytest.mark.parametrize("has_cgroups", [True, False])
def test_a_dead_spawner_is_lost_jails_and_a_refusal(scratch, deep, able, has_cgroups):
    with prepare_host(scratch / "dying", has_cgroups=has_cgroups) as host:
        roots = host._ground.roots if host._ground else []
        jail = started(host, deep)
        inside = list(tree_of(jail.pid))
        os.kill(host._process.pid, signal.SIGKILL)
        ending = ending_of(jail)
        assert ending.wait_status is None
        assert jail.judge().outcome is Outcome.LOST
        until(lambda: not host.is_alive, "the spawner lives")
        with pytest.raises(SandboxError, match="process that starts jails"):
            host.start(deep)
        jail.close()
        # nobody is left to wait for them: the kernel kills one generation after the other
        until(lambda: not any(map(exists, inside)), "jailed processes outlive the spawner")
    assert host._stage is None or not Path(host._stage).exists()
    assert not any(Path(root).exists() for root in roots)


OWNER = """
    import json, sys
    from pathlib import Path
    from gristmill.sandbox.host import prepare_host
    from gristmill.sandbox.spec import JailSpec
    from gristmill.sandbox.procfs import tree_of

    host = prepare_host(Path(sys.argv[1]), has_cgroups=sys.argv[2] == "yes")
    script = "setsid sleep 600 & sleep 600 & wait"
    jails = [
        host.start(JailSpec(argv=("sh", "-c", script), env={"MARK": sys.argv[3]}))
        for _ in range(3)
    ]
    def name_of(pid):
        try:
            return Path(f"/proc/{pid}/comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            return ""

    def sleepers(jail):
        return sum(name_of(pid) == "sleep" for pid in tree_of(jail.pid))

    while not all(sleepers(jail) == 2 for jail in jails):
        pass
    print(json.dumps({
        "groups": host._ground.roots if host._ground else [],
        "pids": [pid for jail in jails for pid in tree_of(jail.pid)],
        "spawner": host._process.pid,
        "stage": host._stage,
    }), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("has_cgroups", ["yes", "no"])
def test_a_killed_owner_leaves_no_process_no_group_no_mount(
    scratch, able, mark, has_cgroups, processes_of
):
    state = scratch / f"owner-{has_cgroups}"
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OWNER), str(state), has_cgroups, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        facts = json.loads(owner.stdout.readline())
        assert len(facts["pids"]) >= 12
        assert all(exists(pid) for pid in facts["pids"])
        if has_cgroups == "yes" and not facts["groups"]:
            pytest.skip("no cgroups here")
        assert all(Path(group).is_dir() for group in facts["groups"])
    finally:
        owner.kill()
        owner.wait()
        owner.stdin.close()
        owner.stdout.close()
    until(lambda: not exists(facts["spawner"]), "the spawner stayed")
    assert not any(exists(pid) for pid in facts["pids"])
    assert not any(Path(group).exists() for group in facts["groups"])
    assert not facts["stage"] or not Path(facts["stage"]).exists()


def test_groups_of_a_dead_agent_are_removed_at_the_next_start(host, scratch, mark):
    base = {controller: at.parent for controller, at in host._ground.directories.items()}
    left = subprocess.Popen(["/bin/sleep", "600"], env={"MARK": mark})
    dead = subprocess.Popen(["/bin/true"])
    name = agent_name(dead.pid)
    dead.wait()
    for at in base.values():
        (at / name / "j1").mkdir(parents=True)
        (at / name / "j1" / "cgroup.procs").write_text(str(left.pid))
    with prepare_host(scratch / "next") as other:
        assert left.wait(DEADLINE_S) == -signal.SIGKILL
        assert other.place.version == host.place.version
    with prepare_host(scratch / "next"):
        assert not any((at / name).exists() for at in base.values())


def test_closing_a_host_removes_its_groups_and_stage(able, scratch, deep):
    host = prepare_host(scratch / "closing")
    started(host, deep)
    roots = host._ground.roots if host._ground else []
    host.close()
    host.close()
    assert not any(Path(root).exists() for root in roots)
    assert host._stage is None or not Path(host._stage).exists()
    with pytest.raises(SandboxError, match="closed"):
        host.start(deep)


def test_a_missed_end_is_seen_when_nsjail_is_made_to_look_again(bare_host, stand_in, monkeypatch):
    """nsjail can pause after its child has ended. This stand-in pauses until a stray SIGCHLD."""
    code = "signal.signal(signal.SIGCHLD, lambda *_: os._exit(7)); signal.pause()"
    monkeypatch.setattr(bare_host, "nsjail", stand_in("sleepy", code))
    jail = bare_host.start(JailSpec(argv=("true",)))
    assert os.waitstatus_to_exitcode(ending_of(jail).wait_status) == 7
    jail.close()


def test_a_set_up_that_fails_is_set_up_with_the_reason(any_host):
    spec = JailSpec(argv=("true",), binds=(Bind("/no/such/place", "/x"),))
    verdict = run(any_host, spec).verdict
    assert verdict.outcome is Outcome.SETUP
    assert "/no/such/place" in verdict.detail


def test_an_nsjail_that_cannot_start_is_set_up_with_the_reason(bare_host, monkeypatch):
    monkeypatch.setattr(bare_host, "nsjail", "/no/such/nsjail")
    verdict = run(bare_host, JailSpec(argv=("true",))).verdict
    assert verdict.outcome is Outcome.SETUP
    assert "/no/such/nsjail" in verdict.detail


def test_a_failed_start_frees_its_group(host):
    before = sorted(path.name for path in Path(host._ground.roots[0]).iterdir() if path.is_dir())
    with pytest.raises(SandboxError, match="colon in the mount target"):
        host.start(JailSpec(argv=("true",), binds=(Bind("/usr", "/a:b"),)))
    with pytest.raises(SandboxError, match="descriptor 2 is not in 3"):
        host.start(JailSpec(argv=("true",), fds={2: 0}))
    host._ground.sweep()
    after = sorted(path.name for path in Path(host._ground.roots[0]).iterdir() if path.is_dir())
    assert after == before


def test_many_jails_leave_no_descriptor_and_no_group(host):
    def count():
        return len(os.listdir("/proc/self/fd"))

    run(host, JailSpec(argv=("true",)))
    before = count()
    for _ in range(10):
        run(host, JailSpec(argv=("true",)))
    assert count() == before
    host._ground.sweep()
    left = [path for path in Path(host._ground.roots[0]).iterdir() if path.is_dir()]
    assert len(left) <= 1  # another test's neighbour


def test_passed_descriptors_a_shared_page_and_a_socket_in_a_bind(any_host, attack_spec, scratch):
    ours, theirs = socket.socketpair()
    page_fd = make_shared_page("page", 4096)
    limits = Limits(wall_ms=20_000)
    spec = dataclasses.replace(
        attack_spec("pass_fds"), fds={5: theirs.fileno(), 6: page_fd}, limits=limits
    )
    jail = any_host.start(spec)
    theirs.close()
    assert ours.recv(100) == b"from the jail"
    ours.close()
    assert ending_of(jail).wait_status == 0
    jail.close()
    with mmap.mmap(page_fd, 4096) as page:
        assert struct.unpack("=I", page[:4]) == (0xC0FFEE,)
        assert page[4:8] == b"kept"  # shrinking, growing and unsealing were refused
    os.close(page_fd)


def test_a_unix_socket_can_be_bound_in(any_host, python, scratch):
    at = any_host.state_dir / "door"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(at))
        at.chmod(0o777)
        server.listen()
        code = (
            "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/door'); "
            "s.sendall(b'knock')"
        )
        spec = JailSpec(
            argv=(python.executable, "-I", "-S", "-c", code),
            binds=(*python.binds, Bind(str(at), "/run/door")),
        )
        result = run(any_host, spec)
        assert result.verdict.outcome is Outcome.OK, result
        with server.accept()[0] as there:
            assert there.recv(10) == b"knock"


def test_known_use_is_metered(any_host, attack_spec):
    """0.6 s of cpu and 48 MiB by a grandchild that nobody waits for."""
    jail = any_host.start(attack_spec("cpu_and_memory"))
    until(lambda: jail.reading().cpu_us >= 600_000, "the cpu was not seen")
    until(lambda: jail.reading().memory_peak_bytes >= 48 << 20, "the memory was not seen")
    reading = jail.reading()
    assert reading.cpu_us < 3_000_000
    assert reading.is_estimated == (jail.source == "proc")
    jail.close()
    assert jail.ending.reading.cpu_us >= reading.cpu_us
    assert jail.ending.reading.memory_peak_bytes >= 48 << 20
