"""What workers say: joined, reported (renewal, returned runs), draining, gone."""

from __future__ import annotations

from gristmill.broker.core import endings
from gristmill.broker.core import journal_names as names
from gristmill.broker.core.adoption import adopt, note_back
from gristmill.broker.core.columns import ATTEMPT_MAX
from gristmill.broker.core.effects import (
    AckReport,
    AnyEffect,
    CloseJob,
    DropWorker,
    OpenJob,
    RecallLease,
    RecordEvent,
    StopLease,
)
from gristmill.broker.core.events import (
    WorkerDrainAsked,
    WorkerJoined,
    WorkerLost,
    WorkerReported,
)
from gristmill.broker.core.leases import Lease
from gristmill.broker.core.runs import cut, find, intersect
from gristmill.broker.core.state import State
from gristmill.broker.core.workers import Pool, Profile, Slot, Worker, profile_of
from gristmill.wire import limits
from gristmill.wire.outcome import Outcome
from gristmill.wire.worker import Returned, Run

_RESCUED_SHARE = 8  #: a lease of rescued runs holds at most this fraction of the lost one
_TAKEN_MAX = 65_536  #: leases that were taken away, whose late results are still known as such

OWNER_LABEL = "owner"  #: of a worker: whose it is; without it, its node's own

Detail = dict[str, str | int | list[Run]]


def on_worker_joined(
    state: State, event: WorkerJoined, now_ms: int, effects: list[AnyEffect]
) -> None:
    """A worker in a new session.

    Leases that it holds from before a restart of the broker are adopted if they still hold; what
    else it has is not current, and stopped.
    """
    if event.worker in state.workers or not 0 < event.slots <= limits.SLOTS_PER_WORKER_MAX:
        return
    profile = profile_of(
        event.cpus_milli, event.memory_bytes, event.labels, event.tiers, event.pythons
    )
    owner = event.labels.get(OWNER_LABEL) or event.node
    worker = Worker(
        event.worker, event.name, event.node, _pool(state, profile), event.metering, owner,
        now_ms, now_ms,
    )  # fmt: skip
    standing = state.standings.get(event.node)
    worker.is_quarantined = standing is not None and bool(standing.cause)
    worker.slots = [Slot(number, worker, now_ms) for number in range(event.slots)]
    state.workers[worker.number] = worker
    state.by_seen[worker.number] = worker
    if not worker.is_quarantined:
        join_pool(state, worker)
    for slot in worker.slots:
        state.index_slot(slot)
    state.dirty_workers[worker.number] = None
    detail: Detail = {"name": worker.name, "node": worker.node, "slots": event.slots}
    effects.append(RecordEvent(0, names.WORKER_JOINED, detail, now_ms))
    adopted = {
        claim.lease_id for claim in event.claims if adopt(state, worker, claim, now_ms, effects)
    }
    for held in event.held:
        if held.lease_id not in adopted:
            effects.append(StopLease(worker.number, held.lease_id, int(Outcome.LOST)))
    note_back(state, worker.name)


def _pool(state: State, profile: Profile) -> Pool:
    """The pool of a profile; a new one is in the state when somebody joins it."""
    pool = state.pools.get(profile)
    if pool is None:
        state.pool_counter += 1
        pool = Pool(state.pool_counter, profile)
    return pool


def join_pool(state: State, worker: Worker) -> None:
    """The worker may take leases."""
    pool = worker.pool = state.pools.setdefault(worker.pool.profile, worker.pool)
    pool.workers[worker.number] = worker
    pool.slots += len(worker.slots)
    for requirement in state.requirements.values():
        if requirement.is_feasible(pool):
            if not requirement.slots:
                state.changed.update(dict.fromkeys(requirement.jobs))
            requirement.slots += len(worker.slots)


def leave_pool(state: State, worker: Worker) -> None:
    """The worker takes no more leases (it drains, is in quarantine or gone)."""
    pool = worker.pool
    if pool.workers.pop(worker.number, None) is None:
        return
    pool.slots -= len(worker.slots)
    for requirement in state.requirements.values():
        if requirement.is_feasible(pool):
            requirement.slots -= len(worker.slots)
            if not requirement.slots:
                state.changed.update(dict.fromkeys(requirement.jobs))
        if not pool.workers:
            requirement.feasible.pop(pool.number, None)
    if not pool.workers:
        del state.pools[pool.profile]


def drain(state: State, worker: Worker, now_ms: int, effects: list[AnyEffect]) -> None:
    """The worker finishes what it has started and takes no more."""
    if worker.is_draining:
        return
    worker.is_draining = True
    detail: Detail = {"name": worker.name, "node": worker.node}
    effects.append(RecordEvent(0, names.WORKER_DRAINING, detail, now_ms))
    for slot in worker.slots:
        state.index_slot(slot)
    leave_pool(state, worker)
    for lease in worker.leases.values():
        if not lease.is_recalled:
            lease.is_recalled = True
            effects.append(RecallLease(worker.number, lease.number))


def on_worker_drain_asked(
    state: State, event: WorkerDrainAsked, now_ms: int, effects: list[AnyEffect]
) -> None:
    """An operator drains a worker; the next answer to a report tells it."""
    worker = state.workers.get(event.worker)
    if worker is not None:
        drain(state, worker, now_ms, effects)


def on_worker_reported(
    state: State, event: WorkerReported, now_ms: int, effects: list[AnyEffect]
) -> None:
    """Returned runs, the renewal of live slots' leases, and the answer."""
    worker = state.workers.get(event.worker)
    if worker is None:
        return
    if event.is_draining:
        drain(state, worker, now_ms, effects)
    for returned in event.returned:
        _take_back(state, worker, returned, now_ms, effects)
    if event.is_full:
        _renew(state, worker, event, now_ms, effects)
        for number in event.open_jobs:
            if number not in state.jobs:  # it is over, and the close was lost
                effects.append(CloseJob(worker.number, number))
    worker.ttl_ms = state.ttl_ms
    effects.append(
        AckReport(
            worker.number,
            event.number,
            worker.results_upto,
            state.report_ms,
            worker.ttl_ms,
            worker.is_draining,
        )
    )


def _take_back(
    state: State, worker: Worker, returned: Returned, now_ms: int, effects: list[AnyEffect]
) -> None:
    """Runs of a current lease come back unspent; anything else that is named is ignored."""
    lease = worker.leases.get(returned.lease_id)
    if lease is None:
        return
    lease.is_recall_answered = True
    taken: list[Run] = []
    for first, count in returned.runs:
        position = find(lease.open, first, count) if count > 0 else -1
        if position >= 0:
            cut(lease.open, position, first, count)
            taken.append((first, count))
    if not taken:
        return
    job = lease.job
    if returned.cause != "recalled":
        detail: Detail = {
            "lease": lease.number,
            "node": worker.node,
            "runs": taken,
            "cause": returned.cause,
            "detail": returned.detail[:200],
        }
        effects.append(RecordEvent(job.number, names.LEASE_RETURNED, detail, now_ms))
    is_refused = returned.cause == "drained" and not worker.is_draining
    if returned.cause == "set-up" or is_refused:
        state.shun(worker, job.number, now_ms)
    endings.give_back(state, lease, taken, now_ms, effects)
    if not lease.items:
        endings.close_lease(state, lease, now_ms)
    elif job.cancelling:
        endings.stop_unwanted_rest(lease, now_ms, effects)
    endings.complete(state, job, now_ms, effects)


def _renew(
    state: State, worker: Worker, event: WorkerReported, now_ms: int, effects: list[AnyEffect]
) -> None:
    worker.full_ms = now_ms
    state.by_seen.move_to_end(worker.number)
    for number in event.slots_alive:
        if 0 <= number < len(worker.slots):
            worker.slots[number].alive_ms = now_ms
    held: dict[int, None] = {}
    in_use = dict.fromkeys([*event.slots_alive, *(entry.slot for entry in event.held)])
    alive = dict.fromkeys(event.slots_alive)
    for entry in event.held:
        held[entry.lease_id] = None
        lease = worker.leases.get(entry.lease_id)
        if lease is None:
            effects.append(StopLease(worker.number, entry.lease_id, int(Outcome.LOST)))
            continue
        lease.named_ms = now_ms
        if find(lease.open, entry.started, 1) >= 0:
            lease.started = entry.started
        if lease.is_stopped and lease.stopped_ms + state.report_ms <= now_ms:
            # It dies, or the order was lost: said again it does no harm.
            outcome = lease.job.ending if lease.job.ending is not None else Outcome.CANCELLED
            effects.append(StopLease(worker.number, entry.lease_id, int(outcome)))
        elif (
            lease.is_recalled
            and not lease.is_recall_answered
            and (entry.started < 0 or lease.items > 1)
        ):
            effects.append(RecallLease(worker.number, entry.lease_id))
    ttl_ms = max(state.ttl_ms, worker.ttl_ms)
    for slot in worker.slots:
        if slot.is_hung and (slot.number in alive or slot.number not in in_use):
            slot.is_hung = False
            state.index_slot(slot)
            state.dirty_workers[worker.number] = None
        if not slot.leases:
            continue
        if slot.alive_ms + ttl_ms < now_ms:
            slot.is_hung = slot.number in in_use  # else the agent has let go of it already
            for lease in reversed(list(slot.leases)):  # the one that ran goes first in the queue
                effects.append(StopLease(worker.number, lease.number, int(Outcome.LOST)))
                if lease.number in held:
                    rescue(state, lease, True, "the slot hangs", now_ms, effects)
                else:
                    _forget_order(state, worker, lease, now_ms, effects)
            continue
        for lease in list(slot.leases):
            # Orders that never arrived: the worker has had time to name the lease and does not. Or
            # it is done with it and its last result was lost, which it has had time to say again.
            told_ms = max(lease.granted_ms, worker.joined_ms, lease.named_ms)
            if lease.number not in held and told_ms + ttl_ms < now_ms:
                _forget_order(state, worker, lease, now_ms, effects)
        if slot.leases:
            charge_elapsed(slot.leases[0], now_ms)


def _forget_order(
    state: State, worker: Worker, lease: Lease, now_ms: int, effects: list[AnyEffect]
) -> None:
    """The orders that brought it were lost on the way, or the result of it was.

    Nobody cut a subtask, so no loss is spent. The opening of its job may have been in the same
    orders: without one the worker ignores every lease of the job, so it is said again.
    """
    effects.append(OpenJob(worker.number, lease.job.number))
    rescue(state, lease, False, "the worker does not have it", now_ms, effects)


def charge_elapsed(lease: Lease, now_ms: int) -> None:
    """A lease that runs longer than estimated is charged what it has taken, at each renewal."""
    job = lease.job
    elapsed = (now_ms - lease.head_ms) * job.spec.limits.cpus_milli
    if elapsed > lease.charged_us:
        job.tenant.charge(elapsed - lease.charged_us)
        lease.charged_us = elapsed


def rescue(
    state: State,
    lease: Lease,
    is_spent: bool,
    cause: str,
    now_ms: int,
    effects: list[AnyEffect],
) -> None:
    """Takes a lease away; what is open of it goes to the front of the queue.

    ``is_spent``: its worker is lost (not drained). The subtask that may have been cut spends a
    loss, and with none left is LOST; nobody knows better which one it was than the worker's last
    word (``started``), so what is rescued is handed out in smaller leases until a killer is alone
    in its own.
    """
    job, open_runs = lease.job, list(lease.open)
    state.taken[lease.number] = (job.number, lease.slot.worker.node)
    while len(state.taken) > _TAKEN_MAX:
        state.taken.popitem(last=False)
    if not open_runs:
        endings.close_lease(state, lease, now_ms)
        return
    suspect = -1
    if is_spent and (lease.is_head or lease.started >= 0):
        is_told = find(open_runs, lease.started, 1) >= 0
        suspect = lease.started if is_told else open_runs[0][0]
    detail: Detail = {
        "lease": lease.number,
        "node": lease.slot.worker.node,
        "runs": open_runs,
        "cut": suspect,
        "attempt": lease.attempt,
        "cause": cause,
    }
    effects.append(RecordEvent(job.number, names.LEASE_RESCUED, detail, now_ms))
    lease.open.clear()
    again = open_runs
    if suspect >= 0:
        position = find(again, suspect, 1)
        cut(again, position, suspect, 1)
    bound = max(1, lease.size // _RESCUED_SHARE) if suspect >= 0 else 0
    endings.give_back(state, lease, again, now_ms, effects, bound)
    if suspect >= 0:
        _lose(state, lease, suspect, now_ms, effects)
    endings.close_lease(state, lease, now_ms)
    endings.complete(state, job, now_ms, effects)


def _lose(state: State, lease: Lease, index: int, now_ms: int, effects: list[AnyEffect]) -> None:
    """One subtask was cut with its worker: a loss is spent; with none left it ends as LOST."""
    job = lease.job
    lease.items -= 1
    job.leased -= 1
    job.lost += 1
    run = [(index, 1)]
    spent = next(iter(job.columns.spent(index, 1, True)))[2]
    attempt = lease.attempt
    if job.ending is not None:
        endings.end_runs(state, job, run, job.ending, attempt, now_ms, effects, lease)
    elif intersect(run, job.cancelling):
        endings.end_runs(state, job, run, Outcome.CANCELLED, attempt, now_ms, effects, lease)
    elif spent >= job.spec.losses_max or attempt >= ATTEMPT_MAX:
        endings.end_runs(state, job, run, Outcome.LOST, attempt, now_ms, effects, lease)
    else:
        job.columns.set_spent(index, 1, True, spent + 1)
        job.columns.spend(index, 1, attempt)
        job.retried += 1
        job.ready.add_first(run, attempt + 1, 1)
        state.enlist(job)


def on_worker_lost(state: State, event: WorkerLost, now_ms: int, effects: list[AnyEffect]) -> None:
    """The worker is gone: a clean goodbye spends nothing."""
    worker = state.workers.get(event.worker)
    if worker is not None:
        remove(state, worker, event.is_clean, event.cause, now_ms, effects)


def remove(
    state: State,
    worker: Worker,
    is_clean: bool,
    cause: str,
    now_ms: int,
    effects: list[AnyEffect],
) -> None:
    """Forgets a worker; its leases are rescued.

    Later ones of a slot go first, so that the one that ran stands first in the queue again.
    """
    worker.is_draining = True
    for slot in worker.slots:
        state.index_slot(slot)
    leave_pool(state, worker)
    for slot in worker.slots:
        for lease in reversed(list(slot.leases)):
            rescue(state, lease, not is_clean, cause, now_ms, effects)
    for number in worker.jobs:
        job = state.jobs.get(number)
        if job is not None:
            job.workers.pop(worker.number, None)
    del state.workers[worker.number]
    del state.by_seen[worker.number]
    state.dirty_workers.pop(worker.number, None)
    detail: Detail = {"name": worker.name, "node": worker.node, "cause": cause}
    effects.append(RecordEvent(0, names.WORKER_LOST, detail, now_ms))


def expire(state: State, now_ms: int, effects: list[AnyEffect]) -> None:
    """Drops workers without a full report for a ttl, the most silent first.

    (One that was told a longer ttl holds up those behind it: only while the fleet shrinks.)
    """
    while state.by_seen:
        worker = next(iter(state.by_seen.values()))
        ttl_ms = max(state.ttl_ms, worker.ttl_ms)
        if worker.full_ms + ttl_ms >= now_ms:
            return
        cause = f"silent for {now_ms - worker.full_ms} ms; the limit is {ttl_ms} ms"
        remove(state, worker, False, cause, now_ms, effects)
        effects.append(DropWorker(worker.number, cause))
