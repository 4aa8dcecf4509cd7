"""``gristmill cancel``: whole jobs, or some of their subtasks."""

import argparse

from gristmill.cli import documents
from gristmill.cli.connection import asked, connect
from gristmill.cli.output import Terminal
from gristmill.cli.selection import format_runs, parse_runs
from gristmill.wire.errors import EXIT_OK


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Cancel each; all of the arguments are read before the first is acted on."""
    wanted = [asked(parse_runs, text) for text in args.jobs]
    with connect(args.address) as client:
        for job, runs in wanted:
            ranges = [range(start, start + length) for start, length in runs]
            client.cancel(job, ranges or None)
            terminal.say(f"asked to cancel {format_runs(job, runs)}")
    if terminal.is_json:
        names = [format_runs(job, runs) for job, runs in wanted]
        terminal.document(documents.encode(documents.Cancelled(names)))
    return EXIT_OK
