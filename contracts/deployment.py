"""Where the contracts of a grid lie: a file that pins chain, addresses and code.

It is written by ``gristmill chain deploy`` and read by whoever speaks to the contracts, and holds
no secret. ``check`` holds it against the chain before anything else is asked there: who is given
another chain, another address or another code is told what differs, and stops.
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from gristmill.contracts import abi
from gristmill.contracts.artifact import NAMES, difference, load
from gristmill.contracts.ethereum import keccak
from gristmill.contracts.rpc import Chain, Contract, check_token, contract_at, token_at
from gristmill.wire.errors import RemoteError

VERSION = 1
FILE_BYTES_MAX = 1 << 20
CONTRACTS = ("WorkPool", "ComputeRental", "PromptMarketplace")  #: in the order of deployment
_HASH = re.compile(r"0x[0-9a-f]{64}")
_FIELDS = {"version", "chain_id", "token", "contracts"}
_ROW_FIELDS = {"address", "code", "block", "transaction", "arguments"}


class Placed(msgspec.Struct, frozen=True):
    """One contract on the chain.

    ``code``: keccak-256 of the code there, its immutables included. ``block``: which it came in
    with ``transaction``; 0: it was sent, and nobody has seen it in a block yet (``code`` is empty).
    ``arguments``: of its constructor, by name: addresses as text, numbers.
    """

    address: bytes
    code: bytes
    block: int
    transaction: bytes
    arguments: dict[str, str | int]


class Deployment(msgspec.Struct, frozen=True):
    """What a file says; ``contracts`` by name, of ``CONTRACTS`` (and DevToken, on a test chain)."""

    chain_id: int
    token: bytes
    contracts: dict[str, Placed]

    def at(self, name: str) -> Contract:
        """A contract, to call it.

        Raises:
            RemoteError: ``INVALID_SPEC``: it is not deployed.
        """
        placed = self.contracts.get(name)
        if placed is None or not placed.block:
            raise RemoteError(
                "INVALID_SPEC",
                f"{name} is not deployed, says the deployment file",
                "finish it with the 'gristmill chain deploy' that began it",
            )
        return contract_at(name, placed.address)

    def token_contract(self) -> Contract:
        """The token, to call it."""
        return token_at(self.token)


def write(deployment: Deployment, path: pathlib.Path) -> None:
    """The file in its canonical form, whole or not at all: on disk when this returns.

    Raises:
        RemoteError: ``INVALID_SPEC``: it cannot be written there.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(encode(deployment))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise RemoteError(
            "INVALID_SPEC", f"{path} cannot be written: {error.strerror}", "name another file"
        ) from None


def encode(deployment: Deployment) -> bytes:
    """The canonical form: JSON with sorted keys, two spaces, addresses with their checksum."""
    rows = {
        name: {
            "address": abi.show_address(placed.address),
            "code": f"0x{placed.code.hex()}" if placed.code else "",
            "block": placed.block,
            "transaction": f"0x{placed.transaction.hex()}",
            "arguments": placed.arguments,
        }
        for name, placed in deployment.contracts.items()
    }
    told = {
        "version": VERSION,
        "chain_id": deployment.chain_id,
        "token": abi.show_address(deployment.token),
        "contracts": rows,
    }
    return json.dumps(told, indent=2, sort_keys=True).encode() + b"\n"


def read(path: pathlib.Path) -> Deployment:
    """The deployment in a file.

    Raises:
        RemoteError: ``INVALID_SPEC``: there is none, or every wrong field of it.
    """
    try:
        with open(path, "rb") as file:
            body = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise RemoteError(
            "INVALID_SPEC",
            f"the deployment {path} cannot be read: {error.strerror}",
            "gristmill chain deploy --deployment FILE writes one",
        ) from None
    faults: list[str] = []
    deployment = _decode(body, faults)
    if faults or deployment is None:
        raise RemoteError(
            "INVALID_SPEC",
            f"{path} is no deployment: {'; '.join(faults)}",
            "take the file as 'gristmill chain deploy' wrote it",
        )
    return deployment


def check(deployment: Deployment, chain: Chain) -> None:
    """Raises unless the chain has what the file says, and that is what our artifacts are.

    Raises:
        RemoteError: ``CHAIN_WRONG``: everything that differs; ``INVALID_SPEC``: a contract is not
            deployed yet; ``CHAIN_DOWN``.
    """
    for name in CONTRACTS:
        deployment.at(name)
    faults = []
    if chain.chain_id != deployment.chain_id:
        faults.append(f"it is chain {chain.chain_id}, the deployment's is {deployment.chain_id}")
    else:
        faults += [
            f"{name} at {abi.show_address(placed.address)}: {fault}"
            for name, placed in deployment.contracts.items()
            if (fault := fault_of_code(name, placed, chain.code(placed.address)))
        ]
    if faults:
        raise RemoteError(
            "CHAIN_WRONG",
            f"{chain.shown} has not what was deployed: {'; '.join(faults)}",
            "compare the deployment file with its publisher's; nothing was sent",
        )
    check_token(chain, deployment.token_contract())


def fault_of_code(name: str, placed: Placed, code: bytes) -> str:
    """In words, how code on the chain differs from the artifact's and the file's; empty: it is."""
    if told := difference(load(name), code):
        return told
    if keccak(code) != placed.code:
        return f"its code is the artifact's with other immutables than the file's {name} has"
    return ""


def check_pins(deployment: Deployment) -> list[str]:
    """What of a file is wrong in itself, no chain asked: each with its name; empty for nothing.

    The code that the artifact gives with the file's constructor arguments is not computed here: an
    artifact with immutables can only be compared on the chain.
    """
    faults = []
    for name, placed in deployment.contracts.items():
        artifact = load(name)
        if not placed.block:
            faults.append(f"{name}: sent, and not seen in a block")
        elif not artifact.immutables and keccak(artifact.deployed) != placed.code:
            faults.append(f"{name}: its code is not the artifact's")
    return faults


def _decode(body: bytes, faults: list[str]) -> Deployment | None:
    if len(body) > FILE_BYTES_MAX:
        faults.append(f"it has more than {FILE_BYTES_MAX:,} bytes")
        return None
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as error:
        faults.append(f"it is no JSON: {error}")
        return None
    if not _has_fields(told, _FIELDS, "the file", faults):
        return None
    if told["version"] != VERSION:
        faults.append(f"version {told['version']!r:.20}: this gristmill reads {VERSION}")
        return None
    chain_id = _number(told["chain_id"], "chain_id", 1, faults)
    token = _address(told["token"], "token", faults)
    rows: Mapping[str, Any] = told["contracts"] if isinstance(told["contracts"], dict) else {}
    if not rows and told["contracts"] != {}:
        faults.append("contracts: no object")
    contracts = {}
    for name, row in rows.items():
        if name not in NAMES:
            faults.append(f"contracts.{name!r:.40}: no contract of ours")
        elif _has_fields(row, _ROW_FIELDS, f"contracts.{name}", faults):
            contracts[name] = _placed(row, f"contracts.{name}", name, faults)
    return Deployment(chain_id, token, contracts)


def _placed(row: Mapping[str, Any], where: str, name: str, faults: list[str]) -> Placed:
    block = _number(row["block"], f"{where}.block", 0, faults)
    known = abi.interface_of(name).constructor_names()
    arguments = row["arguments"]
    if not isinstance(arguments, dict) or sorted(arguments) != sorted(known):
        faults.append(f"{where}.arguments: not those of its constructor: {', '.join(known)}")
        arguments = {}
    for key, value in arguments.items():
        if type(value) not in (str, int):
            faults.append(f"{where}.arguments.{key}: neither an address nor a number")
    return Placed(
        _address(row["address"], f"{where}.address", faults),
        b"" if not block and row["code"] == "" else _hash(row["code"], f"{where}.code", faults),
        block,
        _hash(row["transaction"], f"{where}.transaction", faults),
        arguments,
    )


def _has_fields(told: Any, fields: set[str], where: str, faults: list[str]) -> bool:
    if not isinstance(told, dict):
        faults.append(f"{where}: no object")
        return False
    faults += [f"{where}: {name} is missing" for name in sorted(fields - set(told))]
    faults += [f"{where}: {name!r:.40} is not known" for name in sorted(set(told) - fields)]
    return set(told) == fields


def _number(told: Any, where: str, low: int, faults: list[str]) -> int:
    if type(told) is not int or told < low:
        faults.append(f"{where}: {told!r:.40} is no number from {low}")
        return low
    return told


def _address(told: Any, where: str, faults: list[str]) -> bytes:
    try:
        return abi.parse_address(str(told), where)
    except RemoteError as error:
        faults.append(error.message)
        return abi.ZERO_ADDRESS


def _hash(told: Any, where: str, faults: list[str]) -> bytes:
    if not isinstance(told, str) or not _HASH.fullmatch(told):
        faults.append(f"{where}: {told!r:.70} is no hash: 0x and 64 lower-case digits")
        return b""
    return bytes.fromhex(told[2:])
