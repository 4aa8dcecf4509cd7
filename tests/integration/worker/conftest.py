"""One worker for many tests (it takes most of a second to try this host), or one for each."""

import importlib.util
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    """The suites run with importlib mode: a module beside a test is loaded by hand, once."""
    full = f"gristmill_tests_worker_{name}"
    if full not in sys.modules:
        path = pathlib.Path(__file__).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(full, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


peer_module = _load("peer")


class Pair:
    """A peer and its worker. ``ready`` after the worker's HELLO."""

    def __init__(self, folder: pathlib.Path, *options: str, **popen: object) -> None:
        run = folder / "run"
        run.mkdir(mode=0o700, exist_ok=True)
        self.peer = peer_module.Peer(run)
        self.worker = peer_module.Worker(folder, self.peer.address, *options, **popen)
        self.job = 0

    def greet(self) -> "Pair":
        self.pump(lambda: self.peer.sessions)
        return self

    def pump(self, until: Callable[[], object], timeout_s: float = 20.0) -> None:
        try:
            self.peer.pump(until, timeout_s, self.worker)
        except AssertionError as error:
            raise AssertionError(f"{error}\n--- its words:\n{self.worker.text()}") from None

    def next_job(self) -> int:
        self.job += 1
        return self.job

    def all_told(self, count: int) -> None:
        """Every index has an outcome or came back."""
        peer = self.peer
        self.pump(lambda: len(peer.outcomes()) + len(peer.returned_indices()) >= count)

    def run_function(self, function: object, inputs: list[object], **spec: object) -> None:
        """One job of one lease, to its end."""
        job = self.next_job()
        self.peer.open_function(job, function, **spec)
        self.peer.lease(job, inputs)
        self.all_told(len(inputs))

    def run_command(self, command: object, inputs: list[object], **spec: object) -> None:
        job = self.next_job()
        self.peer.open_command(job, command, **spec)
        self.peer.lease(job, inputs)
        self.all_told(len(inputs))

    def end(self) -> None:
        self.worker.end()
        self.peer.close()


@pytest.fixture(scope="session")
def shared_pair() -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="gw-") as name:
        folder = pathlib.Path(name)
        folder.chmod(0o711)
        pair = Pair(folder, "--tiers", "strict,job,batch,trusted")
        pair.peer.ttl_ms = 600_000  # nobody answers it while other tests run
        pair.greet()
        yield pair
        pair.end()


@pytest.fixture
def pair(shared_pair: Pair) -> Pair:
    """The shared worker, with nothing of earlier tests in the peer's memory."""
    peer = shared_pair.peer
    while peer.socket.poll(0):
        peer.pump(lambda: not peer.socket.poll(0))
    peer.forget()
    return shared_pair


@pytest.fixture
def start() -> Iterator[Callable[..., Pair]]:
    """Make workers of one's own: ``start("--slots", "2")``."""
    made: list[Pair] = []
    folders: list[tempfile.TemporaryDirectory[str]] = []

    def make(*options: str, **popen: object) -> Pair:
        folder = tempfile.TemporaryDirectory(prefix="gw-")
        folders.append(folder)
        pathlib.Path(folder.name).chmod(0o711)
        pair = Pair(pathlib.Path(folder.name), *options, **popen)
        made.append(pair)
        return pair

    yield make
    for pair in made:
        pair.end()
    for folder in folders:
        folder.cleanup()
