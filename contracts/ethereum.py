"""The libraries of Ethereum, imported here and nowhere else, with their side effect undone.

web3 brings a library that sets the interpreter's recursion limit to 100,000. With that, a JSON text
of so many brackets (an RPC's answer, a list somebody published) overflows the C stack: a crash
where there should be a ``RecursionError``. So the limit is put back to what it was.
"""

import sys

_LIMIT = sys.getrecursionlimit()

from eth_account import Account  # noqa: E402
from eth_account.typed_transactions.typed_transaction import TypedTransaction  # noqa: E402
from eth_hash.auto import keccak as _keccak  # noqa: E402
from hexbytes import HexBytes  # noqa: E402
from web3 import Web3, utils  # noqa: E402

sys.setrecursionlimit(_LIMIT)

__all__ = ["Account", "HexBytes", "TypedTransaction", "Web3", "keccak", "utils"]


def keccak(body: bytes) -> bytes:
    """Keccak-256, 32 bytes."""
    return bytes(_keccak(body))
