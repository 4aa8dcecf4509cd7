"""The future of one ``submit``: it costs a lock and lists of its own only if somebody watches it.

``concurrent.futures.Future`` makes a condition and two lists in its constructor, which is most of
what a call would cost a client. Of 100,000 futures few are ever waited for by name: most have their
value when they are asked.
"""

import concurrent.futures
import threading
from collections.abc import Callable, Iterable
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from typing import Any, Protocol

from gristmill.wire.ids import format_job

#: held while a future becomes watched, and while values are given to those that are not
_unwatched = threading.Lock()
_WATCHING = ("_condition", "_waiters", "_done_callbacks")
_ENDED = (FINISHED, CANCELLED, CANCELLED_AND_NOTIFIED)


class Caller(Protocol):
    """What a future knows of the job that its call is in."""

    def place(self, position: int) -> tuple[int, int]:
        """(job, index) of a call; job 0 until the broker accepted it."""

    def cancel(self, position: int) -> None:
        """Ask the broker to cancel one call."""


class Future(concurrent.futures.Future[Any]):
    """The value of one ``submit``.

    A ``concurrent.futures.Future`` with two differences: work that runs can be cancelled, and it
    knows its job and index.
    """

    _state = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _is_watched = False

    def __init__(self, caller: Caller, position: int) -> None:
        self._caller = caller
        self._position = position

    def __getattr__(self, name: str) -> Any:
        # The standard library reads these before it waits, or has itself called back.
        if name not in _WATCHING:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with _unwatched:
            if not self._is_watched:
                self._waiters: list[Any] = []
                self._done_callbacks: list[Callable[[Any], Any]] = []
                self._condition = threading.Condition()
                self._is_watched = True
        return self.__dict__[name]

    @property
    def job(self) -> int:
        """Number of the job, 0 until the broker accepted it."""
        return self._caller.place(self._position)[0]

    @property
    def index(self) -> int:
        """Of the call in its job."""
        return self._caller.place(self._position)[1]

    def done(self) -> bool:
        """Whether it has a value or an error, or was cancelled."""
        return self._state in _ENDED

    def result(self, timeout: float | None = None) -> Any:
        """The value; waits for it. Raises what the call raised; see the standard library."""
        if self._state == FINISHED and self._exception is None:
            return self._result
        return super().result(timeout)

    def cancel(self) -> bool:
        """Cancel the call, even when it runs; False when it has ended."""
        if not super().cancel():
            return False
        self.set_running_or_notify_cancel()  # wakes concurrent.futures.wait, as_completed
        self._caller.cancel(self._position)
        return True

    def __repr__(self) -> str:
        name = format_job(self.job) if self.job else "j?"
        return f"<gristmill Future {name}/{self.index} {self._state.lower()}>"


def settle(given: Iterable[tuple[Future, Any]]) -> None:
    """Give futures their values; of those that were cancelled a moment ago nothing changes."""
    watched = []
    with _unwatched:
        for future, value in given:
            if future._is_watched:
                watched.append((future, value))
            else:
                future._result = value
                future._state = FINISHED
    for future, value in watched:
        try:
            future.set_result(value)
        except concurrent.futures.InvalidStateError:
            pass


def fail(future: Future, error: BaseException) -> None:
    """Have it raise this; of one that was cancelled a moment ago nothing changes."""
    try:
        future.set_exception(error)
    except concurrent.futures.InvalidStateError:
        pass
