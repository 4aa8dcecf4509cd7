"""One JSON line a scenario: machine, load, commit, versions, settings, every run, medians.

CPU is of every process below this one: of a living one from its own clock, exactly; of children
that were already reaped from /proc, at the kernel's 10 ms ticks, so that scenarios with many of
them must run long enough (a second of cpu) for the figure to mean something.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
FORMAT = 2  #: of a line; the report passes over lines of another, such as those of earlier releases
LOOKS_MAX = 10  #: at processes that come and go
TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")


def _parents() -> dict[int, list[tuple[int, int, int, str]]]:
    """By parent pid: (pid, own cpu, cpu of reaped children, command line); cpu in us."""
    found: dict[int, list[tuple[int, int, int, str]]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                text = file.read()
            with open(f"/proc/{name}/cmdline", "rb") as file:
                line = file.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        fields = text.rpartition(b")")[2].split()
        try:
            own = int(process_cpu_us(int(name)))
        except OSError:  # dead but not yet reaped: it may have reaped much itself
            own = (int(fields[11]) + int(fields[12])) * TICK_US
        reaped = (int(fields[13]) + int(fields[14])) * TICK_US
        found.setdefault(int(fields[1]), []).append((int(name), own, reaped, line))
    return found


def _role(line: str, parent: str) -> str:
    """Who a process is, by its command line and its parent's role."""
    if parent in ("worker", "jails"):
        return "worker" if "spawner.py" in line else "jails"
    for word in ("gristmill.broker", "gristmill.ledger", "gristmill.store", "gristmill.worker"):
        if word in line:
            return word.removeprefix("gristmill.")
    if "multiprocessing" in line:  # light.py
        return "simulated workers"
    return parent or "other"


def cpu_us_by_role(root: int | None = None) -> dict[str, int]:
    """CPU spent so far, by role, in us: this process is ``client``.

    Whatever a jail does is ``jails``. Processes are looked at one after another: one that ends
    after its parent was looked at would be missed, with all that it has reaped, so two looks have
    to find the same ones.
    """
    total, seen = _look(root)
    for _ in range(LOOKS_MAX):
        before = seen
        total, seen = _look(root)
        if seen == before:
            break
    return total


def _look(root: int | None) -> tuple[dict[str, int], set[int]]:
    """CPU by role, and whose it is."""
    parents = _parents()
    seen = set()
    total: dict[str, int] = {"client": int((time.process_time()) * 1_000_000)}
    queue = [(root or os.getpid(), "")]
    while queue:
        pid, parent = queue.pop()
        for child, own, reaped, line in parents.get(pid, []):
            role = _role(line, parent)
            total[role] = total.get(role, 0) + own
            heir = "jails" if role == "worker" else role  # jails that ended
            total[heir] = total.get(heir, 0) + reaped
            queue.append((child, role))
            seen.add(child)
    return total, seen


def process_cpu_us(pid: int) -> float:
    """CPU of one process so far, its ended threads included, to the nanosecond.

    The clock of another process has a number that is made from its pid (``man clock_getcpuclockid``
    and the kernel's ``posix-timers.h``): Python has no function for it. ``/proc`` counts in ticks.
    """
    return time.clock_gettime(~pid << 3 | 2) * 1e6


def memory_bytes(pid: int | str = "self") -> dict[str, int]:
    """Resident bytes of a process: ``rss``, ``pss`` and ``anonymous``."""
    found = {}
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("Rss", "Pss", "Anonymous"):
            found[name.lower()] = int(value.split()[0]) << 10
    return found


def own_cpu_us() -> float:
    """Of this process and its children that ended and were waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both) * 1e6


def card() -> dict[str, Any]:
    """The machine and the code that a figure belongs to."""
    # What a bench writes does not change what the next one measures.
    code = [".", ":!bench/results", ":!docs"]
    changed, described = (
        subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        for words in (["status", "--porcelain", "--", *code], ["describe", "--always"])
    )
    commit = f"{described}-dirty" if changed else described
    with open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("pyzmq", "msgspec", "apsw", "cloudpickle")
        },
        "load_before": os.getloadavg()[0],
    }


class Runs:
    """Collects runs of one scenario and prints its JSON line and a table for people.

    ``settings``: the options of the run; ``results`` and ``quick`` of ``arguments`` say where the
    line goes and are no part of it.
    """

    def __init__(self, scenario: str, settings: dict[str, Any]) -> None:
        is_quick = bool(settings.get("quick"))
        folder = settings.get("results") or (ROOT / "out" / "bench" if is_quick else RESULTS)
        self.path = pathlib.Path(folder) / f"{scenario}.json"
        self.line: dict[str, Any] = {
            "scenario": scenario,
            "format": FORMAT,
            **card(),
            "settings": {k: v for k, v in settings.items() if k not in ("results", "quick")},
            "runs": [],
        }

    def add(self, what: str, **figures: Any) -> None:
        """One run of one contender, in the order in which they ran."""
        self.line["runs"].append({"what": what, **figures})
        shown = "  ".join(
            f"{k}={v:,.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in figures.items()
        )
        print(f"  {what:28} {shown}", file=sys.stderr)

    def median(self, what: str, figure: str, **where: Any) -> float:
        """Median of one figure over the runs of one contender (``n=1_000``: of that size)."""
        wanted = {"what": what, **where}.items()
        values = [float(run[figure]) for run in self.line["runs"] if wanted <= run.items()]
        return statistics.median(values)

    def finish(self, **summary: Any) -> None:
        """Write the JSON line, in the place of the last one, and print the summary."""
        self.line["load_after"] = os.getloadavg()[0]
        self.line["summary"] = summary
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(rounded(self.line)) + "\n")
        print(
            json.dumps(
                {"scenario": self.line["scenario"], "commit": self.line["commit"], **summary}
            )
        )


def rounded(value: Any) -> Any:
    """The same with floats of at most six significant digits: nothing here is known better."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def arguments(
    description: str, quick: Mapping[str, Any] | None = None, **defaults: Any
) -> argparse.Namespace:
    """Options with their defaults: ``--n``, ``--rounds``; a default's type is the option's.

    A tuple of numbers is an option that takes several, ``--sizes 10000 100000``. ``--quick`` puts
    the tiny sizes of ``quick`` in the place of the defaults: it shows that the scenario works, its
    figures mean nothing, and its line goes to out/bench/ unless ``--results`` says otherwise.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it work at all")
    parser.add_argument("--results", default="", help="folder of the JSON line")
    for name, value in defaults.items():
        more: dict[str, Any] = {"type": type(value)}
        if isinstance(value, tuple):
            more = {"type": type(value[0]), "nargs": "+"}
        parser.add_argument(f"--{name.replace('_', '-')}", default=value, **more)
    is_quick = parser.parse_known_args()[0].quick
    parser.set_defaults(**(quick or {}) if is_quick else {})
    return parser.parse_args()


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what it returned)."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def percentile(sorted_values: list[float], share: float) -> float:
    """The value below which this share of the sorted values lies."""
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))]
