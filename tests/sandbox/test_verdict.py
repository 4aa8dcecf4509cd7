"""The verdict's order, case by case, and the walls behind each errno."""

import errno
import signal

import pytest

from gristmill.sandbox.cgroup import Reading
from gristmill.sandbox.limits import Limits
from gristmill.sandbox.verdict import Deed, LogFacts, judge, outcome_of_errno, parse_log
from gristmill.wire.outcome import Outcome

LIMITS = Limits(wall_ms=1000, cpu_ms=2000, memory_bytes=1 << 20, pids_max=8, output_bytes_max=100)
CALM = Reading(cpu_us=1000, memory_peak_bytes=5000, source="cgroup-v1")
EXITED_0 = LogFacts(is_started=True, exit_code=0)


def exited(code):
    return code << 8, LogFacts(is_started=True, exit_code=code)


def killed(number):
    return (128 + number) << 8, LogFacts(is_started=True, signal_number=number)


def verdict(end, deed=Deed.NOTHING, reading=CALM, wall_ms=10.0, output_bytes=0):
    return judge(deed, *end, reading, LIMITS, wall_ms, output_bytes)


@pytest.mark.parametrize(
    ("deed", "outcome"),
    [
        (Deed.TIMED_OUT, Outcome.TIME),
        (Deed.CPU_SPENT, Outcome.CPU),
        (Deed.MEMORY_SPENT, Outcome.OOM),
        (Deed.OUTPUT_CUT, Outcome.OUTPUT),
        (Deed.DISK_SPENT, Outcome.FS),
        (Deed.CANCELLED, Outcome.CANCELLED),
        (Deed.LOST_HOLD, Outcome.RETURNED),
    ],
)
def test_what_we_did_comes_first(deed, outcome):
    worst = Reading(cpu_us=9_000_000, oom_kills=3, pids_denied=3, source="cgroup-v1")
    for end in (exited(0), exited(1), killed(9), (9, LogFacts()), (None, LogFacts())):
        assert verdict(end, deed, worst).outcome is outcome


def test_every_deed_has_a_verdict():
    for deed in Deed:
        assert verdict(exited(0), deed).outcome in Outcome


def test_a_clean_exit_is_ok_and_notes_helpers_that_ran_out_of_memory():
    assert verdict(exited(0)).outcome is Outcome.OK
    assert verdict(exited(0)).detail == ""
    noted = verdict(exited(0), reading=Reading(oom_kills=2, memory_peak_bytes=7))
    assert noted.outcome is Outcome.OK
    assert noted.detail == "2 of its processes ran out of memory"


def test_out_of_memory_comes_before_the_signal_and_the_code():
    reading = Reading(oom_kills=1, memory_peak_bytes=1 << 20, cpu_us=9_000_000)
    got = verdict(killed(9), reading=reading)
    assert (got.outcome, got.limit, got.peak, got.suggested) == (
        Outcome.OOM,
        1 << 20,
        1 << 20,
        2 << 20,
    )
    assert got.signal_number == 9
    assert "memory limit of 1 MiB" in got.detail
    assert verdict(exited(1), reading=reading).outcome is Outcome.OOM


def test_kill_with_the_cpu_spent_is_cpu_and_without_is_a_signal():
    got = verdict(killed(9), reading=Reading(cpu_us=1_990_000))
    assert (got.outcome, got.limit, got.peak, got.signal_number) == (Outcome.CPU, 2000, 1990, 9)
    assert verdict(killed(signal.SIGXCPU)).outcome is Outcome.CPU
    calm = verdict(killed(9))
    assert (calm.outcome, calm.detail) == (Outcome.SIGNAL, "killed by SIGKILL")


def test_signals_that_name_their_reason():
    assert verdict(killed(signal.SIGXFSZ)).outcome is Outcome.FS
    assert verdict(killed(signal.SIGSYS)).outcome is Outcome.SYSCALL
    assert verdict(killed(signal.SIGSEGV)).detail == "killed by SIGSEGV"
    assert verdict(killed(40)).detail == "killed by signal 40"


def test_a_code_above_128_is_the_programs_own_when_the_log_says_so():
    got = verdict(exited(137))
    assert (got.outcome, got.exit_code, got.signal_number) == (Outcome.EXIT, 137, 0)
    assert got.detail == "exit 137 (a shell's word for SIGKILL)"
    assert verdict(exited(255)).outcome is Outcome.EXIT


def test_without_a_log_the_status_must_do():
    assert verdict((9, LogFacts())).outcome is Outcome.SIGNAL
    for code in (0, 3, 127, 255):  # nsjail itself did not start, or gave up: it tells every end
        got = verdict((code << 8, LogFacts()))
        assert got.outcome is Outcome.SETUP
        assert f"nsjail ended with {code} and no reason" in got.detail
    killed_early = verdict((9, LogFacts()), reading=Reading(oom_kills=1))
    assert killed_early.outcome is Outcome.OOM


def test_forks_that_were_refused_explain_a_failure_but_not_a_success():
    refused = Reading(pids_denied=4)
    got = verdict(exited(1), reading=refused)
    assert (got.outcome, got.limit, got.exit_code) == (Outcome.PIDS, 8, 1)
    assert verdict(exited(0), reading=refused).outcome is Outcome.OK


def test_a_lost_spawner_is_lost():
    assert verdict((None, LogFacts())).outcome is Outcome.LOST


STARTED = "[I][2026-11-22T01:42:55+0000] Executing '/bin/sh' for '[STANDALONE MODE]'\n"
FAILED = (
    "[E][2026-11-22T01:42:55+0000][1] newProc():232 execve('/nope') failed: "
    "No such file or directory\n"
    "[F][2026-11-22T01:42:55+0000][1] runChild():506 Launching child process failed\n"
    "[W][2026-11-22T01:42:55+0000][7] runChild():526 Received error message\n"
    "[E][2026-11-22T01:42:55+0000][7] standaloneMode():274 Couldn't launch the child process\n"
    "[I][2026-11-22T01:42:55+0000] pid=9 ([STANDALONE MODE]) terminated with signal: "
    "Killed (9), (PIDs left: 0)\n"
)


def test_the_log_of_nsjail_3_6():
    end = "[I][2026-11-22T01:42:55+0000] pid=3623 ([STANDALONE MODE]) "
    assert parse_log(STARTED + end + "exited with status: 137, (PIDs left: 0)") == LogFacts(
        True, exit_code=137
    )
    assert parse_log(STARTED + end + "terminated with signal: Killed (9), (PIDs left: 0)") == (
        LogFacts(True, signal_number=9)
    )
    assert parse_log("") == LogFacts()
    assert parse_log("what is this\n[Z] new kind of line") == LogFacts()
    assert len(parse_log(FAILED).errors) == 4


def test_a_command_that_is_not_there_is_its_owners_doing_as_in_a_shell():
    got = judge(Deed.NOTHING, 255 << 8, parse_log(FAILED), CALM, LIMITS, 1.0)
    assert (got.outcome, got.exit_code) == (Outcome.EXIT, 127)
    assert got.detail.startswith("/nope cannot be executed in the jail: No such file")
    denied = FAILED.replace("No such file or directory", "Permission denied")
    assert judge(Deed.NOTHING, 255 << 8, parse_log(denied), CALM, LIMITS, 1.0).exit_code == 126


def test_a_failed_set_up_names_its_cause():
    text = FAILED.replace("execve('/nope') failed", "mount('/no/such') failed")
    got = judge(Deed.NOTHING, 255 << 8, parse_log(text), CALM, LIMITS, 1.0)
    assert got.outcome is Outcome.SETUP
    assert "mount('/no/such')" in got.detail


@pytest.mark.parametrize(
    ("number", "outcome"),
    [
        (errno.ENETUNREACH, Outcome.NET),
        (errno.ECONNREFUSED, Outcome.NET),
        (errno.EHOSTUNREACH, Outcome.NET),
        (errno.ENOSPC, Outcome.FS),
        (errno.EROFS, Outcome.FS),
        (errno.EFBIG, Outcome.FS),
        (errno.EACCES, Outcome.FS),
        (errno.EMFILE, Outcome.FS),
        (errno.EPERM, Outcome.SYSCALL),
        (errno.ENOSYS, Outcome.SYSCALL),
        (errno.ENOMEM, Outcome.OOM),
        (errno.ENOENT, Outcome.ERROR),
        (errno.EEXIST, Outcome.ERROR),
        (errno.EAGAIN, Outcome.ERROR),
        (None, Outcome.ERROR),
    ],
)
def test_the_wall_behind_an_errno(number, outcome):
    assert outcome_of_errno(number) is outcome


def test_a_refused_fork_is_told_from_another_eagain_by_the_meters():
    denied = Reading(pids_denied=1, source="cgroup-v2")
    assert outcome_of_errno(errno.EAGAIN, "BlockingIOError", denied) is Outcome.PIDS
    assert outcome_of_errno(errno.EAGAIN, "BlockingIOError", CALM) is Outcome.ERROR
    assert outcome_of_errno(-2, "gaierror") is Outcome.NET
