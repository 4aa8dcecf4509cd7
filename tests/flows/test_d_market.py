"""Rows of the marketplace's contract: registering, the split of a price, confirmation, the fee."""

import hashlib
import json
import pathlib
import subprocess
from typing import Any

import pytest
from chain_rig import CONTRACTS
from contract_shop import CREDIT, DAY_S, Shop, burning
from settle_stage import DEPTH, Stage, settle_stage

from gristmill.cli.grid import Grid
from gristmill.contracts import plan
from gristmill.contracts.abi import show_address
from gristmill.contracts.artifact import is_code_of, load
from gristmill.contracts.ethereum import Account, keccak
from gristmill.contracts.faults import RevertedError
from gristmill.contracts.keys import AccountKey
from gristmill.wire.errors import RemoteError

PROMPT = keccak(b"a prompt")
MOST = 2**128 - 1
SHOWN = b"\x16\x26\xba\x7e"  #: what an ERC-1271 wallet answers to a signature that is its own


def token_id(content: bytes = PROMPT) -> int:
    return int.from_bytes(content)


def listed(shop: Shop, price: int, content: bytes = PROMPT) -> int:
    """The creator sells a prompt at a price."""
    shop.do(shop.creator, shop.market, "register", content, 500)
    shop.do(shop.creator, shop.market, "list", token_id(content), price)
    return token_id(content)


def offer(shop: Shop, price: int, creator: bytes, content: bytes = PROMPT) -> tuple[Any, ...]:
    """An offer for a day, as ``registerAndBuy`` takes it."""
    return creator, content, price, 500, shop.now_s() + DAY_S


def signed(shop: Shop, offered: tuple[Any, ...], key: AccountKey) -> bytes:
    digest = shop.chain.call(shop.market, "digestOf", offered)
    return bytes(Account.unsafe_sign_hash(digest, key.secret).signature)


# ------------------------------------------------------------ D06


def test_d06_the_code_on_the_chain_is_what_the_repository_compiles_to(shop: Shop) -> None:
    pinned = json.loads(shop.file.read_text())["contracts"]
    for name, placed in shop.placed.contracts.items():
        artifact, code = load(name), shop.chain.code(placed.address)
        assert pinned[name]["address"] == show_address(placed.address)
        assert pinned[name]["code"] == f"0x{keccak(code).hex()}"
        assert is_code_of(artifact, code)
        assert artifact.compiler.startswith("0.8.37+commit.")
        source = (CONTRACTS / "src" / f"{name}.sol").read_bytes()
        assert artifact.sources[f"src/{name}.sol"] == hashlib.sha256(source).hexdigest()
    command = ["node", str(CONTRACTS / "tools" / "build.mjs"), "--check"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert built.returncode == 0, built.stderr
    assert "4 artifacts are what contracts/src compiles to" in built.stdout
    seen = shop.run("chain", "status", "--json")
    told = json.loads(seen.stdout.splitlines()[-1])
    assert {one["contract"]: one["fault"] for one in told["contracts"]} == dict.fromkeys(
        ("DevToken", "WorkPool", "ComputeRental", "PromptMarketplace"), ""
    )


def test_d06_other_code_than_was_pinned_is_not_paid(shop: Shop, grid: Grid) -> None:
    shop.money(shop.client, CREDIT, shop.rental)
    before = shop.chain.nonce(shop.client.address)
    code = shop.chain.code(shop.rental.address)
    spoilt = bytes([code[0] ^ 1]) + code[1:]
    shop.rig.ask("anvil_setCode", f"0x{shop.rental.address.hex()}", f"0x{spoilt.hex()}")
    to = ("--provider", show_address(shop.operator.address))
    done = shop.run("rental", "lock", "1", *to, key="client", address=grid.address)
    assert done.returncode != 0 and done.stderr.startswith("CHAIN_WRONG"), done.stderr
    assert show_address(shop.rental.address) in done.stderr
    assert "differs from byte 0" in done.stderr and "nothing was sent" in done.stderr
    assert shop.chain.nonce(shop.client.address) == before
    assert shop.has(shop.client.address) == CREDIT


# ------------------------------------------------------------ D14, D15


def test_d14_a_prompt_is_registered_once_whoever_says_it_again(shop: Shop) -> None:
    shop.do(shop.creator, shop.market, "register", PROMPT, 500)
    held = lambda: (  # noqa: E731
        shop.chain.call(shop.market, "ownerOf", token_id()),
        shop.chain.call(shop.market, "royaltyInfo", token_id(), 10_000),
        shop.chain.call(shop.market, "balanceOf", shop.creator.address),
    )
    before = held()
    assert before == (shop.creator.address, (shop.creator.address, 500), 1)
    for who in (shop.creator, shop.stranger):
        with pytest.raises(RevertedError) as caught:
            shop.do(who, shop.market, "register", PROMPT, 900)
        assert caught.value.name == "AlreadyRegistered"
        assert caught.value.arguments == {"id": token_id(), "owner": shop.creator.address}
        words = f"AlreadyRegistered(id {token_id()}, owner {show_address(shop.creator.address)})"
        assert caught.value.message.startswith("register of PromptMarketplace at 0x")
        assert caught.value.message.endswith(f" was refused by the contract: {words}")
        assert caught.value.hint
        assert not shop.forced(who, shop.market, "register", PROMPT, 900)
        assert held() == before


def test_d15_the_fee_is_the_floor_and_the_rest_is_the_sellers(shop: Shop) -> None:
    shop.do(shop.creator, shop.market, "register", PROMPT, 500)
    assert shop.refused(shop.creator, shop.market, "list", token_id(), 0) == "ZeroPrice"
    fees = earned = 0
    for number, price in enumerate((1, 33, 34, 66, 67, 10_000, MOST)):
        content = keccak(b"%d" % number)
        id = listed(shop, price, content)
        shop.money(shop.client, price, shop.market)
        receipt = shop.do(shop.client, shop.market, "buy", id, price)
        (sold,) = (e for e in shop.events(receipt, shop.market) if e.name == "Sold")
        fee = price * 300 // 10_000
        assert (sold.arguments["fee"], sold.arguments["royalty"]) == (fee, 0), price
        fees, earned = fees + fee, earned + price - fee
        assert shop.owed(shop.market, shop.fees) == fees
        assert shop.owed(shop.market, shop.creator) == earned
        # The escrow takes the same part of the same sum.
        rental = shop.lock(price, salt=number)
        receipt = shop.do(shop.operator, shop.rental, "redeem", *shop.signed(rental, price))
        (paid,) = (e for e in shop.events(receipt, shop.rental) if e.name == "Paid")
        assert (paid.arguments["fee"], paid.arguments["net"]) == (fee, price - fee)
    assert shop.has(shop.market.address) == fees + earned
    page = (CONTRACTS.parent / "docs" / "contracts" / "market.md").read_text()
    assert "fee     = floor(price * 300 / 10000)" in page
    assert "the seller's, with what rounding left" in page


def test_d15_an_unexpected_fee_halts_the_payouts(tmp_path: pathlib.Path) -> None:
    with settle_stage(tmp_path) as stage:  # its own: what is halted so stays halted
        id = stage.rental()
        stage.idle()
        address = f"0x{stage.market.rental.address.hex()}"
        code = stage.market.chain.code(stage.market.rental.address).hex()
        assert code.count("61012c") == 2, "PUSH2 300, the rate: its getter, and where it is taken"
        stage.rig.ask("anvil_setCode", address, f"0x{code.replace('61012c', '610190')}")  # 4 %
        stage.pay(id, CREDIT // 2)
        purpose = f"redeem/{id.hex()}/0/1"
        stage.until("it is final", lambda: purpose in stage.settlement.courier.lane.intents)
        stage.until("it is final", lambda: stage.intent(purpose).state == "confirmed")
        stage.mine()
        assert "drift" in stage.settlement.halted
        assert stage.settlement.report is not None
        (fault,) = stage.settlement.report.faults
        assert "has a fee of 20000, 15000 is due" in fault
        nonce = stage.market.chain.nonce(stage.market.grid.address)
        stage.pay(id, CREDIT)
        stage.again()
        stage.mine(3)
        assert "drift" in stage.settlement.halted, "also after a restart"
        assert stage.market.chain.nonce(stage.market.grid.address) == nonce, "nothing is sent"


# ------------------------------------------------------------ D23, D24


def test_d23_the_parts_are_the_price_to_the_unit(shop: Shop) -> None:
    price = 1_234_567
    id = listed(shop, price)
    shop.money(shop.client, price, shop.market)
    shop.do(shop.client, shop.market, "buy", id, price)
    # Sold on: now there is a royalty as well.
    shop.do(shop.client, shop.market, "list", id, price)
    shop.money(shop.stranger, price, shop.market)
    people = (shop.fees, shop.creator, shop.client)
    before = [shop.owed(shop.market, one) for one in people]
    receipt = shop.do(shop.stranger, shop.market, "buy", id, price)
    parts = [shop.owed(shop.market, one) - old for one, old in zip(people, before, strict=True)]
    fee, royalty = price * 300 // 10_000, price * 500 // 10_000
    assert parts == [fee, royalty, price - fee - royalty] and sum(parts) == price
    (sold,) = (e for e in shop.events(receipt, shop.market) if e.name == "Sold")
    assert (sold.arguments["price"], sold.arguments["fee"]) == (price, fee)
    assert shop.chain.call(shop.market, "ownerOf", id) == shop.stranger.address
    assert shop.has(shop.market.address) == 2 * price
    for one in people:
        due, has = shop.owed(shop.market, one), shop.has(one.address)
        shop.do(shop.guardian, shop.market, "withdrawTo", one.address)
        assert shop.has(one.address) == has + due
    assert shop.has(shop.market.address) == 0


def test_d23_no_part_of_a_sale_happens_alone(shop: Shop) -> None:
    id = listed(shop, CREDIT)
    told = lambda: (  # noqa: E731
        shop.chain.call(shop.market, "ownerOf", id),
        shop.chain.call(shop.market, "priceOf", id),
        shop.owed(shop.market, shop.creator),
        shop.owed(shop.market, shop.fees),
        shop.has(shop.market.address),
    )
    before = told()
    assert before[2:] == (0, 0, 0)
    shop.do(shop.client, shop.token, "mint", shop.client.address, CREDIT - 1)
    shop.do(shop.client, shop.token, "approve", shop.market.address, CREDIT)
    assert not shop.forced(shop.client, shop.market, "buy", id, CREDIT), "one unit too little"
    assert told() == before
    shop.do(shop.client, shop.token, "mint", shop.client.address, 1)
    assert shop.refused(shop.client, shop.market, "buy", id, CREDIT - 1) == "PriceAbove"
    shop.do(shop.client, shop.token, "approve", shop.market.address, CREDIT - 1)
    assert not shop.forced(shop.client, shop.market, "buy", id, CREDIT), "one unit not allowed"
    assert told() == before
    shop.do(shop.client, shop.token, "approve", shop.market.address, CREDIT)
    assert shop.forced(shop.client, shop.market, "buy", id, CREDIT)
    assert told()[0] == shop.client.address


def test_d24_pending_until_k_deep_and_a_re_org_locks_it_again(stage: Stage) -> None:
    id = stage.rental()
    paid = stage.grid.books(stage.pool).paid
    stage.pay(id, CREDIT)
    stage.settlement.turn()
    purpose = f"redeem/{id.hex()}/0/1"
    left = lambda: stage.market.chain.call(stage.market.rental, "rentals", id)[7]  # noqa: E731
    for deep in range(1, DEPTH):
        stage.mine()
        assert stage.line(purpose) == f"pending ({deep} of {DEPTH})"
        assert stage.grid.books(stage.pool).paid == paid
    assert left() == CREDIT
    stage.rig.ask("anvil_reorg", DEPTH - 1, [])
    stage.settlement.turn()
    assert left() == 0, "all of it is locked again"
    assert not stage.line(purpose).startswith("pending")
    assert stage.grid.books(stage.pool).paid == paid
    stage.until("it is final", lambda: not stage.line(purpose))
    stage.idle()
    assert left() == CREDIT and stage.market.redeemed()[id] == [CREDIT]
    assert stage.grid.books(stage.pool).paid == paid + CREDIT


# ------------------------------------------------------------ D35, D36


def test_d35_minted_paid_and_handed_over_in_one_transaction_once(shop: Shop) -> None:
    offered = offer(shop, CREDIT, shop.creator.address)
    signature = signed(shop, offered, shop.creator)
    buy = ("registerAndBuy", offered, signature, CREDIT)
    shop.do(shop.client, shop.token, "approve", shop.market.address, CREDIT)
    assert not shop.forced(shop.client, shop.market, *buy), "no money"
    with pytest.raises(RevertedError, match="ERC721NonexistentToken"):  # nothing was minted
        shop.chain.call(shop.market, "ownerOf", token_id())
    shop.do(shop.client, shop.token, "mint", shop.client.address, CREDIT)
    receipt = shop.do(shop.client, shop.market, *buy)
    names = [event.name for event in shop.events(receipt, shop.market)]
    assert [name for name in names if name in ("Registered", "Sold")] == ["Registered", "Sold"]
    assert shop.chain.call(shop.market, "ownerOf", token_id()) == shop.client.address
    assert shop.owed(shop.market, shop.creator) == CREDIT - CREDIT * 3 // 100
    shop.money(shop.stranger, CREDIT, shop.market)
    assert shop.refused(shop.stranger, shop.market, *buy) == "AlreadyRegistered"
    assert shop.refused(shop.creator, shop.market, "register", PROMPT, 1) == "AlreadyRegistered"
    assert not shop.forced(shop.stranger, shop.market, *buy)
    assert shop.has(shop.stranger.address) == CREDIT


def test_d35_gas_above_the_cap_is_refused_before_anything_is_sent(shop: Shop) -> None:
    # The creator is a wallet whose answer to a signature burns gas.
    wallet = bytes([7]) * 20
    code = burning(115_000, SHOWN)
    shop.rig.ask("anvil_setCode", f"0x{wallet.hex()}", f"0x{code.hex()}")
    offered = offer(shop, CREDIT, wallet)
    shop.money(shop.client, CREDIT, shop.market)
    before = shop.chain.nonce(shop.client.address)
    with pytest.raises(RemoteError, match=r"takes 3,[0-9,]+ gas; the most is 2,000,000") as caught:
        shop.do(shop.client, shop.market, "registerAndBuy", offered, b"any", CREDIT)
    assert caught.value.code == "CHAIN_GAS"
    assert shop.chain.nonce(shop.client.address) == before
    assert shop.has(shop.client.address) == CREDIT
    cheap = burning(100, SHOWN)
    shop.rig.ask("anvil_setCode", f"0x{wallet.hex()}", f"0x{cheap.hex()}")
    shop.do(shop.client, shop.market, "registerAndBuy", offered, b"any", CREDIT)
    assert shop.has(shop.client.address) == 0


def test_d36_the_fee_goes_to_the_wallet_that_two_days_have_seen(shop: Shop) -> None:
    def status() -> dict[str, Any]:
        told = json.loads(shop.run("chain", "status", "--json").stdout.splitlines()[-1])
        (found,) = (one for one in told["contracts"] if one["contract"] == "PromptMarketplace")
        return dict(found)

    def sale(number: int) -> None:
        id = listed(shop, CREDIT, keccak(b"%d" % number))
        shop.money(shop.client, CREDIT, shop.market)
        shop.do(shop.client, shop.market, "buy", id, CREDIT)

    fee, new = CREDIT * 3 // 100, shop.arbiter
    assert status()["fee_wallet"] == show_address(shop.fees.address)
    sale(1)
    assert shop.owed(shop.market, shop.fees) == fee
    propose = ("proposeFeeWallet", new.address)
    assert shop.refused(shop.stranger, shop.market, *propose) == "OwnableUnauthorizedAccount"
    shop.do(shop.operator, shop.market, *propose)
    told = status()
    assert told["proposal"] == show_address(new.address), "everybody sees what is coming"
    assert told["proposal_from_s"] - shop.now_s() == 2 * DAY_S
    shop.rig.mine(1, 2 * DAY_S - 60)
    assert shop.refused(shop.operator, shop.market, "acceptFeeWallet") == "TooEarly"
    sale(2)
    assert shop.owed(shop.market, shop.fees) == 2 * fee, "until then nothing changes"
    shop.rig.mine(1, 60)
    shop.do(shop.stranger, shop.market, "acceptFeeWallet")
    assert status()["fee_wallet"] == show_address(new.address)
    sale(3)
    assert shop.owed(shop.market, shop.fees) == 2 * fee, "what was owed stays the old one's"
    assert shop.owed(shop.market, new) == fee


def test_d36_a_fee_wallet_of_zero_is_not_deployed(shop: Shop) -> None:
    zero = shop.wanted._replace(fee_wallet=bytes(20))
    before = shop.chain.nonce(shop.operator.address)
    with pytest.raises(RevertedError, match="ZeroAddress"):
        plan.make(shop.chain, zero, shop.operator.address, None)
    interface = shop.market.interface
    body = load("PromptMarketplace").bytecode
    body += interface.encode_constructor((shop.token.address, bytes(20)))
    sender = show_address(shop.operator.address)
    told = {"from": sender, "data": f"0x{body.hex()}", "gas": hex(8_000_000)}
    hash = str(shop.rig.ask("eth_sendTransaction", told))
    assert not shop.chain.wait(bytes.fromhex(hash[2:]), 10).is_ok
    made = plan.create_address(shop.operator.address, before)
    assert shop.chain.code(made) == b"", "the contract itself refuses"
