"""What becomes of money that is paid for credits: the state machine of payment intents.

Theory of operation. The treasury *observes*, this decides. Each payment has an id of its backend's
(a payment hash, an outpoint) and is minted once, under a transfer id made of it: no retry, restart
or second delivery can mint it again. What was received is worth ``received * amount / due`` of the
intent's own price, rounded down over the sum of its payments.

    state     | event                                         | then
    ----------|-----------------------------------------------|--------------------------------------
    (none)    | asked                                         | created
    created   | payments reach what is due, or more           | settled: all of it to the tenant
    created   | payments below what is due                    | created: minted to ``review``
    created   | closed after its expiry, nothing received     | expired
    created   | closed before its expiry, nothing received    | cancelled
    created   | operator credits an underpayment              | settled: ``review`` to the tenant
    created   | operator refunds an underpayment              | refunded: ``review`` back to world
    any other | a payment (late, or a second one)             | a new intent, settled at once
    any other | anything else                                 | nothing

An intent with money in review neither expires nor is cancelled: an operator decides. An invoice
that is open or in process ends nothing: only a look-up that says *closed* does, after the clock.
"""

import hashlib

from gristmill.ledger.core.accounts import account_of, transfer
from gristmill.ledger.core.effects import AnyEffect, Kind, RaiseAlarm
from gristmill.ledger.core.intent_records import (
    LATE,
    MANUAL,
    AddObservation,
    AddPayment,
    AnswerIntent,
    CancelAsked,
    DecisionMade,
    Intent,
    IntentAsked,
    IntentEvent,
    InvoiceReported,
    Known,
    OpenIntent,
    PaymentConfirmed,
    PaymentObserved,
    SetIntent,
    WakeTreasury,
)
from gristmill.ledger.core.state import AMOUNT_MAX, MINTED_MAX, WORLD, LedgerState
from gristmill.wire.limits import NAME_CHARS_MAX
from gristmill.wire.payments import Paid, credited_of, intent_id, price_of, wrong_amount
from gristmill.wire.units import format_credits

REVIEW = "review"  #: the account of underpayments until they are topped up or decided
UNITS_MAX = 1 << 52  #: of a minor unit in one payment: more than all bitcoin in millisatoshis
REFERENCE_CHARS_MAX = 8_192
WATCH_MS = 30 * 86_400_000  #: after its end money for an intent is still looked for
_LIGHTNING = ("lnd",)  #: backends whose every payment is proved by a preimage


def on_intent_event(
    state: LedgerState, event: IntentEvent, now_ms: int, effects: list[AnyEffect]
) -> None:
    """Apply one event; the records in it are changed."""
    match event:
        case IntentAsked():
            _on_asked(event, now_ms, effects)
        case InvoiceReported():
            _on_invoice(event, effects)
        case PaymentObserved():
            _on_observed(state, event, now_ms, effects)
        case PaymentConfirmed():
            _on_confirmed(state, event, now_ms, effects)
        case CancelAsked():
            _on_cancel(event, effects)
        case DecisionMade():
            _on_decision(state, event, now_ms, effects)


def mint_id(payment: str) -> bytes:
    """The id of the one transfer that can mint a payment."""
    return _id("mint", payment)


def _id(purpose: str, name: str) -> bytes:
    return hashlib.sha256(f"{purpose}:{name}".encode()).digest()[:16]


def _refuse(
    effects: list[AnyEffect], code: str, message: str, *, is_alarming: bool = False
) -> None:
    if is_alarming:
        effects.append(RaiseAlarm("", 0, code, message))
    effects.append(AnswerIntent(code, message))


# ---------------------------------------------------------------- before money comes


def _on_asked(event: IntentAsked, now_ms: int, effects: list[AnyEffect]) -> None:
    before = event.earlier
    asked = (event.backend, event.amount_ucredits)
    if before is not None:
        if (before.backend, before.amount) == asked:
            effects.append(AnswerIntent("", "", before))
            return
        _refuse(
            effects,
            "LEDGER_CONFLICT",
            f"the key {event.key!r} was used to buy {format_credits(before.amount)} credits by "
            f"{before.backend}; now it asks for {format_credits(asked[1])} by {asked[0]:.40}",
        )
        return
    for field, text in (("tenant", event.tenant), ("key", event.key)):
        if not 0 < len(text) <= NAME_CHARS_MAX or text.startswith(LATE):
            told = f"{field} is {text!r:.40}; it must have 1 to {NAME_CHARS_MAX} characters"
            _refuse(effects, "INVALID_SPEC", f"{told} and not begin with {LATE}")
            return
    offer = event.offer
    if offer is None:
        _refuse(effects, "PAYMENTS_DOWN", f"nobody sells credits by {event.backend!r:.40} now")
        return
    if wrong := wrong_amount(offer, event.amount_ucredits):
        _refuse(effects, "INVALID_SPEC", wrong)
        return
    price = price_of(offer, event.amount_ucredits)
    if (price.price, price.fee) != (event.price, event.fee):
        _refuse(
            effects,
            "LEDGER_CONFLICT",
            f"the price was shown as {event.price} and a fee of {event.fee} {offer.unit}; now it "
            f"is {price.price} and {price.fee}",
        )
        return
    if not 0 < price.due <= UNITS_MAX:
        _refuse(effects, "INVALID_SPEC", f"{price.due} {offer.unit}; the most is {UNITS_MAX}")
        return
    intent = Intent(
        intent_id(event.tenant, event.key),
        event.tenant,
        event.key,
        event.backend,
        offer.unit,
        event.amount_ucredits,
        price.price,
        price.fee,
        "",
        now_ms,
        expires_ms=now_ms + offer.expiry_ms,
        watched_ms=now_ms + offer.expiry_ms + WATCH_MS,
    )
    effects += [OpenIntent(intent), AnswerIntent("", "", intent), WakeTreasury(intent)]


def _on_invoice(event: InvoiceReported, effects: list[AnyEffect]) -> None:
    intent = event.intent
    if intent is None:
        _refuse(effects, "UNKNOWN_INTENT", f"there is no intent {event.id!r:.40}")
        return
    told = (event.backend_id, event.reference, event.expires_ms)
    if intent.backend_id:
        if (intent.backend_id, intent.reference, intent.expires_ms) == told:
            effects.append(AnswerIntent("", "", intent))
            return
        message = f"{intent.id} has the invoice {intent.backend_id}; now {event.backend_id:.100}"
        _refuse(effects, "LEDGER_CONFLICT", message, is_alarming=True)
        return
    if event.holder:
        message = f"the invoice {event.backend_id:.100} is that of {event.holder}"
        _refuse(effects, "LEDGER_CONFLICT", message, is_alarming=True)
        return
    sizes = len(event.backend_id), len(event.reference)
    if not (0 < sizes[0] <= NAME_CHARS_MAX and 0 < sizes[1] <= REFERENCE_CHARS_MAX):
        message = f"an id of {sizes[0]} and a reference of {sizes[1]} characters"
        _refuse(effects, "MALFORMED", message)
        return
    intent.backend_id, intent.reference, intent.expires_ms = told
    intent.watched_ms = max(intent.watched_ms, event.expires_ms + WATCH_MS)
    effects += [SetIntent(intent), AnswerIntent("", "", intent)]


def _on_cancel(event: CancelAsked, effects: list[AnyEffect]) -> None:
    intent = event.intent
    if intent is None:
        _refuse(effects, "UNKNOWN_INTENT", f"there is no intent {event.id!r:.40}")
    elif intent.state == "cancelled" or intent.is_cancelling:
        effects.append(AnswerIntent("", "", intent))
    elif intent.state != "created":
        _refuse(effects, "LEDGER_CONFLICT", f"{intent.id} is {intent.state} already")
    elif intent.review:
        _refuse(
            effects,
            "LEDGER_CONFLICT",
            f"{intent.received} of {intent.due} {intent.unit} came for {intent.id}: pay the rest, "
            "or ask the operator to credit or to refund it",
        )
    else:
        intent.is_cancelling = True
        effects += [SetIntent(intent), AnswerIntent("", "", intent), WakeTreasury(intent)]


# ---------------------------------------------------------------- money


def _on_observed(
    state: LedgerState, event: PaymentObserved, now_ms: int, effects: list[AnyEffect]
) -> None:
    """Count each new payment once, then see whether the intent is over."""
    intent = event.intent
    if intent is None:
        verdict = "unknown reference"
        message = f"{event.backend} spoke of an invoice {event.backend_id!r:.100} of no intent"
        if not event.is_repeat:
            effects.append(RaiseAlarm("", 0, "UNKNOWN_INTENT", message))
        answer = AnswerIntent("UNKNOWN_INTENT", message)
    else:
        wrong = [told for told in (_pay(state, event, intent, paid, now_ms, effects)
                                   for paid in event.paid) if told]  # fmt: skip
        before = intent.state
        if intent.state == "created" and event.state == "closed" and not intent.received:
            # A wrong payment is money, too: nothing ends while somebody must look at it.
            if not wrong:
                intent.state = "expired" if now_ms >= intent.expires_ms else "cancelled"
                intent.ended_ms = now_ms
                effects.append(SetIntent(intent))
        verdict = "; ".join(wrong) or (
            intent.state if intent.state == before else f"{before} -> {intent.state}"
        )
        answer = AnswerIntent("LEDGER_CONFLICT" if wrong else "", "; ".join(wrong), intent)
    if not event.is_repeat:
        name = intent.id if intent is not None else ""
        effects.append(
            AddObservation(
                event.digest,
                event.backend,
                event.backend_id,
                name,
                event.state,
                event.source,
                event.raw,
                now_ms,
                verdict[:1_000],
            )
        )
    effects.append(answer)


def _on_confirmed(
    state: LedgerState, event: PaymentConfirmed, now_ms: int, effects: list[AnyEffect]
) -> None:
    """An operator's word is an observation like another, of a payment with the id of his ref."""
    intent = event.intent
    if intent is None:
        _refuse(effects, "UNKNOWN_INTENT", f"there is no intent {event.id!r:.40}")
    elif intent.backend != MANUAL:
        told = f"{intent.id} is paid by {intent.backend}: its look-up says what came, nobody's word"
        _refuse(effects, "FORBIDDEN", told)
    elif not 0 < len(event.ref) <= NAME_CHARS_MAX // 2:
        told = f"ref has {len(event.ref)} characters, must be 1 to {NAME_CHARS_MAX // 2}"
        _refuse(effects, "INVALID_SPEC", told)
    else:
        paid = Paid(confirmed_id(intent.id, event.ref), event.received)
        observed = PaymentObserved(
            MANUAL, intent.id, "open", [paid], "operator", event.ref.encode(), intent, event.known,
            event.digest, event.is_repeat,
        )  # fmt: skip
        _on_observed(state, observed, now_ms, effects)


def confirmed_id(intent: str, ref: str) -> str:
    """The id of a payment that an operator confirms."""
    return f"{intent}/{ref}"


def _wrong_payment(event: PaymentObserved, paid: Paid) -> str:
    """Why a payment cannot be true; empty for nothing."""
    if not 0 < len(paid.id) <= NAME_CHARS_MAX:
        return f"a payment's id of {len(paid.id)} characters"
    if not 0 < paid.amount <= UNITS_MAX:
        return f"the payment {paid.id} is of {paid.amount}; it must be 1 to {UNITS_MAX}"
    if event.backend in _LIGHTNING and hashlib.sha256(paid.proof).hexdigest() != paid.id:
        return f"the preimage of the payment {paid.id} is not its own"
    known = event.known.get(paid.id)
    if known is not None and (known.backend_id, known.amount) != (event.backend_id, paid.amount):
        return (
            f"the payment {paid.id} of {known.amount} for {known.backend_id} is now told as "
            f"{paid.amount} for {event.backend_id}"
        )
    return ""


def _pay(
    state: LedgerState,
    event: PaymentObserved,
    intent: Intent,
    paid: Paid,
    now_ms: int,
    effects: list[AnyEffect],
) -> str:
    """Count one payment; what is wrong with it, or nothing."""
    wrong = _wrong_payment(event, paid)
    if wrong:
        effects.append(RaiseAlarm("", 0, "LEDGER_CONFLICT", wrong))
        return wrong
    if paid.id in event.known:
        return ""
    whole = paid.amount + (intent.received if intent.state == "created" else 0)
    worth = credited_of(whole, intent.amount, intent.due)
    minted = -state.accounts[WORLD].posted if WORLD in state.accounts else 0
    if worth > min(AMOUNT_MAX, MINTED_MAX - minted):
        wrong = f"the payment {paid.id} of {paid.amount} is worth more than can be minted"
        effects.append(RaiseAlarm("", 0, "LEDGER_CONFLICT", wrong))
        return wrong
    event.known[paid.id] = Known(event.backend_id, paid.amount)
    if intent.state != "created":
        intent = _follow(intent, paid, now_ms, effects)
    is_enough = intent.received + paid.amount >= intent.due or bool(intent.follows)
    new = worth - intent.credited - intent.review
    account = f"tenant:{intent.tenant}" if is_enough else REVIEW
    number = _move(state, mint_id(paid.id), WORLD, account, new, now_ms, effects)
    effects.append(
        AddPayment(
            paid.id,
            intent.id,
            event.backend_id,
            paid.amount,
            new,
            account,
            number,
            now_ms,
            paid.proof,
        )
    )
    intent.received += paid.amount
    if not is_enough:
        intent.review += new
        effects.append(SetIntent(intent))
        return ""
    intent.credited += new
    _release(state, intent, now_ms, effects)
    intent.state, intent.ended_ms = "settled", now_ms
    effects.append(SetIntent(intent))
    return ""


def _follow(intent: Intent, paid: Paid, now_ms: int, effects: list[AnyEffect]) -> Intent:
    """The intent of a payment that came for one that had ended: at the price of that one."""
    key = LATE + paid.id
    late = Intent(
        intent_id(intent.tenant, key),
        intent.tenant,
        key,
        intent.backend,
        intent.unit,
        intent.amount,
        intent.price,
        intent.fee,
        intent.follows or intent.id,
        now_ms,
        expires_ms=now_ms,
    )
    effects.append(OpenIntent(late))
    return late


def _release(state: LedgerState, intent: Intent, now_ms: int, effects: list[AnyEffect]) -> None:
    """What waited in review is the tenant's."""
    to = f"tenant:{intent.tenant}"
    _move(state, _id("release", intent.id), REVIEW, to, intent.review, now_ms, effects)
    intent.credited += intent.review
    intent.review = 0


def _move(
    state: LedgerState, id_: bytes, debit: str, credit: str, amount: int, now_ms: int,
    effects: list[AnyEffect],
) -> int:  # fmt: skip
    """The number of the transfer; 0 where there is nothing to move."""
    if not amount:
        return 0
    from_, to = account_of(state, debit, effects), account_of(state, credit, effects)
    return transfer(state, id_, Kind.POSTED, from_, to, amount, 0, now_ms, effects)


# ---------------------------------------------------------------- decisions


def _on_decision(
    state: LedgerState, event: DecisionMade, now_ms: int, effects: list[AnyEffect]
) -> None:
    intent = event.intent
    decision = f"{event.verb} {event.ref}"
    if intent is None:
        _refuse(effects, "UNKNOWN_INTENT", f"there is no intent {event.id!r:.40}")
    elif intent.decision == decision:
        effects.append(AnswerIntent("", "", intent))
    elif not 0 < len(event.ref) <= NAME_CHARS_MAX:
        message = f"ref has {len(event.ref)} characters, must be 1 to {NAME_CHARS_MAX}"
        _refuse(effects, "INVALID_SPEC", message)
    elif intent.state != "created" or not intent.received:
        told = intent.decision or "no underpayment waits"
        message = f"{intent.id} is {intent.state}: {told}; there is nothing to decide"
        _refuse(effects, "LEDGER_CONFLICT", message)
    else:
        if event.verb == "credit":
            _release(state, intent, now_ms, effects)
            intent.state = "settled"
        else:
            refund = _id("refund", intent.id)
            _move(state, refund, REVIEW, WORLD, intent.review, now_ms, effects)
            intent.review = 0
            intent.state = "refunded"
        intent.decision, intent.ended_ms = decision, now_ms
        effects += [SetIntent(intent), AnswerIntent("", "", intent), WakeTreasury(intent)]
