"""A simulated worker, and the truth about the subtasks that it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from sim_checker import need

from gristmill.broker.core import events as ev
from gristmill.wire.limits import LEASES_PER_SLOT
from gristmill.wire.meter import Meter, pack_meter, unpack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec, Tariff
from gristmill.wire.worker import Held, LeaseGrant, ResultHead, Returned

if TYPE_CHECKING:
    from sim_grid import Grid

UTC_MS = 1_700_000_000_000


@dataclass
class SimJob:
    """What a simulated client wants, and the truth about its subtasks."""

    spec: JobSpec
    tenant: str
    size: int
    seed: int
    tariff: Tariff
    fail_rate: float
    poison: int
    long_one: int

    def duration(self, index: int) -> float:
        if index == self.long_one:
            return 700.0
        return 1.0 + (index * 7919 + self.seed) % 13

    def outcome(self, index: int, attempt: int) -> Outcome:
        draw = (index * 2654435761 + attempt * 40503 + self.seed) % 1000
        return Outcome.ERROR if draw < self.fail_rate * 1000 else Outcome.OK


@dataclass
class Running:
    """A lease as the simulated worker has it: ``left`` in order; ``chunk`` runs now."""

    grant: LeaseGrant
    left: list[int]
    chunk: list[int] = field(default_factory=list)
    spent: int = 0
    is_recalled: bool = False


class SimWorker:
    """One agent; a new session after each loss."""

    def __init__(self, grid: Grid, number: int) -> None:
        r = grid.random
        self.grid, self.name = grid, f"w{number}"
        self.slots = r.randint(1, 3)
        self.cpus_milli = self.slots * 1000
        self.tiers = ["strict", "job", "batch"] if r.random() < 0.8 else ["job"]
        self.labels = {"gpu": "1"} if r.random() < 0.4 else {}
        self.latency = r.choice((1, 5, 60))
        self.repeat = r.choice((0.0, 0.0, 0.3))
        self.speed = r.choice((0.3, 1.0, 3.0))
        self.session = 0
        self.is_up = False
        self.unacked: list[ev.ResultArrived] = []
        self.start()

    def start(self) -> None:
        self.grid.sessions += 1
        self.session = self.grid.sessions
        self.is_up, self.is_silent, self.is_draining = True, False, False
        self.hung: dict[int, None] = {}
        self.result_number = self.report_number = 0
        self.queues: list[list[Running]] = [[] for _ in range(self.slots)]
        self.outbox: list[ev.ResultArrived] = []
        self.returned: list[Returned] = []
        join = ev.WorkerJoined(
            self.session,
            self.name,
            self.name * 32,
            self.slots,
            self.cpus_milli,
            8 << 30,
            self.labels,
            self.tiers,
            ["3.11"],
            "cgroup",
            [],
        )
        self.grid.feed(join)
        unacked, self.unacked = self.unacked, []
        for old in unacked:  # a result is kept until it is acked, and said again in a new session
            self.say(old.head, old.meter, old.failures, self.grid.checker.refs[old.ref][4])
        self.flush()
        self.later(self.grid.random.randint(1, 1000), self.full_report)

    def later(self, delay: int, action: Callable[..., None], *arguments: object) -> None:
        session = self.session

        def run() -> None:
            if self.is_up and self.session == session:
                action(*arguments)

        self.grid.at(delay, run)

    def to_broker(self, *events: ev.AnyEvent) -> None:
        """Messages of a session arrive in order; one whose session is gone is dropped."""
        session = self.session

        def arrive() -> None:
            for event in events:
                if session in self.grid.live:
                    self.grid.deliver(event)

        if not self.is_silent:
            self.grid.at_in_order(session, self.latency, arrive)

    # ------------------------------------------------------------ orders

    def on_dispatch(self, grant: LeaseGrant) -> None:
        indices = [i for first, count in grant.runs for i in range(first, first + count)]
        queue = self.queues[grant.slot]
        queue.append(Running(grant, indices))
        need(len(queue) <= LEASES_PER_SLOT + 2, "a slot got more leases than it may have")
        if len(queue) == 1:
            self.begin(grant.slot)

    def begin(self, slot: int) -> None:
        queue = self.queues[slot]
        while queue and not queue[0].left:
            queue.pop(0)
        if not queue or slot in self.hung:
            return
        running = queue[0]
        r = self.grid.random
        running.chunk = running.left[: r.choice((1, 1, 2, 5, 20, 100))]
        first = running.chunk[0]  # results are contiguous
        size = next((n for n, i in enumerate(running.chunk) if i != first + n), len(running.chunk))
        running.chunk = running.chunk[:size]
        if r.random() < self.grid.trouble(0.02):
            self.give_back(slot, running, list(running.left), r.choice(("jail", "set-up")))
            self.flush()
            self.begin(slot)
            return
        job = self.grid.specs[running.grant.job]
        took = sum(job.duration(index) for index in running.chunk) * self.speed
        self.later(max(1, int(took)), self.end_chunk, slot, running)

    def end_chunk(self, slot: int, running: Running, outcome: Outcome | None = None) -> None:
        if slot in self.hung or not running.chunk or self.queues[slot][:1] != [running]:
            return
        chunk, running.chunk = running.chunk, []
        job, grant, r = self.grid.specs[running.grant.job], running.grant, self.grid.random
        outcomes = bytearray(job.outcome(index, grant.attempt) for index in chunk)
        if r.random() < self.grid.trouble(0.05):
            outcomes[0] = r.choice((Outcome.SETUP, Outcome.STORE, Outcome.ERROR))
        cpu_us = int(sum(job.duration(index) for index in chunk) * self.speed * 1000)
        if outcome is not None:
            chunk, outcomes = chunk[:1], bytearray([outcome])
        price = job.tariff.price(cpu_us, len(chunk))
        if outcome is None and running.spent + price > grant.budget_ucredits and price:
            chunk, outcomes = chunk[:1], bytearray([Outcome.BUDGET])
            cpu_us = cpu_us // 2
        running.spent += job.tariff.price(cpu_us, len(chunk))
        self.emit(running, chunk, bytes(outcomes), cpu_us)
        running.left = [index for index in running.left if index not in chunk]
        if outcomes[-1] in (Outcome.BUDGET, Outcome.CANCELLED, Outcome.LOST):
            self.give_back(slot, running, list(running.left), "stopped")
        if r.random() < 0.6 or not running.left:
            self.flush()
        else:
            self.later(20, self.flush)
        self.begin(slot)

    def emit(self, running: Running, chunk: list[int], outcomes: bytes, cpu_us: int) -> None:
        grant, size = running.grant, len(chunk)
        meter = unpack_meter(pack_meter(size, bytearray(outcomes)), size)
        failures = [(at, f"bad {o}") for at, o in enumerate(outcomes) if o]
        ids = (grant.lease_id, grant.job, chunk[0], size)
        head = ResultHead(0, *ids, "m", cpu_us, cpu_us, 100, "cgroup")
        self.say(head, meter, failures, outcomes)

    def say(
        self, head: ResultHead, meter: Meter, failures: list[tuple[int, str]], outcomes: bytes
    ) -> None:
        self.result_number += 1
        self.grid.refs += 1
        ref = self.grid.refs
        head = msgspec.structs.replace(head, number=self.result_number)
        result = ev.ResultArrived(
            self.session, head, meter, ref, 100, failures, UTC_MS + self.grid.now
        )
        self.grid.checker.result(ref, self.session, head.lease_id, head.first, outcomes)
        self.outbox.append(result)
        self.unacked.append(result)

    def on_ack(self, upto: int) -> None:
        self.unacked = [result for result in self.unacked if result.head.number > upto]

    def give_back(self, slot: int, running: Running, indices: list[int], cause: str) -> None:
        if not indices:
            return
        runs: list[tuple[int, int]] = []
        for index in indices:
            if runs and runs[-1][0] + runs[-1][1] == index:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((index, 1))
        running.left = [index for index in running.left if index not in indices]
        self.returned.append(Returned(running.grant.lease_id, runs, cause))

    def find(self, lease_id: int) -> tuple[int, Running] | None:
        for slot, queue in enumerate(self.queues):
            for running in queue:
                if running.grant.lease_id == lease_id:
                    return slot, running
        return None

    def on_recall(self, lease_id: int) -> None:
        found = self.find(lease_id)
        if found is None:
            return
        slot, running = found
        unstarted = [index for index in running.left if index not in running.chunk]
        self.give_back(slot, running, unstarted, "recalled")
        if self.queues[slot][0] is not running and not running.left:
            self.queues[slot].remove(running)
        self.flush()

    def on_stop(self, lease_id: int, outcome: int) -> None:
        found = self.find(lease_id)
        if found is None:
            return
        slot, running = found
        unstarted = [index for index in running.left if index not in running.chunk[:1]]
        is_head = self.queues[slot][0] is running
        self.give_back(slot, running, unstarted, "stopped")
        if is_head and running.chunk:
            self.end_chunk(slot, running, Outcome(outcome))
        elif not is_head:
            self.queues[slot].remove(running)
        self.flush()

    # ------------------------------------------------------------ reports

    def flush(self) -> None:
        if not self.outbox and not self.returned:
            return
        self.report(False)

    def report(self, is_full: bool) -> None:
        self.report_number += 1
        alive = [slot for slot in range(self.slots) if slot not in self.hung]
        held = [
            Held(running.grant.lease_id, slot, running.chunk[0] if running.chunk else -1, 0)
            for slot, queue in enumerate(self.queues)
            for running in queue
            if running.left
        ]
        report = ev.WorkerReported(
            self.session,
            self.report_number,
            is_full,
            alive,
            held,
            self.returned,
            self.is_draining,
        )
        results, self.outbox, self.returned = self.outbox, [], []
        events: list[ev.AnyEvent] = [*results, report]
        if results and self.grid.random.random() < self.repeat:
            events = [*results, *results, report]
        self.to_broker(*events)

    def full_report(self) -> None:
        self.report(True)
        self.later(self.grid.state.report_ms, self.full_report)

    # ------------------------------------------------------------ mishaps

    def crash(self, is_seen: bool) -> None:
        """``is_seen``: the connection breaks visibly; otherwise the ttl has to find out."""
        self.is_up = False
        if is_seen and self.session in self.grid.live:
            self.grid.feed(ev.WorkerLost(self.session, False, "connection lost"))
            self.grid.live.pop(self.session, None)

    def goodbye(self) -> None:
        """Results are flushed, the rest is left to the broker as drained."""
        self.is_up = False
        if self.session in self.grid.live:
            self.grid.feed(ev.WorkerLost(self.session, True, "goodbye"))
            self.grid.live.pop(self.session, None)

    def restart(self) -> None:
        if self.session in self.grid.live:
            self.grid.feed(ev.WorkerLost(self.session, False, "replaced"))
            self.grid.live.pop(self.session, None)
        self.start()

    def start_if(self, session: int) -> Callable[[], None]:
        def start() -> None:
            if self.is_up and self.session == session and not self.is_silent:
                self.start()

        return start

    def on_dropped(self) -> None:
        """REJOIN: what it held is void; it stops that and joins again."""
        if self.is_up:
            self.start()
