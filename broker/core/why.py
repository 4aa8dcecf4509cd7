"""Why a job waits: a vector of reasons, one for each constraint, from the state as it is.

The short form (``reason_of``) stands on every card; the long one (``why``) counts the workers that
fail each constraint and names the cheapest change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gristmill.broker.core.tenants import Requirement
from gristmill.broker.core.turns import turn_of
from gristmill.wire.client import JobStatus, Reason, WhyAnswer
from gristmill.wire.ids import format_job
from gristmill.wire.units import format_bytes, format_credits

if TYPE_CHECKING:
    from gristmill.broker.core.jobs import Job
    from gristmill.broker.core.state import State
    from gristmill.broker.core.workers import Profile

WAITING_FOR_INPUTS = "waiting for inputs"
ERROR_CHARACTERS_MAX = 200  #: of each error's first line


def _labels_text(labels: tuple[tuple[str, str], ...]) -> str:
    return " ".join(f"{name}={value}" for name, value in labels) or "none"


def _cpus_text(cpus_milli: int) -> str:
    return f"{cpus_milli / 1000:g} cpus"


_Constraint = tuple[
    str,
    Callable[[Requirement], str],
    Callable[["Profile"], str],
    Callable[["Profile"], int],
    Callable[["Profile"], str],
]


def _change_label(profile: Profile) -> str:
    return f"ask for the labels {_labels_text(profile.labels)}, or start a worker with --label"


#: constraint, what is asked, what a worker has, how near it is (higher: nearer), the change
_CONSTRAINTS: tuple[_Constraint, ...] = (
    (
        "tier",
        lambda r: r.tier,
        lambda p: ", ".join(p.tiers) or "none",
        lambda p: len(p.tiers),
        lambda p: f"ask for tier {', '.join(p.tiers)}, or start a worker with --tiers",
    ),
    (
        "python",
        lambda r: r.python or "any",
        lambda p: ", ".join(p.pythons) or "none",
        lambda p: len(p.pythons),
        lambda p: f"use Python {', '.join(p.pythons)}, or start workers with yours",
    ),
    (
        "labels",
        lambda r: _labels_text(r.labels),
        lambda p: _labels_text(p.labels),
        lambda p: len(p.labels),
        _change_label,
    ),
    (
        "cpus",
        lambda r: _cpus_text(r.cpus_milli),
        lambda p: _cpus_text(p.cpus_milli),
        lambda p: p.cpus_milli,
        lambda p: f"lower limits.cpus to {p.cpus_milli / 1000:g}, or add a larger worker",
    ),
    (
        "memory",
        lambda r: format_bytes(r.memory_bytes),
        lambda p: format_bytes(p.memory_bytes),
        lambda p: p.memory_bytes,
        lambda p: f"lower limits.memory to {format_bytes(p.memory_bytes)}, or add a larger worker",
    ),
)


def reasons_of(state: State, requirement: Requirement) -> list[Reason]:
    """For each constraint that some live worker fails even when idle: how many, and the nearest.

    The nearest worker fails the fewest constraints, then has the most of the one in question.
    """
    failing: dict[str, int] = {}
    nearest: dict[str, tuple[tuple[int, int], str, str]] = {}
    of = 0
    for pool in state.pools.values():
        of += len(pool.workers)
        failed = requirement.misfits(pool)
        name = next(iter(pool.workers.values())).name
        for word, _, has, score, change in _CONSTRAINTS:
            if word not in failed:
                continue
            failing[word] = failing.get(word, 0) + len(pool.workers)
            rank = (-len(failed), score(pool.profile))
            if word not in nearest or rank > nearest[word][0]:
                text = f"{has(pool.profile)} ({name})"
                nearest[word] = (rank, text, change(pool.profile))
    found = []
    for word, asked, _, _, _ in _CONSTRAINTS:
        if word in failing:
            _, text, change_text = nearest[word]
            found.append(Reason(word, asked(requirement), text, failing[word], of, change_text))
    found.sort(key=lambda reason: -reason.workers)
    return found


def infeasible_text(state: State, requirement: Requirement) -> str:
    """``INFEASIBLE: ...`` naming the binding constraint, what is asked, and the nearest worker."""
    reasons = reasons_of(state, requirement)
    if not reasons:
        return ""
    # The binding one: failed by every worker; else the one whose nearest worker fails least else.
    first = reasons[0]
    return (
        f"INFEASIBLE: {first.constraint}: asks for {first.asked},"
        f" the nearest worker has {first.nearest}; {first.change}"
    )


def reason_of(state: State, job: Job) -> str:
    """Why the job waits, pauses or failed, in one line; empty when it is running or done."""
    if job.ending_code:
        return f"{job.ending_code}: {job.ending_message}" if job.ending_message else job.ending_code
    if job.ending is not None or job.state in ("done", "cancelled", "failed"):
        return ""
    if job.is_paused:
        return job.pause_reason
    if job.hold == "asked":
        if not state.is_ledger_up:
            return (
                "LEDGER_DOWN: the job's credits cannot be held; it starts when the ledger is back"
            )
        return "waiting for the ledger to hold its cap"
    if state.is_outbox_full and not job.started_utc_ms:
        return "LEDGER_DOWN: the spool of contributions is full; new jobs wait for the ledger"
    if job.leased:
        return ""
    if not state.workers:
        return "no workers"
    if not job.requirement.slots:
        return infeasible_text(state, job.requirement) or "no workers: all of them are draining"
    if not job.ready.count and job.number in job.tenant.stalled:
        return _disk_text(state, job)
    if not job.ready.count:
        return WAITING_FOR_INPUTS if not job.is_closed else ""
    if job.check is not None and (reason := _quorum_reason(state, job)) is not None:
        return f"QUORUM: {reason.asked}: {reason.nearest}; {reason.change}"
    tenant = job.tenant
    if tenant.slots_max and tenant.slots >= tenant.slots_max:
        return f"QUOTA: tenant {tenant.name} uses {tenant.slots} of its {tenant.slots_max} slots"
    return "waiting for a free slot"


def _disk_text(state: State, job: Job) -> str:
    """``QUOTA: ...`` of an upload that stands still, with what makes room."""
    limit = format_bytes(state.config.tenant_disk_bytes)
    own = "submit it again with keep=False" if job.spec.keep else "read this one's results"
    return (
        f"QUOTA: inputs of tenant {job.tenant.name} fill its {limit} of the broker's disk; they"
        f" leave as jobs end, with keep=False as results are read: {own}, or cancel another job"
    )


def ended_text(card: JobStatus) -> str:
    """How a job ended, in words: counts, the reason if it has one, and its first errors."""
    total = card.done + card.failed + card.cancelled
    counts = [
        f"{number:,} {word}"
        for number, word in (
            (card.failed, "failed"),
            (card.cancelled, "cancelled"),
            (card.done, "done"),
        )
        if number
    ]
    if not total:
        text = "it had no subtasks"
    elif card.done == total:
        text = f"all of its {total:,} subtasks are done" if total > 1 else "its subtask is done"
    else:
        text = f"of {total:,} subtasks {', '.join(counts)}"
    reason = card.reason.removeprefix("CANCELLED: ")  # codes that say what the state says
    if reason not in ("", "CANCELLED", "JOB_FAILED"):
        text = f"{reason}; {text}"
    errors = [_error_text(card.job, *error) for error in card.errors]
    return "; ".join([text, *errors])


def _error_text(job: int, word: str, message: str, count: int, first: int) -> str:
    line = message.strip().partition("\n")[0][:ERROR_CHARACTERS_MAX]
    told = f"{word}: {line}" if line else word
    often = f"{count:,} times, first" if count > 1 else "at"
    return f"{told} ({often} {format_job(job)}/{first})"


def why(state: State, number: int, now_ms: int) -> WhyAnswer | None:
    """The full answer for a job in memory; None for a job that is not."""
    job = state.jobs.get(number)
    if job is None:
        finished = state.finished.get(number)
        if finished is None:
            return None
        card = finished.status
        return WhyAnswer(number, card.state, ended_text(card), [])
    reasons = []
    spec = job.spec
    of = len(state.workers)
    if job.hold == "asked":
        nearest = "the ledger has not answered" if state.is_ledger_up else "the ledger is down"
        asked = f"a hold of {format_credits(spec.cap_ucredits)} credits"
        reasons.append(Reason("hold", asked, nearest, of, of, "wait, or see the ledger process"))
    if job.is_paused:
        name = format_job(number)
        change = f"gristmill resume {name}, or gristmill cancel {name}"
        reasons.append(Reason("paused", "to run", job.pause_reason, of, of, change))
    if spec.concurrency_max and job.leased >= spec.concurrency_max:
        reasons.append(
            Reason(
                "concurrency_max",
                "another subtask at a time",
                f"{job.leased} of {spec.concurrency_max} run",
                of,
                of,
                "raise concurrency_max",
            )
        )
    if job.is_waiting_for_budget:
        left = format_credits(job.available_ucredits)
        reasons.append(
            Reason("budget", "credits", f"{left} left", of, of, "wait for leases to come back")
        )
    tenant = job.tenant
    if tenant.slots_max and tenant.slots >= tenant.slots_max:
        reasons.append(
            Reason(
                "slots_max",
                f"a slot for tenant {tenant.name}",
                f"{tenant.slots} of {tenant.slots_max} in use",
                of,
                of,
                "wait, or ask the operator for more",
            )
        )
    if job.check is not None:
        if (reason := _quorum_reason(state, job)) is not None:
            reasons.append(reason)
        reasons += _quarantine_reasons(state, job)
    reasons += reasons_of(state, job.requirement)
    reasons += _room_reasons(state, job)
    summary = reason_of(state, job) or f"it is running: {job.leased} subtasks are out"
    return WhyAnswer(number, job.state, summary, reasons, turn_of(state, job, now_ms))


def _quorum_reason(state: State, job: Job) -> Reason | None:
    """Subtasks that wait for a replica which nobody here can make; None without one."""
    check, requirement = job.check, job.requirement
    assert check is not None
    fitting = [
        worker
        for worker in state.workers.values()
        if not (worker.is_draining or worker.is_quarantined)
        and requirement.is_feasible(worker.pool)
    ]
    owners = dict.fromkeys(worker.owner for worker in fitting)
    waiting = check.waiting_for_others(owners)
    if not waiting:
        return None
    subtasks = f"{waiting:,} subtask{'' if waiting == 1 else 's'}"
    return Reason(
        "quorum",
        f"{check.equal} equal results of distinct owners",
        f"{subtasks} wait for another owner; {len(owners)} here can run them",
        len(fitting),
        len(state.workers),
        "add a worker of another owner, or submit without a quorum",
    )


def _quarantine_reasons(state: State, job: Job) -> list[Reason]:
    """Nodes in quarantine that would fit, and what of this job was not paid."""
    check = job.check
    assert check is not None
    reasons, of = [], len(state.workers)
    shut = [worker for worker in state.workers.values() if worker.is_quarantined]
    if shut:
        first = shut[0]
        cause = state.standings[first.node].cause
        change = f"look at it, then: gristmill node release {first.name}"
        reasons.append(
            Reason("quarantine", "a node in good standing", f"{first.name}: {cause}", len(shut), of,
                   change)
        )  # fmt: skip
    if check.unpaid:
        nearest = f"{check.unpaid:,} results, {format_credits(check.unpaid_ucredits)} credits"
        change = "nothing: the events of the job name each node"
        reasons.append(Reason("unpaid", "results that others confirm", nearest, 0, of, change))
    return reasons


def _room_reasons(state: State, job: Job) -> list[Reason]:
    """Workers that fit when idle and are busy now."""
    requirement = job.requirement
    busy = full = of = 0
    for worker in state.workers.values():
        of += 1
        if worker.is_draining or worker.is_quarantined:
            continue
        if not requirement.is_feasible(worker.pool):
            continue
        if not worker.idle:
            busy += 1
        elif not worker.has_room_for(
            worker.slots[next(iter(worker.idle))], requirement.cpus_milli, requirement.memory_bytes
        ):
            full += 1
    reasons = []
    if busy:
        change = "wait, or add workers"
        reasons.append(Reason("slots", "an idle slot", "all slots busy", busy, of, change))
    if full:
        asked = f"{_cpus_text(requirement.cpus_milli)}, {format_bytes(requirement.memory_bytes)}"
        change = "wait, ask for less, or add workers"
        reasons.append(Reason("room", asked, "in use by other slots", full, of, change))
    return reasons
