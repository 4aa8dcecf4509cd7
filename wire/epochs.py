"""What a ledger signs: the head of each closed epoch, and which key speaks for whom since when.

Signed bytes: a context, then MessagePack of the fields in their order (docs/receipts.md).
"""

import hashlib

import msgspec
from nacl.signing import SigningKey

from gristmill.wire.ledger import Contribution

EPOCH_CONTEXT = b"gristmill-epoch-1\0"
KEY_CONTEXT = b"gristmill-key-1\0"
_encode = msgspec.msgpack.Encoder().encode


class EpochHead(msgspec.Struct, array_like=True, frozen=True):
    """One closed epoch: the root over its receipts, and how far the books had come.

    ``previous``: sha-256 of the head before with its context, 32 zeros for the first.
    ``transfer_chain``: of the last of so many transfers. ``ranges``: ``digest_of_ranges`` of the
    entries of each broker's outbox that it is about.
    """

    number: int
    closed_ms: int
    receipts: int
    root: bytes
    previous: bytes
    transfers: int
    transfer_chain: bytes
    ranges: bytes


class Range(msgspec.Struct, array_like=True, frozen=True):
    """Entries of a broker's outbox that an epoch is about; ``chain``: of the last of them."""

    broker: str
    first: int
    last: int
    chain: bytes


class KeyStatement(msgspec.Struct, array_like=True, frozen=True):
    """From ``from_ms`` on ``public`` (hex, Ed25519) speaks for ``name``; the ledger's word."""

    kind: str
    name: str
    public: str
    from_ms: int


class SignedHead(msgspec.Struct, array_like=True, frozen=True):
    """An epoch's head with the ledger's signature."""

    head: EpochHead
    signature: bytes


class SignedKey(msgspec.Struct, array_like=True, frozen=True):
    """A key with the ledger's signature; the ledger's own is signed by itself."""

    statement: KeyStatement
    signature: bytes


class ReceiptRow(msgspec.Struct, array_like=True, frozen=True):
    """A contribution, and where it is in the tree of its epoch.

    ``epoch`` is 0 while that is open: then there is no proof yet. ``sequence``: its number in the
    broker's outbox.
    """

    sequence: int
    contribution: Contribution
    epoch: int
    place: int
    proof: list[bytes]


class ReceiptsPage(msgspec.Struct, array_like=True, frozen=True):
    """Receipts of a job, with what proves them.

    ``after``: where the next page begins, 0 when this is the last one. ``epoch_ms``: an open epoch
    is closed within this time.
    """

    receipts: list[ReceiptRow]
    heads: list[SignedHead]
    keys: list[SignedKey]
    after: int
    epoch_ms: int


def signed_bytes(value: EpochHead | KeyStatement) -> bytes:
    """What is signed, after its context."""
    return _encode(value)


def sign_head(head: EpochHead, key: SigningKey) -> bytes:
    """64 bytes of Ed25519 signature by the ledger's key."""
    return key.sign(EPOCH_CONTEXT + _encode(head)).signature


def digest_of_head(head: EpochHead) -> bytes:
    """``previous`` of the next head."""
    return hashlib.sha256(EPOCH_CONTEXT + _encode(head)).digest()


def digest_of_ranges(ranges: list[Range]) -> bytes:
    """``ranges`` of a head: sha-256 of their MessagePack, in the order of the tree's leaves."""
    return hashlib.sha256(_encode(ranges)).digest()


def sign_key(statement: KeyStatement, key: SigningKey) -> bytes:
    """64 bytes of Ed25519 signature by the ledger's key."""
    return key.sign(KEY_CONTEXT + _encode(statement)).signature
