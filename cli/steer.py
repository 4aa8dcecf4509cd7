"""``gristmill pause`` and ``gristmill resume``: hand out no more of a job, and again."""

import argparse

from gristmill.cli import documents
from gristmill.cli.connection import connect, job_of
from gristmill.cli.output import Terminal
from gristmill.wire.errors import EXIT_OK
from gristmill.wire.ids import format_job


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Steer each; all of the arguments are read before the first is acted on."""
    jobs = [job_of(text) for text in args.jobs]
    names = [format_job(job) for job in jobs]
    with connect(args.address) as client:
        steer = client.pause if args.verb == "pause" else client.resume
        for job, name in zip(jobs, names, strict=True):
            steer(job)
            follow = f"gristmill {'resume' if args.verb == 'pause' else 'wait'} {name}"
            terminal.say(f"asked to {args.verb} {name}\n  next: {follow}")
    if terminal.is_json:
        terminal.document(documents.encode(documents.Steered(args.verb, names)))
    return EXIT_OK
