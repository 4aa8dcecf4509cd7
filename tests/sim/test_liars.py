"""Untrusted results: how much wrong is believed, what the checks cost, and planted bugs."""

import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sim_liars import KINDS, LiarGrid
from sim_quorum import QuorumGrid

from gristmill.broker.core import checks, endings, quorum, recovery, results
from gristmill.broker.core.state import State
from gristmill.broker.execution import Execution

SEEDS_RELEASE = 100
SUBTASKS_EACH = 2_000  #: of a node: a liar gets some lies through in its life, whatever its length
NODES = 40


def test_a_fifth_of_liars_gets_one_result_in_a_thousand_believed(sized, figures) -> None:
    """P9: half of the liars know when they are trusted, two of eight lie together."""
    began = time.monotonic()
    wrong, extra, caught = [], [], 0
    seeds = range(sized(2, SEEDS_RELEASE))
    for seed in seeds:
        grid = LiarGrid(seed, NODES, NODES * SUBTASKS_EACH).run()
        wrong.append(grid.wrong / grid.subtasks)
        extra.append(grid.extra)
        caught += sum(grid.shut_kinds().values())
        assert "honest" not in grid.shut_kinds()
    figures(
        seeds=len(seeds),
        wrong_percent=round(100 * statistics.mean(wrong), 4),
        wrong_percent_worst=round(100 * max(wrong), 4),
        extra_percent=round(100 * statistics.mean(extra), 2),
        caught=f"{caught} of {8 * len(seeds)}",
        seconds=round(time.monotonic() - began, 1),
    )
    assert statistics.mean(wrong) <= 0.001
    assert max(extra) <= 0.15


@pytest.mark.parametrize("kind", [*KINDS, "for long"])
def test_one_kind_of_liar_alone(kind, sized, figures) -> None:
    """How many lies each gets through in its whole life, and whether it is caught."""
    seeds = range(sized(1, 30))
    grids = [LiarGrid(seed, NODES, NODES * 300, kinds=(kind,)).run() for seed in seeds]
    lies = statistics.mean(grid.wrong / 8 for grid in grids)
    caught = sum(grid.shut_kinds().get(kind, 0) for grid in grids)
    figures(lies_each=round(lies, 2), caught=f"{caught} of {8 * len(grids)}")
    assert lies <= {"always": 0.2, "one in ten": 4, "patient": 25, "pair": 60, "for long": 40}[kind]


def test_a_quorum_of_two_of_three_believes_no_liar_who_is_alone(sized, figures) -> None:
    kinds = ("always", "one in ten", "patient")
    for seed in range(sized(1, 20)):
        grid = LiarGrid(seed, NODES, NODES * 50, quorum="2/3", kinds=kinds, check_every=29).run()
        assert grid.wrong == 0
        figures(extra_percent=round(100 * grid.extra, 1))
        assert 1.0 <= grid.extra <= 1.15


def test_two_of_one_owner_never_confirm_each_other(sized) -> None:
    """A pair under one owner is as good as one liar."""
    for seed in range(sized(2, 20)):
        grid = LiarGrid(
            seed, 20, 1_000, quorum="2/3", kinds=("pair",), shared_owners=5, check_every=7
        )
        liars = [node for node in grid.nodes if node.kind == "pair"]
        for node in liars:
            node.owner = "owner0"
            grid.owners[node.key] = "owner0"
        assert grid.run().wrong == 0


@pytest.mark.parametrize("rule", ["adaptive", "2/3", "3/5"])
def test_a_restart_forgets_no_vote_no_bill_and_no_standing(rule, sized) -> None:
    for seed in range(sized(2, 40)):
        LiarGrid(seed, 10, 300, quorum=rule, check_every=1, restart_every=61).run()


def whole(seed: int) -> str:
    """What a seed of the whole grid finds, in one line, or nothing."""
    try:
        QuorumGrid(seed).run()
    except Exception as error:  # a planted bug may break the product itself, too
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def test_a_whole_grid_with_quorums_keeps_every_promise(sized, figures) -> None:
    """Real shells and journals, under all faults: no vote is lost, no bill is posted twice."""
    logging.disable(logging.CRITICAL)
    seen: Counter[str] = Counter()
    try:
        for seed in range(sized(36, 1_200)):
            grid = QuorumGrid(seed)
            try:
                grid.run()
            except Exception as error:
                pytest.fail(f"{error}\n{grid.describe()}")
            seen.update(grid.world.seen)
    finally:
        logging.disable(logging.NOTSET)
    told = ("broker restart", "lie told", "result.unpaid", "node.quarantined")
    figures(**{name: seen[name] for name in told})
    assert all(seen[name] for name in told)


@pytest.mark.parametrize("name", ["_keep_vote", "_settle_vote"])
def test_a_shell_that_forgets_is_found(name, monkeypatch, figures) -> None:
    """An effect that the shell does not carry out."""
    logging.disable(logging.CRITICAL)
    try:
        for seed in range(40):
            with monkeypatch.context() as patch:
                patch.setattr(Execution, name, lambda self, effect: None)
                told = whole(seed)
            if told and not whole(seed):
                figures(found_at=seed, by=told[:80])
                return
    finally:
        logging.disable(logging.NOTSET)
    pytest.fail(f"40 seeds did not find a missing {name}")


# ---------------------------------------------------------------- planted bugs

Patch = pytest.MonkeyPatch
MUTANTS: dict[str, Callable[[Patch], None]] = {}


def mutant(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
    MUTANTS[plant.__name__] = plant
    return plant


@mutant
def an_owner_confirms_itself(patch: Patch) -> None:
    """Who voted is not looked at when a replica is handed out."""
    patch.setattr(checks.Check, "has_voted", lambda self, index, worker: False)


@mutant
def one_equal_result_is_enough(patch: Patch) -> None:
    """A quorum is found one short."""
    real = quorum.rule

    def rule(*arguments: Any) -> str:
        found = real(*arguments)
        return quorum.DECIDED if found == quorum.HELD else found

    patch.setattr(quorum, "rule", rule)


@mutant
def digests_are_not_compared(patch: Patch) -> None:
    """Two results are equal when both ended OK."""
    patch.setattr(checks.Vote, "is_equal", lambda self, outcome, digest: self.outcome == outcome)


@mutant
def a_node_in_quarantine_keeps_its_leases(patch: Patch) -> None:
    """Only new leases are refused."""
    patch.setattr(quorum, "rescue", lambda *arguments: None)


@mutant
def a_node_in_quarantine_gets_work(patch: Patch) -> None:
    """It is noted, and changes nothing."""
    patch.setattr(quorum, "_shut", lambda *arguments: None)


@mutant
def a_liar_is_paid(patch: Patch) -> None:
    """What is undecided of a node in quarantine is paid like anything else."""
    real = quorum.settle
    patch.setattr(
        quorum, "settle", lambda job, votes, is_paid, effects: real(job, votes, True, effects)
    )


@mutant
def votes_of_a_liar_still_count(patch: Patch) -> None:
    """What is undecided of a node in quarantine can decide something."""
    patch.setattr(quorum, "_discard", lambda *arguments: None)


@mutant
def a_new_node_is_trusted(patch: Patch) -> None:
    """Nobody counts to ten."""
    patch.setattr(checks.Standing, "is_trusted", property(lambda self: not self.cause))


@mutant
def what_is_held_is_not_ready_again(patch: Patch) -> None:
    """Nobody asks for the other replica."""

    def after(state: Any, worker: Any, lease: Any, not_final: Any, *rest: Any) -> None:
        real(state, worker, lease, [] if lease.job.check else not_final, *rest)

    real = results._after
    patch.setattr(results, "_after", after)


@mutant
def a_restart_forgets_votes(patch: Patch) -> None:
    """Half a quorum is lost with the broker."""
    patch.setattr(recovery, "_restore_votes", lambda job, fact, effects: None)


@mutant
def a_restart_adds_up_what_was_not_paid(patch: Patch) -> None:
    """A result that was not paid counts as spent after a restart."""
    real = recovery._restore_votes

    def restore(job: Any, fact: Any, effects: Any) -> None:
        fact.unpaid.clear()
        real(job, fact, effects)

    patch.setattr(recovery, "_restore_votes", restore)


@mutant
def an_ended_job_forgets_its_votes(patch: Patch) -> None:
    """What was done of a subtask that ends undecided is neither paid nor given back."""
    patch.setattr(endings, "abandon", lambda *arguments: None)


@mutant
def what_is_held_is_not_offered(patch: Patch) -> None:
    """A job that stands in its lane is as good as offered to everybody."""
    real = State.enlist

    def enlist(state: State, job: Any) -> None:
        before = dict(state.dirty_requirements)
        was_queued = job.is_queued
        real(state, job)
        if was_queued:
            state.dirty_requirements = before

    patch.setattr(State, "enlist", enlist)


def play(seed: int) -> str:
    """What a seed finds, in one line, or nothing: rules, restarts and cancels by turns."""
    rule = ("2/3", "adaptive", "3/5")[seed % 3]
    try:
        LiarGrid(
            seed, 10, 120, quorum=rule, check_every=1, restart_every=(0, 41)[seed % 2],
            cancel_at=(0, 60)[seed // 2 % 2],
        ).run()  # fmt: skip
    except Exception as error:  # a planted bug may break the product itself, too
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_planted_bug_is_found(name, monkeypatch, figures) -> None:
    for seed in range(60):
        with monkeypatch.context() as patch:
            MUTANTS[name](patch)
            told = play(seed)
        if told and not play(seed):
            figures(found_at=seed, by=told[:80])
            return
    pytest.fail(f"60 seeds did not find {name}")
