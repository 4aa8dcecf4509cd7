"""The payout's tree: everything that each address ever earned, under one root.

As WorkPool checks it and as OpenZeppelin's ``StandardMerkleTree`` builds it, so that anybody can
rebuild a root with their JavaScript library: a leaf is keccak256(keccak256(abi.encode(address,
amount))), a node keccak256 of its two children in the order of their bytes; the leaves stand sorted
by hash at the end of an array in which the children of i are 2i + 1 and 2i + 2.

What is published is the list (``encode_list``), of which there is one text: sorted by address, each
once, no spaces. Its sha-256 goes on the chain with the root (``listDigest``) and is the name of a
blob in the store.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from gristmill.contracts.abi import ADDRESS_BYTES, HASH_BYTES
from gristmill.contracts.ethereum import keccak
from gristmill.wire.errors import RemoteError

AMOUNT_MAX = 2**128 - 1
VERSION = 1
_PADDING = bytes(HASH_BYTES - ADDRESS_BYTES)
_ADDRESS = re.compile("0x[0-9a-f]{40}")
_AMOUNT = re.compile("[1-9][0-9]{0,38}")
Leaves = Sequence[tuple[bytes, int]]  #: (address, everything that it ever earned)


def leaf_of(address: bytes, cumulative: int) -> bytes:
    """32 bytes, as ``WorkPool.leafOf``."""
    assert len(address) == ADDRESS_BYTES and 0 <= cumulative <= AMOUNT_MAX, (address, cumulative)
    body = _PADDING + address + cumulative.to_bytes(HASH_BYTES)
    return keccak(keccak(body))


def _node_of(one: bytes, other: bytes) -> bytes:
    return keccak(one + other if one < other else other + one)


class Tree:
    """The tree of some leaves, one at least, each address once.

    Attributes:
        root: 32 bytes.
    """

    def __init__(self, leaves: Leaves) -> None:
        assert leaves, "a root of nothing"
        hashes = sorted((leaf_of(*leaf), leaf[0]) for leaf in leaves)
        size = len(hashes)
        nodes = [b""] * (size - 1) + [leaf for leaf, _ in reversed(hashes)]
        for at in range(size - 2, -1, -1):
            nodes[at] = _node_of(nodes[2 * at + 1], nodes[2 * at + 2])
        self._nodes = nodes
        self._places = {address: 2 * size - 2 - at for at, (_, address) in enumerate(hashes)}
        assert len(self._places) == size, "an address stands there twice"
        self.root = nodes[0]

    def proof_of(self, address: bytes) -> list[bytes]:
        """The neighbours from an address's leaf to the root, from below.

        Raises:
            KeyError: the address has no leaf.
        """
        at = self._places[address]
        proof = []
        while at:
            proof.append(self._nodes[at + 1 if at % 2 else at - 1])
            at = (at - 1) // 2
        return proof


def is_proven(root: bytes, address: bytes, cumulative: int, proof: Sequence[bytes]) -> bool:
    """Whether a proof leads from this leaf to the root."""
    node = leaf_of(address, cumulative)
    for neighbour in proof:
        node = _node_of(node, neighbour)
    return node == root


class PayoutList(NamedTuple):
    """What is published of a payout: ``leaves`` sorted by address, each once, none of nothing."""

    chain_id: int
    pool: bytes
    number: int
    leaves: Leaves

    @property
    def total(self) -> int:
        """The sum of the leaves, which the pool is told."""
        return sum(cumulative for _, cumulative in self.leaves)


def encode_list(payout: PayoutList) -> bytes:
    """The one text of a list: JSON, sorted keys, no spaces; amounts are text, for JavaScript."""
    told = {
        "chain_id": payout.chain_id,
        "leaves": [[f"0x{address.hex()}", str(amount)] for address, amount in payout.leaves],
        "number": payout.number,
        "pool": f"0x{payout.pool.hex()}",
        "total": str(payout.total),
        "version": VERSION,
    }
    return json.dumps(told, separators=(",", ":"), sort_keys=True).encode()


def digest_of(listed: bytes) -> bytes:
    """The sha-256 (32 bytes) of a list's text."""
    return hashlib.sha256(listed).digest()


def decode_list(listed: bytes) -> PayoutList:
    """The list of a text that somebody published.

    Raises:
        RemoteError: ``MALFORMED``: it is not the one text of any list; the first fault is named.
    """
    try:
        told = json.loads(listed)
        payout = PayoutList(
            _whole(told["chain_id"], "chain_id"),
            bytes.fromhex(_matching(_ADDRESS, told["pool"], "pool")[2:]),
            _whole(told["number"], "number"),
            [_leaf(at, row) for at, row in enumerate(told["leaves"])],
        )
        addresses = [address for address, _ in payout.leaves]
        for one, other in itertools.pairwise(addresses):
            if one >= other:
                raise ValueError(f"0x{other.hex()} stands twice, or out of order")
        if not addresses or payout.total > AMOUNT_MAX:
            raise ValueError("no leaves, or more than an amount can say")
        if encode_list(payout) != listed:
            raise ValueError("another total or version, other fields, or other spaces")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RemoteError(
            "MALFORMED", f"this is no list of a payout: {error or type(error).__name__}"
        ) from None
    return payout


def _leaf(at: int, row: Any) -> tuple[bytes, int]:
    address, amount = row
    where = f"leaves[{at}]"
    amount = int(_matching(_AMOUNT, amount, where))
    if amount > AMOUNT_MAX:
        raise ValueError(f"{where}: {amount} is more than 2^128 - 1")
    return bytes.fromhex(_matching(_ADDRESS, address, where)[2:]), amount


def _whole(told: Any, where: str) -> int:
    if type(told) is not int or told < 1:
        raise ValueError(f"{where}: {told!r:.40} is no number from 1")
    return told


def _matching(pattern: re.Pattern[str], told: Any, where: str) -> str:
    if not isinstance(told, str) or not pattern.fullmatch(told):
        raise ValueError(f"{where}: {told!r:.50}")
    return told
