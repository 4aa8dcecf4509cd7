"""Watches what leaves the broker's core, as an outsider: it knows the rules, nothing of the code.

Each subtask is final exactly once; nothing is handed out that is final or out already; nothing is
dispatched without a hold in the ledger's file; no attempt is billed twice; no bill is above its
cap; a job's last word comes after its last result. After a crash the view is made again from the
effects that were on disk: what was not is forgotten, as the broker must have forgotten it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sim_world import World, need

from gristmill.broker.core import effects as fx
from gristmill.broker.core import events as ev
from gristmill.wire.client import FINAL_JOB_STATES
from gristmill.wire.ledger import Contribution, Hold, Release
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec

Tag = tuple[int, int]  #: (start of the broker, journal group)
#: of a result that a worker sent: (worker, lease, first, count, outcomes)
Told = tuple[int, int, int, int, bytes] | None


@dataclass
class JobView:
    spec: JobSpec
    tenant: str
    uploaded: int = 0
    finals: dict[int, int] = field(default_factory=dict)  # index -> outcome
    tries: dict[int, int] = field(default_factory=dict)  # index -> results that are not final
    billed: dict[tuple[int, int], int] = field(default_factory=dict)  # (index, attempt) -> lease
    held: dict[int, fx.KeepVote] = field(default_factory=dict)  # sequence -> undecided
    amount: int = 0
    state: str = "accepted"
    is_held: bool = False
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
    cpu_us: int = 0
    is_void: bool = False
    is_unsure: bool = (
        False  #: the broker restarted: still current only if nobody else gets its work
    )


class Watcher:
    """Fed with every effect, in order, and with what the simulated outside did."""

    def __init__(self, world: World, has_hold: Callable[[int], bool]) -> None:
        self.world, self.has_hold = world, has_hold
        self.granted_ms: dict[int, int] = {}  # lease to when it left
        self.cancelled_ms: dict[int, int] = {}  # job to when all of it was cancelled, unfinished
        self.events: dict[str, int] = {}
        self.log: list[tuple[Tag, fx.AnyEffect, Told]] = []
        self.restarts = 0
        self.dispatched = self.superseded = self.results = self.inputs_freed = 0
        self.is_quiet = False
        self.forget()

    def forget(self) -> None:
        """Nothing is known."""
        self.jobs: dict[int, JobView] = {}
        self.leases: dict[int, LeaseView] = {}
        self.out: dict[tuple[int, int], int] = {}  # (job, index) -> lease that has it
        self.refs: dict[int, Told] = {}
        self.used_refs: dict[int, None] = {}
        self.opened: dict[tuple[int, int], None] = {}

    def need(self, condition: object, what: str) -> None:
        """A rule; not asked again while history is only told again."""
        if not self.is_quiet:
            need(condition, what)

    # ------------------------------------------------------------ what goes in

    def event(self, event: ev.AnyEvent) -> None:
        """An event is about to be stepped."""
        if isinstance(event, ev.ResultArrived):
            head, meter = event.head, event.meter
            outcomes = meter.outcome or bytes([meter.uniform]) * head.count
            entry = (event.worker, head.lease_id, head.first, head.count, outcomes)
            self.refs[event.ref] = entry
        elif isinstance(event, ev.WorkerReported):
            for returned in event.returned:
                self.returned(event.worker, returned.lease_id, returned.runs)
        elif isinstance(event, ev.CancelAsked) and not event.runs:
            job = self.jobs.get(event.job)
            if job is not None and job.state not in FINAL_JOB_STATES:
                self.cancelled_ms.setdefault(event.job, self.world.now)

    def returned(self, worker: int, lease_id: int, runs: list[tuple[int, int]]) -> None:
        """A worker hands runs back."""
        lease = self.leases.get(lease_id)
        if lease is None or lease.is_void or (lease.worker != worker and not lease.is_unsure):
            return
        for first, count in runs:
            for index in range(first, first + count):
                if lease.open.pop(index, 0) is None:
                    self.out.pop((lease.job, index), None)

    def void(self, lease_id: int) -> None:
        """The lease was taken away: told by the event log."""
        lease = self.leases[lease_id]
        lease.is_void = True
        for index in lease.open:
            if self.out.get((lease.job, index)) == lease_id:
                self.out.pop((lease.job, index))

    def adopted(self, lease_id: int, runs: list[tuple[int, int]]) -> None:
        """A restarted broker goes on with what a worker holds: a hand-out under the old id."""
        lease = self.leases[lease_id]
        name = f"j{lease.job}"
        self.need(not lease.is_void, f"{name}: a lease that was taken away is adopted")
        for first, count in runs:
            for index in range(first, first + count):
                key = (lease.job, index)
                self.need(
                    index not in self.jobs[lease.job].finals, f"{name}/{index} is final and adopted"
                )
                self._take_over(key)
                self.need(key not in self.out, f"{name}/{index} is out already and adopted")
                self.out[key] = lease_id
                lease.open[index] = None

    def restarted(self, is_durable: Callable[[Tag], bool]) -> None:
        """The broker's memory is gone: what was on disk is told again."""
        log, self.is_quiet = self.log, True
        self.forget()
        self.log = []
        for tag, effect, told in log:
            if is_durable(tag) or isinstance(effect, fx.Dispatch):
                self._see(effect, tag, told)
        self.is_quiet = False
        self.restarts += 1
        self.refs.clear()
        self.used_refs.clear()
        for lease in self.leases.values():
            lease.is_unsure = True
        self.opened.clear()
        self.cancelled_ms.clear()

    # ------------------------------------------------------------ effects

    def see(self, effect: fx.AnyEffect, tag: Tag) -> None:
        """An effect leaves the core; its records join the journal group of ``tag``."""
        told = self.refs.get(effect.ref) if isinstance(effect, fx.KeepResult) else None
        self._see(effect, tag, told)

    def _see(self, effect: fx.AnyEffect, tag: Tag, told: Told) -> None:
        handler: Any = getattr(self, f"on_{type(effect).__name__}", None)
        if handler is not None:
            self.log.append((tag, effect, told))
            if told is None:
                handler(effect)
            else:
                handler(effect, told)

    def on_RecordJob(self, effect: fx.RecordJob) -> None:  # noqa: N802
        self.need(effect.job not in self.jobs, f"j{effect.job} recorded twice")
        self.jobs[effect.job] = JobView(effect.spec, effect.tenant)

    def on_KeepParcel(self, effect: fx.KeepParcel) -> None:  # noqa: N802
        job = self.jobs[effect.job]
        self.need(effect.first == job.uploaded, f"j{effect.job}: a parcel out of order was kept")
        job.uploaded += effect.count

    def on_FreeParcels(self, effect: fx.FreeParcels) -> None:  # noqa: N802
        job = self.jobs[effect.job]
        needed = next((index for index in range(effect.upto) if index not in job.finals), None)
        self.need(needed is None, f"j{effect.job}/{needed} may run again and its input has left")
        self.inputs_freed += effect.upto

    def on_RecordEvent(self, effect: fx.RecordEvent) -> None:  # noqa: N802
        self.events[effect.name] = self.events.get(effect.name, 0) + 1
        lease = effect.detail.get("lease")
        if effect.name == "lease.rescued" and lease in self.leases:
            self.void(int(lease))  # type: ignore[arg-type]
        if effect.name == "lease.adopted" and lease in self.leases:
            self.adopted(int(lease), effect.detail["runs"])  # type: ignore[arg-type]

    def on_Dispatch(self, effect: fx.Dispatch) -> None:  # noqa: N802
        lease = effect.lease
        job = self.jobs.get(lease.job)
        if job is None:
            self.need(False, f"j{lease.job}: dispatched and not on record")
            return
        self.dispatched += 1
        if not self.is_quiet:
            self.need(self.has_hold(lease.job), f"j{lease.job}: dispatched without a hold")
        self.need(lease.lease_id not in self.leases, "a lease id was used twice")
        self.need((effect.worker, lease.job) in self.opened, f"j{lease.job} was not opened")
        view = LeaseView(effect.worker, lease.job, lease.attempt, {})
        self.need(0 < len(lease.runs) <= 64, f"{len(lease.runs)} runs in a lease")
        covered = [(head.first, head.first + head.count) for head in lease.parcels]
        for first, count in lease.runs:
            self.need(count > 0, "an empty run")
            for index in range(first, first + count):
                key = (lease.job, index)
                self.need(
                    index not in job.finals, f"j{lease.job}/{index} is final and was handed out"
                )
                self._take_over(key)
                self.need(key not in self.out, f"j{lease.job}/{index} is out already")
                self.need(
                    (index, lease.attempt) not in job.billed,
                    f"j{lease.job}/{index}: attempt {lease.attempt} was billed before",
                )
                self.need(any(low <= index < high for low, high in covered), "a parcel is missing")
                self.out[key] = lease.lease_id
                view.open[index] = None
        self.leases[lease.lease_id] = view
        self.granted_ms.setdefault(lease.lease_id, self.world.now)

    def _take_over(self, key: tuple[int, int]) -> None:
        """A lease of the broker's last life loses a subtask that is handed out or ends."""
        old = self.leases.get(self.out.get(key, 0))
        if old is not None and (old.is_unsure or self.is_quiet):
            old.open.pop(key[1], None)
            del self.out[key]

    def on_OpenJob(self, effect: fx.OpenJob) -> None:  # noqa: N802
        # Again after orders were lost, which may have had the first (RFC 0001, section 4, 11).
        self.opened[effect.worker, effect.job] = None

    def on_CloseJob(self, effect: fx.CloseJob) -> None:  # noqa: N802
        # Again when a full report names a job that is over: the close was lost.
        is_over = self.jobs[effect.job].is_freed
        is_open = (effect.worker, effect.job) in self.opened
        self.need(is_open or is_over, "a job was closed that was not open")
        self.opened.pop((effect.worker, effect.job), None)

    def on_KeepResult(self, effect: fx.KeepResult, told: Told = None) -> None:  # noqa: N802
        job = self.jobs[effect.job]
        name = f"j{effect.job}"
        self.need(not job.is_freed, f"{name}: a result after its end")
        self.need(effect.sequence == job.sequence + 1, f"{name}: a gap in the sequence")
        job.sequence += 1
        again: dict[int, None] = {}
        for first, count in effect.not_final:
            again.update(dict.fromkeys(range(first, first + count)))
        outcomes = bytes([max(effect.outcome, 0)]) * effect.count
        lease = None
        if told is not None:
            self.results += 1
            self.need(effect.ref not in self.used_refs, f"{name}: a result was used twice")
            self.used_refs[effect.ref] = None
            worker, lease_id, first, count, outcomes = told
            self.need(
                (lease_id, first, count) == (effect.lease_id, effect.first, effect.count), name
            )
            lease = self.leases[lease_id]
            self.need(lease.worker == worker or lease.is_unsure, f"{name}: another worker's lease")
            self.need(not lease.is_void, f"{name}: a result of a lease that was taken away")
            self.need(lease.attempt == effect.attempt, f"{name}: attempt")
        for offset in range(effect.count):
            index = effect.first + offset
            if lease is not None:
                self.need(
                    lease.open.pop(index, 0) is None, f"{name}/{index}: not open in its lease"
                )
                self.out.pop((effect.job, index), None)
            if index in again:
                self.need(index not in job.finals, f"{name}/{index}: again after its end")
                is_held = bool(job.spec.quorum)
                is_bad = is_held or outcomes[offset] != Outcome.OK
                self.need(is_bad, f"{name}/{index}: ok and tried again")
                job.tries[index] = job.tries.get(index, 0) + 1
                continue
            self.need(index not in job.finals, f"{name}/{index}: final twice")
            if lease is None:
                self._take_over((effect.job, index))
            self.need((effect.job, index) not in self.out, f"{name}/{index}: final while it is out")
            job.finals[index] = outcomes[offset]

    def on_KeepSuperseded(self, effect: fx.KeepSuperseded) -> None:  # noqa: N802
        self.superseded += 1
        self.need(effect.ref not in self.used_refs, "a superseded result was used")

    def on_KeepVote(self, effect: fx.KeepVote) -> None:  # noqa: N802
        job = self.jobs[effect.job]
        self.need(job.spec.quorum, f"j{effect.job}: a vote without a quorum")
        job.held[effect.sequence] = effect

    def on_SettleVote(self, effect: fx.SettleVote) -> None:  # noqa: N802
        job = self.jobs[effect.job]
        vote = job.held.pop(effect.sequence, None)
        self.need(vote is not None, f"j{effect.job}: a vote was settled twice, or never held")
        if vote is not None and vote.entry is not None and effect.is_paid:
            self._contribution(job, vote.entry)

    def on_AddToOutbox(self, effect: fx.AddToOutbox) -> None:  # noqa: N802
        entry = effect.entry
        job = self.jobs[int(entry.ref.rpartition("/")[2])]
        if isinstance(entry, Hold):
            self.need(not job.is_held or self.restarts, "held twice")
            job.is_held = True
        elif isinstance(entry, Release):
            self.need(job.is_held and not job.is_released, "released twice or never held")
            job.is_released = True
        else:
            self._contribution(job, entry)

    def _contribution(self, job: JobView, entry: Contribution) -> None:
        self.need(not job.is_released, f"{entry.ref}: billed after its hold was released")
        lease = self.leases[entry.lease_id]
        is_old = bool(job.spec.quorum)  # decided when its lease may long be over
        self.need(is_old or not lease.is_void, f"{entry.ref}: a void lease was billed")
        for index in range(entry.first, entry.first + entry.count):
            key = (index, entry.attempt)
            self.need(
                key not in job.billed, f"{entry.ref}/{index}: attempt {entry.attempt} billed twice"
            )
            job.billed[key] = entry.lease_id
        lease.cpu_us += entry.cpu_us
        until = self.cancelled_ms.get(lease.job)
        if until is not None:
            most = job.spec.limits.cpus_milli * (until - self.granted_ms[entry.lease_id] + 1)
            self.need(lease.cpu_us <= most, f"{entry.ref}: charged for time after its cancel")
        self.need(0 <= entry.toll_ucredits <= entry.amount_ucredits, "toll")
        job.amount += entry.amount_ucredits
        self.need(job.amount <= job.spec.cap_ucredits, f"{entry.ref}: billed over its cap")

    def on_RecordState(self, effect: fx.RecordState) -> None:  # noqa: N802
        job, state = self.jobs[effect.job], effect.status.state
        self.need(job.state not in FINAL_JOB_STATES, f"j{effect.job}: a state after its final one")
        job.state = state
        if state in FINAL_JOB_STATES:
            card = effect.status
            self.need(
                card.done + card.failed + card.cancelled == card.count, f"j{effect.job}: counts"
            )
            self.need(
                len(job.finals) == card.count, f"j{effect.job}: {len(job.finals)}/{card.count}"
            )

    def on_TellStatus(self, effect: fx.TellStatus) -> None:  # noqa: N802
        job = self.jobs[effect.job]
        self.need(not job.is_told, f"j{effect.job}: a card after the final one")
        job.is_told = effect.status.state in FINAL_JOB_STATES

    def on_FreeJob(self, effect: fx.FreeJob) -> None:  # noqa: N802
        job = self.jobs[effect.job]
        self.need(job.state in FINAL_JOB_STATES, f"j{effect.job}: freed before its end")
        job.is_freed = True

    # ------------------------------------------------------------ the end

    def finish(self) -> None:
        """After everything healed and time passed: all that was accepted is complete."""
        for number, job in self.jobs.items():
            self.need(job.state in FINAL_JOB_STATES, f"j{number} never ended: {job.state}")
            self.need(job.is_freed and job.is_told, f"j{number}: freed and told")
            ok = [index for index, outcome in job.finals.items() if outcome == Outcome.OK]
            bills = {index for index, _ in job.billed}
            self.need(bills.issuperset(ok), f"j{number}: a subtask was done and not billed")
            if job.state == "done":
                bad = [o for o in job.finals.values() if o not in (Outcome.OK, Outcome.CANCELLED)]
                self.need(not bad, f"j{number}: done with outcomes {bad[:5]}")
        self.need(not self.out, f"leases were left over: {list(self.out)[:3]}")
