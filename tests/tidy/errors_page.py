"""Writes docs/errors.md from the table of codes, gristmill.wire.errors.CODES (`make docs`)."""

import pathlib
import sys

from gristmill.wire.errors import CODES

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "errors.md"
INTRODUCTION = """# Error codes

Written by `make docs` from `wire/errors.py`; do not edit.

A message to a person names the thing, the limit, the actual value and the next command to type.
The code is the part that programs may rely on: it keeps its meaning for ever. *Retry* says whether
the same request can succeed later without a change. *HTTP* is the status that the portal and the
store answer with; *Exit* is the exit code of the `gristmill` command.

| Code | Meaning | Retry | HTTP | Exit | Next move |
|---|---|---|--:|--:|---|
"""


def cell(text: str) -> str:
    """Escapes what would end the cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def render() -> str:
    """The page: one row for each code, in the order of the table."""
    rows = [
        f"| `{spec.code}` | {cell(spec.meaning)} | {'yes' if spec.is_retryable else 'no'} |"
        f" {spec.http_status} | {spec.exit_code} | {cell(spec.next_move)} |\n"
        for spec in CODES.values()
    ]
    return INTRODUCTION + "".join(rows)


def main(arguments: list[str]) -> int:
    """Writes the page, or with --check says whether it is current; returns an exit code."""
    if arguments == ["--check"]:
        if PAGE.is_file() and PAGE.read_text() == render():
            return 0
        print("docs/errors.md is out of date: run 'make docs'", file=sys.stderr)
        return 1
    PAGE.write_text(render())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
