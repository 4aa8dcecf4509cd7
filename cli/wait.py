"""``gristmill wait``: until jobs have ended; what failed is said, and the exit code says it too."""

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gristmill.cli import documents
from gristmill.cli.connection import connect, job_of
from gristmill.cli.output import Terminal, clean, cut
from gristmill.cli.show import told_errors, told_reason
from gristmill.wire.client import FINAL_JOB_STATES, JobStatus
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK
from gristmill.wire.ids import JobId, format_job
from gristmill.wire.units import format_ms

if TYPE_CHECKING:
    from gristmill.client import Client

_PAUSE_S, _PAUSE_S_MAX = 0.02, 0.5
_TITLE_COLUMNS = 24  #: of a bar's line: the bar itself must fit as well
_REASON_S = 1.0  #: a job that waits for longer says why; a moment's wait is nobody's business


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Wait for all of them."""
    jobs = [job_of(text) for text in args.jobs]
    deadline = None if args.timeout is None else time.monotonic() + args.timeout / 1000
    with connect(args.address) as client:
        statuses = follow_all(client, jobs, deadline, terminal, is_forced=not terminal.is_json)
    return report(statuses, terminal, args.timeout)


def follow_all(
    client: "Client",
    jobs: Sequence[JobId],
    deadline: float | None,
    terminal: Terminal,
    *,
    is_forced: bool,
) -> list[JobStatus]:
    """Their cards once all have ended, or at the deadline. One bar at a time, in their order."""
    names = " ".join(format_job(job) for job in jobs)
    terminal.way_back = f"{'the job goes' if len(jobs) == 1 else 'the jobs go'} on; "
    terminal.way_back += f"come back with: gristmill wait {names}"
    return [_follow(client, job, deadline, terminal, is_forced) for job in jobs]


def _follow(
    client: "Client", job: JobId, deadline: float | None, terminal: Terminal, is_forced: bool
) -> JobStatus:
    from gristmill.client.map import tell_cap
    from gristmill.client.progress import Bar

    status = client.status(job)
    name = format_job(job)
    title = cut(clean(f"{name} {status.name}".strip()), _TITLE_COLUMNS)
    bar = Bar(title, None, is_forced, terminal.err)
    reason, since = "", time.monotonic()
    noticed: dict[int, int] = {}
    pause_s = _PAUSE_S
    while status.state not in FINAL_JOB_STATES:
        tell_cap(status, noticed, terminal.say)
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            return status
        if status.leased or status.reason != reason:
            reason, since = "" if status.leased else status.reason, now
        elif reason and since and now - since >= _REASON_S:
            terminal.say(f"{name} waits: {clean(reason)}\n  next: gristmill why {name}")
            since = 0.0  # once is enough
        left_s = pause_s if deadline is None else deadline - now
        time.sleep(max(0.0, min(pause_s, left_s)))
        pause_s = min(pause_s * 1.5, _PAUSE_S_MAX)
        status = client.status(job)
        if status.count >= 0:
            bar.set_total(status.count)
        bar.show(status.done + status.failed + status.cancelled, status)
    return status


def report(statuses: Sequence[JobStatus], terminal: Terminal, timeout_ms: int | None = None) -> int:
    """What became of them, and the exit code."""
    failed = [status for status in statuses if status.state != "done" or status.failed]
    if terminal.is_json:
        names = [format_job(status.job) for status in failed]
        terminal.document(documents.encode(documents.Waited(list(statuses), names)))
    for status in statuses:
        name = format_job(status.job)
        if not terminal.is_json:
            terminal.print(f"{name} {told_end(status)}")
        if status.state not in FINAL_JOB_STATES:
            terminal.say(
                f"{name} has not ended within {format_ms(timeout_ms or 0)}; it goes on"
                f"\n  next: gristmill wait {name}"
            )
            continue
        for line in told_errors(status):
            terminal.say(f"  {line}", "red")
        if status.errors:
            terminal.say(f"  next: gristmill logs {name}/{status.errors[0][3]}")
    return EXIT_FAILED if failed else EXIT_OK


def told_end(status: JobStatus) -> str:
    """``done: 100 of 100``, and what did not go well."""
    total = status.count if status.count >= 0 else status.uploaded
    parts = [f"{status.done:,} of {total:,}"]
    for word, number in (("failed", status.failed), ("cancelled", status.cancelled)):
        if number:
            parts.append(f"{number:,} {word}")
    if told_reason(status):
        parts.append(told_reason(status))
    return f"{status.state}: {', '.join(parts)}"
