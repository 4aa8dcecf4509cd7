"""Rentals and payouts as the core sees them: records, what happens to them, what is to be done."""

import enum

import msgspec

from gristmill.wire.chain import Agreement, Payee


class Move(enum.IntEnum):
    """Why a transfer mirrors the chain; the numbers are on disk."""

    LOCKED = 1  #: world -> rental
    RETURNED = 2  #: rental -> world
    EARNED = 3  #: node -> pool
    CLAIMED = 4  #: pool -> world


class Rental(msgspec.Struct):
    """An escrow, as it was stated last: a row of the table of the same name.

    ``short``: of ``returned``, what its account did not have. ``is_ending``: no new job takes of
    it.
    """

    id: bytes
    spec: bytes
    tenant: str
    locked: int = 0
    paid: int = 0
    returned: int = 0
    short: int = 0
    is_ending: bool = False
    is_closed: bool = False
    block: int = 0


class PayoutRow(msgspec.Struct):
    """A payout of a pool; the fields from ``root`` on are set once, when the root stands."""

    pool: str
    number: int
    leaves: int
    total: int
    root: bytes = b""
    list_digest: bytes = b""
    transaction: bytes = b""
    block: int = 0


# ---------------------------------------------------------------- events


class RentalAgreed(msgspec.Struct, frozen=True):
    """A tenant is about to lock. ``is_ours``: it names this ledger; ``is_known``: said before."""

    agreement: Agreement
    spec: bytes
    is_ours: bool
    is_known: bool


class PayeeStated(msgspec.Struct, frozen=True):
    """Where a node wants to be paid; ``is_signed`` by it. ``before``: what it said last."""

    payee: Payee
    signature: bytes
    is_signed: bool
    before: Payee | None


class RentalStated(msgspec.Struct, frozen=True):
    """What the chain has of a rental; ``before``: what the books have of it.

    ``tenant``: of the agreement with this spec, empty for none.
    """

    id: bytes
    spec: bytes
    locked: int
    paid: int
    returned: int
    is_closed: bool
    block: int
    tenant: str
    before: Rental | None


class RentalEnded(msgspec.Struct, frozen=True):
    """Its tenant wants no more of it; ``spent``: by its jobs so far."""

    id: bytes
    tenant: str
    before: Rental | None
    spent: int


class PayoutsAsked(msgspec.Struct, frozen=True):
    """Make the pool's next payout.

    ``last``: the one before; ``payees``: (node, address) in the order of nodes; ``sums``: what
    addresses were paid out by ``last``.
    """

    pool: str
    number: int
    funds: int
    last: PayoutRow | None
    payees: list[tuple[str, bytes]]
    sums: dict[bytes, int]


class RootStated(msgspec.Struct, frozen=True):
    """The root of a payout stands; ``payout``: what the books have of it."""

    pool: str
    number: int
    root: bytes
    list_digest: bytes
    transaction: bytes
    block: int
    payout: PayoutRow | None


class ClaimsStated(msgspec.Struct, frozen=True):
    """So much was claimed from a pool by now; ``before``: of which the books know."""

    pool: str
    claimed: int
    block: int
    before: int


ChainEvent = (
    RentalAgreed
    | PayeeStated
    | RentalStated
    | RentalEnded
    | PayoutsAsked
    | RootStated
    | ClaimsStated
)

# ---------------------------------------------------------------- effects


class AddAgreement(msgspec.Struct, frozen=True):
    """A row for an agreement."""

    spec: bytes
    agreement: Agreement
    at_ms: int


class AddPayee(msgspec.Struct, frozen=True):
    """A row for a node's address."""

    payee: Payee
    signature: bytes


class SetRental(msgspec.Struct, frozen=True):
    """Write a rental; ``is_new``: for the first time."""

    rental: Rental
    is_new: bool


class AddMove(msgspec.Struct, frozen=True):
    """A row that says what a transfer mirrors.

    ``subject``: hex of a rental's id or of an address, or the pool; ``number``: of the block, or of
    the payout for ``EARNED``.
    """

    transfer: int
    move: Move
    subject: str
    pool: str
    number: int
    amount: int


class SetEarning(msgspec.Struct, frozen=True):
    """An address's leaf from now on."""

    pool: str
    address: bytes
    cumulative: int
    is_new: bool


class AddPayout(msgspec.Struct, frozen=True):
    """A row for a payout without a root."""

    payout: PayoutRow
    at_ms: int


class SetPayout(msgspec.Struct, frozen=True):
    """Its root stands: write it."""

    payout: PayoutRow


class AnswerChain(msgspec.Struct, frozen=True):
    """After the commit, tell whoever asked; ``code`` empty for yes, with ``body``."""

    code: str
    message: str
    body: Agreement | int | PayoutRow | None = None


ChainEffect = (
    AddAgreement | AddPayee | SetRental | AddMove | SetEarning | AddPayout | SetPayout | AnswerChain
)
