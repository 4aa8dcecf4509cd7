"""How people write many numbers: arrays of inputs (``1-100%10``) and subtasks (``j17/3-9,12``)."""

from typing import NamedTuple

from gristmill.wire import limits
from gristmill.wire.ids import JobId, format_job, parse_job

Run = tuple[int, int]  #: (start, length)


class Array(NamedTuple):
    """An array as Slurm writes it: ``spans`` of (first, last, step), ``at_once`` 0 for no limit."""

    spans: list[tuple[int, int, int]]
    at_once: int

    @property
    def total(self) -> int:
        """How many numbers."""
        return sum(len(span) for span in self.ranges())

    def ranges(self) -> list[range]:
        """The numbers, in the order in which they were written."""
        return [range(first, last + 1, step) for first, last, step in self.spans]


def parse_array(text: str) -> Array:
    """``1-100``, ``0-100:25``, ``1,5,9-12``, each with ``%10``: ten at a time.

    Raises:
        ValueError: not an array, or one that is too large; the message shows how it is written.

    >>> parse_array("1-100:2%10")
    Array(spans=[(1, 100, 2)], at_once=10)
    """
    body, percent, at_once = text.strip().partition("%")
    if percent and (not _is_number(at_once) or int(at_once) < 1):
        raise ValueError(f"{text!r}: after % stands how many at a time, such as 1-100%10")
    spans = []
    for part in body.split(","):
        bounds, colon, step = part.strip().partition(":")
        first, dash, last = bounds.partition("-")
        if (
            not _is_number(first)
            or (dash and not _is_number(last))
            or (colon and (not dash or not _is_number(step) or int(step) < 1))
        ):
            raise ValueError(f"{part!r} in {text!r} is not a number or a range; write 1-100, 1-9:2")
        if dash and int(last) < int(first):
            raise ValueError(f"{part!r} in {text!r} ends before it begins")
        spans.append((int(first), int(last if dash else first), int(step) if colon else 1))
    array = Array(spans, int(at_once) if percent else 0)
    if array.total > limits.SUBTASKS_MAX:
        raise ValueError(f"{text!r} has {array.total:,} numbers, at most {limits.SUBTASKS_MAX:,}")
    return array


def parse_runs(text: str) -> tuple[JobId, list[Run]]:
    """(job, runs) of ``j17/3``, ``j17/3-9,12``; no runs when the text names the whole job.

    Raises:
        ValueError: not a job or not numbers.

    >>> parse_runs("j17/3-9,12")
    (17, [(3, 7), (12, 1)])
    """
    job, slash, indices = text.strip().partition("/")
    if not slash:
        return parse_job(job), []
    runs = []
    for part in indices.split(","):
        first, dash, last = part.strip().partition("-")
        if not _is_number(first) or (dash and (not _is_number(last) or int(last) < int(first))):
            raise ValueError(f"{text!r} names no subtasks; they are written j17/3 or j17/3-9,12")
        runs.append((int(first), int(last) - int(first) + 1 if dash else 1))
    return parse_job(job), runs


def format_runs(job: JobId, runs: list[Run]) -> str:
    """As it is written: ``j17/3-9,12``.

    >>> format_runs(17, [(3, 7), (12, 1)])
    'j17/3-9,12'
    """
    parts = [str(start) if n == 1 else f"{start}-{start + n - 1}" for start, n in runs]
    return format_job(job) + ("/" + ",".join(parts) if parts else "")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12
