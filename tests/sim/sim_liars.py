"""Nodes that lie, before the real core of the broker: who believes them, and what that costs.

Only the core runs, on virtual time: workers answer leases one subtask at a time, some with a wrong
digest. Liars know everything (when they are trusted, which attempt this is, what their partner
said): what a real one can know is less. ``Watch`` judges from effects alone what was published and
paid; a restart rebuilds the state from what a journal would have.
"""

import hashlib
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gristmill.broker.core import checks, recovery, step
from gristmill.broker.core import effects as fx
from gristmill.broker.core import events as ev
from gristmill.broker.core import journal_names as names
from gristmill.broker.core.invariants import check
from gristmill.wire.ledger import Contribution
from gristmill.wire.meter import Meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec, Tariff
from gristmill.wire.worker import Held, LeaseGrant, ResultHead

UTC = 1_700_000_000_000
REPORT_MS = 1_000
KINDS = ("always", "one in ten", "patient", "pair")


def digest_of(*parts: object) -> bytes:
    """16 bytes of whatever."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


@dataclass
class Node:
    """A worker of one slot. ``kind``: how it lies; ``lies``: of it and of its partner."""

    number: int
    kind: str
    owner: str
    lies: dict[int, bytes]
    next_result: int = 1
    free_ms: int = 0
    runs: int = 0

    @property
    def key(self) -> str:
        """Its node."""
        return f"node{self.number}"

    def answer(
        self, index: int, attempt: int, standing: checks.Standing, dice: random.Random
    ) -> bytes:
        """The digest that it tells."""
        is_trusted, is_sure = standing.is_trusted, standing.streak >= checks.STREAK_MAX
        honest = digest_of("value", index)
        if self.kind == "honest":
            return honest
        if self.kind == "pair" and index in self.lies:
            return self.lies[index]  # what the partner said
        is_lie = {
            "always": True,
            "one in ten": dice.random() < 0.1,
            "patient": is_trusted and attempt == 1,
            "for long": is_sure and attempt == 1,
            "pair": is_trusted and attempt == 1,
        }[self.kind]
        if not is_lie:
            return honest
        self.lies[index] = digest_of("lie", index, self.owner)
        return self.lies[index]


@dataclass
class Watch:
    """What was published and paid, judged from the effects; knows nothing of the core's state."""

    equal: int
    is_adaptive: bool
    streaks: dict[str, int] = field(default_factory=dict)
    shut: dict[str, None] = field(default_factory=dict)
    held: dict[int, fx.KeepVote] = field(default_factory=dict)  # by sequence
    published: dict[int, bytes] = field(default_factory=dict)
    disputed: int = 0
    replicas: int = 0
    paid: list[tuple[int, int]] = field(default_factory=list)  # (subtask, attempt)
    unpaid: int = 0
    said: dict[tuple[int, int], tuple[str, bytes]] = field(default_factory=dict)

    def see(self, effects: list[fx.AnyEffect], owners: dict[str, str]) -> None:
        """The effects of one step."""
        before = dict(self.held)
        for effect in effects:
            if isinstance(effect, fx.KeepResult) and effect.ref:
                if effect.not_final:
                    continue
                self._published(effect, before, owners)
            elif isinstance(effect, fx.KeepResult):
                self.disputed += effect.outcome == Outcome.DISPUTED
            elif isinstance(effect, fx.KeepVote):
                self.held[effect.sequence] = effect
            elif isinstance(effect, fx.SettleVote):
                vote = self.held.pop(effect.sequence)
                if effect.is_paid:
                    self.paid.append((vote.index, vote.attempt))
                    assert vote.node not in self.shut, f"{vote.node}: in quarantine and paid"
                    said = self.published.get(vote.index, vote.digest)
                    assert said == vote.digest, f"{vote.index}: paid for what was outvoted"
                else:
                    self.unpaid += 1
            elif isinstance(effect, fx.KeepStanding):
                self.streaks[effect.node] = effect.streak
                if effect.cause:
                    self.shut[effect.node] = None
                else:
                    self.shut.pop(effect.node, None)
            elif isinstance(effect, fx.AddToOutbox) and isinstance(effect.entry, Contribution):
                self.paid.append((effect.entry.first, effect.entry.attempt))
            elif isinstance(effect, fx.Dispatch):
                node = f"node{effect.worker}"
                assert node not in self.shut, f"{node} is in quarantine and got a lease"

    def _published(
        self, effect: fx.KeepResult, held: dict[int, fx.KeepVote], owners: dict[str, str]
    ) -> None:
        index = effect.first
        node, digest = self.said[index, effect.attempt]
        assert index not in self.published, f"{index} was published twice"
        self.published[index] = digest
        votes = [vote for vote in held.values() if vote.index == index]
        equal = {vote.owner for vote in votes if vote.digest == digest} | {owners[node]}
        if self.is_adaptive and not votes:
            streak = self.streaks.get(node, 0)
            assert streak >= checks.TRUSTED_AFTER, f"{index}: unchecked at a streak of {streak}"
            return
        assert len(equal) >= self.equal, f"{index}: published with {len(equal)} equal results"


class Journal:
    """What of the effects a journal has, and the facts that a start reads from it."""

    def __init__(self) -> None:
        self.job: fx.RecordJob | None = None
        self.parcels: list[recovery.ParcelFact] = []
        self.results: list[recovery.ResultFact] = []
        self.votes: dict[int, fx.KeepVote] = {}
        self.unpaid: list[tuple[int, int]] = []
        self.losses: list[tuple[int, int]] = []
        self.standings: dict[str, checks.Standing] = {}
        self.is_granted = False
        self.is_final = False

    def keep(self, effects: list[fx.AnyEffect]) -> None:
        """The effects of one step, as one group."""
        for at, effect in enumerate(effects):
            if isinstance(effect, fx.RecordJob):
                self.job = effect
            elif isinstance(effect, fx.KeepParcel):
                self.parcels.append(
                    recovery.ParcelFact(effect.first, effect.count, effect.codec, 100)
                )
            elif isinstance(effect, fx.KeepResult):
                entry = getattr(effects[at + 1] if at + 1 < len(effects) else None, "entry", None)
                amount = entry.amount_ucredits if isinstance(entry, Contribution) else 0
                self.results.append(
                    recovery.ResultFact(
                        effect.sequence, effect.first, effect.count, effect.attempt,
                        bytes([effect.outcome]), effect.not_final, amount,
                    )
                )  # fmt: skip
            elif isinstance(effect, fx.KeepVote):
                self.votes[effect.sequence] = effect
            elif isinstance(effect, fx.SettleVote):
                del self.votes[effect.sequence]
            elif isinstance(effect, fx.KeepStanding):
                standing = checks.Standing(effect.streak, effect.cause)
                self.standings[effect.node] = standing
            elif isinstance(effect, fx.RecordState):
                self.is_final = effect.status.state in ("done", "failed", "cancelled")
            elif isinstance(effect, fx.RecordEvent):
                self._keep_event(effect.name, effect.detail)

    def _keep_event(self, name: str, detail: dict[str, Any]) -> None:
        if name == names.HOLD_GRANTED:
            self.is_granted = True
        elif name == names.RESULT_UNPAID:
            count = sum(length for _, length in detail["runs"])
            self.unpaid.append((count, detail["amount_ucredits"]))
        elif name == names.LEASE_RESCUED and detail["cut"] >= 0:
            self.losses.append((detail["cut"], detail["attempt"]))

    def fact(self, tariffs: dict[str, Tariff]) -> recovery.JobFact:
        """Of its one job."""
        job = self.job
        assert job is not None
        votes = [
            (
                one.index,
                checks.Vote(
                    one.sequence, one.attempt, one.owner, one.node, one.lease_id, one.outcome,
                    one.digest, one.amount_ucredits,
                ),
            )
            for one in self.votes.values()
        ]  # fmt: skip
        return recovery.JobFact(
            job=job.job, tenant=job.tenant, submission=job.submission, spec=job.spec,
            tariffs=tariffs, submitted_utc_ms=job.now_utc_ms, is_hold_granted=self.is_granted,
            parcels=self.parcels, results=self.results, votes=votes, unpaid=self.unpaid,
            losses=self.losses,
        )  # fmt: skip


class LiarGrid:
    """One job on nodes of which some lie. ``run`` plays it to its end."""

    def __init__(
        self,
        seed: int,
        nodes: int = 40,
        subtasks: int = 40_000,
        quorum: str = "adaptive",
        kinds: tuple[str, ...] = KINDS,
        liars_percent: int = 20,
        check_every: int = 0,
        restart_every: int = 0,
        shared_owners: int = 0,
        cancel_at: int = 0,
    ) -> None:
        self.random = random.Random(seed)
        self.cancel_at = cancel_at
        self.subtasks, self.check_every, self.restart_every = subtasks, check_every, restart_every
        liars = nodes * liars_percent // 100
        told = ["honest"] * (nodes - liars) + [kinds[at % len(kinds)] for at in range(liars)]
        self.random.shuffle(told)
        shared: dict[int, bytes] = {}
        self.nodes = [
            Node(
                at + 1, kind, f"owner{at % shared_owners if shared_owners else at}",
                shared if kind == "pair" else {},
            )
            for at, kind in enumerate(told)
        ]  # fmt: skip
        self.owners = {node.key: node.owner for node in self.nodes}
        self.tariffs = {"standard": Tariff()}
        spec = JobSpec(kind="function", function="0" * 64, count=subtasks, quorum=quorum)
        self.spec = spec
        self.state = step.State.new(step.Config(), 1)
        self.journal = Journal()
        rule = spec.quorum == "adaptive"
        self.watch = Watch(2 if rule else int(spec.quorum[0]), rule)
        self.now, self.steps, self.refs, self.order = 1_000, 0, 0, 0
        self.life = 1
        self.heap: list[tuple[int, int, Callable[[], None]]] = []
        self.done_runs = 0

    # ------------------------------------------------------------ the run

    def run(self) -> "LiarGrid":
        """Until the job is over.

        Raises:
            AssertionError: a promise was broken, or there is no end in sight.
        """
        self._do(ev.JobSubmitted(7, 1, "t", b"s", self.spec, dict(self.tariffs), UTC + self.now))
        self._do(ev.HoldAnswered(1, "", ""))
        for first in range(0, self.subtasks, 1_000):
            count = min(1_000, self.subtasks - first)
            self._do(ev.ParcelArrived(7, "t", 1, first, count, "m", 100))
        self._join_all()
        while self.heap and 1 in self.state.jobs:
            self.now, _, action = heapq.heappop(self.heap)
            action()
            assert self.now < 10_000_000, "no end in sight"
            if self.cancel_at and len(self.watch.published) >= self.cancel_at:
                self.cancel_at = 0
                self._do(ev.CancelAsked(7, 2, "t", 1, []))
            if self.restart_every and self.steps % self.restart_every == 0:
                self._restart()
        assert 1 not in self.state.jobs, "it never ended"
        assert not self.watch.held, f"{len(self.watch.held)} results were never decided"
        paid = self.watch.paid
        assert len(set(paid)) == len(paid), "paid twice"
        return self

    def _at(self, delay: int, action: Callable[[], None]) -> None:
        self.order += 1
        life = self.life

        def act() -> None:
            if self.life == life:
                action()

        heapq.heappush(self.heap, (self.now + delay, self.order, act))

    def _join_all(self) -> None:
        for node in self.nodes:
            node.next_result, node.free_ms = 1, self.now
            self._do(
                ev.WorkerJoined(
                    node.number, f"w{node.number}", node.key, 1, 1_000, 1 << 31,
                    {"owner": node.owner}, ["job"], ["3.11.7"], "cgroup", [],
                )
            )  # fmt: skip
            self._at(self.random.randint(1, REPORT_MS), lambda node=node: self._report(node))

    def _report(self, node: Node) -> None:
        held = self.state.workers[node.number].leases
        names = [Held(number, 0, -1, 0) for number in held]
        self._do(ev.WorkerReported(node.number, 0, True, [0], names, [], False))
        self._at(REPORT_MS, lambda: self._report(node))

    def _do(self, event: ev.AnyEvent) -> None:
        effects = step.step(self.state, event, self.now)
        self.steps += 1
        if self.check_every and self.steps % self.check_every == 0:
            check(self.state)
        self.journal.keep(effects)
        self.watch.see(effects, self.owners)
        for effect in effects:
            if isinstance(effect, fx.Dispatch):
                self._work(self.nodes[effect.worker - 1], effect.lease)

    def _work(self, node: Node, lease: LeaseGrant) -> None:
        at = max(node.free_ms, self.now)
        for first, count in lease.runs:
            for index in range(first, first + count):
                took = self.random.randint(20, 200)
                at += took
                self._at(
                    at - self.now,
                    lambda index=index, took=took: self._finish(node, lease, index, took * 1_000),
                )
        node.free_ms = at

    def _finish(self, node: Node, lease: LeaseGrant, index: int, us: int) -> None:
        mine = self.state.workers[node.number].leases
        if lease.lease_id not in mine:
            return
        standing = self.state.standings.get(node.key, checks.Standing())
        digest = node.answer(index, lease.attempt, standing, self.random)
        self.watch.said[index, lease.attempt] = (node.key, digest)
        node.runs += 1
        self.refs += 1
        head = ResultHead(node.next_result, lease.lease_id, 1, index, 1, "m", us, us, 100, "cgroup")
        node.next_result += 1
        self._do(
            ev.ResultArrived(
                node.number, head, Meter(1, 0, b"", (), (), ()), self.refs, 10, [],
                UTC + self.now, digest, self.random.getrandbits(32),
            )
        )  # fmt: skip

    def _restart(self) -> None:
        """The broker dies: what its journal has is what it knows."""
        before = self.state
        self.life += 1
        self.heap.clear()
        self.state, effects = recovery.rebuild(
            before.config, self.life, [self.journal.fact(self.tariffs)], self.now, UTC + self.now,
            standings=self.journal.standings,
        )  # fmt: skip
        check(self.state)
        old, new = before.jobs[1], self.state.jobs[1]
        assert old.check is not None and new.check is not None
        assert new.check.votes == old.check.votes, "a restart lost a vote"
        assert new.spent_ucredits == old.spent_ucredits, "a restart lost an amount"
        assert (new.done, new.failed) == (old.done, old.failed), "a restart lost an end"
        known = {node: one for node, one in before.standings.items() if one != checks.Standing()}
        kept = {node: one for node, one in self.state.standings.items() if one in known.values()}
        assert kept == known, "a restart lost the standing of a node"
        self.journal.keep(effects)
        self._join_all()

    # ------------------------------------------------------------ figures

    @property
    def wrong(self) -> int:
        """Subtasks that were published with a lie."""
        return sum(
            digest != digest_of("value", index) for index, digest in self.watch.published.items()
        )

    @property
    def extra(self) -> float:
        """Subtasks that ran beyond one each, as a share."""
        return sum(node.runs for node in self.nodes) / self.subtasks - 1

    def shut_kinds(self) -> dict[str, int]:
        """How many of each kind are in quarantine."""
        found: dict[str, int] = {}
        for node in self.nodes:
            if node.key in self.watch.shut:
                found[node.kind] = found.get(node.kind, 0) + 1
        return found
