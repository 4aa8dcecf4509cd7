"""Frames that leases need, parcels and functions: a bounded memory over the journal.

A frame that is not on disk yet is never dropped; everything else leaves memory oldest first and is
read back when a lease needs it. A job's function is its frame at ``FUNCTION``.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable

import apsw

from gristmill.broker import records
from gristmill.broker.metrics import Metrics
from gristmill.broker.reader import Reader

log = logging.getLogger("gristmill.broker.parcels")

FUNCTION = -1  #: stands in for ``first``: the function's bytes

Key = tuple[int, int]  #: (job, first)


class FrameCache:
    """See the module's text.

    Args:
        bytes_max: frames kept in memory, apart from those that are not on disk yet.
        reader: reads frames back.
        committed: number of the journal group that is on disk.
    """

    def __init__(
        self, bytes_max: int, reader: Reader, committed: Callable[[], int], metrics: Metrics
    ) -> None:
        self._bytes_max = bytes_max
        self._reader = reader
        self._committed = committed
        self._metrics = metrics
        self._frames: dict[int, dict[int, bytes]] = {}
        self._order: deque[tuple[int, int, int, int]] = deque()  # group, job, first, size
        self.size_bytes = 0
        self._count = 0

    def put(self, job: int, first: int, frame: bytes, group: int) -> None:
        """Keeps a frame that belongs to this journal group (0: read back from disk)."""
        frames = self._frames.setdefault(job, {})
        if first in frames:
            return
        frames[first] = frame
        self._order.append((group, job, first, len(frame)))
        self.size_bytes += len(frame)
        self._count += 1
        if self.size_bytes > self._bytes_max:
            self._shrink()
        if len(self._order) > 2 * self._count + 10_000:  # entries of jobs that are over
            self._order = deque(
                entry for entry in self._order if self.get(entry[1], entry[2]) is not None
            )

    def get(self, job: int, first: int) -> bytes | None:
        """A frame that is in memory."""
        frames = self._frames.get(job)
        return None if frames is None else frames.get(first)

    def load(self, keys: Iterable[Key], then: Callable[[dict[Key, bytes]], None]) -> None:
        """Reads frames back; ``then`` gets those that are whole, and the rest is missing."""
        wanted = list(keys)

        def arrived(found: dict[Key, bytes]) -> None:
            self._metrics.parcels_read_back += len(found)
            for (job, first), frame in found.items():
                self.put(job, first, frame, 0)
            then(found)

        self._reader.ask(
            lambda connection: read_frames(connection, wanted), arrived, lambda _: then({})
        )

    def drop_before(self, job: int, upto: int) -> None:
        """The job's parcels before ``upto`` are not needed again: their frames leave memory."""
        frames = self._frames.get(job, {})
        for first in [first for first in frames if 0 <= first < upto]:
            self.size_bytes -= len(frames.pop(first))
            self._count -= 1

    def drop_job(self, job: int) -> None:
        """The job is over: its frames leave memory."""
        for frame in self._frames.pop(job, {}).values():
            self.size_bytes -= len(frame)
            self._count -= 1

    def _shrink(self) -> None:
        committed = self._committed()
        while self.size_bytes > self._bytes_max and self._order:
            group, job, first, size = self._order[0]
            if group > committed:
                return
            self._order.popleft()
            frames = self._frames.get(job)
            if frames is not None and first in frames:
                del frames[first]
                self.size_bytes -= size
                self._count -= 1


def read_frames(connection: apsw.Connection, keys: list[Key]) -> dict[Key, bytes]:
    """The frames of these keys that are in the journal and whole."""
    found: dict[Key, bytes] = {}
    for job, first in keys:
        try:
            if first == FUNCTION:
                row = connection.execute(
                    f"SELECT {records.JOB_COLUMNS} FROM jobs WHERE job = ?", (job,)
                ).fetchone()
                if row is not None:
                    found[job, first] = records.read_job(row).function
            else:
                row = connection.execute(
                    f"SELECT {records.PARCEL_COLUMNS} FROM parcels WHERE job = ? AND first = ?",
                    (job, first),
                ).fetchone()
                if row is not None:
                    found[job, first] = records.read_parcel(row)
        except records.DamagedError as error:
            log.error("journal damaged row=%s: its subtasks cannot run", error)
    return found
