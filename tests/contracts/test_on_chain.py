"""Our Python and the contracts say the same: vouchers, leaves, reverts, events, codes."""

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from chain_rig import ChainRig

from gristmill.contracts import deployment, merkle, plan, vouchers
from gristmill.contracts.abi import Interface
from gristmill.contracts.artifact import load
from gristmill.contracts.deployment import Deployment
from gristmill.contracts.ethereum import keccak
from gristmill.contracts.faults import RevertedError
from gristmill.contracts.keys import AccountKey
from gristmill.contracts.rpc import Chain, Contract, Receipt, Transaction
from gristmill.wire.errors import RemoteError

DAY_S = 86_400
GAS = 3_000_000


class Grid:
    """Contracts on a chain of this test's own, and who uses them.

    ``deployer`` owns, is coordinator and provider; ``client`` has 1,000 credits.
    """

    def __init__(self, rig: ChainRig, folder: pathlib.Path) -> None:
        self.rig = rig
        self.chain = Chain([rig.url])
        self.deployer, self.client, self.wallet, self.arbiter, self.guardian = (
            AccountKey(person.secret) for person in rig.people[:5]
        )
        self.wanted = plan.Wanted(
            b"", self.wallet.address, self.arbiter.address, self.guardian.address,
            self.deployer.address, DAY_S, 500_000_000, DAY_S, DAY_S,
        )  # fmt: skip
        self.file = folder / "deployment.json"
        made = plan.make(self.chain, self.wanted, self.deployer.address, None)
        self.deployment: Deployment = plan.execute(
            self.chain, made, self.deployer, self.file, None, lambda step, placed: None
        )
        self.token = self.deployment.token_contract()
        self.rental = self.deployment.at("ComputeRental")
        self.pool = self.deployment.at("WorkPool")
        self.do(self.deployer, self.token, "mint", self.client.address, 1_000_000_000)

    def do(self, key: AccountKey, contract: Contract, function: str, *arguments: Any) -> Receipt:
        """A transaction, mined; raises what a dry run of it is refused with."""
        body = contract.interface.encode_call(function, arguments)
        nonce, fees = self.chain.nonce(key.address), self.chain.fees()
        sent = Transaction(
            self.chain.chain_id, nonce, contract.address, body, GAS, fees.limit, fees.priority
        )
        self.chain.estimate(sent, key.address)
        receipt = self.chain.wait(self.chain.send(key.sign(sent)), 10)
        assert receipt.is_ok
        return receipt

    def lock(self, amount: int = 100_000_000, salt: bytes = bytes(32)) -> bytes:
        """A rental of the client's; its id."""
        header = self.chain.header()
        assert header is not None
        self.do(self.client, self.token, "approve", self.rental.address, amount)
        self.do(self.client, self.rental, "lock", salt, self.deployer.address, self.pool.address,
                amount, header.timestamp + DAY_S, keccak(b"agreement"))  # fmt: skip
        return vouchers.rental_id(self.client.address, salt)


@pytest.fixture
def grid(anvil: ChainRig, tmp_path: pathlib.Path) -> Iterator[Grid]:
    made = Grid(anvil, tmp_path)
    yield made
    made.chain.close()


def test_a_voucher_is_what_the_contract_signs(grid: Grid) -> None:
    voucher = vouchers.Voucher(b"\x01" * 32, 2**128 - 1, b"\x02" * 32)
    chain_id, contract = grid.chain.chain_id, grid.rental.address
    digest = grid.chain.call(grid.rental, "voucherDigest", *voucher)
    assert vouchers.digest_of(voucher, chain_id, contract) == digest
    for chain, other in ((chain_id + 1, contract), (chain_id, grid.pool.address)):
        assert vouchers.digest_of(voucher, chain, other) != digest
    salt = bytes(31) + b"\x05"
    rental = grid.chain.call(grid.rental, "rentalId", grid.client.address, salt)
    assert vouchers.rental_id(grid.client.address, salt) == rental


def test_a_signed_voucher_is_redeemed_and_refusals_are_words(grid: Grid) -> None:
    rental = grid.lock()
    chain_id, contract = grid.chain.chain_id, grid.rental.address

    def signed(cumulative: int, key: AccountKey = grid.client) -> tuple[int, bytes, bytes]:
        voucher = vouchers.Voucher(rental, cumulative, b"\x07" * 32)
        return cumulative, b"\x07" * 32, vouchers.sign(voucher, chain_id, contract, key.secret)

    receipt = grid.do(grid.deployer, grid.rental, "redeem", rental, *signed(700))
    paid = next(e for e in grid.chain.logs(receipt.block, receipt.block, [grid.rental])
                if e.name == "Paid")  # fmt: skip
    assert paid.arguments["id"] == rental
    assert paid.arguments["payee"] == grid.pool.address
    assert (paid.arguments["net"], paid.arguments["fee"]) == (679, 21)
    assert paid.transaction == receipt.transaction
    assert paid.block_hash == receipt.block_hash
    with pytest.raises(RevertedError) as caught:
        grid.do(grid.deployer, grid.rental, "redeem", rental, *signed(500))
    assert caught.value.arguments == {"cumulative": 500, "least": 701, "most": 100_000_000}
    words = f"{caught.value.name}(cumulative 500, least 701, most 100000000)"
    assert caught.value.message.endswith(f"was refused by the contract: {words}")
    with pytest.raises(RevertedError) as caught:
        grid.do(grid.deployer, grid.rental, "redeem", rental, *signed(800, grid.deployer))
    assert caught.value.name, caught.value.message


def test_a_voucher_is_checked_before_the_chain_is_asked(grid: Grid) -> None:
    chain_id, contract = grid.chain.chain_id, grid.rental.address
    voucher = vouchers.Voucher(bytes(32), 5, bytes(32))
    signature = vouchers.sign(voucher, chain_id, contract, grid.client.secret)
    vouchers.check(voucher, chain_id, contract, signature, grid.client.address)
    assert vouchers.recover(voucher, chain_id, contract, signature) == grid.client.address
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    high = (order - int.from_bytes(signature[32:64])).to_bytes(32)
    twin = signature[:32] + high + bytes([55 - signature[64]])
    for wrong in (
        b"", bytes(65), signature[:64], signature + b"\0", signature[:64] + b"\x1d",
        b"\xff" * 64 + b"\x1b", bytes([signature[0] ^ 1]) + signature[1:], twin,
    ):  # fmt: skip
        with pytest.raises(RemoteError) as caught:
            vouchers.check(voucher, chain_id, contract, wrong, grid.client.address)
        assert caught.value.code == "UNAUTHORISED"
    more = voucher._replace(cumulative=6)
    with pytest.raises(RemoteError, match="over 6 micro-credits is 0x"):
        vouchers.check(more, chain_id, contract, signature, grid.client.address)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
def test_every_leaf_of_a_tree_is_paid(grid: Grid, count: int) -> None:
    leaves = sorted((keccak(b"%d" % at)[:20], 1_000_000 + at) for at in range(count))
    listed = merkle.PayoutList(grid.chain.chain_id, grid.pool.address, 1, leaves)
    tree = merkle.Tree(leaves)
    leaf = grid.chain.call(grid.pool, "leafOf", *leaves[0])
    assert leaf == merkle.leaf_of(*leaves[0])
    grid.do(grid.client, grid.token, "transfer", grid.pool.address, listed.total)
    digest = merkle.digest_of(merkle.encode_list(listed))
    grid.do(grid.deployer, grid.pool, "post", tree.root, bytes(32), digest, listed.total)
    grid.rig.mine(1, DAY_S + 1)
    assert grid.chain.call(grid.pool, "current") == (1, tree.root, listed.total)
    for address, amount in leaves:
        proof = tree.proof_of(address)
        with pytest.raises(RevertedError):
            grid.do(grid.deployer, grid.pool, "claim", address, amount + 1, proof)
        grid.do(grid.deployer, grid.pool, "claim", address, amount, proof)
        assert grid.chain.call(grid.token, "balanceOf", address) == amount
    assert grid.chain.call(grid.pool, "claimedTotal") == listed.total


def test_what_was_deployed_is_checked_whole(grid: Grid) -> None:
    assert deployment.read(grid.file) == grid.deployment
    deployment.check(grid.deployment, grid.chain)
    pool = grid.deployment.contracts["WorkPool"]
    code = grid.chain.code(pool.address)
    assert not deployment.fault_of_code("WorkPool", pool, code)
    spot = load("WorkPool").immutables[0][0]
    inside = code[: spot + 31] + bytes([code[spot + 31] ^ 1]) + code[spot + 32 :]
    assert deployment.fault_of_code("WorkPool", pool, inside).startswith("its code is the artif")
    grid.rig.ask("anvil_setCode", f"0x{pool.address.hex()}", f"0x{inside.hex()}")
    with pytest.raises(RemoteError, match="other immutables than the file's") as caught:
        deployment.check(grid.deployment, grid.chain)
    assert caught.value.code == "CHAIN_WRONG"
    outside = bytes([code[0] ^ 1]) + code[1:]
    grid.rig.ask("anvil_setCode", f"0x{pool.address.hex()}", f"0x{outside.hex()}")
    with pytest.raises(RemoteError, match="its code differs from byte 0 of"):
        deployment.check(grid.deployment, grid.chain)
    grid.rig.ask("anvil_setCode", f"0x{pool.address.hex()}", "0x")
    with pytest.raises(RemoteError, match="there is no code"):
        deployment.check(grid.deployment, grid.chain)


def test_blocks_fees_and_what_a_sender_lacks(grid: Grid) -> None:
    chain = grid.chain
    newest = chain.header()
    assert newest is not None
    assert newest.number == chain.number()
    before = chain.header(newest.number - 1)
    assert before is not None
    assert before.hash == newest.parent
    assert chain.header(newest.hash) == newest
    assert chain.header(newest.number + 1) is None
    fees = chain.fees()
    assert fees.limit == 2 * fees.base + fees.priority > 0
    poor = AccountKey(b"\x11" * 32)

    def send(nonce: int, key: AccountKey = poor, price: int = fees.limit) -> bytes:
        body = grid.token.interface.encode_call("mint", [key.address, 1])
        sent = Transaction(
            chain.chain_id, nonce, grid.token.address, body, 100_000, price, min(price, 1)
        )
        return chain.send(key.sign(sent))

    for told, code, ask in (
        ("poor", "CHAIN_FUNDS", lambda: send(0)),
        ("nonce", "CHAIN_NONCE", lambda: send(0, grid.deployer)),
        ("price", "CHAIN_UNDERPRICED", lambda: send(99, grid.client, 1)),
    ):
        with pytest.raises(RemoteError) as caught:
            ask()
        assert caught.value.code == code, (told, caught.value)
    hash_ = send(chain.nonce(grid.client.address), grid.client)
    assert chain.is_known(hash_)
    assert chain.wait(hash_, 10).is_ok
    assert not chain.is_known(bytes(32))
    assert chain.receipt(bytes(32)) is None


def test_a_token_with_other_decimals_is_refused(grid: Grid) -> None:
    from gristmill.contracts.rpc import check_token, token_at

    check_token(grid.chain, grid.token)
    with pytest.raises(RemoteError, match="there is no contract at"):
        check_token(grid.chain, token_at(b"\x33" * 20))
    with pytest.raises(RemoteError, match="is no token"):
        check_token(grid.chain, token_at(grid.pool.address))
    # decimals() of this one answers 18: PUSH1 18, MSTORE at 0, RETURN 32 bytes
    place = b"\x44" * 20
    grid.rig.ask("anvil_setCode", f"0x{place.hex()}", "0x60125f5260205ff3")
    with pytest.raises(RemoteError, match="has 18 decimals, not 6"):
        check_token(grid.chain, token_at(place))


def test_every_abi_can_be_read() -> None:
    for name in ("ComputeRental", "WorkPool", "PromptMarketplace", "DevToken"):
        interface = Interface(load(name).abi)
        assert interface.errors, name
