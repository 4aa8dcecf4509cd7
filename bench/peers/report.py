"""The section of docs/performance.md about other grids and pools, from one line of peers.json.

Pure: ``section`` takes the line that ``run.py`` wrote and gives Markdown; standard library only.
"""

import statistics
from typing import Any

OURS = "gristmill"
Run = dict[str, Any]

HEAD = """## Beside other grids and pools

{provenance}

Each contender had two workers on this machine, its best documented setting and the machine for
itself; gristmill ran before, between and after them with everything on. The task gives back its
input. *Batched*: tuples, the fastest way that the peer documents, 1,000 items in a message where it
has such; *each*: one tracked task or future for an item (every item of gristmill's batches is
tracked too, nobody else's keep anything of one item); *latency*: submit to result, one at a time,
warm; *10 KiB*: in and out, each way. Medians of the runs, (lowest to highest). `x` is gristmill's
rate in its turns just before and after, over the contender's: above 1 gristmill is faster. CPU is
of all processes of a contender, until a moment after the last result. *Idle* is CPU while nothing
is to do. Made by `make bench-setup bench-peers`.
"""


def of(line: Run, contender: str, scenario: str, figure: str) -> list[float]:
    """A figure of each run of a contender in a scenario."""
    return [
        run[figure]
        for run in line["runs"]
        if run["what"] == contender and run.get("scenario") == scenario and figure in run
    ]


def times_ours(line: Run, contender: str, scenario: str) -> str:
    """Gristmill's rate in the turns beside the contender's, over the contender's."""
    theirs = of(line, contender, scenario, "rate")
    turns = {run["turn"] for run in line["runs"] if run["what"] == contender}
    beside = [
        run["rate"]
        for run in line["runs"]
        if run["what"] == OURS
        and run.get("scenario") == scenario
        and "rate" in run
        and {run["turn"] - 1, run["turn"] + 1} & turns
    ]
    if contender == OURS or not theirs or not beside:
        return ""
    return shown(statistics.median(beside) / statistics.median(theirs))


def shown(value: float) -> str:
    """Three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def middle(values: list[float], scale: float = 1.0, is_span: bool = False) -> str:
    """Median, and lowest to highest when asked for; a dash when there is none."""
    if not values:
        return "-"
    text = shown(statistics.median(values) * scale)
    if is_span and len(values) > 1:
        text += f" ({shown(min(values) * scale)} to {shown(max(values) * scale)})"
    return text


def speed_table(line: Run) -> list[str]:
    """Rates, CPU and latency of each contender."""
    rows = [
        "| contender | batched k/s | x | CPU us | each k/s | x | CPU us | p50 ms | p99 ms "
        "| 10 KiB MB/s | CPU us | idle CPU ms/s |",
        "|---" * 12 + "|",
    ]
    for name in line["contenders"]:
        cells = [name]
        for scenario in ("batched", "each"):
            cells.append(middle(of(line, name, scenario, "rate"), 1e-3, is_span=True))
            cells.append(times_ours(line, name, scenario))
            cells.append(middle(of(line, name, scenario, "cpu_us")))
        cells += [middle(of(line, name, "latency", figure)) for figure in ("p50_ms", "p99_ms")]
        cells += [middle(of(line, name, "payload", figure)) for figure in ("mb_s", "cpu_us")]
        cells.append(middle(of(line, name, "idle", "cpu_us_per_s"), 1e-3))
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def program_table(line: Run) -> list[str]:
    """Those who run a program for an item."""
    names = [name for name in line["contenders"] if of(line, name, "programs", "rate")]
    if not names:
        return []
    rows = ["", "A program (`/bin/true`) for each item; gristmill jails each of them:", ""]
    rows += ["| contender | programs/s | x | CPU us |", "|---|---|---|---|"]
    for name in names:
        rate = middle(of(line, name, "programs", "rate"), is_span=True)
        cpu = middle(of(line, name, "programs", "cpu_us"))
        rows.append(f"| {name} | {rate} | {times_ours(line, name, 'programs')} | {cpu} |")
    return rows


def reasons(line: Run) -> list[str]:
    """What was not measured, and why; the same reason once."""
    found: dict[tuple[str, str], list[str]] = {}
    for run in line["runs"]:
        if run.get("skipped"):
            scenarios = found.setdefault((run["what"], run["skipped"]), [])
            is_later = run["scenario"] == "all" and of(line, run["what"], "start", "seconds")
            scenario = "a later turn" if is_later else run["scenario"]
            if scenario not in scenarios:
                scenarios.append(scenario)
    rows = [
        f"- {name}, {', '.join(scenarios)}: {reason}" for (name, reason), scenarios in found.items()
    ]
    return ["", "Not measured:", "", *rows] if rows else []


def setting_table(line: Run) -> list[str]:
    """How each was started."""
    rows = ["", "How each was started:", "", "| contender | versions | setting |", "|---|---|---|"]
    for name, card in line["contenders"].items():
        versions = ", ".join(f"{key} {value}" for key, value in card.get("versions", {}).items())
        rows.append(f"| {name} | {versions or '-'} | {card['setting']} |")
    return rows


def quality_table(line: Run) -> list[str]:
    """What each does for an item beside running it."""
    qualities = list(next(iter(line["contenders"].values()))["does"])
    rows = [
        "",
        "What each does for an item beside running it; the link is to its documentation:",
        "",
    ]
    rows += [f"| contender | {' | '.join(qualities)} |", "|---" * (len(qualities) + 1) + "|"]
    for name, card in line["contenders"].items():
        link = card["docs"].removeprefix("docs/")
        cells = " | ".join(card["does"][quality] for quality in qualities)
        rows.append(f"| [{name}]({link}) | {cells} |")
    return rows


def provenance(line: Run) -> str:
    """Machine, date and commit of the run."""
    return (
        f"*{line['date'][:16].replace('T', ' ')} UTC, commit {line['commit']}, "
        f"{line['cores']} cores ({line['cpu']}), Python {line['python']}, Linux {line['kernel']}, "
        f"load {line['load_before']:.1f} before and {line['load_after']:.1f} after; "
        f"rounds {line['settings']['rounds']}.*"
    )


def section(line: Run) -> str:
    """Markdown of one run of ``bench/peers/run.py``."""
    rows = [HEAD.format(provenance=provenance(line))]
    rows += speed_table(line) + program_table(line) + reasons(line)
    rows += setting_table(line) + quality_table(line)
    return "\n".join(rows) + "\n"
