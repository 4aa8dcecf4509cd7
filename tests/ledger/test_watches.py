"""Questions that wait for another balance, and a statement that does not add up."""

import time
from typing import Any

import msgspec
import pytest
from ledger_rig import TIMEOUT_MS

from gristmill.ledger import watches
from gristmill.ledger.core.events import CreditsFunded
from gristmill.ledger.core.state import LedgerState
from gristmill.ledger.core.step import step
from gristmill.ledger.watches import LOOK_MS, Watches, tag_of
from gristmill.wire.client import BalanceAnswer
from gristmill.wire.ledger import (
    WATCH_MS,
    AskBalance,
    AskStatement,
    Fund,
    Hold,
    LedgerAnswer,
    LedgerRefused,
    Post,
)
from gristmill.wire.statement import StatementPage

NOW = 1_800_000_000_000


def balance_in(answer: Any) -> BalanceAnswer:
    assert isinstance(answer, LedgerAnswer), answer
    return msgspec.msgpack.decode(answer.body, type=BalanceAnswer)


def test_a_mint_is_told_to_whoever_watches_and_nobody_else_is_woken(ledger: Any) -> None:
    ledger.start()
    ann, bob = ledger.balance("ann"), ledger.balance("bob")
    assert ann.tag == bob.tag  # both have nothing
    ledger.send(AskBalance(11, "ann", ann.tag))
    ledger.send(AskBalance(12, "bob", bob.tag))
    ledger.send(Fund(13, "ann", 70, "r"))
    answers: dict[int, Any] = {}
    order = []
    while len(answers) < 3:
        answer = ledger.receive()
        answers[answer.request] = answer
        order.append(answer.request)
    assert order == [13, 11, 12], "bob's question waited for its whole time"
    told = balance_in(answers[11])
    (row,) = told.accounts
    assert (row.posted_ucredits, told.transfers) == (70, 1)
    assert balance_in(answers[12]).tag == bob.tag


def test_who_knows_an_older_balance_is_answered_at_once(ledger: Any) -> None:
    ledger.start()
    before = ledger.balance("ann")
    ledger.ask(Fund(1, "ann", 70, "r"))
    assert balance_in(ledger.ask(AskBalance(2, "ann", before.tag))).transfers == 1
    everybody = ledger.balance("")
    ledger.send(AskBalance(3, "", everybody.tag))
    ledger.send(Fund(4, "bob", 5, "s"))
    assert ledger.receive().request == 4
    assert balance_in(ledger.receive()).transfers == 2


class Told:
    """Whom ``Watches`` answered."""

    def __init__(self) -> None:
        self.watches, self.state, self.answered = (
            Watches(),
            LedgerState(),
            list[tuple[bytes, int]](),
        )

    def take(self, number: int, now_ms: int = NOW, tenant: str = "ann") -> bool:
        question = AskBalance(number, tenant, tag_of(self.state, tenant))
        return self.watches.take(b"p", question, self.state, now_ms)

    def look(self, now_ms: int) -> list[int]:
        self.answered.clear()
        self.watches.due(
            self.state, now_ms, lambda peer, q: self.answered.append((peer, q.request))
        )
        return [request for _, request in self.answered]

    def fund(self, tenant: str) -> None:
        step(self.state, CreditsFunded(tenant, 5, f"f{self.state.transfers}"), NOW)


def test_a_question_said_again_waits_no_longer() -> None:
    told = Told()
    assert told.watches.wait_ms(NOW) is None
    assert told.take(1) and told.take(1, NOW + 1_500)
    assert told.look(NOW + WATCH_MS - LOOK_MS) == []
    assert told.watches.wait_ms(NOW + WATCH_MS - LOOK_MS) == LOOK_MS
    assert told.look(NOW + WATCH_MS) == [1]
    assert told.look(NOW + 2 * WATCH_MS) == [] and told.watches.wait_ms(NOW) is None


def test_a_busy_account_is_told_at_a_pace() -> None:
    told = Told()
    told.look(NOW)
    assert told.take(1) and told.take(2, tenant="bob")
    assert told.look(NOW + LOOK_MS) == []
    told.fund("ann")
    assert told.look(NOW + LOOK_MS + 1) == [], "looked a moment ago"
    assert told.look(NOW + 2 * LOOK_MS) == [1]
    told.fund("bob")
    assert told.look(NOW + 3 * LOOK_MS) == [2]


def test_a_clock_that_is_set_back_lets_nobody_wait_for_ever() -> None:
    told = Told()
    assert told.take(1)
    assert told.look(NOW + LOOK_MS) == []
    assert told.look(NOW - 3_600_000) == [1]


def test_too_many_who_wait_are_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "WATCHES_MAX", 2)
    told = Told()
    assert [told.take(1), told.take(2), told.take(3), told.take(2)] == [True, True, False, True]


def test_a_statement_that_does_not_add_up_makes_the_ledger_read_only(
    inside: Any, caplog: pytest.LogCaptureFixture
) -> None:
    inside.book.apply([Fund(1, "ann", 1_000, "f")], NOW)
    inside.book.state.accounts["tenant:ann"].credits += 1  # what is told is not what was written
    sent: list[Any] = []
    inside._send = lambda peer, message: sent.append(message)
    inside._answer(b"p", AskStatement(1, "tenant:ann"))
    page = msgspec.msgpack.decode(sent.pop().body, type=StatementPage)
    assert page.incident and page.incident in inside.read_only
    assert inside.counts["incidents"] == 1
    assert f"ALARM {page.incident}: the entries of tenant:ann" in caplog.text
    inside._answer(b"p", AskStatement(2, "nobody"))
    (refused,) = sent
    assert isinstance(refused, LedgerRefused) and refused.code == "INVALID_SPEC"


def test_a_mint_is_told_while_the_ledger_is_busy_with_posts(ledger: Any, entries: Any) -> None:
    ledger.start()
    ledger.ask(Fund(1, "bob", 10**9, "b"))
    ledger.post(1, Hold("b/1", "bob", 10**9))
    ledger.send(AskBalance(7, "ann", ledger.balance("ann").tag))
    ledger.send(Fund(8, "ann", 70, "r"))
    began, sequence, seen = time.monotonic(), 2, set()
    while 7 not in seen and time.monotonic() - began < TIMEOUT_MS / 1000:
        bills = [
            entries.contribution(first * 10, ref="b/1", tenant="bob", amount=10)
            for first in range(sequence, sequence + 50)
        ]
        ledger.send(Post("b", sequence, bills))
        sequence += 50
        while ledger.socket.poll(0):
            seen.add(getattr(ledger.receive(), "request", 0))
    assert {7, 8} <= seen
