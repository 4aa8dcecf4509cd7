"""Leases that outlive the broker: adopted once, billed once; what does not hold is stopped."""

import pytest
from core_driver import UTC, Core, grants, kinds, only

from gristmill.broker.core import effects as fx
from gristmill.broker.core import events as ev
from gristmill.broker.core.invariants import check
from gristmill.broker.core.recovery import JobFact, ParcelFact, ResultFact, rebuild
from gristmill.broker.core.state import Config
from gristmill.wire.client import JobStatus
from gristmill.wire.ids import pack_lease_id
from gristmill.wire.ledger import Contribution
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec, Limits, Tariff
from gristmill.wire.worker import Claim, Held, LeaseGrant

OLD = pack_lease_id(8, 3)  # granted by the incarnation before
CARD = JobStatus(
    3, "", "function", "t", "running", "job", 0, 100, 100, 0, 0, 0, 0, 0, 0, 0, 0, 0, UTC, UTC, 0,
    0, 0, 0, 0, 0, 0, 0,
)  # fmt: skip
CLAIM = Claim(OLD, 0, 10, 3, 1, [(10, 20)], 5_000_000, 4_000)
GRANT = LeaseGrant(OLD, 0, 3, 1, [(10, 20)], 5_000_000, [])


class Restarted(Core):
    """A core after a restart: job 3 of 100 subtasks was started, 0-9 are done, w1 was there."""

    def __init__(self, workers: tuple[str, ...] = ("w1",), **spec: object) -> None:
        super().__init__()
        fields = {"count": 100, "retries": 2, **spec}
        fact = JobFact(
            job=3, tenant="t", submission=b"x", submitted_utc_ms=UTC - 60_000, status=CARD,
            spec=JobSpec("function", function="0" * 64, **fields),  # type: ignore[arg-type]
            tariffs={"standard": Tariff()}, is_hold_granted=True,
            parcels=[ParcelFact(0, 100, "m", 900)],
            results=[ResultFact(1, 0, 10, 1, b"\0", [], 100, 10_000, 5_000, 9)],
        )  # fmt: skip
        utc = UTC + 10_000 + self.now
        self.state, self.first = rebuild(Config(), 9, [fact], self.now, utc, workers)
        check(self.state)

    def claim(
        self, worker: int = 1, claim: Claim = CLAIM, slots: int = 1, **fields: object
    ) -> list[fx.AnyEffect]:
        held = [Held(claim.lease_id, claim.slot, claim.started, 0)]
        return self.join(worker, slots, held=held, claims=[claim], **fields)


def stops(effects: list[fx.AnyEffect]) -> list[int]:
    return [effect.lease_id for effect in only(effects, fx.StopLease)]


def test_a_held_lease_goes_on_and_is_accepted_and_billed_once() -> None:
    core = Restarted()
    effects = core.claim()
    assert stops(effects) == []
    assert kinds(effects)[:3] == ["RecordEvent", "OpenJob", "RecordEvent"]
    job, lease = core.state.jobs[3], core.state.leases[OLD]
    assert lease.open == [(10, 20)] and lease.items == 20 and lease.is_adopted
    assert (lease.started, lease.attempt, lease.budget_ucredits) == (10, 1, 5_000_000)
    assert all(run[0] >= 30 for grant in grants(effects) for run in grant.runs)
    done = core.result(1, GRANT, 10, 20, wall_us=3_000_000, cpu_us=2_000_000)
    (entry,) = [e.entry for e in only(done, fx.AddToOutbox) if isinstance(e.entry, Contribution)]
    # Its time before the restart counts.
    assert (entry.first, entry.count, entry.cpu_us, entry.wall_us) == (10, 20, 2_000_000, 3_000_000)
    assert job.done == 30 and OLD not in core.state.leases
    again = core.result(1, GRANT, 10, 20)
    assert kinds(again) == ["KeepSuperseded", "RecordEvent"] and job.done == 30


def test_of_two_that_claim_a_lease_the_first_has_it() -> None:
    core = Restarted(("w1", "w2"))
    assert stops(core.claim(1)) == []
    assert stops(core.claim(2)) == [OLD]
    assert core.state.leases[OLD].slot.worker.number == 1
    late = core.result(2, GRANT, 10, 20)
    assert kinds(late) == ["KeepSuperseded", "RecordEvent"]
    assert core.state.jobs[3].done == 10
    core.result(1, GRANT, 10, 20)
    assert core.state.jobs[3].done == 30


def test_a_tenant_whose_only_work_is_adopted_is_awake() -> None:
    core = Restarted(("w1", "w2", "w3"))
    core.join(2)  # its slot is offered the job, which waits: the tenant falls asleep
    assert not core.state.active
    core.claim(1)
    assert list(core.state.active) == ["t"]


def test_a_lease_that_is_over_but_for_its_ack_is_adopted_too() -> None:
    core = Restarted()
    claims = [
        Claim(pack_lease_id(8, n), 0, -1, 3, 1, [(10 * n, 10)], 10**6, 500) for n in (1, 2, 3)
    ]
    effects = core.join(1, held=[Held(claims[0].lease_id, 0, 10, 0)], claims=claims)
    assert stops(effects) == [] and len(core.state.leases) >= 3
    for claim in claims:  # their results were sent again in the new session
        grant = LeaseGrant(claim.lease_id, 0, 3, 1, claim.runs, 10**6, [])
        core.result(1, grant, claim.runs[0][0], 10)
    assert core.state.jobs[3].done == 40
    core.report(1)


def test_what_was_on_disk_already_is_left_out_of_the_lease() -> None:
    core = Restarted()
    core.claim(claim=CLAIM.__class__(OLD, 0, 10, 3, 1, [(5, 25)], 10**6, 0))
    assert core.state.leases[OLD].open == [(10, 20)]
    assert kinds(core.result(1, GRANT, 5, 5)) == ["KeepSuperseded", "RecordEvent"]


BAD = {
    "of this incarnation": {"lease_id": pack_lease_id(9, 77)},
    "of a later incarnation": {"lease_id": pack_lease_id(10, 1)},
    "number 0": {"lease_id": pack_lease_id(8, 0)},
    "negative": {"lease_id": -1},
    "of no job": {"job": 4},
    "of another attempt": {"attempt": 2},
    "attempt 0": {"attempt": 0},
    "on a slot that is not there": {"slot": 1},
    "on a negative slot": {"slot": -1},
    "without runs": {"runs": []},
    "of what ended": {"runs": [(0, 10)]},
    "past the upload": {"runs": [(95, 6)]},
    "of a negative run": {"runs": [(-5, 20)]},
    "of an empty run": {"runs": [(20, 0)]},
    "with a run twice": {"runs": [(10, 5), (12, 5)]},
    "without money": {"budget_ucredits": 0},
}


@pytest.mark.parametrize("what", BAD)
def test_a_claim_that_does_not_hold_is_stopped(what: str) -> None:
    core = Restarted()
    claim = Claim(**{**{f: getattr(CLAIM, f) for f in CLAIM.__struct_fields__}, **BAD[what]})
    assert stops(core.claim(claim=claim)) == [claim.lease_id]
    assert claim.lease_id not in core.state.leases
    assert core.state.leases  # and its worker works on


@pytest.mark.parametrize(
    ("spec", "worker"),
    [
        ({"limits": Limits(cpus_milli=2_000)}, {}),
        ({"labels": {"gpu": "a"}}, {}),
        ({"tier": "strict"}, {"tiers": ["job"]}),
        ({"concurrency_max": 10}, {}),
    ],
)
def test_a_claim_that_would_not_be_granted_is_stopped(
    spec: dict[str, object], worker: dict[str, object]
) -> None:
    core = Restarted(**spec)
    assert OLD in stops(core.claim(**worker))


def test_a_lease_that_was_taken_away_before_the_restart_stays_away() -> None:
    core = Restarted()
    core.state.rescued[OLD] = None
    assert stops(core.claim()) == [OLD]


def test_an_adopted_lease_that_is_taken_away_is_not_adopted_again() -> None:
    core = Restarted()
    core.claim()
    core.do(ev.WorkerLost(1, True, "its session was replaced"))
    held = [Held(OLD, 0, 10, 0)]
    assert stops(core.join(2, held=held, claims=[CLAIM])) == [OLD]


def test_a_job_that_ends_adopts_nothing() -> None:
    core = Restarted()
    core.cancel(3)
    assert stops(core.claim()) == [OLD]


def test_an_adopted_lease_is_renewed_rescued_and_retried_like_any_other() -> None:
    core = Restarted()
    core.claim()
    core.report(1, after=1_000)
    assert OLD in core.state.leases
    effects = core.tick(after=10_000)
    cuts = [e.detail["cut"] for e in only(effects, fx.RecordEvent) if "cut" in e.detail]
    assert 10 in cuts
    job = core.state.jobs[3]
    assert job.lost >= 1 and list(job.columns.attempts(10, 1)) == [(10, 1, 1)]


def test_the_bill_of_an_adopted_lease_ends_at_its_age_and_budget() -> None:
    core = Restarted()
    core.claim(claim=Claim(OLD, 0, 10, 3, 1, [(10, 20)], 1_000, 10**9))
    lease = core.state.leases[OLD]
    first_ms = UTC - core.state.utc_offset_ms  # of the job's first lease
    assert lease.granted_ms == first_ms
    (entry,) = [
        e.entry
        for e in only(core.result(1, GRANT, 10, 20, cpu_us=10**12), fx.AddToOutbox)
        if isinstance(e.entry, Contribution)
    ]
    assert entry.amount_ucredits == 1_000
    assert entry.cpu_us <= (core.now - first_ms + 1) * 1_000


# ---------------------------------------------------------------- the wait


def test_started_work_waits_for_those_who_may_hold_it_and_no_longer() -> None:
    core = Restarted(("w1", "w2"))
    assert core.first == []
    assert grants(core.join(2, held=[])) == []  # w1 may hold any of it
    other = core.job(10)  # nobody can hold a new job
    assert {lease.job.number for lease in core.state.leases.values()} == {other}
    effects = core.claim(1)
    assert stops(effects) == [] and not core.state.awaited
    assert {grant.job for grant in grants(effects)} == {3}


def test_the_wait_ends_by_itself() -> None:
    core = Restarted(("gone",))
    assert grants(core.join(1)) == []
    assert grants(core.tick(after=Config().adopt_ms - 100)) == []
    assert {grant.job for grant in grants(core.tick(after=100))} == {3}


def test_nothing_waits_when_no_worker_was_there() -> None:
    assert grants(Restarted(()).join(1)) != []


def test_a_failed_subtask_of_an_adopted_lease_is_tried_again() -> None:
    core = Restarted()
    core.claim()
    core.result(1, GRANT, 10, 1, Outcome.ERROR)
    job = core.state.jobs[3]
    assert job.retried == 1 and list(job.columns.attempts(10, 1)) == [(10, 1, 1)]
