"""The broker's own knock: it feeds only when it went in and came out, and strangers pass by."""

import contextlib
import pathlib
import socket
from collections.abc import Iterator

import pytest
import zmq
from nacl.signing import SigningKey

from gristmill.broker.knock import Knock
from gristmill.broker.ports import Port, no_user
from gristmill.broker.principals import Principals
from gristmill.wire.supervision import Supervisor


@pytest.fixture
def manager(tmp_path: pathlib.Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.setblocking(False)
        yield made


def is_fed(manager: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        return manager.recv(100) == b"WATCHDOG=1"
    return False


def test_a_knock_feeds_when_it_has_come_back(manager: socket.socket) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router, stranger = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    others: list[list[bytes]] = []
    # The shortest watchdog: nothing is held back because it was fed before.
    supervisor = Supervisor(manager.getsockname(), watchdog_us=1)
    knock = Knock(context, router, supervisor, lambda frames, *_: others.append(frames))
    try:
        knock.look()
        knock.look()
        knock.look()
        assert not is_fed(manager), "nobody has taken it"
        assert router.poll(5_000)
        knock.receive(router.recv_multipart(), 0, no_user)
        assert not router.poll(0), "one is out at a time"
        knock.look()
        assert is_fed(manager)
        assert not is_fed(manager)

        stranger.setsockopt(zmq.ROUTING_ID, b"stranger")
        stranger.connect(f"tcp://127.0.0.1:{port}")
        stranger.send(b"hello")
        taken = 0
        while taken < 2:
            assert router.poll(5_000)
            knock.receive(router.recv_multipart(), 0, no_user)
            taken += 1
        assert others == [[b"stranger", b"hello"]]
        assert not stranger.poll(0)
    finally:
        knock.close()
        router.close(0)
        stranger.close(0)
        context.term()


def test_a_port_with_keys_needs_none_for_the_knock(
    manager: socket.socket, tmp_path: pathlib.Path
) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    port = Port(context, "tcp://127.0.0.1:*", "front", SigningKey.generate(), Principals(tmp_path))
    supervisor = Supervisor(manager.getsockname(), watchdog_us=1)
    knock = Knock(context, port.socket, supervisor, lambda *_: None)
    try:
        knock.look()
        assert port.socket.poll(5_000)
        found = port.receive()
        assert found is not None and found[1]() == ""
        knock.receive(found[0], 0, found[1])
        knock.look()
        assert is_fed(manager)
        assert port.endpoint.startswith("tcp://127.0.0.1:")
    finally:
        knock.close()
        port.socket.close(0)
        context.term()
