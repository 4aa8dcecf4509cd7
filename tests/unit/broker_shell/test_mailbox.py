"""Sending without losing in silence, over real sockets."""

import pathlib
import tempfile
from collections.abc import Iterator

import pytest
import zmq

from gristmill.broker.mailbox import Mailbox, Peer, receive
from gristmill.broker.metrics import Metrics
from gristmill.broker.ports import bind_router


class Pair:
    """A ROUTER, one DEALER that reads slowly, and a mailbox between them."""

    def __init__(self, folder: str) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.address = f"ipc://{folder}/s"
        self.router = bind_router(self.context, self.address)
        self.lost: list[tuple[Peer, str]] = []
        self.metrics = Metrics()
        self.box = Mailbox(
            self.router, 50, 1 << 20, lambda peer, why: self.lost.append((peer, why)), self.metrics
        )
        self.dealer = self.connect()
        self.peer = Peer(self.join(self.dealer))

    def connect(self) -> "zmq.Socket[bytes]":
        dealer = self.context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RCVHWM, 1)
        dealer.connect(self.address)
        return dealer

    def join(self, dealer: "zmq.Socket[bytes]") -> bytes:
        dealer.send(b"hello")
        assert self.router.poll(5_000)
        return self.router.recv_multipart()[0]

    def fill(self) -> int:
        """Sends large messages until one waits; returns how many went out."""
        sent = 0
        while not self.box.has_waiting:
            self.box.send(self.peer, [b"%d" % sent, b"x" * 10_000])
            sent += 1
            assert sent < 100_000
        return sent

    def close(self) -> None:
        self.dealer.close(0)
        self.router.close(0)
        self.context.term()


@pytest.fixture
def pair() -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="gm-") as folder:
        pathlib.Path(folder).chmod(0o700)
        pair = Pair(folder)
        yield pair
        pair.close()


def test_what_a_slow_peer_did_not_read_waits_and_arrives_in_order(pair: Pair) -> None:
    sent = pair.fill()
    for number in range(sent, sent + 10):
        pair.box.send(pair.peer, [b"%d" % number, b""])
    assert pair.box.has_waiting and not pair.lost
    for number in range(sent + 10):
        while not pair.dealer.poll(10):
            pair.box.retry()
        assert int(pair.dealer.recv_multipart()[0]) == number
    pair.box.retry()
    assert not pair.box.has_waiting and pair.peer.queued_bytes == 0


def test_a_peer_past_its_bound_is_dropped_once_and_named(pair: Pair) -> None:
    pair.fill()
    for _ in range(200):
        pair.box.send(pair.peer, [b"more"])
    assert [why for _, why in pair.lost] == [
        f"it does not read: 50 messages with {pair.lost[0][1].split()[-3]} bytes wait"
    ]
    assert pair.metrics.peers_dropped == 1
    assert not pair.box.has_waiting and pair.peer.is_lost


def test_bytes_are_bounded_too(pair: Pair) -> None:
    pair.fill()
    for _ in range(3):
        pair.box.send(pair.peer, [b"y" * (600 << 10)])
    assert len(pair.lost) == 1


def test_a_peer_that_is_gone_is_reported(pair: Pair) -> None:
    pair.box.send(Peer(b"nobody"), [b"x"])
    assert [why for _, why in pair.lost] == ["its connection is gone"]
    pair.box.answer(b"nobody", [b"x"])  # no session: only counted
    assert pair.metrics.peers_unreachable == 2 and len(pair.lost) == 1


def test_a_forgotten_peer_gets_nothing_more(pair: Pair) -> None:
    pair.box.forget(pair.peer)
    pair.box.send(pair.peer, [b"late"])
    other = pair.connect()
    pair.box.send(Peer(pair.join(other)), [b"on time"])
    assert other.poll(5_000) and other.recv() == b"on time"
    assert not pair.dealer.poll(0) and not pair.lost
    other.close(0)


def test_receive_says_none_when_nothing_is_there(pair: Pair) -> None:
    assert receive(pair.router) is None
    pair.dealer.send_multipart([b"a", b"b"])
    assert pair.router.poll(5_000)
    assert receive(pair.router) == [pair.peer.routing, b"a", b"b"]
