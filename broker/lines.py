"""What running attempts write, kept until their result has it all; kept for good of a lost one.

Workers send it as it is written (``Lines``, RFC 0001 section 4.16), nobody waits for it and nothing
depends on it: what does not fit, or comes while the disk is behind, is dropped and marked. An
attempt is (lease, index): a lease that is not the sender's, or has no such subtask open, gets
nothing. Of each stream the first and the last bytes stay, decided by offsets alone, so that a
restart need not know what was there.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import apsw

from gristmill.broker import records, schema
from gristmill.broker.core.effects import KeepResult
from gristmill.broker.core.runs import find
from gristmill.broker.core.state import State
from gristmill.broker.journal import Journal
from gristmill.broker.metrics import Metrics
from gristmill.wire import limits
from gristmill.wire.errors import RemoteError
from gristmill.wire.failure import LogEntry, unpack_logs
from gristmill.wire.worker import Lines, Piece

_ATTEMPT_BYTES = 512  #: what an attempt counts at least against the limit of its job
_ROW_BYTES = 128


@dataclasses.dataclass(slots=True)
class Kept:
    """What there is of one attempt: bytes on disk or soon, and how far each stream went."""

    size_bytes: int
    ends: list[int]


class KeptLines(NamedTuple):
    """What the journal has of one stream of one attempt."""

    job: int
    subtask: int
    lease_id: int
    stream: int
    upto: int
    size_bytes: int


def find_kept(connection: apsw.Connection) -> list[KeptLines]:
    """Lines of unfinished jobs from an earlier incarnation, for the reader's thread."""
    return [
        KeptLines(*row)
        for row in connection.execute(
            "SELECT job, idx, lease_id, stream, max(upto), sum(length(body))"
            " FROM open_jobs CROSS JOIN lines USING(job) GROUP BY job, idx, lease_id, stream"
        )
    ]


class LineKeeper:
    """See the module's text. Past ``backlog_bytes_max`` in the journal's backlog, lines go.

    ``jobs``: what there is of each attempt, by job and (lease, index).
    """

    def __init__(
        self, state: State, journal: Journal, metrics: Metrics, backlog_bytes_max: int
    ) -> None:
        self._state = state
        self._journal = journal
        self._metrics = metrics
        self._backlog_bytes_max = backlog_bytes_max
        self.jobs: dict[int, dict[tuple[int, int], Kept]] = {}
        self._sizes: dict[int, int] = {}

    def take(self, worker: int, message: Lines, bodies: list[bytes]) -> None:
        """A worker tells what its subtasks write.

        Raises:
            RemoteError: ``MALFORMED``.
        """
        pieces = message.pieces
        if len(bodies) != len(pieces) or len(pieces) > limits.LINES_PIECES_MAX:
            raise RemoteError(
                "MALFORMED",
                f"{len(bodies)} body frames for {len(pieces)} pieces of output; each has one, the"
                f" limit is {limits.LINES_PIECES_MAX}",
            )
        for piece, body in zip(pieces, bodies, strict=True):
            if (
                not 0 < len(body) <= limits.LINES_PIECE_BYTES_MAX
                or piece.stream not in (0, 1)
                or not 0 <= piece.offset < 1 << 53
            ):
                raise RemoteError(
                    "MALFORMED",
                    f"a piece of output of {len(body)} bytes at {piece.offset} of stream"
                    f" {piece.stream}; 1 to {limits.LINES_PIECE_BYTES_MAX} bytes, stream 0 or 1",
                )
        sender = self._state.workers.get(worker)
        for piece, body in zip(pieces, bodies, strict=True):
            lease = sender.leases.get(piece.lease_id) if sender else None
            if lease is None or find(lease.open, piece.index, 1) < 0:
                self._metrics.lines_refused += 1
            else:
                self._keep(lease.job.number, lease.attempt, piece, body)

    def _keep(self, job: int, attempt: int, piece: Piece, body: bytes) -> None:
        attempts = self.jobs.setdefault(job, {})
        key = piece.lease_id, piece.index
        kept = attempts.get(key)
        size = self._sizes.get(job, 0)
        upto = piece.offset + len(body)
        stream, fresh = piece.stream, len(body)
        if kept is not None:
            fresh = max(0, upto - max(piece.offset, kept.ends[stream]))
        is_full = size + fresh > limits.LINES_JOB_BYTES_MAX
        if is_full and kept is None and size > 2 * limits.LINES_JOB_BYTES_MAX:
            self._metrics.lines_dropped += 1  # not even marks have room
            return
        if kept is None:
            kept = attempts[key] = Kept(_ATTEMPT_BYTES, [0, 0])
            self._sizes[job] = size = size + _ATTEMPT_BYTES
        name = job, piece.index, attempt, piece.lease_id, stream
        if is_full or self._journal.backlog_bytes > self._backlog_bytes_max:
            self._metrics.lines_dropped += 1
            self._record(schema.ADD_LINES, records.lines_row(*name, records.LOST_AT, upto, b""), 0)
        else:
            self._metrics.lines_kept += 1
            self._metrics.lines_bytes += fresh
            row = records.lines_row(*name, piece.offset, upto, body)
            self._record(schema.ADD_LINES, row, len(body))
            tail_from = upto - limits.LINES_TAIL_BYTES
            if tail_from > limits.LINES_HEAD_BYTES:
                where = job, piece.index, piece.lease_id, stream
                trim = (*where, limits.LINES_HEAD_BYTES, tail_from)
                self._record(schema.TRIM_LINES, trim, 0)
                fresh = 0  # as much goes as comes
            kept.size_bytes += fresh
            self._sizes[job] = size + fresh
        kept.ends[stream] = max(kept.ends[stream], upto)

    def _record(self, statement: str, row: records.Row, size: int) -> None:
        self._journal.record("lines", statement, row, size + _ROW_BYTES, can_wait=True)

    # ------------------------------------------------------------ ends

    def settle(self, effect: KeepResult, logs: bytes) -> None:
        """A result is recorded: lines of its attempts go if it has all that they have."""
        attempts = self.jobs[effect.job]
        ends = effect.first + effect.count
        mine = [
            key for key in attempts if key[0] == effect.lease_id and effect.first <= key[1] < ends
        ]
        if not effect.ref or not mine:
            return  # not the worker's own word: its attempt was lost
        try:
            entries = unpack_logs(logs)
        except RemoteError:
            return
        for key in mine:
            offset = key[1] - effect.first
            kept = attempts[key]
            if any(has_all(entry, offset, kept.ends) for entry in entries):
                self._record(schema.SETTLE_LINES, (effect.job, key[1], key[0]), 0)
                self._sizes[effect.job] -= kept.size_bytes
                del attempts[key]

    def forget(self, job: int) -> None:
        """The job's results leave the disk, and these too."""
        self.jobs.pop(job, None)
        self._sizes.pop(job, None)
        self._journal.add_chore(schema.DROP_LINES, (job,))

    def free(self, job: int) -> None:
        """The job is over: nothing more comes; what is there stays on disk."""
        self.jobs.pop(job, None)
        self._sizes.pop(job, None)

    def note(self, found: Iterable[KeptLines]) -> None:
        """What an earlier incarnation has kept, of jobs that go on."""
        for each in found:
            if each.job not in self._state.jobs:
                continue  # it has ended meanwhile
            attempts = self.jobs.setdefault(each.job, {})
            kept = attempts.setdefault((each.lease_id, each.subtask), Kept(0, [0, 0]))
            size = max(each.size_bytes, _ATTEMPT_BYTES)
            kept.size_bytes += size
            kept.ends[each.stream] = max(kept.ends[each.stream], each.upto)
            self._sizes[each.job] = self._sizes.get(each.job, 0) + size


def has_all(entry: LogEntry, offset: int, ends: list[int]) -> bool:
    """Whether a result's log of this subtask has both streams as far as they are here."""
    if not entry.offset <= offset < entry.offset + entry.count:
        return False
    stdout = bool(entry.stdout_digest) or (not entry.stdout_at and len(entry.stdout) >= ends[0])
    stderr = bool(entry.stderr_digest) or (not entry.stderr_at and len(entry.stderr) >= ends[1])
    return stdout and stderr
