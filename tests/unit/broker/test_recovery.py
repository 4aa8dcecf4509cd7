"""The state after a restart, from facts."""

from core_driver import CLIENT, UTC, grants, kinds, only
from hypothesis import given
from hypothesis import strategies as st

from gristmill.broker.core import columns as cols
from gristmill.broker.core import effects as fx
from gristmill.broker.core import events as ev
from gristmill.broker.core.invariants import check
from gristmill.broker.core.recovery import JobFact, ParcelFact, ResultFact, rebuild
from gristmill.broker.core.state import Config, State
from gristmill.broker.core.step import step
from gristmill.wire.ids import unpack_lease_id
from gristmill.wire.ledger import Hold
from gristmill.wire.spec import JobSpec, Tariff


def fact(**fields: object) -> JobFact:
    spec_fields = fields.pop("spec", {})
    spec = JobSpec(kind="function", function="0" * 64, **spec_fields)  # type: ignore[arg-type]
    values: dict[str, object] = {
        "job": 3,
        "tenant": "t",
        "submission": b"x",
        "spec": spec,
        "tariffs": {"standard": Tariff()},
        "submitted_utc_ms": UTC,
        "is_hold_granted": True,
        **fields,
    }
    return JobFact(**values)  # type: ignore[arg-type]


def restore(*facts: JobFact) -> tuple[State, list[fx.AnyEffect]]:
    state, effects = rebuild(Config(), 9, facts, 50, UTC + 60_000)
    check(state)
    return state, effects


def join(state: State) -> list[fx.AnyEffect]:
    event = ev.WorkerJoined(1, "w", "n", 1, 1000, 8 << 30, {}, ["job"], ["3.11"], "cgroup", [])
    effects = step(state, event, 60)
    check(state)
    return effects


PARCELS = [ParcelFact(0, 60, "m", 500), ParcelFact(60, 40, "m", 400)]


def test_unfinished_work_is_ready_again_under_a_new_incarnation() -> None:
    results = [
        ResultFact(1, 0, 30, 1, b"\0", [], 5_000, 30_000, 20_000, 900),
        ResultFact(2, 50, 3, 1, bytes([0, 1, 11]), [(51, 2)], 100, 3_000, 2_000, 950),
    ]
    spec = {"count": 100, "retries": 2}
    state, effects = restore(fact(spec=spec, parcels=PARCELS, results=results))
    assert effects == []
    job = state.jobs[3]
    assert (job.done, job.ready.count, job.sequence, job.spent_ucredits) == (31, 69, 2, 5_100)
    assert (job.lost, job.retried, job.peak_kib, job.is_closed) == (1, 2, 950, True)
    assert list(job.columns.spent(51, 2, False)) == [(51, 1, 1), (52, 1, 0)]
    assert list(job.columns.spent(51, 2, True)) == [(51, 1, 0), (52, 1, 1)]
    first = grants(join(state))[0]
    assert (first.attempt == 2 and first.runs == [(51, 2)]) or first.runs == [(51, 1)]
    assert unpack_lease_id(first.lease_id) == (9, 1)
    assert state.job_counter == 3


def test_a_hold_without_an_answer_is_asked_again() -> None:
    state, effects = restore(fact(is_hold_granted=False, parcels=PARCELS))
    assert effects == [fx.AddToOutbox(Hold("broker/3", "t", state.jobs[3].spec.cap_ucredits))]
    assert grants(join(state)) == []


def test_a_refused_hold_ends_the_job() -> None:
    _, effects = restore(
        fact(is_hold_granted=False, refusal=("INSUFFICIENT_CREDITS", "no"), parcels=PARCELS)
    )
    assert only(effects, fx.TellStatus)[0].status.reason == "INSUFFICIENT_CREDITS: no"


def test_a_cancelled_job_ends_what_the_restart_cut() -> None:
    results = [
        ResultFact(1, 0, 60, 1, b"\0"),
        ResultFact(2, 70, 30, 0, b"\x0c"),
        ResultFact(3, 100, 50, 0, b"\x0c"),  # inputs that had not come
    ]
    spec = {"count": 150}
    state, effects = restore(fact(spec=spec, parcels=PARCELS, results=results, is_cancelled=True))
    (keep,) = only(effects, fx.KeepResult)
    assert (keep.first, keep.count, keep.sequence) == (60, 10, 4)
    card = only(effects, fx.TellStatus)[0].status
    assert (card.state, card.done, card.cancelled) == ("cancelled", 60, 90)
    assert not state.jobs and state.queued == 0


def test_cancelled_runs_pauses_caps_and_closed_uploads() -> None:
    state, effects = restore(
        fact(parcels=PARCELS, closed_at=100, cancelled_runs=[(10, 5)], pause_reason="tired"),
        fact(job=4, submission=b"y", parcels=PARCELS, closed_at=100, is_capped=True),
    )
    assert [(k.job, k.first, k.count) for k in only(effects, fx.KeepResult)] == [
        (3, 10, 5),
        (4, 0, 100),
    ]
    job = state.jobs[3]
    assert job.is_closed and job.is_paused and job.count == 100 and job.state == "paused"
    assert only(effects, fx.TellStatus)[0].status.reason.startswith("CAP_REACHED")


def test_a_complete_job_is_made_final() -> None:
    results = [ResultFact(1, 0, 100, 1, b"\0")]
    state, effects = restore(fact(spec={"count": 100}, parcels=PARCELS, results=results))
    assert kinds(effects) == ["RecordState", "AddToOutbox", "TellStatus", "FreeJob"]
    assert not state.jobs


def test_final_jobs_keep_their_card_and_their_submission() -> None:
    state, effects = restore(fact(spec={"count": 100}, parcels=PARCELS))
    spec = state.jobs[3].spec
    card = only(step(state, ev.CancelAsked(1, 1, "t", 3, []), 60), fx.TellStatus)[0].status
    state, effects = restore(fact(spec={"count": 100}, status=card))
    assert effects == [] and not state.jobs and state.finished[3].status == card
    event = ev.JobSubmitted(CLIENT, 1, "t", b"x", spec, {"standard": Tariff()}, UTC)
    assert step(state, event, 70) == [fx.AcceptJob(CLIENT, 1, 3, True, 0)]


def test_an_upload_goes_on_after_a_restart_or_is_closed() -> None:
    state, _ = restore(fact(parcels=PARCELS))
    job = state.jobs[3]
    assert (job.bytes_allowed - 900, job.committed) == (Config().input_credit_bytes, 100)
    event = ev.JobSubmitted(CLIENT, 1, "t", b"x", job.spec, {"standard": Tariff()}, UTC)
    assert kinds(step(state, event, 60)) == ["AcceptJob"]
    step(state, ev.ClientLost(0), 60)
    assert not job.is_closed
    assert kinds(step(state, ev.ParcelArrived(CLIENT, "t", 3, 100, 5, "m", 9), 60)) == [
        "KeepParcel"
    ]

    state, _ = restore(fact(parcels=PARCELS))
    assert kinds(step(state, ev.ClientLost(0), 60)) == ["RecordEvent"]
    assert state.jobs[3].is_closed


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 20), st.booleans()), max_size=15))
def test_whatever_was_kept_is_kept(chunks: list[tuple[int, int, bool]]) -> None:
    done: set[int] = set()
    tries: dict[int, int] = {}
    results = []
    for first, count, is_again in chunks:
        count = min(count, 100 - first)
        span = range(first, first + count)
        numbers = {tries.get(index, 0) for index in span}
        if done.intersection(span) or len(numbers) > 1:
            continue
        attempt = numbers.pop() + 1
        runs = [(first, count)] if is_again else []
        outcome = b"\1" if is_again else b"\0"
        results.append(ResultFact(len(results) + 1, first, count, attempt, outcome, runs))
        for index in span:
            tries[index] = attempt
        if not is_again:
            done.update(span)
    spec = {"count": 100, "retries": 100}
    state, _ = restore(fact(spec=spec, parcels=PARCELS, results=results))
    if len(done) == 100:
        assert not state.jobs
        return
    job = state.jobs[3]
    assert job.done == len(done) and job.ready.count == 100 - len(done)
    queued = {}
    for start, length, attempt, _ in job.ready.runs:
        queued.update(dict.fromkeys(range(start, start + length), attempt))
    assert queued == {i: tries.get(i, 0) + 1 for i in range(100) if i not in done}
    assert job.columns.count(cols.READY) == len(queued)


def test_a_damaged_journal_never_stops_a_start() -> None:
    results = [
        ResultFact(1, 0, 10, 1, b"\0"),
        ResultFact(2, 5, 10, 1, b"\0"),  # overlaps the first
        ResultFact(3, 90, 30, 1, b"\0"),  # reaches beyond the parcels that are left
        ResultFact(4, 200, 5, 1, b"\x0b", [(200, 5)]),
        ResultFact(5, 3, 4, 2, bytes([0, 1, 1, 0]), [(4, 2)]),
    ]
    state, _ = restore(fact(parcels=PARCELS, results=results))
    job = state.jobs[3]
    assert (job.done, job.uploaded, job.ready.count) == (25, 100, 75)


def test_losses_spent_and_failures_before_a_resume_are_not_forgotten() -> None:
    results = [
        ResultFact(1, 0, 10, 1, b"\1"),
        ResultFact(2, 20, 1, 2, b"\1", [(20, 1)]),
    ]
    losses = [(20, 1), (30, 1), (30, 2), (5, 1)]
    spec = {"count": 100, "retries": 3, "losses_max": 2, "failures_max": 10}
    state, _ = restore(
        fact(spec=spec, parcels=PARCELS, results=results, losses=losses, failed_at_resume=10)
    )
    job = state.jobs[3]
    assert (job.failed, job.failed_at_resume, job.lost) == (10, 10, 4)
    assert list(job.columns.spent(30, 1, True)) == [(30, 1, 2)]
    assert list(job.columns.attempts(30, 1)) == [(30, 1, 2)]
    assert list(job.columns.attempts(20, 1)) == [(20, 1, 2)]
    assert list(job.columns.spent(20, 1, True)) == [(20, 1, 1)]
    assert {(20, 3), (30, 3)} <= {(start, attempt) for start, _, attempt, _ in job.ready.runs}


def test_a_tenant_goes_on_with_the_share_that_it_had() -> None:
    facts = [fact(parcels=PARCELS), fact(job=4, tenant="u", submission=b"y", parcels=PARCELS)]
    state, _ = rebuild(Config(), 9, facts, 50, UTC, (), {"t": 7e9, "gone": 1.0})
    assert state.tenants["t"].share == 7e9 and state.tenants["u"].share == 0.0
    assert "gone" not in state.tenants
    check(state)
