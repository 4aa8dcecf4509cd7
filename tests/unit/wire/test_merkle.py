"""The tree of an epoch against the recursion of RFC 6962 written down as it stands there."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.wire import merkle


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1: MTH over leaves that are hashed already."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    pair = naive_root(leaves[:split]) + naive_root(leaves[split:])
    return hashlib.sha256(b"\x01" + pair).digest()


def naive_proof(place: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 6962, 2.1.1: PATH."""
    if len(leaves) == 1:
        return []
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    if place < split:
        return [*naive_proof(place, leaves[:split]), naive_root(leaves[split:])]
    return [*naive_proof(place - split, leaves[split:]), naive_root(leaves[:split])]


def leaves_of(size: int) -> list[bytes]:
    return [merkle.leaf_of(b"%d" % number) for number in range(size)]


def test_a_leaf_is_no_node() -> None:
    assert merkle.leaf_of(b"x") == hashlib.sha256(b"\x00x").digest()
    assert merkle.root_of(merkle.levels_of([])) == hashlib.sha256(b"").digest()


@pytest.mark.parametrize("size", [*range(1, 34), 63, 64, 65, 200])
def test_every_place_of_a_tree_is_the_recursions(size: int) -> None:
    leaves = leaves_of(size)
    levels = merkle.levels_of(leaves)
    root = merkle.root_of(levels)
    assert root == naive_root(leaves)
    for place in range(size):
        proof = merkle.proof_of(levels, place)
        assert proof == naive_proof(place, leaves)
        assert merkle.root_from_proof(leaves[place], place, size, proof) == root


@given(st.integers(1, 300), st.data())
def test_a_proof_proves_its_leaf_at_its_place_and_nothing_else(size: int, data) -> None:
    leaves = leaves_of(size)
    levels = merkle.levels_of(leaves)
    root, place = merkle.root_of(levels), data.draw(st.integers(0, size - 1))
    proof = merkle.proof_of(levels, place)
    assert merkle.root_from_proof(merkle.leaf_of(b"other"), place, size, proof) != root
    other = data.draw(st.integers(-2, size + 2))
    if other != place:
        assert merkle.root_from_proof(leaves[place], other, size, proof) != root
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        assert merkle.root_from_proof(leaves[place], place, size, proof[:at]) != root
        bent = [*proof[:at], bytes(32), *proof[at + 1 :]]
        assert merkle.root_from_proof(leaves[place], place, size, bent) != root
    assert merkle.root_from_proof(leaves[place], place, size, [*proof, root]) is None
