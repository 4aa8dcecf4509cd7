"""Which subtask indices of one job and attempt are already billed: disjoint runs, kept merged.

Ranges of a job arrive nearly in order, so the runs melt into a few: memory and the price of a check
follow the gaps (what is in flight), not the subtasks.
"""

import bisect


class Coverage:
    """A set of indices as half-open runs; ``starts[i] < ends[i] < starts[i + 1]``."""

    __slots__ = ("ends", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []

    def overlap(self, first: int, end: int) -> tuple[int, int] | None:
        """The part of ``[first, end)`` in the lowest run that it meets, or None."""
        at = bisect.bisect_right(self.ends, first)
        if at < len(self.starts) and self.starts[at] < end:
            return max(first, self.starts[at]), min(end, self.ends[at])
        return None

    def take(self, first: int, end: int) -> tuple[int, int] | None:
        """Add ``[first, end)`` if nothing of it is here yet, else give the overlap."""
        ends = self.ends
        if ends and ends[-1] == first < end:  # the usual case: right behind the last run
            ends[-1] = end
            return None
        overlap = self.overlap(first, end)
        if overlap is None:
            self.add(first, end)
        return overlap

    def add(self, first: int, end: int) -> None:
        """Add ``[first, end)``, which must overlap nothing here (see ``overlap``)."""
        assert first < end and self.overlap(first, end) is None
        at = bisect.bisect_left(self.starts, first)
        joins_left = at > 0 and self.ends[at - 1] == first
        joins_right = at < len(self.starts) and self.starts[at] == end
        if joins_left and joins_right:
            self.ends[at - 1] = self.ends.pop(at)
            self.starts.pop(at)
        elif joins_left:
            self.ends[at - 1] = end
        elif joins_right:
            self.starts[at] = first
        else:
            self.starts.insert(at, first)
            self.ends.insert(at, end)
