"""Payment intents as the core sees them: their record, what happens to them, what is to be done."""

import msgspec

from gristmill.wire.payments import InvoiceState, Offer, Paid

LATE = "late/"  #: a late payment's intent has the key ``late/<payment id>``
MANUAL = "manual"  #: the backend whose payments are an operator's word


class Intent(msgspec.Struct):
    """One intent to pay for credits: a row of the table of the same name.

    The fields up to ``created_ms`` never change; ``backend_id`` to ``signed_ms`` are set once.
    ``received``: its own payments, in ``unit``; of what they are worth in micro-credits
    ``credited`` is the tenant's and ``review`` waits for an operator. ``decision``: the operator's
    word, ``credit`` or ``refund``, and his ref. ``watched_ms``: money may still come until then.
    """

    id: str
    tenant: str
    key: str
    backend: str
    unit: str
    amount: int
    price: int
    fee: int
    follows: str
    created_ms: int
    backend_id: str = ""
    reference: str = ""
    expires_ms: int = 0
    state: str = "created"
    is_cancelling: bool = False
    received: int = 0
    credited: int = 0
    review: int = 0
    decision: str = ""
    ended_ms: int = 0
    watched_ms: int = 0

    @property
    def due(self) -> int:
        """What is to be paid."""
        return self.price + self.fee


class Known(msgspec.Struct, frozen=True):
    """A payment that the books have: the intent whose invoice it paid, and how much it was."""

    backend_id: str
    amount: int


# ---------------------------------------------------------------- events


class IntentAsked(msgspec.Struct, frozen=True):
    """A tenant wants to buy. ``earlier``: the intent that has this key; ``offer``: what is sold."""

    tenant: str
    key: str
    backend: str
    amount_ucredits: int
    price: int
    fee: int
    offer: Offer | None
    earlier: Intent | None = None


class InvoiceReported(msgspec.Struct, frozen=True):
    """The backend made an invoice. ``holder``: the intent that has its id already."""

    id: str
    backend_id: str
    reference: str
    expires_ms: int
    intent: Intent | None
    holder: str = ""


class PaymentObserved(msgspec.Struct, frozen=True):
    """A look-up of an invoice (or an operator's word, for ``manual``).

    ``known``: those of the payments that the books have. ``digest``: 32 bytes of all of it;
    ``is_repeat``: the books have this very observation.
    """

    backend: str
    backend_id: str
    state: InvoiceState
    paid: list[Paid]
    source: str
    raw: bytes
    intent: Intent | None
    known: dict[str, Known] = {}
    digest: bytes = b""
    is_repeat: bool = False


class PaymentConfirmed(msgspec.Struct, frozen=True):
    """An operator says what came for an intent of ``manual``; ``known``: as in an observation."""

    id: str
    received: int
    ref: str
    intent: Intent | None
    known: dict[str, Known] = {}
    digest: bytes = b""
    is_repeat: bool = False


class CancelAsked(msgspec.Struct, frozen=True):
    """A tenant wants to pay no more."""

    id: str
    intent: Intent | None


class DecisionMade(msgspec.Struct, frozen=True):
    """An operator says what becomes of an underpayment."""

    id: str
    verb: str
    ref: str
    intent: Intent | None


IntentEvent = (
    IntentAsked | InvoiceReported | PaymentObserved | PaymentConfirmed | CancelAsked | DecisionMade
)

# ---------------------------------------------------------------- effects


class OpenIntent(msgspec.Struct, frozen=True):
    """A row for a new intent, as it was when it was made."""

    intent: Intent


class SetIntent(msgspec.Struct, frozen=True):
    """Write what changed of an intent."""

    intent: Intent


class AddPayment(msgspec.Struct, frozen=True):
    """A row for a payment. ``transfer``: number of the mint, 0 for a payment worth nothing."""

    id: str
    intent: str
    backend_id: str
    amount: int
    credited: int
    account: str
    transfer: int
    at_ms: int
    proof: bytes


class AddObservation(msgspec.Struct, frozen=True):
    """A row for what came, as it came; ``verdict``: what became of it."""

    digest: bytes
    backend: str
    backend_id: str
    intent: str
    state: str
    source: str
    raw: bytes
    at_ms: int
    verdict: str


class AnswerIntent(msgspec.Struct, frozen=True):
    """After the commit, tell whoever asked. ``code`` empty for yes; ``intent`` with it."""

    code: str
    message: str
    intent: Intent | None = None


class WakeTreasury(msgspec.Struct, frozen=True):
    """After the commit, tell the treasury that an intent wants it."""

    intent: Intent


IntentEffect = OpenIntent | SetIntent | AddPayment | AddObservation | AnswerIntent | WakeTreasury
