"""A grid in virtual time around the real core: clients, workers, a ledger and a shell, all seeded.

Workers crash, fall silent and come back, hang in a slot, answer late, send results twice, hand work
back, drain; clients upload in pieces, cancel, pause and leave; the ledger goes down. After
``HEAL_MS`` everything is well, and everything that was accepted has to end."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from sim_checker import Checker, need
from sim_journal import Journal
from sim_worker import UTC_MS, SimJob, SimWorker

from gristmill.broker.core import effects as fx
from gristmill.broker.core import events as ev
from gristmill.broker.core.invariants import check
from gristmill.broker.core.recovery import rebuild
from gristmill.broker.core.state import Config, State
from gristmill.broker.core.step import step
from gristmill.wire.ledger import Contribution, Hold
from gristmill.wire.spec import JobSpec, Limits, Tariff

HEAL_MS = 12_000
END_MS = 300_000


class Grid:
    """The simulated world. ``run`` plays one seed to its end and raises on a broken promise."""

    def __init__(self, seed: int, whole_check_every: int = 7) -> None:
        self.random = r = random.Random(seed)
        self.seed, self.whole_check_every = seed, whole_check_every
        self.now, self.order = 0, 0
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.in_order: dict[int, int] = {}
        self.checker = Checker()
        slots_max = {"t1": r.randint(1, 3)} if r.random() < 0.3 else {}
        config = Config(slots_max=slots_max, weights={"t0": r.randint(1, 3)}, recall_after_ms=50)
        self.state = State.new(config, 1)
        self.steps = self.sessions = self.refs = 0
        self.live: dict[int, SimWorker] = {}
        self.specs: dict[int, SimJob] = {}
        self.wanted: dict[int, SimJob] = {}
        self.ledger_up = True
        self.held: list[int] = []
        self.lost = self.restarts = 0
        self.journal = Journal()
        self.workers: list[SimWorker] = []
        for number in range(r.randint(1, 5)):
            self.workers.append(SimWorker(self, number))
        for client in range(1, r.randint(2, 5)):
            self.at(r.randint(0, 3000), lambda client=client: self.submit(client))
        self.at(50, self.tick)
        self.at(r.randint(100, 2000), self.mishap)
        self.at(HEAL_MS, self.heal)

    def trouble(self, rate: float) -> float:
        return rate if self.now < HEAL_MS else 0.0

    def at(self, delay: int, action: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.queue, (self.now + delay, self.order, action))

    def at_in_order(self, channel: int, delay: int, action: Callable[[], None]) -> None:
        due = max(self.in_order.get(channel, 0), self.now + delay)
        self.in_order[channel] = due
        self.at(due - self.now, action)

    # ------------------------------------------------------------ the shell

    def feed(self, event: ev.AnyEvent) -> list[fx.AnyEffect]:
        self.steps += 1
        if isinstance(event, ev.WorkerJoined):
            self.live[event.worker] = (
                next((w for w in self.workers if w.session == event.worker), None) or self.pending
            )
        effects = step(self.state, event, self.now)
        check(self.state, self.steps % self.whole_check_every == 0)
        for effect in effects:
            self.checker.see(effect)
            self.journal.write(effect, self)
            self.carry_out(effect)
        return effects

    def restart_broker(self) -> None:
        """The broker dies and starts again from its journal; workers and clients come back."""
        self.restarts += 1
        self.checker.restarted()
        incarnation = self.state.incarnation + 1
        facts = self.journal.facts()
        self.state, effects = rebuild(
            self.state.config, incarnation, facts, self.now, UTC_MS + self.now
        )
        check(self.state)
        self.live.clear()
        for effect in effects:
            self.checker.see(effect)
            self.journal.write(effect, self)
            self.carry_out(effect)
        self.feed(ev.LedgerSeen(self.ledger_up, False))
        for worker in self.workers:
            if worker.is_up and not worker.is_silent:
                self.at(self.random.randint(1, 400), worker.start_if(worker.session))

    @property
    def pending(self) -> SimWorker:
        """The worker that joins from its own constructor is not listed yet."""
        return _Pending(self, self.sessions)  # type: ignore[return-value]

    def deliver(self, event: ev.AnyEvent) -> None:
        if isinstance(event, ev.WorkerReported):
            for returned in event.returned:
                self.checker.returned(event.worker, returned.lease_id, returned.runs)
        self.feed(event)

    def worker_of(self, session: int) -> SimWorker | None:
        return next((w for w in self.workers if w.session == session and w.is_up), None)

    def to_worker(self, session: int, action: str, *arguments: object) -> None:
        delay = self.random.choice((1, 3, 30))

        def arrive() -> None:
            worker = self.worker_of(session)
            if worker is not None and not worker.is_silent:
                getattr(worker, action)(*arguments)

        self.at_in_order(-session, delay, arrive)

    def carry_out(self, effect: fx.AnyEffect) -> None:
        if isinstance(effect, fx.Dispatch):
            if self.random.random() < self.trouble(0.01):
                self.lost += 1  # orders that never arrive
                return
            self.to_worker(effect.worker, "on_dispatch", effect.lease)
        elif isinstance(effect, fx.RecallLease):
            self.to_worker(effect.worker, "on_recall", effect.lease_id)
        elif isinstance(effect, fx.StopLease):
            self.to_worker(effect.worker, "on_stop", effect.lease_id, effect.outcome)
        elif isinstance(effect, fx.AckReport):
            self.to_worker(effect.worker, "on_ack", effect.results_upto)
        elif isinstance(effect, fx.DropWorker):
            self.live.pop(effect.worker, None)
            session = effect.worker
            self.at(5, lambda: self.rejoin(session))
        elif isinstance(effect, fx.KeepParcel):
            upto = effect.first + effect.count
            job = effect.job
            self.at(3, lambda: self.feed(ev.ParcelsCommitted(job, upto)))
        elif isinstance(effect, fx.AddToOutbox):
            self.on_outbox(effect.entry)
        elif isinstance(effect, fx.AcceptJob) and not effect.is_replayed:
            self.specs[effect.job] = self.wanted[effect.request]
            job = effect.job
            client = effect.client
            self.at(2, lambda: self.upload(client, job, 0))

    def rejoin(self, session: int) -> None:
        worker = self.worker_of(session)
        if worker is None:
            return
        if worker.is_silent:
            self.at(500, lambda: self.rejoin(session))
        else:
            worker.on_dropped()

    def on_outbox(self, entry: object) -> None:
        if isinstance(entry, Hold):
            job = int(entry.ref.rpartition("/")[2])
            if self.ledger_up:
                self.at(self.random.randint(1, 30), lambda: self.answer_hold(job))
            else:
                self.held.append(job)
        elif isinstance(entry, Contribution):
            need(entry.amount_ucredits >= 0, "a negative bill")

    def answer_hold(self, job: int) -> None:
        is_poor = self.specs[job].seed % 17 == 0
        code = "INSUFFICIENT_CREDITS" if is_poor else ""
        self.checker.jobs[job].is_granted = not is_poor
        self.feed(ev.HoldAnswered(job, code, "too poor" if is_poor else ""))

    def tick(self) -> None:
        self.feed(ev.TimePassed())
        self.at(50, self.tick)

    # ------------------------------------------------------------ clients

    def submit(self, client: int) -> None:
        r = self.random
        request = len(self.wanted) + 1
        size = r.choice((0, 1, 3, 20, 100, 400))
        is_open = r.random() < 0.5
        spec = JobSpec(
            kind="function",
            function="0" * 64,
            count=-1 if is_open else size,
            tier=r.choice(("job", "job", "batch")),
            limits=Limits(cpus_milli=r.choice((500, 1000, 2000)), memory_bytes=1 << 30),
            labels={"gpu": "1"} if r.random() < 0.15 else {},
            python="3.11",
            retries=r.choice((0, 1, 3)),
            losses_max=r.choice((0, 1, 3, 3)),
            priority=r.randint(0, 9),
            concurrency_max=r.choice((0, 0, 0, 1, 7)),
            failures_max=r.choice((0, 0, 5)),
            cap_ucredits=r.choice((10**10, 10**10, 2_000_000, 20_000, 0)),
        )
        job = SimJob(
            spec,
            f"t{client % 3}",
            size,
            r.randint(0, 1 << 30),
            Tariff(),
            r.choice((0.0, 0.0, 0.1, 1.0)),
            -1,
            r.randint(0, 400) if r.random() < 0.3 else -1,
        )
        self.wanted[request] = job
        event = ev.JobSubmitted(
            client, request, job.tenant, b"s%d" % request, spec, job.tariff, UTC_MS + self.now
        )
        self.feed(event)
        if r.random() < 0.2:
            self.feed(event)  # the answer was lost: the same submission again
        if r.random() < 0.6 and self.now < HEAL_MS:
            self.at(r.randint(1, 2000), lambda: self.submit(client))

    def upload(self, client: int, number: int, first: int) -> None:
        job, r = self.specs[number], self.random
        if first >= job.size:
            self.feed(ev.UploadClosed(client, 0, job.tenant, number, job.size))
            return
        count = min(job.size - first, r.choice((1, 7, 50, 200)))
        parcel = ev.ParcelArrived(client, job.tenant, number, first, count, "m", 20 * count)
        self.feed(parcel)
        if r.random() < 0.1:
            self.feed(parcel)
        draw = r.random()
        if draw < 0.02:
            self.feed(ev.ClientLost(client))
            if job.spec.count < 0:
                job.size = first + count
        self.at(r.choice((1, 5, 300)), lambda: self.upload(client, number, first + count))

    # ------------------------------------------------------------ mishaps

    def mishap(self) -> None:
        if self.now >= HEAL_MS:
            return
        r, worker = self.random, self.random.choice(self.workers)
        kind = r.choice(
            "crash vanish silent hang goodbye drain cancel runs pause ledger restart broker".split()
        )
        if kind in ("cancel", "runs", "pause") and self.specs:
            self.steer(kind)
        elif kind == "broker":
            self.restart_broker()
        elif kind == "ledger":
            self.set_ledger(not self.ledger_up)
        elif not worker.is_up:
            worker.restart()
        elif kind == "crash" or kind == "vanish":
            worker.crash(kind == "crash")
        elif kind == "silent":
            worker.is_silent = True
            self.at(r.choice((500, 8000)), lambda: self.speak(worker))
        elif kind == "hang":
            worker.hung[r.randrange(worker.slots)] = None
            self.at(r.choice((500, 8000)), lambda: self.unhang(worker))
        elif kind == "goodbye":
            worker.goodbye()
        elif kind == "drain":
            worker.is_draining = True
        elif kind == "restart":
            worker.restart()
        self.at(r.randint(50, 1500), self.mishap)

    def speak(self, worker: SimWorker) -> None:
        """What was said in the silence is lost with its session, or repeated if that lives."""
        if worker.is_silent:
            worker.is_silent = False
            worker.restart()

    def unhang(self, worker: SimWorker) -> None:
        hung, worker.hung = list(worker.hung), {}
        for slot in hung:
            for running in worker.queues[slot][:1]:
                if running.chunk and self.random.random() < 0.7:  # it woke up and answers late
                    outcomes = bytes(len(running.chunk))
                    worker.emit(running, running.chunk, outcomes, 1000)
            for running in worker.queues[slot]:
                running.left = []  # the agent kills the jail of a slot that it does not see alive
            worker.queues[slot] = []
        if worker.is_up:
            worker.flush()

    def set_ledger(self, is_up: bool) -> None:
        self.ledger_up = is_up
        self.feed(ev.LedgerSeen(is_up, not is_up and self.random.random() < 0.5))
        if is_up:
            held, self.held = self.held, []
            for job in held:
                self.answer_hold(job)

    def steer(self, kind: str) -> None:
        r = self.random
        number = r.choice(list(self.specs))
        tenant = self.specs[number].tenant
        if kind == "cancel":
            self.feed(ev.CancelAsked(1, 0, tenant, number, []))
        elif kind == "runs":
            self.feed(ev.CancelAsked(1, 0, tenant, number, [(r.randint(0, 50), r.randint(1, 60))]))
        else:
            self.feed(ev.PauseAsked(1, 0, tenant, number))
            delay = r.randint(10, 3000)
            self.at(delay, lambda: self.feed(ev.ResumeAsked(1, 0, tenant, number)))

    def heal(self) -> None:
        """From now on everything works, and there is a worker for every job."""
        self.set_ledger(True)
        for worker in self.workers:
            if not worker.is_up or worker.is_silent or worker.hung or worker.is_draining:
                worker.restart()
        extra = SimWorker(self, len(self.workers))
        self.workers.append(extra)
        extra.slots, extra.labels, extra.cpus_milli = 2, {"gpu": "1"}, 4000
        extra.tiers = ["strict", "job", "batch"]
        extra.restart()
        self.at(1000, self.resume_all)

    def resume_all(self) -> None:
        """A job that paused because it only fails is resumed, as its tenant would."""
        for number in list(self.specs):
            job = self.state.jobs.get(number)
            if job is not None and job.is_paused:
                self.feed(ev.ResumeAsked(1, 0, job.tenant.name, number))
        self.at(500, self.resume_all)

    def run(self) -> Grid:
        while self.queue and self.now < END_MS:
            self.now, _, action = heapq.heappop(self.queue)
            action()
            if self.now > HEAL_MS + 2000 and not self.state.jobs:
                break
        check(self.state)
        waiting = {n: (j.state, j.ready.count, j.leased) for n, j in self.state.jobs.items()}
        need(not waiting, f"seed {self.seed}: after all was well these never ended: {waiting}")
        self.checker.finish()
        return self


class _Pending:
    def __init__(self, grid: Grid, session: int) -> None:
        self.session = session
