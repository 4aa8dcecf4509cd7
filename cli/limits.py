"""``gristmill limits``: what each key may ask for, and who had to wait."""

import argparse

from gristmill.cli import documents
from gristmill.cli.connection import connect
from gristmill.cli.output import Terminal
from gristmill.wire.errors import EXIT_OK
from gristmill.wire.units import format_bytes


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """One line for each key."""
    with connect(args.address) as client:
        keys = client.limits()
    if terminal.is_json:
        terminal.document(documents.encode(documents.Limits(keys)))
        return EXIT_OK
    if not keys:
        terminal.say("no keys: who may enter the folder of this grid's sockets has no limits")
        return EXIT_OK
    cells = [
        [
            key.name,
            key.tenant,
            key.role,
            f"{key.requests_per_s:,}" if key.requests_per_s else "-",
            f"{format_bytes(key.bytes_per_s)}" if key.bytes_per_s else "-",
            f"{key.sessions:,} of {key.sessions_max:,}"
            if key.sessions_max
            else f"{key.sessions:,}",
            f"{key.jobs:,} of {key.jobs_max:,}",
            f"{key.subtasks:,} of {key.subtasks_max:,}",
            f"{key.passed:,}",
            f"{key.refused:,}",
            f"waits {key.wait_ms} ms" if key.wait_ms else "",
        ]
        for key in keys
    ]
    head = ["KEY", "TENANT", "ROLE", "REQUESTS/S", "BYTES/S", "SESSIONS", "JOBS", "SUBTASKS"]
    head += ["TAKEN", "REFUSED", ""]
    terminal.table(head, cells, right=head[3:10], styles={"KEY": "bold"})
    return EXIT_OK
