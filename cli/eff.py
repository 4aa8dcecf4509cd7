"""``gristmill eff``: what a job asked for, what it used, and what asking less would have saved.

The margin rule: ask for the highest peak of any subtask and a quarter more, at least 64 MiB more,
rounded up to 50 MiB. Peaks are the kernel's, read outside the jail, and count what the jail itself
needs. A job in which a subtask ran out of memory gets no suggestion to ask for less.
"""

import argparse
import dataclasses
from collections.abc import Callable

from gristmill.cli import documents
from gristmill.cli.connection import connect, job_of
from gristmill.cli.output import Terminal
from gristmill.wire.client import JobStatus, JobTerms, SubtaskRow
from gristmill.wire.errors import EXIT_OK, RemoteError
from gristmill.wire.ids import format_job
from gristmill.wire.outcome import Outcome
from gristmill.wire.tariffs import CLASS_LABEL, STANDARD, tariff_of
from gristmill.wire.units import format_bytes, format_credits, format_ms

ROWS_MAX = 10_000  #: subtasks whose longest time is looked for
MIB = 1 << 20
MARGIN_PERCENT, MARGIN_BYTES_MIN, STEP_BYTES = 25, 64 * MIB, 50 * MIB
NEXT_BYTES_MIN = 8 * MIB  #: the least that a job may ask for


@dataclasses.dataclass(frozen=True)
class Found:
    """The figures; see ``documents.Efficiency``."""

    used_cpus_milli: int
    used_memory_bytes: int
    used_wall_ms: int
    used_cpu_ms: int
    memory_ucredits: int
    idle_ucredits: int
    suggested_bytes: int
    saved_ucredits: int


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Ask for its card, its terms and its subtasks; compare."""
    job = job_of(args.job)
    with connect(args.address) as client:
        status, terms = client.status(job), client.terms(job)
        rows = client.subtasks(job, limit=ROWS_MAX)
    name = format_job(job)
    if not status.wall_us:
        raise RemoteError(
            "INVALID_SPEC", f"{name} has used nothing yet", f"gristmill status {name}"
        )
    found = compare(status, terms, rows)
    limits = terms.spec.limits
    if terminal.is_json:
        document = documents.Efficiency(
            name, job, status.done + status.failed, limits.cpus_milli, found.used_cpus_milli,
            limits.memory_bytes, found.used_memory_bytes, limits.wall_ms, found.used_wall_ms,
            limits.cpu_ms, found.used_cpu_ms, status.spent_ucredits, found.memory_ucredits,
            found.idle_ucredits, found.suggested_bytes, found.saved_ucredits,
            any(row.is_estimated for row in rows),
        )  # fmt: skip
        terminal.document(documents.encode(document))
    else:
        _show(name, status, terms, found, terminal)
    return EXIT_OK


def compare(status: JobStatus, terms: JobTerms, rows: list[SubtaskRow]) -> Found:
    """What was used of what was asked, and what the difference cost."""
    limits = terms.spec.limits
    tariff = tariff_of(terms.tariffs, terms.spec.labels.get(CLASS_LABEL, STANDARD))
    memory = tariff.price(0, 0, status.wall_us * limits.memory_bytes)
    memory = min(memory, status.spent_ucredits)
    peak = min(status.peak_kib << 10, limits.memory_bytes)
    suggested = 0
    had_no_oom = all(word != Outcome.OOM.word for word, *_ in status.errors)
    if peak and had_no_oom:
        suggested = suggest(peak)
        suggested = suggested if suggested < limits.memory_bytes else 0
    less = limits.memory_bytes - suggested if suggested else 0
    cpu_us, wall_us = sum(row.cpu_us for row in rows), sum(row.wall_us for row in rows)
    if not wall_us:
        cpu_us, wall_us = status.cpu_us, status.wall_us
    return Found(
        used_cpus_milli=round(1000 * cpu_us / wall_us),
        used_memory_bytes=peak,
        used_wall_ms=-(-max((row.wall_us for row in rows), default=0) // 1000),
        used_cpu_ms=-(-max((row.cpu_us for row in rows), default=0) // 1000),
        memory_ucredits=memory,
        idle_ucredits=memory * (limits.memory_bytes - peak) // limits.memory_bytes if peak else 0,
        suggested_bytes=suggested,
        saved_ucredits=memory * less // limits.memory_bytes,
    )


def suggest(peak_bytes: int) -> int:
    """What to ask for by the margin rule.

    >>> suggest(700 * MIB) // MIB, suggest(10 * MIB) // MIB
    (900, 100)
    """
    margin = max(peak_bytes * MARGIN_PERCENT // 100, MARGIN_BYTES_MIN)
    return max(NEXT_BYTES_MIN, -(-(peak_bytes + margin) // STEP_BYTES) * STEP_BYTES)


def _show(name: str, status: JobStatus, terms: JobTerms, found: Found, terminal: Terminal) -> None:
    limits, spent = terms.spec.limits, status.spent_ucredits
    rows = [
        _row("memory (peak)", limits.memory_bytes, found.used_memory_bytes, format_bytes),
        _row("cpus", limits.cpus_milli, found.used_cpus_milli, lambda milli: f"{milli / 1000:g}"),
        _row("wall (longest)", limits.wall_ms, found.used_wall_ms, format_ms),
        _row("cpu (longest)", limits.cpu_ms, found.used_cpu_ms, format_ms),
    ]
    head = ["", "ASKED", "USED", "SHARE"]
    terminal.table(head, rows, right=head[1:])
    terminal.print(
        f"{format_credits(spent)} credits, of which {format_credits(found.memory_ucredits)} for"
        f" memory, {format_credits(found.idle_ucredits)} of it idle"
    )
    if found.suggested_bytes:
        share = 100 * found.saved_ucredits // max(1, spent)
        terminal.print(
            f"ask {found.suggested_bytes // MIB}M: it would have saved"
            f" {format_credits(found.saved_ucredits)} of {format_credits(spent)} credits, {share} %"
        )
    elif any(word == Outcome.OOM.word for word, *_ in status.errors):
        terminal.print(f"subtasks ran out of memory: gristmill status {name} says by how much")
    elif not found.used_memory_bytes:
        terminal.print("its workers could not read peaks of memory: there is nothing to suggest")
    else:
        terminal.print("its memory fits: nothing to suggest")


def _row(what: str, asked: int, used: int, told: Callable[[int], str]) -> list[str]:
    if not asked:
        return [what, "", told(used), ""]
    return [what, told(asked), told(used) if used else "", f"{100 * used / asked:.0f} %"]
