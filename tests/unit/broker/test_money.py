"""Budgets, bills and caps."""

import pytest
from core_driver import Core, big_lease, grant_of, grants, kinds, leases, only

from gristmill.broker.core import effects as fx
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import Limits, Tariff
from gristmill.wire.tariffs import STANDARD_TARIFF


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
    assert notices(effects) == [50, 80, 100]  # the second fee passed two marks; no third one fits
    assert only(effects, fx.RecordEvent)[-1].name == "cap.reached"


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


GIB = 1 << 30
CLASSES = {
    "standard": STANDARD_TARIFF,
    "big": Tariff(2_000_000, 30, 400_000),
    "dear": Tariff(1_000_000, 5_000_000, 0),
}


@pytest.mark.parametrize(
    ("node_class", "amount"),
    [
        ("standard", 500_000 + 10 + 100_000),  # half a cpu second, a subtask, 2 s of 1 GiB
        ("big", 1_000_000 + 30 + 800_000),
    ],
)
def test_a_bill_is_by_the_class_of_the_node(core: Core, node_class: str, amount: int) -> None:
    core.tariffs = CLASSES
    core.join(1, labels={"class": node_class} if node_class != "standard" else {})
    core.job(1)
    (lease,) = leases(core)
    core.now += 1_999
    post = core.result(1, lease, 0, 1, cpu_us=500_000, wall_us=9_000_000)[1].entry
    tariff = CLASSES[node_class]
    assert post.wall_us == 2_000_000, "at most the time since dispatch"
    assert post.amount_ucredits == amount
    assert (post.node_class, post.memory_bytes) == (node_class, GIB)
    assert (post.cpu_second_ucredits, post.gib_second_ucredits, post.subtask_ucredits) == (
        tariff.cpu_second_ucredits, tariff.gib_second_ucredits, tariff.subtask_ucredits,
    )  # fmt: skip


def test_results_of_one_lease_claim_no_more_wall_than_there_was(core: Core) -> None:
    core.tariffs = {"standard": STANDARD_TARIFF}
    core.join(1)
    lease = big_lease(core, 100, limits=Limits(memory_bytes=GIB))
    core.now += 99
    ((first, _), *_), granted_ms = lease.runs, core.state.leases[lease.lease_id].granted_ms
    walls = [
        core.result(1, lease, first + at, 1, wall_us=80_000)[1].entry.wall_us for at in range(3)
    ]
    assert walls[0] == 80_000 and walls[2] == 0
    assert sum(walls) == (core.now - granted_ms + 1) * 1_000


def test_a_job_may_ask_for_a_class_and_standard_is_one(core: Core) -> None:
    core.tariffs = CLASSES
    core.join(1, labels={"class": "big"})
    core.join(2)
    core.job(1, labels={"class": "standard"})
    core.job(1, labels={"class": "big"})
    core.job(1, labels={"class": "dear"})
    placed = {lease.job.number: lease.slot.worker.number for lease in core.state.leases.values()}
    assert placed == {1: 2, 2: 1}


def test_a_job_keeps_the_tariffs_of_its_time(core: Core) -> None:
    core.tariffs = CLASSES
    core.job(1)
    core.tariffs = {"standard": Tariff(9, 9, 9), "late": Tariff(7, 7, 7)}
    core.join(1, labels={"class": "late"})  # of a class that came later: as on standard
    (lease,) = leases(core)
    post = core.result(1, lease, 0, 1, cpu_us=0, wall_us=0)[1].entry
    assert (post.amount_ucredits, post.subtask_ucredits) == (10, 10)


def test_what_is_left_may_be_enough_on_another_class(core: Core) -> None:
    core.tariffs = CLASSES
    core.join(1, labels={"class": "dear"})  # five credits a subtask
    core.join(2, labels={"class": "big"})
    number = core.job(3, cap_ucredits=4_000_000)
    while core.state.leases:
        (lease, *_) = core.state.leases.values()
        assert lease.slot.worker.number == 2
        core.finish(2, grant_of(lease), each_us=0)
    assert core.state.finished[number].status.state == "done"


def test_a_cap_too_small_for_the_only_class_ends_the_job(core: Core) -> None:
    core.tariffs = CLASSES
    core.join(1, labels={"class": "dear"})
    number = core.job(3, cap_ucredits=4_000_000)
    card = core.state.finished[number].status
    assert card.reason.startswith("CAP_REACHED") and card.spent_ucredits == 0


def test_memory_counts_in_the_budget(core: Core) -> None:
    core.tariffs = {"standard": STANDARD_TARIFF}
    core.join(1)
    core.job(1, limits=Limits(cpu_ms=10, wall_ms=8_000, memory_bytes=2 * GIB))
    (lease,) = core.state.leases.values()  # ten seconds: the worker's grace of two counts
    assert lease.budget_ucredits == 10_000 + 10 + 2 * 10 * 50_000


def notices(effects: list[fx.AnyEffect]) -> list[object]:
    return [e.detail["percent"] for e in only(effects, fx.RecordEvent) if e.name == "cap.notice"]


def test_half_and_four_fifths_of_the_cap_are_told_once(core: Core) -> None:
    core.tariffs = {"standard": Tariff(0, 10, 0)}
    core.join(1)
    number = core.job(11, cap_ucredits=100)
    told = []
    while core.state.leases:
        told.append(notices(core.finish(1, leases(core)[0])))
        if number in core.state.jobs:
            job = core.state.jobs[number]
            expected = next((p for p in (100, 80, 50) if job.spent_ucredits >= p), 0)
            assert job.noticed_percent == expected
    assert [percent for percents in told for percent in percents] == [50, 80, 100]
    assert core.state.finished[number].status.noticed_percent == 100


def test_one_result_may_pass_two_marks(core: Core) -> None:
    core.join(1)
    core.job(2, cap_ucredits=1_000_000, concurrency_max=1)
    core.now += 899
    (lease,) = core.state.leases.values()
    lease.budget_ucredits = 900_010
    core.state.jobs[1].outstanding_ucredits = 900_010
    assert notices(core.result(1, grant_of(lease), 0, 1, cpu_us=900_000)) == [50, 80]


def test_a_free_job_has_no_notices(core: Core) -> None:
    core.join(1)
    core.submit(count=1, tariff="zero", limits=Limits(wall_ms=1_000))
    (lease,) = grants(core.parcel(1, 0, 1))
    assert notices(core.finish(1, lease)) == []
