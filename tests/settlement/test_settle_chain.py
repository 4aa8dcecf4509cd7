"""The settlement on a real EVM node, in this process: vouchers to roots, re-orgs, stuck fees."""

import logging
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest
from chain_rig import ChainRig, chain_rig
from ledger_rig import LedgerProcess
from nacl.signing import SigningKey
from settle_rig import CREDIT, DAY_S, TENANT, WINDOW_S, Grid, Market

from gristmill.contracts.keys import AccountKey
from gristmill.contracts.merkle import Tree, decode_list, digest_of
from gristmill.contracts.rpc import Chain
from gristmill.ledger.payments.line import Line
from gristmill.ledger.settlement.books import FolderLists, LedgerBooks
from gristmill.ledger.settlement.core import chain_log, epochs, queue_records
from gristmill.ledger.settlement.core.reconcile import told
from gristmill.ledger.settlement.evm import EvmNode, EvmSigner
from gristmill.ledger.settlement.rows import FILE, Rows
from gristmill.ledger.settlement.settlement import GO, Pace, Place, Settlement
from gristmill.wire.errors import RemoteError
from gristmill.wire.ledger import Fund, Leg, Transfer

GWEI = 10**9
DEPTH = 4


@pytest.fixture
def rig() -> Iterator[ChainRig]:
    with chain_rig("--no-mining", "--order", "fifo") as rig:
        yield rig


class Stage:
    """A settlement in this process; ``again`` is a restart."""

    def __init__(self, rig: ChainRig, folder: pathlib.Path, ledger: LedgerProcess) -> None:
        self.rig, self.folder = rig, folder
        rig.ask("evm_setAutomine", True)
        self.market = Market(rig, folder)
        rig.ask("evm_setAutomine", False)
        self.grid = Grid(ledger)
        self.pool = self.market.pool_name
        self.grid.pay_nodes(self.pool)
        self.line = Line(ledger.address, SigningKey.generate(), "")
        self.books = LedgerBooks(self.line, self.pool)
        self.rows = Rows(folder / FILE)
        self.again()

    def again(self) -> None:
        self.rows.close()
        self.rows = Rows(self.folder / FILE)
        market = self.market
        grid = market.grid
        node = EvmNode(
            Chain([self.rig.url]), market.rental, market.pool, market.token, grid.address
        )
        start = min(one.block for one in market.deployment.contracts.values())
        self.settlement = Settlement(
            self.rows,
            [node],
            EvmSigner(AccountKey(grid.secret), market.chain.chain_id),
            self.books,
            FolderLists(self.folder / "lists"),
            Place(market.chain.chain_id, market.rental, market.pool, start),
            chain_log.Limits(depth=DEPTH),
            queue_records.Limits(in_flight_max=64, bump_blocks=2),
            epochs.Settings(grace_s=DAY_S, hurry_s=3_600, redeem_min=1, cap=10**15),
            Pace(0, 0),
            self.folder,
            lambda: time.time_ns() // 1_000_000,
        )

    def mine(self, blocks: int, seconds: int = 0) -> None:
        for _ in range(blocks):
            self.rig.mine(1, seconds)
            seconds = 0
            self.settlement.turn()

    def until(self, is_so: Callable[[], bool], blocks: int = 60) -> None:
        for _ in range(blocks):
            if is_so():
                return
            self.mine(1)
        raise AssertionError(f"not within {blocks} blocks: {self.settlement.told()}")

    def state(self, purpose: str) -> str:
        return self.settlement.courier.lane.intents[purpose].state

    def good(self) -> None:
        report = self.settlement.reconcile()
        assert report.is_good, told(report)


@pytest.fixture
def stage(rig: ChainRig, tmp_path: pathlib.Path) -> Iterator[Stage]:
    logging.getLogger("gristmill.settlement").setLevel(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="settle-") as run:  # a short path: of a socket
        ledger = LedgerProcess(tmp_path / "ledger", pathlib.Path(run))
        try:
            stage = Stage(rig, tmp_path, ledger.start())
            yield stage
            stage.line.close()
            stage.rows.close()
        finally:
            ledger.close()


def test_from_a_lock_to_a_root_that_nodes_claim_from(stage: Stage) -> None:
    market, grid = stage.market, stage.grid
    (id,) = market.lock([100 * CREDIT], grid)
    stage.mine(DEPTH + 1)
    assert grid.books(stage.pool).held == 100 * CREDIT
    grid.work([id], 60 * CREDIT)
    stage.settlement.take_voucher(market.voucher(id, 60 * CREDIT))
    stage.until(lambda: bool(grid.payout(stage.pool).root))
    payout = grid.payout(stage.pool)
    assert payout.total == 60 * CREDIT * 97 // 100
    body = (stage.folder / "lists" / f"{payout.list_digest.hex()}.json").read_bytes()
    assert digest_of(body) == payout.list_digest
    leaves = decode_list(body).leaves
    assert sum(amount for _, amount in leaves) == payout.total
    stage.good()
    # A node claims; the ledger is told, and everything still agrees.
    node, amount = leaves[0]
    stage.rig.mine(1, WINDOW_S + 1)
    proof = Tree(leaves).proof_of(node)
    market.said(market.client.address, market.pool, "claim", node, amount, proof)
    stage.until(lambda: grid.books(stage.pool).claimed == amount)
    stage.good()


def test_pending_until_k_deep_and_confirmed_then(stage: Stage) -> None:
    (id,) = stage.market.lock([CREDIT], stage.grid)
    stage.mine(DEPTH + 1)
    stage.settlement.take_voucher(stage.market.voucher(id, CREDIT))
    stage.settlement.turn()
    purpose = f"redeem/{id.hex()}/0/1"
    assert stage.state(purpose) == "broadcast"
    for deep in range(1, DEPTH):
        stage.mine(1)
        assert f"{purpose}: pending ({deep} of {DEPTH})" in stage.settlement.told()
        assert stage.grid.books(stage.pool).paid == 0
    stage.mine(1)
    assert stage.state(purpose) == "confirmed"
    stage.mine(1)
    assert stage.grid.books(stage.pool).paid == CREDIT


@pytest.mark.parametrize("depth", [1, DEPTH - 1])
def test_a_forced_re_org_unconfirms_and_it_is_sent_again(stage: Stage, depth: int) -> None:
    (id,) = stage.market.lock([CREDIT], stage.grid)
    stage.mine(2 * DEPTH)
    stage.settlement.take_voucher(stage.market.voucher(id, CREDIT))
    stage.settlement.turn()
    stage.mine(depth)
    purpose = f"redeem/{id.hex()}/0/1"
    assert stage.state(purpose) == "mined"
    stage.rig.ask("anvil_reorg", depth, [])
    stage.settlement.turn()
    assert not stage.market.redeemed()
    assert stage.state(purpose) in ("broadcast", "unknown")
    stage.until(lambda: stage.state(purpose) == "confirmed")
    assert stage.market.redeemed() == {id: [CREDIT]}
    stage.mine(1)
    stage.good()


def test_a_re_org_deeper_than_k_halts_until_an_operator_says_go(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    (id,) = stage.market.lock([CREDIT], stage.grid)
    stage.mine(2 * DEPTH)
    stage.settlement.take_voucher(stage.market.voucher(id, CREDIT))
    purpose = f"redeem/{id.hex()}/0/1"
    stage.until(lambda: purpose in stage.settlement.courier.lane.intents)
    stage.until(lambda: stage.state(purpose) == "confirmed")
    stage.rig.ask("anvil_reorg", DEPTH + 2, [])
    stage.mine(2)
    assert "deeper than" in stage.settlement.halted
    stage.again()
    stage.mine(2)
    assert "deeper than" in stage.settlement.halted
    assert not stage.market.redeemed()
    (stage.folder / GO).touch()
    stage.settlement.turn()
    assert any("taken back" in record.message for record in caplog.records)
    stage.until(lambda: stage.state(purpose) == "confirmed")
    assert stage.market.redeemed() == {id: [CREDIT]}
    assert not (stage.folder / GO).exists()


def test_stuck_is_bumped_and_the_nonce_is_one(stage: Stage) -> None:
    (id,) = stage.market.lock([CREDIT], stage.grid)
    stage.mine(DEPTH + 1)
    stage.settlement.take_voucher(stage.market.voucher(id, CREDIT))
    stage.settlement.turn()
    (intent,) = stage.settlement.courier.lane.intents.values()
    first = intent.attempts[0]
    stage.rig.ask("anvil_setNextBlockBaseFeePerGas", hex(first.max_fee_wei + GWEI))
    stage.mine(1)
    assert intent.state == "broadcast"
    for _ in range(6):
        stage.rig.ask("anvil_setNextBlockBaseFeePerGas", hex(first.max_fee_wei + GWEI))
        stage.mine(1)
        if intent.state == "mined":
            break
    assert intent.state == "mined"
    assert len(intent.attempts) > 1
    assert intent.attempts[1].max_fee_wei * 8 >= first.max_fee_wei * 9
    stage.until(lambda: intent.state == "confirmed")
    assert stage.market.chain.nonce(stage.market.grid.address) == intent.nonce + 1
    assert stage.market.redeemed() == {id: [CREDIT]}


def test_a_gas_spike_waits_batches_and_skips_nothing(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    (id,) = stage.market.lock([100 * CREDIT], stage.grid)
    stage.mine(DEPTH + 1)
    for cumulative in (10, 20, 30):
        stage.rig.ask("anvil_setNextBlockBaseFeePerGas", hex(500 * GWEI))
        stage.rig.mine(1)
        stage.settlement.take_voucher(stage.market.voucher(id, cumulative * CREDIT))
        stage.settlement.turn()
    (intent,) = stage.settlement.courier.lane.intents.values()
    assert (intent.state, intent.nonce) == ("queued", -1)
    assert sum("cheaper gas" in record.message for record in caplog.records) == 1
    stage.rig.ask("anvil_setNextBlockBaseFeePerGas", hex(GWEI))
    stage.until(lambda: intent.state == "confirmed")
    assert stage.market.redeemed() == {id: [30 * CREDIT]}


def test_what_nobody_agreed_to_is_told_and_left(stage: Stage) -> None:
    (id,) = stage.market.lock([CREDIT], None)
    stage.mine(DEPTH + 2)
    assert stage.grid.books(stage.pool).rentals == 0
    stage.good()
    assert stage.settlement.report is not None
    assert stage.settlement.report.foreign == CREDIT
    stage.settlement.take_voucher(stage.market.voucher(id, CREDIT))
    stage.mine(2)
    assert stage.settlement.courier.lane.intents == {}


def test_vouchers_that_are_wrong_are_refused_each_with_its_reason(stage: Stage) -> None:
    market = stage.market
    (id,) = market.lock([100 * CREDIT], stage.grid)
    take = stage.settlement.take_voucher
    with pytest.raises(RemoteError, match="not deep enough"):
        take(market.voucher(id, CREDIT))
    stage.mine(DEPTH + 1)
    good = market.voucher(id, 50 * CREDIT)
    take(good)
    take(good)
    for wrong, words in (
        (market.voucher(id, 60 * CREDIT, secret=market.grid.secret), "is signed by 0x"),
        (market.voucher(id, 60 * CREDIT, chain_id=1), "on chain 1;"),
        (market.voucher(id, 60 * CREDIT, contract=market.pool.address), "for contract"),
        (market.voucher(id, 40 * CREDIT), "out of order"),
        (market.voucher(id, 101 * CREDIT), "are locked"),
        (market.voucher(bytes(32), CREDIT), "not on the chain"),
    ):
        with pytest.raises(RemoteError, match=words):
            take(wrong)
    stage.until(lambda: stage.grid.books(stage.pool).paid == 50 * CREDIT)
    take(good)  # whoever did not hear the answer
    with pytest.raises(RemoteError, match="replayed"):
        take(market.voucher(id, 50 * CREDIT, root=bytes(32)))


def test_drift_stops_payouts_until_somebody_says_go(stage: Stage) -> None:
    (id,) = stage.market.lock([CREDIT], stage.grid)
    stage.mine(DEPTH + 2)
    stage.good()
    # Somebody brings money into a rental's account by hand.
    stage.grid.order(Fund(9, TENANT, 7, "by hand"))
    stage.grid.order(Transfer(9, [Leg(bytes(15) + b"1", "tenant:ann", f"rental:{id.hex()}", 7)]))
    stage.mine(1)
    assert "drift 7" in stage.settlement.halted
    stage.settlement.take_voucher(stage.market.voucher(id, CREDIT))
    stage.mine(3)
    assert stage.settlement.courier.lane.intents == {}
    stage.again()
    stage.mine(1)
    assert "drift 7" in stage.settlement.halted
    # What an operator has seen and said go to does not halt again; a larger one does.
    (stage.folder / GO).touch()
    stage.until(lambda: stage.grid.books(stage.pool).paid == CREDIT)
    assert stage.settlement.halted == ""
    assert not stage.settlement.reconcile().is_good
    stage.grid.order(Fund(9, TENANT, 1, "once more"))
    more = Transfer(9, [Leg(bytes(15) + b"2", "tenant:ann", f"rental:{id.hex()}", 1)])
    stage.grid.order(more)
    stage.mine(1)
    assert "drift 8" in stage.settlement.halted


def test_a_missed_event_is_found_and_a_replay_of_the_cursor_heals_it(stage: Stage) -> None:
    stage.market.lock([CREDIT, 2 * CREDIT], stage.grid)
    stage.mine(DEPTH + 2)
    stage.good()
    stage.rows.db.execute(
        "DELETE FROM facts WHERE (block, at) = (SELECT max(block), max(at) FROM facts)"
    )
    stage.again()
    stage.mine(1)
    assert "drift" in stage.settlement.halted
    stage.settlement.replay()
    (stage.folder / GO).touch()
    stage.mine(2)
    assert stage.settlement.halted == ""
    stage.good()
