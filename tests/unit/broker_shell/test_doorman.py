"""The doorman on real sockets: who may connect, how often, and what the log says of the others."""

import contextlib
import logging
import threading
from collections.abc import Iterator

import pytest
import zmq
from grid_rig import until
from nacl.signing import SigningKey

from gristmill.broker.doorman import Doorman
from gristmill.broker.ports import bind_router
from gristmill.wire.curve import be_client, curve_public

SERVER = SigningKey(bytes(32))
PER_S = 1  #: so 20 at once


class Hall:
    """A port with a doorman, and whoever knocks."""

    def __init__(self, known: list[SigningKey]) -> None:
        self.looked: list[bool] = []
        publics = {one.verify_key.encode().hex() for one in known}
        self.by_curve = {curve_public(public): public for public in publics}
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.doorman = Doorman(self.context, self.who, PER_S)
        self.router = bind_router(self.context, "tcp://127.0.0.1:0", "front", SERVER)
        self.address = self.router.getsockopt_string(zmq.LAST_ENDPOINT)
        self.heard: dict[str, int] = {}
        self.guests: list[zmq.Socket[bytes]] = []

    def who(self, port: str, key: bytes, may_read: bool) -> str:
        assert threading.current_thread().name == "gristmill-doorman" and port == "front"
        self.looked.append(may_read)
        return self.by_curve.get(key, "")

    def knock(self, key: SigningKey) -> None:
        guest = self.context.socket(zmq.DEALER)
        guest.setsockopt(zmq.LINGER, 0)
        guest.setsockopt(zmq.RECONNECT_IVL, -1)  # once
        be_client(guest, key, SERVER.verify_key.encode().hex())
        guest.connect(self.address)
        guest.send(b"here")
        self.guests.append(guest)

    def hear(self, milliseconds: int) -> None:
        while self.router.poll(milliseconds):
            first = self.router.recv(copy=False)
            self.router.recv_multipart()
            user = str(first.get("User-Id"))
            self.heard[user] = self.heard.get(user, 0) + 1

    def close(self) -> None:
        for guest in self.guests:
            guest.close()
        self.router.close()
        self.doorman.close()
        self.context.term()


@contextlib.contextmanager
def hall(*known: SigningKey) -> Iterator[Hall]:
    made = Hall([*known])
    try:
        yield made
    finally:
        made.close()


def key(number: int) -> SigningKey:
    return SigningKey(bytes([number]) * 32)


def test_a_key_that_reconnects_in_a_storm_comes_later_and_another_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storm, calm = key(1), key(2)
    name, other = (one.verify_key.encode().hex() for one in (storm, calm))
    with hall(storm, calm) as made, caplog.at_level(logging.WARNING):
        for _ in range(30):
            made.knock(storm)
        made.hear(500)
        assert 20 <= made.heard[name] <= 23, made.heard
        made.knock(calm)
        made.hear(500)
        assert made.heard[other] == 1
        assert made.doorman.refused == 30 - made.heard[name]
        until("all are counted", lambda: "times=" in caplog.text)
    lines = [record.getMessage() for record in caplog.records]
    assert f"key={name} code=RATE_LIMITED" in lines[0] and len(lines) <= 3, lines


def test_strangers_cost_one_line_and_after_a_while_no_look_at_the_disk(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A new key each time; a known one behind the same address is let in all the while."""
    friend = key(1)
    with hall(friend) as made, caplog.at_level(logging.WARNING):
        for number in range(40):
            made.knock(key(100 + number))
        until("all were asked about", lambda: len(made.looked) >= 40)
        assert made.looked.count(True) in range(20, 24) and not made.looked[-1]
        made.knock(friend)
        made.hear(500)
        assert made.heard == {friend.verify_key.encode().hex(): 1}
        until("all are counted", lambda: "times=" in caplog.text)
    lines = [record.getMessage() for record in caplog.records]
    assert "code=UNAUTHORISED" in lines[0] and "127.0.0.1 (the CURVE key" in lines[0]
    assert len(lines) <= 3, lines
