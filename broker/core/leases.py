"""Leases: a slot's right to runs of a job, fenced by an id; and how large to make one.

One lease has one attempt number and at most 64 runs. It ends when all of it is final, returned or
rescued; a message that names any other lease than a current one of that worker has no effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gristmill.wire.limits import LEASE_FLOOR_US, LEASE_ITEMS_MAX, LEASE_TARGET_US
from gristmill.wire.spec import Tariff
from gristmill.wire.worker import Run

if TYPE_CHECKING:
    from gristmill.broker.core.jobs import Job
    from gristmill.broker.core.workers import Slot


@dataclass(slots=True, eq=False)
class Lease:
    """A lease that is out. ``open``: runs not yet final, returned or rescued; ``items`` of them.

    ``started``: index last told as running, -1 for none. ``budget_ucredits``: what is left of
    ``granted_ucredits``; ``charged_us``: what its tenant's share was charged so far; ``used_us``:
    what it really took. ``is_all_the_money``: its budget was everything that the job had left.
    ``cpu_us``, ``wall_us``: what its results were billed for.
    ``is_recall_answered``: the worker has returned what it could.
    ``named_ms``: when the worker last said that it has it.
    ``is_adopted``: granted before a restart of the broker (adoption.py).
    ``stopped_ms``: when it was ordered to stop, 0 before; nothing later than that is billed.
    """

    number: int
    job: Job
    slot: Slot
    attempt: int
    open: list[Run]
    items: int
    size: int
    granted_ms: int
    head_ms: int
    budget_ucredits: int
    charged_us: float
    granted_ucredits: int
    is_all_the_money: bool = False
    used_us: float = 0.0
    cpu_us: int = 0
    wall_us: int = 0
    started: int = -1
    is_recalled: bool = False
    is_recall_answered: bool = False
    named_ms: int = 0
    stopped_ms: int = 0
    is_adopted: bool = False

    @property
    def tariff(self) -> Tariff:
        """What its work costs: by the class of its worker."""
        return self.job.tariff_on(self.slot.worker)

    @property
    def is_stopped(self) -> bool:
        """Whether the worker was told to kill what runs of it."""
        return self.stopped_ms > 0

    def elapsed_ms(self, now_ms: int) -> int:
        """Time that its worker may claim: since it was granted, up to when it was stopped."""
        until_ms = min(now_ms, self.stopped_ms) if self.stopped_ms else now_ms
        return until_ms - self.granted_ms + 1  # a started millisecond counts

    @property
    def is_head(self) -> bool:
        """Whether it is the one that its slot works on."""
        return self.slot.leases[0] is self


def lease_items(job: Job, serving: int, concurrency_left: int) -> int:
    """How many subtasks the next lease of a job may hold (its ready queue may hold fewer).

    1, 2, 4, ... until the measured wall time per subtask puts a lease at ``LEASE_TARGET_US`` of
    work; guided shrinking towards the end: half of an even share of what remains for each of
    ``serving`` slots, but no less than ``LEASE_FLOOR_US`` of work. While inputs are still coming
    the even share itself, since more will come.
    Until the first subtask is done, leases do not grow beyond what ``failures_max`` allows to fail.
    """
    floor = 1
    if job.est_us:
        floor = int(LEASE_FLOOR_US / job.est_us)
        size = min(job.ramp, max(1, int(LEASE_TARGET_US / job.est_us)), LEASE_ITEMS_MAX)
    else:
        size = 1
    most = job.spec.failures_max
    if most and not job.done:  # it may be a job that only fails: no more at stake than pauses it
        size = min(size, max(1, most - (job.failed - job.failed_at_resume) - job.leased))
    remaining = job.ready.count
    if job.count >= 0:
        remaining += job.count - job.uploaded
    remaining = min(remaining, concurrency_left)
    shares = 2 * serving if job.is_closed else serving
    return max(1, min(size, max(-(-remaining // shares), min(floor, remaining))))


def next_ramp(lease: Lease) -> int:
    """What a lease may hold after this one, which went well: 64 times as much if it was tiny."""
    times = 2 if lease.job.est_us * lease.size >= LEASE_FLOOR_US else 64
    return max(lease.job.ramp, min(times * lease.size, LEASE_ITEMS_MAX))
