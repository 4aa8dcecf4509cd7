"""What is always true of the state.

``check`` runs after every simulated step, and on a sample in production; it raises
``AssertionError`` that names what is wrong, and changes nothing.

The cheap mode compares counters that lie side by side; the whole mode recounts everything from the
columns and the leases, and knows nothing of how the handlers keep them.
"""

from __future__ import annotations

from collections import Counter

from gristmill.broker.core.columns import CANCELLED, DONE, FAILED, LEASED, READY
from gristmill.broker.core.jobs import Job
from gristmill.broker.core.runs import normalise, total
from gristmill.broker.core.state import State
from gristmill.broker.core.workers import Slot, Worker
from gristmill.wire.ids import unpack_lease_id
from gristmill.wire.limits import LEASE_RUNS_MAX, LEASES_PER_SLOT, UNDECIDED_MAX


def check(state: State, is_whole: bool = True) -> None:
    """Raises AssertionError naming the first invariant that does not hold."""
    leased_items = 0
    for job in state.jobs.values():
        _check_job(state, job)
        leased_items += job.leased
        if is_whole:
            _check_columns(state, job)
            _check_votes(state, job)
    assert leased_items == sum(lease.items for lease in state.leases.values()), "leased items"
    if not is_whole:
        return
    _check_leases(state)
    for worker in state.workers.values():
        _check_worker(state, worker)
    _check_tenants(state)
    _check_indices(state)


def _check_job(state: State, job: Job) -> None:
    name = f"j{job.number}"
    known = job.ready.count + job.leased + job.final - job.waiting_ended
    assert known == job.uploaded, f"{name}: {job.uploaded} uploaded, {known} accounted for"
    assert not job.waiting_ended or job.ending is not None, f"{name}: ended before its input came"
    assert 0 <= job.spent_ucredits, f"{name}: spent {job.spent_ucredits}"
    assert job.outstanding_ucredits >= 0, f"{name}: outstanding {job.outstanding_ucredits}"
    promised = job.spent_ucredits + job.outstanding_ucredits
    assert promised <= job.spec.cap_ucredits or job.is_free, f"{name}: {promised} over its cap"
    most = job.spec.concurrency_max
    assert not most or job.leased <= most, f"{name}: {job.leased} leased of {most}"
    assert not job.is_complete, f"{name}: complete and not final"
    assert job.ending is None or not job.ready.count, f"{name}: ends and has ready subtasks"
    assert job.tenant.name in state.tenants and job.number in job.requirement.jobs, name
    if job.hold in ("asked", "refused"):
        assert not job.leases, f"{name}: leases without a hold"


def _check_columns(state: State, job: Job) -> None:
    name, columns = f"j{job.number}", job.columns
    queued = normalise([(run[0], run[1]) for run in job.ready.runs], job.uploaded)
    assert total(queued) == job.ready.count, f"{name}: a subtask stands in the queue twice"
    assert queued == normalise(columns.runs_of(READY), job.uploaded), f"{name}: queue and columns"
    for start, length, attempt, _ in job.ready.runs:
        for _, _, spent in columns.attempts(start, length):
            assert spent + 1 == attempt, f"{name}/{start}: attempt {attempt}, {spent} spent"
    out = [run for number in job.leases for run in state.leases[number].open]
    assert total(normalise(out, job.uploaded)) == total(out), f"{name}: leased twice"
    assert normalise(out, job.uploaded) == normalise(columns.runs_of(LEASED), job.uploaded), (
        f"{name}: leases and columns"
    )
    assert total(out) == job.leased, f"{name}: {job.leased} leased, {total(out)} in leases"
    for state_of, count in ((DONE, job.done), (FAILED, job.failed), (CANCELLED, job.cancelled)):
        assert columns.count(state_of) <= count, f"{name}: final counts and columns"
    in_memory = 0
    for segment in columns.segments:
        if segment is None:
            continue
        in_memory += len(segment.state)
        final = sum(segment.state.count(word) for word in (DONE, FAILED, CANCELLED))
        assert final == segment.final, f"{name}: a segment counts {segment.final}, has {final}"
        assert len(segment.state) == len(segment.attempt), f"{name}: columns of unequal length"
    assert in_memory <= columns.size == (job.parcels.ends[-1] if job.parcels.ends else 0), name
    outstanding = sum(state.leases[number].budget_ucredits for number in job.leases)
    assert outstanding == job.outstanding_ucredits, f"{name}: outstanding budgets"


def _check_votes(state: State, job: Job) -> None:
    """Undecided results: of distinct owners, fewer than decide, all of a subtask that goes on."""
    name, check = f"j{job.number}", job.check
    if check is None:
        return
    leased = {
        index: number
        for number in job.leases
        for start, length in state.leases[number].open
        for index in range(start, start + length)
    }
    held = 0
    is_canary = job.number in state.canaries
    assert is_canary == (check.canary is not None), f"{name}: a canary that is not listed"
    for index, votes in check.votes.items():
        at = job.columns.at(index)
        assert votes and at is not None and at[0] in (READY, LEASED), f"{name}/{index}: votes"
        owners = [vote.owner for vote in votes]
        assert len(set(owners)) == len(owners), f"{name}/{index}: two replicas of one owner"
        kinds = Counter((vote.outcome, vote.digest) for vote in votes)
        assert max(kinds.values()) < check.equal, f"{name}/{index}: enough equal, not decided"
        assert (index in check.contested) == (len(kinds) > 1), f"{name}/{index}: contested"
        assert len(votes) < check.most, f"{name}/{index}: {len(votes)} votes"
        assert all(vote.attempt <= at[1] for vote in votes), f"{name}/{index}: attempt of a vote"
        if index in leased:
            worker = state.leases[leased[index]].slot.worker
            known = [*owners, *(vote.node for vote in votes)]
            assert worker.owner not in known and worker.node not in known, (
                f"{name}/{index}: its owner makes it again"
            )
        for vote in votes:
            standing = state.standings.get(vote.node)
            is_good = standing is None or not standing.cause
            assert is_good, f"{name}/{index}: a vote of a node in quarantine"
            held += vote.amount_ucredits
    assert check.contested.keys() <= check.votes.keys(), f"{name}: contested without votes"
    assert held <= job.spent_ucredits, f"{name}: held bills beyond what it spent"


def _has_replica_for(job: Job, worker: Worker) -> bool:
    """Whether something ready of a job with a quorum is not this owner's own work."""
    assert job.check is not None
    votes, canary = job.check.votes, job.check.canary
    if canary is not None:
        return canary.node == worker.node
    for start, length, _, _ in job.ready.runs:
        for index in range(start, start + length):
            if index not in votes:
                return len(votes) < UNDECIDED_MAX
            known = {name for vote in votes[index] for name in (vote.owner, vote.node)}
            if not known & {worker.owner, worker.node}:
                return True
    return False


def _check_leases(state: State) -> None:
    for number, lease in state.leases.items():
        incarnation = unpack_lease_id(number)[0]
        is_ours = incarnation == state.incarnation
        assert is_ours or (lease.is_adopted and 0 < incarnation < state.incarnation), (
            f"lease {number} of another start"
        )
        assert number in lease.job.leases and lease.job.number in state.jobs, f"lease {number}"
        assert lease in lease.slot.leases, f"lease {number} is on no slot"
        assert lease.slot.worker.leases.get(number) is lease, f"lease {number} on no worker"
        assert lease.items == total(lease.open) > 0, f"lease {number}: items {lease.items}"
        assert len(lease.open) <= 2 * LEASE_RUNS_MAX + lease.size, f"lease {number}: runs"
        assert lease.budget_ucredits >= 0, f"lease {number}: budget {lease.budget_ucredits}"
        for start, length in lease.open:
            for _, _, spent in lease.job.columns.attempts(start, length):
                assert spent + 1 == lease.attempt, f"lease {number}: attempt of {start}"


def _check_worker(state: State, worker: Worker) -> None:
    name, profile = worker.name, worker.pool.profile
    assert worker.number in state.by_seen, f"{name}: not watched"
    cpus = memory = 0
    for slot in worker.slots:
        cpus += slot.cpus_milli
        memory += slot.memory_bytes
        _check_slot(worker, slot)
    assert (cpus, memory) == (worker.cpus_used, worker.memory_used), f"{name}: claims"
    assert cpus <= profile.cpus_milli, f"{name}: {cpus} of {profile.cpus_milli} milli cpus"
    assert memory <= profile.memory_bytes, f"{name}: {memory} of {profile.memory_bytes} bytes"
    assert len(worker.leases) == sum(len(slot.leases) for slot in worker.slots), f"{name}: leases"
    for lease in worker.leases.values():
        job = lease.job
        assert job.number in worker.jobs and worker.number in job.workers, f"{name}: not opened"
        assert job.requirement.is_feasible(worker.pool), f"{name}: j{job.number} does not fit"
    is_listed = worker.pool.workers.get(worker.number) is worker
    is_shut = worker.is_draining or worker.is_quarantined
    assert is_listed != is_shut, f"{name}: draining or in quarantine and in a pool, or neither"
    standing = state.standings.get(worker.node)
    is_bad = standing is not None and bool(standing.cause)
    assert worker.is_quarantined == is_bad, f"{name}: quarantine of its node and of itself"
    for lease in worker.leases.values() if is_bad else ():
        canary = lease.job.check.canary if lease.job.check is not None else None
        is_asked = canary is not None and canary.node == worker.node
        assert is_asked, f"{name} is in quarantine and has leases"


def _check_slot(worker: Worker, slot: Slot) -> None:
    name = f"{worker.name}[{slot.number}]"
    granted = sum(not lease.is_adopted for lease in slot.leases)
    assert granted <= LEASES_PER_SLOT, f"{name}: {granted} leases"
    is_idle, is_half = slot.number in worker.idle, slot.number in worker.half
    is_open = not (worker.is_draining or worker.is_quarantined or slot.is_hung)
    assert is_idle == (not slot.leases and is_open), f"{name}: idle index"
    assert not is_half or (len(slot.leases) == 1 and is_open), f"{name}: half index"
    for lease in slot.leases:
        request = lease.job.requirement
        assert slot.cpus_milli >= request.cpus_milli, f"{name}: claims too few cpus"
        assert slot.memory_bytes >= request.memory_bytes, f"{name}: claims too little memory"


def _check_tenants(state: State) -> None:
    jobs: dict[str, int] = {}
    inputs: dict[str, int] = {}
    leases: dict[str, int] = {}
    slots: dict[tuple[str, int, int], None] = {}
    serving: dict[tuple[int, int, int], None] = {}
    for job in state.jobs.values():
        name = job.tenant.name
        jobs[name] = jobs.get(name, 0) + 1
        inputs[name] = inputs.get(name, 0) + job.parcels.bytes_total - job.bytes_freed
    for lease in state.leases.values():
        name, slot = lease.job.tenant.name, lease.slot
        leases[name] = leases.get(name, 0) + 1
        slots[name, slot.worker.number, slot.number] = None
        serving[lease.job.number, slot.worker.number, slot.number] = None
    for name, tenant in state.tenants.items():
        assert tenant.jobs == jobs.get(name, 0), f"{name}: jobs"
        assert tenant.parcel_bytes == inputs.get(name, 0), f"{name}: bytes of inputs"
        assert tenant.leases == leases.get(name, 0), f"{name}: leases"
        used = sum(1 for key in slots if key[0] == name)
        assert tenant.slots == used, f"{name}: {tenant.slots} slots, uses {used}"
        assert not tenant.slots_max or used <= tenant.slots_max, f"{name}: over slots_max"
        assert tenant.is_active == (name in state.active), f"{name}: active"
        assert tenant.is_active or not (tenant.leases or tenant.ready_jobs), f"{name}: asleep"
        assert tenant.share > -1.0, f"{name}: share {tenant.share}"
    for job in state.jobs.values():
        used = sum(1 for key in serving if key[0] == job.number)
        assert job.slots == used, f"j{job.number}: {job.slots} slots, uses {used}"
    unfinished = 0
    queued: dict[str, int] = {}
    for job in state.jobs.values():
        left = max(0, max(job.count, job.uploaded) - job.final)
        queued[job.tenant.name] = queued.get(job.tenant.name, 0) + left
        unfinished += left
    for name, tenant in state.tenants.items():
        assert tenant.queued == queued.get(name, 0), f"{name}: {tenant.queued} subtasks queued"
    assert unfinished == state.queued, f"{state.queued} queued, {unfinished} unfinished"


def _check_indices(state: State) -> None:
    idle = sum(len(worker.idle) for worker in state.workers.values())
    assert idle == state.idle_slots, f"{state.idle_slots} idle slots, {idle} counted"
    assert not state.dirty_requirements, "work was left to be offered"
    for pool in state.pools.values():
        assert pool.workers and pool.slots == sum(len(w.slots) for w in pool.workers.values())
        for index, pools, word in (
            (pool.idle, state.idle_pools, "idle"),
            (pool.half, state.half_pools, "half"),
        ):
            expected = {w.number for w in pool.workers.values() if getattr(w, word)}
            assert set(index) == expected, f"pool {pool.number}: {word} workers"
            assert (pool.number in pools) == bool(index), f"pool {pool.number}: {word} pools"
    for requirement in state.requirements.values():
        slots = sum(p.slots for p in state.pools.values() if not requirement.misfits(p))
        assert slots == requirement.slots, f"{requirement.key}: {requirement.slots} slots"
        assert bool(requirement.lanes) == (requirement.key in state.ready), "ready requirements"
    for job in state.jobs.values():
        _check_queued(state, job)


def _check_queued(state: State, job: Job) -> None:
    lane = job.requirement.lanes.get(job.tenant.order)
    is_there = lane is not None and any(entry[2] is job for entry in lane.jobs)
    assert is_there == job.is_queued, f"j{job.number}: queued flag and lane"
    if not state.is_dispatchable(job):
        return
    assert is_there, f"j{job.number}: can be handed out and stands in no lane"
    tenant, requirement = job.tenant, job.requirement
    if tenant.slots_max and tenant.slots >= tenant.slots_max:
        return
    for worker in state.workers.values():  # no idle slot that fits is left without work
        if worker.is_draining or not worker.idle or job.number in worker.shunned:
            continue
        if job.check is not None and not _has_replica_for(job, worker):
            continue
        slot = worker.slots[next(iter(worker.idle))]
        fits = requirement.is_feasible(worker.pool) and worker.has_room_for(
            slot, requirement.cpus_milli, requirement.memory_bytes
        )
        assert not fits, f"j{job.number} is ready and {worker.name} has an idle slot that fits"
