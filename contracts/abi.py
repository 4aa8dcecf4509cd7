"""Calls, results, events and errors of a contract as bytes and back: web3's codec over our ABIs."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gristmill.contracts.artifact import NAMES, Artifact, load
from gristmill.contracts.ethereum import Web3, utils
from gristmill.wire.errors import RemoteError

ADDRESS_BYTES = 20
HASH_BYTES = 32
ZERO_ADDRESS = bytes(ADDRESS_BYTES)
_codec = Web3().codec
#: selector of ``Panic(uint256)`` and ``Error(string)``, which the compiler writes by itself
_ERROR, _PANIC = bytes.fromhex("08c379a0"), bytes.fromhex("4e487b71")
_PANICS = {
    0x01: "an assertion is false",
    0x11: "a number is too large, or below zero",
    0x12: "a division by zero",
    0x21: "a number is no value of its enum",
    0x31: "pop of an empty array",
    0x32: "an index beyond the end of an array",
    0x41: "too much memory",
    0x51: "a function that was never set",
}


class Revert(NamedTuple):
    """Why a contract refused. ``name`` is empty where it gave no reason, or one of its own words.

    ``words``: for people, such as ``Replayed(cumulative 500, paid 700)``.
    """

    name: str
    arguments: Mapping[str, Any]
    words: str


def parse_address(text: str, what: str = "address") -> bytes:
    """20 bytes from the text of an address, whose checksum (EIP-55) must hold.

    Args:
        text: from a person or a file.
        what: names it in the message: ``--token``, ``the token``.

    Raises:
        RemoteError: ``INVALID_SPEC``: no address, one without a checksum, a false one, or zero.
    """
    if len(text) != 42 or not text.startswith("0x") or not Web3.is_address(text.lower()):
        raise RemoteError(
            "INVALID_SPEC",
            f"{what} {text!r:.60} is no address: 0x and 40 hexadecimal digits",
            "copy it whole",
        )
    address = bytes.fromhex(text[2:])
    if address == ZERO_ADDRESS:
        raise RemoteError(
            "INVALID_SPEC",
            f"{what} is the zero address: whatever it is given is lost",
            "give an address of which somebody has the key",
        )
    if text != show_address(address):
        is_plain = text[2:] in (text[2:].lower(), text[2:].upper())
        raise RemoteError(
            "INVALID_SPEC",
            f"{what} {text} has {'no' if is_plain else 'a false'} checksum: "
            "a digit that was mistyped would not be seen",
            f"compare it with its owner's; if each digit is right, it is {show_address(address)}",
        )
    return address


def show_address(address: bytes) -> str:
    """An address with its checksum (EIP-55)."""
    return str(Web3.to_checksum_address(address))


def encode(types: Sequence[str], values: Sequence[Any]) -> bytes:
    """``abi.encode``."""
    return bytes(_codec.encode(types, values))


class Interface:
    """One contract's ABI.

    Raises (all methods):
        AssertionError: a function or event that the contract has not, or arguments of other types:
            ours are in the text, and checked before.
    """

    def __init__(self, abi: Sequence[Mapping[str, Any]]) -> None:
        def of(kind: str) -> list[Any]:
            return [entry for entry in abi if entry["type"] == kind]

        self._functions = {entry["name"]: entry for entry in of("function")}
        self._events = {bytes(utils.event_abi_to_log_topic(entry)): entry for entry in of("event")}
        self.errors = {
            bytes(utils.function_abi_to_4byte_selector(entry)): entry for entry in of("error")
        }
        makers = of("constructor")
        self._inputs: list[Any] = makers[0]["inputs"] if makers else []

    def constructor_names(self) -> list[str]:
        """Names of the constructor's arguments, in order, without the underscores around them."""
        return [str(entry["name"]).strip("_") for entry in self._inputs]

    def encode_constructor(self, values: Sequence[Any]) -> bytes:
        """The arguments as they stand behind the bytecode; addresses are 20 bytes."""
        assert len(values) == len(self._inputs), (values, self.constructor_names())
        return encode([entry["type"] for entry in self._inputs], values)

    def name_of(self, body: bytes) -> str:
        """The function that the data of a call is for; empty for none of the ABI."""
        for name, entry in self._functions.items():
            if bytes(utils.function_abi_to_4byte_selector(entry)) == body[:4]:
                return str(name)
        return ""

    def encode_call(self, function: str, values: Sequence[Any]) -> bytes:
        """The data of a call."""
        entry = self._functions[function]
        types = utils.get_abi_input_types(entry)
        assert len(types) == len(values), f"{function} takes {len(types)} arguments"
        return bytes(utils.function_abi_to_4byte_selector(entry)) + encode(types, values)

    def decode_result(self, function: str, body: bytes) -> Any:
        """The value, or a tuple of several; addresses and hashes are bytes.

        Raises:
            ValueError: these bytes are no such result.
        """
        types = utils.get_abi_output_types(self._functions[function])
        values = _decode(types, body)
        return values[0] if len(values) == 1 else values

    def decode_event(self, topics: Sequence[bytes], body: bytes) -> tuple[str, dict[str, Any]]:
        """(name, arguments by name) of a log; ("", {}) for an event that is not in the ABI.

        Raises:
            ValueError: the event is ours and its bytes are not.
        """
        entry = self._events.get(topics[0]) if topics else None
        if entry is None:
            return "", {}
        indexed = [part for part in entry["inputs"] if part["indexed"]]
        plain = [part for part in entry["inputs"] if not part["indexed"]]
        if len(indexed) != len(topics) - 1:
            raise ValueError(f"{entry['name']} has {len(indexed)} topics, not {len(topics) - 1}")
        found = {}
        for part, topic in zip(indexed, topics[1:], strict=True):
            found[part["name"]] = _decode([part["type"]], topic)[0]
        values = _decode([part["type"] for part in plain], body)
        found |= dict(zip([part["name"] for part in plain], values, strict=True))
        name: str = entry["name"]
        return name, {part["name"]: found[part["name"]] for part in entry["inputs"]}


def _decode(types: Sequence[str], body: bytes) -> tuple[Any, ...]:
    try:
        values = _codec.decode(types, body)
    except Exception as error:  # eth-abi has no one class for what it finds wrong
        raise ValueError(f"{' '.join(str(error).split())} ({', '.join(types)})") from None
    return tuple(_plain(kind, value) for kind, value in zip(types, values, strict=True))


def _plain(kind: str, value: Any) -> Any:
    if kind == "address":
        return bytes.fromhex(value[2:])
    if kind.endswith("]"):
        inner = kind[: kind.rindex("[")]
        return [_plain(inner, part) for part in value]
    if kind.startswith("("):
        return tuple(_plain(part, one) for part, one in zip(_fields(kind), value, strict=True))
    return value


def _fields(kind: str) -> list[str]:
    """Types of a struct's fields: ``(a,(b,c)[])`` has ``a`` and ``(b,c)[]``."""
    found, depth = [""], 0
    for letter in kind[1:-1]:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return found


@functools.cache
def interface_of(artifact_name: str) -> Interface:
    """The interface of one of our contracts."""
    return Interface(load(artifact_name).abi)


@functools.cache
def _all_errors() -> Mapping[bytes, Any]:
    found: dict[bytes, Any] = {}
    for name in NAMES:
        found |= interface_of(name).errors
    return found


def constructor_of(artifact: Artifact, values: Sequence[Any]) -> bytes:
    """What is sent to deploy it: its bytecode, then its arguments."""
    return artifact.bytecode + Interface(artifact.abi).encode_constructor(values)


def explain_revert(body: bytes) -> Revert:
    """A revert's data in words, by the errors of all our contracts and the compiler's own."""
    if not body:
        return Revert("", {}, "it gave no reason")
    selector, rest = body[:4], body[4:]
    try:
        if selector == _ERROR:
            return Revert("", {}, str(_decode(["string"], rest)[0]))
        if selector == _PANIC:
            code = _decode(["uint256"], rest)[0]
            told = _PANICS.get(code, "of a kind that is not known")
            return Revert("Panic", {"code": code}, f"Panic(0x{code:02x}): {told}")
        entry = _all_errors().get(selector)
        if entry is not None:
            values = _decode([part["type"] for part in entry["inputs"]], rest)
            names = [part["name"] for part in entry["inputs"]]
            parts = [
                f"{name} {show(value)}".strip() for name, value in zip(names, values, strict=True)
            ]
            words = f"{entry['name']}({', '.join(parts)})"
            return Revert(entry["name"], dict(zip(names, values, strict=True)), words)
    except ValueError:
        pass
    return Revert("", {}, f"an error that is none of our contracts': 0x{body[:36].hex()}")


def show(value: Any) -> str:
    """A value of the chain for people: addresses checked, other bytes in hex, the rest as it is."""
    if isinstance(value, bytes):
        return show_address(value) if len(value) == ADDRESS_BYTES else f"0x{value.hex()}"
    return str(value)
