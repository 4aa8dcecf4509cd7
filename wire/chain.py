"""The chain in the ledger's dialogue (docs/rfc/0003, section 14): rentals, payouts, claims.

The settlement tells what it sees on the chain, confirmed; the ledger moves the difference to what
its books say. So every message can be said again, and what was missed is made good by the next.
Amounts are micro-credits, which are base units of the token: it has six decimals.
"""

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from gristmill.wire.frames import HeaderDecoder, Integer

if TYPE_CHECKING:  # brings a library that few clients need
    from nacl.signing import SigningKey

ADDRESS_BYTES = 20
HASH_BYTES = 32
_AGREEMENT_CONTEXT = b"gristmill-rental-1\0"
_PAYEE_CONTEXT = b"gristmill-payee-1\0"
_encode = msgspec.msgpack.Encoder().encode


class Message(msgspec.Struct, array_like=True, frozen=True, tag_field="type", gc=False):
    """Base of the messages about the chain in the ledger's dialogue."""


class Agreement(msgspec.Struct, array_like=True, frozen=True):
    """What is rented, by whom, of whom: its digest is the escrow's ``spec``.

    ``grid``: the ledger's public key (hex). ``contract``, ``provider``: addresses, 20 bytes.
    ``number``: makes two rentals of one tenant two.
    """

    grid: str
    tenant: str
    chain_id: int
    contract: bytes
    provider: bytes
    number: int


def spec_of(agreement: Agreement) -> bytes:
    """32 bytes that an escrow has for this agreement: sha-256 of a context and its MessagePack."""
    return hashlib.sha256(_AGREEMENT_CONTEXT + _encode(agreement)).digest()


def pool_of(chain_id: int, address: bytes) -> str:
    """What a pool is called in the books.

    >>> pool_of(1, bytes(20))
    '1/0000000000000000000000000000000000000000'
    """
    return f"{chain_id}/{address.hex()}"


class Payee(msgspec.Struct, array_like=True, frozen=True):
    """The address that a node is paid at out of a pool (``pool_of``), in the node's own words.

    ``node``: its public key (hex), which signs. A later ``from_ms`` takes the place of an earlier.
    """

    node: str
    pool: str
    address: bytes
    from_ms: int


def payee_bytes(payee: Payee) -> bytes:
    """What the node signs."""
    return _PAYEE_CONTEXT + _encode(payee)


def sign_payee(payee: Payee, key: "SigningKey") -> bytes:
    """64 bytes of Ed25519 signature by the node's key."""
    return key.sign(payee_bytes(payee)).signature


class Agree(Message, frozen=True, tag=30):
    """A tenant is going to lock credits for this agreement.

    Answered with the ``Agreement`` as it is kept: an empty ``grid`` becomes this ledger's key.
    """

    request: Integer
    agreement: Agreement


class StatePayee(Message, frozen=True, tag=31):
    """Whoever brings it: a node says where it is paid."""

    request: Integer
    payee: Payee
    signature: bytes


class StateRental(Message, frozen=True, tag=32):
    """What a rental is on the chain, K blocks deep; ``locked``, ``paid``, ``returned`` only grow.

    ``paid``: gross, the toll included. ``spec``: whose agreement it is; one that nobody agreed to
    is ``UNKNOWN_RENTAL``, and its money leaves by the contract's refund. Answered with what the
    rental's account has.
    """

    request: Integer
    id: bytes
    spec: bytes
    locked: Integer
    paid: Integer
    returned: Integer
    is_closed: bool
    block: Integer


class CommitPayouts(Message, frozen=True, tag=33):
    """Make payout ``number`` (1, 2, ...) of a pool: answered with ``Payout``, always the same.

    ``funds``: what all leaves together may be, the pool's balance and what was claimed from it.
    Where nobody has earned anything the answer is the payout before.
    """

    request: Integer
    pool: str
    number: Integer
    funds: Integer


class StateRoot(Message, frozen=True, tag=34):
    """A payout's root stands on the chain, K blocks deep; ``list_digest``: of its list, a blob."""

    request: Integer
    pool: str
    number: Integer
    root: bytes
    list_digest: bytes
    transaction: bytes
    block: Integer


class StateClaims(Message, frozen=True, tag=35):
    """So much has left a pool for payees, K blocks deep; it only grows."""

    request: Integer
    pool: str
    claimed: Integer
    block: Integer


class AskPayout(Message, frozen=True, tag=36):
    """The last payout of a pool: ``Payout``."""

    request: Integer
    pool: str


class AskLeaves(Message, frozen=True, tag=37):
    """Leaves of a payout of a pool behind this address, in order: list[Leaf], empty at the end.

    ``number``: of the payout, 0 for the last one. ``node`` (hex): only the leaf of the address that
    it is paid at.
    """

    request: Integer
    pool: str
    number: Integer = 0
    after: bytes = b""
    node: str = ""


class AskChainBooks(Message, frozen=True, tag=38):
    """What the books have of a chain: ``ChainBooks``."""

    request: Integer
    pool: str


class ShowVoucher(Message, frozen=True, tag=39):
    """A tenant pays so much of its rental, all vouchers before included.

    ``is_last``: the rental was ended (``EndRental``), and what is left may go back at once.
    ``spent``: by its jobs; the ledger's word, which fills it in for the settlement.

    ``signature``: of the contract's EIP-712 ``Voucher``, by the escrow's client. Brought to the
    settlement, which answers with ``Shown`` when it has it on its disk.
    """

    request: Integer
    tenant: str
    rental: bytes
    cumulative: Integer
    receipts_root: bytes
    signature: bytes
    is_last: bool = False
    spent: Integer = 0


class Shown(msgspec.Struct, frozen=True):
    """A voucher is kept. ``cumulative``: of the largest that is; ``redeemed``: on the chain."""

    cumulative: int
    redeemed: int


class VoucherRuling(Message, frozen=True, tag=40):
    """The settlement's answer to the ledger's ``ShowVoucher`` of this request; no code is a yes."""

    request: Integer
    code: str
    message: str
    shown: Shown


class EndRental(Message, frozen=True, tag=41):
    """A tenant: no more jobs of this rental. Answered with what its jobs have spent.

    Refused with ``RENTAL_BUSY`` while a job holds some of it.
    """

    request: Integer
    tenant: str
    rental: bytes


class AskAgreed(Message, frozen=True, tag=42):
    """Which of these specs (at most ``SPECS_MAX``) somebody agreed to: list[bool], as they came."""

    request: Integer
    specs: list[bytes]


Said = EndRental | Agree | StatePayee | StateRental | CommitPayouts | StateRoot | StateClaims
Question = AskPayout | AskLeaves | AskChainBooks | AskAgreed
#: what clients say and ask, through their broker, which fills in who they are
ByClients = (
    EndRental | Agree | StatePayee | ShowVoucher | AskPayout | AskLeaves | AskChainBooks | AskAgreed
)
decode_by_clients: HeaderDecoder[Any] = HeaderDecoder(ByClients)
LEAVES_MAX = 1_000  #: of one answer
SPECS_MAX = 1_000  #: of one question


class Leaf(msgspec.Struct, array_like=True, frozen=True):
    """Everything that an address ever earned, claimed or not: a leaf of the pool's tree."""

    address: bytes
    cumulative: int


class Payout(msgspec.Struct, frozen=True):
    """``leaves`` addresses, whose sums make ``total``; number 0 for none yet.

    ``root``, ``list_digest``, ``transaction`` and ``block`` are empty until the root stands.
    """

    number: int
    leaves: int
    total: int
    root: bytes = b""
    list_digest: bytes = b""
    transaction: bytes = b""
    block: int = 0


class ChainBooks(msgspec.Struct, frozen=True):
    """Sums of the books, to be held against the chain.

    ``locked``, ``paid``, ``returned``: of all rentals, as they were stated. ``short``: what was
    returned on the chain and is missing in the rentals' accounts. ``spent``: of rentals, by jobs.
    ``held``: what rentals' accounts have. ``committed``: in the pool's payouts; ``claimed`` of it.
    """

    rentals: int
    locked: int
    paid: int
    returned: int
    short: int
    spent: int
    held: int
    payouts: int
    committed: int
    claimed: int
