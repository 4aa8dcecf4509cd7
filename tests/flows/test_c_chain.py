"""Rows C13 and C14: one nonce queue to the chain, and a cursor over the blocks that come back."""

from lying_rpc_rig import liar
from settle_rig import CREDIT
from settle_stage import DEPTH, GWEI, Forgetful, Stage


def nonce(stage: Stage) -> int:
    return stage.market.chain.nonce(stage.market.grid.address)


def test_c13_a_queue_on_disk_sends_again_and_bumps_what_is_stuck(stage: Stage) -> None:
    id, first = stage.rental(), nonce(stage)
    stage.pay(id, CREDIT)
    stage.settlement.turn()
    purpose = f"redeem/{id.hex()}/0/1"
    (attempt,) = stage.intent(purpose).attempts
    assert stage.intent(purpose).state == "broadcast"
    # The process ends, and the node has forgotten the transaction: the same bytes go out again.
    stage.rig.ask("anvil_dropTransaction", f"0x{attempt.hash.hex()}")
    assert not stage.market.chain.is_known(attempt.hash)
    stage.again()
    stage.settlement.turn()
    assert stage.intent(purpose).attempts == [attempt]
    assert stage.market.chain.is_known(attempt.hash)
    # It is stuck below the base fee: after N blocks a higher fee takes its place, and its nonce.
    for blocks in range(8):
        assert stage.intent(purpose).state == "broadcast", blocks
        stage.rig.ask("anvil_setNextBlockBaseFeePerGas", hex(attempt.max_fee_wei + GWEI))
        stage.mine()
        if len(stage.intent(purpose).attempts) > 1:
            break
    _, bumped, *_ = stage.intent(purpose).attempts
    assert bumped.max_fee_wei * 8 >= attempt.max_fee_wei * 9
    assert blocks + 1 >= 2  # bump_blocks
    stage.until("it is final", lambda: stage.intent(purpose).state == "confirmed")
    assert stage.market.redeemed()[id] == [CREDIT]
    assert stage.intent(purpose).nonce == first
    stage.idle()
    after = [one.nonce for one in stage.settlement.courier.lane.intents.values()]
    assert sorted(after) == list(range(min(after), nonce(stage))), "every nonce once"


def test_c13_an_rpc_that_lags_causes_no_second_spend(stage: Stage) -> None:
    id, first = stage.rental(), nonce(stage)
    behind = Forgetful(stage.rig)
    with liar(behind.answer) as rpc:
        stage.again(rpc.url)
        stage.pay(id, CREDIT)
        stage.settlement.turn()
        purpose = f"redeem/{id.hex()}/0/1"
        assert stage.intent(purpose).state == "broadcast"
        behind.forget(stage.market.chain.number())
        stage.rig.mine()
        assert stage.market.redeemed()[id] == [CREDIT]
        rpc.asked.clear()
        stage.mine(4)
        assert "eth_sendRawTransaction" in rpc.asked, "it was sent again while nobody knew it"
        assert stage.intent(purpose).nonce == first
        assert purpose in stage.settlement.courier.lane.open, "and is no success yet"
        behind.is_behind = False
        stage.until("it is final", lambda: stage.intent(purpose).state == "confirmed")
        stage.idle()
    assert stage.market.redeemed()[id] == [CREDIT]
    assert stage.market.chain.call(stage.market.rental, "rentals", id)[7] == CREDIT


def test_c14_events_count_k_blocks_deep_and_a_re_org_rolls_them_back(stage: Stage) -> None:
    before = stage.grid.books(stage.pool)
    (id,) = stage.market.lock([CREDIT], stage.grid)
    stage.mine()
    cursor = stage.settlement.follower.log.tip
    for _ in range(DEPTH - 2):
        stage.mine()
    assert stage.settlement.follower.log.tip == cursor + DEPTH - 2
    assert stage.grid.books(stage.pool) == before, "not K deep: nobody is told"
    # Its block is taken back, and the transaction with it.
    stage.rig.ask("anvil_reorg", DEPTH - 1, [])
    stage.mine(2 * DEPTH)
    assert stage.market.chain.call(stage.market.rental, "rentals", id)[4] == 0
    assert stage.grid.books(stage.pool) == before, "what was never deep was never told"
    # The client locks another: that one stays, and counts once.
    again = stage.rental(3 * CREDIT)
    books = stage.grid.books(stage.pool)
    assert books.locked == before.locked + 3 * CREDIT
    assert again in stage.settlement.mirror.rentals
    assert id not in stage.settlement.mirror.rentals


def test_c14_a_missed_event_is_found_by_a_replay_of_the_cursor(stage: Stage) -> None:
    id = stage.rental()
    stage.idle()
    stage.rows.db.execute(
        "DELETE FROM facts WHERE (block, at) = (SELECT block, at FROM facts "
        "ORDER BY block DESC, at DESC LIMIT 1)"
    )
    stage.again()
    stage.mine()
    assert "drift" in stage.settlement.halted, "it is seen, and nothing is sent"
    assert id not in stage.settlement.mirror.rentals
    stage.settlement.replay()
    stage.go()
    stage.mine(2)
    assert stage.settlement.halted == ""
    assert id in stage.settlement.mirror.rentals
    stage.idle()
