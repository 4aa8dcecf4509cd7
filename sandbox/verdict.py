"""Why a jail ended: pure functions from what was done and what the kernel counted to an Outcome.

The order matters: first what we did to it, then what the kernel did, then what it did itself.
nsjail's log settles what its exit code leaves open (137 may be ``exit 137`` or SIGKILL; 255 may be
a failed set-up or ``exit 255``). nsjail sets soft and hard RLIMIT_CPU alike, so the kernel sends
KILL and not XCPU: a KILL with the cpu limit spent counts as CPU.
"""

import dataclasses
import enum
import errno
import os
import re
import signal

from gristmill.sandbox.cgroup import Reading
from gristmill.sandbox.limits import Limits
from gristmill.wire.outcome import Outcome
from gristmill.wire.units import format_bytes, format_ms


class Deed(enum.Enum):
    """What the owner of the jail did to end it."""

    NOTHING = "nothing"
    TIMED_OUT = "timed out"
    CPU_SPENT = "cpu spent"
    MEMORY_SPENT = "memory spent"  #: seen by ``Jail.is_over_memory``, where no cgroup sees it
    OUTPUT_CUT = "output cut"
    CANCELLED = "cancelled"
    DISK_SPENT = "disk spent"  #: a writable bind grew past what was agreed (collect.measure)
    LOST_HOLD = "lost hold"  #: killed by the owner for a reason of its own (drain, lease lapsed)


@dataclasses.dataclass(frozen=True, slots=True)
class LogFacts:
    """What nsjail's log (level INFO) says.

    Attributes:
        is_started: the command was executed.
        exit_code: how process 1 of the jail exited, None if it did not.
        signal_number: what killed process 1, None if nothing did.
        errors: warnings and errors in order, without time stamps.
    """

    is_started: bool = False
    exit_code: int | None = None
    signal_number: int | None = None
    errors: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """How a jail ended, in the terms of ``wire.failure.Failure``.

    Attributes:
        outcome: never ERROR: an exception is seen by the runner inside, see ``outcome_of_errno``.
        detail: one sentence for a person: the limit, what was reached, what to try next.
        exit_code: of process 1; 0 when it did not exit by itself.
        signal_number: that ended process 1; 0 when none.
        limit, peak, suggested: in the unit of the outcome (bytes, ms, processes); 0: not known.
    """

    outcome: Outcome
    detail: str
    exit_code: int = 0
    signal_number: int = 0
    limit: int = 0
    peak: int = 0
    suggested: int = 0


#: The kernel holds RLIMIT_CPU by clock ticks, which on a busy machine run ahead of the meters.
#: Process 1 of a jail gets KILL from nobody inside, so little else can be meant (argv.py also sets
#: that limit a second later).
RLIMIT_CPU_SLACK = 0.8

_EXITED = re.compile(r"exited with status: (\d+)")
_KILLED = re.compile(r"terminated with signal: .*?\((\d+)\)")
_NOT_EXECUTED = re.compile(r"execve\('(.*)'\) failed: (.*)$")
_NOT_LAUNCHED = "Couldn't launch the child process"
_HEAD = re.compile(r"^\[([A-Z])\](?:\[[^\]]*\])*\s*(.*)$")


def parse_log(text: str) -> LogFacts:
    """Read nsjail's log. Unknown lines are skipped: a later nsjail may say more."""
    exit_code = signal_number = None
    is_started = False
    errors = []
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head is None:
            continue
        level, message = head.groups()
        if level in "WEF":
            errors.append(message)
        elif level == "I" and " ([STANDALONE MODE]) " in message:
            if found := _EXITED.search(message):
                is_started, exit_code = True, int(found[1])
            elif found := _KILLED.search(message):
                is_started, signal_number = True, int(found[1])
    return LogFacts(is_started, exit_code, signal_number, tuple(errors))


def judge(
    deed: Deed,
    wait_status: int | None,
    log: LogFacts,
    reading: Reading,
    limits: Limits,
    wall_ms: float,
    output_bytes: int = 0,
) -> Verdict:
    """The verdict on one ended jail.

    Args:
        deed: what the owner did.
        wait_status: of nsjail, as wait4 gave it; None when the spawner died with it.
        log: see ``parse_log``.
        reading: the last reading of the jail.
        limits: that it ran under.
        wall_ms: from start to end.
        output_bytes: that were seen on stdout and stderr, before the cut.
    """
    ours = _our_doing(deed, reading, limits, wall_ms, output_bytes)
    if ours is not None:
        return ours
    if wait_status is None:
        return Verdict(Outcome.LOST, "the process that starts jails died, and the jail with it")
    unstarted = _never_started(wait_status, log)
    if unstarted is not None and not reading.oom_kills:
        return unstarted
    exit_code, number = _end_of(wait_status, log)
    if exit_code == 0:
        note = ""
        if reading.oom_kills:
            note = f"{reading.oom_kills} of its processes ran out of memory"
        return Verdict(Outcome.OK, note, peak=reading.memory_peak_bytes if note else 0)
    if reading.oom_kills:
        return dataclasses.replace(
            _out_of_memory(reading, limits), exit_code=exit_code, signal_number=number
        )
    if number:
        return _by_signal(number, reading, limits)
    if reading.pids_denied:
        return dataclasses.replace(_out_of_pids(reading, limits), exit_code=exit_code)
    hint = f" (a shell's word for {_signal_name(exit_code - 128)})" if exit_code > 128 else ""
    return Verdict(Outcome.EXIT, f"exit {exit_code}{hint}", exit_code=exit_code)


def outcome_of_errno(
    number: int | None, exception_name: str = "OSError", reading: Reading | None = None
) -> Outcome:
    """Which wall of the jail an OSError inside it ran into; ERROR for an everyday one.

    A denied system call shows as an exception in the jailed code: EPERM from the seccomp policy,
    ENOSPC from the scratch's size, ENETUNREACH from a network of only ``lo``. An error that says
    nothing about the jail (ENOENT, EEXIST, ...) stays ERROR.

    Args:
        number: ``OSError.errno``.
        exception_name: its class name; ``gaierror`` numbers are not errnos.
        reading: of the jail, to tell a refused fork from another EAGAIN.
    """
    if exception_name in ("gaierror", "herror"):
        return Outcome.NET
    if number in _NET:
        return Outcome.NET
    if number in _FS:
        return Outcome.FS
    if number in (errno.EPERM, errno.ENOSYS):
        return Outcome.SYSCALL
    if number == errno.ENOMEM:
        return Outcome.OOM
    if number == errno.EAGAIN and reading is not None and reading.pids_denied:
        return Outcome.PIDS
    if number == errno.EAGAIN and reading is not None and reading.is_estimated:
        return Outcome.PIDS if exception_name == "BlockingIOError" else Outcome.ERROR
    return Outcome.ERROR


_NET = frozenset(
    {
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ECONNREFUSED,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
    }
)
_FS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EMFILE,
        errno.ENFILE,
    }
)


def _our_doing(
    deed: Deed, reading: Reading, limits: Limits, wall_ms: float, output_bytes: int
) -> Verdict | None:
    if deed is Deed.CANCELLED:
        return Verdict(Outcome.CANCELLED, "cancelled", peak=int(wall_ms))
    if deed is Deed.LOST_HOLD:
        return Verdict(Outcome.RETURNED, "stopped by its worker")
    if deed is Deed.DISK_SPENT:
        return Verdict(Outcome.FS, "wrote more files or bytes than its output directory may hold")
    if deed is Deed.TIMED_OUT:
        return Verdict(
            Outcome.TIME,
            f"ran {format_ms(wall_ms)} of at most {format_ms(limits.wall_ms)} and used "
            f"{format_ms(reading.cpu_us / 1000)} of cpu; "
            f"try a wall limit of {format_ms(limits.wall_ms * 2)}",
            limit=limits.wall_ms,
            peak=int(wall_ms),
            suggested=limits.wall_ms * 2,
        )
    if deed is Deed.CPU_SPENT:
        return _out_of_cpu(reading, limits)
    if deed is Deed.MEMORY_SPENT:
        return _out_of_memory(reading, limits)
    if deed is Deed.OUTPUT_CUT:
        suggested = max(limits.output_bytes_max, output_bytes) * 2
        return Verdict(
            Outcome.OUTPUT,
            f"wrote more than {format_bytes(limits.output_bytes_max)} to stdout and stderr; "
            "write to a file, or raise the output limit",
            limit=limits.output_bytes_max,
            peak=output_bytes,
            suggested=suggested,
        )
    return None


def _never_started(wait_status: int, log: LogFacts) -> Verdict | None:
    """The command never ran: the log's errors say so, or nsjail left without telling its end.

    The log also calls a half-made child killed, so the errors come first.
    """
    for error in log.errors:
        if found := _NOT_EXECUTED.search(error):
            path, why = found.groups()
            exit_code = 127 if why == os.strerror(errno.ENOENT) else 126  # as a shell would
            return Verdict(
                Outcome.EXIT,
                f"{path} cannot be executed in the jail: {why}; is it, and the interpreter that "
                "its first line names, under /usr or mounted?",
                exit_code=exit_code,
            )
    is_told = log.exit_code is not None or log.signal_number is not None
    if any(_NOT_LAUNCHED in error for error in log.errors) or (
        os.WIFEXITED(wait_status) and not is_told
    ):
        return _not_set_up(wait_status, log)
    return None


def _not_set_up(wait_status: int, log: LogFacts) -> Verdict:
    cause = "; ".join(log.errors[:3])
    if not cause:
        code = os.waitstatus_to_exitcode(wait_status)
        cause = f"nsjail ended with {code} and no reason; its stderr may have one"
    return Verdict(Outcome.SETUP, f"the jail could not be set up: {cause}")


def _end_of(wait_status: int, log: LogFacts) -> tuple[int, int]:
    """(exit code, signal) of process 1, by the log first and nsjail's own status otherwise."""
    if log.signal_number is not None:
        return 128 + log.signal_number, log.signal_number
    if log.exit_code is not None:
        return log.exit_code, 0
    if os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        return 128 + number, number
    return os.WEXITSTATUS(wait_status), 0


def _by_signal(number: int, reading: Reading, limits: Limits) -> Verdict:
    is_cpu_spent = reading.cpu_us / 1000 >= limits.cpu_ms * RLIMIT_CPU_SLACK
    if number == signal.SIGXCPU or (number == signal.SIGKILL and is_cpu_spent):
        return dataclasses.replace(_out_of_cpu(reading, limits), signal_number=number)
    if number == signal.SIGXFSZ:
        return Verdict(
            Outcome.FS,
            f"a file grew past {format_bytes(limits.file_bytes_max)}; raise the file size limit",
            signal_number=number,
            limit=limits.file_bytes_max,
            suggested=limits.file_bytes_max * 2,
        )
    if number == signal.SIGSYS:
        return Verdict(
            Outcome.SYSCALL, "made a system call that jails forbid", signal_number=number
        )
    return Verdict(Outcome.SIGNAL, f"killed by {_signal_name(number)}", signal_number=number)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _out_of_cpu(reading: Reading, limits: Limits) -> Verdict:
    used_ms = reading.cpu_us // 1000
    return Verdict(
        Outcome.CPU,
        f"used {format_ms(used_ms)} of cpu of at most {format_ms(limits.cpu_ms)}; "
        f"try a cpu limit of {format_ms(limits.cpu_ms * 2)}",
        limit=limits.cpu_ms,
        peak=used_ms,
        suggested=limits.cpu_ms * 2,
    )


def _out_of_memory(reading: Reading, limits: Limits) -> Verdict:
    suggested = limits.memory_bytes * 2
    return Verdict(
        Outcome.OOM,
        f"reached its memory limit of {format_bytes(limits.memory_bytes)} (scratch files in /tmp "
        f"count) and was killed; try a memory limit of {format_bytes(suggested)}",
        limit=limits.memory_bytes,
        peak=reading.memory_peak_bytes,
        suggested=suggested,
    )


def _out_of_pids(reading: Reading, limits: Limits) -> Verdict:
    return Verdict(
        Outcome.PIDS,
        f"was refused {reading.pids_denied} forks past {limits.pids_max} processes; "
        f"try a process limit of {limits.pids_max * 2}",
        limit=limits.pids_max,
        peak=limits.pids_max,
        suggested=limits.pids_max * 2,
    )
