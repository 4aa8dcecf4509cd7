"""A whole grid in virtual time: the real cores and shells of all four parties under seeded faults.

A seed draws which faults are armed and how often they strike (swarm testing), what clients want and
who works. Until ``heal_ms`` things go wrong; after that everything is well, and everything that was
accepted has to end. ``Grid(seed).run()`` plays it and raises on a broken promise.
"""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from sim_checker import Promises, Truth, audit_books, check_sums
from sim_client import SimClient
from sim_jobs import Work, make_work
from sim_net import NetSettings, Network
from sim_servers import SimBroker, SimLedger
from sim_watcher import Watcher
from sim_worker import JailSettings, SimWorker
from sim_world import World, need, replaced

from gristmill.broker import app as broker_app
from gristmill.broker.core import events as ev
from gristmill.broker.core import invariants
from gristmill.broker.core.state import State
from gristmill.worker import agent as worker_agent

END_MS = 240_000  #: after the heal: what has not ended by then never will

STEPS_MAX = 300_000  #: of the world: a seed has some thousands, seldom fifty thousand
WHOLE_CHECK_EVERY = 16  #: steps of the broker's core between two checks of its whole state

#: What a seed may arm, and the mean time between two strikes in ms.
FAULTS = {
    "broker crash": 2_500,
    "ledger crash": 3_000,
    "ledger away": 6_000,
    "ledger dies in a commit": 0,
    "worker crash": 1_500,
    "client crash": 3_000,
    "broker stop": 4_000,
    "worker stop": 2_000,
    "client stop": 3_000,
    "ledger stop": 4_000,
    "cut": 700,
    "partition": 2_500,
    "one-way partition": 2_500,
    "harsh network": 0,
    "slow network": 0,
    "broker disk full": 4_000,
    "broker disk error": 5_000,
    "broker slow fsync": 0,
    "ledger disk full": 4_000,
    "ledger disk error": 5_000,
    "ledger slow fsync": 0,
    "jail trouble": 0,
    "drain": 3_000,
    "operator drain": 5_000,
    "steer": 1_500,
    "clock jump": 4_000,
}


@dataclass
class Settings:
    """Everything that a seed decides before the first event; printed when a seed fails."""

    faults: dict[str, int]
    heal_ms: int
    workers: int
    clients: int
    works: int
    ttl_ms: int
    report_ms: int
    poor: bool
    broker: dict[str, int]
    network: NetSettings = field(default_factory=NetSettings)
    jails: JailSettings = field(default_factory=JailSettings)


def draw_settings(world: World) -> Settings:
    """A random subset of the faults with random rates."""
    r = world.random
    share = r.choice((0.1, 0.3, 0.5))
    faults = {
        name: int(mean * r.choice((0.5, 1, 2))) for name, mean in FAULTS.items()
        if r.random() < share
    }  # fmt: skip
    ttl_ms = r.choice((700, 1_500, 3_500))
    settings = Settings(
        faults=faults,
        heal_ms=r.choice((5_000, 10_000, 16_000)),
        workers=r.randint(1, 4),
        clients=r.randint(1, 3),
        works=r.randint(1, 3),
        ttl_ms=ttl_ms,
        report_ms=ttl_ms // r.choice((3, 5)),
        poor=r.random() < 0.2,
        broker={
            "tick_ms": r.choice((20, 50)),
            "drain_messages": r.choice((2, 64)),
            "client_ttl_ms": r.choice((5_000, 15_000)),
            "ledger_resend_ms": r.choice((300, 1_000)),
            "peer_queue_messages": r.choice((16, 4_096)),
            "result_cache_bytes": 1 << 20,
            "parcel_cache_bytes": 1 << 20,
        },
    )
    if "slow network" in faults:
        settings.network.delays = (1, 20, 60, 300)
    if "harsh network" in faults:
        settings.network.lose = r.choice((0.0, 0.02, 0.1))
        settings.network.repeat = r.choice((0.0, 0.02, 0.2))
        settings.network.reorder = r.choice((0.01, 0.05, 0.2))
    if "jail trouble" in faults:
        rate = r.choice((0.01, 0.05))
        settings.jails = JailSettings(
            *(rate * r.choice((0, 1)) for _ in range(5)),
            r.choice((500, 4_000, 9_000)),
            r.choice((0.0, 0.3)),
        )
    return settings


class Grid:
    """One seed. ``run`` plays it to its end; ``figures`` says what happened in it."""

    def __init__(
        self,
        seed: int,
        settings: Settings | None = None,
        works: list[Work] | None = None,
        end_ms: int = END_MS,
    ) -> None:
        self.world = world = World(seed)
        self.seed, self.end_ms = seed, end_ms
        self.settings = settings = settings or draw_settings(world)
        self.folder = pathlib.Path(tempfile.gettempdir())
        self.is_calm = False
        r = world.random
        self.works: list[Work] = []
        self.net = Network(world, settings.network)
        for number in range(settings.clients * settings.works if works is None else 0):
            tenant = f"t{number % settings.clients}"
            self.works.append(make_work(r, number, tenant, settings.ttl_ms))
        self.works += works or []
        self.truth = Truth(world, self.works, settings.poor)
        self.watcher = Watcher(world, self._has_hold)
        self.promises = Promises(self.truth, self._on_promise)
        self.workers = [self._worker(f"w{number}") for number in range(settings.workers)]
        self.clients = []
        for number in range(settings.clients):
            client = SimClient(world, self.net, f"c{number}", self.promises)
            client.spread_ms = settings.heal_ms * 3 // 4
            client.works = [work for work in self.works if work.tenant == f"t{number}"]
            self.clients.append(client)
        self._held: dict[int, None] = {}
        self._steps = 0

    def _worker(self, name: str) -> SimWorker:
        worker = SimWorker(self.world, self.net, name, self.truth, self.settings.jails)
        worker.is_calm = lambda: self.is_calm
        return worker

    # ------------------------------------------------------------ the run

    def run(self) -> "Grid":
        """Plays the seed to its end.

        Raises:
            AssertionError: a promise was broken.
        """
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="gristmill-sim-"))
        try:
            self._build()
            with replaced(self._names()):
                self._begin()
                while not self._is_over():
                    if not self.world.run_next():
                        break
                self._finish()
        finally:
            self.world.seen.update(self.watcher.events)
            with contextlib.suppress(Exception):
                for process in self._processes():
                    process.crash()
            shutil.rmtree(self.folder, ignore_errors=True)
        return self

    def _build(self) -> None:
        world, settings = self.world, self.settings
        amount = 300_000 if settings.poor else 10**13
        fund = {f"t{number}": amount for number in range(settings.clients)}
        (self.folder / "ledger").mkdir()
        (self.folder / "broker").mkdir()
        (self.folder / "broker" / "journal.db").touch()  # SQLite has it in memory
        self.ledger = SimLedger(world, self.net, self.folder / "ledger", fund)
        self.ledger.after_turn = lambda: check_sums(self.ledger.disk)
        self.broker = SimBroker(
            world, self.net, self.folder / "broker",
            {"worker_ttl_ms": settings.ttl_ms, "worker_report_ms": settings.report_ms}
            | settings.broker,
        )  # fmt: skip
        self.broker.before_start = self._before_start
        for disk, name in ((self.broker.disk, "broker"), (self.ledger.disk, "ledger")):
            if f"{name} slow fsync" in settings.faults:
                disk.sync_ms = (1, 20, 150, 1_500)
        if "ledger dies in a commit" in settings.faults:
            self.ledger.crash_rate = 0.05

    def _processes(self) -> list[Any]:
        return [self.broker, self.ledger, *self.workers, *self.clients]

    def _names(self) -> list[tuple[Any, str, Any]]:
        world = self.world
        return [
            *self.broker.names(),
            *self.ledger.names(),
            *self.clients[0].names(),
            (broker_app, "step", self._step(broker_app.step)),
            (broker_app, "recover", self._recover(broker_app.recover)),
            (worker_agent, "now_ms", world.now_ms),
            (worker_agent, "say", lambda text, is_loud=False: world.note(text)),
        ]

    def _begin(self) -> None:
        world, r = self.world, self.world.random
        self.ledger.start()
        self.broker.start()
        for worker in self.workers:
            world.at(r.randint(0, 500), worker.start)
        for client in self.clients:
            world.at(r.randint(0, 500), client.start)
        strikes = {
            name: getattr(self, "_" + name.replace(" ", "_").replace("-", "_"), None)
            for name in self.settings.faults
        }
        for name, strike in strikes.items():
            if strike is not None:
                self._strike_again(self.settings.faults[name], strike)
        world.at(self.settings.heal_ms, self._heal)

    def _strike_again(self, mean: int, strike: Callable[[], None]) -> None:
        def go() -> None:
            if not self.is_calm:
                strike()
                self._strike_again(mean, strike)

        self.world.at(int(self.world.random.expovariate(1 / mean)) + 1, go)

    def _is_over(self) -> bool:
        world, healed = self.world, self.settings.heal_ms
        need(world.steps < STEPS_MAX, f"{world.steps} steps, and no end in sight")
        if world.now < healed + 1_000:
            return False
        if world.now > healed + self.end_ms:
            return True
        if not all(client.is_up and client.is_done for client in self.clients):
            return False
        broker = self.broker.broker
        if broker is None or broker.state.jobs or len(broker.outbox):
            return False
        return bool(broker.journal.is_idle)

    def _finish(self) -> None:
        broker = self.broker.broker
        assert broker is not None
        stuck = {
            number: (job.state, job.hold, job.ready.count, job.leased, job.uploaded, job.count)
            for number, job in broker.state.jobs.items()
        }
        need(not stuck, f"after all was well these never ended: {stuck}")
        for client in self.clients:
            for work in client.works:
                reading = client.readings.get(work.number)
                need(
                    reading is not None and reading.is_over,
                    f"{client.host} never saw the end of work {work.number}",
                )
        invariants.check(broker.state)
        self.promises.finish(self.works)
        self.watcher.finish()
        audit_books(self.broker.disk, self.ledger.disk, self.promises)

    # ------------------------------------------------------------ watching the broker's core

    def _step(self, real: Any) -> Any:
        def step(state: State, event: ev.AnyEvent, now_ms: int) -> Any:
            self._steps += 1
            watcher, journal = self.watcher, self.broker.journal
            watcher.event(event)
            effects = real(state, event, now_ms)
            invariants.check(state, self._steps % WHOLE_CHECK_EVERY == 0)
            tag = (journal.incarnation, journal._open.number)
            for effect in effects:
                watcher.see(effect, tag)
            return effects

        return step

    def _recover(self, real: Any) -> Any:
        def recover(journal: Any, *arguments: Any) -> Any:
            found = real(journal, *arguments)
            invariants.check(found.state)
            for effect in found.effects:
                self.watcher.see(effect, (journal.incarnation, journal._open.number))
            return found

        return recover

    def _before_start(self) -> None:
        """The broker starts again: what its file has is what it may know."""
        if self.broker.life > 1:
            self.world.saw("broker restart")
            self.watcher.restarted(self._is_durable)

    def _is_durable(self, tag: tuple[int, int]) -> bool:
        upto = self.broker.disk_groups.get(tag[0], 0)
        return tag[1] <= upto

    def _has_hold(self, job: int) -> bool:
        if job not in self._held:
            ref = f"{self.broker.journal.broker}/{job}"
            if not self.ledger.disk.rows("SELECT 1 FROM hold WHERE ref = ?", ref):
                return False
            self._held[job] = None
        return True

    def _on_promise(self, job: int, is_cancel: bool) -> bool:
        """A client was promised something: the worst moment to crash. Says if it was unfinished."""
        is_unfinished = job in self.watcher.cancelled_ms
        if "broker crash" in self.settings.faults and not self.is_calm:
            if self.world.chance(0.5 if is_cancel else 0.05):
                self.world.saw("broker crash after an ack")
                self._broker_crash()
        return is_unfinished

    # ------------------------------------------------------------ faults

    def _pick(self, processes: list[Any]) -> Any:
        return self.world.random.choice(processes)

    def _crash(self, process: Any, pauses: tuple[int, ...]) -> None:
        if process.is_up:
            self.world.saw(f"{process.host.rstrip('0123456789')} crash")
            process.crash()
            self.world.at(self.world.random.choice(pauses), process.start)

    def _stop(self, process: Any) -> None:
        if process.is_up and not process.is_paused:
            self.world.saw("process stopped")
            process.pause()
            self.world.at(self.world.random.choice((100, 1_000, 5_000)), process.resume)

    def _broker_crash(self) -> None:
        self._crash(self.broker, self.broker.restart_ms)

    def _ledger_crash(self) -> None:
        self._crash(self.ledger, self.ledger.restart_ms)

    def _ledger_away(self) -> None:
        self.world.saw("ledger away for long")
        self._crash(self.ledger, (6_000, 9_000))

    def _worker_crash(self) -> None:
        worker = self._pick(self.workers)
        if worker.is_up and self.world.chance(0.15):
            worker.is_wanted = False
            if self.world.now % 2:
                self.world.saw("worker gone for good")
                worker.crash()
            else:  # its loop, not its connection: nothing but the silence tells
                self.world.saw("worker hung for good")
                worker.pause()
        elif worker.is_wanted:
            self._crash(worker, (10, 1_000, 6_000))

    def _client_crash(self) -> None:
        self._crash(self._pick(self.clients), (10, 1_000, 6_000))

    def _broker_stop(self) -> None:
        self._stop(self.broker)

    def _ledger_stop(self) -> None:
        self._stop(self.ledger)

    def _worker_stop(self) -> None:
        self._stop(self._pick(self.workers))

    def _client_stop(self) -> None:
        self._stop(self._pick(self.clients))

    def _cut(self) -> None:
        connections = self.net.connections()
        if connections:
            self.world.saw("connection cut")
            self._pick(connections).cut()

    def _partition(self) -> None:
        host = self._pick([*self.workers, *self.clients, self.ledger]).host
        self.world.saw("partition")
        self._block([("broker", host), (host, "broker")])

    def _one_way_partition(self) -> None:
        host = self._pick([*self.workers, *self.clients, self.ledger]).host
        self.world.saw("one-way partition")
        self._block([self._pick([("broker", host), (host, "broker")])])

    def _block(self, ways: list[tuple[str, str]]) -> None:
        self.world.note(f"partition {ways}")
        for way in ways:
            self.net.block(*way)

        def heal() -> None:
            for way in ways:
                self.net.unblock(*way)

        self.world.at(self.world.random.choice((300, 2_000, 7_000)), heal)

    def _broker_disk_full(self) -> None:
        self._fill(self.broker.disk)

    def _ledger_disk_full(self) -> None:
        self._fill(self.ledger.disk)

    def _fill(self, disk: Any) -> None:
        self.world.note(f"{disk.name}'s disk is full")
        disk.is_full = True
        disk.arm()

        def free() -> None:
            disk.is_full = False
            disk.arm()

        self.world.at(self.world.random.choice((200, 3_000)), free)

    def _broker_disk_error(self) -> None:
        if self.broker.is_up:
            self.broker.disk.is_broken = True
            self.broker.disk.arm()

    def _ledger_disk_error(self) -> None:
        if self.ledger.is_up:
            self.ledger.disk.is_broken = True
            self.ledger.disk.arm()

    def _drain(self) -> None:
        self._pick(self.workers).drain()

    def _operator_drain(self) -> None:
        self._pick(self.clients).drain(self._pick(self.workers).host)

    def _clock_jump(self) -> None:
        self.world.saw("clock jump")
        self.world.utc_skew += self.world.random.choice((-3_600_000, 60_000, 3_600_000))

    def _steer(self) -> None:
        r = self.world.random
        client = self._pick(self.clients)
        work = self._pick(client.works)
        kind = r.choice(("cancel", "runs", "pause", "pause"))
        if kind == "cancel":
            client.cancel(work, [])
        elif kind == "runs" and work.size:
            client.cancel(work, [(r.randrange(work.size), r.randint(1, 30))])
        else:
            client.steer(work, "pause")
            self.world.at(r.randint(100, 2_000), lambda: client.steer(work, "resume"))

    # ------------------------------------------------------------ the heal

    def _heal(self) -> None:
        """From now on everything works, and there is a worker for every job."""
        world = self.world
        world.note("heal")
        self.is_calm = True
        net = self.net.settings
        net.lose = net.repeat = net.reorder = 0.0
        net.delays = (0, 1, 2)
        for way in list(self.net.blocked):
            self.net.unblock(*way)
        for disk in (self.broker.disk, self.ledger.disk):
            disk.is_full = disk.is_broken = False
            disk.sync_ms = (1,)
            disk.arm()
        self.ledger.crash_rate = 0.0
        extra = self._worker("extra")
        extra.slots, extra.labels, extra.cpus_milli = 3, {"gpu": "1"}, 4_000
        extra.tiers = ["strict", "job", "batch"]
        self.workers.append(extra)
        for process in self._processes():
            if getattr(process, "is_wanted", True):
                process.resume()
                world.at(1, process.start)
        world.at(1_000, self._look_after)

    def _look_after(self) -> None:
        """A job that paused because it only fails is resumed, as its tenant would."""
        broker = self.broker.broker
        for client in self.clients:
            for work in client.works:
                reading = client.readings.get(work.number)
                job = broker.state.jobs.get(reading.job) if broker and reading else None
                if job is not None and job.is_paused:
                    client.steer(work, "resume")
        self.world.at(500, self._look_after)

    def describe(self) -> str:
        """The seed's settings for a person."""
        return f"seed {self.seed}: {asdict(self.settings)}"

    def figures(self) -> dict[str, int]:
        """What happened in this seed."""
        return {
            "virtual_ms": self.world.now,
            "steps": self.world.steps,
            "delivered": self.net.delivered,
            "lost": self.net.lost,
            "repeated": self.net.repeated,
        }
