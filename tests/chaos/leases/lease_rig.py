"""What lease tests look at: /proc for what runs, the files of broker and ledger for what counts."""

import contextlib
import dataclasses
import json
import pathlib
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from grid_rig import SECONDS, until
from process_rig import descendants, is_running, slot_processes

from gristmill.cli.grid import Grid
from gristmill.client import Client, Job

TTL_MS, REPORT_MS = 2_400, 250


# ---------------------------------------------------------------- processes


def gone_at_ms(pids: list[int]) -> int:
    """When (UTC ms) the last of these was seen to be gone; looks every few milliseconds."""
    until("the processes are gone", lambda: not any(map(is_running, pids)))
    return time.time_ns() // 1_000_000


def started(grid: Grid) -> str:
    """The worker below which a subtask runs (a child of a slot's process), once one does."""

    def busy() -> str:
        for name in grid.worker_names:
            if any(descendants(slot) for slot in slot_processes(grid.pid(name))):
                return name
        return ""

    found: str = until("a subtask runs", busy)
    return found


def post(client: Client, work: Any, inputs: list[Any], **options: Any) -> Job:
    """Submit a job and leave it to go on."""
    return client.post(*client.make_spec(work, count=len(inputs), **options), inputs)


def values(job: Job, seconds: float = SECONDS) -> list[Any]:
    """Its results, once it has ended; a job that never does is a failure, not a hang."""
    job.wait(seconds)
    return list(job.results())


# ---------------------------------------------------------------- files


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[sqlite3.Connection]:
    """A file of broker or ledger, read only."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    try:
        yield connection
    finally:
        connection.close()


def events(grid: Grid, name: str, job: int = 0) -> list[tuple[int, dict[str, Any]]]:
    """(UTC ms, detail) of the journal's events of this name."""
    with opened(grid.state / "broker" / "journal.db") as journal:
        rows = journal.execute(
            "SELECT ms, detail FROM events WHERE name = ? AND (job = ? OR ? = 0) ORDER BY seq",
            (name, job, job),
        ).fetchall()
    return [(ms, json.loads(detail)) for ms, detail in rows]


@dataclasses.dataclass(frozen=True)
class Bill:
    """One contribution of the ledger."""

    attempt: int
    first: int
    count: int
    subtasks: int
    node: str
    wall_us: int
    cpu_us: int
    amount: int


def bills(grid: Grid, job: int) -> list[Bill]:
    """What the ledger has posted for a job."""
    with opened(grid.state / "ledger" / "ledger.db") as ledger:
        rows = ledger.execute(
            "SELECT c.attempt, c.first, c.count, c.subtasks, c.node, c.wall_us, c.cpu_us, c.amount"
            " FROM contribution c JOIN hold h ON h.id = c.hold WHERE h.ref LIKE ?"
            " ORDER BY c.first, c.attempt",
            (f"%/{job}",),
        ).fetchall()
    return [Bill(*row) for row in rows]


def settled(grid: Grid, job: int) -> list[Bill]:
    """Its bills, once the ledger has closed the job's hold: no more can come."""

    def closed() -> bool:
        with opened(grid.state / "ledger" / "ledger.db") as ledger:
            rows = ledger.execute(
                "SELECT closed_ms FROM hold WHERE ref LIKE ?", (f"%/{job}",)
            ).fetchall()
        return len(rows) == 1 and rows[0][0] > 0

    until(f"the hold of job {job} is closed", closed)
    return bills(grid, job)


def billed_twice(of: list[Bill], count: int) -> list[int]:
    """Indices of a job of ``count`` subtasks that ended well but were not billed exactly once."""
    times = [0] * count
    for bill in of:
        if bill.subtasks:
            for index in range(bill.first, bill.first + bill.count):
                times[index] += 1
    return [index for index, number in enumerate(times) if number != 1]


# ---------------------------------------------------------------- a line that can be cut


class Line:
    """A relay between a worker and the broker's socket; ``cut`` lets nothing more through.

    Both ends stay connected and see silence, as from a switch that drops every packet.
    """

    def __init__(self, listen: pathlib.Path, target: pathlib.Path) -> None:
        self.address = f"ipc://{listen}"
        self._target = str(target)
        self._open = threading.Event()
        self._open.set()
        self._is_closed = False
        self._sockets: list[socket.socket] = []
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(listen))
        self._server.listen()
        self._start(self._accept)

    def cut(self) -> None:
        """Nothing goes through from now on."""
        self._open.clear()

    def mend(self) -> None:
        """What was said meanwhile arrives, late."""
        self._open.set()

    def close(self) -> None:
        """End every connection."""
        self._is_closed = True
        self._open.set()
        for each in [self._server, *self._sockets]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _start(self, call: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=call, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                near, _ = self._server.accept()
                far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                far.connect(self._target)
            except OSError:
                return
            self._sockets += [near, far]
            self._start(self._pump, near, far)
            self._start(self._pump, far, near)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(1 << 16):
                self._open.wait()
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)
