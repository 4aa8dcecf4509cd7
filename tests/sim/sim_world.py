"""Virtual time, one random source and the trace: what everything else in the simulator stands on.

One heap of (time, order, action). Nothing runs at the same time as anything else; everything that
is left to chance is drawn from ``random``, so a seed is a whole history.
"""

import contextlib
import hashlib
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

UTC_MS = 1_700_000_000_000
TRACE_LINES = 60


class BrokenPromiseError(AssertionError):
    """Something was promised and did not hold."""


def need(condition: object, what: str) -> None:
    """Raises ``BrokenPromiseError`` with ``what`` unless the condition holds."""
    if not condition:
        raise BrokenPromiseError(what)


class World:
    """The clock and the history of one seed.

    ``seen`` counts how often each fault and each way of recovery happened; ``trace`` is the end of
    the history for people, ``digest`` the whole of it for comparing two runs.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 1_000
        self.utc_skew = 0
        self.steps = 0
        self.seen: Counter[str] = Counter()
        self.trace: deque[str] = deque(maxlen=TRACE_LINES)
        self.digest = hashlib.blake2b(digest_size=16)
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0

    def at(self, delay: int, action: Callable[[], None]) -> None:
        """Runs ``action`` after ``delay`` ms."""
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay, self._order, action))

    def note(self, text: str) -> None:
        """A line of the history."""
        line = f"{self.now:>7} {text}"
        self.trace.append(line)
        self.digest.update(line.encode())

    def saw(self, what: str, count: int = 1) -> None:
        """A fault was made, or a way of recovery was taken."""
        self.seen[what] += count

    def chance(self, rate: float) -> bool:
        """True in this share of the calls."""
        return rate > 0 and self.random.random() < rate

    def run_next(self) -> bool:
        """The next action; False when nothing is left to do."""
        if not self._heap:
            return False
        self.now, _, action = heapq.heappop(self._heap)
        self.steps += 1
        action()
        return True

    # ------------------------------------------------------------ clocks, as processes read them

    def now_ms(self) -> int:
        """A monotonic clock."""
        return self.now

    def utc_ms(self) -> int:
        """The wall clock, which may jump."""
        return UTC_MS + self.now + self.utc_skew

    def time_ns(self) -> int:
        """``time.time_ns``."""
        return self.utc_ms() * 1_000_000

    def monotonic(self) -> float:
        """``time.monotonic``."""
        return self.now / 1000


class Shim:
    """A module with some of its names replaced."""

    def __init__(self, real: Any, **names: Any) -> None:
        self._real = real
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@contextlib.contextmanager
def replaced(names: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Sets (owner, name, value) for the duration: how real modules get simulated collaborators."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in names]
    try:
        for owner, name, value in names:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)
