"""Arithmetic on runs: lists of ``(start, length)`` of subtask indices.

Leases, returns and cancellations are all runs; nothing in the core ever lists single indices.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from gristmill.wire.worker import Run

_ENDLESS = 1 << 62


def total(runs: Iterable[Run]) -> int:
    """How many indices the runs hold."""
    return sum(length for _, length in runs)


def normalise(runs: Iterable[Run], size: int) -> list[Run]:
    """The same indices as sorted, merged runs, clipped to ``0 .. size``."""
    merged: list[Run] = []
    for start, length in sorted(runs):
        end = min(start + length, size)
        start = max(start, 0)
        if end <= start:
            continue
        if merged and merged[-1][0] + merged[-1][1] >= start:
            before = merged[-1][0]
            merged[-1] = (before, max(merged[-1][0] + merged[-1][1], end) - before)
        else:
            merged.append((start, end - start))
    return merged


def find(runs: list[Run], first: int, count: int) -> int:
    """Position of the one run that holds the whole range, or -1."""
    for position, (start, length) in enumerate(runs):
        if start <= first and first + count <= start + length:
            return position
    return -1


def cut(runs: list[Run], position: int, first: int, count: int) -> None:
    """Takes a range out of the run at this position, in place; the order of runs is kept."""
    start, length = runs[position]
    rest = [
        run
        for run in ((start, first - start), (first + count, start + length - first - count))
        if run[1]
    ]
    runs[position : position + 1] = rest


def _near(others: list[Run], start: int, end: int) -> Iterator[Run]:
    """Those of ``others`` (normalised) that may touch ``start .. end``: found, not searched for."""
    position = max(0, bisect_right(others, (start, _ENDLESS)) - 1)
    while position < len(others) and others[position][0] < end:
        yield others[position]
        position += 1


def intersect(runs: Iterable[Run], others: list[Run]) -> list[Run]:
    """What ``runs`` have in common with ``others`` (normalised), in the order of ``runs``."""
    common: list[Run] = []
    for start, length in runs:
        end = start + length
        for other, other_length in _near(others, start, end):
            low, high = max(start, other), min(end, other + other_length)
            if low < high:
                common.append((low, high - low))
    return common


def subtract(runs: Iterable[Run], others: list[Run]) -> list[Run]:
    """What ``runs`` hold and ``others`` (normalised) do not, in the order of ``runs``."""
    left: list[Run] = []
    for start, length in runs:
        at, end = start, start + length
        for other, other_length in _near(others, start, end):
            if other + other_length <= at:
                continue
            if other > at:
                left.append((at, other - at))
            at = min(end, other + other_length)
        if at < end:
            left.append((at, end - at))
    return left
