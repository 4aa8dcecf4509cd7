"""What a job will cost, as an interval, before it is submitted.

The prediction is for the sum of ``n`` subtasks of which ``m`` like them were measured. With the
mean and the deviation of the measured costs, their sum is ``n * mean``, give or take
``t * deviation * n * sqrt(1 / m + 1 / n)``: the first term is what ``m`` measurements leave open of
the mean, the second what ``n`` subtasks differ by themselves. ``t`` is not taken from a table but
from the measurements (the bootstrap-t: resample them, see how far a resample's mean is from theirs
in its own deviations), and is never below Student's, so that costs with a tail to the right get an
interval that is longer to the right. Low and high are the 5th and the 95th percentile: nine sums of
ten lie between them, if the measured subtasks are like the others. They are not where inputs are
sorted by size (a sample is the *first* ones), and a tail that nobody has met yet is in no interval.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from gristmill.wire.errors import RemoteError
from gristmill.wire.receipts import work_of
from gristmill.wire.spec import ZERO_TARIFF, JobSpec, Tariff, parse_quorum
from gristmill.wire.tariffs import CLASS_LABEL, class_of, tariff_of
from gristmill.wire.units import UCREDITS_PER_CREDIT, format_credits

if TYPE_CHECKING:
    from gristmill.client.client import Client
    from gristmill.wire.client import JobStatus, SubtaskRow, UsageRow

SAMPLE = 20  #: subtasks that are run when nothing like them was run before
SAMPLE_MAX = 1_000
MEASURED_MIN = 5  #: fewer say nothing of how far they differ
MEASURED_MAX = 1_000
RESAMPLES = 1_000
SAMPLE_RETENTION_S = 3_600
_SEED = 20  #: the same measurements give the same interval
_PAST_JOBS = 20
_PAGE = 1_000
#: Student's t at 95 %, one-sided, for 4, 5, 6, ... degrees of freedom
_STUDENT = (
    2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753, 1.746,
    1.740, 1.734, 1.729, 1.725,
)  # fmt: skip

Basis = Literal["history", "sample", "limits", "free"]


@dataclasses.dataclass(frozen=True)
class Price:
    """What a job of ``subtasks`` will cost, in micro-credits.

    ``basis``: ``history`` (past jobs that ran the same function or command), ``sample`` (``job``
    ran the first ones, and was billed ``spent_ucredits``), ``limits`` (nothing was measured: from
    subtasks that end at once to subtasks that use all of their time) or ``free``. With the first
    two, low and high are the 5th and the 95th percentile. ``measured``: subtasks that this rests
    on. ``is_capped``: high is the job's cap, which stops it.
    """

    low_ucredits: int
    high_ucredits: int
    mid_ucredits: int
    basis: Basis
    subtasks: int
    per_subtask_ucredits: float
    measured: int = 0
    spent_ucredits: int = 0
    job: int = 0
    is_capped: bool = False

    def __str__(self) -> str:
        """``first 20 of 10,000 done: 4.1 to 4.6 credits, p90``."""
        low, high = _told(self.low_ucredits), _told(self.high_ucredits)
        if self.basis == "free":
            return "free"
        span = f"{low} to {high} credits"
        if self.basis == "sample":
            told = f"first {self.measured:,} of {self.subtasks:,} done: {span}, p90"
        elif self.basis == "history":
            told = f"{_subtasks(self.subtasks)}, by {self.measured:,} past ones: {span}, p90"
        else:
            told = f"{_subtasks(self.subtasks)}, by their limits alone: {span}"
        return told + (" (its cap)" if self.is_capped else "")


def _subtasks(number: int) -> str:
    return f"{number:,} subtask{'' if number == 1 else 's'}"


def _told(ucredits: int) -> str:
    """Three digits that count; an interval is no bill."""
    if ucredits <= 0:
        return "0"
    unit = 10 ** max(0, len(str(ucredits)) - 3)
    return format_credits(round(ucredits / unit) * unit)


def price(
    client: Client,
    spec: JobSpec,
    function: bytes,
    inputs: Iterable[Any],
    sample: int = SAMPLE,
    is_forced: bool = False,
) -> Price:
    """The price of a job that ``client.post`` would make of the same arguments.

    Args:
        client: of the grid.
        spec: what is asked for.
        function: the function's frame.
        inputs: read to their end, to count them.
        sample: where no past job tells enough, the first so many are run as a job of their own,
            which is billed like any other; 0 never runs anything.
        is_forced: run the sample whatever is known.

    Raises:
        GridError: ``INVALID_SPEC`` for a sample out of range, and what a submission raises.
    """
    if not 0 <= sample <= SAMPLE_MAX:
        raise RemoteError("INVALID_SPEC", f"sample is {sample}, must be 0 to {SAMPLE_MAX}")
    iterator = iter(inputs)
    first = list(itertools.islice(iterator, sample))
    total = len(first) + (
        len(inputs) - len(first) if isinstance(inputs, range | list) else sum(1 for _ in iterator)
    )
    tariffs = _tariffs(client, spec)
    if spec.tariff == "zero" or not any(map(any, map(msgspec.structs.astuple, tariffs))):
        return Price(0, 0, 0, "free", total, 0.0)
    if not is_forced:
        cards = client.history(work_of(spec).hex(), limit=_PAST_JOBS)
        rows, factor = _measured(client, cards)
        if len(rows) >= MEASURED_MIN:
            return _predict(spec, tariffs, rows, factor, total, "history")
    if not sample or not total:
        return _by_limits(spec, tariffs, total)
    card = _run_sample(client, spec, function, first)
    rows, factor = _measured(client, [card])
    if len(rows) < min(MEASURED_MIN, len(first)) or not rows:
        raise RemoteError(
            "JOB_FAILED",
            f"the sample j{card.job} has {len(rows)} measured subtasks of {len(first)}:"
            f" {card.reason or card.state}",
            f"gristmill status j{card.job} --subtasks",
        )
    found = _predict(spec, tariffs, rows, factor, total, "sample")
    return dataclasses.replace(found, job=card.job, spent_ucredits=card.spent_ucredits)


def _tariffs(client: Client, spec: JobSpec) -> list[Tariff]:
    """Of the classes that the job may run on: the one it names, else those of the workers."""
    tariffs = client.tariffs()
    if CLASS_LABEL in spec.labels:
        return [tariff_of(tariffs, spec.labels[CLASS_LABEL])]
    asked = spec.labels.items()
    classes = {class_of(row.labels) for row in client.workers() if asked <= row.labels.items()}
    return [tariff_of(tariffs, name) for name in sorted(classes or {class_of({})})]


def _run_sample(client: Client, spec: JobSpec, function: bytes, first: list[Any]) -> JobStatus:
    name = f"{spec.name[:180]} (sample)".strip()
    small = msgspec.structs.replace(
        spec,
        name=name,
        count=len(first),
        keep=True,
        retention_s=SAMPLE_RETENTION_S,
        completion="all",
    )
    job = client.post(small, function, first)
    return job.wait()


def _measured(client: Client, cards: Sequence[JobStatus]) -> tuple[list[SubtaskRow], float]:
    """Subtasks with readings, newest job first; attempts that were paid for, to one subtask."""
    rows: list[SubtaskRow] = []
    attempts = ended = 0
    for card in cards:
        if len(rows) >= MEASURED_MAX:
            break
        found = client.subtasks(card.job, limit=min(_PAGE, MEASURED_MAX - len(rows)))
        measured = [row for row in found if row.node and row.state in ("done", "failed")]
        if measured:
            rows += as_billed(measured, _bill(client, card))
            ended += card.done + card.failed
            attempts += card.done + card.failed + max(0, card.retried - card.lost)
    return rows, attempts / ended if ended else 1.0


def _bill(client: Client, card: JobStatus) -> list[UsageRow]:
    try:
        return client.usage(job=card.job)
    except RemoteError:  # without a ledger the readings alone must do
        return []


def as_billed(rows: list[SubtaskRow], bill: Sequence[UsageRow]) -> list[SubtaskRow]:
    """The rows, each with its share of the cpu time that is billed and in no row.

    A bill is what was read of the whole slot. What that spends between its subtasks (to fork, to
    read an input) is a few milliseconds for each, and most of the bill where they are short.
    """
    subtasks = sum(line.subtasks for line in bill)
    if not subtasks:
        return rows
    billed_us = sum(line.cpu_us for line in bill) / subtasks
    share_us = round(billed_us - math.fsum(row.cpu_us for row in rows) / len(rows))
    if share_us <= 0:
        return rows
    return [msgspec.structs.replace(row, cpu_us=row.cpu_us + share_us) for row in rows]


def _predict(
    spec: JobSpec,
    tariffs: Sequence[Tariff],
    rows: Sequence[SubtaskRow],
    factor: float,
    total: int,
    basis: Basis,
) -> Price:
    spans = []
    for tariff in tariffs:
        costs = [factor * cost_of(tariff, row, spec.limits.memory_bytes) for row in rows]
        spans.append((*interval(costs, total), sum(costs) / len(costs)))
    least, most = replicas_of(spec)
    low = least * min(span[0] for span in spans)
    high = most * max(span[2] for span in spans)
    mid = least * sum(span[1] for span in spans) / len(spans)
    each = least * sum(span[3] for span in spans) / len(spans)
    cap = spec.cap_ucredits
    return Price(
        min(math.floor(low), cap), min(math.ceil(high), cap), min(round(mid), cap), basis, total,
        each, len(rows), is_capped=high > cap,
    )  # fmt: skip


def replicas_of(spec: JobSpec) -> tuple[int, int]:
    """How often each subtask is paid: where nobody lies, and where no node is trusted yet.

    >>> replicas_of(JobSpec("function", quorum="2/3")), replicas_of(JobSpec("function"))
    ((2, 2), (1, 1))
    """
    quorum = parse_quorum(spec.quorum)
    if quorum is None:
        return 1, 1
    return (1 if quorum.is_adaptive else quorum.equal), quorum.equal


def cost_of(tariff: Tariff, row: SubtaskRow, memory_bytes: int) -> float:
    """What a measured subtask costs by a tariff, not rounded: rounding is of a whole result."""
    byte_s = row.wall_us / UCREDITS_PER_CREDIT * memory_bytes
    return (
        row.cpu_us / UCREDITS_PER_CREDIT * tariff.cpu_second_ucredits
        + byte_s / (1 << 30) * tariff.gib_second_ucredits
        + tariff.subtask_ucredits
    )


def interval(costs: Sequence[float], total: int) -> tuple[float, float, float]:
    """(5th percentile, estimate, 95th percentile) of the sum of ``total`` like these.

    >>> interval([2.0] * 20, 100)
    (200.0, 200.0, 200.0)
    """
    size = len(costs)
    mean = math.fsum(costs) / size
    if size < 2 or not total:
        return total * mean, total * mean, total * mean
    deviation = _deviation(costs, mean)
    if deviation <= 1e-12 * mean:
        return total * mean, total * mean, total * mean
    below, above = _quantiles(costs, mean)
    error = deviation * math.sqrt(1 / size + 1 / total)
    low = max(total * (mean - above * error), 0.0)
    return low, total * mean, total * (mean + below * error)


def _deviation(costs: Sequence[float], mean: float) -> float:
    return math.sqrt(math.fsum((cost - mean) ** 2 for cost in costs) / (len(costs) - 1))


def _quantiles(costs: Sequence[float], mean: float) -> tuple[float, float]:
    """How many deviations a resample's mean lies below and above, once in twenty each."""
    size, chance = len(costs), random.Random(_SEED)
    root, least = math.sqrt(size), 1e-12 * mean
    found = []
    for _ in range(RESAMPLES):
        again = chance.choices(costs, k=size)
        middle = math.fsum(again) / size
        deviation = _deviation(again, middle)
        if deviation > least:
            found.append((middle - mean) * root / deviation)
    found.sort()
    student = _STUDENT[min(max(size - 5, 0), len(_STUDENT) - 1)]
    if not found:
        return student, student
    edge = len(found) // 20
    return max(student, -found[edge]), max(student, found[-1 - edge])


def _by_limits(spec: JobSpec, tariffs: Sequence[Tariff], total: int) -> Price:
    spans = [span_by_limits(spec, tariff, total) for tariff in tariffs]
    low, high = min(low for low, _ in spans), max(high for _, high in spans)
    cap = spec.cap_ucredits
    each = high / total if total else 0.0
    return Price(
        min(low, cap), min(high, cap), min((low + high) // 2, cap), "limits", total, each,
        is_capped=high > cap,
    )  # fmt: skip


def span_by_limits(spec: JobSpec, tariff: Tariff, total: int) -> tuple[int, int]:
    """The least and the most that subtasks can cost under their limits, in micro-credits.

    The least: every one ends at once. The most: every attempt uses all of its time.
    """
    if spec.tariff == "zero":
        tariff = ZERO_TARIFF
    limits = spec.limits
    cpu_ms = limits.cpu_ms or 4 * limits.wall_ms * max(1, limits.cpus_milli // 1000)
    cpu_ms = min(cpu_ms, limits.wall_ms * limits.cpus_milli // 1000)
    quorum, (least, _) = parse_quorum(spec.quorum), replicas_of(spec)
    attempts = total * (spec.retries + 1 if quorum is None else quorum.most)
    byte_us = attempts * limits.wall_ms * 1000 * limits.memory_bytes
    return tariff.price(0, total * least), tariff.price(attempts * cpu_ms * 1000, attempts, byte_us)
