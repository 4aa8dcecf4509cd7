"""What the tables of purchases enforce by themselves, and what the audit finds in them."""

import pathlib
from collections.abc import Callable
from typing import Any

import apsw
import pytest

from gristmill.ledger import intent_rows
from gristmill.ledger.core.intent_records import AddPayment, AnswerIntent
from gristmill.ledger.engine import RefusedError
from gristmill.ledger.sqlite import SqliteBook
from gristmill.wire.payments import (
    AskIntents,
    CancelIntent,
    CreateIntent,
    DecideIntent,
    Observe,
    Offer,
    Paid,
    ReportInvoice,
    price_of,
)

NOW = 1_800_000_000_000
OFFER = Offer("btcpay", "sat", 1_000, 0, 1_000, 10**12, 60_000)


class Till:
    """A book with purchases in it."""

    def __init__(self, book: SqliteBook) -> None:
        self.book = book
        book.offers = {"btcpay": OFFER}

    def do(self, message: Any, now_ms: int = NOW) -> AnswerIntent:
        (effects,) = self.book.apply([message], now_ms)
        return next(each for each in effects if isinstance(each, AnswerIntent))

    def buy(self, key: str = "k", amount: int = 100_000) -> str:
        price = price_of(OFFER, amount)
        asked = CreateIntent(1, "ann", key, "btcpay", amount, price.price, price.fee)
        made = self.do(asked).intent
        assert made is not None
        self.do(ReportInvoice(2, made.id, f"inv-{key}", "bitcoin:x", NOW + 60_000))
        return made.id

    def observe(self, key: str, state: str, *paid: Paid, raw: bytes = b"") -> AnswerIntent:
        return self.do(Observe(3, "btcpay", f"inv-{key}", state, list(paid), "test", raw))  # type: ignore[arg-type]


@pytest.fixture
def till(book: SqliteBook) -> Till:
    return Till(book)


@pytest.fixture
def full(till: Till) -> Till:
    """One of each end, and one that is open with money in review."""
    for key in ("settled", "cancelled", "refunded", "review", "new"):
        till.buy(key)
    till.observe("settled", "closed", Paid("p1", 100), raw=b"{}")
    till.observe("cancelled", "closed")
    till.observe("cancelled", "closed", Paid("late", 50))
    till.observe("refunded", "open", Paid("p2", 30))
    refunded = next(v.intent for v in _views(till) if v.key == "refunded")
    till.do(DecideIntent(1, refunded, "refund", "r"))
    till.observe("review", "open", Paid("p3", 40))
    assert till.book.faults() == []
    return till


def _views(till: Till) -> list[Any]:
    return intent_rows.views(till.book.db, AskIntents(0, ""), NOW)


def test_what_is_written_is_read(full: Till) -> None:
    states = {view.key: view.state for view in _views(full)}
    assert states == {
        "settled": "settled", "cancelled": "cancelled", "refunded": "refunded",
        "review": "created", "new": "created", "late/late": "settled",
    }  # fmt: skip
    full.book.load()
    assert {view.key: view.state for view in _views(full)} == states
    pages = intent_rows.views(full.book.db, AskIntents(0, "ann", limit=2), NOW)
    assert [view.number for view in pages] == [6, 5]
    more = AskIntents(0, "ann", before=5, limit=9)
    assert [view.number for view in intent_rows.views(full.book.db, more, NOW)] == [4, 3, 2, 1]
    open_ = intent_rows.views(full.book.db, AskIntents(0, "", which="open"), NOW)
    assert {view.key for view in open_} == {"review", "new"}


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        (
            "UPDATE intent SET state = 'created', ended_ms = 0 WHERE key = 'settled'",
            "never changes",
        ),
        ("UPDATE intent SET state = 'settled' WHERE key = 'cancelled'", "never changes"),
        ("UPDATE intent SET state = 'refunded' WHERE key = 'settled'", "never changes"),
        ("UPDATE intent SET state = 'paid' WHERE key = 'new'", "constraint"),
        ("UPDATE intent SET state = 'settled', ended_ms = 5 WHERE key = 'new'", "constraint"),
        ("UPDATE intent SET state = 'expired', ended_ms = 5 WHERE key = 'review'", "constraint"),
        ("UPDATE intent SET credited = 5 WHERE key = 'new'", "constraint"),
        ("UPDATE intent SET received = 5 WHERE key = 'new'", "received is not what"),
        ("UPDATE intent SET amount = 5 WHERE key = 'new'", "keeps its price"),
        ("UPDATE intent SET tenant = 'bob' WHERE key = 'new'", "keeps its price"),
        ("UPDATE intent SET reference = 'evil' WHERE key = 'new'", "keeps its reference"),
        ("UPDATE intent SET backend_id = 'evil' WHERE key = 'new'", "keeps its reference"),
        ("DELETE FROM intent WHERE key = 'new'", "no intent is ever deleted"),
        ("DELETE FROM payment", "no payment is ever deleted"),
        ("UPDATE payment SET amount = 1", "no payment is ever changed"),
        ("DELETE FROM observation", "no observation is ever deleted"),
        ("UPDATE observation SET raw = x'00'", "no observation is ever changed"),
        (
            "INSERT INTO payment SELECT 'again', intent, backend_id, amount, credited, account,"
            " transfer, at_ms, proof, crc FROM payment WHERE id = 'p1'",
            "constraint",
        ),
        (
            "INSERT INTO payment SELECT 'p9', intent, backend_id, amount, credited + 1, account,"
            " 99, at_ms, proof, crc FROM payment WHERE id = 'p1'",
            "not what its transfer minted",
        ),
        (
            "INSERT INTO intent SELECT 99, 'x', tenant, 'y', backend, unit, amount, price, fee,"
            " follows, created_ms, '', '', expires_ms, 'settled', 0, received, credited, review,"
            " decision, ended_ms, watched_ms, crc FROM intent WHERE key = 'settled'",
            "begins as created",
        ),
        (
            "INSERT INTO intent SELECT 99, 'x', tenant, key, backend, unit, amount, price, fee,"
            " follows, created_ms, '', '', expires_ms, state, 0, received, credited, review,"
            " decision, ended_ms, watched_ms, crc FROM intent WHERE key = 'new'",
            "UNIQUE constraint failed: intent.tenant, intent.key",
        ),
    ],
)
def test_the_tables_refuse(full: Till, statement: str, told: str) -> None:
    with pytest.raises(apsw.ConstraintError, match=told):
        full.book.db.execute(statement)
    assert full.book.faults() == []


def test_an_illegal_transition_of_our_own_is_refused_whole(
    full: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A core that forgot its state table meets the tables: nothing of it is written."""
    from gristmill.ledger.core import intents

    follow: Callable[..., Any] = lambda intent, *_: intent  # noqa: E731
    monkeypatch.setattr(intents, "_follow", follow)
    before = full.book.state.accounts["world"].posted
    with pytest.raises(RefusedError, match="never changes"):
        full.observe("settled", "closed", Paid("p1", 100), Paid("second", 100))
    assert full.book.state.accounts["world"].posted == before
    assert full.book.faults() == []


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            "UPDATE payment SET amount = amount + 1 WHERE id = 'p1'",
            "a row of payment does not have",
        ),
        ("UPDATE intent SET credited = credited + 1 WHERE key = 'settled'", "its payments make"),
        ("UPDATE observation SET raw = x'7b' WHERE raw <> x''", "a row of observation does not"),
        ("DELETE FROM payment WHERE id = 'p3'", "its payments make"),
        ("DELETE FROM intent WHERE key = 'cancelled'", "intent 2 is missing"),
        ("UPDATE payment SET transfer = 4 WHERE id = 'p3'", "not what its transfer minted"),
    ],
)
def test_the_audit_names_what_somebody_changed(
    full: Till, tmp_path: pathlib.Path, damage: str, told: str
) -> None:
    full.book.close()
    db = apsw.Connection(str(tmp_path / "state" / "ledger.db"))
    triggers = [
        name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type='trigger'")
    ]
    sql = [row[0] for row in db.execute("SELECT sql FROM sqlite_schema WHERE type = 'trigger'")]
    db.execute("DROP INDEX one_mint")
    for name in triggers:
        db.execute(f"DROP TRIGGER {name}")
    db.execute("PRAGMA ignore_check_constraints = 1")
    db.execute(damage)
    db.execute("CREATE UNIQUE INDEX one_mint ON payment(transfer) WHERE transfer > 0")
    for statement in sql:
        db.execute(statement)
    db.close()
    book = SqliteBook(tmp_path / "state")
    assert any(told in fault for fault in book.faults()), book.faults()
    full.book.__dict__.update(book.__dict__)  # the fixture closes it


def test_a_cancel_is_of_its_tenant(full: Till) -> None:
    new = next(view.intent for view in _views(full) if view.key == "new")
    assert full.do(CancelIntent(1, "bob", new)).code == "UNKNOWN_INTENT"
    assert full.do(CancelIntent(1, "ann", new)).code == ""


def test_one_payment_is_one_row(full: Till) -> None:
    for raw in (b"1", b"2", b"3"):
        (effects,) = full.book.apply(
            [Observe(3, "btcpay", "inv-settled", "closed", [Paid("p1", 100)], "test", raw)], NOW
        )
        assert not any(isinstance(each, AddPayment) for each in effects)
    found = full.book.db.execute("SELECT count(*) FROM observation WHERE intent <> ''").fetchone()
    assert found is not None and found[0] >= 6
