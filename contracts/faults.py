"""What an RPC refuses with, as a ``RemoteError`` with a code and a next step.

Nodes agree on no codes, only (nearly) on words: those of geth, which the others repeat, are looked
for. A revert comes with its data, which our ABIs put into words.
"""

import re
from collections.abc import Mapping
from typing import Any

from gristmill.contracts import abi
from gristmill.contracts.transport import RpcError
from gristmill.wire.errors import RemoteError

#: words of a node -> our code; the first that is found counts
_WORDS = (
    ("insufficient funds", "CHAIN_FUNDS"),
    ("insufficient balance for transfer", "CHAIN_FUNDS"),
    ("nonce too low", "CHAIN_NONCE"),
    ("nonce is too low", "CHAIN_NONCE"),
    ("invalid nonce", "CHAIN_NONCE"),
    ("replacement transaction underpriced", "CHAIN_UNDERPRICED"),
    ("transaction underpriced", "CHAIN_UNDERPRICED"),
    ("fee per gas less than block base fee", "CHAIN_UNDERPRICED"),
    ("fee too low", "CHAIN_UNDERPRICED"),
)
_KNOWN = ("already known", "already imported", "known transaction", "already exists")
_HEX = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
_MEANT_FOR_LATER = (429, -32005, -32097)  #: codes of providers that have had enough for now


class RevertedError(RemoteError):
    """``CHAIN_REVERTED``: a contract refuses.

    Attributes:
        name: its custom error, ``Panic``, or empty for one in its own words.
        arguments: of the custom error, by name.
    """

    def __init__(self, message: str, revert: abi.Revert, hint: str = "") -> None:
        super().__init__("CHAIN_REVERTED", message, hint)
        self.name: str = revert.name
        self.arguments: Mapping[str, Any] = revert.arguments


def is_known(error: RpcError) -> bool:
    """Whether a node refuses a transaction because it has it already."""
    return any(word in error.message.lower() for word in _KNOWN)


def fault_of(error: RpcError, what: str, shown: str) -> RemoteError:
    """What to raise for a refusal.

    Args:
        error: the refusal.
        what: was asked, for people: ``redeem of ComputeRental``, ``eth_getLogs``.
        shown: the RPC's address.
    """
    told = error.message.lower()
    body = revert_data(error.data)
    if body is not None or error.code == 3 or "revert" in told:
        revert = abi.explain_revert(body or b"")
        if not body:  # some say it in the message only
            reason = re.search(r"reverted(?: with reason string)?:? *(.+)", error.message)
            if reason and not reason[1].startswith("0x"):
                revert = abi.Revert("", {}, reason[1].strip(" '\""))
        return RevertedError(f"{what} was refused by the contract: {revert.words}", revert)
    for words, code in _WORDS:
        if words in told:
            return RemoteError(code, f"{what}: {error.message} (says {shown})")
    if error.code in _MEANT_FOR_LATER and "rate" in told:
        return RemoteError("CHAIN_DOWN", f"{shown} takes no more for now: {error.message}")
    return RemoteError("CHAIN_REFUSED", f"{what}: {shown} says {error.message!r} ({error.code})")


def revert_data(found: Any) -> bytes | None:
    """The bytes that a contract reverted with, wherever this node puts them; None for no revert."""
    for _ in range(3):
        if isinstance(found, dict):
            found = found.get("data", found.get("result"))
    if not isinstance(found, str):
        return None
    text = found.removeprefix("Reverted ").removeprefix("execution reverted: ")
    return bytes.fromhex(text[2:]) if _HEX.fullmatch(text) else None
