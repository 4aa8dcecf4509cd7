"""``map``: a lazy, windowed, ordered or unordered stream of values.

The caller's thread reads the inputs, packs them and unpacks the results; the link's thread only
moves frames. Nothing here costs a Python object for each subtask beyond its value.
"""

import itertools
import queue
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

from gristmill.client.core.uploads import is_forced_end
from gristmill.client.decode import Piece, ResultReader
from gristmill.client.encode import Packed, Parcels
from gristmill.client.errors import BrokerUnavailable, GridError, JobFailed
from gristmill.client.legs import Legs
from gristmill.client.link import Link, Sink
from gristmill.wire import limits
from gristmill.wire.client import Cancel, JobStatus, Results, Submit
from gristmill.wire.ids import format_job
from gristmill.wire.units import format_credits

PARCELS_IN_FLIGHT = 64
PUTS_AHEAD = 8  #: parcels that wait until their inputs are in the store
PUT_BYTES_AHEAD = 64 << 20  #: of these inputs, but for the last
FETCHES_AHEAD = 8  #: results whose values are fetched from there before their turn
INPUT_BYTES_IN_FLIGHT = 32 << 20  #: with less the slots wait for it, and groups on disk are small
RESULT_BYTES_IN_FLIGHT = 64 << 20  #: expected size of all results on the way
VALUES_IN_FLIGHT = 128_000
RANGE_IN_FLIGHT = 1_000_000  #: of a range, whose parcels are 16 bytes each
_PARCELS_PER_TURN = 8  #: sent between two looks at what came back
DROPPED_S = 0.2  #: from the loss of the iterator to the job's cancel
_END_S = 5.0  #: after the last value, the job's end is waited for so long
HELD_END_S = 10.0  #: a job that ended before its upload did has nothing more to give after this
PATIENCE_S = 2.0  #: a reader that has waited for so long wants to know why


class JobEnd(NamedTuple):
    """In the queue of results: nothing comes after it."""

    status: JobStatus | None
    error: GridError | None


class JobFeed(Sink):
    """What the link's thread hands to a reader: results, then one ``JobEnd``."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.queue: queue.SimpleQueue[tuple[Results, list[bytes]] | JobEnd] = queue.SimpleQueue()
        self.job = 0
        self.status: JobStatus | None = None
        self.is_final = False
        self.accepted: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.legs = Legs()
        self._is_uploading = False
        self._held: JobStatus | None = None
        self._warn = warn
        self._told = ""
        self._noticed: dict[int, int] = {}

    def on_accepted(self, job: int) -> None:
        """The job has an id."""
        self.job = job
        self.legs.accepted(job)
        self._is_uploading = True
        self.accepted.put(None)

    def on_continued(self, job: int, base: int) -> None:
        """Its end is not ours."""
        self._held = None
        self.legs.continued(base)

    def on_upload_closed(self) -> None:
        """Every input is counted: the end of the job is the end."""
        self._is_uploading = False
        self.let_end()

    def let_end(self) -> None:
        """Tell an end that was held back because inputs might go on in another job."""
        held, self._held = self._held, None
        if held is not None:
            self.is_final = True
            self.queue.put(JobEnd(held, None))

    def on_upload_failed(self, error: GridError) -> None:
        """Nothing more goes in: the reader raises it."""
        self._is_uploading = False
        self.accepted.put(None)
        self.queue.put(JobEnd(self.status, with_way_back(error, self.job)))

    def on_result(self, result: Results, frames: list[bytes]) -> None:
        """One result."""
        self.queue.put((result, frames))

    def on_status(self, status: JobStatus, is_final: bool) -> None:
        """Counts changed."""
        self.status = status
        tell_cap(status, self._noticed, self._warn)
        if not is_final:
            return
        is_forced = is_forced_end(status)
        if self.legs.jobs and status.job != self.legs.newest and not is_forced:
            return  # an earlier job of this upload
        self._held = status
        if is_forced or not self._is_uploading:
            self.let_end()

    def tell_reason(self) -> None:
        """A reader has waited for a while: say once what the job waits for."""
        status = self.status
        if status is not None:
            self._told = tell_reason(status, self._told, self._warn)

    def on_results_failed(self, error: GridError) -> None:
        """No results come."""
        self.queue.put(JobEnd(self.status, with_way_back(error, self.job)))


def with_way_back(error: GridError, job: int, index: int = -1) -> GridError:
    """A dead broker's error says how to come back to the job; others are as they are."""
    return error.about(job, index) if isinstance(error, BrokerUnavailable) else error


def tell_reason(status: JobStatus, told: str, warn: Callable[[str], None]) -> str:
    """Says what a job waits for unless that was told; returns what was told last.

    A job that waits for our own inputs has nothing to say.
    """
    is_ours = not status.waiting and not status.ready
    if not status.reason or status.leased or is_ours or status.reason == told:
        return told
    name = format_job(status.job)
    warn(f"{name} waits: {status.reason}; see 'gristmill why {name}'")
    return status.reason


def tell_cap(status: JobStatus, told: dict[int, int], warn: Callable[[str], None]) -> None:
    """Says once each that half, four fifths or all of a job's cap is spent.

    ``told``: what was said last of each job, in percent.
    """
    percent = status.noticed_percent
    if percent <= told.get(status.job, 0):
        return
    told[status.job] = percent
    name, spent = format_job(status.job), format_credits(status.spent_ucredits)
    warn(
        f"{name} has spent {spent} of its cap of {format_credits(status.cap_ucredits)} credits"
        f" (notice at {percent} %); "
        + ("it stops here" if percent == 100 else f"see 'gristmill status {name}'")
    )


class Ordering:
    """Puts pieces into index order; memory is what came early."""

    def __init__(self) -> None:
        self.next = 0
        self._early: dict[int, Piece] = {}

    def add(self, piece: Piece) -> Iterator[Piece]:
        """The pieces that are next now."""
        if piece.first != self.next:
            self._early[piece.first] = piece
            return
        while True:
            self.next += len(piece.values)
            yield piece
            following = self._early.pop(self.next, None)
            if following is None:
                return
            piece = following

    def rest(self) -> Iterator[Piece]:
        """What never got its turn: results before it are gone."""
        for first in sorted(self._early):
            yield self._early.pop(first)


class Stream:
    """One map on its way: sends inputs, reads results. ``MapResults`` is its face.

    It must not know the generator that runs it: without a cycle, dropping the iterator ends the
    map at once.
    """

    def __init__(
        self,
        link: Link,
        message: Submit,
        function: bytes,
        parcels: Parcels,
        reader: ResultReader,
        *,
        warn: Callable[[str], None],
        window: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        on_count: Callable[[int, JobStatus | None], None] | None = None,
    ) -> None:
        self.feed = JobFeed(warn)
        self.sent_items = 0
        self.got_items = 0
        self._link = link
        self._message = message
        self._function = function
        self._parcels = parcels
        self._reader = reader
        self._window = window
        self._ordering = Ordering() if ordered else None
        self._return_exceptions = return_exceptions
        self._warn = warn
        self._on_count = on_count
        self._upload = 0
        self._sent_bytes = 0
        self._sent_parcels = 0
        self._held: deque[Packed] = deque()  # until they are in the store
        self._arrived: deque[tuple[Results, list[bytes]] | JobEnd] = deque()
        self._got_bytes = 0
        self._idle_s = 0.0
        self._is_closed = False
        self._is_over = False
        self._is_running = False

    def job(self) -> int:
        """Number of the job; submits it and its first inputs if nothing has yet.

        Raises:
            GridError: the submission was refused, or the broker does not answer.
        """
        self._submit()
        if not self._is_running:
            self._is_running = True
            self._top_up(_PARCELS_PER_TURN)
        if not self.feed.job:
            self.feed.accepted.get()
        if not self.feed.job:
            end = self.feed.queue.get()
            self.feed.queue.put(end)
            if isinstance(end, JobEnd) and end.error is not None:
                raise end.error
        return self.feed.job

    def close(self) -> None:
        """Read no more, and cancel what is left of the job."""
        if not self._is_over and self._upload:
            self._abandon(is_cancelled=True)
        self._is_over = True

    def _drop(self) -> None:
        """The iterator is gone: by a ``break``, or because Ctrl-C unwinds the loop around it.

        Which of the two cannot be seen from here, so the job is cancelled a moment later unless
        the client meets the KeyboardInterrupt first and calls ``leave``.
        """
        if not self._is_over and self._link.is_open:
            self._link.do(lambda: self._link.after(DROPPED_S, self.close))

    def leave(self) -> None:
        """Read no more; what was uploaded goes on, and a line says how to come back to it."""
        if self._is_over or not self._upload:
            return
        self._abandon(is_cancelled=False)
        if self.feed.job:
            name = format_job(self.feed.job)
            sent = self.sent_items - sum(packed.items for packed in self._held)
            rest = (
                ""
                if self._parcels.is_empty and not self._held
                else f" with the {sent} inputs sent so far"
            )
            self._warn(
                f"{name} goes on{rest}; come back with 'gristmill wait {name}' or "
                f'client.results("{name}")'
            )

    # ------------------------------------------------------------ inside

    def _submit(self) -> None:
        if not self._upload:
            self._upload = self._link.open_job(
                self._message, self._function, self.feed, may_continue=True
            )

    def _abandon(self, is_cancelled: bool) -> None:
        self._is_over = True
        if not self._link.is_open:
            return
        self._end_upload()
        if self.feed.job:
            for job in self.feed.legs.jobs:
                if is_cancelled and not self.feed.is_final:
                    self._link.request(Cancel(b"", 0, job, []), lambda answer, error: None)
                self._link.unwatch(job)

    def _end_upload(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._link.end_upload(self._upload)

    def run(self) -> Generator[list[Any], None, None]:
        """Lists of values, in order if that was asked."""
        if self._is_over:
            return
        try:
            self._submit()
            if not self._is_running:
                self._is_running = True
                self._top_up(1)
            while not (self._parcels.is_empty and self.got_items == self.sent_items):
                yield from self._turn()
            self._end_upload()
            self._wait_end()
            self._is_over = True
        except KeyboardInterrupt:
            self.leave()
            raise
        except GeneratorExit:
            self._drop()
            raise
        except BaseException:
            self.close()  # what is raised leaves nobody to read the rest
            raise

    def _turn(self) -> Generator[list[Any], None, None]:
        is_full = not self._top_up(_PARCELS_PER_TURN)
        entry = self._get(PATIENCE_S if is_full else 0.0)
        if entry is None:
            if not is_full:
                return
            self.feed.tell_reason()
            self._idle_s += PATIENCE_S
            if self._idle_s >= HELD_END_S:
                self._link.do(self.feed.let_end)
            return
        self._idle_s = 0.0
        if isinstance(entry, JobEnd):
            self._raise_end(entry)
            return
        yield from self._read(*entry)

    def _get(self, seconds: float) -> tuple[Results, list[bytes]] | JobEnd | None:
        arrived, queued = self._arrived, self.feed.queue
        while len(arrived) < FETCHES_AHEAD:
            try:
                entry = queued.get_nowait()
            except queue.Empty:
                break
            if not isinstance(entry, JobEnd):
                self._reader.expect(*entry)
            arrived.append(entry)
        if arrived:
            return arrived.popleft()
        try:
            return queued.get(timeout=seconds) if seconds else None
        except queue.Empty:
            return None

    def _top_up(self, parcels: int) -> bool:
        """Send up to this many parcels; False when the window is full or the source has ended."""
        try:
            return self._send(parcels)
        finally:
            self._link.wake()

    def _send(self, parcels: int) -> bool:
        for _ in range(parcels):
            packed = None
            if not self._parcels.is_empty:
                room = self._room()
                if room < self._least_room():
                    self._release(0)
                    return False
                self._release(0 if self._parcels.may_wait else PUTS_AHEAD)
                packed = self._parcels.take(room)
            if packed is None:
                self._release(0)
                self._end_upload()
                return False
            self._sent_parcels += 1
            self.sent_items += packed.items
            self._sent_bytes += len(packed.frame)
            self._held.append(packed)
            self._release(PUTS_AHEAD)
        return True

    def _release(self, held_max: int) -> None:
        """Send parcels, in order, whose inputs are in the store; wait for those beyond so many."""
        held = self._held
        size_bytes = sum(packed.put_bytes for packed in held)
        while held and (
            len(held) > held_max
            or size_bytes > PUT_BYTES_AHEAD
            or held[0].put is None
            or held[0].put.done()
        ):
            packed = held.popleft()
            size_bytes -= packed.put_bytes
            if packed.put is not None:
                packed.put.result()
            self._link.send_parcel(self._upload, packed.items, packed.codec, packed.frame)

    def _least_room(self) -> int:
        """Wait for room for a whole parcel: what fits into a gap would be small and dear."""
        if self._window is None and self.sent_items == self.got_items:
            return 1
        return max(1, min(self._parcels.next_items, self._most() // 4))

    def _room(self) -> int:
        """How many inputs may follow now."""
        if self._ordering is not None:
            return self._most() - (self.sent_items - self._ordering.next)
        return self._most() - (self.sent_items - self.got_items)

    def _most(self) -> int:
        """How many inputs may be on their way."""
        if self._window is not None:
            return self._window
        is_range = self._parcels.next_items > limits.PARCEL_ITEMS_MAX
        most = float(RANGE_IN_FLIGHT if is_range else VALUES_IN_FLIGHT)
        if self.sent_items:
            a_parcel = self.sent_items / self._sent_parcels
            most = min(most, max(PARCELS_IN_FLIGHT * a_parcel, 1))
            an_input = self._sent_bytes / self.sent_items
            most = min(most, max(INPUT_BYTES_IN_FLIGHT / max(an_input, 0.001), 1))
        if self.got_items:
            a_result = self._got_bytes / self.got_items
            most = min(most, max(RESULT_BYTES_IN_FLIGHT / max(a_result, 0.001), 1))
        return int(most)

    def _read(self, result: Results, frames: list[bytes]) -> Generator[list[Any], None, None]:
        size_bytes = sum(map(len, frames))
        self._link.taken(result, size_bytes)
        self._got_bytes += size_bytes
        base = self.feed.legs.base(result.job)
        for found in self._reader.read(result, frames):
            piece = found._replace(first=found.first + base) if base else found
            self.got_items += len(piece.values)
            if self._ordering is None:
                yield from self._hand_out(piece)
            else:
                for next_piece in self._ordering.add(piece):
                    yield from self._hand_out(next_piece)
        if self._on_count is not None:
            self._on_count(self.got_items, self.feed.status)

    def _hand_out(self, piece: Piece) -> Generator[list[Any], None, None]:
        if not piece.errors:
            yield piece.values
            return
        if self._return_exceptions:
            for offset, error in piece.errors.items():
                piece.values[offset] = error
            yield piece.values
            return
        first = min(piece.errors)
        yield piece.values[:first]
        raise piece.errors[first]

    def _raise_end(self, end: JobEnd) -> None:
        """The job ended, or its upload did, before every input came back."""
        if end.error is not None:
            self._is_over = True
            raise end.error
        status = end.status
        if status is None or self.got_items == self.sent_items:
            return
        self._is_over = True
        name = format_job(status.job)
        missing = self.sent_items - self.got_items
        raise JobFailed(
            "CANCELLED" if status.state == "cancelled" else "JOB_FAILED",
            f"{name} is {status.state}: {status.reason or 'no reason given'}; {missing} of "
            f"{self.sent_items} inputs have no result",
            f"see 'gristmill status {name}' and 'gristmill why {name}'",
        )

    def _wait_end(self) -> None:
        """Every value is here; the job's own end follows with its last commit."""
        deadline = time.monotonic() + _END_S
        while not self.feed.is_final:
            left = deadline - time.monotonic()
            if left <= 0 or not self._link.is_open:
                return
            entry = self._get(left)
            if isinstance(entry, JobEnd):
                if entry.error is not None and not isinstance(entry.error, BrokerUnavailable):
                    raise entry.error
                return


class MapResults(Iterator[Any]):
    """Values of a map, as they come; they can be read once.

    Closing it, or dropping it before its end, cancels what is left of the job; Ctrl-C does not.

    Attributes:
        job: number of the job; asking for it submits the job and its first inputs.
        status: the newest card that the broker sent, if any.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._batches = stream.run()
        self._values: Iterator[Any] = itertools.chain.from_iterable(self._batches)

    def __iter__(self) -> Iterator[Any]:
        # The chain itself, so that a for loop runs at the speed of a list.
        return self._values

    def __next__(self) -> Any:
        return next(self._values)

    def __repr__(self) -> str:
        stream = self._stream
        name = format_job(stream.feed.job) if stream.feed.job else "not submitted"
        return f"<gristmill map {name}: {stream.got_items} of {stream.sent_items} inputs came back>"

    @property
    def job(self) -> int:
        """Number of the job.

        Raises:
            GridError: the submission was refused, or the broker does not answer.
        """
        return self._stream.job()

    @property
    def status(self) -> JobStatus | None:
        """The newest card that the broker sent, if any."""
        return self._stream.feed.status

    def close(self) -> None:
        """Read no more, and cancel what is left of the job."""
        self._stream.close()
        self._batches.close()


def zipped(iterables: tuple[Iterable[Any], ...]) -> Iterable[Any]:
    """One iterable as it is, several as tuples, as the builtin ``map`` does."""
    return iterables[0] if len(iterables) == 1 else zip(*iterables, strict=False)


def tell(line: str) -> None:
    """One line for a person, on stderr."""
    print(f"gristmill: {line}", file=sys.stderr, flush=True)
