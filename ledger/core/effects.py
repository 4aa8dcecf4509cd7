"""What the ledger's shell must do, in order, in one transaction: the only outputs of its core.

Changed accounts and holds have no effect of their own: the shell writes, from the state, every
account that an ``AddTransfer`` names (and ``escrow`` with every transfer out of a hold) and every
hold that a contribution or a closing names.
"""

import enum

import msgspec

from gristmill.ledger.core.chain_records import ChainEffect
from gristmill.ledger.core.intent_records import IntentEffect
from gristmill.ledger.core.state import Account, Hold
from gristmill.wire.ledger import Contribution, Verdict


class Kind(enum.IntEnum):
    """What a transfer does; the numbers are on disk."""

    POSTED = 0  #: moves money
    PENDING = 1  #: reserves it: debits and credits pending
    POST = 2  #: moves part of what a pending transfer reserves
    VOID = 3  #: gives back what is left of a pending transfer and ends it; once
    EXPIRE = 4  #: as VOID, because whoever made it fell silent for good


class Effect(msgspec.Struct, frozen=True, gc=False):
    """Base of the effects."""


class OpenAccount(Effect, frozen=True):
    """A row for a new account; its balances follow from the transfers."""

    account: Account


class AddTransfer(Effect, frozen=True):
    """One immutable transfer between account ids; ``pending`` is the number of the hold's or 0.

    ``number``: 1, 2, 3, ... in this ledger; ``id``: 16 bytes, the same wherever and whenever its
    sender asks for it (core/ids.py).
    """

    number: int
    id: bytes
    kind: Kind
    debit: int
    credit: int
    amount: int
    pending: int
    at_ms: int


class OpenHold(Effect, frozen=True):
    """A row for a new hold, after its pending transfer."""

    hold: Hold


class CloseHold(Effect, frozen=True):
    """The hold's rest was voided, or expired."""

    hold: Hold


class AddContribution(Effect, frozen=True):
    """A row with everything about a contribution; its transfers, 0 for a share of nothing."""

    hold: Hold
    sequence: int
    entry: Contribution
    node_transfer: int
    toll_transfer: int


class AddMint(Effect, frozen=True):
    """A row that makes the funding's ``ref`` known; ``transfer``: its number."""

    ref: str
    tenant: str
    amount: int
    transfer: int


class AddKey(Effect, frozen=True):
    """A row that says whose this public key is from then on."""

    kind: str
    name: str
    public: str
    from_ms: int


class AddEntry(Effect, frozen=True):
    """An entry of an outbox is dealt with, whatever its verdict; ``kind``: of ``KIND_OF_ENTRY``."""

    broker: str
    sequence: int
    kind: int
    digest: bytes
    code: str
    message: str


class RaiseAlarm(Effect, frozen=True):
    """Somebody contradicts the books: count it, log it; nothing was changed."""

    broker: str
    sequence: int
    code: str
    message: str


class Acknowledge(Effect, frozen=True):
    """After the commit, tell the broker how far its outbox is applied."""

    broker: str
    sequence: int
    verdicts: list[Verdict]


class AnswerOperator(Effect, frozen=True):
    """After the commit, tell the operator; ``code`` empty for yes (a repeat is a yes)."""

    code: str
    message: str
    is_repeat: bool = False


AnyEffect = (
    OpenAccount
    | AddTransfer
    | OpenHold
    | CloseHold
    | AddContribution
    | AddMint
    | AddKey
    | AddEntry
    | RaiseAlarm
    | Acknowledge
    | AnswerOperator
    | IntentEffect
    | ChainEffect
)
