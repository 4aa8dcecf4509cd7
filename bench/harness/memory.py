"""Sections of docs/performance.md about memory: a queue with no worker, a map that does not end."""

import statistics
from typing import Any

from harness import plot
from harness.lines import (
    Line,
    Section,
    cpu_words,
    figures,
    middle,
    number,
    picture,
    provenance,
    runs_of,
    split,
    table,
)

SHOWN = ("client", "broker", "ledger", "store", "worker", "disk")
POINTS = 40  #: of a line in the plot


def backlog(line: Line) -> Section:
    """What a queue costs."""
    told, what = line["summary"], "gristmill queue"
    rows = [
        ("queued, k/s", middle(line, what, "rate", 1e-3)),
        ("CPU us each", middle(line, what, "cpu_us")),
        ("payload in the journal, bytes each", number(told["payload_bytes"])),
        ("of it in the broker's memory, bytes each", number(told["cached_bytes"])),
        ("broker's memory beyond that, bytes each", middle(line, what, "broker_beyond_bytes")),
        ("client's memory, bytes each", middle(line, what, "client_beyond_bytes")),
        ("first input read to first lease, ms", middle(line, "first dispatch", "ms")),
    ]
    text = ["## A queue with no worker\n", provenance(line), *table(("", "median (range)"), rows)]
    words = f"**What limits us now.** {cpu_words(split(line, what), 'queued subtask')}"
    first = figures(line, what, "broker_beyond_bytes")
    if len(first) > 1 and first[0] > 2 * statistics.median(first[1:]):
        words += (
            " The first queue costs the broker more memory than the next ones: most of it is "
            "taken once, not for each subtask."
        )
    return [*text, words + "\n"], {}


def endless(line: Line) -> Section:
    """Memory of a map that goes on, and of ten million subtasks."""
    (run,) = runs_of(line, "endless")
    streamed = next(one for one in line["runs"] if one["what"].endswith("streamed"))
    rows = [
        (name if name != "disk" else "broker's state on disk", number(run[f"{name}_mib"]),
         number(run[f"{name}_grown_mib"]))
        for name in SHOWN
    ]  # fmt: skip
    text = ["## Memory of a map that does not end\n", provenance(line)]
    text += table(("MiB", "at the end", "grown over the second half"), rows)
    samples: list[dict[str, Any]] = line["samples"][:: max(1, len(line["samples"]) // POINTS)]
    series = {name: [(one["at_s"], one[name]) for one in samples] for name in SHOWN}
    picture_of = plot.lines(
        f"Memory over {run['n'] / 1e6:.3g} M subtasks", "seconds", "MiB", series,
        is_log_x=False, is_log_y=False,
    )  # fmt: skip
    text.append(picture("endless", "memory over time"))
    grown = {name: run[f"{name}_grown_mib"] for name in SHOWN[:-1]}
    most = max(grown, key=lambda name: grown[name])
    text.append(
        f"Then {streamed['n'] / 1e6:.3g} M tuples, streamed: {number(streamed['rate'] / 1e3)} k/s, "
        f"{number(streamed['cpu_us'])} us of CPU each; the broker grew by at most "
        f"{number(streamed['broker_grown_mib'])} MiB, the client by "
        f"{number(streamed['client_grown_mib'])} MiB.\n"
    )
    text.append(
        f"**What limits us now.** In the second half of {run['n'] / 1e6:.3g} M subtasks the {most} "
        f"grew most, by {number(grown[most])} MiB: "
        f"{number(grown[most] * (1 << 20) / (run['n'] / 2))} bytes a subtask. The broker's "
        "state on disk, which inputs and results leave when they were read, grew by "
        f"{number(run['disk_grown_mib'] * (1 << 20) / (run['n'] / 2))} bytes a subtask.\n"
    )
    return text, {"endless": picture_of}
