"""Results: everything that a worker says is checked against its lease before anything changes.

A result that does not name a current lease of that worker and a range still open in it is
*superseded*: counted, told by an event (the first few of a worker, then ever fewer), never used,
never billed. A range of which every subtask ended OK (the common case) is a few slice assignments;
a mixed one is judged by runs of equal outcome.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from gristmill.broker.core import endings, quorum
from gristmill.broker.core import journal_names as names
from gristmill.broker.core.checks import Check, Vote, abandon
from gristmill.broker.core.columns import ATTEMPT_MAX, CANCELLED, DONE, FAILED
from gristmill.broker.core.effects import (
    AddToOutbox,
    AmendCard,
    AnyEffect,
    KeepResult,
    KeepSuperseded,
    KeepVote,
    RecordEvent,
)
from gristmill.broker.core.events import ResultArrived
from gristmill.broker.core.jobs import Job
from gristmill.broker.core.leases import Lease, next_ramp
from gristmill.broker.core.pricing import (
    bill,
    billed_subtasks,
    clamp_cpu,
    clamp_wall,
    least_ucredits,
)
from gristmill.broker.core.runs import cut, find, intersect, normalise, subtract
from gristmill.broker.core.state import State
from gristmill.broker.core.workers import Worker
from gristmill.wire.ledger import Contribution
from gristmill.wire.limits import LEASE_ITEMS_MAX
from gristmill.wire.outcome import GRIDS_DOING, Outcome
from gristmill.wire.spec import toll_of
from gristmill.wire.worker import Run

REFUSALS_TOLD = 4  #: of one worker, each with an event; then the 8th, the 16th, the 32nd, ...
REFUSALS_QUIET_MS = 60_000  #: without one: the count begins again
OUTCOME_MIXED = -1  #: ``KeepResult.outcome`` of a result whose subtasks ended differently
_OUTCOMES = {int(outcome): outcome for outcome in Outcome}


def on_result(state: State, event: ResultArrived, now_ms: int, effects: list[AnyEffect]) -> None:
    """Accepts a result, or keeps it as superseded. A repeated one (by number) is only acked.

    One behind a gap is not taken, or its ack would be one of what was lost: the worker sees that
    its report was answered without an ack, and says everything from the gap on again.
    """
    worker = state.workers.get(event.worker)
    if worker is None:
        return
    head, meter = event.head, event.meter
    if head.number != worker.results_upto + 1:
        return
    worker.results_upto = head.number
    state.utc_offset_ms = event.now_utc_ms - now_ms
    lease = worker.leases.get(head.lease_id)
    if lease is None or lease.job.number != head.job or head.count <= 0:
        _supersede(state, event, worker, "not a current lease", now_ms, effects)
        return
    position = find(lease.open, head.first, head.count)
    if position < 0:
        _supersede(state, event, worker, "not open in its lease", now_ms, effects)
        return
    if meter.count != head.count or (meter.outcome and len(meter.outcome) != head.count):
        _supersede(state, event, worker, f"a meter of {meter.count} subtasks", now_ms, effects)
        return
    if meter.uniform not in _OUTCOMES or _has_returned(meter.uniform, meter.outcome):
        _supersede(state, event, worker, "an outcome that no result has", now_ms, effects)
        return
    if lease.job.check is not None:
        cause = _uncounted(lease.job.check, event, worker)
        if cause:
            _supersede(state, event, worker, cause, now_ms, effects)
            return
    _accept(state, event, worker, lease, position, now_ms, effects)


def _uncounted(check: Check, event: ResultArrived, worker: Worker) -> str:
    """Why a result cannot be compared with others; empty when it can."""
    if event.head.count != 1:
        meter = event.meter
        if any(map(quorum.is_vote, meter.outcome or bytes([meter.uniform]))):
            return f"{event.head.count} subtasks in one result of a job with a quorum"
        return ""
    if check.has_voted(event.head.first, worker):
        return "its owner has made a result of it already"
    return ""


def _has_returned(uniform: int, outcome: bytes) -> bool:
    if not outcome:
        return uniform == Outcome.RETURNED
    return max(outcome) >= Outcome.RETURNED


def _supersede(
    state: State,
    event: ResultArrived,
    worker: Worker,
    cause: str,
    now_ms: int,
    effects: list[AnyEffect],
) -> None:
    head = event.head
    count = min(max(head.count, 0), LEASE_ITEMS_MAX)
    job = state.jobs.get(head.job)
    was_its_own = state.taken.get(head.lease_id) == (head.job, worker.node)
    if job is not None and (was_its_own or worker.number in job.workers):
        job.superseded += count
        state.changed[job.number] = None
    elif job is None and was_its_own and head.job in state.finished:
        # The other attempt has ended the job meanwhile: its card says that there was one more.
        finished = state.finished[head.job]
        told = finished.status.superseded + count
        finished.status = msgspec.structs.replace(finished.status, superseded=told)
        effects.append(AmendCard(head.job, finished.tenant, finished.status))
    effects.append(
        KeepSuperseded(head.job, head.lease_id, head.first, head.count, worker.node, event.ref)
    )
    if not _is_told(worker, now_ms):
        return
    detail: dict[str, str | int | list[Run]] = {
        "lease": head.lease_id,
        "node": worker.node,
        "cause": cause,
        "runs": [(head.first, head.count)],
        "cpu_us": head.cpu_us,
    }
    if worker.refusals > REFUSALS_TOLD:
        detail["refusals"] = worker.refusals
    effects.append(RecordEvent(head.job, names.RESULT_REFUSED, detail, now_ms))


def _is_told(worker: Worker, now_ms: int) -> bool:
    """Whether this refused result gets an event, or is counted only.

    A forged result changes nothing: a flood of them must not fill the journal and the log. What an
    honest worker says late, after it was given up, is a few results, and each is told.
    """
    if now_ms - worker.refused_ms > REFUSALS_QUIET_MS:
        worker.refusals = 0
    worker.refused_ms = now_ms
    worker.refusals += 1
    return worker.refusals <= REFUSALS_TOLD or worker.refusals.bit_count() == 1


def _accept(
    state: State,
    event: ResultArrived,
    worker: Worker,
    lease: Lease,
    position: int,
    now_ms: int,
    effects: list[AnyEffect],
) -> None:
    head, meter, job = event.head, event.meter, lease.job
    first, count = head.first, head.count
    wall_us = clamp_wall(lease, head.wall_us, now_ms)
    cpu_us = clamp_cpu(lease, head.cpu_us, now_ms)
    billed, is_billed, failed = billed_subtasks(count, meter.uniform, meter.outcome)
    amount = bill(lease, cpu_us, wall_us, billed) if is_billed else 0
    lease.cpu_us += cpu_us
    lease.wall_us += wall_us
    lease.budget_ucredits -= amount
    lease.used_us += wall_us * job.spec.limits.cpus_milli / 1000
    job.outstanding_ucredits -= amount
    job.spent_ucredits += amount
    job.wall_us += wall_us
    job.cpu_us += cpu_us
    job.peak_kib = max(job.peak_kib, head.peak_kib)
    cut(lease.open, position, first, count)
    lease.items -= count
    job.leased -= count
    worker.done += count
    is_cap_reached = False
    not_final: list[Run] = []
    ruling = ""
    if not meter.outcome and meter.uniform == 0 and job.check is None:
        job.columns.finish(first, count, DONE, lease.attempt, job.is_closed)
        job.done += count
        job.measure(wall_us, count)
        ended = count
    elif job.check is None or not quorum.is_vote(outcome_of(event)):
        not_final, is_cap_reached = _judge(state, event, lease)
        if is_billed:
            job.measure(wall_us, count)
        ended = count - sum(length for _, length in not_final)
    else:
        job.measure(wall_us, count)
        ruling = _compare(state, event, lease)
        ended = int(ruling in (quorum.TAKEN, quorum.DECIDED))
        not_final = [] if ended else [(first, count)]
    state.add_queued(job, -ended)
    state.drain.finished += ended
    job.sequence += 1
    effects.append(
        KeepResult(
            job.number,
            job.sequence,
            event.ref,
            first,
            count,
            lease.attempt,
            lease.number,
            worker.node,
            OUTCOME_MIXED if meter.outcome else meter.uniform,
            "",
            not_final,
        )
    )
    contribution = None
    if is_billed and not job.is_free:
        ref = endings.hold_ref(state, job)
        contribution = _contribution(
            event, worker, lease, ref, billed, failed, wall_us, cpu_us, amount
        )
        if ruling != quorum.HELD:
            effects.append(AddToOutbox(contribution))
    accused: list[tuple[str, str]] = []
    if job.check is not None:
        if ruling == quorum.HELD:
            _hold(event, worker, lease, amount, contribution, effects)
        elif ruling:
            accused = _settle(state, event, lease, ruling, now_ms, effects)
            not_final = []
        else:
            for start, length in subtract([(first, count)], normalise(not_final, job.uploaded)):
                abandon(job, start, length, effects)
    if amount:
        endings.note_spending(state, job, now_ms, effects)
    _after(state, worker, lease, not_final, is_cap_reached, now_ms, effects)
    for node, cause in accused:
        quorum.quarantine(state, node, cause, now_ms, effects)


# ---------------------------------------------------------------- of a job with a quorum


def outcome_of(event: ResultArrived) -> int:
    """How the one subtask of a result ended."""
    return event.meter.outcome[0] if event.meter.outcome else event.meter.uniform


def _compare(state: State, event: ResultArrived, lease: Lease) -> str:
    """What becomes of the result (``quorum.TAKEN`` ...); the subtask is final, or ready again."""
    job, index, outcome = lease.job, event.head.first, outcome_of(event)
    ruling = quorum.rule(state, lease, index, outcome, _digest(event), event.dice)
    if ruling == quorum.HELD:
        job.columns.spend(index, 1, lease.attempt)
    elif ruling in (quorum.TAKEN, quorum.DECIDED):
        text = next((text for offset, text in event.failures if offset == 0), "")
        quorum.finish(job, index, outcome, lease.attempt, text)
    return ruling


def _digest(event: ResultArrived) -> bytes:
    """What is compared: of a failure its outcome alone, since its words may differ."""
    return event.digest if outcome_of(event) == Outcome.OK else b""


def _hold(
    event: ResultArrived,
    worker: Worker,
    lease: Lease,
    amount: int,
    entry: Contribution | None,
    effects: list[AnyEffect],
) -> None:
    job, index = lease.job, event.head.first
    vote = Vote(
        job.sequence, lease.attempt, worker.owner, worker.node, lease.number, outcome_of(event),
        _digest(event), amount,
    )  # fmt: skip
    quorum.hold(job, index, vote)
    effects.append(
        KeepVote(
            job.number, vote.sequence, index, vote.attempt, vote.owner, vote.node, vote.lease,
            vote.outcome, vote.digest, amount, entry,
        )
    )  # fmt: skip


def _settle(
    state: State,
    event: ResultArrived,
    lease: Lease,
    ruling: str,
    now_ms: int,
    effects: list[AnyEffect],
) -> list[tuple[str, str]]:
    """The subtask is over; (node, cause) of those that go into quarantine for it."""
    job, index = lease.job, event.head.first
    if job.check is not None and job.check.canary is not None:
        is_right = ruling == quorum.DECIDED
        return quorum.end_canary(state, lease, index, is_right, now_ms, effects)
    if ruling == quorum.DECIDED:
        return quorum.decide(
            state, lease, index, outcome_of(event), _digest(event), now_ms, effects
        )
    if ruling == quorum.SPLIT:
        quorum.split(state, lease, index, outcome_of(event), _digest(event), now_ms, effects)
    elif ruling == quorum.UNWANTED:
        outcome = job.ending if job.ending is not None else Outcome.CANCELLED
        endings.end_runs(state, job, [(index, 1)], outcome, lease.attempt, now_ms, effects)
    return []


def _contribution(
    event: ResultArrived,
    worker: Worker,
    lease: Lease,
    ref: str,
    billed: int,
    failed: int,
    wall_us: int,
    cpu_us: int,
    amount: int,
) -> Contribution:
    head, tariff, job = event.head, lease.tariff, lease.job
    return Contribution(
        ref,
        lease.job.tenant.name,
        worker.node,
        head.lease_id,
        head.first,
        head.count,
        lease.attempt,
        billed,
        failed,
        wall_us,
        cpu_us,
        head.peak_kib,
        head.metering,
        head.is_estimated,
        amount,
        toll_of(amount),
        event.now_utc_ms,
        0 if job.check is None else len(job.check.votes.get(head.first, ())),
        head.signature,
        cpu_second_ucredits=tariff.cpu_second_ucredits,
        subtask_ucredits=tariff.subtask_ucredits,
        gib_second_ucredits=tariff.gib_second_ucredits,
        memory_bytes=lease.job.spec.limits.memory_bytes,
        node_class=worker.node_class,
    )


def _after(
    state: State,
    worker: Worker,
    lease: Lease,
    not_final: list[Run],
    is_cap_reached: bool,
    now_ms: int,
    effects: list[AnyEffect],
) -> None:
    """Retries go back into the queue; the lease, the pause, the cap and the job's end follow."""
    job = lease.job
    if not_final:
        job.ready.add_first(not_final, lease.attempt + 1)
    state.enlist(job)  # also when only its concurrency has room again
    if not lease.items:
        job.ramp = next_ramp(lease)
        endings.close_lease(state, lease, now_ms)
    elif job.cancelling:
        endings.stop_unwanted_rest(lease, now_ms, effects)
    if worker.shunned:
        worker.shunned.pop(job.number, None)
    most = job.spec.failures_max
    failed = job.failed - job.failed_at_resume
    if most and failed >= most and not job.done and not job.is_complete:
        reason = f"{job.failed} subtasks failed and none was done; failures_max is {most}"
        endings.pause(state, job, reason, now_ms, effects)
    if job.done_min and job.has_enough:
        endings.reach_enough(state, job, now_ms, effects)
    if is_cap_reached:
        endings.reach_cap(state, job, now_ms, effects)
    state.changed[job.number] = None
    endings.complete(state, job, now_ms, effects)


def groups(first: int, count: int, uniform: int, outcome: bytes) -> Iterator[tuple[int, int, int]]:
    """(first, count, outcome) of each run of equal outcome."""
    if not outcome:
        yield first, count, uniform
        return
    at = 0
    while at < count:
        value, end = outcome[at], at + 1
        while end < count and outcome[end] == value:
            end += 1
        yield first + at, end - at, value
        at = end


def _judge(state: State, event: ResultArrived, lease: Lease) -> tuple[list[Run], bool]:
    """Decides each run of equal outcome. Returns (runs to be tried again, is the cap reached)."""
    head, meter, job = event.head, event.meter, lease.job
    texts = {offset: text for offset, text in event.failures if 0 <= offset < head.count}
    not_final: list[Run] = []
    is_cap_reached = False
    for first, count, number in groups(head.first, head.count, meter.uniform, meter.outcome):
        outcome = _OUTCOMES[number]
        if outcome is Outcome.OK:
            job.columns.finish(first, count, DONE, lease.attempt, job.is_closed)
            job.done += count
            continue
        if outcome is Outcome.CANCELLED:
            _judge_cancelled(job, lease, first, count, not_final)
            continue
        if outcome is Outcome.BUDGET:
            if _may_have_more(job, lease):
                # A larger one next time: twice what this lease had been given.
                floor = max(2 * lease.granted_ucredits, least_ucredits(lease.tariff))
                job.budget_floor_ucredits = max(job.budget_floor_ucredits, floor)
                job.columns.spend(first, count, lease.attempt)
                not_final.append((first, count))
                continue
            is_cap_reached = True
            _fail(job, lease, first, count)
        else:
            _spend(job, lease, first, count, outcome in GRIDS_DOING, not_final)
        for offset in range(first - head.first, first - head.first + count):
            job.note_error(outcome, texts.get(offset, ""), head.first + offset, 1)
    return not_final, is_cap_reached and job.ending is None


def _judge_cancelled(job: Job, lease: Lease, first: int, count: int, not_final: list[Run]) -> None:
    """Cancelled where somebody asked for it; otherwise the grid's own doing."""
    is_ending = job.ending is not None
    asked = [(first, count)] if is_ending else intersect([(first, count)], job.cancelling)
    at = first
    for start, length in asked:
        if start > at:
            _spend(job, lease, at, start - at, True, not_final)
        job.columns.finish(start, length, CANCELLED, lease.attempt, job.is_closed)
        job.cancelled += length
        at = start + length
    if at < first + count:
        _spend(job, lease, at, first + count - at, True, not_final)


def _may_have_more(job: Job, lease: Lease) -> bool:
    """Whether a subtask that was stopped at its lease's budget may be tried with a larger one."""
    others = job.outstanding_ucredits - lease.budget_ucredits
    left = job.available_ucredits + lease.budget_ucredits
    return (
        job.ending is None
        and not lease.is_all_the_money
        and lease.attempt < ATTEMPT_MAX
        and (left >= least_ucredits(lease.tariff) or others > 0)
    )


def _fail(job: Job, lease: Lease, first: int, count: int) -> None:
    job.columns.finish(first, count, FAILED, lease.attempt, job.is_closed)
    job.failed += count


def _spend(
    job: Job, lease: Lease, first: int, count: int, is_loss: bool, not_final: list[Run]
) -> None:
    """Spends a retry or a loss of each; those that have one left are tried again."""
    most = job.spec.losses_max if is_loss else job.spec.retries
    for start, length, spent in list(job.columns.spent(first, count, is_loss)):
        is_wanted = job.ending is None and not intersect([(start, length)], job.cancelling)
        if is_loss:
            job.lost += length
        if spent >= most or not is_wanted or lease.attempt >= ATTEMPT_MAX:
            _fail(job, lease, start, length)
            continue
        job.columns.set_spent(start, length, is_loss, spent + 1)
        job.columns.spend(start, length, lease.attempt)
        job.retried += length
        not_final.append((start, length))
