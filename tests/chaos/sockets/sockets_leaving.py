"""A broker that leaves in the midst of what it sends, again and again. Run as a process.

``python -P sockets_leaving.py client|worker ADDRESS ROUNDS``: prints how many messages were read.
A library that aborts takes the process with it.
"""

import sys
import threading
import time
from typing import Any

import zmq
from nacl.signing import SigningKey

from gristmill.client.link import Link as ClientLink
from gristmill.wire.client import Hello
from gristmill.wire.errors import RemoteError
from gristmill.wire.worker import Goodbye
from gristmill.worker.link import Link as WorkerLink

MESSAGES = 2_000
FRAMES = [b"\xc1"] * 6  #: no message of ours: what counts is that there are several


class Broker(threading.Thread):
    """Answers the first message of each round with thousands, and is gone."""

    def __init__(self, address: str, rounds: int) -> None:
        super().__init__(daemon=True)
        self.address, self.left = address, rounds

    def run(self) -> None:
        """Every round on a socket of its own."""
        while self.left:
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            router = context.socket(zmq.ROUTER)
            router.setsockopt(zmq.LINGER, 0)
            router.setsockopt(zmq.SNDHWM, 0)
            router.bind(self.address)
            if router.poll(500):
                routing = router.recv_multipart()[0]
                for _ in range(MESSAGES):
                    router.send_multipart([routing, *FRAMES])
                time.sleep(0.004)
                self.left -= 1
            router.close(0)
            context.term()


class Counting(ClientLink):
    """The client's link; what it does not understand it tells, once each."""

    read = 0

    def tell(self, _: str) -> None:
        """A message was read and is none."""
        self.read += 1


def play_client(broker: Broker) -> int:
    """The link's own thread reads."""
    link: Any = Counting.__new__(Counting)
    link.__init__(broker.address, Hello(1, b"c" * 16, "", "3.11", "0"), "", 3_600, link.tell)
    while broker.left:
        time.sleep(0.01)
    link.close()
    return int(link.read)


def play_worker(broker: Broker) -> int:
    """As the agent's loop does it."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    poller = zmq.Poller()
    link = WorkerLink(context, broker.address, poller, SigningKey.generate(), "", print)
    read = 0
    while broker.left:
        ready = dict(poller.poll(5))
        if link.socket in ready:
            for _ in range(64):
                try:
                    if link.receive() is None:
                        break
                except RemoteError:
                    read += 1
        if link.monitor in ready:
            link.look()
        link.send(Goodbye(b"", "x"))
    link.close(0)
    context.term()
    return read


if __name__ == "__main__":
    play = {"client": play_client, "worker": play_worker}[sys.argv[1]]
    server = Broker(sys.argv[2], int(sys.argv[3]))
    server.start()
    print(play(server))
