"""What transfers an entry of an outbox makes: the ledger's only door to its state.

Theory of operation. A job's cap is *held* by one pending transfer from its tenant (to ``escrow``,
pending side only): no account per job, and the tenant's ``debits_pending`` is what it cannot spend
twice. A contribution *posts* part of that pending transfer, to the node and to the toll; posts of
one hold may be many, their sum never above it. A release *voids* the rest, once, and nothing is
posted after it. TigerBeetle's pending transfer, but drawn on more than once.

    entry         | accounts                              | refused when
    --------------|---------------------------------------|-----------------------------------------
    Hold          | PENDING tenant -> escrow              | not covered; the ref has other content
    Contribution  | POST tenant -> node, tenant -> toll   | overlap; over the hold; no open hold
    Release       | VOID tenant -> escrow, the rest       | released before
    (funding)     | POSTED world -> tenant                | the ref has other content

Nothing is ever adjusted to fit: what contradicts the books is refused whole, with an alarm.
Each entry is applied once for each (broker, sequence): a repeat is answered from what is stored.
"""

import hashlib
import itertools
from typing import Any

import msgspec

from gristmill.ledger.core.coverage import Coverage
from gristmill.ledger.core.effects import (
    Acknowledge,
    AddContribution,
    AddEntry,
    AddMint,
    AddTransfer,
    AnswerFunding,
    AnyEffect,
    CloseHold,
    Kind,
    OpenAccount,
    OpenHold,
    RaiseAlarm,
)
from gristmill.ledger.core.events import CreditsFunded, Event, OutboxReceived
from gristmill.ledger.core.state import (
    AMOUNT_MAX,
    ESCROW,
    MINTED_MAX,
    TOLL,
    WORLD,
    Account,
    Hold,
    LedgerState,
)
from gristmill.wire.ledger import Contribution, Release, Verdict
from gristmill.wire.ledger import Hold as HoldEntry
from gristmill.wire.limits import NAME_CHARS_MAX
from gristmill.wire.spec import toll_of
from gristmill.wire.units import format_credits

REF_CHARS_MAX = NAME_CHARS_MAX + 24
ENDED_MS_MAX = 253_402_300_799_999  #: the last moment that has a day to be billed on
_INT_MAX = (1 << 62) - 1
_NUMBERS = (
    "first", "count", "attempt", "replica", "wall_us", "cpu_us", "peak_kib", "ended_ms",
)  # fmt: skip
_SIGNATURE_SIZES = (0, 64)
_YES = ("", "")
_POST = Kind.POST  # an enum's attributes are not cheap
_encode = msgspec.msgpack.Encoder().encode
_astuple = msgspec.structs.astuple
_sha256 = hashlib.sha256
Refusal = tuple[str, str]  #: (code, message); both empty for yes


def step(state: LedgerState, event: Event, now_ms: int) -> list[AnyEffect]:
    """Apply one event; the effects belong in one transaction, answers after its commit."""
    effects: list[AnyEffect] = []
    if isinstance(event, OutboxReceived):
        on_outbox_received(state, event, now_ms, effects)
    else:
        on_credits_funded(state, event, now_ms, effects)
    return effects


def digest_of_entry(entry: HoldEntry | Release | Contribution) -> bytes:
    """16 bytes that tell an entry's content from another.

    Trailing fields at their default are left out, so that a release which adds fields knows the
    entries of the one before.
    """
    return _digest(entry, _astuple(entry))


def _digest(entry: HoldEntry | Release | Contribution, values: tuple[Any, ...]) -> bytes:
    defaults = entry.__struct_defaults__
    if defaults and values[-1] == defaults[-1]:
        size, spare = len(values), len(defaults)
        while spare and values[size - 1] == defaults[spare - 1]:
            size, spare = size - 1, spare - 1
        values = values[:size]
    return _sha256(_encode((type(entry).__name__, *values))).digest()[:16]


# ---------------------------------------------------------------- the outbox


def on_outbox_received(
    state: LedgerState, event: OutboxReceived, now_ms: int, effects: list[AnyEffect]
) -> None:
    """Entries in order: new ones are applied, repeats answered again, a gap is not jumped."""
    for hold in event.recalled:
        state.holds.setdefault(hold.ref, hold)
    applied = state.applied.get(event.broker, 0)
    verdicts: list[Verdict] = []
    if event.first < 1 or not 0 < len(event.broker) <= NAME_CHARS_MAX:
        message = f"a post of {event.broker:.80} begins with entry {event.first}; the first is 1"
        effects.append(RaiseAlarm(event.broker, event.first, "MALFORMED", message))
    elif event.first <= applied + 1:
        entries, at = event.entries, 0
        while at < len(entries):
            entry, sequence = entries[at], event.first + at
            if sequence <= applied:
                code, message = _repeat(event, sequence, entry, effects)
            elif isinstance(entry, Contribution):
                at = _contribute(state, event, at, now_ms, effects, verdicts)
                applied = event.first + at - 1
                continue
            else:
                code, message = _new(state, event.broker, sequence, entry, now_ms, effects)
                digest = digest_of_entry(entry)
                effects.append(AddEntry(event.broker, sequence, digest, code, message))
                applied = sequence
            if code or isinstance(entry, HoldEntry):
                verdicts.append(Verdict(sequence, entry.ref, code, message))
            at += 1
        state.applied[event.broker] = applied
    effects.append(Acknowledge(event.broker, applied, verdicts))


def _repeat(
    event: OutboxReceived,
    sequence: int,
    entry: HoldEntry | Release | Contribution,
    effects: list[AnyEffect],
) -> Refusal:
    before = event.applied[sequence]
    if before.digest == digest_of_entry(entry):
        return before.code, before.message
    message = (
        f"entry {sequence} of {event.broker} came before with another content; now it is "
        f"{entry!r:.300}"
    )
    effects.append(RaiseAlarm(event.broker, sequence, "LEDGER_CONFLICT", message))
    return "LEDGER_CONFLICT", message


def _new(
    state: LedgerState,
    broker: str,
    sequence: int,
    entry: HoldEntry | Release,
    now_ms: int,
    effects: list[AnyEffect],
) -> Refusal:
    if isinstance(entry, HoldEntry):
        refusal = _hold(state, broker, entry, now_ms, effects)
    else:
        refusal = _release(state, broker, entry, now_ms, effects)
    return _alarmed(broker, sequence, refusal, effects)


def _alarmed(broker: str, sequence: int, refusal: Refusal, effects: list[AnyEffect]) -> Refusal:
    """The refusal in the words of its verdict; an alarm unless a tenant has too little, only."""
    code, message = refusal
    if code and code != "INSUFFICIENT_CREDITS":
        message = f"entry {sequence} of {broker}: {message}"
        effects.append(RaiseAlarm(broker, sequence, code, message))
    return code, message


def _check_ref(broker: str, ref: str) -> Refusal:
    if len(ref) > REF_CHARS_MAX:
        return "MALFORMED", f"a ref of {len(ref)} characters; the limit is {REF_CHARS_MAX}"
    if ref.rpartition("/")[0] != broker:
        return "FORBIDDEN", f"the hold {ref!r} is not one of this broker's (BROKER/JOB)"
    return _YES


# ---------------------------------------------------------------- hold, release


def _hold(
    state: LedgerState,
    broker: str,
    entry: HoldEntry,
    now_ms: int,
    effects: list[AnyEffect],
) -> Refusal:
    refusal = _check_ref(broker, entry.ref)
    if refusal[0]:
        return refusal
    if not 0 <= entry.amount_ucredits <= AMOUNT_MAX:
        return "MALFORMED", f"a cap of {entry.amount_ucredits}; it must be 0 to {AMOUNT_MAX}"
    if not 0 < len(entry.tenant) <= NAME_CHARS_MAX:
        return "MALFORMED", f"a tenant's name of {len(entry.tenant)} characters"
    before = state.holds.get(entry.ref)
    if before is not None:
        same = (before.tenant, before.amount) == (entry.tenant, entry.amount_ucredits)
        if same and not before.closed_ms:
            return _YES
        return "LEDGER_CONFLICT", (
            f"the hold {entry.ref} is there already: {format_credits(before.amount)} credits of "
            f"{before.tenant}, {'released' if before.closed_ms else 'open'}"
        )
    tenant = _account(state, f"tenant:{entry.tenant}", effects)
    if entry.amount_ucredits > tenant.available:
        return "INSUFFICIENT_CREDITS", (
            f"the cap is {format_credits(entry.amount_ucredits)} credits; tenant {entry.tenant} "
            f"has {format_credits(tenant.available)} available "
            f"({format_credits(tenant.posted)} less {format_credits(tenant.debits_pending)} held "
            "by unfinished jobs)"
        )
    escrow = _account(state, ESCROW, effects)
    transfer = _transfer(
        state, Kind.PENDING, tenant, escrow, entry.amount_ucredits, 0, now_ms, effects
    )
    hold = Hold(transfer, entry.ref, entry.tenant, entry.amount_ucredits)
    state.holds[entry.ref] = hold
    effects.append(OpenHold(hold))
    return _YES


def _release(
    state: LedgerState,
    broker: str,
    entry: Release,
    now_ms: int,
    effects: list[AnyEffect],
) -> Refusal:
    refusal = _check_ref(broker, entry.ref)
    if refusal[0]:
        return refusal
    hold = state.holds.get(entry.ref)
    if hold is None:
        # A job whose hold was refused ends like any other: there is nothing to void.
        return _YES
    if hold.closed_ms:
        return "LEDGER_CONFLICT", f"the hold {entry.ref} was released before"
    tenant = _account(state, f"tenant:{hold.tenant}", effects)
    escrow = _account(state, ESCROW, effects)
    _transfer(state, Kind.VOID, tenant, escrow, hold.left, hold.id, now_ms, effects)
    hold.closed_ms = now_ms
    hold.billed = {}
    effects.append(CloseHold(hold))
    return _YES


# ---------------------------------------------------------------- contributions


def _contribute(
    state: LedgerState,
    event: OutboxReceived,
    at: int,
    now_ms: int,
    effects: list[AnyEffect],
    verdicts: list[Verdict],
) -> int:
    """New contributions from place ``at`` up to an entry of another kind; gives that one's place.

    Those of a job come one behind the other, so what is looked up for one serves the next.
    """
    broker, entries = event.broker, event.entries
    add = effects.append
    job: str | None = None
    hold: Hold | None = None
    wrong_ref, whose, billed = _YES, (-1, -1), Coverage()
    node = node_account = ""
    for sequence, entry in enumerate(itertools.islice(entries, at, None), event.first + at):
        if not isinstance(entry, Contribution):
            break
        at += 1
        values = _astuple(entry)
        (
            ref, _, node_name, _, first, count, attempt, subtasks, failed, wall_us, cpu_us,
            _, _, _, amount, toll, _, replica, *_,
        ) = values  # fmt: skip
        if ref != job:
            job, wrong_ref = ref, _check_ref(broker, ref)
            hold = state.holds.get(ref)
            whose = -1, -1
        if wrong_ref[0]:
            refusal = wrong_ref
        elif wrong := _wrong_field(values):
            refusal = "MALFORMED", wrong
        else:
            refusal = _against_hold(hold, entry)
        if not refusal[0]:
            assert hold is not None
            if whose != (replica, attempt):
                whose = replica, attempt
                billed = hold.billed.setdefault(whose, Coverage())
            overlap = billed.take(first, first + count)
            if overlap is not None:
                refusal = "LEDGER_CONFLICT", (
                    f"subtasks {first} to {first + count - 1} of {ref}, attempt {attempt}: "
                    f"{overlap[0]} to {overlap[1] - 1} are billed already"
                )
        if hold is None or refusal[0]:
            refusal = _alarmed(broker, sequence, refusal, effects)
            add(AddEntry(broker, sequence, _digest(entry, values), *refusal))
            verdicts.append(Verdict(sequence, ref, *refusal))
            continue
        if node_name != node:
            node, node_account = node_name, f"node:{node_name}"
        paid, kept = _share_out(state, hold, node_account, amount, toll, now_ms, effects)
        hold.spent += amount
        hold.subtasks += subtasks
        hold.failed += failed
        hold.cpu_us += cpu_us
        hold.wall_us += wall_us
        hold.toll += toll
        add(AddContribution(hold, sequence, entry, paid, kept))
        add(AddEntry(broker, sequence, _digest(entry, values), "", ""))
    return at


def _share_out(
    state: LedgerState,
    hold: Hold,
    node: str,
    amount: int,
    toll: int,
    now_ms: int,
    effects: list[AnyEffect],
) -> tuple[int, int]:
    """Post ``amount`` out of what ``hold`` reserves, to the account ``node`` and to the toll.

    Gives the ids of their transfers, 0 for a share of nothing.
    """
    accounts, number = state.accounts, state.transfers
    tenant = accounts[f"tenant:{hold.tenant}"]
    tenant.debits_pending -= amount
    accounts[ESCROW].credits_pending -= amount
    tenant.debits += amount
    paid = kept = 0
    if share := amount - toll:
        to = accounts.get(node) or _account(state, node, effects)
        to.credits += share
        paid = number = number + 1
        effects.append(AddTransfer(paid, _POST, tenant.id, to.id, share, hold.id, now_ms))
    if toll:
        to = accounts.get(TOLL) or _account(state, TOLL, effects)
        to.credits += toll
        kept = number = number + 1
        effects.append(AddTransfer(kept, _POST, tenant.id, to.id, toll, hold.id, now_ms))
    state.transfers = number
    return paid, kept


def _against_hold(hold: Hold | None, entry: Contribution) -> Refusal:
    if hold is None:
        return "LEDGER_CONFLICT", f"there is no hold {entry.ref}"
    if hold.closed_ms:
        return "LEDGER_CONFLICT", f"the hold {entry.ref} was released; nothing is billed after that"
    if hold.tenant != entry.tenant:
        return "LEDGER_CONFLICT", (
            f"the hold {entry.ref} is of tenant {hold.tenant}, the contribution of {entry.tenant}"
        )
    if entry.amount_ucredits > hold.amount - hold.spent:
        return "LEDGER_CONFLICT", (
            f"{format_credits(entry.amount_ucredits)} credits for subtasks from {entry.first} of "
            f"{entry.ref}; {format_credits(hold.left)} are left of its "
            f"{format_credits(hold.amount)}"
        )
    if hold.wall_us + entry.wall_us > _INT_MAX or hold.cpu_us + entry.cpu_us > _INT_MAX:
        return "MALFORMED", f"the times of {entry.ref} leave 62 bits"
    return _YES


def _wrong_field(values: tuple[Any, ...]) -> str:
    """What is wrong with a contribution in itself, or nothing; takes all its fields."""
    (
        _, _, node, lease_id, first, count, attempt, subtasks, failed, wall_us, cpu_us, peak_kib,
        metering, _, amount, toll, ended_ms, replica, signature, *_,
    ) = values  # fmt: skip
    if (first | count | attempt | replica | wall_us | cpu_us | peak_kib | ended_ms) & ~_INT_MAX:
        named = dict(zip(Contribution.__struct_fields__, values, strict=True))
        for name in _NUMBERS:  # one is negative, or of more than 62 bits
            if not 0 <= named[name] <= _INT_MAX:
                return f"{name} is {named[name]}; it must be 0 to {_INT_MAX}"
    if ended_ms > ENDED_MS_MAX:
        return f"ended_ms is {ended_ms}, which is after the year 9999"
    if count < 1 or first + count > _INT_MAX:
        return f"a range of {count} subtasks from {first}"
    if not (0 <= subtasks <= count and 0 <= failed <= count):
        return f"{subtasks} billed and {failed} failed of {count} subtasks"
    if not 0 <= amount <= AMOUNT_MAX:
        return f"an amount of {amount}; it must be 0 to {AMOUNT_MAX}"
    if not 0 <= toll <= toll_of(amount):
        # Gathered results have a toll rounded down each: the sum may be less, never more.
        return f"a toll of {toll} of {amount}; the most is {toll_of(amount)}"
    if not 0 < len(node) <= NAME_CHARS_MAX or len(metering) > NAME_CHARS_MAX:
        return f"a node's name of {len(node)} characters"
    if not 0 <= lease_id < 1 << 64 or len(signature) not in _SIGNATURE_SIZES:
        return f"lease {lease_id} with a signature of {len(signature)} bytes"
    return ""


# ---------------------------------------------------------------- funding


def on_credits_funded(
    state: LedgerState, event: CreditsFunded, now_ms: int, effects: list[AnyEffect]
) -> None:
    """Mint once for each ref; the same ref with another content is refused."""
    asked = (event.tenant, event.amount_ucredits)
    minted = -state.accounts[WORLD].posted if WORLD in state.accounts else 0
    if event.earlier is not None:
        if event.earlier == asked:
            effects.append(AnswerFunding("", "", is_repeat=True))
            return
        message = (
            f"the funding {event.ref!r} was {format_credits(event.earlier[1])} credits to "
            f"{event.earlier[0]}; now it asks {format_credits(asked[1])} to {asked[0]}"
        )
        effects.append(RaiseAlarm("", 0, "LEDGER_CONFLICT", message))
        effects.append(AnswerFunding("LEDGER_CONFLICT", message))
        return
    bad = []
    if not 0 < event.amount_ucredits <= min(AMOUNT_MAX, MINTED_MAX - minted):
        bad.append(
            f"amount is {event.amount_ucredits}, must be 1 to "
            f"{min(AMOUNT_MAX, MINTED_MAX - minted)} micro-credits"
        )
    for field, text in (("tenant", event.tenant), ("ref", event.ref)):
        if not 0 < len(text) <= NAME_CHARS_MAX:
            bad.append(f"{field} has {len(text)} characters, must be 1 to {NAME_CHARS_MAX}")
    if bad:
        effects.append(AnswerFunding("INVALID_SPEC", "; ".join(bad)))
        return
    world = _account(state, WORLD, effects)
    tenant = _account(state, f"tenant:{event.tenant}", effects)
    transfer = _transfer(
        state, Kind.POSTED, world, tenant, event.amount_ucredits, 0, now_ms, effects
    )
    effects.append(AddMint(event.ref, event.tenant, event.amount_ucredits, transfer))
    effects.append(AnswerFunding("", ""))


# ---------------------------------------------------------------- accounts


def _account(state: LedgerState, name: str, effects: list[AnyEffect]) -> Account:
    """The account of this name, opened if it is new."""
    account = state.accounts.get(name)
    if account is None:
        account = Account(len(state.accounts) + 1, name, may_overdraw=name == WORLD)
        state.accounts[name] = account
        effects.append(OpenAccount(account))
    return account


def _transfer(
    state: LedgerState,
    kind: Kind,
    debit: Account,
    credit: Account,
    amount: int,
    pending: int,
    now_ms: int,
    effects: list[AnyEffect],
) -> int:
    """Move the balances by one transfer (no post) and write it; gives its id."""
    if kind is Kind.PENDING:
        debit.debits_pending += amount
        credit.credits_pending += amount
    elif kind is Kind.VOID:
        debit.debits_pending -= amount
        credit.credits_pending -= amount
    else:
        debit.debits += amount
        credit.credits += amount
    state.transfers += 1
    effects.append(AddTransfer(state.transfers, kind, debit.id, credit.id, amount, pending, now_ms))
    return state.transfers
