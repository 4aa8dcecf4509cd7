"""P11: a peer cannot take the host's memory, and what it can do to the broker is short."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from grid_rig import until
from sockets_zmtp import Bomb

from gristmill.cli.grid import Grid
from gristmill.cli.output import Terminal
from gristmill.cli.process import ProcessEndedError
from gristmill.cli.up import RESTARTS_MAX, Watch
from gristmill.client import Client
from gristmill.wire.errors import EXIT_MEMORY, EXIT_USAGE

LIMIT = 160 << 20
BACK_S = 2.0  #: what is promised; on a machine shared with other tests the assertion allows more
BACK_S_MAX = 15.0


def peak_bytes(pid: int) -> int:
    """The most that a live process has held."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it may end meanwhile
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
    return 0


def triple(x: int) -> int:
    return 3 * x


class Watcher:
    """``gristmill up``'s own rule for processes that end, in a thread that never gives up."""

    def __init__(self, grid: Grid) -> None:
        self.failure: BaseException | None = None
        self._reader, self._writer = os.pipe()
        self._watch = Watch(grid, Terminal())
        self._is_ending = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            while not self._is_ending:
                self._watch.once([self._reader])
        except BaseException as error:
            self.failure = error

    def close(self) -> None:
        self._is_ending = True
        os.write(self._writer, b"x")
        self.thread.join(60)


@pytest.mark.parametrize("port", ["front", "back"])
def test_an_endless_message_ends_the_broker_and_not_the_grid(port, sized, figures):
    bombs = sized(RESTARTS_MAX + 1, 25)  # each port: more than end a grid that merely crashes
    grid = Grid.temporary(
        workers=1, slots=1, environment={"GRISTMILL_BROKER_MEMORY_BYTES": str(LIMIT)}
    )
    back_s, peaks, values = [], [], []
    with grid, Client(grid.address, timeout=120.0, warn=lambda _: None) as client:
        # The kernel ends children with the thread that started them: it outlives them here.
        watcher = Watcher(grid)
        try:
            stream = client.map(triple, range(5_000), chunk=50, window=500, tier="batch", losses=99)
            for _ in range(bombs):
                values += [next(stream) for _ in range(20)]
                pid = grid.pid("broker")
                bomb = Bomb(grid.address if port == "front" else grid.back)
                peak = 0
                while not bomb.wait(0.01):
                    peak = max(peak, peak_bytes(pid))
                began = time.monotonic()
                peaks.append(peak)
                until("another broker", lambda pid=pid: grid.pid("broker") != pid, 60)
                until("it dispatches", lambda: _is_serving(grid), 60)
                back_s.append(time.monotonic() - began)
                assert watcher.failure is None, watcher.failure
            values += stream
            assert values == [3 * x for x in range(5_000)], "an honest client goes on by itself"
            job = client.jobs(1)[0]
            assert (job.done, job.failed) == (5_000, 0)
            told = grid.log("broker").read_text()
            assert told.count("GRISTMILL_BROKER_MEMORY_BYTES") == bombs
            assert max(peaks) < 3 * LIMIT, "the host gave far more than the limit"
            assert max(back_s) < BACK_S_MAX
        finally:
            watcher.close()
    figures(
        bombs=bombs,
        lost=0,
        back_s_median=round(sorted(back_s)[len(back_s) // 2], 2),
        back_s_max=round(max(back_s), 2),
        within_2_s=sum(s <= BACK_S for s in back_s),
        peak_mib_max=max(peaks) >> 20,
        limit_mib=LIMIT >> 20,
    )


def _is_serving(grid: Grid) -> bool:
    with Client(grid.address, timeout=5.0, warn=lambda _: None) as client:
        try:
            return len(client.workers()) == 1
        except Exception:
            return False


def test_the_kernel_ends_a_broker_whose_watch_does_not_look(tmp_path):
    """Private memory past the limit and the slack: the allocation fails, the host is safe."""
    code = (
        "import gristmill.broker.memory as m; m.limit_private_bytes(64 << 20);"
        " b = [bytes(16 << 20) for _ in range(1000)]"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "MemoryError" in done.stderr


def test_a_broker_that_cannot_even_start_within_its_limit_is_given_up():
    grid = Grid.temporary(workers=1, slots=1)
    with grid:
        watch = Watch(grid, Terminal())
        grid.environment["GRISTMILL_BROKER_MEMORY_BYTES"] = "1048576"
        grid.signal("broker", signal.SIGKILL)
        with pytest.raises(ProcessEndedError, match="GRISTMILL_BROKER_MEMORY_BYTES") as caught:
            for _ in range(RESTARTS_MAX + 1):
                watch.once([])
        assert caught.value.returncode in (EXIT_MEMORY, EXIT_USAGE)
