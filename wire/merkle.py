"""The Merkle tree of an epoch's receipts, as in RFC 6962: one root, a short proof for each leaf.

A leaf is sha-256 of 0x00 and the digest of a contribution, a node sha-256 of 0x01 and its two
children; a tree of n leaves splits at the largest power of two below n. Built level by level, which
is the same tree: a last node without a neighbour goes up as it is.
"""

import hashlib
from collections.abc import Sequence

DIGEST_BYTES = 32
_sha256 = hashlib.sha256
EMPTY_ROOT = _sha256().digest()
Levels = list[list[bytes]]


def leaf_of(digest: bytes) -> bytes:
    """The leaf of a contribution's content digest."""
    return _sha256(b"\0" + digest).digest()


def levels_of(leaves: Sequence[bytes]) -> Levels:
    """The tree: its leaves, then each level above them, up to the root alone."""
    levels = [list(leaves)]
    while len(level := levels[-1]) > 1:
        above = [
            _sha256(b"\1" + level[at] + level[at + 1]).digest()
            for at in range(0, len(level) - 1, 2)
        ]
        if len(level) % 2:
            above.append(level[-1])
        levels.append(above)
    return levels


def root_of(levels: Levels) -> bytes:
    """The root of a tree; of one without leaves, sha-256 of nothing."""
    return levels[-1][0] if levels[-1] else EMPTY_ROOT


def proof_of(levels: Levels, place: int) -> list[bytes]:
    """The neighbours on the way from the leaf at ``place`` to the root, from below."""
    assert 0 <= place < len(levels[0]), (place, len(levels[0]))
    proof = []
    for level in levels[:-1]:
        neighbour = place ^ 1
        if neighbour < len(level):
            proof.append(level[neighbour])
        place >>= 1
    return proof


def root_from_proof(leaf: bytes, place: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    """The root that this proof leads to; None where no such proof has this length or place."""
    if not 0 <= place < size:
        return None
    node, last, left = leaf, size - 1, list(proof)
    while last:
        if place % 2 or place < last:  # it has a neighbour
            if not left:
                return None
            neighbour = left.pop(0)
            pair = neighbour + node if place % 2 else node + neighbour
            node = _sha256(b"\1" + pair).digest()
        place >>= 1
        last >>= 1
    return None if left else node
