"""Ed25519 keys of processes: made at first start, readable by their owner only."""

import os
import pathlib
import secrets

from nacl.signing import SigningKey

from gristmill.wire.errors import RemoteError

BROKER_KEY, WORKER_KEY = "broker.key", "worker.key"  #: files in the state folders
LEDGER_KEY, REGISTRY_KEY, STORE_KEY = "ledger.key", "registry.key", "store.key"


def load_key(path: pathlib.Path) -> SigningKey:
    """The key of this file, made if there is none (32-byte seed as hex, mode 0600).

    A credential of the same name that systemd handed to this process stands in for the file
    (``LoadCredential=``); nobody else can read those, whatever their mode says of access lists.

    Raises:
        RemoteError: ``UNAUTHORISED`` when others can read it, or it is not a key.
    """
    given = pathlib.Path(os.environ.get("CREDENTIALS_DIRECTORY") or "/nonexistent", path.name)
    is_given = given.is_file()
    path = given if is_given else path
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return _make_key(path)
    with os.fdopen(handle, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        text = file.read(1 << 10)
    if mode & 0o077 and not is_given:
        raise RemoteError(
            "UNAUTHORISED",
            f"{path} has mode {mode & 0o777:04o}: others can read the key; it must be 0600",
            f"chmod 600 {path}, or delete it and start again for a new key",
        )
    try:
        return SigningKey(bytes.fromhex(text.decode("ascii").strip()))
    except (ValueError, UnicodeDecodeError):
        raise RemoteError(
            "UNAUTHORISED",
            f"{path} does not hold a key of 64 hex characters",
            f"restore it, or delete {path} and start again for a new key",
        ) from None


def _make_key(path: pathlib.Path) -> SigningKey:
    """Writes beside and links: two starts at once agree on one key, and no torn file is read."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = SigningKey.generate()
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(key.encode().hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return load_key(path)
    finally:
        os.unlink(temporary)
    return key
