"""What results mean to a restart, and what stands for those that have left the disk.

A client that wants nothing kept acknowledges results of a job that goes on: their frames are freed,
but which of its subtasks ended, and what they cost, must outlive a restart, or they would run and
be billed again. A *checkpoint* is that, folded into runs of subtasks that ended alike: a few bytes
for a job whose results come in order.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import apsw
import msgspec

from gristmill.broker import records
from gristmill.broker.core.recovery import ResultFact
from gristmill.wire.client import Results
from gristmill.wire.errors import RemoteError
from gristmill.wire.failure import unpack_failures
from gristmill.wire.meter import unpack_outcomes

Piece = tuple[int, int, int, int]  #: (first, count, outcome, attempt) of subtasks that ended alike

#: what a result means: as it is delivered, then the columns beside that
FACT_COLUMNS = (
    "job, sequence, r.crc, header, whole(payload), meter, failures, logs,"
    f" {records.HEAD_COLUMNS.removeprefix('job, sequence, ')}"
)


class Told(NamedTuple):
    """A result as its row has it, but for its values: enough for its fact.

    ``readings``: wall_us, cpu_us and amount_ucredits as in ``records.result_row``.
    """

    message: Results
    meter: bytes
    failures: bytes
    readings: tuple[int, int, int]
    body_bytes: int

    @property
    def size_bytes(self) -> int:
        """What it takes of memory, about."""
        return len(self.meter) + len(self.failures) + 1_024


class DamagedReadingsError(records.DamagedError):
    """A result is whole, but not what it cost.

    Args:
        fact: what it means, with the worker's own readings and nothing to pay.
    """

    def __init__(self, key: str, fact: ResultFact) -> None:
        super().__init__("results", key, "the checksum of its readings does not fit")
        self.fact = fact


class Checkpoint(msgspec.Struct, array_like=True, frozen=True):
    """Results ``1 .. upto`` of a job. ``again``: attempts after which a subtask was tried again."""

    upto: int = 0
    ended: list[Piece] = []
    again: list[Piece] = []
    amount_ucredits: int = 0
    wall_us: int = 0
    cpu_us: int = 0
    peak_kib: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Checkpoint).decode


def checkpoint_row(job: int, checkpoint: Checkpoint) -> records.Row:
    """The row of ``checkpoints``."""
    body = _encode(checkpoint)
    return job, checkpoint.upto, records.crc_of(job, checkpoint.upto, body), body


def read_checkpoint(row: records.Row) -> Checkpoint:
    """A checkpoint from its row.

    Raises:
        DamagedError: the checksum does not fit.
    """
    job, upto, crc, body = row
    if crc != records.crc_of(job, upto, body):
        raise records.DamagedError("checkpoints", f"{job}", "its checksum does not fit")
    return _decode(body)


def read_fact(row: records.Row) -> ResultFact:
    """What a result means, from ``FACT_COLUMNS``.

    Raises:
        DamagedReadingsError: the result stands, but its readings or its amount are not known.
        DamagedError: the checksum does not fit, or what it covers makes no sense.
    """
    job, sequence, crc = row[:3]
    first, count, attempt, _, _, _, wall_us, cpu_us, peak_kib, _, _, amount, _, _ = row[8:]
    header, _, meter, failures, _ = records.read_result(row[:8])
    try:
        message = records.decode_header(header)
        outcomes = unpack_outcomes(meter, count)
    except (RemoteError, msgspec.DecodeError) as error:
        raise records.DamagedError("results", f"{job}/{sequence}", str(error)) from None
    head = message.head
    if (head.first, head.count, message.attempt) != (first, count, attempt):
        raise records.DamagedError("results", f"{job}/{sequence}", "its columns contradict it")
    fact = _fact(message, outcomes, failures, (wall_us, cpu_us, amount), peak_kib)
    if records.is_result_head_whole((job, sequence, *row[8:]), crc):
        return fact
    told = head.wall_us, head.cpu_us, head.peak_kib
    raise DamagedReadingsError(
        f"{job}/{sequence}",
        dataclasses.replace(
            fact, amount_ucredits=0, wall_us=told[0], cpu_us=told[1], peak_kib=told[2]
        ),
    )


def fact_of(told: Told) -> ResultFact:
    """What a result means that was recorded by this very process."""
    outcomes = unpack_outcomes(told.meter, told.message.head.count)
    return _fact(told.message, outcomes, told.failures, told.readings, told.message.head.peak_kib)


def _fact(
    message: Results,
    outcomes: bytes,
    failures: bytes,
    readings: tuple[int, int, int],
    peak_kib: int,
) -> ResultFact:
    head, (wall_us, cpu_us, amount) = message.head, readings
    return ResultFact(
        message.sequence, head.first, head.count, message.attempt, outcomes,
        [(head.first + start, length) for start, length in message.not_final],
        amount, wall_us, cpu_us, peak_kib,
        _first_message(failures) if head.number == 0 else "",
    )  # fmt: skip


def _first_message(failures: bytes) -> str:
    try:
        found = unpack_failures(failures)
    except RemoteError:
        return ""
    return found[0][1].message if found else ""


# ---------------------------------------------------------------- folding


def fold(before: Checkpoint, facts: Iterable[ResultFact]) -> Checkpoint:
    """A checkpoint that stands for these results too; they follow it in order of sequence."""
    ended, again = list(before.ended), list(before.again)
    upto, amount = before.upto, before.amount_ucredits
    wall_us, cpu_us, peak_kib = before.wall_us, before.cpu_us, before.peak_kib
    for fact in facts:
        upto = fact.sequence
        amount += fact.amount_ucredits
        wall_us += fact.wall_us
        cpu_us += fact.cpu_us
        peak_kib = max(peak_kib, fact.peak_kib)
        if len(fact.outcomes) == 1 and not fact.not_final:
            ended.append((fact.first, fact.count, fact.outcomes[0], fact.attempt))
            continue
        repeated = [range(start, start + length) for start, length in fact.not_final]
        for index in range(fact.first, fact.first + fact.count):
            at = index - fact.first if len(fact.outcomes) > 1 else 0
            piece = (index, 1, fact.outcomes[at], fact.attempt)
            (again if any(index in run for run in repeated) else ended).append(piece)
    ended.sort()
    again.sort(key=lambda piece: (piece[3], piece))
    return Checkpoint(upto, _merged(ended), _merged(again), amount, wall_us, cpu_us, peak_kib)


def ended_before(checkpoint: Checkpoint) -> int:
    """The first subtask that the checkpoint does not say has ended."""
    upto = 0
    for first, count, _, _ in checkpoint.ended:
        if first > upto:
            break
        upto = max(upto, first + count)
    return upto


def _merged(pieces: list[Piece]) -> list[Piece]:
    merged: list[Piece] = []
    for first, count, outcome, attempt in pieces:
        if merged:
            start, length, *alike = merged[-1]
            if start + length == first and alike == [outcome, attempt]:
                merged[-1] = (start, length + count, outcome, attempt)
                continue
        merged.append((first, count, outcome, attempt))
    return merged


def unfold(checkpoint: Checkpoint) -> Iterator[ResultFact]:
    """Facts with the same meaning: first what was tried again, then what ended."""
    upto = checkpoint.upto
    yield ResultFact(
        upto, 0, 0, 0, b"\0", [], checkpoint.amount_ucredits, checkpoint.wall_us, checkpoint.cpu_us,
        checkpoint.peak_kib,
    )  # fmt: skip
    for first, count, outcome, attempt in checkpoint.again:
        yield ResultFact(upto, first, count, attempt, bytes([outcome]), [(first, count)])
    for first, count, outcome, attempt in checkpoint.ended:
        yield ResultFact(upto, first, count, attempt, bytes([outcome]))


def fold_job(
    connection: apsw.Connection,
    job: int,
    upto: int,
    is_open: bool,
    told: Mapping[int, Told] = MappingProxyType({}),
) -> tuple[Checkpoint, str, int]:
    """(checkpoint up to this result, the tenant, bytes that are freed), for the reader's thread.

    ``told``: results by sequence that are still in memory. Where it has all of them no row is read:
    a row's checksum is that of its values, too, which would come back from the disk for it. Else
    the checkpoint ends before a result that is damaged: a restart makes its subtasks run again. Of
    a job that is over (not ``is_open``) only ``upto`` is of interest.
    """
    with connection:  # one snapshot: rows leave the disk once a checkpoint has them
        names = connection.execute("SELECT tenant FROM jobs WHERE job = ?", (job,)).fetchall()
        tenant = str(names[0][0]) if names else ""
        if not is_open:
            ((size_bytes,),) = connection.execute(
                "SELECT ifnull(sum(body_bytes), 0) FROM results WHERE job = ? AND sequence <= ?",
                (job, upto),
            )
            return Checkpoint(upto), tenant, int(size_bytes)
        before, size_bytes, facts = Checkpoint(), 0, []
        for row in connection.execute(
            "SELECT job, upto, crc, body FROM checkpoints WHERE job = ?", (job,)
        ):
            before = read_checkpoint(row)
        fresh = [told[at] for at in range(before.upto + 1, upto + 1) if at in told]
        if len(fresh) == upto - before.upto:
            size_bytes = sum(one.body_bytes for one in fresh)
            return fold(before, map(fact_of, fresh)), tenant, size_bytes
        for row in connection.execute(
            f"SELECT {FACT_COLUMNS} FROM results r"
            " WHERE job = ? AND sequence > ? AND sequence <= ? ORDER BY sequence",
            (job, before.upto, upto),
        ):
            try:
                facts.append(read_fact(row))
            except DamagedReadingsError as error:
                facts.append(error.fact)
            except records.DamagedError:
                break
            size_bytes += int(row[-1])
    return fold(before, facts), tenant, size_bytes


def find_leftovers(connection: apsw.Connection) -> list[tuple[int, int]]:
    """(job, upto) of results that a crash kept from leaving the disk, for the reader's thread."""
    return list(
        connection.execute(
            "SELECT job, upto FROM checkpoints c WHERE EXISTS"
            " (SELECT 1 FROM results r WHERE r.job = c.job AND r.sequence <= c.upto)"
        )
    )


def find_freed(connection: apsw.Connection) -> list[tuple[int, int]]:
    """(job, upto) of parcels that a crash kept from leaving the disk, for the reader's thread."""
    return list(
        connection.execute(
            "SELECT p.job, p.count FROM open_jobs o JOIN parcels p ON p.job = o.job AND p.first = ?"
            " WHERE EXISTS (SELECT 1 FROM parcels q"
            " WHERE q.job = p.job AND q.first >= 0 AND q.first < p.count)",
            (records.FREED_AT,),
        )
    )
