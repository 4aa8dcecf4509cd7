"""Money inside the broker: budgets of leases and bills of results, in integer micro-credits.

Spent plus outstanding budgets never exceed the job's cap, so it cannot be overspent whatever the
workers say: a bill is at most what is left of its lease's budget.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gristmill.wire.outcome import GRIDS_DOING, OWN_DOING, Outcome
from gristmill.wire.spec import Tariff
from gristmill.wire.tariffs import tariff_of

if TYPE_CHECKING:
    from gristmill.broker.core.jobs import Job
    from gristmill.broker.core.leases import Lease
    from gristmill.broker.core.workers import Pool

_ESTIMATE_MARGIN = 4
_WALL_GRACE_MS = 2_000  #: a worker lets a slot with a clock of its own tell more for this long
_OWN = tuple(int(outcome) for outcome in Outcome if outcome in OWN_DOING)
_GRIDS = tuple(int(outcome) for outcome in Outcome if outcome in GRIDS_DOING)


def least_ucredits(tariff: Tariff) -> int:
    """The least budget with which a lease makes sense."""
    return max(1, tariff.price(0, 1))


def most_ucredits(job: Job, tariff: Tariff, items: int) -> int:
    """What this many subtasks of a job can cost at most under their own limits."""
    asked = job.spec.limits
    cpu_ms = asked.cpu_ms or 4 * asked.wall_ms * max(1, -(-asked.cpus_milli // 1000))
    wall_ms = asked.wall_ms + _WALL_GRACE_MS
    byte_us = items * wall_ms * 1000 * asked.memory_bytes
    return tariff.price(items * cpu_ms * 1000, items, byte_us)


def lease_budget(job: Job, tariff: Tariff, items: int, serving: int) -> int | None:
    """The budget of a lease of this many subtasks; None when there is too little for any now.

    What it can cost at most, or a fair slice of what is left (the cap is usually far below what
    the limits would allow), but at least four times its estimate, and more than any lease of this
    job was stopped at.
    """
    if job.is_free:
        return 0
    left, least = job.available_ucredits, least_ucredits(tariff)
    if left < least:
        return None
    floor = job.budget_floor_ucredits
    if floor > left and job.outstanding_ucredits:
        return None  # wait for what other leases give back
    guess_us = int(_ESTIMATE_MARGIN * items * job.est_us)
    guess = tariff.price(guess_us, items, guess_us * job.spec.limits.memory_bytes)
    slice_of_rest = left // (2 * serving + 2)
    return min(
        max(most_ucredits(job, tariff, items), least),
        max(slice_of_rest, floor, guess, least),
        left,
    )


def is_affordable(job: Job, pools: Iterable[Pool]) -> bool:
    """Whether what is left of the cap is enough for a lease on any of these workers."""
    left = job.available_ucredits
    return any(
        left >= least_ucredits(tariff_of(job.tariffs, pool.profile.node_class))
        for pool in pools
        if job.requirement.is_feasible(pool)
    )


def billed_subtasks(count: int, uniform: int, outcome: bytes) -> tuple[int, bool, int]:
    """(subtasks with their own doing, whether anything is billed at all, subtasks not ok)."""
    if not outcome:
        billed = count if uniform in _OWN else 0
        return billed, uniform not in _GRIDS, 0 if uniform == Outcome.OK else count
    billed = sum(outcome.count(number) for number in _OWN)
    grids = sum(outcome.count(number) for number in _GRIDS)
    return billed, grids < count, count - outcome.count(Outcome.OK)


def clamp_cpu(lease: Lease, cpu_us: int, now_ms: int) -> int:
    """The cpu that a result may claim: all of the lease, at most cpus × time since dispatch.

    Time ends when the lease was stopped (a cancel, say): what a jail still used until it was dead
    is nobody's bill. (cpus_milli × ms is microseconds of cpu.)
    """
    most = lease.job.spec.limits.cpus_milli * lease.elapsed_ms(now_ms)
    return max(0, min(cpu_us, most - lease.cpu_us))


def clamp_wall(lease: Lease, wall_us: int, now_ms: int) -> int:
    """The wall time that a result may claim: all of the lease, at most the time since dispatch."""
    return max(0, min(wall_us, lease.elapsed_ms(now_ms) * 1000 - lease.wall_us))


def bill(lease: Lease, cpu_us: int, wall_us: int, subtasks: int) -> int:
    """What a result costs: the tariff's price, at most what is left of the lease's budget.

    Memory is priced as it was reserved: what one subtask asked for, while its slot had it.
    """
    byte_us = wall_us * lease.job.spec.limits.memory_bytes
    return min(lease.tariff.price(cpu_us, subtasks, byte_us), lease.budget_ucredits)
