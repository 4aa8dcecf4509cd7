"""What tests of logs run: subtasks that print a line with the time, on grids that are killed."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from grid_rig import until
from process_rig import descendants, is_running

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.wire.client import LogRow

#: A command that prints like ``talk`` does, without a buffer of its own.
TALK = """
import sys, time
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    print("line", time.time_ns() // 1_000_000, flush=True)
    time.sleep(0.05)
"""
TALKING = [sys.executable, "-c", TALK, "{}"]


def talk(seconds: float) -> float:
    """A line with its time (UTC ms) each 50 ms; nothing is flushed by hand."""
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        print("line", time.time_ns() // 1_000_000)
        time.sleep(0.05)
    return seconds


def flood(seconds: float) -> int:
    """Prints as fast as it can: some hundred MB a second."""
    import sys
    import time

    block, end = (b"x" * 99 + b"\n") * 10_000, time.monotonic() + seconds
    while time.monotonic() < end:
        sys.stdout.buffer.write(block)
    return 1


def post(client: Client, work: Any, inputs: list[Any], **options: Any) -> Any:
    """Submit a job and leave it to go on."""
    return client.post(*client.make_spec(work, count=len(inputs), **options), inputs)


def times_of(row: LogRow) -> list[int]:
    """The times of the whole lines of a row."""
    whole = row.stdout[: row.stdout.rfind(b"\n") + 1]
    return [int(line.split()[1]) for line in whole.splitlines() if line.startswith(b"line ")]


def row_of(client: Client, job: Any, state: str) -> LogRow | None:
    """The only row of a job of one subtask whose attempt is in this state."""
    rows = [row for row in client.logs(job, limit=100) if row.state == state]
    assert len(rows) <= 1, rows
    return rows[0] if rows else None


def kill_host(grid: Grid, worker: str) -> int:
    """Everything of a worker dies at once, as with its host; when that was (UTC ms)."""
    everyone = [grid.pid(worker), *descendants(grid.pid(worker))]
    at_ms = time.time_ns() // 1_000_000
    for pid in everyone:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until("the worker is gone", lambda: not any(map(is_running, everyone)))
    return at_ms


@dataclasses.dataclass
class Stalls:
    """The longest that this machine has kept a process waiting that wanted to run."""

    longest_ms: float = 0.0


@contextlib.contextmanager
def stalls() -> Iterator[Stalls]:
    """Watches while its body runs: what nobody could do in time is no broken promise."""
    found, is_over = Stalls(), threading.Event()

    def watch() -> None:
        before = time.monotonic()
        while not is_over.wait(0.01):
            now = time.monotonic()
            found.longest_ms = max(found.longest_ms, (now - before - 0.01) * 1_000)
            before = now

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        is_over.set()
        thread.join()


def peak_kib(pid: int) -> int:
    """The most memory that a process has had."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise AssertionError(f"no VmHWM of {pid}")
