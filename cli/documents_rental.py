"""What ``gristmill rental`` and ``gristmill claim`` print with ``--json``; see ``documents.py``.

Addresses and hashes are text: addresses with 0x and their checksum, a rental's id without 0x.
"""

from gristmill.cli.document import Document


class Rental(Document, frozen=True, tag="gristmill/rental/1"):
    """A rental; amounts are micro-credits, times seconds of Unix time.

    ``available_ucredits``: what jobs can be held from at the grid; -1 while it does not know it.
    ``state_id``: over all that the contract has of it. ``dispute_ends_s``: 0 for no dispute.
    """

    rental: str
    state: str
    client: str
    provider: str
    payee: str
    deadline_s: int
    locked_ucredits: int
    paid_ucredits: int
    available_ucredits: int
    state_id: str
    dispute_ends_s: int


class RentalVoucher(Document, frozen=True, tag="gristmill/rental-voucher/1"):
    """A voucher that the settlement has. ``redeemed_ucredits``: of it on the chain by now."""

    rental: str
    cumulative_ucredits: int
    redeemed_ucredits: int
    receipts: int
    receipts_root: str
    is_last: bool


class RentalRefund(Document, frozen=True, tag="gristmill/rental-refund/1"):
    """What the contract sent its client after a refund, earlier sums that it owed included."""

    rental: str
    client: str
    sent_ucredits: int


class Claim(Document, frozen=True, tag="gristmill/claim/1"):
    """What an address earned under root ``payout``, and what of it was claimed.

    ``transaction``: that claimed the rest; empty for none.
    """

    address: str
    payout: int
    earned_ucredits: int
    claimed_ucredits: int
    claimable_ucredits: int
    transaction: str


class Payee(Document, frozen=True, tag="gristmill/payee/1"):
    """Where a node is paid from now on."""

    node: str
    pool: str
    address: str


DOCUMENTS: tuple[type[Document], ...] = (Rental, RentalVoucher, RentalRefund, Claim, Payee)
