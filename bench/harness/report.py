"""Writes docs/performance.md and docs/plots/ from bench/results/.

Run as ``python bench/harness/report.py`` after the questions (``make bench`` does both). Every
figure of a section comes from one run, named with its machine, date and commit. ``--results`` and
``--docs`` name other folders.
"""

import argparse
import importlib.util
import pathlib
import sys

BENCH = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(BENCH))

from harness.lines import ROOT, Line, last  # noqa: E402
from harness.sections import SECTIONS  # noqa: E402
from harness.targets import targets  # noqa: E402

HEAD = """# Performance

What gristmill costs beside the floor of the wire and a plain process pool, measured in the same
run. Machines are shared and noisy: read the ratios and the CPU, not the rates. Every subtask below
has its own state, timing, outcome and line on the bill; jobs and results are durable; jails are on.
Results are compared and bills summed inside each run. Made by `make bench`; one question is
`.venv/bin/python bench/latency.py`, and `--help` tells its sizes.

The *floor* is raw ZeroMQ and msgspec with the same values and a state byte per item, and nothing
else: no journal, no jail, no bill. `multiprocessing.Pool.map` with chunks of 1,000 keeps no status,
retry, limit or bill of an item.

## What we want to reach

"""


def peers_section(folder: pathlib.Path) -> str:
    """Other grids beside us, when they were measured here."""
    line, page = last("peers", folder), BENCH / "peers" / "report.py"
    if line is None or not page.exists() or importlib.util.find_spec("peers") is None:
        return ""
    from peers import report  # beside us only when somebody asked for them

    text: str = report.section(line)
    return text


def write(results: pathlib.Path, docs: pathlib.Path) -> list[str]:
    """The page and its plots; names of the questions that have a result."""
    lines: dict[str, Line] = {}
    for name in SECTIONS:
        if (line := last(name, results)) is not None:
            lines[name] = line
    parts = [HEAD + targets(lines)]
    plots = docs / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    for name, line in lines.items():
        text, pictures = SECTIONS[name](line)
        parts.append("\n".join(text))
        for picture, svg in pictures.items():
            (plots / f"{picture}.svg").write_text(svg)
    if beside := peers_section(results):
        parts.append(beside)
    (docs / "performance.md").write_text("\n".join(part.rstrip("\n") + "\n" for part in parts))
    return list(lines)


def main() -> None:
    """Write the page from what has run here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "bench" / "results")
    parser.add_argument("--docs", type=pathlib.Path, default=ROOT / "docs")
    given = parser.parse_args()
    found = write(given.results, given.docs)
    missing = [name for name in SECTIONS if name not in found]
    print(f"{given.docs / 'performance.md'}: {', '.join(found) or 'nothing'}")
    if missing:
        print(f"no result yet of {', '.join(missing)}")


if __name__ == "__main__":
    main()
