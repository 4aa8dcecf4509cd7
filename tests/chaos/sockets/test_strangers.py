"""P6: at a port with keys, nothing of a stranger reaches the broker, whatever it speaks."""

import contextlib
import random
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
import zmq
from grid_rig import free_port
from nacl.signing import SigningKey
from sockets_zmtp import GREETING, frame, open_stream

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.wire import client as wc
from gristmill.wire import limits
from gristmill.wire import worker as ww
from gristmill.wire.curve import be_client
from gristmill.wire.frames import encode
from gristmill.wire.keys import BROKER_KEY, load_key

HELLO = encode(wc.Hello(limits.PROTOCOL, bytes(16), "", "3.11", "stranger"))
WORKER = encode(
    ww.Hello(limits.PROTOCOL, "stranger", "ab" * 32, bytes(16), 1, 1, 1, 1, {}, ["batch"], [],
             "proc", "stranger")
)  # fmt: skip


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    ports = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
    with Grid.temporary(workers=1, slots=1, front=ports[0], back=ports[1]) as made:
        yield made


def greeting(mechanism: bytes, major: int = 3, minor: int = 0) -> bytes:
    head = b"\xff" + bytes(8) + b"\x7f" + bytes([major, minor])
    return head + mechanism.ljust(20, b"\0") + bytes(32)


def command(name: bytes, body: bytes) -> bytes:
    inner = bytes([len(name)]) + name + body
    return bytes([4 | 2]) + struct.pack(">Q", len(inner)) + inner


def talk(address: str, parts: list[bytes]) -> None:
    """Says all of it, whatever is answered, and leaves."""
    with contextlib.suppress(OSError), open_stream(address, 0.5) as stream:
        for part in parts:
            stream.sendall(part)
        stream.shutdown(socket.SHUT_WR)
        while stream.recv(4096):
            pass


#: what a stranger says after it connected; ``r`` makes what is random
SPEECHES: dict[str, Callable[[random.Random], list[bytes]]] = {
    "garbage": lambda r: [r.randbytes(r.choice((1, 9, 64, 5_000)))],
    "half a greeting": lambda r: [GREETING[: r.randrange(1, len(GREETING))]],
    "no security": lambda r: [
        GREETING, command(b"READY", b"\x0bSocket-Type\0\0\0\x06DEALER"), frame(HELLO), frame(WORKER)
    ],
    "plain": lambda r: [
        greeting(b"PLAIN"), command(b"HELLO", b"\x05admin\x05admin"), frame(HELLO)
    ],
    "zmtp 2": lambda r: [b"\xff" + bytes(8) + b"\x7f\x01\x05" + b"\0\0", frame(HELLO)],
    "zmtp 1": lambda r: [b"\x01\0", bytes([len(HELLO) + 1]) + b"\0" + HELLO],
    "curve, flipped": lambda r: [
        greeting(b"CURVE"), command(b"HELLO", bytes([1, 0]) + r.randbytes(192)), frame(HELLO)
    ],
    "curve, then plain frames": lambda r: [greeting(b"CURVE"), frame(HELLO), frame(WORKER)],
    "not yet": lambda r: [greeting(b"CURVE"), command(b"READY", b""), frame(HELLO)],
}  # fmt: skip


def test_nothing_of_a_stranger_reaches_the_broker(
    grid: Grid, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    count, dice = sized(900, 100_000), random.Random(7)
    with Client(grid.address, token=grid.token(is_operator=True)) as client:
        assert list(client.map(abs, range(5), tier="batch")) == list(range(5))
        before = client.grid()
        for number in range(count):
            name = list(SPEECHES)[number % len(SPEECHES)]
            talk((grid.address, grid.back)[number // len(SPEECHES) % 2], SPEECHES[name](dice))
        after = client.grid()
        assert list(client.map(abs, range(5), tier="batch")) == list(range(5))
    for counter in ("malformed", "refused", "rejoins"):
        assert after[counter] == before[counter]
    asked = after["front_messages"] - before["front_messages"]
    assert asked <= 1 + count // 10, "our own question, and pings"
    assert grid.dead() == []
    figures(connections=count, frames_through=0)


@pytest.mark.parametrize("who", ["an unknown key", "another server's key", "a client as a worker"])
def test_a_key_that_is_not_known_gets_nowhere(grid: Grid, who: str) -> None:
    server = load_key(grid.state / "broker" / BROKER_KEY).verify_key.encode().hex()
    key = SigningKey.generate()
    if who == "a client as a worker":
        from gristmill.wire.tokens import parse_token

        key = parse_token(grid.token()).key
    if who == "another server's key":
        server = SigningKey.generate().verify_key.encode().hex()
        key = load_key(grid.state / "worker-0" / "worker.key")
    context = zmq.Context()
    told = []
    for address, hello in ((grid.address, HELLO), (grid.back, WORKER)):
        if who == "a client as a worker" and address == grid.address:
            continue
        dealer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        be_client(dealer, key, server)
        monitor = dealer.get_monitor_socket()
        dealer.connect(address)
        dealer.send(hello)
        assert not dealer.poll(700), "no answer"
        while monitor.poll(0):
            told.append(int.from_bytes(monitor.recv_multipart()[0][:2], "little"))
        dealer.disable_monitor()
        monitor.close()
        dealer.close()
    context.term()
    assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in told
    assert told, "it did connect"


def test_a_port_takes_512_silent_strangers_and_serves_the_honest(grid: Grid) -> None:
    silent = [open_stream(grid.address) for _ in range(512)]
    try:
        for stream in silent[::2]:
            stream.sendall(greeting(b"CURVE"))
        with Client(grid.address, token=grid.token()) as client:
            assert list(client.map(abs, range(20), tier="batch")) == list(range(20))
    finally:
        for stream in silent:
            stream.close()
