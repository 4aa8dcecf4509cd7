"""Clients: the real link and core under a person's script that uploads, reads, cancels, crashes.

A script's works outlive it: it is started again with the same idempotency keys and wants the same
answers.
"""

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import zmq
from sim_jobs import Work
from sim_net import Dealer, Network, Poller
from sim_process import Process
from sim_servers import FRONT, Name
from sim_world import Shim, World, need

from gristmill.client import link as client_link
from gristmill.client.errors import GridError
from gristmill.client.link import Link, Sink
from gristmill.wire.client import (
    Cancel,
    DrainWorker,
    Hello,
    JobStatus,
    Results,
    Steer,
    Submit,
)
from gristmill.wire.limits import PROTOCOL

if TYPE_CHECKING:
    from sim_checker import Promises

#: A person tries again after these; anything else is the end of that submission.
AGAIN = ("UNREACHABLE", "QUOTA", "QUEUE_FULL", "EXPIRED", "INTERNAL")


class ClientSocket(Dealer):
    """What comes down to a client is never lost or reordered within a connection."""

    is_orderly = True


class SimLink(Link):
    """The link with its thread's turns given by the world."""

    def __init__(self, client: "SimClient", hello: Hello) -> None:
        self._client = client
        super().__init__(FRONT, hello, "", client.timeout_s, client.world.note)

    def wake(self) -> None:
        """Something was left for the link's thread."""
        self._client.wake()


class Reading(Sink):
    """One life's reading of one work, from its submission to its last final card.

    A work whose upload was closed while its client was away goes on in another job: ``bases`` has
    the first index of each.
    """

    def __init__(self, client: "SimClient", work: Work) -> None:
        self.client, self.work, self.link = client, work, client.link
        self.world = client.world
        self.job = self.upload = self.sent = self.base = self.part = 0
        self.bases: dict[int, int] = {}
        self.sequences: dict[int, int] = {}
        self.finals: dict[int, None] = {}
        self.seen: dict[int, dict[int, None]] = {}  # of each job: indices that ended here
        self.is_uploaded = self.is_refused = False

    @property
    def is_over(self) -> bool:
        """Refused for good, or every job of it was read to its end."""
        return self.is_refused or (
            self.is_uploaded and bool(self.bases) and len(self.finals) == len(self.bases)
        )

    @property
    def is_current(self) -> bool:
        """The script that reads here still runs, and has not begun anew."""
        client = self.client
        return client.is_up and client.readings.get(self.work.number) is self

    def submit(self) -> None:
        """Says the submission."""
        work = self.work
        message = Submit(b"", 0, work.submission, work.spec)
        self.upload = self.link.open_job(message, work.function, self, may_continue=True)
        self.send_piece()

    def send_piece(self) -> None:
        """The next parcel, then a pause."""
        if not self.is_current or self.upload == 0:
            return
        work, pieces = self.work, self.work.pieces
        if self.sent >= len(pieces):
            self.link.end_upload(self.upload)
            return
        first = sum(pieces[: self.sent])
        count = pieces[self.sent]
        self.sent += 1
        self.link.send_parcel(self.upload, count, "m", work.parcel(first, count))
        self.link.wake()
        self.world.at(self.world.random.choice((0, 1, 20, 200)), self.send_piece)

    def begin_anew(self) -> None:
        """A person tries again, with the same key."""
        self.upload = 0
        for job in self.bases:
            if job not in self.finals:
                self.link.unwatch(job)

        def again() -> None:
            if self.is_current:
                self.client.read(self.work)

        self.world.at(self.world.random.randint(100, 900), again)

    # ------------------------------------------------------------ what the link tells

    def on_accepted(self, job: int) -> None:
        """The job is promised."""
        self.job = job
        self.bases[job] = self.base
        self.sequences[job] = 0
        self.client.promises.accepted(self.work, self.part, self.base, job)

    def on_continued(self, job: int, base: int) -> None:
        """The rest goes into another job."""
        self.world.saw("upload continued")
        self.base = base
        self.part += 1

    def on_upload_closed(self) -> None:
        """Every input is counted."""
        self.is_uploaded = True

    def on_upload_failed(self, error: GridError) -> None:
        """Refused, or nobody there."""
        self.world.note(f"{self.client.host} work {self.work.number}: {error.code}")
        self.world.saw(f"upload failed {error.code}")
        if not self.is_current:
            return
        if error.code in AGAIN:
            self.begin_anew()
        else:
            self.client.promises.refused(self.work, error.code)
            self.is_refused = True

    def on_result(self, result: Results, frames: list[bytes]) -> None:
        """The next result: taken after a while."""
        job = result.job
        need(result.sequence == self.sequences[job] + 1, f"j{job}: results out of order")
        self.sequences[job] = result.sequence
        self.client.promises.got(self.work, self, result, frames)
        size = sum(map(len, frames))

        def take() -> None:
            if self.is_current:
                self.link.taken(result, size)
                self.link.wake()

        self.world.at(self.world.random.choice(self.client.take_ms), take)

    def on_status(self, status: JobStatus, is_final: bool) -> None:
        """The job's card."""
        if is_final:
            self.finals[status.job] = None
            self.client.promises.ended(self.work, self, status)

    def on_results_failed(self, error: GridError) -> None:
        """No more results: only an absent broker or freed results may be the cause."""
        self.world.note(f"{self.client.host} work {self.work.number}: results {error.code}")
        if not self.is_current:
            return
        if error.code == "EXPIRED" and not self.work.spec.keep:
            self.is_refused = True
            return
        need(
            error.code in AGAIN,
            f"j{self.job} was accepted, and its results are refused: {error.code} {error}",
        )
        self.begin_anew()


class SimClient(Process):
    """One script of one tenant."""

    def __init__(self, world: World, net: Network, name: str, promises: "Promises") -> None:
        super().__init__(world, net, name)
        self.promises = promises
        self.works: list[Work] = []
        self.starts: dict[int, int] = {}
        self.spread_ms = 0
        self.take_ms: tuple[int, ...] = world.random.choice(((0,), (0, 5, 60), (300,)))
        self.timeout_s = world.random.choice((4.0, 60.0, 60.0))
        self.readings: dict[int, Reading] = {}

    def names(self) -> list[Name]:
        """What is replaced in the real module while a link is made or turned."""
        world = self.world
        clock = Shim(
            time,
            monotonic_ns=lambda: world.now * 1_000_000,
            monotonic=world.monotonic,
            sleep=lambda _: None,
        )
        return [
            (client_link, "time", clock),
            (client_link, "threading", Shim(threading, Thread=lambda **_: _NoThread())),
            (
                client_link,
                "zmq",
                Shim(zmq, Context=lambda io_threads=1: _Sockets.current, Poller=Poller),
            ),
        ]

    def begin(self) -> None:
        """A script starts: every work again, with the same keys."""
        _Sockets.current = self
        hello = Hello(
            PROTOCOL, self.world.random.randbytes(16), self.works[0].tenant, "3.11", "sim"
        )
        self.link = SimLink(self, hello)
        self.readings = {}
        r = self.world.random
        for work in self.works:
            due = self.starts.setdefault(work.number, r.randint(0, self.spread_ms))
            self.world.at(max(0, due - self.world.now), self._read_if(self.alive(), work))

    def _read_if(self, is_alive: Callable[[], bool], work: Work) -> Callable[[], None]:
        return lambda: self.read(work) if is_alive() else None

    def socket(self, kind: int) -> ClientSocket:
        """``Context.socket`` of this process."""
        made = ClientSocket(self.net, self.host, self.wake)
        self.context.sockets.append(made)
        return made

    def read(self, work: Work) -> None:
        """Submits a work and reads its results."""
        reading = self.readings[work.number] = Reading(self, work)
        reading.submit()

    def turn(self) -> None:
        """One turn of the link's thread."""
        self.link._turn()
        if self.link._socket.inbox or self.link._commands:
            self.wake()

    def due_ms(self) -> int:
        """The core's timer."""
        return self.world.now + max(1, self.link._pause_ms())

    def drop(self) -> None:
        """The descriptor goes with the process."""
        os.close(self.link._wake_fd)

    @property
    def is_done(self) -> bool:
        """Every work was read to its end, or refused."""
        return len(self.readings) == len(self.works) and all(
            reading.is_over for reading in self.readings.values()
        )

    # ------------------------------------------------------------ what a person does

    def cancel(self, work: Work, runs: list[tuple[int, int]]) -> None:
        """``gristmill cancel``."""
        reading = self.readings.get(work.number)
        if self.is_up and reading is not None and reading.job:
            self.world.saw("job cancelled" if not runs else "runs cancelled")
            work.is_cancel_asked = True
            message = Cancel(b"", 0, reading.job, runs)
            promises, job = self.promises, reading.job

            def then(answer: Any, error: GridError | None) -> None:
                if error is None and not runs:
                    promises.cancel_confirmed(job)

            self.link.request(message, then)

    def steer(self, work: Work, verb: Any) -> None:
        """Pause or resume."""
        reading = self.readings.get(work.number)
        if self.is_up and reading is not None and reading.job:
            self.world.saw(f"job {verb}d")
            self.link.request(Steer(b"", 0, reading.job, verb), lambda answer, error: None)

    def drain(self, worker: str) -> None:
        """``gristmill node drain``."""
        if self.is_up:
            self.world.saw("worker drained by operator")
            self.link.request(DrainWorker(b"", 0, worker), lambda answer, error: None)


class _NoThread:
    def start(self) -> None:
        """The world gives its turns."""


class _Sockets:
    """The client whose link is being made."""

    current: Any = None
