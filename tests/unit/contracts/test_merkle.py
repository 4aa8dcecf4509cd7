"""The payout's tree and its published list, against OpenZeppelin's own library."""

import hashlib
import json
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.contracts.merkle import (
    AMOUNT_MAX,
    PayoutList,
    Tree,
    decode_list,
    digest_of,
    encode_list,
    is_proven,
    leaf_of,
)
from gristmill.wire.errors import RemoteError

#: roots that @openzeppelin/merkle-tree 1.0.8 gives (StandardMerkleTree.of, ["address", "uint128"])
#: of the first n of ``people``
ROOTS = {
    1: "7f780ffc6ef4ef3227aff437ff6bca86850f2fa3d95a1567daf2da63ac0222e3",
    2: "c96a2f436c17bc3a325f08b273ef1da0b3238617e065fb233540082053253bb1",
    3: "0efe25d8e416353751a251f677c7986d4b78a0d3239f18fa0fce0760c9136e6b",
    6: "433f72997c4d0728b444e28f4462df26baf873e884a545a5f1a6597b1dc02491",
    7: "8513dcebaf822c67945ce3a5f5b6f30b425304cf18a530a944dde7679eae0a52",
}


def people(count: int) -> list[tuple[bytes, int]]:
    """Leaves that JavaScript can make, too: (address, amount)."""
    addresses = [hashlib.sha256(b"%d" % at).digest()[:20] for at in range(count)]
    return sorted((address, pow(10, at, 10**19) + at) for at, address in enumerate(addresses))


@pytest.mark.parametrize("count", ROOTS)
def test_the_root_is_openzeppelins(count: int) -> None:
    assert Tree(people(count)).root.hex() == ROOTS[count]


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.binary(min_size=20, max_size=20), st.integers(0, AMOUNT_MAX), min_size=1))
def test_each_leaf_is_proven_and_no_other(amounts: dict[bytes, int]) -> None:
    leaves = sorted(amounts.items())
    tree = Tree(leaves)
    assert Tree(leaves[::-1]).root == tree.root
    for address, amount in leaves:
        proof = tree.proof_of(address)
        assert len(proof) <= len(leaves).bit_length()
        assert is_proven(tree.root, address, amount, proof)
        assert not is_proven(tree.root, address, (amount + 1) % AMOUNT_MAX, proof)
        assert not is_proven(tree.root, bytes(20), amount, proof) or address == bytes(20)
        for at in range(len(proof)):
            assert not is_proven(tree.root, address, amount, proof[:at])


def test_a_leaf_has_its_own_place_only() -> None:
    assert leaf_of(bytes(19) + b"\1", 2) != leaf_of(bytes(19) + b"\2", 1)
    with pytest.raises(KeyError):
        Tree(people(3)).proof_of(bytes(20))
    with pytest.raises(AssertionError):
        Tree([(bytes(20), 1), (bytes(20), 2)])


def test_a_hundred_thousand_leaves(figures: Callable[..., None]) -> None:
    leaves = people(100_000)
    began = time.process_time()
    tree = Tree(leaves)
    built_s = time.process_time() - began
    listed = encode_list(PayoutList(31337, bytes(20), 1, leaves))
    proof = tree.proof_of(leaves[777][0])
    assert len(proof) <= 18
    assert is_proven(tree.root, *leaves[777], proof)
    figures(leaves=len(leaves), tree_cpu_s=round(built_s, 2), list_bytes=len(listed))


def payout(count: int = 3) -> PayoutList:
    return PayoutList(31337, b"\xab" * 20, 7, people(count))


def test_a_list_comes_back() -> None:
    listed = encode_list(payout())
    again = decode_list(listed)
    assert again == payout()
    assert Tree(again.leaves).root == Tree(payout().leaves).root
    assert digest_of(listed) == hashlib.sha256(listed).digest()
    assert json.loads(listed)["total"] == str(sum(amount for _, amount in people(3)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"number":7', b'"number":0'),
        (b'"number":7', b'"number":7.0'),
        (b'"number":7', b'"number": 7'),
        (b'"version":1', b'"version":2'),
        (b'"pool":"0xab', b'"pool":"0xAB'),
        (b'"pool":', b'"extra":1,"pool":'),
        (b'"total":"', b'"total":"1'),
        (b"]]", b"],[]]"),
        (b'"leaves":[[', b'"leaves":[["0x00","5"],['),
        (b'"leaves":[[', b'"leaves":[["0x' + b"f" * 40 + b'","5"],['),
        (b'"leaves":[[', b'"leaves":[["0x' + b"0" * 40 + b'","0"],['),
        (b'"leaves":[[', b'"leaves":[["0x' + b"0" * 40 + b'","' + b"9" * 39 + b'"],['),
        (b'{"chain_id"', b'[{"chain_id"'),
    ],
)
def test_any_other_text_is_refused(old: bytes, new: bytes) -> None:
    listed = encode_list(payout())
    changed = listed.replace(old, new, 1)
    assert changed != listed
    with pytest.raises(RemoteError) as caught:
        decode_list(changed)
    assert caught.value.code == "MALFORMED"


def test_an_address_stands_once() -> None:
    address, amount = people(1)[0]
    for leaves in ([(address, amount)] * 2, [(address, amount), (bytes(20), 1)]):
        with pytest.raises(RemoteError, match="stands twice, or out of order"):
            decode_list(encode_list(PayoutList(1, bytes(20), 1, leaves)))


@pytest.mark.parametrize("listed", [b"", b"null", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_list_is_refused(listed: bytes) -> None:
    with pytest.raises(RemoteError, match="no list of a payout"):
        decode_list(listed)
