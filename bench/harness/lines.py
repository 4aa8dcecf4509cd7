"""One result line: reading it, medians, and words that follow from its figures."""

import json
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.measure import FORMAT

Line = dict[str, Any]
Section = tuple[list[str], dict[str, str]]  #: Markdown, and plots (SVG by name)
ROOT = pathlib.Path(__file__).parents[2]

#: what each process does for a subtask, for the sentences about what limits us
DOES = {
    "broker": "state, leases, signature checks and the journal",
    "client": "encoding inputs and decoding results",
    "jails": "the slot's loop, decoding and encoding inside the jail, and the jail itself",
    "worker": "the agent: leases, meters, signatures, and values between jail and wire",
    "ledger": "the bill",
    "store": "large values",
    "simulated workers": "answering without work",
}


def last(scenario: str, folder: pathlib.Path) -> Line | None:
    """The newest line of a scenario, or None when it has not run here, or only another release."""
    path = folder / f"{scenario}.json"
    if not path.exists():
        return None
    line: Line = json.loads(path.read_text().splitlines()[-1])
    return line if line.get("format") == FORMAT or scenario == "peers" else None


def runs_of(line: Line, what: str, **where: Any) -> list[dict[str, Any]]:
    """Runs of one contender; ``n=1_000`` of that size."""
    wanted = {"what": what, **where}.items()
    return [run for run in line["runs"] if all(run.get(k) == v for k, v in wanted)]


def figures(line: Line, what: str, name: str, **where: Any) -> list[float]:
    """A figure of each of these runs."""
    return [run[name] for run in runs_of(line, what, **where) if name in run]


def median(line: Line, what: str, name: str, **where: Any) -> float | None:
    """Its median; None when there is none."""
    found = figures(line, what, name, **where)
    return statistics.median(found) if found else None


def contenders(line: Line, *having: str) -> list[str]:
    """Names in the order in which they ran, of runs that have these figures."""
    runs = [run for run in line["runs"] if all(name in run for name in having)]
    return list(dict.fromkeys(run["what"] for run in runs))


def split(line: Line, what: str, **where: Any) -> dict[str, float]:
    """CPU us of a subtask by role: medians over the runs, largest first."""
    parts: dict[str, list[float]] = {}
    for run in runs_of(line, what, **where):
        for role, spent in run.get("cpu_us_by_role", {}).items():
            parts.setdefault(role, []).append(spent)
    found = {role: statistics.median(spent) for role, spent in parts.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def number(value: float | None, digits: int = 3) -> str:
    """Three digits that mean something, with thousands marked; a dash for nothing."""
    if value is None:
        return "-"
    if abs(value) >= 1_000:
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if "e" in text and abs(value) >= 1 else text


def middle(line: Line, what: str, name: str, scale: float = 1.0, **where: Any) -> str:
    """``median (lowest to highest)``."""
    found = [value * scale for value in figures(line, what, name, **where)]
    if not found:
        return "-"
    text = number(statistics.median(found))
    return f"{text} ({number(min(found))} to {number(max(found))})" if len(found) > 1 else text


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table; the first column is text, the rest stand to the right."""
    return [
        f"| {' | '.join(head)} |",
        "|---" + "|---:" * (len(head) - 1) + "|",
        *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows),
        "",
    ]


def picture(name: str, words: str) -> str:
    """A plot on the page."""
    return f"![{words}](plots/{name}.svg)\n"


def cpu_words(parts: Mapping[str, float], unit: str = "subtask") -> str:
    """A sentence that says where the CPU goes, from the split itself."""
    total = sum(parts.values())
    if not total:
        return ""
    shares = {role: 100 * spent / total for role, spent in list(parts.items())[:4]}
    named = [f"{role} {share:.0f} %" for role, share in shares.items() if share >= 0.5]
    most = next(iter(parts))
    return (
        f"Of the {number(total)} us of CPU that a {unit} takes, {', '.join(named)}. "
        f"The largest part is the {most}: {DOES.get(most, 'other processes')}."
    )


def is_shared(line: Line) -> bool:
    """Whether others used the machine when the run began; ours may have left it a little warm."""
    return float(line["load_before"]) > 1.5 * float(line["cores"])


def provenance(line: Line) -> str:
    """Machine, date, commit and settings of a run."""
    settings = ", ".join(
        f"{name} {' '.join(f'{v:,}' for v in value) if isinstance(value, list) else f'{value:,}'}"
        for name, value in line["settings"].items()
    )
    others = line["load_before"]
    shared = (
        f"\n**Its machine was busy with other things (load {others:.1f} before it began): read the "
        "ratios and the CPU only.**\n"
        if is_shared(line)
        else ""
    )
    return (
        f"*{line['date'][:16].replace('T', ' ')} UTC, commit {line['commit']}, "
        f"{line['cores']} cores ({line['cpu']}), Python {line['python']}, Linux {line['kernel']}, "
        f"load {line['load_before']:.1f} before and {line['load_after']:.1f} after; {settings}.*\n"
        f"{shared}"
    )
