"""A job: an array of subtasks over one function or command, *one* object whatever their number.

Subtask states (columns.py): waiting (its input has not arrived; no column yet) -> ready -> leased
-> done | failed | cancelled; leased -> ready when it is to be tried again or came back unspent.

Job states::

    accepted --first lease--> running --all final--> done | failed | cancelled
    accepted | running --pause, failures_max--> paused --resume--> accepted | running
    any of these --cancel--> (its ready ones end, its leases are stopped) --> cancelled
    any of these --cap reached, hold refused--> (the same) --> failed
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gristmill.broker.core.checks import Check
from gristmill.broker.core.columns import Columns
from gristmill.broker.core.parcels import Parcels
from gristmill.broker.core.ready import Ready
from gristmill.broker.core.tenants import Requirement, Tenant
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import ZERO_TARIFF, JobSpec, Tariff, parse_completion, parse_quorum
from gristmill.wire.tariffs import Tariffs, tariff_of
from gristmill.wire.units import format_ms
from gristmill.wire.worker import Run

if TYPE_CHECKING:
    from gristmill.broker.core.workers import Worker

ERRORS_KEPT = 3  #: distinct failures shown on a job's card
ERROR_CHARS_KEPT = 500
EWMA = 0.3  #: weight of the newest measurement


@dataclass(slots=True)
class ErrorLine:
    """One distinct failure of a job. ``first``: the lowest index that had it."""

    word: str
    message: str
    count: int
    first: int


@dataclass(slots=True, eq=False)
class Job:
    """Everything the core knows of one unfinished job.

    ``count``: -1 while open-ended. ``hold``: ``none`` (needs none), ``asked``, ``granted`` or
    ``refused``. ``ending``: once set, whatever is not running ends with this outcome. ``est_us``:
    wall per subtask, 0 before the first measurement. ``ramp``: what a lease may hold at most until
    larger ones have come back. ``waiting_ended``: subtasks that ended
    before their input came (they have no columns). ``may_be_held``: workers from before a restart
    may hold leases of it; it waits for them (adoption.py). ``outstanding_ucredits``: budgets of its
    leases. ``tariffs``: those of the time at which it was accepted.
    ``check``: its undecided results, None without a quorum.
    ``noticed_percent``: of the cap, of which its tenant was told that it is spent.
    """

    number: int
    tenant: Tenant
    submission: bytes
    spec: JobSpec
    tariffs: Tariffs
    requirement: Requirement
    client: int
    submitted_ms: int
    submitted_utc_ms: int
    count: int
    hold: str = "none"
    is_closed: bool = False
    is_paused: bool = False
    pause_reason: str = ""
    is_queued: bool = False
    may_be_held: bool = False
    ending: Outcome | None = None
    ending_state: str = ""
    ending_code: str = ""
    ending_message: str = ""
    cancelling: list[Run] = field(default_factory=list)
    state: str = "accepted"
    columns: Columns = field(default_factory=Columns)
    parcels: Parcels = field(default_factory=Parcels)
    ready: Ready = field(default_factory=Ready)
    leases: dict[int, None] = field(default_factory=dict)
    workers: dict[int, None] = field(default_factory=dict)
    leased: int = 0
    done: int = 0
    failed: int = 0
    failed_at_resume: int = 0
    cancelled: int = 0
    waiting_ended: int = 0
    retried: int = 0
    lost: int = 0
    superseded: int = 0
    slots: int = 0
    sequence: int = 0
    wall_us: int = 0
    cpu_us: int = 0
    peak_kib: int = 0
    spent_ucredits: int = 0
    outstanding_ucredits: int = 0
    noticed_percent: int = 0
    budget_floor_ucredits: int = 0
    is_waiting_for_budget: bool = False
    est_us: float = 0.0
    ramp: int = 1
    bytes_committed: int = 0
    bytes_allowed: int = 0
    freed: int = 0
    bytes_freed: int = 0
    committed: int = 0
    started_utc_ms: int = 0
    finished_utc_ms: int = 0
    told_ms: int = -1_000_000
    errors: list[ErrorLine] = field(default_factory=list)
    done_min: int = field(init=False)
    done_percent: int = field(init=False)
    is_free: bool = field(init=False)
    check: Check | None = field(init=False)

    def __post_init__(self) -> None:
        """Reads once its rules, and whether it costs nothing wherever it runs."""
        quorum = parse_quorum(self.spec.quorum)
        self.check = None if quorum is None else Check(*quorum)
        self.done_min, self.done_percent = parse_completion(self.spec.completion)
        self.is_free = all(tariff == ZERO_TARIFF for tariff in self.tariffs.values())

    @property
    def uploaded(self) -> int:
        """Subtasks whose input has arrived."""
        return self.columns.size

    @property
    def final(self) -> int:
        """Subtasks that ended."""
        return self.done + self.failed + self.cancelled

    @property
    def is_complete(self) -> bool:
        """Whether every subtask ended and none will be added."""
        return self.is_closed and self.final == self.count

    @property
    def has_enough(self) -> bool:
        """Whether enough subtasks ended OK for the job to be done, by its completion rule."""
        if self.done_min:
            return self.done >= self.done_min
        return self.done * 100 >= self.done_percent * self.count

    @property
    def available_ucredits(self) -> int:
        """What of the cap is neither spent nor promised to a lease."""
        return self.spec.cap_ucredits - self.spent_ucredits - self.outstanding_ucredits

    def tariff_on(self, worker: Worker) -> Tariff:
        """What its work costs on a worker: by the class of that node."""
        return tariff_of(self.tariffs, worker.node_class)

    @property
    def is_long(self) -> bool:
        """Whether its subtasks are known to be long: nothing is stacked behind one."""
        return self.est_us > 1_000_000

    def measure(self, wall_us: int, count: int) -> None:
        """Learns the wall time of a subtask from one result."""
        each = max(1.0, wall_us / count)
        self.est_us = each if not self.est_us else self.est_us + EWMA * (each - self.est_us)

    def note_error(self, outcome: Outcome, message: str, first: int, count: int) -> None:
        """Keeps the first three distinct failures, with how often and where first."""
        text = message[:ERROR_CHARS_KEPT] or self.explain(outcome)
        for line in self.errors:
            if line.word == outcome.word and line.message == text:
                line.count += count
                line.first = min(line.first, first)
                return
        if len(self.errors) < ERRORS_KEPT:
            self.errors.append(ErrorLine(outcome.word, text, count, first))

    def explain(self, outcome: Outcome) -> str:
        """Words for an outcome that came without any."""
        limits = self.spec.limits
        if outcome is Outcome.TIME:
            return f"over its wall-clock limit of {format_ms(limits.wall_ms)}"
        if outcome is Outcome.OOM:
            return f"over its memory limit of {limits.memory_bytes >> 20} MiB"
        if outcome is Outcome.LOST:
            return (
                f"its worker was lost {self.spec.losses_max + 1} times;"
                f" losses_max is {self.spec.losses_max}"
            )
        return outcome.word
