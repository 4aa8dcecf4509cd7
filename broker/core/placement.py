"""What a free slot does next. Proposes (``_best``), then applies after re-checking (``grant``).

Idle slots come first, a second lease behind a running one (to hide the round trip) only when no
idle slot fits. Work per lease does not grow with jobs or workers: slots that gained room are
offered to the few requirements that have something ready; work that became ready is offered to
pools with room, once; what then still waits is ``is_starved`` and only asks slots that gain room.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice

from gristmill.broker.core import endings
from gristmill.broker.core.cards import job_status
from gristmill.broker.core.columns import LEASED, READY
from gristmill.broker.core.effects import AnyEffect, Dispatch, OpenJob, RecallLease, RecordState
from gristmill.broker.core.jobs import Job
from gristmill.broker.core.leases import Lease, lease_items
from gristmill.broker.core.pricing import is_affordable, lease_budget
from gristmill.broker.core.runs import total
from gristmill.broker.core.state import State
from gristmill.broker.core.tenants import Lane, Requirement, Tenant
from gristmill.broker.core.turns import Rank, rank_of_job
from gristmill.broker.core.workers import Pool, Slot, Worker
from gristmill.wire.ids import pack_lease_id
from gristmill.wire.limits import LEASE_TARGET_US
from gristmill.wire.worker import LeaseGrant

_NO_LIMIT = 1 << 60
_RECALLS_LOOKED_AT = 16
_WINDOW = 32
Choice = tuple[Rank, Job]


def place(state: State, now_ms: int, effects: list[AnyEffect]) -> None:
    """Fills what gained room and hands out what became ready in this step."""
    if not state.dirty_workers and not state.dirty_requirements:
        return
    if state.canaries:
        _offer_canaries(state, now_ms, effects)
    workers = [state.workers[n] for n in state.dirty_workers if n in state.workers]
    state.dirty_workers.clear()
    for worker in workers:
        _fill_idle(state, worker, now_ms, effects)
    asked = [state.requirements[key] for key in state.dirty_requirements]
    for requirement in asked:
        _offer(state, requirement, True, now_ms, effects)
    for worker in workers:
        _fill_half(state, worker, now_ms, effects)
    for requirement in asked:
        _offer(state, requirement, False, now_ms, effects)
    state.dirty_requirements.clear()
    for requirement in asked:
        if requirement.lanes:
            requirement.is_starved = True
            requirement.scans += 1
    recall(state, now_ms, effects)


def _offer_canaries(state: State, now_ms: int, effects: list[AnyEffect]) -> None:
    """A node in quarantine has no free slots that anybody sees: its canary goes to it directly."""
    for number in list(state.canaries):
        job = state.jobs[number]
        canary = job.check.canary if job.check is not None else None
        if canary is None or not state.is_dispatchable(job):
            continue
        for worker in state.workers.values():
            if worker.node != canary.node or not worker.is_quarantined or worker.is_draining:
                continue
            slot = next((one for one in worker.slots if not (one.leases or one.is_hung)), None)
            if slot is not None and job.requirement.is_feasible(worker.pool):
                grant(state, job, slot, now_ms, effects)
                break


def _fill_idle(state: State, worker: Worker, now_ms: int, effects: list[AnyEffect]) -> bool:
    """Fills idle slots of one worker; False when it was offered work and took none."""
    is_any = False
    while worker.idle and state.ready:
        slot = worker.slots[next(iter(worker.idle))]
        if not _grant_best(state, slot, now_ms, effects):
            return is_any
        is_any = True
    return is_any


def _fill_half(state: State, worker: Worker, now_ms: int, effects: list[AnyEffect]) -> bool:
    """Stacks second leases on one worker; False when it took none."""
    is_any = False
    for number in list(worker.half):
        slot = worker.slots[number]
        if not state.ready:
            break
        if slot.leases[0].job.is_long:
            state.leave_half(slot)
        elif _grant_best(state, slot, now_ms, effects):
            is_any = True
    return is_any


def _offer(
    state: State, requirement: Requirement, is_idle: bool, now_ms: int, effects: list[AnyEffect]
) -> None:
    """Offers free slots of all feasible pools while the requirement has something ready.

    A worker that took nothing is put aside, so that each is asked once.
    """
    pools = state.idle_pools if is_idle else state.half_pools
    for pool in list(pools.values()):
        if not requirement.is_feasible(pool):
            continue
        aside: list[Worker] = []
        room = pool.idle if is_idle else pool.half
        while room and requirement.lanes:
            worker = next(iter(room.values()))
            if is_idle:
                _fill_one(state, worker, now_ms, effects, aside)
            else:
                _fill_half(state, worker, now_ms, effects)
                if worker.number in room:
                    del room[worker.number]
                    aside.append(worker)
        _restore(state, pool, aside, is_idle)
        if not requirement.lanes:
            return


def _fill_one(
    state: State, worker: Worker, now_ms: int, effects: list[AnyEffect], aside: list[Worker]
) -> None:
    """One lease for one idle slot of a worker; the worker then stands behind the others."""
    room = worker.pool.idle
    slot = worker.slots[next(iter(worker.idle))]
    if not _grant_best(state, slot, now_ms, effects):
        del room[worker.number]
        aside.append(worker)
    elif worker.number in room:
        room.move_to_end(worker.number)


def _restore(state: State, pool: Pool, aside: list[Worker], is_idle: bool) -> None:
    room = pool.idle if is_idle else pool.half
    for worker in aside:
        if worker.idle if is_idle else worker.half:
            room[worker.number] = worker
    pools = state.idle_pools if is_idle else state.half_pools
    if room:
        pools[pool.number] = pool
    else:
        pools.pop(pool.number, None)


def _grant_best(state: State, slot: Slot, now_ms: int, effects: list[AnyEffect]) -> bool:
    """Gives the slot a lease of the job whose turn it is; False when there is none for it."""
    while True:
        choice = _choose(state, slot, now_ms)
        if choice is None:
            return False
        if grant(state, choice, slot, now_ms, effects):
            return True


def _choose(state: State, slot: Slot, now_ms: int) -> Job | None:
    """The job whose turn it is on this slot, over all requirements that have something ready.

    A slot that has just begun a job goes on with it for a while: its jail is that job's alone, and
    to start another for each lease would cost more than the leases. Shares even out over time.

    Usually there are few. Of very many (every job asks for something else) a window is compared,
    and stands at the back afterwards, so that a lease stays cheap.
    """
    worker = slot.worker
    if (job := _stint(state, slot, now_ms)) is not None:
        return job
    for window in _windows(state):
        best: Choice | None = None
        for requirement in window:
            if not requirement.is_feasible(worker.pool):
                continue
            if not worker.has_room_for(slot, requirement.cpus_milli, requirement.memory_bytes):
                continue
            choice = _best(state, requirement, slot, now_ms)
            if choice is not None and (best is None or choice[0] < best[0]):
                best = choice
        if best is not None:
            if len(state.ready) > _WINDOW:
                for requirement in window:
                    if requirement.key in state.ready:
                        state.ready.move_to_end(requirement.key)
            return best[1]
    return None


def _stint(state: State, slot: Slot, now_ms: int) -> Job | None:
    """The job that the slot has just begun, if it has something for it."""
    job = state.jobs.get(slot.job)
    if job is None or now_ms - slot.since_ms >= state.config.stint_ms:
        return None
    worker, asked = slot.worker, job.requirement
    fits = (
        state.is_dispatchable(job)
        and worker.shunned.get(job.number, (0, 0))[0] <= now_ms
        and worker.has_room_for(slot, asked.cpus_milli, asked.memory_bytes)
        and _has_turn(job.tenant, slot)
        and (job.check is None or job.check.has_for(job.ready, worker))
    )
    return job if fits else None


def _has_turn(tenant: Tenant, slot: Slot) -> bool:
    """Whether the tenant may use this slot, which may be one of those that serve it already."""
    is_served = any(lease.job.tenant is tenant for lease in slot.leases)
    return not tenant.slots_max or tenant.slots < tenant.slots_max or is_served


def _windows(state: State) -> Iterator[list[Requirement]]:
    first = list(islice(state.ready.values(), _WINDOW))
    yield first
    if len(state.ready) > _WINDOW:
        seen = dict.fromkeys(requirement.key for requirement in first)
        rest = [requirement for key, requirement in state.ready.items() if key not in seen]
        for low in range(0, len(rest), _WINDOW):
            yield rest[low : low + _WINDOW]


def _best(state: State, requirement: Requirement, slot: Slot, now_ms: int) -> Choice | None:
    """The job of this requirement whose turn it is on this slot."""
    aside: list[tuple[float, int]] = []
    found: Choice | None = None
    while found is None:
        lane = requirement.next_lane()
        if lane is None:
            break
        if _has_turn(lane.tenant, slot):
            job = _first_of(state, requirement, lane, slot.worker, now_ms)
            if job is not None:
                found = (rank_of_job(job), job)
                break
        if lane.tenant.order in requirement.lanes:  # nothing of it fits here: try the next one
            aside.append(heapq.heappop(requirement.heap))
    for entry in aside:
        heapq.heappush(requirement.heap, entry)
    if not requirement.lanes:
        state.ready.pop(requirement.key, None)
        requirement.is_starved = False
    return found


def _first_of(
    state: State, requirement: Requirement, lane: Lane, worker: Worker, now_ms: int
) -> Job | None:
    """First job of a lane that can be handed out on this worker; others leave or are put aside."""
    aside: list[tuple[int, int, Job]] = []
    found: Job | None = None
    while lane.jobs:
        job = lane.jobs[0][2]
        if not state.is_dispatchable(job):
            heapq.heappop(lane.jobs)
            state.note_dequeued(job)
        elif worker.shunned and worker.shunned.get(job.number, (0, 0))[0] > now_ms:
            lane.is_shunned = True
            aside.append(heapq.heappop(lane.jobs))
        elif job.check is not None and not job.check.has_for(job.ready, worker):
            lane.is_shunned = True
            aside.append(heapq.heappop(lane.jobs))
        else:
            found = job
            break
    for entry in aside:
        heapq.heappush(lane.jobs, entry)
    if not lane.jobs:
        requirement.drop_lane(lane)
    return found


def grant(state: State, job: Job, slot: Slot, now_ms: int, effects: list[AnyEffect]) -> bool:
    """Makes a lease of the job for the slot, if it still holds; False when it does not."""
    worker, tenant, spec = slot.worker, job.tenant, job.spec
    if not state.is_dispatchable(job):
        return False
    serving = max(1, min(job.requirement.slots, job.slots + state.idle_slots))
    left = spec.concurrency_max - job.leased if spec.concurrency_max else _NO_LIMIT
    wanted = min(lease_items(job, serving, left), left, job.ready.count)
    budget = lease_budget(job, job.tariff_on(worker), wanted, serving)
    if budget is None:
        if job.outstanding_ucredits:
            job.is_waiting_for_budget = True
        elif is_affordable(job, state.pools.values()):
            state.shun(worker, job.number, now_ms)  # too dear; what is left is enough elsewhere
        else:
            endings.reach_cap(state, job, now_ms, effects)
        return False
    if job.check is None:
        attempt, runs = job.ready.take(wanted, job.parcels)
    else:
        attempt, runs = job.check.take(job.ready, wanted, job.parcels, worker)
    items = total(runs)
    for start, length in runs:
        assert job.columns.is_all(start, length, READY), "the ready queue and the columns differ"
        job.columns.set_state(start, length, LEASED)
    state.lease_counter += 1
    number = pack_lease_id(state.incarnation, state.lease_counter)
    each_us = job.est_us or LEASE_TARGET_US
    charged = items * each_us * spec.limits.cpus_milli / 1000
    lease = Lease(
        number,
        job,
        slot,
        attempt,
        list(runs),
        items,
        items,
        now_ms,
        now_ms,
        budget,
        charged,
        budget,
        not job.is_free and budget == job.available_ucredits and not job.outstanding_ucredits,
    )
    if not slot.leases:
        slot.alive_ms = now_ms
    occupy(state, lease)
    tenant.charge(charged)
    if job.state == "accepted":
        job.state = "running"
        job.started_utc_ms = job.started_utc_ms or state.utc(now_ms)
        effects.append(RecordState(job.number, job_status(state, job, now_ms)))
    open_on(job, worker, effects)
    heads = job.parcels.covering(job.number, runs)
    grant_head = LeaseGrant(number, slot.number, job.number, attempt, runs, budget, heads)
    effects.append(Dispatch(worker.number, grant_head))
    state.changed[job.number] = None
    return True


def open_on(job: Job, worker: Worker, effects: list[AnyEffect]) -> None:
    """The worker has heard of the job before its first lease."""
    if job.number not in worker.jobs:
        worker.jobs[job.number] = None
        job.workers[worker.number] = None
        effects.append(OpenJob(worker.number, job.number))


def occupy(state: State, lease: Lease) -> None:
    """The lease is out: its slot, worker, job and tenant know of it."""
    job, slot = lease.job, lease.slot
    worker, tenant = slot.worker, job.tenant
    if not any(other.job is job for other in slot.leases):
        job.slots += 1
    if not any(other.job.tenant is tenant for other in slot.leases):
        tenant.slots += 1
    if slot.job != job.number:
        slot.job, slot.since_ms = job.number, lease.granted_ms
    slot.leases.append(lease)
    slot.reclaim()
    worker.leases[lease.number] = lease
    state.leases[lease.number] = lease
    job.leases[lease.number] = None
    if len(slot.leases) > 1 or lease.items > 1:
        state.recallable[lease.number] = lease
    job.leased += lease.items
    job.outstanding_ucredits += lease.budget_ucredits
    tenant.leases += 1
    state.index_slot(slot)


def recall(state: State, now_ms: int, effects: list[AnyEffect]) -> None:
    """Asks back what has not started, when slots are idle and nothing is ready for them.

    Only what has waited longer than leases of ordinary size take. It is ready again once
    ``returned`` says so.
    """
    wanted = state.idle_slots
    if not wanted:
        return
    for lease in list(islice(state.recallable.values(), _RECALLS_LOOKED_AT)):
        if not wanted or now_ms - lease.granted_ms < state.config.recall_after_ms:
            break
        if lease.is_recalled or (lease.is_head and lease.items <= 1):
            del state.recallable[lease.number]
            continue
        if not any(lease.job.requirement.is_feasible(p) for p in state.idle_pools.values()):
            state.recallable.move_to_end(lease.number)
            continue
        del state.recallable[lease.number]
        lease.is_recalled = True
        effects.append(RecallLease(lease.slot.worker.number, lease.number))
        wanted -= 1
