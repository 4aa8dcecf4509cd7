"""The session with the broker: HELLO, reports, orders, acks, and the right to run at all.

========  ==========================================  ===================================
phase     meaning                                     left by
========  ==========================================  ===================================
none      nothing said, or silence for a ttl          HELLO -> greeting
greeting  HELLO is repeated with growing pauses       Welcomed -> open; Refused -> ended
open      reports go, orders come                     REJOIN or silence -> greeting
ended     goodbye was said, or we were refused        -
========  ==========================================  ===================================

Only the answer to a *full* report extends our right to run, counted from when that report was
*sent*: a ttl later, less a margin for the kill itself, every jail is ended, since then the broker
gives the leases to others. It counts full reports only, and from when it *received* them: we are
always the first to stop.
"""

import msgspec

from gristmill.wire.errors import CODES
from gristmill.wire.limits import OPEN_JOBS_TOLD_MAX, RESULTS_PER_REPORT_MAX, RETRY_MS_MAX
from gristmill.wire.worker import LeaseGrant, Report, grants_mark
from gristmill.worker.core import effects as do
from gristmill.worker.core import events as on
from gristmill.worker.core import slots
from gristmill.worker.core.drain import begin_drain
from gristmill.worker.core.holding import all_held, claims
from gristmill.worker.core.state import (
    HELLO_FIRST_MS,
    HELLO_LAST_MS,
    MALFORMED_MAX,
    NAME_PATIENCE_MS,
    NAME_RETRY_MS,
    PENDING_RETRY_MS,
    STALL_MS,
    Job,
    Lease,
    Slot,
    State,
)

Effects = list[do.Effect]
#: full reports whose answers may still come
SENT_MAX = 64
#: leases of this session whose repeats are known, also when they are done
TAKEN_MAX = 4_096


def on_began(state: State, event: on.Began, now_ms: int) -> Effects:
    """Say HELLO at the end of this turn."""
    state.phase, state.hello_at_ms, state.answered_ms = "greeting", now_ms, now_ms
    return []


def on_welcomed(state: State, event: on.Welcomed, now_ms: int) -> Effects:
    """A new session: results are numbered and sent anew, dead leases dropped."""
    message = event.message
    if state.phase == "ended" or message.session == state.session:
        return []  # a copy: numbers that began again would be taken for repeats of the first ones
    state.phase, state.session, state.broker = "open", message.session, message.broker
    state.report_ms, state.ttl_ms = message.report_ms, message.ttl_ms
    state.hello_pause_ms = HELLO_FIRST_MS
    state.has_told_silence, state.has_told_pending, state.name_taken_ms = False, False, 0
    state.report_number, state.result_number, state.unsent = 0, 0, len(state.results)
    for pending in state.results:
        pending.is_sent = False
    state.sent.clear()
    state.taken = dict.fromkeys(lease.lease_id for slot in state.slots for lease in slot.leases)
    state.report_at_ms = state.answered_ms = state.acked_at_ms = now_ms
    # the broker's clock began when it took the HELLO, which cannot have been before it was sent
    state.lapse_at_ms = state.hello_sent_ms + state.ttl_ms - state.lapse_margin_ms
    effects: Effects = []
    for slot in state.slots:
        effects += slots.drop_leases(state, slot, message.stop, now_ms)
    return effects


def on_was_refused(state: State, event: on.WasRefused, now_ms: int) -> Effects:
    """REJOIN: HELLO again; RECOVERING, RATE_LIMITED, NODE_PENDING: later; MALFORMED: not for ever.

    Anything else ends the worker. What was in a malformed report is said again like that of a lost
    one, and a HELLO is repeated anyway.
    """
    if state.phase == "ended":
        return []
    if event.code == "REJOIN":
        if event.session not in (b"", state.session):
            return []  # of a session that we have left: this one is good
        if state.phase == "open":
            state.phase, state.hello_at_ms = "greeting", now_ms
        return []
    if event.code == "RECOVERING":  # it reads its journal: what we hold, the next HELLO tells
        state.phase, state.hello_at_ms = "greeting", now_ms + HELLO_FIRST_MS
        return []
    if event.code == "RATE_LIMITED":  # somebody says HELLO, or nonsense, with our key
        wait_ms = min(max(event.retry_after_ms, HELLO_FIRST_MS), RETRY_MS_MAX)
        state.phase, state.hello_at_ms = "greeting", now_ms + wait_ms
        return [do.Tell(f"{event.message}; waiting")]
    if event.code == "MALFORMED":
        state.malformed += 1
        if state.malformed < MALFORMED_MAX:
            return [do.Tell(f"the broker could not read a message of ours: {event.message}")]
    if event.code == "NODE_PENDING":  # an operator looks at it
        state.phase, state.hello_at_ms = "greeting", now_ms + PENDING_RETRY_MS
        if state.has_told_pending:
            return []
        state.has_told_pending = True
        return [do.Tell(f"{event.message}; waiting")]
    if event.code == "NAME_TAKEN" and state.phase == "greeting":
        # An agent that was killed keeps its name until the broker has missed it for a ttl.
        state.name_taken_ms = state.name_taken_ms or now_ms
        if now_ms - state.name_taken_ms < NAME_PATIENCE_MS:
            state.hello_at_ms = now_ms + NAME_RETRY_MS
            return []
    state.phase = "ended"
    spec = CODES.get(event.code)
    text = f"{event.code}: {event.message}" + (f"\n  -> {event.hint}" if event.hint else "")
    return [*slots.kill_all(state, "lapse", now_ms), do.Exit(spec.exit_code if spec else 1, text)]


def on_orders_arrived(state: State, event: on.OrdersArrived, now_ms: int) -> Effects:
    """Make it so: acks, jobs, leases, recalls, stops, closes, a drain."""
    if state.phase != "open":
        return []
    message = event.message
    state.report_ms, state.ttl_ms = message.report_ms, message.ttl_ms
    _take_answer(state, message.answers, message.acked, now_ms)
    effects: Effects = []
    for opening, body in zip(message.openings, event.openings, strict=True):
        state.jobs[opening.job] = Job(opening, grants_mark(opening))
        effects.append(do.OpenJob(opening, body))
    for grant, frames in zip(message.leases, event.parcels, strict=True):
        effects += _take_lease(state, grant, frames, now_ms)
    for lease_id in message.recall:
        for slot, lease in _held(state, lease_id):
            effects += slots.take_back(state, slot, lease, "recalled", now_ms)
    for lease_id, outcome in message.stop:
        for slot, lease in _held(state, lease_id):
            lease.stop_outcome = outcome
            effects += slots.take_back(state, slot, lease, "stopped", now_ms)
    if message.close:
        effects += slots.close_jobs(state, message.close, now_ms)
    if message.is_drain:
        effects += on_drain_asked(state, on.DrainAsked("the broker asked for it"), now_ms)
    return effects


def on_reading_taken(state: State, event: on.ReadingTaken, now_ms: int) -> Effects:
    """It goes with the next full report."""
    state.reading = event.reading
    return []


def on_drain_asked(state: State, event: on.DrainAsked, now_ms: int) -> Effects:
    """Hand back what has not started, let run what runs."""
    effects = begin_drain(state, event, now_ms)
    for slot in state.slots:
        for lease in list(slot.leases):
            effects += slots.take_back(state, slot, lease, "drained", now_ms)
        effects += slots.settle(state, slot, now_ms)
    return effects


def on_report_dropped(state: State, event: on.ReportDropped, now_ms: int) -> Effects:
    """A new session, then: its HELLO says what we hold, and results are sent again in it."""
    state.sent.pop(event.number, None)
    if state.phase == "open" and not event.is_empty:
        state.phase, state.hello_at_ms = "greeting", now_ms + HELLO_FIRST_MS
    return []


def on_time(state: State, now_ms: int) -> Effects:
    """Timers of the session: silence, HELLO, the end of a drain's grace, reports."""
    effects: Effects = []
    if state.phase == "open" and now_ms >= state.lapse_at_ms:
        effects += _lapse(state, now_ms)
    if state.phase == "open" and _is_stalled(state, now_ms):
        state.phase, state.hello_at_ms = "greeting", now_ms
    if state.phase == "greeting":
        # a session that is being renewed still counts its right to run
        if any(slot.leases for slot in state.slots) and now_ms >= state.lapse_at_ms:
            effects += _lapse(state, now_ms)
        if now_ms >= state.hello_at_ms:
            effects += _say_hello(state, now_ms)
    if state.is_draining and 0 <= state.drain_until_ms <= now_ms:
        effects += slots.kill_all(state, "drain", now_ms)
    if state.phase == "open":
        effects += _report(state, now_ms)
    return effects


def _held(state: State, lease_id: int) -> list[tuple[Slot, Lease]]:
    return [
        (slot, lease) for slot in state.slots for lease in slot.leases if lease.lease_id == lease_id
    ]


def _take_answer(state: State, answers: int, acked: int, now_ms: int) -> None:
    if answers > 0:
        state.answered_ms = now_ms
    for number in [number for number in state.sent if number <= answers]:
        until_ms = state.sent.pop(number) + state.ttl_ms - state.lapse_margin_ms
        state.lapse_at_ms = max(state.lapse_at_ms, until_ms)
    while state.results and state.results[0].is_sent and state.results[0].head.number <= acked:
        state.results.popleft()
        state.acked_at_ms = now_ms
        state.malformed = 0
    if answers > 0 and not state.results:
        state.malformed = 0  # a result that is refused again and again does not count as got on
    first = state.results[0] if state.results else None
    if first is not None and first.is_sent and first.report <= answers:
        # Its report was lost: what came behind it was not taken, so all of it is said again.
        state.result_number = first.head.number - 1
        state.unsent = len(state.results)
        for pending in state.results:
            pending.is_sent = False


def _take_lease(state: State, grant: LeaseGrant, frames: tuple[bytes, ...], now_ms: int) -> Effects:
    lease = Lease(grant, frames, list(grant.runs), since_ms=now_ms)
    is_known = grant.job in state.jobs and 0 <= grant.slot < len(state.slots)
    if not is_known or grant.lease_id in state.taken:
        return [do.Tell(f"lease {grant.lease_id} of job {grant.job} makes no sense; ignored")]
    state.taken[grant.lease_id] = None
    if len(state.taken) > TAKEN_MAX:
        del state.taken[next(iter(state.taken))]
    slot = state.slots[grant.slot]
    state.jobs[grant.job].is_closed = False
    if state.is_draining:
        return slots.take_back(state, slot, lease, "drained", now_ms)
    slot.leases.append(lease)
    return slots.settle(state, slot, now_ms)


def _lapse(state: State, now_ms: int) -> Effects:
    """Nobody answered for a ttl: the leases are others' by now."""
    effects: Effects = []
    for slot in state.slots:
        slot.leases.clear()
    effects += slots.kill_all(state, "lapse", now_ms)
    state.returned.clear()
    state.phase, state.hello_at_ms = "greeting", now_ms
    if not state.has_told_silence:
        state.has_told_silence = True
        effects.append(
            do.Tell(f"no answer from the broker for {state.ttl_ms} ms; jails ended, trying on")
        )
    return effects


def _is_stalled(state: State, now_ms: int) -> bool:
    """A report with results went missing: later ones are answered, theirs never acknowledged."""
    return bool(
        state.results
        and state.results[0].is_sent
        and now_ms - state.acked_at_ms > max(STALL_MS, 4 * state.ttl_ms)
        and state.answered_ms > state.acked_at_ms
    )


def _say_hello(state: State, now_ms: int) -> Effects:
    # a linear congruence is enough to keep a fleet from knocking in step
    state.jitter = (state.jitter * 1_103_515_245 + 12_345) % (1 << 31)
    pause = state.hello_pause_ms
    state.hello_at_ms = now_ms + pause + state.jitter % (pause + 1)
    state.hello_pause_ms = min(pause * 2, HELLO_LAST_MS)
    state.hello_sent_ms = now_ms
    hello = msgspec.structs.replace(
        state.setting.hello, held=all_held(state), claims=claims(state, now_ms)
    )
    return [do.SendHello(hello)]


def _open_jobs(state: State) -> list[tuple[int, int]]:
    """Those that the broker has not closed: it closes again what it did, and renews old grants."""
    numbers = sorted(number for number, job in state.jobs.items() if not job.is_closed)
    return [(number, state.jobs[number].mark) for number in numbers[:OPEN_JOBS_TOLD_MAX]]


def _report(state: State, now_ms: int) -> Effects:
    is_full = now_ms >= state.report_at_ms
    if not is_full and not state.unsent and not state.returned:
        return []
    batch = []
    if state.unsent:
        for pending in state.results:
            if pending.is_sent:
                continue
            state.result_number += 1
            pending.head = msgspec.structs.replace(pending.head, number=state.result_number)
            pending.is_sent, pending.report = True, state.report_number + 1
            batch.append(pending)
            if len(batch) == RESULTS_PER_REPORT_MAX:
                break
        if state.unsent == len(state.results):
            state.acked_at_ms = now_ms  # nothing was waiting before
        state.unsent -= len(batch)
    state.report_number += 1
    if is_full:
        state.sent[state.report_number] = now_ms
        if len(state.sent) > SENT_MAX:
            del state.sent[next(iter(state.sent))]
    report = Report(
        session=state.session,
        number=state.report_number,
        is_full=is_full,
        slots_alive=[slot.number for slot in state.slots if slots.is_alive(state, slot, now_ms)],
        held=all_held(state) if is_full else [],
        results=[pending.head for pending in batch],
        returned=state.returned,
        is_draining=state.is_draining,
        reading=state.reading if is_full else None,
        open_jobs=_open_jobs(state) if is_full else [],
    )
    state.returned = []
    if is_full:
        state.report_at_ms = now_ms + state.report_ms
    return [
        do.SendReport(
            report,
            tuple(pending.frames for pending in batch),
            tuple(pending.grant.attempt for pending in batch),
            tuple(pending.opening for pending in batch),
        )
    ]
