"""ZeroMQ as the processes know it: ROUTER and DEALER sockets over a network that can fail.

What a real link does: messages arrive in order; a connection may be cut, and then what was on the
way is lost in both directions; a partition (also one way) holds messages back until it heals or
until heartbeats give the connection up; a peer that does not read fills its queue. What it does not
do, and what the *harsh* mode does all the same: lose, repeat or reorder single messages.
"""

import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import zmq
from sim_world import World

HEARTBEAT_MS = 3_000  #: silence after which a side gives its connection up
QUEUE_MESSAGES = 200  #: unread messages on a connection after which a send would block
UP, DOWN = 0, 1  #: dealer to router, and back


@dataclass
class NetSettings:
    """``delays`` of a message in ms; rates of the harsh mode, zero in the ordinary one."""

    delays: tuple[int, ...] = (0, 1, 1, 2, 5)
    lose: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0

    @property
    def is_harsh(self) -> bool:
        """Single messages may be lost, repeated or reordered."""
        return self.lose + self.repeat + self.reorder > 0


class Network:
    """All connections. Hosts are names; ``block`` is one direction between two of them."""

    def __init__(self, world: World, settings: NetSettings) -> None:
        self.world = world
        self.settings = settings
        self.was_harsh = settings.is_harsh
        self.routers: dict[str, Router] = {}
        self.dealers: list[Dealer] = []
        self.blocked: dict[tuple[str, str], None] = {}
        self.lost = self.repeated = self.delivered = 0
        self._last_routing = 0

    def new_routing(self) -> bytes:
        """The address of a new connection."""
        self._last_routing += 1
        return b"\0" + self._last_routing.to_bytes(4, "big")

    def block(self, source: str, target: str) -> None:
        """Nothing gets from one host to the other until ``unblock``."""
        self.blocked[source, target] = None
        for connection in self.connections():
            connection.watch_silence()

    def unblock(self, source: str, target: str) -> None:
        """What was held back goes on its way, where the connection still stands."""
        self.blocked.pop((source, target), None)
        for connection in self.connections():
            connection.release()

    def connections(self) -> list["Connection"]:
        """Those that stand on at least one side."""
        return [dealer.connection for dealer in self.dealers if dealer.connection is not None]


class Connection:
    """One connection between a dealer and a router; gone for good once it is cut."""

    def __init__(self, dealer: "Dealer", router: "Router") -> None:
        self.dealer, self.router = dealer, router
        self.routing = dealer.net.new_routing()
        self.is_open = [True, True]  # dealer's side, router's side
        self.due = [0, 0]
        self.on_way = [0, 0]
        self.held: tuple[deque[list[bytes]], deque[list[bytes]]] = (deque(), deque())
        router.peers[self.routing] = self

    def hosts(self, way: int) -> tuple[str, str]:
        """(source, target) of a direction."""
        pair = self.dealer.host, self.router.host
        return pair if way == UP else (pair[1], pair[0])

    def is_full(self, way: int) -> bool:
        """The receiver does not read: a send would block."""
        inbox = self.router.unread_of(self) if way == UP else len(self.dealer.inbox)
        return self.on_way[way] + len(self.held[way]) + inbox >= QUEUE_MESSAGES

    def send(self, way: int, frames: Sequence[bytes], later: int = 0) -> None:
        """Puts a message on its way."""
        net = self.dealer.net
        world, settings, message = net.world, net.settings, list(frames)
        times = 1
        is_harsh = settings.is_harsh and not (way == DOWN and self.dealer.is_orderly)
        if settings.is_harsh:
            if is_harsh and world.chance(settings.lose):
                net.lost += 1
                world.saw("message lost")
                return
            if world.chance(settings.repeat):
                net.repeated += 1
                world.saw("message repeated")
                times = 2
        for _ in range(times):
            due = world.now + later + world.random.choice(settings.delays)
            if is_harsh and world.chance(settings.reorder):
                world.saw("message reordered")
                due += world.random.randint(1, 80)
            else:
                due = self.due[way] = max(due, self.due[way])
            self.on_way[way] += 1
            world.at(due - world.now, lambda: self._arrive(way, message))

    def _arrive(self, way: int, message: list[bytes]) -> None:
        self.on_way[way] -= 1
        net = self.dealer.net
        if not self.is_open[1 - way]:  # the receiver has given the connection up
            net.lost += 1
            net.world.saw("message cut off")
        elif self.hosts(way) in net.blocked or self.held[way]:
            self.held[way].append(message)
        else:
            self._deliver(way, message)

    def _deliver(self, way: int, message: list[bytes]) -> None:
        self.dealer.net.delivered += 1
        if way == UP:
            self.router.take(self, message)
        else:
            self.dealer.take(message)

    def release(self) -> None:
        """A partition healed: what was held back arrives."""
        for way in (UP, DOWN):
            while self.held[way] and self.hosts(way) not in self.dealer.net.blocked:
                message = self.held[way].popleft()
                if self.is_open[1 - way]:
                    self._deliver(way, message)

    def watch_silence(self) -> None:
        """Each side that hears no heartbeats gives the connection up, in its own time."""
        world = self.dealer.net.world
        for way in (UP, DOWN):
            if self.hosts(way) in self.dealer.net.blocked:
                delay = HEARTBEAT_MS + world.random.randint(0, 1000)

                def look(way: int = way) -> None:
                    if self.hosts(way) in self.dealer.net.blocked and any(self.is_open):
                        world.saw("heartbeat missed")
                        self.cut()

                world.at(delay, look)

    def cut(self) -> None:
        """Both sides lose it, the dealer's a little later; what is on the way is lost."""
        world = self.dealer.net.world
        self.dealer.net.lost += len(self.held[UP]) + len(self.held[DOWN])
        self.held[UP].clear()
        self.held[DOWN].clear()
        self.close_side(1)
        world.at(world.random.choice((0, 1, 30)), lambda: self.close_side(0))

    def close_side(self, side: int) -> None:
        """One side has given the connection up."""
        if not self.is_open[side]:
            return
        self.is_open[side] = False
        if side == 1:
            self.router.peers.pop(self.routing, None)
        elif self.dealer.connection is self:
            self.dealer.connection = None
            self.dealer.lost()


class _Socket:
    """Options and ends that both kinds have."""

    def __init__(self, net: Network, host: str, wake: Callable[[], None]) -> None:
        self.net, self.host, self.wake = net, host, wake
        self.is_closed = False
        self.later = 0  #: what is sent now leaves this much later: after a slow commit

    def setsockopt(self, option: int, value: int) -> None:
        """Options change nothing here."""


class Router(_Socket):
    """ROUTER with ROUTER_MANDATORY. ``inbox`` holds (connection, message)."""

    def __init__(self, net: Network, host: str, wake: Callable[[], None]) -> None:
        super().__init__(net, host, wake)
        self.address = ""
        self.peers: dict[bytes, Connection] = {}
        self.inbox: deque[tuple[Connection, list[bytes]]] = deque()
        self._parts: list[bytes] = []

    def bind(self, address: str) -> None:
        """Listens."""
        self.address = address
        self.net.routers[address] = self

    def getsockopt(self, option: int) -> bytes:
        """Only LAST_ENDPOINT is asked for."""
        return self.address.encode()

    def unread_of(self, connection: Connection) -> int:
        """Messages of a peer that were not read yet; one number for all is near enough."""
        return len(self.inbox) // max(1, len(self.peers))

    def take(self, connection: Connection, message: list[bytes]) -> None:
        """A message arrived."""
        self.inbox.append((connection, message))
        self.wake()

    def send(self, part: bytes, flags: int = 0) -> None:
        """One frame; the first names the peer."""
        if not self._parts:
            connection = self.peers.get(part)
            if connection is None:
                raise zmq.ZMQError(zmq.EHOSTUNREACH)
            if connection.is_full(DOWN):
                self.net.world.saw("peer does not read")
                raise zmq.Again
        self._parts.append(part)
        if not flags & zmq.SNDMORE:
            parts, self._parts = self._parts, []
            connection = self.peers.get(parts[0])
            if connection is not None:
                connection.send(DOWN, parts[1:], self.later)

    def send_multipart(self, parts: Sequence[bytes], flags: int = 0) -> None:
        """A whole message."""
        for part in parts[:-1]:
            self.send(part, zmq.SNDMORE)
        self.send(parts[-1])

    def recv_multipart(self, flags: int = 0) -> list[bytes]:
        """The next message with its address."""
        if not self.inbox:
            raise zmq.Again
        connection, message = self.inbox.popleft()
        return [connection.routing, *message]

    def close(self, linger: int = 0) -> None:
        """All connections go."""
        self.is_closed = True
        self.net.routers.pop(self.address, None)
        for connection in list(self.peers.values()):
            connection.cut()


class Monitor:
    """The monitor socket of a DEALER: connections that came and went."""

    def __init__(self) -> None:
        self.events: deque[int] = deque()

    def poll(self, _: int) -> bool:
        """Whether something happened."""
        return bool(self.events)

    def recv_multipart(self) -> list[bytes]:
        """The next event, as libzmq packs it."""
        return [self.events.popleft().to_bytes(2, sys.byteorder) + bytes(4)]

    def close(self, linger: int = 0) -> None:
        """Nobody reads it any more."""


class Dealer(_Socket):
    """DEALER whose process sends nothing without a connection.

    Its monitor tells when a connection came or went. ``is_orderly``: what
    comes down is never lost or reordered within a connection, even in the harsh mode: a client
    takes a gap in its results that stays for what was freed.
    """

    is_orderly = False

    def __init__(
        self,
        net: Network,
        host: str,
        wake: Callable[[], None],
    ) -> None:
        super().__init__(net, host, wake)
        self.address = ""
        self.connection: Connection | None = None
        self.inbox: deque[list[bytes]] = deque()
        self._monitor: Monitor | None = None
        net.dealers.append(self)

    def get_monitor_socket(self, _: int) -> Monitor:
        """A link asks for it before it connects."""
        self._monitor = Monitor()
        return self._monitor

    def disable_monitor(self) -> None:
        """The link closes the monitor next."""
        self._monitor = None

    def _linked(self, event: int) -> None:
        if self._monitor is not None:
            self._monitor.events.append(event)

    def connect(self, address: str) -> None:
        """Connects, now or as soon as somebody listens, and again after each cut."""
        self.address = address
        self._try_later(1)

    def _try_later(self, delay: int) -> None:
        self.net.world.at(delay, self._try)

    def _try(self) -> None:
        if self.is_closed or self.connection is not None:
            return
        net = self.net
        router = net.routers.get(self.address)
        if router is not None:
            there, back = (self.host, router.host), (router.host, self.host)
            if there not in net.blocked and back not in net.blocked:
                self.connection = Connection(self, router)
                self._linked(zmq.EVENT_HANDSHAKE_SUCCEEDED)
                self.wake()
                return
        self._try_later(net.world.random.randint(20, 300))

    def lost(self) -> None:
        """The connection is gone."""
        if not self.is_closed:
            self.net.world.saw("connection lost")
            self._linked(zmq.EVENT_DISCONNECTED)
            self._try_later(self.net.world.random.randint(20, 300))

    def take(self, message: list[bytes]) -> None:
        """A message arrived."""
        self.inbox.append(message)
        self.wake()

    def send(self, part: bytes, flags: int = 0) -> None:
        """A message of one frame."""
        self.send_multipart([part])

    def send_multipart(self, parts: Sequence[bytes], flags: int = 0) -> None:
        """A whole message."""
        if self.connection is None or self.connection.is_full(UP):
            raise zmq.Again
        self.connection.send(UP, [bytes(part) for part in parts], self.later)

    def recv_multipart(self, flags: int = 0) -> list[bytes]:
        """The next message."""
        if not self.inbox:
            raise zmq.Again
        return self.inbox.popleft()

    def close(self, linger: int = 0) -> None:
        """The connection goes."""
        self.is_closed = True
        self.net.dealers.remove(self)
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.is_open[0] = False
            connection.cut()


class Poller:
    """``zmq.Poller`` of a link: says at once what is ready."""

    def __init__(self) -> None:
        self._sockets: dict[Any, None] = {}

    def register(self, socket: Any, _: int) -> None:
        """A socket, its monitor, or a descriptor, which is never ready here."""
        self._sockets[socket] = None

    def unregister(self, socket: Any) -> None:
        """It is closed next."""
        del self._sockets[socket]

    def poll(self, _: int) -> list[tuple[Any, int]]:
        """What is ready now."""
        return [
            (one, zmq.POLLIN)
            for one in self._sockets
            if (isinstance(one, Monitor) and one.events) or (isinstance(one, Dealer) and one.inbox)
        ]


class Context:
    """``zmq.Context`` of one process; its sockets die with it."""

    def __init__(self, net: Network, host: str, wake: Callable[[], None]) -> None:
        self.net, self.host, self.wake = net, host, wake
        self.sockets: list[Any] = []

    def __call__(self, io_threads: int = 1) -> "Context":
        """``zmq.Context()`` in a module whose ``zmq`` was replaced."""
        return self

    def socket(self, kind: int) -> Any:
        """A socket of this process."""
        made = (Router if kind == zmq.ROUTER else Dealer)(self.net, self.host, self.wake)
        self.sockets.append(made)
        return made

    def close(self) -> None:
        """The process is gone."""
        for socket in self.sockets:
            if not socket.is_closed:
                socket.close()

    def term(self) -> None:
        """The end of an orderly process."""
