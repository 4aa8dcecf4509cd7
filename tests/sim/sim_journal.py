"""What a shell would have on disk: every step's effects are one committed group."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sim_checker import need

from gristmill.broker.core import effects as fx
from gristmill.broker.core.recovery import JobFact, ParcelFact, ResultFact
from gristmill.wire.ledger import Contribution
from gristmill.wire.spec import Tariff

if TYPE_CHECKING:
    from sim_grid import Grid


@dataclass
class Rows:
    """What the journal has of one job."""

    record: fx.RecordJob
    tariff: Tariff
    parcels: list[ParcelFact] = field(default_factory=list)
    results: list[ResultFact] = field(default_factory=list)
    marks: dict[str, object] = field(default_factory=dict)
    cancelled: list[tuple[int, int]] = field(default_factory=list)
    status: object = None


class Journal:
    """Keeps what a shell writes; every step is one committed group."""

    def __init__(self) -> None:
        self.jobs: dict[int, Rows] = {}
        self.sizes: dict[tuple[int, int], int] = {}

    def write(self, effect: fx.AnyEffect, grid: Grid) -> None:
        if isinstance(effect, fx.RecordJob):
            self.jobs[effect.job] = Rows(effect, Tariff())
        elif isinstance(effect, fx.KeepParcel):
            fact = ParcelFact(effect.first, effect.count, effect.codec, 20 * effect.count)
            self.jobs[effect.job].parcels.append(fact)
        elif isinstance(effect, fx.KeepResult):
            outcomes = bytes([max(effect.outcome, 0)])
            if effect.ref:
                outcomes = grid.checker.refs[effect.ref][4]
            self.jobs[effect.job].results.append(
                ResultFact(
                    effect.sequence,
                    effect.first,
                    effect.count,
                    effect.attempt,
                    outcomes,
                    effect.not_final,
                    message=effect.message,
                )
            )
        elif isinstance(effect, fx.AddToOutbox) and isinstance(effect.entry, Contribution):
            # it follows its result, in the same group
            results = self.jobs[int(effect.entry.ref.rpartition("/")[2])].results
            need(results, "a bill before its result")
            results[-1] = dataclasses.replace(
                results[-1], amount_ucredits=effect.entry.amount_ucredits
            )
        elif isinstance(effect, fx.RecordState):
            self.jobs[effect.job].status = effect.status
        elif isinstance(effect, fx.RecordEvent) and effect.job:
            self.mark(self.jobs.get(effect.job), effect)

    def mark(self, rows: Rows | None, effect: fx.RecordEvent) -> None:
        if rows is None:
            return
        if effect.name == "cancel.asked" and effect.detail:
            rows.cancelled += effect.detail["runs"]
        elif effect.name == "job.resumed":
            rows.marks.pop("job.paused", None)
        else:
            rows.marks[effect.name] = effect.detail

    def facts(self) -> list[JobFact]:
        facts = []
        for number, rows in self.jobs.items():
            record, marks = rows.record, rows.marks
            refused = marks.get("hold.refused")
            facts.append(
                JobFact(
                    job=number,
                    tenant=record.tenant,
                    submission=record.submission,
                    spec=record.spec,
                    tariff=rows.tariff,
                    submitted_utc_ms=record.now_utc_ms,
                    status=rows.status,
                    is_hold_granted="hold.granted" in marks,
                    refusal=(refused["code"], refused["message"]) if refused else None,
                    closed_at=marks.get("upload.closed", {}).get("count", -1),
                    pause_reason=marks.get("job.paused", {}).get("reason", ""),
                    is_cancelled="cancel.asked" in marks,
                    cancelled_runs=rows.cancelled,
                    is_capped="cap.reached" in marks,
                    parcels=rows.parcels,
                    results=rows.results,
                )
            )
        return facts
