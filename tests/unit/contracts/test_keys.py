"""Signers: a keystore that does not open, a signer that signs something else."""

import json
import pathlib
from typing import Any

import pytest
from chain_rig import ChainRig
from lying_rpc_rig import Error, liar

from gristmill.contracts.abi import show_address
from gristmill.contracts.ethereum import Account
from gristmill.contracts.keys import (
    AccountKey,
    ExternalSigner,
    address_in,
    open_keystore,
    read_password,
)
from gristmill.contracts.rpc import Transaction
from gristmill.wire.errors import RemoteError

PASSWORD = "a long password"
KEY, OTHER = AccountKey(b"\x21" * 32), AccountKey(b"\x22" * 32)
SENT = Transaction(7, 3, b"\x44" * 20, b"\x01\x02", 50_000, 30, 2, 5)


@pytest.fixture
def keystore(tmp_path: pathlib.Path) -> dict[str, Any]:
    return dict(Account.encrypt(KEY.secret, PASSWORD, kdf="pbkdf2", iterations=10))


def kept(folder: pathlib.Path, told: Any) -> pathlib.Path:
    path = folder / "key.json"
    path.write_text(told if isinstance(told, str) else json.dumps(told))
    path.chmod(0o600)
    return path


def test_a_keystore_opens(tmp_path: pathlib.Path, keystore: dict[str, Any]) -> None:
    path = kept(tmp_path, keystore)
    assert open_keystore(path, PASSWORD).secret == KEY.secret
    assert address_in(path) == KEY.address
    assert KEY.secret.hex() not in repr(open_keystore(path, PASSWORD))


def test_one_that_does_not_says_why(tmp_path: pathlib.Path, keystore: dict[str, Any]) -> None:
    def wrong(told: Any, password: str = PASSWORD) -> str:
        with pytest.raises(RemoteError) as caught:
            open_keystore(kept(tmp_path, told), password)
        assert caught.value.code == "UNAUTHORISED"
        return caught.value.message

    assert "its password is another one" in wrong(keystore, "another")
    for told in ("", "[]", "null", "[" * 60_000, {}, {**keystore, "version": 1}):
        assert "no version 3" in wrong(told)
    crypto = keystore["crypto"]
    for name, value in (("c", 10**9), ("n", 1 << 30), ("r", 10**6), ("p", -1)):
        dear = {**crypto, "kdfparams": {**crypto["kdfparams"], name: value}}
        assert f"more work than we do ({name})" in wrong({**keystore, "crypto": dear})
    assert "no version 3" in wrong({**keystore, "crypto": {**crypto, "cipher": "rot13"}})
    for missing in ("ciphertext", "mac", "cipherparams"):
        less = {name: value for name, value in crypto.items() if name != missing}
        assert "does not open" in wrong({**keystore, "crypto": less})
    path = kept(tmp_path, keystore)
    path.chmod(0o640)
    with pytest.raises(RemoteError, match="has mode 0640: others can read it"):
        open_keystore(path, PASSWORD)
    keystore.pop("address")
    with pytest.raises(RemoteError, match="names no address"):
        address_in(kept(tmp_path, keystore))


def test_passwords_that_are_none(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RemoteError, match="the password is empty"):
        read_password(kept(tmp_path, "\n"), None, "x")
    assert read_password(kept(tmp_path, " two words \n"), None, "x") == " two words "
    with pytest.raises(RemoteError, match="gives no password: Bad file descriptor"):
        read_password(None, 987, "x")


def test_what_is_signed_is_what_was_asked_for() -> None:
    raw = KEY.sign(SENT)
    assert str(Account.recover_transaction(raw)) == show_address(KEY.address)
    made = SENT._replace(to=b"")
    assert KEY.sign(made) != raw


class Elsewhere:
    """A signer's side of the dialogue; ``signs`` says what it gives back for a transaction."""

    def __init__(self, signs: Any) -> None:
        self.signs = signs

    def answer(self, method: str, params: Any) -> Any:
        if method == "eth_accounts":
            return [show_address(KEY.address)]
        assert method == "eth_signTransaction", method
        assert params == [SENT.as_rpc(KEY.address)]
        return self.signs


@pytest.mark.parametrize("shape", ["text", "object"])
@pytest.mark.parametrize("to", [SENT.to, b""])
def test_a_signer_elsewhere(shape: str, to: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = SENT._replace(to=to)
    raw = KEY.sign(sent)
    told = f"0x{raw.hex()}"
    signs = told if shape == "text" else {"raw": told, "tx": {}}
    monkeypatch.setitem(globals(), "SENT", sent)
    with liar(Elsewhere(signs).answer) as server:
        assert ExternalSigner(server.url, KEY.address).sign(sent) == raw


@pytest.mark.parametrize(
    ("signs", "told"),
    [
        (KEY.sign(SENT._replace(nonce=4)), "it signed another transaction: nonce"),
        (KEY.sign(SENT._replace(chain_id=1)), "another transaction: chainId"),
        (KEY.sign(SENT._replace(to=OTHER.address)), "another transaction: to"),
        (KEY.sign(SENT._replace(value=6, gas=50_001)), "another transaction: gas, value"),
        (KEY.sign(SENT._replace(body=b"\x01")), "another transaction: data"),
        (KEY.sign(SENT._replace(fee_limit=31)), "another transaction: maxFeePerGas"),
        (OTHER.sign(SENT), f"it signed with the key of {show_address(OTHER.address)}"),
        (KEY.sign(SENT)[:-1], "no transaction of type 2"),
        (KEY.sign(SENT)[1:], "no transaction of type 2"),
        (b"", "no transaction of type 2"),
        (None, "no transaction of type 2"),
        (Error(code=-32000, message="Request denied"), "it says 'Request denied'"),
    ],
)
def test_a_signer_elsewhere_that_signs_something_else(signs: Any, told: str) -> None:
    answer = f"0x{signs.hex()}" if isinstance(signs, bytes) else signs
    with liar(Elsewhere(answer).answer) as server:
        signer = ExternalSigner(server.url, KEY.address)
        with pytest.raises(RemoteError) as caught:
            signer.sign(SENT)
        assert caught.value.code == "UNAUTHORISED"
        assert told in caught.value.message


def test_a_signer_elsewhere_without_the_key() -> None:
    with (
        liar(Elsewhere(None).answer) as server,
        pytest.raises(RemoteError, match="has no key of 0x") as caught,
    ):
        ExternalSigner(server.url, OTHER.address)
    assert show_address(KEY.address).lower() in caught.value.hint


def test_a_real_node_signs(anvil: ChainRig) -> None:
    person = anvil.people[0]
    signer = ExternalSigner(anvil.url, person.address)
    sent = SENT._replace(chain_id=31337)
    assert signer.sign(sent) == AccountKey(person.secret).sign(sent)
