"""State of a job's subtasks as columns: one byte here and there, never an object per subtask.

Segments of ``SEGMENT_SUBTASKS`` hold ``state: u8`` and ``attempt: u8`` (attempts spent so far, or
the one that ended the subtask). What went wrong is rare, so ``retries: u8`` and ``losses: u8`` (how
many of each were spent) exist only in segments where something did: this is the exception table,
at most 4 bytes a subtask, and reading it is a slice. Slice assignment on a bytearray beats numpy at
every range size that was tried. A segment whose subtasks are all final leaves memory.
"""

from collections.abc import Iterator

from gristmill.wire.limits import SEGMENT_SUBTASKS

READY, LEASED, DONE, FAILED, CANCELLED = 1, 2, 3, 4, 5
NAMES = {READY: "ready", LEASED: "leased", DONE: "done", FAILED: "failed", CANCELLED: "cancelled"}
ATTEMPT_MAX = 255

_FILL = {state: bytes([state]) * SEGMENT_SUBTASKS for state in NAMES}


def _end_of_equal(column: bytearray, at: int, end: int) -> int:
    """Where the run of equal bytes that begins at ``at`` ends; compares in growing chunks."""
    value, position, step = column[at : at + 1], at + 1, 1
    while position < end:
        step = min(step, end - position)
        if column[position : position + step] == value * step:
            position, step = position + step, step * 2
        elif step == 1:
            break
        else:
            step = 1
    return position


def _equal_runs(column: bytearray, low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """(start, length, value) of each run of equal bytes in ``low .. high``."""
    while low < high:
        end = _end_of_equal(column, low, high)
        yield low, end - low, column[low]
        low = end


class Segment:
    """Up to ``SEGMENT_SUBTASKS`` subtasks; ``final`` counts those that ended."""

    __slots__ = ("attempt", "final", "losses", "retries", "state")

    def __init__(self) -> None:
        self.state = bytearray()
        self.attempt = bytearray()
        self.retries: bytearray | None = None
        self.losses: bytearray | None = None
        self.final = 0


class Columns:
    """All segments of a job; None where every subtask ended and the columns were freed."""

    __slots__ = ("segments", "size")

    def __init__(self) -> None:
        self.segments: list[Segment | None] = []
        self.size = 0

    def grow(self, count: int) -> None:
        """``count`` more subtasks, ready."""
        while count:
            offset = self.size % SEGMENT_SUBTASKS
            if not offset:
                self.segments.append(Segment())
            segment = self.segments[-1]
            assert segment is not None
            step = min(count, SEGMENT_SUBTASKS - offset)
            segment.state += _FILL[READY][:step]
            segment.attempt += bytes(step)
            for column in (segment.retries, segment.losses):
                if column is not None:
                    column += bytes(step)
            self.size += step
            count -= step

    def pieces(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """The range cut at segment boundaries: (segment number, low, high) of offsets in it."""
        while count:
            number, low = divmod(first, SEGMENT_SUBTASKS)
            step = min(count, SEGMENT_SUBTASKS - low)
            yield number, low, low + step
            first += step
            count -= step

    def is_all(self, first: int, count: int, state: int) -> bool:
        """Whether the whole range is in this state."""
        for number, low, high in self.pieces(first, count):
            segment = self.segments[number] if number < len(self.segments) else None
            if segment is None or segment.state[low:high] != _FILL[state][: high - low]:
                return False
        return True

    def part_of(self, first: int, count: int, state: int) -> list[tuple[int, int]]:
        """The runs of a range that are in this state: usually all of it."""
        if count <= 0:
            return []
        if self.is_all(first, count, state):
            return [(first, count)]
        found: list[tuple[int, int]] = []
        for number, low, high in self.pieces(first, count):
            segment = self.segments[number]
            if segment is not None:
                for start, length, value in _equal_runs(segment.state, low, high):
                    if value == state:
                        found.append((number * SEGMENT_SUBTASKS + start, length))
        return found

    def set_state(self, first: int, count: int, state: int) -> None:
        """Ready to leased, or leased to ready."""
        for number, low, high in self.pieces(first, count):
            segment = self.segments[number]
            assert segment is not None
            segment.state[low:high] = _FILL[state][: high - low]

    def spend(self, first: int, count: int, attempt: int) -> None:
        """The range spent this attempt and is to be tried again."""
        for number, low, high in self.pieces(first, count):
            segment = self.segments[number]
            assert segment is not None
            segment.state[low:high] = _FILL[READY][: high - low]
            segment.attempt[low:high] = bytes((attempt,)) * (high - low)

    def finish(self, first: int, count: int, state: int, attempt: int, is_closed: bool) -> None:
        """The range ended in this state; segments that are done with leave memory.

        ``is_closed``: no subtask will be added, so the last segment may go too.
        """
        for number, low, high in self.pieces(first, count):
            segment = self.segments[number]
            assert segment is not None
            segment.state[low:high] = _FILL[state][: high - low]
            segment.attempt[low:high] = bytes((attempt,)) * (high - low)
            segment.final += high - low
            self._free(number, is_closed)

    def _free(self, number: int, is_closed: bool) -> None:
        segment = self.segments[number]
        if segment is None or segment.final < len(segment.state):
            return
        if is_closed or len(segment.state) == SEGMENT_SUBTASKS:
            self.segments[number] = None

    def close(self) -> None:
        """No subtask will be added."""
        if self.segments:
            self._free(len(self.segments) - 1, True)

    def spent(self, first: int, count: int, is_loss: bool) -> Iterator[tuple[int, int, int]]:
        """(first, count, how many retries or losses were spent) in runs of equal figures."""
        for number, low, high in self.pieces(first, count):
            segment = self.segments[number]
            assert segment is not None
            base = number * SEGMENT_SUBTASKS
            column = segment.losses if is_loss else segment.retries
            if column is None:
                yield base + low, high - low, 0
                continue
            for start, count_equal, value in _equal_runs(column, low, high):
                yield base + start, count_equal, value

    def set_spent(self, first: int, count: int, is_loss: bool, value: int) -> None:
        """Notes retries or losses spent in the exception columns."""
        for number, low, high in self.pieces(first, count):
            segment = self.segments[number]
            assert segment is not None
            if is_loss:
                if segment.losses is None:
                    segment.losses = bytearray(len(segment.state))
                column = segment.losses
            else:
                if segment.retries is None:
                    segment.retries = bytearray(len(segment.state))
                column = segment.retries
            column[low:high] = bytes((min(value, 255),)) * (high - low)

    def count(self, state: int) -> int:
        """How many subtasks that are still in memory are in this state."""
        return sum(s.state.count(state) for s in self.segments if s is not None)

    def runs_of(self, state: int) -> list[tuple[int, int]]:
        """Every run of this state that is in memory (for checks and recovery)."""
        runs: list[tuple[int, int]] = []
        for number, segment in enumerate(self.segments):
            if segment is None:
                continue
            at, base = segment.state.find(state), number * SEGMENT_SUBTASKS
            while at >= 0:
                end = _end_of_equal(segment.state, at, len(segment.state))
                if runs and runs[-1][0] + runs[-1][1] == base + at:
                    runs[-1] = (runs[-1][0], runs[-1][1] + end - at)
                else:
                    runs.append((base + at, end - at))
                at = segment.state.find(state, end)
        return runs

    def attempts(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(first, count, attempts spent) of a range, in runs of equal figures."""
        for number, low, high in self.pieces(first, count):
            segment = self.segments[number]
            assert segment is not None
            for start, length, value in _equal_runs(segment.attempt, low, high):
                yield number * SEGMENT_SUBTASKS + start, length, value

    def next_in(self, index: int, word: str, end: int) -> int:
        """The next subtask from ``index`` on whose state has this name, or ``end``."""
        state = next((number for number, name in NAMES.items() if name == word), 0)
        for number, low, _ in self.pieces(index, max(0, end - index)):
            segment = self.segments[number]
            at = segment.state.find(state, low) if segment is not None else -1
            if at >= 0:
                return number * SEGMENT_SUBTASKS + at
        return end

    def at(self, index: int) -> tuple[int, int] | None:
        """(state, attempts spent) of one subtask; None when its segment was freed."""
        number, offset = divmod(index, SEGMENT_SUBTASKS)
        segment = self.segments[number] if number < len(self.segments) else None
        return None if segment is None else (segment.state[offset], segment.attempt[offset])
