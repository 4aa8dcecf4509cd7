"""Watches the effects of the core as an outsider: it knows the rules, and nothing of the code.

Every promise is checked from what leaves the core: each subtask final exactly once, nothing handed
out that is final or out already, nothing dispatched without a hold, no attempt billed twice, no
bill above the cap, a job's last word after its last result."""

from __future__ import annotations

from dataclasses import dataclass, field

from gristmill.broker.core import effects as fx
from gristmill.wire.client import FINAL_JOB_STATES
from gristmill.wire.ledger import Contribution, Hold, Release
from gristmill.wire.outcome import Outcome


class ViolationError(AssertionError):
    """A promise was broken."""


def need(condition: object, what: str) -> None:
    if not condition:
        raise ViolationError(what)


@dataclass
class JobView:
    spec: object
    tenant: str
    uploaded: int = 0
    finals: dict[int, int] = field(default_factory=dict)  # index -> outcome
    tries: dict[int, int] = field(default_factory=dict)  # index -> results that are not final
    billed: dict[tuple[int, int], int] = field(default_factory=dict)  # (index, attempt) -> lease
    amount: int = 0
    state: str = "accepted"
    is_held: bool = False
    is_granted: bool = False
    is_released: bool = False
    is_freed: bool = False
    sequence: int = 0
    is_told: bool = False


@dataclass
class LeaseView:
    worker: int
    job: int
    attempt: int
    open: dict[int, None]
    is_void: bool = False


class Checker:
    """Fed with every effect, in order, and with what the simulated outside did."""

    def __init__(self) -> None:
        self.jobs: dict[int, JobView] = {}
        self.leases: dict[int, LeaseView] = {}
        self.out: dict[tuple[int, int], int] = {}  # (job, index) -> lease that has it
        self.refs: dict[int, tuple[int, int, int, int, bytes]] = {}
        self.used_refs: dict[int, None] = {}
        self.opened: dict[tuple[int, int], None] = {}
        self.events: dict[str, int] = {}
        self.restarts = 0
        self.dispatched = self.superseded = self.results = 0

    # ------------------------------------------------------------ the outside

    def returned(self, worker: int, lease_id: int, runs: list[tuple[int, int]]) -> None:
        """The worker's report with these returned runs is about to be stepped."""
        lease = self.leases.get(lease_id)
        if lease is None or lease.is_void or lease.worker != worker:
            return
        for first, count in runs:
            for index in range(first, first + count):
                if lease.open.pop(index, 0) is None:
                    self.out.pop((lease.job, index), None)

    def result(self, ref: int, worker: int, lease: int, first: int, outcomes: bytes) -> None:
        self.refs[ref] = (worker, lease, first, len(outcomes), outcomes)

    def void(self, lease_id: int) -> None:
        """The lease was rescued: told by the event log."""
        lease = self.leases[lease_id]
        lease.is_void = True
        for index in lease.open:
            self.out.pop((lease.job, index), None)

    def restarted(self) -> None:
        """The broker's memory is gone: every lease is void, nothing is open anywhere."""
        for number, lease in self.leases.items():
            if not lease.is_void:
                self.void(number)
        self.opened.clear()
        self.restarts += 1

    # ------------------------------------------------------------ effects

    def see(self, effect: fx.AnyEffect) -> None:
        handler = getattr(self, f"on_{type(effect).__name__}", None)
        if handler is not None:
            handler(effect)

    def on_RecordJob(self, effect: fx.RecordJob) -> None:  # noqa: N802
        need(effect.job not in self.jobs, f"j{effect.job} recorded twice")
        self.jobs[effect.job] = JobView(effect.spec, effect.tenant)

    def on_KeepParcel(self, effect: fx.KeepParcel) -> None:  # noqa: N802
        job = self.jobs[effect.job]
        need(effect.first == job.uploaded, f"j{effect.job}: a parcel out of order was kept")
        job.uploaded += effect.count

    def on_RecordEvent(self, effect: fx.RecordEvent) -> None:  # noqa: N802
        self.events[effect.name] = self.events.get(effect.name, 0) + 1
        if effect.name == "lease.rescued":
            self.void(effect.detail["lease"])

    def on_Dispatch(self, effect: fx.Dispatch) -> None:  # noqa: N802
        lease = effect.lease
        job = self.jobs[lease.job]
        self.dispatched += 1
        need(job.is_granted or not job.is_held, f"j{lease.job}: dispatched without a hold")
        need(lease.lease_id not in self.leases, "a lease id was used twice")
        need((effect.worker, lease.job) in self.opened, f"j{lease.job} was not opened")
        view = LeaseView(effect.worker, lease.job, lease.attempt, {})
        need(0 < len(lease.runs) <= 64, f"{len(lease.runs)} runs in a lease")
        covered = [(head.first, head.first + head.count) for head in lease.parcels]
        for first, count in lease.runs:
            need(count > 0, "an empty run")
            for index in range(first, first + count):
                key = (lease.job, index)
                need(index not in job.finals, f"j{lease.job}/{index} is final and was handed out")
                need(key not in self.out, f"j{lease.job}/{index} is out already")
                need(
                    (index, lease.attempt) not in job.billed,
                    f"j{lease.job}/{index}: attempt {lease.attempt} was billed before",
                )
                need(any(low <= index < high for low, high in covered), "a parcel is missing")
                self.out[key] = lease.lease_id
                view.open[index] = None
        self.leases[lease.lease_id] = view

    def on_OpenJob(self, effect: fx.OpenJob) -> None:  # noqa: N802
        need((effect.worker, effect.job) not in self.opened, "a job was opened twice")
        self.opened[effect.worker, effect.job] = None

    def on_CloseJob(self, effect: fx.CloseJob) -> None:  # noqa: N802
        need((effect.worker, effect.job) in self.opened, "a job was closed that was not open")
        del self.opened[effect.worker, effect.job]

    def on_KeepResult(self, effect: fx.KeepResult) -> None:  # noqa: N802
        job = self.jobs[effect.job]
        name = f"j{effect.job}"
        need(not job.is_freed, f"{name}: a result after its end")
        need(effect.sequence == job.sequence + 1, f"{name}: a gap in the sequence")
        job.sequence += 1
        again: dict[int, None] = {}
        for first, count in effect.not_final:
            again.update(dict.fromkeys(range(first, first + count)))
        outcomes = bytes([max(effect.outcome, 0)]) * effect.count
        lease = None
        if effect.ref:
            self.results += 1
            need(effect.ref not in self.used_refs, f"{name}: a result was used twice")
            self.used_refs[effect.ref] = None
            worker, lease_id, first, count, outcomes = self.refs[effect.ref]
            need((lease_id, first, count) == (effect.lease_id, effect.first, effect.count), name)
            lease = self.leases[lease_id]
            need(lease.worker == worker, f"{name}: a lease of another worker")
            need(not lease.is_void, f"{name}: a result of a lease that was taken away")
            need(lease.attempt == effect.attempt, f"{name}: attempt")
        for offset in range(effect.count):
            index = effect.first + offset
            if lease is not None:
                need(lease.open.pop(index, 0) is None, f"{name}/{index}: not open in its lease")
                self.out.pop((effect.job, index), None)
            if index in again:
                need(index not in job.finals, f"{name}/{index}: again after its end")
                need(outcomes[offset] != Outcome.OK, f"{name}/{index}: ok and tried again")
                job.tries[index] = job.tries.get(index, 0) + 1
                continue
            need(index not in job.finals, f"{name}/{index}: final twice")
            need((effect.job, index) not in self.out, f"{name}/{index}: final while it is out")
            job.finals[index] = outcomes[offset]

    def on_KeepSuperseded(self, effect: fx.KeepSuperseded) -> None:  # noqa: N802
        self.superseded += 1
        need(effect.ref not in self.used_refs, "a superseded result was used")

    def on_AddToOutbox(self, effect: fx.AddToOutbox) -> None:  # noqa: N802
        entry = effect.entry
        job = self.jobs[int(entry.ref.rpartition("/")[2])]
        if isinstance(entry, Hold):
            need(not job.is_held or self.restarts, "held twice")
            job.is_held = True
        elif isinstance(entry, Release):
            need(job.is_held and not job.is_released, "released twice or never held")
            job.is_released = True
        else:
            self._contribution(job, entry)

    def _contribution(self, job: JobView, entry: Contribution) -> None:
        need(not job.is_released, f"{entry.ref}: billed after its hold was released")
        lease = self.leases[entry.lease_id]
        need(not lease.is_void, f"{entry.ref}: a void lease was billed")
        for index in range(entry.first, entry.first + entry.count):
            key = (index, entry.attempt)
            need(
                key not in job.billed, f"{entry.ref}/{index}: attempt {entry.attempt} billed twice"
            )
            job.billed[key] = entry.lease_id
        need(0 <= entry.toll_ucredits <= entry.amount_ucredits, "toll")
        job.amount += entry.amount_ucredits
        need(job.amount <= job.spec.cap_ucredits, f"{entry.ref}: billed over its cap")

    def on_RecordState(self, effect: fx.RecordState) -> None:  # noqa: N802
        job, state = self.jobs[effect.job], effect.status.state
        need(job.state not in FINAL_JOB_STATES, f"j{effect.job}: a state after its final one")
        job.state = state
        if state in FINAL_JOB_STATES:
            card = effect.status
            need(card.done + card.failed + card.cancelled == card.count, f"j{effect.job}: counts")
            need(len(job.finals) == card.count, f"j{effect.job}: {len(job.finals)}/{card.count}")

    def on_TellStatus(self, effect: fx.TellStatus) -> None:  # noqa: N802
        job = self.jobs[effect.job]
        need(not job.is_told, f"j{effect.job}: a card after the final one")
        job.is_told = effect.status.state in FINAL_JOB_STATES

    def on_FreeJob(self, effect: fx.FreeJob) -> None:  # noqa: N802
        job = self.jobs[effect.job]
        need(job.state in FINAL_JOB_STATES, f"j{effect.job}: freed before its end")
        job.is_freed = True

    # ------------------------------------------------------------ the end

    def finish(self) -> None:
        """After everything healed and time passed: all that was accepted is complete."""
        for number, job in self.jobs.items():
            need(job.state in FINAL_JOB_STATES, f"j{number} never ended: {job.state}")
            need(job.is_freed and job.is_told, f"j{number}: freed and told")
            need(job.is_released or not job.is_granted, f"j{number}: its hold was never released")
            ok = [index for index, outcome in job.finals.items() if outcome == Outcome.OK]
            bills = {index for index, _ in job.billed}
            need(bills.issuperset(ok), f"j{number}: a subtask was done and not billed")
            if job.state == "done":
                bad = [o for o in job.finals.values() if o not in (Outcome.OK, Outcome.CANCELLED)]
                need(not bad, f"j{number}: done with outcomes {bad[:5]}")
        need(not self.out, f"leases were left over: {list(self.out)[:3]}")
