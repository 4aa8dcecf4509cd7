"""Leases: how large, to whom, renewed, returned, recalled, rescued."""

import pytest
from core_driver import Core, big_lease, grant_of, grants, kinds, leases, only

from gristmill.broker.core import effects as fx
from gristmill.broker.core import events as ev
from gristmill.wire import limits
from gristmill.wire.ids import pack_lease_id
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import Limits
from gristmill.wire.worker import ParcelHead


def sizes(effects: list[fx.AnyEffect]) -> list[int]:
    return [sum(n for _, n in grant.runs) for grant in grants(effects)]


def test_the_first_leases(core: Core) -> None:
    core.join()
    core.submit(count=10, cap_ucredits=0)
    core.submit(count=10)
    core.parcel(2, 0, 10)
    effects = core.do(ev.HoldAnswered(2, "", ""))
    assert kinds(effects) == ["RecordEvent", "RecordState", "OpenJob", "Dispatch", "Dispatch"]
    first, second = grants(effects)
    assert first.lease_id == pack_lease_id(5, 1) and second.lease_id == pack_lease_id(5, 2)
    assert (first.slot, first.job, first.attempt, first.runs) == (0, 2, 1, [(0, 1)])
    assert second.runs == [(1, 1)] and first.parcels == [ParcelHead(2, 0, 10, "m")]
    assert effects[2] == fx.OpenJob(1, 2)


def play(core: Core, each_us: int, count: int, slots: int = 1) -> list[int]:
    """Sizes of all leases of a job, in order, when each subtask takes this long."""
    core.join(slots=slots)
    core.submit(count=count)
    core.do(ev.HoldAnswered(1, "", ""))
    found: list[int] = []
    queue = []
    for first in range(0, count, 1000):
        effects = core.parcel(1, first, min(1000, count - first))
        queue += grants(effects)
    while queue:
        lease = queue.pop(0)
        found.append(sum(n for _, n in lease.runs))
        core.now += max(1, found[-1] * each_us // 1000)
        effects = core.finish(1, lease, each_us)
        queue += grants(effects)
    assert sum(found) == count and not core.state.jobs
    return found


@pytest.mark.parametrize(
    ("each_us", "count", "expected"),
    [
        # doubling up to 20 ms of work, then guided shrinking
        (1_000, 100, [1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 19, 10, 5, 2, 1, 1]),
        (10_000, 10, [1, 1, 2, 2, 2, 1, 1]),
        (3_000_000, 5, [1, 1, 1, 1, 1]),  # long subtasks: one each
    ],
)
def test_golden_lease_sizes_on_one_slot(
    core: Core, each_us: int, count: int, expected: list[int]
) -> None:
    assert play(core, each_us, count) == expected


def test_tiny_subtasks_reach_the_largest_lease(core: Core) -> None:
    found = play(core, 1, 600_000, slots=2)
    assert max(found) == limits.LEASE_ITEMS_MAX
    assert found[:12] == [1] * 4 + [64] * 4 + [4096] * 4, "a lease of microseconds tells enough"
    assert found[12:17] == [8192] * 4 + [limits.LEASE_ITEMS_MAX]
    assert min(found[16:-1]) >= limits.LEASE_FLOOR_US, "nor is one worth its price at the end"


def test_nothing_is_stacked_behind_a_long_subtask(core: Core) -> None:
    core.join()
    core.submit(count=4)
    core.do(ev.HoldAnswered(1, "", ""))
    first, second = grants(core.parcel(1, 0, 4))  # unknown yet: stacked
    core.now += 3_000
    assert grants(core.finish(1, first, 3_000_000)) == []
    core.now += 3_000
    assert len(grants(core.finish(1, second, 3_000_000))) == 1


def test_idle_slots_are_filled_before_anything_is_stacked(core: Core) -> None:
    for worker in (1, 2, 3):
        core.join(worker)
    core.submit(count=4)
    core.do(ev.HoldAnswered(1, "", ""))
    workers = [e.worker for e in only(core.parcel(1, 0, 4), fx.Dispatch)]
    assert workers == [1, 2, 3, 1]


def test_concurrency_max(core: Core) -> None:
    core.join(slots=4)
    core.submit(count=10, concurrency_max=2)
    core.do(ev.HoldAnswered(1, "", ""))
    first, second = grants(core.parcel(1, 0, 10))
    assert {first.slot, second.slot} == {0, 1}
    assert len(grants(core.finish(1, first))) == 1


# ---------------------------------------------------------------- results


def test_a_result_is_kept_billed_and_followed_by_a_lease(core: Core) -> None:
    core.join()
    core.job(3)
    lease = core.state.leases[pack_lease_id(5, 1)]
    assert lease.open == [(0, 1)]
    core.now += 10
    effects = core.result(1, grant_of(lease), 0, 1, cpu_us=5_000)
    keep, post, dispatch = effects
    assert keep == fx.KeepResult(1, 1, 1, 0, 1, 1, lease.number, "node1", 0, "", [])
    entry = post.entry
    assert (entry.ref, entry.subtasks, entry.failed, entry.cpu_us) == ("broker/1", 1, 0, 5_000)
    assert (entry.amount_ucredits, entry.toll_ucredits) == (5_010, 150)
    assert isinstance(dispatch, fx.Dispatch)
    assert core.state.jobs[1].done == 1 and core.state.jobs[1].spent_ucredits == 5_010


def test_part_of_a_lease_may_be_answered_in_any_pieces(core: Core) -> None:
    core.join()
    lease = big_lease(core)
    (first, count) = lease.runs[0]
    job = core.state.jobs[1]
    done = job.done
    assert kinds(core.result(1, lease, first + 2, 3)) == ["KeepResult", "AddToOutbox"]
    assert core.state.leases[lease.lease_id].open == [(first, 2), (first + 5, count - 5)]
    assert kinds(core.result(1, lease, first, 2)) == ["KeepResult", "AddToOutbox"]
    effects = core.result(1, lease, first + 5, count - 5)
    assert lease.lease_id not in core.state.leases and len(grants(effects)) == 1
    assert job.done == done + count


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"first": 1_000}, "not open in its lease"),
        ({"first": -1}, "not open in its lease"),
        ({"count": 0}, "not a current lease"),
        ({"job": 2}, "not a current lease"),
        ({"meter_count": 7}, "a meter of 7 subtasks"),
        ({"outcome": Outcome.RETURNED}, "an outcome that no result has"),
        ({"outcome": bytes([0, 18, 0, 0, 0, 0, 0, 0])}, "an outcome that no result has"),
    ],
)
def test_a_result_that_breaks_a_rule_is_superseded(
    core: Core, change: dict[str, object], cause: str
) -> None:
    core.join()
    lease = big_lease(core)
    (first, count) = lease.runs[0]
    values: dict[str, object] = {"first": first, "count": count, **change}
    spent = core.state.jobs[1].spent_ucredits
    effects = core.result(1, lease, **values)  # type: ignore[arg-type]
    assert kinds(effects) == ["KeepSuperseded", "RecordEvent"]
    assert effects[1].detail["cause"] == cause  # type: ignore[union-attr]
    assert core.state.jobs[1].spent_ucredits == spent
    assert core.state.leases[lease.lease_id].items == count
    assert kinds(core.finish(1, lease))[0] == "KeepResult"  # the right one is still welcome


def test_a_flood_of_forged_results_is_no_flood_of_events(core: Core) -> None:
    core.join()
    lease = big_lease(core)

    def forge() -> list[int]:
        effects = core.result(1, lease, 1_000, 1)
        assert kinds(effects)[0] == "KeepSuperseded", "each is counted"
        told = only(effects, fx.RecordEvent)
        return [one.detail.get("refusals", 0) for one in told]

    told = [nth for _ in range(1_000) for nth in forge()]
    assert told == [0, 0, 0, 0, 8, 16, 32, 64, 128, 256, 512]
    assert core.state.jobs[1].superseded == 1_000
    core.report(is_full=True)
    assert core.state.workers[1].refusals == 1_000, "only quiet begins it anew"


def test_after_a_quiet_minute_a_refused_result_is_told_again(core: Core) -> None:
    core.join()
    lease = big_lease(core)
    for _ in range(7):
        effects = core.result(1, lease, 1_000, 1)
    assert kinds(effects) == ["KeepSuperseded"]
    for _ in range(61):
        core.do(ev.TimePassed(), 1_000)
        core.report(is_full=True)
    assert kinds(core.result(1, lease, 1_000, 1)) == ["KeepSuperseded", "RecordEvent"]


def test_another_workers_lease_is_not_ones_own(core: Core) -> None:
    core.join(1)
    lease = big_lease(core)
    core.join(2)
    assert 2 in core.state.jobs[1].workers  # it has a lease of the job, but not this one
    assert kinds(core.finish(2, lease)) == ["KeepSuperseded", "RecordEvent"]
    assert core.state.jobs[1].superseded == lease.runs[0][1]


def test_a_repeated_result_is_only_acked(core: Core) -> None:
    core.join()
    lease = big_lease(core)
    core.finish(1, lease)
    number = core.numbers[1]
    assert core.result(1, lease, *lease.runs[0], number=number) == []
    (ack,) = core.report(is_full=False)
    assert ack == fx.AckReport(1, 1, number, 1_000, 3_500, False)


def test_a_result_behind_a_lost_one_is_not_taken(core: Core) -> None:
    """Its ack would be one of what was lost, and the worker would forget that."""
    core.join()
    lease = big_lease(core)
    (first, count) = lease.runs[0]
    upto = core.numbers[1]
    assert core.result(1, lease, first + 1, count - 1, number=upto + 2) == []
    assert only(core.report(is_full=False), fx.AckReport)[0].results_upto == upto
    core.result(1, lease, first, 1, number=upto + 1)
    core.result(1, lease, first + 1, count - 1, number=upto + 2)
    assert only(core.report(is_full=False), fx.AckReport)[0].results_upto == upto + 2
    assert core.state.jobs[1].superseded == 0


def test_unknown_workers_are_ignored(core: Core) -> None:
    core.join()
    lease = big_lease(core)
    assert core.finish(9, lease) == [] and core.report(9) == []
    assert core.do(ev.WorkerLost(9, False, "")) == []
    assert core.do(ev.WorkerDrainAsked(9)) == []


# ---------------------------------------------------------------- retries


def test_own_failures_spend_retries_and_then_fail(core: Core) -> None:
    core.join()
    core.job(1, retries=1)
    (lease,) = leases(core)
    effects = core.result(1, lease, 0, 1, Outcome.ERROR, failures=[(0, "ValueError: 3")])
    assert effects[0].not_final == [(0, 1)]  # type: ignore[union-attr]
    assert only(effects, fx.AddToOutbox)[0].entry.subtasks == 1  # billed: it was its own doing
    (again,) = grants(effects)
    assert again.attempt == 2 and again.runs == [(0, 1)]
    effects = core.result(1, again, 0, 1, Outcome.EXIT, failures=[(0, "exit 3")])
    card = only(effects, fx.TellStatus)[0].status
    assert (card.state, card.failed, card.retried) == ("failed", 1, 1)
    assert card.errors == [("error", "ValueError: 3", 1, 0), ("exit", "exit 3", 1, 0)]
    assert card.reason == "JOB_FAILED"


def test_the_grids_faults_spend_losses_and_are_never_billed(core: Core) -> None:
    core.join()
    core.job(1, losses_max=1)
    (lease,) = leases(core)
    effects = core.result(1, lease, 0, 1, Outcome.SETUP)
    assert kinds(effects) == ["KeepResult", "Dispatch"]
    effects = core.result(1, grants(effects)[0], 0, 1, Outcome.STORE)
    card = only(effects, fx.TellStatus)[0].status
    assert (card.state, card.lost, card.spent_ucredits) == ("failed", 2, 0)


def test_a_mixed_result_is_judged_by_runs(core: Core) -> None:
    core.join()
    lease = big_lease(core, retries=1)
    (first, count) = lease.runs[0]
    column = bytes([0, 1, 1, 0, 11] + [0] * (count - 5))
    effects = core.result(1, lease, first, count, column)
    keep = effects[0]
    assert keep.outcome == -1  # type: ignore[union-attr]
    assert keep.not_final == [(first + 1, 2), (first + 4, 1)]  # type: ignore[union-attr]
    entry = only(effects, fx.AddToOutbox)[0].entry
    assert (entry.subtasks, entry.failed) == (count - 1, 3)
    (again,) = grants(effects)
    assert again.attempt == 2 and again.runs[0] == (first + 1, 2)  # first in the queue


def test_failures_max_pauses_and_resume_goes_on(core: Core) -> None:
    core.join()
    core.job(10, failures_max=2)
    queue = leases(core)
    core.result(1, queue[0], 0, 1, Outcome.ERROR)
    effects = core.result(1, queue[1], 1, 1, Outcome.ERROR)
    assert kinds(effects)[-3:] == ["RecordEvent", "RecordState", "TellStatus"]
    assert effects[-1].status.state == "paused"  # type: ignore[union-attr]
    assert "failures_max is 2" in effects[-1].status.reason  # type: ignore[union-attr]
    (left,) = leases(core)
    core.result(1, left, *left.runs[0], Outcome.ERROR)
    assert not core.state.leases
    effects = core.do(ev.ResumeAsked(1, 1, "t", 1))
    assert kinds(effects)[:4] == ["Confirm", "RecordEvent", "RecordState", "TellStatus"]
    assert len(grants(effects)) == 2


@pytest.mark.parametrize("most", [1, 2, 5])
def test_leases_of_a_job_that_only_fails_do_not_grow(core: Core, most: int) -> None:
    core.join()
    core.job(200, failures_max=most)
    for _ in range(4):  # and after a resume no more than before
        before = core.state.jobs[1].failed
        while held := leases(core):
            (first, count), *_ = held[0].runs
            core.now += 5
            core.result(1, held[0], first, count, Outcome.ERROR)
        job = core.state.jobs[1]
        assert job.state == "paused"
        # One slot has two leases: the second one may be out when the first one's failures count.
        assert job.failed - before <= most + 1
        core.do(ev.ResumeAsked(1, 1, "t", 1))


def test_leases_grow_once_a_subtask_is_done(core: Core) -> None:
    core.join()
    lease = big_lease(core, failures_max=2)
    assert sum(count for _, count in lease.runs) >= 8


# ---------------------------------------------------------------- returned, recalled


def test_returned_runs_are_ready_again_under_the_same_attempt(core: Core) -> None:
    core.join()
    lease = big_lease(core)
    (first, count) = lease.runs[0]
    effects = core.give_back(1, lease, [(first + 3, count - 3)], "drained")
    assert kinds(effects) == ["RecordEvent", "AckReport"]
    assert core.state.leases[lease.lease_id].items == 3
    effects = core.result(1, lease, first, 3)
    (again,) = grants(effects)
    assert again.runs[0][0] == first + 3 and again.attempt == 1
    assert core.state.jobs[1].lost == 0


@pytest.mark.parametrize("runs", [[(0, 1)], [(0, 500)], [(-1, 2)], [(4, 0)], [(4, -3)]])
def test_returning_what_is_not_held_changes_nothing(
    core: Core, runs: list[tuple[int, int]]
) -> None:
    core.join()
    lease = big_lease(core)
    assert kinds(core.give_back(1, lease, runs)) == ["AckReport"]
    assert core.state.leases[lease.lease_id].open == lease.runs


def test_a_job_that_cannot_be_set_up_stays_away_for_a_while(core: Core) -> None:
    core.join()
    core.job(1)
    (lease,) = leases(core)
    effects = core.give_back(1, lease, [(0, 1)], "set-up")
    assert kinds(effects) == ["RecordEvent", "AckReport"]  # and it is not dispatched again
    assert grants(core.tick(900)) == []
    (lease,) = grants(core.tick(200))
    core.give_back(1, lease, [(0, 1)], "set-up")
    assert grants(core.tick(1_500)) == []
    assert len(grants(core.tick(600))) == 1
    core.join(2)


def test_an_unstarted_lease_is_recalled_for_an_idle_slot(core: Core) -> None:
    core.join(1)
    core.job(2)
    _, stacked = leases(core)
    core.join(2)
    assert not only(core.tick(50), fx.RecallLease)
    effects = core.tick(100)
    assert only(effects, fx.RecallLease) == [fx.RecallLease(1, stacked.lease_id)]
    assert not only(core.tick(100), fx.RecallLease)  # asked once
    assert core.state.jobs[1].ready.count == 0  # not ready before the worker answers
    effects = core.give_back(1, stacked, stacked.runs)
    (again,) = only(effects, fx.Dispatch)
    assert again.worker == 2 and again.lease.runs == stacked.runs
    late = core.finish(1, stacked)
    assert kinds(late) == ["KeepSuperseded", "RecordEvent"]


def test_the_tail_of_a_slow_lease_is_recalled(core: Core) -> None:
    core.join(1)
    lease = big_lease(core, 30)
    core.join(2)
    while core.state.workers[2].leases or len(core.state.leases) > 1:
        for other in leases(core)[1:]:  # everything else is done, on both workers
            core.finish(core.state.leases[other.lease_id].slot.worker.number, other)
    assert only(core.tick(500), fx.RecallLease)[0].lease_id == lease.lease_id
    (first, count) = lease.runs[0]
    core.give_back(1, lease, [(first + 1, count - 1)])
    assert core.state.leases[lease.lease_id].open == [(first, 1)]


# ---------------------------------------------------------------- matching


def test_claims_never_pass_a_workers_capacity(core: Core) -> None:
    core.join(1, slots=4, cpus_milli=4_000, memory_bytes=4 << 30)
    core.job(10, limits=Limits(cpus_milli=1_000, memory_bytes=2 << 30))
    assert {lease.slot for lease in leases(core)} == {0, 1}
    core.job(10, limits=Limits(cpus_milli=3_000, memory_bytes=1 << 20))
    assert {lease.job for lease in leases(core)} == {1}


def test_labels_tier_and_python_are_matched(core: Core) -> None:
    core.join(1, tiers=["job"], pythons=["3.11"], labels={"zone": "a"})
    core.join(2, tiers=["job", "batch"], pythons=["3.12"], labels={"zone": "b", "gpu": "1"})
    assert [e.worker for e in _placed(core, labels={"gpu": "1"})] == [2]
    assert [e.worker for e in _placed(core, python="3.11.2")] == [1]
    assert _placed(core, python="3.11", labels={"gpu": "1"}) == []
    assert _placed(core, labels={"zone": "a", "gpu": "1"}) == []


def _placed(core: Core, **fields: object) -> list[fx.Dispatch]:
    core.submit(count=1, **fields)
    number = core.state.job_counter
    core.do(ev.HoldAnswered(number, "", ""))
    return only(core.parcel(number, 0, 1), fx.Dispatch)


def test_very_many_kinds_of_demand_are_all_served(core: Core) -> None:
    for number in range(150):
        core.job(2, limits=Limits(memory_bytes=(1 << 30) + number))
    core.join(1, slots=2, memory_bytes=64 << 30)
    for _ in range(400):
        if not core.state.jobs:
            break
        core.finish(1, leases(core)[0])
    assert len(core.state.finished) == 150 and not core.state.requirements


def test_work_that_fits_nowhere_now_hides_nobody_else(core: Core) -> None:
    core.join(1, slots=2, memory_bytes=4 << 30)
    for number in range(80):
        core.job(1, limits=Limits(memory_bytes=(5 << 30) + number))
    core.job(1)
    (lease,) = leases(core)
    assert lease.job == 81


def test_a_close_that_was_lost_is_said_again_to_who_names_the_job(core: Core) -> None:
    core.join()
    job, other = core.job(1), core.job(1)
    (lease,) = (one for one in leases(core) if one.job == job)
    assert only(core.finish(1, lease), fx.CloseJob) == [fx.CloseJob(1, job)]
    assert only(core.report(open_jobs=[job, other]), fx.CloseJob) == [fx.CloseJob(1, job)]
    assert not only(core.report(is_full=False, open_jobs=[job]), fx.CloseJob)
    assert not only(core.report(open_jobs=[other]), fx.CloseJob)
