"""Very many light workers in one process, who reconnect and rejoin as the real worker does."""

import collections
import hashlib
import os
import time
from typing import Any

import zmq

from gristmill.wire import limits
from gristmill.wire import worker as ww
from gristmill.wire.frames import encode
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.values import pack_plain

HELLO_S = 0.2  #: first pause between two HELLOs, doubled each time up to the last
HELLO_LAST_S = 5.0


class Light:
    """One worker of one slot: HELLO, reports, and each lease answered at once.

    ``is_deaf``: the planted bug, one that does not hear that it must join again.
    """

    def __init__(self, context: Any, back: str, name: str, is_deaf: bool) -> None:
        self.socket = context.socket(zmq.DEALER)
        for option, value in (  # as worker/link.py has them
            (zmq.LINGER, 0), (zmq.IMMEDIATE, 1), (zmq.RECONNECT_IVL, 100),
            (zmq.RECONNECT_IVL_MAX, 2_000), (zmq.HEARTBEAT_IVL, 1_000),
            (zmq.HEARTBEAT_TIMEOUT, 3_000), (zmq.HEARTBEAT_TTL, 3_000), (zmq.RCVHWM, 0),
        ):  # fmt: skip
            self.socket.setsockopt(option, value)
        self.socket.connect(back)
        self.is_deaf = is_deaf
        self.name, self.node = name, hashlib.sha256(name.encode()).hexdigest()
        self.instance, self.session = os.urandom(16), b""
        self.report = self.result = self.hellos = self.silences = 0
        self.report_s, self.ttl_s, self.pause_s = 1.0, 3.5, HELLO_S
        self.due = self.heard = 0.0
        self.leases: list[ww.LeaseGrant] = []

    def send(self, header: Any, *bodies: bytes) -> bool:
        """False when there is no connection."""
        try:
            self.socket.send_multipart([encode(header), *bodies], zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def speak(self, now: float) -> None:
        """What is due: a report in a session, else HELLO with growing pauses."""
        if self.session and now - self.heard > self.ttl_s:
            self.session, self.silences = b"", self.silences + 1
        if not self.session:
            hello = ww.Hello(
                limits.PROTOCOL, self.name, self.node, self.instance, 1, 1_000, 1 << 30, 1 << 30,
                {}, ["batch"], ["3.11.7"], "wait4", "light",
            )  # fmt: skip
            self.hellos += self.send(hello)
            self.due = now + self.pause_s * (1 + self.instance[0] / 255)
            self.pause_s = min(2 * self.pause_s, HELLO_LAST_S)
            return
        self.report += 1
        held = [ww.Held(one.lease_id, 0, -1, 0) for one in self.leases]
        self.send(ww.Report(self.session, self.report, True, [0], held, [], []))
        self.due = now + self.report_s

    def take(self, now: float) -> None:
        """One message of the broker."""
        message = ww.decode_orders.decode(self.socket.recv_multipart()[0])
        if isinstance(message, ww.Welcome):
            self.session, self.pause_s = message.session, HELLO_S
            self.report = self.result = 0
            self.report_s, self.ttl_s = message.report_ms / 1_000, message.ttl_ms / 1_000
            self.heard, self.due = now, now + self.report_s
        elif isinstance(message, ww.Orders):
            self.heard = now
            self.report_s, self.ttl_s = message.report_ms / 1_000, message.ttl_ms / 1_000
            for lease in message.leases:
                self.answer(lease)
        elif message.code == "RECOVERING":
            self.due = now + HELLO_S
        elif message.code == "REJOIN" and message.session == self.session and not self.is_deaf:
            self.session, self.due = b"", now

    def answer(self, lease: ww.LeaseGrant) -> None:
        """Its results, at once."""
        for first, count in lease.runs:
            self.result += 1
            self.report += 1
            packed = pack_plain(list(range(first, first + count)))
            assert packed
            head = ww.ResultHead(
                self.result, lease.lease_id, lease.job, first, count, "q", count, count, 100,
                "wait4",
            )  # fmt: skip
            body = (packed[1], pack_meter(count, Outcome.OK), b"", b"")
            self.send(ww.Report(self.session, self.report, False, [], [], [head], []), *body)


def live(back: str, first: int, count: int, wire: Any, is_deaf: bool = False) -> None:
    """``count`` of them until ``wire`` says ``end``; tells how many HELLOs each said since asked.

    ``wire``: a pipe; each message on it is answered with a Counter of HELLOs to workers, and with
    how often one of them gave up its session for the silence of the broker.
    """
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 2 * count + 64)
    names = [f"light-{number}" for number in range(first, first + count)]
    workers = [Light(context, back, name, is_deaf) for name in names]
    by_socket = {worker.socket: worker for worker in workers}
    poller = zmq.Poller()
    for socket in by_socket:
        poller.register(socket, zmq.POLLIN)
    poller.register(wire.fileno(), zmq.POLLIN)
    while True:
        for socket, _ in poller.poll(20):
            if socket in by_socket:
                by_socket[socket].take(time.monotonic())
        now = time.monotonic()
        for worker in workers:
            if now >= worker.due:
                worker.speak(now)
        if wire.poll():
            asked = wire.recv()
            silences = sum(worker.silences for worker in workers)
            wire.send((collections.Counter(worker.hellos for worker in workers), silences))
            for worker in workers:
                worker.hellos = worker.silences = 0
            if asked == "end":
                break
    context.destroy(0)
