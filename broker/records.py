"""Rows of the journal: how each is made, and how one that was read is checked.

A row whose checksum does not fit is ``DamagedError``: it is never used; ``replay`` puts it into
quarantine by name.
"""

import zlib
from typing import Any, NamedTuple

import msgspec

from gristmill.broker.core.checks import Standing, Vote
from gristmill.broker.core.effects import KeepStanding, KeepVote
from gristmill.wire.client import FINAL_JOB_STATES, JobStatus, Results
from gristmill.wire.ledger import Contribution, Hold
from gristmill.wire.spec import JobSpec, Tariff
from gristmill.wire.tariffs import STANDARD, Tariffs

_encode = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder(dict[str, Any]).decode
decode_spec = msgspec.msgpack.Decoder(JobSpec).decode
_decode_tariffs = msgspec.msgpack.Decoder(Tariffs | Tariff).decode
_decode_contribution = msgspec.msgpack.Decoder(Contribution).decode
decode_status = msgspec.msgpack.Decoder(JobStatus).decode
decode_header = msgspec.msgpack.Decoder(Results).decode

Row = tuple[Any, ...]


class DamagedError(Exception):
    """A row that must not be used.

    Args:
        table: its table.
        key: its primary key, as text.
        reason: what does not fit.
    """

    def __init__(self, table: str, key: str, reason: str) -> None:
        super().__init__(f"{table} {key}: {reason}")
        self.table, self.key, self.reason = table, key, reason


class StrayError(DamagedError):
    """A whole row of another place: it stands for nothing where it was found."""


def crc_of(*parts: bytes | str | int) -> int:
    """crc32 over parts, each with its length, so that no two cuts of the same bytes agree."""
    crc = 0
    for part in parts:
        body = part if isinstance(part, bytes) else str(part).encode()
        crc = zlib.crc32(body, zlib.crc32(b"%d:" % len(body), crc))
    return crc


# A row with a large body has two checksums in its ``crc``: above that of its columns (the numbers
# by which it is found among them), below that of its body. So a start checks the first without
# reading bodies. Rows from before version 4 have the lower one alone.

_LOW = (1 << 32) - 1


def _joined(columns: Row, low: int) -> int:
    """The ``crc`` of a row with these columns, whose body has the checksum ``low``."""
    both = (zlib.crc32(_encode((*columns, low))) or 1) << 32 | low
    return both - (1 << 64) if both >> 63 else both  # SQLite's numbers have a sign


def _low(crc: Any) -> int:
    """The checksum of the body; -1, which no body has, for what a damaged page made of it."""
    return crc & _LOW if isinstance(crc, int) else -1


def _fits(columns: Row, crc: Any) -> bool:
    """Whether the columns are what they were; True for a row that has no checksum of them."""
    if not isinstance(crc, int):
        return False
    return not crc >> 32 or crc == _joined(columns, crc & _LOW)


# ---------------------------------------------------------------- jobs


class JobRecord(NamedTuple):
    """A job as it stands in ``jobs``."""

    job: int
    tenant: str
    submission: bytes
    submitted_ms: int
    spec: JobSpec
    tariffs: Tariffs
    function: bytes


def job_row(record: JobRecord) -> Row:
    """The row of ``jobs``."""
    spec, tariff = _encode(record.spec), _encode(record.tariffs)
    crc = crc_of(
        record.job, record.tenant, record.submission, record.submitted_ms, spec, tariff,
        record.function,
    )  # fmt: skip
    return (
        record.job, record.tenant, record.submission, record.spec.name,
        record.spec.request_digest, record.spec.parent, record.submitted_ms, spec, tariff,
        record.function, crc,
    )  # fmt: skip


JOB_COLUMNS = "job, tenant, submission, submitted_ms, spec, tariff, function, crc"


def read_job(row: Row) -> JobRecord:
    """A job from ``JOB_COLUMNS``.

    Raises:
        DamagedError: the checksum does not fit, or the spec is of another release.
    """
    job, tenant, submission, submitted_ms, spec, tariff, function, crc = row
    if crc != crc_of(job, tenant, submission, submitted_ms, spec, tariff, function):
        raise DamagedError("jobs", f"{job}", "its checksum does not fit")
    try:
        return JobRecord(
            job, tenant, submission, submitted_ms, decode_spec(spec), _tariffs_of(tariff),
            function,
        )  # fmt: skip
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedError("jobs", f"{job}", f"its spec does not decode: {error}") from None


def _tariffs_of(column: bytes) -> Tariffs:
    found: Tariffs | Tariff = _decode_tariffs(column)
    if isinstance(found, Tariff):  # of a release that had one tariff for every node
        return {STANDARD: found}
    if STANDARD not in found:
        raise msgspec.DecodeError("no tariff of class standard")
    return found


# ---------------------------------------------------------------- states


def state_row(tenant: str, status: JobStatus, retention_s: int) -> Row:
    """The row of ``job_states``; ``expires_ms`` is 0 while the job is not final."""
    is_final = status.state in FINAL_JOB_STATES
    expires_ms = status.finished_ms + retention_s * 1_000 if is_final else 0
    body = _encode(status)
    return (
        status.job, tenant, status.state, int(is_final), expires_ms, body,
        crc_of(status.job, tenant, body),
    )  # fmt: skip


def card_row(tenant: str, status: JobStatus) -> Row:
    """(status, crc, job) of ``AMEND_CARD``: all else of the row stays."""
    body = _encode(status)
    return body, crc_of(status.job, tenant, body), status.job


STATE_COLUMNS = "job, tenant, status, crc"


def read_state(row: Row) -> JobStatus:
    """A card from ``STATE_COLUMNS``.

    Raises:
        DamagedError: the checksum does not fit.
    """
    job, tenant, body, crc = row
    if crc != crc_of(job, tenant, body):
        raise DamagedError("job_states", f"{job}", "its checksum does not fit")
    try:
        return decode_status(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedError("job_states", f"{job}", f"its card does not decode: {error}") from None


# ---------------------------------------------------------------- parcels


def parcel_row(job: int, first: int, count: int, codec: str, body: bytes) -> Row:
    """The row of ``parcels``."""
    low = crc_of(job, first, count, codec, body)
    crc = _joined((job, first, count, codec, len(body)), low)
    return job, first, count, codec, crc, body


#: where the row of the parcels that have left stands: before the first that is there
FREED_AT = -1
_FREED = "freed "


def freed_row(job: int, upto: int, body_bytes: int) -> Row:
    """The row of ``parcels`` for those before ``upto``, which have left; and of how many bytes."""
    return parcel_row(job, FREED_AT, upto, f"{_FREED}{body_bytes}", b"")


def freed_bytes(codec: str) -> int:
    """How many bytes have left, from the codec of a ``freed_row``."""
    return int(codec.removeprefix(_FREED))


#: all that a start reads of a parcel; and where it is
PARCEL_HEAD = "job, first, count, codec, size_of(body), crc, r.rowid"


def is_parcel_placed(row: Row) -> bool:
    """Whether a parcel stands where it was put, from ``PARCEL_HEAD``: its body is not looked at."""
    *columns, crc, _ = row
    return _fits(tuple(columns), crc)


PARCEL_COLUMNS = "job, first, count, codec, crc, whole(body)"


def read_parcel(row: Row) -> bytes:
    """A parcel's frame from ``PARCEL_COLUMNS``.

    Raises:
        DamagedError: the checksum does not fit.
    """
    job, first, count, codec, crc, body = row
    if _low(crc) != crc_of(job, first, count, codec, body):
        raise DamagedError("parcels", f"{job}/{first}", "its checksum does not fit")
    return bytes(body)


# ---------------------------------------------------------------- results


def result_crc(header: bytes, frames: list[bytes]) -> int:
    """The checksum of a result: of its header, and of its frames with their lengths.

    -1, which no row has, for what a damaged page made of them.
    """
    if not all(isinstance(part, bytes) for part in (header, *frames)):
        return -1
    crc = zlib.crc32(header)
    for frame in frames:
        crc = zlib.crc32(frame, zlib.crc32(b"%d:" % len(frame), crc))
    return crc


def result_row(
    header: bytes,
    message: Results,
    frames: list[bytes],
    readings: tuple[int, int, int],
    ended_ms: int,
) -> Row:
    """The row of ``results``: its columns, the header as it is delivered, the four frames.

    ``readings``: wall_us, cpu_us and amount_ucredits as they were accepted and billed.
    """
    head = message.head
    payload, meter, failures, logs = frames
    wall_us, cpu_us, amount = readings
    columns = (
        message.job, message.sequence, head.first, head.count, message.attempt, head.lease_id,
        message.node, head.codec, wall_us, cpu_us, head.peak_kib, head.metering,
        int(head.is_estimated), amount, ended_ms,
        len(payload) + len(meter) + len(failures) + len(logs),
    )  # fmt: skip
    crc = _joined(columns, result_crc(header, frames))
    return (*columns, crc, header, meter, failures, logs, payload)


#: the columns of a result that its header and its frames do not have, or that it is found by
HEAD_COLUMNS = (
    "job, sequence, first, count, attempt, lease_id, node, codec, wall_us, cpu_us, peak_kib,"
    " metering, is_estimated, amount_ucredits, ended_ms, body_bytes"
)


def is_result_head_whole(columns: Row, crc: Any) -> bool:
    """Whether ``HEAD_COLUMNS`` of a result are what they were."""
    return _fits(columns, crc)


RESULT_COLUMNS = "job, sequence, crc, header, whole(payload), meter, failures, logs"


def read_result(row: Row) -> list[bytes]:
    """A result as it is delivered, header and four frames, from ``RESULT_COLUMNS``.

    Raises:
        StrayError: the row stands where its header does not.
        DamagedError: the checksum does not fit.
    """
    job, sequence, said, header, *frames = row
    key = f"{job}/{sequence}"
    if result_crc(header, frames) != _low(said):
        raise DamagedError("results", key, "its checksum does not fit")
    try:
        message = decode_header(header)
    except msgspec.DecodeError as error:
        raise DamagedError("results", key, f"its header does not decode: {error}") from None
    if (message.job, message.sequence) != (job, sequence):  # the checksum is of what is delivered
        raise StrayError("results", key, f"it is {message.job}/{message.sequence} by its header")
    return [header, *frames]


# ---------------------------------------------------------------- lines


def lines_row(
    job: int, index: int, attempt: int, lease_id: int, stream: int, at: int, upto: int, body: bytes
) -> Row:
    """The row of ``lines``: bytes ``at .. upto`` of a stream."""
    crc = crc_of(job, index, attempt, lease_id, stream, at, upto, body)
    return job, index, attempt, lease_id, stream, at, upto, crc, body


LOST_AT = -1  #: ``at`` of a row without bytes: the stream went up to ``upto``, and not all was kept
LINES_COLUMNS = "job, idx, attempt, lease_id, stream, at, upto, crc, body"


class LinesRecord(NamedTuple):
    """A row of ``lines``."""

    subtask: int
    attempt: int
    lease_id: int
    stream: int
    at: int
    upto: int
    body: bytes


def read_lines(row: Row) -> LinesRecord:
    """A piece of output from ``LINES_COLUMNS``.

    Raises:
        DamagedError: the checksum does not fit.
    """
    job, index, attempt, lease_id, stream, at, upto, crc, body = row
    if crc != crc_of(job, index, attempt, lease_id, stream, at, upto, body):
        key = f"{job}/{index} lease {lease_id} stream {stream} at {at}"
        raise DamagedError("lines", key, "its checksum does not fit")
    return LinesRecord(index, attempt, lease_id, stream, at, upto, body)


# ---------------------------------------------------------------- events, outbox


def event_row(job: int, ms: int, name: str, detail: dict[str, Any]) -> Row:
    """The row of ``events`` (its number is made by SQLite)."""
    text = _encode_json(detail).decode()
    return job, ms, name, text, crc_of(job, ms, name, text)


EVENT_COLUMNS = "job, seq, ms, name, detail, r.crc"


def read_event(row: Row) -> tuple[str, dict[str, Any]]:
    """(name, detail) of an event, from ``EVENT_COLUMNS``.

    Raises:
        DamagedError: the checksum does not fit, or one from before it had any makes no sense.
    """
    job, seq, ms, name, text, said = row
    if said not in (-1, crc_of(job, ms, name, text)):
        raise DamagedError("events", f"{seq}", "its checksum does not fit")
    try:
        detail = _decode_json(text)
    except msgspec.DecodeError as error:
        raise DamagedError("events", f"{seq}", f"its detail does not decode: {error}") from None
    return name, detail


# ---------------------------------------------------------------- results that are compared

STANDING = "standing:"  #: before a node's key: key of its standing in ``meta``


def vote_detail(effect: KeepVote, entry: Contribution | None) -> dict[str, Any]:
    """The detail of a ``result.held`` line; ``entry``: countersigned."""
    return {
        "sequence": effect.sequence,
        "subtask": effect.index,
        "attempt": effect.attempt,
        "owner": effect.owner,
        "node": effect.node,
        "lease": effect.lease_id,
        "outcome": effect.outcome,
        "digest": effect.digest.hex(),
        "amount_ucredits": effect.amount_ucredits,
        "entry": "" if entry is None else _encode(entry).hex(),
    }


def read_vote(detail: dict[str, Any]) -> tuple[int, Vote, Contribution | None]:
    """(subtask, vote, contribution) of a ``result.held`` line."""
    vote = Vote(
        detail["sequence"], detail["attempt"], detail["owner"], detail["node"], detail["lease"],
        detail["outcome"], bytes.fromhex(detail["digest"]), detail["amount_ucredits"],
    )  # fmt: skip
    entry = bytes.fromhex(detail["entry"])
    return detail["subtask"], vote, _decode_contribution(entry) if entry else None


def standing_row(effect: KeepStanding) -> tuple[str, str]:
    """The row of ``meta`` of a node."""
    return f"{STANDING}{effect.node}", f"{effect.streak} {effect.cause}"


def read_standing(key: str, value: Any) -> tuple[str, Standing]:
    """(node, standing) of a row of ``meta``.

    Raises:
        DamagedError: it is no standing.
    """
    streak, space, cause = value.partition(" ") if isinstance(value, str) else ("", "", "")
    if not space or not streak.isdecimal():
        raise DamagedError("meta", key, f"no standing of a node: {value!r:.80}")
    return key.removeprefix(STANDING), Standing(int(streak), cause)


def entry_row(sequence: int, entry: msgspec.Struct) -> Row:
    """The row of ``outbox``."""
    body = _encode(entry)
    return sequence, isinstance(entry, Hold), crc_of(sequence, body), body


ENTRY_COLUMNS = "sequence, is_hold, crc, entry"


def read_entry(row: Row) -> tuple[int, bool, bytes]:
    """(sequence, whether it is a hold, encoded entry) from ``ENTRY_COLUMNS``.

    Raises:
        DamagedError: the checksum does not fit.
    """
    sequence, is_hold, crc, body = row
    if crc != crc_of(sequence, body):
        raise DamagedError("outbox", f"{sequence}", "its checksum does not fit")
    return sequence, bool(is_hold), body
