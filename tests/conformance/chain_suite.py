"""Part of the suite of all books: rentals that back jobs, payouts, claims, and their audit."""

import hashlib
from typing import Any

import ledger_suite as suite
import pytest
from nacl.signing import SigningKey

from gristmill.ledger import audit, bills, chain_rows
from gristmill.ledger.book import Book
from gristmill.ledger.core import invariants
from gristmill.ledger.core.chain_records import AnswerChain, PayoutRow
from gristmill.ledger.core.effects import AnswerOperator
from gristmill.ledger.engine import RefusedError
from gristmill.ledger.statements import Statements
from gristmill.ledger.watches import tag_of
from gristmill.wire import chain
from gristmill.wire.ledger import AskStatement, Fund, Hold, Leg, Post, Release, Transfer

NOW = suite.NOW
GRID = "cd" * 32
POOL = chain.pool_of(31337, b"\x77" * 20)
RENTAL, OTHER = hashlib.sha256(b"one").digest(), hashlib.sha256(b"two").digest()
MILL = SigningKey(b"m" * 32)
BARN = SigningKey(b"b" * 32)
HASH = b"\x05" * 32


def agreement(tenant: str = "ann", number: int = 1, **more: Any) -> chain.Agreement:
    fields = {"grid": GRID, "tenant": tenant, "chain_id": 31337, "contract": b"\x11" * 20}
    return chain.Agreement(**{**fields, "provider": b"\x22" * 20, "number": number, **more})


def node(key: SigningKey) -> str:
    return key.verify_key.encode().hex()


def payee(key: SigningKey, address: int, from_ms: int = 1, pool: str = POOL) -> chain.StatePayee:
    one = chain.Payee(node(key), pool, bytes([address] * 20), from_ms)
    return chain.StatePayee(1, one, chain.sign_payee(one, key))


def rental(
    locked: int,
    paid: int = 0,
    returned: int = 0,
    is_closed: bool = False,
    block: int = 10,
    id_: bytes = RENTAL,
    of: chain.Agreement | None = None,
) -> chain.StateRental:
    spec = chain.spec_of(of or agreement())
    return chain.StateRental(1, id_, spec, locked, paid, returned, is_closed, block)


def says(book: Book, *said: chain.Said) -> list[AnswerChain]:
    """What the ledger answers to each; and the books stay in order."""
    book.public = GRID
    answers = []
    for one in said:
        (answer,) = [e for e in book.apply([one], NOW)[0] if isinstance(e, AnswerChain)]
        answers.append(answer)
        assert invariants.check(book.state) == []
    return answers


def code(book: Book, said: chain.Said) -> str:
    before = {name: one.posted for name, one in book.state.accounts.items()}
    (answer,) = says(book, said)
    if answer.code:
        assert before == {name: one.posted for name, one in book.state.accounts.items()}
    return answer.code


def posted(book: Book, name: str) -> int:
    return book.state.accounts[name].posted


def worked(book: Book, amount: int, sequence: int, rental_: str = "", **more: Any) -> None:
    """A job that costs ``amount``: held, billed by two nodes, released."""
    ref = f"b/{sequence}"
    half = suite.bill(0, 5, amount - amount // 2, ref=ref, node=node(MILL), **more)
    rest = suite.bill(5, 5, amount // 2, ref=ref, node=node(BARN), **more)
    entries = [Hold(ref, "ann", amount + 7, rental_), half, rest, Release(ref)]
    effects = book.apply([Post("b", sequence, entries)], NOW)[0]
    assert not [e for e in effects if type(e).__name__ == "RaiseAlarm"], effects


def rented(book: Book, locked: int = 1_000_000) -> None:
    assert [a.code for a in says(book, chain.Agree(1, agreement()), rental(locked))] == ["", ""]


# ---------------------------------------------------------------- rentals


def what_a_rental_locks_is_credits_of_its_own(bench: suite.Bench) -> None:
    book = bench.book
    (agreed,) = says(book, chain.Agree(1, agreement()))
    assert agreed.body == agreement()
    assert says(book, chain.Agree(3, agreement(grid=""))) == [agreed]
    asked = chain.AskAgreed(4, [bytes(32), chain.spec_of(agreement()), b""])
    assert chain_rows.answer(book.db, asked) == [False, True, False]
    assert says(book, chain.Agree(2, agreement())) == [agreed]  # said again
    (answer,) = says(book, rental(500))
    assert answer.body == 500 == posted(book, f"rental:{RENTAL.hex()}")
    assert "tenant:ann" not in book.state.accounts
    says(book, rental(500), rental(700, block=12))  # again, and topped up
    assert posted(book, f"rental:{RENTAL.hex()}") == 700 == -posted(book, "world")
    worked(book, 300, 1, RENTAL.hex())
    (answer,) = says(book, rental(700, 300, 400, True, 20))
    assert answer.body == 0 == posted(book, f"rental:{RENTAL.hex()}")
    assert posted(book, "world") == -300
    books = chain_rows.books(book.db, POOL)
    assert (books.locked, books.paid, books.returned, books.spent) == (700, 300, 400, 300)
    assert (books.rentals, books.short, books.held) == (1, 0, 0)
    assert audit.audit(book.db) == []
    book = bench.reopen()
    assert audit.audit(book.db) == [] and invariants.check(book.state) == []


def a_hold_is_taken_from_the_rental_that_it_names(bench: suite.Bench) -> None:
    book = bench.book
    rented(book, 1_000)
    book.apply([Fund(1, "ann", 50, "f")], NOW)

    def refused(hold: Hold, sequence: int) -> str:
        effects = book.apply([Post("b", sequence, [hold])], NOW)[0]
        return next(e.verdicts[0].code for e in effects if type(e).__name__ == "Acknowledge")

    assert refused(Hold("b/1", "ann", 60), 1) == "INSUFFICIENT_CREDITS"  # its own 50
    assert refused(Hold("b/2", "ann", 1_001, RENTAL.hex()), 2) == "INSUFFICIENT_CREDITS"
    assert refused(Hold("b/3", "bob", 10, RENTAL.hex()), 3) == "UNKNOWN_RENTAL"
    assert refused(Hold("b/4", "ann", 10, OTHER.hex()), 4) == "UNKNOWN_RENTAL"
    assert refused(Hold("b/5", "ann", 1_000, RENTAL.hex()), 5) == ""
    book = bench.reopen()
    book.public = GRID
    assert refused(Hold("b/5", "ann", 1_000), 6) == "LEDGER_CONFLICT"  # another payer
    assert refused(Hold("b/5", "ann", 1_000, RENTAL.hex()), 7) == ""
    assert book.state.holds["b/5"].payer == f"rental:{RENTAL.hex()}"
    shown = bills.balance(book.db, book.state, "ann").accounts
    assert [(one.posted_ucredits, one.held_ucredits) for one in shown] == [(50, 0), (1_000, 1_000)]
    tag = tag_of(book.state, "ann")
    book.apply([Post("b", 8, [Release("b/5")])], NOW)
    assert tag_of(book.state, "ann") != tag
    assert posted(book, f"rental:{RENTAL.hex()}") == 1_000
    assert audit.audit(book.db) == []


def a_rental_never_shrinks_and_is_of_its_agreement(bench: suite.Bench) -> None:
    book = bench.book
    assert code(book, rental(500)) == "UNKNOWN_RENTAL"
    strange = [{"grid": "ee" * 32}, {"tenant": ""}, {"contract": b""}, {"chain_id": 0}]
    for more in [*strange, {"number": -1}, {"tenant": "t" * 201}]:
        assert code(book, chain.Agree(1, agreement(**more))) == "INVALID_SPEC"
    says(book, chain.Agree(1, agreement()), chain.Agree(1, agreement("bob")), rental(500, 100))
    for wrong in (
        rental(499, 100),
        rental(500, 99),
        rental(500, 100, 401),
        rental(500, 100, block=9),
        rental(500, 100, is_closed=True),
        rental(1 << 61, 100),
        rental(500, 100, of=agreement("bob")),
    ):
        assert code(book, wrong) == "LEDGER_CONFLICT", wrong
    says(book, rental(500, 100, 400, True))
    assert code(book, rental(500, 100, 400)) == "LEDGER_CONFLICT"  # opened again
    assert code(book, rental(600, 100, 400)) == "LEDGER_CONFLICT"
    assert code(book, rental(5, id_=b"short")) == "INVALID_SPEC"
    assert audit.audit(book.db) == []


def what_a_client_takes_back_and_had_spent_is_short_until_somebody_pays(bench: suite.Bench) -> None:
    book = bench.book
    rented(book, 1_000)
    book.apply([Fund(1, "ann", 2_000, "f")], NOW)
    worked(book, 300, 1, RENTAL.hex())
    effects = book.apply([rental(1_000, 0, 1_000, True, 30)], NOW)[0]
    assert [e.code for e in effects if type(e).__name__ == "RaiseAlarm"] == ["LEDGER_CONFLICT"]
    assert chain_rows.books(book.db, POOL).short == 300
    assert audit.audit(book.db) == []
    name = f"rental:{RENTAL.hex()}"
    for debit, credit in ((name, "tenant:ann"), ("tenant:ann", f"pool:{POOL}")):
        (answer,) = book.apply([Transfer(1, [Leg(b"x" * 16, debit, credit, 1)])], NOW)[0]
        assert isinstance(answer, AnswerOperator) and answer.code == "INVALID_SPEC"
    book.apply([Transfer(1, [Leg(b"c" * 16, "tenant:ann", name, 300)])], NOW)
    says(book, rental(1_000, 0, 1_000, True, 31))
    assert chain_rows.books(book.db, POOL).short == 0 == posted(book, name)
    assert audit.audit(book.db) == []


def an_ended_rental_takes_no_new_job(bench: suite.Bench) -> None:
    book = bench.book
    rented(book, 1_000)
    book.apply([Post("b", 1, [Hold("b/1", "ann", 400, RENTAL.hex())])], NOW)
    end = chain.EndRental(1, "ann", RENTAL)
    assert code(book, end) == "RENTAL_BUSY"
    assert code(book, chain.EndRental(1, "bob", RENTAL)) == "UNKNOWN_RENTAL"
    assert code(book, chain.EndRental(1, "ann", OTHER)) == "UNKNOWN_RENTAL"
    book.apply([Post("b", 2, [suite.bill(0, amount=300), Release("b/1")])], NOW)
    assert [answer.body for answer in says(book, end, end)] == [300, 300]
    for reopened in (False, True):
        book = bench.reopen() if reopened else book
        hold = Hold(f"b/{7 + reopened}", "ann", 1, RENTAL.hex())
        effects = book.apply([Post("b", 4 + reopened, [hold])], NOW)[0]
        (verdict,) = next(e.verdicts for e in effects if type(e).__name__ == "Acknowledge")
        assert verdict.code == "UNKNOWN_RENTAL"
    says(book, rental(1_000, 300, 700, True, 30))
    assert audit.audit(book.db) == []


# ---------------------------------------------------------------- payouts


def payees_are_stated_by_their_nodes(bench: suite.Bench) -> None:
    book = bench.book
    forged = chain.StatePayee(1, payee(MILL, 1).payee, payee(BARN, 1).signature)
    assert code(book, forged) == "FORBIDDEN"
    assert code(book, payee(MILL, 0)) == "INVALID_SPEC"  # of zeros
    for pool in ("", "1/ab", f"x/{'ab' * 20}", f"²/{'ab' * 20}"):
        assert code(book, payee(MILL, 1, pool=pool)) == "INVALID_SPEC", pool
    says(book, payee(MILL, 1, 5), payee(MILL, 1, 5), payee(BARN, 1, 5), payee(MILL, 2, 6))
    assert code(book, payee(MILL, 3, 6)) == "LEDGER_CONFLICT"
    assert code(book, payee(MILL, 1, 5)) == "LEDGER_CONFLICT"  # an old one, said again
    found = dict(book.db.execute(chain_rows._LATEST_PAYEES, (POOL,)))
    assert found == {node(MILL): b"\2" * 20, node(BARN): b"\1" * 20}
    assert audit.audit(book.db) == []


def a_payout_commits_what_nodes_earned_once(bench: suite.Bench) -> None:
    book = bench.book
    rented(book)
    worked(book, 1_000, 1, RENTAL.hex())
    ask = chain.CommitPayouts(1, POOL, 1, 970)
    (nobody,) = says(book, ask)
    assert nobody.body == PayoutRow(POOL, 0, 0, 0)  # nobody said where
    says(book, payee(MILL, 9), payee(BARN, 3))
    (answer,) = says(book, ask)
    assert answer.body == PayoutRow(POOL, 1, 2, 970)
    assert says(book, ask) == [answer]  # said again
    leaves = chain_rows.answer(book.db, chain.AskLeaves(1, POOL))
    assert leaves == [chain.Leaf(b"\3" * 20, 485), chain.Leaf(b"\x09" * 20, 485)]
    assert posted(book, f"node:{node(MILL)}") == 0 and posted(book, f"pool:{POOL}") == 970
    # The next is cumulative; both nodes are at one address from now on.
    worked(book, 200, 5, RENTAL.hex())
    says(book, payee(MILL, 3, 2))
    (answer,) = says(book, chain.CommitPayouts(1, POOL, 2, 970 + 194))
    assert answer.body == PayoutRow(POOL, 2, 2, 970 + 194)
    leaves = chain_rows.answer(book.db, chain.AskLeaves(1, POOL, after=b"\3" * 20))
    assert leaves == [chain.Leaf(b"\x09" * 20, 485)]
    (leaf,) = chain_rows.answer(book.db, chain.AskLeaves(1, POOL, node=node(MILL)))
    assert leaf == chain.Leaf(b"\3" * 20, 485 + 194)
    assert chain_rows.answer(book.db, chain.AskLeaves(1, POOL, node="ab")) == []
    older = chain_rows.answer(book.db, chain.AskLeaves(1, POOL, 1))  # as it was then
    assert older == [chain.Leaf(b"\3" * 20, 485), chain.Leaf(b"\x09" * 20, 485)]
    assert chain_rows.answer(book.db, chain.AskLeaves(1, POOL, 1, older[0].address)) == older[1:]
    (was,) = chain_rows.answer(book.db, chain.AskLeaves(1, POOL, 1, node=node(BARN)))
    assert was == older[0]
    for number in (1, 4):
        assert code(book, chain.CommitPayouts(1, POOL, number, 10_000)) == "LEDGER_CONFLICT"
    assert code(book, chain.CommitPayouts(1, POOL, 3, 1_163)) == "LEDGER_CONFLICT"  # funds left it
    (same,) = says(book, chain.CommitPayouts(1, POOL, 3, 5_000))  # nothing new
    assert isinstance(same.body, PayoutRow) and same.body.number == 2
    book = bench.reopen()
    assert audit.audit(book.db) == []


def a_pool_that_has_less_pays_everybody_the_same_part(bench: suite.Bench) -> None:
    book = bench.book
    rented(book)
    worked(book, 1_001, 1, RENTAL.hex())
    says(book, payee(MILL, 9), payee(BARN, 3))
    (answer,) = says(book, chain.CommitPayouts(1, POOL, 1, 100))
    assert answer.body == PayoutRow(POOL, 1, 2, 99)  # 50.0x and 49.9x, rounded down
    left = sum(posted(book, f"node:{node(key)}") for key in (MILL, BARN))
    assert left == 1_001 - 30 - 99
    (rest,) = says(book, chain.CommitPayouts(1, POOL, 2, 971))
    assert isinstance(rest.body, PayoutRow) and rest.body.total == 971
    assert posted(book, f"node:{node(MILL)}") == 0 == posted(book, f"node:{node(BARN)}")
    assert audit.audit(book.db) == []


def roots_stand_once_and_claims_only_grow(bench: suite.Bench) -> None:
    book = bench.book
    rented(book)
    worked(book, 1_000, 1, RENTAL.hex())
    root = chain.StateRoot(1, POOL, 1, HASH, HASH, HASH, 40)
    assert code(book, root) == "LEDGER_CONFLICT"
    says(book, payee(MILL, 9), chain.CommitPayouts(1, POOL, 1, 10_000))
    assert code(book, chain.StateRoot(1, POOL, 1, b"", HASH, HASH, 40)) == "INVALID_SPEC"
    says(book, root, root)
    assert code(book, chain.StateRoot(1, POOL, 1, HASH, HASH, b"\6" * 32, 40)) == "LEDGER_CONFLICT"
    payout = chain_rows.answer(book.db, chain.AskPayout(1, POOL))
    assert payout == chain.Payout(1, 1, 485, HASH, HASH, HASH, 40)
    assert chain_rows.answer(book.db, chain.AskPayout(1, "1/none")).number == 0
    says(book, chain.StateClaims(1, POOL, 400, 50), chain.StateClaims(2, POOL, 400, 51))
    for wrong in (399, 486):
        assert code(book, chain.StateClaims(1, POOL, wrong, 52)) == "LEDGER_CONFLICT"
    says(book, chain.StateClaims(1, POOL, 485, 53))
    books = chain_rows.books(book.db, POOL)
    assert (books.payouts, books.committed, books.claimed) == (1, 485, 485)
    assert posted(book, f"pool:{POOL}") == 0
    page = Statements(book, pytest.fail).page(AskStatement(1, f"pool:{POOL}"))
    assert [(row.what, row.amount_ucredits) for row in page.rows] == [
        ("paid out", 485), ("claimed", -400), ("claimed", -85),
    ]  # fmt: skip
    assert page.rows[1].ref == f"{POOL} in block 50"
    page = Statements(book, pytest.fail).page(AskStatement(1, f"rental:{RENTAL.hex()}"))
    assert [row.what for row in page.rows] == ["locked", "held", "paid", "paid", "released"]
    assert audit.audit(book.db) == []


# ---------------------------------------------------------------- what the tables and audit hold


def the_tables_refuse_what_the_core_would_not_do(bench: suite.Bench) -> None:
    book = bench.book
    rented(book)
    worked(book, 1_000, 1, RENTAL.hex())
    says(book, payee(MILL, 9), chain.CommitPayouts(1, POOL, 1, 10_000))
    says(book, chain.StateRoot(1, POOL, 1, HASH, HASH, HASH, 40))
    for statement in (
        "UPDATE rental SET locked = locked - 1",
        "UPDATE rental SET tenant = 'bob'",
        "DELETE FROM rental",
        "UPDATE earning SET cumulative = cumulative - 1",
        "DELETE FROM earning",
        "UPDATE payout SET block = 41",
        "DELETE FROM payout",
        "UPDATE payee SET from_ms = 9",
        "UPDATE agreement SET tenant = 'bob'",
        "UPDATE chain_move SET amount = 1",
        "INSERT INTO chain_move VALUES(1, 1, 'x', '', 1, 1, 0)",
        "UPDATE hold SET rental = 'x'",
    ):
        with pytest.raises(RefusedError), book._transaction():
            book.db.execute(statement)


def the_audit_finds_what_was_changed_behind_the_books(bench: suite.Bench) -> None:
    book = bench.book
    rented(book)
    worked(book, 1_000, 1, RENTAL.hex())
    says(book, payee(MILL, 9), chain.CommitPayouts(1, POOL, 1, 10_000))
    assert audit.audit(book.db) == []
    for there, back in (
        ("UPDATE rental SET locked = locked + 1", "UPDATE rental SET locked = locked - 1"),
        ("UPDATE rental SET tenant = 'bob'", "UPDATE rental SET tenant = 'ann'"),
        ("UPDATE earning SET cumulative = 486", "UPDATE earning SET cumulative = 485"),
        ("UPDATE payout SET total = 486", "UPDATE payout SET total = 485"),
        ("UPDATE chain_move SET move = 4 WHERE move = 3", "UPDATE chain_move SET move = 3"
         " WHERE move = 4"),
    ):  # fmt: skip
        bench.tamper(there)
        found = audit.audit(book.db)
        assert any("checksum" not in one for one in found), (there, found)
        bench.tamper(back)
        assert audit.audit(book.db) == [], there
    bench.tamper("DELETE FROM chain_move WHERE move = 1")
    assert any("no rental" in one for one in audit.audit(book.db))


CHECKS = [
    what_a_rental_locks_is_credits_of_its_own,
    a_hold_is_taken_from_the_rental_that_it_names,
    a_rental_never_shrinks_and_is_of_its_agreement,
    what_a_client_takes_back_and_had_spent_is_short_until_somebody_pays,
    an_ended_rental_takes_no_new_job,
    payees_are_stated_by_their_nodes,
    a_payout_commits_what_nodes_earned_once,
    a_pool_that_has_less_pays_everybody_the_same_part,
    roots_stand_once_and_claims_only_grow,
    the_tables_refuse_what_the_core_would_not_do,
    the_audit_finds_what_was_changed_behind_the_books,
]
