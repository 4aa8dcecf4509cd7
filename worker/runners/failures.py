"""An exception as a ``Failure``: kind, message, the user's own frames, the exception pickled."""

import errno
from types import TracebackType

from gristmill.wire.failure import (
    MESSAGE_CHARS_MAX,
    PICKLED_BYTES_MAX,
    TRACEBACK_CHARS_MAX,
    Failure,
)
from gristmill.worker.runners.encode import CannotTravelError, pickle_all
from gristmill.worker.runners.protocol import Note

_OURS = "/worker/runners/"


def describe(error: BaseException, is_pickled: bool = True) -> Failure:
    """What a person needs to know of an exception; never raises.

    Frames of ours at the top of the traceback are left out. Notes stay in the traceback.
    ``is_pickled`` False leaves the exception object out (the job's results are ``safe``).
    """
    try:
        message = str(error)
    except Exception as inner:  # a broken __str__ is the user's and must not hide the failure
        message = f"<its __str__ raised {type(inner).__name__}>"
    message = _clean(message)
    return Failure(
        message=message[:MESSAGE_CHARS_MAX] or type(error).__name__,
        kind=kind_of(error),
        traceback=_format(error)[-TRACEBACK_CHARS_MAX:],
        pickled=_pickle(error) if is_pickled else b"",
    )


def kind_of(error: BaseException) -> str:
    """``ValueError``, ``mymod.Odd``."""
    kind = type(error)
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def note_of(error: BaseException) -> Note | None:
    """The errno of an OSError, for the agent to say which limit it was; memory counts, too."""
    if isinstance(error, MemoryError):
        return Note(0, errno.ENOMEM, type(error).__name__)
    if not isinstance(error, OSError):
        return None
    number = error.errno if isinstance(error.errno, int) else 0
    return Note(0, number, type(error).__name__)


def _format(error: BaseException) -> str:
    import traceback  # not before it is needed

    try:
        summary = traceback.TracebackException(
            type(error), error, _user_part(error.__traceback__), compact=True
        )
        return _clean("".join(summary.format()))
    except Exception as inner:
        return f"<the traceback cannot be formatted: {type(inner).__name__}>"


def _user_part(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and _OURS in trace.tb_frame.f_code.co_filename:
        trace = trace.tb_next
    return trace


def _pickle(error: BaseException) -> bytes:
    try:
        body = pickle_all(error)
    except CannotTravelError:
        return b""
    return body if len(body) <= PICKLED_BYTES_MAX else b""


def _clean(text: str) -> str:
    """Lone surrogates do not encode as UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8", "replace")
