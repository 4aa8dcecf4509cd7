"""Rows of the escrow: lock, work, release, dispute, payout, claim; by the contract and a grid."""

import contextlib
import json
import logging
import os
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from chain_grid import CAP, LOCKED, ChainGrid, chain_grid
from contract_shop import CREDIT, DAY_S, Shop, calling_back, refusing
from grid_rig import gristmill, until
from lying_rpc_rig import liar
from nacl.signing import SigningKey
from settle_rig import WINDOW_S
from settle_stage import DEPTH, GWEI, Forgetful, Stage, settle_stage

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.errors import GridError
from gristmill.client.rental import state_payee
from gristmill.contracts.abi import encode, show_address
from gristmill.contracts.ethereum import keccak
from gristmill.contracts.faults import RevertedError
from gristmill.contracts.merkle import Tree, decode_list
from gristmill.contracts.rpc import Event
from gristmill.wire.chain import Payee, pool_of, sign_payee
from gristmill.wire.errors import RemoteError
from gristmill.wire.keys import load_key
from gristmill.wire.ledger import Fund, Leg, Transfer

FEE = CREDIT * 3 // 100
REAL = bytes([0xAA]) * 20  #: where a token's own code lies while another stands before it


def put(shop: Shop, address: bytes, code: bytes) -> None:
    shop.rig.ask("anvil_setCode", f"0x{address.hex()}", f"0x{code.hex()}")


def everything(shop: Shop, *ids: bytes) -> tuple[Any, ...]:
    """What may not change where nothing may happen."""
    people = (shop.client, shop.operator, shop.fees, shop.stranger)
    return (
        [shop.chain.call(shop.rental, "stateId", id) for id in ids],
        [shop.owed(shop.rental, one) for one in people],
        [shop.has(one.address) for one in people],
        shop.chain.call(shop.rental, "totalLiability"),
        shop.has(shop.rental.address),
    )


# ------------------------------------------------------------ E14, E41, E42


def test_e14_the_escrow_has_it_all_and_anybody_refunds_after_the_deadline(shop: Shop) -> None:
    begun = shop.now_s()
    id = shop.lock(CREDIT)
    found = shop.chain.call(shop.rental, "rentals", id)
    client, deadline, provider, _, state, payee, locked, paid, _, spec = found
    assert (client, provider, payee) == (
        shop.client.address, shop.operator.address, shop.pool.address,
    )  # fmt: skip
    assert (state, locked, paid, spec) == (1, CREDIT, 0, keccak(b"agreed"))
    assert DAY_S <= deadline - begun <= DAY_S + 10
    refund_s = shop.chain.call(shop.rental, "refundTime", id)
    assert refund_s == deadline + DAY_S
    shop.rig.ask("evm_setNextBlockTimestamp", refund_s - 60)
    shop.rig.mine()
    early = shop.run("rental", "refund", id.hex(), key="stranger")
    assert early.returncode != 0 and f"TooEarly(from {refund_s})" in early.stderr, early.stderr
    assert shop.state(id) == 1
    shop.rig.mine(1, 60)
    done = shop.run("rental", "refund", id.hex(), key="stranger")
    assert done.returncode == 0, done.stderr
    assert shop.state(id) == 3
    assert show_address(shop.client.address) in done.stderr, "to the client, whoever asked"
    assert shop.has(shop.client.address) == CREDIT
    assert shop.has(shop.rental.address) == 0


def test_e41_another_contract_than_the_kinds_own_is_refused(
    shop: Shop, grid: Grid, stage: Stage
) -> None:
    # A file in which escrow and marketplace are exchanged.
    told = json.loads(shop.file.read_text())
    rows = told["contracts"]
    rental, market = rows["ComputeRental"], rows["PromptMarketplace"]
    for field in ("address", "code"):
        rental[field], market[field] = market[field], rental[field]
    whole = shop.file.read_text()
    shop.money(shop.client, CREDIT, shop.rental)
    before = shop.chain.nonce(shop.client.address)
    to = ("--provider", show_address(shop.operator.address))
    try:
        shop.file.write_text(json.dumps(told))
        done = shop.run("rental", "lock", "1", *to, key="client", address=grid.address)
    finally:
        shop.file.write_text(whole)
    assert done.returncode != 0 and done.stderr.startswith("CHAIN_WRONG"), done.stderr
    assert f"ComputeRental at {show_address(shop.market.address)}" in done.stderr
    assert shop.chain.nonce(shop.client.address) == before
    assert shop.has(shop.client.address) == CREDIT
    # The marketplace takes no lock, and the grid no voucher of an escrow elsewhere.
    lock = (bytes(32), *(shop.operator.address,) * 2, CREDIT, shop.now_s() + DAY_S, bytes(32))
    assert not shop.forced(shop.client, shop.rental._replace(address=shop.market.address),
                           "lock", *lock)  # fmt: skip
    id = stage.rental()
    for wrong in (stage.market.pool.address, stage.market.token.address):
        with pytest.raises(RemoteError, match="for contract"):
            stage.settlement.take_voucher(stage.market.voucher(id, CREDIT, contract=wrong))
    stage.pay(id, CREDIT)
    stage.until("it is paid", lambda: stage.market.redeemed().get(id) == [CREDIT])


# ------------------------------------------------------------ E17, E46, E47


def test_e17_a_dispute_holds_the_money_and_shows_how_long(shop: Shop, grid: Grid) -> None:
    id = shop.lock(10 * CREDIT)
    shop.do(shop.client, shop.rental, "dispute", id)
    begun = shop.now_s()
    shop.do(shop.operator, shop.rental, "redeem", *shop.signed(id, 4 * CREDIT))
    assert shop.chain.call(shop.rental, "rentals", id)[7] == 0, "shown, and not paid"
    assert shop.refused(shop.operator, shop.rental, "settle", *shop.signed(id, 4 * CREDIT)) == (
        "WrongState"
    )
    shop.rig.mine(1, 3_600)
    shown = shop.run("rental", "show", id.hex(), "--json", address=grid.address)
    told = json.loads(shown.stdout.splitlines()[-1])
    assert (told["state"], told["dispute_ends_s"]) == ("disputed", begun + DAY_S)
    person = shop.run("rental", "show", id.hex(), address=grid.address)
    assert "held until" in person.stdout and "in 23 h" in person.stdout, person.stdout
    assert "disputed" in person.stdout
    shop.rig.mine(1, DAY_S)
    person = shop.run("rental", "show", id.hex(), address=grid.address)
    assert "now: anybody may end it" in person.stdout, person.stdout
    receipt = shop.do(shop.stranger, shop.rental, "resolveByTimeout", id)
    names = [event.name for event in shop.events(receipt, shop.rental)]
    assert {"Paid", "Returned", "Closed"} <= set(names), "one transaction"
    assert shop.owed(shop.rental, shop.client) == 6 * CREDIT


def test_e46_only_the_state_machine_releases_and_a_dispute_freezes_it(shop: Shop) -> None:
    id, closed = shop.lock(CREDIT), shop.lock(CREDIT, salt=2)
    voucher = shop.signed(id, CREDIT // 2)
    before = everything(shop, id)
    # Locked: who may not, may not.
    for who in (shop.stranger, shop.fees, shop.arbiter):
        for call in (
            ("settle", *voucher),
            ("release", id, CREDIT, bytes(32), b""),
            ("dispute", id),
            ("resolve", id, CREDIT),
            ("resolveByTimeout", id),
            ("refund", id),
            ("withdrawTo", who.address),
        ):
            assert not shop.forced(who, shop.rental, *call), call
    forged = (*voucher[:3], shop.signed(id, CREDIT)[3])
    assert shop.refused(shop.operator, shop.rental, "redeem", *forged) == "BadSignature"
    assert everything(shop, id) == before
    # Disputed: nobody moves it.
    shop.do(shop.client, shop.rental, "dispute", id)
    before = everything(shop, id)
    for who in (shop.client, shop.operator, shop.stranger):
        for call in (
            ("settle", *voucher),
            ("settle", id, 0, bytes(32), b""),
            ("release", id, CREDIT, bytes(32), b""),
            ("refund", id),
            ("topUp", id, 0, shop.now_s() + 2 * DAY_S),
            ("dispute", id),
            ("resolve", id, CREDIT),
        ):
            assert not shop.forced(who, shop.rental, *call), call
    assert everything(shop, id) == before
    shop.do(shop.arbiter, shop.rental, "resolve", id, CREDIT)
    # Closed: no second release.
    shop.do(shop.client, shop.rental, "release", closed, CREDIT, bytes(32), b"")
    assert shop.state(id) == shop.state(closed) == 3
    before = everything(shop, id, closed)
    for who in (shop.client, shop.operator, shop.arbiter, shop.stranger):
        for one in (id, closed):
            for call in (
                ("redeem", *shop.signed(one, CREDIT)),
                ("settle", *shop.signed(one, CREDIT)),
                ("release", one, CREDIT, bytes(32), b""),
                ("resolve", one, CREDIT),
                ("resolveByTimeout", one),
                ("refund", one),
                ("dispute", one),
            ):
                assert not shop.forced(who, shop.rental, *call), call
    assert everything(shop, id, closed) == before


def test_e46_a_token_that_calls_back_gets_nothing_twice(shop: Shop) -> None:
    payee = shop.creator
    id, other = shop.lock(CREDIT, payee.address), shop.lock(CREDIT, payee.address, salt=2)
    shop.do(shop.operator, shop.rental, "redeem", *shop.signed(id, CREDIT))
    code = shop.chain.code(shop.token.address)
    for call in (
        ("withdrawTo", (shop.fees.address,)),
        ("redeem", shop.signed(other, CREDIT)),
    ):
        body = shop.rental.interface.encode_call(*call)
        put(shop, REAL, code)
        snapshot = shop.rig.ask("evm_snapshot")
        put(shop, shop.token.address, calling_back(REAL, shop.rental.address, body))
        shop.do(shop.stranger, shop.rental, "withdrawTo", payee.address)
        token = show_address(shop.token.address)
        let_in = shop.rig.ask("eth_getStorageAt", token, "0xdead", "latest")
        assert int(let_in, 16) == 1, f"{call[0]} within a transfer was let in"
        assert shop.has(payee.address) == CREDIT - FEE
        assert shop.owed(shop.rental, shop.fees) == FEE
        assert shop.chain.call(shop.rental, "rentals", other)[7] == 0
        # The same call by itself counts.
        assert shop.forced(shop.stranger, shop.rental, call[0], *call[1])
        assert shop.rig.ask("evm_revert", snapshot)


def test_e47_both_parts_in_one_transaction_and_a_hostile_receiver_blocks_nobody(
    shop: Shop,
) -> None:
    hostile = bytes([0xBB]) * 20
    put(shop, hostile, bytes.fromhex("5f5ffd"))  # whatever calls it is undone
    id = shop.lock(10 * CREDIT, hostile)
    # The token refuses the payee, as an issuer of money can.
    code = shop.chain.code(shop.token.address)
    put(shop, REAL, code)
    put(shop, shop.token.address, refusing(REAL, hostile))
    receipt = shop.do(shop.operator, shop.rental, "settle", *shop.signed(id, CREDIT))
    (paid,) = (e for e in shop.events(receipt, shop.rental) if e.name == "Paid")
    assert (paid.arguments["net"], paid.arguments["fee"]) == (CREDIT - FEE, FEE)
    assert paid.arguments["payee"] == hostile
    owed = lambda who: shop.chain.call(shop.rental, "owed", who)  # noqa: E731
    assert (owed(hostile), owed(shop.fees.address)) == (CREDIT - FEE, FEE)
    assert not shop.forced(shop.stranger, shop.rental, "withdrawTo", hostile)
    shop.do(shop.stranger, shop.rental, "withdrawTo", shop.fees.address)
    shop.do(shop.stranger, shop.rental, "withdrawTo", shop.client.address)
    assert shop.has(shop.fees.address) == FEE
    assert shop.has(shop.client.address) == 9 * CREDIT
    assert owed(hostile) == CREDIT - FEE == shop.has(shop.rental.address), "its own waits"
    # Another rental meanwhile: main part and fee leave together.
    other = shop.lock(CREDIT, shop.creator.address, salt=2)
    shop.do(shop.operator, shop.rental, "redeem", *shop.signed(other, CREDIT))
    both = [shop.creator.address, shop.fees.address]
    receipt = shop.do(shop.stranger, shop.rental, "withdrawMany", both)
    moved = [e.arguments["value"] for e in shop.events(receipt, shop.token)]
    assert moved == [CREDIT - FEE, FEE]
    # It is let in again, and its code does not matter: nobody calls it.
    put(shop, shop.token.address, code)
    shop.do(shop.stranger, shop.rental, "withdrawTo", hostile)
    assert shop.has(hostile) == CREDIT - FEE
    assert shop.has(shop.rental.address) == 0


# ------------------------------------------------------------ E18, E31


def test_e18_finalised_once_and_no_unit_is_lost(stage: Stage) -> None:
    id = stage.rental(10 * CREDIT)
    last = msgspec.structs.replace(stage.market.voucher(id, 4 * CREDIT), is_last=True)
    stage.settlement.take_voucher(last, 4 * CREDIT)
    purpose = f"settle/{id.hex()}/0/1"
    stage.until("it is asked for", lambda: purpose in stage.settlement.courier.lane.intents)
    stage.until("it is final", lambda: stage.intent(purpose).state == "confirmed")
    stage.idle()
    found = [e for e in stage.market.chain.logs(0, stage.market.chain.number(),
             [stage.market.rental]) if e.arguments.get("id") == id]  # fmt: skip
    assert [e.name for e in found] == ["Locked", "Paid", "Returned", "Closed"]
    assert len({e.transaction for e in found[1:]}) == 1
    intents = set(stage.settlement.courier.lane.intents)
    before = stage.market.balances()
    # Said again, to the settlement and by hand to the contract: nothing more happens.
    with contextlib.suppress(RemoteError):
        stage.settlement.take_voucher(last, 4 * CREDIT)
    stage.again()
    stage.mine(3)
    call = (id, 4 * CREDIT, last.receipts_root, last.signature)
    with pytest.raises(RevertedError, match="WrongState"):
        stage.market.chain.call(
            stage.market.rental, "settle", *call, sender=stage.market.grid.address
        )
    assert {one for one in stage.settlement.courier.lane.intents if "settle" in one} <= intents
    assert stage.market.balances() == before
    assert before["escrow"] == before["liability"]


def test_e18_while_gas_is_dear_vouchers_are_batched_and_none_is_skipped(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gristmill.settlement")
    one, other = stage.rental(100 * CREDIT), stage.rental(100 * CREDIT)
    nonce = stage.market.chain.nonce(stage.market.grid.address)
    for cumulative in (10, 20, 30):
        stage.rig.ask("anvil_setNextBlockBaseFeePerGas", hex(500 * GWEI))
        stage.rig.mine()
        for id in (one, other):
            stage.pay(id, cumulative * CREDIT)
        stage.settlement.turn()
    purposes = [f"redeem/{id.hex()}/0/1" for id in (one, other)]
    assert [stage.line(each) for each in purposes] == ["queued", "queued"]
    assert sum("cheaper gas" in record.message for record in caplog.records) == 1
    stage.rig.ask("anvil_setNextBlockBaseFeePerGas", hex(GWEI))
    stage.until("final", lambda: not any(map(stage.line, purposes)))
    found = stage.market.redeemed()
    assert found[one] == found[other] == [30 * CREDIT], "one transaction for three vouchers"
    stage.idle()
    assert stage.market.chain.nonce(stage.market.grid.address) >= nonce + 2


def test_e31_stuck_and_lagging_payouts_are_paid_once_and_too_many_ring(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    ids = stage.market.lock([CREDIT] * 4, stage.grid)
    stage.mine(DEPTH + 1)
    stage.idle()
    behind = Forgetful(stage.rig)
    with liar(behind.answer) as rpc:
        stage.again(rpc.url, pending_max=3)
        for id in ids:
            stage.pay(id, CREDIT)
        stage.settlement.turn()
        rung = [r.message for r in caplog.records if "transactions wait" in r.message]
        assert rung == ["ALARM 4 transactions wait; the limit is 3"]
        intents = [stage.intent(f"redeem/{id.hex()}/0/1") for id in ids]
        nonces = [one.nonce for one in intents]
        assert sorted(nonces) == list(range(min(nonces), min(nonces) + 4))
        dear = max(one.attempts[0].max_fee_wei for one in intents) + GWEI
        for _ in range(4):
            stage.rig.ask("anvil_setNextBlockBaseFeePerGas", hex(dear))
            stage.mine()
        assert all(len(one.attempts) > 1 for one in intents), "stuck is bumped"
        behind.forget(stage.market.chain.number())
        stage.rig.ask("anvil_setNextBlockBaseFeePerGas", hex(GWEI))
        stage.mine(3)
        behind.is_behind = False
        stage.idle()
    assert [stage.intent(f"redeem/{id.hex()}/0/1").nonce for id in ids] == nonces
    found = stage.market.redeemed()
    assert [found[id] for id in ids] == [[CREDIT]] * 4


# ------------------------------------------------------------ E22, E23, E32


def paid_out(stage: Stage, amount: int) -> str:
    """A rental worked for and redeemed, up to its root's transaction; the root's purpose."""
    stage.rig.mine(1, WINDOW_S + 1)  # the root before is open
    id = stage.rental(amount)
    stage.grid.work([id], amount)
    stage.pay(id, amount)
    lane = lambda: [p for p in stage.settlement.courier.lane.open if p[:5] == "root/"]  # noqa: E731
    stage.until("a root is sent", lambda: bool(lane()))
    (purpose,) = lane()
    return purpose


def test_e22_drift_stops_every_payout_until_somebody_says_go(tmp_path: pathlib.Path) -> None:
    with settle_stage(tmp_path) as stage:  # its own: what is in the books stays there
        id = stage.rental()
        stage.idle()
        assert stage.settlement.report is not None and stage.settlement.report.is_good
        stage.grid.order(Fund(9, "ann", 7, "by hand"))
        leg = Leg(id[:16], "tenant:ann", f"rental:{id.hex()}", 7)
        stage.grid.order(Transfer(9, [leg]))
        stage.mine()
        assert "drift 7" in stage.settlement.halted
        nonce = stage.market.chain.nonce(stage.market.grid.address)
        stage.pay(id, CREDIT)
        stage.again()
        stage.mine(3)
        assert "drift 7" in stage.settlement.halted, "after a restart as well"
        assert stage.market.chain.nonce(stage.market.grid.address) == nonce, "nothing is sent"
        stage.go()
        stage.until("it is paid", lambda: stage.market.redeemed().get(id) == [CREDIT])


def test_e23_a_payout_is_done_k_deep_and_a_re_org_does_it_again(stage: Stage) -> None:
    purpose = paid_out(stage, 7 * CREDIT)
    done = lambda: stage.grid.payout(stage.pool)  # noqa: E731
    number = done().number
    root = lambda: stage.market.chain.call(stage.market.pool, "waiting")[1]  # noqa: E731
    stage.until("it is mined", lambda: stage.intent(purpose).state == "mined")
    first = stage.intent(purpose).receipt
    while stage.line(purpose) != f"pending ({DEPTH - 1} of {DEPTH})":
        assert done().root == b"", "not done yet"
        stage.mine()
    posted = root()
    assert done().root == b"" and posted != bytes(32)
    stage.rig.ask("anvil_reorg", DEPTH - 1, [])
    stage.settlement.turn()
    assert root() != posted and stage.intent(purpose).state != "mined"
    stage.until("it is final", lambda: stage.intent(purpose).state == "confirmed")
    stage.until("it is done", lambda: done().root == posted)
    assert done().number == number
    again = stage.intent(purpose).receipt
    assert first is not None and again is not None and again.block_hash != first.block_hash
    events = stage.market.chain.logs(0, stage.market.chain.number(), [stage.market.pool])
    assert [e.arguments["root"] for e in events if e.name == "RootPosted"].count(posted) == 1
    stage.idle()


def test_e32_claims_count_k_deep_are_taken_back_and_found_again(stage: Stage) -> None:
    purpose = paid_out(stage, 5 * CREDIT)
    stage.until("it is final", lambda: stage.intent(purpose).state == "confirmed")
    stage.idle()
    payout = stage.grid.payout(stage.pool)
    body = (stage.folder / "lists" / f"{payout.list_digest.hex()}.json").read_bytes()
    leaves = decode_list(body).leaves
    claimed = lambda: stage.grid.books(stage.pool).claimed  # noqa: E731
    before = claimed()
    stage.rig.mine(1, WINDOW_S + 1)
    had = {one: stage.market.chain.call(stage.market.pool, "claimed", one) for one, _ in leaves}
    node, sum = next((one, sum) for one, sum in leaves if sum > had[one])

    def claim() -> None:
        proof = Tree(leaves).proof_of(node)
        stage.market.said(stage.market.client.address, stage.market.pool, "claim", node, sum, proof)

    claim()
    stage.mine(DEPTH - 1)
    assert stage.market.chain.call(stage.market.pool, "claimed", node) == sum
    assert claimed() == before, "not K deep"
    stage.rig.ask("anvil_reorg", DEPTH - 1, [])
    stage.mine(DEPTH + 1)
    assert stage.market.chain.call(stage.market.pool, "claimed", node) == had[node]
    assert claimed() == before, "what was taken back never counted"
    claim()
    stage.until("it counts", lambda: claimed() == before + sum - had[node])
    stage.idle()
    # The event is lost here: the books say so, and a replay of the cursor has it again.
    stage.rows.db.execute(
        "DELETE FROM facts WHERE (block, at) = (SELECT block, at FROM facts "
        "ORDER BY block DESC, at DESC LIMIT 1)"
    )
    stage.again()
    stage.mine()
    assert "drift" in stage.settlement.halted
    stage.settlement.replay()
    stage.go()
    stage.idle()
    assert claimed() == before + sum - had[node]


# ------------------------------------------------------------ E42


def test_e42_both_sides_have_one_state_id(stage: Stage) -> None:
    def seen_by_the_grid(id: bytes) -> bytes:
        one = stage.settlement.mirror.rentals[id]
        states = {"locked": 1, "disputed": 2, "closed": 3}
        fields = (
            one.client, one.deadline_s, one.provider, 0, states[one.state], one.payee,
            one.locked, one.paid, one.shown, one.spec,
        )  # fmt: skip
        kind = "(address,uint64,address,uint64,uint8,address,uint128,uint128,uint128,bytes32)"
        return keccak(encode(["bytes32", kind], [id, fields]))

    (id,) = stage.market.lock([CREDIT], stage.grid)
    asked = lambda: stage.market.chain.call(stage.market.rental, "stateId", id)  # noqa: E731
    for _ in range(DEPTH - 1):
        stage.mine()
        assert id not in stage.settlement.mirror.rentals, "pending"
    stage.mine(2)
    locked = asked()
    assert seen_by_the_grid(id) == locked
    stage.pay(id, CREDIT // 4)
    stage.idle()
    assert seen_by_the_grid(id) == asked() != locked


def test_e42_what_the_grid_never_confirms_is_no_money_and_goes_back(
    shop: Shop, grid: Grid
) -> None:
    shop.money(shop.client, CREDIT, shop.rental)
    to = ("--provider", show_address(shop.operator.address), "--deadline", "1h", "--wait", "0")
    done = shop.run("rental", "lock", "1", *to, "--json", key="client", address=grid.address)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    id = bytes.fromhex(told["rental"])
    assert told["state"] == "locked" and told["available_ucredits"] == -1
    assert told["state_id"] == shop.chain.call(shop.rental, "stateId", id).hex()
    person = shop.run("rental", "show", id.hex(), address=grid.address)
    assert "not known yet" in person.stdout and told["state_id"] in person.stdout
    job = gristmill(grid, "submit", "--rental", id.hex(), "--cap", "0.5", "--wait", "--", "true")
    assert f"has no rental {id.hex()}" in job.stderr, "nothing runs on it"
    assert shop.run("rental", "refund", id.hex(), key="client").returncode != 0
    shop.rig.mine(1, 3_600 + DAY_S)  # T: the deadline and the grace
    back = shop.run("rental", "refund", id.hex(), key="client")
    assert back.returncode == 0 and "1 credits went to" in back.stderr, back.stderr
    assert shop.has(shop.client.address) == CREDIT and shop.state(id) == 3


# ------------------------------------------------------------ a grid: E17, E22, E30


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChainGrid]:
    with chain_grid(tmp_path_factory.mktemp("settled")) as made:
        yield made


def of_the_rental(settled: ChainGrid) -> dict[str, Event]:
    shop = settled.shop
    found = shop.chain.logs(0, shop.chain.number(), [shop.rental])
    mine = [event for event in found if event.arguments.get("id") == settled.rental]
    assert len({event.name for event in mine}) == len(mine)
    return {event.name: event for event in mine}


def test_e17_what_was_metered_is_paid_and_the_rest_goes_back_at_once(settled: ChainGrid) -> None:
    spent, events = settled.spent(), of_the_rental(settled)
    assert 0 < spent < CAP < LOCKED
    paid, back = events["Paid"], events["Returned"]
    assert paid.transaction == back.transaction == events["Closed"].transaction
    assert paid.arguments["cumulative"] == spent, "what was metered, not the cap"
    assert back.arguments["amount"] == LOCKED - spent
    assert back.arguments["client"] == settled.shop.client.address
    assert paid.arguments["fee"] == spent * 3 // 100
    assert paid.arguments["net"] == spent - spent * 3 // 100


def test_e22_event_entry_and_receipt_agree_to_the_unit(settled: ChainGrid) -> None:
    shop = settled.shop
    file = settled.grid.state / "job.receipts"
    done = gristmill(settled.grid, "receipt", settled.job, "-o", str(file))
    assert done.returncode == 0, done.stderr
    receipts = [one["broker"] for one in json.loads(file.read_text())["receipts"]]
    paid = of_the_rental(settled)["Paid"].arguments
    assert sum(one["amount_ucredits"] for one in receipts) == paid["cumulative"]
    assert paid["receiptsRoot"].hex() == settled.told["pay"]["receipts_root"]
    until("the ledger was told", lambda: settled.books().paid)
    books = settled.books()
    assert (books.locked, books.paid, books.spent) == (LOCKED, paid["cumulative"], settled.spent())
    assert (books.returned, books.short) == (LOCKED - books.paid, 0)
    # Out of the pool: what the commands say, what the contract says, what the books say.
    for payee in settled.payees:
        told = settled.run("claim", "take", show_address(payee), "--send", key="stranger")
        assert shop.has(payee) == told["claimed_ucredits"] == told["earned_ucredits"]
    found = shop.chain.logs(0, shop.chain.number(), [shop.pool])
    claimed = {e.arguments["worker"]: e.arguments["amount"] for e in found if e.name == "Claimed"}
    assert claimed == {payee: shop.has(payee) for payee in settled.payees if shop.has(payee)}
    total = sum(claimed.values())
    assert 0 <= paid["net"] - total < len(settled.payees), "each share is rounded down"
    until("the books have it", lambda: settled.books().claimed == total)
    block = max(event.block for event in found)
    until("and it was compared", lambda: last_block(settled) >= block)
    assert "DRIFT" not in settled.log()
    assert "ALARM" not in settled.log()


def last_block(settled: ChainGrid) -> int:
    """The last one of which a reconciliation said: drift 0."""
    found = re.findall(r"reconcile at block (\d+): drift 0", settled.log())
    return int(found[-1]) if found else 0


def test_e30_a_worker_has_no_key_of_the_chain_and_signs_its_claim(settled: ChainGrid) -> None:
    shop, grid = settled.shop, settled.grid
    port = f":{shop.rig.port:04X} "
    secrets = [key.secret.hex() for key in (shop.operator, shop.client)]
    for number in range(2):
        pid = grid.pid(f"worker-{number}")
        place = pathlib.Path(f"/proc/{pid}")
        told = place.joinpath("environ").read_bytes() + place.joinpath("cmdline").read_bytes()
        for word in (b"deployment", b"keystore", b"settlement", shop.rig.url.encode()):
            assert word not in told
        sockets = {os.readlink(each) for each in place.joinpath("fd").iterdir()}
        lines = place.joinpath("net", "tcp").read_text().splitlines()
        to_the_chain = [line.split()[9] for line in lines if port in line]
        assert to_the_chain, "the settlement does speak to it"
        assert not sockets & {f"socket:[{inode}]" for inode in to_the_chain}
        for path in (grid.state / f"worker-{number}").rglob("*"):
            if path.is_file():
                body = path.read_bytes()
                assert not any(s.encode() in body or bytes.fromhex(s) in body for s in secrets)
    # Where it is paid is said by its own key: another's signature moves nothing.
    node = load_key(settled.worker_key(0))
    pool = pool_of(shop.chain.chain_id, shop.pool.address)
    thief = bytes([0xEE]) * 20
    forged = Payee(bytes(node.verify_key).hex(), pool, thief, time.time_ns() // 1_000_000)
    with Client(grid.address) as client:
        for key in (SigningKey.generate(), load_key(settled.worker_key(1))):
            with pytest.raises(GridError) as caught:
                state_payee(client, forged, sign_payee(forged, key))
            assert caught.value.code == "FORBIDDEN", caught.value
    # And nobody takes out of the pool what the root does not give him.
    before = shop.has(shop.pool.address)
    earned = settled.run("claim", "show", show_address(settled.payees[0]))["earned_ucredits"]
    for worker, amount in ((thief, earned), (settled.payees[0], earned + 1)):
        assert not shop.forced(shop.stranger, shop.pool, "claim", worker, amount, [])
    assert shop.has(shop.pool.address) == before and shop.has(thief) == 0
