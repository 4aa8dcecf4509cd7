"""Results of a job with their indices, as the broker has them and as they come."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from gristmill.client.decode import ResultReader
from gristmill.client.errors import GridError
from gristmill.client.link import Link
from gristmill.client.map import JobEnd, JobFeed
from gristmill.wire.client import LogRow, Results
from gristmill.wire.failure import unpack_logs
from gristmill.wire.ids import JobId, format_job


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """How one subtask ended: its value, or the error that stands for it."""

    index: int
    value: Any
    error: BaseException | None


def ended(link: Link, job: JobId, reader: ResultReader) -> Iterator[Ended]:
    """Final subtasks in the order in which they were committed, those to come included.

    Raises:
        GridError: the results are gone, or the broker is.
    """
    for result, frames in _raw(link, job):
        for piece in reader.read(result, frames):
            for offset, value in enumerate(piece.values):
                yield Ended(piece.first + offset, value, piece.errors.get(offset))


def in_order(results: Iterator[Ended]) -> Iterator[Ended]:
    """By index; memory is what came before its turn. What never comes holds nothing back."""
    early: dict[int, Ended] = {}
    following = 0
    for result in results:
        early[result.index] = result
        while (ready := early.pop(following, None)) is not None:
            following += 1
            yield ready
    for index in sorted(early):
        yield early[index]


def logs_of(link: Link, job: JobId) -> Iterator[LogRow]:
    """What subtasks wrote, as their results come; long output as its digest in the store."""
    for result, frames in _raw(link, job):
        for entry in unpack_logs(frames[3]):
            yield LogRow(
                result.head.first + entry.offset,
                entry.count,
                result.attempt,
                entry.stdout,
                entry.stderr,
                entry.stdout_digest,
                entry.stderr_digest,
                entry.is_cut,
                "ended",
                entry.stdout_bytes,
                entry.stderr_bytes,
            )


def _raw(link: Link, job: JobId) -> Iterator[tuple[Results, list[bytes]]]:
    feed = JobFeed(lambda _: None)
    feed.job = job
    link.watch(job, 0, feed)
    try:
        while True:
            entry = feed.queue.get()
            if isinstance(entry, JobEnd):
                if entry.error is not None:
                    raise _named(entry.error, job)
                return
            result, frames = entry
            yield result, frames
            link.taken(result, sum(map(len, frames)))
    finally:
        if link.is_open:
            link.unwatch(job)


def _named(error: GridError, job: JobId) -> GridError:
    name = format_job(job)
    if name not in error.message:
        error.message = f"{name}: {error.message}"
    return error
