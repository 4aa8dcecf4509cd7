"""Writes docs/flows.md from rows.toml and the tests beside it, and says where the three disagree.

    python tests/flows/report.py            write docs/flows.md
    python tests/flows/report.py --check    write nothing; exit 1 and say what is wrong

Tests are found by reading the sources, not by importing them: the report must also work where the
grid cannot run.
"""

import argparse
import ast
import pathlib
import re
import sys
import tomllib
from typing import NamedTuple

ROWS = 300  #: one for each arrow, step, state and participant of the four designs
TEST_NAME = re.compile(r"test_([a-h][0-9]{2})_")
FIELDS = ("id", "key", "step", "criterion", "failure", "state")


class Row(NamedTuple):
    """One acceptance criterion; ``left`` is what its tests do not show yet."""

    id: str
    key: str
    step: str
    criterion: str
    failure: str
    state: str
    left: str = ""


class Flows(NamedTuple):
    """rows.toml as read: section letter to title, and the rows in order."""

    sections: dict[str, str]
    rows: list[Row]


def read_rows(path: pathlib.Path) -> Flows:
    """Reads the table; a row with a missing or unknown field is a ``TypeError`` that names it."""
    document = tomllib.loads(path.read_text())
    return Flows(document["sections"], [Row(**row) for row in document["row"]])


def tests_by_row(folder: pathlib.Path) -> tuple[dict[str, list[str]], list[str]]:
    """Maps a row's id to the names of its tests, and lists the tests that name no row."""
    tests: dict[str, list[str]] = {}
    nameless: list[str] = []
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not node.name.startswith("test_"):
                continue
            match = TEST_NAME.match(node.name)
            if match is None:
                nameless.append(f"{path.name}::{node.name}")
            else:
                tests.setdefault(match[1].upper(), []).append(f"{path.name}::{node.name}")
    return tests, nameless


def problems(flows: Flows, tests: dict[str, list[str]], nameless: list[str]) -> list[str]:
    """Says, one line each, where the rows and the tests disagree; nothing when they agree."""
    found = []
    ids = [row.id for row in flows.rows]
    for what, names in (("id", ids), ("key", [row.key for row in flows.rows])):
        repeated = sorted({name for name in names if names.count(name) > 1})
        found += [f"rows.toml: the {what} {name} stands twice" for name in repeated]
    if len(ids) != ROWS:
        found.append(f"rows.toml: {len(ids)} rows, must be {ROWS}")
    if ids != sorted(ids):
        found.append("rows.toml: the rows are not in the order of their ids")
    for row in flows.rows:
        empty = [name for name in FIELDS if not getattr(row, name)]
        found += [f"{row.id}: the field {name} is empty" for name in empty]
        if row.id[0] not in flows.sections:
            found.append(f"{row.id}: there is no section {row.id[0]}")
        if row.state not in ("planned", "done"):
            found.append(f'{row.id}: state = "{row.state}"; must be "planned" or "done"')
        if row.state == "done" and row.id not in tests:
            found.append(f"{row.id} is done, but no test_{row.id.lower()}_... is in tests/flows/")
        if row.state == "planned" and row.id in tests:
            found.append(f'{row.id} has {tests[row.id][0]}: set state = "done" in rows.toml')
    found += [f"{tests[name][0]}: there is no row {name}" for name in sorted(set(tests) - set(ids))]
    found += [f"{name}: begin its name with the row it shows, test_a07_..." for name in nameless]
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def render(flows: Flows, tests: dict[str, list[str]]) -> str:
    """Lays the rows out as one Markdown page: counts first, then a table for each section."""
    lines = [
        "# The flows",
        "",
        "Written by `make flows` from `tests/flows/rows.toml`; do not edit.",
        "",
        "Each row is one acceptance criterion and, after *Fail*, what must happen when the world"
        " does not go along.",
        "A row is *done* when a test of its name in `tests/flows/` passes against real processes;"
        " *in part* when the",
        "note after the criterion says what that test does not show yet.",
        "",
        "| Section | Rows | Done | of these in part |",
        "|---|--:|--:|--:|",
    ]
    for letter, title in [*flows.sections.items(), ("", "**All**")]:
        rows = [row for row in flows.rows if row.id.startswith(letter)]
        done = [row for row in rows if row.state == "done"]
        in_part = sum(1 for row in done if row.left)
        name = f"{letter}. {_cell(title)}" if letter else title
        lines.append(f"| {name} | {len(rows)} | {len(done)} | {in_part} |")
    for letter, title in flows.sections.items():
        lines += ["", f"## {letter}. {title}", "", "| Id | Step | Criterion | State | Test |"]
        lines.append("|---|---|---|---|---|")
        for row in flows.rows:
            if row.id.startswith(letter):
                note = f" *Left: {row.left}*" if row.left else ""
                criterion = _cell(f"{row.criterion} **Fail:** {row.failure}{note}")
                state = "in part" if row.state == "done" and row.left else row.state
                names = "<br>".join(f"`{name.split('::')[1]}`" for name in tests.get(row.id, []))
                lines.append(f"| {row.id} | {_cell(row.step)} | {criterion} | {state} | {names} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description="Writes docs/flows.md.")
    parser.add_argument("--check", action="store_true", help="write nothing, say what is wrong")
    parser.add_argument("--root", type=pathlib.Path, default=root, help="the repository")
    options = parser.parse_args(arguments)
    folder, page = options.root / "tests" / "flows", options.root / "docs" / "flows.md"
    flows = read_rows(folder / "rows.toml")
    tests, nameless = tests_by_row(folder)
    found = problems(flows, tests, nameless)
    text = render(flows, tests)
    if not options.check:
        page.write_text(text)
    elif not page.is_file() or page.read_text() != text:
        found.append("docs/flows.md is out of date: run 'make flows'")
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
