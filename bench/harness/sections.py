"""The sections of docs/performance.md, one a question: tables, plots, and what limits us now.

Each takes the question's line and gives Markdown and its plots (SVG by name). What is said about
limits follows from the figures: shares of CPU, ratios, the largest part.
"""

import statistics
from collections.abc import Callable

from gristmill.wire.limits import PROBE_MS
from harness import plot
from harness.lines import (
    Line,
    Section,
    contenders,
    cpu_words,
    figures,
    is_shared,
    median,
    middle,
    number,
    picture,
    provenance,
    split,
    table,
)
from harness.memory import backlog, endless

LISTED_MAX = 1_000_000


def split_table(line: Line, wanted: dict[str, dict[str, float]]) -> list[str]:
    """CPU us by role."""
    roles = list(dict.fromkeys(role for parts in wanted.values() for role in parts))
    rows = [
        (what, number(sum(parts.values())), *(number(parts.get(role, 0.0)) for role in roles))
        for what, parts in wanted.items()
    ]
    return table(("CPU us of a subtask", "all", *roles), rows)


# ---------------------------------------------------------------- throughput


def throughput(line: Line) -> Section:
    """No-op subtasks a second by size and tier."""
    sizes = line["settings"]["sizes"]
    top = max(sizes)
    text, plots = ["## Throughput of no-op subtasks\n", provenance(line)], {}
    for kind, words in (("tuples", "tuples of an int and a short text"), ("ints", "ints")):
        names = [f"floor {kind}", f"mp.Pool.map {kind}", f"gristmill batch {kind}",
                 f"gristmill batch {kind}, streamed", f"gristmill trusted {kind}"]  # fmt: skip
        rows = []
        for what in names:
            for size in sizes:
                if not figures(line, what, "rate", n=size):
                    continue
                floor = median(line, f"floor {kind}", "rate", n=min(size, LISTED_MAX))
                rate = median(line, what, "rate", n=size)
                share = number(rate / floor) if rate and floor else "-"
                rows.append((what, f"{size:,}", middle(line, what, "rate", 1e-3, n=size), share,
                             number(median(line, what, "cpu_us", n=size))))  # fmt: skip
        head = ("contender", "subtasks", "k/s, median (range)", "of the floor", "CPU us each")
        text += [f"### {words[0].upper()}{words[1:]}\n", *table(head, rows)]
        series = {
            what.removesuffix(f" {kind}"): [
                (size, value) for size in sizes if (value := median(line, what, "rate", n=size))
            ]
            for what in names
        }
        series = {what: points for what, points in series.items() if points}
        if len(sizes) > 1:
            plots[f"throughput-{kind}"] = plot.lines(
                f"No-op subtasks a second: {words}", "subtasks in the map", "subtasks / s", series,
                goal=("1 M/s", 1e6) if kind == "tuples" else None,
            )  # fmt: skip
            text.append(picture(f"throughput-{kind}", f"subtasks a second by size, {words}"))
    text += _streamed(line)
    text += _submits(line)
    parts = {
        what.removeprefix("gristmill "): split(line, what, **({"n": top} if is_sized else {}))
        for what, is_sized in (
            ("gristmill batch tuples", True), ("gristmill batch ints", True),
            ("gristmill trusted tuples", True), ("gristmill submit", False),
            ("gristmill job ints", False), ("gristmill strict ints", False),
        )
        if split(line, what, **({"n": top} if is_sized else {}))
    }  # fmt: skip
    text += ["### Where the CPU goes\n", *split_table(line, parts)]
    maps = {what: cpu for what, cpu in parts.items() if what.split()[0] in ("batch", "trusted")}
    if maps:
        plots["throughput-cpu"] = plot.stacked(
            f"CPU of a subtask by process, {plot.short(top)} subtasks", "CPU us of a subtask", maps
        )
        text.append(picture("throughput-cpu", "CPU of a subtask by process"))
    if cpu := parts.get("batch tuples"):
        text.append(f"**What limits us now.** {cpu_words(cpu)} {_busy(line, top)}\n")
    if cpu := parts.get("submit"):
        text.append(f"For single `submit()` calls: {cpu_words(cpu, 'call')}\n")
    return text, plots


def _busy(line: Line, top: int) -> str:
    """How much of the machine a map keeps busy."""
    rate = median(line, "gristmill batch tuples", "rate", n=top)
    cpu = median(line, "gristmill batch tuples", "cpu_us", n=top)
    if not rate or not cpu:
        return ""
    cores = rate * cpu / 1e6
    if cores > 0.85 * line["cores"]:
        return (
            f"{number(cores)} of {line['cores']} cores are busy with it: only less CPU a subtask "
            "makes it faster."
        )
    if is_shared(line):
        return ""  # whoever waits here waits for others
    return (
        f"Only {number(cores)} of {line['cores']} cores are busy: the rest of the time one process "
        "waits for another."
    )


def _streamed(line: Line) -> list[str]:
    rows = [
        (what.removeprefix("gristmill "), f"{run['n']:,}", number(run["broker_grown_mib"]),
         number(run["client_grown_mib"]))
        for what in contenders(line, "broker_grown_mib")
        for run in line["runs"] if run["what"] == what
    ]  # fmt: skip
    if not rows:
        return []
    words = "Streamed: inputs from a generator, results compared as they come.\n"
    return [words, *table(("", "subtasks", "broker grew by MiB", "client grew by MiB"), rows)]


def _submits(line: Line) -> list[str]:
    rows = [
        (what, middle(line, what, "rate", 1e-3), number(median(line, what, "cpu_us")))
        for what in ("futures alone", "mp.Pool.apply_async", "gristmill submit",
                     "gristmill job ints", "gristmill strict ints")
    ]  # fmt: skip
    head = ("contender", "k/s, median (range)", "CPU us each")
    return ["### One future, one process, one jail each\n", *table(head, rows)]


# ---------------------------------------------------------------- latency


def latency(line: Line) -> Section:
    """Submit to result, one at a time."""
    names = contenders(line, "p50_ms")
    rows = [
        (what, *(middle(line, what, figure) for figure in ("p50_ms", "p90_ms", "p99_ms")))
        for what in names
    ]
    text = ["## Submit to result, one at a time\n", provenance(line)]
    text += table(("contender", "p50 ms", "p90 ms", "p99 ms"), rows)
    groups = {
        what.replace("gristmill ", ""): {
            words: value
            for words, figure in (("p50", "p50_ms"), ("p99", "p99_ms"))
            if (value := median(line, what, figure)) is not None
        }
        for what in names
    }
    svg = plot.bars("Submit to result, one at a time", "ms", groups, is_log=True)
    text.append(picture("latency", "latency by contender"))
    told = line["summary"]
    waits = 2 * told["fsync_p50_ms"]
    over = told["batch_p50_ms"] - told["chain_p50_ms"] - waits
    saved = told["batch_p50_ms"] - told["batch_durable_False_p50_ms"]
    share = f"{100 * over / told['batch_p50_ms']:.0f}"
    words = (
        f"**What limits us now.** Of the median of {number(told['batch_p50_ms'])} ms, "
        f"{number(told['chain_p50_ms'])} ms is the bare way through as many processes and "
        f"{number(waits)} ms are two syncs of this disk; the other {number(over)} ms ({share} %) "
        "are what client, broker, agent and slot do for one subtask that has nobody to share a "
        "message, a lease, a signature and a commit with."
    )
    if saved > 0.1 * told["batch_p50_ms"]:
        words += f" A result that need not be durable saves {number(saved)} ms."
    else:
        words += " A result that need not be durable saves next to nothing of it."
    beside = told.get("batch_at_load_another_job_p50_ms")
    if beside and beside > 10 * told["batch_p50_ms"]:
        words += (
            f" Beside another client's job the median is {number(beside)} ms: a slot's jail is one "
            "job's alone, so a slot has to change jails for each call."
        )
    return [*text, words + "\n"], {"latency": svg}


# ---------------------------------------------------------------- payload


def bytes_words(size: int) -> str:
    """10240 is 10 KiB."""
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def payload(line: Line) -> Section:
    """MB/s by size and direction."""
    sizes, names = line["settings"]["sizes"], ("floor", "mp.Pool", "gristmill")
    text = ["## Values from 1 KiB to 100 MiB\n", provenance(line)]
    rows = []
    for size in sizes:
        for mode in ("both", "in", "out"):
            rate = {what: median(line, what, "mb_s", size=size, mode=mode) for what in names}
            ours, floor = rate["gristmill"], rate["floor"]
            share = number(ours / floor) if ours and floor else "-"
            cpu = median(line, "gristmill", "cpu_us", size=size, mode=mode)
            each = number(cpu / (size / 1e6) / 1e3) if cpu is not None else "-"
            rows.append((bytes_words(size), mode, *(number(rate[what]) for what in names), share,
                         each))  # fmt: skip
    head = ("value", "way", *(f"{what} MB/s" for what in names), "of the floor", "CPU ms per MB")
    text += table(head, rows)
    plots = {}
    if len(sizes) > 1:
        series = {
            what: [
                (float(size), rate) for size in sizes
                if (rate := median(line, what, "mb_s", size=size, mode="both"))
            ]
            for what in names
        }  # fmt: skip
        plots["payload"] = plot.lines(
            "Values in and out", "size of a value", "MB/s each way", series,
            goal=("70 MB/s (10 KiB)", 70.0), x_name=lambda size: bytes_words(int(size)),
        )  # fmt: skip
        text.append(picture("payload", "MB/s by size of a value"))
    words = []
    for size in (10 << 10, 1 << 20, 100 << 20):
        if cpu := split(line, "gristmill", size=size, mode="both"):
            words.append(f"At {bytes_words(size)}: {cpu_words(cpu)}")
    return [*text, f"**What limits us now.** {' '.join(words)}\n"], plots


# ---------------------------------------------------------------- fanout


def fanout(line: Line) -> Section:
    """Broker CPU of a lease by workers and jobs; real slots."""
    settings = line["settings"]
    text = ["## Few and many workers\n", provenance(line)]
    rows = []
    for workers in settings["workers"]:
        idle = f"{workers} workers idle"
        cells = [f"{workers:,}"]
        for jobs in settings["jobs"]:
            cells.append(middle(line, f"{workers} workers, {jobs} jobs", "cpu_us"))
        percent, pss = median(line, idle, "cpu_percent"), median(line, idle, "pss_bytes")
        rows.append((*cells, number(percent), number((pss or 0) / (1 << 20))))
    costs = (f"{jobs:,} jobs: CPU us of a lease" for jobs in settings["jobs"])
    head = ("simulated workers", *costs, "idle broker, % of a core", "its memory, MiB")  # fmt: skip
    text += table(head, rows)
    series = {
        f"{jobs:,} job{'s' * (jobs > 1)}": [
            (float(workers), cost) for workers in settings["workers"]
            if (cost := median(line, f"{workers} workers, {jobs} jobs", "cpu_us"))
        ]
        for jobs in settings["jobs"]
    }  # fmt: skip
    plots = {}
    if len(settings["workers"]) > 1:
        plots["fanout"] = plot.lines(
            "Broker CPU of a lease of one subtask", "simulated workers", "CPU us of a lease",
            series, is_log_y=False,
        )  # fmt: skip
        text.append(picture("fanout", "broker CPU of a lease by workers"))
    many = settings["slots"]
    real = [
        (what, middle(line, what, "rate", 1e-3), number(median(line, what, "cpu_us")))
        for what in ("gristmill 2 slots", f"gristmill {many} slots", "mp.Pool 2 processes",
                     f"mp.Pool {many} processes")
    ]  # fmt: skip
    text += ["Real slots with jails, no-op ints:\n"]
    text += table(("", "k/s, median (range)", "CPU us each"), real)
    told = line["summary"]
    ratio, pool = told[f"gristmill_rate_{many}_over_2"], told[f"pool_rate_{many}_over_2"]
    worst = max((told[f"many_over_few_{jobs}_jobs"], jobs) for jobs in settings["jobs"])
    words = (
        f"**What limits us now.** {max(settings['workers']):,} workers cost {number(worst[0])} × "
        f"the broker CPU a lease of {min(settings['workers'])} at worst ({worst[1]:,} jobs). "
        f"{many} slots on these {line['cores']} cores do {number(ratio)} × the rate of 2 "
        f"(`multiprocessing.Pool`: {number(pool)} ×)."
    )
    few, lots = split(line, "gristmill 2 slots"), split(line, f"gristmill {many} slots")
    grown = {role: lots[role] - few.get(role, 0.0) for role in lots}
    if grown and (most := max(grown, key=lambda role: grown[role])) and grown[most] > 0:
        words += f" What grows most with slots is the {most}: {number(grown[most])} us a subtask."
    return [*text, words + "\n"], plots


# ---------------------------------------------------------------- mixed


def mixed(line: Line) -> Section:
    """Makespans over the bound."""
    text = ["## Mixed and skewed durations\n", provenance(line)]
    rows, plots = [], {}
    shapes = list(dict.fromkeys(run["shape"] for run in line["runs"]))
    worst: tuple[float, str] = (0.0, "")
    for tier in ("batch", "job"):
        groups: dict[str, dict[str, float]] = {}
        for shape in shapes:
            where = {"shape": shape, "tier": tier}
            names = {"gristmill": f"gristmill {tier}", "static chunks": "static chunks",
                     "chunks of one": "chunks of one", "bare forks": "bare forks"}  # fmt: skip
            over = {
                name: value
                for name, what in names.items()
                if (value := median(line, what, "over_bound", **where))
            }
            if "gristmill" not in over:
                continue
            groups[shape] = over
            worst = max(worst, (over["gristmill"], f"{shape}, tier `{tier}`"))
            first = median(line, f"gristmill {tier}", "first_s", **where)
            others = median(line, f"gristmill {tier}", "others_over_bound", **where)
            in_order = median(line, "static chunks", "in_order_over_bound", **where)
            rows.append((f"{shape}, `{tier}`", *(number(over.get(name)) for name in names),
                         number(in_order), number(first), number(others)))  # fmt: skip
        if groups:
            plots[f"mixed-{tier}"] = plot.bars(
                f"Makespan over its lower bound, tier {tier}", "× the lower bound", groups,
                goal=("1.1: to reach", 1.1),
            )  # fmt: skip
    head = ("durations", "gristmill", "static chunks", "chunks of one", "bare forks", "in order",
            "our first result after s", "the others, × their bound")  # fmt: skip
    text += table(head, rows)
    text += [picture(name, f"makespan over its bound, {name}") for name in plots]
    firsts = [run["first_s"] for run in line["runs"] if run["what"].startswith("gristmill")]
    spans = [run["bound_s"] for run in line["runs"] if run["what"].startswith("gristmill")]
    start = statistics.median(firsts) / statistics.median(spans)
    words = (
        f"**What limits us now.** The worst is {number(worst[0])} × the bound ({worst[1]}). A map "
        "is a new job with jails of its own: its first result comes after "
        f"{number(statistics.median(firsts))} s in the median, {number(100 * start, 2)} % of a "
        "median bound; the pools' processes were warm. *In order* is the list when each free slot "
        "takes the next and nothing else takes any time: who does not know the durations does "
        "better only by luck. *Bare forks* are as many processes that fork for each subtask, as "
        "tier `job` does, and do nothing else."
    )
    return [*text, words + "\n"], plots


# ---------------------------------------------------------------- jails


def jails(line: Line) -> Section:
    """What isolation costs."""
    text = ["## Isolation: a fork, a jail for each subtask\n", provenance(line)]
    names = contenders(line, "cpu_us")
    rows, groups = [], {}
    for what in names:
        wall = median(line, what, "p50_ms") or (median(line, what, "wall_us") or 0) / 1e3
        cpu = (median(line, what, "cpu_us") or 0.0) / 1e3
        slow = sum(run.get("slow", 0) for run in line["runs"] if run["what"] == what)
        rows.append((what, number(wall), number(cpu), slow or ""))
        groups[what] = {"wall": wall, "CPU": cpu}
    text += table(("one after another", "wall ms each", "CPU ms each", "slower than 0.9 s"), rows)
    svg = plot.bars("One subtask in isolation, one slot", "ms each", groups, is_log=True)
    text.append(picture("jails", "wall and CPU of isolation"))
    words = [
        f"Tier `job`: {cpu_words(split(line, 'gristmill job'))}",
        f"Tier `strict`: {cpu_words(split(line, 'gristmill strict'))}",
    ]
    return [*text, f"**What limits us now.** {' '.join(words)}\n"], {"jails": svg}


# ---------------------------------------------------------------- ledger


def ledger(line: Line) -> Section:
    """Transfers a second."""
    text = ["## The ledger\n", provenance(line)]
    rows, groups = [], {}
    for batch in (8_190, 100, 1):
        rates = {what: median(line, f"{what} {batch}", "rate") for what in
                 ("rows", "book", "process")}  # fmt: skip
        cells = [middle(line, f"{what} {batch}", "rate", 1e-3) for what in rates]
        share = line["summary"][f"book_{batch}_of_floor"]
        cpu = [number(median(line, f"{what} {batch}", "cpu_us")) for what in ("rows", "book")]
        rows.append((f"{batch:,}", *cells, number(share), *cpu))
        groups[f"batch {batch:,}"] = {what: rate for what, rate in rates.items() if rate}
    head = ("batch", "rows k/s", "book k/s", "process k/s", "book of rows", "rows CPU us",
            "book CPU us")  # fmt: skip
    text += table(head, rows)
    svg = plot.bars("Transfers a second", "transfers / s", groups, is_log=True)
    text.append(picture("ledger", "transfers a second by batch"))
    raw, ours = median(line, "rows 8190", "cpu_us"), median(line, "book 8190", "cpu_us")
    words = "**What limits us now.** "
    if raw and ours:
        words += (
            f"At large batches a transfer takes {number(ours)} us of CPU, {number(raw)} us of "
            f"which SQLite takes for the rows; the other {number(ours - raw)} us are decisions, "
            "checksums and sums in Python. "
        )
    rate = line["summary"]["process_100_rate"]
    words += (
        f"A result of a thousand subtasks is two transfers: {number(rate / 1e3)} k/s are bills of "
        f"{number(rate * 500 / 1e6)} M subtasks a second."
    )
    return [*text, words + "\n"], {"ledger": svg}


# ---------------------------------------------------------------- blobs


def blobs(line: Line) -> Section:
    """A put and a get of the store's files."""
    text = ["## The store's files\n", provenance(line)]
    sizes = list(dict.fromkeys(run["size"] for run in line["runs"]))
    rows = [
        (what, *(
            f"{middle(line, what, 'cpu_us', 1e-3, size=size)} / "
            f"{number((median(line, what, 'wall_us', size=size) or 0) / 1e3)}"
            for size in sizes
        ))
        for what in contenders(line, "cpu_us")
    ]  # fmt: skip
    text.append("CPU (lowest to highest) / wall in ms; `obstore, synced` does what an "
                "acknowledgement needs, but for the row that says whose a blob is.\n")  # fmt: skip
    text += table(["", *(f"{size >> 10:,} KiB" for size in sizes)], rows)
    words = "**What limits us now.** "
    ratios = [line["summary"][f"get_of_files_{size}"] for size in sizes]
    words += (
        f"A get by obstore takes {number(min(ratios))} to {number(max(ratios))} times the CPU of "
        "ours: files stay ours ([ADR 4](adr/0004-blobs-are-plain-files-or-s3-objects.md))."
    )
    return [*text, words + "\n"], {}


# ---------------------------------------------------------------- recovery


RECOVERIES = {
    "one_job": "one job of all of them, in parcels of 1,000",
    "many_jobs": "jobs of 1,000",
    "half_done": "one job, results of half of it there",
    "single_subtasks": "jobs of one subtask, a hundredth as many",
    "beside_finished": "one job, beside a tenth as many finished jobs",
}


def recovery(line: Line) -> Section:
    """From the start of a killed broker's process to its first dispatch."""
    text = ["## Restart of a broker with unfinished subtasks on disk\n", provenance(line)]
    text.append("Process start to the first lease, and the replay alone; medians.\n")
    rows = []
    for shape, words in RECOVERIES.items():
        start = [number(median(line, f"{shape} start", name)) for name in
                 ("seconds", "cpu_s", "peak_mib")]  # fmt: skip
        alone = [number(median(line, f"{shape} recover", name)) for name in ("seconds", "cpu_s")]
        rows.append((words, *start, *alone))
    head = ("on disk", "first lease s", "CPU s", "peak MiB", "replay s", "CPU s")
    text += table(head, rows)
    groups = {
        words: {
            name: value
            for name, what in (("process start to first lease", "start"), ("replay", "recover"))
            if (value := median(line, f"{shape} {what}", "seconds"))
        }
        for shape, words in RECOVERIES.items()
    }
    svg = plot.bars("Restart with 1 M subtasks on disk", "s", groups, goal=("2 s", 2.0))
    text.append(picture("recovery", "seconds to the first lease"))
    start_s, replay = (median(line, f"one_job {what}", "seconds") for what in ("start", "recover"))
    words = "**What limits us now.** "
    if start_s and replay:
        words += (
            f"Of {number(start_s)} s to the first lease of one large job, the replay is "
            f"{100 * replay / start_s:.0f} %; the rest is the interpreter, its imports and the "
            "worker's way back. "
        )
    single = median(line, "single_subtasks recover", "cpu_s")
    if single:
        jobs = line["settings"]["n"] / 100
        words += f"Each unfinished job costs {number(1e6 * single / jobs)} us of CPU to read."
    return [*text, words + "\n"], {"recovery": svg}


# ---------------------------------------------------------------- overhead


def overhead(line: Line) -> Section:
    """Zero-work workers, and what each part adds."""
    settings, told = line["settings"], line["summary"]
    text = ["## The runtime's own cost\n", provenance(line)]
    rows = []
    for workers in settings["workers"]:
        for size in settings["sizes"]:
            where = {"n": size}
            name = f"{workers} zero-work workers"
            rows.append((workers, f"{size:,}", middle(line, name, "wall_us", **where),
                         middle(line, name, "runtime_cpu_us", **where)))  # fmt: skip
    head = ("zero-work workers", "subtasks", "wall us each", "CPU us of broker, client, ledger")
    text += table(head, rows)
    series = {
        f"{workers} worker{'s' * (workers > 1)}": [
            (float(size), cost) for size in settings["sizes"]
            if (cost := median(line, f"{workers} zero-work workers", "wall_us", n=size))
        ]
        for workers in settings["workers"]
    }  # fmt: skip
    plots = {}
    if len(settings["sizes"]) > 1:
        plots["overhead"] = plot.lines(
            "Runtime alone: workers that do nothing", "subtasks in the map", "wall us of a subtask",
            series,
        )  # fmt: skip
        text.append(picture("overhead", "runtime's cost of a subtask"))
    text.append("What each part of the product adds, batches of tuples, real jails:\n")
    names = (
        "everything on", "results not durable", "state in memory", "both", "no jail",
        "keys, over TCP",
    )  # fmt: skip
    text += table(
        ("", "k/s, median (range)", "CPU us each"),
        [(what, middle(line, what, "rate", 1e-3), middle(line, what, "cpu_us")) for what in names],
    )
    text += table(
        ("alone", "CPU us of a subtask", "% of the rest"),
        [
            (part, number(told[f"{part}_cpu_us"]), number(told[f"{part}_cpu_percent"]))
            for part in ("receipts", "telemetry")
        ],
    )
    top = max(settings["sizes"])
    one = split(line, f"{settings['workers'][0]} zero-work workers", n=top)
    one.pop("simulated workers", None)
    words = f"**What limits us now.** {cpu_words(one)}"
    many = settings["workers"][-1]
    walls = [median(line, f"{w} zero-work workers", "wall_us", n=top) for w in
             (settings["workers"][0], many)]  # fmt: skip
    if walls[0] and walls[1] and walls[1] > 1.5 * walls[0]:
        words += (
            f" With {many} workers a subtask takes {number(walls[1] / walls[0])} × the time: "
            "leases of a closed job are shared out by the number of slots, so they are smaller."
        )
    return [*text, words + "\n"], plots


# ---------------------------------------------------------------- losses


def losses(line: Line) -> Section:
    """What an outage costs."""
    rows = [
        (what, middle(line, what, "again"), middle(line, what, "first_again_s"),
         middle(line, what, "last_again_s"), middle(line, what, "silence_s"))
        for what in contenders(line, "silence_s")
    ]  # fmt: skip
    head = ("", "ran again", "first began after s", "last began after s",
            "client's longest wait for a result, s")  # fmt: skip
    slots, told = line["settings"]["slots"], line["summary"]
    words = (
        f"**What limits us now.** A worker of {slots} slots had {slots} subtasks running; "
        f"{told['worker_killed_again']:.0f} ran again when it was killed, "
        f"{told['worker_cut_off_again']:.0f} when it was cut off, "
        f"{told['broker_killed_again']:.0f} when the broker was killed (medians). A killed worker "
        "is missed when the next message for it finds no connection, and is sent one after "
        f"{PROBE_MS / 1000:g} s of silence; one that is cut off, when its time to live is over. A "
        "killed broker was started again at once; the client's wait is its start, its workers' way "
        "back and the next subtasks.\n"
    )
    return ["## Outages\n", provenance(line), *table(head, rows), words], {}


SECTIONS: dict[str, Callable[[Line], Section]] = {
    "throughput": throughput,
    "latency": latency,
    "backlog": backlog,
    "endless": endless,
    "payload": payload,
    "fanout": fanout,
    "mixed": mixed,
    "jails": jails,
    "ledger": ledger,
    "blobs": blobs,
    "recovery": recovery,
    "losses": losses,
    "overhead": overhead,
}
