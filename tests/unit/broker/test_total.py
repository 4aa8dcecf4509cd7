"""``step`` is total: whatever a worker or client says, nothing raises and every invariant holds."""

from __future__ import annotations

import random

import pytest
from core_driver import UTC, Core, leases

from gristmill.broker.core import events as ev
from gristmill.wire.meter import Meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.worker import Held, ResultHead, Returned


def nearby(r: random.Random, value: int) -> int:
    return r.choice((value, value, value, value - 1, value + 1, 0, -1, 1 << 40, r.randint(0, 99)))


def a_lie(r: random.Random, core: Core) -> ev.AnyEvent:
    """An event that is nearly right, or not at all."""
    known = leases(core)
    lease = r.choice(known) if known else None
    lease_id = nearby(r, lease.lease_id if lease else 0)
    first, count = r.choice(lease.runs) if lease else (0, 1)
    worker = r.choice((1, 2, 3, 9))
    job = r.choice((1, 2, 3, 9))
    first, count = nearby(r, first), min(nearby(r, count), 300)
    kind = r.randrange(8)
    if kind <= 2:
        size = min(max(0, nearby(r, count)), 300)
        is_mixed = r.random() < 0.5
        column = bytes(r.choices(range(19), k=size)) if is_mixed else b""
        meter = Meter(size, r.choice((0, 0, 0, 1, 11, 12, 17, 18)), column, (), (), ())
        number = nearby(r, core.state.workers[worker].results_upto + 1) if worker < 4 else 1
        number = min(number, 1 << 30)
        readings = [nearby(r, 1_000) for _ in range(3)]
        head = ResultHead(number, lease_id, job, first, count, "m", *readings, "x" * 10)
        failures = [(nearby(r, 0), "text") for _ in range(r.randrange(3))]
        return ev.ResultArrived(worker, head, meter, r.randrange(99), 10, failures, UTC)
    if kind <= 4:
        held = [Held(lease_id, nearby(r, 0), nearby(r, first), nearby(r, 0))]
        runs = [(first, count), (nearby(r, first), count)]
        returned = [Returned(lease_id, runs, r.choice(("recalled", "set-up", "jail")))]
        alive = [nearby(r, 0), nearby(r, 1)]
        is_full = r.random() < 0.5
        return ev.WorkerReported(worker, 1, is_full, alive, held, returned, False)
    runs = [(nearby(r, first), nearby(r, count)) for _ in range(3)]
    tenant = r.choice(("t", "u"))
    return r.choice(
        (
            ev.CancelAsked(1, 1, tenant, job, runs),
            ev.ParcelArrived(1, tenant, job, first, count, "m", nearby(r, 10)),
            ev.ParcelsCommitted(job, first),
            ev.UploadClosed(1, 1, tenant, job, count),
            ev.PauseAsked(1, 1, tenant, job),
            ev.ResumeAsked(1, 1, tenant, job),
            ev.ResumeAsked(1, 1, tenant, job),
            ev.HoldAnswered(job, r.choice(("", "", "QUOTA")), "no"),
            ev.LedgerSeen(r.random() < 0.5, r.random() < 0.2),
            ev.TimePassed(),
            ev.ClientLost(nearby(r, 7)),
        )
    )


@pytest.mark.parametrize("seed", range(12))
def test_no_event_raises(seed: int) -> None:
    r = random.Random(seed)
    core = Core()
    for worker in (1, 2, 3):
        core.join(worker, slots=2)
    for _ in range(3):
        core.job(150, retries=2, cap_ucredits=r.choice((10**10, 100_000)))
    for _ in range(150):
        core.now += r.choice((0, 1, 30))
        core.do(a_lie(r, core))
        if r.random() < 0.3 and core.state.leases:
            lease = r.choice(leases(core))
            worker = core.state.leases[lease.lease_id].slot.worker
            core.numbers[worker.number] = worker.results_upto
            outcome = r.choice((Outcome.OK, Outcome.OK, Outcome.ERROR, Outcome.CANCELLED))
            core.result(worker.number, lease, *lease.runs[0], outcome)
