"""Writes docs/performance.md from the last line of each file of bench/results/.

Run as ``python bench/harness/report.py`` after the scenarios (``make bench`` does both). Every
figure of the page comes from one run, named with its machine, date and commit.
"""

import json
import pathlib
import statistics
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"

HEAD = """# Performance

What gristmill costs beside the floor of the wire and a plain process pool, measured in the same
run. Machines are shared and noisy: read the ratios and the CPU, not the rates. Every subtask below
has its own state, timing, outcome and line on the bill; jobs and results are durable; jails are on.
Made by `make bench`.

The *floor* is raw ZeroMQ and msgspec with the same values and a state byte per item, and nothing
else: no journal, no jail, no bill. `multiprocessing.Pool.map` with chunks of 1,000 keeps no status,
retry, limit or bill of an item.
"""


def last(scenario: str) -> dict[str, Any] | None:
    """The newest line of a scenario, or None when it has not run here."""
    path = ROOT / "bench" / "results" / f"{scenario}.json"
    if not path.exists():
        return None
    line: dict[str, Any] = json.loads(path.read_text().splitlines()[-1])
    return line


def provenance(line: dict[str, Any]) -> str:
    """Machine, date and commit of a run."""
    settings = ", ".join(f"{name} {value:,}" for name, value in line["settings"].items())
    return (
        f"*{line['date'][:16].replace('T', ' ')} UTC, commit {line['commit']}, "
        f"{line['cores']} cores ({line['cpu']}), Python {line['python']}, Linux {line['kernel']}, "
        f"load {line['load_before']:.1f} before and {line['load_after']:.1f} after; {settings}.*\n"
    )


def figures(line: dict[str, Any], name: str) -> dict[str, list[float]]:
    """By contender, a figure of each of its runs."""
    found: dict[str, list[float]] = {}
    for run in line["runs"]:
        if name in run:
            found.setdefault(run["what"], []).append(run[name])
    return found


def throughput(line: dict[str, Any]) -> str:
    """No-op subtasks a second, median (lowest to highest), and where the cpu goes."""
    rates, cpus = figures(line, "rate"), figures(line, "cpu_us")
    text = ["## Throughput of no-op subtasks\n", provenance(line)]
    text += [
        "| contender | k/s, median (range) | of the floor | CPU us each |",
        "|---|---|---|---|",
    ]
    for what, values in rates.items():
        floor = rates.get(f"floor {what.split()[-1]}")
        middle = statistics.median(values)
        share = f"{middle / statistics.median(floor):.2f}" if floor else ""
        cpu = f"{statistics.median(cpus[what]):,.2f}" if what in cpus else ""
        span = f"{min(values) / 1000:,.1f} to {max(values) / 1000:,.1f}"
        text.append(f"| {what} | {middle / 1000:,.1f} ({span}) | {share} | {cpu} |")
    text.append("\nWhere the CPU of a subtask goes, in us (the last run of each):\n")
    roles = {run["what"]: run["cpu_us_by_role"] for run in line["runs"] if "cpu_us_by_role" in run}
    names = sorted({role for by_role in roles.values() for role in by_role})
    text += [f"| contender | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for what, by_role in roles.items():
        text.append(f"| {what} | {' | '.join(f'{by_role.get(name, 0):,.2f}' for name in names)} |")
    return "\n".join(text) + "\n"


def latency(line: dict[str, Any]) -> str:
    """Submit to result, one at a time."""
    p50, p99 = figures(line, "p50_ms"), figures(line, "p99_ms")
    text = ["## Submit to result, one at a time\n", provenance(line)]
    text += ["| contender | p50 ms | p99 ms |", "|---|---|---|"]
    for what in p50:
        text.append(
            f"| {what} | {statistics.median(p50[what]):.2f} | {statistics.median(p99[what]):.2f} |"
        )
    text.append(
        "\nA lone result waits for two commits (`fsync` is one write and fdatasync of this disk) on"
        " top of the\n`echo` through a Python broker; tier `job` adds a fork."
    )
    return "\n".join(text) + "\n"


RECOVERIES = {
    "one_job": "one job of all of them, in parcels of 1,000",
    "many_jobs": "jobs of 1,000",
    "half_done": "one job, results of half of it there",
    "single_subtasks": "jobs of one subtask, a hundredth as many",
    "beside_finished": "one job, beside a tenth as many finished jobs",
}


def recovery(line: dict[str, Any]) -> str:
    """From the start of a killed broker's process to its first dispatch."""
    found = {name: figures(line, name) for name in ("seconds", "cpu_s", "peak_mib")}
    text = ["## Restart of a broker with unfinished subtasks on disk\n", provenance(line)]
    text += [
        "Process start to the first lease, and the replay alone; medians.\n",
        "| on disk | first lease s | CPU s | peak MiB | replay s | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for shape, words in RECOVERIES.items():
        start = [statistics.median(found[name][f"{shape} start"]) for name in found]
        alone = [
            statistics.median(found[name][f"{shape} recover"]) for name in ("seconds", "cpu_s")
        ]
        text.append(
            f"| {words} | {start[0]:.2f} | {start[1]:.2f} | {start[2]:.0f} |"
            f" {alone[0]:.3f} | {alone[1]:.3f} |"
        )
    return "\n".join(text) + "\n"


def main() -> None:
    """Write the page from what has run here."""
    parts = [HEAD]
    for scenario, render in (
        ("throughput", throughput),
        ("latency", latency),
        ("recovery", recovery),
    ):
        line = last(scenario)
        if line is not None:
            parts.append(render(line))
    PAGE.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
