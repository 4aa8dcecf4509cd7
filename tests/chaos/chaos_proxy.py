"""Stands between a peer and a real process and loses, repeats, delays and reorders what passes.

``ChaosProxy`` knows messages: each peer that connects to it gets a DEALER of its own to the real
process, so the process sees one connection for each peer and its sessions behave as always. A peer
and the process do not see one another's connections end, nor their ZMTP heartbeats: these end at
the proxy. Where that matters (a link that falls silent below ZeroMQ) ``ByteRelay`` passes plain
bytes and can stop without closing anything.

    with ChaosProxy(grid.back, seed=7) as proxy:
        proxy.up = Faults(drop=0.1, duplicate=0.1)      # towards the process
        ... a worker with --broker proxy.address ...
        proxy.cut(); ...; proxy.heal()

The same seed gives the same decisions for the same messages of the same peer; peers are numbered
in the order in which they first speak.
"""

import contextlib
import dataclasses
import heapq
import itertools
import os
import random
import selectors
import shutil
import socket
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import zmq

UP, DOWN = "up", "down"  #: towards the real process, and back to the peer
YOUNG_S = 10.0  #: for this long a new connection keeps what it cannot send yet
IDLE_S = 60.0  #: a peer that says nothing for this long is forgotten
BUFFER_BYTES = 1 << 20  #: of a relay, for each direction of a connection


class Message(NamedTuple):
    """One message on its way: the ``number``-th (from 0) of its peer in this direction."""

    direction: str
    peer: int
    number: int
    frames: list[bytes]


#: The delays (seconds) of each copy that is passed on: ``[]`` drops it, ``[0, 0]`` doubles it.
Plan = Callable[[Message], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Faults:
    """Shares (0 to 1) of the messages of one direction.

    ``delay_s``: every message waits this long, ``jitter_s``: and up to this much more (which
    reorders); ``reorder``: share that waits up to ``reorder_s`` while others pass it.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    reorder: float = 0.0
    reorder_s: float = 0.05


class _Link:
    """One peer and its connection to the real process."""

    def __init__(self, number: int, routing: bytes, upstream: "zmq.Socket[bytes]") -> None:
        self.number = number
        self.routing = routing
        self.upstream = upstream
        self.began = self.heard = time.monotonic()
        self.has_sent = False
        self.waiting: deque[list[bytes]] = deque()
        self.numbers = {UP: itertools.count(), DOWN: itertools.count()}
        self.random: dict[str, random.Random] = {}


class ChaosProxy:
    """See the module's text. A context manager; a thread of this process does the work.

    Args:
        upstream: address of the real process (``ipc://`` or ``tcp://``). It need not be there yet.
        seed: of every decision.
        listen: where to listen; by default a fresh ipc address, or ``tcp`` for a loopback port.

    Attributes:
        address: for the peers.
        up, down: faults of each direction; may be set at any time.
        plan: decides instead of ``up`` and ``down`` when it is set; runs in the proxy's thread.
        counts: by (direction, what): ``seen``, ``passed`` (copies), ``dropped``, ``duplicated``,
            ``delayed``, ``cut``, ``unsent`` (nobody there to take it).
    """

    def __init__(self, upstream: str, *, seed: int = 0, listen: str = "") -> None:
        self.upstream = upstream
        self.up = self.down = Faults()
        self.plan: Plan | None = None
        self.counts: Counter[tuple[str, str]] = Counter()
        self.failure: BaseException | None = None
        self._seed = seed
        self._folder = ""
        if listen in ("", "ipc"):
            self._folder = tempfile.mkdtemp(prefix="chaos-")  # mode 0700
            listen = f"ipc://{self._folder}/proxy"
        self._listen = "tcp://127.0.0.1:*" if listen == "tcp" else listen
        self._cut: frozenset[str] = frozenset()
        self._commands: deque[Callable[[], None]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_ending = False
        self._late: list[tuple[float, int, str, _Link, list[bytes]]] = []  # a heap
        self._order = itertools.count()
        self._links: dict[bytes, _Link] = {}
        self._peers = itertools.count()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._bind()
        endpoint = self._router.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        self.address = endpoint.rstrip(b"\0").decode()
        self._thread = threading.Thread(target=self._run, name="chaos-proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> "ChaosProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it; what was delayed is lost. Fails when its thread had failed."""
        self._is_ending = True
        if self._thread.is_alive():
            os.eventfd_write(self._wake_fd, 1)
            self._thread.join(10)
        assert not self._thread.is_alive()
        os.close(self._wake_fd)
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self.failure is not None:
            raise self.failure

    # ------------------------------------------------------------ faults at a moment

    def cut(self, *directions: str) -> None:
        """Swallows everything (or one direction) without telling anybody, until ``heal``."""
        self._cut = frozenset(directions or (UP, DOWN))

    def heal(self) -> None:
        """Passes again what comes from now on."""
        self._cut = frozenset()

    def reset(self) -> None:
        """Closes every connection and listens anew: the cut that both sides notice."""
        self._do(self._reset)

    def forget_delayed(self) -> None:
        """What waits for its time is lost."""
        self._do(self._late.clear)

    @property
    def peers(self) -> int:
        """How many peers are connected to the real process now."""
        return len(self._links)

    def seen(self, direction: str, what: str = "seen") -> int:
        """One of the counts."""
        return self.counts[direction, what]

    # ------------------------------------------------------------ the thread

    def _do(self, command: Callable[[], None]) -> None:
        done = threading.Event()

        def run() -> None:
            command()
            done.set()

        self._commands.append(run)
        os.eventfd_write(self._wake_fd, 1)
        assert done.wait(10), "the proxy's thread does not answer"

    def _bind(self) -> "zmq.Socket[bytes]":
        router = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.LINGER, 0),
            (zmq.BACKLOG, 4_096),
            (zmq.SNDHWM, 0),
            (zmq.RCVHWM, 0),
            (zmq.HEARTBEAT_IVL, 1_000),
            (zmq.HEARTBEAT_TIMEOUT, 10_000),
        ):
            router.setsockopt(option, value)
        router.bind(self._listen)
        return router

    def _reset(self) -> None:
        for link in list(self._links.values()):
            self._forget(link)
        self._poller.unregister(self._router)
        address = self._router.getsockopt(zmq.LAST_ENDPOINT)
        self._router.close()
        assert isinstance(address, bytes)
        self._listen = address.rstrip(b"\0").decode()
        deadline = time.monotonic() + 5
        while True:
            try:
                self._router = self._bind()
                break
            except zmq.ZMQError:  # the old one is closed by libzmq's own thread
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self._poller.register(self._router, zmq.POLLIN)

    def _run(self) -> None:
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self._wake_fd, zmq.POLLIN)
        try:
            while not self._is_ending:
                self._turn()
        except BaseException as error:  # told by close()
            self.failure = error
        finally:
            for link in list(self._links.values()):
                self._forget(link)
            self._router.close(0)
            self._context.term()

    def _turn(self) -> None:
        ready = dict(self._poller.poll(self._wait_ms()))
        if self._wake_fd in ready:
            os.eventfd_read(self._wake_fd)
        while self._commands:
            self._commands.popleft()()
        if self._router in ready:
            for _ in range(1_000):
                try:
                    frames = self._router.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                link = self._links.get(frames[0]) or self._meet(frames[0])
                link.heard = time.monotonic()
                self._take(UP, link, frames[1:])
        for link in list(self._links.values()):
            if link.upstream in ready:
                self._read(link)
            if link.waiting:
                self._flush(link)
            elif time.monotonic() - link.heard > IDLE_S:
                self._forget(link)
        now = time.monotonic()
        while self._late and self._late[0][0] <= now:
            _, _, direction, link, frames = heapq.heappop(self._late)
            self._pass(direction, link, frames)

    def _wait_ms(self) -> int:
        if any(link.waiting for link in self._links.values()):
            return 2
        if not self._late:
            return 1_000
        return max(0, min(1_000, int((self._late[0][0] - time.monotonic()) * 1_000) + 1))

    def _meet(self, routing: bytes) -> _Link:
        upstream = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.IMMEDIATE, 1),  # as the real peers: no queue for a process that is not there
            (zmq.SNDHWM, 0),
            (zmq.RCVHWM, 0),
            (zmq.RECONNECT_IVL, 20),
            (zmq.RECONNECT_IVL_MAX, 200),
            (zmq.HEARTBEAT_IVL, 1_000),
            (zmq.HEARTBEAT_TIMEOUT, 10_000),
        ):
            upstream.setsockopt(option, value)
        upstream.connect(self.upstream)
        self._poller.register(upstream, zmq.POLLIN)
        link = self._links[routing] = _Link(next(self._peers), routing, upstream)
        for direction in (UP, DOWN):
            link.random[direction] = random.Random(f"{self._seed}/{link.number}/{direction}")
        return link

    def _forget(self, link: _Link) -> None:
        if self._links.pop(link.routing, None) is not None:
            self._poller.unregister(link.upstream)
            link.upstream.close(0)

    def _read(self, link: _Link) -> None:
        for _ in range(1_000):
            if link.upstream.closed:  # the peer that it was for is gone
                return
            try:
                frames = link.upstream.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(DOWN, link, frames)

    def _take(self, direction: str, link: _Link, frames: list[bytes]) -> None:
        self.counts[direction, "seen"] += 1
        message = Message(direction, link.number, next(link.numbers[direction]), frames)
        if self.plan is not None:
            delays = self.plan(message)
        else:
            delays = self._decide(direction, link.random[direction])
        if direction in self._cut:
            self.counts[direction, "cut"] += 1
            return
        if not delays:
            self.counts[direction, "dropped"] += 1
        self.counts[direction, "duplicated"] += max(0, len(delays) - 1)
        for delay_s in delays:
            if delay_s <= 0:
                self._pass(direction, link, frames)
            else:
                self.counts[direction, "delayed"] += 1
                due = time.monotonic() + delay_s
                heapq.heappush(self._late, (due, next(self._order), direction, link, frames))

    def _decide(self, direction: str, chance: random.Random) -> list[float]:
        faults = self.up if direction == UP else self.down
        # Always as many draws, so that one message's fate does not change the next one's.
        dropped, doubled, reordered, late, jitter = (chance.random() for _ in range(5))
        if dropped < faults.drop:
            return []
        delay_s = faults.delay_s + jitter * faults.jitter_s
        if reordered < faults.reorder:
            delay_s += late * faults.reorder_s
        return [delay_s] * (1 + (doubled < faults.duplicate))

    def _pass(self, direction: str, link: _Link, frames: list[bytes]) -> None:
        if direction in self._cut:  # it was delayed into the cut
            self.counts[direction, "cut"] += 1
        elif self._links.get(link.routing) is not link:
            self.counts[direction, "unsent"] += 1
        elif direction == UP:
            link.waiting.append(frames)
            self._flush(link)
        else:
            try:
                self._router.send_multipart([link.routing, *frames], zmq.NOBLOCK)
                self.counts[DOWN, "passed"] += 1
            except zmq.ZMQError:  # the peer is gone: so is its connection to the process
                self.counts[DOWN, "unsent"] += 1
                self._forget(link)

    def _flush(self, link: _Link) -> None:
        while link.waiting:
            try:
                link.upstream.send_multipart(link.waiting[0], zmq.NOBLOCK)
            except zmq.Again:
                is_young = not link.has_sent and time.monotonic() - link.began < YOUNG_S
                if not is_young:
                    self.counts[UP, "unsent"] += len(link.waiting)
                    link.waiting.clear()
                return
            link.has_sent = True
            link.waiting.popleft()
            self.counts[UP, "passed"] += 1


# ---------------------------------------------------------------- below ZeroMQ


class _Pipe:
    """One direction of a relayed connection."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self.buffer = bytearray()
        self.is_ended = False


class ByteRelay:
    """Passes the bytes of stream connections (``tcp://`` or ``ipc://``), or silently does not.

    While it is ``cut`` nothing is read, written, accepted or closed: to both sides it looks like a
    network that swallows every packet. After ``heal`` the bytes go on where they stopped, unless a
    side has given up meanwhile. ``reset`` closes all connections.

    Attributes:
        address: for the peers, of the same kind as ``upstream``.
        bytes_passed: in both directions.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.bytes_passed = 0
        self.connections = 0
        self._folder = ""
        if upstream.startswith("ipc://"):
            self._folder = tempfile.mkdtemp(prefix="chaos-")
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(f"{self._folder}/relay")
            self.address = f"ipc://{self._folder}/relay"
        else:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.address = "tcp://{}:{}".format(*self._listener.getsockname())
        self._listener.listen(4_096)
        self._listener.setblocking(False)
        self._is_cut = False
        self._is_resetting = False
        self._is_ending = False
        self._pairs: list[tuple[_Pipe, _Pipe]] = []
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="byte-relay", daemon=True)
        self._thread.start()

    def __enter__(self) -> "ByteRelay":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cut(self) -> None:
        """From now on nothing passes, and nobody is told."""
        self._is_cut = True
        os.eventfd_write(self._wake_fd, 1)

    def heal(self) -> None:
        """Passes again."""
        self._is_cut = False
        os.eventfd_write(self._wake_fd, 1)

    def reset(self) -> None:
        """Closes every connection."""
        self._is_resetting = True
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Ends it."""
        self._is_ending = True
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join(10)
        assert not self._thread.is_alive()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self) -> None:
        try:
            while not self._is_ending:
                self._turn()
        finally:
            self._close_all()
            self._listener.close()
            os.close(self._wake_fd)

    def _turn(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_fd, selectors.EVENT_READ)
            if not self._is_cut:
                selector.register(self._listener, selectors.EVENT_READ)
                wanted: dict[socket.socket, int] = {}
                for pipe in itertools.chain.from_iterable(self._pairs):
                    if not pipe.is_ended and len(pipe.buffer) < BUFFER_BYTES:
                        wanted[pipe.source] = wanted.get(pipe.source, 0) | selectors.EVENT_READ
                    if pipe.buffer:
                        wanted[pipe.sink] = wanted.get(pipe.sink, 0) | selectors.EVENT_WRITE
                for each, events in wanted.items():
                    selector.register(each, events)
            ready = {key.fileobj: events for key, events in selector.select(1.0)}
        if self._wake_fd in ready:
            os.eventfd_read(self._wake_fd)
        if self._is_resetting:
            self._is_resetting = False
            self._close_all()
        elif not self._is_cut:
            if self._listener in ready:
                self._accept()
            for pair in list(self._pairs):
                self._move(pair, ready)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                peer, _ = self._listener.accept()
                try:
                    process = self._connect()
                except OSError:
                    peer.close()
                    continue
                peer.setblocking(False)
                process.setblocking(False)
                self.connections += 1
                self._pairs.append((_Pipe(peer, process), _Pipe(process, peer)))

    def _connect(self) -> socket.socket:
        if self.upstream.startswith("ipc://"):
            process = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            process.connect(self.upstream.removeprefix("ipc://"))
            return process
        host, _, port = self.upstream.removeprefix("tcp://").rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)))

    def _move(self, pair: tuple[_Pipe, _Pipe], ready: dict[object, int]) -> None:
        for pipe in pair:
            try:
                if ready.get(pipe.source, 0) & selectors.EVENT_READ and not pipe.is_ended:
                    part = pipe.source.recv(1 << 16)
                    pipe.is_ended = not part
                    pipe.buffer += part
                if pipe.buffer:
                    sent = pipe.sink.send(pipe.buffer)
                    self.bytes_passed += sent
                    del pipe.buffer[:sent]
            except BlockingIOError:
                pass
            except OSError:
                pipe.is_ended = True
                pipe.buffer.clear()
        if any(pipe.is_ended and not pipe.buffer for pipe in pair):
            for pipe in pair:
                pipe.source.close()
            self._pairs.remove(pair)

    def _close_all(self) -> None:
        for pair in self._pairs:
            for pipe in pair:
                pipe.source.close()
        self._pairs.clear()
