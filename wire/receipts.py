"""Receipts: what a worker signs for each accepted result, and its broker for each contribution.

So that a contribution can be proved without us (docs/receipts.md has it byte for byte). Signed
bytes: a context, then MessagePack of the fields in their order. One signature of each a result; the
ledger puts the contribution's digest into the tree of its epoch (wire/merkle.py, wire/epochs.py).
"""

import hashlib
import struct
from collections.abc import Sequence

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from gristmill.wire.ledger import Contribution
from gristmill.wire.spec import JobSpec, Tariff
from gristmill.wire.tariffs import STANDARD
from gristmill.wire.worker import ResultHead

_LENGTH = struct.Struct("<Q")
RECEIPT_CONTEXT = b"gristmill-receipt-2\0"
CONTRIBUTION_CONTEXT = b"gristmill-contribution-1\0"
_encode = msgspec.msgpack.Encoder().encode


class Receipt(msgspec.Struct, array_like=True, frozen=True):
    """What was done, on which right, with which result, at which reading and price.

    ``work``: sha-256 of what was run: the function's bytes, or the MessagePack of the command.
    ``outcome_digest``: sha-256 over the result's four frames, each preceded by its length as u64
    little-endian. ``node_class``: whose tariff the three rates are. ``memory_bytes``: what the job
    reserves.
    """

    broker: str
    job: int
    lease_id: int
    first: int
    count: int
    attempt: int
    work: bytes
    outcome_digest: bytes
    wall_us: int
    cpu_us: int
    peak_kib: int
    metering: str
    node_class: str
    cpu_second_ucredits: int
    subtask_ucredits: int
    gib_second_ucredits: int
    memory_bytes: int


def work_of(spec: JobSpec) -> bytes:
    """32 bytes that name what a job runs: its function's digest, or that of its command."""
    if spec.kind == "function":
        return bytes.fromhex(spec.function)
    return hashlib.sha256(_encode(spec.command)).digest()


def outcome_digest_of(frames: Sequence[bytes]) -> bytes:
    """32 bytes of a result: its four frames, each after its length."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(_LENGTH.pack(len(frame)))
        digest.update(frame)
    return digest.digest()


def receipt_of(
    broker: str,
    head: ResultHead,
    frames: Sequence[bytes],
    attempt: int,
    spec: JobSpec,
    tariff: Tariff,
    node_class: str = STANDARD,
) -> Receipt:
    """The receipt of a result, which its worker signs and its broker checks."""
    return Receipt(
        broker=broker,
        job=head.job,
        lease_id=head.lease_id,
        first=head.first,
        count=head.count,
        attempt=attempt,
        work=work_of(spec),
        outcome_digest=outcome_digest_of(frames),
        wall_us=head.wall_us,
        cpu_us=head.cpu_us,
        peak_kib=head.peak_kib,
        metering=head.metering,
        node_class=node_class,
        cpu_second_ucredits=tariff.cpu_second_ucredits,
        subtask_ucredits=tariff.subtask_ucredits,
        gib_second_ucredits=tariff.gib_second_ucredits,
        memory_bytes=spec.limits.memory_bytes,
    )


def receipt_in(entry: Contribution) -> Receipt:
    """The receipt that ``entry.signature`` is of: a contribution has all of its fields."""
    broker, _, job = entry.ref.rpartition("/")
    return Receipt(
        broker=broker,
        job=int(job) if job.isdecimal() else -1,
        lease_id=entry.lease_id,
        first=entry.first,
        count=entry.count,
        attempt=entry.attempt,
        work=entry.work,
        outcome_digest=entry.outcome_digest,
        wall_us=entry.signed_wall_us,
        cpu_us=entry.signed_cpu_us,
        peak_kib=entry.peak_kib,
        metering=entry.metering,
        node_class=entry.node_class,
        cpu_second_ucredits=entry.cpu_second_ucredits,
        subtask_ucredits=entry.subtask_ucredits,
        gib_second_ucredits=entry.gib_second_ucredits,
        memory_bytes=entry.memory_bytes,
    )


def sign_receipt(receipt: Receipt, key: SigningKey) -> bytes:
    """64 bytes of Ed25519 signature by the worker's key."""
    return key.sign(RECEIPT_CONTEXT + _encode(receipt)).signature


def is_signed(receipt: Receipt, signature: bytes, node: str) -> bool:
    """Whether ``node`` (hex of its public key) signed this very receipt."""
    return is_by(node, RECEIPT_CONTEXT + _encode(receipt), signature)


def countersigned_bytes(entry: Contribution) -> bytes:
    """What a broker signs after the context: the contribution with an empty countersignature."""
    if entry.countersignature:
        entry = msgspec.structs.replace(entry, countersignature=b"")
    return _encode(entry)


def countersign(entry: Contribution, key: SigningKey) -> Contribution:
    """The contribution with the broker's signature over all the rest of it."""
    signature = key.sign(CONTRIBUTION_CONTEXT + countersigned_bytes(entry)).signature
    return msgspec.structs.replace(entry, countersignature=signature)


def is_countersigned(entry: Contribution, broker: str) -> bool:
    """Whether ``broker`` (hex of its public key) signed this very contribution."""
    signed = CONTRIBUTION_CONTEXT + countersigned_bytes(entry)
    return is_by(broker, signed, entry.countersignature)


def is_by(public: str, message: bytes, signature: bytes) -> bool:
    """Whether the holder of this key (hex, Ed25519) signed these bytes."""
    try:
        VerifyKey(bytes.fromhex(public)).verify(message, signature)
    except (BadSignatureError, ValueError, TypeError):
        return False
    return True


def content_digest(entry: Contribution) -> bytes:
    """32 bytes by which the ledger knows the contribution: what the tree's leaf is made of."""
    values = msgspec.structs.astuple(entry)
    assert entry.countersignature, "trailing defaults are left out; a receipt has none"
    return hashlib.sha256(_encode(("Contribution", *values))).digest()
