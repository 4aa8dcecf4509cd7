"""The table at the top of the page: each figure, what it should reach, what was measured."""

from collections.abc import Callable, Mapping

from harness.lines import Line, number, table

Verdict = bool | None  #: reached, or not; None: not measured
Row = tuple[str, Verdict]  #: what was measured, in words
Lines = Mapping[str, Line]


def _all(*parts: Verdict) -> Verdict:
    """No when any is no, unmeasured when any is that."""
    if False in parts:
        return False
    return None if None in parts else True


def _map(lines: Lines, kind: str, cpu_max: float) -> Row:
    line = lines.get("throughput")
    if line is None:
        return "", None
    told = line["summary"]
    rate, cpu = told[f"{kind}_rate"], told[f"{kind}_cpu_us"]
    floor, pool = told[f"{kind}_of_floor"], told[f"{kind}_of_pool"]
    words = (
        f"{number(rate / 1e6)} M/s, {number(cpu)} us CPU, {number(floor)} of the floor, "
        f"{number(pool)} of the pool"
    )
    return words, floor >= 0.6 and cpu <= cpu_max and (
        kind != "tuples" or (rate >= 1e6 and pool > 1)
    )


def _submits(lines: Lines) -> Row:
    line = lines.get("throughput")
    if line is None:
        return "", None
    rate, cpu = line["summary"]["submit_rate"], line["summary"]["submit_cpu_us"]
    words = f"{number(rate / 1e3)} k/s, {number(cpu)} us CPU"
    return words, rate >= 60_000 and cpu <= 20


def _latency(lines: Lines) -> Row:
    line = lines.get("latency")
    if line is None:
        return "", None
    told = line["summary"]
    p50, p99 = told["batch_p50_over_floor"], told["batch_p99_over_floor"]
    bare = told["not_durable_p50_over_echo"]
    words = (
        f"p50 {number(told['batch_p50_ms'])} ms, {number(p50)} × the floor; p99 "
        f"{number(told['batch_p99_ms'])} ms, {number(p99)} ×; `durable=False` {number(bare)} × "
        f"the echo; tier `job` {number(told['job_p50_ms'])} ms"
    )
    return words, p50 <= 1.3 and p99 <= 3 and bare <= 1.6


def _backlog(lines: Lines) -> Row:
    line = lines.get("backlog")
    if line is None:
        return "", None
    told = line["summary"]
    broker, client = told["broker_beyond_bytes"], told["client_beyond_bytes"]
    words = (
        f"{number(told['rate'] / 1e6)} M/s; {number(broker)} B + {number(client)} B; first "
        f"dispatch {number(told['first_dispatch_p50_ms'])} ms (slowest "
        f"{number(told['first_dispatch_max_ms'])})"
    )
    is_quick = told["first_dispatch_p50_ms"] < 50
    return words, told["rate"] >= 1e6 and broker <= 24 and client <= 8 and is_quick


def _payload(lines: Lines) -> Row:
    line = lines.get("payload")
    if line is None or "both_10240_mb_s" not in line["summary"]:
        return "", None
    rate, floor, pool = (
        line["summary"][f"both_10240_{name}"] for name in ("mb_s", "of_floor", "of_pool")
    )
    words = f"{number(rate)} MB/s, {number(floor)} of the floor, {number(pool)} of the pool"
    return words, floor >= 0.5 and rate >= 70


def _jails(lines: Lines) -> Row:
    line = lines.get("jails")
    if line is None:
        return "", None
    told = line["summary"]
    job, strict = told["job_wall_over_fork"], told["strict_wall_over_nsjail"]
    words = (
        f"`job` {number(job)} × a fork (CPU {number(told['job_cpu_over_fork'])} ×), `strict` "
        f"{number(strict)} × nsjail (CPU {number(told['strict_cpu_over_nsjail'])} ×)"
    )
    return words, job <= 1.3 and strict <= 1.3


def _fanout(lines: Lines) -> Row:
    line = lines.get("fanout")
    if line is None:
        return "", None
    many = max(line["settings"]["workers"])
    ratios = {
        jobs: line["summary"][f"many_over_few_{jobs}_jobs"] for jobs in line["settings"]["jobs"]
    }
    words = ", ".join(f"{number(ratio)} × with {jobs:,} jobs" for jobs, ratio in ratios.items())
    is_reached = max(ratios.values()) <= 1.3
    return f"{many:,} workers: {words}", is_reached if many >= 10_000 else None


def _mixed(lines: Lines) -> Row:
    line = lines.get("mixed")
    if line is None:
        return "", None
    words, parts = [], []
    for tier in ("batch", "job"):
        names = [name.removesuffix("_over_bound") for name in line["summary"]
                 if name.startswith(f"{tier}_") and name.endswith("_over_bound")]  # fmt: skip
        bound = max(line["summary"][f"{name}_over_bound"] for name in names)
        best = max(line["summary"][f"{name}_over_best_pool"] for name in names)
        order = max(line["summary"].get(f"{name}_over_in_order", 0.0) for name in names)
        said = f"`{tier}` {number(bound)} × the bound, {number(best)} × the best pool"
        said += f", {number(order)} × in order" if order else ""
        if forked := max(line["summary"].get(f"{name}_over_forks", 0.0) for name in names):
            said += f", {number(forked)} × bare forks"
        words.append(said)
        parts.append(bound <= 1.10 and best <= 1.05)
    return "worst of four: " + "; ".join(words), all(parts)


def _worker_lost(lines: Lines) -> Row:
    line = lines.get("losses")
    if line is None:
        return "", None
    told, slots = line["summary"], line["settings"]["slots"]
    again = told["worker_killed_again"], told["worker_cut_off_again"]
    killed, cut = told["worker_killed_slowest_s"], told["worker_cut_off_slowest_s"]
    words = (
        f"killed: {again[0]:.0f} again of {slots} that ran, the slowest after {number(killed)} s; "
        f"cut off: {again[1]:.0f}, {number(cut)} s"
    )
    return words, again == (slots, slots) and killed < 1 and cut < 4


def _recovery(lines: Lines) -> Row:
    line, outage = lines.get("recovery"), lines.get("losses")
    if line is None or outage is None:
        return "", None
    start = line["summary"]["one_job_start_seconds"]
    silence = outage["summary"]["broker_killed_silence_s"]
    words = (
        f"clients wait {number(silence)} s for the next result, a restart at once; {number(start)} "
        "s from the broker's start to the first lease, 1 M on disk"
    )
    return words, silence < 3 and start <= 2


def _ledger(lines: Lines) -> Row:
    line = lines.get("ledger")
    if line is None:
        return "", None
    told = line["summary"]
    shares = [told[f"book_{batch}_of_floor"] for batch in (8_190, 100, 1)]
    words = " / ".join(f"{number(told[f'book_{batch}_rate'] / 1e3)} k" for batch in (8_190, 100, 1))
    of = " / ".join(number(share) for share in shares)
    return f"{words} transfers/s, {of} of the floor", min(shares) >= 0.6


def _overhead(lines: Lines) -> Row:
    line = lines.get("overhead")
    if line is None:
        return "", None
    told = line["summary"]
    together = told["together_cpu_percent"]
    words = (
        f"{number(together)} % of CPU: durability {number(told['both_cpu_percent'])} %, receipts "
        f"{number(told['receipts_cpu_percent'])} %, telemetry "
        f"{number(told['telemetry_cpu_percent'])} %, TCP with CURVE "
        f"{number(told['keys_cpu_percent'])} % (less than nothing is noise)"
    )
    return words, together <= 25


ROWS: dict[str, tuple[str, str, Callable[[Lines], Row]]] = {
    "T1": (
        "`map` of a no-op over 1 M tuples",
        "≥ 0.6 of the floor, ≤ 2 us CPU, ≥ 1 M/s, ahead of `mp.Pool.map`",
        lambda lines: _map(lines, "tuples", 2.0),
    ),
    "T2": ("the same over numbers", "≥ 0.6 of the floor, ≤ 1 us CPU",
           lambda lines: _map(lines, "ints", 1.0)),
    "T3": ("a future for each of 100,000 `submit()`", "≥ 60 k/s, ≤ 20 us CPU", _submits),
    "T4": (
        "submit to result, one at a time",
        "≤ 1.3 × the floor's p50, ≤ 3 × its p99; `durable=False` ≤ 1.6 × the echo",
        _latency,
    ),
    "T5": (
        "queue 1 M with no worker",
        "≥ 1 M/s; ≤ 24 B + ≤ 8 B beyond the payload; first dispatch < 50 ms",
        _backlog,
    ),
    "T6": ("10 KiB in and out, 10,000 times", "≥ 0.5 of the floor and ≥ 70 MB/s", _payload),
    "T7": ("a fork, a jail for each subtask", "≤ 1.3 × bare fork, ≤ 1.3 × bare nsjail", _jails),
    "T8": ("broker CPU of a lease, 10,000 workers", "≤ 1.3 × that of 2 workers", _fanout),
    "T9": (
        "makespan of mixed durations",
        "≤ 1.10 × the lower bound, ≤ 1.05 × the best of two pools",
        _mixed,
    ),
    "T10": (
        "a worker is killed: who runs again, and when",
        "exactly the cut subtasks, < 1 s (cut off: < 4 s)",
        _worker_lost,
    ),
    "T11": ("the broker is killed", "clients go on in < 3 s; 1 M recovered in ≤ 2 s", _recovery),
    "T12": ("ledger, batches of 8,190 / 100 / 1", "≥ 0.6 of raw `executemany`", _ledger),
    "T13": ("durability, receipts, telemetry, CURVE", "together ≤ 25 %", _overhead),
}  # fmt: skip


def targets(lines: Lines) -> str:
    """The filled table."""
    rows = []
    for name, (what, goal, measure) in ROWS.items():
        words, verdict = measure(lines)
        if verdict is None:
            reached = "unmeasured" if not words else "in part"
        else:
            reached = "**yes**" if verdict else "no"
        rows.append((name, what, goal, words or "-", reached))
    text = table(("", "figure", "target", "measured", "reached"), rows)
    return "\n".join([text[0], "|---" * 5 + "|", *text[2:]])
