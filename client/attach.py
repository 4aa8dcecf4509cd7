"""``results``: read any job of the tenant, also one of another process or of yesterday."""

import queue
from collections.abc import Callable, Generator
from typing import Any

from gristmill.client.decode import Piece, ResultReader
from gristmill.client.errors import JobFailed
from gristmill.client.link import Link
from gristmill.client.map import PATIENCE_S, JobEnd, JobFeed, Ordering
from gristmill.wire.ids import format_job


def attach(
    link: Link,
    job: int,
    reader: ResultReader,
    *,
    after: int,
    ordered: bool,
    return_exceptions: bool,
    warn: Callable[[str], None],
) -> Generator[Any, None, None]:
    """Values of a job, those to come included, until it has ended.

    Memory with ``ordered`` is what came before its turn.

    Raises:
        GridError: the job is unknown or its results are gone; ``JobFailed`` when it ended as a
            whole before any of its subtasks could.
    """
    feed = JobFeed(warn)
    feed.job = job
    ordering = Ordering() if ordered and not after else None
    got = 0
    link.watch(job, after, feed)
    try:
        while True:
            try:
                entry = feed.queue.get(timeout=PATIENCE_S)
            except queue.Empty:
                feed.tell_reason()
                continue
            if isinstance(entry, JobEnd):
                if entry.error is not None:
                    raise entry.error
                break
            result, frames = entry
            link.taken(result, sum(map(len, frames)))
            link.wake()
            for piece in reader.read(result, frames):
                got += len(piece.values)
                for next_piece in ordering.add(piece) if ordering else (piece,):
                    yield from _values(next_piece, return_exceptions)
        for piece in ordering.rest() if ordering else ():
            yield from _values(piece, return_exceptions)
        if not got and entry.status is not None and entry.status.state != "done":
            name = format_job(job)
            raise JobFailed(
                "CANCELLED" if entry.status.state == "cancelled" else "JOB_FAILED",
                f"{name} is {entry.status.state}: {entry.status.reason or 'no reason given'}",
                f"see 'gristmill status {name}'",
            )
    except KeyboardInterrupt:
        name = format_job(job)
        warn(
            f"{name} goes on; come back with 'gristmill wait {name}' or client.results(\"{name}\")"
        )
        raise
    finally:
        if link.is_open:
            link.unwatch(job)


def _values(piece: Piece, return_exceptions: bool) -> Generator[Any, None, None]:
    if not piece.errors:
        yield from piece.values
        return
    for offset, value in enumerate(piece.values):
        error = piece.errors.get(offset)
        if error is None:
            yield value
        elif return_exceptions:
            yield error
        else:
            raise error
