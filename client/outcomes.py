"""What is raised for a subtask that did not end well: its own exception, or a typed error.

Exceptions of a fleet that is not trusted are rebuilt from ``PLAIN_EXCEPTIONS`` only: a name from
the wire is looked up in that table and nowhere else.
"""

from collections.abc import Callable
from typing import Any

from gristmill.client.errors import (
    OUTCOME_ERRORS,
    CommandFailed,
    RemoteException,
    RemoteTraceback,
    SubtaskError,
    describe_limit,
    subtask_name,
)
from gristmill.wire.failure import Failure, LogEntry
from gristmill.wire.outcome import Outcome

#: builtin exceptions that a message alone can make
PLAIN_EXCEPTIONS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        ArithmeticError,
        AssertionError,
        AttributeError,
        BufferError,
        EOFError,
        Exception,
        FileExistsError,
        FileNotFoundError,
        FloatingPointError,
        ImportError,
        IndexError,
        InterruptedError,
        IsADirectoryError,
        KeyError,
        LookupError,
        MemoryError,
        ModuleNotFoundError,
        NameError,
        NotADirectoryError,
        NotImplementedError,
        OSError,
        OverflowError,
        PermissionError,
        RecursionError,
        ReferenceError,
        RuntimeError,
        StopIteration,
        SyntaxError,
        TimeoutError,
        TypeError,
        UnboundLocalError,
        ValueError,
        ZeroDivisionError,
    )
}
_STDERR_TAIL = 2_000


def exception_for(
    outcome: Outcome,
    failure: Failure | None,
    log: LogEntry | None,
    where: dict[str, Any],
    loads: Callable[[Any], Any] | None,
) -> BaseException:
    """The exception of one subtask, with its remote traceback as cause and notes on where.

    Args:
        outcome: how the attempt ended; not OK.
        failure: what the worker knows of it.
        log: its output, if it left any.
        where: ``job``, ``index``, ``attempt``, ``node``.
        loads: unpickles; None for a fleet that is not trusted.
    """
    failure = failure or Failure("")
    error: BaseException | None = None
    if outcome is Outcome.ERROR:
        error = _own_exception(failure, where, loads)
    else:
        error = _typed_error(outcome, failure, log, where)
    if failure.traceback:
        error.__cause__ = RemoteTraceback(failure.traceback)
    name = subtask_name(where["job"], where["index"])
    node = f", node {where['node'][:8]}" if where["node"] else ""
    error.add_note(f"gristmill: subtask {name}, attempt {where['attempt']}{node}: {outcome.word}")
    if isinstance(error, SubtaskError) and (limit := describe_limit(error)):
        error.add_note(f"gristmill: {limit}")
    error.add_note(f"gristmill: its output: gristmill logs {name}")
    return error


def _own_exception(
    failure: Failure, where: dict[str, Any], loads: Callable[[Any], Any] | None
) -> BaseException:
    if loads is not None and failure.pickled:
        try:
            error = loads(failure.pickled)
        except Exception:  # a class that cannot be made from its own pickle: its text is left
            error = None
        if isinstance(error, BaseException):
            return error
    name = failure.kind.removeprefix("builtins.")
    plain = PLAIN_EXCEPTIONS.get(name)
    if plain is not None:
        return plain(failure.message)
    unknown = RemoteException(f"{failure.kind or 'exception'}: {failure.message}", **where)
    unknown.kind = failure.kind
    return unknown


def _typed_error(
    outcome: Outcome, failure: Failure, log: LogEntry | None, where: dict[str, Any]
) -> SubtaskError:
    kind = OUTCOME_ERRORS.get(outcome, SubtaskError)
    message = failure.message or f"the subtask ended with outcome {outcome.word!r}"
    error = kind(
        message,
        **where,
        outcome=outcome,
        limit=failure.limit,
        peak=failure.peak,
        suggested=failure.suggested,
    )
    if isinstance(error, CommandFailed):
        error.exit_code = failure.exit_code
        if log is not None:
            error.stdout, error.stderr = log.stdout, log.stderr
            if tail := log.stderr[-_STDERR_TAIL:].decode(errors="replace").rstrip():
                error.add_note(tail)
    return error
