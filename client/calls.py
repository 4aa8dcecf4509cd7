"""``submit``: one future per call, many calls in one job.

Calls of one function with the same options share an open-ended job. A lone call leaves at once;
what is submitted while the link is busy waits in ``_waiting`` and leaves in one parcel.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from gristmill.client.core.uploads import is_forced_end
from gristmill.client.decode import ResultReader
from gristmill.client.encode import fits, pack
from gristmill.client.errors import GridError, JobFailed, UnpicklableError, grid_error
from gristmill.client.future import Future, fail, settle
from gristmill.client.legs import Legs
from gristmill.client.link import Link, Sink
from gristmill.client.map import PATIENCE_S, tell_cap, tell_reason, with_way_back
from gristmill.wire import limits
from gristmill.wire.client import Cancel, JobStatus, Results, Submit
from gristmill.wire.ids import format_job
from gristmill.wire.values import BlobRef, encode_ref


class CoalescedJob(Sink):
    """One open-ended job of single calls.

    Args:
        open_job: submits the job with this sink and returns the upload's number.
        in_background: runs something that may block, outside the link's thread.
        rest_s: without a new call for so long, the job closes; the next call opens another.
    """

    def __init__(
        self,
        link: Link,
        message: Submit,
        function: bytes,
        reader: ResultReader,
        store: Callable[[bytes], BlobRef],
        in_background: Callable[[Callable[[], None]], None],
        warn: Callable[[str], None],
        rest_s: float = limits.COALESCED_JOB_REST_MS / 1000,
    ) -> None:
        self.legs = Legs()
        self.is_closed = False  #: takes no more calls
        self._link = link
        self._message = message
        self._function = function
        self._reader = reader
        self._store = store
        self._in_background = in_background
        self._warn = warn
        self._rest_s = rest_s
        self._status: JobStatus | None = None
        self._told = ""
        self._noticed: dict[int, int] = {}
        self._lock = threading.Lock()
        self._next = 0
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._futures: dict[int, Future] = {}
        self._cancelled: list[int] = []
        self._packed = 0  # index of the next call to leave; the link's thread only
        self._upload = 0
        self._is_scheduled = False
        self._is_storing = False
        self._calls_at_rest = 0
        self._late: deque[tuple[Results, list[bytes]]] = deque()
        self._is_reading = False
        self._end: GridError | None = None
        self._is_uploading = False
        self._held: GridError | None = None  # the end of a job whose upload may go on in another
        self._drained = threading.Event()

    # ------------------------------------------------------------ callers' threads

    def call(self, arguments: tuple[Any, ...]) -> Future | None:
        """A future for one more call; None when the job takes no more."""
        with self._lock:
            if self.is_closed or self._next >= limits.SUBTASKS_MAX:
                return None
            future = Future(self, self._next)
            self._next += 1
            self._futures[self._next - 1] = future
            self._waiting.append(arguments)
            if self._is_scheduled:
                return future  # the link is busy: it takes this one along
            self._is_scheduled = True
        self._link.do(self._send)
        return future

    def place(self, position: int) -> tuple[int, int]:
        """(job, index) of a call; job 0 until the broker accepted it."""
        return self.legs.find(position)

    def cancel(self, position: int) -> None:
        """Ask the broker to cancel one call."""
        self._link.do(lambda: self._cancel(position))

    def close(self) -> None:
        """Take no more calls; those that were made go on."""
        with self._lock:
            if self.is_closed:
                return
            self.is_closed = True
        self._link.do(self._end_upload)

    def abandon(self, reason: GridError) -> None:
        """The client ends: futures without a value get this error, their work goes on."""
        for future in list(self._futures.values()):
            fail(future, reason)
        self._futures.clear()

    @property
    def job(self) -> int:
        """Number of the job that takes calls now, 0 until it is accepted."""
        return self.legs.newest

    def wait_closed(self, seconds: float) -> None:
        """Wait until the broker has counted every call of a closed job, or the time is over."""
        self._drained.wait(seconds)

    @property
    def pending(self) -> int:
        """Calls without a value."""
        return len(self._futures)

    # ------------------------------------------------------------ the link's thread

    def _send(self) -> None:
        if not self._upload:
            self._upload = self._link.open_job(
                self._message, self._function, self, may_continue=True
            )
            self._watch_rest()
            self._link.after(PATIENCE_S, self._watch_waiting)
        while not self._is_storing:
            with self._lock:
                if not self._waiting:
                    self._is_scheduled = False
                    break
                count = min(len(self._waiting), limits.PARCEL_OBJECTS_TARGET)
                calls = [self._waiting.popleft() for _ in range(count)]
            self._pack(calls)
        if self.is_closed:
            self._end_upload()

    def _pack(self, calls: list[tuple[Any, ...]]) -> None:
        try:
            codec, frame = pack(calls)
        except UnpicklableError as error:
            if len(calls) == 1:
                self._replace_unpicklable(error)
                return
            codec, frame = "", b""
        if codec and fits(len(frame), len(calls)):
            self._sent(len(calls), codec, frame)
        elif len(calls) > 1:
            with self._lock:  # halves, in order, before what came meanwhile
                self._waiting.extendleft(reversed(calls))
            half = len(calls) // 2
            with self._lock:
                calls = [self._waiting.popleft() for _ in range(half)]
            self._pack(calls)
        else:
            self._is_storing = True
            self._in_background(lambda: self._put_away(codec, frame))

    def _sent(self, count: int, codec: str, frame: bytes) -> None:
        self._packed += count
        self._link.send_parcel(self._upload, count, codec, frame)
        self._link.wake()

    def _replace_unpicklable(self, error: UnpicklableError) -> None:
        """An index cannot be left out: the call fails here and its place is sent cancelled."""
        index = self._packed
        if future := self._futures.pop(index, None):
            fail(future, error)
        self._sent(1, *pack([None]))
        self._cancel(index)

    def _put_away(self, codec: str, frame: bytes) -> None:
        """In the background: one large call goes through the store."""
        try:
            reference = encode_ref(self._store(frame))
        except GridError as error:
            stored = error
            self._link.do(lambda: self._stored(None, "", stored))
        else:
            self._link.do(lambda: self._stored(reference, f"@{codec}", None))

    def _stored(self, frame: bytes | None, codec: str, error: GridError | None) -> None:
        self._is_storing = False
        if frame is not None:
            self._sent(1, codec, frame)
        else:
            index = self._packed
            if future := self._futures.pop(index, None):
                fail(future, error or grid_error("STORE_DOWN", ""))
            self._sent(1, *pack([None]))
            self._cancel(index)
        self._send()

    def _cancel(self, position: int) -> None:
        self._futures.pop(position, None)
        job, index = self.legs.find(position)
        if job:
            message = Cancel(b"", 0, job, [(index, 1)])
            self._link.request(message, lambda answer, error: None)
        else:
            self._cancelled.append(position)

    def _end_upload(self) -> None:
        with self._lock:
            is_empty = not self._waiting and not self._is_storing
        if is_empty and self._upload:
            self._link.end_upload(self._upload)
        elif is_empty:
            self._drained.set()

    def _watch_waiting(self) -> None:
        """Say why calls wait, once they have waited for a while."""
        if self._status is not None and self._futures:
            self._told = tell_reason(self._status, self._told, self._warn)
        if not self.is_closed or self._futures:
            self._link.after(PATIENCE_S, self._watch_waiting)

    def _watch_rest(self) -> None:
        def look() -> None:
            if self.is_closed:
                return
            if self._next == self._calls_at_rest:
                self.close()
                return
            self._calls_at_rest = self._next
            self._link.after(self._rest_s, look)

        self._calls_at_rest = -1
        self._link.after(self._rest_s, look)

    # ------------------------------------------------------------ sink

    def on_accepted(self, job: int) -> None:
        """The job has an id: send what was cancelled meanwhile."""
        self.legs.accepted(job)
        self._is_uploading = True
        cancelled, self._cancelled = self._cancelled, []
        for position in cancelled:
            self._cancel(position)

    def on_continued(self, job: int, base: int) -> None:
        """Calls from this one on are in another job; cancelled ones are cancelled there, too."""
        self._held = None
        self.legs.continued(base)
        self._cancelled += [n for n in range(base, self._packed) if n not in self._futures]

    def on_upload_failed(self, error: GridError) -> None:
        """No call can get its value here."""
        self._is_uploading = False
        self._finish(error)

    def on_upload_closed(self) -> None:
        """Every call is counted."""
        self._is_uploading = False
        self._drained.set()
        if self._held is not None:
            self._finish(self._held)

    def on_results_failed(self, error: GridError) -> None:
        """No values come."""
        self._finish(error)

    def on_status(self, status: JobStatus, is_final: bool) -> None:
        """Why it waits, and the end; calls without a value by then have none."""
        self._status = status
        tell_cap(status, self._noticed, self._warn)
        if not is_final:
            return
        name = format_job(status.job)
        error = JobFailed(
            "CANCELLED" if status.state == "cancelled" else "JOB_FAILED",
            f"{name} is {status.state}: {status.reason or 'no reason given'}",
            f"see 'gristmill status {name}'",
        )
        begin, end = self.legs.span(status.job)
        if end is not None:  # an earlier job of these calls
            for position in [n for n in self._futures if begin <= n < end]:
                fail(self._futures.pop(position), error)
        elif self._is_uploading and not is_forced_end(status):
            self._held = error  # calls that it has not got go on in another job
        else:
            self._finish(error)

    def on_result(self, result: Results, frames: list[bytes]) -> None:
        """Values for some futures; those in the store are fetched in the background."""
        if self._is_reading or result.head.codec.startswith("@"):
            self._late.append((result, frames))
            if not self._is_reading:
                self._is_reading = True
                self._in_background(self._read_late)
            return
        self._read(result, frames)

    def _read_late(self) -> None:
        while self._late:
            self._read(*self._late.popleft())
        self._link.do(self._read_on)

    def _read_on(self) -> None:
        self._is_reading = False
        late, self._late = self._late, deque()
        for result, frames in late:
            self.on_result(result, frames)
        if self._end is not None and not self._is_reading:
            self._finish(self._end)

    def _read(self, result: Results, frames: list[bytes]) -> None:
        self._link.taken(result, sum(map(len, frames)))
        futures, base = self._futures, self.legs.base(result.job)
        try:
            pieces = self._reader.read(result, frames)
        except GridError as error:
            first = base + result.head.first
            for index in range(first, first + result.head.count):
                if future := futures.pop(index, None):
                    fail(future, error)
            return
        for piece in pieces:
            first, errors = base + piece.first, piece.errors or {}
            given = []
            for offset, value in enumerate(piece.values):
                future = futures.pop(first + offset, None)
                if future is None:
                    continue
                if offset in errors:
                    fail(future, errors[offset])
                else:
                    given.append((future, value))
            settle(given)

    def _finish(self, error: GridError) -> None:
        self.is_closed = True
        self._drained.set()
        if self._is_reading:
            self._end = error
            return
        futures, self._futures = self._futures, {}
        for position, future in futures.items():
            fail(future, with_way_back(error, *self.legs.find(position)))


def keep_keywords(
    function: Callable[..., Any], positional: int, names: tuple[str, ...]
) -> Callable[..., Any]:
    """A function of positional arguments only: the last ones are the keywords ``names``.

    So a call's inputs stay a flat tuple, which travels without pickle. Made here as a closure:
    cloudpickle sends those by value, and the worker need not have gristmill's client.
    """

    def call(*values: Any) -> Any:
        return function(*values[:positional], **dict(zip(names, values[positional:], strict=True)))

    call.__name__ = getattr(function, "__name__", "call")
    call.__qualname__ = getattr(function, "__qualname__", "call")
    return call
