"""What clients ask: submit, upload, cancel, pause, resume, leave."""

from __future__ import annotations

import hashlib

import msgspec

from gristmill.broker.core import endings
from gristmill.broker.core import journal_names as names
from gristmill.broker.core.checks import Check
from gristmill.broker.core.credit import extend_credit, release_stalled
from gristmill.broker.core.effects import (
    AcceptJob,
    AddToOutbox,
    AllowInput,
    AnswerDryRun,
    AnyEffect,
    Confirm,
    FreeParcels,
    KeepParcel,
    RecordEvent,
    RecordJob,
    RefuseRequest,
)
from gristmill.broker.core.events import (
    Canary,
    CancelAsked,
    ClientLost,
    InputsEnded,
    JobSubmitted,
    ParcelArrived,
    ParcelsCommitted,
    PauseAsked,
    ResumeAsked,
    UploadClosed,
)
from gristmill.broker.core.jobs import Job
from gristmill.broker.core.runs import intersect, normalise, subtract, total
from gristmill.broker.core.state import State
from gristmill.broker.core.tenants import Requirement, minor_of, requirement_key
from gristmill.broker.core.why import reasons_of
from gristmill.wire import limits
from gristmill.wire.errors import CODES
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec
from gristmill.wire.tariffs import ZERO_TARIFFS
from gristmill.wire.worker import Run

_ZERO_WALL_MS_MAX = limits.DECOMPOSE_WALL_MS * 10
_encode = msgspec.msgpack.Encoder().encode


def content_digest(spec: JobSpec) -> bytes:
    """What decides whether a submission id came with the same content."""
    return hashlib.blake2b(_encode(spec), digest_size=16).digest()


def conflict_text(job: int, old: JobSpec | None, new: JobSpec) -> str:
    """Why a submission id cannot be used again: the first field that differs, if it is known."""
    text = f"this submission id, or key, is job j{job} with another content"
    difference = "" if old is None else _first_difference(old, new, "")
    return f"{text}: {difference}" if difference else text


def _first_difference(old: msgspec.Struct, new: msgspec.Struct, path: str) -> str:
    for name in old.__struct_fields__:
        there, here = getattr(old, name), getattr(new, name)
        if there == here:
            continue
        if isinstance(there, msgspec.Struct) and isinstance(here, msgspec.Struct):
            return _first_difference(there, here, f"{path}{name}.")
        if name == "request_digest":
            return "its inputs are others"
        if name == "function":
            return "its function is another"
        return f"{path}{name} was {there!r:.80} and is {here!r:.80} now"
    return ""


def _refuse(
    effects: list[AnyEffect],
    client: int,
    request: int,
    code: str,
    message: str,
    job: int = 0,
    hint: str = "",
) -> None:
    hint = hint or CODES[code].next_move
    effects.append(RefuseRequest(client, request, job, code, message, hint))


def on_job_submitted(
    state: State, event: JobSubmitted, now_ms: int, effects: list[AnyEffect]
) -> None:
    """A new job, a repeated submission, a dry run, or a refusal that says why."""
    state.utc_offset_ms = event.now_utc_ms - now_ms
    spec, client, request = event.spec, event.client, event.request
    requirement = Requirement(requirement_key(spec))
    known = state.submissions.get((event.tenant, event.submission), event.known)
    if known is not None and not event.is_dry_run:
        _replay(state, event, known, effects)
        return
    refusal = _refusal(state, event, requirement)
    if refusal is not None:
        _refuse(effects, client, request, *refusal)
    elif event.is_dry_run:
        matching = sum(len(p.workers) for p in state.pools.values() if requirement.is_feasible(p))
        reasons = reasons_of(state, requirement)
        of = sum(len(p.workers) for p in state.pools.values())
        effects.append(AnswerDryRun(client, request, spec, matching, of, reasons))
    else:
        _create(state, event, now_ms, effects)


def _replay(
    state: State, event: JobSubmitted, known: tuple[int, bytes], effects: list[AnyEffect]
) -> None:
    number, digest = known
    client, request = event.client, event.request
    if digest != content_digest(event.spec):
        job = state.jobs.get(number)
        message = conflict_text(number, job.spec if job is not None else None, event.spec)
        _refuse(effects, client, request, "SUBMISSION_CONFLICT", message, number)
        return
    job = state.jobs.get(number)
    allowed = 0
    if job is not None:
        _claim(state, job, client)
        allowed = job.bytes_allowed
    effects.append(AcceptJob(client, request, number, True, allowed))


def _claim(state: State, job: Job, client: int) -> None:
    """This client uploads the job from now on: it ends with this one's session."""
    if job.is_closed or job.client == client:
        return
    old = state.uploads.get(job.client)
    if old is not None:
        old.pop(job.number, None)
        if not old:
            del state.uploads[job.client]
    job.client = client
    state.uploads.setdefault(client, {})[job.number] = None


def _refusal(state: State, event: JobSubmitted, requirement: Requirement) -> tuple[str, str] | None:
    """(code, message) of the first reason not to take the job."""
    spec = event.spec
    if spec.tariff == "zero" and not (
        0 <= spec.count <= 1 and spec.limits.wall_ms <= _ZERO_WALL_MS_MAX
    ):
        return "INVALID_SPEC", (
            f"tariff is 'zero' with count {spec.count} and limits.wall_ms {spec.limits.wall_ms};"
            f" it is for jobs of at most one subtask and {_ZERO_WALL_MS_MAX} ms"
        )
    tenant = state.tenants.get(event.tenant)
    most = event.jobs_max or state.config.jobs_per_tenant_max
    if tenant is not None and tenant.jobs >= most:
        return "QUOTA", f"tenant {event.tenant} has {tenant.jobs} unfinished jobs of at most {most}"
    if over := _over_subtasks(state, event.tenant, max(spec.count, 0), event.subtasks_max):
        return "QUOTA", over
    full = queue_full(state, max(spec.count, 0))
    if full:
        return "QUEUE_FULL", full
    profiles = [pool.profile for pool in state.pools.values()]
    if profiles and not any(spec.tier in profile.tiers for profile in profiles):
        offered = sorted({tier for profile in profiles for tier in profile.tiers})
        return "TIER_REFUSED", f"no worker admits tier {spec.tier}; they admit {', '.join(offered)}"
    python = requirement.python
    if profiles and python and not any(python in profile.pythons for profile in profiles):
        offered = sorted({version for profile in profiles for version in profile.pythons})
        return "PYTHON_MISMATCH", (
            f"the client runs Python {minor_of(spec.python)}, the workers have {', '.join(offered)}"
        )
    return None


def _over_subtasks(state: State, name: str, more: int, key_max: int) -> str:
    """Words for a tenant with too many unfinished subtasks; empty when ``more`` still fit."""
    most = key_max or state.config.subtasks_per_tenant_max
    tenant = state.tenants.get(name)
    queued = tenant.queued if tenant is not None else 0
    if queued + more <= most:
        return ""
    return (
        f"tenant {name} has {queued} unfinished subtasks and asks for {more} more, of at most"
        f" {most}"
    )


def queue_full(state: State, more: int) -> str:
    """Words for a full queue, with its depth and drain rate; empty when ``more`` still fit."""
    most = state.config.queued_subtasks_max
    if state.queued + more <= most:
        return ""
    return (
        f"{state.queued} subtasks are queued and {more} more asked for, of at most {most};"
        f" the queue drains at {state.drain.per_s:.0f} a second"
    )


def _create(state: State, event: JobSubmitted, now_ms: int, effects: list[AnyEffect]) -> None:
    spec = event.spec
    state.job_counter += 1
    job = add_job(state, state.job_counter, event, now_ms)
    number = job.number
    effects.append(RecordJob(number, event.tenant, event.submission, spec, event.now_utc_ms))
    if event.canary is not None:
        set_canary(state, job, event.canary)
        node, digest = event.canary.node, event.canary.digest.hex()
        detail: dict[str, str | int | list[Run]] = {"node": node, "digest": digest}
        effects.append(RecordEvent(number, names.CANARY_SET, detail, now_ms))
    if spec.count == 0:
        job.is_closed = True
    elif not job.is_free and spec.cap_ucredits:
        job.hold = "asked"
        effects.append(AddToOutbox(endings.hold_of(state, job, event.tenant)))
    if not job.is_closed:
        job.bytes_allowed = state.config.input_credit_bytes
        state.uploads.setdefault(event.client, {})[number] = None
    effects.append(AcceptJob(event.client, event.request, number, False, job.bytes_allowed))
    endings.complete(state, job, now_ms, effects)


def set_canary(state: State, job: Job, canary: Canary) -> None:
    """The job is for one node, and its one value is known (recovery uses this too)."""
    job.check = Check(1, 1, False, canary)
    state.canaries[job.number] = None


def add_job(state: State, number: int, event: JobSubmitted, now_ms: int) -> Job:
    """Puts a job into the state, with nothing of it uploaded (recovery uses this too)."""
    spec = event.spec
    tenant = state.tenant(event.tenant)
    tenant.jobs += 1
    requirement = state.requirement(requirement_key(spec))
    requirement.jobs[number] = None
    job = Job(
        number=number,
        tenant=tenant,
        submission=event.submission,
        spec=spec,
        tariffs=ZERO_TARIFFS if spec.tariff == "zero" else event.tariffs,
        requirement=requirement,
        client=event.client,
        submitted_ms=now_ms,
        submitted_utc_ms=event.now_utc_ms,
        count=spec.count,
    )
    state.jobs[number] = job
    state.add_queued(job, max(spec.count, 0))
    state.submissions[event.tenant, event.submission] = (number, content_digest(spec))
    return job


def on_parcel_arrived(
    state: State, event: ParcelArrived, now_ms: int, effects: list[AnyEffect]
) -> None:
    """Inputs: their subtasks are ready at once. One sent again is acknowledged again."""
    job = _job_of(state, event.tenant, event.job)
    if job is None:
        if _is_final_of(state, event.tenant, event.job):
            # Silence would leave a client waiting that does not know how much the job had.
            message = f"job j{event.job} has ended: it takes no inputs"
            _refuse(effects, event.client, 0, "UPLOAD_CLOSED", message, event.job)
        else:
            _unknown(effects, event.client, 0, event.job)
        return
    _claim(state, job, event.client)
    first, count, end = event.first, event.count, event.first + event.count
    if job.parcels.is_same(first, count, event.codec) or end <= job.freed:
        effects.append(AllowInput(job.number, job.committed, job.bytes_allowed))
        return
    wrong = _parcel_fault(state, job, event)
    if wrong:
        _refuse(effects, event.client, 0, wrong[0], wrong[1], job.number)
        return
    if job.ending is not None:
        return  # it ends: what still arrives is dropped, its final card says why
    job.parcels.add(first, count, event.codec, event.body_bytes)
    job.tenant.parcel_bytes += event.body_bytes
    job.columns.grow(count)
    if job.count < 0:
        state.add_queued(job, count)
    effects.append(KeepParcel(job.number, first, count, event.codec))
    gone = intersect([(first, count)], job.cancelling)
    for start, length in subtract([(first, count)], gone):
        job.ready.add_last(start, length, 1)
    if job.count == end:
        endings.close_upload(state, job)
    if gone:  # cancelled before their inputs came
        endings.end_runs(state, job, gone, Outcome.CANCELLED, 0, now_ms, effects)
    state.enlist(job)
    state.changed[job.number] = None
    endings.complete(state, job, now_ms, effects)


def _parcel_fault(state: State, job: Job, event: ParcelArrived) -> tuple[str, str] | None:
    first, count, end = event.first, event.count, event.first + event.count
    most = limits.RANGE_ITEMS_MAX if event.codec == "range" else limits.PARCEL_ITEMS_MAX
    if not 0 < count <= most or event.body_bytes > limits.PARCEL_BYTES_MAX:
        return "PARCEL_TOO_LARGE", (
            f"a parcel of {count} items and {event.body_bytes} bytes;"
            f" at most {most} items and {limits.PARCEL_BYTES_MAX} bytes"
        )
    if job.ending is not None:
        return None
    if job.is_closed and first >= job.uploaded:
        return "UPLOAD_CLOSED", (
            f"a parcel at {first}; the upload of job j{job.number} was closed at {job.uploaded}"
        )
    if first != job.uploaded or job.is_closed:
        return "PARCEL_ORDER", f"a parcel at {first}; job j{job.number} is at {job.uploaded}"
    if end > (job.count if job.count >= 0 else limits.SUBTASKS_MAX):
        most = job.count if job.count >= 0 else limits.SUBTASKS_MAX
        return "PARCEL_ORDER", f"a parcel to {end}; job j{job.number} has {most} subtasks"
    if job.parcels.bytes_total + event.body_bytes > job.bytes_allowed + limits.PARCEL_BYTES_MAX:
        return "QUOTA", (
            f"job j{job.number} sent {job.parcels.bytes_total + event.body_bytes} bytes of parcels;"
            f" its credit is {job.bytes_allowed}"
        )
    if job.count >= 0:
        return None  # counted when it was submitted
    if over := _over_subtasks(state, event.tenant, count, event.subtasks_max):
        return "QUOTA", over
    full = queue_full(state, count)
    return ("QUEUE_FULL", full) if full else None


def on_parcels_committed(
    state: State, event: ParcelsCommitted, now_ms: int, effects: list[AnyEffect]
) -> None:
    """Parcels are on disk: the client may send that many bytes more, disk quota permitting."""
    job = state.jobs.get(event.job)
    if job is None:
        return
    job.committed = max(job.committed, min(event.upto, job.uploaded))
    job.bytes_committed = job.parcels.bytes_before(job.committed)
    extend_credit(state, job, effects)


def on_inputs_ended(
    state: State, event: InputsEnded, now_ms: int, effects: list[AnyEffect]
) -> None:
    """Parcels of which nothing is needed again leave; uploads that waited for room go on."""
    job = state.jobs.get(event.job)
    if job is None:
        return  # all of its parcels leave
    upto, size_bytes = job.parcels.whole_before(event.upto)
    if upto <= job.freed:
        return
    job.tenant.parcel_bytes -= size_bytes - job.bytes_freed
    job.freed, job.bytes_freed = upto, size_bytes
    effects.append(FreeParcels(job.number, upto, size_bytes))
    release_stalled(state, job.tenant, effects)


def on_upload_closed(
    state: State, event: UploadClosed, now_ms: int, effects: list[AnyEffect]
) -> None:
    """No more parcels: the job has as many subtasks as were uploaded."""
    job = _job_of(state, event.tenant, event.job)
    if job is None:
        _confirm_closed(state, event, effects)
        return
    if event.count != job.uploaded and job.ending is None:
        message = f"closed at {event.count}; job j{job.number} has {job.uploaded} subtasks"
        _refuse(effects, event.client, event.request, "PARCEL_ORDER", message, job.number)
        return
    if not job.is_closed:
        _close(state, job, now_ms, effects)
    effects.append(Confirm(event.client, event.request))
    endings.complete(state, job, now_ms, effects)


def _confirm_closed(state: State, event: UploadClosed, effects: list[AnyEffect]) -> None:
    """Of a job that has ended: whether it had all that its client sent.

    It has not when it was closed while its client was away: a new job takes the rest.
    """
    if not _is_final_of(state, event.tenant, event.job):
        _unknown(effects, event.client, event.request, event.job)
        return
    count = state.finished[event.job].status.count
    if event.count == count:
        effects.append(Confirm(event.client, event.request))
        return
    message = f"closed at {event.count}; job j{event.job} has ended with {count} subtasks"
    _refuse(effects, event.client, event.request, "UPLOAD_CLOSED", message, event.job)


def _close(state: State, job: Job, now_ms: int, effects: list[AnyEffect]) -> None:
    if job.count > job.uploaded:
        state.add_queued(job, -(job.count - job.uploaded))
    job.count = job.uploaded
    endings.close_upload(state, job)
    detail: dict[str, str | int | list[tuple[int, int]]] = {"count": job.count}
    effects.append(RecordEvent(job.number, names.UPLOAD_CLOSED, detail, now_ms))
    state.changed[job.number] = None


def on_cancel_asked(
    state: State, event: CancelAsked, now_ms: int, effects: list[AnyEffect]
) -> None:
    """Cancels runs or the whole job; a job that is final stays as it is."""
    job = _job_of(state, event.tenant, event.job)
    if job is None:
        if _is_final_of(state, event.tenant, event.job):
            effects.append(Confirm(event.client, event.request))
        else:
            _unknown(effects, event.client, event.request, event.job)
        return
    size = max(job.count, job.uploaded)
    runs = normalise(event.runs, size)
    if event.runs and not runs:
        message = f"job j{job.number} has {size} subtasks so far, numbered from 0"
        _refuse(effects, event.client, event.request, "INVALID_SPEC", message, job.number)
        return
    detail: dict[str, str | int | list[tuple[int, int]]] = {"runs": runs} if runs else {}
    effects.append(RecordEvent(job.number, names.CANCEL_ASKED, detail, now_ms))
    effects.append(Confirm(event.client, event.request))
    if runs and total(runs) < max(job.count, job.uploaded + (not job.is_closed)):
        endings.cancel_runs(state, job, runs, now_ms, effects)
    else:
        message = "cancelled by its tenant"
        endings.end_rest(
            state, job, Outcome.CANCELLED, "cancelled", "CANCELLED", message, now_ms, effects
        )


def on_pause_asked(state: State, event: PauseAsked, now_ms: int, effects: list[AnyEffect]) -> None:
    """No more leases until it is resumed."""
    job = _steered(state, event, effects)
    if job is not None:
        endings.pause(state, job, "paused by its tenant", now_ms, effects)


def on_resume_asked(
    state: State, event: ResumeAsked, now_ms: int, effects: list[AnyEffect]
) -> None:
    """Leases again."""
    job = _steered(state, event, effects)
    if job is None or not job.is_paused or job.ending is not None:
        return
    job.is_paused, job.pause_reason = False, ""
    job.failed_at_resume = job.failed  # it may fail as often again before it pauses again
    job.state = "running" if job.started_utc_ms else "accepted"
    effects.append(RecordEvent(job.number, names.RESUMED, {"failed": job.failed}, now_ms))
    endings.tell_state(state, job, now_ms, effects)
    state.enlist(job)


def _steered(state: State, event: PauseAsked | ResumeAsked, effects: list[AnyEffect]) -> Job | None:
    job = _job_of(state, event.tenant, event.job)
    if job is None and not _is_final_of(state, event.tenant, event.job):
        _unknown(effects, event.client, event.request, event.job)
    else:
        effects.append(Confirm(event.client, event.request))
    return job


def on_client_lost(state: State, event: ClientLost, now_ms: int, effects: list[AnyEffect]) -> None:
    """Its jobs go on; those that it was still uploading have what was uploaded."""
    for number in list(state.uploads.get(event.client, ())):
        job = state.jobs[number]
        if job.count < 0:
            _close(state, job, now_ms, effects)
            endings.complete(state, job, now_ms, effects)
    state.uploads.pop(event.client, None)


def _job_of(state: State, tenant: str, number: int) -> Job | None:
    job = state.jobs.get(number)
    return job if job is not None and job.tenant.name == tenant else None


def _is_final_of(state: State, tenant: str, number: int) -> bool:
    finished = state.finished.get(number)
    return finished is not None and finished.tenant == tenant


def _unknown(effects: list[AnyEffect], client: int, request: int, job: int) -> None:
    _refuse(effects, client, request, "UNKNOWN_JOB", f"no job j{job} of this tenant", job)
