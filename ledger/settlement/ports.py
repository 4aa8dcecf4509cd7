"""What the settlement asks of others: nodes of the chain, the signer, the ledger's books, a store.

Each has one real part in this room or the next; tests bring a chain of their own where the real
one cannot be made to lie.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from gristmill.ledger.settlement.core.chain_log import Block, Fact
from gristmill.ledger.settlement.core.queue_records import Attempt, Receipt
from gristmill.wire.chain import ChainBooks, Leaf, Payout

SendResult = tuple[
    Literal["accepted", "known", "unknown", "nonce_used", "underpriced", "refused"], str
]


class NodeDownError(Exception):
    """A node does not answer, or with nonsense: nothing is known, ask again later."""


class RangeRefusedError(Exception):
    """A node does not answer for so many blocks at once."""


class RevertedError(Exception):
    """The contract refuses; the text is its reason, decoded."""


class Head(NamedTuple):
    """A node's last block, what gas costs in the next, and its time (seconds of Unix time)."""

    number: int
    hash: bytes
    base_fee_wei: int
    tip_wei: int
    time_s: int = 0


class Node(Protocol):
    """One RPC of the chain. Every method may raise ``NodeDownError``."""

    @property
    def name(self) -> str:
        """For messages; no secret is in it."""
        ...

    def head(self) -> Head:
        """Its last block."""
        ...

    def block(self, number: int) -> Block | None:
        """A block with our contracts' facts, asked for by its own hash; None: it has none."""
        ...

    def facts(self, first: int, last: int) -> list[Fact]:
        """Facts of a range of blocks.

        Raises:
            RangeRefusedError: too many.
        """
        ...

    def receipts(self, hashes: Sequence[bytes]) -> Mapping[bytes, Receipt]:
        """Those of these transactions that are mined, for all that this node knows."""
        ...

    def known(self, hashes: Sequence[bytes]) -> frozenset[bytes]:
        """Those that it has, mined or not."""
        ...

    def nonce(self, block: int | None) -> int:
        """How many transactions our account has sent up to a block; None: the last."""
        ...

    def preflight(self, target: bytes, call: bytes, block: int | None = None) -> int:
        """Gas that a call of ours takes, tried at the head or behind a block.

        Raises:
            RevertedError: it would be refused.
        """
        ...

    def send(self, attempt: Attempt) -> SendResult:
        """Give it a signed transaction; a time-out is ``unknown``, no exception."""
        ...


class Signer(Protocol):
    """Whoever has the account's key: a keystore's file or another process."""

    @property
    def address(self) -> bytes:
        """20 bytes."""
        ...

    def sign(
        self, nonce: int, target: bytes, call: bytes, gas: int, max_fee_wei: int, tip_wei: int
    ) -> tuple[bytes, bytes]:
        """(hash, raw bytes) of an EIP-1559 transaction of our chain.

        Raises:
            NodeDownError: it does not answer now.
        """
        ...


class Stated(NamedTuple):
    """A rental as it is told to the ledger: see wire.chain.StateRental."""

    id: bytes
    spec: bytes
    locked: int
    paid: int
    returned: int
    is_closed: bool
    block: int


class BooksDownError(Exception):
    """The ledger does not answer; what was said is said again."""


class UnknownRentalError(Exception):
    """Nobody agreed to such a rental: its money leaves by the contract's refund."""


class Books(Protocol):
    """The ledger's side. Every method may raise ``BooksDownError`` and is safe to repeat."""

    def state_rental(self, rental: Stated) -> None:
        """The ledger moves the difference between this and its books.

        Raises:
            UnknownRentalError: no such agreement.
        """
        ...

    def commit_payouts(self, number: int, funds: int) -> Payout:
        """A payout, always the same for one number; the one before where nobody has earned."""
        ...

    def last_payout(self) -> Payout:
        """The last that was committed; number 0 for none."""
        ...

    def leaves(self, number: int) -> list[Leaf]:
        """All of a payout, by address."""
        ...

    def state_root(
        self, number: int, root: bytes, list_digest: bytes, transaction: bytes, block: int
    ) -> None:
        """A payout's root is certain."""
        ...

    def state_claims(self, claimed: int, block: int) -> None:
        """So much has left the pool."""
        ...

    def sums(self) -> ChainBooks:
        """What the books have of the chain."""
        ...


class Lists(Protocol):
    """Where a payout's list of leaves is published."""

    def publish(self, body: bytes) -> bytes:
        """Put it there; its digest (32 bytes). The same body again is the same digest.

        Raises:
            BooksDownError: the store does not answer.
        """
        ...
