"""Does what the core says: each effect to the journal, to a worker, or to a client.

The law of durability is here. What is recorded joins the journal's open group; a durable effect
that comes after waits until that group is on disk, in order; everything else leaves at once.
Results go to subscribers when their own group is on disk.
"""

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Raw

from gristmill.broker import records, schema
from gristmill.broker.checkpoints import Told
from gristmill.broker.core import effects as do
from gristmill.broker.core import journal_names as names
from gristmill.broker.core.events import ParcelsCommitted
from gristmill.broker.countersigning import Countersigner, node_key
from gristmill.broker.delivery import Delivery, Flow
from gristmill.broker.grants import Grants
from gristmill.broker.journal import Journal
from gristmill.broker.lines import LineKeeper
from gristmill.broker.mailbox import Mailbox
from gristmill.broker.metrics import Metrics
from gristmill.broker.orders import OrderDesk
from gristmill.broker.outbox import Outbox
from gristmill.broker.parcels import FUNCTION, FrameCache
from gristmill.broker.quota import ResultQuota
from gristmill.broker.sessions import Clients, ClientSession, Workers, WorkerSession
from gristmill.wire.client import (
    FINAL_JOB_STATES,
    Accepted,
    Answer,
    DryRun,
    InputCredit,
    Refused,
    Results,
)
from gristmill.wire.errors import CODES
from gristmill.wire.failure import Failure, pack_failures
from gristmill.wire.frames import encode
from gristmill.wire.ledger import Contribution, Entry
from gristmill.wire.limits import INPUT_CREDIT_BYTES
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.receipts import outcome_digest_of, work_of
from gristmill.wire.spec import JobSpec
from gristmill.wire.tariffs import Tariffs, tariff_of
from gristmill.wire.worker import JobOpening, ResultHead, grants_mark

log = logging.getLogger("gristmill.broker")

#: Less new credit than this travels with the next tick: its client has enough to go on.
CREDIT_STEP_BYTES = INPUT_CREDIT_BYTES // 8
#: What comes in ranges of this many subtasks is a stream: a few milliseconds more are not felt.
BULK_SUBTASKS = 100


@dataclasses.dataclass(frozen=True, slots=True)
class JobFacts:
    """What the shell knows of an unfinished job."""

    job: int
    tenant: str
    spec: JobSpec
    tariffs: Tariffs
    work: bytes


class Inbox:
    """The bytes of the message that is being handled, and of results whose report is not done.

    The core never sees them and names results by ``ref``.
    """

    __slots__ = ("body", "digests", "results", "tariffs", "utc_ms")

    def __init__(self) -> None:
        self.body = b""
        self.tariffs: Tariffs = {}
        self.utc_ms = 0
        self.results: dict[int, tuple[ResultHead, list[bytes]]] = {}
        self.digests: dict[int, bytes] = {}  # of results whose signature was looked at

    def clear_results(self) -> None:
        """The report is done, or another one comes."""
        self.results.clear()
        self.digests.clear()

    def outcome_digest(self, ref: int) -> bytes:
        """Of this result's frames."""
        digest = self.digests.get(ref)
        return outcome_digest_of(self.results[ref][1]) if digest is None else digest


class Execution:
    """See the module's text. ``run`` does a list of effects; ``settle`` follows each commit."""

    def __init__(
        self,
        journal: Journal,
        outbox: Outbox,
        countersigner: Countersigner,
        frames: FrameCache,
        delivery: Delivery,
        desk: OrderDesk,
        front: Mailbox,
        clients: Clients,
        workers: Workers,
        grants: Grants,
        drop_worker: Callable[[WorkerSession, str], None],
        quota: ResultQuota,
        lines: LineKeeper,
        metrics: Metrics,
    ) -> None:
        self.inbox = Inbox()
        self.jobs: dict[int, JobFacts] = {}
        self.uploaders: dict[int, int] = {}  # job to the client that sends its inputs
        self._journal = journal
        self._outbox = outbox
        self._countersign = countersigner
        self._frames = frames
        self._delivery = delivery
        self._desk = desk
        self._front = front
        self._clients = clients
        self._workers = workers
        self._grants = grants
        self._drop_worker = drop_worker
        self._quota = quota
        self._lines = lines
        self.on_canary_ended: Callable[[int, str, bool], None] | None = None
        self.on_node_shut: Callable[[str], object] | None = None
        self.find_past: Callable[[ClientSession, int, int], None] | None = None
        self._withheld: dict[int, InputCredit] = {}
        self._allowed: dict[int, int] = {}  # job to the credit that its client was told
        self._credit: dict[int, InputCredit] = {}  # a little more than that: told at the next tick
        self._metrics = metrics
        self.held: dict[tuple[int, int], Contribution] = {}  # job, sequence: to be posted or not
        self._last_kept = 0  # ref of the result that was recorded last
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._results: deque[tuple[int, dict[int, tuple[Flow, int]]]] = deque()
        self._parcels: deque[tuple[int, dict[int, tuple[int, int]]]] = deque()
        self._handlers: dict[type[do.Effect], Callable[[Any], None]] = {
            do.RecordJob: self._record_job,
            do.KeepParcel: self._keep_parcel,
            do.KeepVote: self._keep_vote,
            do.SettleVote: self._settle_vote,
            do.KeepStanding: self._keep_standing,
            do.KeepSuperseded: self._keep_superseded,
            do.RecordEvent: self._record_event,
            do.RecordState: self._record_state,
            do.AmendCard: self._amend_card,
            do.AddToOutbox: self._add_to_outbox,
            do.FreeParcels: self._free_parcels,
            do.FreeJob: self._free_job,
            do.AcceptJob: self._accept_job,
            do.AnswerDryRun: self._answer_dry_run,
            do.AllowInput: self._allow_input,
            do.Confirm: self._confirm,
            do.RefuseRequest: self._refuse_request,
            do.TellStatus: self._tell_status,
            do.OpenJob: self._open_job,
            do.Dispatch: self._dispatch,
            do.RecallLease: self._recall_lease,
            do.StopLease: self._stop_lease,
            do.CloseJob: self._close_job,
            do.AckReport: self._ack_report,
            do.DropWorker: self._on_drop_worker,
        }

    def run(self, effects: Sequence[do.Effect]) -> None:
        """Does effects in order."""
        handlers = self._handlers
        for at, effect in enumerate(effects):
            if type(effect) is do.KeepResult:
                # Its bill comes next; both are one row, from which a restart knows what was spent.
                entry = effects[at + 1] if at + 1 < len(effects) else None
                self._keep_result(effect, getattr(entry, "entry", None))
            else:
                handlers[type(effect)](effect)

    def settle(self) -> list[ParcelsCommitted]:
        """A group is on disk: what waited for it leaves; returns events for the core."""
        committed = self._journal.committed
        self._outbox.settle()
        while self._results and self._results[0][0] <= committed:
            for flow, sequence in self._results.popleft()[1].values():
                self._delivery.settle(flow, sequence)
        events = []
        while self._parcels and self._parcels[0][0] <= committed:
            for job, (upto, client) in self._parcels.popleft()[1].items():
                if job in self.jobs:
                    events.append(ParcelsCommitted(job, upto))
                else:  # it ended first: the client may let go of its parcels all the same
                    self.tell(client, InputCredit(job, upto, 0))
        while self._waiting and self._waiting[0][0] <= committed:
            self._waiting.popleft()[1]()
        return events

    def when_durable(self, action: Callable[[], None], can_wait: bool = False) -> None:
        """Does it once everything that was recorded so far is on disk.

        ``can_wait``: nobody waits for it.
        """
        group = self._journal.group
        if group <= self._journal.committed:
            action()
            return
        if not can_wait:
            self._journal.hurry()
        self._waiting.append((group, action))

    def frame(self, job: int, first: int) -> bytes | None:
        """A parcel's frame, if it is in memory."""
        return self._frames.get(job, first)

    # ------------------------------------------------------------ journal

    def _record_job(self, effect: do.RecordJob) -> None:
        body, tariffs = self.inbox.body, self.inbox.tariffs
        record = records.JobRecord(
            effect.job, effect.tenant, effect.submission, effect.now_utc_ms, effect.spec, tariffs,
            body,
        )  # fmt: skip
        self._journal.record("jobs", schema.ADD_JOB, records.job_row(record), len(body) + 1_024)
        self._journal.record("open_jobs", schema.ADD_OPEN, (effect.job,), 16)
        self.adopt(record, upto=0, group=self._journal.group)
        self._metrics.jobs_accepted += 1
        log.info("job=%d tenant=%s accepted count=%d", effect.job, effect.tenant, effect.spec.count)

    def adopt(self, record: records.JobRecord, upto: int, group: int, freed: int = 0) -> None:
        """A job is unfinished: new, or read from the journal with ``upto`` results.

        Those up to ``freed`` were acknowledged and have left the disk.
        """
        spec = record.spec
        self.jobs[record.job] = JobFacts(
            record.job, record.tenant, spec, record.tariffs, work_of(spec)
        )
        flow = Flow(record.job, record.tenant, spec.keep, spec.is_durable, upto)
        flow.acked = flow.freed = freed
        self._delivery.open(flow)
        if spec.kind == "function" and record.function:
            self._frames.put(record.job, FUNCTION, record.function, group)

    def _keep_parcel(self, effect: do.KeepParcel) -> None:
        body, job, first = self.inbox.body, effect.job, effect.first
        row = records.parcel_row(job, first, effect.count, effect.codec, body)
        # Credit goes with a tick: nobody waits for this row, and a short subtask's result,
        # which somebody does, takes it along in the same sync.
        self._journal.record("parcels", schema.ADD_PARCEL, row, len(body) + 128, can_wait=True)
        group = self._journal.group
        self._frames.put(job, first, body, group)
        if not self._parcels or self._parcels[-1][0] != group:
            self._parcels.append((group, {}))
        self._parcels[-1][1][job] = (first + effect.count, self.uploaders.get(job, 0))
        self._metrics.parcels_kept += 1
        self._metrics.parcel_bytes += len(body)

    def _keep_result(self, effect: do.KeepResult, entry: Entry | None) -> None:
        if effect.ref:
            head, frames = self.inbox.results[effect.ref]
        else:
            head, frames = make_result(effect)
        not_final = [(start - effect.first, length) for start, length in effect.not_final]
        message = Results(effect.job, effect.sequence, head, effect.attempt, effect.node, not_final)
        header = encode(message)
        readings = head.wall_us, head.cpu_us, 0
        if isinstance(entry, Contribution) and entry.first == effect.first:
            readings = entry.wall_us, entry.cpu_us, entry.amount_ucredits
        row = records.result_row(header, message, frames, readings, self.inbox.utc_ms)
        size = sum(map(len, frames)) + 512
        self._quota.add(self.jobs[effect.job].tenant, size - 512)
        self._journal.record("results", schema.ADD_RESULT, row, size, head.count >= BULK_SUBTASKS)
        if effect.job in self._lines.jobs:
            self._lines.settle(effect, frames[3])
        flow = self._delivery.find(effect.job)
        assert flow is not None, effect.job
        group = self._journal.group
        if not self._results or self._results[-1][0] != group:
            self._results.append((group, {}))
        self._results[-1][1][effect.job] = (flow, effect.sequence)
        self._delivery.add(flow, effect.sequence, [header, *frames])
        if not flow.is_kept:
            told = Told(message, frames[1], frames[2], readings, size - 512)
            self._delivery.remember(told)
        self._last_kept = effect.ref

    def _keep_vote(self, effect: do.KeepVote) -> None:
        entry = self._complete(effect.entry) if effect.entry is not None else None
        if entry is not None:
            self.held[effect.job, effect.sequence] = entry
        self._note(effect.job, names.RESULT_HELD, records.vote_detail(effect, entry))

    def _settle_vote(self, effect: do.SettleVote) -> None:
        detail = {"sequence": effect.sequence, "is_paid": effect.is_paid}
        self._note(effect.job, names.RESULT_SETTLED, detail)
        entry = self.held.pop((effect.job, effect.sequence), None)
        if entry is not None and effect.is_paid:
            self._outbox.add(entry)

    def _note(self, job: int, name: str, detail: dict[str, Any]) -> None:
        """A line of the event log about one result of many: not for the log of the process."""
        row = records.event_row(job, self.inbox.utc_ms, name, detail)
        self._journal.record("events", schema.ADD_EVENT, row, len(row[3]) + 64)

    def _keep_standing(self, effect: do.KeepStanding) -> None:
        row = records.standing_row(effect)
        self._journal.record("meta", schema.SET_META, row, len(row[0]) + len(row[1]) + 32)

    def _keep_superseded(self, effect: do.KeepSuperseded) -> None:
        self._metrics.superseded += 1  # the core may record an event, too

    def _record_event(self, effect: do.RecordEvent) -> None:
        # The core's clock is not UTC; the journal's is.
        row = records.event_row(effect.job, self.inbox.utc_ms, effect.name, effect.detail)
        self._journal.record("events", schema.ADD_EVENT, row, len(row[3]) + 64)
        log.info("job=%d %s %s", effect.job, effect.name, effect.detail)
        if effect.name == names.CANARY_ENDED and self.on_canary_ended is not None:
            node, is_right = str(effect.detail["node"]), bool(effect.detail["is_right"])
            self.on_canary_ended(effect.job, node, is_right)
        elif effect.name == names.NODE_QUARANTINED and self.on_node_shut is not None:
            self.on_node_shut(str(effect.detail["node"]))

    def _record_state(self, effect: do.RecordState) -> None:
        facts, status = self.jobs[effect.job], effect.status
        row = records.state_row(facts.tenant, status, facts.spec.retention_s)
        self._journal.record("job_states", schema.SET_STATE, row, len(row[5]) + 128)
        if status.state in FINAL_JOB_STATES:
            self._journal.record("open_jobs", schema.DROP_OPEN, (effect.job,), 16)
        log.info(
            "job=%d state=%s done=%d failed=%d cancelled=%d reason=%s",
            effect.job, status.state, status.done, status.failed, status.cancelled,
            status.reason.partition(":")[0][:40],
        )  # fmt: skip

    def _amend_card(self, effect: do.AmendCard) -> None:
        row = records.card_row(effect.tenant, effect.status)
        self._journal.record("job_states", schema.AMEND_CARD, row, len(row[0]) + 64)

    def _add_to_outbox(self, effect: do.AddToOutbox) -> None:
        entry = effect.entry
        if isinstance(entry, Contribution):
            entry = self._complete(entry)
        self._outbox.add(entry)

    def _complete(self, entry: Contribution) -> Contribution:
        """A contribution with all of its receipt; it comes right behind its result, always."""
        head, _ = self.inbox.results[self._last_kept]
        assert (head.first, head.lease_id) == (entry.first, entry.lease_id), (head, entry)
        digest = self.inbox.outcome_digest(self._last_kept)
        return self._countersign(entry, head, self.jobs[head.job].work, digest)

    def tell_key(self, name: str, node: str) -> None:
        """A worker's name was pinned to its key."""
        self._outbox.add(node_key(self._journal.broker, name, node, self.inbox.utc_ms))

    def _free_parcels(self, effect: do.FreeParcels) -> None:
        job, upto = effect.job, effect.upto
        self._frames.drop_before(job, upto)
        row = records.freed_row(job, upto, effect.body_bytes)
        self._journal.record("parcels", schema.SET_FREED, row, 64)
        self.when_durable(
            lambda: self._journal.add_chore(schema.DROP_PARCELS_BEFORE, (job, upto)), True
        )

    def _free_job(self, effect: do.FreeJob) -> None:
        if (credit := self._credit.pop(effect.job, None)) is not None:
            self.tell(self.uploaders.get(effect.job, 0), credit)
        self.jobs.pop(effect.job, None)
        self.uploaders.pop(effect.job, None)
        self._allowed.pop(effect.job, None)
        self._frames.drop_job(effect.job)
        self._lines.free(effect.job)
        # The deletion must not overtake the record that makes the job final.
        self.when_durable(lambda: self._journal.add_chore(schema.DROP_PARCELS, (effect.job,)), True)

    # ------------------------------------------------------------ clients

    def tell(self, number: int, message: Any) -> None:
        """Sends a message to a client that is still there."""
        session = self._clients.get(number)
        if session is not None:
            self._front.send(session.peer, [encode(message)])

    def _accept_job(self, effect: do.AcceptJob) -> None:
        allowed = effect.bytes_allowed
        facts = self.jobs.get(effect.job)
        if facts is not None:
            self.uploaders[effect.job] = effect.client
            if self._quota.is_over(facts.tenant):  # no more than before; 0 would mean its end
                allowed = min(allowed, self._allowed.get(effect.job, 1))
            else:
                self._allowed[effect.job] = allowed
        message = Accepted(effect.request, effect.job, effect.is_replayed, allowed)
        self.when_durable(lambda: self.tell(effect.client, message))

    def _answer_dry_run(self, effect: do.AnswerDryRun) -> None:
        body = DryRun(effect.spec, effect.workers_matching, effect.workers_of, effect.reasons)
        self.tell(effect.client, Answer(effect.request, Raw(encode(body))))

    def _allow_input(self, effect: do.AllowInput) -> None:
        # The core says it after ParcelsCommitted, or for a parcel that came again.
        facts, client = self.jobs.get(effect.job), self.uploaders.get(effect.job)
        if facts is not None and client is not None:
            message = InputCredit(effect.job, effect.committed, effect.bytes_allowed)
            if self._quota.is_over(facts.tenant):
                self._withheld[effect.job] = message
            elif effect.bytes_allowed - self._allowed.get(effect.job, 0) < CREDIT_STEP_BYTES:
                self._credit[effect.job] = message
            else:
                self._allow(client, message)

    def _allow(self, client: int, message: InputCredit) -> None:
        self._credit.pop(message.job, None)
        self._allowed[message.job] = message.bytes_allowed
        self.tell(client, message)

    def tell_credit(self) -> None:
        """Says how far uploads are on disk where it was too little for a message of its own."""
        for job, message in list(self._credit.items()):
            client = self.uploaders.get(job)
            if client is not None:
                self._allow(client, message)
        self._credit.clear()

    def release_credit(self) -> None:
        """Credit that a tenant's full disk held back goes out where there is room again."""
        for job, message in list(self._withheld.items()):
            facts, client = self.jobs.get(job), self.uploaders.get(job)
            if facts is None or client is None:
                del self._withheld[job]
            elif not self._quota.is_over(facts.tenant):
                del self._withheld[job]
                self._allow(client, message)

    def _confirm(self, effect: do.Confirm) -> None:
        session = self._clients.get(effect.client)
        if session is not None:
            session.note_done(effect.request)
        self.when_durable(lambda: self.tell(effect.client, Answer(effect.request)))

    def _refuse_request(self, effect: do.RefuseRequest) -> None:
        session = self._clients.get(effect.client)
        if effect.code == "UNKNOWN_JOB" and session is not None and self.find_past is not None:
            self.find_past(session, effect.request, effect.job)
            return
        self._metrics.refused += 1
        hint = effect.hint or CODES[effect.code].next_move
        message = Refused(effect.request, effect.code, effect.message, hint, effect.job)
        if session is not None:
            session.note_refused(message)
        if effect.job:  # what is said of a job may rest on records that are not on disk yet
            self.when_durable(lambda: self.tell(effect.client, message))
        else:
            self.tell(effect.client, message)

    def _tell_status(self, effect: do.TellStatus) -> None:
        flow = self._delivery.find(effect.job)
        if flow is not None:
            self.when_durable(lambda: self._delivery.tell(flow, effect.status))

    # ------------------------------------------------------------ workers

    def opening(self, session: WorkerSession, job: int) -> JobOpening | None:
        """The opening of a job for a worker, with grants that last; None when it is over."""
        facts = self.jobs.get(job)
        if facts is None:
            return None
        now_ms = self.inbox.utc_ms
        put, put_ms = self._grants.of_tenant(facts.tenant, "put", now_ms)
        get, get_ms = self._grants.of_tenant(facts.tenant, "get", now_ms)
        session.open_jobs[job] = min(put_ms, get_ms)
        tariff = tariff_of(facts.tariffs, session.node_class)
        opening = JobOpening(job, facts.tenant, facts.spec, tariff, put, get)
        session.openings[job] = grants_mark(opening), now_ms
        return opening

    def _open_job(self, effect: do.OpenJob) -> None:
        session = self._workers.get(effect.worker)
        if session is not None:
            opening = self.opening(session, effect.job)
            assert opening is not None, effect.job
            self._desk.draft(session).batch(effect.job).openings.append(opening)

    def _dispatch(self, effect: do.Dispatch) -> None:
        session = self._workers.get(effect.worker)
        if session is not None:
            self._desk.draft(session).batch(effect.lease.job).leases.append(effect.lease)

    def _recall_lease(self, effect: do.RecallLease) -> None:
        session = self._workers.get(effect.worker)
        if session is not None:
            self._desk.draft(session).batch().recall.append(effect.lease_id)

    def _stop_lease(self, effect: do.StopLease) -> None:
        session = self._workers.get(effect.worker)
        if session is not None:
            order = (effect.lease_id, int(effect.outcome))
            self._desk.draft(session).batch().stop.append(order)

    def _close_job(self, effect: do.CloseJob) -> None:
        session = self._workers.get(effect.worker)
        if session is not None:
            session.open_jobs.pop(effect.job, None)
            session.openings.pop(effect.job, None)
            self._desk.draft(session).batch().close.append(effect.job)

    def _ack_report(self, effect: do.AckReport) -> None:
        session = self._workers.get(effect.worker)
        if session is None:
            return
        session.report_ms, session.ttl_ms = effect.report_ms, effect.ttl_ms
        number, upto, is_drain = effect.number, effect.results_upto, effect.is_drain
        self.when_durable(lambda: self._desk.answer(session, number, upto, is_drain), can_wait=True)

    def _on_drop_worker(self, effect: do.DropWorker) -> None:
        session = self._workers.get(effect.worker)
        if session is not None:
            self._drop_worker(session, effect.cause)


def make_result(effect: do.KeepResult) -> tuple[ResultHead, list[bytes]]:
    """The head and frames of a result without a worker: all of it ended alike.

    Its number is 0; its one failure, at offset 0, stands for the whole range.
    """
    head = ResultHead(
        0, effect.lease_id, effect.job, effect.first, effect.count, "m", 0, 0, 0, "none"
    )
    meter = pack_meter(effect.count, Outcome(effect.outcome))
    failures = pack_failures([(0, Failure(effect.message))]) if effect.message else b""
    return head, [b"", meter, failures, b""]
