"""Runs: sorted lists of (start, length), as leases have them."""

from gristmill.wire.worker import Run


def count_of(runs: list[Run]) -> int:
    """How many subtasks.

    >>> count_of([(0, 3), (9, 1)])
    4
    """
    return sum(length for _, length in runs)


def has(runs: list[Run], index: int) -> bool:
    """Whether the index is in one of them."""
    return any(start <= index < start + length for start, length in runs)


def take(runs: list[Run], first: int, count: int) -> list[Run] | None:
    """The runs without ``first .. first + count``; None when not all of that is in one run.

    >>> take([(0, 10)], 2, 3)
    [(0, 2), (5, 5)]
    """
    if count < 1:
        return None
    left: list[Run] = []
    is_found = False
    for start, length in runs:
        end = start + length
        if start <= first and first + count <= end:
            is_found = True
            if first > start:
                left.append((start, first - start))
            if first + count < end:
                left.append((first + count, end - first - count))
        else:
            left.append((start, length))
    return left if is_found else None


def split_after(runs: list[Run], index: int) -> tuple[list[Run], list[Run]]:
    """(up to and with ``index``, what comes after it in the lease's order).

    >>> split_after([(4, 3), (0, 2)], 5)
    ([(4, 2)], [(6, 1), (0, 2)])
    """
    for at, (start, length) in enumerate(runs):
        end = start + length
        if start <= index < end:
            before = [*runs[:at], (start, index + 1 - start)]
            after = [(index + 1, end - index - 1)] if index + 1 < end else []
            return before, [*after, *runs[at + 1 :]]
    return runs, []
