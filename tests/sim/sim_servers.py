"""The broker and the ledger: the real processes' objects, turned by the world.

``Broker`` and ``Ledger`` are built by their own constructors; their sockets, disks, threads and
clocks are the simulator's (see ``names``). A crash drops the object, whatever it knew.
"""

import os
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import apsw
import zmq
from sim_disk import CrashError, Disk, NoThread, SimJournal, SimReader
from sim_net import Context, Network
from sim_process import Process
from sim_worker import BACK
from sim_world import Shim, World, need

from gristmill.broker import app as broker_app
from gristmill.broker import journal as broker_journal
from gristmill.broker import reader as broker_reader
from gristmill.broker import replay as broker_replay
from gristmill.broker.settings import BrokerSettings
from gristmill.ledger import app as ledger_app
from gristmill.ledger import sqlite as ledger_sqlite
from gristmill.ledger.settings import Settings

FRONT = "ipc:///sim/front.sock"
LEDGER = "ipc:///sim/ledger.sock"
Name = tuple[Any, str, Any]
#: of the broker's own counters: ways of recovery
COUNTED = (
    "outbox_resends", "rejoins", "results_read_back", "superseded", "clients_expired",
    "peers_unreachable", "journal_full",
)  # fmt: skip


class SimLedger(Process):
    """The ledger: one turn is one transaction."""

    def __init__(
        self, world: World, net: Network, folder: pathlib.Path, fund: dict[str, int]
    ) -> None:
        super().__init__(world, net, "ledger")
        self.disk = Disk(world, "ledger")
        self.settings = Settings(state=folder, listen=LEDGER, fund=tuple(fund.items()))
        self.after_turn: Callable[[], None] = lambda: None
        self.restart_ms: tuple[int, ...] = (50, 300, 2_000)
        self.crash_rate = 0.0

    def names(self) -> list[Name]:
        """What is replaced in the real modules."""
        clock = Shim(time, time_ns=self.world.time_ns)
        return [
            (ledger_app, "zmq", Shim(zmq, Context=lambda: self.context)),
            (ledger_app, "time", clock),
            (ledger_sqlite, "apsw", self.disk.module),
        ]

    def begin(self) -> None:
        """Opens the book: its audit must find it in order, whatever happened before."""
        self.ledger = ledger_app.Ledger(self.settings)
        try:
            self.ledger.open()
        except Exception:
            if not self.disk.is_full:
                raise
            self.exit_and_restart()
            return
        need(not self.ledger.read_only, f"the ledger's audit: {self.ledger.read_only}")
        self.after_turn()

    def turn(self) -> None:
        """As ``Ledger.run``: what waits, in one group; answers leave when the fsync is done."""
        if not self.ledger._socket.inbox:
            return
        self.ledger._socket.later = self.disk.fsync_ms()
        if self.world.chance(self.crash_rate):
            self.disk.die_at = self.world.random.choice((0, 1, 3, 10))
            self.disk.arm()
        try:
            self.ledger.turn()
        except CrashError:
            self.exit_and_restart()
            return
        except Exception as error:
            need(self.disk.is_broken or self.disk.is_full, f"the ledger died of {error!r}")
            self.world.saw("ledger exits on a disk error")
            self.exit_and_restart()
            return
        if self.disk.die_at >= 0:
            self.disk.die_at = -1
            self.disk.arm()
        need(not self.ledger.read_only, f"the ledger shut itself: {self.ledger.read_only}")
        self.after_turn()
        if self.ledger._socket.inbox:
            self.wake()

    def due_ms(self) -> int:
        """Nothing is timed."""
        return self.world.now + 60_000

    def exit_and_restart(self) -> None:
        """As a service manager would."""
        self.crash()
        self.world.at(self.world.random.choice(self.restart_ms), self.start)

    def drop(self) -> None:
        """The lock goes with the process; the file keeps what was committed."""
        self.disk.recover()
        os.close(self.ledger.book._lock)


class NoMemoryWatch:
    """The memory of this process is not the simulated broker's."""

    held = peak = limit = 0

    def __init__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        """Nothing to end."""


class SimBroker(Process):
    """The broker, with its committer and reader as events of the world."""

    def __init__(
        self, world: World, net: Network, folder: pathlib.Path, settings: dict[str, Any]
    ) -> None:
        super().__init__(world, net, "broker")
        self.disk = Disk(world, "broker")
        self.settings = BrokerSettings(
            state=folder, front=FRONT, back=BACK, ledger=LEDGER, **settings
        )
        self.restart_ms: tuple[int, ...] = (20, 200, 1_500)
        self.before_start: Callable[[], None] = lambda: None
        self.broker: broker_app.Broker | None = None
        self._descriptors: list[int] = []
        self.disk_groups: dict[int, int] = {}  # start of the broker to its last group on disk

    def names(self) -> list[Name]:
        """What is replaced in the real modules."""
        world = self.world
        clock = Shim(
            time, time_ns=world.time_ns, monotonic_ns=lambda: world.now * 1_000_000,
            monotonic=world.monotonic,
        )  # fmt: skip
        threads = Shim(threading, Thread=NoThread)
        return [
            (broker_app, "zmq", Shim(zmq, Context=self._context)),
            (broker_app, "time", clock),
            (broker_app, "os", Shim(os, eventfd=self._keep(os.eventfd))),
            (broker_journal, "own_folder", self._keep(broker_journal.own_folder)),
            (broker_app, "Journal", self._journal),
            (broker_app, "Reader", self._reader),
            (broker_app, "MemoryWatch", NoMemoryWatch),
            (broker_app, "free_bytes", self._free_bytes),
            (broker_journal, "free_bytes", lambda _: 1 << 30),
            (broker_journal, "os", Shim(os, urandom=lambda size: b"\7" * size)),
            (broker_journal, "apsw", self.disk.module),
            (broker_journal, "threading", threads),
            (broker_journal, "time", clock),
            (broker_reader, "apsw", self.disk.module),
            (broker_reader, "threading", threads),
            (broker_replay, "apsw", self.disk.module),
        ]

    def _context(self, io_threads: int = 1) -> Context:
        return self.context

    def _journal(self, *arguments: Any) -> SimJournal:
        members = {
            "disk": self.disk,
            "on_disk": self.disk_groups,
            "is_dead": staticmethod(self._is_dead()),
        }
        self.journal: SimJournal = type("Journal", (SimJournal,), members)(*arguments)
        return self.journal

    def _reader(self, *arguments: Any) -> SimReader:
        members = {"world": self.world, "is_dead": staticmethod(self._is_dead())}
        reader: SimReader = type("Reader", (SimReader,), members)(*arguments)
        return reader

    def _is_dead(self) -> Callable[[], bool]:
        is_alive = self.alive()
        return lambda: not is_alive()

    def _keep(self, make: Callable[..., int]) -> Callable[..., int]:
        def made(*arguments: Any) -> int:
            self._descriptors.append(make(*arguments))
            return self._descriptors[-1]

        return made

    def _free_bytes(self, _: pathlib.Path) -> int:
        return 0 if self.disk.is_full else 1 << 40

    def begin(self) -> None:
        """Recovers from the journal."""
        self.before_start()
        try:
            self.broker = broker_app.Broker(self.settings)
        except apsw.Error:
            need(self.disk.is_full or self.disk.is_broken, "the broker cannot start")
            self.world.saw("broker cannot start")
            self.exit_and_restart()
            return
        real = self.broker._wake

        def wake() -> None:
            real()
            self.wake()

        self.broker._wake = wake  # type: ignore[method-assign]
        self.journal._wake = wake
        self.broker.reader._wake = wake

    def turn(self) -> None:
        """As ``Broker.run``: one turn with whatever is ready."""
        broker = self.broker
        assert broker is not None
        sockets = (broker._front_socket, broker._back_socket, broker.ledger.socket)
        try:
            broker._turn({socket: zmq.POLLIN for socket in sockets if socket.inbox})
        except OSError as error:
            need(self.journal.failure is not None, f"the broker died of {error!r}")
            self.world.saw("broker exits on a disk error")
            self.exit_and_restart()
            return
        if any(socket.inbox for socket in sockets):
            self.wake()

    def due_ms(self) -> int:
        """The next tick."""
        assert self.broker is not None
        return self.world.now + self.broker._wait_ms()

    def exit_and_restart(self) -> None:
        """As a service manager would."""
        self.crash()
        self.world.at(self.world.random.choice(self.restart_ms), self.start)

    def drop(self) -> None:
        """The lock and the descriptors go; of the group that was being written, who knows."""
        broker, self.broker = self.broker, None
        if broker is not None:
            counted = broker.metrics.export()
            for name in COUNTED:
                self.world.saw(name, counted[name])
            self.journal.tear()
        self.disk.recover()
        while self._descriptors:
            os.close(self._descriptors.pop())
