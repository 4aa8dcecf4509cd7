"""Budgets, bills and caps."""

import pytest
from core_driver import Core, grants, kinds, leases, only

from gristmill.broker.core import effects as fx
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import Limits


def spent_and_promised(core: Core) -> int:
    job = core.state.jobs[1]
    return job.spent_ucredits + job.outstanding_ucredits


def test_budgets_never_promise_more_than_the_cap(core: Core) -> None:
    core.join(1, slots=4)
    core.job(50, cap_ucredits=1_000_000)
    assert 0 < spent_and_promised(core) <= 1_000_000
    assert all(lease.budget_ucredits > 0 for lease in core.state.leases.values())


def test_a_budget_is_never_more_than_the_limits_allow(core: Core) -> None:
    core.join(1)
    core.job(1, limits=Limits(cpu_ms=10))
    (lease,) = core.state.leases.values()
    assert lease.budget_ucredits == 10_000 + 10  # 10 ms of cpu and one fee


def test_cpu_is_clamped_to_cpus_times_elapsed(core: Core) -> None:
    core.join(1)
    core.job(1, limits=Limits(cpus_milli=500))
    (lease,) = leases(core)
    core.now += 99
    (keep, post, *_) = core.result(1, lease, 0, 1, cpu_us=10**9)
    assert post.entry.cpu_us == 500 * 100 and isinstance(keep, fx.KeepResult)


@pytest.mark.parametrize("cpu_us", [-5, 0])
def test_negative_readings_are_nothing(core: Core, cpu_us: int) -> None:
    core.join(1)
    core.job(1)
    (lease,) = leases(core)
    post = core.result(1, lease, 0, 1, cpu_us=cpu_us, wall_us=-7)[1]
    assert (post.entry.cpu_us, post.entry.amount_ucredits) == (0, 10)


def test_a_bill_is_at_most_its_leases_budget(core: Core) -> None:
    core.join(1)
    core.job(1, cap_ucredits=1_000)
    (lease,) = core.state.leases.values()
    budget = lease.budget_ucredits
    core.now += 10_000
    post = core.result(1, leases(core)[0], 0, 1, cpu_us=5_000_000)[1]
    assert post.entry.amount_ucredits == budget <= 1_000


def test_what_a_lease_did_not_spend_is_free_again(core: Core) -> None:
    core.join(1)
    core.job(4, cap_ucredits=10**9)
    while core.state.jobs:
        core.now += 1
        core.finish(1, leases(core)[0])
    assert core.state.finished[1].status.spent_ucredits == 4 * (1_000 + 10)


def test_a_subtask_stopped_at_a_small_budget_gets_a_larger_one(core: Core) -> None:
    core.join(1)
    core.job(1, cap_ucredits=1_000_000)
    (lease,) = leases(core)
    first = core.state.leases[lease.lease_id].budget_ucredits
    core.now += 1_000
    effects = core.result(1, lease, 0, 1, Outcome.BUDGET, cpu_us=first)
    keep, post, dispatch = effects
    assert keep.not_final == [(0, 1)] and post.entry.subtasks == 0
    assert post.entry.amount_ucredits == first
    assert dispatch.lease.budget_ucredits > first and dispatch.lease.attempt == 2
    for _ in range(20):  # a subtask that eats everything ends with the cap
        if not core.state.jobs:
            break
        (lease,) = leases(core)
        core.now += 1_000
        budget = core.state.leases[lease.lease_id].budget_ucredits
        effects = core.result(1, lease, 0, 1, Outcome.BUDGET, cpu_us=budget)
    card = only(effects, fx.TellStatus)[0].status
    assert card.state == "failed" and card.reason.startswith("CAP_REACHED")
    assert card.spent_ucredits <= 1_000_000


def test_the_cap_ends_the_rest_as_budget(core: Core) -> None:
    core.join(1)
    core.job(10, cap_ucredits=25)  # two fees of 10 and no more
    effects: list[fx.AnyEffect] = []
    while core.state.leases:
        effects = core.result(1, leases(core)[0], *leases(core)[0].runs[0], cpu_us=0)
    rest = [keep for keep in only(effects, fx.KeepResult) if not keep.ref]
    assert rest and rest[0].outcome == Outcome.BUDGET and "0.000025" in rest[0].message
    card = only(effects, fx.TellStatus)[0].status
    assert (card.state, card.done, card.failed) == ("failed", 2, 8)
    assert only(effects, fx.RecordEvent)[0].name == "cap.reached"


def test_a_cap_of_nothing_needs_no_hold_and_buys_nothing(core: Core) -> None:
    core.join(1)
    assert kinds(core.submit(count=1, cap_ucredits=0)) == ["RecordJob", "AcceptJob"]
    effects = core.parcel(1, 0, 1)
    assert only(effects, fx.TellStatus)[0].status.reason.startswith("CAP_REACHED")


def test_zero_tariff_runs_without_money(core: Core) -> None:
    core.join(1)
    core.submit(count=1, tariff="zero", limits=Limits(wall_ms=1_000))
    (lease,) = grants(core.parcel(1, 0, 1))
    assert lease.budget_ucredits == 0
    core.now += 50
    effects = core.finish(1, lease)
    assert only(effects, fx.KeepResult)[0].outcome == Outcome.OK
    # the ledger hears nothing: no contribution without a hold, no release of one that never was
    assert not only(effects, fx.AddToOutbox)
