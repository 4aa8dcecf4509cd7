"""``gristmill status``: jobs, one job, its subtasks, the workers; once or again and again."""

import argparse
import io
import time
from typing import TYPE_CHECKING

from gristmill.cli.connection import connect, job_of
from gristmill.cli.output import Terminal
from gristmill.cli.show import show_job, show_jobs, show_subtasks, show_workers
from gristmill.wire.client import FINAL_JOB_STATES
from gristmill.wire.errors import EXIT_OK, RemoteError

if TYPE_CHECKING:
    from gristmill.client import Client

WATCH_S = 1.0
_CLEAR = "\x1b[H\x1b[2J\x1b[3J"


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Show it; with ``--watch`` until the job has ended, or Ctrl-C."""
    if (args.subtasks or args.state) and args.job is None:
        raise RemoteError(
            "INVALID_SPEC", "--subtasks and --state need a job", "gristmill status j1 --subtasks"
        )
    if args.workers and args.job is not None:
        raise RemoteError("INVALID_SPEC", "--workers goes without a job", "gristmill worker list")
    with connect(args.address) as client:
        if not args.watch:
            _show(client, args, terminal)
            return EXIT_OK
        if args.job is not None:
            terminal.way_back = f"the job goes on: gristmill wait {args.job}"
        shown = ""
        while True:
            page, is_over = _page(client, args, terminal)
            if page != shown:
                if terminal.has_colour:
                    terminal.out.write(_CLEAR)
                terminal.out.write(page)
                terminal.out.flush()
                shown = page
            if is_over:
                return EXIT_OK
            time.sleep(WATCH_S)


def _page(client: "Client", args: argparse.Namespace, terminal: Terminal) -> tuple[str, bool]:
    """What ``_show`` would write, and whether it will not change any more."""
    screen, page = (terminal.out, terminal.err), io.StringIO()
    terminal.out = terminal.err = page
    try:
        is_over = _show(client, args, terminal)
    finally:
        terminal.out, terminal.err = screen
    return page.getvalue(), is_over


def _show(client: "Client", args: argparse.Namespace, terminal: Terminal) -> bool:
    if args.workers:
        show_workers(client.workers(), terminal)
        return False
    if args.job is None:
        show_jobs(client.jobs(limit=args.limit), terminal)
        return False
    job = job_of(args.job)
    status = client.status(job)
    if args.subtasks or args.state:
        rows = client.subtasks(job, limit=args.limit + 1, state=args.state or "")
        show_subtasks(status, rows[: args.limit], len(rows) > args.limit, terminal)
    else:
        show_job(status, terminal)
    return status.state in FINAL_JOB_STATES
