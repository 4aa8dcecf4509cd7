"""``gristmill why``: the constraint that keeps a job waiting, and the cheapest change."""

import argparse

from gristmill.cli import documents
from gristmill.cli.connection import connect, job_of
from gristmill.cli.output import STATE_STYLES, Terminal, clean
from gristmill.wire.client import Reason, Turn
from gristmill.wire.errors import EXIT_OK
from gristmill.wire.ids import format_job


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Ask and show."""
    job = job_of(args.job)
    with connect(args.address) as client:
        answer = client.why(job)
    if terminal.is_json:
        document = documents.Why(
            format_job(job), job, answer.state, answer.summary, answer.reasons, answer.turn
        )
        terminal.document(documents.encode(document))
        return EXIT_OK
    state = terminal.style(answer.state, STATE_STYLES.get(answer.state, ""))
    terminal.print(f"{terminal.style(format_job(job), 'bold')} is {state}: {clean(answer.summary)}")
    if answer.turn is not None:
        terminal.print(turn_text(answer.turn))
    show_reasons(answer.reasons, terminal)
    return EXIT_OK


def turn_text(turn: Turn) -> str:
    """What decides the place in the queue, in words."""
    return (
        f"in the queue: {turn.ahead:,} jobs come first, {turn.of:,} wait;"
        f" priority {turn.priority}, fair share {turn.share_us / 1e6:.3f} cpu-s,"
        f" age {turn.age_ms / 1e3:.0f} s"
    )


def show_reasons(reasons: list[Reason], terminal: Terminal) -> None:
    """A line for each constraint, and what would change it."""
    if not reasons:
        return
    rows = [
        [
            reason.constraint,
            reason.asked,
            reason.nearest,
            f"{reason.workers} of {reason.of}",
            reason.change,
        ]
        for reason in reasons
    ]
    head = ["CONSTRAINT", "ASKED", "NEAREST", "FAILED BY", "CHANGE"]
    terminal.table(head, rows, right=["ASKED", "NEAREST"], styles={"CONSTRAINT": "bold"})
