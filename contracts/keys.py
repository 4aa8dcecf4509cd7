"""Who signs transactions: a keystore file, or a signer elsewhere that keeps the key to itself.

A key is never in a setting, an option or the environment. A keystore (Web3 Secret Storage, version
3) is a file of mode 0600 whose password comes from another such file, from a descriptor, or from
the terminal. An external signer (Clef, web3signer) is asked by JSON-RPC, and what it gives back is
checked: it must be the very transaction that was asked for, signed by the address that is ours.
"""

import contextlib
import getpass
import json
import os
import pathlib
from typing import Any, Protocol

from gristmill.contracts.abi import ADDRESS_BYTES, show_address
from gristmill.contracts.ethereum import Account, HexBytes, TypedTransaction
from gristmill.contracts.rpc import Transaction
from gristmill.contracts.transport import Endpoint, RpcError
from gristmill.wire.errors import RemoteError

FILE_BYTES_MAX = 64 << 10
PASSWORD_CHARS_MIN = 8
#: more rounds than this are not a keystore's but an attempt to keep us busy
SCRYPT_N_MAX, SCRYPT_R_MAX, SCRYPT_P_MAX, ITERATIONS_MAX = 1 << 20, 16, 16, 10_000_000
SIGNER_TIMEOUT_S = 120.0  #: a person may have to press a button there


class Signer(Protocol):
    """Has one address (20 bytes) and signs for it."""

    @property
    def address(self) -> bytes:
        """20 bytes."""
        ...

    def sign(self, transaction: Transaction) -> bytes:
        """The raw bytes that a chain takes.

        Raises:
            RemoteError: ``UNAUTHORISED`` or ``CHAIN_DOWN``, of a signer elsewhere.
        """
        ...


class AccountKey:
    """A signer with the key in this process.

    Attributes:
        address: 20 bytes.
        secret: 32 bytes, for ``vouchers.sign``; never shown.
    """

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.address = bytes.fromhex(str(Account.from_key(secret).address)[2:])

    def __repr__(self) -> str:
        return f"AccountKey({show_address(self.address)})"

    def sign(self, transaction: Transaction) -> bytes:
        """See ``Signer``."""
        signed = Account.sign_transaction(_as_account(transaction), self.secret)
        return bytes(signed.raw_transaction)


class ExternalSigner:
    """A signer behind a URL that speaks ``eth_signTransaction``, as Clef and web3signer do.

    Args:
        url: ``http(s)://``.
        address: of the key that it must have.
        timeout_s: of one answer.

    Raises:
        RemoteError: ``UNAUTHORISED``: it has no such key; ``CHAIN_DOWN``: no answer.
    """

    def __init__(self, url: str, address: bytes, timeout_s: float = SIGNER_TIMEOUT_S) -> None:
        self._endpoint = Endpoint(url, timeout_s)
        self.address = address
        known = self._ask("eth_accounts", [])
        names = [str(name).lower() for name in known] if isinstance(known, list) else []
        if f"0x{address.hex()}" not in names:
            raise RemoteError(
                "UNAUTHORISED",
                f"the signer at {self._endpoint.shown} has no key of {show_address(address)}",
                f"it has {', '.join(names)[:200] or 'none'}",
            )

    def sign(self, transaction: Transaction) -> bytes:
        """See ``Signer``; whatever is not what was asked for is refused."""
        answer = self._ask("eth_signTransaction", [transaction.as_rpc(self.address)])
        if isinstance(answer, dict):  # geth and Clef give the transaction with it
            answer = answer.get("raw")
        try:
            raw = bytes.fromhex(str(answer).removeprefix("0x"))
            told = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
            by = bytes.fromhex(str(Account.recover_transaction(raw))[2:])
        except Exception:  # of several libraries that decode what somebody else wrote
            raise self._refused("what it signed is no transaction of type 2") from None
        asked = {"type": 2, "accessList": (), **_as_account(transaction)}
        other = [name for name, value in asked.items() if _flat(told.get(name)) != _flat(value)]
        if other:
            raise self._refused(f"it signed another transaction: {', '.join(sorted(other))}")
        if by != self.address:
            raise self._refused(f"it signed with the key of {show_address(by)}")
        return raw

    def _ask(self, method: str, params: list[Any]) -> Any:
        try:
            return self._endpoint.ask(method, params)
        except RpcError as error:
            raise self._refused(f"it says {error.message!r:.200}") from None

    def _refused(self, told: str) -> RemoteError:
        return RemoteError(
            "UNAUTHORISED",
            f"the signer at {self._endpoint.shown} did not sign for {show_address(self.address)}: "
            f"{told}",
            "look at the signer's own log; nothing was sent",
        )


def _flat(value: Any) -> Any:
    """A field as the libraries have it here and there: bytes, numbers and empty lists alike."""
    if isinstance(value, str):
        return bytes.fromhex(value.removeprefix("0x"))
    return bytes(value) if isinstance(value, (bytes, bytearray, tuple, list)) else value


def _as_account(transaction: Transaction) -> dict[str, Any]:
    """As eth-account has it."""
    return {
        "type": 2,
        "chainId": transaction.chain_id,
        "nonce": transaction.nonce,
        "to": transaction.to,
        "value": transaction.value,
        "data": transaction.body,
        "gas": transaction.gas,
        "maxFeePerGas": transaction.fee_limit,
        "maxPriorityFeePerGas": transaction.fee_priority,
    }


def read_password(path: pathlib.Path | None, descriptor: int | None, what: str) -> str:
    """A password: of a file of mode 0600, a descriptor, or else asked for on the terminal.

    A line feed at its end is not part of it.

    Args:
        path: of the file, or None.
        descriptor: an open descriptor, or None; it is read to its end and closed.
        what: says on the terminal which password.

    Raises:
        RemoteError: ``UNAUTHORISED``: it cannot be read, others can read it too, or it is empty.
    """
    if descriptor is not None:
        try:
            with os.fdopen(descriptor, "rb") as file:
                body = file.read(FILE_BYTES_MAX)
        except OSError as error:
            raise RemoteError(
                "UNAUTHORISED",
                f"descriptor {descriptor} gives no password: {error.strerror}",
                "--password-fd 3 3< FILE",
            ) from None
    elif path is not None:
        body = _read_secret(path, "the password")
    else:
        try:
            body = getpass.getpass(f"{what}: ").encode()
        except (EOFError, OSError):
            raise RemoteError(
                "UNAUTHORISED",
                f"{what} is needed, and there is no terminal to ask for it",
                "--password-file FILE, of mode 0600, or --password-fd N",
            ) from None
    password = body.decode(errors="replace").removesuffix("\n").removesuffix("\r")
    if not password:
        raise RemoteError("UNAUTHORISED", "the password is empty", "give the keystore's")
    return password


def _read_secret(path: pathlib.Path, what: str) -> bytes:
    """The bytes of a file that only its owner can read."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            body = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise RemoteError(
            "UNAUTHORISED", f"{path} ({what}) cannot be read: {error.strerror}", "name another"
        ) from None
    if mode & 0o077:
        raise RemoteError(
            "UNAUTHORISED",
            f"{path} ({what}) has mode {mode & 0o777:04o}: others can read it; it must be 0600",
            f"chmod 600 {path}",
        )
    if len(body) > FILE_BYTES_MAX:
        raise RemoteError("UNAUTHORISED", f"{path} ({what}) has more than {FILE_BYTES_MAX} bytes")
    return body


def open_keystore(path: pathlib.Path, password: str) -> AccountKey:
    """The key in a keystore; deriving it from the password takes about a second, by design.

    Raises:
        RemoteError: ``UNAUTHORISED``: no such file, no keystore, or a wrong password.
    """
    found = _keystore(path)
    try:
        return AccountKey(bytes(Account.decrypt(found, password)))
    except ValueError as error:
        is_wrong = "MAC" in str(error)
        told = "its password is another one" if is_wrong else f"it does not open: {error}"
        raise RemoteError(
            "UNAUTHORISED", f"keystore {path}: {told}", "give the password that it was made with"
        ) from None
    except (KeyError, TypeError) as error:
        raise RemoteError(
            "UNAUTHORISED", f"keystore {path} does not open: {error!r}", "restore it from a copy"
        ) from None


def address_in(path: pathlib.Path) -> bytes:
    """The address that a keystore says that it is of, which no password proves yet.

    Raises:
        RemoteError: ``UNAUTHORISED``: no such file, no keystore, or one that names no address.
    """
    text = str(_keystore(path).get("address", "")).removeprefix("0x")
    with contextlib.suppress(ValueError):
        address = bytes.fromhex(text)
        if len(address) == ADDRESS_BYTES:
            return address
    raise RemoteError("UNAUTHORISED", f"keystore {path} names no address", "open it to learn it")


def _keystore(path: pathlib.Path) -> dict[str, Any]:
    body = _read_secret(path, "the keystore")
    try:
        found = json.loads(body)
        crypto = found.get("crypto") or found["Crypto"]
        rounds = crypto["kdfparams"]
        is_ours = found["version"] == 3 and crypto["cipher"] == "aes-128-ctr"
        is_ours = is_ours and crypto["kdf"] in ("scrypt", "pbkdf2")
        limits = {"n": SCRYPT_N_MAX, "r": SCRYPT_R_MAX, "p": SCRYPT_P_MAX, "c": ITERATIONS_MAX}
        dear = [name for name, most in limits.items() if not 0 <= int(rounds.get(name, 0)) <= most]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_ours, dear, found = False, [], {}
    if not is_ours or dear:
        why = f"it asks for more work than we do ({', '.join(dear)})" if dear else "no version 3"
        raise RemoteError(
            "UNAUTHORISED",
            f"{path} is no keystore that we open: {why}",
            "gristmill chain key new FILE makes one",
        )
    return dict(found)


def make_keystore(path: pathlib.Path, password: str) -> bytes:
    """A new key in a new keystore of mode 0600; its address.

    Raises:
        RemoteError: ``UNAUTHORISED``: the file is there already, cannot be made, or the password is
            shorter than ``PASSWORD_CHARS_MIN``.
    """
    if len(password) < PASSWORD_CHARS_MIN:
        raise RemoteError(
            "UNAUTHORISED",
            f"the password has {len(password)} characters, {PASSWORD_CHARS_MIN} are the least",
            "take a longer one",
        )
    made = Account.create()
    write_keystore(path, bytes(made.key), password)
    return bytes.fromhex(str(made.address)[2:])


def write_keystore(path: pathlib.Path, secret: bytes, password: str) -> None:
    """Put a key (32 bytes) into a new keystore of mode 0600.

    Raises:
        RemoteError: ``UNAUTHORISED``: the file is there already, or cannot be made.
    """
    body = json.dumps(Account.encrypt(secret, password), sort_keys=True).encode() + b"\n"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RemoteError(
            "UNAUTHORISED",
            f"{path} cannot be made: {error.strerror}",
            "name a new file: a key is never written over",
        ) from None
