"""100,000 random histories of money with faults; and planted bugs that they must find."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sim_histories import BrokenLawError, History

from gristmill.broker.core import adoption, endings, jobs, leases, results, workers
from gristmill.ledger.core.coverage import Coverage

CHUNKS = 8  #: so that the runner's processes share them
Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_history_passes_a_cap_bills_twice_or_loses_a_credit(
    chunk: int, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    seen: Counter[str] = Counter()
    each, began = sized(100_000, 1_000_000) // CHUNKS, time.monotonic()
    for seed in range(chunk * each, (chunk + 1) * each):
        seen += History(seed).run()
    # What the claim is about has happened, and not seldom.
    for what in ("caps reached", "losses", "restarts", "superseded", "entries said again"):
        assert seen[what] > each // 4, (what, seen)
    assert seen["adopted"] > each // 40 and seen["billed"] > each // 2, seen
    figures(histories=each, seconds=round(time.monotonic() - began, 1), **seen)


def no_budgets(patch: Patch) -> None:
    """Each lease may spend the whole cap."""
    patch.setattr(jobs.Job, "available_ucredits", property(lambda job: job.spec.cap_ucredits))


def no_limit_of_a_bill(patch: Patch) -> None:
    """A bill is the price, whatever the lease's budget."""
    real = results.bill

    def bill(lease: Any, *meters: int) -> int:
        kept, lease.budget_ucredits = lease.budget_ucredits, 1 << 62
        try:
            return real(lease, *meters)
        finally:
            lease.budget_ucredits = kept

    patch.setattr(results, "bill", bill)


def one_price(patch: Patch) -> None:
    """Work on any class costs what it does on standard nodes."""
    patch.setattr(leases.Lease, "tariff", property(lambda lease: lease.job.tariffs["standard"]))


def wrong_class(patch: Patch) -> None:
    """Contributions name another class than the node's."""
    patch.setattr(workers.Worker, "node_class", property(lambda worker: "standard"))


def results_again(patch: Patch) -> None:
    """A result stays open in its lease, so that one that comes twice is used twice."""
    patch.setattr(results, "cut", lambda *_: None)
    patch.setattr(Coverage, "take", lambda *_: None)


def claims_without_a_budget(patch: Patch) -> None:
    """A lease is adopted with the budget that its worker claims."""
    patch.setattr(
        adoption, "min", lambda claimed, left: claimed if left >= 0 else left, raising=False
    )


def no_release(patch: Patch) -> None:
    """The rest of a hold is never voided."""
    patch.setattr(endings, "Release", lambda ref: endings.Release)
    real = endings.complete

    def complete(state: Any, job: Any, now_ms: int, effects: list[Any]) -> None:
        kept: list[Any] = []
        real(state, job, now_ms, kept)
        effects += [e for e in kept if getattr(e, "entry", None) is not endings.Release]

    patch.setattr(endings, "complete", complete)
    patch.setattr(results.endings, "complete", complete)


def notices_again(patch: Patch) -> None:
    """What was told of the cap is forgotten with each result."""
    real = endings.note_spending

    def note_spending(state: Any, job: Any, *rest: Any, **more: Any) -> None:
        job.noticed_percent = 0
        real(state, job, *rest, **more)

    patch.setattr(endings, "note_spending", note_spending)


@pytest.mark.parametrize(
    "plant",
    [
        no_budgets, no_limit_of_a_bill, one_price, wrong_class, results_again,
        claims_without_a_budget, no_release, notices_again,
    ],
)  # fmt: skip
def test_a_planted_bug_is_found(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    for seed in range(4_000):
        try:
            History(seed).run()
        except BrokenLawError:
            return
    pytest.fail(f"4,000 histories did not find it: {plant.__doc__}")
