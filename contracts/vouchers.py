"""What a client signs for what it has had: EIP-712 vouchers of ComputeRental.

A voucher says how much of a rental its client has approved so far, all of it: the next one takes
its place, and one that is lost or shown twice changes nothing.
"""

from typing import NamedTuple

from gristmill.contracts.abi import ADDRESS_BYTES, HASH_BYTES, show_address
from gristmill.contracts.ethereum import Account, keccak
from gristmill.wire.errors import RemoteError

SIGNATURE_BYTES = 65
_DOMAIN_TYPE = keccak(
    b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
_NAME, _REVISION = keccak(b"ComputeRental"), keccak(b"1")
_TYPE = keccak(b"Voucher(bytes32 rentalId,uint128 cumulative,bytes32 receiptsRoot)")
#: half the order of secp256k1: of the two signatures that say the same, only the lower counts
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


class Voucher(NamedTuple):
    """``rental``: its id. ``cumulative``: micro-credits, gross, of the whole rental so far.

    ``receipts_root``: of the receipts that it pays for; both hashes have 32 bytes.
    """

    rental: bytes
    cumulative: int
    receipts_root: bytes


def rental_id(client: bytes, salt: bytes) -> bytes:
    """The id of a rental, as ``ComputeRental.rentalId``: no other client can take it."""
    assert len(client) == ADDRESS_BYTES and len(salt) == HASH_BYTES, (client, salt)
    return keccak(client.rjust(HASH_BYTES, b"\0") + salt)


def digest_of(voucher: Voucher, chain_id: int, contract: bytes) -> bytes:
    """The 32 bytes that are signed: of this chain and this contract only."""
    assert len(voucher.rental) == len(voucher.receipts_root) == HASH_BYTES, voucher
    domain = (
        _DOMAIN_TYPE + _NAME + _REVISION + chain_id.to_bytes(HASH_BYTES)
        + contract.rjust(HASH_BYTES, b"\0")
    )  # fmt: skip
    amount = voucher.cumulative.to_bytes(HASH_BYTES)
    content = _TYPE + voucher.rental + amount + voucher.receipts_root
    return keccak(b"\x19\x01" + keccak(domain) + keccak(content))


def sign(voucher: Voucher, chain_id: int, contract: bytes, secret: bytes) -> bytes:
    """65 bytes of signature (r, s, v) by the key of an account, 32 bytes."""
    signed = Account.unsafe_sign_hash(digest_of(voucher, chain_id, contract), secret)
    return bytes(signed.signature)


def recover(voucher: Voucher, chain_id: int, contract: bytes, signature: bytes) -> bytes:
    """The address that signed; empty where the contract would take it for no signature.

    Contract wallets sign otherwise (ERC-1271): the chain knows those, this does not.
    """
    if len(signature) != SIGNATURE_BYTES or signature[64] not in (27, 28):
        return b""
    if int.from_bytes(signature[32:64]) > _HALF_ORDER:
        return b""
    try:
        found = Account._recover_hash(digest_of(voucher, chain_id, contract), signature=signature)
    except Exception:  # eth-keys and coincurve each have their own of what is no signature
        return b""
    return bytes.fromhex(str(found)[2:])


def check(
    voucher: Voucher, chain_id: int, contract: bytes, signature: bytes, client: bytes
) -> None:
    """Raises unless the client signed it.

    Raises:
        RemoteError: ``UNAUTHORISED``, naming who did, or that nobody did.
    """
    signer = recover(voucher, chain_id, contract, signature)
    if signer != client:
        by = f"is {show_address(signer)}'s" if signer else "is no signature"
        raise RemoteError(
            "UNAUTHORISED",
            f"the signature of a voucher over {voucher.cumulative} micro-credits {by}, "
            f"not {show_address(client)}'s",
            "sign it with the key that locked the rental, for this chain and contract",
        )
