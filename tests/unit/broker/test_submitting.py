"""Submissions, uploads, credit: one event in, the exact effects out."""

import msgspec
import pytest
from core_driver import CLIENT, UTC, Core, grant_of, grants, kinds, only

from gristmill.broker.core import effects as fx
from gristmill.broker.core import events as ev
from gristmill.broker.core.state import Config
from gristmill.broker.core.why import reason_of
from gristmill.wire import limits
from gristmill.wire.ledger import Hold, Release
from gristmill.wire.spec import JobSpec, Limits


def spec_of(**fields: object) -> JobSpec:
    return JobSpec(kind="function", function="0" * 64, **fields)  # type: ignore[arg-type]


def refusal(effects: list[fx.AnyEffect]) -> fx.RefuseRequest:
    assert kinds(effects) == ["RefuseRequest"]
    return effects[0]  # type: ignore[return-value]


def test_a_submission_is_recorded_held_and_accepted(core: Core) -> None:
    spec = spec_of(cap_ucredits=5_000)
    assert core.submit(submission=b"x", cap_ucredits=5_000) == [
        fx.RecordJob(1, "t", b"x", spec, UTC + core.now),
        fx.AddToOutbox(Hold("broker/1", "t", 5_000)),
        fx.AcceptJob(CLIENT, 1, 1, False, limits.INPUT_CREDIT_BYTES),
    ]


def test_the_same_submission_is_the_same_job(core: Core) -> None:
    core.submit(submission=b"x", count=3)
    assert core.submit(submission=b"x", count=3) == [
        fx.AcceptJob(CLIENT, 1, 1, True, limits.INPUT_CREDIT_BYTES)
    ]
    other = refusal(core.submit(submission=b"x", count=4))
    assert (other.code, other.job) == ("SUBMISSION_CONFLICT", 1)
    assert core.submit(tenant="u", submission=b"x", count=4)[0].job == 2  # type: ignore[union-attr]


def test_a_finished_submission_is_still_the_same_job(core: Core) -> None:
    core.submit(submission=b"x", count=0)
    assert not core.state.jobs
    assert core.submit(submission=b"x", count=0) == [fx.AcceptJob(CLIENT, 1, 1, True, 0)]


def test_an_empty_job_is_done_at_once(core: Core) -> None:
    effects = core.submit(count=0)
    assert kinds(effects) == ["RecordJob", "AcceptJob", "RecordState", "TellStatus", "FreeJob"]
    assert effects[3].status.state == "done"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "is_taken"),
    [
        ({"count": 1, "limits": Limits(wall_ms=600_000)}, True),
        ({"count": 1, "limits": Limits(wall_ms=600_001)}, False),
        ({"count": 2, "limits": Limits(wall_ms=1)}, False),
        ({"count": -1, "limits": Limits(wall_ms=1)}, False),
    ],
)
def test_zero_tariff_is_for_one_short_subtask(
    core: Core, fields: dict[str, object], is_taken: bool
) -> None:
    effects = core.submit(tariff="zero", **fields)
    if is_taken:
        assert kinds(effects) == ["RecordJob", "AcceptJob"]  # and no hold
    else:
        assert refusal(effects).code == "INVALID_SPEC"


def test_the_queue_refuses_with_depth_and_rate() -> None:
    core = Core(Config(queued_subtasks_max=10))
    core.submit(count=8)
    no = refusal(core.submit(count=3))
    assert no.code == "QUEUE_FULL"
    assert "8 subtasks are queued and 3 more" in no.message and "0 a second" in no.message
    assert kinds(core.submit(count=2))[0] == "RecordJob"


def test_a_tenant_has_so_many_jobs() -> None:
    core = Core(Config(jobs_per_tenant_max=2))
    core.submit(count=1)
    core.submit(count=1)
    assert refusal(core.submit(count=1)).code == "QUOTA"
    assert kinds(core.submit(tenant="u", count=1))[0] == "RecordJob"


def test_python_and_tier_are_refused_at_once_and_named(core: Core) -> None:
    assert kinds(core.submit(python="3.12", tier="trusted"))[0] == "RecordJob"  # nobody here yet
    core.join(pythons=["3.11.7", "3.13.1"], tiers=["job"])
    no = refusal(core.submit(python="3.12"))
    assert no.code == "PYTHON_MISMATCH" and "3.12" in no.message and "3.11, 3.13" in no.message
    no = refusal(core.submit(python="3.11.2", tier="batch"))
    assert no.code == "TIER_REFUSED" and "batch" in no.message and "job" in no.message
    assert kinds(core.submit(python="3.11.2"))[0] == "RecordJob"


def test_a_dry_run_changes_nothing(core: Core) -> None:
    core.join(1, memory_bytes=1 << 30)
    core.join(2, slots=2)
    before = core.state.job_counter
    (answer,) = core.submit(is_dry_run=True, limits=Limits(memory_bytes=2 << 30))
    assert isinstance(answer, fx.AnswerDryRun)
    assert (answer.workers_matching, answer.workers_of) == (1, 2)
    assert [(r.constraint, r.workers, r.of) for r in answer.reasons] == [("memory", 1, 2)]
    assert core.state.job_counter == before and not core.state.jobs


# ---------------------------------------------------------------- uploads


def test_a_parcel_is_kept_and_a_repeated_one_acknowledged(core: Core) -> None:
    core.submit()
    assert core.parcel(1, 0, 10) == [fx.KeepParcel(1, 0, 10, "m")]
    assert core.parcel(1, 0, 10) == [fx.AllowInput(1, 0, limits.INPUT_CREDIT_BYTES)]
    assert core.do(ev.ParcelsCommitted(1, 10)) == [
        fx.AllowInput(1, 10, limits.INPUT_CREDIT_BYTES + 100)
    ]


@pytest.mark.parametrize(
    ("first", "count", "body_bytes", "code"),
    [
        (11, 5, 10, "PARCEL_ORDER"),
        (5, 10, 10, "PARCEL_ORDER"),
        (10, 91, 10, "PARCEL_ORDER"),
        (10, 0, 10, "PARCEL_TOO_LARGE"),
        (10, 9_000, 10, "PARCEL_TOO_LARGE"),
        (10, 1, limits.PARCEL_BYTES_MAX + 1, "PARCEL_TOO_LARGE"),
    ],
)
def test_a_wrong_parcel_is_refused(
    core: Core, first: int, count: int, body_bytes: int, code: str
) -> None:
    core.submit(count=100)
    core.parcel(1, 0, 10)
    assert refusal(core.parcel(1, first, count, body_bytes)).code == code
    assert core.state.jobs[1].uploaded == 10


def test_more_bytes_than_credit_are_refused() -> None:
    core = Core(Config(input_credit_bytes=1_000))
    core.submit()
    size = limits.PARCEL_BYTES_MAX
    core.parcel(1, 0, 1, size)
    assert refusal(core.parcel(1, 1, 1, size)).code == "QUOTA"
    core.do(ev.ParcelsCommitted(1, 1))
    assert kinds(core.parcel(1, 1, 1, size)) == ["KeepParcel"]


def test_a_full_disk_quota_stops_credit_until_a_job_ends() -> None:
    core = Core(Config(tenant_disk_bytes=150, input_credit_bytes=1_000))
    core.submit()
    core.submit()
    core.parcel(1, 0, 1, 100)
    core.parcel(2, 0, 1, 100)
    assert core.do(ev.ParcelsCommitted(1, 1)) == [fx.AllowInput(1, 1, 1_000)]
    effects = core.cancel(2)
    assert fx.AllowInput(1, 1, 1_100) in effects


def test_inputs_that_are_not_needed_again_make_room() -> None:
    core = Core(Config(tenant_disk_bytes=250, input_credit_bytes=1_000))
    core.submit()
    for first in (0, 2, 4):
        core.parcel(1, first, 2, 100)
    assert core.do(ev.ParcelsCommitted(1, 6)) == [fx.AllowInput(1, 6, 1_000)]  # 300 of 250
    core.do(ev.HoldAnswered(1, "", ""))
    leases = grants(core.join())
    while leases:
        leases += grants(core.finish(1, leases.pop(0)))
    reason = reason_of(core.state, core.state.jobs[1])
    assert reason.startswith("QUOTA: inputs of tenant t fill its 250 B") and "keep" in reason
    # The third subtask is in the second parcel, which stays.
    assert core.do(ev.InputsEnded(1, 3)) == [
        fx.FreeParcels(1, 2, 100), fx.AllowInput(1, 6, 1_300),
    ]  # fmt: skip
    assert core.state.tenants["t"].parcel_bytes == 200
    assert core.do(ev.InputsEnded(1, 3)) == [] == core.do(ev.InputsEnded(9, 3))
    # Its client may not have heard that they are on disk.
    assert core.parcel(1, 0, 2, 100) == [fx.AllowInput(1, 6, 1_300)]
    core.cancel(1)
    assert core.state.tenants["t"].parcel_bytes == 0


def test_closing_names_the_count(core: Core) -> None:
    core.submit()
    core.parcel(1, 0, 10)
    no = refusal(core.do(ev.UploadClosed(CLIENT, 3, "t", 1, 9)))
    assert no.code == "PARCEL_ORDER" and "closed at 9" in no.message and "10" in no.message
    effects = core.do(ev.UploadClosed(CLIENT, 3, "t", 1, 10))
    assert kinds(effects) == ["RecordEvent", "Confirm"]
    assert core.do(ev.UploadClosed(CLIENT, 3, "t", 1, 10)) == [fx.Confirm(CLIENT, 3)]
    assert refusal(core.parcel(1, 10, 1)).code == "UPLOAD_CLOSED"


def test_closing_a_job_that_ended_with_fewer_inputs_is_refused(core: Core) -> None:
    core.submit()
    core.do(ev.ClientLost(CLIENT))  # silent for too long: closed at 0, and with that done
    assert not core.state.jobs and core.state.finished[1].status.state == "done"
    no = refusal(core.do(ev.UploadClosed(CLIENT, 3, "t", 1, 1)))
    assert no.code == "UPLOAD_CLOSED" and no.request == 3
    assert "closed at 1" in no.message and "0 subtasks" in no.message
    assert core.do(ev.UploadClosed(CLIENT, 4, "t", 1, 0)) == [fx.Confirm(CLIENT, 4)]


def test_closing_early_shrinks_a_job_of_known_count(core: Core) -> None:
    core.submit(count=100)
    core.parcel(1, 0, 10)
    core.do(ev.UploadClosed(CLIENT, 3, "t", 1, 10))
    assert core.state.jobs[1].count == 10 and core.state.queued == 10


def test_other_tenants_jobs_are_unknown(core: Core) -> None:
    core.submit()
    events: list[ev.AnyEvent] = [
        ev.ParcelArrived(CLIENT, "u", 1, 0, 1, "m", 1),
        ev.UploadClosed(CLIENT, 3, "u", 1, 0),
        ev.CancelAsked(CLIENT, 3, "u", 1, []),
        ev.PauseAsked(CLIENT, 3, "u", 1),
        ev.ResumeAsked(CLIENT, 3, "u", 1),
        ev.CancelAsked(CLIENT, 3, "t", 99, []),
    ]
    for event in events:
        assert refusal(core.do(event)).code == "UNKNOWN_JOB"


def test_a_lost_client_closes_its_open_jobs_only(core: Core) -> None:
    core.submit()
    core.submit(count=5)
    core.parcel(1, 0, 2)
    effects = core.do(ev.ClientLost(CLIENT))
    assert kinds(effects) == ["RecordEvent"] and effects[0].detail == {"count": 2}  # type: ignore[union-attr]
    assert core.state.jobs[1].is_closed and not core.state.jobs[2].is_closed


def test_a_client_that_comes_back_keeps_its_upload(core: Core) -> None:
    core.submit(submission=b"x")
    spec = core.state.jobs[1].spec
    event = ev.JobSubmitted(8, 1, "t", b"x", spec, core.state.jobs[1].tariffs, UTC)
    assert core.do(event) == [fx.AcceptJob(8, 1, 1, True, limits.INPUT_CREDIT_BYTES)]
    assert core.do(ev.ClientLost(CLIENT)) == []
    assert not core.state.jobs[1].is_closed
    assert kinds(core.do(ev.ClientLost(8)))[0] == "RecordEvent"


# ---------------------------------------------------------------- hold and ledger


def test_nothing_is_dispatched_before_the_hold(core: Core) -> None:
    core.join()
    core.submit(count=2)
    assert kinds(core.parcel(1, 0, 2)) == ["KeepParcel"]
    effects = core.do(ev.HoldAnswered(1, "", ""))
    assert kinds(effects)[0] == "RecordEvent" and len(grants(effects)) == 2
    assert core.do(ev.HoldAnswered(1, "", "")) == []


def test_a_refused_hold_fails_the_job_with_its_code(core: Core) -> None:
    core.submit(count=5)
    core.parcel(1, 0, 2)
    effects = core.do(ev.HoldAnswered(1, "INSUFFICIENT_CREDITS", "3 of 5"))
    assert kinds(effects) == [
        "RecordEvent",
        "KeepResult",
        "KeepResult",
        "RecordState",
        "AddToOutbox",
        "TellStatus",
        "FreeJob",
    ]
    # A restart asks again under the same ref, and by then it may be granted: no hold stays open.
    assert isinstance(effects[4].entry, Release)  # type: ignore[union-attr]
    card = effects[5].status  # type: ignore[union-attr]
    assert card.state == "failed" and card.reason == "INSUFFICIENT_CREDITS: 3 of 5"
    assert card.failed == 5


def test_the_ledger_down_is_told_as_the_reason(core: Core) -> None:
    core.join()
    core.submit(count=1)
    assert core.do(ev.LedgerSeen(False, False)) == []
    (card,) = only(core.tick(200), fx.TellStatus)
    assert card.status.state == "accepted" and card.status.reason.startswith("LEDGER_DOWN")


def test_a_full_outbox_stops_new_jobs_and_not_running_ones(core: Core) -> None:
    core.join(slots=2)
    running = core.job(50)
    core.do(ev.LedgerSeen(False, True))
    core.submit(count=1)
    core.do(ev.HoldAnswered(2, "", ""))
    assert grants(core.parcel(2, 0, 1)) == []
    lease = core.state.leases[next(iter(core.state.jobs[running].leases))]
    first = grants(core.result(1, grant_of(lease), *lease.open[0]))
    assert first and first[0].job == running
    effects = core.do(ev.LedgerSeen(True, False))
    assert core.state.jobs[2].is_queued or 2 in [g.job for g in grants(effects)]


def test_a_release_follows_the_end(core: Core) -> None:
    core.submit(count=1)
    effects = core.cancel(1)
    assert fx.AddToOutbox(Release("broker/1")) in effects
    assert kinds(effects)[-4:] == ["RecordState", "AddToOutbox", "TellStatus", "FreeJob"]
    assert msgspec.structs.asdict(effects[-2])["status"].state == "cancelled"
