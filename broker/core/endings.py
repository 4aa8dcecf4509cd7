"""How leases, subtasks and jobs end when no result says so, and how a job becomes final.

A subtask becomes final in exactly one place for each way: here (cancelled, lost, out of budget) or
in ``results.py`` (a worker's result). Both go through ``Columns.finish`` and one ``KeepResult``.
"""

from __future__ import annotations

import heapq

from gristmill.broker.core import journal_names as names
from gristmill.broker.core.cards import job_status
from gristmill.broker.core.checks import abandon
from gristmill.broker.core.columns import CANCELLED, FAILED, READY
from gristmill.broker.core.credit import release_stalled
from gristmill.broker.core.effects import (
    AddToOutbox,
    AnyEffect,
    CloseJob,
    FreeJob,
    KeepResult,
    RecallLease,
    RecordEvent,
    RecordState,
    StopLease,
    TellStatus,
)
from gristmill.broker.core.jobs import Job
from gristmill.broker.core.leases import Lease
from gristmill.broker.core.runs import intersect, normalise, subtract, total
from gristmill.broker.core.state import Finished, State
from gristmill.wire.ledger import Hold, Release
from gristmill.wire.outcome import Outcome
from gristmill.wire.units import format_credits
from gristmill.wire.worker import Run

CAP_NOTICES = (50, 80, 100)  #: percent of its cap at which a job's tenant is told


def hold_ref(state: State, job: Job) -> str:
    """The ledger's name of the job's hold, which its contributions carry too."""
    return f"{state.config.broker}/{job.number}"


def hold_of(state: State, job: Job, tenant: str) -> Hold:
    """What is asked of the ledger for the job."""
    return Hold(hold_ref(state, job), tenant, job.spec.cap_ucredits, job.spec.rental)


def close_lease(state: State, lease: Lease, now_ms: int) -> None:
    """The lease is over: its slot has room, its budget's rest and its charge are put right."""
    job, slot = lease.job, lease.slot
    worker, tenant = slot.worker, job.tenant
    was_head = lease.is_head
    slot.leases.remove(lease)
    slot.reclaim()
    if was_head and slot.leases:
        slot.leases[0].head_ms = now_ms
    del state.leases[lease.number]
    del worker.leases[lease.number]
    del job.leases[lease.number]
    state.recallable.pop(lease.number, None)
    if not any(other.job is job for other in slot.leases):
        job.slots -= 1
    if not any(other.job.tenant is tenant for other in slot.leases):
        if tenant.slots_max and tenant.slots == tenant.slots_max:
            state.reopen(tenant)
        tenant.slots -= 1
    job.leased -= lease.items
    job.outstanding_ucredits -= lease.budget_ucredits
    job.is_waiting_for_budget = False
    tenant.leases -= 1
    tenant.charge(lease.used_us - lease.charged_us)
    state.index_slot(slot)
    state.dirty_workers[worker.number] = None
    state.enlist(job)
    state.rest(tenant)


def give_back(
    state: State,
    lease: Lease,
    runs: list[Run],
    now_ms: int,
    effects: list[AnyEffect],
    items_max: int = 0,
) -> None:
    """Runs of a lease that come back unspent: ready again, or ended if nobody wants them now.

    They are already out of ``lease.open``; the caller closes the lease when it is empty.
    """
    job = lease.job
    lease.items -= total(runs)
    job.leased -= total(runs)
    gone = runs if job.ending is not None else intersect(runs, job.cancelling)
    if gone:
        outcome = job.ending if job.ending is not None else Outcome.CANCELLED
        end_runs(state, job, gone, outcome, lease.attempt - 1, now_ms, effects)
        runs = subtract(runs, normalise(gone, job.uploaded))
    if runs:
        for start, length in runs:
            job.columns.set_state(start, length, READY)
        job.ready.add_first(runs, lease.attempt, items_max)
    state.enlist(job)
    state.changed[job.number] = None


def end_runs(
    state: State,
    job: Job,
    runs: list[Run],
    outcome: Outcome,
    attempt: int,
    now_ms: int,
    effects: list[AnyEffect],
    lease: Lease | None = None,
    message: str = "",
) -> None:
    """These subtasks (ready or leased, in no queue) end without a worker's result."""
    is_cancel = outcome is Outcome.CANCELLED
    if not message:
        message = job.ending_message if job.ending is outcome else job.explain(outcome)
    for start, length in runs:
        state_now = CANCELLED if is_cancel else FAILED
        job.columns.finish(start, length, state_now, attempt, job.is_closed)
        _tell_end(state, job, start, length, outcome, attempt, message, effects, lease)
        if job.check is not None:
            abandon(job, start, length, effects)
    state.add_queued(job, -total(runs))
    state.drain.finished += total(runs)


def _tell_end(
    state: State,
    job: Job,
    start: int,
    length: int,
    outcome: Outcome,
    attempt: int,
    message: str,
    effects: list[AnyEffect],
    lease: Lease | None = None,
) -> None:
    if outcome is Outcome.CANCELLED:
        job.cancelled += length
    else:
        job.failed += length
        job.note_error(outcome, message, start, length)
    job.sequence += 1
    effects.append(
        KeepResult(
            job.number,
            job.sequence,
            0,
            start,
            length,
            attempt,
            0,
            lease.slot.worker.node if lease else "",
            int(outcome),
            message,
            [],
        )
    )


def end_rest(
    state: State,
    job: Job,
    outcome: Outcome,
    final_state: str,
    code: str,
    message: str,
    now_ms: int,
    effects: list[AnyEffect],
) -> None:
    """Ends whatever of the job does not run, and stops what does. Idempotent.

    The job becomes final (``final_state``) when nothing of it runs any more.
    """
    if job.ending is not None:
        return
    job.ending, job.ending_state = outcome, final_state
    job.ending_code, job.ending_message = code, message
    for start, length, attempt, _ in job.ready.clear():
        end_runs(state, job, [(start, length)], outcome, attempt - 1, now_ms, effects)
    waiting = job.count - job.uploaded - job.waiting_ended if job.count >= 0 else 0
    if waiting > 0:  # their inputs never came: they have no columns, only a count
        _tell_end(state, job, job.uploaded, waiting, outcome, 0, message, effects)
        job.waiting_ended = waiting
        state.add_queued(job, -waiting)
        state.drain.finished += waiting
    if job.count < 0:
        job.count = job.uploaded
    close_upload(state, job)
    for number in list(job.leases):
        lease = state.leases[number]
        lease.stopped_ms = lease.stopped_ms or now_ms
        effects.append(StopLease(lease.slot.worker.number, number, int(outcome)))
    state.changed[job.number] = None
    complete(state, job, now_ms, effects)


def close_upload(state: State, job: Job) -> None:
    """No subtask will be added to the job."""
    job.is_closed = True
    job.columns.close()
    uploads = state.uploads.get(job.client)
    if uploads is not None:
        uploads.pop(job.number, None)
        if not uploads:
            del state.uploads[job.client]


def cancel_runs(
    state: State, job: Job, runs: list[Run], now_ms: int, effects: list[AnyEffect]
) -> None:
    """Cancels these runs (normalised): ready ones now, leased ones when the worker lets go.

    Those whose inputs have not come yet end when they come.

    A lease that is wholly unwanted is stopped. Of one that is partly wanted only what has not
    started can be asked back; what runs of it then is stopped when nothing else is left in it.
    """
    job.cancelling = normalise([*job.cancelling, *runs], max(job.count, job.uploaded))
    for start, length, attempt, _ in list(job.ready.runs):
        gone = intersect([(start, length)], runs)
        if gone:
            end_runs(state, job, gone, Outcome.CANCELLED, attempt - 1, now_ms, effects)
    job.ready.remove(runs)
    for number in list(job.leases):
        lease = state.leases[number]
        if intersect(lease.open, runs):
            stop_unwanted(lease, now_ms, effects)
    state.changed[job.number] = None
    complete(state, job, now_ms, effects)


def stop_unwanted(lease: Lease, now_ms: int, effects: list[AnyEffect]) -> None:
    """Stops a lease all of whose open runs are to be cancelled, or asks back what it can."""
    if lease.is_stopped:
        return
    number, worker = lease.number, lease.slot.worker.number
    if not subtract(lease.open, lease.job.cancelling):
        lease.stopped_ms = now_ms
        effects.append(StopLease(worker, number, int(Outcome.CANCELLED)))
    elif not lease.is_recalled:
        lease.is_recalled = True
        effects.append(RecallLease(worker, number))


def stop_unwanted_rest(lease: Lease, now_ms: int, effects: list[AnyEffect]) -> None:
    """After part of a lease ended: what is left may now be wholly unwanted."""
    if intersect(lease.open, lease.job.cancelling):
        stop_unwanted(lease, now_ms, effects)


def note_spending(
    state: State, job: Job, now_ms: int, effects: list[AnyEffect], upto: int = 0
) -> None:
    """Tells once each that half, four fifths and all of the cap is spent.

    ``upto``: as if so many percent were: of a cap of which the rest is too little for anything.
    """
    cap, spent = job.spec.cap_ucredits, job.spent_ucredits
    for percent in CAP_NOTICES:
        is_due = spent * 100 >= percent * cap or percent <= upto
        if percent <= job.noticed_percent or not is_due or not cap or job.is_free:
            continue
        job.noticed_percent = percent
        detail: dict[str, str | int | list[Run]] = {
            "percent": percent,
            "spent_ucredits": spent,
            "cap_ucredits": cap,
        }
        effects.append(RecordEvent(job.number, names.CAP_NOTICE, detail, now_ms))
        state.changed[job.number] = None


def reach_cap(state: State, job: Job, now_ms: int, effects: list[AnyEffect]) -> None:
    """The job's cap is spent: the rest ends as BUDGET."""
    cap, spent = job.spec.cap_ucredits, job.spent_ucredits
    message = (
        f"the job spent {format_credits(spent)} of its cap of {format_credits(cap)} credits;"
        " submit what is left with a higher --cap"
    )
    detail: dict[str, str | int | list[Run]] = {"spent_ucredits": spent, "cap_ucredits": cap}
    note_spending(state, job, now_ms, effects, upto=100)
    effects.append(RecordEvent(job.number, names.CAP_REACHED, detail, now_ms))
    end_rest(state, job, Outcome.BUDGET, "failed", "CAP_REACHED", message, now_ms, effects)


def reach_enough(state: State, job: Job, now_ms: int, effects: list[AnyEffect]) -> None:
    """As many subtasks ended OK as the completion rule asks for: the rest is not needed."""
    message = f"not needed: {job.done_min} of completion {job.spec.completion!r} are done"
    end_rest(state, job, Outcome.CANCELLED, "done", "", message, now_ms, effects)


def pause(state: State, job: Job, reason: str, now_ms: int, effects: list[AnyEffect]) -> None:
    """No more leases; what runs goes on."""
    if job.is_paused or job.ending is not None:
        return
    job.is_paused, job.pause_reason, job.state = True, reason, "paused"
    effects.append(RecordEvent(job.number, names.PAUSED, {"reason": reason}, now_ms))
    tell_state(state, job, now_ms, effects)


def tell_state(state: State, job: Job, now_ms: int, effects: list[AnyEffect]) -> None:
    """The job's state changed: journal and subscribers get its card."""
    status = job_status(state, job, now_ms)
    effects.append(RecordState(job.number, status))
    effects.append(TellStatus(job.number, status))
    job.told_ms = now_ms


def complete(state: State, job: Job, now_ms: int, effects: list[AnyEffect]) -> None:
    """Makes the job final if all of it is: card, release of the hold, everybody told, freed."""
    if not job.is_complete or job.number not in state.jobs:
        return
    assert not job.leases and not job.ready.count
    if job.ending_state:
        job.state = job.ending_state
    elif job.failed and not job.has_enough:
        job.state, job.ending_code = "failed", "JOB_FAILED"
    elif job.cancelled and not job.done:
        job.state = "cancelled"
    else:
        job.state = "done"
    job.finished_utc_ms = state.utc(now_ms)
    status = job_status(state, job, now_ms)
    effects.append(RecordState(job.number, status))
    if job.hold != "none":  # a refused one, too: asked again after a restart, it may be granted
        effects.append(AddToOutbox(Release(hold_ref(state, job))))
    effects.append(TellStatus(job.number, status))
    effects.append(FreeJob(job.number))
    for number in job.workers:
        worker = state.workers.get(number)
        if worker is not None:
            worker.jobs.pop(job.number, None)
            worker.shunned.pop(job.number, None)
            effects.append(CloseJob(number, job.number))
    _forget(state, job, Finished(job.tenant.name, status, job.submission))
    if job.tenant.stalled:
        release_stalled(state, job.tenant, effects)


def _forget(state: State, job: Job, finished: Finished) -> None:
    tenant = job.tenant
    del state.jobs[job.number]
    state.canaries.pop(job.number, None)
    state.changed.pop(job.number, None)
    tenant.stalled.pop(job.number, None)
    tenant.jobs -= 1
    tenant.parcel_bytes -= job.parcels.bytes_total - job.bytes_freed
    job.requirement.jobs.pop(job.number, None)
    state.remember(job.number, finished)
    if job.is_queued:
        _leave_lane(state, job)
    state.forget_requirement(job.requirement)


def _leave_lane(state: State, job: Job) -> None:
    """A final job that heads its lane leaves it; deeper in it is dropped when it comes up."""
    requirement = job.requirement
    lane = requirement.lanes[job.tenant.order]
    if lane.jobs[0][2] is not job:
        return
    heapq.heappop(lane.jobs)
    state.note_dequeued(job)
    if not lane.jobs:
        requirement.drop_lane(lane)
    if not requirement.lanes:
        state.ready.pop(requirement.key, None)
        requirement.is_starved = False
