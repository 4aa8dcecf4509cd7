"""The customers of a drill: they submit, read, check every value and keep a list of what they got.

Each job has a key, so a customer that was told nothing asks again and gets the same job. The list
is what the judge compares the files with: *accepted* is a job whose number was given, *acked* a
subtask whose value was.
"""

import dataclasses
import itertools
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from gristmill.client import BrokerUnavailable, Client
from gristmill.client.keyed import submission_of
from gristmill.wire.errors import RemoteError
from gristmill.wire.spec import Tier

PAUSE_S = 0.05  #: between two tries of a customer whose broker does not answer
#: (tier, seconds of a subtask, subtasks at most): half of the jobs are large and quick
SHAPES: tuple[tuple[Tier, float, int], ...] = (("batch", 0.0005, 400), ("job", 0.02, 12))


@dataclasses.dataclass
class Promise:
    """One job as its customer knows it: ``values`` are those that came, by index."""

    key: str
    base: int
    count: int
    job: int = 0
    values: dict[int, Any] = dataclasses.field(default_factory=dict)
    wrong: list[str] = dataclasses.field(default_factory=list)
    is_ended: bool = False

    @property
    def submission(self) -> bytes:
        """The id that the broker keeps."""
        return submission_of(self.key)

    def take(self, index: int, value: Any, error: BaseException | None, seen: set[int]) -> None:
        """One subtask of one reading, of which ``seen`` came before."""
        if index in seen:
            self.wrong.append(f"{self.key}: subtask {index} came twice in one reading")
        seen.add(index)
        if error is not None:
            self.wrong.append(f"{self.key}: subtask {index} has no value: {error}")
        elif value != triple_of(self.base + index):
            self.wrong.append(f"{self.key}: subtask {index} is {value!r:.40}")
        else:
            self.values[index] = value


def triple_of(number: int) -> int:
    """The value that a subtask must have."""
    return 3 * number + 1


def make_work(seconds: float) -> Callable[[int], int]:
    """What a subtask does. A closure: it travels by value, the jail need not have this package."""

    def triple(number: int) -> int:
        import time

        time.sleep(seconds)
        return 3 * number + 1

    return triple


class Load:
    """Customers in threads, until ``finish``.

    Args:
        address: of the grid.
        seed: of what they ask for.
        customers: threads, each with a client of its own.
    """

    def __init__(self, address: str, seed: int, customers: int = 2) -> None:
        self.promises: list[Promise] = []
        self.problems: list[str] = []
        self._address = address
        self._lock = threading.Lock()
        self._is_ending = threading.Event()
        self._is_stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(f"{seed}-{number}",), daemon=True)
            for number in range(customers)
        ]

    def start(self) -> None:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()

    def finish(self, seconds: float) -> bool:
        """Ask for nothing new; whether everything that was asked for came in time."""
        self._is_ending.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._is_stopped.set()
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """End at once."""
        self._is_ending.set()
        self._is_stopped.set()

    def add(self, key: str, base: int, count: int) -> Promise:
        """A job that somebody else will ask for, for the list."""
        promise = Promise(key, base, count)
        with self._lock:
            self.promises.append(promise)
        return promise

    @property
    def accepted(self) -> int:
        """Subtasks of accepted jobs."""
        return sum(each.count for each in self.promises if each.job)

    @property
    def acked(self) -> int:
        """Subtasks whose value came."""
        return sum(len(each.values) for each in self.promises)

    # ------------------------------------------------------------ in the threads

    def _run(self, name: str) -> None:
        dice = random.Random(name)
        try:
            with quiet_client(self._address) as client:
                for number in itertools.count():
                    if self._is_ending.is_set():
                        return
                    tier, work_s, most = SHAPES[number % len(SHAPES)]
                    promise = self.add(
                        f"drill-{name}-{number}", dice.randrange(1 << 20), dice.randint(1, most)
                    )
                    self.carry(client, promise, tier, work_s)
        except Exception as error:  # the edge of a thread: the verdict has to know
            self.problems.append(f"customer {name}: {type(error).__name__}: {error}")

    def carry(
        self,
        client: Client,
        promise: Promise,
        tier: Tier,
        work_s: float,
        seconds: float = 1e9,
    ) -> None:
        """One job from its submission to its last value, over every fault, for so many seconds."""
        inputs = range(promise.base, promise.base + promise.count)
        deadline = time.monotonic() + seconds
        while not self._is_stopped.is_set() and time.monotonic() < deadline:
            try:
                spec = client.make_spec(
                    make_work(work_s), tier=tier, losses=100, retries=9, cap=100
                )
                promise.job = client.post(*spec, inputs, key=promise.key).job
                seen: set[int] = set()
                for each in client.ended(promise.job, ordered=False):
                    promise.take(each.index, each.value, each.error, seen)
                promise.is_ended = True
                return
            except BrokerUnavailable:
                pass
            except RemoteError as error:
                if not error.spec.is_retryable:
                    raise
            self._is_stopped.wait(PAUSE_S)


def quiet_client(address: str) -> Client:
    """A client that tells nobody that its broker is away: here that is the point."""
    return Client(address, warn=lambda line: None)


def main() -> None:
    """A customer to be killed, in a process of its own: ``ADDRESS KEY BASE COUNT``.

    It says READY when its job is accepted and its first value came, then reads on.
    """
    address, key, base, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    with quiet_client(address) as client:
        spec = client.make_spec(make_work(0.02), tier="job", losses=100, retries=9, cap=100)
        job = client.post(*spec, range(base, base + count), key=key)
        values = client.ended(job, ordered=False)
        first = next(values)
        print(f"READY {job.job} {first.index}", flush=True)
        for _ in values:
            pass
