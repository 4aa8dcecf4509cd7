"""The core: one event in, the exact effects out, and nothing else."""

from typing import Any

import pytest
from worker_rig import HELLO, MARGIN, REPORT, SESSION, TTL, Rig, told

from gristmill.wire.failure import unpack_failures
from gristmill.wire.meter import unpack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import Limits, Tariff
from gristmill.wire.worker import Goodbye, ParcelHead, Returned, Welcome
from gristmill.worker.core import effects as do
from gristmill.worker.core import events as on
from gristmill.worker.core.state import SETUP_TRIES_MAX
from gristmill.worker.core.step import next_timer_ms

# ---------------------------------------------------------------- session


def test_hello_is_repeated_with_growing_jittered_pauses() -> None:
    rig = Rig()
    assert rig.tell(on.Began()) == []
    assert rig.turn() == [do.SendHello(HELLO)]
    pauses = []
    for _ in range(6):
        before = rig.now
        rig.now = next_timer_ms(rig.state) - 1
        assert rig.turn() == []
        assert rig.turn(1) == [do.SendHello(HELLO)]
        pauses.append(rig.now - before)
    assert pauses[0] < pauses[3]
    assert max(pauses) <= 10_000


def test_the_first_report_is_full_and_follows_the_welcome() -> None:
    rig = Rig()
    rig.tell(on.Began())
    rig.turn()
    assert rig.tell(on.Welcomed(Welcome(SESSION, 1, "b", REPORT, TTL, ""))) == []
    (effect,) = rig.turn()
    assert isinstance(effect, do.SendReport)
    assert (effect.message.is_full, effect.message.number) == (True, 1)
    assert rig.turn(REPORT - 1) == []
    (effect,) = rig.turn(1)
    assert isinstance(effect, do.SendReport) and effect.message.number == 2


def test_rejoin_says_hello_with_what_is_held() -> None:
    rig = Rig().running()
    assert rig.tell(on.WasRefused("REJOIN", "", "")) == []
    (effect,) = rig.turn()
    assert isinstance(effect, do.SendHello)
    assert [(held.lease_id, held.slot) for held in effect.message.held] == [(1, 0)]


def test_an_old_sessions_rejoin_does_not_end_the_new_one() -> None:
    rig = Rig().running()
    rig.tell(on.WasRefused("REJOIN", "", "", b"o" * 16))
    assert not [effect for effect in rig.turn() if isinstance(effect, do.SendHello)]


def test_who_is_over_the_rate_of_its_key_says_hello_later() -> None:
    rig = Rig().running()
    (told,) = rig.tell(on.WasRefused("RATE_LIMITED", "m", "h", b"", 900))
    assert isinstance(told, do.Tell)
    assert not [effect for effect in rig.turn(890) if isinstance(effect, do.SendHello)]
    (effect,) = rig.turn(10)
    assert isinstance(effect, do.SendHello), "and it has ended nothing"


def test_another_refusal_ends_the_worker_with_the_codes_exit_code() -> None:
    rig = Rig().running()
    assert rig.tell(on.WasRefused("NAME_TAKEN", "m", "h")) == [
        do.KillJail(0, 1, "lapse"),
        do.Exit(5, "NAME_TAKEN: m\n  -> h"),
    ]
    assert rig.turn(60_000) == []


def test_results_are_numbered_anew_and_sent_again_in_a_new_session() -> None:
    rig = Rig().running()
    rig.result(1, 0, 2)
    first = rig.turn()
    rig.result(1, 2, 1)
    rig.turn()
    rig.orders(acked=1)
    rig.tell(on.WasRefused("REJOIN", "", ""))
    rig.turn()
    rig.tell(on.Welcomed(Welcome(b"t" * 16, 1, "broker", REPORT, TTL, "")))
    (effect,) = rig.turn()

    assert isinstance(first[0], do.SendReport) and isinstance(effect, do.SendReport)
    assert [(head.number, head.first) for head in first[0].message.results] == [(1, 0)]
    assert [(head.number, head.first) for head in effect.message.results] == [(1, 2)]
    assert effect.message.session == b"t" * 16


def test_an_ack_forgets_and_only_what_was_sent() -> None:
    rig = Rig().running()
    rig.result(1, 0, 1)
    rig.turn()
    rig.result(1, 1, 1)
    rig.orders(acked=9)
    assert [pending.head.first for pending in rig.state.results] == [1]


def test_results_of_a_lost_report_are_said_again_in_their_order() -> None:
    rig = Rig().running()
    rig.result(1, 0, 1)
    rig.turn()  # this report is lost
    rig.result(1, 1, 1)
    (effect,) = rig.turn()
    assert isinstance(effect, do.SendReport)
    rig.orders(answers=effect.message.number, acked=0)
    (effect,) = rig.turn()
    assert isinstance(effect, do.SendReport)
    assert [(head.number, head.first) for head in effect.message.results] == [(1, 0), (2, 1)]
    rig.orders(answers=effect.message.number, acked=2)
    assert not rig.state.results and rig.turn() == []


def test_a_copy_of_a_welcome_changes_nothing() -> None:
    rig = Rig().running()
    rig.result(1, 0, 1)
    rig.turn()
    rig.orders(acked=1)
    rig.tell(on.Welcomed(Welcome(SESSION, 1, "broker", REPORT, TTL, "")))
    rig.result(1, 1, 1)
    (effect,) = rig.turn()
    assert isinstance(effect, do.SendReport)
    assert [head.number for head in effect.message.results] == [2], "1 was of another result"


def test_a_report_that_could_not_be_sent_begins_a_new_session() -> None:
    rig = Rig().running()
    assert rig.tell(on.ReportDropped(1)) == []
    assert rig.turn() == []
    (effect,) = rig.turn(1_000)
    assert isinstance(effect, do.SendHello)


def test_a_renewal_that_could_not_be_sent_is_not_covered_by_a_later_answer() -> None:
    rig = Rig().running()
    (effect,) = rig.turn(REPORT)
    assert isinstance(effect, do.SendReport) and effect.message.is_full
    lapse = rig.state.lapse_at_ms
    assert rig.tell(on.ReportDropped(effect.message.number, is_empty=True)) == []
    assert rig.state.phase == "open"
    rig.result(1, 0, 1)
    (effect,) = rig.turn(10)
    assert isinstance(effect, do.SendReport) and not effect.message.is_full
    rig.orders(answers=effect.message.number)
    assert rig.state.lapse_at_ms == lapse


def test_the_answer_to_a_report_that_is_not_full_does_not_extend_the_right_to_run() -> None:
    rig = Rig().running()
    lapse = rig.state.lapse_at_ms
    rig.result(1, 0, 1)
    (effect,) = rig.turn(900)
    assert isinstance(effect, do.SendReport) and not effect.message.is_full
    rig.orders(answers=effect.message.number)
    assert rig.state.lapse_at_ms == lapse, "the broker counts from the last full report"


def test_the_right_to_run_counts_from_when_the_answered_report_was_sent() -> None:
    rig = Rig().running()
    (effect,) = rig.turn(REPORT)
    assert isinstance(effect, do.SendReport)
    sent = rig.now
    rig.now += 900
    rig.orders(answers=effect.message.number)
    rig.now = sent + TTL - MARGIN - 1
    assert not any(isinstance(each, do.KillJail) for each in rig.turn())
    effects = rig.turn(1)
    assert effects[0] == do.KillJail(0, 1, "lapse")
    assert isinstance(effects[1], do.Tell) and isinstance(effects[2], do.SendHello)
    assert rig.state.slots[0].leases == []


def test_orders_that_answer_nothing_do_not_extend_it() -> None:
    rig = Rig().running()
    rig.now += TTL - MARGIN - 1
    rig.orders(answers=0)
    assert do.KillJail(0, 1, "lapse") in rig.turn(1)


def test_a_welcome_that_stops_a_lease_ends_its_jail_and_says_nothing_of_it() -> None:
    rig = Rig().running()
    rig.tell(on.WasRefused("REJOIN", "", ""))
    rig.turn()
    welcome = Welcome(b"t" * 16, 1, "broker", REPORT, TTL, "", [1])
    assert rig.tell(on.Welcomed(welcome)) == [do.KillJail(0, 1, "lapse")]
    assert rig.died(Outcome.RETURNED) == []
    assert told(rig.turn()) == ([], [], [])


# ---------------------------------------------------------------- slots and leases


def test_the_first_lease_starts_a_jail_and_is_fed_when_it_is_ready() -> None:
    rig = Rig().join()
    (opened,) = rig.open()
    assert isinstance(opened, do.OpenJob) and opened.function == b"function"
    assert rig.give(0, 4) == [do.StartJail(0, 1, 1)]
    (fed,) = rig.tell(on.JailReady(0, 1))
    assert fed == do.FeedSlot(0, 1, 1, 1, 1, ((0, 4),), (ParcelHead(1, 0, 4, "q"),), (b"parcel",))


def test_a_second_lease_of_the_job_is_fed_at_once() -> None:
    rig = Rig().running()
    (fed,) = rig.give(4, 2)
    assert isinstance(fed, do.FeedSlot) and (fed.lease_id, fed.runs) == (2, ((4, 2),))


def test_a_lease_of_another_job_waits_then_gets_its_own_jail() -> None:
    rig = Rig().running()
    rig.open(2)
    assert rig.give(0, 1, job=2) == []
    assert rig.result(1, 0, 4) == [do.KillJail(0, 1, "park")]
    assert rig.died(Outcome.SIGNAL) == [do.StartJail(0, 2, 2)]
    assert told(rig.turn())[1] == []


def test_a_jail_that_may_have_what_was_handed_back_is_not_parked() -> None:
    rig = Rig().running()
    rig.open(2)
    rig.give(4, 2)
    rig.give(0, 1, job=2)
    rig.orders(stop=[(2, int(Outcome.CANCELLED))])
    rig.look(1, 0)  # it runs its first lease: of the second it never starts anything
    assert rig.result(1, 0, 4) == [do.KillJail(0, 1, "retire")]


def test_an_idle_jail_is_kept_until_its_job_is_closed() -> None:
    rig = Rig().running()
    assert rig.result(1, 0, 4) == []
    assert rig.tell(on.FeedEnded(0, 1, 1)) == []
    assert rig.orders(close=[1]) == [do.KillJail(0, 1, "retire")]
    assert rig.died(Outcome.SIGNAL) == [do.CloseJob(1)]


def test_tier_strict_has_a_jail_for_each_subtask() -> None:
    rig = Rig().running(2, tier="strict")
    assert rig.result(1, 0, 1) == []
    assert rig.tell(on.FeedEnded(0, 1, 1)) == [do.KillJail(0, 1, "retire")]
    assert rig.died(Outcome.SIGNAL) == [do.StartJail(0, 2, 1)]
    (fed,) = rig.tell(on.JailReady(0, 2))
    assert isinstance(fed, do.FeedSlot) and fed.runs == ((1, 1),)


def test_a_lease_that_makes_no_sense_is_told_and_ignored() -> None:
    rig = Rig().join()
    (effect,) = rig.give(0, 1, job=9)
    assert isinstance(effect, do.Tell)


def test_orders_that_come_again_give_nothing_twice() -> None:
    rig = Rig().join()
    rig.open()
    grant = rig.grant(0, 1)
    rig.orders(leases=[grant])
    rig.tell(on.JailReady(0, 1))
    assert all(isinstance(effect, do.Tell) for effect in rig.orders(leases=[grant]))  # it is held
    rig.result(1, 0, 1)
    rig.tell(on.FeedEnded(0, 1, 1))
    rig.orders(close=[1])
    effects = rig.orders(leases=[grant])  # it is done
    assert effects and all(isinstance(effect, do.Tell) for effect in effects)
    assert not any(slot.leases for slot in rig.state.slots) and not rig.state.returned


def test_results_outside_the_lease_end_the_jail() -> None:
    rig = Rig().running()
    effects = rig.result(1, 3, 2)
    assert effects[0] == do.KillJail(0, 1, "lied")
    assert rig.state.results.__len__() == 0


def test_a_result_twice_ends_the_jail() -> None:
    rig = Rig().running()
    assert rig.result(1, 0, 2) == []
    assert rig.result(1, 0, 2)[0] == do.KillJail(0, 1, "lied")


def test_a_result_of_a_jail_that_is_gone_is_ignored() -> None:
    rig = Rig().running()
    assert rig.result(1, 0, 1, jail=7) == []
    assert rig.state.results.__len__() == 0


# ---------------------------------------------------------------- recall and stop


def test_what_the_slot_does_not_have_is_returned_at_once() -> None:
    rig = Rig().join()
    rig.open()
    rig.give(0, 4)
    assert rig.orders(recall=[1]) == []
    assert told(rig.turn())[1] == [Returned(1, [(0, 4)], "recalled")]


def test_recall_of_a_fed_lease_stops_the_page_then_returns_what_a_look_shows_unstarted() -> None:
    rig = Rig().running()
    rig.give(4, 2)
    assert rig.orders(recall=[1, 2]) == [
        do.StopLeases(0, 1, (1,)),
        do.StopLeases(0, 1, (1, 2)),
    ]
    assert told(rig.turn())[1] == []
    assert rig.look(1, 1) == []
    assert told(rig.turn())[1] == [
        Returned(1, [(2, 2)], "recalled"),
        Returned(2, [(4, 2)], "recalled"),
    ]
    assert rig.result(1, 0, 2) == []
    assert rig.tell(on.FeedEnded(0, 1, 1)) == []
    assert rig.tell(on.FeedEnded(0, 1, 2)) == []


def test_recall_between_subtasks_waits_for_the_slots_word() -> None:
    rig = Rig().running()
    rig.orders(recall=[1])
    assert rig.look(1, -1) == []
    assert told(rig.turn())[1] == []
    rig.result(1, 0, 3)
    rig.tell(on.FeedEnded(0, 1, 1))
    assert told(rig.turn()) == ([(0, 3, Outcome.OK)], [Returned(1, [(3, 1)], "recalled")], [])


def test_stop_kills_what_runs_and_returns_the_rest() -> None:
    rig = Rig().running()
    assert rig.orders(stop=[(1, int(Outcome.CANCELLED))]) == [do.StopLeases(0, 1, (1,))]
    assert rig.look(1, 1) == [do.KillJail(0, 1, "cancel")]
    assert rig.died(Outcome.CANCELLED, 1, 1) == []
    assert told(rig.turn()) == (
        [(1, 1, Outcome.CANCELLED)],
        [Returned(1, [(0, 1), (2, 2)], "stopped")],
        [],
    )


def test_stop_after_recall_still_stops() -> None:
    rig = Rig().running()
    rig.orders(recall=[1])
    rig.look(1, 0)
    rig.orders(stop=[(1, int(Outcome.CANCELLED))])
    assert rig.look(1, 0) == [do.KillJail(0, 1, "cancel")]


# ---------------------------------------------------------------- ends


def test_a_dead_jail_costs_the_running_subtask_and_returns_the_rest() -> None:
    rig = Rig().running()
    rig.give(4, 1)
    assert rig.died(Outcome.OOM, 1, 2) == [do.StartJail(0, 2, 1)]
    results, returned, other = told(rig.turn())
    assert results == [(2, 1, Outcome.OOM)]
    assert returned == [Returned(1, [(0, 2), (3, 1)], "jail")]
    assert other == []
    (fed,) = rig.tell(on.JailReady(0, 2))
    assert isinstance(fed, do.FeedSlot) and fed.lease_id == 2, "the other lease lives on"


def test_a_jail_that_dies_of_itself_before_anything_started_costs_the_first() -> None:
    rig = Rig().join()
    rig.open()
    rig.give(3, 2)
    rig.died(Outcome.OOM)
    assert told(rig.turn()) == (
        [(3, 1, Outcome.OOM)],
        [Returned(1, [(4, 1)], "jail")],
        [],
    )


@pytest.mark.parametrize("outcome", [Outcome.OOM, Outcome.SETUP])
def test_a_jail_that_dies_at_its_start_costs_its_own_job_only(outcome: Outcome) -> None:
    rig = Rig().join()
    rig.open()
    rig.open(job=2)
    rig.give(0, 4)  # StartJail for job 1, which is then cancelled
    rig.orders(recall=[1])
    rig.give(0, 2, job=2)
    assert told(rig.turn()) == ([], [Returned(1, [(0, 4)], "recalled")], [])

    effects = rig.died(outcome)

    assert [each for each in effects if not isinstance(each, do.Tell)] == [do.StartJail(0, 2, 2)]
    assert told(rig.turn()) == ([], [], [])


def test_jails_that_cannot_be_set_up_end_the_worker_with_the_kernels_reason() -> None:
    rig = Rig().join()
    rig.open()
    for jail in range(1, SETUP_TRIES_MAX + 1):
        assert rig.give(0, 2) == [do.StartJail(0, jail, 1)]
        (effect,) = rig.died(Outcome.SETUP, jail=jail)
        assert isinstance(effect, do.Tell)
        results, returned, other = told(rig.turn())
        assert (results, returned) == ([], [Returned(jail, [(0, 2)], "set-up", "why")])
    assert isinstance(other[0], do.SendGoodbye)
    assert isinstance(other[1], do.Exit)
    assert other[1].code == 78 and "why" in other[1].message


def test_a_jail_that_starts_forgives_earlier_failures() -> None:
    rig = Rig().join()
    rig.open()
    for jail in (1, 2):
        rig.give(0, 1)
        rig.died(Outcome.SETUP, jail=jail)
    rig.give(0, 1)
    rig.tell(on.JailReady(0, 3))
    assert rig.state.setup_failures == 0


def test_a_job_that_cannot_be_prepared_fails_its_leases_only() -> None:
    rig = Rig().join()
    rig.open()
    rig.give(0, 3)
    assert rig.tell(on.JobUnready(0, 1, int(Outcome.STORE), "BLOB_MISSING")) == []
    (effect,) = rig.turn()
    assert isinstance(effect, do.SendReport)
    head, frames = effect.message.results[0], effect.frames[0]
    assert (head.first, head.count, head.codec) == (0, 3, "")
    assert unpack_meter(frames[1], 3).outcome_at(2) is Outcome.STORE
    assert unpack_failures(frames[2])[0][1].message == "BLOB_MISSING"
    assert rig.state.setup_failures == 0


def test_inputs_that_cannot_be_had_fail_that_lease() -> None:
    rig = Rig().running()
    rig.give(4, 2)
    assert rig.tell(on.InputFailed(0, 1, 2, "gone")) == []
    assert told(rig.turn())[0] == [(4, 2, Outcome.STORE)]
    assert [lease.lease_id for lease in rig.state.slots[0].leases] == [1]


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("limits", "more", "after_ms", "cause"),
    [
        (Limits(wall_ms=500), {}, 501, "time"),
        (Limits(cpu_ms=500), {"cpu_us": 500_001}, 100, "cpu"),
        (Limits(output_bytes=10), {"output_bytes": 11}, 0, "output"),
    ],
)
def test_a_limit_that_a_look_sees_passed_kills(
    limits: Limits, more: dict[str, int], after_ms: int, cause: Any
) -> None:
    rig = Rig().running(limits=limits)
    assert rig.look(1, 0) == []
    rig.now += after_ms
    assert rig.look(1, 0, **more) == [do.KillJail(0, 1, cause)]


def test_the_clock_begins_again_with_each_subtask() -> None:
    rig = Rig().running(limits=Limits(wall_ms=500))
    for index in range(4):
        assert rig.look(1, index) == []
        rig.now += 499
        assert rig.look(1, index) == []


def test_a_budget_is_counted_over_results_and_what_runs() -> None:
    rig = Rig().join()
    rig.open()
    rig.give(0, 4, budget=Tariff().price(1_000_000, 1))
    rig.tell(on.JailReady(0, 1))
    rig.result(1, 0, 1, cpu_us=600_000)
    assert rig.look(1, 1, cpu_us=900_000, fresh_cpu_us=400_000) == []
    assert rig.look(1, 1, cpu_us=900_001, fresh_cpu_us=400_001) == [do.KillJail(0, 1, "budget")]
    rig.died(Outcome.BUDGET, 1, 1)
    results, returned, _ = told(rig.turn())
    assert results == [(0, 1, Outcome.OK), (1, 1, Outcome.BUDGET)]
    assert returned == [Returned(1, [(2, 2)], "stopped")]


def test_reserved_memory_counts_in_the_budget() -> None:
    tariff = Tariff(0, 0, 50_000)
    rig = Rig().join()
    rig.open(tariff=tariff, limits=Limits(memory_bytes=2 << 30))
    rig.give(0, 4, budget=200_000)  # two seconds of 2 GiB
    rig.tell(on.JailReady(0, 1))
    rig.result(1, 0, 1, wall_us=1_500_000)
    assert rig.look(1, 1) == []
    rig.now += 500
    assert rig.look(1, 1) == []
    rig.now += 1
    assert rig.look(1, 1) == [do.KillJail(0, 1, "budget")]


# ---------------------------------------------------------------- drain


def test_drain_returns_the_unstarted_lets_run_what_runs_and_says_goodbye() -> None:
    rig = Rig(grace_ms=5_000).running()
    rig.give(4, 2, slot=1)
    effects = rig.tell(on.DrainAsked("SIGTERM"))
    assert [type(effect) for effect in effects] == [do.Tell, do.StopLeases]
    (effect,) = rig.turn()
    assert isinstance(effect, do.SendReport)
    assert effect.message.is_draining
    assert effect.message.returned == [Returned(2, [(4, 2)], "drained")]
    rig.look(1, 0)
    assert told(rig.turn())[1] == [Returned(1, [(1, 3)], "drained")]
    assert rig.result(1, 0, 1) == [do.KillJail(0, 1, "retire")]
    rig.died(Outcome.SIGNAL)
    rig.tell(on.JobUnready(1, 2, int(Outcome.STORE), ""))  # slot 1 was starting
    assert told(rig.turn())[2] == [], "the result has no ack yet"
    rig.orders(acked=1)
    assert rig.turn() == [do.SendGoodbye(Goodbye(SESSION, "SIGTERM")), do.Exit(0)]


def test_a_lease_that_comes_while_draining_goes_back() -> None:
    rig = Rig().running()
    rig.tell(on.DrainAsked("SIGTERM"))
    rig.give(9, 1, slot=1)
    assert Returned(2, [(9, 1)], "drained") in told(rig.turn())[1]


def test_what_runs_past_the_grace_is_ended_and_returned() -> None:
    rig = Rig(grace_ms=100).running()
    rig.tell(on.DrainAsked("SIGTERM"))
    rig.look(1, 1)
    assert do.KillJail(0, 1, "drain") in rig.turn(100)
    rig.died(Outcome.RETURNED, 1, 1)
    results, returned, other = told(rig.turn())
    assert results == []
    assert Returned(1, [(0, 2)], "drained") in returned
    assert [type(effect) for effect in other] == [do.SendGoodbye, do.Exit]


def test_a_second_request_ends_the_grace_and_one_of_the_broker_does_not() -> None:
    rig = Rig(grace_ms=60_000).running()
    rig.tell(on.DrainAsked("SIGTERM was received"))
    rig.look(1, 1)
    rig.orders(is_drain=True)
    assert do.KillJail(0, 1, "drain") not in rig.turn(100)
    assert rig.tell(on.DrainAsked("SIGTERM was received", is_hurried=True)) != []
    assert do.KillJail(0, 1, "drain") in rig.turn()
    assert rig.tell(on.DrainAsked("SIGTERM was received", is_hurried=True)) == []


def test_a_stop_ends_what_a_drain_lets_run() -> None:
    rig = Rig(grace_ms=60_000).running()
    rig.tell(on.DrainAsked("SIGTERM"))
    rig.look(1, 0)
    assert told(rig.turn())[1] == [Returned(1, [(1, 3)], "drained")]
    rig.orders(stop=[(1, int(Outcome.CANCELLED))])
    assert rig.look(1, 0) == [do.KillJail(0, 1, "cancel")]
    rig.died(Outcome.CANCELLED, 1, 0)
    assert told(rig.turn())[0] == [(0, 1, Outcome.CANCELLED)]


def test_a_broker_that_reads_its_journal_is_greeted_again_a_little_later() -> None:
    rig = Rig().running()
    assert rig.tell(on.WasRefused("RECOVERING", "m", "h")) == []
    assert not [effect for effect in rig.turn() if isinstance(effect, do.SendHello)]
    (hello,) = [effect for effect in rig.turn(500) if isinstance(effect, do.SendHello)]
    assert [held.lease_id for held in hello.message.held] == [1]


def test_hello_claims_what_runs_and_what_waits_for_its_ack() -> None:
    rig = Rig().running()
    rig.result(1, 0, 2)
    rig.turn()
    rig.tell(on.WasRefused("REJOIN", "", ""))
    (hello,) = [effect for effect in rig.turn() if isinstance(effect, do.SendHello)]
    (claim,) = hello.message.claims
    grant = rig.state.slots[0].leases[0].grant
    assert (claim.lease_id, claim.slot, claim.job, claim.attempt) == (1, 0, grant.job, 1)
    assert claim.budget_ucredits == grant.budget_ucredits and claim.age_ms >= 0
    runs = [index for start, length in claim.runs for index in range(start, start + length)]
    assert runs == [i for start, length in grant.runs for i in range(start, start + length)]
