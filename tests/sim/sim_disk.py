"""Disks of broker and ledger: the real journal and the real book over SQLite in memory.

What is committed survives a crash of the process, because the connection is kept here; what is not
is lost. Faults strike at the edge where the real code meets SQLite: a statement meets a full disk,
a commit fails for good, a group is torn by a crash (SQLite rolls it back, or it made it to the disk
and nobody heard), an fsync takes long. Committer and reader have no threads here: each of their
turns is an event of the world.
"""

import queue
from collections.abc import Callable
from typing import Any

import apsw
from sim_world import Shim, World

from gristmill.broker.journal import RETRY_S, Journal
from gristmill.broker.reader import Reader


class CrashError(BaseException):
    """The process dies here, in the middle of a transaction."""


class Disk:
    """One file that outlives its process.

    ``is_full``, ``is_broken``: what statements meet; ``sync_ms``: how long an fsync takes.
    ``die_at``: statements that are still written before the process dies, -1 for never.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.connection = apsw.Connection(":memory:")
        self.is_full = self.is_broken = False
        self.sync_ms: tuple[int, ...] = (1,)
        self.die_at = -1
        self.module = Shim(apsw, Connection=self.open)

    def open(self, *_: object, **__: object) -> "Handle":
        """``apsw.Connection`` in a module whose ``apsw`` was replaced."""
        return Handle(self)

    def arm(self) -> None:
        """Has SQLite ask us before each statement, while there is a fault to make."""
        is_armed = self.is_full or self.is_broken or self.die_at >= 0
        self.connection.exec_trace = self._before if is_armed else None

    def _before(self, _: Any, statement: str, __: Any) -> bool:
        if statement.startswith(("SELECT", "PRAGMA", "ROLLBACK", "BEGIN")):
            return True
        if self.die_at == 0:
            self.die_at = -1
            self.world.saw(f"{self.name} torn group")
            raise CrashError
        if self.die_at > 0:
            self.die_at -= 1
        if self.is_broken:
            self.world.saw(f"{self.name} disk error")
            raise apsw.IOError("simulated: input/output error")
        if self.is_full and self.world.chance(0.5):
            self.world.saw(f"{self.name} disk full")
            raise apsw.FullError("simulated: database or disk is full")
        return True

    def fsync_ms(self) -> int:
        """How long this fsync takes."""
        took = self.world.random.choice(self.sync_ms)
        if took > 100:
            self.world.saw(f"{self.name} slow fsync")
        return took

    def recover(self) -> None:
        """The process is gone: what was not committed never happened."""
        self.die_at = -1
        self.is_broken = False
        self.arm()
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """What the file says, for checkers."""
        return self.connection.execute(query, values).fetchall()


class Handle:
    """A process's connection to a disk: closing it leaves the disk alone."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.executemany = disk.connection.executemany
        self.cursor = disk.connection.cursor
        self.changes = disk.connection.changes
        self.create_scalar_function = disk.connection.create_scalar_function

    def execute(self, statement: str, *values: Any) -> Any:
        """One connection serves reader and writer: it must not become read-only."""
        if statement == "PRAGMA query_only=1":
            return None
        return self._disk.connection.execute(statement, *values)

    def __enter__(self) -> Any:
        return self._disk.connection.__enter__()

    def __exit__(self, *error: Any) -> Any:
        return self._disk.connection.__exit__(*error)

    @property
    def in_transaction(self) -> bool:
        """As the connection's."""
        return self._disk.connection.in_transaction

    def set_busy_timeout(self, ms: int) -> None:
        """Nobody else is there."""

    def wal_checkpoint(self, *_: object, **__: object) -> tuple[int, int]:
        """A database in memory has no log."""
        return -1, -1

    def set_wal_hook(self, hook: object) -> None:
        """It is never called: there is no log."""

    def config(self, *_: object) -> None:
        """Nothing of its log is to be kept or folded in."""

    def close(self) -> None:
        """The process lets go of it."""


class NoThread:
    """A thread that never runs: the world gives its turns."""

    def __init__(self, **_: object) -> None:
        pass

    def start(self) -> None:
        """Nothing starts."""

    def is_alive(self) -> bool:
        """As if it had ended."""
        return False

    def join(self, timeout: float = 0) -> None:
        """Nothing to wait for."""


class SimJournal(Journal):
    """The journal with its committer's turns in virtual time."""

    disk: Disk
    on_disk: dict[int, int]
    is_dead: Callable[[], bool]

    def _write(self, group: Any) -> bool:
        """As the journal's; checkers hear what is on disk."""
        is_written = super()._write(group)
        if is_written:
            self.on_disk[self.incarnation] = group.number
        return is_written

    def pump(self) -> bool:
        """As the journal's; a group that was handed over is written one fsync later."""
        before = self._in_flight
        is_done = super().pump()
        if self._in_flight is not None and self._in_flight is not before:
            self.disk.world.at(self.disk.fsync_ms(), self._turn)
        return is_done

    def _turn(self) -> None:
        if self.is_dead():
            return
        group = self._in_flight
        if group is None:
            return
        try:
            self._queue.get_nowait()
        except queue.Empty:
            pass
        try:
            if not self._write(group):
                self.disk.world.at(int(RETRY_S * 1000), self._turn)
                return
            self._run_chore()
        except apsw.Error as error:
            self.failure = error
            self._wake()
            return
        self._finish()

    def tear(self) -> None:
        """The process dies while its group is being written: some of it, all of it, or nothing."""
        group, world = self._in_flight, self.disk.world
        if group is None or self._finished:
            return
        self.disk.die_at = world.random.choice((0, 0, 1, 2, 5, 20, 1_000))
        self.disk.arm()
        try:
            self._write(group)
            world.saw("broker group on disk unheard")
        except (CrashError, apsw.Error):
            world.saw("broker unsynced group lost")


class SimReader(Reader):
    """The reader with its thread's turns in virtual time."""

    world: World
    is_dead: Callable[[], bool]

    def ask(self, question: Any, then: Any, failed: Any) -> None:
        """As the reader's; the answer comes a little later."""
        super().ask(question, then, failed)
        self.world.at(self.world.random.choice((0, 1, 1, 4, 40)), self._turn)

    def _turn(self) -> None:
        if self.is_dead():
            return
        asked = self._questions.get_nowait()
        assert asked is not None
        question, then, failed = asked
        try:
            self._answers.append((then, question(self._connection)))
        except apsw.Error as error:
            self._answers.append((failed, error))
        self._wake()
