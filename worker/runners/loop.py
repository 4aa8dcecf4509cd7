"""Tier ``batch`` (and ``trusted``): subtasks one after another in this very process.

The fastest way there is, about 0.1 us a subtask around the call; what it gives up: a
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
PART_NS = 2_000_000
#: how often somebody looks whether a long subtask holds back the results of those before it
LOOK_S = 2 * RESULT_FLUSH_MS / 1000


class Looper:
    """Runs subtasks in place and gathers their results for ``RESULT_FLUSH_MS``.

    A result is made of consecutive subtasks of one lease, of several parcels if they follow one
    another: each costs its signature, its row and its line on the bill, however many are in it.

    Subtasks run in parts (see protocol.py), which grow until one takes about ``PART_NS``: what is
    looked at between two parts is not paid for each subtask.

    A part that takes longer than was thought does not hold back the results before it: a second
    thread looks every ``LOOK_S``, ends it, and sends what a subtask that still runs holds back. It
    takes from the front of the range at hand and from the part's stamps, under ``_lock``, while
    the first thread goes on without it. It does not when something was printed since the last
    result: only the end of the long one tells whose it is. The thread rests on ``_bell`` while
    nothing is gathered, and is not there for a lone subtask.
    """

    def __init__(self, setting: protocol.Setting, outbox: Outbox, page: protocol.Page) -> None:
        self._is_star = setting.is_star
        self._outbox = outbox
        self._page = page
        self._range = Range(0, 0, [], [], [])
        self._flush_at = 0
        self._value_bytes = FRAME_BYTES_MAX  # of one, as the last result had them
        self._written: tuple[int, int] | None = None  # when the last result left
        self._part_max = 1
        self._part = 0  #: subtasks of the part that runs; 0 between parts
        self._taken = 0  #: of its subtasks, by the second thread
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
        ran, count, lease_id = 0, len(inputs), feed.lease_id
        call = _star(function) if self._is_star else function
        while ran < count:
            size = min(count - ran, self._part_max)
            part = inputs if size == count else inputs[ran : ran + size]
            done = self._begin(lease_id, first + ran, size, ran > 0, count > 1)
            # The part is told, and its permits are given, before the list is read; the agent
            # writes the list before it clears permits and looks: whatever sets one of the two
            # aside in between, never does it give back what runs here.
            if self._page.is_stopped(lease_id):
                self._end(done, 0)
                break
            self._run(call, part, first + ran, done)
            ended = self._page.ended(size)
            ran += ended
            if self._end(done, ended) > self._flush_at:
                self.flush()
        return ran

    def tidy(self) -> None:
        """Nothing to do: subtasks share one work folder."""

    def flush(self) -> None:
        """Send what was gathered."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        done, count = self._range, self._range.count
        if not count:
            return
        self._range = Range(done.lease_id, 0, [], [], [])
        flush_output()
        if self._outbox.outputs:
            done.written = self._written = self._page.written(self._outbox.outputs)
        self._value_bytes = self._outbox.send_range(done) // count + 1

    def _run(self, call: Callable[[Any], Any], inputs: list[Any], first: int, done: Range) -> None:
        """A part, until its end or until its permits are cleared.

        Everything in this loop is paid once a subtask: look at bench/ before adding to it.
        """
        clock, stamps, permits = time.perf_counter_ns, self._page.stamps, self._page.permits
        add, is_safe = done.values.append, self._outbox.is_safe
        stamps[0] = clock()
        for value, number in zip(inputs, permits, strict=False):
            if not number:
                break
            try:
                add(call(value))
            except BaseException as error:  # SystemExit and the like are the subtask's own, too
                failure = describe(error, not is_safe)
                done.troubles.append((first + number - 1, ERROR, failure, note_of(error)))
            stamps[number] = clock()

    def _begin(
        self, lease_id: int, first: int, count: int, is_inside: bool, is_many: bool
    ) -> Range:
        """Begin a part; the range that it goes into: the one at hand if it follows and fits.

        ``is_inside``: some of the same inputs ran already; ``is_many``: they are more than one.
        """
        with self._lock:
            done = self._range
            size = done.count
            follows = size and done.lease_id == lease_id and done.first + size == first
            is_over = (size + count) * self._value_bytes > RESULT_VALUES_BYTES_MAX
            if not follows or (is_over and not is_inside):
                self._flush()
                done = self._range = Range(lease_id, first, [], [], [])
                self._flush_at = time.perf_counter_ns() + FLUSH_NS
                self._begun += 1
            self._page.begin_part(first, count)
            self._part, self._taken = count, 0
            if follows or is_many:
                self._ring()
        return done

    def _end(self, done: Range, ended: int) -> int:
        """End the part of which so many subtasks ended; when that was."""
        with self._lock:
            part, self._part = self._part, 0
            if ended > self._taken:
                done.parts.append(self._page.readings(self._taken, ended))
            self._page.end_part()
        began, now = self._page.stamps[0], self._page.stamps[ended]
        if now - began < PART_NS and ended == part:
            self._part_max = min(4 * self._part_max, protocol.PART_MAX)
        elif now - began > 4 * PART_NS:
            self._part_max = max(1, ended * PART_NS // (now - began))
        return now

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
                if self._part or self._range.count:
                    late_ns = time.perf_counter_ns() - self._flush_at
                    if late_ns > 0:
                        self._page.clear_permits()  # a part gives way to a flush
                    if late_ns > FLUSH_NS:
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
        ended = self._page.ended(self._part)
        parts = list(done.parts)
        if ended > self._taken:
            parts.append(self._page.readings(self._taken, ended))
        if not parts:
            return
        flush_output()
        if outputs and self._page.written(outputs) != (self._written or (0, 0)):
            return
        early = Range(done.lease_id, done.first, [], [], [], written=self._written, parts=parts)
        count = early.count
        early.troubles = [trouble for trouble in done.troubles if trouble[0] < done.first + count]
        kept = count - len(early.troubles)
        early.values = done.values[:kept]
        done.first += count
        del done.values[:kept], done.troubles[: len(early.troubles)]
        done.parts, self._taken = [], ended
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
