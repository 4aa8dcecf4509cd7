"""Tier ``batch`` (and ``trusted``): subtasks one after another in this very process.

The fastest way there is, about half a microsecond a subtask around the call; what it gives up: a
tenant's subtasks see one another's globals, and a limit that is passed ends the jail.
"""

import _thread
import sys
import time
from collections.abc import Callable
from typing import Any

from gristmill.wire.limits import FRAME_BYTES_MAX, RESULT_FLUSH_MS, RESULT_VALUES_BYTES_MAX
from gristmill.wire.outcome import Outcome
from gristmill.worker.runners import protocol
from gristmill.worker.runners.failures import describe, note_of
from gristmill.worker.runners.outbox import Outbox, Range

ERROR = int(Outcome.ERROR)
FLUSH_NS = RESULT_FLUSH_MS * 1_000_000
#: how often somebody looks whether a long subtask holds back the results of those before it
LOOK_S = 2 * RESULT_FLUSH_MS / 1000


class Looper:
    """Runs subtasks in place and gathers their results for ``RESULT_FLUSH_MS``.

    A result is made of consecutive subtasks of one lease, of several parcels if they follow one
    another: each costs its signature, its row and its line on the bill, however many are in it.

    A subtask that runs for much longer does not hold back the results before it: a second thread
    looks every ``LOOK_S`` and sends them. It takes from the front of the lists of the range at
    hand, under ``_lock``, while the first thread appends to them without it. It does not when
    something was printed since the last result: only the end of the long one tells whose it is.
    The thread rests on ``_bell`` while nothing is gathered, and is not there for a lone subtask.
    """

    def __init__(self, setting: protocol.Setting, outbox: Outbox, page: protocol.Page) -> None:
        self._is_star = setting.is_star
        self._outbox = outbox
        self._page = page
        self._range = Range(0, 0, [], [], [])
        self._flush_at = 0
        self._value_bytes = FRAME_BYTES_MAX  # of one, as the last result had them
        self._written: tuple[int, int] | None = None  # when the last result left
        self._lock = _thread.allocate_lock()
        self._bell = _thread.allocate_lock()
        self._bell.acquire()
        self._has_thread = False
        self._is_resting = False
        self._begun = 0  #: ranges, ever

    def run_inputs(
        self,
        function: Callable[..., Any] | None,
        inputs: list[Any],
        feed: protocol.Feed,
        first: int,
    ) -> int:
        """Run consecutive inputs; how many ended before the agent stopped the lease."""
        assert function is not None
        ran, lease_id = 0, feed.lease_id
        call = _star(function) if self._is_star else function
        while ran < len(inputs):
            stops_seen = self._page.words[protocol.STOP]  # before the list: a change is noticed
            if self._page.is_stopped(lease_id):
                break
            part = inputs[ran:] if ran else inputs
            ran += self._run_some(call, part, lease_id, first + ran, stops_seen)
            if time.perf_counter_ns() > self._flush_at:
                self.flush()
        return ran

    def tidy(self) -> None:
        """Nothing to do: subtasks share one work folder."""

    def flush(self) -> None:
        """Send what was gathered."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        done = self._range
        if not done.walls_ns:
            return
        self._range = Range(done.lease_id, 0, [], [], [])
        flush_output()
        if self._outbox.outputs:
            done.written = self._written = self._page.written(self._outbox.outputs)
        sent_bytes = self._outbox.send_range(done)
        self._value_bytes = sent_bytes // len(done.walls_ns) + 1

    def _run_some(
        self,
        call: Callable[[Any], Any],
        inputs: list[Any],
        lease_id: int,
        first: int,
        stops_seen: int,
    ) -> int:
        """Until the flush time, a change of the stop list, or the end of the inputs.

        STARTED is written before STOP is read, as the agent writes STOP before it reads STARTED:
        whatever sets one of the two aside in between, never does it give back what runs here.

        Everything in this loop is paid once a subtask: look at bench/ before adding to it.
        """
        clock, words = time.perf_counter_ns, self._page.words
        stop_at, started_at = protocol.STOP, protocol.STARTED
        before = clock()
        done = self._gather(lease_id, first, len(inputs), before)
        values, walls, troubles = done.values, done.walls_ns, done.troubles
        add, add_wall, flush_at = values.append, walls.append, self._flush_at
        is_safe, index = self._outbox.is_safe, first
        for value in inputs:
            index += 1
            words[started_at] = index
            if words[stop_at] != stops_seen:
                index -= 1
                break
            try:
                add(call(value))
            except BaseException as error:  # SystemExit and the like are the subtask's own, too
                failure = describe(error, not is_safe)
                troubles.append((index - 1, ERROR, failure, note_of(error)))
            now = clock()
            add_wall(now - before)
            before = now
            if now > flush_at:
                break
        words[started_at] = 0
        return index - first

    def _gather(self, lease_id: int, first: int, count: int, now_ns: int) -> Range:
        """The range that these subtasks go into: the one at hand if they follow it and fit."""
        with self._lock:
            done = self._range
            size = len(done.walls_ns)
            follows = size and done.lease_id == lease_id and done.first + size == first
            if not follows or (size + count) * self._value_bytes > RESULT_VALUES_BYTES_MAX:
                self._flush()
                done = self._range = Range(lease_id, first, [], [], [])
                self._flush_at = now_ns + FLUSH_NS
                self._begun += 1
            if follows or count > 1:
                self._ring()
        return done

    # ------------------------------------------------------------ the second thread

    def _ring(self) -> None:
        if self._is_resting:
            self._is_resting = False
            self._bell.release()
        elif not self._has_thread:
            self._has_thread = True
            try:
                _thread.start_new_thread(self._look_on, ())
            except RuntimeError:  # the jail may have no further thread: results wait, as they did
                pass

    def _look_on(self) -> None:
        seen = 0
        while True:
            time.sleep(LOOK_S)
            with self._lock:
                if self._range.walls_ns:
                    if time.perf_counter_ns() > self._flush_at + FLUSH_NS:
                        try:
                            self._send_early()
                        except OSError:  # the agent closed the socket: nobody waits for us
                            return
                elif self._begun == seen:
                    self._is_resting = True
                seen = self._begun
            if self._is_resting:
                self._bell.acquire()

    def _send_early(self) -> None:
        """Send what a subtask that still runs would hold back."""
        done, outputs = self._range, self._outbox.outputs
        flush_output()
        if outputs and self._page.written(outputs) != (self._written or (0, 0)):
            return
        count = len(done.walls_ns)
        troubles = [trouble for trouble in done.troubles if trouble[0] < done.first + count]
        kept = count - len(troubles)
        walls, values = done.walls_ns[:count], done.values[:kept]
        early = Range(done.lease_id, done.first, walls, values, troubles, written=self._written)
        done.first += count
        del done.walls_ns[:count], done.values[:kept], done.troubles[: len(troubles)]
        self._outbox.send_range(early)


def _star(function: Callable[..., Any]) -> Callable[[Any], Any]:
    def call(arguments: Any) -> Any:
        return function(*arguments)

    return call


def flush_output() -> None:
    """Hand prints over before the result that they belong to."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            continue  # closed or replaced by the user's code: theirs to lose
