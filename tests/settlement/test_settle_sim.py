"""The settlement's queue and log of blocks under faults, and the planted bugs that must be found.

A failing seed: ``pytest tests/settlement/test_settle_sim.py -k 'seed-17'``.
"""

import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from settle_world import Run

from gristmill.ledger.settlement import courier
from gristmill.ledger.settlement.core import chain_log, queue
from gristmill.ledger.settlement.core.queue_records import Attempt, Intent, Save, Send, Sent

IS_RELEASE = os.environ.get("GRISTMILL_SIZE") == "release"
SEEDS = range(2_000 if IS_RELEASE else 60)
TURNS = 150


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed-{seed}")
def test_nothing_is_spent_twice(seed: int) -> None:
    told = Run(seed, is_witnessed=seed % 2 == 1).go(TURNS)
    assert told["purposes"]


def test_the_faults_do_happen(record_property: Callable[[str, object], None]) -> None:
    sums: dict[str, int] = {}
    for seed in range(10):
        for name, value in Run(seed).go(TURNS).items():
            sums[name] = sums.get(name, 0) + value
    for name, value in sums.items():
        record_property(name, value)
    assert sums["crashes"] > 20
    assert sums["re-orgs"] > 20


# ---------------------------------------------------------------- planted bugs


def unknown_is_queued_again(patch: pytest.MonkeyPatch) -> None:
    """A time-out while sending counts as not sent: it gets a second nonce."""
    real = queue._on_sent

    def on_sent(lane: Any, event: Sent, effects: list[Any]) -> None:
        real(lane, event, effects)
        intent = lane.intents[event.purpose]
        if intent.state == "unknown":
            intent.state, intent.nonce, intent.attempts = "queued", -1, []
            effects.append(Save(intent))

    patch.setattr(queue, "_on_sent", on_sent)


def nonce_from_the_node(patch: pytest.MonkeyPatch) -> None:
    """The next nonce is what a node says, which may lag."""
    real = queue._on_looked

    def on_looked(lane: Any, event: Any, now_ms: int, effects: list[Any]) -> None:
        lane.next_nonce = event.nonce
        real(lane, event, now_ms, effects)

    patch.setattr(queue, "_on_looked", on_looked)


def sent_before_saved(patch: pytest.MonkeyPatch) -> None:
    """A signed attempt goes out before it is on disk."""
    real = queue._on_signed

    def on_signed(lane: Any, event: Any, effects: list[Any]) -> None:
        real(lane, event, effects)
        effects.sort(key=lambda one: not isinstance(one, Send))

    patch.setattr(queue, "_on_signed", on_signed)


def confirmed_at_once(patch: pytest.MonkeyPatch) -> None:
    """Mined counts as final."""
    real = queue._place

    def place(lane: Any, intent: Intent, event: Any, effects: list[Any]) -> None:
        real(lane, intent, msgspec.structs.replace(event, confirmed=event.head), effects)

    patch.setattr(queue, "_place", place)


def superfluous_leaves_a_gap(patch: pytest.MonkeyPatch) -> None:
    """What is not wanted any more is ended, although it has a nonce."""

    def on_unwanted(lane: Any, event: Any, effects: list[Any]) -> None:
        intent = lane.intents.get(event.purpose)
        if intent is not None and not intent.is_final:
            queue._end(lane, intent, "superfluous", effects)

    patch.setattr(queue, "_on_unwanted", on_unwanted)


def forgotten_is_not_sent_again(patch: pytest.MonkeyPatch) -> None:
    """What was sent once is left to the nodes; nothing is bumped either."""
    patch.setattr(queue, "_push", lambda *_: None)


def bump_takes_a_new_nonce(patch: pytest.MonkeyPatch) -> None:
    """A higher fee comes with another nonce."""
    real = queue._bump

    def bump(lane: Any, intent: Intent, effects: list[Any]) -> None:
        intent.nonce = lane.next_nonce
        lane.next_nonce += 1
        real(lane, intent, effects)

    patch.setattr(queue, "_bump", bump)


def restart_forgets_attempts(patch: pytest.MonkeyPatch) -> None:
    """After a restart it is signed anew, and the first attempt's receipt is never looked for."""
    real = courier.restore

    def restore(lane: Any, intents: list[Intent]) -> None:
        for intent in intents:
            if not intent.is_final:
                intent.attempts = list[Attempt]()
        real(lane, intents)

    patch.setattr(courier, "restore", restore)


def parents_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    """A block is taken for what its number says."""
    real = chain_log._on_block

    def on_block(log: Any, block: Any, effects: list[Any]) -> None:
        before = log.blocks.get(block.number - 1)
        if before is not None:
            block = msgspec.structs.replace(block, parent=before.hash)
        real(log, block, effects)

    patch.setattr(chain_log, "_on_block", on_block)


def a_short_answer_is_believed(patch: pytest.MonkeyPatch) -> None:
    """A block without the events that its bloom promises is taken."""
    real = chain_log._on_block

    def on_block(log: Any, block: Any, effects: list[Any]) -> None:
        real(log, msgspec.structs.replace(block, is_short=False), effects)

    patch.setattr(chain_log, "_on_block", on_block)


def applied_too_early(patch: pytest.MonkeyPatch) -> None:
    """An event counts one block too early."""
    patch.setattr(chain_log, "certain", lambda log: log.tip - log.limits.depth + 2)


def mined_survives_a_re_org(patch: pytest.MonkeyPatch) -> None:
    """A receipt that was seen once counts, whatever became of its block."""
    real = queue._place

    def place(lane: Any, intent: Intent, event: Any, effects: list[Any]) -> None:
        if intent.receipt is not None:
            event.receipts[intent.receipt.hash] = intent.receipt
        real(lane, intent, event, effects)

    patch.setattr(queue, "_place", place)


MUTANTS = [
    unknown_is_queued_again,
    nonce_from_the_node,
    sent_before_saved,
    confirmed_at_once,
    superfluous_leaves_a_gap,
    forgotten_is_not_sent_again,
    bump_takes_a_new_nonce,
    restart_forgets_attempts,
    parents_are_not_looked_at,
    a_short_answer_is_believed,
    applied_too_early,
    mined_survives_a_re_org,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: str(one.__name__))
def test_a_planted_bug_is_found(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    for seed in range(60):
        try:
            Run(seed).go(TURNS)
        except AssertionError:
            return
    raise AssertionError(f"60 seeds did not find: {mutant.__doc__}")
