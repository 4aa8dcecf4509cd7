"""Jobs, subtasks and workers as tables and cards."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from gristmill.cli import documents
from gristmill.cli.output import STATE_STYLES, Terminal, clean, plural
from gristmill.wire.client import JobStatus, SubtaskRow, WorkerRow
from gristmill.wire.ids import format_job
from gristmill.wire.spec import TIERS
from gristmill.wire.units import format_bytes, format_credits, format_ms

ERRORS_SHOWN = 3


def show_jobs(jobs: Sequence[JobStatus], terminal: Terminal) -> None:
    """A line for each job."""
    if terminal.is_json:
        terminal.document(documents.encode(documents.Jobs(list(jobs))))
        return
    if not jobs:
        terminal.say("no jobs yet\n  next: gristmill submit --wait -- echo hello")
        return
    rows = [
        [
            format_job(job.job),
            job.name or job.kind,
            job.state,
            told_done(job),
            f"{job.failed:,}" if job.failed else "",
            told_elapsed(job),
            format_credits(job.spent_ucredits),
            told_next(job),
        ]
        for job in jobs
    ]
    head = ["JOB", "NAME", "STATE", "DONE", "FAILED", "TIME", "CREDITS", ""]
    styles = {"JOB": "bold", "STATE": "state", "FAILED": "red"}
    terminal.table(head, rows, right=["JOB", "DONE", "FAILED", "TIME", "CREDITS"], styles=styles)


def told_done(job: JobStatus) -> str:
    """``1,200 of 5,000``; of an open-ended job only what there is."""
    total = job.count if job.count >= 0 else job.uploaded
    return f"{job.done:,} of {total:,}{'+' if job.count < 0 else ''}"


def told_elapsed(job: JobStatus) -> str:
    """How long it runs or ran; empty before its first lease."""
    if not job.started_ms:
        return ""
    end_ms = job.finished_ms or int(time.time() * 1000)
    return format_ms(max(0, end_ms - job.started_ms))


def told_next(job: JobStatus) -> str:
    """Why it stands where it stands, or when it will be done."""
    if job.eta_ms and job.state == "running":
        return f"{format_ms(job.eta_ms)} left"
    return told_reason(job)


def told_reason(job: JobStatus) -> str:
    """The reason, unless its counts say as much."""
    return "" if job.failed and job.reason == "JOB_FAILED" else clean(job.reason)


def show_job(job: JobStatus, terminal: Terminal) -> None:
    """The card of one job, with the next command to type."""
    if terminal.is_json:
        terminal.document(documents.encode(documents.Jobs([job])))
        return
    name = format_job(job.job)
    title = f"{name}  {job.name}" if job.name else name
    state = terminal.style(job.state, STATE_STYLES.get(job.state, ""))
    reason = f": {told_reason(job)}" if told_reason(job) else ""
    parts = {
        "done": job.done,
        "running": job.leased,
        "ready": job.ready,
        "waiting": job.waiting,
        "failed": job.failed,
        "cancelled": job.cancelled,
    }
    counts = " · ".join(f"{number:,} {word}" for word, number in parts.items() if number)
    again = {"retried": job.retried, "lost": job.lost, "superseded": job.superseded}
    tries = " · ".join(f"{number:,} {word}" for word, number in again.items() if number)
    used = f"{format_ms(job.cpu_us / 1000)} cpu · {format_ms(job.wall_us / 1000)} wall"
    if job.peak_kib:
        used += f" · peak memory {format_bytes(job.peak_kib << 10)}"
    pairs = [
        ("state", state + reason),
        ("subtasks", f"{told_total(job)}" + (f": {counts}" if counts else "")),
        ("attempts", tries),
        ("time", told_times(job)),
        ("used", used if job.wall_us or job.cpu_us else ""),
        ("credits", told_money(job)),
        ("results", told_expiry(job)),
        ("asked for", f"{job.kind}, tier {job.tier}, priority {job.priority}"),
        ("part of", format_job(job.parent) if job.parent else ""),
        ("errors", terminal.style("\n".join(told_errors(job)), "red") if job.errors else ""),
        ("next", next_command(job)),
    ]
    terminal.card(title, pairs)


def told_total(job: JobStatus) -> str:
    """How many subtasks, as far as is known."""
    return f"{job.count:,}" if job.count >= 0 else f"{job.uploaded:,} so far"


def told_money(job: JobStatus) -> str:
    """Spent, of how much."""
    told = f"{format_credits(job.spent_ucredits)} of at most {format_credits(job.cap_ucredits)}"
    if job.noticed_percent:
        percent = 100 * job.spent_ucredits // max(1, job.cap_ucredits)
        told += f" ({percent} % of its cap; notice at {job.noticed_percent} %)"
    return told


def told_times(job: JobStatus) -> str:
    """When it came, how long it waited and ran, when it will be done."""
    parts = [f"submitted {told_moment(job.submitted_ms)}"]
    if job.started_ms:
        parts.append(f"waited {format_ms(max(0, job.started_ms - job.submitted_ms))}")
        parts.append(f"{'ran' if job.finished_ms else 'runs for'} {told_elapsed(job)}")
    if job.eta_ms and job.state == "running":
        parts.append(f"{format_ms(job.eta_ms)} left")
    return " · ".join(parts)


def told_moment(moment_ms: int) -> str:
    """A time in the reader's own zone; the date only when it is not today."""
    moment = datetime.fromtimestamp(moment_ms / 1000, tz=UTC).astimezone()
    today = datetime.now(tz=UTC).astimezone().date()
    return moment.strftime("%H:%M:%S" if moment.date() == today else "%Y-%m-%d %H:%M:%S")


def told_errors(job: JobStatus) -> list[str]:
    """The first distinct errors, each in one line: ``3 x exit: exit code 2 (first: j17/4)``."""
    return [
        f"{count:,} × {outcome}{': ' * bool(message)}{clean(message.strip())} "
        f"(first: {format_job(job.job)}/{first})"
        for outcome, message, count, first in job.errors[:ERRORS_SHOWN]
    ]


def next_command(job: JobStatus) -> str:
    """What a person would type next."""
    name = format_job(job.job)
    if job.state in ("running", "decomposing"):
        return f"gristmill wait {name}"
    if job.state == "paused":
        return f"gristmill resume {name}, gristmill cancel {name}"
    if job.state == "accepted":
        return f"gristmill why {name}"
    if job.failed:
        first = f"/{job.errors[0][3]}" if job.errors else ""
        return f"gristmill logs {name}{first}, gristmill status {name} --subtasks --state failed"
    return f"gristmill result {name}" if job.done else f"gristmill usage {name}"


def show_subtasks(
    job: JobStatus, rows: Sequence[SubtaskRow], is_cut: bool, terminal: Terminal
) -> None:
    """A line for each subtask."""
    if terminal.is_json:
        terminal.document(documents.encode(documents.Subtasks(job, list(rows), is_cut)))
        return
    cells = [
        [
            f"{format_job(job.job)}/{row.index}",
            row.state,
            row.outcome,
            str(row.attempt) if row.attempt else "",
            row.node[:8],
            told_us(row.wall_us),
            told_us(row.cpu_us) + ("~" if row.is_estimated else ""),
            format_bytes(row.peak_kib << 10) if row.peak_kib else "",
            row.metering,
            row.message,
        ]
        for row in rows
    ]
    head = "SUBTASK STATE OUTCOME ATTEMPT NODE WALL CPU PEAK METERING MESSAGE".split()
    terminal.table(
        head, cells, right=["SUBTASK", "ATTEMPT", "WALL", "CPU", "PEAK"], styles={"STATE": "state"}
    )
    if any(row.is_estimated for row in rows):
        terminal.say("~ estimated: measured for a batch and split over it by wall time")
    if is_cut:
        terminal.say(f"there are more; show them with --limit (this is {len(rows)})")


def told_us(us: int) -> str:
    """A duration; empty for nothing measured."""
    return format_ms(us / 1000) if us else ""


def show_workers(workers: Sequence[WorkerRow], terminal: Terminal) -> None:
    """A line for each worker."""
    ordered = sorted(workers, key=lambda worker: worker.name)
    if terminal.is_json:
        terminal.document(documents.encode(documents.Workers(ordered)))
        return
    if not ordered:
        terminal.say("no workers\n  next: gristmill worker run --help")
        return
    cells = []
    for worker in ordered:
        reading = worker.reading
        load = f"{reading.cpu_percent}% cpu" if reading else ""
        used = format_bytes(reading.memory_used_bytes) + " of " if reading else ""
        labels = ",".join(f"{key}={value}" for key, value in sorted(worker.labels.items()))
        cells.append(
            [
                worker.name,
                worker.state,
                f"{worker.busy} of {worker.slots}",
                f"{worker.done:,}",
                load,
                used + format_bytes(worker.memory_bytes),
                ",".join(tier for tier in TIERS if tier in worker.tiers),
                worker.metering,
                ",".join(worker.pythons),
                worker.node[:8],
                labels,
            ]
        )
    head = ["WORKER", "STATE", "BUSY", "DONE", "LOAD", "MEMORY", "TIERS", "METERING", "PYTHON"]
    head += ["NODE", "LABELS"]
    terminal.table(
        head, cells, right=["BUSY", "DONE", "LOAD"], styles={"WORKER": "bold", "STATE": "state"}
    )
    trusted = [worker for worker in ordered if "trusted" in worker.tiers]
    if trusted:
        noun = plural(len(trusted), "worker")
        terminal.say(f"{noun} admit{'s' * (len(trusted) == 1)} jobs without a jail", "red")


def told_expiry(job: JobStatus) -> str:
    """Until when the results of an ended job can be read; those not kept go as they are read."""
    if not job.expires_ms:
        return ""
    until = datetime.fromtimestamp(job.expires_ms // 1000, UTC)
    word = "expired: kept" if job.expires_ms <= time.time() * 1000 else "results kept"
    return f"{word} until {until:%Y-%m-%d %H:%M:%S} UTC"
