"""The node's Ed25519 key: made at first start, readable by its owner only; it signs receipts."""

import hashlib
import os
import pathlib
import struct

from nacl.signing import SigningKey

from gristmill.wire.errors import RemoteError
from gristmill.wire.receipts import Receipt, sign_receipt
from gristmill.wire.spec import Tariff
from gristmill.wire.worker import ResultHead

KEY_NAME = "worker.key"
_LENGTH = struct.Struct("<Q")


def load_key(folder: pathlib.Path) -> SigningKey:
    """The key of a state folder, made if there is none (32-byte seed as hex, mode 0600).

    Raises:
        RemoteError: ``UNAUTHORISED`` when others can read it, or it is not a key.
    """
    path = folder / KEY_NAME
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return _make_key(path)
    with os.fdopen(handle, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        text = file.read(1 << 10)
    if mode & 0o077:
        raise RemoteError(
            "UNAUTHORISED",
            f"{path} has mode {mode & 0o777:04o}: others can read the key; it must be 0600",
            f"chmod 600 {path}, or delete it and start again as a new node",
        )
    try:
        return SigningKey(bytes.fromhex(text.decode("ascii").strip()))
    except (ValueError, UnicodeDecodeError):
        raise RemoteError(
            "UNAUTHORISED",
            f"{path} does not hold a key of 64 hex characters",
            f"restore it, or delete {path} and start again as a new node",
        ) from None


def _make_key(path: pathlib.Path) -> SigningKey:
    """Writes beside and links, so that no torn key is ever read."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = SigningKey.generate()
    temporary = path.with_name(f"{KEY_NAME}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(key.encode().hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return load_key(path.parent)
    finally:
        os.unlink(temporary)
    return key


def outcome_digest(frames: tuple[bytes, ...]) -> bytes:
    """What a receipt says of a result: sha-256 over its frames, each preceded by its length."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(_LENGTH.pack(len(frame)))
        digest.update(frame)
    return digest.digest()


def sign_result(
    key: SigningKey, broker: str, head: ResultHead, frames: tuple[bytes, ...], tariff: Tariff
) -> bytes:
    """The signature of a result's receipt: about 30 us."""
    receipt = Receipt(
        broker=broker,
        job=head.job,
        lease_id=head.lease_id,
        first=head.first,
        count=head.count,
        outcome_digest=outcome_digest(frames),
        wall_us=head.wall_us,
        cpu_us=head.cpu_us,
        peak_kib=head.peak_kib,
        metering=head.metering,
        cpu_second_ucredits=tariff.cpu_second_ucredits,
        subtask_ucredits=tariff.subtask_ucredits,
    )
    return sign_receipt(receipt, key)
