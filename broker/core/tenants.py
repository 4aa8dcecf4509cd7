"""Fair share between tenants, and the queues of jobs from which a slot is filled.

A *requirement* is what a job needs of a worker: equal ones are one object, so that matching is done
once for thousands of jobs. Each has *lanes*, one a tenant with something ready, and a heap of lanes
by the tenant's *share*: the cpu-microseconds allocated to it so far, divided by its weight. The
tenant with the lowest share goes first; inside a lane the job with the lowest key does, see
``turns.py``. Heaps are lazy: an entry that no longer holds is dropped when it comes up.

"cpu-seconds" are allocated ones (wall time × cpus asked for), as batch systems charge them: a
job that sleeps on its slot pays for the slot.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gristmill.broker.core.turns import key_of_job
from gristmill.wire.spec import JobSpec
from gristmill.wire.tariffs import CLASS_LABEL

if TYPE_CHECKING:
    from gristmill.broker.core.jobs import Job
    from gristmill.broker.core.workers import Pool

_STALE_MAX = 64
_LANES_MOVED_MAX = 16

RequirementKey = tuple[int, int, str, str, tuple[tuple[str, str], ...]]


@dataclass(slots=True, eq=False)
class Tenant:
    """Who pays.

    ``share``: weighted cpu-microseconds allocated; ``slots``: slots that serve it; ``queued``: its
    unfinished subtasks.
    """

    name: str
    order: int
    weight: int
    slots_max: int
    share: float = 0.0
    jobs: int = 0
    queued: int = 0
    ready_jobs: int = 0
    leases: int = 0
    slots: int = 0
    parcel_bytes: int = 0
    is_active: bool = False
    lanes: dict[RequirementKey, Requirement] = field(default_factory=dict)
    stalled: dict[int, None] = field(default_factory=dict)

    def charge(self, us: float) -> None:
        """Adds allocated cpu-microseconds (takes them away when negative).

        A lane notices by itself when it comes up that its tenant's share has grown. One that has
        shrunk would come up late, so it is moved; with very many lanes late is good enough.
        """
        self.share += us / self.weight
        if us < 0 and len(self.lanes) <= _LANES_MOVED_MAX:
            for requirement in self.lanes.values():
                requirement.move_lane(self)


@dataclass(slots=True, eq=False)
class Lane:
    """The jobs of one tenant under one requirement, by key.

    ``born``: the requirement's ``scans`` when it was made: equal to it, no free slot was asked
    since. ``is_shunned``: some job in it may not go to some workers for a while.
    """

    tenant: Tenant
    pushed: float
    born: int
    is_shunned: bool = False
    jobs: list[tuple[int, int, Job]] = field(default_factory=list)


def minor_of(version: str) -> str:
    """``3.11`` of ``3.11.7``; empty stays empty."""
    return ".".join(version.split(".")[:2])


def requirement_key(spec: JobSpec) -> RequirementKey:
    """What of a spec decides which workers can run it."""
    python = minor_of(spec.python) if spec.kind == "function" else ""
    asked = spec.limits
    return (
        asked.cpus_milli,
        asked.memory_bytes,
        spec.tier,
        python,
        tuple(sorted(spec.labels.items())),
    )


class Requirement:
    """One kind of demand. ``slots``: of all live workers that could ever serve it.

    ``is_starved``: everything free was asked and something is still ready; from then on only
    workers that gain room are asked, so that waiting costs nothing. ``scans`` counts those times.
    """

    __slots__ = (
        "cpus_milli",
        "feasible",
        "heap",
        "is_starved",
        "jobs",
        "key",
        "labels",
        "lanes",
        "memory_bytes",
        "python",
        "scans",
        "slots",
        "tier",
    )

    def __init__(self, key: RequirementKey) -> None:
        self.key = key
        self.cpus_milli, self.memory_bytes, self.tier, self.python, self.labels = key
        self.lanes: dict[int, Lane] = {}
        self.heap: list[tuple[float, int]] = []
        self.feasible: dict[int, bool] = {}
        self.slots = 0
        self.jobs: dict[int, None] = {}
        self.is_starved = False
        self.scans = 0

    def misfits(self, pool: Pool) -> list[str]:
        """Names of the constraints that a worker of this pool fails even when idle."""
        profile = pool.profile
        failed = []
        if self.tier not in profile.tiers:
            failed.append("tier")
        if self.python and self.python not in profile.pythons:
            failed.append("python")
        offered = {CLASS_LABEL: profile.node_class, **profile.labels_of}
        if any(offered.get(name) != value for name, value in self.labels):
            failed.append("labels")
        if self.cpus_milli > profile.cpus_milli:
            failed.append("cpus")
        if self.memory_bytes > profile.memory_bytes:
            failed.append("memory")
        return failed

    def is_feasible(self, pool: Pool) -> bool:
        """Whether a worker of this pool could run it when idle (remembered)."""
        known = self.feasible.get(pool.number)
        if known is None:
            known = self.feasible[pool.number] = not self.misfits(pool)
        return known

    def move_lane(self, tenant: Tenant) -> None:
        """The tenant's share has shrunk: its lane moves forward."""
        lane = self.lanes.get(tenant.order)
        if lane is not None and lane.pushed != tenant.share:
            lane.pushed = tenant.share
            heapq.heappush(self.heap, (tenant.share, tenant.order))
            if len(self.heap) > 4 * len(self.lanes) + _STALE_MAX:
                self.heap = [(lane.pushed, order) for order, lane in self.lanes.items()]
                heapq.heapify(self.heap)

    def add(self, job: Job) -> bool:
        """A job has something to hand out. True when free slots are to be asked for its sake."""
        tenant = job.tenant
        lane = self.lanes.get(tenant.order)
        if lane is None:
            lane = self.lanes[tenant.order] = Lane(tenant, tenant.share, self.scans)
            heapq.heappush(self.heap, (tenant.share, tenant.order))
            tenant.lanes[self.key] = self
        heapq.heappush(lane.jobs, (key_of_job(job), job.number, job))
        return not self.is_starved or lane.born == self.scans or lane.is_shunned

    def drop_lane(self, lane: Lane) -> None:
        """Nothing of this tenant is ready any more."""
        del self.lanes[lane.tenant.order]
        del lane.tenant.lanes[self.key]

    def next_lane(self) -> Lane | None:
        """The lane of the lowest share; stale heap entries are dropped on the way."""
        while self.heap:
            share, order = self.heap[0]
            lane = self.lanes.get(order)
            if lane is None or lane.pushed != share:
                heapq.heappop(self.heap)
            elif lane.tenant.share > share:
                lane.pushed = lane.tenant.share
                heapq.heapreplace(self.heap, (lane.pushed, order))
            else:
                return lane
        return None
