"""What every place for the ledger's books must do: ``CHECKS``, each run on fresh empty books.

The test of a database parametrises over ``CHECKS`` and hands each a ``Bench``; see
test_ledger_sqlite.py. The suite knows books only by ``gristmill.ledger.book.Book``, and the tables
by the statements that all databases understand.
"""

import copy
import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
from receipt_rig import NOW_MS, Maker, public_of

from gristmill.ledger import audit, bills, intent_rows, rows, schema
from gristmill.ledger.book import Asked, Book
from gristmill.ledger.core import effects as fx
from gristmill.ledger.core import invariants
from gristmill.ledger.core.state import LedgerState
from gristmill.ledger.engine import RefusedError
from gristmill.ledger.epochs import Epochs
from gristmill.wire import payments, proofs
from gristmill.wire.errors import RemoteError
from gristmill.wire.ledger import (
    AskReceipts,
    AskUsage,
    Contribution,
    Fund,
    Hold,
    Key,
    Leg,
    Post,
    Release,
    Transfer,
)

NOW = 1_800_000_000_000
DAY_MS = 86_400_000
TABLES = ("account", "transfer", "hold", "contribution", "tally", "mint", "entry", "outbox")


@dataclasses.dataclass
class Bench:
    """Books under test.

    ``reopen`` closes them and opens them again; ``open_twice`` opens them while they are open.
    ``tamper`` runs a statement behind the books' back: no trigger and no reference stops it.
    ``bytes_begin``: how the database begins a literal of bytes.
    """

    book: Book
    reopen: Callable[[], Book]
    open_twice: Callable[[], Book]
    tamper: Callable[[str], None]
    bytes_begin: str


def bill(first: int, count: int = 10, amount: int = 1_000, **more: Any) -> Contribution:
    fields: dict[str, Any] = {
        "ref": "b/1", "tenant": "ann", "node": "mill", "lease_id": 7, "first": first,
        "count": count, "attempt": 1, "subtasks": count, "failed": 0, "wall_us": 500,
        "cpu_us": 400, "peak_kib": 9_000, "metering": "cgroup", "is_estimated": False,
        "amount_ucredits": amount, "toll_ucredits": amount * 3 // 100, "ended_ms": NOW, **more,
    }  # fmt: skip
    return Contribution(**fields)


def fill(book: Book) -> None:
    """Two tenants, three jobs (one released, one untouched), two nodes, a refused entry."""
    book.apply([Fund(1, "ann", 1_000_000, "f1"), Fund(2, "bob", 50_000, "f2")], NOW)
    opening = [Hold("b/1", "ann", 100_000), Hold("b/2", "bob", 40_000)]
    billed = [
        bill(0),
        bill(20, failed=3, node="barn"),
        bill(20, 1),  # refused
        bill(0, 5, ref="b/2", tenant="bob", ended_ms=NOW + DAY_MS, lease_id=(1 << 64) - 1),
    ]
    book.apply([Post("b", 1, opening), Post("b", 3, billed)], NOW)
    book.apply([Post("b", 7, [Release("b/2"), Hold("b/3", "ann", 7)])], NOW + 5)


def shape(state: LedgerState) -> dict[str, Any]:
    """Everything in a state, comparable."""
    holds = {
        ref: (
            *[getattr(hold, name) for name in hold.__struct_fields__ if name != "billed"],
            {key: list(zip(c.starts, c.ends, strict=True)) for key, c in hold.billed.items()},
        )
        for ref, hold in state.holds.items()
    }
    return {
        "accounts": copy.deepcopy(state.accounts), "holds": holds, "applied": dict(state.applied),
        "heard": dict(state.heard), "transfers": state.transfers,
    }  # fmt: skip


def dump(book: Book) -> dict[str, list[Any]]:
    """Every row of every table."""
    return {name: sorted(book.db.execute(f"SELECT * FROM {name}"), key=repr) for name in TABLES}


def answers(effects: list[fx.AnyEffect]) -> list[str]:
    """Codes of an operator's answer, or of the verdicts of a post."""
    codes = []
    for effect in effects:
        if isinstance(effect, fx.AnswerOperator):
            codes.append(effect.code)
        elif isinstance(effect, fx.Acknowledge):
            codes += [verdict.code for verdict in effect.verdicts]
    return codes


def in_order(book: Book) -> None:
    assert book.faults() == []
    assert invariants.check(book.state) == []


# ---------------------------------------------------------------- what is kept


def they_are_the_same_after_a_restart(bench: Bench) -> None:
    fill(bench.book)
    before, there = shape(bench.book.state), dump(bench.book)
    assert before["holds"]["b/1"][-1] == {(0, 1): [(0, 10), (20, 30)]}
    assert before["applied"] == {"b": 8} and "b/2" not in before["holds"]
    book = bench.reopen()
    assert (shape(book.state), dump(book)) == (before, there)
    in_order(book)
    book.apply([Post("b", 9, [bill(10)])], NOW + 9)
    in_order(book)


def one_ledger_has_them(bench: Bench) -> None:
    with pytest.raises(RemoteError, match="another ledger has"):
        bench.open_twice()


def many_rows_at_once_are_the_rows_of_one_each(bench: Bench) -> None:
    count = 2 * rows.ROWS_A_STATEMENT + 5
    opening = [Fund(1, "ann", 9_000_000, "f"), Post("b", 1, [Hold("b/1", "ann", 9_000_000)])]
    billed = [bill(10 * at, node=f"mill{at % 3}", lease_id=at) for at in range(count)]
    billed[count // 2] = bill(0, 5)  # refused: billed already
    bench.book.apply([*opening, Post("b", 2, billed)], NOW)
    many = [len(found) for found in dump(bench.book).values()]
    assert many[:4] == [7, 2 + 2 * (count - 1), 1, count - 1]
    in_order(bench.book)
    in_order(bench.reopen())


# ---------------------------------------------------------------- what is refused


def a_repeat_changes_nothing(bench: Bench) -> None:
    fill(bench.book)
    before, there = shape(bench.book.state), dump(bench.book)
    again: list[Asked] = [
        Fund(9, "ann", 1_000_000, "f1"), Post("b", 3, [bill(0)]), Post("b", 7, [Release("b/2")])
    ]  # fmt: skip
    done = bench.book.apply(again, NOW)
    assert [answers(effects) for effects in done] == [[""], [], []]
    after = shape(bench.book.state)
    assert (after["accounts"], after["holds"]) == (before["accounts"], before["holds"])
    assert dump(bench.book) == there


def a_repeat_with_other_content_is_an_alarm(bench: Bench) -> None:
    fill(bench.book)
    there = dump(bench.book)
    for other in (Fund(9, "ann", 5, "f1"), Post("b", 3, [bill(0, amount=999)])):
        (effects,) = bench.book.apply([other], NOW)
        assert answers(effects) == ["LEDGER_CONFLICT"]
        assert sum(isinstance(effect, fx.RaiseAlarm) for effect in effects) == 1
    assert dump(bench.book) == there


def an_overdraft_counts_what_is_pending(bench: Bench) -> None:
    bench.book.apply([Fund(1, "ann", 1_000, "f")], NOW)
    post = Post("b", 1, [Hold("b/1", "ann", 600), Hold("b/2", "ann", 401), Hold("b/3", "ann", 400)])
    (effects,) = bench.book.apply([post], NOW)
    assert answers(effects) == ["", "INSUFFICIENT_CREDITS", ""]
    in_order(bench.book)


def the_tables_refuse_by_themselves(bench: Bench) -> None:
    fill(bench.book)
    there = dump(bench.book)
    statements = [f"DELETE FROM {table}" for table in schema.NEVER_DELETED if table in TABLES]
    statements += [
        "UPDATE transfer SET amount = amount + 1",
        "UPDATE contribution SET amount = 0",
        "UPDATE mint SET tenant = 'eve'",
        "UPDATE entry SET code = ''",
        "UPDATE account SET name = 'tenant:eve' WHERE name = 'tenant:ann'",
        "UPDATE account SET may_overdraw = 1 WHERE name = 'tenant:ann'",
        "UPDATE hold SET amount = amount * 2",
        "UPDATE hold SET spent = 0 WHERE closed_ms > 0",
        "UPDATE hold SET spent = amount + 1 WHERE closed_ms = 0",
        "UPDATE account SET debits = credits + 1 WHERE name = 'tenant:ann'",
        "UPDATE account SET debits_pending = credits + 1 WHERE name = 'tenant:ann'",
        "INSERT INTO account VALUES(99, 'tenant:eve', 1, 0, 0, 0, 0, 0)",
        # out of no hold; of another's account; after the void; a second void; the id of another
        _moved(2, 2, 1, 5, "1"),
        _moved(2, 3, 1, 5, "(SELECT id FROM hold WHERE ref = 'b/1')"),
        _moved(2, 3, 1, 5, "(SELECT id FROM hold WHERE ref = 'b/2')"),
        _moved(3, 3, 4, 5, "(SELECT id FROM hold WHERE ref = 'b/2')"),
        _moved(0, 2, 1, -5, "0"),
        _moved(0, 2, 2, 5, "0"),
        _moved(0, 1, 2, 5, "0", "id"),
        _overlapping("SELECT hold", "contribution WHERE first = 20"),
        _overlapping("SELECT id", "hold WHERE ref = 'b/2'"),
    ]
    for statement in statements:
        try:
            bench.book.db.execute(statement)
        except Exception as error:
            assert isinstance(bench.book.explain(error), RefusedError), (statement, error)
        else:
            raise AssertionError(f"done: {statement}")
    assert dump(bench.book) == there
    in_order(bench.book)


_NEW_ID = "(SELECT substr(digest, 1, 16) FROM entry WHERE sequence = 1)"


def _moved(
    kind: int, debit: int, credit: int, amount: int, pending: str, id_: str = _NEW_ID
) -> str:
    return (
        f"INSERT INTO transfer SELECT 99, {id_}, {kind}, {debit}, {credit}, {amount},"
        f" {pending}, 0, chain FROM transfer WHERE number = 1"
    )


def a_right_transfer_is_taken_by_the_tables(bench: Bench) -> None:
    """Or those that are refused would be refused for a mistake of ours."""
    fill(bench.book)
    bench.book.db.execute(_moved(0, 1, 2, 5, "0"))
    told = f"transfer {bench.book.state.transfers + 1} is missing; the next is 99"
    assert audit.audit(bench.book.db)[0] == told


def _overlapping(what: str, where: str) -> str:
    empty = "(SELECT signature FROM contribution WHERE first = 20)"
    rest = (
        f"1, 0, '', 0, 0, 0, 0, 0, 0, '', 0, 0, 0, 0, {empty}, {empty}, {empty}, 0, 0, 0, 0, 0,"
        f" 0, '', {empty}, 0, 0, 0"
    )
    return f"INSERT INTO contribution {what}, 0, 1, 15, 6, {rest} FROM {where}"


def one_bad_row_among_many_undoes_all(bench: Bench) -> None:
    book = bench.book
    fill(book)
    before, there = shape(book.state), dump(book)
    book.state.holds["b/1"].billed.clear()  # a core that has forgotten what it billed
    count = 2 * rows.ROWS_A_STATEMENT
    billed = [bill(1_000 + 10 * at, amount=10) for at in range(count)]
    billed[count // 2] = bill(25, 1, amount=10)
    with pytest.raises(RefusedError, match="overlaps what is billed"):
        book.apply([Post("b", 9, billed)], NOW)
    assert (shape(book.state), dump(book)) == (before, there)
    in_order(book)


def text_that_no_database_keeps_is_refused(bench: Bench) -> None:
    fill(bench.book)
    bad = "a\0b"
    post = Post("b", 9, [
        Hold(f"b/{bad}", "ann", 1), Hold("b/9", bad, 1), bill(50, node=bad), bill(60, metering=bad),
        bill(70, node_class=bad, work=b"w" * 32), Hold("b/10", "ann", 1),
    ])  # fmt: skip
    (effects,) = bench.book.apply([post], NOW)
    assert answers(effects) == ["MALFORMED"] * 5 + [""]
    for fund in (Fund(1, bad, 5, "f9"), Fund(1, "ann", 5, bad)):
        assert answers(bench.book.apply([fund], NOW)[0]) == ["INVALID_SPEC"]
    assert answers(bench.book.apply([Post(bad, 1, [Hold(f"{bad}/1", "ann", 1)])], NOW)[0]) == []
    in_order(bench.book)


# ---------------------------------------------------------------- linked, and expired


def a_linked_group_is_all_or_nothing(bench: Bench) -> None:
    book = bench.book
    fill(book)
    there = dump(book)

    def ask(*legs: tuple[int, str, str, int]) -> list[str]:
        made = [Leg(bytes([number]) * 16, *rest) for number, *rest in legs]  # type: ignore[arg-type]
        return answers(book.apply([Transfer(1, made)], NOW)[0])

    ann = book.state.accounts["tenant:ann"].available
    poor = ask((1, "tenant:ann", "tenant:bob", 5), (2, "tenant:ann", "toll", ann))
    assert poor == ["INSUFFICIENT_CREDITS"]
    assert ask((1, "tenant:ann", "tenant:nobody", 5)) == ["INVALID_SPEC"]
    assert ask((1, "tenant:ann", "escrow", 5)) == ["INVALID_SPEC"]
    assert ask((1, "tenant:ann", "tenant:bob", 0)) == ["INVALID_SPEC"]
    assert ask((1, "world", "tenant:bob", 5)) == ["INVALID_SPEC"]  # that is what Fund is for
    assert ask((1, "toll", "tenant:bob", 1), (1, "toll", "tenant:bob", 1)) == ["INVALID_SPEC"]
    assert dump(book) == there
    both = ((1, "tenant:ann", "tenant:bob", 5), (2, "tenant:bob", "toll", 3))
    assert ask(*both) == [""]
    there = dump(book)
    assert ask(*both) == [""]  # the same again
    assert ask(both[0]) == [""]
    assert ask((1, "tenant:ann", "tenant:bob", 6)) == ["LEDGER_CONFLICT"]
    assert ask((3, "tenant:ann", "tenant:bob", 1), both[1]) == ["LEDGER_CONFLICT"]
    assert dump(book) == there
    in_order(book)
    in_order(bench.reopen())


def what_a_lost_broker_held_goes_back(bench: Bench) -> None:
    book = bench.book
    fill(book)
    book.apply([Post("c", 1, [Hold("c/1", "bob", 10)])], NOW + 20)
    assert book.expire(15, 0, NOW + 20) == []
    assert book.expire(10, NOW + 12, NOW + 20) == []  # the ledger has not been there for long
    told = book.expire(14, 0, NOW + 20)
    assert [effect.code for effect in told if isinstance(effect, fx.RaiseAlarm)] == ["EXPIRED"] * 2
    assert list(book.state.holds) == ["c/1"]
    assert book.state.accounts["tenant:ann"].debits_pending == 0
    (effects,) = book.apply([Post("b", 9, [bill(90), Release("b/3")])], NOW + 30)
    assert answers(effects) == ["LEDGER_CONFLICT"] * 2
    in_order(book)
    in_order(bench.reopen())


# ---------------------------------------------------------------- the audit can fail


def tampering_is_found(bench: Bench) -> None:
    fill(bench.book)
    for statement, told in (
        ("UPDATE transfer SET at_ms = at_ms + 1 WHERE number IN (4, 6)", "transfer 4 is not"),
        ("DELETE FROM transfer WHERE number = 5", "transfer 5 is missing"),
        ("DELETE FROM transfer WHERE number = (SELECT max(number) FROM transfer)", "account"),
        ("UPDATE entry SET message = 'x' WHERE sequence = 3", "entry 3 of outbox 1 is not"),
        ("DELETE FROM entry WHERE sequence = 2", "entry 2 of outbox 1 is missing"),
        ("UPDATE account SET credits = credits + 1 WHERE name = 'toll'", "a row of account"),
        ("UPDATE hold SET closed_ms = 5 WHERE ref = 'b/1'", "a row of hold"),
        ("UPDATE contribution SET cpu_us = cpu_us + 1 WHERE first = 20", "a row of contribution"),
        ("DELETE FROM contribution WHERE first = 20", "hold b/1 has sums"),
        ("UPDATE tally SET amount = amount + 1", "the tally of"),
        ("UPDATE mint SET amount = 5 WHERE ref = 'f1'", "a row of mint"),
        ("DELETE FROM mint WHERE ref = 'f1'", "transfer 1 minted credits for no funding"),
        ("UPDATE outbox SET applied = applied + 1", "a row of outbox"),
    ):
        kept = dump(bench.book)
        bench.tamper(statement)
        assert dump(bench.book) != kept, statement
        found = audit.audit(bench.book.db)
        assert found and told in found[0], (statement, found[:3])
        _put_back(bench, kept)
        assert audit.audit(bench.book.db) == [], statement


def _put_back(bench: Bench, kept: dict[str, list[Any]]) -> None:
    statements = []
    for table, found in kept.items():
        statements.append(f"DELETE FROM {table}")
        for row in found:
            values = ", ".join(_literal(value, bench.bytes_begin) for value in row)
            statements.append(f"INSERT INTO {table} VALUES({values})")
    bench.tamper("; ".join(statements))


def _literal(value: Any, bytes_begin: str) -> str:
    if isinstance(value, bytes):
        return f"{bytes_begin}{value.hex()}'"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


# ---------------------------------------------------------------- bills, and random histories


def bills_add_up(bench: Bench) -> None:
    fill(bench.book)
    for by in ("job", "node", "day"):
        found = bills.usage(bench.book.db, AskUsage(1, "", by))  # type: ignore[arg-type]
        assert sum(row.amount_ucredits for row in found) == 3_000, by
        assert sum(row.subtasks for row in found) == 25, by
    whole = bills.balance(bench.book.db, bench.book.state, "")
    assert whole.sum_ucredits == 0 and type(whole.sum_ucredits) is int
    assert sum(row.posted_ucredits for row in whole.accounts) == 0


def random_histories_keep_every_law(bench: Bench) -> None:
    dice = random.Random(5)
    book, sent = bench.book, 0
    book.apply([Fund(0, name, 10_000, name) for name in ("ann", "bob")], NOW)
    for turn in range(60):
        entries: list[Any] = []
        for _ in range(dice.randint(1, 9)):
            ref, tenant = f"b/{dice.randint(1, 8)}", dice.choice(("ann", "bob"))
            entries.append(
                dice.choice((
                    Hold(ref, tenant, dice.randint(0, 4_000)),
                    Release(ref),
                    bill(dice.randint(0, 40), dice.randint(1, 9), dice.choice((0, 1, 33, 34, 900)),
                         ref=ref, tenant=tenant, attempt=dice.randint(0, 1)),
                    bill(dice.randint(0, 400), 1, dice.randint(0, 99), ref=ref, tenant=tenant),
                ))
            )  # fmt: skip
        asked: list[Asked] = [Post("b", sent + 1, entries)]
        if dice.random() < 0.3:
            asked.append(asked[0])  # said again
        if dice.random() < 0.3:
            leg = Leg(dice.randbytes(1) * 16, "tenant:ann", "tenant:bob", dice.randint(1, 50))
            asked.append(Transfer(turn, [leg]))
        book.apply(asked, NOW + turn)
        sent += len(entries)
        assert invariants.check(book.state) == []
        if turn % 20 == 19:
            before = shape(book.state)
            book = bench.reopen()
            assert shape(book.state) == before
            assert book.faults() == []


def epochs_close_and_prove_and_stay(bench: Bench) -> None:
    maker = Maker()
    ref, broker = f"{maker.broker_name}/7", maker.broker_name
    opening = [
        Key("broker", broker, public_of(maker.broker), NOW_MS),
        Key("node", f"{broker}/w0", public_of(maker.node), NOW_MS),
        Hold(ref, "ann", 10**9),
    ]
    billed = [maker.contribution(first) for first in range(0, 50, 10)]
    bench.book.apply([Fund(1, "ann", 10**9, "f"), Post(broker, 1, [*opening, *billed])], NOW)
    epochs = Epochs(bench.book, maker.ledger, 1_000)
    epochs.load(NOW)
    epochs.look(NOW + 1_000)
    for _ in range(2):
        page = epochs.page(AskReceipts(1, "ann", ref))
        text = proofs.text_of(proofs.document_of(7, page.receipts, page.heads, page.keys))
        verdict = proofs.verify(text.encode())
        assert not verdict.faults and len(verdict.proven) == 5
        for table in ("epoch", "epoch_range", "public_key"):
            _refuses(bench.book, f"DELETE FROM {table}")
            _refuses(bench.book, f"UPDATE {table} SET crc = 0")
        book = bench.reopen()
        in_order(book)
        assert (("broker", broker) in book.state.keys) and bench.book.state.transfers
        bench.book = book
        epochs = Epochs(book, maker.ledger, 1_000)
        epochs.load(NOW)
        assert epochs.wait_ms(NOW) is None
        epochs.look(NOW + 9_000, is_ending=True)
    assert bench.book.db.execute("SELECT count(*) FROM epoch").fetchone() == (1,)
    for change in ("receipts = 4", "transfers = 3", "closed_ms = 5"):
        bench.tamper(f"UPDATE epoch SET {change}")
        assert any("epoch 1" in fault for fault in bench.reopen().faults())


def _refuses(book: Book, statement: str) -> None:
    book.db.execute("BEGIN")
    with pytest.raises(Exception, match="is ever"):
        book.db.execute(statement)
    book.db.execute("ROLLBACK")


# ---------------------------------------------------------------- purchases

OFFER = payments.Offer("btcpay", "sat", 1_000, 0, 1, 10**12, 60_000)


def purchase(book: Book, key: str, *looks: tuple[str, int]) -> str:
    """An intent of 100 sat and what was seen of it: (state, sat so far in one payment)."""
    book.offers = {"btcpay": OFFER}
    id_ = payments.intent_id("ann", key)
    book.apply([payments.CreateIntent(1, "ann", key, "btcpay", 100_000, 100, 0)], NOW)
    book.apply([payments.ReportInvoice(1, id_, f"inv-{key}", "bitcoin:x", NOW + 9)], NOW)
    for number, (state, sats) in enumerate(looks):
        paid = [payments.Paid(f"{key}{number}", sats)] if sats else []
        observe = payments.Observe(1, "btcpay", f"inv-{key}", state, paid, "test", b"{}")  # type: ignore[arg-type]
        book.apply([observe], NOW + 10)
        book.apply([observe], NOW + 11)
    return id_


def purchases(book: Book) -> None:
    purchase(book, "whole", ("closed", 100))
    purchase(book, "late", ("closed", 0), ("closed", 60))
    purchase(book, "half", ("open", 40))
    back = purchase(book, "back", ("open", 30))
    book.apply([payments.DecideIntent(1, back, "refund", "r")], NOW)


def purchases_are_minted_once_and_read_again(bench: Bench) -> None:
    purchases(bench.book)
    assert bench.book.faults() == []
    book = bench.reopen()
    book.load()
    views = intent_rows.views(book.db, payments.AskIntents(0, "ann"), NOW)
    assert [(view.key, view.state, view.credited_ucredits) for view in views] == [
        ("back", "refunded", 0), ("half", "created", 0), ("late/late1", "settled", 60_000),
        ("late", "expired", 0), ("whole", "settled", 100_000),
    ]  # fmt: skip
    posted = {name: account.posted for name, account in book.state.accounts.items()}
    assert posted == {"world": -200_000, "tenant:ann": 160_000, "review": 40_000}


def the_tables_hold_intents_to_their_states(bench: Bench) -> None:
    purchases(bench.book)
    for statement in (
        "UPDATE intent SET state = 'created', ended_ms = 0 WHERE key = 'whole'",
        "UPDATE intent SET state = 'settled' WHERE key = 'late'",
        "UPDATE intent SET state = 'paid', ended_ms = 5 WHERE key = 'half'",
        "UPDATE intent SET state = 'expired', ended_ms = 5 WHERE key = 'half'",
        "UPDATE intent SET received = 41 WHERE key = 'half'",
        "UPDATE intent SET amount = 5 WHERE key = 'half'",
        "UPDATE intent SET reference = 'evil' WHERE key = 'half'",
        "DELETE FROM intent WHERE key = 'half'",
        "DELETE FROM payment WHERE id = 'half0'",
        "UPDATE payment SET amount = 1 WHERE id = 'half0'",
        "DELETE FROM observation",
        "UPDATE observation SET verdict = ''",
        "INSERT INTO payment SELECT 'p9', intent, backend_id, amount, credited + 1, account, 99,"
        " at_ms, proof, crc FROM payment WHERE id = 'half0'",
    ):
        bench.book.db.execute(bench.book.begin)
        try:
            with pytest.raises(Exception) as caught:
                bench.book.db.execute(statement)
            assert isinstance(bench.book.explain(caught.value), RefusedError), statement
        finally:
            bench.book.db.execute("ROLLBACK")
    assert bench.book.faults() == []


def the_audit_reads_purchases(bench: Bench) -> None:
    purchases(bench.book)
    bench.tamper("UPDATE payment SET amount = amount + 1 WHERE id = 'half0'")
    told = "; ".join(bench.book.faults())
    assert "a row of payment does not have its checksum" in told and "its payments make" in told


CHECKS = [
    epochs_close_and_prove_and_stay,
    they_are_the_same_after_a_restart,
    one_ledger_has_them,
    many_rows_at_once_are_the_rows_of_one_each,
    a_repeat_changes_nothing,
    a_repeat_with_other_content_is_an_alarm,
    an_overdraft_counts_what_is_pending,
    the_tables_refuse_by_themselves,
    a_right_transfer_is_taken_by_the_tables,
    one_bad_row_among_many_undoes_all,
    text_that_no_database_keeps_is_refused,
    a_linked_group_is_all_or_nothing,
    what_a_lost_broker_held_goes_back,
    tampering_is_found,
    bills_add_up,
    random_histories_keep_every_law,
    purchases_are_minted_once_and_read_again,
    the_tables_hold_intents_to_their_states,
    the_audit_reads_purchases,
]
