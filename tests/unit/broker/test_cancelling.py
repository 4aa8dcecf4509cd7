"""Cancel of runs and jobs, pause and resume."""

from core_driver import CLIENT, Core, big_lease, grants, kinds, leases, only

from gristmill.broker.core import effects as fx
from gristmill.broker.core import events as ev
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import Limits, Tariff


def test_a_job_of_which_nothing_runs_is_cancelled_at_once(core: Core) -> None:
    core.submit(count=100, cap_ucredits=0)
    core.parcel(1, 0, 10)
    effects = core.cancel(1)
    assert kinds(effects) == [
        "RecordEvent",
        "Confirm",
        "KeepResult",
        "KeepResult",
        "RecordState",
        "TellStatus",
        "FreeJob",
    ]
    ready, waiting = only(effects, fx.KeepResult)
    assert (ready.first, ready.count, ready.ref, ready.outcome) == (0, 10, 0, Outcome.CANCELLED)
    assert (waiting.first, waiting.count, waiting.sequence) == (10, 90, 2)
    card = effects[5].status  # type: ignore[union-attr]
    assert (card.state, card.cancelled, card.count) == ("cancelled", 100, 100)


def test_a_running_job_is_cancelled_when_nothing_of_it_runs(core: Core) -> None:
    core.join()
    lease = big_lease(core, count=50)
    (first, count) = lease.runs[0]
    stacked = leases(core)[1]
    effects = core.cancel(1)
    assert only(effects, fx.StopLease) == [
        fx.StopLease(1, lease.lease_id, Outcome.CANCELLED),
        fx.StopLease(1, stacked.lease_id, Outcome.CANCELLED),
    ]
    assert not only(effects, fx.RecordState)
    core.give_back(1, stacked, stacked.runs, "stopped")
    core.result(1, lease, first, 2)  # what had been done before stays done and billed
    core.result(1, lease, first + 2, 1, Outcome.CANCELLED)
    effects = core.give_back(1, lease, [(first + 3, count - 3)], "stopped")
    card = only(effects, fx.TellStatus)[0].status
    assert card.state == "cancelled" and card.done + card.cancelled == 50 and card.failed == 0
    assert fx.CloseJob(1, 1) in effects
    assert core.cancel(1) == [fx.Confirm(CLIENT, 2)]


def test_cancelling_an_open_job_closes_it(core: Core) -> None:
    core.submit()
    core.parcel(1, 0, 10)
    effects = core.cancel(1)
    assert only(effects, fx.TellStatus)[0].status.count == 10
    assert only(core.parcel(1, 10, 10), fx.RefuseRequest)[0].code == "UPLOAD_CLOSED"


def test_ready_runs_are_cancelled_alone(core: Core) -> None:
    core.submit(count=10)
    core.parcel(1, 0, 10)
    effects = core.cancel(1, [(8, 50), (2, 3), (3, 1)])
    assert [(k.first, k.count) for k in only(effects, fx.KeepResult)] == [(2, 3), (8, 2)]
    assert list(core.state.jobs[1].ready.runs) == [(0, 2, 1, 0), (5, 3, 1, 0)]
    core.join()
    core.do(ev.HoldAnswered(1, "", ""))
    while core.state.leases:
        effects = core.finish(1, leases(core)[0])
    card = only(effects, fx.TellStatus)[0].status
    assert (card.state, card.done, card.cancelled) == ("done", 5, 5)


def test_runs_that_are_not_there_are_refused(core: Core) -> None:
    core.submit()
    core.parcel(1, 0, 10)
    (no,) = core.cancel(1, [(10, 5)])
    assert no.code == "INVALID_SPEC" and "10 subtasks" in no.message  # type: ignore[union-attr]


def test_runs_whose_inputs_have_not_come_are_cancelled_when_they_come(core: Core) -> None:
    core.submit(count=20, cap_ucredits=0)
    core.parcel(1, 0, 10)
    effects = core.cancel(1, [(5, 10)])
    assert [(k.first, k.count) for k in only(effects, fx.KeepResult)] == [(5, 5)]
    effects = core.parcel(1, 10, 10)
    assert kinds(effects) == ["KeepParcel", "KeepResult"]
    assert (effects[1].first, effects[1].count) == (10, 5)  # type: ignore[union-attr]
    assert [run[:2] for run in core.state.jobs[1].ready.runs] == [(0, 5), (15, 5)]
    core.cancel(1, [(0, 5), (15, 4)])
    (keep, *_) = only(core.cancel(1, [(19, 1)]), fx.KeepResult)
    assert keep.first == 19
    assert core.state.finished[1].status.state == "cancelled"


def test_a_lease_that_is_wholly_unwanted_is_stopped(core: Core) -> None:
    core.join()
    lease = big_lease(core)
    effects = core.cancel(1, lease.runs)
    assert only(effects, fx.StopLease) == [fx.StopLease(1, lease.lease_id, Outcome.CANCELLED)]
    (first, count) = lease.runs[0]
    effects = core.result(1, lease, first, 1, Outcome.CANCELLED)
    entry = only(effects, fx.AddToOutbox)[0].entry
    assert entry.subtasks == 0 and entry.amount_ucredits > 0  # its cpu, not its fee
    effects = core.give_back(1, lease, [(first + 1, count - 1)], "stopped")
    assert only(effects, fx.KeepResult)[0].count == count - 1
    assert core.state.jobs[1].cancelled == count


def test_of_a_partly_unwanted_lease_the_rest_is_asked_back(core: Core) -> None:
    core.join()
    lease = big_lease(core)
    (first, count) = lease.runs[0]
    effects = core.cancel(1, [(first + 2, 2)])
    assert only(effects, fx.RecallLease) == [fx.RecallLease(1, lease.lease_id)]
    effects = core.give_back(1, lease, [(first + 1, count - 1)])
    (keep,) = only(effects, fx.KeepResult)
    assert (keep.first, keep.count, keep.outcome) == (first + 2, 2, Outcome.CANCELLED)
    job = core.state.jobs[1]
    again = [(start, length) for start, length, _, _ in job.ready.runs]
    assert again[0] == (first + 1, 1) and again[1][0] == first + 4


def test_a_recalled_rest_that_is_unwanted_is_stopped(core: Core) -> None:
    core.join()
    lease = big_lease(core)
    (first, count) = lease.runs[0]
    core.cancel(1, [(first, 1)])
    effects = core.give_back(1, lease, [(first + 1, count - 1)])
    assert only(effects, fx.StopLease) == [fx.StopLease(1, lease.lease_id, Outcome.CANCELLED)]


def test_cancelled_by_nobody_is_the_grids_fault(core: Core) -> None:
    core.join()
    core.job(1)
    (lease,) = leases(core)
    effects = core.result(1, lease, 0, 1, Outcome.CANCELLED)
    assert effects[0].not_final == [(0, 1)] and len(grants(effects)) == 1  # type: ignore[union-attr]
    assert core.state.jobs[1].lost == 1


def test_a_retry_of_a_job_that_ends_is_not_made(core: Core) -> None:
    core.join()
    core.job(3, retries=5)
    lease, stacked = leases(core)
    core.cancel(1)
    core.give_back(1, stacked, stacked.runs, "stopped")
    effects = core.result(1, lease, 0, 1, Outcome.ERROR)
    assert effects[0].not_final == []  # type: ignore[union-attr]
    assert only(effects, fx.TellStatus)[0].status.state == "cancelled"


def test_pause_and_resume(core: Core) -> None:
    core.join()
    core.job(10)
    effects = core.do(ev.PauseAsked(CLIENT, 4, "t", 1))
    assert kinds(effects) == ["Confirm", "RecordEvent", "RecordState", "TellStatus"]
    first, second = leases(core)
    assert not grants(core.finish(1, first)) and not grants(core.finish(1, second))
    assert core.do(ev.PauseAsked(CLIENT, 4, "t", 1)) == [fx.Confirm(CLIENT, 4)]
    effects = core.do(ev.ResumeAsked(CLIENT, 5, "t", 1))
    assert effects[3].status.state == "running" and len(grants(effects)) == 2  # type: ignore[union-attr]
    assert core.do(ev.ResumeAsked(CLIENT, 5, "t", 1)) == [fx.Confirm(CLIENT, 5)]


def test_a_paused_job_can_be_cancelled(core: Core) -> None:
    core.job(10)
    core.do(ev.PauseAsked(CLIENT, 4, "t", 1))
    assert only(core.cancel(1), fx.TellStatus)[0].status.state == "cancelled"


def test_nothing_later_than_the_cancel_is_billed(core: Core) -> None:
    core.join()
    core.job(1, limits=Limits(wall_ms=60_000))
    (lease,) = leases(core)
    core.now += 100
    core.cancel(1)
    core.now += 5_000  # until the jail was dead
    effects = core.result(1, lease, 0, 1, Outcome.CANCELLED, wall_us=5_100_000, cpu_us=5_100_000)
    (entry,) = [e.entry for e in only(effects, fx.AddToOutbox) if hasattr(e.entry, "cpu_us")]
    assert entry.wall_us == entry.cpu_us == 101_000  # a started millisecond counts
    assert entry.amount_ucredits == Tariff().price(101_000, 0)
    assert core.state.finished[1].status.state == "cancelled"


def test_a_stop_that_was_lost_is_said_again(core: Core) -> None:
    core.join()
    lease = big_lease(core)
    core.cancel(1, lease.runs)
    assert not only(core.report(), fx.StopLease), "the first one may be on its way"
    again = only(core.report(after=1_000), fx.StopLease)
    assert again == [fx.StopLease(1, lease.lease_id, Outcome.CANCELLED)]


def test_a_recall_that_was_lost_is_said_again_until_it_is_answered(core: Core) -> None:
    core.join()
    lease = big_lease(core)
    (first, count) = lease.runs[0]
    core.cancel(1, [(first + 2, 2)])
    assert only(core.report(), fx.RecallLease) == [fx.RecallLease(1, lease.lease_id)]
    core.give_back(1, lease, [(first + 4, count - 4)])
    assert not only(core.report(), fx.RecallLease)
