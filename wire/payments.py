"""Buying credits (docs/rfc/0003, section 13): offers, prices, intents, references, observations.

Money outside the ledger is counted in the *minor unit* of its backend (``msat``, ``sat``,
``cents``), credits in micro-credits; both are integers from end to end.
"""

import hashlib
from typing import TYPE_CHECKING, Literal

import msgspec

from gristmill.wire import limits
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import Integer

if TYPE_CHECKING:  # brings a library that few clients need
    from nacl.signing import SigningKey

IntentState = Literal["created", "settled", "expired", "cancelled", "refunded"]
FINAL_INTENT_STATES: frozenset[str] = frozenset({"settled", "expired", "cancelled", "refunded"})
#: what a look-up says of an invoice apart from its payments: ``closed`` takes no more money as far
#: as its backend can say, ``processing`` has money on its way that is not final yet
InvoiceState = Literal["open", "processing", "closed"]
UNITS = ("msat", "sat", "cents")
_CONTEXT = b"gristmill-payment-reference-1\0"
_encode = msgspec.msgpack.Encoder().encode


class Message(msgspec.Struct, array_like=True, frozen=True, tag_field="type", gc=False):
    """Base of the messages about payments in the ledger's dialogue."""


class Offer(msgspec.Struct, frozen=True):
    """What a treasury sells by one backend, and for how long an invoice is good.

    ``ucredits_per_unit``: micro-credits for one minor unit. ``fee_ppm``: of the price, on top.
    ``unit_ppm`` of limits: ``amount_min`` and ``amount_max`` are micro-credits in one purchase.
    """

    backend: str
    unit: str
    ucredits_per_unit: Integer
    fee_ppm: Integer
    amount_min_ucredits: Integer
    amount_max_ucredits: Integer
    expiry_ms: Integer


class Price(msgspec.Struct, frozen=True):
    """What a purchase costs, in the backend's minor unit."""

    price: int
    fee: int

    @property
    def due(self) -> int:
        """What is to be paid."""
        return self.price + self.fee


def price_of(offer: Offer, amount_ucredits: int) -> Price:
    """Price and fee, each rounded up to a whole minor unit.

    >>> offer = Offer("lnd", "msat", 1_000, 5_000, 1, 10**12, 3_600_000)
    >>> price_of(offer, 2_500_500)
    Price(price=2501, fee=13)
    """
    price = -(-amount_ucredits // offer.ucredits_per_unit)
    return Price(price, -(-price * offer.fee_ppm // 1_000_000))


def credited_of(received: int, amount_ucredits: int, due: int) -> int:
    """Micro-credits for what was received, at the price of the intent, rounded down.

    >>> credited_of(2_514, 2_500_500, 2_514), credited_of(2_513, 2_500_500, 2_514)
    (2500500, 2499505)
    """
    return received * amount_ucredits // due


def wrong_amount(offer: Offer, amount_ucredits: int) -> str:
    """What is wrong with buying so much of this offer, naming the limit; empty for nothing."""
    if not offer.amount_min_ucredits <= amount_ucredits <= offer.amount_max_ucredits:
        from gristmill.wire.units import format_credits

        return (
            f"{format_credits(amount_ucredits)} credits by {offer.backend}; it sells "
            f"{format_credits(offer.amount_min_ucredits)} to "
            f"{format_credits(offer.amount_max_ucredits)} at once"
        )
    return ""


def intent_id(tenant: str, key: str) -> str:
    """The id of the intent that a tenant makes under this key: the same each time it asks.

    >>> intent_id("ann", "k1")
    'pi0abf1a680a14017083'
    """
    return "pi" + hashlib.sha256(_encode(["intent", tenant, key])).hexdigest()[:18]


class Paid(msgspec.Struct, array_like=True, frozen=True):
    """One payment that arrived for good. ``id`` is its backend's: a payment hash, an outpoint.

    ``proof``: the preimage of a Lightning payment, whose sha-256 is ``id``; empty elsewhere.
    """

    id: str
    amount: Integer
    proof: bytes = b""


class PaymentRow(msgspec.Struct, frozen=True):
    """One payment in the books. ``credited_ucredits`` went to ``account`` when it came."""

    id: str
    amount: int
    credited_ucredits: int
    account: str
    at_ms: int


class IntentView(msgspec.Struct, frozen=True):
    """Everything about one intent; times are ms since the epoch, amounts in ``unit``.

    ``number``: 1, 2, 3, ... in the ledger.
    ``reference``: what to pay, empty until the treasury made it; then ``signature`` is the
    ledger's over ``statement_of``, by ``ledger_key`` (hex). ``received`` counts this intent's own
    payments; ``review_ucredits`` wait for an operator. ``follows``: the intent that a late payment
    was meant for. ``is_cancelling``: asked for, not done yet.
    """

    number: int
    intent: str
    tenant: str
    key: str
    backend: str
    unit: str
    amount_ucredits: int
    price: int
    fee: int
    state: str
    created_ms: int
    expires_ms: int
    ended_ms: int
    backend_id: str
    reference: str
    signature: bytes
    ledger_key: str
    is_cancelling: bool
    received: int
    credited_ucredits: int
    review_ucredits: int
    follows: str
    decision: str
    payments: list[PaymentRow] = []

    @property
    def due(self) -> int:
        """What is to be paid."""
        return self.price + self.fee


class OffersAnswer(msgspec.Struct, frozen=True):
    """What can be bought now, and the key that signs references (hex)."""

    offers: list[Offer]
    ledger_key: str


def statement_of(
    intent: str, tenant: str, backend: str, unit: str, due: int, amount_ucredits: int,
    expires_ms: int, reference: str,
) -> bytes:  # fmt: skip
    """The bytes that the ledger signs: a reference bound to amount, account and expiry."""
    account = f"tenant:{tenant}"
    return _CONTEXT + _encode(
        [intent, account, backend, unit, due, amount_ucredits, expires_ms, reference]
    )


def statement_of_view(view: IntentView) -> bytes:
    """As ``statement_of``."""
    return statement_of(
        view.intent, view.tenant, view.backend, view.unit, view.due, view.amount_ucredits,
        view.expires_ms, view.reference,
    )  # fmt: skip


def sign_reference(key: "SigningKey", statement: bytes) -> bytes:
    """The ledger's signature, 64 bytes."""
    return key.sign(statement).signature


def check_reference(view: IntentView, ledger_key: str) -> None:
    """Return if the ledger with this key (hex) signed the view's reference as it is shown.

    Raises:
        RemoteError: ``UNAUTHORISED``: do not pay it.
    """
    from nacl.exceptions import BadSignatureError
    from nacl.signing import VerifyKey

    try:
        VerifyKey(bytes.fromhex(ledger_key)).verify(statement_of_view(view), view.signature)
    except (BadSignatureError, ValueError, TypeError):
        raise RemoteError(
            "UNAUTHORISED",
            f"the payment reference of {view.intent} is not signed by the ledger {ledger_key:.16}",
            "do not pay it; ask the operator of the grid",
        ) from None


# ---------------------------------------------------------------- to the ledger


class Sell(Message, frozen=True, tag=10):
    """Treasury: this is what I sell; tell this connection when one of its intents wants me."""

    request: Integer
    offers: list[Offer]


class CreateIntent(Message, frozen=True, tag=11):
    """Buy credits for a tenant. ``key``: the idempotency key; ``price`` and ``fee`` as shown."""

    request: Integer
    tenant: str
    key: str
    backend: str
    amount_ucredits: int
    price: int
    fee: int


class AskIntents(Message, frozen=True, tag=12):
    """Intents, newest first: one of ``intent``, or of a tenant (empty: all), or of a backend.

    ``which``: ``open`` ones only, or ``watched``: all that money may still come for. ``before``:
    with a lower number.
    """

    request: Integer
    tenant: str
    intent: str = ""
    backend: str = ""
    which: Literal["all", "open", "watched"] = "all"
    before: Integer = limits.INTEGER_MAX
    limit: Integer = 100


class CancelIntent(Message, frozen=True, tag=13):
    """Take no money for this intent any more."""

    request: Integer
    tenant: str
    intent: str


class ConfirmIntent(Message, frozen=True, tag=14):
    """Operator: so much came for an intent of the backend ``manual``; ``ref`` is the key."""

    request: Integer
    intent: str
    received: int
    ref: str


class DecideIntent(Message, frozen=True, tag=15):
    """Operator: what becomes of an underpayment: credited as it is, or given back (``ref``)."""

    request: Integer
    intent: str
    verb: Literal["credit", "refund"]
    ref: str


class ReportInvoice(Message, frozen=True, tag=16):
    """Treasury: the backend made this invoice for an intent."""

    request: Integer
    intent: str
    backend_id: str
    reference: str
    expires_ms: Integer


class Observe(Message, frozen=True, tag=17):
    """Treasury: what a look-up of an invoice said; the ledger decides what follows.

    ``source``: why it was looked up (``callback``, ``reconcile``, ...). ``raw``: the body of the
    callback, or what the backend answered, kept as it came.
    """

    request: Integer
    backend: str
    backend_id: str
    state: InvoiceState
    paid: list[Paid]
    source: str
    raw: bytes


class AskOffers(Message, frozen=True, tag=18):
    """What can be bought now?"""

    request: Integer


# ---------------------------------------------------------------- from the ledger


class IntentChanged(Message, frozen=True, tag=10):
    """To the treasury: look after this intent; a hint, which may be lost."""

    intent: str
    backend: str


Asked = CreateIntent | CancelIntent | ConfirmIntent | DecideIntent | ReportInvoice | Observe
