"""Brings results and cards to subscribers: in order of ``sequence``, under credit, after commit.

Each job has a *flow*: how far its results are recorded, on disk and deliverable. A subscription is
a cursor into it with a cumulative credit in bytes of the four frames of each result (one message
may cross it, so a large frame cannot stall). Results come from a bounded memory or are read back
from the journal. A card with a final state goes out after the last result, and ends the
subscription.
"""

from collections import OrderedDict, deque
from collections.abc import Callable

import apsw

from gristmill.broker import records
from gristmill.broker.checkpoints import Told
from gristmill.broker.mailbox import Mailbox
from gristmill.broker.metrics import Metrics
from gristmill.broker.reader import Reader
from gristmill.broker.sessions import ClientSession
from gristmill.wire.client import FINAL_JOB_STATES, JobEvent, JobStatus, Refused
from gristmill.wire.errors import CODES
from gristmill.wire.frames import encode

READ_ROWS = 64  #: results read back at a time
READ_BYTES = 4 << 20
TOLD_BYTES = 4 << 20  #: of results that are not acknowledged yet, without their values
PEER_QUEUE_PAUSE = 8  #: messages waiting for a client at which its subscriptions rest


class Subscription:
    """One session's reading of one job, as ``request`` asked. ``cursor``: last sequence sent."""

    __slots__ = (
        "backlog", "bytes_allowed", "bytes_sent", "cursor", "flow", "has_news", "is_reading",
        "request", "session",
    )  # fmt: skip

    def __init__(
        self, session: ClientSession, flow: "Flow", after: int, bytes_allowed: int, request: int
    ) -> None:
        self.session = session
        self.request = request
        self.flow = flow
        self.cursor = after
        self.bytes_allowed = bytes_allowed
        self.bytes_sent = 0
        self.has_news = flow.status is not None
        self.is_reading = False
        self.backlog: deque[tuple[int, list[bytes] | None]] = deque()


class Flow:
    """The results of one job. ``recorded``, ``on_disk``, ``deliverable``: sequence numbers."""

    __slots__ = (
        "acked", "deliverable", "freed", "is_durable", "is_kept", "job", "on_disk", "recorded",
        "status", "subscriptions", "tenant",
    )  # fmt: skip

    def __init__(self, job: int, tenant: str, is_kept: bool, is_durable: bool, upto: int) -> None:
        self.job = job
        self.tenant = tenant
        self.is_kept = is_kept
        self.is_durable = is_durable
        self.recorded = self.on_disk = self.deliverable = upto
        self.acked = self.freed = 0
        self.status: JobStatus | None = None
        self.subscriptions: list[Subscription] = []

    @property
    def is_final(self) -> bool:
        """The last card is out."""
        return self.status is not None and self.status.state in FINAL_JOB_STATES


class Delivery:
    """See the module's text.

    Args:
        mailbox: of the front.
        reader: of the journal.
        cache_bytes: results kept in memory for subscribers to come.
        free: called with (job, sequence, what is remembered) when results up to it may leave the
            disk.
        is_full: whether a tenant's disk is: then they leave at once, not ``READ_ROWS`` at a time.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        reader: Reader,
        cache_bytes: int,
        free: Callable[[int, int, dict[int, Told]], None],
        metrics: Metrics,
        is_full: Callable[[str], bool],
    ) -> None:
        self._mailbox = mailbox
        self._reader = reader
        self._cache_bytes = cache_bytes
        self._free = free
        self._is_full = is_full
        self._metrics = metrics
        self._flows: dict[int, Flow] = {}
        self._cache: OrderedDict[tuple[int, int], list[bytes]] = OrderedDict()
        self.cached_bytes = 0
        self._told: OrderedDict[tuple[int, int], Told] = OrderedDict()
        self._told_bytes = 0
        self._resting: dict[tuple[int, int], Subscription] = {}

    # ------------------------------------------------------------ flows

    def open(self, flow: Flow) -> None:
        """A job began, or came back at a restart, or a past one is asked for."""
        self._flows[flow.job] = flow

    def find(self, job: int) -> Flow | None:
        """The flow of a job that is unfinished or has subscribers."""
        return self._flows.get(job)

    def add(self, flow: Flow, sequence: int, frames: list[bytes]) -> None:
        """A result was recorded; ``settle`` follows when it is on disk."""
        assert sequence == flow.recorded + 1, (flow.job, sequence, flow.recorded)
        flow.recorded = sequence
        self._cache[flow.job, sequence] = frames
        self.cached_bytes += _body_bytes(frames)
        self._metrics.results_kept += 1
        while self.cached_bytes > self._cache_bytes:
            _, old = self._cache.popitem(last=False)
            self.cached_bytes -= _body_bytes(old)
        if not flow.is_durable:
            flow.deliverable = sequence
            self._pump_flow(flow)

    def remember(self, told: Told) -> None:
        """What a result of a job that keeps none meant, for when it leaves the disk."""
        self._told[told.message.job, told.message.sequence] = told
        self._told_bytes += told.size_bytes
        while self._told_bytes > TOLD_BYTES:
            self._told_bytes -= self._told.popitem(last=False)[1].size_bytes

    def recall(self, job: int, after: int, upto: int) -> dict[int, Told]:
        """What is remembered of these results, by sequence, for the last time."""
        found = {}
        for sequence in range(after + 1, upto + 1):
            told = self._told.pop((job, sequence), None)
            if told is not None:
                self._told_bytes -= told.size_bytes
                found[sequence] = told
        return found

    def settle(self, flow: Flow, sequence: int) -> None:
        """Results up to this sequence are on disk."""
        flow.on_disk = max(flow.on_disk, sequence)
        flow.deliverable = max(flow.deliverable, sequence)
        self._pump_flow(flow)

    def tell(self, flow: Flow, status: JobStatus) -> None:
        """The job's card changed; its record is on disk."""
        flow.status = status
        for subscription in list(flow.subscriptions):
            subscription.has_news = True
            self._pump(subscription)
        self._close_if_over(flow)

    def tell_first(self, flow: Flow, status: JobStatus) -> None:
        """A card for subscribers of a job that has told none yet."""
        if flow.status is None and status.state not in FINAL_JOB_STATES:
            self.tell(flow, status)

    # ------------------------------------------------------------ subscriptions

    def subscribe(
        self, session: ClientSession, flow: Flow, after: int, bytes_allowed: int, request: int
    ) -> Subscription:
        """A session reads a flow; a second subscription of the same session replaces the first.

        A late copy of an older one, or of itself, must not take its cursor and its credit back.
        """
        for one in flow.subscriptions:
            if one.session is session and request <= one.request:
                return one
        self._leave(session, flow)
        after = min(max(after, flow.freed), flow.recorded)  # what it acknowledged never comes again
        subscription = Subscription(session, flow, after, bytes_allowed, request)
        flow.subscriptions.append(subscription)
        self._pump(subscription)
        return subscription

    def allow(self, session: ClientSession, job: int, acked: int, bytes_allowed: int) -> None:
        """A client took results and may be sent more; figures that went before change nothing."""
        flow = self._flows.get(job)
        if flow is None:
            return
        for subscription in flow.subscriptions:
            if subscription.session is session:
                subscription.bytes_allowed = max(subscription.bytes_allowed, bytes_allowed)
                self._acknowledge(flow, min(acked, subscription.cursor))
                self._pump(subscription)
                if flow.is_final and flow.acked >= flow.recorded and not subscription.has_news:
                    self._leave(session, flow)
                break
        self._close_if_over(flow)

    def unsubscribe(self, session: ClientSession, job: int) -> None:
        """No more results of this job for this session."""
        flow = self._flows.get(job)
        if flow is not None:
            self._leave(session, flow)
            self._close_if_over(flow)

    def drop_session(self, session: ClientSession) -> None:
        """The session is over: all its subscriptions end."""
        for flow in list(self._flows.values()):
            self._leave(session, flow)
            self._close_if_over(flow)

    def resume(self) -> None:
        """Subscriptions that rested because their client did not read go on."""
        resting, self._resting = self._resting, {}
        for subscription in resting.values():
            if subscription in subscription.flow.subscriptions:
                self._pump(subscription)
                self._close_if_over(subscription.flow)

    def _leave(self, session: ClientSession, flow: Flow) -> None:
        flow.subscriptions = [s for s in flow.subscriptions if s.session is not session]

    def _close_if_over(self, flow: Flow) -> None:
        if flow.is_final and not flow.subscriptions and flow.on_disk >= flow.recorded:
            self._flows.pop(flow.job, None)
            # Who asks again is served from the disk.
            for sequence in range(flow.recorded, flow.freed, -1):
                frames = self._cache.pop((flow.job, sequence), None)
                if frames is None:
                    break
                self.cached_bytes -= _body_bytes(frames)

    def _acknowledge(self, flow: Flow, acked: int) -> None:
        if acked <= flow.acked:
            return
        flow.acked = acked
        is_over = flow.is_final and acked >= flow.recorded
        is_due = is_over or acked >= flow.freed + READ_ROWS or self._is_full(flow.tenant)
        if is_due and not flow.is_kept:
            upto = min(acked, flow.on_disk)
            told = self.recall(flow.job, flow.freed, upto)
            flow.freed = upto
            self._free(flow.job, upto, told)

    # ------------------------------------------------------------ sending

    def _pump_flow(self, flow: Flow) -> None:
        if flow.subscriptions:
            for subscription in list(flow.subscriptions):
                self._pump(subscription)
            self._close_if_over(flow)

    def _pump(self, subscription: Subscription) -> None:
        flow, peer = subscription.flow, subscription.session.peer
        is_alone = len(flow.subscriptions) == 1
        while subscription.cursor < flow.deliverable and not peer.is_lost:
            if subscription.bytes_sent >= subscription.bytes_allowed:
                break
            if len(peer.queue) >= PEER_QUEUE_PAUSE:
                self._resting[subscription.session.number, flow.job] = subscription
                return
            frames = self._next(subscription, is_alone)
            if frames is None:
                break
            size = _body_bytes(frames)
            subscription.bytes_sent += size
            self._metrics.results_delivered += 1
            self._metrics.result_bytes += size
            self._mailbox.send(peer, frames)
        if subscription.has_news and not peer.is_lost:
            self._send_card(subscription)

    def _next(self, subscription: Subscription, is_alone: bool) -> list[bytes] | None:
        """The next result, and the cursor behind it; None when it must be read first."""
        flow, sequence = subscription.flow, subscription.cursor + 1
        key = (flow.job, sequence)
        if is_alone and not subscription.backlog:
            frames = self._cache.pop(key, None)
            if frames is not None:
                self.cached_bytes -= _body_bytes(frames)
        else:
            frames = self._cache.get(key)
        if frames is not None:
            while subscription.backlog and subscription.backlog[0][0] <= sequence:
                subscription.backlog.popleft()
            subscription.cursor = sequence
            return frames
        while subscription.backlog:
            sequence, frames = subscription.backlog.popleft()
            if sequence > subscription.cursor:
                subscription.cursor = sequence
                if frames is not None:
                    return frames
                self._tell_damage(subscription, sequence)
        if sequence <= flow.on_disk and not subscription.is_reading:
            self._read_back(subscription)
        return None

    def _read_back(self, subscription: Subscription) -> None:
        flow, after, upto = subscription.flow, subscription.cursor, subscription.flow.on_disk
        subscription.is_reading = True

        def arrived(rows: list[tuple[int, list[bytes] | None]]) -> None:
            subscription.is_reading = False
            self._metrics.results_read_back += len(rows)
            if subscription not in flow.subscriptions:
                return
            subscription.backlog.extend(rows)
            if not rows:  # acknowledged and freed before
                subscription.cursor = max(subscription.cursor, upto)
            self._pump(subscription)
            self._close_if_over(flow)

        self._reader.ask(
            lambda connection: read_results(
                connection, flow.job, after, upto, flow.is_kept and not flow.freed
            ),
            arrived,
            lambda _: arrived([(upto, None)]),
        )

    def _tell_damage(self, subscription: Subscription, sequence: int) -> None:
        refused = Refused(
            0,
            "INTERNAL",
            f"result {sequence} of job j{subscription.flow.job} is damaged on the broker's disk "
            "and cannot be delivered",
            CODES["INTERNAL"].next_move,
            subscription.flow.job,
        )
        self._mailbox.send(subscription.session.peer, [encode(refused)])

    def _send_card(self, subscription: Subscription) -> None:
        flow = subscription.flow
        assert flow.status is not None
        if flow.is_final:
            if subscription.cursor < flow.recorded:
                return
            # Where nothing is kept, the last acknowledgement is still to come.
            if flow.is_kept or flow.acked >= flow.recorded:
                flow.subscriptions.remove(subscription)
        subscription.has_news = False
        self._mailbox.send(subscription.session.peer, [encode(JobEvent(flow.status))])


def _body_bytes(frames: list[bytes]) -> int:
    _, payload, meter, failures, logs = frames
    return len(payload) + len(meter) + len(failures) + len(logs)


def read_results(
    connection: apsw.Connection, job: int, after: int, upto: int, is_kept: bool = False
) -> list[tuple[int, list[bytes] | None]]:
    """Results ``after + 1 ..`` of a job as they are delivered, at most ``READ_ROWS``.

    None stands for a row that is damaged, or gone from between others; of a job whose results are
    all kept (``is_kept``), from before them as well.
    """
    found: list[tuple[int, list[bytes] | None]] = []
    size = 0
    # Where nothing comes before, the first ones were acknowledged and freed.
    before = connection.execute(
        "SELECT 1 FROM results WHERE job = ? AND sequence <= ? LIMIT 1", (job, after)
    ).fetchall()
    expected = after + 1 if before or is_kept else None
    for row in connection.execute(
        f"SELECT {records.RESULT_COLUMNS} FROM results"
        " WHERE job = ? AND sequence > ? AND sequence <= ? ORDER BY sequence LIMIT ?",
        (job, after, upto, READ_ROWS),
    ):
        found += [(gone, None) for gone in range(expected or row[1], row[1])]
        expected = row[1] + 1
        try:
            frames = records.read_result(row)
        except records.DamagedError:
            found.append((row[1], None))
            continue
        found.append((row[1], frames))
        size += _body_bytes(frames)
        if size > READ_BYTES:
            break
    return found
