"""Puts what the tests of chance counted into bench/results and docs/reliability.md.

Run as ``python bench/harness/reliability.py FIGURES`` where FIGURES has one JSON line for each test
(``GRISTMILL_FIGURES`` in tests/conftest.py). What stands below the heading ``## Measured`` of the
page is written anew; the rest is written by people.
"""

import json
import os
import pathlib
import sys
from typing import Any

from measure import RESULTS, ROOT, card

PAGE = ROOT / "docs" / "reliability.md"
HEADING = "## Measured\n"


def shown(value: object) -> str:
    """A figure as a person reads it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"


def section(run: dict[str, Any]) -> str:
    """The tables of one run, a table for each folder of tests."""
    minutes = sum(test["seconds"] for test in run["tests"]) / 60
    lines = [
        HEADING,
        f"*{run['command']}, {run['date'][:16].replace('T', ' ')} UTC, commit {run['commit']}, "
        f"{run['cores']} cores ({run['cpu']}), Python {run['python']}, Linux {run['kernel']}; "
        f"{len(run['tests'])} tests with figures took {minutes:.0f} minutes.*",
    ]
    folder = ""
    for test in sorted(run["tests"], key=lambda test: test["test"]):
        path, _, name = test["test"].partition("::")
        if (found := str(pathlib.Path(path).parent)) != folder:
            folder = found
            lines += ["", f"### `{folder}/`", "", "| Test | Counted | Minutes |", "|---|---|---:|"]
        counted = ", ".join(
            f"{key.replace('_', ' ')} {shown(value)}" for key, value in test["figures"].items()
        )
        if test["outcome"] != "passed":
            counted = f"**{test['outcome']}**; {counted}"
        title = name.removeprefix("test_").replace("_", " ")
        lines.append(f"| {title} | {counted} | {test['seconds'] / 60:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the JSON and the page."""
    text = pathlib.Path(sys.argv[1]).read_text()
    is_release = os.environ.get("GRISTMILL_SIZE") == "release"
    command = "`make release-check`" if is_release else "`make sim chaos`, the sizes of CI"
    run = {**card(), "command": command, "tests": [json.loads(line) for line in text.splitlines()]}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "reliability.json").write_text(json.dumps(run, indent=1) + "\n")
    head, found, _ = PAGE.read_text().partition(HEADING)
    if not found:
        raise SystemExit(f"{PAGE} has no line {HEADING.strip()!r}: write it where the tables go")
    PAGE.write_text(head + section(run))
    print(f"{len(run['tests'])} tests with figures: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
