"""``gristmill node``: the workers of the grid, and taking one out of it."""

import argparse
import time
from typing import TYPE_CHECKING

from gristmill.cli import documents
from gristmill.cli.connection import connect
from gristmill.cli.output import Terminal, clean, plural
from gristmill.cli.show import show_workers
from gristmill.wire.client import WorkerRow
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK
from gristmill.wire.units import format_ms

if TYPE_CHECKING:
    from gristmill.client import Client

_PAUSE_S, _PAUSE_S_MAX = 0.05, 0.5


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """``list`` and ``drain``, of ``gristmill worker`` as well."""
    if getattr(args, "enrolled", False):
        from gristmill.cli import registry

        return registry.run(args, terminal)
    with connect(args.address) as client:
        if args.action == "list":
            show_workers(client.workers(), terminal)
            return EXIT_OK
        return _drain(client, args, terminal)


def _drain(client: "Client", args: argparse.Namespace, terminal: Terminal) -> int:
    name = args.worker
    client.drain(name)
    is_ended = False
    if args.wait:
        terminal.way_back = f"{clean(name)} goes on draining; see: gristmill node list"
        is_ended = _follow(client, name, args.timeout, terminal)
    if terminal.is_json:
        terminal.document(documents.encode(documents.Drained(name, is_ended)))
    if not args.wait:
        terminal.say(
            f"{clean(name)} finishes what it has, takes no more, and ends"
            f"\n  next: gristmill node drain --wait {clean(name)}"
        )
        return EXIT_OK
    if is_ended:
        terminal.say(f"{clean(name)} has left the grid; to have it back, start it again")
        return EXIT_OK
    terminal.say(
        f"{clean(name)} has not ended within {format_ms(args.timeout)}; it goes on draining"
        f"\n  next: gristmill node drain --wait {clean(name)}"
    )
    return EXIT_FAILED


def _follow(client: "Client", name: str, timeout_ms: int | None, terminal: Terminal) -> bool:
    """Until the worker that drains is gone; False at the deadline. Says what it still runs."""
    deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
    told, pause_s = "", _PAUSE_S
    while (row := _draining(client.workers(), name)) is not None:
        line = f"{clean(name)} drains: {told_work(row)}"
        if line != told:
            told, pause_s = line, _PAUSE_S
            terminal.say(line)
        if deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _PAUSE_S_MAX)
    return True


def _draining(rows: list[WorkerRow], name: str) -> WorkerRow | None:
    """Its row; None when it has gone, or another process has its name already."""
    return next((row for row in rows if row.name == name and row.state == "draining"), None)


def told_work(row: WorkerRow) -> str:
    """``3 subtasks run`` or that only acks are missing."""
    if not row.busy:
        return "nothing runs any more"
    return f"{plural(row.busy, 'slot')} of {row.slots} still at work"
