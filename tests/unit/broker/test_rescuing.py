"""Workers that are lost, hang or drain, and what becomes of their leases."""

from core_driver import Core, big_lease, grants, kinds, leases, only

from gristmill.broker.core import effects as fx
from gristmill.broker.core import events as ev
from gristmill.broker.core.state import Config
from gristmill.wire.ids import pack_lease_id
from gristmill.wire.outcome import Outcome
from gristmill.wire.worker import Held


def test_a_silent_worker_is_dropped_and_its_work_goes_first(core: Core) -> None:
    core.join(1)
    lease = big_lease(core)
    first = lease.runs[0][0]
    assert kinds(core.tick(3_400)) in ([], ["TellStatus"])
    effects = core.tick(200)
    rescued = only(effects, fx.RecordEvent)
    assert [event.name for event in rescued] == ["lease.rescued"] * 2 + ["worker.lost"]
    assert [event.detail.get("cut") for event in rescued][:2] == [-1, first]
    assert fx.DropWorker(1, rescued[2].detail["cause"]) in effects
    job = core.state.jobs[1]
    assert job.lost == 1 and not core.state.leases
    core.join(2)
    (again, _) = leases(core)
    assert again.runs == [(first, 1)] and again.attempt == 2


def test_held_tells_which_subtask_was_cut(core: Core) -> None:
    core.join(1)
    lease = big_lease(core)
    (first, count) = lease.runs[0]
    core.report(
        held=[
            Held(n, 0, first + 4 if n == lease.lease_id else -1, 0)
            for n in core.state.workers[1].leases
        ]
    )
    effects = core.do(ev.WorkerLost(1, False, "connection lost"))
    assert [e.detail.get("cut") for e in only(effects, fx.RecordEvent)][:2] == [-1, first + 4]
    job = core.state.jobs[1]
    assert list(job.columns.attempts(first, count)) == [
        (first, 4, 0),
        (first + 4, 1, 1),
        (first + 5, count - 5, 0),
    ]


def test_a_goodbye_spends_nothing(core: Core) -> None:
    core.join(1)
    big_lease(core)
    core.do(ev.WorkerLost(1, True, "goodbye"))
    job = core.state.jobs[1]
    assert job.lost == 0 and not core.state.leases
    assert all(attempt == 1 for _, _, attempt, _ in job.ready.runs)


def test_a_subtask_that_kills_its_workers_ends_as_lost(core: Core) -> None:
    core.job(1, losses_max=2)
    for worker in (1, 2):
        core.join(worker)
        core.do(ev.WorkerLost(worker, False, "crash"))
    core.join(3)
    effects = core.do(ev.WorkerLost(3, False, "crash"))
    (keep,) = only(effects, fx.KeepResult)
    assert (keep.ref, keep.outcome, keep.node, keep.attempt) == (0, Outcome.LOST, "node3", 3)
    assert "losses_max is 2" in keep.message
    card = only(effects, fx.TellStatus)[0].status
    assert (card.state, card.failed, card.lost) == ("failed", 1, 3)
    assert card.errors[0][0] == "lost"


def test_a_killer_among_many_is_singled_out(core: Core) -> None:
    """Subtask 57 kills its worker; nobody else must be lost, and it must end."""
    killer, worker, kills = 57, 1, 0
    core.join(worker)
    core.job(100, losses_max=2)
    lost: list[int] = []
    while core.state.jobs:
        assert kills < 30
        lease = next(grant for grant in leases(core) if grant.slot == 0)
        core.now += 5
        for first, count in lease.runs:
            if first <= killer < first + count:
                if first < killer:
                    core.result(worker, lease, first, min(killer - first, 3))
                kills += 1
                effects = core.do(ev.WorkerLost(worker, False, "crash"))
                lost += [e.first for e in only(effects, fx.KeepResult)]
                worker += 1
                core.join(worker)
                break
            core.result(worker, lease, first, count)
    assert lost == [killer]
    assert core.state.finished[1].status.done == 99


def test_a_hung_slot_loses_its_leases_and_the_others_keep_theirs(core: Core) -> None:
    core.join(1, slots=2)
    core.job(100)
    core.report(after=1_000)
    held = core.held(1)
    on_slot_1 = [n.number for n in core.state.workers[1].slots[1].leases]
    for _ in range(3):
        effects = core.report(alive=[0], held=held, after=1_000)
        assert kinds(effects) == ["AckReport"]
    effects = core.report(alive=[0], held=held, after=1_000)
    assert sorted(e.lease_id for e in only(effects, fx.StopLease)) == on_slot_1
    assert core.state.jobs[1].lost == 1
    assert all(n not in core.state.leases for n in on_slot_1)
    # nothing more for that slot before the agent has let go of what hangs there
    slot = core.state.workers[1].slots[1]
    still = [Held(on_slot_1[0], 1, 1, 0)]
    core.report(alive=[0], held=[*core.held(1), *still], after=1_000)
    assert not slot.leases
    assert grants(core.report(alive=[0], held=core.held(1), after=1_000))[0].slot == 1


def test_renewed_leases_never_expire_by_age(core: Core) -> None:
    core.join(1)
    core.job(2)
    before = list(core.state.leases)
    for _ in range(100):
        core.report(after=1_000)
        core.tick(0)
    assert list(core.state.leases) == before


def test_an_order_that_never_arrived_is_made_again(core: Core) -> None:
    core.join(1)
    core.job(1)
    (lease,) = leases(core)
    for _ in range(3):
        assert kinds(core.report(held=[], after=1_000)) == ["AckReport"]
    effects = core.report(held=[], after=1_000)
    (again,) = grants(effects)
    assert again.attempt == 1 and again.lease_id != lease.lease_id
    assert core.state.jobs[1].lost == 0


def test_leases_of_another_life_are_stopped(core: Core) -> None:
    old = pack_lease_id(4, 9)
    effects = core.join(1, held=[Held(old, 0, 3, 1)])
    assert kinds(effects) == ["RecordEvent", "StopLease"]
    assert effects[1].lease_id == old  # type: ignore[union-attr]
    effects = core.report(held=[Held(old, 0, 3, 1)])
    assert kinds(effects) == ["StopLease", "AckReport"]


def test_a_draining_worker_gets_nothing_more(core: Core) -> None:
    core.join(1)
    core.job(10)
    effects = core.do(ev.WorkerDrainAsked(1))
    assert kinds(effects) == ["RecordEvent", "RecallLease", "RecallLease"]
    running, stacked = leases(core)
    effects = core.give_back(1, stacked, stacked.runs, "drained")
    assert effects[-1].is_drain and not grants(effects)  # type: ignore[union-attr]
    assert not grants(core.finish(1, running))
    card = only(core.tick(500), fx.TellStatus)[0].status
    assert "no workers" in card.reason


def test_the_report_interval_grows_with_the_fleet() -> None:
    core = Core(Config())
    for worker in range(1, 601):
        core.do(ev.WorkerJoined(worker, "w", "n", 1, 1000, 1 << 30, {}, [], [], "wait4", []))
        if worker > 20:
            break
    assert (core.state.report_ms, core.state.ttl_ms) == (1_000, 3_500)
    core.state.workers.update({n: core.state.workers[1] for n in range(1_000, 2_979)})
    assert (core.state.report_ms, core.state.ttl_ms) == (4_000, 14_000)


def test_a_late_result_is_told_on_the_card_of_a_job_that_goes_on(core: Core) -> None:
    core.join(1)
    core.job(2)
    (lease,) = leases(core)[:1]
    core.tick(4_000)  # silent
    core.join(9, slots=1)
    core.do(ev.WorkerJoined(10, "w1", "node1", 1, 1_000, 1 << 31, {}, ["job"], ["3.11"], "c", []))
    spent = core.state.jobs[1].spent_ucredits
    effects = core.result(10, lease, *lease.runs[0])
    assert kinds(effects) == ["KeepSuperseded", "RecordEvent"]
    assert core.state.jobs[1].superseded == lease.runs[0][1]
    assert core.state.jobs[1].spent_ucredits == spent


def test_a_late_result_is_told_on_the_card_of_a_job_that_has_ended(core: Core) -> None:
    core.join(1)
    core.job(1)
    (lease,) = leases(core)
    core.tick(4_000)
    core.join(2)
    (again,) = leases(core)
    core.finish(2, again)
    assert core.state.finished[1].status.superseded == 0
    core.do(ev.WorkerJoined(3, "w1", "node1", 1, 1_000, 1 << 31, {}, ["job"], ["3.11"], "c", []))
    effects = core.result(3, lease, *lease.runs[0])
    assert kinds(effects) == ["AmendCard", "KeepSuperseded", "RecordEvent"]
    status = core.state.finished[1].status
    assert (status.state, status.done, status.superseded) == ("done", 1, 1)
    assert effects[0] == fx.AmendCard(1, "t", status)


def test_who_never_had_a_lease_adds_nothing_to_a_card(core: Core) -> None:
    core.join(1)
    core.job(1)
    (lease,) = leases(core)
    core.tick(4_000)
    core.join(2)
    (again,) = leases(core)
    core.finish(2, again)
    core.join(3)
    assert kinds(core.result(3, lease, *lease.runs[0])) == ["KeepSuperseded", "RecordEvent"]
    assert core.state.finished[1].status.superseded == 0


def test_a_worker_keeps_the_time_that_it_was_told_while_the_fleet_shrinks() -> None:
    core = Core(Config())
    for number in range(1, 1_001):
        core.state.dirty_workers.clear()
        core.join(number)
    (ack,) = core.report(1)
    assert isinstance(ack, fx.AckReport) and ack.ttl_ms == 7_000
    for number in range(2, 1_001):
        core.do(ev.WorkerLost(number, True, "goodbye"))
    assert core.state.ttl_ms == 3_500
    core.tick(5_000)
    assert 1 in core.state.workers, "its jails may run on: it was told 7 s"
    core.tick(2_001)
    assert 1 not in core.state.workers


def test_a_lease_that_a_worker_never_names_spends_no_loss(core: Core) -> None:
    """Its orders were lost on the way, or its result was: no subtask was cut."""
    core.join(1)
    big_lease(core)
    for _ in range(4):
        effects = core.report(alive=[], held=[], after=1_000)
    job = core.state.jobs[1]
    assert job.lost == 0 and job.retried == 0
    assert only(effects, fx.OpenJob), "the opening may have been lost with the lease"
    assert all(attempt == 1 for _, _, attempt, _ in job.ready.runs)


def test_a_lost_last_result_has_time_to_be_said_again(core: Core) -> None:
    """The worker does not name a lease whose results are made, also when their report was lost."""
    core.join(1)
    lease = big_lease(core)
    for _ in range(5):
        core.report(after=1_000)
    core.report(held=[], after=1_000)
    assert lease.lease_id in core.state.leases
    core.finish(1, lease)
    assert core.state.jobs[1].superseded == 0
