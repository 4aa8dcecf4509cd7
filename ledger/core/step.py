"""What transfers an entry of an outbox makes: the ledger's only door to its state.

Theory of operation. A job's cap is *held* by one pending transfer from its tenant (to ``escrow``,
pending side only): no account per job, and the tenant's ``debits_pending`` is what it cannot spend
twice. A contribution *posts* part of that pending transfer, to the node and to the toll; posts of
one hold may be many, their sum never above it. A release *voids* the rest, once, and nothing is
posted after it. TigerBeetle's pending transfer, but drawn on more than once.

    entry         | accounts                              | refused when
    --------------|---------------------------------------|-----------------------------------------
    Hold          | PENDING payer -> escrow               | not covered; the ref has other content
    Contribution  | POST payer -> node, payer -> toll     | overlap; over the hold; no open hold
    Release       | VOID payer -> escrow, the rest        | released before
    Key           | none: whose a public key is           | not the broker's; not later
    (silence)     | EXPIRE payer -> escrow, the rest      | never: its broker was lost for good
    (funding)     | POSTED world -> tenant                | the ref has other content
    (transfer)    | POSTED, a linked group                | not covered; unknown; other content
    (the chain)   | core/chain.py                         |

The payer of a hold is its tenant, or a rental of the tenant's that the hold names.

Nothing is ever adjusted to fit: what contradicts the books is refused whole, with an alarm.
Each entry is applied once for each (broker, sequence): a repeat is answered from what is stored.
"""

import hashlib
import itertools
from typing import Any

import msgspec

from gristmill.ledger.core.accounts import account_of, is_name, transfer
from gristmill.ledger.core.chain import on_chain_event
from gristmill.ledger.core.chain_records import ChainEvent
from gristmill.ledger.core.coverage import Coverage
from gristmill.ledger.core.effects import (
    Acknowledge,
    AddContribution,
    AddEntry,
    AddTransfer,
    AnyEffect,
    CloseHold,
    Kind,
    OpenHold,
    RaiseAlarm,
)
from gristmill.ledger.core.events import (
    CreditsFunded,
    Event,
    OutboxReceived,
    SilenceEnded,
    TransfersAsked,
)
from gristmill.ledger.core.ids import (
    NODES_LEG,
    TOLLS_LEG,
    named_id,
    outbox_id,
    outbox_prefix,
)
from gristmill.ledger.core.intents import on_intent_event
from gristmill.ledger.core.keys import on_key
from gristmill.ledger.core.operators import on_credits_funded, on_transfers_asked
from gristmill.ledger.core.state import AMOUNT_MAX, ESCROW, TOLL, Hold, LedgerState
from gristmill.wire.ledger import Contribution, Key, Release, Verdict
from gristmill.wire.ledger import Hold as HoldEntry
from gristmill.wire.limits import NAME_CHARS_MAX
from gristmill.wire.spec import toll_of
from gristmill.wire.units import format_credits

#: what the books call an entry of this kind
KIND_OF_ENTRY = {"Hold": 1, "Release": 2, "Contribution": 3, "Key": 4}
REF_CHARS_MAX = NAME_CHARS_MAX + 24
ENDED_MS_MAX = 253_402_300_799_999  #: the last moment that has a day to be billed on
_INT_MAX = (1 << 62) - 1
_NUMBERS = (
    "first", "count", "attempt", "replica", "wall_us", "cpu_us", "peak_kib", "ended_ms",
)  # fmt: skip
_CONTRIBUTION = KIND_OF_ENTRY["Contribution"]
_SIGNATURE_SIZES = (0, 64)
_HASH_SIZES = (0, 32)
_YES = ("", "")
_POST = Kind.POST  # an enum's attributes are not cheap
_encode = msgspec.msgpack.Encoder().encode
_astuple = msgspec.structs.astuple
_sha256 = hashlib.sha256
Refusal = tuple[str, str]  #: (code, message); both empty for yes


def step(state: LedgerState, event: Event, now_ms: int) -> list[AnyEffect]:
    """Apply one event; the effects belong in one transaction, answers after its commit."""
    effects: list[AnyEffect] = []
    match event:
        case OutboxReceived():
            on_outbox_received(state, event, now_ms, effects)
        case CreditsFunded():
            on_credits_funded(state, event, now_ms, effects)
        case TransfersAsked():
            on_transfers_asked(state, event, now_ms, effects)
        case SilenceEnded():
            on_silence_ended(state, event, now_ms, effects)
        case _ if isinstance(event, ChainEvent):
            on_chain_event(state, event, now_ms, effects)
        case _:
            on_intent_event(state, event, now_ms, effects)
    return effects


def digest_of_entry(entry: HoldEntry | Release | Contribution | Key) -> bytes:
    """32 bytes that tell an entry's content from another.

    Trailing fields at their default are left out, so that a release which adds fields knows the
    entries of the one before.
    """
    return _digest(entry, _astuple(entry))


def _digest(entry: HoldEntry | Release | Contribution | Key, values: tuple[Any, ...]) -> bytes:
    defaults = entry.__struct_defaults__
    if defaults and values[-1] == defaults[-1]:
        size, spare = len(values), len(defaults)
        while spare and values[size - 1] == defaults[spare - 1]:
            size, spare = size - 1, spare - 1
        values = values[:size]
    return _sha256(_encode((type(entry).__name__, *values))).digest()


# ---------------------------------------------------------------- the outbox


def on_outbox_received(
    state: LedgerState, event: OutboxReceived, now_ms: int, effects: list[AnyEffect]
) -> None:
    """Entries in order: new ones are applied, repeats answered again, a gap is not jumped."""
    for hold in event.recalled:
        state.holds.setdefault(hold.ref, hold)
    applied = state.applied.get(event.broker, 0)
    verdicts: list[Verdict] = []
    if event.first < 1 or not is_name(event.broker):
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
                kind = KIND_OF_ENTRY[type(entry).__name__]
                effects.append(AddEntry(event.broker, sequence, kind, digest, code, message))
                applied = sequence
            if code or isinstance(entry, HoldEntry):
                ref = entry.name if isinstance(entry, Key) else entry.ref
                verdicts.append(Verdict(sequence, ref, code, message))
            at += 1
        state.applied[event.broker] = applied
        state.heard[event.broker] = now_ms
    effects.append(Acknowledge(event.broker, applied, verdicts))


def _repeat(
    event: OutboxReceived,
    sequence: int,
    entry: HoldEntry | Release | Contribution | Key,
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
    entry: HoldEntry | Release | Key,
    now_ms: int,
    effects: list[AnyEffect],
) -> Refusal:
    if isinstance(entry, HoldEntry):
        refusal = _hold(state, broker, sequence, entry, now_ms, effects)
    elif isinstance(entry, Key):
        refusal = on_key(state, broker, entry, effects)
    else:
        refusal = _release(state, broker, sequence, entry, now_ms, effects)
    return _alarmed(broker, sequence, refusal, effects)


def _alarmed(broker: str, sequence: int, refusal: Refusal, effects: list[AnyEffect]) -> Refusal:
    """The refusal in the words of its verdict; an alarm unless a tenant has too little, only."""
    code, message = refusal
    if code and code != "INSUFFICIENT_CREDITS":
        message = f"entry {sequence} of {broker}: {message}"
        effects.append(RaiseAlarm(broker, sequence, code, message))
    return code, message


def _check_ref(broker: str, ref: str) -> Refusal:
    if len(ref) > REF_CHARS_MAX or "\0" in ref:
        return "MALFORMED", (
            f"a ref of {len(ref)} characters; at most {REF_CHARS_MAX} and no NUL, which not every "
            "database keeps"
        )
    if ref.rpartition("/")[0] != broker:
        return "FORBIDDEN", f"the hold {ref!r} is not one of this broker's (BROKER/JOB)"
    return _YES


# ---------------------------------------------------------------- hold, release


def _hold(
    state: LedgerState,
    broker: str,
    sequence: int,
    entry: HoldEntry,
    now_ms: int,
    effects: list[AnyEffect],
) -> Refusal:
    refusal = _check_ref(broker, entry.ref)
    if refusal[0]:
        return refusal
    if not 0 <= entry.amount_ucredits <= AMOUNT_MAX:
        return "MALFORMED", f"a cap of {entry.amount_ucredits}; it must be 0 to {AMOUNT_MAX}"
    if not is_name(entry.tenant):
        return "MALFORMED", f"a tenant's name of {len(entry.tenant)} characters, or with a NUL"
    before = state.holds.get(entry.ref)
    if before is not None:
        asked = (entry.tenant, entry.amount_ucredits, entry.rental)
        if (before.tenant, before.amount, before.rental) == asked and not before.closed_ms:
            return _YES
        return "LEDGER_CONFLICT", (
            f"the hold {entry.ref} is there already: {format_credits(before.amount)} credits of "
            f"{before.tenant}, {'released' if before.closed_ms else 'open'}"
        )
    if entry.rental and entry.rental not in state.rentals.get(entry.tenant, {}):
        return "UNKNOWN_RENTAL", f"{entry.tenant} has no rental {entry.rental:.64}"
    hold = Hold(0, entry.ref, entry.tenant, entry.amount_ucredits, entry.rental)
    payer = account_of(state, hold.payer, effects)
    if entry.amount_ucredits > payer.available:
        whose = f"rental {entry.rental:.16}... of" if entry.rental else "tenant"
        return "INSUFFICIENT_CREDITS", (
            f"the cap is {format_credits(entry.amount_ucredits)} credits; {whose} {entry.tenant} "
            f"has {format_credits(payer.available)} available "
            f"({format_credits(payer.posted)} less {format_credits(payer.debits_pending)} held "
            "by unfinished jobs)"
        )
    escrow = account_of(state, ESCROW, effects)
    id_ = outbox_id(outbox_prefix(broker), sequence, 0)
    hold.id = transfer(
        state, id_, Kind.PENDING, payer, escrow, entry.amount_ucredits, 0, now_ms, effects
    )
    state.holds[entry.ref] = hold
    effects.append(OpenHold(hold))
    return _YES


def _release(
    state: LedgerState,
    broker: str,
    sequence: int,
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
    id_ = outbox_id(outbox_prefix(broker), sequence, 0)
    _close(state, hold, id_, Kind.VOID, now_ms, effects)
    return _YES


def _close(
    state: LedgerState,
    hold: Hold,
    id_: bytes,
    kind: Kind,
    now_ms: int,
    effects: list[AnyEffect],
) -> None:
    """Give what is left of a hold back to its payer."""
    payer = account_of(state, hold.payer, effects)
    escrow = account_of(state, ESCROW, effects)
    transfer(state, id_, kind, payer, escrow, hold.left, hold.id, now_ms, effects)
    hold.closed_ms = now_ms
    hold.billed = {}
    effects.append(CloseHold(hold))


def on_silence_ended(
    state: LedgerState, event: SilenceEnded, now_ms: int, effects: list[AnyEffect]
) -> None:
    """What these brokers held goes back; should one return, its bills are refused, aloud."""
    silent = set(event.brokers)
    for hold in list(state.holds.values()):
        broker = hold.ref.rpartition("/")[0]
        if broker in silent and not hold.closed_ms:
            message = (
                f"the hold {hold.ref} expired: its broker has not been heard since "
                f"{state.heard.get(broker, 0)}; {format_credits(hold.left)} credits go back to "
                f"{hold.tenant}"
            )
            effects.append(RaiseAlarm(broker, 0, "EXPIRED", message))
            id_ = named_id("expire", hold.ref)
            _close(state, hold, id_, Kind.EXPIRE, now_ms, effects)


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
    prefix = outbox_prefix(broker)
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
                refusal = (
                    "LEDGER_CONFLICT",
                    (
                        f"subtasks {first} to {first + count - 1} of {ref}, attempt {attempt}: "
                        f"{overlap[0]} to {overlap[1] - 1} are billed already"
                    ),
                )
        if hold is None or refusal[0]:
            refusal = _alarmed(broker, sequence, refusal, effects)
            digest = _digest(entry, values)
            add(AddEntry(broker, sequence, _CONTRIBUTION, digest, *refusal))
            verdicts.append(Verdict(sequence, ref, *refusal))
            continue
        if node_name != node:
            node, node_account = node_name, f"node:{node_name}"
        linked = (
            outbox_id(prefix, sequence, NODES_LEG),
            outbox_id(prefix, sequence, TOLLS_LEG),
        )
        paid, kept = _share_out(state, linked, hold, node_account, amount, toll, now_ms, effects)
        hold.spent += amount
        hold.subtasks += subtasks
        hold.failed += failed
        hold.cpu_us += cpu_us
        hold.wall_us += wall_us
        hold.toll += toll
        add(AddContribution(hold, sequence, entry, paid, kept))
        add(AddEntry(broker, sequence, _CONTRIBUTION, _digest(entry, values), "", ""))
    return at


def _share_out(
    state: LedgerState,
    linked: tuple[bytes, bytes],
    hold: Hold,
    node: str,
    amount: int,
    toll: int,
    now_ms: int,
    effects: list[AnyEffect],
) -> tuple[int, int]:
    """Post ``amount`` out of what ``hold`` reserves, to the account ``node`` and to the toll.

    ``linked``: the ids of both. Gives their numbers, 0 for a share of nothing.
    """
    accounts, number = state.accounts, state.transfers
    payer = accounts[hold.payer]
    payer.debits_pending -= amount
    accounts[ESCROW].credits_pending -= amount
    payer.debits += amount
    paid = kept = 0
    if share := amount - toll:
        to = accounts.get(node) or account_of(state, node, effects)
        to.credits += share
        paid = number = number + 1
        effects.append(AddTransfer(paid, linked[0], _POST, payer.id, to.id, share, hold.id, now_ms))
    if toll:
        to = accounts.get(TOLL) or account_of(state, TOLL, effects)
        to.credits += toll
        kept = number = number + 1
        effects.append(AddTransfer(kept, linked[1], _POST, payer.id, to.id, toll, hold.id, now_ms))
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
        metering, _, amount, toll, ended_ms, replica, signature, *receipt,
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
    if not is_name(node) or len(metering) > NAME_CHARS_MAX or "\0" in metering:
        return f"a node's name of {len(node)} characters, or with a NUL"
    if not 0 <= lease_id < 1 << 64 or len(signature) not in _SIGNATURE_SIZES:
        return f"lease {lease_id} with a signature of {len(signature)} bytes"
    return _wrong_receipt(receipt) if any(receipt) else ""


def _wrong_receipt(fields: list[Any]) -> str:
    """What is wrong with what the receipt adds."""
    (
        work, outcome, wall_us, cpu_us, cpu_second, subtask, gib_second, memory, node_class,
        countersignature,
    ) = fields  # fmt: skip
    if len(work) not in _HASH_SIZES or len(outcome) not in _HASH_SIZES:
        return f"hashes of {len(work)} and {len(outcome)} bytes; each must have 32"
    numbers = (wall_us, cpu_us, cpu_second, subtask, gib_second, memory)
    if not all(0 <= number <= _INT_MAX for number in numbers):
        return f"readings, rates and memory {numbers}; each must be 0 to {_INT_MAX}"
    if len(node_class) > NAME_CHARS_MAX or "\0" in node_class:
        return f"a node's class of {len(node_class)} characters, or with a NUL"
    if len(countersignature) not in _SIGNATURE_SIZES:
        return f"a countersignature of {len(countersignature)} bytes"
    return ""
