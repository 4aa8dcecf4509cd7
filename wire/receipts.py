"""Receipts: what a worker signs for each accepted result.

So that a contribution can be proved without us.

Signed bytes: context, then MessagePack of the receipt's fields. One signature a result. The
ledger's Merkle tree of
receipts and its proofs come with the ledger's epochs.
"""

import hashlib
import struct
from collections.abc import Sequence

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from gristmill.wire.spec import Tariff
from gristmill.wire.worker import ResultHead

_LENGTH = struct.Struct("<Q")
_CONTEXT = b"gristmill-receipt-1\0"


class Receipt(msgspec.Struct, array_like=True, frozen=True):
    """What was done, on which right, with which result, at which reading.

    ``outcome_digest``: sha-256 over the result's four frames, each preceded by its length as u64
    little-endian.
    """

    broker: str
    job: int
    lease_id: int
    first: int
    count: int
    outcome_digest: bytes
    wall_us: int
    cpu_us: int
    peak_kib: int
    metering: str
    cpu_second_ucredits: int
    subtask_ucredits: int


def receipt_of(broker: str, head: ResultHead, frames: Sequence[bytes], tariff: Tariff) -> Receipt:
    """The receipt of a result, which its worker signs and its broker checks."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(_LENGTH.pack(len(frame)))
        digest.update(frame)
    return Receipt(
        broker=broker,
        job=head.job,
        lease_id=head.lease_id,
        first=head.first,
        count=head.count,
        outcome_digest=digest.digest(),
        wall_us=head.wall_us,
        cpu_us=head.cpu_us,
        peak_kib=head.peak_kib,
        metering=head.metering,
        cpu_second_ucredits=tariff.cpu_second_ucredits,
        subtask_ucredits=tariff.subtask_ucredits,
    )


def sign_receipt(receipt: Receipt, key: SigningKey) -> bytes:
    """64 bytes of Ed25519 signature by the worker's key."""
    return key.sign(_CONTEXT + msgspec.msgpack.encode(receipt)).signature


def is_signed(receipt: Receipt, signature: bytes, node: str) -> bool:
    """Whether ``node`` (hex of its public key) signed this very receipt."""
    try:
        VerifyKey(bytes.fromhex(node)).verify(_CONTEXT + msgspec.msgpack.encode(receipt), signature)
    except (BadSignatureError, ValueError, TypeError):
        return False
    return True
