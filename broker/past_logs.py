"""What subtasks wrote: the logs of results, and the lines of attempts that have none.

For the reader's thread. Attempts are told apart by lease and index. Of one that was killed alone
there may be both: lines as they were written, and the last bytes in its result; they are joined
by their offsets. Where bytes are missing the text says so, and the row is marked.
"""

from collections.abc import Iterator
from typing import NamedTuple

import apsw

from gristmill.broker import records
from gristmill.broker.lines import has_all
from gristmill.broker.past import longest, tell_damage
from gristmill.wire.client import LogRow
from gristmill.wire.errors import RemoteError
from gristmill.wire.failure import LogEntry, unpack_logs

SCAN_ROWS_MAX = 20_000  #: results looked at for one page
LINES_BYTES_MAX = 8 << 20  #: of attempts without a result, in one page

Attempt = tuple[int, int]  #: (index, lease)


class Said(NamedTuple):
    """The log entry of a result."""

    subtask: int
    attempt: int
    lease_id: int
    entry: LogEntry


def logs(
    connection: apsw.Connection, job: int, first: int, limit: int, current: frozenset[int]
) -> list[LogRow]:
    """Output of subtask attempts from this index on, by index and attempt.

    At most ``limit`` rows, and then those of the same index. ``current``: leases that are out.
    """
    reach = longest(connection, job)
    said, said_upto = _of_results(connection, job, first, limit, reach)
    lines, lines_upto = _of_lines(connection, job, first, limit)
    rows = []
    for (index, lease_id), pieces in lines.items():
        tails = [
            one
            for one in said
            if one.lease_id == lease_id and one.subtask <= index < one.subtask + one.entry.count
        ]
        tail = tails[0].entry if tails else None
        if tail is not None:
            ends = [max((p.upto for p in pieces if p.stream == at), default=0) for at in (0, 1)]
            if has_all(tail, index - tails[0].subtask + tail.offset, ends):
                continue  # not yet deleted
            said.remove(tails[0])
        state = "running" if lease_id in current else "lost"
        if tail is not None or _has_result(connection, job, index, lease_id, reach):
            state = "ended"
        rows.append(_joined(index, pieces, tail, state))
    for index, attempt, _, entry in said:
        rows.append(
            LogRow(
                index, entry.count, attempt, entry.stdout, entry.stderr, entry.stdout_digest,
                entry.stderr_digest, entry.is_cut, "ended", entry.stdout_bytes, entry.stderr_bytes,
            )
        )  # fmt: skip
    rows.sort(key=lambda row: (row.index, row.attempt))
    upto = min(said_upto, lines_upto)  # behind it one of the two may have more
    if len(rows) > limit:
        upto = min(upto, rows[limit - 1].index)
    return [row for row in rows if row.index <= upto]


_ALL = 1 << 62


def _of_results(
    connection: apsw.Connection, job: int, first: int, limit: int, reach: int
) -> tuple[list[Said], int]:
    """Log entries of results, and up to which index they are all there."""
    found: list[Said] = []
    looked, last = 0, -1
    for row in connection.execute(
        f"SELECT {records.RESULT_COLUMNS} FROM results WHERE job = ? AND first >= ?"
        " AND first + count > ? AND length(logs) > 0 ORDER BY first, rowid LIMIT ?",
        (job, max(0, first - reach), first, SCAN_ROWS_MAX),
    ):
        looked += 1
        try:
            header, _, _, _, frame = records.read_result(row)
            message = records.decode_header(header)
            entries = unpack_logs(frame)
        except (records.DamagedError, RemoteError) as error:
            tell_damage(error)
            continue
        head = message.head
        last = head.first
        if len(found) >= limit:
            found.sort(key=lambda one: one.subtask)
            if head.first > found[limit - 1].subtask:
                return found, head.first - 1
        for entry in entries:
            index = head.first + entry.offset
            if index + entry.count > first:
                found.append(Said(index, message.attempt, head.lease_id, entry))
    return found, last - 1 if looked == SCAN_ROWS_MAX else _ALL


def _of_lines(
    connection: apsw.Connection, job: int, first: int, limit: int
) -> tuple[dict[Attempt, list[records.LinesRecord]], int]:
    """Lines by attempt, and up to which index they are all there."""
    found: dict[Attempt, list[records.LinesRecord]] = {}
    size = 0
    for row in connection.execute(
        f"SELECT {records.LINES_COLUMNS} FROM lines WHERE job = ? AND idx >= ?"
        " ORDER BY idx, lease_id, stream, at",
        (job, first),
    ):
        try:
            piece = records.read_lines(row)
        except records.DamagedError as error:
            tell_damage(error)  # a gap
            continue
        key = piece.subtask, piece.lease_id
        if key not in found and (size > LINES_BYTES_MAX or len(found) >= limit):
            last = next(reversed(found))[0]
            if piece.subtask > last:
                return found, last
        size += len(piece.body)
        found.setdefault(key, []).append(piece)
    return found, _ALL


def _has_result(
    connection: apsw.Connection, job: int, index: int, lease_id: int, reach: int
) -> bool:
    """Whether the attempt has a result of its own, without a log."""
    return bool(
        connection.execute(
            "SELECT 1 FROM results WHERE job = ? AND first >= ? AND first <= ?"
            " AND first + count > ? AND lease_id = ?",
            (job, max(0, index - reach), index, index, lease_id),
        ).fetchone()
    )


def _joined(
    index: int, pieces: list[records.LinesRecord], tail: LogEntry | None, state: str
) -> LogRow:
    texts, ends, missing = [], [], 0
    for stream in (0, 1):
        parts = [(piece.at, piece.body) for piece in pieces if piece.stream == stream]
        upto = max((piece.upto for piece in pieces if piece.stream == stream), default=0)
        if tail is not None:
            at, body, end = (
                (tail.stderr_at, tail.stderr, tail.stderr_bytes)
                if stream
                else (tail.stdout_at, tail.stdout, tail.stdout_bytes)
            )
            parts.append((at, body))
            upto = max(upto, end)
        gaps: list[int] = []
        texts.append(b"".join(_text(sorted(parts), upto, gaps)))
        ends.append(upto)
        missing += sum(gaps)
    return LogRow(
        index, 1, pieces[0].attempt, texts[0], texts[1], "", "", missing > 0, state, *ends
    )


def _text(parts: list[tuple[int, bytes]], upto: int, gaps: list[int]) -> Iterator[bytes]:
    at = 0
    for start, body in parts:
        if start > at:
            yield from _gap(start - at, gaps)
            at = start
        yield body[max(0, at - start) :]
        at = max(at, start + len(body))
    if upto > at:
        yield from _gap(upto - at, gaps)


def _gap(size: int, gaps: list[int]) -> Iterator[bytes]:
    gaps.append(size)
    yield b"\n[gristmill: %d bytes are missing here]\n" % size
