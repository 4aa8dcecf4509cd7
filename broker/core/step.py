"""The one door to the broker's core: ``step(state, event, now_ms) -> list[Effect]``.

Deterministic and total: the same events at the same times have the same effects, and nothing that
a peer says raises. ``now_ms`` never goes back; any clock will do (monotonic, or simulated): UTC
comes inside events. The shell calls it for one event at a time and carries out the effects in
order. ``TimePassed`` every 50 ms or so drives expiry, recalls and cards.

Reading for the shell: ``cards.job_status / find_status / subtask_rows / worker_row``, ``why.why``,
``state.report_ms``, ``state.ttl_ms`` (for WELCOME), ``recovery.rebuild`` after a restart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gristmill.broker.core import events, on_clients, on_time, on_workers, quorum, results
from gristmill.broker.core.effects import AnyEffect
from gristmill.broker.core.placement import place
from gristmill.broker.core.state import Config, State

__all__ = ["Config", "State", "step"]

_HANDLERS: dict[type, Callable[[State, Any, int, list[AnyEffect]], None]] = {
    events.JobSubmitted: on_clients.on_job_submitted,
    events.ParcelArrived: on_clients.on_parcel_arrived,
    events.ParcelsCommitted: on_clients.on_parcels_committed,
    events.InputsEnded: on_clients.on_inputs_ended,
    events.UploadClosed: on_clients.on_upload_closed,
    events.CancelAsked: on_clients.on_cancel_asked,
    events.PauseAsked: on_clients.on_pause_asked,
    events.ResumeAsked: on_clients.on_resume_asked,
    events.ClientLost: on_clients.on_client_lost,
    events.WorkerJoined: on_workers.on_worker_joined,
    events.ResultArrived: results.on_result,
    events.WorkerReported: on_workers.on_worker_reported,
    events.WorkerDrainAsked: on_workers.on_worker_drain_asked,
    events.NodeShut: quorum.on_node_shut,
    events.NodeReleased: quorum.on_node_released,
    events.WorkerLost: on_workers.on_worker_lost,
    events.HoldAnswered: on_time.on_hold_answered,
    events.LedgerSeen: on_time.on_ledger_seen,
    events.TimePassed: on_time.on_time_passed,
}


def step(state: State, event: events.AnyEvent, now_ms: int) -> list[AnyEffect]:
    """What the shell must do about one event, in order."""
    effects: list[AnyEffect] = []
    _HANDLERS[type(event)](state, event, now_ms, effects)
    place(state, now_ms, effects)
    return effects
