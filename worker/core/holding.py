"""What the worker says of the leases at hand, in reports and, at more length, in HELLO.

A lease is claimed in HELLO as long as something of it runs, waits, or is a result that was not
acked: what a restarted broker does not have on disk must be named, or it is handed out again.
"""

from gristmill.wire.worker import Claim, Held, LeaseGrant, Run
from gristmill.worker.core.state import State

#: runs told in one HELLO; leases beyond these are not claimed, and their subtasks run anew
RUNS_TOLD_MAX = 1_024


def all_held(state: State) -> list[Held]:
    """Every lease that a slot has."""
    held = []
    for slot in state.slots:
        for lease in slot.leases:
            started = slot.started[1] if slot.started[0] == lease.lease_id else -1
            held.append(Held(lease.lease_id, slot.number, started, lease.done))
    return held


def claims(state: State, now_ms: int) -> list[Claim]:
    """Those that run first, then those that wait behind them, then those that wait for acks."""
    grants: dict[int, tuple[LeaseGrant, int]] = {}
    runs: dict[int, list[Run]] = {}
    started = dict(slot.started for slot in state.slots)
    for place in range(max((len(slot.leases) for slot in state.slots), default=0)):
        for slot in state.slots:
            if place < len(slot.leases):
                lease = slot.leases[place]
                grants[lease.lease_id] = lease.grant, lease.since_ms
                runs[lease.lease_id] = list(lease.remaining)
    for pending in state.results:
        lease_id, head = pending.grant.lease_id, pending.head
        grants.setdefault(lease_id, (pending.grant, pending.since_ms))
        runs.setdefault(lease_id, []).append((head.first, head.count))
    found: list[Claim] = []
    told = 0
    for lease_id, (grant, since_ms) in grants.items():
        told += len(runs[lease_id])
        if told > RUNS_TOLD_MAX:
            break
        found.append(
            Claim(
                lease_id, grant.slot, started.get(lease_id, -1), grant.job, grant.attempt,
                sorted(runs[lease_id]), grant.budget_ucredits, max(0, now_ms - since_ms),
            )
        )  # fmt: skip
    return found
