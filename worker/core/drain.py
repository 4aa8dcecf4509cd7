"""Drain: finish what runs, hand back the rest, say goodbye."""

from gristmill.wire.worker import Goodbye
from gristmill.worker.core import effects as do
from gristmill.worker.core import events as on
from gristmill.worker.core.state import LAST_ACKS_MS, State

Effects = list[do.Effect]


def begin_drain(state: State, event: on.DrainAsked, now_ms: int) -> Effects:
    """No more leases from now on; ``step`` hands back what has not started. Idempotent.

    A second request that is ``is_hurried`` ends the grace.
    """
    if state.is_draining:
        if not event.is_hurried or state.drain_until_ms <= now_ms:
            return []
        state.drain_until_ms = now_ms
        return [do.Tell(f"{event.reason} again: what still runs goes back now")]
    state.drain_reason = event.reason
    state.drain_until_ms = now_ms + state.setting.grace_ms
    state.exit_code = event.exit_code
    state.report_at_ms = now_ms  # the broker should know at once
    return [do.Tell(f"draining: {event.reason}")]


def finish_drain(state: State, now_ms: int) -> Effects:
    """Goodbye and exit, once nothing is left to run or to be acknowledged, or time is up."""
    if not state.is_draining or state.phase == "ended":
        return []
    if any(slot.leases or slot.phase != "empty" for slot in state.slots):
        return []
    is_waiting = state.results or state.returned
    if is_waiting and now_ms < state.drain_until_ms + LAST_ACKS_MS:
        return []
    effects: Effects = []
    if state.phase == "open":
        effects.append(do.SendGoodbye(Goodbye(state.session, state.drain_reason)))
    state.phase = "ended"
    message = state.drain_reason if state.exit_code else ""
    if is_waiting:
        message = f"{len(state.results)} results were never acknowledged by the broker"
    return [*effects, do.Exit(state.exit_code, message)]
