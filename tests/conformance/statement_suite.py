"""Part of the suite of all books: statements of account."""

from collections.abc import Callable, Iterator
from typing import Any

import ledger_suite as suite
from pytest import MonkeyPatch, raises

from gristmill.client.statement import Statement
from gristmill.ledger import statements
from gristmill.ledger.book import Book
from gristmill.ledger.core.state import ESCROW
from gristmill.ledger.statements import Statements
from gristmill.wire.errors import RemoteError
from gristmill.wire.ledger import AskStatement, Fund, Hold, Leg, Post, Transfer
from gristmill.wire.statement import StatementPage, Totals


def fill(book: Book) -> None:
    """Every kind of entry: fundings, purchases, holds, receipts, releases, an expiry, moves."""
    suite.fill(book)
    suite.purchases(book)
    book.apply([Post("lost", 1, [Hold("lost/1", "ann", 5_000)])], suite.NOW)
    book.expire(60_000, 0, suite.NOW + 100_000)
    leg = Leg(b"a" * 16, "tenant:ann", "tenant:bob", 77)
    book.apply([Transfer(1, [leg]), Fund(2, "ann", 5, "again")], suite.NOW)


def read(book: Book, account: str, told: Callable[[str], None] = lambda _: None) -> Statement:
    pages = Statements(book, told)
    return Statement(lambda after, upto: pages.page(AskStatement(1, account, after, upto)))


def of_account(book: Book, name: str) -> Totals:
    account = book.state.accounts[name]
    return Totals(account.credits, account.debits, account.debits_pending)


def statements_name_every_entry(bench: suite.Bench) -> None:
    fill(bench.book)
    found = [
        (row.what, row.amount_ucredits, row.held_ucredits, row.toll_ucredits, row.ref, row.receipt)
        for row in read(bench.book, "tenant:ann")
    ]
    bought = [row for row in found if row[0] == "bought"]
    assert [row for row in found if row[0] != "bought"] == [
        ("funded", 1_000_000, 0, 0, "f1", 0),
        ("held", 0, 100_000, 0, "b/1", 0),
        ("paid", -1_000, -1_000, 30, "b/1", 3),
        ("paid", -1_000, -1_000, 30, "b/1", 4),
        ("held", 0, 7, 0, "b/3", 0),
        ("held", 0, 5_000, 0, "lost/1", 0),
        ("expired", 0, -98_000, 0, "b/1", 0),
        ("expired", 0, -7, 0, "b/3", 0),
        ("expired", 0, -5_000, 0, "lost/1", 0),
        ("moved", -77, 0, 0, "tenant:bob", 0),
        ("funded", 5, 0, 0, "again", 0),
    ]
    assert len(bought) == 2 and {row[1] for row in bought} == {100_000, 60_000}
    assert all(row[4].startswith("pi") for row in bought)
    (mill,) = read(bench.book, "node:barn")
    assert (mill.what, mill.amount_ucredits, mill.receipt) == ("earned", 970, 4)
    released = [row.what for row in read(bench.book, "tenant:bob")]
    assert released == ["funded", "held", "paid", "released", "moved"]


def statements_add_up_whatever_the_page(bench: suite.Bench) -> None:
    suite.random_histories_keep_every_law(bench)
    book = bench.reopen()
    for legs, looked, size in ((1_000, 20_000, 50_000), (2, 3, 50_000), (5, 2, 50_000), (9, 9, 60)):
        with MonkeyPatch.context() as patch:
            patch.setattr(statements, "LEGS_MAX", legs)
            patch.setattr(statements, "LOOKED_MAX", looked)
            patch.setattr(statements, "PAGE_BYTES", size)
            for name in book.state.accounts:
                statement = read(book, name)
                rows = list(statement)
                assert not statement.incident, (name, statement.made, statement.totals)
                assert statement.made == statement.totals == of_account(book, name)
                assert [row.number for row in rows] == sorted({row.number for row in rows})
                receipts = [(row.ref, row.receipt) for row in rows if row.receipt]
                assert len(set(receipts)) == len(receipts), "both legs of a receipt are one entry"
                if name.startswith("tenant:"):
                    assert receipts, "there was something to read"


def a_statement_is_as_of_its_first_page(bench: suite.Bench) -> None:
    fill(bench.book)
    with MonkeyPatch.context() as patch:
        patch.setattr(statements, "LEGS_MAX", 2)
        statement = read(bench.book, "tenant:ann")
        before = of_account(bench.book, "tenant:ann")
        rows = iter(statement)
        next(rows)
        bench.book.apply([Fund(1, "ann", 1 << 40, "later")], suite.NOW)
        assert "later" not in [row.ref for row in rows]
    assert statement.made == statement.totals == before and not statement.incident


def a_mismatch_has_a_name_and_an_alarm(bench: suite.Bench) -> None:
    fill(bench.book)
    told: list[str] = []
    bench.tamper("UPDATE transfer SET amount = amount + 1 WHERE number = 1")
    statement = read(bench.book, "tenant:ann", told.append)
    list(statement)
    assert statement.incident.startswith("incident-")
    (alarm,) = told
    assert alarm.startswith(statement.incident) and "tenant:ann" in alarm
    again = read(bench.book, "tenant:ann", told.append)
    list(again)
    assert again.incident == statement.incident, "the same mismatch has the same name"
    # What was lost on the way is found by whoever reads, too.
    list(read(bench.book, "tenant:bob", told.append))
    assert len(told) == 2

    def cut(after: int, upto: int) -> StatementPage:
        page = Statements(bench.book, told.append).page(AskStatement(1, "tenant:bob", after, upto))
        return StatementPage(page.account, page.rows[1:], 0, page.upto, page.totals)

    statement = Statement(cut)
    list(statement)
    assert statement.incident.startswith("incident-") and len(told) == 2


def what_has_no_statement_is_named(bench: suite.Bench) -> None:
    fill(bench.book)
    last = bench.book.state.transfers
    for account, after, upto, words in (
        ("nobody", 0, 0, "there is no account 'nobody'"),
        ("node:" + "x" * 300, 0, 0, "there is no account"),
        ("tenant:ann", 5, 3, "transfers 5 to 3"),
        ("tenant:ann", 0, last + 1, f"of {last} that there are"),
        ("tenant:ann", last + 1, 0, f"of {last} that there are"),
    ):
        with raises(RemoteError, match=words) as caught:
            Statements(bench.book, lambda _: None).page(AskStatement(1, account, after, upto))
        assert caught.value.code == "INVALID_SPEC" and len(caught.value.message) < 200
    for account in ("tenant:new", ESCROW):  # never had credits; has pending ones only
        statement = read(bench.book, account)
        held: Iterator[Any] = iter(statement)
        assert all(row.amount_ucredits == row.held_ucredits == 0 for row in held)
        assert statement.made == statement.totals == Totals()


CHECKS = [
    statements_name_every_entry,
    statements_add_up_whatever_the_page,
    a_statement_is_as_of_its_first_page,
    a_mismatch_has_a_name_and_an_alarm,
    what_has_no_statement_is_named,
]
