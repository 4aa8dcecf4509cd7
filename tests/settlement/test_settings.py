"""What a settlement is told: wrong fields, unknown ones, other chains, keys where none may be."""

import pathlib

import pytest

from gristmill.ledger.settlement.settings import Settings, read_settings
from gristmill.wire.errors import RemoteError

GOOD = {
    "GRISTMILL_SETTLEMENT_STATE": "/s",
    "GRISTMILL_SETTLEMENT_LEDGER": "ipc:///nowhere/ledger",
    "GRISTMILL_SETTLEMENT_RPCS": "http://127.0.0.1:8545 https://rpc.example.org/key",
    "GRISTMILL_SETTLEMENT_DEPLOYMENT": "/d.json",
    "GRISTMILL_SETTLEMENT_KEYSTORE": "/k.json",
    "GRISTMILL_SETTLEMENT_PASSWORD_FILE": "/k.password",
}


def read(**more: str) -> Settings:
    given = GOOD | {f"GRISTMILL_SETTLEMENT_{name.upper()}": text for name, text in more.items()}
    return read_settings([], {name: text for name, text in given.items() if text})


def test_good_ones() -> None:
    settings = read(epoch="30m", redeem_min="2.5", depth="20")
    assert settings.rpcs == ("http://127.0.0.1:8545", "https://rpc.example.org/key")
    assert (settings.epoch, settings.redeem_min, settings.depth) == (1_800_000, 2_500_000, 20)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"chain": "solana"}, "'solana' is no chain that this release settles on; there is evm"),
        ({"depht": "3"}, "depht"),
        ({"depth": "0"}, "depth"),
        ({"private_key": "0x00"}, "private_key"),
        ({"keystore": ""}, "who signs"),
        ({"password_file": ""}, "password_file is missing"),
        ({"signer": "http://127.0.0.1:8550"}, "who signs"),
        ({"keystore": "", "signer": "http://127.0.0.1:8550"}, "account is missing"),
        ({"ledger": "tcp://127.0.0.1:7031"}, "must prove that it is the ledger"),
    ],
)
def test_wrong_ones(changed: dict[str, str], words: str) -> None:
    with pytest.raises(RemoteError) as caught:
        read(**changed)
    assert words in caught.value.message


def test_a_file_and_an_unknown_field_of_it(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "settlement.toml"
    file.write_text('chain = "evm"\nrpcs = ["http://127.0.0.1:1"]\nhurry = "2h"\n')
    assert read(config=str(file)).hurry == 7_200_000
    file.write_text('chian = "evm"\n')
    with pytest.raises(RemoteError, match="chian"):
        read(config=str(file))
    with pytest.raises(RemoteError, match="No such file"):
        read(config=str(tmp_path / "none"))
