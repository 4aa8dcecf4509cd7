"""Which slots a full report renews: those that were seen alive, and for how long after."""

from typing import Any

import pytest
from worker_rig import REPORT, TTL, Rig, told

from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import Limits
from gristmill.wire.worker import Returned
from gristmill.worker.core import effects as do
from gristmill.worker.core import events as on
from gristmill.worker.core.state import END_MS_MAX, START_MS_MAX, TAKE_MS_MAX

HALF = TTL // 2
LONG = Limits(wall_ms=3_600_000)


def test_a_slot_whose_process_is_seen_is_renewed_whatever_its_subtask_takes() -> None:
    rig = Rig().running(limits=LONG)
    for _ in range(5 * TTL // REPORT):
        assert rig.look(1, 0) == []
        assert rig.alive() == [0]


def test_a_slot_without_a_lease_is_not_named() -> None:
    assert Rig().join().alive() == []


def test_a_slot_that_no_look_sees_is_not_renewed() -> None:
    rig = Rig().running()
    rig.look(1, 0)
    assert rig.alive(HALF) == [0]
    assert rig.alive(REPORT) == [], "seen alive is what counts, not that nobody said otherwise"
    rig.look(1, 0)
    assert rig.alive(REPORT) == [0]


def test_a_slot_that_starts_is_renewed_until_its_start_has_failed() -> None:
    rig = Rig().join()
    rig.open()
    rig.give(0, 1)
    while rig.now < 1_000 + START_MS_MAX - REPORT:
        assert rig.alive() == [0]
    rig.now += 2 * REPORT
    assert rig.tell(on.Looked(())) == [do.KillJail(0, 1, "start")]


def test_a_stopped_process_is_killed_after_half_a_ttl_and_lost_unbilled() -> None:
    rig = Rig().running(limits=LONG)
    rig.look(1, 1)
    rig.now += HALF
    assert rig.look(1, 1, is_stopped=True) == []
    rig.now += 1
    effects = rig.look(1, 1, is_stopped=True)
    assert do.KillJail(0, 1, "hung") in effects
    assert [type(each) for each in effects] == [do.Tell, do.KillJail]
    rig.died(Outcome.LOST, 1, 1)
    results, returned, other = told(rig.turn())
    assert results == [(1, 1, Outcome.LOST)]
    assert returned == [Returned(1, [(0, 1), (2, 2)], "jail")]
    assert other == []
    rig.give(9, 1)
    assert rig.state.slots[0].phase == "starting", "the slot is made new for the next lease"


def test_a_process_that_was_stopped_for_a_moment_goes_on() -> None:
    rig = Rig().running(limits=LONG)
    for _ in range(10):
        rig.look(1, 1, is_stopped=True)
        rig.now += HALF
        assert rig.look(1, 1) == []
        rig.now += 10


def test_a_jail_that_does_not_end_is_not_renewed_and_is_when_it_is_made_new() -> None:
    rig = Rig().running(limits=Limits(wall_ms=500))
    rig.look(1, 0)
    rig.now += 501
    assert rig.look(1, 0) == [do.KillJail(0, 1, "time")]
    while rig.now < 1_000 + 501 + END_MS_MAX - REPORT:
        assert rig.alive() == [0]
    rig.now += REPORT
    assert rig.alive() == []
    rig.died(Outcome.TIME, 1, 0)
    rig.give(9, 1)
    assert rig.alive() == [0]


def test_results_on_their_way_to_the_store_keep_their_slot_alive() -> None:
    rig = Rig().running()
    for _ in range(10):
        rig.tell(on.Looked((), shipping=((0, 1),)))
        assert rig.alive() == [0]
    rig.tell(on.Looked((), shipping=((0, 99),)))
    assert rig.alive(HALF + 1) == [], "of another jail of the slot"


def test_a_slot_that_does_not_begin_on_its_lease_is_ended_in_the_end() -> None:
    rig = Rig().running(limits=LONG)
    end = rig.now + TAKE_MS_MAX
    while rig.now <= end:
        assert rig.look(0, -1) == []
        assert rig.alive() == [0]
    assert do.KillJail(0, 1, "hung") in rig.look(0, -1)


def test_a_slot_that_was_idle_for_long_has_all_its_time_for_the_next_lease() -> None:
    rig = Rig().running(1)
    rig.look(1, 0)
    rig.result(1, 0, 1)
    rig.look(1, -1)
    rig.now += 7_200_000  # the job is open; its jail waits
    rig.look(1, -1)
    rig.give(1, 1)
    assert rig.look(1, -1) == [], "the slot has not yet read what it was just sent"


@pytest.mark.parametrize("stopped_ms, is_replaced", [(HALF, False), (HALF + 1, True)])
def test_a_spawner_that_stands_still_is_replaced_after_half_a_ttl(
    stopped_ms: int, is_replaced: bool
) -> None:
    rig = Rig().running(limits=LONG)
    rig.look(1, 0)
    rig.now += stopped_ms
    looked = on.Looked((on.Look(0, 1, 1, 0),), is_spawner_stopped=True)
    effects: list[Any] = rig.tell(looked)
    assert (do.ReplaceSpawner() in effects) == is_replaced
    rig.now += 100
    if is_replaced:
        assert rig.tell(looked) == [], "once, not at each look"


def test_an_agent_that_stood_still_ends_its_jails_and_still_tells_what_they_had_done() -> None:
    rig = Rig().running()
    rig.look(1, 2)
    rig.now += 2 * TTL  # SIGSTOP; the broker has given the lease to another meanwhile
    rig.result(1, 0, 2)  # was in the slot's socket
    effects = rig.turn()
    assert do.KillJail(0, 1, "lapse") in effects
    assert rig.state.slots[0].leases == []
    rig.died(Outcome.RETURNED, 1, 2)
    rig.join()
    assert [pending.head.lease_id for pending in rig.state.results] == [1]
    assert [pending.is_sent for pending in rig.state.results] == [True], "to be superseded"


def test_jails_that_were_ended_in_our_stead_are_lost_only_while_the_lease_is_ours() -> None:
    rig = Rig().running()
    rig.look(1, 2)
    rig.died(Outcome.LOST, 1, 2)
    assert told(rig.turn())[0] == [(2, 1, Outcome.LOST)]
    rig = Rig().running()
    rig.look(1, 2)
    rig.now += 2 * TTL
    rig.died(Outcome.LOST, 1, 2)
    rig.turn()
    assert not rig.state.results
