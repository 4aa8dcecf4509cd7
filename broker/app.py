"""The broker's loop: one thread that owns the state, and the parts around it.

A turn takes what is there from the workers, the clients, the ledger, the committer and the reader,
a bounded number of messages each; steps the core with each event; does the effects; sends orders;
and hands what was recorded to the committer. Time is an event, too. There is no other thread that
touches the state.
"""

import contextlib
import gc
import logging
import math
import os
import time
from typing import Any

import apsw
import zmq

from gristmill.broker import past, schema
from gristmill.broker.answers import Answers
from gristmill.broker.back import Back
from gristmill.broker.checkpoints import (
    Checkpoint,
    Told,
    checkpoint_row,
    ended_before,
    find_freed,
    find_leftovers,
    fold_job,
)
from gristmill.broker.core import events as on
from gristmill.broker.core.invariants import check
from gristmill.broker.core.state import Config
from gristmill.broker.core.step import step
from gristmill.broker.countersigning import Countersigner, tell_keys
from gristmill.broker.delivery import Delivery
from gristmill.broker.descriptors import DescriptorWatch
from gristmill.broker.execution import Execution
from gristmill.broker.front import Front
from gristmill.broker.grants import Grants
from gristmill.broker.indexes import look_beside
from gristmill.broker.journal import Journal, free_bytes
from gristmill.broker.knock import Knock
from gristmill.broker.ledger_link import LedgerLink
from gristmill.broker.lines import KeptLines, LineKeeper, find_kept
from gristmill.broker.lobby import Lobby
from gristmill.broker.mailbox import Mailbox, Peer, receive
from gristmill.broker.membership import Membership
from gristmill.broker.memory import MemoryWatch, default_limit
from gristmill.broker.metrics import Metrics, own_version
from gristmill.broker.operators import Operators
from gristmill.broker.orders import OrderDesk
from gristmill.broker.outbox import Outbox
from gristmill.broker.parcels import FrameCache
from gristmill.broker.ports import Port, Ports
from gristmill.broker.quota import ResultQuota, used_by_tenants
from gristmill.broker.reader import Reader
from gristmill.broker.replay import SHARE, recover
from gristmill.broker.retention import DAY_MS, Retention
from gristmill.broker.sessions import Clients, ClientSession, Workers, WorkerSession
from gristmill.broker.settings import BrokerSettings
from gristmill.wire import limits
from gristmill.wire.errors import RemoteError
from gristmill.wire.keys import BROKER_KEY, load_key
from gristmill.wire.supervision import NOBODY, Supervisor
from gristmill.wire.units import format_bytes

log = logging.getLogger("gristmill.broker")

SECOND_MS = 1_000
PRINCIPALS_MS = 200  #: how soon a change of principals is seen: a revocation bites within a second
EXPIRY_MS = 60_000
LOOK_AFTER_MS = 5_000  #: after a start, when the first work is under way
NEVER_MS = 1 << 62
MISSED_JOBS = 5_000  #: looked at in one question
PROBES_PER_TICK = 10  #: at most, whatever the fleet: 500 a second
IDLE_MS = 200  #: longest wait for something to happen
WAITING_PEER_MS = 2  #: a peer that did not read is tried again this soon
LINES_SHARE = 4  #: past this part of the journal's backlog lines of running subtasks are dropped
FRAMES_EXTRA = 2  #: routing id and header
#: (job, upto) of results and of inputs that were to leave, and output of subtasks without a result
Leftovers = tuple[list[tuple[int, int]], list[tuple[int, int]], list[KeptLines]]


class Broker:
    """One broker process, built but not running; ``run`` serves until ``stop``.

    Raises:
        RemoteError: an address that must not be listened on, or a key that others can read.
        zmq.ZMQError: an address that cannot be bound.
    """

    _knock: Knock | None

    def __init__(self, settings: BrokerSettings, supervisor: Supervisor = NOBODY) -> None:
        self.settings, self._supervisor, self._knock = settings, supervisor, None
        settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = load_key(settings.state / BROKER_KEY)
        self.metrics = metrics = Metrics()
        self._memory = MemoryWatch(settings.memory_bytes or default_limit(), metrics)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_stopping = False
        self._paused_ms = 0
        self._must_restart = ""
        self._lost: list[tuple[object, str]] = []
        self.journal = Journal(settings.state, self._wake, metrics)
        config = Config(
            broker=self.journal.broker,
            report_ms=settings.worker_report_ms,
            ttl_ms=settings.worker_ttl_ms,
            adopt_ms=settings.adopt_ms,
            jobs_per_tenant_max=settings.jobs_per_tenant_max,
            queued_subtasks_max=settings.queued_subtasks_max,
            subtasks_per_tenant_max=settings.subtasks_per_tenant_max,
            tenant_disk_bytes=settings.tenant_disk_bytes,
        )
        self._quota = ResultQuota(settings.tenant_disk_bytes)
        now_ms, utc_ms = _monotonic_ms(), time.time_ns() // 1_000_000
        self._context = zmq.Context(io_threads=1)
        self._ports = ports = Ports(self._context, settings, key, self.journal.broker)
        self._front_socket, self._back_socket = ports.front.socket, ports.back.socket
        self._descriptors = DescriptorWatch([ports.front.endpoint, ports.back.endpoint], metrics)
        self._lobby = Lobby(self._front_socket, self._back_socket, metrics, supervisor)
        found = recover(self.journal, config, now_ms, utc_ms, metrics, self._lobby.note)
        self._lobby.close()
        self.state = found.state
        self.reader = Reader(self.journal.path, self._wake, self.journal.vfs)
        self._next_indexes_ms = now_ms if not metrics.journal_salvaged else now_ms + DAY_MS
        self._look_at_indexes(now_ms)  # before anybody asks
        bounds = settings.peer_queue_messages, settings.peer_queue_bytes
        self._front_box = Mailbox(self._front_socket, *bounds, self._on_lost, metrics)
        self._back_box = Mailbox(self._back_socket, *bounds, self._on_lost, metrics)
        self.clients, self.workers = Clients(), Workers()
        self._frames = FrameCache(
            settings.parcel_cache_bytes, self.reader, lambda: self.journal.committed, metrics
        )
        self.delivery = Delivery(
            self._front_box, self.reader, settings.result_cache_bytes, self._free_results, metrics,
            self._is_full,
        )  # fmt: skip
        self._desk = OrderDesk(self._back_box, self._frames, metrics)
        grants = Grants(key, settings.store_address, metrics)
        self.outbox = Outbox(
            self.journal,
            self.reader,
            metrics,
            found.outbox_acked,
            found.outbox_last,
            settings.outbox_rows_max,
        )
        public = key.verify_key.encode().hex()
        tell_keys(self.journal, self.outbox, public, found.key_told, found.nodes, utc_ms)
        backlog_bytes = settings.journal_backlog_bytes // LINES_SHARE
        self._lines = LineKeeper(self.state, self.journal, metrics, backlog_bytes)
        self.execution = Execution(
            self.journal, self.outbox, Countersigner(key), self._frames, self.delivery, self._desk,
            self._front_box, self.clients, self.workers, grants, self._on_core_dropped, self._quota,
            self._lines, metrics,
        )  # fmt: skip
        self._note_time()
        self.ledger = LedgerLink(
            self._context, settings, key, self.journal.broker, self.outbox,
            lambda job, code, text: self._apply(on.HoldAnswered(job, code, text)),
            lambda is_up, is_full: self._apply(on.LedgerSeen(is_up, is_full)),
            metrics,
        )  # fmt: skip
        answers = Answers(
            self.state, self.journal.broker, self.reader, self.delivery, self.workers,
            self.ledger, grants, self._front_box, self._clock, self.figures,
            self.execution.when_durable, settings.tariff, metrics,
        )  # fmt: skip
        self._operators = Operators(ports.link, ports.principals, self._front_box)
        self._front = Front(
            settings, self.journal.broker, ports.front.principals, self._front_box,
            self.clients, self.workers, self.execution, self.delivery, answers, self._apply,
            self._refusal, found.nodes, self._operators, self._on_drained, metrics,
        )  # fmt: skip
        self.execution.find_past, self.execution.held = answers.find_past, found.held
        self._begin_with_nodes(found.nodes)
        for job in found.jobs:
            self.execution.adopt(job.record, job.results, 0, job.freed)
        self._free_disk_bytes = free_bytes(settings.state)
        self._next_tick_ms = self._next_second_ms = self._next_expiry_ms = 0
        self._next_principals_ms = 0
        self._count_results(found.last_row)
        self.reader.ask(_find_unfinished, self._look_back, lambda _: None)
        self.execution.run(found.effects)
        self._apply(on.LedgerSeen(False, self.outbox.is_full))
        # Clients of the last incarnation have this long to come back to their uploads.
        self._look_at_ms, self._awaited = now_ms + LOOK_AFTER_MS, found.workers
        self._absent_until_ms: int | None = now_ms + settings.client_ttl_ms

    def _begin_with_nodes(self, nodes: dict[str, str]) -> None:
        """``nodes``: names of workers pinned to keys."""
        settings, ports = self.settings, self._ports
        self._membership: Membership | None = None
        if ports.link is not None:
            self._membership = Membership(
                ports.link, ports.principals, self.journal.broker, self.state, self.workers,
                self.execution, self._apply,
            )  # fmt: skip
        self._back = Back(
            settings, self._back_box, self.workers, self._desk, self.execution, self.journal,
            nodes, ports.back.principals, self._membership, self._lines, self._apply,
            self._attempt_of, self.metrics,
        )  # fmt: skip
        self._retention = Retention(
            settings, self.state, self.journal, self.reader, self.execution.inbox, self._lines,
            self._free_results,
        )  # fmt: skip

    @property
    def front_address(self) -> str:
        """Where clients connect; with the port that the kernel chose."""
        return self._ports.front.endpoint

    # ------------------------------------------------------------ from other threads

    def stop(self) -> None:
        """Ends ``run`` soon; may be called from any thread or a signal handler."""
        self._is_stopping = True
        with contextlib.suppress(OSError):  # the loop saw it at once, and has ended
            self._wake()

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    # ------------------------------------------------------------ the loop

    def run(self) -> None:
        """Serves until ``stop``, then commits and closes.

        Raises:
            OSError: the journal's disk failed: start again and recover.
        """
        poller = zmq.Poller()
        for socket in (self._front_socket, self._back_socket, self.ledger.socket, self._wake_fd):
            poller.register(socket, zmq.POLLIN)
        if (link := self._ports.link) is not None:
            poller.register(link.socket, zmq.POLLIN)
        if self._supervisor.watchdog_s:
            self._knock = Knock(
                self._context, self._front_socket, self._supervisor, self._front.receive
            )
        own_version()  # read while there are descriptors
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        while not self._is_stopping:
            if self._must_restart and self.journal.is_idle:
                raise OSError(f"{self._must_restart}: it is put back, start again")
            if self.journal.backlog_bytes > self.settings.journal_backlog_bytes:
                self._wait_for_disk()
            ready = dict(poller.poll(self._wait_ms()))
            self._turn(ready)
        self._end()

    def _turn(self, ready: dict[Any, int]) -> None:
        self._note_time()
        if self._wake_fd in ready:
            os.eventfd_read(self._wake_fd)
        self._commit()
        self.reader.deliver()
        if self._back_socket in ready:
            self._drain(self._ports.back, self._back.receive)
            if self._front_socket in ready:  # the disk works while they are taken
                self._commit()
        if self._front_socket in ready:
            self._drain(self._ports.front, (self._knock or self._front).receive)
        if self.ledger.socket in ready:
            while (frames := receive(self.ledger.socket)) is not None:
                self.ledger.receive(frames[0], self._now_ms())
        if (link := self._ports.link) is not None and link.socket in ready:
            link.receive()
        self._tick()
        while self._lost:
            self._end_lost(*self._lost.pop(0))
        self._desk.flush()  # before the committer wakes up and wants the interpreter's lock
        self.ledger.post(self._now_ms())
        self._commit()
        self._desk.flush()

    def _drain(self, port: Port, handle: Any) -> None:
        now_ms = self._now_ms()
        for _ in range(self.settings.drain_messages):
            if (found := port.receive()) is None:
                return
            handle(found[0], now_ms, found[1])

    def _commit(self) -> None:
        """Takes note of what is on disk, and hands the committer what was recorded since."""
        while self.journal.pump():
            for event in self.execution.settle():
                self._apply(event)

    def _attempt_of(self, worker: int, lease: int) -> int | None:
        its = self.state.workers.get(worker)
        found = None if its is None else its.leases.get(lease)
        return None if found is None else found.attempt

    def _apply(self, event: on.AnyEvent) -> None:
        self.execution.run(step(self.state, event, self._now_ms()))

    def _tick(self) -> None:
        now_ms = self._now_ms()
        if self._front_box.has_waiting:
            self._front_box.retry()
            self.delivery.resume()
        if self._back_box.has_waiting:
            self._back_box.retry()
        if now_ms < self._next_tick_ms:
            return
        self._next_tick_ms = now_ms + self.settings.tick_ms
        if now_ms >= self._next_principals_ms:
            self._next_principals_ms = now_ms + PRINCIPALS_MS
            changed = self._ports.look()
            self._front.end_refused(changed, now_ms)
            self._back.end_refused(changed, now_ms)
            if self._membership is not None:
                self._membership.look(changed, now_ms)
        self._apply(on.TimePassed())
        self._probe(now_ms)
        self.delivery.resume()
        self.execution.tell_credit()
        self._desk.send_answers()
        if self.journal.bodies.has_freed:
            self.reader.ask(lambda _: self.journal.bodies.release(), _no_news, _no_news)
        self.ledger.tick(now_ms)
        if now_ms < self._next_second_ms:
            return
        self._next_second_ms = now_ms + SECOND_MS
        if self._knock is not None:
            self._knock.look()
        self._front.expire(now_ms)
        self._descriptors.look()
        if self._absent_until_ms is not None and now_ms >= self._absent_until_ms:
            self._absent_until_ms = None
            self._apply(on.ClientLost(0))
        self._free_disk_bytes = free_bytes(self.settings.state)
        if self._awaited and not self.state.awaited:
            self._forget_absent()
        self._look_at_indexes(now_ms)
        if now_ms >= self._look_at_ms:
            self._look_at_ms = NEVER_MS
            self._look_for_missed()
        self._renew_grants()
        check(self.state, is_whole=False)
        if now_ms >= self._next_expiry_ms:
            self._next_expiry_ms = now_ms + EXPIRY_MS
            self._retention.look()
            for tenant in self.state.active.values():
                row = (SHARE + tenant.name, tenant.share)
                self.journal.record("meta", schema.SET_META, row, 64)

    def _wait_ms(self) -> int:
        if self._front_box.has_waiting or self._back_box.has_waiting:
            return WAITING_PEER_MS
        wait_s = self.journal.wait_s
        rest_ms = IDLE_MS if wait_s is None else math.ceil(wait_s * 1_000)
        if not self.state.jobs and not self.workers:
            return rest_ms
        return max(0, min(rest_ms, self._next_tick_ms - self._now_ms()))

    def _wait_for_disk(self) -> None:
        """The disk is slower than what comes in: nothing is read until it has caught up.

        The core's clock stands still meanwhile: nobody is given up for our own silence.
        """
        self.metrics.intake_pauses += 1
        began_ms = _monotonic_ms()
        poller = zmq.Poller()
        poller.register(self._wake_fd, zmq.POLLIN)
        while (
            self.journal.backlog_bytes > self.settings.journal_backlog_bytes // 2
            and not self._is_stopping
        ):
            if poller.poll(IDLE_MS):
                os.eventfd_read(self._wake_fd)
            if self.journal.pump():
                break
        self._paused_ms += _monotonic_ms() - began_ms
        self._note_time()
        for event in self.execution.settle():
            self._apply(event)

    def _end(self) -> None:
        log.info("broker ends: %d rows to commit", self.metrics.rows_committed)
        self._supervisor.stopping("commits what it has taken, then ends")
        try:
            self.journal.close()
            self.execution.settle()
            self._desk.flush()
        finally:
            self.reader.close()
            self.ledger.close()
            if self._knock is not None:
                self._knock.close()
            self._ports.close()
            self._memory.close()
            self._descriptors.close()
            self._context.term()
            os.close(self._wake_fd)

    # ------------------------------------------------------------ clocks

    def _now_ms(self) -> int:
        return _monotonic_ms() - self._paused_ms

    def _note_time(self) -> None:
        self.execution.inbox.utc_ms = time.time_ns() // 1_000_000

    def _clock(self) -> tuple[int, int]:
        return self._now_ms(), self.execution.inbox.utc_ms

    # ------------------------------------------------------------ peers

    def _probe(self, now_ms: int) -> None:
        """A worker that runs something and says nothing: the socket knows whether it is there."""
        for session in self.workers.untouched(now_ms - limits.PROBE_MS, PROBES_PER_TICK):
            self.workers.touch(session, now_ms)
            worker = self.state.workers.get(session.number)
            if worker is not None and worker.leases:
                self._desk.probe(session)

    def _on_lost(self, peer: Peer, cause: str) -> None:
        # Found in the middle of doing effects: the core hears of it when they are done.
        self._lost.append((peer.owner, cause))

    def _end_lost(self, owner: object, cause: str) -> None:
        if isinstance(owner, WorkerSession):
            self._back.end_session(owner, False, cause)
        elif isinstance(owner, ClientSession) and self.clients.get(owner.number) is owner:
            if owner.peer.is_lost:
                self._front.suspend_session(owner, cause)

    def _on_drained(self, session: WorkerSession, client: ClientSession) -> None:
        if self._membership is not None:
            self._membership.drained(session, self._operators.name_of(client))

    def _forget_absent(self) -> None:
        """Workers from before the restart that did not come back in time are not awaited again."""
        for name in self._awaited:
            if self.workers.named(name) is None:
                self.journal.record("live_workers", schema.DROP_LIVE, (name,), 64)
        self._awaited = []

    def _on_core_dropped(self, session: WorkerSession, cause: str) -> None:
        self._back.forget_session(session, cause)

    def _renew_grants(self) -> None:
        utc_ms = self.execution.inbox.utc_ms
        for session in self.workers:
            for job, renew_ms in list(session.open_jobs.items()):
                if renew_ms <= utc_ms:
                    opening = self.execution.opening(session, job)
                    if opening is None:
                        del session.open_jobs[job]
                        session.openings.pop(job, None)
                    else:
                        self._desk.draft(session).batch(job).openings.append(opening)

    # ------------------------------------------------------------ disk

    def _refusal(self, tenant: str, is_job: bool) -> RemoteError | None:
        """Why no new job or parcel of this tenant is taken now."""
        if is_job and (refusal := self._quota.refusal(tenant)) is not None:
            return refusal
        free, reserve = self._free_disk_bytes, self.settings.disk_reserve_bytes
        if free >= reserve and not self.journal.is_full:
            return None
        return RemoteError(
            "QUOTA",
            f"the broker's disk has {format_bytes(free)} free; new work needs"
            f" {format_bytes(reserve)}",
            f"free space on the disk of {self.settings.state}, then send it again",
        )

    def _is_full(self, tenant: str) -> bool:
        """Whether somebody waits for what a tenant's results, or their inputs, take of the disk."""
        known = self.state.tenants.get(tenant)
        return self._quota.is_over(tenant) or (known is not None and bool(known.stalled))

    def _free_results(self, job: int, upto: int, told: dict[int, Told]) -> None:
        """Results of a job leave the disk; what they mean to a restart stays in a checkpoint."""

        def folded(found: tuple[Checkpoint, str, int]) -> None:
            checkpoint, tenant, size_bytes = found
            self._quota.add(tenant, -size_bytes)
            self.execution.release_credit()
            row = checkpoint_row(job, checkpoint)
            self.journal.record("checkpoints", schema.SET_CHECKPOINT, row, len(row[3]) + 64)
            # The deletion must not overtake the record.
            self.execution.when_durable(
                lambda: self.journal.add_chore(schema.DROP_RESULTS, (job, checkpoint.upto))
            )
            self._apply(on.InputsEnded(job, ended_before(checkpoint)))

        is_open = job in self.state.jobs
        self.reader.ask(lambda db: fold_job(db, job, upto, is_open, told), folded, lambda _: None)

    def _look_for_missed(self, after: int = past.FIRST_ROWID) -> None:
        """Once, after the start: every job that was accepted is finished or was read.

        What bit rot took from the list of unfinished jobs is put back, and read by a new start.
        """

        def looked(found: tuple[list[int], int | None]) -> None:
            missed, last = found
            for job in missed:
                log.critical("journal job=%d is unfinished and was not listed: put back", job)
                self.journal.record("open_jobs", schema.ADD_OPEN, (job,), 16)
                self.metrics.rows_quarantined += 1
                self._must_restart = f"job {job} was missing from the list of unfinished jobs"
            if last is not None:
                self._look_for_missed(last)

        self.reader.ask(lambda db: past.find_missed(db, after, MISSED_JOBS), looked, lambda _: None)

    def _look_at_indexes(self, now_ms: int) -> None:
        """Once a day: disks rot while a broker runs, too."""

        def looked() -> None:
            log.info("journal indexes looked at in %d ms", self._now_ms() - now_ms)

        if now_ms >= self._next_indexes_ms:
            self._next_indexes_ms = now_ms + DAY_MS
            look_beside(self.reader, self.metrics, looked)

    def _look_back(self, found: Leftovers) -> None:
        """What the last incarnation did not finish, and a start has no time for."""
        leftovers, freed, kept = found
        for row in leftovers:
            self.journal.add_chore(schema.DROP_RESULTS, row)
        for row in freed:
            self.journal.add_chore(schema.DROP_PARCELS_BEFORE, row)
        self._lines.note(kept)

    def _count_results(self, last_row: int, after: int = 0) -> None:
        """Adds what was on disk to the quota, some jobs at a time: others have questions, too."""

        def counted(found: tuple[list[tuple[str, int]], int]) -> None:
            used, last = found
            for tenant, size_bytes in used:
                self._quota.add(tenant, size_bytes)
            if last:
                self._count_results(last_row, last)

        self.reader.ask(lambda db: used_by_tenants(db, last_row, after), counted, lambda _: None)

    # ------------------------------------------------------------ figures

    def figures(self) -> dict[str, Any]:
        """What ``Ask(about="grid")`` answers: counters, and how much there is of everything."""
        return {
            "broker": self.journal.broker,
            "incarnation": self.journal.incarnation,
            "version": own_version(),
            "utc_ms": time.time_ns() // 1_000_000,
            "recovery_ms": self._lobby.took_ms,
            "recovery_rows": self._lobby.rows,
            "is_ledger_up": self.ledger.is_up,
            "has_registry": self._membership is not None,
            "is_journal_full": self.journal.is_full,
            "clients": len(self.clients),
            "workers": len(self.workers),
            "jobs": len(self.state.jobs),
            "queued_subtasks": self.state.queued,
            "outbox": len(self.outbox),
            "journal_backlog_bytes": self.journal.backlog_bytes,
            "parcel_cache_bytes": self._frames.size_bytes,
            "result_cache_bytes": self.delivery.cached_bytes,
            "disk_free_bytes": self._free_disk_bytes,
            "memory_bytes": self._memory.held,
            "memory_peak_bytes": self._memory.peak,
            "memory_limit_bytes": self._memory.limit,
            "descriptors": self._descriptors.used,
            "descriptors_limit": self._descriptors.limit,
            "connections_waiting": self._descriptors.waiting,
            **self.metrics.export(),
        }


def _find_unfinished(connection: apsw.Connection) -> Leftovers:
    return find_leftovers(connection), find_freed(connection), find_kept(connection)


def _no_news(_: object) -> None:
    pass


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000
