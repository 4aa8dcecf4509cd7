"""What the books do about the chain: rentals that back jobs, payouts of what nodes earned.

Theory of operation. The settlement *states* what stands on the chain, K blocks deep; this moves
the difference to what the books have, so a statement can come twice, late, or after others were
missed. What a rental locked is credits of its own account, out of which the holds of its jobs are
taken and nothing else is: what a tenant buys otherwise never mixes with what a contract holds.
A node's earnings leave its account when a payout *commits* them to its address, never more than
the pool has; they leave the grid when they are claimed.

    stated                | accounts                    | refused, with an alarm, when
    ----------------------|-----------------------------|----------------------------------------
    agreed                | none                        | (no alarm) of another ledger
    payee                 | none                        | (no alarm) not signed by the node
    rental, locked more   | POSTED world -> rental:ID   | less than before; nobody agreed
    rental, returned more | POSTED rental:ID -> world   | as above; what is missing is ``short``
    ended by its tenant   | none: no new hold           | (no alarm) a job holds some of it
    payouts               | POSTED node:N -> pool:P     | below what is committed; out of turn
    root                  | none                        | another root; no such payout
    claims                | POSTED pool:P -> world      | less than before; more than committed

Nothing shrinks: a chain that takes back what was K blocks deep is an alarm, and somebody's to
decide. ``short`` is what a client took back although his jobs had spent it: moved as soon as the
account has it again (an operator's transfer), and until then in every reconciliation.
"""

from gristmill.ledger.core.accounts import account_of, is_name, transfer
from gristmill.ledger.core.chain_records import (
    AddAgreement,
    AddMove,
    AddPayee,
    AddPayout,
    AnswerChain,
    ChainEvent,
    ClaimsStated,
    Move,
    PayeeStated,
    PayoutRow,
    PayoutsAsked,
    Rental,
    RentalAgreed,
    RentalEnded,
    RentalStated,
    RootStated,
    SetEarning,
    SetPayout,
    SetRental,
)
from gristmill.ledger.core.effects import AnyEffect, Kind, RaiseAlarm
from gristmill.ledger.core.ids import named_id
from gristmill.ledger.core.state import AMOUNT_MAX, MINTED_MAX, WORLD, LedgerState
from gristmill.wire.chain import ADDRESS_BYTES, HASH_BYTES
from gristmill.wire.units import format_credits

BLOCK_MAX = 1 << 53


def rental_account(id_: bytes | str) -> str:
    """The account of a rental."""
    return f"rental:{id_ if isinstance(id_, str) else id_.hex()}"


def pool_account(pool: str) -> str:
    """The account of what a pool owes: committed and not claimed."""
    return f"pool:{pool}"


def on_chain_event(
    state: LedgerState, event: ChainEvent, now_ms: int, effects: list[AnyEffect]
) -> None:
    """Apply one event; the records in it are changed."""
    match event:
        case RentalAgreed():
            _on_agreed(event, now_ms, effects)
        case PayeeStated():
            _on_payee(event, effects)
        case RentalStated():
            _on_rental(state, event, now_ms, effects)
        case RentalEnded():
            _on_ended(state, event, effects)
        case PayoutsAsked():
            _on_payouts(state, event, now_ms, effects)
        case RootStated():
            _on_root(event, effects)
        case ClaimsStated():
            _on_claims(state, event, now_ms, effects)


def _refuse(effects: list[AnyEffect], code: str, message: str, *, is_alarming: bool = True) -> None:
    if is_alarming:
        effects.append(RaiseAlarm("", 0, code, message))
    effects.append(AnswerChain(code, message))


def _posted(
    state: LedgerState,
    purpose: tuple[str, str],
    debit: str,
    credit: str,
    amount: int,
    now_ms: int,
    effects: list[AnyEffect],
) -> int:
    """Move credits under the id of this purpose, which is asked for once; the transfer's number."""
    one = account_of(state, debit, effects)
    other = account_of(state, credit, effects)
    id_ = named_id(*purpose)
    return transfer(state, id_, Kind.POSTED, one, other, amount, 0, now_ms, effects)


# ---------------------------------------------------------------- rentals


def _on_agreed(event: RentalAgreed, now_ms: int, effects: list[AnyEffect]) -> None:
    one = event.agreement
    bad = []
    if not event.is_ours:
        bad.append(f"the agreement is with the ledger {one.grid:.16}..., which is not this one")
    if not is_name(one.tenant):
        bad.append(f"a tenant's name of {len(one.tenant)} characters")
    if not 0 < one.chain_id < BLOCK_MAX or not 0 <= one.number < BLOCK_MAX:
        bad.append(f"chain {one.chain_id}, number {one.number}; each must be below 2^53")
    if len(one.contract) != ADDRESS_BYTES or len(one.provider) != ADDRESS_BYTES:
        bad.append("an address that does not have 20 bytes")
    if bad:
        _refuse(effects, "INVALID_SPEC", "; ".join(bad), is_alarming=False)
        return
    if not event.is_known:
        effects.append(AddAgreement(event.spec, one, now_ms))
    effects.append(AnswerChain("", "", one))


def _on_rental(
    state: LedgerState, event: RentalStated, now_ms: int, effects: list[AnyEffect]
) -> None:
    if len(event.id) != HASH_BYTES or len(event.spec) != HASH_BYTES:
        told = f"a rental's id of {len(event.id)} bytes and spec of {len(event.spec)}; each has 32"
        _refuse(effects, "INVALID_SPEC", told)
        return
    name = event.id.hex()
    if not event.tenant:
        told = f"rental {name:.16}...: nobody here agreed to the spec {event.spec.hex():.16}..."
        _refuse(effects, "UNKNOWN_RENTAL", told, is_alarming=False)
        return
    before = event.before or Rental(event.id, event.spec, event.tenant)
    if wrong := _wrong_rental(state, before, event):
        _refuse(effects, "LEDGER_CONFLICT", f"rental {name:.16}... of {before.tenant}: {wrong}")
        return
    # The row is there before the moves that are about it.
    more = event.locked - before.locked
    back = event.returned - before.returned + before.short
    before.locked, before.paid, before.returned = event.locked, event.paid, event.returned
    before.is_closed, before.block = event.is_closed, event.block
    its = state.rentals.setdefault(before.tenant, {})
    if event.is_closed or before.is_ending:
        its.pop(name, None)
    else:
        its[name] = None
    if more:
        purpose = ("rental locked", f"{name}/{event.locked}")
        number = _posted(state, purpose, WORLD, rental_account(name), more, now_ms, effects)
        effects.append(AddMove(number, Move.LOCKED, name, "", event.block, more))
    account = account_of(state, rental_account(name), effects)
    moved = min(back, account.available)
    before.short = back - moved
    if moved:
        taken = event.returned - before.short
        purpose = ("rental returned", f"{name}/{taken}")
        number = _posted(state, purpose, account.name, WORLD, moved, now_ms, effects)
        effects.append(AddMove(number, Move.RETURNED, name, "", event.block, moved))
    effects.append(SetRental(before, is_new=event.before is None))
    if before.short:
        told = (
            f"rental {name:.16}... of {before.tenant}: {format_credits(event.returned)} credits "
            f"went back to its client on the chain, {format_credits(before.short)} of them were "
            "spent by jobs and are in no voucher that was redeemed"
        )
        effects.append(RaiseAlarm("", 0, "LEDGER_CONFLICT", told))
    effects.append(AnswerChain("", "", account.posted))


def _on_ended(state: LedgerState, event: RentalEnded, effects: list[AnyEffect]) -> None:
    before, name = event.before, event.id.hex()
    if before is None or before.tenant != event.tenant:
        told = f"{event.tenant} has no rental {name:.64}"
        _refuse(effects, "UNKNOWN_RENTAL", told, is_alarming=False)
        return
    if held := state.accounts[rental_account(name)].debits_pending:
        told = f"jobs hold {format_credits(held)} credits of rental {name:.16}...: not all ended"
        _refuse(effects, "RENTAL_BUSY", told, is_alarming=False)
        return
    state.rentals.get(event.tenant, {}).pop(name, None)
    if not before.is_ending:
        before.is_ending = True
        effects.append(SetRental(before, is_new=False))
    effects.append(AnswerChain("", "", event.spent))


def _wrong_rental(state: LedgerState, before: Rental, event: RentalStated) -> str:
    """What of a statement contradicts the books or itself; empty for nothing."""
    if event.spec != before.spec:
        return f"its spec was {before.spec.hex():.16}..., now it is {event.spec.hex():.16}..."
    for field, was, now in (
        ("locked", before.locked, event.locked),
        ("paid", before.paid, event.paid),
        ("returned", before.returned, event.returned),
        ("block", before.block, event.block),
    ):
        if now < was:
            return f"{field} was {was}; now it is stated to be {now}"
    if before.is_closed and not event.is_closed:
        return "it was closed, and now is open"
    if event.paid + event.returned > event.locked:
        return f"{event.paid} paid and {event.returned} returned of {event.locked} locked"
    if event.is_closed and event.paid + event.returned != event.locked:
        return f"closed with {event.paid} paid and {event.returned} returned of {event.locked}"
    minted = -state.accounts[WORLD].posted if WORLD in state.accounts else 0
    if event.locked > AMOUNT_MAX or event.locked - before.locked > MINTED_MAX - minted:
        return f"{event.locked} locked, more than a ledger can have"
    return ""


# ---------------------------------------------------------------- payouts


def _on_payee(event: PayeeStated, effects: list[AnyEffect]) -> None:
    one, before = event.payee, event.before
    bad = []
    if len(one.address) != ADDRESS_BYTES or not any(one.address):
        bad.append(f"an address of {len(one.address)} bytes, or of zeros")
    chain, _, pool = one.pool.partition("/")
    if not (chain.isascii() and chain.isdecimal()) or len(pool) != 2 * ADDRESS_BYTES:
        bad.append(f"{one.pool!r:.80} is no pool; write CHAIN_ID/ADDRESS, without 0x")
    if not 0 <= one.from_ms < BLOCK_MAX:
        bad.append(f"from_ms is {one.from_ms}")
    if bad:
        _refuse(effects, "INVALID_SPEC", "; ".join(bad), is_alarming=False)
    elif not event.is_signed:
        told = f"the node {one.node:.16}... did not sign that it is paid at {one.address.hex()}"
        _refuse(effects, "FORBIDDEN", told, is_alarming=False)
    elif before == one:
        effects.append(AnswerChain("", ""))
    elif before is not None and one.from_ms <= before.from_ms:
        told = (
            f"the node {one.node:.16}... said something else as of {before.from_ms}: it is paid at "
            f"{before.address.hex()}; this is as of {one.from_ms}"
        )
        _refuse(effects, "LEDGER_CONFLICT", told, is_alarming=False)
    else:
        effects += [AddPayee(one, event.signature), AnswerChain("", "")]


def _on_payouts(
    state: LedgerState, event: PayoutsAsked, now_ms: int, effects: list[AnyEffect]
) -> None:
    last = event.last or PayoutRow(event.pool, 0, 0, 0)
    if event.number == last.number and event.number:
        effects.append(AnswerChain("", "", last))
        return
    if event.number != last.number + 1:
        told = f"payout {event.number} of {event.pool}; the last one is {last.number}"
        _refuse(effects, "LEDGER_CONFLICT", told)
        return
    if not last.total <= event.funds <= AMOUNT_MAX:
        told = (
            f"the pool {event.pool} has {format_credits(event.funds)} credits, claimed ones "
            f"included; {format_credits(last.total)} are committed to payees already"
        )
        _refuse(effects, "LEDGER_CONFLICT", told)
        return
    shares = _shares(state, event.payees, event.funds - last.total)
    if not shares:
        effects.append(AnswerChain("", "", last))
        return
    sums = dict(event.sums)
    paid = 0
    touched: dict[bytes, None] = {}
    for node, address, amount in shares:
        purpose = ("payout", f"{event.pool}/{event.number}/{node}")
        to = pool_account(event.pool)
        number = _posted(state, purpose, f"node:{node}", to, amount, now_ms, effects)
        subject = address.hex()
        effects.append(AddMove(number, Move.EARNED, subject, event.pool, event.number, amount))
        sums[address] = sums.get(address, 0) + amount
        touched[address] = None
        paid += amount
    payout = PayoutRow(event.pool, event.number, len(sums), last.total + paid)
    effects.append(AddPayout(payout, now_ms))
    for address in touched:
        is_new = address not in event.sums
        effects.append(SetEarning(event.pool, address, sums[address], is_new))
    effects.append(AnswerChain("", "", payout))


def _shares(
    state: LedgerState, payees: list[tuple[str, bytes]], room: int
) -> list[tuple[str, bytes, int]]:
    """(node, address, amount) of all that have earned something.

    All of it, or where the pool has less for everybody the same part of it, rounded down.
    """
    found = []
    for node, address in payees:
        account = state.accounts.get(f"node:{node}")
        if account is not None and account.available > 0:
            found.append((node, address, account.available))
    whole = sum(amount for _, _, amount in found)
    if whole > room:
        found = [(node, address, amount * room // whole) for node, address, amount in found]
    return [share for share in found if share[2]]


def _on_root(event: RootStated, effects: list[AnyEffect]) -> None:
    payout = event.payout
    told = f"payout {event.number} of {event.pool}"
    if payout is None:
        _refuse(effects, "LEDGER_CONFLICT", f"{told}: the books have none of that number")
        return
    sizes = {len(event.root), len(event.list_digest), len(event.transaction)}
    if sizes != {HASH_BYTES} or not 0 < event.block < BLOCK_MAX:
        _refuse(effects, "INVALID_SPEC", f"{told}: a hash that does not have 32 bytes, or no block")
        return
    said = (event.root, event.list_digest, event.transaction, event.block)
    if payout.root:
        if said == (payout.root, payout.list_digest, payout.transaction, payout.block):
            effects.append(AnswerChain("", "", payout))
            return
        _refuse(
            effects,
            "LEDGER_CONFLICT",
            f"{told} has the root {payout.root.hex():.16}... of block {payout.block}; now it is "
            f"stated to be {event.root.hex():.16}... of block {event.block}",
        )
        return
    payout.root, payout.list_digest, payout.transaction, payout.block = said
    effects += [SetPayout(payout), AnswerChain("", "", payout)]


def _on_claims(
    state: LedgerState, event: ClaimsStated, now_ms: int, effects: list[AnyEffect]
) -> None:
    account = state.accounts.get(pool_account(event.pool))
    more = event.claimed - event.before
    owed = account.available if account else 0
    if not 0 <= more <= owed:
        told = (
            f"{format_credits(event.claimed)} credits were claimed from the pool {event.pool}; the "
            f"books know of {format_credits(event.before)}, and it owes {format_credits(owed)} more"
        )
        _refuse(effects, "LEDGER_CONFLICT", told)
        return
    if more:
        purpose = ("claimed", f"{event.pool}/{event.claimed}")
        from_ = pool_account(event.pool)
        number = _posted(state, purpose, from_, WORLD, more, now_ms, effects)
        moved = AddMove(number, Move.CLAIMED, event.pool, event.pool, event.block, more)
        effects.append(moved)
    effects.append(AnswerChain("", ""))
