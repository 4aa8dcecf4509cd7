"""Whose turn it is: the one order in which placement hands out what waits, and `why` explains.

Lowest first: the tenant's fair-share score, then the tenant that came first, then submission time
less one minute for each step of priority (ageing, without ever sorting again), then the number of
the job. All of it stands in the journal or follows from it: jobs' rows have tenant, priority and
time, results have what a tenant was charged for.

A slot asks for the order only when its *stint* is over: it stays with a job that it has begun for
``Config.stint_ms``, see ``placement.py``. So the order is that of stints, not of single leases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gristmill.wire.client import Turn

if TYPE_CHECKING:
    from gristmill.broker.core.jobs import Job
    from gristmill.broker.core.state import State

AGE_STEP_MS = 60_000  #: a step of priority is worth this much waiting


class Rank(NamedTuple):
    """A place in the queue: the lowest is next. ``share``: weighted cpu-microseconds."""

    share: float
    tenant: int
    key: int
    job: int


def key_of(submitted_ms: int, priority: int) -> int:
    """Order among the jobs of one tenant: lower first."""
    return submitted_ms - priority * AGE_STEP_MS


def key_of_job(job: Job) -> int:
    """``key_of`` a job's submission."""
    return key_of(job.submitted_ms, job.spec.priority)


def rank_of(share: float, tenant: int, submitted_ms: int, priority: int, job: int) -> Rank:
    """The place of a job. ``tenant``: tenants are numbered as their first jobs came."""
    return Rank(share, tenant, key_of(submitted_ms, priority), job)


def rank_of_job(job: Job) -> Rank:
    """The place of a job as things are now."""
    tenant = job.tenant
    return rank_of(tenant.share, tenant.order, job.submitted_ms, job.spec.priority, job.number)


def turn_of(state: State, job: Job, now_ms: int) -> Turn | None:
    """What decides a waiting job's place; None for one that is not in the queue.

    ``ahead`` counts the jobs that want the same of a worker and come first, as shares are now.
    """
    if not state.is_dispatchable(job):
        return None
    mine, ahead, of = rank_of_job(job), 0, 0
    for lane in job.requirement.lanes.values():
        for _, _, other in lane.jobs:
            if state.is_dispatchable(other):
                of += 1
                ahead += rank_of_job(other) < mine
    share_us, age_ms = int(job.tenant.share), now_ms - job.submitted_ms
    return Turn(job.spec.priority, share_us, age_ms, ahead, of)
