"""What passing time does, and what the ledger says. Every timer is data in the state."""

from __future__ import annotations

import heapq

from gristmill.broker.core import endings
from gristmill.broker.core import journal_names as names
from gristmill.broker.core.adoption import end_wait
from gristmill.broker.core.cards import job_status
from gristmill.broker.core.effects import AnyEffect, RecordEvent, TellStatus
from gristmill.broker.core.events import HoldAnswered, LedgerSeen, TimePassed
from gristmill.broker.core.on_workers import expire
from gristmill.broker.core.placement import recall
from gristmill.broker.core.state import State
from gristmill.wire.outcome import Outcome

_CARDS_PER_STEP_MAX = 256
_DRAIN_MS = 1_000
_DRAIN_WEIGHT = 0.1  #: averages over about ten of those


def on_time_passed(state: State, event: TimePassed, now_ms: int, effects: list[AnyEffect]) -> None:
    """Expiry, shuns that end, recalls, cards. Call it every 50 ms or so."""
    expire(state, now_ms, effects)
    if state.awaited and now_ms >= state.await_until_ms:
        end_wait(state)
    while state.shuns and state.shuns[0][0] <= now_ms:
        worker = heapq.heappop(state.shuns)[1]
        if worker in state.workers:
            state.dirty_workers[worker] = None
    recall(state, now_ms, effects)
    _measure_drain(state, now_ms)
    _tell_changed(state, now_ms, effects)


def _measure_drain(state: State, now_ms: int) -> None:
    drain = state.drain
    elapsed = now_ms - drain.at_ms
    if elapsed < _DRAIN_MS:
        return
    rate = (drain.finished - drain.seen) * 1000 / elapsed
    drain.per_s += _DRAIN_WEIGHT * (rate - drain.per_s)
    drain.seen, drain.at_ms = drain.finished, now_ms


def _tell_changed(state: State, now_ms: int, effects: list[AnyEffect]) -> None:
    """Cards of jobs that changed, each at most every ``status_ms``; the rest wait their turn."""
    for _ in range(min(len(state.changed), _CARDS_PER_STEP_MAX)):
        number, _ = state.changed.popitem(last=False)
        job = state.jobs.get(number)
        if job is None:
            continue
        if now_ms - job.told_ms < state.config.status_ms:
            state.changed[number] = None
            continue
        job.told_ms = now_ms
        effects.append(TellStatus(number, job_status(state, job, now_ms)))


def on_hold_answered(
    state: State, event: HoldAnswered, now_ms: int, effects: list[AnyEffect]
) -> None:
    """The ledger holds the job's cap, or refuses: then the job failed with the ledger's code."""
    job = state.jobs.get(event.job)
    if job is None or job.hold != "asked":
        return
    if not event.code:
        job.hold = "granted"
        effects.append(RecordEvent(job.number, names.HOLD_GRANTED, {}, now_ms))
        state.changed[job.number] = None
        state.enlist(job)
        return
    job.hold = "refused"
    detail: dict[str, str | int | list[tuple[int, int]]] = {
        "code": event.code,
        "message": event.message,
    }
    effects.append(RecordEvent(job.number, names.HOLD_REFUSED, detail, now_ms))
    endings.end_rest(
        state, job, Outcome.BUDGET, "failed", event.code, event.message, now_ms, effects
    )


def on_ledger_seen(state: State, event: LedgerSeen, now_ms: int, effects: list[AnyEffect]) -> None:
    """Running jobs go on whatever the ledger does; with a full spool new ones wait."""
    was_full, was_up = state.is_outbox_full, state.is_ledger_up
    state.is_ledger_up, state.is_outbox_full = event.is_up, event.is_full
    if was_up == event.is_up and was_full == event.is_full:
        return
    for job in state.jobs.values():
        if not job.started_utc_ms:
            state.changed[job.number] = None
            if was_full and not event.is_full:
                state.enlist(job)
