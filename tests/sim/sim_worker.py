"""Worker agents: the real core and the real agent's doings over simulated jails.

Only the yard is a model: jails that start late or never, die at any moment, hang in a subtask, end
long after they were killed. What they run and when is told to the checker as it happens.
"""

import functools
import hashlib
import pathlib
import time
import types
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import zmq
from nacl.signing import SigningKey
from sim_jobs import Work, value_of
from sim_net import Network, Poller
from sim_process import Process
from sim_world import Shim, World, need, replaced

from gristmill.wire.failure import Failure, pack_failures
from gristmill.wire.limits import PROTOCOL, RESULT_FLUSH_MS
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import OWN_DOING, Outcome
from gristmill.wire.worker import Hello
from gristmill.worker import agent as worker_agent
from gristmill.worker import link as worker_link
from gristmill.worker.agent import LOOK_MS, LOOK_SOON_MS, Agent
from gristmill.worker.core import effects as do
from gristmill.worker.core import events as on
from gristmill.worker.core.step import next_timer_ms

if TYPE_CHECKING:
    from sim_checker import Truth

BACK = "ipc:///sim/back.sock"
KEYS: dict[str, SigningKey] = {}
_ENDS: dict[str, Outcome] = {
    "time": Outcome.TIME,
    "cpu": Outcome.CPU,
    "output": Outcome.OUTPUT,
    "cancel": Outcome.CANCELLED,
    "budget": Outcome.BUDGET,
    "lied": Outcome.ERROR,
    "start": Outcome.SETUP,
    "hung": Outcome.LOST,
}


@dataclass
class JailSettings:
    """Rates of what goes wrong with jails, and how long a hang lasts."""

    fails_to_start: float = 0.0
    starts_slowly: float = 0.0
    dies: float = 0.0
    hangs: float = 0.0
    stops: float = 0.0
    hang_ms: int = 8_000
    ends_late: float = 0.0


@dataclass
class Feed:
    """A lease, or part of it, as the jail got it; ``given``: index to input."""

    lease: int
    attempt: int
    left: deque[int]
    given: dict[int, int]


@dataclass
class Jail:
    """One slot process. ``page``: (lease, index) as it stands on the shared page."""

    slot: int
    number: int
    work: Work
    job: int
    function: bytes
    phase: str = "starting"
    feeds: deque[Feed] = field(default_factory=deque)
    page: tuple[int, int] = (0, -1)
    attempt: int = 0
    began_ms: int = 0
    stops: tuple[int, ...] = ()
    done: list[tuple[int, Outcome, int]] = field(default_factory=list)  # index, outcome, us
    done_since: int = 0
    cpu_us: int = 0
    told_us: int = 0
    cause: str = ""
    stopped_until: int = 0


class SimYard:
    """The yard's calls, with jails of virtual time."""

    def __init__(self, worker: "SimWorker") -> None:
        self.worker, self.world = worker, worker.world
        self.jails: dict[int, Jail] = {}
        self.events: list[on.Event] = []
        self.rooms: dict[int, tuple[Any, bytes]] = {}
        self.is_look_due = False
        self.until_ms = 0

    @property
    def is_empty(self) -> bool:
        """No jail is left."""
        return not self.jails

    def take_events(self) -> list[on.Event]:
        """What happened since the last call."""
        events, self.events = self.events, []
        return events

    def tell(self, event: on.Event) -> None:
        """Something happened in a slot."""
        self.events.append(event)
        self.worker.wake()

    def later(self, jail: Jail, delay: int, action: Callable[[Jail], None]) -> None:
        """Does it unless the worker or the jail is gone by then; not while the node is stopped."""
        is_alive = self.worker.alive()

        def run() -> None:
            if not is_alive() or self.jails.get(jail.number) is not jail:
                return
            if self.worker.is_node_stopped:
                self.world.at(20, run)
            elif jail.stopped_until > self.world.now and jail.phase != "killed":
                self.world.at(min(jail.stopped_until - self.world.now, 100), run)
            else:
                action(jail)

        self.world.at(max(delay, 0), run)

    # ------------------------------------------------------------ what the agent calls

    def open_job(self, effect: do.OpenJob) -> None:
        """A job with its function."""
        self.rooms[effect.opening.job] = (effect.opening, effect.function)

    def close_job(self, effect: do.CloseJob) -> None:
        """No more of it."""
        self.rooms.pop(effect.job, None)

    def start(self, effect: do.StartJail) -> None:
        """Starts a jail: it takes a while, and may fail."""
        _, function = self.rooms[effect.job]
        work = self.worker.truth.work_of(function)
        jail = Jail(effect.slot, effect.jail, work, effect.job, function)
        taken = [other for other in self.jails.values() if other.slot == effect.slot]
        need(not taken, f"{self.worker.host} slot {effect.slot} has two jails")
        self.jails[jail.number] = jail
        settings, r = self.worker.jails, self.world.random
        delay = r.choice((1, 5, 30))
        if self.worker.trouble(settings.starts_slowly):
            delay = r.randint(500, 5_000)
            self.world.saw("jail starts slowly")
        if work.is_unready:
            self.later(jail, delay, self._unready)
        elif self.worker.trouble(settings.fails_to_start):
            self.world.saw("jail fails to start")
            self.later(jail, delay, lambda jail: self._end(jail, Outcome.SETUP))
        elif work.dies_at_start:
            self.world.saw("jail dies at start")
            delay = r.choice((1, 30, 500))
            self.later(jail, delay, lambda jail: self._end(jail, Outcome.OOM))
        else:
            self.later(jail, delay, self._ready)
            if self.worker.trouble(settings.dies):
                self.later(jail, r.randint(0, 400), self._die)

    def feed(self, effect: do.FeedSlot) -> None:
        """A lease for a jail."""
        jail = self.jails.get(effect.jail)
        if jail is None:
            return
        given: dict[int, int] = {}
        for head, frame in zip(effect.parcels, effect.frames, strict=True):
            inputs = msgspec.msgpack.decode(frame)
            given.update(zip(range(head.first, head.first + head.count), inputs, strict=True))
        left = deque(i for first, count in effect.runs for i in range(first, first + count))
        jail.feeds.append(Feed(effect.lease_id, effect.attempt, left, given))
        if jail.phase == "ready" and jail.page[1] < 0 and len(jail.feeds) == 1:
            self._next(jail)

    def stop_leases(self, effect: do.StopLeases) -> None:
        """Writes the stop list."""
        jail = self.jails.get(effect.jail)
        if jail is not None:
            jail.stops = effect.lease_ids
            self.is_look_due = True

    def kill(self, effect: do.KillJail) -> None:
        """Kills a jail; its end may take a while."""
        jail = self.jails.get(effect.jail)
        if jail is None:
            return
        jail.cause, jail.phase = effect.cause, "killed"
        self.world.saw(f"jail killed: {effect.cause}")
        delay = self.world.random.choice((0, 1, 10))
        if self.worker.trouble(self.worker.jails.ends_late):
            self.world.saw("jail ends late")
            delay = self.world.random.randint(200, 2_500)
        outcome = _ENDS.get(effect.cause, Outcome.LOST)
        self.later(jail, delay, lambda jail: self._end(jail, outcome))

    def run_until(self, until_ms: int) -> None:
        """The spawner ends all jails then, even if the agent stands still."""
        self.until_ms, is_alive = until_ms, self.worker.alive()

        def look() -> None:
            if not is_alive() or self.until_ms > self.world.now:
                return
            if self.worker.is_node_stopped:
                self.world.at(1, look)
                return
            for jail in list(self.jails.values()):
                self.world.saw("jail ended by spawner")
                self._end(jail, Outcome.LOST)

        self.world.at(max(0, until_ms - self.world.now), look)

    def replace_spawner(self) -> None:
        """All jails end with what started them."""
        for jail in list(self.jails.values()):
            self._end(jail, Outcome.LOST)

    def look(self) -> on.Looked:
        """Pages and meters."""
        self.is_look_due = False
        return on.Looked(
            tuple(
                on.Look(
                    jail.slot,
                    jail.number,
                    *jail.page,
                    jail.cpu_us,
                    jail.cpu_us - jail.told_us,
                    0,
                    jail.stopped_until > self.world.now,
                )
                for jail in self.jails.values()
                if jail.phase in ("ready", "killed")
            )
        )

    # ------------------------------------------------------------ inside a jail

    def _ready(self, jail: Jail) -> None:
        if jail.phase == "starting":
            jail.phase = "ready"
            self.tell(on.JailReady(jail.slot, jail.number))
            if jail.feeds:
                self._next(jail)

    def _unready(self, jail: Jail) -> None:
        del self.jails[jail.number]
        self.world.saw("job unready")
        message = "its files cannot be had"
        self.tell(on.JobUnready(jail.slot, jail.number, int(Outcome.STORE), message))

    def _next(self, jail: Jail) -> None:
        """Between two subtasks: read the stop list, hand over, go on."""
        jail.page = (0, -1)
        while jail.phase == "ready" and jail.feeds:
            feed = jail.feeds[0]
            if not feed.left or feed.lease in jail.stops:
                self._hand_over(jail, feed)
                jail.feeds.popleft()
                self.tell(on.FeedEnded(jail.slot, jail.number, feed.lease))
                continue
            index = feed.left.popleft()
            jail.page, jail.attempt = (feed.lease, index), feed.attempt
            jail.began_ms = self.world.now
            self.worker.truth.begins(self.worker, jail)
            settings = self.worker.jails
            took = jail.work.duration(index)
            if self.worker.trouble(settings.hangs):
                self.world.saw("subtask hangs")
                took += settings.hang_ms
            if self.worker.trouble(settings.stops):
                self.world.saw("jail stopped by a signal")
                for_ever = self.world.chance(0.5)
                jail.stopped_until = self.world.now + (1 << 40 if for_ever else settings.hang_ms)
            self.later(jail, took, functools.partial(self._finish, feed, index, took))
            return

    def _finish(self, feed: Feed, index: int, took: int, jail: Jail) -> None:
        if jail.phase != "ready" or jail.page != (feed.lease, index):
            return
        if index == jail.work.poison:
            self.world.saw("subtask kills its jail")
            self._end(jail, Outcome.SIGNAL)
            return
        jail.cpu_us += took * 1_000
        outcome = jail.work.outcome(index, feed.attempt)
        self.worker.truth.ends(jail, index, feed.attempt, outcome)
        if jail.done and jail.done[-1][0] != index - 1:
            self._hand_over(jail, feed)
        if not jail.done:
            jail.done_since = self.world.now
        jail.done.append((index, outcome, took * 1_000))
        if jail.work.spec.quorum or self.world.now - jail.done_since >= RESULT_FLUSH_MS:
            self._hand_over(jail, feed)
        self._next(jail)

    def _hand_over(self, jail: Jail, feed: Feed) -> None:
        done, jail.done = jail.done, []
        if not done:
            return
        seed = msgspec.msgpack.decode(jail.function)[1]
        values = [value_of(seed, feed.given[i]) for i, outcome, _ in done if outcome == Outcome.OK]
        if self.worker.is_liar:
            self.world.saw("lie told", len(values))
            values = [-1 - value for value in values]
        failures = [(at, Failure("raised")) for at, (_, outcome, _) in enumerate(done) if outcome]
        count, cpu_us = len(done), sum(us for _, _, us in done)
        frames = (
            msgspec.msgpack.encode(values) if values else b"",
            pack_meter(count, bytes(outcome for _, outcome, _ in done)),
            pack_failures(failures),
            b"",
        )
        jail.told_us += cpu_us
        self.tell(
            on.ResultArrived(
                jail.slot, jail.number, feed.lease, done[0][0], count, "m", cpu_us, cpu_us, 100,
                "cgroup", False, sum(outcome in OWN_DOING for _, outcome, _ in done), frames,
            )
        )  # fmt: skip

    def _die(self, jail: Jail) -> None:
        """It dies of something that nobody here did."""
        if jail.phase == "ready":
            self.world.saw("jail dies")
            self._end(jail, Outcome.SIGNAL)

    def _end(self, jail: Jail, outcome: Outcome) -> None:
        if jail.phase == "killed" and not jail.cause:
            return
        is_ready = jail.phase == "ready" or jail.cause not in ("", "start")
        if jail.page[1] >= 0:
            jail.cpu_us += (self.world.now - jail.began_ms) * 1_000
        del self.jails[jail.number]
        self.worker.truth.jail_ended(jail, outcome, is_ready)
        lease, index = jail.page
        self.tell(
            on.JailEnded(
                jail.slot, jail.number, int(outcome), Failure(f"ended: {jail.cause or 'died'}"),
                lease, index, 1_000, max(0, jail.cpu_us - jail.told_us), 100, "cgroup",
            )
        )  # fmt: skip


class SimAgent(Agent):
    """The agent with a simulated yard; its loop is the process's turns."""

    def __init__(self, worker: "SimWorker", hello: Hello) -> None:
        self._worker = worker
        folder = pathlib.Path("/nonexistent")
        settings = types.SimpleNamespace(
            state=folder,
            broker_key="",
            cache=0,
            spares=0,
            parked=0,
            slots=worker.slots,
            grace=worker.grace_ms,
            broker=BACK,
        )
        with replaced(
            [
                (worker_agent, "Errands", lambda: None),
                (worker_agent, "Blobs", lambda *_: worker),
                (worker_agent, "Monitor", lambda _: None),
                (worker_agent, "Yard", lambda *_: worker.yard),
                (worker_agent, "select", types.SimpleNamespace(epoll=lambda: None)),
                (worker_agent, "zmq", Shim(zmq, Context=lambda: worker.context, Poller=Poller)),
            ]
        ):
            super().__init__(settings, worker.key, hello, None)  # type: ignore[arg-type]
        self._is_ready_told = True

    def _tell(self, event: on.Event) -> None:
        """As the agent's; the checker hears what was answered."""
        if isinstance(event, on.Welcomed):
            worker = self._worker
            if event.message.session != worker.session:  # a late copy begins nothing
                worker.session = event.message.session
                worker.sent = {0: worker.hello_ms}
        elif isinstance(event, on.OrdersArrived):
            self._worker.answered(event.message.answers)
        super()._tell(event)

    def _do(self, effect: do.Effect) -> None:
        """As the agent's; the checker hears what was said."""
        if isinstance(effect, do.SendHello):
            self._worker.hello_ms = self._worker.world.now
        if isinstance(effect, do.SendReport) and effect.message.is_full:
            self._worker.sent[effect.message.number] = self._worker.world.now
        super()._do(effect)


class SimWorker(Process):
    """One agent with its jails on one node."""

    def __init__(
        self, world: World, net: Network, name: str, truth: "Truth", jails: JailSettings
    ) -> None:
        super().__init__(world, net, name)
        r = world.random
        self.truth, self.jails = truth, jails
        self.key = KEYS.setdefault(name, SigningKey(hashlib.sha256(name.encode()).digest()))
        self.slots = r.randint(1, 3)
        self.cpus_milli = self.slots * 1_000
        self.tiers = ["strict", "job", "batch"] if r.random() < 0.8 else ["job", "batch"]
        self.labels = {"gpu": "1"} if r.random() < 0.4 else {}
        self.grace_ms = r.choice((300, 3_000))
        self.is_calm = lambda: False
        self.is_node_stopped = False
        self.is_wanted = True
        self.is_liar = False
        self.look_at = 0
        self.sent: dict[int, int] = {0: 0}  # full report to when it was sent; 0: what counts now
        self.hello_ms = 0  # when the last HELLO was sent
        self.session = b""

    def answered(self, number: int) -> None:
        """The broker answered this report: the right to run counts from when it was sent."""
        for answered in [n for n in self.sent if 0 < n <= number]:
            self.sent[0] = max(self.sent[0], self.sent.pop(answered))

    def answered_sent_ms(self) -> int:
        """When the newest report was sent that was answered."""
        return self.sent[0]

    def trouble(self, rate: float) -> bool:
        """Chance, until everything is well."""
        return not self.is_calm() and self.world.chance(rate)

    def use_store(self, address: str) -> None:
        """Stands in for the blobs: nothing here is large."""

    def begin(self) -> None:
        """A fresh agent: the same name and key, another instance."""
        self.yard = SimYard(self)
        instance = self.world.random.randbytes(16)
        hello = Hello(
            PROTOCOL, self.host, self.key.verify_key.encode().hex(), instance, self.slots,
            self.cpus_milli, 8 << 30, 1 << 40, self.labels, self.tiers, ["3.11"], "cgroup", "sim",
        )  # fmt: skip
        self.agent = SimAgent(self, hello)
        self.look_at = self.world.now
        self.agent._tell(on.Began())

    def turn(self) -> None:
        """As ``Agent._loop``: messages, slots, a look, what is due."""
        agent, now = self.agent, self.world.now
        agent._on_messages()
        with replaced([(worker_link, "time", Shim(time, sleep=lambda _: None))]):
            agent._link.look()
        agent._tell_all()
        if self.yard.is_look_due:
            self.look_at = min(self.look_at, now + LOOK_SOON_MS)
        if now >= self.look_at:
            self.look_at = now + LOOK_MS
            if not self.yard.is_empty:
                agent._tell(self.yard.look())
        agent._tell_all()
        agent._tell(on.TurnEnded())
        if agent._exit is not None:
            self._exited(agent._exit.code)
        elif agent._link.socket.inbox:
            self.wake()

    def _exited(self, code: int) -> None:
        self.world.note(f"{self.host} exits with {code}")
        self.world.saw(f"worker exits {code}")
        self.crash()
        if self.is_wanted:  # as a service manager would
            self.world.at(self.world.random.randint(200, 2_000), self.start)

    def due_ms(self) -> int:
        """The core's timer, or the next look."""
        due = next_timer_ms(self.agent._state)
        if self.yard.is_look_due:
            due = min(due, self.world.now + LOOK_SOON_MS)
        return due if self.yard.is_empty else min(due, self.look_at)

    def pause(self) -> None:
        """SIGSTOP of the agent alone, or of the whole node with its jails."""
        super().pause()
        self.is_node_stopped = self.world.chance(0.5)
        self.world.saw("node stopped" if self.is_node_stopped else "agent stopped")

    def resume(self) -> None:
        """SIGCONT."""
        self.is_node_stopped = False
        super().resume()

    def drain(self) -> None:
        """SIGTERM."""
        if self.is_up and not self.is_paused:
            self.world.saw("worker drains")
            self.agent._tell(on.DrainAsked("SIGTERM was received"))
            self.wake()

    def drop(self) -> None:
        """Jails die with their agent."""
        self.is_node_stopped = False
        self.yard.jails.clear()
