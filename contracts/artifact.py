"""What a contract compiles to, as package data: ``artifacts/NAME.json``, made by tools/build.mjs.

``is_code_of`` is how a deployed contract is known: its code is that of the artifact byte for byte,
but for the places where the constructor wrote its immutables.
"""

import functools
import importlib.resources
import json
from typing import Any

import msgspec

from gristmill.wire.errors import RemoteError

NAMES = ("ComputeRental", "DevToken", "PromptMarketplace", "WorkPool")


class Artifact(msgspec.Struct, frozen=True):
    """One compiled contract.

    ``bytecode``: what is deployed, before the constructor's arguments. ``deployed``: what lies on
    the chain afterwards, zero where the ``immutables`` are: (first byte, length). ``sources``: path
    from contracts/ to sha-256 (hex) of each file that it was compiled from.
    """

    name: str
    abi: list[dict[str, Any]]
    bytecode: bytes
    deployed: bytes
    immutables: list[tuple[int, int]]
    compiler: str
    settings: dict[str, Any]
    sources: dict[str, str]


@functools.cache
def load(name: str) -> Artifact:
    """The artifact of a contract of ``NAMES``.

    Raises:
        RemoteError: ``INVALID_SPEC``, when there is none of that name.
    """
    if name not in NAMES:
        raise RemoteError(
            "INVALID_SPEC", f"{name!r} is no contract of ours: {', '.join(NAMES)}", "name one"
        )
    place = importlib.resources.files("gristmill.contracts") / "artifacts" / f"{name}.json"
    read = json.loads(place.read_bytes())
    for field in ("bytecode", "deployed"):
        read[field] = bytes.fromhex(read[field].removeprefix("0x"))
    return msgspec.convert({"name": name, **read}, Artifact, builtin_types=(bytes,))


def is_code_of(artifact: Artifact, code: bytes) -> bool:
    """Whether ``code``, from the chain, is the artifact's, whatever its immutables are."""
    return len(code) == len(artifact.deployed) and masked(artifact, code) == artifact.deployed


def masked(artifact: Artifact, code: bytes) -> bytes:
    """The code with zeros where the artifact's immutables are."""
    plain = bytearray(code)
    for first, length in artifact.immutables:
        plain[first : first + length] = bytes(length)
    return bytes(plain[: len(code)])


def difference(artifact: Artifact, code: bytes) -> str:
    """In words, what ``is_code_of`` stumbles on; empty when it is the artifact's code."""
    if not code:
        return "there is no code"
    if len(code) != len(artifact.deployed):
        return f"its code has {len(code):,} bytes, the artifact's {len(artifact.deployed):,}"
    pairs = zip(masked(artifact, code), artifact.deployed, strict=True)
    for at, (one, other) in enumerate(pairs):
        if one != other:
            return f"its code differs from byte {at:,} of {len(code):,} on"
    return ""
