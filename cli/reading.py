"""Results of a job with their indices, as the broker has them and as they come."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gristmill.client.command import CommandOutput
from gristmill.client.errors import GridError
from gristmill.client.map import JobEnd, JobFeed
from gristmill.wire.client import JobStatus, Results
from gristmill.wire.failure import LogEntry, unpack_logs
from gristmill.wire.ids import JobId, format_job

if TYPE_CHECKING:
    from gristmill.client import Client


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """How one subtask ended: its value, or the error that stands for it."""

    index: int
    value: Any
    error: BaseException | None


def results_of(client: "Client", status: JobStatus) -> Iterator[Ended]:
    """Final subtasks in the order in which they were committed, those to come included.

    Raises:
        GridError: the results are gone, or the broker is.
    """
    convert = None
    if status.kind == "command":

        def convert(value: Any) -> CommandOutput:
            return CommandOutput(value, client._fetch_blob)

    reader = client._reader(convert)
    for result, frames in _raw(client, status.job):
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


def logs_of(client: "Client", job: JobId) -> Iterator[tuple[int, int, LogEntry]]:
    """(first index, attempt, entry) of what subtasks wrote, as their results come."""
    for result, frames in _raw(client, job):
        for entry in unpack_logs(frames[3]):
            yield result.head.first + entry.offset, result.attempt, entry


def _raw(client: "Client", job: JobId) -> Iterator[tuple[Results, list[bytes]]]:
    link = client._link
    feed = JobFeed(lambda _: None)
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
