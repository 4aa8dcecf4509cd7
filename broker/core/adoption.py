"""Leases outlive the broker: what its workers still hold after a restart goes on where it was.

Leases are not in the journal; workers say in HELLO what they hold. A lease of an earlier
incarnation is *adopted* when all that it claims is ready and at the attempt that it names: then
nobody else has it, and its results are accepted and billed once like any other. The first worker
that claims a lease gets it. Whatever cannot be adopted is stopped, and runs again.

So that it is not handed out before its holder is back, started work waits after a restart until
every worker that was there before has joined, at most ``Config.adopt_ms``. Jobs that were never
started, and new ones, do not wait.
"""

from __future__ import annotations

from gristmill.broker.core import journal_names as names
from gristmill.broker.core.cards import job_status
from gristmill.broker.core.checks import Check
from gristmill.broker.core.columns import ATTEMPT_MAX, LEASED, READY
from gristmill.broker.core.effects import AnyEffect, RecordEvent, RecordState
from gristmill.broker.core.jobs import Job
from gristmill.broker.core.leases import Lease
from gristmill.broker.core.placement import occupy, open_on
from gristmill.broker.core.pricing import least_ucredits
from gristmill.broker.core.runs import normalise, total
from gristmill.broker.core.state import State
from gristmill.broker.core.workers import Worker
from gristmill.wire.ids import unpack_lease_id
from gristmill.wire.limits import LEASE_ITEMS_MAX
from gristmill.wire.worker import Claim, Run

_RUNS_MAX = 4_096


def adopt(
    state: State, worker: Worker, claim: Claim, now_ms: int, effects: list[AnyEffect]
) -> bool:
    """Takes a lease over as it is; False when any part of it does not hold."""
    job = state.jobs.get(claim.job)
    if job is None or not _is_free(state, claim) or not 0 <= claim.slot < len(worker.slots):
        return False
    runs = _claimed(job, claim)
    if worker.is_quarantined or (job.check is not None and _has_voted(job.check, runs, worker)):
        return False
    slot, items = worker.slots[claim.slot], total(runs)
    if not items or not _has_room(job, worker, claim, items):
        return False
    budget = 0
    if not job.is_free:
        budget = max(0, min(claim.budget_ucredits, job.available_ucredits))
        if budget < least_ucredits(job.tariff_on(worker)):
            return False
    job.ready.remove(runs)
    for start, length in runs:
        job.columns.set_state(start, length, LEASED)
    # Its age bounds what it may claim; no lease of the job is older than the job's first.
    first_ms = job.started_utc_ms or job.submitted_utc_ms
    age_ms = max(0, min(claim.age_ms, state.utc(now_ms) - first_ms))
    lease = Lease(
        claim.lease_id, job, slot, claim.attempt, runs, items, items, now_ms - age_ms, now_ms,
        budget, 0.0, budget, started=claim.started, is_adopted=True,
    )  # fmt: skip
    if not slot.leases:
        slot.alive_ms = now_ms
    state.rescued[lease.number] = None  # once: what is taken away from here on stays away
    state.wake(job.tenant)
    occupy(state, lease)
    if job.state == "accepted":
        job.state, job.started_utc_ms = "running", state.utc(now_ms) - age_ms
        effects.append(RecordState(job.number, job_status(state, job, now_ms)))
    open_on(job, worker, effects)
    state.changed[job.number] = None
    detail: dict[str, str | int | list[Run]] = {
        "lease": claim.lease_id,
        "node": worker.node,
        "runs": list(runs),
    }
    effects.append(RecordEvent(job.number, names.LEASE_ADOPTED, detail, now_ms))
    return True


def _is_free(state: State, claim: Claim) -> bool:
    """Whether it is of an earlier incarnation, was not taken away in it, and nobody has it."""
    lease_id = claim.lease_id
    incarnation, counter = unpack_lease_id(lease_id) if lease_id > 0 else (0, 0)
    return 0 < incarnation < state.incarnation and counter > 0 and lease_id not in state.rescued


def _claimed(job: Job, claim: Claim) -> list[Run]:
    """The runs of a claim when all of them are ready at its attempt; else none."""
    claimed = claim.runs[: _RUNS_MAX + 1]
    if len(claimed) > _RUNS_MAX or not 0 < claim.attempt <= ATTEMPT_MAX:
        return []
    if any(start < 0 or length < 1 or start + length > job.uploaded for start, length in claimed):
        return []
    runs = normalise(claimed, job.uploaded)
    if total(runs) != total(claimed) or total(runs) > LEASE_ITEMS_MAX:
        return []
    ready = normalise(
        [part for start, length in runs for part in job.columns.part_of(start, length, READY)],
        job.uploaded,
    )
    for start, length in ready:
        for _, _, spent in job.columns.attempts(start, length):
            if spent + 1 != claim.attempt:
                return []
    # Results that are on disk and whose ack was lost are not ready any more; the rest goes on.
    if any(job.columns.part_of(start, length, LEASED) for start, length in runs):
        return []
    return ready


def _has_voted(check: Check, runs: list[Run], worker: Worker) -> bool:
    """Whether some of it is no replica of another owner's result."""
    return any(
        check.has_voted(index, worker)
        for start, length in runs
        for index in range(start, start + length)
    )


def _has_room(job: Job, worker: Worker, claim: Claim, items: int) -> bool:
    """Whether job, tenant and slot admit it, as they would a new lease."""
    requirement, tenant, slot = job.requirement, job.tenant, worker.slots[claim.slot]
    is_served = any(lease.job.tenant is tenant for lease in slot.leases)
    most = job.spec.concurrency_max
    return (
        job.ending is None
        and job.hold in ("none", "granted")
        and requirement.is_feasible(worker.pool)
        and worker.has_room_for(slot, requirement.cpus_milli, requirement.memory_bytes)
        and (not tenant.slots_max or tenant.slots < tenant.slots_max or is_served)
        and (not most or job.leased + items <= most)
    )


# ---------------------------------------------------------------- the wait


def begin_wait(state: State, workers: list[str], now_ms: int) -> None:
    """After a restart: started work waits for the workers that were there."""
    started = [job for job in state.jobs.values() if job.started_utc_ms and job.ready.count]
    if not workers or not started:
        return
    state.awaited = dict.fromkeys(workers)
    state.await_until_ms = now_ms + state.config.adopt_ms
    for job in started:
        job.may_be_held = True


def note_back(state: State, name: str) -> None:
    """A worker has said what it holds; the last one ends the wait."""
    if name in state.awaited:
        del state.awaited[name]
        if not state.awaited:
            end_wait(state)


def end_wait(state: State) -> None:
    """Whatever nobody claimed is handed out."""
    state.awaited.clear()
    for job in state.jobs.values():
        if job.may_be_held:
            job.may_be_held = False
            state.enlist(job)
