"""The state after a restart, from what the journal has: unfinished work is ready again.

The shell reads facts (the dataclasses here) from its tables and calls ``rebuild`` once, before any
event, with an incarnation that was never used: a lease of an earlier one is current again only if a
worker that joins holds it and it is adopted (adoption.py).

The shell then carries out the effects that ``rebuild`` gives (holds asked again under their old
ref, cancellations finished, jobs that turn out to be complete), and after ``CLIENT_TTL_MS`` steps
``ClientLost(0)``: uploads whose client did not come back by a repeated submission are closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from gristmill.broker.core import endings
from gristmill.broker.core.adoption import begin_wait
from gristmill.broker.core.checks import Standing, Vote, settle
from gristmill.broker.core.columns import ATTEMPT_MAX, CANCELLED, DONE, FAILED, READY
from gristmill.broker.core.effects import AddToOutbox, AnyEffect
from gristmill.broker.core.events import Canary, JobSubmitted
from gristmill.broker.core.jobs import Job
from gristmill.broker.core.on_clients import add_job, content_digest, set_canary
from gristmill.broker.core.placement import place
from gristmill.broker.core.results import groups
from gristmill.broker.core.runs import intersect, normalise, subtract
from gristmill.broker.core.state import Config, Finished, State
from gristmill.wire.client import FINAL_JOB_STATES, JobStatus
from gristmill.wire.limits import LEASE_ITEMS_MAX
from gristmill.wire.outcome import OWN_DOING, Outcome
from gristmill.wire.spec import JobSpec
from gristmill.wire.tariffs import Tariffs
from gristmill.wire.worker import Run

_WORDS = {Outcome.OK: DONE, Outcome.CANCELLED: CANCELLED}


@dataclass(frozen=True, slots=True)
class ParcelFact:
    """A parcel on disk; parcels of a job come in order.

    ``is_freed``: the first one may stand for all that have left the disk.
    """

    first: int
    count: int
    codec: str
    body_bytes: int
    is_freed: bool = False


@dataclass(frozen=True, slots=True)
class ResultFact:
    """A ``KeepResult`` on disk, in order of ``sequence``.

    ``outcomes``: u8[count], or one byte when all ended alike. ``amount_ucredits``: of the
    contribution that went with it, 0 for none. ``message``: of a result without a worker.
    """

    sequence: int
    first: int
    count: int
    attempt: int
    outcomes: bytes
    not_final: list[Run] = field(default_factory=list)
    amount_ucredits: int = 0
    wall_us: int = 0
    cpu_us: int = 0
    peak_kib: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFact:
    """A job's row and what its event log says.

    ``status``: its last ``RecordState``, None before the first; of a final job nothing else but the
    row is needed. ``is_hold_granted``: a ``hold.granted`` line; ``refusal``: (code, message) of a
    ``hold.refused`` line. ``closed_at``: count of its ``upload.closed`` line. ``pause_reason``: of
    a ``job.paused`` line without a later ``job.resumed``. ``is_cancelled``: a ``cancel.asked`` line
    without runs; ``cancelled_runs``: runs of the others. ``is_capped``: a ``cap.reached`` line;
    ``noticed_percent``: the most of its ``cap.notice`` lines.
    ``failed_at_resume``: of its last ``job.resumed`` line. ``losses``: (subtask, attempt) that was
    cut with its worker, of each ``lease.rescued`` line; ``rescued``: the leases of these lines.
    ``votes``: (subtask, vote) of results that were not decided; ``unpaid``: (results, micro-credits
    together) of each ``result.unpaid`` line. ``canary``: of a ``canary.set`` line.
    """

    job: int
    tenant: str
    submission: bytes
    spec: JobSpec
    tariffs: Tariffs
    submitted_utc_ms: int
    status: JobStatus | None = None
    is_hold_granted: bool = False
    refusal: tuple[str, str] | None = None
    closed_at: int = -1
    pause_reason: str = ""
    is_cancelled: bool = False
    cancelled_runs: list[Run] = field(default_factory=list)
    is_capped: bool = False
    noticed_percent: int = 0
    failed_at_resume: int = 0
    losses: list[tuple[int, int]] = field(default_factory=list)
    votes: list[tuple[int, Vote]] = field(default_factory=list)
    unpaid: list[tuple[int, int]] = field(default_factory=list)
    canary: Canary | None = None
    rescued: list[int] = field(default_factory=list)
    parcels: Iterable[ParcelFact] = ()
    results: Iterable[ResultFact] = ()


def rebuild(
    config: Config,
    incarnation: int,
    facts: Iterable[JobFact],
    now_ms: int,
    now_utc_ms: int,
    workers: Iterable[str] = (),
    shares: Mapping[str, float] = MappingProxyType({}),
    standings: Mapping[str, Standing] = MappingProxyType({}),
) -> tuple[State, list[AnyEffect]]:
    """The state that these facts (in order of job number) leave, and what is to be done next.

    ``workers``: names of those that were there when the broker ended. ``shares``: what tenants had
    been charged by then. ``standings``: what was known of nodes.
    """
    state = State.new(config, incarnation)
    state.standings.update(standings)
    state.utc_offset_ms = now_utc_ms - now_ms
    state.drain.at_ms = now_ms
    effects: list[AnyEffect] = []
    for fact in facts:
        state.job_counter = max(state.job_counter, fact.job)
        if fact.status is not None and fact.status.state in FINAL_JOB_STATES:
            known = (fact.job, content_digest(fact.spec))
            state.submissions[fact.tenant, fact.submission] = known
            state.remember(fact.job, Finished(fact.tenant, fact.status, fact.submission))
        else:
            _restore(state, fact, now_ms, effects)
    for name, share in shares.items():
        if name in state.tenants:
            state.tenants[name].share = max(0.0, share)
    begin_wait(state, list(workers), now_ms)
    place(state, now_ms, effects)
    return state, effects


def _restore(state: State, fact: JobFact, now_ms: int, effects: list[AnyEffect]) -> None:
    spec = fact.spec
    submitted_ms = fact.submitted_utc_ms - state.utc_offset_ms
    event = JobSubmitted(
        0, 0, fact.tenant, fact.submission, spec, fact.tariffs, fact.submitted_utc_ms
    )
    job = add_job(state, fact.job, event, submitted_ms)
    if fact.canary is not None:
        set_canary(state, job, fact.canary)
    for parcel in fact.parcels:
        job.parcels.add(parcel.first, parcel.count, parcel.codec, parcel.body_bytes)
        job.columns.grow(parcel.count)
        if parcel.is_freed:
            job.freed, job.bytes_freed = parcel.count, parcel.body_bytes
        if job.count < 0:
            state.add_queued(job, parcel.count)
    _restore_upload(state, job, fact)
    is_ended = fact.is_cancelled or fact.is_capped or fact.refusal is not None
    for result in fact.results:
        _replay_result(state, job, result, is_ended)
    _restore_losses(job, fact.losses)
    _restore_votes(job, fact, effects)
    state.rescued.update(dict.fromkeys(fact.rescued))
    _restore_ready(job)
    job.failed_at_resume = fact.failed_at_resume
    job.noticed_percent = fact.noticed_percent
    if fact.status is not None:
        job.started_utc_ms = fact.status.started_ms
        job.state = "running" if job.started_utc_ms else "accepted"
        job.superseded = fact.status.superseded
    _restore_intent(state, job, fact, now_ms, effects)
    if job.number in state.jobs:
        state.enlist(job)
        endings.complete(state, job, now_ms, effects)


def _restore_upload(state: State, job: Job, fact: JobFact) -> None:
    job.tenant.parcel_bytes += job.parcels.bytes_total - job.bytes_freed
    job.committed = job.uploaded
    job.bytes_committed = job.parcels.bytes_total
    job.bytes_allowed = job.bytes_committed + state.config.input_credit_bytes
    if fact.closed_at >= 0 and job.count != fact.closed_at:
        if job.count > fact.closed_at:
            state.add_queued(job, -(job.count - fact.closed_at))
        job.count = fact.closed_at
    if job.count == job.uploaded:
        endings.close_upload(state, job)
    else:
        state.uploads.setdefault(0, {})[job.number] = None


def _restore_intent(
    state: State, job: Job, fact: JobFact, now_ms: int, effects: list[AnyEffect]
) -> None:
    """What the ledger, the tenant and the cap had decided before the restart."""
    needs_hold = bool(not job.is_free and job.spec.cap_ucredits and job.count != 0)
    if needs_hold and fact.refusal is not None:
        job.hold = "refused"
        code, message = fact.refusal
        endings.end_rest(state, job, Outcome.BUDGET, "failed", code, message, now_ms, effects)
        return
    if needs_hold:
        job.hold = "granted" if fact.is_hold_granted else "asked"
        if job.hold == "asked":
            effects.append(AddToOutbox(endings.hold_of(state, job, fact.tenant)))
    if fact.is_cancelled:
        message = "cancelled by its tenant"
        endings.end_rest(
            state, job, Outcome.CANCELLED, "cancelled", "CANCELLED", message, now_ms, effects
        )
    elif fact.is_capped:
        endings.reach_cap(state, job, now_ms, effects)
    else:
        if fact.cancelled_runs:
            runs = normalise(fact.cancelled_runs, max(job.count, job.uploaded))
            endings.cancel_runs(state, job, runs, now_ms, effects)
        if fact.pause_reason and job.number in state.jobs:
            job.is_paused, job.pause_reason, job.state = True, fact.pause_reason, "paused"


def _replay_result(state: State, job: Job, fact: ResultFact, is_ended: bool) -> None:
    job.sequence = max(job.sequence, fact.sequence)
    job.spent_ucredits += fact.amount_ucredits
    job.wall_us += fact.wall_us
    job.cpu_us += fact.cpu_us
    job.peak_kib = max(job.peak_kib, fact.peak_kib)
    again = normalise(fact.not_final, max(job.uploaded, fact.first + fact.count))
    uniform = fact.outcomes[0] if len(fact.outcomes) == 1 else 0
    column = b"" if len(fact.outcomes) == 1 else fact.outcomes
    for first, count, number in groups(fact.first, fact.count, uniform, column):
        outcome = Outcome(number)
        unknown = first + count - max(first, job.uploaded)
        if unknown > 0 and is_ended:  # the rest of an ended job, whose inputs never came
            job.waiting_ended += unknown
            _count_end(state, job, first + count - unknown, unknown, outcome, fact)
        # What a damaged journal contradicts is left out: it runs again, and nothing breaks.
        run = job.columns.part_of(first, min(count, job.uploaded - first), READY)
        for start, length in subtract(run, again):
            _count_end(state, job, start, length, outcome, fact)
            word = _WORDS.get(outcome, FAILED)
            job.columns.finish(start, length, word, fact.attempt, job.is_closed)
        for start, length in intersect(run, again):
            is_vote = job.check is not None and outcome in OWN_DOING
            if outcome is not Outcome.BUDGET and not is_vote:
                is_loss = outcome not in OWN_DOING
                for at, size, spent in list(job.columns.spent(start, length, is_loss)):
                    job.columns.set_spent(at, size, is_loss, spent + 1)
                job.lost += length if is_loss else 0
                job.retried += length
            job.columns.spend(start, length, fact.attempt)
    if fact.wall_us and fact.count:
        job.measure(fact.wall_us, fact.count)
        job.ramp = max(job.ramp, min(2 * fact.count, LEASE_ITEMS_MAX))


def _count_end(
    state: State, job: Job, first: int, count: int, outcome: Outcome, fact: ResultFact
) -> None:
    if outcome is Outcome.OK:
        job.done += count
    elif outcome is Outcome.CANCELLED:
        job.cancelled += count
    else:
        job.failed += count
        job.note_error(outcome, fact.message, first, count)
    state.add_queued(job, -count)


def _restore_losses(job: Job, losses: list[tuple[int, int]]) -> None:
    """A subtask that was cut with its worker spent a loss and an attempt, which no result tells."""
    for index, attempt in losses:
        job.lost += 1
        job.retried += 1
        if not job.columns.part_of(index, min(1, job.uploaded - index), READY):
            continue  # it ended since
        ((_, _, spent),) = job.columns.spent(index, 1, True)
        ((_, _, tried),) = job.columns.attempts(index, 1)
        job.columns.set_spent(index, 1, True, spent + 1)
        job.columns.spend(index, 1, min(max(attempt, tried), ATTEMPT_MAX - 1))


def _restore_votes(job: Job, fact: JobFact, effects: list[AnyEffect]) -> None:
    """What waited for another replica waits again; what ended since is paid, as it would have been.

    A result that was not paid was counted as spent when it came.
    """
    check = job.check
    if check is None:
        return
    for results, amount in fact.unpaid:
        job.spent_ucredits -= amount
        check.unpaid += results
        check.unpaid_ucredits += amount
    for index, vote in fact.votes:
        if job.columns.part_of(index, min(1, job.uploaded - index), READY):
            check.add(index, vote)
        else:
            settle(job, [vote], True, effects)


def _restore_ready(job: Job) -> None:
    """What is not final is ready; what was tried before goes first."""
    again: list[tuple[int, int, int]] = []
    for first, count in job.columns.runs_of(READY):
        for start, length, spent in job.columns.attempts(first, count):
            if spent:
                again.append((start, length, spent + 1))
            else:
                job.ready.add_last(start, length, 1)
    for start, length, attempt in reversed(again):
        job.ready.add_first([(start, length)], attempt)
