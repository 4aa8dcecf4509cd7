"""The broker's listening sockets: who may connect, and whose connection a message came by."""

import contextlib
import pathlib
from collections.abc import Callable

import zmq
from nacl.signing import SigningKey

from gristmill.broker.doorman import Doorman
from gristmill.broker.mailbox import PIPE_MESSAGES, receive
from gristmill.broker.principals import Principals
from gristmill.broker.registry_link import RegistryLink
from gristmill.broker.settings import BrokerSettings
from gristmill.wire import limits
from gristmill.wire.curve import be_server
from gristmill.wire.socket import check_listen_address

#: asks the connection that a message came by whose public key it has; "" where it has none
User = Callable[[], str]


def no_user() -> str:
    """Of a connection without keys."""
    return ""


class Port:
    """A ROUTER and its rule: ``ipc://`` is in a folder of ours, and who is in it may connect.

    Anywhere else only known keys may (CURVE, see ``doorman``).

    Args:
        name: what the port is called in ``principals.PORTS``.

    Attributes:
        principals: who may speak here; None where everybody who can connect may.
        endpoint: the address that it is bound to; with the port that the kernel chose.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        address: str,
        name: str,
        key: SigningKey,
        principals: Principals,
    ) -> None:
        self.principals = None if address.startswith("ipc://") else principals
        self.socket = bind_router(context, address, name, None if self.principals is None else key)
        endpoint = self.socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        self.endpoint = endpoint.rstrip(b"\0").decode()

    def receive(self) -> tuple[list[bytes], User] | None:
        """The next message that is there with its connection's user, or None."""
        if self.principals is None:
            frames = receive(self.socket)
            return None if frames is None else (frames, no_user)
        try:
            first = self.socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        return [first.bytes, *self.socket.recv_multipart()], lambda: _user_of(first)


class Ports:
    """The broker's two ports, and whoever is asked who may connect to them.

    Args:
        broker: its name.

    Raises:
        RemoteError: an address that must not be listened on.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        settings: BrokerSettings,
        key: SigningKey,
        broker: str,
    ) -> None:
        for address in (settings.front, settings.back):
            check_listen_address(address, has_keys=True)
        self.principals = Principals(settings.state, settings.allow)
        has_keys = any(not one.startswith("ipc://") for one in (settings.front, settings.back))
        self._doorman: Doorman | None = None
        if has_keys:
            self._doorman = Doorman(context, self.principals.who, settings.connections_per_s)
        self.front = Port(context, settings.front, "front", key, self.principals)
        self.back = Port(context, settings.back, "back", key, self.principals)
        self.link: RegistryLink | None = None
        if settings.registry:
            self.link = RegistryLink(context, settings.registry, broker, settings.state)
            self.principals.tell_refused(self.link.note)

    def look(self) -> set[str]:
        """Public keys of principals that changed since the last look."""
        if self.link is not None:
            self.link.look()
        return self.principals.look()

    def close(self) -> None:
        """Nobody is let in any more."""
        if self.link is not None:
            self.link.close()
        self.front.socket.close()
        self.back.socket.close()
        if self._doorman is not None:
            self._doorman.close()


def _user_of(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


def bind_router(
    context: "zmq.Context[zmq.Socket[bytes]]",
    address: str,
    name: str = "",
    key: SigningKey | None = None,
) -> "zmq.Socket[bytes]":
    """A ROUTER with the options that every listening socket here has.

    An ipc socket's folder is made, ours alone, if it is missing. With a ``key`` it is the server of
    this key, and the doorman is asked about whoever connects, by the ``name`` of the port.
    """
    if address.startswith("ipc://"):
        folder = pathlib.Path(address.removeprefix("ipc://")).parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.IPV6, int("[" in address))
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, limits.ZMQ_FRAME_BYTES_MAX)
    socket.setsockopt(zmq.SNDHWM, PIPE_MESSAGES)
    socket.setsockopt(zmq.RCVHWM, 1_000)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.BACKLOG, 4_096)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 1_000)
    # No HEARTBEAT_IVL here: libzmq 4.3.5 aborts the process when a ping of ours falls due on a
    # connection whose input stands at RCVHWM and whose peer has gone. Peers ping us with a TTL,
    # which ends a connection that went silent; strangers meet HANDSHAKE_IVL and the kernel.
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 5)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 2)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    with contextlib.ExitStack() as stack:
        stack.callback(socket.close)
        if key is not None:
            be_server(socket, key, name)
        socket.bind(address)
        stack.pop_all()
    return socket
