"""Results that are compared: what of a job with a quorum waits for another replica, and whose.

A replica is an ordinary attempt of a subtask that has a result already: it has the next attempt
number, its own lease, its own fence, its own bill. Only subtasks with a result that is not decided
have an entry here; the columns of a job are the same with a quorum and without.

States of a subtask beside those of ``columns.py`` (a result of it comes)::

    no votes --node is trusted and not sampled--> done | failed          (adaptive only)
    no votes | votes --another replica may settle it--> ready, one vote more
    votes    --as many equal as the rule asks for--> done | failed; equal ones paid, others not
    votes    --no value can get there any more--> failed, DISPUTED; all paid, nobody is accused
    votes    --cancelled, lost, out of budget--> that; all paid: nothing speaks against them

The bill of a result is part of what the job has spent as soon as the result is there, so that cap
and hold cover it; its contribution is posted when it is decided, or the amount is given back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gristmill.broker.core.effects import AnyEffect, SettleVote
from gristmill.broker.core.events import Canary
from gristmill.broker.core.parcels import Parcels
from gristmill.broker.core.ready import Ready, ReadyRun
from gristmill.wire.limits import LEASE_PARCEL_BYTES_MAX, LEASE_RUNS_MAX, UNDECIDED_MAX
from gristmill.wire.worker import Run

if TYPE_CHECKING:
    from gristmill.broker.core.jobs import Job
    from gristmill.broker.core.workers import Worker

TRUSTED_AFTER = 10  #: results in a row that another owner's replica agreed with
ON_TRIAL = "it is approved, and waits for its canary"  #: cause of a node that is new here
STREAK_MAX = 20  #: so that of no node less than one result in twenty is checked
DICE_SIDES = 1 << 32


@dataclass(slots=True)
class Standing:
    """What is known of a node, whatever its sessions, jobs and tenants.

    ``streak``: results in a row that were confirmed. ``cause``: why it is in quarantine, or empty.
    """

    streak: int = 0
    cause: str = ""

    @property
    def is_on_trial(self) -> bool:
        """Whether it gets its canary, and nothing else yet."""
        return self.cause == ON_TRIAL

    @property
    def is_trusted(self) -> bool:
        """Whether most of its results are taken as they come, where the job says adaptive."""
        return self.streak >= TRUSTED_AFTER and not self.cause

    def is_sampled(self, dice: int) -> bool:
        """Whether this result is checked: with probability 1 / streak."""
        return dice % DICE_SIDES * self.streak < DICE_SIDES


@dataclass(frozen=True, slots=True)
class Vote:
    """One result of a subtask that is not decided. ``digest``: of its values, 16 bytes."""

    sequence: int
    attempt: int
    owner: str
    node: str
    lease: int
    outcome: int
    digest: bytes
    amount_ucredits: int

    def is_equal(self, outcome: int, digest: bytes) -> bool:
        """Whether it says the same."""
        return self.outcome == outcome and self.digest == digest


@dataclass(slots=True)
class Check:
    """The votes of one job. ``equal`` of at most ``most`` must agree, see ``spec.parse_quorum``.

    ``contested``: subtasks whose votes differ; ``owners``: who voted; ``accused``: owners whose
    nodes this job put into quarantine.
    ``canary``: it is one subtask whose value is known, for one node, which may be in quarantine.
    ``replicas``: results beyond the first of a subtask; ``unpaid``: results that were not paid, of
    ``unpaid_ucredits`` together; ``disputed``: subtasks about which no quorum was found.
    """

    equal: int
    most: int
    is_adaptive: bool
    canary: Canary | None = None
    votes: dict[int, list[Vote]] = field(default_factory=dict)
    contested: dict[int, None] = field(default_factory=dict)
    owners: dict[str, None] = field(default_factory=dict)
    accused: dict[str, None] = field(default_factory=dict)
    replicas: int = 0
    unpaid: int = 0
    unpaid_ucredits: int = 0
    disputed: int = 0

    def add(self, index: int, vote: Vote) -> None:
        """One vote more, which decides nothing."""
        votes = self.votes.setdefault(index, [])
        votes.append(vote)
        self.owners[vote.owner] = None
        if not vote.is_equal(votes[0].outcome, votes[0].digest):
            self.contested[index] = None

    def pop(self, index: int) -> list[Vote]:
        """Its votes, taken out: it is decided, or over."""
        self.contested.pop(index, None)
        return self.votes.pop(index, [])

    def is_doubted(self, node: str) -> bool:
        """Whether another node contradicts it, and it is not decided who is right."""
        return any(vote.node == node for index in self.contested for vote in self.votes[index])

    def has_voted(self, index: int, worker: Worker) -> bool:
        """Whether its owner, or its node under another owner's name, made a result of it."""
        owner, node = worker.owner, worker.node
        return any(vote.owner == owner or vote.node == node for vote in self.votes.get(index, ()))

    def is_barred(self, index: int, worker: Worker) -> bool:
        """Whether this worker may not have the subtask now.

        Its owner made a result of it already; or too many others wait for somebody else.
        """
        if self.canary is not None:
            return worker.node != self.canary.node
        if index not in self.votes:
            return len(self.votes) >= UNDECIDED_MAX
        return self.has_voted(index, worker)

    def allowed(self, start: int, length: int, most: int, worker: Worker) -> Run:
        """The first part of a run that the worker may have, at most so long; length 0 for none."""
        low, end = start, start + length
        while low < end and self.is_barred(low, worker):
            low += 1
        high = low
        while high < min(end, low + most) and not self.is_barred(high, worker):
            high += 1
        return low, high - low

    def has_for(self, ready: Ready, worker: Worker) -> bool:
        """Whether something that is ready may go to this worker."""
        return any(self.allowed(run[0], run[1], 1, worker)[1] for run in ready.runs)

    def take(
        self, ready: Ready, items_max: int, parcels: Parcels, worker: Worker
    ) -> tuple[int, list[Run]]:
        """``Ready.take`` of what this worker may have; what it may not have keeps its place."""
        aside: deque[ReadyRun] = deque()
        taken: list[Run] = []
        attempt, left, items = 0, items_max, 0
        bytes_left, seen = LEASE_PARCEL_BYTES_MAX, -1
        while ready.runs and left > 0 and len(taken) < LEASE_RUNS_MAX:
            start, length, number, bound = ready.runs[0]
            if attempt and number != attempt:
                break
            most = min(left, bound - items) if bound else left
            if most <= 0:
                break
            low, size = self.allowed(start, length, most, worker)
            if not size:
                aside.append(ready.runs.popleft())
                continue
            count, used, seen = parcels.fit(low, size, bytes_left, seen)
            if not count and taken:
                break
            count = max(count, 1)  # a single parcel above the cap still has to go
            ready.runs.popleft()
            if low > start:
                aside.append((start, low - start, number, bound))
            if low + count < start + length:
                ready.runs.appendleft((low + count, start + length - low - count, number, bound))
            attempt, bytes_left = number, bytes_left - used
            left, items = left - count, items + count
            if taken and taken[-1][0] + taken[-1][1] == low:
                taken[-1] = (taken[-1][0], taken[-1][1] + count)
            else:
                taken.append((low, count))
        ready.runs.extendleft(reversed(aside))
        ready.count -= items
        return attempt, taken

    def waiting_for_others(self, owners: dict[str, None]) -> int:
        """Subtasks with a result for which none of these owners can make another."""
        return sum(
            all(any(vote.owner == owner for vote in votes) for owner in owners)
            for votes in self.votes.values()
        )

    def all_votes(self) -> Iterator[tuple[int, Vote]]:
        """(subtask, vote) of all that is not decided."""
        for index, votes in self.votes.items():
            for vote in votes:
                yield index, vote


def settle(job: Job, votes: list[Vote], is_paid: bool, effects: list[AnyEffect]) -> None:
    """These votes are decided (and out of ``check.votes``): posted, or given back to the job."""
    check = job.check
    assert check is not None
    for vote in votes:
        if not is_paid:
            job.spent_ucredits -= vote.amount_ucredits
            check.unpaid += 1
            check.unpaid_ucredits += vote.amount_ucredits
        effects.append(SettleVote(job.number, vote.sequence, is_paid))


def abandon(job: Job, start: int, length: int, effects: list[AnyEffect]) -> None:
    """These subtasks ended without a decision: what was done of them is paid."""
    check = job.check
    if check is None or not check.votes:
        return
    if length > len(check.votes):
        gone = [index for index in check.votes if start <= index < start + length]
    else:
        gone = [index for index in range(start, start + length) if index in check.votes]
    for index in gone:
        settle(job, check.pop(index), True, effects)
