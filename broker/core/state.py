"""The whole state of the broker's core, and the indices that keep each step's work constant.

Nothing here decides anything: handlers (``on_*.py``) say what an event means, ``placement.py`` what
a free slot does next, ``endings.py`` how subtasks and jobs end. Dicts are in insertion order, no
set is iterated, so a run of events has one outcome.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field

from gristmill.broker.core.checks import Standing
from gristmill.broker.core.jobs import Job
from gristmill.broker.core.leases import Lease
from gristmill.broker.core.tenants import Requirement, RequirementKey, Tenant
from gristmill.broker.core.workers import Pool, Profile, Slot, Worker
from gristmill.wire import limits
from gristmill.wire.client import JobStatus

_SHUN_DOUBLINGS_MAX = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What an operator may set.

    ``broker``: prefix of hold refs; ``weights``: by tenant, default 1; ``slots_max``: by tenant,
    absent for no limit. Times in ms.
    """

    broker: str = "broker"
    report_ms: int = limits.REPORT_MS
    ttl_ms: int = limits.TTL_MS
    weights: dict[str, int] = field(default_factory=dict)
    slots_max: dict[str, int] = field(default_factory=dict)
    jobs_per_tenant_max: int = limits.JOBS_PER_TENANT_MAX
    queued_subtasks_max: int = limits.QUEUED_SUBTASKS_MAX
    subtasks_per_tenant_max: int = limits.SUBTASKS_PER_TENANT_MAX
    input_credit_bytes: int = limits.INPUT_CREDIT_BYTES
    tenant_disk_bytes: int = limits.TENANT_DISK_BYTES
    recall_after_ms: int = 100  #: an unstarted lease this old is asked back for an idle slot
    stint_ms: int = 300  #: a slot that began a job stays with it this long: a jail's start is dear
    status_ms: int = 100  #: a job's card goes to its subscribers at most this often
    shun_ms: int = 1_000  #: a job that could not be set up on a worker stays away, doubling
    adopt_ms: int = 1_000  #: after a restart, started work waits this long for who may hold it
    finished_max: int = 10_000  #: final jobs whose cards stay in memory


@dataclass(slots=True)
class Finished:
    """A final job: its card. Older ones than ``finished_max`` are in the journal only."""

    tenant: str
    status: JobStatus
    submission: bytes = b""


@dataclass(slots=True)
class Drain:
    """How fast the grid finishes subtasks: an average over about ten seconds."""

    finished: int = 0
    seen: int = 0
    at_ms: int = 0
    per_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class State:
    """Owned by ``step``; the shell only reads it, through ``cards.py`` and ``why.py``.

    ``submissions``: (tenant, submission id) -> (job, digest of its content), of jobs in memory;
    ``has_past``: there are others, in the journal alone (events name them). ``awaited``: names of
    workers from before a restart that may hold leases of jobs that ``may_be_held``, until
    ``await_until_ms``; ``rescued``: leases that nobody adopts any more. ``by_seen``: workers,
    the one silent for longest first. ``recallable``: leases of which something has probably not
    started, oldest first. ``taken``: leases that were taken from a silent worker, to (job, node),
    the oldest first. ``standings``: of nodes, by key.
    ``canaries``: jobs that are one. ``dirty_workers``, ``dirty_requirements``:
    who gained room, who gained work in this step.
    """

    config: Config
    incarnation: int
    lease_counter: int = 0
    job_counter: int = 0
    tenant_counter: int = 0
    pool_counter: int = 0
    jobs: dict[int, Job] = field(default_factory=dict)
    finished: dict[int, Finished] = field(default_factory=dict)
    submissions: dict[tuple[str, bytes], tuple[int, bytes]] = field(default_factory=dict)
    has_past: bool = False
    awaited: dict[str, None] = field(default_factory=dict)
    await_until_ms: int = 0
    rescued: dict[int, None] = field(default_factory=dict)
    uploads: dict[int, dict[int, None]] = field(default_factory=dict)
    tenants: dict[str, Tenant] = field(default_factory=dict)
    active: dict[str, Tenant] = field(default_factory=dict)
    requirements: dict[RequirementKey, Requirement] = field(default_factory=dict)
    ready: OrderedDict[RequirementKey, Requirement] = field(default_factory=OrderedDict)
    workers: dict[int, Worker] = field(default_factory=dict)
    by_seen: OrderedDict[int, Worker] = field(default_factory=OrderedDict)
    pools: dict[Profile, Pool] = field(default_factory=dict)
    idle_pools: dict[int, Pool] = field(default_factory=dict)
    half_pools: dict[int, Pool] = field(default_factory=dict)
    idle_slots: int = 0
    leases: dict[int, Lease] = field(default_factory=dict)
    recallable: OrderedDict[int, Lease] = field(default_factory=OrderedDict)
    taken: OrderedDict[int, tuple[int, str]] = field(default_factory=OrderedDict)
    standings: dict[str, Standing] = field(default_factory=dict)
    canaries: dict[int, None] = field(default_factory=dict)
    dirty_workers: dict[int, None] = field(default_factory=dict)
    dirty_requirements: dict[RequirementKey, None] = field(default_factory=dict)
    changed: OrderedDict[int, None] = field(default_factory=OrderedDict)
    shuns: list[tuple[int, int]] = field(default_factory=list)
    queued: int = 0
    is_ledger_up: bool = True
    is_outbox_full: bool = False
    utc_offset_ms: int = 0
    drain: Drain = field(default_factory=Drain)

    @classmethod
    def new(cls, config: Config, incarnation: int) -> State:
        """An empty grid. ``incarnation``: one more than at the last start (it fences leases)."""
        return cls(config=config, incarnation=incarnation)

    def utc(self, now_ms: int) -> int:
        """UTC milliseconds of a moment of the core's clock."""
        return now_ms + self.utc_offset_ms

    @property
    def report_ms(self) -> int:
        """How often a worker reports: grows with the fleet beyond ``REPORTS_PER_SECOND_MAX``."""
        fleet = len(self.workers) * 1000 // limits.REPORTS_PER_SECOND_MAX
        return max(self.config.report_ms, fleet)

    @property
    def ttl_ms(self) -> int:
        """How long a slot or worker may be silent: grows with the report interval."""
        config = self.config
        return config.ttl_ms * self.report_ms // config.report_ms

    def remember(self, number: int, finished: Finished) -> None:
        """Keeps a final job's card, and forgets the oldest beyond ``finished_max``."""
        self.finished[number] = finished
        while len(self.finished) > self.config.finished_max:
            old = self.finished.pop(next(iter(self.finished)))
            self.submissions.pop((old.tenant, old.submission), None)
            self.has_past = True

    # ------------------------------------------------------------ tenants and requirements

    def tenant(self, name: str) -> Tenant:
        """The tenant of this name, made at its first job."""
        tenant = self.tenants.get(name)
        if tenant is None:
            self.tenant_counter += 1
            tenant = self.tenants[name] = Tenant(
                name,
                self.tenant_counter,
                max(1, self.config.weights.get(name, 1)),
                self.config.slots_max.get(name, 0),
            )
        return tenant

    def add_queued(self, job: Job, count: int) -> None:
        """So many more (negative: fewer) subtasks of this job are unfinished."""
        self.queued += count
        job.tenant.queued += count

    def requirement(self, key: RequirementKey) -> Requirement:
        """The requirement of this key, matched against all pools when it is new."""
        requirement = self.requirements.get(key)
        if requirement is None:
            requirement = self.requirements[key] = Requirement(key)
            for pool in self.pools.values():
                if requirement.is_feasible(pool):
                    requirement.slots += pool.slots
        return requirement

    def forget_requirement(self, requirement: Requirement) -> None:
        """Drops a requirement that no unfinished job has."""
        if not requirement.jobs:
            for lane in list(requirement.lanes.values()):
                for _, _, job in lane.jobs:
                    self.note_dequeued(job)
                requirement.drop_lane(lane)
            self.requirements.pop(requirement.key, None)
            self.ready.pop(requirement.key, None)
            self.dirty_requirements.pop(requirement.key, None)

    # ------------------------------------------------------------ ready jobs

    def is_dispatchable(self, job: Job) -> bool:
        """Whether something of the job could be handed out now, room permitting."""
        return (
            job.ready.count > 0
            and job.hold in ("none", "granted")
            and job.ending is None
            and not job.is_paused
            and not job.is_waiting_for_budget
            and not job.may_be_held
            and not (job.spec.concurrency_max and job.leased >= job.spec.concurrency_max)
            and not (self.is_outbox_full and not job.started_utc_ms)
        )

    def enlist(self, job: Job) -> None:
        """Queues a job that may have become dispatchable (it may not be, or be queued already)."""
        if job.is_queued or not self.is_dispatchable(job):
            if job.is_queued and job.check is not None:  # others may have what is ready now
                self.dirty_requirements[job.requirement.key] = None
            return
        tenant, requirement = job.tenant, job.requirement
        job.is_queued = True
        tenant.ready_jobs += 1
        self.wake(tenant)
        is_to_be_offered = requirement.add(job)
        self.ready[requirement.key] = requirement
        if is_to_be_offered:
            self.dirty_requirements[requirement.key] = None

    def wake(self, tenant: Tenant) -> None:
        """The tenant has something ready or running; it is owed nothing for its absence."""
        if not tenant.is_active:
            lowest = min((other.share for other in self.active.values()), default=tenant.share)
            tenant.share = max(tenant.share, lowest)
            tenant.is_active = True
            self.active[tenant.name] = tenant

    def note_dequeued(self, job: Job) -> None:
        """The job left its lane (the caller popped it)."""
        job.is_queued = False
        job.tenant.ready_jobs -= 1
        self.rest(job.tenant)

    def rest(self, tenant: Tenant) -> None:
        """A tenant with nothing ready and nothing running is no longer active."""
        if tenant.is_active and not tenant.ready_jobs and not tenant.leases:
            tenant.is_active = False
            del self.active[tenant.name]

    def reopen(self, tenant: Tenant) -> None:
        """The tenant may use more slots again: what it has ready is offered to all free ones."""
        for requirement in tenant.lanes.values():
            requirement.is_starved = False
            self.dirty_requirements[requirement.key] = None

    def shun(self, worker: Worker, job: int, now_ms: int) -> None:
        """The job cannot be set up or paid here: it stays away for a while, doubling each time."""
        times = min(worker.shunned.get(job, (0, 0))[1] + 1, _SHUN_DOUBLINGS_MAX)
        until_ms = now_ms + self.config.shun_ms * (1 << (times - 1))
        worker.shunned[job] = (until_ms, times)
        heapq.heappush(self.shuns, (until_ms, worker.number))

    # ------------------------------------------------------------ room

    def index_slot(self, slot: Slot) -> None:
        """Puts a slot where it belongs after its leases changed."""
        worker, leases = slot.worker, len(slot.leases)
        pool, is_open = (
            worker.pool,
            not (worker.is_draining or worker.is_quarantined or slot.is_hung),
        )
        if is_open and leases == 0:
            if slot.number not in worker.idle:
                worker.idle[slot.number] = None
                self.idle_slots += 1
                pool.idle[worker.number] = worker
                self.idle_pools[pool.number] = pool
        elif slot.number in worker.idle:
            del worker.idle[slot.number]
            self.idle_slots -= 1
            if not worker.idle:
                pool.idle.pop(worker.number, None)
                if not pool.idle:
                    self.idle_pools.pop(pool.number, None)
        if is_open and 0 < leases < limits.LEASES_PER_SLOT:
            worker.half[slot.number] = None
            pool.half[worker.number] = worker
            self.half_pools[pool.number] = pool
        else:
            self.leave_half(slot)

    def leave_half(self, slot: Slot) -> None:
        """Nothing is to be stacked behind what this slot runs."""
        worker = slot.worker
        if slot.number in worker.half:
            del worker.half[slot.number]
            if not worker.half:
                worker.pool.half.pop(worker.number, None)
                if not worker.pool.half:
                    self.half_pools.pop(worker.pool.number, None)
