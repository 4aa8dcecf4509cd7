"""Rows: what is written is what is read, and any changed bit is seen."""

import msgspec
import pytest

from gristmill.broker import records
from gristmill.wire.client import JobStatus, Results
from gristmill.wire.frames import encode
from gristmill.wire.ledger import Contribution, Hold
from gristmill.wire.spec import Command, JobSpec, Tariff
from gristmill.wire.worker import ResultHead

SPEC = JobSpec("command", command=Command(["x"]), name="n", request_digest="d")
RECORD = records.JobRecord(7, "ann", b"s" * 16, 5, SPEC, {"standard": Tariff()}, b"function")
COLUMNS = (
    "job tenant submission name request_digest parent submitted_ms spec tariff function crc"
).split()


def job_row(**changed: object) -> tuple[object, ...]:
    row = dict(zip(COLUMNS, records.job_row(RECORD), strict=True)) | changed
    return tuple(row[name.strip()] for name in records.JOB_COLUMNS.split(","))


def test_a_job_comes_back() -> None:
    assert records.read_job(job_row()) == RECORD


@pytest.mark.parametrize(
    "changed",
    [{"tenant": "bob"}, {"submission": b"t" * 16}, {"function": b"Function"}, {"job": 8},
     {"submitted_ms": 6}, {"spec": b"\xc0"}],
)  # fmt: skip
def test_a_changed_job_is_damaged(changed: dict[str, object]) -> None:
    with pytest.raises(records.DamagedError, match="checksum"):
        records.read_job(job_row(**changed))


def test_parts_do_not_run_into_each_other() -> None:
    assert records.crc_of("ab", "c") != records.crc_of("a", "bc")
    assert records.crc_of(b"", b"x") != records.crc_of(b"x", b"")


def test_every_bit_of_a_result_counts() -> None:
    head = ResultHead(1, 2, 3, 0, 2, "q", 9, 8, 7, "proc")
    message = Results(3, 1, head, 1, "node", [])
    frames = [b"values", b"meter", b"", b"logs"]
    row = records.result_row(encode(message), message, frames, (1, 2, 3), 10)
    read = (row[0], row[1], row[16], row[17], row[21], row[18], row[19], row[20])
    assert records.read_result(read) == [encode(message), *frames]
    for column in (3, 4, 5, 7):
        for bit in range(8 * len(read[column])):
            body = bytearray(read[column])
            body[bit // 8] ^= 1 << bit % 8
            broken = (*read[:column], bytes(body), *read[column + 1 :])
            with pytest.raises(records.DamagedError):
                records.read_result(broken)
    for key in ((3, 9), (11, 1)):  # its key was changed: it is no other job's, no other result
        with pytest.raises(records.DamagedError, match="by its header"):
            records.read_result((*key, *read[2:]))
    moved = (*read[:4], b"", b"valuesmeter", *read[6:])  # the same bytes, cut elsewhere
    with pytest.raises(records.DamagedError):
        records.read_result(moved)


def test_a_parcel_comes_back_or_is_damaged() -> None:
    job, first, count, codec, crc, body = records.parcel_row(1, 0, 3, "q", b"abc")
    assert records.read_parcel((job, first, count, codec, crc, body)) == b"abc"
    for row in ((2, first, count, codec, crc, body), (job, first, count, "d", crc, body)):
        with pytest.raises(records.DamagedError):
            records.read_parcel(row)


def test_outbox_entries_know_holds() -> None:
    hold = records.entry_row(4, Hold("b/1", "ann", 5))
    assert records.read_entry(hold) == (4, True, msgspec.msgpack.encode(Hold("b/1", "ann", 5)))
    work = Contribution("b/1", "t", "n", 1, 0, 1, 1, 1, 0, 1, 1, 1, "proc", False, 5, 0, 9)
    assert records.read_entry(records.entry_row(5, work))[1] is False
    with pytest.raises(records.DamagedError):
        records.read_entry((5, *hold[1:]))


def test_a_final_state_expires_after_its_retention() -> None:
    status = JobStatus(*[0] * 4, "done", *[0] * 26)  # type: ignore[arg-type]
    status = msgspec.structs.replace(
        status, job=1, name="", kind="", tenant="t", tier="", finished_ms=1_000
    )
    assert records.state_row("t", status, 60)[4] == 61_000
    running = msgspec.structs.replace(status, state="running")
    assert records.state_row("t", running, 60)[3:5] == (0, 0)


def test_a_job_of_a_release_with_one_tariff_has_it_everywhere() -> None:
    row = _with_tariff(msgspec.msgpack.encode([7, 8]))
    assert records.read_job(row).tariffs == {"standard": Tariff(7, 8, 0)}


def test_a_job_without_the_tariff_of_every_node_is_damaged() -> None:
    with pytest.raises(records.DamagedError, match="no tariff of class standard"):
        records.read_job(_with_tariff(msgspec.msgpack.encode({"big": [7, 8, 9]})))


def _with_tariff(tariff: bytes) -> tuple[object, ...]:
    """The row of ``RECORD`` as ``JOB_COLUMNS`` has it, with these bytes for its tariff."""
    spec = msgspec.msgpack.encode(RECORD.spec)
    parts = (RECORD.job, RECORD.tenant, RECORD.submission, RECORD.submitted_ms, spec, tariff,
             RECORD.function)  # fmt: skip
    return (*parts, records.crc_of(*parts))
