"""What becomes of a slot: its jail, its leases, and the ends of both.

========  =====================================================  ==============================
phase     meaning                                                left by
========  =====================================================  ==============================
empty     no jail; one is started when a lease is there          StartJail -> starting
starting  a jail was started for the first lease's job           JailReady -> ready, JailEnded
ready     leases of the jail's job are fed to it, in order       KillJail -> ending, JailEnded
ending    killed, not yet gone                                   JailEnded -> empty
========  =====================================================  ==============================

A jail serves one job. It leaves the slot when the next lease is of another job (parked, if nothing
that it was fed is left in it), and ends when its job is closed, after one subtask in tier
``strict``, and when a limit is passed in it.

A slot is renewed at the broker only while it is *seen alive* (``is_alive``):

========  =============================================================  =======================
phase     seen alive while                                               else
========  =============================================================  =======================
starting  its start is not older than ``START_MS_MAX``                   killed: ``start``
ready     a look saw its process not stopped within half a ttl           killed: ``hung``
ready     it began on what it was fed within ``TAKE_MS_MAX``             killed: ``hung``
ready     its subtask is inside its wall limit and the slot's grace      killed: ``time``
ending    it was killed not longer than ``END_MS_MAX`` ago               the lease expires
any       its results are on the way to the store                        -
========  =============================================================  =======================

What a killed slot ran is told as LOST, unbilled, once its jail is gone; if it does not go, nothing
is told, and the broker gives the lease away a ttl after the last report that named the slot. A
spawner that stands still for half a ttl is replaced: all jails of this worker end with it.
"""

from gristmill.wire.failure import Failure, pack_failures
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import Tariff
from gristmill.wire.worker import ResultHead, Returned, Run
from gristmill.worker.core import effects as do
from gristmill.worker.core import events as on
from gristmill.worker.core import runs
from gristmill.worker.core.drain import begin_drain
from gristmill.worker.core.state import (
    BETWEEN_MS_MIN,
    END_MS_MAX,
    HUNG_SHARE,
    SETUP_TRIES_MAX,
    START_MS_MAX,
    TAKE_MS_MAX,
    WALL_GRACE_MS,
    Cause,
    Frames4,
    Lease,
    Pending,
    Slot,
    State,
)

Effects = list[do.Effect]


# ---------------------------------------------------------------- from the slot


def on_jail_ready(state: State, event: on.JailReady, now_ms: int) -> Effects:
    """The first lease may be fed."""
    slot = state.slots[event.slot]
    if slot.jail != event.jail or slot.phase != "starting":
        return []
    slot.phase, slot.seen_ms = "ready", now_ms
    state.setup_failures = 0
    _begin_run(slot, (0, -1, 0), now_ms, 0)
    return settle(state, slot, now_ms)


def on_result_arrived(state: State, event: on.ResultArrived, now_ms: int) -> Effects:
    """Keep the result until its ack, if the lease still is the slot's; refuse a lie."""
    slot = state.slots[event.slot]
    if slot.jail != event.jail or slot.phase not in ("ready", "ending"):
        return []
    lease = _lease_of(slot, event.lease_id)
    if lease is None:
        if event.lease_id in slot.ghosts or slot.phase == "ending":
            return []  # handed back while this was on its way: the broker gives it out again
        return _lied(slot, f"a result of lease {event.lease_id}, which it does not have", now_ms)
    left = runs.take(lease.remaining, event.first, event.count)
    if left is None or not lease.is_fed:
        return _lied(slot, f"a result of {event.count} subtasks from {event.first}", now_ms)
    lease.remaining = left
    lease.done += event.count
    lease.cpu_us += event.cpu_us
    lease.wall_us += event.wall_us
    lease.billed += event.billed
    _keep_result(state, lease, event)
    if not lease.remaining:
        return _lease_over(state, slot, lease, now_ms)
    return []


def on_feed_ended(state: State, event: on.FeedEnded, now_ms: int) -> Effects:
    """The slot is through with a feed: hand back what it did not start."""
    slot = state.slots[event.slot]
    if slot.jail != event.jail or slot.phase != "ready":
        return []
    slot.ghosts.pop(event.lease_id, None)
    lease = _lease_of(slot, event.lease_id)
    if slot.is_used:  # tier strict: this jail had its subtask
        if lease is not None:
            lease.is_fed = False
        return _kill(slot, "retire", now_ms)
    if lease is None:
        return settle(state, slot, now_ms)
    if not lease.cause:
        return _lied(slot, f"the end of lease {event.lease_id} with subtasks left", now_ms)
    _give_back(state, lease, lease.remaining, lease.cause)
    lease.remaining = []
    return _lease_over(state, slot, lease, now_ms)


def on_slot_lied(state: State, event: on.SlotLied, now_ms: int) -> Effects:
    """The jail ends; its running subtask fails."""
    slot = state.slots[event.slot]
    if slot.jail != event.jail or slot.phase not in ("starting", "ready"):
        return []
    return _lied(slot, event.what, now_ms)


def on_input_failed(state: State, event: on.InputFailed, now_ms: int) -> Effects:
    """Every subtask that is left of the lease ends as STORE; nothing was run or is billed."""
    slot = state.slots[event.slot]
    lease = _lease_of(slot, event.lease_id)
    if lease is None or slot.jail != event.jail:
        return []
    failure = Failure(event.message, kind="StoreError")
    for run in lease.remaining:
        _conclude(state, lease, run, Outcome.STORE, failure)
    lease.remaining = []
    return _lease_over(state, slot, lease, now_ms)


def on_job_unready(state: State, event: on.JobUnready, now_ms: int) -> Effects:
    """The job's leases in this slot end as the event says: never run, never billed."""
    slot = state.slots[event.slot]
    if slot.jail != event.jail or slot.phase not in ("starting", "ending"):
        return []
    failure = Failure(event.message, kind="StoreError" if event.outcome == Outcome.STORE else "")
    for lease in [lease for lease in slot.leases if lease.grant.job == slot.job]:
        for run in lease.remaining:
            _conclude(state, lease, run, Outcome(event.outcome), failure)
        slot.leases.remove(lease)
    slot.phase, slot.jail, slot.job, slot.kill_cause = "empty", 0, 0, None
    return settle(state, slot, now_ms)


def on_jail_ended(state: State, event: on.JailEnded, now_ms: int) -> Effects:
    """The subtask that ran gets the verdict, what is left of its lease goes back."""
    slot = state.slots[event.slot]
    if slot.jail != event.jail or slot.phase == "empty":
        return []
    cause, job = slot.kill_cause, slot.job
    if event.outcome == Outcome.LOST and now_ms >= state.lapse_at_ms:
        cause = "lapse"  # ended in our stead: the leases are others' by now
    slot.phase, slot.jail, slot.job, slot.kill_cause = "empty", 0, 0, None
    slot.is_used = False
    slot.ghosts.clear()
    slot.started = (0, -1)
    effects: Effects = []
    if event.outcome == Outcome.SETUP and cause in (None, "start"):
        effects += _on_setup_failed(state, slot, job, event, now_ms)
    elif cause == "drain":
        for lease in slot.leases:
            _give_back(state, lease, lease.remaining, "drained")
        slot.leases.clear()
    elif cause not in ("retire", "park", "lapse"):
        _blame(state, slot, job, event)
    for lease in list(slot.leases):
        lease.is_fed = False
        if lease.cause:  # it was on its way back when its slot went
            _give_back(state, lease, lease.remaining, lease.cause)
            lease.remaining = []
        if not lease.remaining:
            slot.leases.remove(lease)
    return effects + settle(state, slot, now_ms)


def on_looked(state: State, event: on.Looked, now_ms: int) -> Effects:
    """Limits by what was seen from outside, and the second half of recall and stop."""
    effects: Effects = []
    for look in event.looks:
        slot = state.slots[look.slot]
        if slot.jail == look.jail and slot.phase == "ready":
            effects += _on_look(state, slot, look, now_ms)
    for number, jail in event.shipping:
        if state.slots[number].jail == jail:
            state.slots[number].seen_ms = now_ms
    if not event.is_spawner_stopped or state.spawner_seen_ms < 0:
        state.spawner_seen_ms = now_ms
    elif now_ms - state.spawner_seen_ms > state.ttl_ms // HUNG_SHARE:
        state.spawner_seen_ms = now_ms
        effects += [do.Tell("what starts jails stands still: replaced"), do.ReplaceSpawner()]
    for slot in state.slots:
        if slot.phase == "starting" and now_ms - slot.since_ms > START_MS_MAX:
            effects += _kill(slot, "start", now_ms)
    return effects


def _on_look(state: State, slot: Slot, look: on.Look, now_ms: int) -> Effects:
    if not look.is_stopped:
        slot.seen_ms = now_ms
    elif now_ms - slot.seen_ms > state.ttl_ms // HUNG_SHARE:
        return _hung(slot, "stands still", now_ms)
    running = _lease_of(slot, look.lease_id)
    slot.started = (look.lease_id, look.index)
    key = (look.lease_id, look.index, sum(lease.done for lease in slot.leases))
    if key != slot.run:
        _begin_run(slot, key, now_ms, look.cpu_us)
    effects = _cut(state, slot, look, now_ms)
    if slot.phase != "ready" or not any(lease.is_fed for lease in slot.leases):
        return effects
    is_taken = running is not None or look.lease_id in slot.ghosts
    if not is_taken and now_ms - slot.run_since_ms > TAKE_MS_MAX:
        return effects + _hung(slot, "does not begin on its lease", now_ms)
    spec = state.jobs[slot.job].opening.spec
    limits = spec.limits
    wall_ms = limits.wall_ms
    if spec.tier not in ("batch", "trusted") or spec.kind == "command":
        wall_ms += WALL_GRACE_MS  # the slot has a clock of its own, and can tell more
    if look.index < 0:
        wall_ms = max(wall_ms, BETWEEN_MS_MIN)
    cpu_ms = limits.cpu_ms or 4 * limits.wall_ms * max(1, -(-limits.cpus_milli // 1000))
    if now_ms - slot.run_since_ms > wall_ms:
        return effects + _kill(slot, "time", now_ms)
    if look.cpu_us - slot.run_cpu_us > cpu_ms * 1000:
        return effects + _kill(slot, "cpu", now_ms)
    if look.output_bytes > limits.output_bytes:
        return effects + _kill(slot, "output", now_ms)
    run_ms = now_ms - slot.run_since_ms
    if running is not None and look.index >= 0 and _is_spent(state, running, look, run_ms):
        return effects + _kill(slot, "budget", now_ms)
    return effects


def _cut(state: State, slot: Slot, look: on.Look, now_ms: int) -> Effects:
    """Of leases that are going back: what the slot has not started by now, it never will.

    The stop list was written at least a turn before this look was taken.
    """
    effects: Effects = []
    for lease in list(slot.leases):
        if not lease.cause or not lease.is_fed:
            continue
        if lease.lease_id != look.lease_id:
            _give_back(state, lease, lease.remaining, lease.cause)
            lease.remaining = []
            slot.ghosts[lease.lease_id] = True
            slot.leases.remove(lease)
        elif look.index >= 0 and runs.has(lease.remaining, look.index):
            if lease.stop_outcome >= 0:
                return effects + _kill(slot, "cancel", now_ms)
            lease.remaining, rest = runs.split_after(lease.remaining, look.index)
            if rest:
                _give_back(state, lease, rest, lease.cause)
    return effects + settle(state, slot, now_ms)


def _is_spent(state: State, lease: Lease, look: on.Look, run_ms: int) -> bool:
    """Whether the lease would cost more than its budget if its subtask ended now."""
    opening = state.jobs[lease.grant.job].opening
    byte_us = (lease.wall_us + run_ms * 1000) * opening.spec.limits.memory_bytes
    cost = opening.tariff.price(lease.cpu_us + look.fresh_cpu_us, lease.billed, byte_us)
    return cost > lease.grant.budget_ucredits


def _hung(slot: Slot, how: str, now_ms: int) -> Effects:
    return [
        do.Tell(f"slot {slot.number}: its jail {how} for {now_ms - slot.seen_ms} ms; it is ended"),
        *_kill(slot, "hung", now_ms),
    ]


def is_alive(state: State, slot: Slot, now_ms: int) -> bool:
    """Whether a full report may renew the slot's leases; see the table of this module."""
    if not slot.leases:
        return False
    if slot.phase == "empty":  # between two jails: the next one starts in this very turn
        return True
    allowed_ms = {
        "starting": START_MS_MAX,
        "ready": state.ttl_ms // HUNG_SHARE,
        "ending": END_MS_MAX,
    }[slot.phase]
    return now_ms - slot.seen_ms <= allowed_ms


# ---------------------------------------------------------------- to the slot


def settle(state: State, slot: Slot, now_ms: int) -> Effects:
    """Whatever the slot needs next: a jail, a feed, its jail's end."""
    if slot.phase == "ending" or slot.phase == "starting":
        return []
    if not slot.leases:
        job = state.jobs.get(slot.job)
        if slot.phase == "ready" and (job is None or job.is_closed or state.is_draining):
            return _kill(slot, "retire", now_ms)
        return _forget_closed(state)
    lease = slot.leases[0]
    if slot.phase == "empty":
        slot.phase, slot.jail, slot.job = "starting", state.next_jail, lease.grant.job
        slot.since_ms = slot.seen_ms = now_ms
        state.next_jail += 1
        return [*_forget_closed(state), do.StartJail(slot.number, slot.jail, slot.job)]
    if lease.grant.job != slot.job:
        return _kill(slot, "retire" if any(slot.ghosts.values()) else "park", now_ms)
    if not any(lease.is_fed for lease in slot.leases):
        slot.run_since_ms = now_ms  # it was idle: its clocks begin with this feed
    if state.jobs[slot.job].opening.spec.tier == "strict":
        if slot.is_used:
            return []
        slot.is_used = True
        start, _ = lease.remaining[0]
        return [_feed(slot, lease, ((start, 1),))]
    effects: Effects = []
    for lease in slot.leases:
        if lease.grant.job != slot.job:
            break
        if not lease.is_fed and not lease.cause:
            effects.append(_feed(slot, lease, tuple(lease.remaining)))
    return effects


def take_back(state: State, slot: Slot, lease: Lease, cause: Cause, now_ms: int) -> Effects:
    """Begin to hand a lease back: at once what the slot does not have, else see ``on_looked``."""
    if lease.cause and lease.stop_outcome < 0:
        return []
    lease.cause = cause
    if lease.is_fed and slot.phase == "ready":
        return [do.StopLeases(slot.number, slot.jail, _stopped(slot))]
    if lease.is_fed and slot.phase == "ending":
        return []
    _give_back(state, lease, lease.remaining, cause)
    lease.remaining = []
    return _lease_over(state, slot, lease, now_ms)


def drop_leases(state: State, slot: Slot, lease_ids: list[int], now_ms: int) -> Effects:
    """Forget leases that are no longer ours, saying nothing of them; end the jail if one runs."""
    gone = [lease for lease in slot.leases if lease.lease_id in lease_ids]
    if not gone:
        return []
    slot.leases = [lease for lease in slot.leases if lease.lease_id not in lease_ids]
    for lease in slot.leases:
        lease.is_fed = False
    if slot.phase in ("starting", "ready"):
        return _kill(slot, "lapse", now_ms)
    return settle(state, slot, now_ms)


def close_jobs(state: State, jobs: list[int], now_ms: int) -> Effects:
    """Jobs that get no more leases: their idle jails end."""
    effects: Effects = []
    for number in jobs:
        job = state.jobs.get(number)
        if job is not None:
            job.is_closed = True
    for slot in state.slots:
        effects += settle(state, slot, now_ms)
    return effects + _forget_closed(state)


def kill_all(state: State, cause: do.KillCause, now_ms: int) -> Effects:
    """End every jail."""
    effects: Effects = []
    for slot in state.slots:
        if slot.phase in ("starting", "ready"):
            effects += _kill(slot, cause, now_ms)
    return effects


def tariff_of(state: State, job: int) -> Tariff:
    """What the job's work costs."""
    return state.jobs[job].opening.tariff


# ---------------------------------------------------------------- inner steps


def _lease_of(slot: Slot, lease_id: int) -> Lease | None:
    return next((lease for lease in slot.leases if lease.lease_id == lease_id), None)


def _stopped(slot: Slot) -> tuple[int, ...]:
    ids = [*slot.ghosts, *(lease.lease_id for lease in slot.leases if lease.cause)]
    return tuple(ids)


def _begin_run(slot: Slot, key: tuple[int, int, int], now_ms: int, cpu_us: int) -> None:
    slot.run, slot.run_since_ms, slot.run_cpu_us = key, now_ms, cpu_us


def _feed(slot: Slot, lease: Lease, fed: tuple[Run, ...]) -> do.FeedSlot:
    lease.is_fed = True
    grant = lease.grant
    return do.FeedSlot(
        slot.number,
        slot.jail,
        grant.job,
        grant.lease_id,
        grant.attempt,
        fed,
        tuple(grant.parcels),
        lease.frames,
    )


def _kill(slot: Slot, cause: do.KillCause, now_ms: int) -> Effects:
    if slot.phase not in ("starting", "ready"):
        return []
    slot.phase, slot.kill_cause, slot.seen_ms = "ending", cause, now_ms
    return [do.KillJail(slot.number, slot.jail, cause)]


def _lied(slot: Slot, what: str, now_ms: int) -> Effects:
    return [
        *_kill(slot, "lied", now_ms),
        do.Tell(f"slot {slot.number}: its jail sent {what}; it is ended"),
    ]


def _lease_over(state: State, slot: Slot, lease: Lease, now_ms: int) -> Effects:
    if lease in slot.leases:
        slot.leases.remove(lease)
        if lease.is_fed and slot.phase == "ready":
            # until the slot says that it is through
            slot.ghosts[lease.lease_id] = bool(lease.cause)
    return settle(state, slot, now_ms)


def _give_back(state: State, lease: Lease, what: list[Run], cause: Cause, detail: str = "") -> None:
    if what:
        state.returned.append(Returned(lease.lease_id, list(what), cause, detail))


def _forget_closed(state: State) -> Effects:
    in_use = {slot.job for slot in state.slots if slot.phase != "empty"}
    in_use.update(lease.grant.job for slot in state.slots for lease in slot.leases)
    gone = [number for number, job in state.jobs.items() if job.is_closed and number not in in_use]
    for number in gone:
        del state.jobs[number]
    return [do.CloseJob(number) for number in gone]


def _on_setup_failed(
    state: State, slot: Slot, job: int, event: on.JailEnded, now_ms: int
) -> Effects:
    state.setup_failures += 1
    detail = event.failure.message
    for lease in [lease for lease in slot.leases if lease.grant.job == job]:
        _give_back(state, lease, lease.remaining, "set-up", detail)
        slot.leases.remove(lease)
    if state.setup_failures < SETUP_TRIES_MAX:
        return [do.Tell(f"slot {slot.number}: a jail did not start: {detail}")]
    reason = f"{state.setup_failures} jails in a row did not start: {detail}"
    return begin_drain(state, on.DrainAsked(reason, exit_code=78), now_ms)


def _blame(state: State, slot: Slot, job: int, event: on.JailEnded) -> None:
    """One subtask gets the verdict: the one that ran, else the first that would have.

    Of the jail's own job: its leases may have gone while it started, and another job's come.
    """
    own = [lease for lease in slot.leases if lease.grant.job == job]
    fed = [lease for lease in own if lease.is_fed] or own[:1]
    victim = next((lease for lease in fed if lease.lease_id == event.lease_id), None)
    index = event.index
    if victim is None or index < 0 or not runs.has(victim.remaining, index):
        victim = victim or (fed[0] if fed else None)
        if victim is None or not victim.remaining:
            return
        index = victim.remaining[0][0]
    outcome, failure = Outcome(event.outcome), event.failure
    if victim.stop_outcome >= 0:
        outcome, failure = Outcome(victim.stop_outcome), Failure("stopped by the broker")
    left = runs.take(victim.remaining, index, 1)
    assert left is not None
    cost = (event.wall_us, event.cpu_us, event.peak_kib, event.metering)
    _conclude(state, victim, (index, 1), outcome, failure, cost, event.logs)
    is_stop = victim.stop_outcome >= 0 or outcome == Outcome.BUDGET
    _give_back(state, victim, left, victim.cause or ("stopped" if is_stop else "jail"))
    victim.remaining = []


def _conclude(
    state: State,
    lease: Lease,
    run: Run,
    outcome: Outcome,
    failure: Failure,
    cost: tuple[int, int, int, str] = (0, 0, 0, ""),
    logs: bytes = b"",
) -> None:
    """A result that the agent makes itself: all of the run ended alike."""
    first, count = run
    wall_us, cpu_us, peak_kib, metering = cost
    meter = pack_meter(count, outcome, [wall_us] if count == 1 else ())
    frames: Frames4 = (b"", meter, pack_failures([(0, failure)]), logs)
    lease.done += count
    head = ResultHead(
        number=0,
        lease_id=lease.lease_id,
        job=lease.grant.job,
        first=first,
        count=count,
        codec="",
        wall_us=wall_us,
        cpu_us=cpu_us,
        peak_kib=peak_kib,
        metering=metering or state.setting.hello.metering,
    )
    _append(state, lease, head, frames)


def _keep_result(state: State, lease: Lease, event: on.ResultArrived) -> None:
    head = ResultHead(
        number=0,
        lease_id=lease.lease_id,
        job=lease.grant.job,
        first=event.first,
        count=event.count,
        codec=event.codec,
        wall_us=event.wall_us,
        cpu_us=event.cpu_us,
        peak_kib=event.peak_kib,
        metering=event.metering,
        is_estimated=event.is_estimated,
    )
    _append(state, lease, head, event.frames)


def _append(state: State, lease: Lease, head: ResultHead, frames: Frames4) -> None:
    """Numbered when it is sent: numbers begin at 1 in each session."""
    opening = state.jobs[lease.grant.job].opening
    state.results.append(Pending(head, frames, opening, lease.grant, lease.since_ms))
    state.unsent += 1
