"""What operators ask of the books: credits minted for a tenant, credits moved between accounts."""

from collections.abc import Sequence

from gristmill.ledger.core.accounts import account_of, is_name, transfer
from gristmill.ledger.core.effects import AddMint, AnswerOperator, AnyEffect, Kind, RaiseAlarm
from gristmill.ledger.core.events import CreditsFunded, TransfersAsked
from gristmill.ledger.core.ids import ID_BYTES, named_id
from gristmill.ledger.core.intents import REVIEW
from gristmill.ledger.core.state import AMOUNT_MAX, ESCROW, MINTED_MAX, WORLD, LedgerState
from gristmill.wire.ledger import Leg
from gristmill.wire.limits import NAME_CHARS_MAX
from gristmill.wire.units import format_credits

LEGS_MAX = 100  #: of one linked group

# ---------------------------------------------------------------- funding


def on_credits_funded(
    state: LedgerState, event: CreditsFunded, now_ms: int, effects: list[AnyEffect]
) -> None:
    """Mint once for each ref; the same ref with another content is refused."""
    asked = (event.tenant, event.amount_ucredits)
    minted = -state.accounts[WORLD].posted if WORLD in state.accounts else 0
    if event.earlier is not None:
        if event.earlier == asked:
            effects.append(AnswerOperator("", "", is_repeat=True))
            return
        message = (
            f"the funding {event.ref!r} was {format_credits(event.earlier[1])} credits to "
            f"{event.earlier[0]}; now it asks {format_credits(asked[1])} to {asked[0]}"
        )
        effects.append(RaiseAlarm("", 0, "LEDGER_CONFLICT", message))
        effects.append(AnswerOperator("LEDGER_CONFLICT", message))
        return
    bad = []
    if not 0 < event.amount_ucredits <= min(AMOUNT_MAX, MINTED_MAX - minted):
        bad.append(
            f"amount is {event.amount_ucredits}, must be 1 to "
            f"{min(AMOUNT_MAX, MINTED_MAX - minted)} micro-credits"
        )
    for field, text in (("tenant", event.tenant), ("ref", event.ref)):
        if not is_name(text):
            bad.append(f"{field} has {len(text)} characters, must be 1 to {NAME_CHARS_MAX}, no NUL")
    if bad:
        effects.append(AnswerOperator("INVALID_SPEC", "; ".join(bad)))
        return
    world = account_of(state, WORLD, effects)
    tenant = account_of(state, f"tenant:{event.tenant}", effects)
    id_ = named_id("fund", event.ref)
    number = transfer(
        state, id_, Kind.POSTED, world, tenant, event.amount_ucredits, 0, now_ms, effects
    )
    effects.append(AddMint(event.ref, event.tenant, event.amount_ucredits, number))
    effects.append(AnswerOperator("", ""))


# ---------------------------------------------------------------- transfers of operators


def on_transfers_asked(
    state: LedgerState, event: TransfersAsked, now_ms: int, effects: list[AnyEffect]
) -> None:
    """A linked group: every leg as it is asked, or nothing of it."""
    known = [event.earlier.get(leg.id) for leg in event.legs]
    if event.legs and None not in known:
        asked = [(leg.debit, leg.credit, leg.amount_ucredits) for leg in event.legs]
        if known == asked:
            effects.append(AnswerOperator("", "", is_repeat=True))
            return
    bad = _wrong_legs(state, event)
    if bad:
        code = "LEDGER_CONFLICT" if event.earlier else "INVALID_SPEC"
        message = "; ".join(bad)
        if event.earlier:
            effects.append(RaiseAlarm("", 0, code, message))
        effects.append(AnswerOperator(code, message))
        return
    if poor := _overdrawn(state, event.legs):
        effects.append(AnswerOperator("INSUFFICIENT_CREDITS", poor))
        return
    for leg in event.legs:
        debit, credit = state.accounts[leg.debit], state.accounts[leg.credit]
        amount = leg.amount_ucredits
        transfer(state, leg.id, Kind.POSTED, debit, credit, amount, 0, now_ms, effects)
    effects.append(AnswerOperator("", ""))


def _wrong_legs(state: LedgerState, event: TransfersAsked) -> list[str]:
    if not 0 < len(event.legs) <= LEGS_MAX:
        return [f"a group of {len(event.legs)} transfers; it must have 1 to {LEGS_MAX}"]
    bad = []
    if len({leg.id for leg in event.legs}) < len(event.legs):
        bad.append("two transfers of the group have one id")
    for leg in event.legs:
        name = leg.id.hex()[:40]
        if len(leg.id) != ID_BYTES:
            bad.append(f"an id of {len(leg.id)} bytes ({name}); it must have {ID_BYTES}")
        if leg.id in event.earlier:
            debit, credit, amount = event.earlier[leg.id]
            bad.append(
                f"the transfer {name} was {format_credits(amount)} credits from {debit} to {credit}"
            )
        for account in (leg.debit, leg.credit):
            is_mirror = account.startswith(("rental:", "pool:"))
            if account in (ESCROW, REVIEW):
                bad.append(f"the credits of {account} are moved by holds and payments, not by hand")
            elif is_mirror and (account == leg.debit or account.startswith("pool:")):
                bad.append(f"the credits of {account} are what the chain has, not moved by hand")
            elif account not in state.accounts:
                bad.append(f"there is no account {account!r:.100}")
        if leg.debit == WORLD:
            bad.append("credits are minted by a funding or a payment, not moved out of the world")
        if leg.debit == leg.credit:
            bad.append(f"the transfer {name} is from {leg.debit!r:.100} to itself")
        if not 0 < leg.amount_ucredits <= AMOUNT_MAX:
            bad.append(f"an amount of {leg.amount_ucredits}; it must be 1 to {AMOUNT_MAX}")
    return bad


def _overdrawn(state: LedgerState, legs: Sequence[Leg]) -> str:
    """Who would have less than nothing after one of the legs, in order; empty for nobody."""
    have: dict[str, int] = {}
    for leg in legs:
        left = have.setdefault(leg.debit, state.accounts[leg.debit].available)
        have.setdefault(leg.credit, state.accounts[leg.credit].available)
        if left < leg.amount_ucredits:
            return (
                f"{leg.debit} has {format_credits(left)} available; the transfer asks for "
                f"{format_credits(leg.amount_ucredits)}"
            )
        have[leg.debit] -= leg.amount_ucredits
        have[leg.credit] += leg.amount_ucredits
    return ""
