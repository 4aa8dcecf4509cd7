"""The mirror against a model of the contracts, and every line of the reconciliation."""

import random
from typing import Any

import msgspec
import pytest

from gristmill.ledger.settlement.core.chain_log import Fact
from gristmill.ledger.settlement.core.mirror import Mirror, apply, sums
from gristmill.ledger.settlement.core.reconcile import Figures, reconcile, told
from gristmill.wire.chain import ChainBooks

POOL, FEES = b"p" * 20, b"f" * 20


class Model:
    """The contracts in a few lines: moves money, says events, adds up what it holds."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.facts: list[Fact] = []
        self.locked: dict[bytes, int] = {}
        self.paid: dict[bytes, int] = {}
        self.returned: dict[bytes, int] = {}
        self.owed: dict[bytes, int] = {}
        self.balance = self.pool = self.claimed = 0
        self.claims: dict[bytes, int] = {}
        self.say("rental", "FeeWalletChanged", wallet=FEES)

    def say(self, contract: str, name: str, **fields: Any) -> None:
        block, index = divmod(len(self.facts), 3)
        self.facts.append(Fact(block, index, contract, name, fields))

    def step(self) -> None:
        dice = self.dice
        what = dice.randrange(5)
        open_ids = [id for id in self.locked if id not in self.returned]
        if what == 0 or not open_ids:
            id, amount = dice.randbytes(32), dice.randrange(1, 10**9)
            self.locked[id], self.paid[id] = amount, 0
            self.balance += amount
            who = {"client": id[:20], "provider": b"o" * 20, "payee": POOL, "spec": id}
            self.say("rental", "Locked", id=id, amount=amount, deadline=9, **who)
        elif what in (1, 2):
            id = dice.choice(open_ids)
            cumulative = dice.randint(self.paid[id], self.locked[id])
            if cumulative > self.paid[id]:
                fee = cumulative * 3 // 100 - self.paid[id] * 3 // 100
                net = cumulative - self.paid[id] - fee
                self.paid[id] = cumulative
                self.owed[POOL] = self.owed.get(POOL, 0) + net
                self.owed[FEES] = self.owed.get(FEES, 0) + fee
                figures = {"net": net, "fee": fee, "cumulative": cumulative}
                self.say("rental", "Paid", id=id, payee=POOL, receiptsRoot=id, **figures)
        elif what == 3:
            id = dice.choice(open_ids)
            rest = self.returned[id] = self.locked[id] - self.paid[id]
            if rest:
                self.owed[id[:20]] = rest
                self.say("rental", "Returned", id=id, client=id[:20], amount=rest)
            self.say("rental", "Closed", id=id)
        else:
            account = dice.choice([*self.owed, POOL])
            amount = self.owed.pop(account, 0)
            if amount:
                self.balance -= amount
                self.pool += amount if account == POOL else 0
                self.say("rental", "Withdrawn", account=account, amount=amount)
            if self.pool:
                worker, due = dice.randbytes(1) * 20, dice.randint(1, self.pool)
                self.pool -= due
                self.claimed += due
                self.claims[worker] = self.claims.get(worker, 0) + due
                total = self.claims[worker]
                self.say("pool", "Claimed", worker=worker, amount=due, cumulative=total)

    def figures(self) -> Figures:
        return Figures(9, self.balance, self.balance, self.pool, self.claimed, 0, 0)

    def books(self) -> ChainBooks:
        locked, paid = sum(self.locked.values()), sum(self.paid.values())
        back = sum(self.returned.values())
        count = len(self.locked)
        return ChainBooks(
            count, locked, paid, back, 0, paid, locked - paid - back, 0, 0, self.claimed
        )


def mirror_of(facts: list[Fact]) -> Mirror:
    mirror = Mirror(POOL)
    for fact in facts:
        apply(mirror, fact)
    return mirror


@pytest.fixture
def model() -> Model:
    model = Model(1)
    for _ in range(200):
        model.step()
    return model


@pytest.mark.parametrize("seed", range(20))
def test_the_mirror_is_the_contracts(seed: int) -> None:
    model = Model(seed)
    for _ in range(300):
        model.step()
    mirror = mirror_of(model.facts)
    assert mirror.owed == {account: owed for account, owed in model.owed.items() if owed}
    assert mirror.claims == model.claims
    assert {one.id: one.locked for one in mirror.rentals.values()} == model.locked
    report = reconcile(mirror, model.figures(), model.books(), frozenset())
    assert report.is_good, told(report)
    assert "drift 0" in told(report)


def test_one_missed_event_is_a_drift(model: Model) -> None:
    for gone in range(len(model.facts)):
        fact = model.facts[gone]
        if fact.name in ("Closed", "FeeWalletChanged"):
            continue  # no money moves with these
        mirror = mirror_of(model.facts[:gone] + model.facts[gone + 1 :])
        report = reconcile(mirror, model.figures(), model.books(), frozenset())
        assert report.drift, fact
        assert "DRIFT" in told(report)


def test_one_unit_anywhere_is_a_drift(model: Model) -> None:
    mirror = mirror_of(model.facts)
    figures, books = model.figures(), model.books()
    for name in ("liability", "claimed", "root_number", "root_total"):
        other = msgspec.structs.replace(figures, **{name: getattr(figures, name) + 1})
        assert reconcile(mirror, other, books, frozenset()).drift == 1, name
    for name in ("escrow_balance", "pool_balance"):
        other = msgspec.structs.replace(figures, **{name: getattr(figures, name) - 1})
        assert reconcile(mirror, other, books, frozenset()).drift == 1, name
    for name in ("locked", "paid", "returned", "short", "spent", "held", "claimed"):
        wrong = msgspec.structs.replace(books, **{name: getattr(books, name) - 1})
        assert reconcile(mirror, figures, wrong, frozenset()).drift == 1, name


def test_what_came_unasked_is_told_and_no_drift(model: Model) -> None:
    mirror, figures = mirror_of(model.facts), model.figures()
    more = msgspec.structs.replace(figures, pool_balance=figures.pool_balance + 7)
    report = reconcile(mirror, more, model.books(), frozenset())
    assert report.is_good
    assert "7 came unasked" in told(report)


def test_without_the_ledger_nothing_is_proven(model: Model) -> None:
    report = reconcile(mirror_of(model.facts), model.figures(), None, frozenset())
    assert not report.drift
    assert not report.is_good
    assert "proves nothing" in told(report)


def test_rentals_that_nobody_agreed_to_are_no_part_of_the_books(model: Model) -> None:
    mirror = mirror_of(model.facts)
    strange = max(mirror.rentals.values(), key=lambda one: one.locked)
    books = model.books()
    without = msgspec.structs.replace(
        books,
        locked=books.locked - strange.locked,
        paid=books.paid - strange.paid,
        returned=books.returned - strange.returned,
        spent=books.spent - strange.paid,
        held=books.held - strange.left,
    )
    report = reconcile(mirror, model.figures(), without, frozenset({strange.id}))
    assert report.is_good
    assert str(strange.locked) in told(report)


def test_roots_and_vetoes() -> None:
    fields = {"number": 1, "root": b"r" * 32, "listDigest": b"d" * 32, "total": 5, "activeAt": 60}
    posted = Fact(3, 0, "pool", "RootPosted", dict(fields), b"t" * 32)
    mirror = mirror_of([posted])
    assert (mirror.roots[1].total, mirror.roots[1].block) == (5, 3)
    apply(mirror, Fact(4, 0, "pool", "RootVetoed", {"number": 1}))
    assert mirror.roots[1].is_vetoed
    apply(mirror, Fact(5, 0, "pool", "RootVetoed", {"number": 2}))
    assert mirror.faults == ["RootVetoed in block 5 of a root that was never posted"]


def test_a_dispute() -> None:
    model = Model(0)
    model.step()
    mirror = mirror_of(model.facts)
    (id,) = mirror.rentals
    apply(mirror, Fact(5, 0, "rental", "Disputed", {"id": id, "by": id[:20], "until": 9}))
    apply(mirror, Fact(5, 1, "rental", "Shown", {"id": id, "cumulative": 4, "receiptsRoot": id}))
    assert (mirror.rentals[id].state, mirror.rentals[id].shown) == ("disputed", 4)
    assert sums(mirror).open == mirror.rentals[id].locked
