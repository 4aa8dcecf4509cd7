"""What a caller of the client library has to catch.

Two families. ``GridError``: the grid refused or did not answer; it has a ``code`` of
docs/errors.md, a ``hint`` and an ``exit_code``. ``SubtaskError``: one subtask ended without a
value for another reason than an exception of its own (an exception of its own comes back as
itself).
"""

from gristmill.wire.errors import CODES, RemoteError
from gristmill.wire.ids import format_job
from gristmill.wire.outcome import Outcome
from gristmill.wire.units import format_bytes, format_ms


class GridError(RemoteError):
    """The grid refused a request, or could not do it.

    Attributes:
        code: a code of docs/errors.md.
        message: names the thing, the limit and the actual value.
        hint: the next command to type.
        exit_code: what a command line program should exit with.
    """

    def __init__(self, code: str, message: str = "", hint: str = "") -> None:
        super().__init__(code if code in CODES else "INTERNAL", message, hint)

    @property
    def exit_code(self) -> int:
        """What a command line program should exit with."""
        return self.spec.exit_code


class BrokerUnavailable(GridError):  # noqa: N818 - reads as what is the matter
    """The broker does not answer (``UNREACHABLE``, exit code 3).

    What was accepted goes on, or will when the broker is back. The way to it:

    Attributes:
        job: number of the job, 0 when nothing says that it was accepted.
        index: of the call in that job, -1 for all of them.
        call: what to call in Python, empty without a job.
        command: what to type, empty without a job.
    """

    job, index, call, command = 0, -1, "", ""

    def about(self, job: int, index: int = -1) -> "BrokerUnavailable":
        """The same error with the way back to a job, or to one call of it."""
        if not job:
            hint = (
                "nothing says that the job was accepted; make sure with the same key: "
                "what was accepted is not made twice (docs/reliability.md)"
            )
            return BrokerUnavailable(self.code, self.message, hint)
        name = format_job(job)
        call, command = f'client.results("{name}")', f"gristmill result {name}"
        told = f"{name} goes on; when the broker is back: {call}, or '{command}'"
        if index >= 0:
            call, command = f'client.ended("{name}")', f"gristmill result {name}/{index}"
            told = (
                f"{name}/{index} goes on; when the broker is back: {call} gives each value with "
                f"its index, '{command}' this one"
            )
        error = BrokerUnavailable(self.code, self.message, told)
        error.job, error.index, error.call, error.command = job, index, call, command
        return error


class UnpicklableError(GridError, TypeError):
    """A function or an input cannot be serialised (``UNPICKLABLE``); the message names what."""


class UnsafeResultError(GridError):
    """A result would need unpickling and this client does not trust its fleet."""


class DecomposeError(GridError):
    """A request could not be split: ``DECOMPOSE_FAILED``, ``_TIMEOUT`` or ``_TOO_LARGE``."""


class JobFailed(GridError):  # noqa: N818
    """The whole job ended before its subtasks could (no credits, cancelled, a bad spec)."""


def grid_error(code: str, message: str, hint: str = "") -> GridError:
    """The error for a refusal of the broker."""
    kinds: dict[str, type[GridError]] = {
        "UNREACHABLE": BrokerUnavailable,
        "UNPICKLABLE": UnpicklableError,
        "UNSAFE_RESULT": UnsafeResultError,
    }
    kind = DecomposeError if code.startswith("DECOMPOSE_") else kinds.get(code, GridError)
    return kind(code, message, hint)


class SizeWarning(UserWarning):
    """A function travels with more than a megabyte of captured values."""


# ---------------------------------------------------------------- subtasks


class SubtaskError(Exception):
    """A subtask ended without a value.

    Attributes:
        job: number of the job; ``index``: of the subtask; ``attempt``: of the try that ended it.
        node: who ran it, hex of the node's key, empty when nobody did.
        outcome: how it ended.
        limit, peak, suggested: in the unit of the outcome (bytes, ms, processes), 0 if unknown.
    """

    outcome = Outcome.ERROR
    option = ""  #: the option of ``map``, ``submit`` and ``run`` that raises the limit

    def __init__(
        self,
        message: str,
        *,
        job: int = 0,
        index: int = 0,
        attempt: int = 0,
        node: str = "",
        outcome: Outcome | None = None,
        limit: int = 0,
        peak: int = 0,
        suggested: int = 0,
    ) -> None:
        super().__init__(message)
        self.job, self.index, self.attempt, self.node = job, index, attempt, node
        self.outcome = self.outcome if outcome is None else outcome
        self.limit, self.peak, self.suggested = limit, peak, suggested


class TimeLimit(SubtaskError):  # noqa: N818
    """Over its wall-clock limit (ms)."""

    outcome, option = Outcome.TIME, "timeout"


class CpuLimit(SubtaskError):  # noqa: N818
    """Over its limit of cpu time (ms)."""

    outcome, option = Outcome.CPU, "cpu_timeout"


class OutOfMemory(SubtaskError):  # noqa: N818
    """Over its memory limit (bytes)."""

    outcome, option = Outcome.OOM, "memory"


class ProcessLimit(SubtaskError):  # noqa: N818
    """Over its limit of processes."""

    outcome, option = Outcome.PIDS, "pids"


class OutputLimit(SubtaskError):  # noqa: N818
    """Wrote more than its output limit (bytes)."""

    outcome, option = Outcome.OUTPUT, "output"


class ScratchError(SubtaskError):
    """A file operation was refused, or the scratch space was full (bytes)."""

    outcome, option = Outcome.FS, "scratch"


class SyscallRefused(SubtaskError):  # noqa: N818
    """Made a system call that the jail forbids."""

    outcome = Outcome.SYSCALL


class KilledBySignal(SubtaskError):  # noqa: N818
    """Ended by a signal of its own making."""

    outcome = Outcome.SIGNAL


class SetupFailed(SubtaskError):  # noqa: N818
    """Its jail or environment could not be set up; never billed."""

    outcome = Outcome.SETUP


class SubtaskCancelled(SubtaskError):  # noqa: N818
    """Cancelled before it ended."""

    outcome = Outcome.CANCELLED


class NetworkRefused(SubtaskError):  # noqa: N818
    """Tried to reach a network; a jail has none."""

    outcome = Outcome.NET


class StoreFailed(SubtaskError):  # noqa: N818
    """Its input or output could not pass the store; never billed."""

    outcome = Outcome.STORE


class EncodingFailed(SubtaskError):  # noqa: N818
    """Its value cannot travel under the job's result rule, or its input cannot be read."""

    outcome = Outcome.ENCODING


class SubtaskLost(SubtaskError):  # noqa: N818
    """Lost with its worker more often than ``losses`` allows; never billed."""

    outcome, option = Outcome.LOST, "losses"


class BudgetReached(SubtaskError):  # noqa: N818
    """The job's cap was reached before it could run."""

    outcome, option = Outcome.BUDGET, "cap"


class CommandFailed(SubtaskError):  # noqa: N818
    """A command exited with a code that is not accepted.

    Attributes:
        exit_code: what it exited with; ``stdout``, ``stderr``: the last part of its output.
    """

    outcome = Outcome.EXIT
    exit_code = 0
    stdout = b""
    stderr = b""


class RemoteException(SubtaskError):  # noqa: N818 - stands for a class that we do not have
    """The function raised something whose class is not rebuilt here; ``kind`` is its name."""

    kind = ""


class RemoteTraceback(Exception):  # noqa: N818 - a text that stands in ``__cause__``
    """The traceback on the worker, shown as the cause of the exception."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


OUTCOME_ERRORS: dict[Outcome, type[SubtaskError]] = {
    kind.outcome: kind
    for kind in (
        TimeLimit,
        CpuLimit,
        OutOfMemory,
        ProcessLimit,
        OutputLimit,
        ScratchError,
        SyscallRefused,
        KilledBySignal,
        SetupFailed,
        SubtaskCancelled,
        NetworkRefused,
        StoreFailed,
        EncodingFailed,
        SubtaskLost,
        BudgetReached,
        CommandFailed,
    )
}
_BYTES = frozenset({Outcome.OOM, Outcome.OUTPUT, Outcome.FS})
_MS = frozenset({Outcome.TIME, Outcome.CPU})


def describe_limit(error: SubtaskError) -> str:
    """``limit 1 GiB, peak 1.2 GiB; try memory="1.5G"``; empty when no limit is known."""

    def told(amount: int) -> str:
        if error.outcome in _BYTES:
            return format_bytes(amount)
        return format_ms(amount) if error.outcome in _MS else str(amount)

    parts = []
    if error.limit:
        parts.append(f"limit {told(error.limit)}")
    if error.peak:
        parts.append(f"peak {told(error.peak)}")
    text = ", ".join(parts)
    if error.option and error.suggested:
        text += f"{'; ' if text else ''}try {error.option}={_as_option(error)}"
    elif error.option and error.limit:
        text += f"; raise it with {error.option}="
    return text


def _as_option(error: SubtaskError) -> str:
    if error.outcome in _BYTES:
        return f'"{max(1, -(-error.suggested >> 20))}M"'
    if error.outcome in _MS:
        return f'"{max(1, -(-error.suggested // 1000))}s"'
    return str(error.suggested)


def subtask_name(job: int, index: int) -> str:
    """``j17/3``."""
    return f"{format_job(job)}/{index}"
