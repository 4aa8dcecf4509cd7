"""Each line of the table in ``checks.py``: what becomes of a result, its bill and its node."""

import pytest
from core_driver import CLIENT, UTC, Core, grant_of, grants, only

from gristmill.broker.core import checks, quorum, recovery
from gristmill.broker.core import effects as fx
from gristmill.broker.core import events as ev
from gristmill.broker.core import journal_names as names
from gristmill.broker.core.cards import worker_row
from gristmill.broker.core.why import why
from gristmill.wire.ledger import Contribution
from gristmill.wire.limits import UNDECIDED_MAX
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec, Limits, Tariff
from gristmill.wire.worker import LeaseGrant

SURE = (1 << 32) - 1  #: dice by which no trusted node is checked
A, B, C, D = b"a" * 16, b"b" * 16, b"c" * 16, b"d" * 16


def lease_of(core: Core, worker: int) -> LeaseGrant:
    (lease, *_) = core.state.workers[worker].leases.values()
    return grant_of(lease)


def say(
    core: Core,
    worker: int,
    digest: bytes,
    outcome: Outcome = Outcome.OK,
    dice: int = 0,
) -> list[fx.AnyEffect]:
    """A worker's answer to the first subtask that it has."""
    core.now += 10
    lease = lease_of(core, worker)
    return core.result(worker, lease, lease.runs[0][0], 1, outcome, digest=digest, dice=dice)


def posted(effects: list[fx.AnyEffect]) -> list[Contribution]:
    entries = [effect.entry for effect in only(effects, fx.AddToOutbox)]
    return [entry for entry in entries if isinstance(entry, Contribution)]


def three(core: Core, rule: str = "2/3", count: int = 1, **fields: object) -> None:
    for worker in (1, 2, 3):
        core.join(worker)
    core.job(count, quorum=rule, **fields)


def holder(core: Core) -> int:
    (worker,) = [one.number for one in core.state.workers.values() if one.leases]
    return worker


def test_the_first_result_waits_and_its_bill_is_covered(core: Core) -> None:
    three(core)
    first = holder(core)
    effects = say(core, first, A)
    (keep,), (vote,) = only(effects, fx.KeepResult), only(effects, fx.KeepVote)
    assert keep.not_final == [(0, 1)] and (vote.index, vote.digest) == (0, A)
    assert not posted(effects) and vote.entry is not None
    assert core.state.jobs[1].spent_ucredits == vote.amount_ucredits > 0
    (again,) = grants(effects)
    assert again.attempt == 2 and holder(core) != first


def test_two_equal_ones_decide_and_both_are_paid(core: Core) -> None:
    three(core)
    first = say(core, holder(core), A)
    effects = say(core, holder(core), A)
    (keep,) = only(effects, fx.KeepResult)
    assert keep.not_final == [] and keep.outcome == Outcome.OK
    (settled,), (entry,) = only(effects, fx.SettleVote), posted(effects)
    assert settled == fx.SettleVote(1, only(first, fx.KeepVote)[0].sequence, True)
    assert (entry.attempt, entry.replica) == (2, 1)
    assert sorted(one.streak for one in core.state.standings.values()) == [1, 1]
    kinds = [type(effect).__name__ for effect in effects]
    assert kinds.index("SettleVote") < len(kinds) - 1 - kinds[::-1].index("AddToOutbox")  # release
    assert 1 not in core.state.jobs


def test_who_is_outvoted_is_unpaid_and_in_quarantine(core: Core) -> None:
    three(core, count=2)
    liar = 1
    say(core, liar, B)
    spent = core.state.jobs[1].spent_ucredits
    effects: list[fx.AnyEffect] = []
    for _ in range(12):
        honest = [n for n in (2, 3) if core.state.workers[n].leases]
        effects = say(core, honest[0], A)
        if core.state.workers[liar].is_quarantined:
            break
    assert core.state.workers[liar].is_quarantined and not core.state.workers[liar].leases
    unpaid = [e for e in only(effects, fx.RecordEvent) if e.name == names.RESULT_UNPAID]
    assert unpaid[0].detail["node"] == "node1"
    assert unpaid[0].detail["amount_ucredits"] == spent
    (shut,) = [e for e in only(effects, fx.RecordEvent) if e.name == names.NODE_QUARANTINED]
    assert "differs from 2 equal ones" in str(shut.detail["cause"])
    row = worker_row(core.state, liar, core.now)
    assert row is not None and row.state == "quarantined"


def quarantined(core: Core) -> None:
    for worker in (1, 2):
        core.join(worker)
    quorum.quarantine(core.state, "node1", "for a test", core.now, [])


def test_a_node_in_quarantine_gets_nothing_even_in_a_new_session(core: Core) -> None:
    quarantined(core)
    core.do(ev.WorkerLost(1, True, "gone"))
    core.join(1)
    core.join(9, labels={"owner": "another"})
    core.job(50)
    assert not core.state.workers[1].leases and core.state.workers[2].leases


def test_an_operator_lets_it_out_and_it_begins_anew(core: Core) -> None:
    quarantined(core)
    core.job(50)
    effects = core.do(ev.NodeReleased("node1"))
    assert only(effects, fx.KeepStanding) == [fx.KeepStanding("node1", 0, "")]
    assert grants(effects) and core.state.workers[1].leases
    assert core.do(ev.NodeReleased("node1")) == [] == core.do(ev.NodeReleased("nobody"))


def test_all_different_is_disputed_and_everybody_is_paid(core: Core) -> None:
    three(core)
    say(core, holder(core), A)
    say(core, holder(core), B)
    effects = say(core, holder(core), C)
    assert [one.is_paid for one in only(effects, fx.SettleVote)] == [True, True]
    assert len(posted(effects)) == 1
    assert only(effects, fx.KeepResult)[-1].outcome == Outcome.DISPUTED
    assert "3 different results" in only(effects, fx.KeepResult)[-1].message
    assert not any(one.cause for one in core.state.standings.values())


def test_a_failure_that_is_outvoted_is_unpaid_and_no_lie(core: Core) -> None:
    three(core)
    loser = core.state.workers[holder(core)].node
    say(core, holder(core), b"", Outcome.ERROR)
    say(core, holder(core), A)
    effects = say(core, holder(core), A)
    assert [one.is_paid for one in only(effects, fx.SettleVote)] == [True, False]
    assert core.state.standings[loser] == checks.Standing(0, "")


def test_a_failure_needs_a_quorum_too(core: Core) -> None:
    three(core)
    say(core, holder(core), b"", Outcome.ERROR)
    effects = say(core, holder(core), b"", Outcome.ERROR)
    (keep,) = only(effects, fx.KeepResult)
    assert keep.outcome == Outcome.ERROR and not keep.not_final


def test_one_owner_with_two_nodes_is_one(core: Core) -> None:
    core.join(1, labels={"owner": "alice"})
    core.join(2, labels={"owner": "alice"})
    core.job(1, quorum="2/2")
    assert not grants(say(core, holder(core), A))
    told = why(core.state, 1, core.now)
    assert told is not None and "add a worker of another owner" in told.summary
    effects = core.join(3, labels={"owner": "bob"})
    assert len(grants(effects)) == 1 and holder(core) == 3


def test_a_node_under_another_name_of_owner_is_the_same(core: Core) -> None:
    core.join(1, labels={"owner": "alice"})
    core.job(1, quorum="2/2")
    say(core, 1, A)
    core.do(ev.WorkerLost(1, True, "gone"))
    assert not grants(core.join(1, labels={"owner": "bob"}))


def trusted(core: Core) -> None:
    for node in ("node1", "node2", "node3"):
        core.state.standings[node] = checks.Standing(checks.TRUSTED_AFTER)


def test_adaptive_takes_what_a_trusted_node_says_unless_the_dice_say_check(core: Core) -> None:
    trusted(core)
    three(core, "adaptive", 20)
    one = holder_any(core)
    effects = say(core, one, A, dice=SURE)
    assert only(effects, fx.KeepResult)[0].not_final == [] and len(posted(effects)) == 1
    one = holder_any(core)
    assert only(say(core, one, A, dice=0), fx.KeepVote)


def holder_any(core: Core) -> int:
    return next(one.number for one in core.state.workers.values() if one.leases)


def test_adaptive_checks_whoever_is_new(core: Core) -> None:
    three(core, "adaptive", 20)
    assert only(say(core, holder_any(core), A, dice=SURE), fx.KeepVote)


def test_a_contradicted_node_is_checked_until_it_is_known_who_is_right(core: Core) -> None:
    trusted(core)
    three(core, "adaptive", 40)
    say(core, 1, A, dice=0)
    while 0 not in core.state.jobs[1].check.contested:  # type: ignore[union-attr]
        one = next(n for n in (2, 3) if core.state.workers[n].leases)
        say(core, one, B, dice=SURE)
    assert only(say(core, 1, A, dice=SURE), fx.KeepVote)


@pytest.mark.parametrize(("streak", "dice", "is_sampled"), [
    (10, (1 << 32) // 10, True), (10, (1 << 32) // 10 + 1, False), (20, (1 << 32) // 20, True),
    (20, SURE, False),
])  # fmt: skip
def test_the_sample_is_one_in_the_streak(streak: int, dice: int, is_sampled: bool) -> None:
    assert checks.Standing(streak).is_sampled(dice) is is_sampled


def test_several_subtasks_in_one_result_cannot_be_compared(core: Core) -> None:
    three(core, count=40)
    worker = core.state.workers[1]
    while max(n for lease in worker.leases.values() for _, n in lease.open) < 2:
        say(core, holder_any(core), A)
    lease = next(one for one in worker.leases.values() if one.open[0][1] > 1)
    effects = core.result(1, grant_of(lease), lease.open[0][0], 2, digest=A)
    assert [type(one) for one in effects[:1]] == [fx.KeepSuperseded]


def test_a_cancel_pays_what_waits_and_releases_the_hold_after_it(core: Core) -> None:
    three(core, count=3)
    say(core, 1, A)
    effects = core.cancel(1)
    for worker in (1, 2, 3):
        while core.state.workers[worker].leases:
            effects += say(core, worker, A)
    settled = only(effects, fx.SettleVote)
    assert settled and all(one.is_paid for one in settled)
    assert 1 not in core.state.jobs


def test_one_job_cannot_accuse_everybody(core: Core) -> None:
    """A function that cannot be compared is no reason to empty the grid."""
    for worker in range(1, 7):
        core.join(worker)
    core.job(60, quorum="2/3")
    turn = 0
    while 1 in core.state.jobs:
        one = holder_any(core)
        turn += 1
        say(core, one, (A, B)[turn * 7 // 3 % 2])
    shut = [one for one in core.state.standings.values() if one.cause]
    assert 1 <= len(shut) <= 2


def test_undecided_subtasks_are_bounded(core: Core) -> None:
    core.join(1)
    core.job(UNDECIDED_MAX + 10, quorum="2/2")
    check = core.state.jobs[1].check
    assert check is not None
    vote = checks.Vote(0, 1, "x", "y", 1, 0, A, 0)
    check.votes = {index: [vote] for index in range(10, UNDECIDED_MAX + 10)}
    assert check.is_barred(5, core.state.workers[1])
    assert not check.is_barred(11, core.state.workers[1])


def test_a_job_without_a_quorum_has_no_check(core: Core) -> None:
    core.join(1)
    core.job(1)
    assert core.state.jobs[1].check is None
    lease = lease_of(core, 1)
    effects = core.result(1, lease, 0, 1)
    assert not only(effects, fx.KeepVote) and not core.state.standings


# ---------------------------------------------------------------- canaries


def ask(core: Core, node: str = "node1") -> int:
    """A question with the known answer A."""
    limits = Limits(wall_ms=10_000)
    spec = JobSpec("function", function="0" * 64, count=1, tariff="zero", limits=limits)
    canary = ev.Canary(node, A)
    core.do(
        ev.JobSubmitted(
            CLIENT, 1, "canary", b"c%d" % core.now, spec, {"standard": Tariff()}, UTC, canary=canary
        )
    )
    core.do(ev.ParcelArrived(CLIENT, "canary", core.state.job_counter, 0, 1, "m", 10))
    return core.state.job_counter


def test_a_canary_goes_to_its_node_alone_even_in_quarantine(core: Core) -> None:
    quarantined(core)
    number = ask(core)
    assert [lease.job.number for lease in core.state.workers[1].leases.values()] == [number]
    assert not core.state.workers[2].leases
    core.job(5)
    assert len(core.state.workers[1].leases) == 1
    effects = say(core, 1, A)
    assert core.state.finished[number].status.state == "done"
    (ended,) = [e for e in only(effects, fx.RecordEvent) if e.name == names.CANARY_ENDED]
    assert ended.detail == {"node": "node1", "is_right": 1}
    assert not core.state.workers[1].leases, "it is right, and still in quarantine: who asks opens"
    core.do(ev.NodeReleased("node1"))
    assert core.state.workers[1].leases


@pytest.mark.parametrize(("digest", "outcome"), [(B, Outcome.OK), (A, Outcome.ERROR)])
def test_a_wrong_answer_shuts_a_node_that_was_open(
    core: Core, digest: bytes, outcome: Outcome
) -> None:
    core.join(1)
    core.join(2)
    number = ask(core)
    say(core, 1, digest, outcome)
    assert core.state.finished[number].status.state == "failed"
    assert "whose value is known" in core.state.standings["node1"].cause
    assert core.state.workers[1].is_quarantined


def test_a_canary_waits_for_its_node_and_outlives_a_lost_session(core: Core) -> None:
    core.join(2)
    number = ask(core)
    assert not core.state.workers[2].leases
    core.state.standings["node1"] = checks.Standing(0, "new here")
    core.join(1)
    assert core.state.workers[1].leases
    core.do(ev.WorkerLost(1, False, "gone"))
    assert not core.state.workers[2].leases and number in core.state.jobs
    core.join(1)
    say(core, 1, A)
    assert core.state.finished[number].status.state == "done"


def test_a_restart_remembers_what_is_a_canary(core: Core) -> None:
    number = ask(core)
    job = core.state.jobs[number]
    fact = recovery.JobFact(
        job=number, tenant="canary", submission=b"c", spec=job.spec, tariffs=job.tariffs,
        submitted_utc_ms=UTC, parcels=[recovery.ParcelFact(0, 1, "m", 10)],
        canary=ev.Canary("node1", A),
    )  # fmt: skip
    core.state, _ = recovery.rebuild(core.state.config, 6, [fact], core.now, UTC)
    core.join(2)
    assert not core.state.workers[2].leases
    core.join(1)
    say(core, 1, B)
    assert core.state.workers[1].is_quarantined


# ---------------------------------------------------------------- the registry's word


def word(core: Core, worker: int) -> str:
    row = worker_row(core.state, worker, core.now)
    assert row is not None
    return row.state


def test_a_node_on_trial_gets_its_canary_and_nothing_else(core: Core) -> None:
    effects = core.do(ev.NodeShut("node1", checks.ON_TRIAL))
    (told,) = only(effects, fx.RecordEvent)
    assert told.name == names.NODE_ON_TRIAL
    assert core.do(ev.NodeShut("node1", checks.ON_TRIAL)) == []
    core.join(1)
    core.job(3)
    assert word(core, 1) == "approved" and not core.state.workers[1].leases
    number = ask(core)
    say(core, 1, A)
    assert core.state.finished[number].status.state == "done"
    assert word(core, 1) == "approved", "the registry opens it"
    core.do(ev.NodeReleased("node1"))
    assert core.state.workers[1].leases


def test_a_canary_that_is_wrong_leaves_it_shut(core: Core) -> None:
    core.join(1)
    core.do(ev.NodeShut("node1", checks.ON_TRIAL))
    number = ask(core)
    say(core, 1, B)
    assert core.state.finished[number].status.state == "failed"
    assert word(core, 1) == "approved" and core.state.workers[1].is_quarantined


def test_a_quarantine_from_outside_takes_leases_and_votes(core: Core) -> None:
    three(core)
    first = holder(core)
    say(core, first, A)
    node = core.state.workers[first].node
    effects = core.do(ev.NodeShut(node, "quarantined: memory errors"))
    assert only(effects, fx.RecordEvent)[0].name == names.NODE_QUARANTINED
    assert only(effects, fx.SettleVote) and not core.state.workers[first].leases
    assert word(core, first) == "quarantined"
    effects = core.do(ev.NodeShut(node, checks.ON_TRIAL))
    assert only(effects, fx.KeepStanding)[0].cause == checks.ON_TRIAL
    assert word(core, first) == "approved"
