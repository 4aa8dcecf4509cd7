"""Every attack ends with the right outcome, nothing of it is left, and a neighbour goes on.

``attack`` leaves a mark in the environment of its jail; after each test no process may carry it.
It tries each of them in a cold jail and in a warm one: that must make no difference.
"""

import dataclasses
import errno
import os
import pty
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from gristmill.sandbox.collect import collect
from gristmill.sandbox.limits import MEBIBYTE, Limits
from gristmill.sandbox.spec import INSIDE_ID, Bind
from gristmill.sandbox.verdict import outcome_of_errno
from gristmill.wire.outcome import Outcome


@pytest.fixture(params=["cold", "warm"])
def attack(request, attack):
    """In a jail that nsjail starts, and in one that a mother makes."""
    if request.param == "cold":
        return attack
    warm = request.getfixturevalue("warm")
    return lambda host, *words, **changes: attack(warm, *words, **changes)


@pytest.fixture(autouse=True)
def goes_on(neighbour):
    yield
    assert neighbour.answers()


def outcomes_of(attacked):
    """What a runner in the jail would make of each error."""
    reading = attacked.result.ending.reading
    return {
        line["what"]: outcome_of_errno(line["errno"], line["kind"], reading)
        for line in attacked.lines
    }


# ------------------------------------------------------------- limits of the cgroup and the clock


def test_a_fork_bomb_ends_as_pids(host, attack, tight):
    got = attack(host, "fork_bomb")
    assert got.result.verdict.outcome is Outcome.PIDS
    assert got.result.verdict.limit == tight.pids_max
    assert "try a process limit of 48" in got.result.verdict.detail
    assert got.result.ending.reading.pids_denied >= 1
    assert b"BlockingIOError" in got.result.stderr  # what a Python runner sees
    assert outcome_of_errno(errno.EAGAIN, "BlockingIOError", got.result.ending.reading) is (
        Outcome.PIDS
    )


def test_a_thread_bomb_ends_as_pids(host, attack):
    assert attack(host, "thread_bomb").result.verdict.outcome is Outcome.PIDS


def test_ten_gigabytes_end_as_oom(host, attack, tight):
    verdict = attack(host, "malloc_10g").result.verdict
    assert verdict.outcome is Outcome.OOM
    assert verdict.limit == tight.memory_bytes
    assert verdict.peak == pytest.approx(tight.memory_bytes, rel=0.02)
    assert verdict.suggested == 2 * tight.memory_bytes


def test_many_small_processes_that_are_large_together_end_as_oom(host, attack):
    got = attack(host, "malloc_forks")
    assert got.result.verdict.outcome is Outcome.OOM
    assert got.result.ending.reading.oom_kills >= 1


def test_a_busy_loop_ends_as_cpu(best_host, attack, tight):
    verdict = attack(
        best_host, "spin", limits=dataclasses.replace(tight, cpu_ms=300)
    ).result.verdict
    assert verdict.outcome is Outcome.CPU
    assert verdict.limit == 300
    assert verdict.peak >= 300


def test_busy_children_end_as_cpu_together(best_host, attack, tight):
    limits = dataclasses.replace(tight, cpu_ms=400)
    assert attack(best_host, "spin_forks", limits=limits).result.verdict.outcome is Outcome.CPU


def test_a_sleeper_ends_as_time(best_host, attack, tight):
    verdict = attack(
        best_host, "sleep", limits=dataclasses.replace(tight, wall_ms=300)
    ).result.verdict
    assert verdict.outcome is Outcome.TIME
    assert verdict.limit == 300
    assert verdict.peak >= 300
    assert verdict.suggested == 600


def test_a_gigabyte_of_output_ends_as_output(best_host, attack, tight):
    result = attack(best_host, "flood").result
    assert result.verdict.outcome is Outcome.OUTPUT
    assert len(result.stdout) == tight.output_bytes_max
    assert result.verdict.peak < tight.output_bytes_max + MEBIBYTE


# ---------------------------------------------------------------------------------- file systems


def test_a_disk_fill_is_refused_as_fs(best_host, attack, tight):
    got = attack(best_host, "disk_fill")
    assert outcomes_of(got) == {"fill": Outcome.FS}
    assert got["fill"]["errno"] == errno.ENOSPC
    assert got["fill"]["got"] <= tight.scratch_bytes


def test_many_files_are_refused_as_fs(best_host, attack, tight):
    got = attack(best_host, "many_files")
    assert outcomes_of(got) == {"files": Outcome.FS}
    assert got["files"]["got"] <= tight.scratch_files_max


def test_a_big_file_is_refused_as_fs(best_host, attack, tight):
    got = attack(best_host, "big_file")
    assert outcomes_of(got) == {"/tmp/big": Outcome.FS, "memfd": Outcome.FS}
    assert got["/tmp/big"]["got"] == got["memfd"]["got"] == tight.file_bytes_max


def test_a_big_file_by_a_child_that_takes_the_signal_is_told_as_a_shell_would(best_host, attack):
    got = attack(best_host, "big_file_signal")
    assert got["child"]["got"] == signal.SIGXFSZ
    assert got.result.verdict.outcome is Outcome.EXIT
    assert "SIGXFSZ" in got.result.verdict.detail


def test_nothing_of_the_host_can_be_read(best_host, attack, python, scratch):
    secret = scratch / "secret"
    secret.write_text("s3cret")
    got = attack(best_host, "read_outside", str(secret))
    read = {line["what"]: line["got"] for line in got.lines if not line["errno"]}
    # A Python below /home is mounted at its own path: the way to it is there, and nothing beside.
    homes = {bind.target.split("/")[2] for bind in python.binds if bind.target[:6] == "/home/"}
    assert read == ({"/home": str(sorted(homes))} if homes else {})
    assert got["/etc/shadow"]["errno"] == errno.ENOENT


def test_nothing_outside_scratch_can_be_written(best_host, attack):
    got = attack(best_host, "write_outside")
    assert len(got.lines) == 9
    refused = {what: outcome for what, outcome in outcomes_of(got).items() if outcome != Outcome.FS}
    assert {got[what]["errno"] for what in refused} <= {errno.ENOENT, errno.EBUSY}, refused
    assert all(line["errno"] for line in got.lines)


def test_links_fifos_and_the_like_are_not_collected(best_host, attack, scratch):
    out = Path(tempfile.mkdtemp(dir=scratch))
    os.chown(out, best_host.jail_uid, best_host.jail_gid)
    attack(
        best_host,
        "leave_traps",
        binds=(Bind(str(out), "/out", is_writable=True),),
        limits=Limits(wall_ms=20_000, file_bytes_max=256 * MEBIBYTE),
    )
    taken = {}
    report = collect(
        str(out),
        ["**/*"],
        lambda path, chunks: taken.update({path: b"".join(chunks)}),
        files_max=10,
        bytes_max=MEBIBYTE,
    )
    assert taken == {"deep/er/good.txt": b"fine"}
    assert dict(report.refused) == {
        "fifo.txt": "a FIFO",
        "link.txt": "a symbolic link",
        "root": "a symbolic link",
        "socket.txt": "a socket",
        "sparse.txt": f"{200 * MEBIBYTE} bytes where {MEBIBYTE} are left",
        "?.txt": "its name is not UTF-8 text",
    }


# -------------------------------------------------------------------------------------- network


def test_no_address_can_be_reached(best_host, attack):
    name = f"gristmill-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        abstract.bind("\0" + name)
        abstract.listen()
        got = attack(best_host, "network", str(server.getsockname()[1]), name)
    assert set(outcomes_of(got).values()) == {Outcome.NET}
    assert len(got.lines) == 5
    assert b"gaierror" in got.result.stderr
    assert outcome_of_errno(-3, "gaierror") is Outcome.NET


def test_other_socket_families_are_refused(best_host, attack):
    got = attack(best_host, "socket_families")
    assert set(got.errors().values()) == {errno.EPERM}
    assert len(got.lines) == 5


# ----------------------------------------------------------------------------------- the kernel


def test_forbidden_system_calls_are_refused_as_syscall(best_host, attack):
    got = attack(best_host, "system_calls")
    assert len(got.lines) == 26
    allowed = {"setuid": errno.EINVAL}  # there is no uid 0 in the jail to become
    assert got.errors() == {
        line["what"]: allowed.get(line["what"], errno.EPERM) for line in got.lines
    }
    assert set(outcomes_of(got).values()) == {Outcome.SYSCALL, Outcome.ERROR}


def test_calls_that_cannot_be_filtered_do_not_exist(best_host, attack):
    assert attack(best_host, "absent_calls").errors() == {
        "clone3": errno.ENOSYS,
        "io_uring_setup": errno.ENOSYS,
    }


def test_other_system_call_tables_are_shut(best_host, attack):
    got = attack(best_host, "other_tables")
    assert all(number in (errno.ENOSYS, errno.EPERM) for number in got.errors().values())


def test_own_text_is_read_only_and_others_are_unseen(best_host, attack):
    got = attack(best_host, "own_text")
    assert got["/proc/self/mem"]["errno"] in (errno.EROFS, errno.EACCES, errno.EPERM)
    assert got["visible"]["got"] == 1


def test_nobody_outside_can_be_killed(best_host, attack):
    victim = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
    try:
        got = attack(best_host, "kill_outside", str(victim.pid))
        assert set(got.errors().values()) == {errno.ESRCH}
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_limits_cannot_be_raised(best_host, attack):
    got = attack(best_host, "raise_limits")
    assert {"NOFILE", "CPU", "FSIZE", "CORE", "nice"} <= set(got.errors())
    assert all(got.errors().values())


def test_set_uid_programs_give_nothing(best_host, attack):
    assert attack(best_host, "become_root")["su"]["errno"]


def test_a_terminal_cannot_be_typed_into(best_host, attack_spec):
    ours, theirs = pty.openpty()
    out_read, out_write = os.pipe()
    spec = dataclasses.replace(attack_spec("type_into_terminal"), stdin=theirs, stdout=out_write)
    jail = best_host.start(spec)
    os.close(out_write)
    with open(out_read) as output:
        said = output.read()
    jail.close()
    os.close(ours)
    os.close(theirs)
    assert said.count('"errno": 1,') == 2


# ------------------------------------------------------------------------------ what is inherited


def test_nothing_leaks_in(best_host, attack, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    secret, other = os.pipe()
    os.set_inheritable(secret, True)
    got = attack(best_host, "look")["look"]["got"]
    os.close(secret)
    os.close(other)
    assert set(got["fds"]) == {"0", "1", "2"}
    assert "SECRET_TOKEN" not in got["environment"]
    assert got["environment"]["PATH"] == "/usr/local/bin:/usr/bin:/bin"
    assert got["ids"] == [INSIDE_ID, INSIDE_ID]


def test_signals_are_as_at_the_start_of_a_session(best_host, attack):
    got = attack(best_host, "signals")["signals"]["got"]
    assert int(got["SigBlk"], 16) == 0
    ignored_by_python = {13, 25}  # SIGPIPE, SIGXFSZ: the attacked interpreter's own doing
    # What posix_spawn of glibc starts (make does) ignores libc's own two, which no program can set.
    ignored_by_libc = {32, 33}
    ignored = {number for number in range(1, 65) if int(got["SigIgn"], 16) >> (number - 1) & 1}
    assert ignored <= ignored_by_python | ignored_by_libc


def test_a_daemon_does_not_outlive_its_jail(best_host, attack):
    got = attack(best_host, "daemon")
    assert got.result.verdict.outcome is Outcome.OK
    assert got["daemon"]  # it ran; the mark says that it is gone
