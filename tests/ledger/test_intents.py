"""Payment intents as pure decisions: each line of the state table, 100,000 random histories."""

import hashlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from gristmill.ledger.core.effects import AddTransfer, OpenAccount, RaiseAlarm
from gristmill.ledger.core.intent_records import (
    AddObservation,
    AddPayment,
    AnswerIntent,
    CancelAsked,
    DecisionMade,
    Intent,
    IntentAsked,
    InvoiceReported,
    Known,
    OpenIntent,
    PaymentObserved,
    SetIntent,
    WakeTreasury,
)
from gristmill.ledger.core.intents import REVIEW, mint_id
from gristmill.ledger.core.invariants import check
from gristmill.ledger.core.state import LedgerState
from gristmill.ledger.core.step import step
from gristmill.wire.payments import Offer, Paid, price_of

OFFER = Offer("btcpay", "sat", 1_000, 10_000, 1_000, 10**12, 60_000)
CREATED_MS, EXPIRES_MS = 1_000, 61_000


class Books:
    """The core with the tables that a shell would keep, as plain dictionaries."""

    def __init__(self) -> None:
        self.state = LedgerState()
        self.intents: dict[str, Intent] = {}
        self.payments: dict[str, AddPayment] = {}
        self.observations: dict[bytes, AddObservation] = {}
        self.transfers: dict[bytes, AddTransfer] = {}

    def do(self, event: Any, now_ms: int) -> list[Any]:
        effects = step(self.state, event, now_ms)
        for effect in effects:
            match effect:
                case OpenIntent(intent):
                    assert intent.id not in self.intents
                    self.intents[intent.id] = intent
                case AddPayment(id_):
                    assert id_ not in self.payments, "minted twice"
                    self.payments[id_] = effect
                case AddObservation(digest):
                    assert digest not in self.observations
                    self.observations[digest] = effect
                case AddTransfer():
                    assert effect.id not in self.transfers, "one transfer twice"
                    self.transfers[effect.id] = effect
        return effects

    def ask(
        self, key: str = "k", amount: int = 100_000, backend: str = "btcpay", **more: Any
    ) -> Any:
        price = price_of(OFFER, amount)
        fields: dict[str, Any] = {
            "price": price.price, "fee": price.fee, "offer": OFFER,
            "earlier": next((i for i in self.intents.values() if i.key == key), None), **more,
        }  # fmt: skip
        effects = self.do(IntentAsked("ann", key, backend, amount, **fields), CREATED_MS)
        return next(each for each in effects if isinstance(each, AnswerIntent))

    def made(self, key: str = "k", amount: int = 100_000) -> Intent:
        """An intent with an invoice: 100,000 micro-credits for 101 sat."""
        intent = self.ask(key, amount).intent
        self.do(InvoiceReported(intent.id, f"inv-{key}", "bitcoin:x", EXPIRES_MS, intent), 2_000)
        assert intent.due == 101 or amount != 100_000
        return intent

    def observe(
        self, backend_id: str, state: str, *paid: Paid, now_ms: int = 3_000, raw: bytes = b"",
        backend: str = "btcpay",
    ) -> list[Any]:  # fmt: skip
        known = {
            one.id: Known(self.payments[one.id].backend_id, self.payments[one.id].amount)
            for one in paid
            if one.id in self.payments
        }
        intent = next((i for i in self.intents.values() if i.backend_id == backend_id), None)
        digest = hashlib.sha256(repr((backend_id, state, paid, raw)).encode()).digest()
        event = PaymentObserved(
            backend, backend_id, state, list(paid), "test", raw, intent, known, digest,
            digest in self.observations,
        )  # type: ignore[arg-type]  # fmt: skip
        return self.do(event, now_ms)

    def balance(self, name: str) -> int:
        account = self.state.accounts.get(name)
        return account.posted if account else 0


@pytest.fixture
def books() -> Books:
    return Books()


def kinds(effects: list[Any]) -> list[str]:
    return [type(each).__name__ for each in effects]


# ---------------------------------------------------------------- before money


def test_a_retry_meets_the_same_intent(books: Books) -> None:
    first, again = books.ask(), books.ask()
    assert (first.code, again.code) == ("", "")
    assert first.intent is again.intent and len(books.intents) == 1


def test_a_changed_amount_under_one_key_is_a_conflict(books: Books) -> None:
    books.ask()
    assert books.ask(amount=100_001).code == "LEDGER_CONFLICT"
    assert books.ask(backend="lnd").code == "LEDGER_CONFLICT"
    assert [i.amount for i in books.intents.values()] == [100_000]


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        ({"amount": 999}, "INVALID_SPEC", "it sells 0.001 to 1,000,000 at once"),
        ({"amount": 10**12 + 1}, "INVALID_SPEC", "1,000,000.000001 credits"),
        ({"amount": -5}, "INVALID_SPEC", "-0.000005 credits"),
        ({"offer": None}, "PAYMENTS_DOWN", "nobody sells credits by 'btcpay'"),
        ({"price": 99}, "LEDGER_CONFLICT", "shown as 99 and a fee of 1 sat; now it is 100 and 1"),
        ({"key": ""}, "INVALID_SPEC", "key is ''"),
        ({"key": "late/x"}, "INVALID_SPEC", "not begin with late/"),
        ({"key": "k" * 201}, "INVALID_SPEC", "1 to 200 characters"),
    ],
)
def test_what_cannot_be_bought_names_its_limit(
    books: Books, more: dict[str, Any], code: str, told: str
) -> None:
    answer = books.ask(**more)
    assert answer.code == code and told in answer.message
    assert not books.intents


def test_an_invoice_is_set_once(books: Books) -> None:
    intent = books.made()
    same = InvoiceReported(intent.id, "inv-k", "bitcoin:x", EXPIRES_MS, intent)
    assert kinds(books.do(same, 5_000)) == ["AnswerIntent"]
    other = InvoiceReported(intent.id, "inv-2", "bitcoin:y", EXPIRES_MS, intent)
    assert kinds(books.do(other, 5_000)) == ["RaiseAlarm", "AnswerIntent"]
    assert intent.reference == "bitcoin:x"
    second = books.ask("k2").intent
    taken = InvoiceReported(second.id, "inv-k", "z", EXPIRES_MS, second, holder=intent.id)
    assert kinds(books.do(taken, 5_000)) == ["RaiseAlarm", "AnswerIntent"]
    assert second.reference == ""


# ---------------------------------------------------------------- money


def test_a_payment_settles_and_mints_in_one_step(books: Books) -> None:
    intent = books.made()
    effects = books.observe("inv-k", "closed", Paid("p1", 101))
    assert kinds(effects) == [
        "OpenAccount", "OpenAccount", "AddTransfer", "AddPayment", "SetIntent", "AddObservation",
        "AnswerIntent",
    ]  # fmt: skip
    assert intent.state == "settled" and books.balance("tenant:ann") == 100_000
    assert books.transfers[mint_id("p1")].amount == 100_000
    again = books.observe("inv-k", "closed", Paid("p1", 101))
    assert kinds(again) == ["AnswerIntent"]
    assert check(books.state) == []


def test_an_underpayment_waits_in_review_until_it_is_topped_up(books: Books) -> None:
    intent = books.made()
    books.observe("inv-k", "open", Paid("p1", 40))
    assert (intent.state, intent.received) == ("created", 40)
    assert books.balance(REVIEW) == 40 * 100_000 // 101 == intent.review
    books.observe("inv-k", "closed", Paid("p1", 40), now_ms=EXPIRES_MS + 1)
    assert intent.state == "created", "money in review does not expire"
    books.observe("inv-k", "open", Paid("p1", 40), Paid("p2", 61))
    assert (intent.state, intent.review) == ("settled", 0)
    assert (books.balance(REVIEW), books.balance("tenant:ann")) == (0, 100_000)


@pytest.mark.parametrize(
    ("verb", "state", "tenant"), [("credit", "settled", 39_603), ("refund", "refunded", 0)]
)
def test_an_operator_decides_an_underpayment(
    books: Books, verb: str, state: str, tenant: int
) -> None:
    intent = books.made()
    nothing = books.do(DecisionMade(intent.id, verb, "r", intent), 4_000)
    assert nothing[-1].code == "LEDGER_CONFLICT", "there is no money to decide on"
    books.observe("inv-k", "open", Paid("p1", 40))
    assert books.do(CancelAsked(intent.id, intent), 5_000)[-1].code == "LEDGER_CONFLICT"
    books.do(DecisionMade(intent.id, verb, "wire 77", intent), 6_000)
    assert intent.state == state
    assert (books.balance("tenant:ann"), books.balance(REVIEW)) == (tenant, 0)
    assert books.do(DecisionMade(intent.id, verb, "wire 77", intent), 7_000)[-1].code == ""
    other = "refund" if verb == "credit" else "credit"
    assert (
        books.do(DecisionMade(intent.id, other, "x", intent), 7_000)[-1].code == "LEDGER_CONFLICT"
    )
    assert check(books.state) == []


def test_an_overpayment_is_credited_whole(books: Books) -> None:
    intent = books.made()
    books.observe("inv-k", "closed", Paid("p1", 250))
    assert intent.state == "settled"
    assert intent.credited == books.balance("tenant:ann") == 250 * 100_000 // 101


@pytest.mark.parametrize("state", ["expired", "cancelled", "settled"])
def test_late_and_double_payments_are_credited_by_an_intent_of_their_own(
    books: Books, state: str
) -> None:
    intent = books.made()
    if state == "settled":
        books.observe("inv-k", "closed", Paid("p0", 101))
    else:
        books.observe("inv-k", "closed", now_ms=EXPIRES_MS if state == "expired" else 4_000)
    assert intent.state == state
    had = books.balance("tenant:ann")
    books.observe("inv-k", "closed", Paid("p1", 50), now_ms=EXPIRES_MS + 9)
    assert intent.state == state, "a final state stays"
    (late,) = (each for each in books.intents.values() if each.follows)
    assert (late.follows, late.state, late.received) == (intent.id, "settled", 50)
    assert books.balance("tenant:ann") - had == 50 * 100_000 // 101
    books.observe("inv-k", "closed", Paid("p1", 50), now_ms=EXPIRES_MS + 99)
    assert len(books.intents) == 2 and check(books.state) == []


def test_only_a_look_up_that_says_closed_ends_an_intent(books: Books) -> None:
    intent = books.made()
    for state in ("open", "processing"):
        books.observe("inv-k", state, now_ms=EXPIRES_MS * 9)
        assert intent.state == "created"
    books.do(CancelAsked(intent.id, intent), 4_000)
    assert (intent.state, intent.is_cancelling) == ("created", True)
    books.observe("inv-k", "closed", now_ms=5_000)
    assert intent.state == "cancelled"


def test_an_unknown_reference_is_kept_and_told(books: Books) -> None:
    effects = books.observe("inv-none", "open", Paid("p9", 5), raw=b"{...}")
    assert kinds(effects) == ["RaiseAlarm", "AddObservation", "AnswerIntent"]
    assert effects[-1].code == "UNKNOWN_INTENT" and effects[1].raw == b"{...}"
    assert not books.transfers


@pytest.mark.parametrize(
    ("paid", "told"),
    [
        (Paid("p1", 102), "p1 of 101 for inv-k is now told as 102"),
        (Paid("p2", 0), "is of 0; it must be 1 to"),
        (Paid("p2", -4), "is of -4"),
        (Paid("p2", 1 << 53), "it must be 1 to 4503599627370496"),
        (Paid("", 5), "id of 0 characters"),
    ],
)
def test_a_payment_that_cannot_be_true_moves_nothing(books: Books, paid: Paid, told: str) -> None:
    books.made()
    books.observe("inv-k", "closed", Paid("p1", 101))
    moved = len(books.transfers)
    effects = books.observe("inv-k", "closed", paid)
    assert isinstance(effects[0], RaiseAlarm) and effects[-1].code == "LEDGER_CONFLICT"
    assert told in effects[-1].message and len(books.transfers) == moved


def test_a_lightning_payment_needs_its_preimage(books: Books) -> None:
    offer = Offer("lnd", "msat", 1, 0, 1, 10**12, 60_000)
    asked = IntentAsked("ann", "k", "lnd", 500, 500, 0, offer)
    intent = books.do(asked, 0)[1].intent
    preimage = bytes(32)
    hash_ = hashlib.sha256(preimage).hexdigest()
    books.do(InvoiceReported(intent.id, hash_, "lnbcrt1", 60_000, intent), 0)
    books.observe(hash_, "closed", Paid(hash_, 500, b"x" * 32), backend="lnd")
    assert intent.state == "created", "closed, but somebody must look at that payment first"
    books.observe(hash_, "closed", Paid(hash_, 500, preimage), backend="lnd")
    assert intent.state == "settled"


def test_nothing_else_happened(books: Books) -> None:
    """An intent alone opens no account and moves nothing."""
    effects = books.ask()
    assert isinstance(effects, AnswerIntent) and not books.state.accounts
    intent = effects.intent
    assert kinds(books.do(CancelAsked(intent.id, intent), 0)) == [
        "SetIntent", "AnswerIntent", "WakeTreasury",
    ]  # fmt: skip
    assert OpenAccount and SetIntent and WakeTreasury


# ---------------------------------------------------------------- histories


class World:
    """What really was paid, kept apart from the books: they are compared with it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.books = Books()
        self.paid: dict[str, list[Paid]] = {}  # by invoice
        self.told: set[str] = set()  # payments that the books heard of
        self.now_ms = CREATED_MS

    def once(self) -> None:
        choose, books = self.random, self.books
        self.now_ms += choose.randrange(40_000)
        verb = choose.randrange(8)
        if verb == 0 or not books.intents:
            key = f"k{choose.randrange(3)}"
            answer = books.ask(key, choose.choice((1_000, 7_777, 100_000)))
            if answer.intent and not answer.intent.backend_id:
                intent = answer.intent
                books.do(
                    InvoiceReported(intent.id, f"inv-{key}", "x", EXPIRES_MS, intent), self.now_ms
                )
            return
        own = [each for each in books.intents.values() if not each.follows]
        intent = choose.choice(own)
        paid = self.paid.setdefault(intent.backend_id, [])
        if verb <= 2:
            amount = choose.choice((1, intent.due // 2 or 1, intent.due, intent.due * 3))
            paid.append(Paid(f"{intent.backend_id}-{len(paid)}", amount))
        elif verb == 3:
            books.do(CancelAsked(intent.id, intent), self.now_ms)
        elif verb == 4:
            word = choose.choice(("credit", "refund"))
            books.do(DecisionMade(intent.id, word, f"r{choose.randrange(2)}", intent), self.now_ms)
        else:
            seen = [] if choose.randrange(4) == 0 else list(paid)  # an older look-up comes late
            choose.shuffle(seen)
            state = choose.choice(("open", "processing", "closed"))
            self.told |= {one.id for one in seen}
            books.observe(intent.backend_id, state, *seen, now_ms=self.now_ms)

    def check(self) -> None:
        books = self.books
        assert check(books.state) == []
        assert set(books.payments) == self.told, "a payment was lost, or made up"
        credited = sum(each.credited for each in books.intents.values())
        review = sum(each.review for each in books.intents.values())
        assert books.balance("tenant:ann") == credited and books.balance(REVIEW) == review
        given_back = 0
        for intent in books.intents.values():
            own = [each for each in books.payments.values() if each.intent == intent.id]
            received = sum(each.amount for each in own)
            worth = received * intent.amount // intent.due
            assert intent.received == received
            assert sum(each.credited for each in own) == worth
            if intent.state == "refunded":
                given_back += worth
                assert (intent.credited, intent.review) == (0, 0)
            else:
                assert intent.credited + intent.review == worth
            assert not intent.review or intent.state == "created"
            assert intent.state not in ("expired", "cancelled") or not received
        minted = sum(each.credited for each in books.payments.values())
        assert -books.balance("world") == minted - given_back
        mints = [each for each in books.payments.values() if each.transfer]
        assert len({each.transfer for each in mints}) == len(mints)


def test_random_histories(sized: Callable[[int, int], int]) -> None:
    """Sum zero; minted is what was received at the intent's price; one mint for each payment."""
    ends: dict[str, int] = {}
    for seed in range(sized(100_000, 100_000)):
        world = World(seed)
        for _ in range(8):
            world.once()
        world.check()
        for intent in world.books.intents.values():
            ends[intent.state] = ends.get(intent.state, 0) + 1
    assert min(ends.values()) > 500 and len(ends) == 5, ends
