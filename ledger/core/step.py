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
_YES = ("", "")
_PENDING, _POST, _VOID = Kind.PENDING, Kind.POST, Kind.VOID  # an enum's attributes are not cheap
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

    Trailing fields at their default are left out, so that a release which adds a field knows the
    entries of the one before.
    """
    values = _astuple(entry)
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
        for sequence, entry in enumerate(event.entries, event.first):
            digest = digest_of_entry(entry)
            if sequence <= applied:
                code, message = _repeat(event, sequence, entry, digest, effects)
            else:
                code, message = _new(state, event.broker, sequence, entry, now_ms, effects)
                effects.append(AddEntry(event.broker, sequence, digest, code, message))
                applied = sequence
            if code or isinstance(entry, HoldEntry):
                verdicts.append(Verdict(sequence, entry.ref, code, message))
        state.applied[event.broker] = applied
    effects.append(Acknowledge(event.broker, applied, verdicts))


def _repeat(
    event: OutboxReceived,
    sequence: int,
    entry: HoldEntry | Release | Contribution,
    digest: bytes,
    effects: list[AnyEffect],
) -> Refusal:
    before = event.applied[sequence]
    if before.digest == digest:
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
    entry: HoldEntry | Release | Contribution,
    now_ms: int,
    effects: list[AnyEffect],
) -> Refusal:
    if isinstance(entry, Contribution):
        code, message = _contribute(state, broker, sequence, entry, now_ms, effects)
    elif isinstance(entry, HoldEntry):
        code, message = _hold(state, broker, entry, now_ms, effects)
    else:
        code, message = _release(state, broker, entry, now_ms, effects)
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
    broker: str,
    sequence: int,
    entry: Contribution,
    now_ms: int,
    effects: list[AnyEffect],
) -> Refusal:
    refusal = _check_ref(broker, entry.ref)
    if refusal[0]:
        return refusal
    wrong = _wrong_field(entry)
    if wrong:
        return "MALFORMED", wrong
    hold = state.holds.get(entry.ref)
    refusal = _against_hold(hold, entry)
    if refusal[0]:
        return refusal
    assert hold is not None
    end = entry.first + entry.count
    billed = hold.billed.get((entry.replica, entry.attempt))
    if billed is None:
        billed = hold.billed[entry.replica, entry.attempt] = Coverage()
    overlap = billed.take(entry.first, end)
    if overlap is not None:
        return "LEDGER_CONFLICT", (
            f"subtasks {entry.first} to {end - 1} of {entry.ref}, attempt {entry.attempt}: "
            f"{overlap[0]} to {overlap[1] - 1} are billed already"
        )
    share = entry.amount_ucredits - entry.toll_ucredits
    tenant = state.accounts[f"tenant:{hold.tenant}"]
    node_transfer = toll_transfer = 0
    if share:
        node = _account(state, f"node:{entry.node}", effects)
        node_transfer = _transfer(state, _POST, tenant, node, share, hold.id, now_ms, effects)
    if entry.toll_ucredits:
        toll = _account(state, TOLL, effects)
        toll_transfer = _transfer(
            state, _POST, tenant, toll, entry.toll_ucredits, hold.id, now_ms, effects
        )
    hold.spent += entry.amount_ucredits
    hold.subtasks += entry.subtasks
    hold.failed += entry.failed
    hold.cpu_us += entry.cpu_us
    hold.wall_us += entry.wall_us
    hold.toll += entry.toll_ucredits
    effects.append(AddContribution(hold, sequence, entry, node_transfer, toll_transfer))
    return _YES


def _against_hold(hold: Hold | None, entry: Contribution) -> Refusal:
    if hold is None:
        return "LEDGER_CONFLICT", f"there is no hold {entry.ref}"
    if hold.closed_ms:
        return "LEDGER_CONFLICT", f"the hold {entry.ref} was released; nothing is billed after that"
    if hold.tenant != entry.tenant:
        return "LEDGER_CONFLICT", (
            f"the hold {entry.ref} is of tenant {hold.tenant}, the contribution of {entry.tenant}"
        )
    if entry.amount_ucredits > hold.left:
        return "LEDGER_CONFLICT", (
            f"{format_credits(entry.amount_ucredits)} credits for subtasks from {entry.first} of "
            f"{entry.ref}; {format_credits(hold.left)} are left of its "
            f"{format_credits(hold.amount)}"
        )
    if hold.wall_us + entry.wall_us > _INT_MAX or hold.cpu_us + entry.cpu_us > _INT_MAX:
        return "MALFORMED", f"the times of {entry.ref} leave 62 bits"
    return _YES


def _wrong_field(entry: Contribution) -> str:
    """What is wrong with a contribution in itself, or nothing."""
    numbers = (
        entry.first, entry.count, entry.attempt, entry.replica, entry.wall_us, entry.cpu_us,
        entry.peak_kib, entry.ended_ms,
    )  # fmt: skip
    if min(numbers) < 0 or max(numbers) > _INT_MAX:
        for name, number in zip(_NUMBERS, numbers, strict=True):
            if not 0 <= number <= _INT_MAX:
                return f"{name} is {number}; it must be 0 to {_INT_MAX}"
    if entry.ended_ms > ENDED_MS_MAX:
        return f"ended_ms is {entry.ended_ms}, which is after the year 9999"
    if entry.count < 1 or entry.first + entry.count > _INT_MAX:
        return f"a range of {entry.count} subtasks from {entry.first}"
    if not (0 <= entry.subtasks <= entry.count and 0 <= entry.failed <= entry.count):
        return f"{entry.subtasks} billed and {entry.failed} failed of {entry.count} subtasks"
    if not 0 <= entry.amount_ucredits <= AMOUNT_MAX:
        return f"an amount of {entry.amount_ucredits}; it must be 0 to {AMOUNT_MAX}"
    if not 0 <= entry.toll_ucredits <= toll_of(entry.amount_ucredits):
        # Gathered results have a toll rounded down each: the sum may be less, never more.
        return (
            f"a toll of {entry.toll_ucredits} of {entry.amount_ucredits}; the most is "
            f"{toll_of(entry.amount_ucredits)}"
        )
    if not 0 < len(entry.node) <= NAME_CHARS_MAX or len(entry.metering) > NAME_CHARS_MAX:
        return f"a node's name of {len(entry.node)} characters"
    if not 0 <= entry.lease_id < 1 << 64 or len(entry.signature) not in (0, 64):
        return f"lease {entry.lease_id} with a signature of {len(entry.signature)} bytes"
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
    """Move the balances by one transfer and write it; gives its id."""
    if kind is _PENDING:
        debit.debits_pending += amount
        credit.credits_pending += amount
    else:
        if kind is _POST or kind is _VOID:
            debit.debits_pending -= amount
            state.accounts[ESCROW].credits_pending -= amount
        if kind is not _VOID:
            debit.debits += amount
            credit.credits += amount
    state.transfers += 1
    effects.append(AddTransfer(state.transfers, kind, debit.id, credit.id, amount, pending, now_ms))
    return state.transfers
