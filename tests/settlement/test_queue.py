"""The nonce queue, transition by transition: one event in, the exact effects out."""

from typing import Any

import pytest

from gristmill.ledger.settlement.core.queue import restore, step
from gristmill.ledger.settlement.core.queue_records import (
    CANCEL_GAS,
    Asked,
    Attempt,
    Ended,
    Explain,
    Explained,
    Halted,
    Intent,
    Lane,
    Limits,
    Looked,
    Preflight,
    PreflightDone,
    Receipt,
    Released,
    Restarted,
    Rewound,
    Save,
    SaveLane,
    Say,
    Send,
    Sent,
    Sign,
    Signed,
    Unwanted,
    told_state,
)

GWEI = 10**9
LIMITS = Limits(gas_extra=0, in_flight_max=2, pending_max=3, bump_blocks=3, fee_cap_wei=100 * GWEI)


def look(head: int = 10, **more: Any) -> Looked:
    given: dict[str, Any] = {
        "head": head,
        "node_head": head,
        "base_fee_wei": 10 * GWEI,
        "tip_wei": GWEI,
        "confirmed": head - 3,
        "nonce": 7,
        "nonce_confirmed": 7,
        "receipts": {},
        "known": frozenset(),
    }
    return Looked(**(given | more))


def attempt(number: int, head: int = 10, fee: int = 21 * GWEI, is_cancel: bool = False) -> Attempt:
    return Attempt(bytes([number]) * 32, b"raw", 125_000, fee, GWEI, is_cancel, head)


def receipt(of: Attempt, block: int, is_reverted: bool = False, fork: int = 0) -> Receipt:
    return Receipt(of.hash, block, bytes([block, fork]) * 16, is_reverted, 10**15)


@pytest.fixture
def lane() -> Lane:
    """A queue that knows its nonce and has one intent."""
    lane = Lane(LIMITS)
    step(lane, look(), 0)
    step(lane, Asked("redeem/1", b"c" * 20, b"call"), 0)
    return lane


def fly(lane: Lane, purpose: str = "redeem/1", number: int = 1, head: int = 10) -> Attempt:
    """Take an intent through its trial and its signature to a node."""
    step(lane, look(head), 0)
    step(lane, PreflightDone(purpose, 100_000), 0)
    made = attempt(number, head)
    step(lane, Signed(purpose, made), 0)
    step(lane, Sent(purpose, made.hash, "accepted"), 0)
    return made


def kinds(effects: list[Any]) -> list[type]:
    return [type(one) for one in effects]


def test_asking_twice_makes_one(lane: Lane) -> None:
    assert step(lane, Asked("redeem/1", b"c" * 20, b"call"), 0) == []
    assert len(lane.intents) == 1


def test_before_it_has_a_nonce_a_later_call_takes_its_place(lane: Lane) -> None:
    effects = step(lane, Asked("redeem/1", b"c" * 20, b"larger"), 0)
    assert effects == [Save(lane.intents["redeem/1"])]
    made = fly(lane)
    assert step(lane, Asked("redeem/1", b"c" * 20, b"other"), 0) == []
    assert lane.intents["redeem/1"].call == b"larger"
    assert lane.intents["redeem/1"].attempts == [made]


def test_a_nonce_is_on_disk_before_anything_is_signed(lane: Lane) -> None:
    assert step(lane, look(), 0) == [Preflight("redeem/1")]
    intent = lane.intents["redeem/1"]
    assert step(lane, PreflightDone("redeem/1", 100_000), 0) == [
        Save(intent),
        SaveLane(8, 0, 0),
        Sign("redeem/1", 7, False, 125_000, 21 * GWEI, GWEI, 10),
    ]
    made = attempt(1)
    assert step(lane, Signed("redeem/1", made), 0) == [Save(intent), Send("redeem/1", made)]
    assert intent.state == "signed"
    assert step(lane, Sent("redeem/1", made.hash, "accepted"), 0) == [Save(intent)]
    assert (intent.state, intent.nonce) == ("broadcast", 7)


def test_answers_that_nobody_waits_for_do_nothing(lane: Lane) -> None:
    assert step(lane, PreflightDone("redeem/1", 100_000), 0) == []
    assert step(lane, Signed("redeem/1", attempt(1)), 0) == []
    assert step(lane, Sent("redeem/1", b"1" * 32, "accepted"), 0) == []
    assert step(lane, Explained("redeem/1", "why"), 0) == []
    assert step(lane, Unwanted("other", "why"), 0) == []
    fly(lane)
    assert step(lane, PreflightDone("redeem/1", 100_000), 0) == []
    assert len(lane.intents["redeem/1"].attempts) == 1


def test_what_would_revert_is_not_sent(lane: Lane) -> None:
    step(lane, look(), 0)
    effects = step(lane, PreflightDone("redeem/1", 0, "VoucherTooLow(5, 9)"), 0)
    assert kinds(effects) == [Say, Save, Ended]
    assert effects[-1] == Ended("redeem/1", "superfluous")
    assert lane.next_nonce == 7
    assert "VoucherTooLow" in told_state(lane.intents["redeem/1"], 10, 4)


def test_superfluous_before_it_has_a_nonce(lane: Lane) -> None:
    intent = lane.intents["redeem/1"]
    effects = step(lane, Unwanted("redeem/1", "a larger one was redeemed"), 0)
    assert effects == [Save(intent), Ended("redeem/1", "superfluous")]
    assert step(lane, look(), 0) == []


def test_superfluous_with_a_nonce_is_cancelled_by_a_transfer_to_ourselves(lane: Lane) -> None:
    fly(lane)
    step(lane, Unwanted("redeem/1", "not needed"), 0)
    effects = step(lane, look(known=frozenset({attempt(1).hash})), 0)
    raised = -(-21 * GWEI * 9 // 8)
    assert effects == [
        Sign("redeem/1", 7, True, CANCEL_GAS, raised, -(-GWEI * 9 // 8), 10),
    ]
    cancel = attempt(2, is_cancel=True)
    step(lane, Signed("redeem/1", cancel), 0)
    effects = step(lane, look(14, confirmed=12, receipts={cancel.hash: receipt(cancel, 12)}), 0)
    assert Ended("redeem/1", "replaced") in effects
    assert lane.next_nonce == 8


def test_the_original_may_still_win_against_its_cancelling(lane: Lane) -> None:
    made = fly(lane)
    step(lane, Unwanted("redeem/1", "not needed"), 0)
    step(lane, look(), 0)
    step(lane, Signed("redeem/1", attempt(2, is_cancel=True)), 0)
    effects = step(lane, look(14, confirmed=12, receipts={made.hash: receipt(made, 12)}), 0)
    assert Ended("redeem/1", "confirmed") in effects


def test_stuck_is_bumped_with_its_own_nonce(lane: Lane) -> None:
    made = fly(lane)
    known = frozenset({made.hash})
    assert step(lane, look(12, known=known), 0) == []
    assert step(lane, look(13, known=known), 0) == [Preflight("redeem/1")]
    raised = -(-21 * GWEI * 9 // 8)
    assert step(lane, PreflightDone("redeem/1", 100_000), 0) == [
        Sign("redeem/1", 7, False, 125_000, raised, -(-GWEI * 9 // 8), 13),
    ]
    later = attempt(2, 13, raised)
    step(lane, Signed("redeem/1", later), 0)
    assert lane.intents["redeem/1"].attempts == [made, later]
    # Either may be mined; it is the same thing.
    effects = step(lane, look(18, confirmed=15, receipts={made.hash: receipt(made, 15)}), 0)
    assert effects[-1] == Ended("redeem/1", "confirmed")


def test_stuck_and_reverting_by_now_is_cancelled(lane: Lane) -> None:
    fly(lane)
    step(lane, look(13), 0)
    effects = step(lane, PreflightDone("redeem/1", 0, "Closed()"), 0)
    assert kinds(effects) == [Save, Sign]
    assert effects[1].is_cancel
    assert effects[1].nonce == 7


def test_above_the_cap_it_waits_and_says_so_once(lane: Lane) -> None:
    dear = {"base_fee_wei": 100 * GWEI}
    (said,) = step(lane, look(11, **dear), 0)
    assert isinstance(said, Say)
    assert "wait for cheaper gas" in said.text
    assert step(lane, look(12, **dear), 0) == []
    assert lane.intents["redeem/1"].state == "queued"
    assert kinds(step(lane, look(13), 0)) == [Say, Preflight]


def test_a_bump_goes_up_to_the_cap_and_stays(lane: Lane) -> None:
    step(lane, look(), 0)
    step(lane, PreflightDone("redeem/1", 100_000), 0)
    step(lane, Signed("redeem/1", attempt(1, 10, 95 * GWEI)), 0)
    step(lane, look(13), 0)
    (said,) = step(lane, PreflightDone("redeem/1", 100_000), 0)
    assert isinstance(said, Say)
    assert "stuck at the cap" in said.text
    step(lane, look(14), 0)
    assert step(lane, PreflightDone("redeem/1", 100_000), 0) == []


def test_the_day_has_a_budget() -> None:
    lane = Lane(Limits(gas_extra=0, fee_day_wei=125_000 * 21 * GWEI + 10**14))
    step(lane, look(), 0)
    step(lane, Asked("a", b"c" * 20, b""), 0)
    step(lane, Asked("b", b"c" * 20, b""), 0)
    made = fly(lane, "a")
    (said,) = step(lane, PreflightDone("b", 100_000), 0)
    assert isinstance(said, Say)
    assert said.is_alarm
    assert lane.intents["b"].nonce == -1
    step(lane, look(14, confirmed=12, receipts={made.hash: receipt(made, 12)}), 0)
    assert lane.spent_wei == 10**15
    assert step(lane, PreflightDone("b", 100_000), 0) == []  # said before
    step(lane, look(15), 86_400_000)
    assert Sign in kinds(step(lane, PreflightDone("b", 100_000), 86_400_000))


def test_no_more_fly_than_may_and_a_crowd_is_an_alarm(lane: Lane) -> None:
    for name in "bc":
        assert kinds(step(lane, Asked(name, b"c" * 20, b""), 0)) == [Save]
    effects = step(lane, Asked("d", b"c" * 20, b""), 0)
    assert kinds(effects) == [Save, Say]
    assert effects[1].is_alarm
    assert kinds(step(lane, Asked("e", b"c" * 20, b""), 0)) == [Save]
    assert step(lane, look(), 0) == [Preflight("redeem/1"), Preflight("b")]


def test_what_a_node_forgot_is_sent_again_as_it_was(lane: Lane) -> None:
    made = fly(lane)
    assert step(lane, look(11), 0) == [Send("redeem/1", made)]
    assert step(lane, look(11, known=frozenset({made.hash})), 0) == []


def test_no_answer_is_unknown_and_never_success(lane: Lane) -> None:
    step(lane, look(), 0)
    step(lane, PreflightDone("redeem/1", 100_000), 0)
    made = attempt(1)
    step(lane, Signed("redeem/1", made), 0)
    intent = lane.intents["redeem/1"]
    assert step(lane, Sent("redeem/1", made.hash, "unknown"), 0) == [Save(intent)]
    assert told_state(intent, 10, 4) == "UNKNOWN"
    assert step(lane, look(11), 0) == [Send("redeem/1", made)]
    assert step(lane, look(11, known=frozenset({made.hash})), 0) == [Save(intent)]
    assert intent.state == "broadcast"


def test_after_a_restart_what_was_being_sent_is_unknown(lane: Lane) -> None:
    step(lane, look(), 0)
    step(lane, PreflightDone("redeem/1", 100_000), 0)
    made = attempt(1)
    step(lane, Signed("redeem/1", made), 0)
    again = Lane(LIMITS, next_nonce=8)
    restore(again, list(lane.intents.values()))
    step(again, Restarted(), 0)
    assert again.intents["redeem/1"].state == "unknown"
    assert step(again, look(11), 0) == [Send("redeem/1", made)]


def test_a_nonce_without_a_signature_is_used_after_a_restart() -> None:
    lane = Lane(LIMITS, next_nonce=8)
    restore(lane, [Intent("a", b"c" * 20, b"", 1, nonce=7)])
    step(lane, Restarted(), 0)
    assert step(lane, look(), 0) == [Preflight("a")]
    (sign,) = step(lane, PreflightDone("a", 100_000), 0)
    assert sign == Sign("a", 7, False, 125_000, 21 * GWEI, GWEI, 10)


def test_and_is_cancelled_when_its_call_reverts_by_now() -> None:
    lane = Lane(LIMITS, next_nonce=8)
    restore(lane, [Intent("a", b"c" * 20, b"", 1, nonce=7)])
    step(lane, look(), 0)
    save, sign = step(lane, PreflightDone("a", 0, "Closed()"), 0)
    assert isinstance(save, Save)
    assert sign == Sign("a", 7, True, CANCEL_GAS, 21 * GWEI, GWEI, 10)


def test_pending_until_k_deep(lane: Lane) -> None:
    made = fly(lane)
    mined = receipt(made, 11)
    intent = lane.intents["redeem/1"]
    assert step(lane, look(11, confirmed=8, receipts={made.hash: mined}), 0) == [Save(intent)]
    assert told_state(intent, 11, 4) == "pending (1 of 4)"
    assert step(lane, look(13, confirmed=10, receipts={made.hash: mined}), 0) == []
    assert told_state(intent, 13, 4) == "pending (3 of 4)"
    effects = step(lane, look(14, confirmed=11, receipts={made.hash: mined}), 0)
    assert effects == [
        Save(intent),
        SaveLane(8, 0, 10**15),
        Ended("redeem/1", "confirmed"),
    ]
    assert step(lane, look(15, receipts={made.hash: mined}), 0) == []


def test_a_revert_is_explained_and_failed_k_deep(lane: Lane) -> None:
    made = fly(lane)
    mined = receipt(made, 11, is_reverted=True)
    effects = step(lane, look(11, confirmed=8, receipts={made.hash: mined}), 0)
    assert effects == [Save(lane.intents["redeem/1"]), Explain("redeem/1", 11)]
    step(lane, Explained("redeem/1", "VoucherTooLow(5, 9)"), 0)
    effects = step(lane, look(14, confirmed=11, receipts={made.hash: mined}), 0)
    assert effects[-1] == Ended("redeem/1", "failed")
    assert told_state(lane.intents["redeem/1"], 14, 4) == "failed: VoucherTooLow(5, 9)"


def test_a_re_org_takes_it_back_and_it_is_sent_again(lane: Lane) -> None:
    made = fly(lane)
    step(lane, look(11, confirmed=8, receipts={made.hash: receipt(made, 11)}), 0)
    say, save, send = step(lane, look(12, confirmed=9), 0)
    assert isinstance(say, Say)
    assert isinstance(save, Save)
    assert send == Send("redeem/1", made)
    assert lane.intents["redeem/1"].state == "broadcast"
    moved = receipt(made, 12, fork=1)
    step(lane, look(12, confirmed=9, receipts={made.hash: moved}), 0)
    assert lane.intents["redeem/1"].receipt == moved


def test_a_node_that_lags_is_not_listened_to(lane: Lane) -> None:
    made = fly(lane)
    step(lane, look(13, confirmed=10, receipts={made.hash: receipt(made, 11)}), 0)
    assert step(lane, look(13, node_head=9, nonce=3, nonce_confirmed=3), 0) == []
    assert lane.intents["redeem/1"].state == "mined"


def test_an_older_nonce_of_a_node_gives_nothing_again(lane: Lane) -> None:
    fly(lane)
    step(lane, Asked("b", b"c" * 20, b""), 0)
    step(lane, look(11, nonce=3, nonce_confirmed=3), 0)
    effects = step(lane, PreflightDone("b", 100_000), 0)
    assert effects[-1].nonce == 8


def test_a_nonce_that_somebody_else_used_stops_the_queue(lane: Lane) -> None:
    fly(lane)
    step(lane, Asked("b", b"c" * 20, b""), 0)
    effects = step(lane, look(11, nonce=8, nonce_confirmed=8), 0)
    alarms = [one for one in effects if isinstance(one, Say) and one.is_alarm]
    assert len(alarms) == 1
    assert "who else has the key" in alarms[0].text
    assert Preflight("b") not in effects
    assert lane.intents["redeem/1"].state == "broadcast"  # nobody says that it ended


def test_halted_sends_nothing_and_goes_on_when_released(lane: Lane) -> None:
    made = fly(lane)
    step(lane, Asked("b", b"c" * 20, b""), 0)
    step(lane, Halted("drift"), 0)
    assert step(lane, look(20), 0) == []
    step(lane, Released(), 0)
    assert step(lane, look(20), 0) == [
        Send("redeem/1", made),
        Preflight("redeem/1"),
        Preflight("b"),
    ]


def test_a_deep_re_org_unconfirms(lane: Lane) -> None:
    made = fly(lane)
    step(lane, look(14, confirmed=11, receipts={made.hash: receipt(made, 11)}), 0)
    assert lane.spent_wei == 10**15
    effects = step(lane, Rewound(10), 0)
    assert kinds(effects) == [Say, Save]
    assert (lane.intents["redeem/1"].state, lane.spent_wei) == ("broadcast", 0)
    assert step(lane, look(12), 0) == [Send("redeem/1", made)]
    assert step(lane, Rewound(10), 0) == []


def test_no_money_for_gas_is_told_once(lane: Lane) -> None:
    step(lane, look(), 0)
    step(lane, PreflightDone("redeem/1", 100_000), 0)
    made = attempt(1)
    step(lane, Signed("redeem/1", made), 0)
    refused = Sent("redeem/1", made.hash, "refused", "insufficient funds")
    assert kinds(step(lane, refused, 0)) == [Say, Save]
    assert step(lane, refused, 0) == []
    assert lane.intents["redeem/1"].state == "signed"
