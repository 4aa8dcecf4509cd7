"""Money inside the broker: budgets of leases and bills of results, in integer micro-credits.

Spent plus outstanding budgets never exceed the job's cap, so it cannot be overspent whatever the
workers say: a bill is at most what is left of its lease's budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gristmill.wire.outcome import GRIDS_DOING, OWN_DOING, Outcome

if TYPE_CHECKING:
    from gristmill.broker.core.jobs import Job
    from gristmill.broker.core.leases import Lease

_ESTIMATE_MARGIN = 4
_OWN = tuple(int(outcome) for outcome in Outcome if outcome in OWN_DOING)
_GRIDS = tuple(int(outcome) for outcome in Outcome if outcome in GRIDS_DOING)


def least_ucredits(job: Job) -> int:
    """The least budget with which a lease makes sense."""
    return max(1, job.tariff.price(0, 1))


def most_ucredits(job: Job, items: int) -> int:
    """What this many subtasks of a job can cost at most under their own limits."""
    asked = job.spec.limits
    cpu_ms = asked.cpu_ms or 4 * asked.wall_ms * max(1, -(-asked.cpus_milli // 1000))
    return job.tariff.price(items * cpu_ms * 1000, items)


def lease_budget(job: Job, items: int, serving: int) -> int | None:
    """The budget of a lease of this many subtasks; None when there is too little for any now.

    What it can cost at most, or a fair slice of what is left (the cap is usually far below what
    the limits would allow), but at least four times its estimate, and more than any lease of this
    job was stopped at.
    """
    if job.is_free:
        return 0
    left = job.available_ucredits
    if left < least_ucredits(job):
        return None
    floor = job.budget_floor_ucredits
    if floor > left and job.outstanding_ucredits:
        return None  # wait for what other leases give back
    guess = job.tariff.price(int(_ESTIMATE_MARGIN * items * job.est_us), items)
    slice_of_rest = left // (2 * serving + 2)
    return min(
        max(most_ucredits(job, items), least_ucredits(job)),
        max(slice_of_rest, floor, guess, least_ucredits(job)),
        left,
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


def bill(lease: Lease, cpu_us: int, subtasks: int) -> int:
    """What a result costs: the tariff's price, at most what is left of the lease's budget."""
    return min(lease.job.tariff.price(cpu_us, subtasks), lease.budget_ucredits)
