"""Workers, their slots, and the indices that find a free slot without looking at all of them.

Workers of equal profile form a *pool*: whether a requirement fits is asked once a pool. A pool
knows its workers with an idle slot and those with a slot that could take a second lease
(``half``), both in the order in which they became so: the worker that has waited longest is next.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gristmill.broker.core.tenants import minor_of
from gristmill.wire.tariffs import class_of

if TYPE_CHECKING:
    from gristmill.broker.core.leases import Lease


@dataclass(frozen=True)
class Profile:
    """What workers of one pool have in common."""

    cpus_milli: int
    memory_bytes: int
    labels: tuple[tuple[str, str], ...]
    tiers: tuple[str, ...]
    pythons: tuple[str, ...]
    node_class: str

    @property
    def labels_of(self) -> dict[str, str]:
        """Labels by name."""
        return dict(self.labels)


def profile_of(
    cpus_milli: int,
    memory_bytes: int,
    labels: dict[str, str],
    tiers: list[str],
    pythons: list[str],
) -> Profile:
    """A profile whose equality does not depend on order; pythons as minor versions."""
    return Profile(
        cpus_milli,
        memory_bytes,
        tuple(sorted(labels.items())),
        tuple(sorted(tiers)),
        tuple(sorted(minor_of(version) for version in pythons)),
        class_of(labels),
    )


@dataclass(slots=True, eq=False)
class Pool:
    """Workers of one profile, those that drain excepted."""

    number: int
    profile: Profile
    workers: dict[int, Worker] = field(default_factory=dict)
    slots: int = 0
    idle: OrderedDict[int, Worker] = field(default_factory=OrderedDict)
    half: OrderedDict[int, Worker] = field(default_factory=OrderedDict)


@dataclass(slots=True, eq=False)
class Slot:
    """Room for one running lease and one behind it.

    ``alive_ms``: last seen alive by its agent. ``is_hung``: it lost its leases for not being seen
    alive; it gets nothing until the agent names it alive or reports that it holds nothing there.
    ``job``, ``since_ms``: number of the job that it was given last, and since when nothing else.
    """

    number: int
    worker: Worker
    alive_ms: int
    leases: list[Lease] = field(default_factory=list)
    cpus_milli: int = 0  #: claim: the largest of its leases' requests
    memory_bytes: int = 0
    is_hung: bool = False
    job: int = 0
    since_ms: int = 0

    def claim_with(self, cpus_milli: int, memory_bytes: int) -> tuple[int, int]:
        """How much more of the worker's cpus and memory this request would claim."""
        return max(0, cpus_milli - self.cpus_milli), max(0, memory_bytes - self.memory_bytes)

    def reclaim(self) -> None:
        """Sets the claim to what its leases need, and the worker's sums with it."""
        cpus = memory = 0
        for lease in self.leases:
            cpus = max(cpus, lease.job.requirement.cpus_milli)
            memory = max(memory, lease.job.requirement.memory_bytes)
        worker = self.worker
        worker.cpus_used += cpus - self.cpus_milli
        worker.memory_used += memory - self.memory_bytes
        self.cpus_milli, self.memory_bytes = cpus, memory


@dataclass(slots=True, eq=False)
class Worker:
    """One agent process in one session. ``full_ms``: its last full report (a renewal).

    ``ttl_ms``: what it was told last and goes by; in a shrinking fleet the grid's own is shorter.
    ``idle``, ``half``: numbers of its slots with no lease, and with one behind which another may
    be stacked. ``shunned``: jobs that could not be set up here -> not again before this time.
    ``owner``: whose it is: two replicas of a subtask never go to one owner.
    ``refusals``: results of it that were superseded, one soon after the other; ``refused_ms``: when
    the last one was.
    """

    number: int
    name: str
    node: str
    pool: Pool
    metering: str
    owner: str
    joined_ms: int
    full_ms: int
    ttl_ms: int = 0
    slots: list[Slot] = field(default_factory=list)
    cpus_used: int = 0
    memory_used: int = 0
    is_draining: bool = False
    is_quarantined: bool = False
    jobs: dict[int, None] = field(default_factory=dict)
    leases: dict[int, Lease] = field(default_factory=dict)
    results_upto: int = 0
    refusals: int = 0
    refused_ms: int = 0
    done: int = 0
    idle: dict[int, None] = field(default_factory=dict)
    half: dict[int, None] = field(default_factory=dict)
    shunned: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def node_class(self) -> str:
        """By which its work is priced."""
        return self.pool.profile.node_class

    @property
    def busy(self) -> int:
        """Slots with a lease."""
        return sum(1 for slot in self.slots if slot.leases)

    def has_room_for(self, slot: Slot, cpus_milli: int, memory_bytes: int) -> bool:
        """Whether this slot may serve such a request now."""
        cpus, memory = slot.claim_with(cpus_milli, memory_bytes)
        profile = self.pool.profile
        return (
            self.cpus_used + cpus <= profile.cpus_milli
            and self.memory_used + memory <= profile.memory_bytes
        )
