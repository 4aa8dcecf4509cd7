"""What a start reads: unfinished jobs alone, whole or named; checkpoints for what was freed."""

import pathlib
import sqlite3
from collections.abc import Callable, Iterator

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.broker import bodies, checkpoints, records, replay, schema
from gristmill.broker.core.invariants import check
from gristmill.broker.core.recovery import JobFact, ParcelFact, ResultFact, rebuild
from gristmill.broker.core.state import Config, State
from gristmill.broker.journal import Journal
from gristmill.broker.metrics import Metrics
from gristmill.broker.past import FIRST_ROWID, expired, find_missed, find_submission, prunable
from gristmill.broker.replay import Recovered, recover
from gristmill.wire.client import JobStatus, Results
from gristmill.wire.frames import encode
from gristmill.wire.ledger import Release
from gristmill.wire.limits import PARCEL_BYTES_MAX
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec, Tariff
from gristmill.wire.worker import ResultHead

UTC = 1_700_000_000_000
SPEC = JobSpec("function", function="0" * 64, count=100, tier="batch", retries=5, losses_max=5)


class File:
    """A journal file, written row by row as the broker does."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        Journal(folder, lambda: None, Metrics()).close()
        self.db = apsw.Connection(str(folder / "journal.db"))
        bodies.register(self.db, folder)

    def job(self, job: int, state: str = "running", is_listed: bool | None = None) -> None:
        record = records.JobRecord(job, "t", b"s%d" % job, UTC, SPEC, {"standard": Tariff()}, b"f")
        self.db.execute(schema.ADD_JOB, records.job_row(record))
        if is_listed if is_listed is not None else state == "running":
            self.db.execute(schema.ADD_OPEN, (job,))
        self.db.execute(schema.ADD_EVENT, records.event_row(job, UTC, "hold.granted", {}))
        if state == "running":
            self.db.execute(schema.ADD_PARCEL, records.parcel_row(job, 0, 100, "m", b"inputs"))
        status = JobStatus(
            job, "", "function", "t", state, "batch", 0, 100, 100, 0, 0, 0, 0,
            0, 0, 0, 0, 0, UTC, UTC, UTC, 0, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip
        self.db.execute(schema.SET_STATE, records.state_row("t", status, 3_600))

    def result(self, job: int, sequence: int, first: int, count: int) -> checkpoints.Told:
        head = ResultHead(sequence, 1, job, first, count, "q", 1_000, 500, 7, "wait4")
        message = Results(job, sequence, head, 1, "n")
        frames = [b"x" * count, pack_meter(count, Outcome.OK), b"", b""]
        row = records.result_row(encode(message), message, frames, (1_000, 500, 11), UTC)
        self.db.execute(schema.ADD_RESULT, row)
        return checkpoints.Told(message, frames[1], frames[2], (1_000, 500, 11), row[15])

    def of_version(self, version: int) -> None:
        """As a release wrote it whose journal has this version."""
        self.db.execute(schema.SET_META, ("schema_version", version))
        self.db.execute(f"PRAGMA user_version = {version if version > 3 else 0}")

    def start(self) -> tuple[Recovered, Metrics]:
        metrics = Metrics()
        journal = Journal(self.folder, lambda: None, metrics)
        try:
            found = recover(journal, Config(), 0, UTC, metrics)
        finally:
            journal.close()
        check(found.state)
        return found, metrics


@pytest.fixture
def file(tmp_path: pathlib.Path) -> Iterator[File]:
    file = File(tmp_path)
    yield file
    file.db.close()


def test_finished_jobs_cost_a_start_nothing(file: File) -> None:
    file.job(1)
    rows = len(read_rows(file))
    for job in range(2, 60):
        file.job(job, "done")
        file.result(job, 1, 0, 100)
    found, _ = file.start()
    assert list(found.state.jobs) == [1] and not found.state.finished
    assert found.state.job_counter == 59 and found.state.has_past
    assert len(read_rows(file)) == rows


def read_rows(file: File) -> list[int]:
    """A mark for each row that a start reads."""
    seen: list[int] = []
    metrics = Metrics()
    journal = Journal(file.folder, lambda: None, metrics)
    before, replay.PROGRESS_ROWS = replay.PROGRESS_ROWS, 1
    try:
        recover(journal, Config(), 0, UTC, metrics, seen.append)
    finally:
        replay.PROGRESS_ROWS = before
        journal.close()
    return seen


def test_jobs_of_version_1_are_listed(file: File) -> None:
    file.job(1, is_listed=False)
    file.job(2, "done")
    file.of_version(1)
    found, _ = file.start()
    assert list(found.state.jobs) == [1]
    meta = dict(file.db.execute("SELECT key, value FROM meta"))
    assert meta["schema_version"] == schema.SCHEMA_VERSION


@pytest.mark.parametrize(
    "change", ["detail = '{\"x\":1}'", "detail = '{'", "name = 'cancel.asked'", "job = 2, ms = 0"]
)
def test_a_damaged_event_is_named_and_not_believed(file: File, change: str) -> None:
    file.job(1)
    file.job(2, "running")
    file.db.execute(f"UPDATE events SET {change} WHERE job = 1")
    found, metrics = file.start()
    assert metrics.rows_quarantined == 1
    assert {number: job.hold for number, job in found.state.jobs.items()} == {
        1: "asked",
        2: "granted",
    }


def test_events_of_version_2_have_no_checksum_and_are_read(file: File) -> None:
    file.job(1)
    file.job(2)
    file.db.execute("ALTER TABLE events DROP COLUMN crc")
    file.of_version(2)
    file.db.execute("UPDATE events SET detail = '{' WHERE job = 2")
    found, metrics = file.start()
    assert {number: job.hold for number, job in found.state.jobs.items()} == {
        1: "granted",
        2: "asked",
    }
    assert metrics.rows_quarantined == 1


def test_a_job_that_fell_out_of_the_list_is_missed(file: File) -> None:
    file.job(1, is_listed=False)
    file.job(2)
    file.job(3, "done")
    assert find_missed(file.db, 0, 2) == ([1], 2)
    assert find_missed(file.db, 2, 2) == ([], 3)
    assert find_missed(file.db, 3, 2) == ([], None)


def test_a_finished_job_whose_number_was_changed_to_nothing_is_missed(file: File) -> None:
    file.job(2, "done")
    file.db.execute("UPDATE jobs SET job = 0")
    assert find_missed(file.db, FIRST_ROWID, 10) == ([0], 0)


def test_a_finished_job_that_is_still_listed_is_put_right(file: File) -> None:
    file.job(1, "done", is_listed=True)
    found, _ = file.start()
    assert not found.state.jobs
    assert file.db.execute("SELECT * FROM open_jobs").fetchall() == []


def test_a_damaged_result_voids_its_subtasks_and_nothing_else(file: File) -> None:
    file.job(1)
    for sequence in (1, 2, 3):
        file.result(1, sequence, 10 * sequence, 10)
    file.db.execute("UPDATE results SET payload = x'00' WHERE sequence = 2")
    found, metrics = file.start()
    job = found.state.jobs[1]
    assert (job.done, job.ready.count, job.sequence) == (20, 80, 3)
    assert metrics.rows_quarantined == 1 and found.jobs[0].results == 3
    _, metrics = file.start()  # it was voided: nothing is damaged any more
    assert metrics.rows_quarantined == 0


@pytest.mark.parametrize("column", ["wall_us", "cpu_us", "peak_kib", "amount_ucredits", "node"])
def test_a_result_whose_readings_changed_stands_and_costs_what_is_known(
    file: File, column: str
) -> None:
    file.job(1)
    file.result(1, 1, 0, 10)
    file.result(1, 2, 10, 10)
    file.db.execute(f"UPDATE results SET {column} = ? WHERE sequence = 2", ("9",))
    found, metrics = file.start()
    job = found.state.jobs[1]
    assert (job.done, job.spent_ucredits, metrics.rows_quarantined) == (20, 11, 1)


@pytest.mark.parametrize(
    "change", ["job = 2", "first = 228", "count = 101", "codec = 'n'", "job = 77", "job = 3"]
)
def test_a_parcel_that_strayed_is_named_and_makes_room(file: File, change: str) -> None:
    file.job(1)
    file.job(2)
    file.db.execute("DELETE FROM parcels WHERE job = 2")
    file.job(3, "done")
    file.db.execute(f"UPDATE parcels SET {change}")
    found, metrics = file.start()
    assert metrics.rows_quarantined == 1
    assert [job.uploaded for job in found.state.jobs.values()] == [0, 0]
    assert file.db.execute("SELECT * FROM parcels").fetchall() == []


def test_a_parcel_whose_upper_checksum_alone_changed_is_named_and_used(file: File) -> None:
    file.job(1)
    file.db.execute("UPDATE parcels SET crc = crc + (1 << 40)")
    found, metrics = file.start()
    assert (found.state.jobs[1].uploaded, metrics.rows_quarantined) == (100, 1)


def test_rows_of_version_3_have_no_checksum_of_their_columns_and_are_read(file: File) -> None:
    file.job(1)
    file.result(1, 1, 0, 10)
    for table in ("parcels", "results"):
        file.db.execute(f"UPDATE {table} SET crc = crc & 0xFFFFFFFF")
    file.db.execute("UPDATE results SET amount_ucredits = 12")
    file.of_version(3)
    found, metrics = file.start()
    job = found.state.jobs[1]
    assert (job.uploaded, job.done, job.spent_ucredits) == (100, 10, 12)
    assert metrics.rows_quarantined == 0
    meta = dict(file.db.execute("SELECT key, value FROM meta"))
    assert meta["schema_version"] == schema.SCHEMA_VERSION


def test_a_submission_of_a_damaged_job_is_known_as_damaged(file: File) -> None:
    file.job(1, "done")
    assert find_submission(file.db, "t", b"s2") is None
    known = find_submission(file.db, "t", b"s1")
    assert known and known.job == 1 and known.spec is not None
    file.db.execute("UPDATE jobs SET function = x'00' WHERE job = 1")
    assert find_submission(file.db, "t", b"s1") == (1, None, None)


# ---------------------------------------------------------------- checkpoints


def test_freed_results_are_final_after_a_restart(file: File) -> None:
    file.job(1)
    for sequence in (1, 2, 3):
        file.result(1, sequence, 10 * sequence, 10)
    checkpoint, tenant, size_bytes = checkpoints.fold_job(file.db, 1, 2, is_open=True)
    assert (checkpoint.upto, checkpoint.ended, tenant) == (2, [(10, 20, 0, 1)], "t")
    assert size_bytes > 0 and checkpoint.amount_ucredits == 22
    file.db.execute(schema.SET_CHECKPOINT, checkpoints.checkpoint_row(1, checkpoint))
    for is_deleted in (False, True):  # a crash before the rows have left the disk, and after
        if is_deleted:
            file.db.execute(schema.DROP_RESULTS, (1, 2))
        assert bool(checkpoints.find_leftovers(file.db)) is not is_deleted
        found, _ = file.start()
        job = found.state.jobs[1]
        assert (job.done, job.ready.count, job.sequence) == (30, 70, 3)
        assert (job.spent_ucredits, job.cpu_us) == (33, 1_500)
        assert (found.jobs[0].results, found.jobs[0].freed) == (3, 2)
    more, _, _ = checkpoints.fold_job(file.db, 1, 3, is_open=True)
    assert (more.upto, more.ended, more.amount_ucredits) == (3, [(10, 30, 0, 1)], 33)


def freed(file: File, upto: int = 40) -> None:
    """Job 1 in parcels of 20; the first of its subtasks are done, read, and gone, inputs too."""
    file.job(1)
    file.db.execute("DELETE FROM parcels")
    for first in range(upto, 100, 20):
        file.db.execute(schema.ADD_PARCEL, records.parcel_row(1, first, 20, "m", b"inputs" * 5))
    checkpoint = checkpoints.Checkpoint(2, [(0, upto, 0, 1)], [], 22, 2_000, 1_000, 7)
    file.db.execute(schema.SET_CHECKPOINT, checkpoints.checkpoint_row(1, checkpoint))
    file.db.execute(schema.SET_FREED, records.freed_row(1, upto, 60))


def test_inputs_that_have_left_are_not_missed_after_a_restart(file: File) -> None:
    freed(file)
    file.db.execute(schema.ADD_PARCEL, records.parcel_row(1, 20, 20, "m", b"i" * 30))
    assert checkpoints.find_freed(file.db) == [(1, 40)]  # a crash kept one
    for _ in range(2):
        found, _ = file.start()
        job = found.state.jobs[1]
        assert (job.uploaded, job.done, job.ready.count, job.spent_ucredits) == (100, 40, 60, 22)
        assert (job.freed, job.bytes_freed, job.bytes_committed) == (40, 60, 150)
        assert found.state.tenants["t"].parcel_bytes == 90
        file.db.execute(schema.DROP_PARCELS_BEFORE, (1, 40)).fetchall()
        assert checkpoints.find_freed(file.db) == []
    file.db.execute(schema.DROP_PARCELS, (1,)).fetchall()
    assert file.db.execute("SELECT * FROM parcels").fetchall() == []


@pytest.mark.parametrize("upto", [40, 100])
def test_inputs_that_have_left_are_not_missed_when_the_row_that_says_so_is_damaged(
    file: File, upto: int
) -> None:
    freed(file, upto)
    file.db.execute("UPDATE parcels SET codec = 'freed 6' WHERE first < 0")
    found, metrics = file.start()
    assert metrics.rows_quarantined == 1 + (upto == 100)  # its job is over: named again
    if upto == 100:
        assert found.state.finished[1].status.done == 100
        return
    job = found.state.jobs[1]
    assert (job.uploaded, job.done, job.ready.count) == (100, upto, 100 - upto)
    assert job.bytes_allowed > upto * PARCEL_BYTES_MAX  # its client does not wait for ever
    assert found.state.tenants["t"].parcel_bytes == (100 - upto) // 20 * 30


@pytest.mark.parametrize(
    "damage", ["UPDATE checkpoints SET body = x'00'", "DELETE FROM checkpoints"]
)
def test_what_ended_does_not_run_without_its_inputs(file: File, damage: str) -> None:
    freed(file)
    file.db.execute(damage)
    found, metrics = file.start()
    job = found.state.jobs[1]
    assert metrics.rows_quarantined == damage.startswith("UPDATE")
    assert (job.uploaded, job.done, job.ready.count, job.spent_ucredits) == (100, 40, 60, 0)


def test_a_checkpoint_ends_before_a_damaged_result(file: File) -> None:
    file.job(1)
    for sequence in (1, 2, 3):
        file.result(1, sequence, 10 * sequence, 10)
    file.db.execute("UPDATE results SET payload = x'00' WHERE sequence = 2")
    checkpoint, _, _ = checkpoints.fold_job(file.db, 1, 3, is_open=True)
    assert (checkpoint.upto, checkpoint.ended) == (1, [(10, 10, 0, 1)])


def test_what_is_in_memory_is_folded_without_its_rows(file: File) -> None:
    file.job(1)
    told = {sequence: file.result(1, sequence, 10 * sequence, 10) for sequence in (1, 2, 3)}
    by_rows = checkpoints.fold_job(file.db, 1, 3, is_open=True)
    assert checkpoints.fold_job(file.db, 1, 3, True, told) == by_rows
    file.db.execute("UPDATE results SET payload = x'00' WHERE sequence = 2")
    assert checkpoints.fold_job(file.db, 1, 3, True, told) == by_rows, "nothing is read back"
    del told[1]
    checkpoint, _, _ = checkpoints.fold_job(file.db, 1, 3, True, told)
    assert checkpoint.upto == 1, "rows, up to the damaged one"
    file.db.execute(schema.SET_CHECKPOINT, checkpoints.checkpoint_row(1, checkpoint))
    assert checkpoints.fold_job(file.db, 1, 3, True, told)[0] == by_rows[0]


def state_of(facts: list[ResultFact]) -> State:
    job = JobFact(
        job=1, tenant="t", submission=b"x", spec=SPEC, tariffs={"standard": Tariff()},
        submitted_utc_ms=UTC,
        is_hold_granted=True, parcels=[ParcelFact(0, 100, "m", 9)], results=facts,
    )  # fmt: skip
    state, _ = rebuild(Config(), 2, [job], 0, UTC)
    check(state)
    return state


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 99), st.integers(1, 9), st.sampled_from("oaml")), max_size=30
    ),
    st.integers(0, 30),
)
def test_a_checkpoint_means_what_its_results_meant(
    chunks: list[tuple[int, int, str]], cut: int
) -> None:
    facts = history(chunks)
    folded = checkpoints.fold(checkpoints.Checkpoint(), facts[:cut])
    twice = checkpoints.fold(
        checkpoints.fold(checkpoints.Checkpoint(), facts[: cut // 2]), facts[cut // 2 : cut]
    )
    assert twice == folded
    plain, short = state_of(facts), state_of([*checkpoints.unfold(folded), *facts[cut:]])
    assert list(plain.jobs) == list(short.jobs) and plain.queued == short.queued
    for number, job in plain.jobs.items():
        other = short.jobs[number]
        for name in ("done", "failed", "spent_ucredits", "wall_us", "cpu_us", "peak_kib", "lost"):
            assert getattr(job, name) == getattr(other, name), name
        assert sorted(job.ready.runs) == sorted(other.ready.runs)
        for is_loss in (False, True):
            assert spent_of(state=plain, is_loss=is_loss) == spent_of(state=short, is_loss=is_loss)


def spent_of(state: State, is_loss: bool) -> list[int]:
    columns = state.jobs[1].columns
    return [
        spent
        for first, count, _, _ in sorted(state.jobs[1].ready.runs)
        for _, length, spent in columns.spent(first, count, is_loss)
        for _ in range(length)
    ]


def history(chunks: list[tuple[int, int, str]]) -> list[ResultFact]:
    """Results as a core could have kept them: each subtask ends once, tries rise by one."""
    done: set[int] = set()
    tries: dict[int, int] = {}
    facts: list[ResultFact] = []
    for first, count, kind in chunks:
        span = range(first, min(first + count, 100))
        if done.intersection(span) or len({tries.get(index, 0) for index in span}) > 1:
            continue
        attempt = tries.get(first, 0) + 1
        if attempt > 4:
            continue
        outcomes: Callable[[int], int] = {
            "o": lambda _: Outcome.OK,
            "a": lambda _: Outcome.ERROR,
            "m": lambda index: Outcome.OK if index % 3 else Outcome.ERROR,
            "l": lambda _: Outcome.SETUP,
        }[kind]  # type: ignore[assignment]
        column = bytes(outcomes(index) for index in span)
        again = [(i, 1) for i, word in zip(span, column, strict=True) if word]
        if len(set(column)) == 1:
            column = column[:1]
        facts.append(
            ResultFact(len(facts) + 1, first, len(span), attempt, column, again, 3, 20, 10, attempt)
        )
        for index in span:
            tries[index] = attempt
        done.update(set(span) - {index for index, _ in again})
    return facts


def test_a_journal_of_a_newer_release_is_refused_with_its_version(tmp_path: pathlib.Path) -> None:
    file = File(tmp_path)
    file.of_version(99)
    file.db.close()
    with pytest.raises(Exception, match=f"schema 99, this release writes {schema.SCHEMA_VERSION}"):
        Journal(tmp_path, lambda: None, Metrics())
    with sqlite3.connect(tmp_path / "journal.db") as db:  # nothing was touched
        assert db.execute("SELECT value FROM meta WHERE key = 'incarnation'").fetchone() == (1,)


@pytest.mark.parametrize(
    ("moved", "to", "ends"),
    [
        (9, 1, (6, 9)),  # among those that the ledger has: the hole is behind the last
        (9, 1 << 40, (6, 9)),
        (8, 1 << 40, (6, 10)),  # the hole is at 8; a number is left out behind the last
        (7, 3, (6, 10)),
        (7, 1 << 40, (6, 10)),
    ],
)
def test_an_entry_whose_number_changed_leaves_its_number_free(
    file: File, moved: int, to: int, ends: tuple[int, int]
) -> None:
    for sequence in (7, 8, 9):
        file.db.execute(schema.ADD_ENTRY, records.entry_row(sequence, Release("b/1")))
    file.db.execute(schema.SET_META, ("outbox_acked", 6))
    file.db.execute("UPDATE outbox SET sequence = ? WHERE sequence = ?", (to, moved))
    found, metrics = file.start()
    assert (found.outbox_acked, found.outbox_last) == ends
    assert metrics.rows_quarantined == 1
    left = [row[0] for row in file.db.execute("SELECT sequence FROM outbox ORDER BY 1")]
    assert left == [sequence for sequence in (7, 8, 9) if sequence != moved]


@pytest.mark.parametrize("of", ["meta", "file"])
def test_a_version_that_was_changed_on_disk_keeps_nobody_out(file: File, of: str) -> None:
    file.job(1)
    if of == "meta":
        file.db.execute(schema.SET_META, ("schema_version", 6))
    else:
        file.db.execute("PRAGMA user_version = 6")
    found, _ = file.start()
    assert list(found.state.jobs) == [1]


def test_a_result_that_strayed_to_another_job_is_none_of_its(file: File) -> None:
    file.job(1)
    file.job(2)
    file.result(1, 1, 0, 10)
    file.result(1, 2, 10, 10)
    file.db.execute("UPDATE results SET job = 2 WHERE sequence = 2")
    found, metrics = file.start()
    assert [(job.done, job.sequence) for job in found.state.jobs.values()] == [(10, 1), (0, 0)]
    assert metrics.rows_quarantined == 1
    assert file.db.execute("SELECT job, sequence FROM results").fetchall() == [(1, 1)]


def test_results_that_expire_before_their_time_are_kept(file: File) -> None:
    file.job(1)
    file.job(2, "done")
    for job in (1, 2):
        file.result(job, 1, 0, 10)
    file.db.execute("UPDATE job_states SET expires_ms = 1")
    assert expired(file.db, UTC + 1_000) == []
    assert expired(file.db, UTC + 1_000 * SPEC.retention_s) == [(2, 1)]


def test_a_running_job_that_is_marked_as_over_is_not_pruned(file: File) -> None:
    file.job(1)
    file.db.execute("UPDATE job_states SET is_final = 1")
    assert prunable(file.db, UTC * 2, 0) == []


def test_a_lost_mark_of_what_the_ledger_has_is_named_and_found_again(file: File) -> None:
    for sequence in (7, 8, 9):
        row = records.entry_row(sequence, Release("b/1"))
        file.db.execute(schema.ADD_ENTRY, row)
    file.db.execute(schema.SET_META, ("outbox_abked", 6))
    found, metrics = file.start()
    assert (found.outbox_acked, found.outbox_last) == (6, 9)
    assert metrics.rows_quarantined == 1
