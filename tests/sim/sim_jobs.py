"""What clients want computed: known to clients, jails and checkers, to nobody between them.

A work travels as its real function bytes and real parcels; the jail finds out what to do from the
bytes that it got, so a mix-up anywhere shows as a wrong value.
"""

import hashlib
import random
from dataclasses import dataclass, field

import msgspec

from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec, Limits

_PRIME = 1_000_003
CAP = 10**10  #: a cap that nobody reaches


@dataclass(eq=False)
class Work:
    """One submission: what it asks for and what its function does at each index.

    ``fails``: share of attempts that raise. ``poison``: index that kills its jail, ``long_one``:
    index that takes ``long_ms``; -1 for none. ``dies_at_start``: its jail ends before it is up.
    ``is_unready``: its files cannot be had. ``pieces``: sizes of its parcels.
    """

    number: int
    tenant: str
    spec: JobSpec
    size: int
    function: bytes
    seed: int
    took_ms: int
    pieces: list[int]
    fails: float = 0.0
    poison: int = -1
    long_one: int = -1
    long_ms: int = 0
    dies_at_start: bool = False
    is_unready: bool = False
    is_cancel_asked: bool = False
    submission: bytes = field(default=b"")

    def input(self, index: int) -> int:
        """What is sent for an index."""
        return (index * 7_919 + self.seed) % _PRIME

    def parcel(self, first: int, count: int) -> bytes:
        """The frame of some inputs."""
        return msgspec.msgpack.encode([self.input(index) for index in range(first, first + count)])

    def value(self, index: int) -> int:
        """What the function gives back for an index."""
        return value_of(self.seed, self.input(index))

    def duration(self, index: int) -> int:
        """Virtual ms of an attempt."""
        if index == self.long_one:
            return self.long_ms
        return max(1, self.took_ms + (index * 31 + self.seed) % 7 - 3)

    def outcome(self, index: int, attempt: int) -> Outcome:
        """How an attempt ends when nobody interferes."""
        draw = (index * 2_654_435_761 + attempt * 40_503 + self.seed) % 1_000
        return Outcome.ERROR if draw < self.fails * 1_000 else Outcome.OK


def value_of(seed: int, given: int) -> int:
    """The function itself."""
    return (given * given + seed) % _PRIME


def make_work(r: random.Random, number: int, tenant: str, ttl_ms: int) -> Work:
    """A work with chance in every field."""
    seed = r.randint(1, 1 << 20)
    size = r.choice((0, 1, 2, 9, 30, 60, 120))
    function = msgspec.msgpack.encode([number, seed])
    is_wall_short = r.random() < 0.5
    spec = JobSpec(
        kind="function",
        name=f"work-{number}",
        function=hashlib.sha256(function).hexdigest(),
        count=r.choice((-1, size)),
        tier=r.choice(("job", "job", "batch", "strict")),
        limits=Limits(
            cpus_milli=r.choice((500, 1_000, 1_000, 2_000)),
            wall_ms=3 * ttl_ms + 4_000 if is_wall_short else 600_000,
        ),
        labels={"gpu": "1"} if r.random() < 0.15 else {},
        retries=r.choice((0, 1, 3)),
        losses_max=r.choice((0, 1, 3, 8)),
        priority=r.randint(0, 9),
        concurrency_max=r.choice((0, 0, 0, 1, 5)),
        failures_max=r.choice((0, 0, 5)),
        cap_ucredits=r.choice((CAP, CAP, CAP, 300_000, 20_000, 0)),
        keep=r.random() < 0.8,
    )
    pieces, left = [], size
    while left:
        piece = min(left, r.choice((1, 7, 40, 120)))
        pieces.append(piece)
        left -= piece
    work = Work(number, tenant, spec, size, function, seed, r.choice((1, 3, 10, 40, 150)), pieces)
    work.submission = hashlib.sha256(b"submission %d" % number).digest()[:16]
    if r.random() < 0.2:
        work.fails = r.choice((0.1, 0.5, 1.0))
    if r.random() < 0.15 and size:
        work.poison = r.randrange(size)
    if r.random() < 0.2 and size:
        work.long_one, work.long_ms = r.randrange(size), r.choice((1, 3)) * ttl_ms
    work.dies_at_start = r.random() < 0.04
    work.is_unready = r.random() < 0.04
    return work
