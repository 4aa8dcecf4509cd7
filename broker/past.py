"""What the journal knows of past jobs: questions for the reader's thread.

Each function takes the read-only connection first. Rows that are damaged are left out.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import apsw
import msgspec

from gristmill.broker import records
from gristmill.wire.client import (
    FINAL_JOB_STATES,
    JobStatus,
    ManifestRow,
    Results,
    SubtaskRow,
)
from gristmill.wire.errors import RemoteError
from gristmill.wire.failure import unpack_failures
from gristmill.wire.ids import digest_of
from gristmill.wire.meter import Meter, unpack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.receipts import work_of
from gristmill.wire.spec import JobSpec

log = logging.getLogger("gristmill.broker.past")

FIRST_ROWID = -(1 << 63)  #: below every row: bit rot makes any number of a job's
SCAN_JOBS_MAX = 5_000  #: whose specs are compared for one question
SCAN_ROWS_MAX = 20_000  #: results looked at for one page of subtasks


class PastJob(NamedTuple):
    """A job of the journal: its last card, and which of its results are there."""

    record: records.JobRecord
    status: JobStatus | None
    results_first: int
    results_last: int


def find_job(connection: apsw.Connection, tenant: str, job: int) -> PastJob | None:
    """A job of this tenant, or None; named in the log when it is there and damaged."""
    row = connection.execute(
        f"SELECT {records.JOB_COLUMNS} FROM jobs WHERE job = ?", (job,)
    ).fetchone()
    if row is None:
        if connection.execute("SELECT 1 FROM job_states WHERE job = ?", (job,)).fetchone():
            tell_damage(
                records.DamagedError("jobs", f"{job}", "its row is gone, its card is there")
            )
        return None
    try:
        record = records.read_job(row)
    except records.DamagedError as error:
        tell_damage(error)
        return None
    if record.tenant != tenant:
        return None
    ((first, last),) = connection.execute(
        "SELECT ifnull(min(sequence), 0), ifnull(max(sequence), 0) FROM results WHERE job = ?",
        (job,),
    )
    cards = _cards(
        connection.execute(f"SELECT {records.STATE_COLUMNS} FROM job_states WHERE job = ?", (job,))
    )
    return PastJob(record, cards[0] if cards else None, first, last)


class Tombstone(NamedTuple):
    """What is left of a job that was pruned."""

    job: int
    state: str
    finished_ms: int


class KnownSubmission(NamedTuple):
    """A submission that the journal has.

    ``spec``: its content; None when it is damaged, or ``pruned`` with its job to a tombstone.
    """

    job: int
    spec: JobSpec | None
    pruned: Tombstone | None = None


def find_submission(
    connection: apsw.Connection, tenant: str, submission: bytes
) -> KnownSubmission | None:
    """The job that a submission id of this tenant has become, or None."""
    row = connection.execute(
        f"SELECT {records.JOB_COLUMNS} FROM jobs WHERE tenant = ? AND submission = ?",
        (tenant, submission),
    ).fetchone()
    if row is None:
        gone = connection.execute(
            "SELECT job, state, finished_ms FROM tombstones WHERE tenant = ? AND submission = ?",
            (tenant, submission),
        ).fetchone()
        return None if gone is None else KnownSubmission(gone[0], None, Tombstone(*gone))
    try:
        return KnownSubmission(row[0], records.read_job(row).spec)
    except records.DamagedError:
        return KnownSubmission(row[0], None)


def find_tombstone(connection: apsw.Connection, tenant: str, job: int) -> Tombstone | None:
    """The tombstone of a job of this tenant, or None."""
    row = connection.execute(
        "SELECT job, state, finished_ms FROM tombstones WHERE job = ? AND tenant = ?", (job, tenant)
    ).fetchone()
    return None if row is None else Tombstone(*row)


def prunable(
    connection: apsw.Connection, before_ms: int, jobs_max: int
) -> list[tuple[int, str, bytes, str, int]]:
    """(job, tenant, submission, state, finished_ms) of past jobs that may leave the journal.

    Their results are gone, and they ended before this time or are not among the newest
    ``jobs_max``. At most 500, oldest first.
    """
    found = []
    newest = connection.execute(
        "SELECT job FROM job_states WHERE is_final = 1 ORDER BY job DESC LIMIT 1 OFFSET ?",
        (jobs_max,),
    ).fetchone()
    upto = newest[0] if newest else 0
    for job, tenant, submission, *state in connection.execute(
        "SELECT j.job, j.tenant, j.submission, s.job, s.tenant, s.status, s.crc"
        " FROM job_states s JOIN jobs j USING(job) WHERE s.is_final = 1 AND s.expires_ms = 0"
        " AND NOT EXISTS (SELECT 1 FROM results r WHERE r.job = s.job) ORDER BY s.job LIMIT 500"
    ):
        try:
            status = records.read_state(tuple(state))
        except records.DamagedError:
            continue
        if status.state not in FINAL_JOB_STATES:
            continue  # bit rot says that it is over; its card does not
        if status.finished_ms <= before_ms or job <= upto:
            found.append((job, tenant, bytes(submission), status.state, status.finished_ms))
    return found


def find_missed(
    connection: apsw.Connection, after: int, limit: int
) -> tuple[list[int], int | None]:
    """(unfinished jobs that a start would not read, the last job that was looked at or None).

    It looks at every job's row: what a start reads is an index that bit rot may have thinned.
    """
    jobs = [
        int(job)
        for (job,) in connection.execute(
            "SELECT job FROM jobs NOT INDEXED WHERE job > ? ORDER BY job LIMIT ?", (after, limit)
        )
    ]
    if not jobs:
        return [], None
    missed = connection.execute(
        "SELECT job FROM jobs NOT INDEXED WHERE job > ? AND job <= ?"
        " AND NOT EXISTS (SELECT 1 FROM open_jobs o WHERE o.job = jobs.job)"
        " AND NOT EXISTS (SELECT 1 FROM job_states s WHERE s.job = jobs.job AND s.is_final = 1)",
        (after, jobs[-1]),
    )
    return [int(job) for (job,) in missed], jobs[-1]


def find_same_work(
    connection: apsw.Connection, tenant: str, work: bytes, limit: int
) -> list[JobStatus]:
    """Cards of a tenant's ended jobs that ran this function or command, newest first.

    Of its newest jobs only: specs are compared one by one. A sum of checks is not made for that;
    the cards have theirs.
    """
    jobs: list[int] = []
    for job, spec in connection.execute(
        "SELECT job, spec FROM jobs WHERE tenant = ? ORDER BY job DESC LIMIT ?",
        (tenant, SCAN_JOBS_MAX),
    ):
        try:
            if work_of(records.decode_spec(spec)) == work:
                jobs.append(job)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
            continue
    cards: list[JobStatus] = []
    for job in jobs:
        if len(cards) >= limit:
            break
        rows = connection.execute(
            f"SELECT {records.STATE_COLUMNS} FROM job_states WHERE job = ?", (job,)
        )
        cards += [card for card in _cards(rows) if card.state in FINAL_JOB_STATES]
    return cards


def list_jobs(connection: apsw.Connection, tenant: str, limit: int) -> list[JobStatus]:
    """Cards of a tenant's jobs as last recorded, newest first."""
    return _cards(
        connection.execute(
            f"SELECT {records.STATE_COLUMNS} FROM job_states WHERE tenant = ?"
            " ORDER BY job DESC LIMIT ?",
            (tenant, limit),
        )
    )


def find_requested(connection: apsw.Connection, tenant: str, digest: str) -> list[JobStatus]:
    """Cards of the jobs that serve a decomposed request, newest first; at most ten."""
    return _cards(
        connection.execute(
            "SELECT s.job, s.tenant, s.status, s.crc FROM jobs j JOIN job_states s USING(job)"
            " WHERE j.tenant = ? AND j.request_digest = ? AND j.request_digest <> ''"
            " ORDER BY j.job DESC LIMIT 10",
            (tenant, digest),
        )
    )


def _cards(rows: Iterable[records.Row]) -> list[JobStatus]:
    cards = []
    for row in rows:
        try:
            cards.append(records.read_state(row))
        except records.DamagedError as error:
            tell_damage(error)
    return cards


def tell_damage(error: Exception) -> None:
    """What is left out of an answer is named: it must not look as if it had never been."""
    log.error("journal damaged row left out of an answer: %s", error)


def subtasks(
    connection: apsw.Connection, job: int, first: int, limit: int, wanted: str
) -> list[SubtaskRow]:
    """Rows of ended subtasks from this index on, by index, at most ``limit``.

    The last attempt of a subtask wins; attempts that will be tried again are left out.
    """
    rows: dict[int, SubtaskRow] = {}
    # A result may begin before the page and reach into it.
    begin = max(0, first - longest(connection, job))
    found = connection.execute(
        f"SELECT {records.RESULT_COLUMNS} FROM results WHERE job = ? AND first >= ?"
        " AND first + count > ? ORDER BY first, rowid LIMIT ?",
        (job, begin, first, SCAN_ROWS_MAX),
    )
    last_index = first - 1
    for row in found:
        message_first = -1
        try:
            header, _, meter_frame, failures_frame, _ = records.read_result(row)
            message = records.decode_header(header)
            head = message.head
            message_first = head.first
            meter = unpack_meter(meter_frame, head.count)
            texts = {offset: one.message for offset, one in unpack_failures(failures_frame)}
        except (records.DamagedError, RemoteError) as error:
            tell_damage(error)
            continue
        if len(rows) >= limit and message_first > last_index:
            break
        walls_us = meter.wall_us
        again = [range(start, start + length) for start, length in message.not_final]
        for index in range(max(head.first, first), head.first + head.count):
            offset = index - head.first
            if any(offset in run for run in again):
                continue
            entry = _subtask(message, meter, walls_us, offset, texts)
            if not wanted or entry.state == wanted:
                rows[index] = entry
                last_index = max(last_index, index)
    return [rows[index] for index in sorted(rows)][:limit]


def _subtask(
    message: Results, meter: Meter, walls_us: Sequence[int], offset: int, texts: dict[int, str]
) -> SubtaskRow:
    head, outcome = message.head, meter.outcome_at(offset)
    state = "done"
    if outcome is not Outcome.OK:
        state = "cancelled" if outcome is Outcome.CANCELLED else "failed"
    text = texts.get(offset, texts.get(0, "") if head.number == 0 else "")
    return SubtaskRow(
        head.first + offset,
        state,
        outcome.word,
        message.attempt,
        message.node,
        walls_us[offset] if len(walls_us) else head.wall_us // head.count,
        meter.cpu_us[offset] if len(meter.cpu_us) else head.cpu_us // head.count,
        meter.peak_kib[offset] if len(meter.peak_kib) else head.peak_kib,
        head.is_estimated or not len(meter.cpu_us),
        head.metering,
        text,
    )


def manifest(connection: apsw.Connection, job: int, after: int, limit: int) -> list[ManifestRow]:
    """Published results after this sequence number, each with the digest of its values."""
    rows: list[ManifestRow] = []
    for row in connection.execute(
        f"SELECT {records.RESULT_COLUMNS} FROM results WHERE job = ? AND sequence > ?"
        " ORDER BY sequence LIMIT ?",
        (job, after, limit),
    ):
        try:
            header, values, meter_frame, _, _ = records.read_result(row)
            message = records.decode_header(header)
            meter = unpack_meter(meter_frame, message.head.count)
        except (records.DamagedError, RemoteError) as error:
            tell_damage(error)
            continue
        head = message.head
        ok = meter.outcome.count(0) if meter.outcome else head.count * (meter.uniform == 0)
        rows.append(
            ManifestRow(
                message.sequence, head.first, head.count, message.attempt, message.node, head.codec,
                digest_of(values) if len(values) else "", head.count - ok, message.not_final,
            )
        )  # fmt: skip
    return rows


def longest(connection: apsw.Connection, job: int) -> int:
    """How far before an index a result that covers it may begin."""
    found = connection.execute("SELECT ifnull(max(count), 0) FROM results WHERE job = ?", (job,))
    return max(int(row[0]) for row in found)


def expired(connection: apsw.Connection, now_ms: int) -> list[tuple[int, int]]:
    """(job, last result) of final jobs whose results were kept long enough; at most 100.

    The index that finds them has no checksum: what it says is believed once card and spec agree.
    """
    found = []
    for job, tenant in _expiring(connection, now_ms):
        past = find_job(connection, tenant, job)
        if past is None or past.status is None:
            continue  # it was named
        kept_until_ms = past.status.finished_ms + past.record.spec.retention_s * 1_000
        if past.status.state not in FINAL_JOB_STATES or kept_until_ms > now_ms:
            tell_damage(records.DamagedError("job_states", f"{job}", "it expires before its time"))
            continue
        found.append((job, past.results_last))
    return found


def _expiring(connection: apsw.Connection, now_ms: int) -> list[tuple[int, str]]:
    return list(
        connection.execute(
            "SELECT job, tenant FROM job_states WHERE expires_ms > 0 AND expires_ms <= ? LIMIT 100",
            (now_ms,),
        )
    )
