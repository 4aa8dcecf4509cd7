"""The only door to the worker's state."""

from collections.abc import Callable
from typing import Any

from gristmill.worker.core import effects as do
from gristmill.worker.core import events as on
from gristmill.worker.core import session, slots
from gristmill.worker.core.drain import finish_drain
from gristmill.worker.core.state import State

_HANDLERS: dict[type, Callable[[State, Any, int], list[do.Effect]]] = {
    on.Began: session.on_began,
    on.Welcomed: session.on_welcomed,
    on.OrdersArrived: session.on_orders_arrived,
    on.WasRefused: session.on_was_refused,
    on.ReadingTaken: session.on_reading_taken,
    on.DrainAsked: session.on_drain_asked,
    on.JailReady: slots.on_jail_ready,
    on.JailEnded: slots.on_jail_ended,
    on.ResultArrived: slots.on_result_arrived,
    on.FeedEnded: slots.on_feed_ended,
    on.SlotLied: slots.on_slot_lied,
    on.InputFailed: slots.on_input_failed,
    on.JobUnready: slots.on_job_unready,
    on.ReportDropped: session.on_report_dropped,
    on.Looked: slots.on_looked,
}


def step(state: State, event: on.Event, now_ms: int) -> list[do.Effect]:
    """Take an event in; what the agent is to do, in order. ``now_ms``: monotonic milliseconds."""
    if isinstance(event, on.TurnEnded):
        return [*session.on_time(state, now_ms), *finish_drain(state, now_ms)]
    return _HANDLERS[type(event)](state, event, now_ms)


def next_timer_ms(state: State) -> int:
    """When ``TurnEnded`` is due next even if nothing happens."""
    if state.phase == "greeting":
        due = state.hello_at_ms
    elif state.phase == "open":
        due = min(state.report_at_ms, state.lapse_at_ms)
    else:
        due = state.hello_at_ms
    if state.is_draining and state.drain_until_ms >= 0:
        due = min(due, state.drain_until_ms)
    return due
