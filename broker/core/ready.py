"""What of a job can be handed out: a queue of runs in index order, rescued and retried ones first.

A run is ``(start, length, attempt, items_max)``: ``attempt`` is the number that its next lease
carries (so a lease takes runs of one attempt number), ``items_max`` bounds a lease of it (0: no
bound). Runs rescued from a lost worker are bounded more tightly each time: when one subtask among
many kills its worker, a few losses single it out, and the innocent ones around it get through.
"""

from collections import deque

from gristmill.broker.core.parcels import Parcels
from gristmill.broker.core.runs import subtract
from gristmill.wire.limits import LEASE_PARCEL_BYTES_MAX, LEASE_RUNS_MAX
from gristmill.wire.worker import Run

ReadyRun = tuple[int, int, int, int]


class Ready:
    """The queue of one job; ``count`` is the number of subtasks in it."""

    __slots__ = ("count", "runs")

    def __init__(self) -> None:
        self.runs: deque[ReadyRun] = deque()
        self.count = 0

    def add_last(self, start: int, length: int, attempt: int) -> None:
        """New subtasks, behind all others."""
        self.count += length
        if self.runs:
            last, size, number, bound = self.runs[-1]
            if last + size == start and number == attempt and not bound:
                self.runs[-1] = (last, size + length, attempt, 0)
                return
        self.runs.append((start, length, attempt, 0))

    def add_first(self, runs: list[Run], attempt: int, items_max: int = 0) -> None:
        """Subtasks that come back, before all others, in the order of ``runs``."""
        for start, length in reversed(runs):
            self.count += length
            if self.runs:
                first, size, number, bound = self.runs[0]
                if start + length == first and number == attempt and bound == items_max:
                    self.runs[0] = (start, length + size, attempt, bound)
                    continue
            self.runs.appendleft((start, length, attempt, items_max))

    def take(self, items_max: int, parcels: Parcels) -> tuple[int, list[Run]]:
        """At most ``items_max`` subtasks of one attempt number, from the front, as few runs.

        Bounded also by ``LEASE_RUNS_MAX`` and ``LEASE_PARCEL_BYTES_MAX`` (one parcel always fits).
        Returns (attempt number, runs).
        """
        attempt, left = self.runs[0][2], items_max
        taken: list[Run] = []
        bytes_left, seen, items = LEASE_PARCEL_BYTES_MAX, -1, 0
        while self.runs and left > 0 and len(taken) < LEASE_RUNS_MAX:
            start, length, number, bound = self.runs[0]
            if number != attempt:
                break
            if bound:
                left = min(left, bound - items)
                if left <= 0:
                    break
            count, used, seen = parcels.fit(start, min(length, left), bytes_left, seen)
            if not count and not taken:  # a single parcel above the cap still has to go
                count = 1
            if not count:
                break
            bytes_left, left, items = bytes_left - used, left - count, items + count
            if count == length:
                self.runs.popleft()
            else:
                self.runs[0] = (start + count, length - count, number, bound)
            if taken and taken[-1][0] + taken[-1][1] == start:
                taken[-1] = (taken[-1][0], taken[-1][1] + count)
            else:
                taken.append((start, count))
        self.count -= items
        return attempt, taken

    def remove(self, gone: list[Run]) -> None:
        """Takes these runs (normalised) out, wherever they are."""
        kept: deque[ReadyRun] = deque()
        self.count = 0
        for start, length, attempt, bound in self.runs:
            for low, size in subtract([(start, length)], gone):
                kept.append((low, size, attempt, bound))
                self.count += size
        self.runs = kept

    def clear(self) -> list[ReadyRun]:
        """Everything, taken out."""
        runs, self.runs, self.count = list(self.runs), deque(), 0
        return runs
