"""``gristmill schema``: the JSON Schema of what ``--json`` prints."""

import argparse
import json

import msgspec

from gristmill.cli.documents import BY_NAME
from gristmill.cli.output import Terminal
from gristmill.wire.errors import EXIT_OK, RemoteError


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """The names, or one schema."""
    if args.name is None:
        if terminal.is_json:
            terminal.print(json.dumps(sorted(BY_NAME)))
            return EXIT_OK
        rows = [[name, first_line(kind.__doc__)] for name, kind in sorted(BY_NAME.items())]
        terminal.table(["SCHEMA", "WHAT"], rows)
        return EXIT_OK
    if args.name not in BY_NAME:
        raise RemoteError(
            "INVALID_SPEC", f"there is no schema {args.name!r}", "gristmill schema lists them"
        )
    terminal.print(json.dumps(msgspec.json.schema(BY_NAME[args.name]), indent=2))
    return EXIT_OK


def first_line(text: str | None) -> str:
    """The first sentence of a docstring."""
    return (text or "").partition(".")[0].replace("\n", " ") + "."
