"""``gristmill logs``: what subtasks wrote to stdout and stderr."""

import argparse
from typing import TYPE_CHECKING

from gristmill.cli import documents
from gristmill.cli.connection import connect, subtask_of
from gristmill.cli.output import Terminal
from gristmill.client.errors import subtask_name
from gristmill.wire.client import FINAL_JOB_STATES, LogRow
from gristmill.wire.errors import EXIT_OK, RemoteError
from gristmill.wire.ids import JobId, format_job
from gristmill.wire.units import format_bytes

if TYPE_CHECKING:
    from gristmill.client import Client

ROWS_AT_ONCE = 100


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """All of a job or of one subtask; with ``-f`` until the job has ended."""
    job, index = subtask_of(args.job)
    with connect(args.address) as client:
        status = client.status(job)
        count = status.count if status.count >= 0 else status.uploaded
        if index is not None and index >= count:
            raise RemoteError(
                "INVALID_SPEC",
                f"{format_job(job)} has {count} subtasks; there is no {format_job(job)}/{index}",
                f"gristmill status {format_job(job)} --subtasks",
            )
        if args.follow and status.state not in FINAL_JOB_STATES:
            terminal.way_back = f"the job goes on: gristmill logs -f {args.job}"
            shown = _follow(client, job, index, terminal)
        else:
            shown = _print_all(client, job, index, terminal)
    if not shown:
        terminal.say(f"{args.job} wrote nothing" + (" yet" if not status.finished_ms else ""))
    return EXIT_OK


def _print_all(client: "Client", job: JobId, index: int | None, terminal: Terminal) -> int:
    if index is not None:
        rows = client.logs(job, index, 1)
        mine = [row for row in rows if row.index <= index < row.index + max(1, row.count)]
        for row in mine:
            is_plain = len(mine) == 1 and row.count == 1 and row.state == "ended"
            _print(job, row, terminal, has_head=not is_plain)
        return len(mine)
    following = shown = 0
    while found := client.logs(job, following, ROWS_AT_ONCE):
        # A batch that began before reaches into this page, and may hide none that begins in it.
        rows = [row for row in found if row.index >= following]
        if not rows:
            break
        for row in rows:
            _print(job, row, terminal, has_head=True)
        shown += len(rows)
        following = rows[-1].index + 1
    return shown


def _follow(client: "Client", job: JobId, index: int | None, terminal: Terminal) -> int:
    shown = 0
    for row in client.follow_logs(job):
        if index is None or row.index <= index < row.index + row.count:
            _print(job, row, terminal, has_head=index is None)
            shown += 1
    return shown


def _print(job: JobId, row: LogRow, terminal: Terminal, *, has_head: bool) -> None:
    name = subtask_name(job, row.index)
    if row.count > 1:
        name += f"-{row.index + row.count - 1}"
    if terminal.is_json:
        document = documents.LogLine(
            name,
            row.index,
            row.count,
            row.attempt,
            row.stdout.decode(errors="replace"),
            row.stderr.decode(errors="replace"),
            row.is_cut,
            row.state,
            row.stdout_bytes,
            row.stderr_bytes,
        )
        terminal.document(documents.encode(document))
        return
    if has_head:
        again = f" attempt {row.attempt}" if row.attempt > 1 or row.state != "ended" else ""
        if row.state != "ended":
            again += f" ({row.state})"
        terminal.print(terminal.style(f"==> {name}{again} <==", "bold"))
    if row.stdout:
        terminal.write_bytes(_ended(row.stdout) if has_head else row.stdout)
    if row.stderr:
        if has_head and row.stdout:
            terminal.print(terminal.style(f"==> {name} stderr <==", "bold"))
        terminal.write_bytes(_ended(row.stderr) if has_head else row.stderr)
    if row.is_cut:
        kept, written = len(row.stdout) + len(row.stderr), row.stdout_bytes + row.stderr_bytes
        of = f"{format_bytes(written)} were written, " if written > kept else ""
        terminal.say(f"{name}: output cut: {of}{format_bytes(kept)} are here")


def _ended(body: bytes) -> bytes:
    return body if body.endswith(b"\n") else body + b"\n"
