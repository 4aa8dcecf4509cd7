"""Drives the broker's core by hand: short names for its events, in made-up time."""

from __future__ import annotations

from gristmill.broker.core import effects as fx
from gristmill.broker.core import events as ev
from gristmill.broker.core.invariants import check
from gristmill.broker.core.leases import Lease
from gristmill.broker.core.state import Config, State
from gristmill.broker.core.step import step
from gristmill.wire.meter import Meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec, Limits, Tariff
from gristmill.wire.worker import Held, LeaseGrant, ResultHead, Returned

UTC = 1_700_000_000_000
CLIENT = 7


class Core:
    def __init__(self, config: Config | None = None) -> None:
        self.state = State.new(config or Config(), 5)
        self.now = 1_000
        self.numbers: dict[int, int] = {}
        self.reports: dict[int, int] = {}
        self.refs = 0
        self.tariffs = {"standard": Tariff()}

    def do(self, event: ev.AnyEvent, after: int = 0) -> list[fx.AnyEffect]:
        self.now += after
        effects = step(self.state, event, self.now)
        check(self.state)
        return effects

    # ------------------------------------------------------------ clients

    def submit(
        self, tenant: str = "t", submission: bytes = b"", is_dry_run: bool = False, **fields: object
    ) -> list[fx.AnyEffect]:
        limits = fields.pop("limits", Limits())
        values = {"kind": "function", "function": "0" * 64, "limits": limits, **fields}
        spec = JobSpec(**values)  # type: ignore[arg-type]
        submission = submission or b"s%d" % (self.state.job_counter + 1)
        return self.do(
            ev.JobSubmitted(
                CLIENT,
                1,
                tenant,
                submission,
                spec,
                dict(self.tariffs),
                UTC + self.now,
                is_dry_run,
            )
        )

    def parcel(
        self, job: int, first: int, count: int, body_bytes: int = 100, tenant: str = "t"
    ) -> list[fx.AnyEffect]:
        return self.do(ev.ParcelArrived(CLIENT, tenant, job, first, count, "m", body_bytes))

    def job(self, count: int, tenant: str = "t", **fields: object) -> int:
        """Submits, holds and uploads a job of ``count`` subtasks; returns its number."""
        self.submit(tenant, count=count, **fields)
        number = self.state.job_counter
        if number in self.state.jobs and self.state.jobs[number].hold == "asked":
            self.do(ev.HoldAnswered(number, "", ""))
        for first in range(0, count, 1000):
            self.parcel(number, first, min(1000, count - first), tenant=tenant)
        return number

    def cancel(self, job: int, runs: list[tuple[int, int]] | None = None) -> list[fx.AnyEffect]:
        return self.do(ev.CancelAsked(CLIENT, 2, "t", job, runs or []))

    # ------------------------------------------------------------ workers

    def join(self, worker: int = 1, slots: int = 1, **fields: object) -> list[fx.AnyEffect]:
        values: dict[str, object] = {
            "cpus_milli": slots * 1000,
            "memory_bytes": slots << 31,
            "labels": {},
            "tiers": ["strict", "job", "batch"],
            "pythons": ["3.11.7"],
            "metering": "cgroup",
            "held": [],
            **fields,
        }
        name = f"w{worker}"
        return self.do(ev.WorkerJoined(worker, name, f"node{worker}", slots, **values))  # type: ignore[arg-type]

    def result(
        self,
        worker: int,
        lease: LeaseGrant,
        first: int,
        count: int,
        outcome: bytes | Outcome = Outcome.OK,
        wall_us: int = -1,
        cpu_us: int = 1_000,
        failures: list[tuple[int, str]] | None = None,
        number: int = 0,
        job: int = 0,
        meter_count: int = -1,
        digest: bytes = b"",
        dice: int = 0,
    ) -> list[fx.AnyEffect]:
        self.numbers[worker] = number or self.numbers.get(worker, 0) + 1
        self.refs += 1
        wall = 1_000 * count if wall_us < 0 else wall_us
        size = count if meter_count < 0 else meter_count
        uniform, column = (int(outcome), b"") if isinstance(outcome, Outcome) else (0, outcome)
        meter = Meter(size, uniform, column, (), (), ())
        head = ResultHead(
            self.numbers[worker],
            lease.lease_id,
            job or lease.job,
            first,
            count,
            "m",
            wall,
            cpu_us,
            2_000,
            "cgroup",
        )
        return self.do(
            ev.ResultArrived(
                worker, head, meter, self.refs, 10, failures or [], UTC + self.now, digest, dice
            )
        )

    def finish(self, worker: int, lease: LeaseGrant, each_us: int = 1_000) -> list[fx.AnyEffect]:
        """All of a lease ends OK; returns the effects of its last result."""
        effects: list[fx.AnyEffect] = []
        for first, count in lease.runs:
            effects = self.result(
                worker, lease, first, count, wall_us=count * each_us, cpu_us=count * each_us
            )
        return effects

    def report(
        self,
        worker: int = 1,
        is_full: bool = True,
        alive: list[int] | None = None,
        held: list[Held] | None = None,
        returned: list[Returned] | None = None,
        is_draining: bool = False,
        after: int = 0,
        open_jobs: list[int] | None = None,
    ) -> list[fx.AnyEffect]:
        self.reports[worker] = self.reports.get(worker, 0) + 1
        known = self.state.workers.get(worker)
        slots = alive if alive is not None else list(range(len(known.slots) if known else 0))
        if held is None:
            held = self.held(worker)
        return self.do(
            ev.WorkerReported(
                worker,
                self.reports[worker],
                is_full,
                slots,
                held,
                returned or [],
                is_draining,
                open_jobs or [],
            ),
            after,
        )

    def held(self, worker: int) -> list[Held]:
        """What an agent in perfect agreement with the broker would say it holds."""
        known = self.state.workers.get(worker)
        leases = known.leases.values() if known else ()
        return [Held(lease.number, lease.slot.number, -1, 0) for lease in leases]

    def give_back(
        self, worker: int, lease: LeaseGrant, runs: list[tuple[int, int]], cause: str = "recalled"
    ) -> list[fx.AnyEffect]:
        returned = [Returned(lease.lease_id, runs, cause)]  # type: ignore[arg-type]
        return self.report(worker, is_full=False, returned=returned)

    def tick(self, after: int = 50) -> list[fx.AnyEffect]:
        return self.do(ev.TimePassed(), after)


def grants(effects: list[fx.AnyEffect]) -> list[LeaseGrant]:
    return [effect.lease for effect in effects if isinstance(effect, fx.Dispatch)]


def kinds(effects: list[fx.AnyEffect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def only(effects: list[fx.AnyEffect], kind: type) -> list:  # type: ignore[type-arg]
    return [effect for effect in effects if isinstance(effect, kind)]


def grant_of(lease: Lease) -> LeaseGrant:
    """What is open of a lease, as the worker was told of it."""
    runs = list(lease.open)
    return LeaseGrant(lease.number, lease.slot.number, lease.job.number, lease.attempt, runs, 0, [])


def leases(core: Core) -> list[LeaseGrant]:
    return [grant_of(lease) for lease in core.state.leases.values()]


def big_lease(core: Core, count: int = 100, **fields: object) -> LeaseGrant:
    """A job of which slot 0 of worker 1 holds a lease of 8 subtasks, and one stacked behind."""
    core.job(count, **fields)
    while True:
        lease = next(iter(leases(core)))
        if sum(n for _, n in lease.runs) >= 8:
            return lease
        core.now += 5
        core.finish(1, lease)
