"""Four real processes, each before a service manager's socket: what is fed by which round trip."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest

from gristmill.wire.keys import BROKER_KEY, load_key

WATCHDOG_S = 2.0
SILENCE_S = 2.0  #: a process that lives is heard twice in this time
SECONDS = 40.0


class Watched:
    """A process and what its manager hears."""

    def __init__(self, folder: pathlib.Path, room: str, *options: str) -> None:
        self.name = room
        self.log = folder / f"{room}.log"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / f"{room}.notify"))
        self.heard: list[str] = []
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": self._socket.getsockname(),
            "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"gristmill.{room}", *options],
                env=environment,
                stdout=log,
                stderr=log,
            )

    def hear(self, seconds: float) -> str:
        """The next word, or nothing within this time."""
        self._socket.settimeout(max(seconds, 0.001))
        try:
            word = self._socket.recv(65_536).decode()
        except TimeoutError:
            return ""
        self.heard.append(word)
        return word

    def until(self, begin: str, seconds: float = SECONDS) -> str:
        """The next word that begins so."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            word = self.hear(deadline - time.monotonic())
            if word.startswith(begin):
                return word
        raise AssertionError(f"{self.name}: no {begin}; {self.heard}\n{self.log.read_text()}")

    def is_fed(self, seconds: float = SECONDS) -> bool:
        """Whether a word of life that is sent from now on comes within this time."""
        while self.hear(0):
            pass
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.hear(deadline - time.monotonic()) == "WATCHDOG=1":
                return True
        return False

    def is_starved(self, what_may_be_on_its_way_s: float = 0.5) -> bool:
        """Whether no word of life comes any more."""
        self.is_fed(what_may_be_on_its_way_s)
        return not self.is_fed(SILENCE_S)

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._socket.close()
        return self.process.wait()


@pytest.fixture
def grid() -> Iterator[Callable[..., Watched]]:
    started: list[Watched] = []
    with tempfile.TemporaryDirectory(prefix="gw-") as name:
        folder = pathlib.Path(name)
        folder.chmod(0o711)
        run = folder / "run"
        run.mkdir(mode=0o700)
        key = load_key(folder / "broker" / BROKER_KEY).verify_key.encode().hex()
        options = {
            "ledger": ["--listen", f"ipc://{run}/ledger"],
            "store": ["--listen", f"unix://{run}/store", "--key", key],
            "broker": [
                "--front", f"ipc://{run}/front", "--back", f"ipc://{run}/back",
                "--ledger", f"ipc://{run}/ledger", "--store", f"unix://{run}/store",
            ],
            "worker": ["--broker", f"ipc://{run}/back", "--name", "w", "--slots", "1"],
        }  # fmt: skip

        def start(room: str, *more: str) -> Watched:
            made = Watched(folder, room, "--state", str(folder / room), *options[room], *more)
            started.append(made)
            return made

        yield start
        for each in reversed(started):
            each.end()


@pytest.mark.slow
def test_only_a_completed_round_trip_feeds(grid: Callable[..., Watched]) -> None:
    """Also: a worker is ready only when it has joined, and each process says that it ends."""
    worker = grid("worker")
    assert "tries this host" in worker.until("STATUS=")
    worker.until("EXTEND_TIMEOUT_USEC=")
    assert not worker.hear(1.0), "it has not joined: it is not ready, and nothing feeds"
    ledger, broker = grid("ledger"), grid("broker")
    store = grid("store")
    for each in (ledger, broker, store, worker):
        told = each.until("READY=1\nSTATUS=")
        assert "\n" not in told.partition("STATUS=")[2]
    assert all([each.is_fed() for each in (ledger, broker, store, worker)])

    # A broker that stands still: the worker's loop turns, and feeds nothing.
    broker.process.send_signal(signal.SIGSTOP)
    assert worker.is_starved()
    assert not broker.is_fed(0.1)
    assert ledger.is_fed() and store.is_fed()
    broker.process.send_signal(signal.SIGCONT)
    assert broker.is_fed() and worker.is_fed()

    # A ledger and a store that stand still are their own trouble alone.
    for each in (ledger, store):
        each.process.send_signal(signal.SIGSTOP)
    assert ledger.is_starved(0)
    while store.hear(0):
        pass  # what it said before
    assert not store.is_fed(0.7)
    assert broker.is_fed() and worker.is_fed()
    for each in (ledger, store):
        each.process.send_signal(signal.SIGCONT)
        assert each.is_fed(), each.log.read_text()

    for each in (worker, broker, store, ledger):
        each.process.terminate()
        each.until("STOPPING=1")
        assert each.process.wait(SECONDS) == 0


def test_a_self_test_that_fails_is_told_and_never_ready(grid: Callable[..., Watched]) -> None:
    worker = grid("worker", "--needs-cgroups", "--no-cgroups")
    assert worker.process.wait(SECONDS) == 78
    words = []
    while word := worker.hear(0):
        words.append(word)
    assert not [word for word in words if "READY=1" in word]
    assert "STATUS=CANNOT_JAIL: it must have cgroups, and has none: switched off" in words
    told = worker.log.read_text()
    assert told.startswith("CANNOT_JAIL: this host cannot run jails: it must have cgroups")
