"""Cards: what a person sees of a job, its subtasks and the workers. Read-only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gristmill.broker.core.columns import NAMES
from gristmill.broker.core.jobs import Job
from gristmill.broker.core.why import reason_of
from gristmill.wire.client import JobStatus, SubtaskRow, WorkerRow
from gristmill.wire.limits import SEGMENT_SUBTASKS

if TYPE_CHECKING:
    from gristmill.broker.core.state import State


def job_status(state: State, job: Job, now_ms: int) -> JobStatus:
    """The card of an unfinished job (or of one that becomes final in this step).

    Times are UTC ms; ``eta_ms`` too: when it will be done at its present speed, 0 for unknown.
    """
    waiting = max(0, job.count - job.uploaded) if job.count >= 0 and not job.ending else 0
    spec = job.spec
    return JobStatus(
        job=job.number,
        name=spec.name,
        kind=spec.kind,
        tenant=job.tenant.name,
        state=job.state,
        tier=spec.tier,
        priority=spec.priority,
        count=job.count,
        uploaded=job.uploaded,
        waiting=waiting,
        ready=job.ready.count,
        leased=job.leased,
        done=job.done,
        failed=job.failed,
        cancelled=job.cancelled,
        retried=job.retried,
        lost=job.lost,
        superseded=job.superseded,
        submitted_ms=job.submitted_utc_ms,
        started_ms=job.started_utc_ms,
        finished_ms=job.finished_utc_ms,
        wall_us=job.wall_us,
        cpu_us=job.cpu_us,
        peak_kib=job.peak_kib,
        spent_ucredits=job.spent_ucredits,
        cap_ucredits=spec.cap_ucredits,
        eta_ms=_eta_ms(state, job, waiting, now_ms),
        results=job.sequence,
        reason=reason_of(state, job),
        errors=[
            (line.word, line.message, line.count, line.first)
            for line in sorted(job.errors, key=lambda line: line.first)
        ],
        parent=spec.parent,
        expires_ms=job.finished_utc_ms + spec.retention_s * 1_000 if job.finished_utc_ms else 0,
        noticed_percent=job.noticed_percent,
    )


def _eta_ms(state: State, job: Job, waiting: int, now_ms: int) -> int:
    left = waiting + job.ready.count + job.leased
    if job.finished_utc_ms or not left or not job.est_us or not job.slots:
        return 0
    return state.utc(now_ms) + int(left * job.est_us / job.slots / 1000)


def find_status(state: State, number: int, now_ms: int) -> tuple[str, JobStatus] | None:
    """(tenant, card) of a job in memory: unfinished, or finished not long ago."""
    job = state.jobs.get(number)
    if job is not None:
        return job.tenant.name, job_status(state, job, now_ms)
    finished = state.finished.get(number)
    return None if finished is None else (finished.tenant, finished.status)


def subtask_rows(
    state: State, number: int, first: int, limit: int, wanted: str
) -> list[SubtaskRow]:
    """Live rows of an unfinished job: state and attempt.

    Final ones are here only while their segment is in memory. Outcome, node and readings of final
    ones are in the journal: the shell merges them. ``wanted``: only subtasks in this state, or
    empty for all.
    """
    job = state.jobs.get(number)
    rows: list[SubtaskRow] = []
    if job is None:
        return rows
    size, index = max(job.count, job.uploaded), max(first, 0)
    while index < size and len(rows) < limit:
        found = job.columns.at(index) if index < job.uploaded else (0, 0)
        if found is None:  # a segment of which every subtask ended
            index += SEGMENT_SUBTASKS - index % SEGMENT_SUBTASKS
            continue
        word = NAMES.get(found[0], "waiting")
        if not wanted or word == wanted:
            attempt = found[1] + 1 if word == "leased" else found[1]
            rows.append(SubtaskRow(index, word, "", attempt, "", 0, 0, 0, False, ""))
        elif index < job.uploaded:
            index = job.columns.next_in(index, wanted, job.uploaded)
            continue
        else:
            break  # all of these wait
        index += 1
    return rows


def current_leases(state: State, number: int) -> frozenset[int]:
    """Leases of a job that are out."""
    job = state.jobs.get(number)
    if job is None:
        return frozenset()
    workers = [state.workers[each] for each in job.workers if each in state.workers]
    leases = [lease for worker in workers for lease in worker.leases.values()]
    return frozenset(lease.number for lease in leases if lease.job is job)


def worker_row(state: State, number: int, now_ms: int) -> WorkerRow | None:
    """A worker's card; the shell adds its version and its last host reading."""
    worker = state.workers.get(number)
    if worker is None:
        return None
    profile = worker.pool.profile
    busy = worker.busy
    word = "draining" if worker.is_draining else "busy" if busy else "idle"
    if worker.is_quarantined:
        word = "approved" if state.standings[worker.node].is_on_trial else "quarantined"
    return WorkerRow(
        name=worker.name,
        node=worker.node,
        state=word,
        slots=len(worker.slots),
        busy=busy,
        cpus_milli=profile.cpus_milli,
        memory_bytes=profile.memory_bytes,
        labels=profile.labels_of,
        tiers=list(profile.tiers),
        pythons=list(profile.pythons),
        metering=worker.metering,
        version="",
        seen_ms=state.utc(worker.full_ms),
        done=worker.done,
    )
