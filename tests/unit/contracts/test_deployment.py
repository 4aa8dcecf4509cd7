"""A deployment file: one form, every wrong field named; artifacts and their immutables."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from gristmill.contracts import deployment
from gristmill.contracts.abi import parse_address, show_address
from gristmill.contracts.artifact import NAMES, difference, is_code_of, load
from gristmill.contracts.deployment import Deployment, Placed
from gristmill.contracts.ethereum import keccak
from gristmill.contracts.plan import coins, create_address
from gristmill.wire.errors import RemoteError

TOKEN, POOL = b"\x10" * 20, b"\x20" * 20
ARGUMENTS: dict[str, str | int] = {
    "token": show_address(TOKEN), "coordinator": show_address(POOL),
    "guardian": show_address(TOKEN), "window": 60, "capPerEpoch": 10**30,
}  # fmt: skip
MADE = Deployment(7, TOKEN, {"WorkPool": Placed(POOL, b"\x01" * 32, 5, b"\x02" * 32, ARGUMENTS)})


def test_it_comes_back(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "grid.json"
    deployment.write(MADE, path)
    assert deployment.read(path) == MADE
    assert path.read_bytes() == deployment.encode(MADE)
    assert [file.name for file in tmp_path.iterdir()] == ["grid.json"]
    sent = msgspec.structs.replace(MADE.contracts["WorkPool"], block=0, code=b"")
    half = msgspec.structs.replace(MADE, contracts={"WorkPool": sent})
    deployment.write(half, path)
    assert deployment.read(path) == half
    with pytest.raises(RemoteError, match="WorkPool is not deployed, says the deployment file"):
        half.at("WorkPool")
    assert MADE.at("WorkPool").address == POOL


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RemoteError, match="cannot be written: Is a directory"):
        deployment.write(MADE, tmp_path)


def read(tmp_path: pathlib.Path, change: Callable[[dict[str, Any]], object]) -> str:
    """What is wrong with the file after a change."""
    told = json.loads(deployment.encode(MADE))
    change(told)
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(told))
    with pytest.raises(RemoteError) as caught:
        deployment.read(path)
    assert caught.value.code == "INVALID_SPEC"
    return caught.value.message


def test_every_wrong_field_is_named(tmp_path: pathlib.Path) -> None:
    def spoil(told: dict[str, Any]) -> None:
        told["chain_id"] = "7"
        told["token"] = "0x" + "0" * 40
        pool = told["contracts"]["WorkPool"]
        pool["address"] = pool["address"].lower()
        pool |= {"block": -1, "transaction": "0x12", "code": "0x" + "AB" * 32}
        pool["arguments"] = {**pool["arguments"], "window": 1.5}
        told["contracts"]["Other"] = {}
        told["contracts"]["DevToken"] = {"address": 5}

    message = read(tmp_path, spoil)
    for part in (
        "chain_id: '7' is no number", "token is the zero address",
        "contracts.'Other': no contract of ours",
        "contracts.DevToken: code is missing", "contracts.WorkPool.block: -1",
        "contracts.WorkPool.transaction: '0x12' is no hash", "contracts.WorkPool.code: '0xABAB",
        "contracts.WorkPool.arguments.window: neither an address nor a number",
    ):  # fmt: skip
        assert part in message, part


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.update(version=2), "version 2: this gristmill reads 1"),
        (lambda t: t.update(more=1), "the file: 'more' is not known"),
        (lambda t: t.pop("token"), "the file: token is missing"),
        (lambda t: t.update(contracts=[]), "contracts: no object"),
        (lambda t: t["contracts"].update(WorkPool=[]), "contracts.WorkPool: no object"),
        (lambda t: t["contracts"]["WorkPool"].update(code=""), "contracts.WorkPool.code: ''"),
        (
            lambda t: t["contracts"]["WorkPool"]["arguments"].pop("token"),
            "not those of its constructor: token, coordinator, guardian, window, capPerEpoch",
        ),
    ],
)
def test_one_wrong_field(
    tmp_path: pathlib.Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    assert told in read(tmp_path, change)


@pytest.mark.parametrize("body", [b"", b"[]", b"5", b"\xff", b"[" * 100_000, b" " * (2 << 20)])
def test_what_is_no_file_of_ours(tmp_path: pathlib.Path, body: bytes) -> None:
    path = tmp_path / "grid.json"
    path.write_bytes(body)
    with pytest.raises(RemoteError, match="is no deployment"):
        deployment.read(path)
    with pytest.raises(RemoteError, match="cannot be read: No such file"):
        deployment.read(tmp_path / "none")


@pytest.mark.parametrize("name", NAMES)
def test_only_immutables_may_differ(name: str) -> None:
    artifact = load(name)
    code = bytearray(artifact.deployed)
    assert is_code_of(artifact, bytes(code))
    for first, length in artifact.immutables:
        assert artifact.deployed[first : first + length] == bytes(length)
        code[first : first + length] = b"\x5a" * length
    assert is_code_of(artifact, bytes(code))
    inside = {at for first, length in artifact.immutables for at in range(first, first + length)}
    for at in range(0, len(code), 97):
        if at not in inside:
            code[at] ^= 1
            assert not is_code_of(artifact, bytes(code)), at
            assert difference(artifact, bytes(code)).startswith(
                f"its code differs from byte {at:,}"
            )
            code[at] ^= 1
    assert not is_code_of(artifact, bytes(code) + b"\0")
    assert not is_code_of(artifact, bytes(code[:-1]))
    assert difference(artifact, b"") == "there is no code"


def test_an_artifact_that_is_none_of_ours() -> None:
    with pytest.raises(RemoteError, match="'Other' is no contract of ours"):
        load("Other")


def test_addresses_and_coins() -> None:
    text = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
    assert show_address(parse_address(text)) == text
    # the first contract of anvil's first account, known to everybody who ever used it
    sender = parse_address("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266")
    assert show_address(create_address(sender, 0)) == "0x5FbDB2315678afecb367f032d93F642f64180aa3"
    assert keccak(b"").hex().startswith("c5d2460186f7233c927e7db2dcc703c0")
    assert [coins(wei) for wei in (0, 1, 10**18, 1_500 * 10**18 + 10**17)] == [
        "0", "0.000000000000000001", "1", "1,500.1",
    ]  # fmt: skip
