"""Fair share between tenants, priorities inside one, and the reasons of what waits."""

import itertools

from core_driver import Core, grants, leases, only
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.broker.core import effects as fx
from gristmill.broker.core import events as ev
from gristmill.broker.core.cards import find_status, job_status, subtask_rows, worker_row
from gristmill.broker.core.state import Config
from gristmill.broker.core.why import why
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import Limits


def run_for(core: Core, worker: int, rounds: int, walls: dict[int, int]) -> dict[int, int]:
    """Wall time that each job got in so many leases on one worker (one subtask a lease)."""
    got: dict[int, int] = {}
    for _ in range(rounds):
        lease = leases(core)[0]
        wall = walls[lease.job] * sum(n for _, n in lease.runs)
        core.now += wall // 1_000
        got[lease.job] = got.get(lease.job, 0) + wall
        core.finish(worker, lease, walls[lease.job])
    return got


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
    st.lists(st.integers(30, 900), min_size=4, max_size=4),
)
def test_tenants_get_time_by_weight(weights: list[int], walls_ms: list[int]) -> None:
    core = Core(Config(weights={f"t{n}": weight for n, weight in enumerate(weights)}))
    jobs = {}
    for number in range(len(weights)):
        jobs[core.job(3_000, tenant=f"t{number}")] = walls_ms[number] * 1_000
    core.join(1)
    got = run_for(core, 1, 300, jobs)
    total, weight_sum = sum(got.values()), sum(weights)
    longest = max(jobs.values())
    for number, job in enumerate(jobs):
        expected = total * weights[number] / weight_sum
        # nobody is further from its share than a few subtasks of the longest kind
        assert abs(got.get(job, 0) - expected) <= 8 * longest * weights[number]


def test_a_grant_is_charged_at_once(core: Core) -> None:
    """Before anything is measured: the idle slots of one step are shared, not taken by one."""
    core.job(10, tenant="a")
    core.job(10, tenant="b")
    effects = core.join(1, slots=4)
    slots = [(g.job, g.slot) for g in grants(effects)][:4]
    assert sorted(job for job, _ in slots) == [1, 1, 2, 2]


def test_a_returning_tenant_is_owed_nothing(core: Core) -> None:
    core.join(1)
    core.job(2_000, tenant="a")
    run_for(core, 1, 100, {1: 100_000})
    share = core.state.tenants["a"].share
    core.job(2_000, tenant="b")
    assert core.state.tenants["b"].share >= share * 0.9
    got = run_for(core, 1, 100, {1: 100_000, 2: 100_000})
    assert got[1] > 3_500_000


def test_an_overlong_lease_is_charged_while_it_runs(core: Core) -> None:
    core.join(1)
    core.job(1, tenant="a")
    before = core.state.tenants["a"].share
    core.report(after=2_000)
    assert core.state.tenants["a"].share == 2_000_000 > before
    core.finish(1, leases(core)[0], 1_900_000)
    assert core.state.tenants["a"].share == 1_900_000  # trued up


def test_slots_max_leaves_the_rest_to_others() -> None:
    core = Core(Config(slots_max={"a": 1}))
    core.job(50, tenant="a")
    core.join(1, slots=3)
    assert core.state.tenants["a"].slots == 1
    card = job_status(core.state, core.state.jobs[1], core.now)
    assert card.reason == "" and card.leased == 2
    core.job(50, tenant="b")
    assert core.state.tenants["b"].slots == 2
    core.job(5, tenant="a")
    waiting = why(core.state, 3, core.now)
    assert waiting is not None and "1 of its 1 slots" in waiting.summary
    assert waiting.reasons[0].constraint == "slots_max"


def test_priority_and_ageing_inside_a_tenant(core: Core) -> None:
    core.job(5, priority=4)
    core.now += 1_000
    core.job(5, priority=5)
    core.now += 300_000
    core.job(5, priority=9)  # five steps are worth five minutes: the first waits longer
    order: list[int] = []
    core.join(1)
    while core.state.leases:
        lease = leases(core)[0]
        order += [lease.job] * sum(n for _, n in lease.runs)
        core.finish(1, lease)
    assert order == [2] * 5 + [3] * 5 + [1] * 5 or order == [2] * 5 + [1] * 5 + [3] * 5
    assert order[0] == 2


# ---------------------------------------------------------------- why


def reason(core: Core, job: int = 1) -> str:
    found = find_status(core.state, job, core.now)
    assert found is not None
    return found[1].reason


def test_reasons_of_what_waits(core: Core) -> None:
    core.submit(count=5, limits=Limits(cpus_milli=3_000, memory_bytes=6 << 30))
    assert reason(core) == "waiting for the ledger to hold its cap"
    core.do(ev.HoldAnswered(1, "", ""))
    assert reason(core) == "no workers"
    core.join(1, slots=2, memory_bytes=5 << 30)
    assert reason(core).startswith("INFEASIBLE: cpus: asks for 3 cpus, the nearest worker has 2")
    core.join(2, slots=4, memory_bytes=4 << 30)
    text = reason(core)
    assert "memory" in text and "6 GiB" in text and "4 GiB (w2)" in text
    core.join(3, slots=4, memory_bytes=8 << 30)
    assert reason(core) == "waiting for inputs"
    core.parcel(1, 0, 5)
    assert reason(core) == ""
    core.join(4)
    core.do(ev.WorkerLost(3, True, ""))
    assert "INFEASIBLE" in reason(core)


def test_feasibility_is_told_to_subscribers(core: Core) -> None:
    core.join(1)
    core.submit(count=5, labels={"gpu": "1"}, cap_ucredits=0)
    core.tick(200)
    core.join(2, labels={"gpu": "1"})
    (card,) = only(core.tick(200), fx.TellStatus)
    assert "INFEASIBLE" not in card.status.reason


def test_why_counts_workers_and_names_the_cheapest_change(core: Core) -> None:
    core.join(1, labels={"zone": "a"}, tiers=["job", "batch"])
    core.join(2, slots=8, labels={"zone": "a"})
    core.join(3, tiers=["job"], memory_bytes=1 << 30)
    core.submit(count=1, labels={"zone": "b"}, tier="batch", limits=Limits(memory_bytes=2 << 30))
    answer = why(core.state, 1, core.now)
    assert answer is not None and answer.state == "accepted"
    found = {r.constraint: (r.asked, r.workers, r.of) for r in answer.reasons}
    assert found == {
        "hold": ("a hold of 10,000 credits", 3, 3),
        "labels": ("zone=b", 3, 3),
        "tier": ("batch", 1, 3),
        "memory": ("2 GiB", 1, 3),
    }
    labels = next(r for r in answer.reasons if r.constraint == "labels")
    assert labels.nearest.startswith("zone=a (w") and "--label" in labels.change


def test_why_says_when_all_is_busy_or_claimed(core: Core) -> None:
    core.join(1, slots=2, memory_bytes=2 << 30)
    core.job(50, limits=Limits(memory_bytes=2 << 30))
    core.job(50, tenant="u", limits=Limits(memory_bytes=1 << 30))
    answer = why(core.state, 2, core.now)
    assert answer is not None and answer.summary == "waiting for a free slot"
    assert [r.constraint for r in answer.reasons] == ["room"]
    core.join(2, slots=2)
    running = why(core.state, 2, core.now)
    assert running is not None and running.summary.startswith("it is running")


def test_a_slot_stays_with_a_job_for_a_stint_and_then_goes_to_the_next() -> None:
    core = Core(Config(stint_ms=300))
    core.join(1)
    jobs = [core.job(3_000), core.job(3_000, tenant="u")]
    order, changes = [], 0
    for _ in range(200):
        lease = leases(core)[0]
        order.append(lease.job)
        core.now += 20
        core.finish(1, lease, 20_000 // sum(count for _, count in lease.runs))
    changes = sum(one != other for one, other in itertools.pairwise(order))
    assert 200 * 20 // 600 <= changes <= 200 * 20 // 300 + 1, order
    assert abs(order.count(jobs[0]) - order.count(jobs[1])) <= 30, order


def test_a_stint_ends_when_the_job_has_nothing_more() -> None:
    core = Core(Config(stint_ms=1_000_000))
    core.join(1)
    core.job(1)
    core.job(1, tenant="u")
    core.finish(1, leases(core)[0])
    assert [lease.job for lease in leases(core)] == [2]


def test_why_of_an_ended_job_is_words_for_people(core: Core) -> None:
    core.join()
    core.job(4)
    while core.state.jobs:
        lease = leases(core)[0]
        (first, count), *_ = lease.runs
        column = bytes(Outcome.OK if n == 1 else Outcome.TIME for n in range(first, first + count))
        core.result(1, lease, first, count, column)
    answer = why(core.state, 1, core.now)
    assert answer is not None and answer.state == "failed"
    assert answer.summary.startswith("of 4 subtasks 3 failed, 1 done; time")
    assert "(3 times, first j1/0)" in answer.summary and "JOB_FAILED" not in answer.summary

    core.submit(count=3)
    core.do(ev.CancelAsked(1, 1, "t", 2, []))
    answer = why(core.state, 2, core.now)
    assert answer is not None
    assert answer.state == "cancelled"
    assert answer.summary == "cancelled by its tenant; of 3 subtasks 3 cancelled"


def test_why_of_final_and_unknown_jobs(core: Core) -> None:
    core.join()
    core.submit(count=0)
    answer = why(core.state, 1, core.now)
    assert answer is not None and answer.summary == "it had no subtasks"
    core.job(2)
    for lease in leases(core):
        core.result(1, lease, *lease.runs[0])
    answer = why(core.state, 2, core.now)
    assert answer is not None and answer.summary == "all of its 2 subtasks are done"
    assert why(core.state, 9, core.now) is None and find_status(core.state, 9, 0) is None


def test_cards(core: Core) -> None:
    core.join(1, slots=2)
    core.job(100)
    card = job_status(core.state, core.state.jobs[1], core.now)
    assert (card.ready, card.leased, card.waiting, card.eta_ms) == (96, 4, 0, 0)
    core.now += 10
    core.finish(1, leases(core)[0], 10_000)
    card = job_status(core.state, core.state.jobs[1], core.now)
    assert card.eta_ms == core.state.utc(core.now) + 99 * 10 // 2
    assert card.started_ms > card.submitted_ms - 1 and card.results == 1
    rows = subtask_rows(core.state, 1, 0, 3, "")
    assert [(r.index, r.state, r.attempt) for r in rows] == [
        (0, "done", 1),
        (1, "leased", 1),
        (2, "leased", 1),
    ]
    assert [r.index for r in subtask_rows(core.state, 1, 0, 2, "ready")] == [6, 7]
    row = worker_row(core.state, 1, core.now)
    assert row is not None and (row.state, row.busy, row.done) == ("busy", 2, 1)


def test_cards_are_told_ten_times_a_second_at_most(core: Core) -> None:
    core.join(1)
    core.job(3_000)
    told = 0
    for _ in range(100):
        core.finish(1, leases(core)[0], 1_000)
        told += len(only(core.tick(10), fx.TellStatus))
    assert 9 <= told <= 11


def test_why_gives_the_facts_of_a_place_in_the_queue(core: Core) -> None:
    """Share, then priority with age: a step of priority is worth a minute of waiting."""
    core.join(1)
    core.job(50, tenant="a")
    old = core.job(1, tenant="a")
    core.now += 59_000
    urgent = core.job(1, tenant="a", priority=5)
    other = core.job(1, tenant="b", priority=0)
    places = {}
    for number in (old, urgent, other):
        answer = why(core.state, number, core.now)
        assert answer is not None and answer.turn is not None
        places[number] = answer.turn
    assert places[other].ahead == 3, "with equal shares the older tenant goes first"
    core.state.tenants["a"].charge(1)
    first = why(core.state, other, core.now)
    assert first is not None and first.turn is not None and first.turn.ahead == 0
    assert places[urgent].ahead < places[old].ahead, places
    assert (places[old].age_ms, places[urgent].age_ms, places[urgent].priority) == (59_000, 0, 5)
    running = why(core.state, 1, core.now)
    assert running is not None and places[old].of == 3 + (running.turn is not None)
