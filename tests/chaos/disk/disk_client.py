"""A client that keeps a list of everything it was promised, whatever happens to the grid.

It speaks the client dialogue from the RFC with nothing but the wire's structs: jobs of several
kinds, a few at a time; what is not answered is said again. Its list is what a judge compares the
files with. ``python -P disk_client.py ADDRESS LIST SEED JOBS_AT_ONCE`` runs one until its standard
input ends, then until all of its jobs are final; ``Customer`` is the same for a thread.
"""

import hashlib
import os
import random
import select
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from gristmill.client.pickling import dump_function
from gristmill.wire import client as say
from gristmill.wire.frames import encode
from gristmill.wire.limits import PROTOCOL
from gristmill.wire.meter import unpack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec, Tier
from gristmill.wire.values import decode_ref, pack_plain, unpack

SILENCE_S = 1.0  #: then it connects and says HELLO anew
RESEND_S = 0.5  #: for what was said and not answered
CREDIT = 1 << 50


class Kept(msgspec.Struct):
    """A result that a client was given: an ack of ``count`` subtasks."""

    sequence: int
    first: int
    count: int
    attempt: int
    node: str
    not_final: list[tuple[int, int]]
    digest: str  #: of the four frames, each with its length


class Order(msgspec.Struct):
    """A job as its client knows it. ``job`` 0: not accepted yet; ``final``: its last card."""

    submission: bytes
    kind: str
    count: int
    base: int = 0  #: the input of subtask ``index`` is ``base + index``
    job: int = 0
    committed: int = 0
    results: list[Kept] = []
    final: say.JobStatus | None = None
    is_cancelled: bool = False
    wrong: list[str] = []  #: values and digests that are not what they must be
    blobs: list[str] = []  #: digests of values that lie in the store


def _triple(x: int) -> int:
    return 3 * x + 1


def _picky(x: int) -> int:
    if x % 5 == 0:
        raise ValueError(x)
    return 3 * x + 1


def _moody(x: int) -> int:
    import os

    if os.urandom(1)[0] < 50:
        raise ValueError(x)
    return 3 * x + 1


def _slow(x: int) -> int:
    import time

    time.sleep(0.03)
    return 3 * x + 1


def _large(x: int) -> bytes:
    return x.to_bytes(4, "little") * 20_000  # 80 KB: travels through the store


#: kind to (function, tier, retries, subtasks at most)
KINDS: dict[str, tuple[Callable[[int], Any], Tier, int, int]] = {
    "triple": (_triple, "batch", 0, 6_000),
    "picky": (_picky, "batch", 1, 60),
    "moody": (_moody, "batch", 40, 100),
    "slow": (_slow, "job", 0, 8),
    "large": (_large, "batch", 0, 3),
    "cancel": (_slow, "job", 0, 200),
}
PARCEL = 250


class Customer:
    """One client with its list.

    Args:
        address: the broker's front.
        seed: of what it asks for.
        at_once: jobs that it has running at a time.
        kinds: names of ``KINDS`` that it asks for.
    """

    def __init__(
        self, address: str, seed: int, at_once: int, kinds: tuple[str, ...] = tuple(KINDS)
    ) -> None:
        self._address = address
        self._random = random.Random(seed)
        self._at_once = at_once
        self._kinds = kinds
        self._functions = {name: dump_function(KINDS[name][0]) for name in kinds}
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._id = os.urandom(16)
        self._session = b""
        self._heard = self._said = 0.0
        self._requests: dict[int, Order] = {}
        self._request = 0
        self._jobs: dict[int, Order] = {}
        self._uploaded: dict[int, int] = {}
        self.orders: list[Order] = []
        self._open: dict[bytes, Order] = {}
        self.is_ending = False
        self.joins = 0

    # ------------------------------------------------------------ life

    def run_until(self, condition: Callable[[], Any], seconds: float) -> bool:
        """Goes on until the condition holds; whether it did in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.turn()
        return True

    def finish(self, seconds: float) -> bool:
        """Asks for nothing more and waits until every job is final."""
        self.is_ending = True
        return self.run_until(lambda: not self._open, seconds)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close(0)
        self._context.term()

    def turn(self) -> None:
        """A few messages in, what is due out."""
        now = time.monotonic()
        if self._socket is None or now - self._heard > SILENCE_S:
            self._join(now)
        assert self._socket is not None
        if self._session:
            while not self.is_ending and len(self._open) < self._at_once:
                self._order()
        if self._socket.poll(20):
            for _ in range(200):
                try:
                    frames = self._socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._heard = time.monotonic()
                self._take(say.decode_broker.decode(frames[0]), frames[1:])
        if self._session and now - self._said > RESEND_S:
            self._say(say.Ping(self._session))
            for order in self._open.values():
                if not order.job or order.committed < order.count:
                    self._say_order(order)
                if order.is_cancelled:
                    self._say(say.Cancel(self._session, self._number(order), order.job, []))

    def _join(self, now: float) -> None:
        if self._socket is not None:
            self._socket.close(0)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.connect(self._address)
        self._session, self._heard = b"", now
        self._requests.clear()
        self.joins += 1
        self._say(say.Hello(PROTOCOL, self._id, "local", _python(), "chaos"))

    def _say(self, message: msgspec.Struct, *frames: bytes) -> None:
        assert self._socket is not None
        self._said = time.monotonic()
        try:
            self._socket.send_multipart([encode(message), *frames], zmq.NOBLOCK)
        except zmq.Again:
            pass  # it will be said again

    def _number(self, order: Order) -> int:
        self._request += 1
        self._requests[self._request] = order
        return self._request

    # ------------------------------------------------------------ asking

    def _order(self) -> None:
        # Half of the jobs are large and quick: most acks are theirs.
        kind = self._kinds[max(0, self._random.randrange(2 * len(self._kinds)) - len(self._kinds))]
        count = self._random.randint(1, KINDS[kind][3])
        base = self._random.randrange(1 << 20)
        order = Order(os.urandom(16), kind, count, base, results=[], wrong=[], blobs=[])
        self.orders.append(order)
        self._open[order.submission] = order
        self._say_order(order)

    def _say_order(self, order: Order) -> None:
        """What the broker has not answered yet of an order."""
        if order.job:
            self._upload(order)
            return
        _, tier, retries, _ = KINDS[order.kind]
        body = self._functions[order.kind]
        spec = JobSpec(
            "function",
            name=order.kind,
            function=hashlib.sha256(body).hexdigest(),
            count=order.count,
            tier=tier,
            retries=retries,
            losses_max=100,
            python=_python(),
            cap_ucredits=50_000_000,
        )
        message = say.Submit(self._session, self._number(order), order.submission, spec)
        self._say(message, body)

    def _upload(self, order: Order) -> None:
        for first in range(order.committed, order.count, PARCEL):
            values = [order.base + at for at in range(first, min(first + PARCEL, order.count))]
            packed = pack_plain(values)
            assert packed
            self._say(
                say.Parcel(self._session, order.job, first, len(values), packed[0]), packed[1]
            )

    def _subscribe(self, order: Order) -> None:
        after = order.results[-1].sequence if order.results else 0
        self._say(say.Subscribe(self._session, self._number(order), order.job, after, CREDIT))

    # ------------------------------------------------------------ what comes

    def _take(self, message: Any, frames: list[bytes]) -> None:
        if isinstance(message, say.Welcome):
            self._session = message.session
            for order in self._open.values():
                self._say_order(order)
                if order.job:
                    self._subscribe(order)
        elif isinstance(message, say.Accepted):
            self._on_accepted(message)
        elif isinstance(message, say.InputCredit):
            if order := self._jobs.get(message.job):
                order.committed = max(order.committed, message.committed)
        elif isinstance(message, say.Results):
            if order := self._jobs.get(message.job):
                self._on_results(order, message, frames)
        elif isinstance(message, say.JobEvent):
            order = self._jobs.get(message.status.job)
            is_final = message.status.state in say.FINAL_JOB_STATES
            if order and is_final and message.status.results == _last(order):
                order.final = message.status
                self._open.pop(order.submission, None)
        elif isinstance(message, say.Refused):
            if message.code == "REJOIN":
                self._heard = -SILENCE_S
            elif order := self._requests.get(message.request):
                order.wrong.append(f"refused: {message.code} {message.message}")

    def _on_accepted(self, message: say.Accepted) -> None:
        order = self._requests.get(message.request)
        if order is None:
            return
        if order.job and order.job != message.job:
            order.wrong.append(f"accepted as j{order.job}, then as j{message.job}")
        if not order.job:
            order.job = message.job
            self._jobs[message.job] = order
            self._upload(order)
            self._subscribe(order)

    def _on_results(self, order: Order, message: say.Results, frames: list[bytes]) -> None:
        if message.sequence <= _last(order):
            return
        if message.sequence != _last(order) + 1:
            self._subscribe(order)  # one is missing: from there again
            return
        head = message.head
        order.results.append(
            Kept(
                message.sequence,
                head.first,
                head.count,
                message.attempt,
                message.node,
                list(message.not_final),
                digest_of_frames(frames),
            )
        )
        _check(order, message, frames)
        if order.kind == "cancel" and not order.is_cancelled and len(order.results) > 2:
            order.is_cancelled = True
            self._say(say.Cancel(self._session, self._number(order), order.job, []))


def _last(order: Order) -> int:
    return order.results[-1].sequence if order.results else 0


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def digest_of_frames(frames: list[bytes]) -> str:
    """sha-256 of frames, each preceded by its length."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(len(frame).to_bytes(8, "little"))
        digest.update(frame)
    return digest.hexdigest()


def _check(order: Order, message: say.Results, frames: list[bytes]) -> None:
    """Values are what the function gives for the inputs of these very subtasks."""
    head = message.head
    meter = unpack_meter(frames[1], head.count)
    good = [o for o in range(head.count) if meter.outcome_at(o) is Outcome.OK]
    if not good:
        return
    if head.codec.startswith("@"):
        order.blobs.append(decode_ref(frames[0]).digest)
        return
    function = _triple if order.kind != "large" else _large
    values = unpack(head.codec, frames[0], len(good))
    expected = [function(order.base + head.first + offset) for offset in good]
    if values != expected:
        order.wrong.append(f"result {message.sequence} of j{order.job} has wrong values")


def main() -> None:
    """Runs until standard input ends, then until every job is final; writes its list."""
    address, path, seed, at_once = sys.argv[1:]
    customer = Customer(address, int(seed), int(at_once))
    while not (select.select([0], [], [], 0)[0] and not os.read(0, 64)):
        customer.run_until(lambda: False, 0.1)
    is_done = customer.finish(120.0)
    with open(path, "wb") as file:
        file.write(msgspec.msgpack.encode(customer.orders))
    customer.close()
    sys.exit(0 if is_done else 3)


def read_list(path: str | os.PathLike[str]) -> list[Order]:
    """The list that a client process wrote."""
    with open(path, "rb") as file:
        return msgspec.msgpack.decode(file.read(), type=list[Order])


if __name__ == "__main__":
    main()
