"""Questions of people: live things from the state, past ones from the journal, bills by the ledger.

A question that needs the disk is read in the reader's thread and answered when it is done; one
client may have ``QUESTIONS_PER_CLIENT`` of them waiting.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any

import msgspec

from gristmill.broker import past, past_logs
from gristmill.broker.bills import Bills, Relay
from gristmill.broker.core.cards import current_leases, find_status, subtask_rows, worker_row
from gristmill.broker.core.on_clients import conflict_text, content_digest
from gristmill.broker.core.state import State
from gristmill.broker.core.why import WAITING_FOR_INPUTS, ended_text, why
from gristmill.broker.delivery import Delivery, Flow
from gristmill.broker.gate import Gate
from gristmill.broker.grants import Grants
from gristmill.broker.ledger_link import LedgerLink
from gristmill.broker.mailbox import Mailbox
from gristmill.broker.metrics import Metrics
from gristmill.broker.purchases import Purchases
from gristmill.broker.reader import Reader
from gristmill.broker.rentals import Rentals
from gristmill.broker.sessions import ClientSession, Workers
from gristmill.wire import limits
from gristmill.wire.client import (
    FINAL_JOB_STATES,
    Answer,
    Ask,
    JobStatus,
    JobTerms,
    Reason,
    Refused,
    Submit,
    Subscribe,
    SubtaskRow,
    WhyAnswer,
    WorkerRow,
)
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.ids import format_job, is_digest
from gristmill.wire.tariffs import ZERO_TARIFFS, Tariffs
from gristmill.wire.units import format_bytes

QUESTIONS_PER_CLIENT = 64
ROWS_MAX = 10_000  #: in one answer
LOG_ROWS_MAX = 200  #: an answer with output is larger
_INLINE_BYTES_MAX = limits.HEADER_BYTES_MAX - 64  #: of an answer within its header
_PART_BYTES = 64 << 10  #: of a longer one in each of its frames


def gone(tombstone: past.Tombstone) -> RemoteError:
    """What a question about a pruned job is answered."""
    return RemoteError(
        "EXPIRED",
        f"{format_job(tombstone.job)} ended {format_utc(tombstone.finished_ms)} as"
        f" {tombstone.state!r}; its record was kept for its time and is gone",
    )


def format_utc(ms: int) -> str:
    """``2026-11-22 05:12:01 UTC``."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ms / 1_000))


def _unusable(known: past.KnownSubmission, message: Submit) -> RemoteError | None:
    """Why this id is not free for this content; None for a repeat."""
    if known.pruned is not None:
        return gone(known.pruned)
    if known.spec is None:
        text = f"{format_job(known.job)} has this submission id; it is damaged on the disk"
        return RemoteError("INTERNAL", text, "submit it again under a new id")
    if content_digest(known.spec) != content_digest(message.spec):
        text = conflict_text(known.job, known.spec, message.spec)
        return RemoteError("SUBMISSION_CONFLICT", text)
    return None


class Answers:
    """See the module's text. ``clock`` gives (now of the core, now UTC) in ms."""

    def __init__(
        self,
        state: State,
        broker: str,
        reader: Reader,
        delivery: Delivery,
        workers: Workers,
        ledger: LedgerLink,
        grants: Grants,
        mailbox: Mailbox,
        clock: Callable[[], tuple[int, int]],
        figures: Callable[[], dict[str, Any]],
        when_durable: Callable[[Callable[[], None]], None],
        tariffs: Tariffs,
        metrics: Metrics,
    ) -> None:
        self.gate: Gate | None = None  #: of the clients' port, from whoever reads that
        self._state = state
        self._reader = reader
        self._delivery = delivery
        self._workers = workers
        self._grants = grants
        self._mailbox = mailbox
        self._clock = clock
        self._figures = figures
        self._when_durable = when_durable
        self._grid_tariffs = tariffs
        self._metrics = metrics
        relay = Relay(ledger, mailbox, clock, self.refuse)
        self.purchases = Purchases(relay)
        self.rentals = Rentals(relay)
        bills = Bills(relay, broker, self._with_job)
        self._about: dict[str, Callable[[ClientSession, Ask], None]] = {
            "jobs": self._jobs,
            "job": self._job,
            "subtasks": self._subtasks,
            "why": self._why,
            "workers": self._worker_rows,
            "logs": self._logs,
            "usage": bills.usage,
            "balance": bills.balance,
            "statement": bills.statement,
            "receipts": bills.receipts,
            "grid": self._grid,
            "grant": self._grant,
            "decomposed": self._decomposed,
            "manifest": self._manifest,
            "tariffs": self._tariffs,
            "terms": self._terms,
            "history": self._history,
            "offers": self.purchases.offers,
            "intents": self.purchases.intents,
            "limits": self._limits,
        }

    def answer(self, session: ClientSession, message: Ask) -> None:
        """Answers a question, now or when what it needs was read.

        Raises:
            RemoteError: the question is refused.
        """
        if not 1 <= message.limit <= ROWS_MAX or message.first < 0:
            raise RemoteError(
                "MALFORMED",
                f"limit is {message.limit}, must be 1 to {ROWS_MAX}; first is {message.first},"
                " must not be negative",
            )
        self._about[message.about](session, message)

    # ------------------------------------------------------------ replies

    def _say(self, session: ClientSession, request: int, body: Any) -> None:
        """What is told of live things may rest on records that are not on disk yet: it waits."""
        encoded = msgspec.msgpack.encode(body)
        if len(encoded) <= _INLINE_BYTES_MAX:
            frames = [encode(Answer(request, msgspec.Raw(encoded)))]
        else:
            step = _PART_BYTES
            parts = [encoded[at : at + step] for at in range(0, len(encoded), step)]
            if len(parts) >= limits.MESSAGE_FRAMES_MAX:
                raise RemoteError(
                    "INVALID_SPEC",
                    f"the answer has {format_bytes(len(encoded))};"
                    f" the limit is {format_bytes(step * (limits.MESSAGE_FRAMES_MAX - 1))}",
                    "ask for fewer rows at a time (limit)",
                )
            frames = [encode(Answer(request)), *parts]
        self._when_durable(lambda: self._mailbox.send(session.peer, frames))

    def refuse(self, session: ClientSession, request: int, error: RemoteError, job: int) -> None:
        """Answers a request with its error, and counts it."""
        self._metrics.refused += 1
        refused = Refused(request, error.code, error.message, error.hint, job)
        session.note_refused(refused)
        self._mailbox.send(session.peer, [encode(refused)])

    def refuse_again(self, session: ClientSession, request: int) -> bool:
        """Whether this request was refused before; then it is told so once more."""
        refused = session.refused.get(request)
        if refused is None:
            return False
        self._mailbox.send(session.peer, [encode(refused)])
        return True

    def _unknown(self, session: ClientSession, request: int, job: int) -> None:
        """No such job, or one of which only a tombstone is left."""
        tenant = session.tenant
        text = f"no job {format_job(job)} of tenant {tenant!r}"
        unknown = RemoteError("UNKNOWN_JOB", text)
        self._reader.ask(
            lambda db: past.find_tombstone(db, tenant, job),
            lambda found: self.refuse(session, request, gone(found) if found else unknown, job),
            lambda _: self.refuse(session, request, unknown, job),
        )

    def _read(
        self,
        session: ClientSession,
        request: int,
        question: Callable[[Any], Any],
        then: Callable[[Any], None],
    ) -> None:
        """Asks the journal; a refusal when too much waits, or the file is damaged there.

        What has ended may have left memory before it is on disk: the journal is asked when
        everything that was recorded up to now can be read in it.
        """
        if session.questions >= QUESTIONS_PER_CLIENT or self._reader.is_busy:
            raise RemoteError(
                "QUEUE_FULL",
                f"{session.questions} questions of this client wait;"
                f" the limit is {QUESTIONS_PER_CLIENT}",
                "wait for an answer, then ask again",
            )
        session.questions += 1

        def arrived(found: Any) -> None:
            session.questions -= 1
            try:
                then(found)
            except RemoteError as error:
                self.refuse(session, request, error, 0)

        def failed(error: Exception) -> None:
            session.questions -= 1
            text = f"the journal is damaged where this is: {error}"
            self.refuse(session, request, RemoteError("INTERNAL", text), 0)

        self._when_durable(lambda: self._reader.ask(question, arrived, failed))

    def _live(self, session: ClientSession, job: int) -> JobStatus | None:
        found = find_status(self._state, job, self._clock()[0])
        return found[1] if found is not None and found[0] == session.tenant else None

    # ------------------------------------------------------------ submissions

    def is_known(self, session: ClientSession, message: Submit) -> bool:
        """Whether the state has this submission: it is a repeat, not a new job."""
        return (session.tenant, message.submission) in self._state.submissions

    def find_submission(
        self,
        session: ClientSession,
        message: Submit,
        then: Callable[[past.KnownSubmission | None], None],
    ) -> None:
        """What the journal knows of a submission id, where the state does not know enough.

        An id that cannot be used again is refused from here: only the journal has the content of
        an ended job, and with it the first difference. A client that left meanwhile is forgotten:
        it submits again when it is back.
        """
        tenant, submission, state = session.tenant, message.submission, self._state
        token = session.token
        held = state.submissions.get((tenant, submission))
        if held is None:
            is_asked = state.has_past
        else:
            is_asked = held[0] not in state.jobs and held[1] != content_digest(message.spec)
        if message.is_dry_run or not is_asked:
            then(None)
            return

        def arrived(known: past.KnownSubmission | None) -> None:
            if session.token != token:
                return
            error = None if known is None else _unusable(known, message)
            if known is not None and error is not None:
                self.refuse(session, message.request, error, known.job)
            else:
                then(known)

        def failed(error: Exception) -> None:
            text = f"the journal is damaged where submissions are looked up: {error}"
            self.refuse(session, message.request, RemoteError("INTERNAL", text), 0)

        self._when_durable(
            lambda: self._reader.ask(
                lambda db: past.find_submission(db, tenant, submission), arrived, failed
            )
        )

    def find_past(self, session: ClientSession, request: int, job: int) -> None:
        """A request about a job that the state does not have: one that is over needs no more."""

        def arrived(found: past.PastJob | None) -> None:
            if found is None or found.status is None:
                self._unknown(session, request, job)
            elif request:
                self._mailbox.send(session.peer, [encode(Answer(request))])

        tenant = session.tenant
        self._reader.ask(
            lambda db: past.find_job(db, tenant, job),
            arrived,
            lambda _: self._unknown(session, request, job),
        )

    # ------------------------------------------------------------ jobs

    def _jobs(self, session: ClientSession, message: Ask) -> None:
        tenant, limit = session.tenant, message.limit

        def then(cards: list[JobStatus]) -> None:
            recorded = {card.job: card for card in cards}
            now_ms = self._clock()[0]
            numbers = set(recorded)
            newest = itertools.islice(reversed(self._state.jobs.values()), ROWS_MAX)
            numbers.update(job.number for job in newest if job.tenant.name == tenant)
            answer = []
            for number in sorted(numbers, reverse=True)[:limit]:
                found = find_status(self._state, number, now_ms)
                answer.append(found[1] if found is not None else recorded[number])
            self._say(session, message.request, answer)

        self._read(session, message.request, lambda db: past.list_jobs(db, tenant, limit), then)

    def _job(self, session: ClientSession, message: Ask) -> None:
        card = self._live(session, message.job)
        if card is not None:
            self._say(session, message.request, card)
            return
        self._past(
            session, message, lambda found: self._say(session, message.request, found.status)
        )

    def _past(
        self, session: ClientSession, message: Ask, then: Callable[[past.PastJob], None]
    ) -> None:
        def arrived(found: past.PastJob | None) -> None:
            if found is None or found.status is None:
                self._unknown(session, message.request, message.job)
            else:
                then(found)

        tenant, job = session.tenant, message.job
        self._read(session, message.request, lambda db: past.find_job(db, tenant, job), arrived)

    def _with_job(self, session: ClientSession, message: Ask, then: Callable[[], None]) -> None:
        if self._live(session, message.job) is not None:
            then()
        else:
            self._past(session, message, lambda _: then())

    def _why(self, session: ClientSession, message: Ask) -> None:
        if self._live(session, message.job) is not None:
            answer = why(self._state, message.job, self._clock()[0])
            if answer is not None:
                answer = self._add_rate(session, answer)
                self._say(session, message.request, answer)
                return

        def then(found: past.PastJob) -> None:
            status = found.status
            assert status is not None
            answer = WhyAnswer(message.job, status.state, ended_text(status), [])
            self._say(session, message.request, answer)

        self._past(session, message, then)

    def _add_rate(self, session: ClientSession, answer: WhyAnswer) -> WhyAnswer:
        """A job whose inputs wait because a key of its tenant is over its rate."""
        job = self._state.jobs.get(answer.job)
        held = None
        if self.gate is not None and job is not None and not job.is_closed:
            held = self.gate.held(session.tenant, self._clock()[0])
        if held is None:
            return answer
        name, rate = held
        change = "wait, it goes on by itself; or ask the operator for more (gristmill limits)"
        reason = Reason("rate", f"more of the key {name!r}", f"at its rate of {rate}", 0, 0, change)
        summary = answer.summary
        if summary == WAITING_FOR_INPUTS:
            summary = f"RATE_LIMITED: {summary}; the key {name!r} is at its rate of {rate}"
        return msgspec.structs.replace(answer, summary=summary, reasons=[reason, *answer.reasons])

    def _limits(self, session: ClientSession, message: Ask) -> None:
        public = "" if session.is_operator else session.public
        state, rows = self._state, []
        if self.gate is not None:
            rows = self.gate.rows(public, self._clock()[0], state.tenants, state.config)
        self._say(session, message.request, rows)

    def _subtasks(self, session: ClientSession, message: Ask) -> None:
        job, first, limit, wanted = message.job, message.first, message.limit, message.text
        if wanted not in ("", "waiting", "ready", "leased", "done", "failed", "cancelled"):
            raise RemoteError("MALFORMED", f"text is {wanted!r:.40}: not a state of a subtask")

        def read(_: Any = None) -> None:
            # Memory now, the journal after it: what ends in between is in both, not in neither.
            rows = {row.index: row for row in subtask_rows(self._state, job, first, limit, wanted)}

            def then(ended: list[SubtaskRow]) -> None:
                rows.update((row.index, row) for row in ended)
                self._say(session, message.request, [rows[index] for index in sorted(rows)][:limit])

            if wanted in ("waiting", "ready", "leased"):
                then([])
                return
            self._read(
                session,
                message.request,
                lambda db: past.subtasks(db, job, first, limit, wanted),
                then,
            )

        if self._live(session, job) is not None:
            read()
        else:
            self._past(session, message, read)

    def _logs(self, session: ClientSession, message: Ask) -> None:
        job, first, limit = message.job, message.first, min(message.limit, LOG_ROWS_MAX)

        def read(_: Any = None) -> None:
            current = current_leases(self._state, job)
            self._read(
                session,
                message.request,
                lambda db: past_logs.logs(db, job, first, limit, current),
                lambda rows: self._say(session, message.request, rows),
            )

        if self._live(session, job) is not None:
            read()
        else:
            self._past(session, message, read)

    def _manifest(self, session: ClientSession, message: Ask) -> None:
        job, after, limit = message.job, message.first, message.limit

        def read(_: Any = None) -> None:
            self._read(
                session,
                message.request,
                lambda db: past.manifest(db, job, after, limit),
                lambda rows: self._say(session, message.request, rows),
            )

        if self._live(session, job) is not None:
            read()
        else:
            self._past(session, message, read)

    def _decomposed(self, session: ClientSession, message: Ask) -> None:
        """The jobs that serve the same decomposed request, newest first.

        Their ``parent`` made the list.
        """
        tenant, digest = session.tenant, message.text or message.digest
        self._read(
            session,
            message.request,
            lambda db: past.find_requested(db, tenant, digest),
            lambda cards: self._say(session, message.request, cards),
        )

    # ------------------------------------------------------------ prices

    def _tariffs(self, session: ClientSession, message: Ask) -> None:
        self._say(session, message.request, self._grid_tariffs)

    def _terms(self, session: ClientSession, message: Ask) -> None:
        job = self._state.jobs.get(message.job)
        if job is not None and job.tenant.name == session.tenant:
            self._say(session, message.request, JobTerms(job.spec, job.tariffs))
            return

        def then(found: past.PastJob) -> None:
            spec = found.record.spec
            free = spec.tariff == "zero"
            terms = JobTerms(spec, ZERO_TARIFFS if free else found.record.tariffs)
            self._say(session, message.request, terms)

        self._past(session, message, then)

    def _history(self, session: ClientSession, message: Ask) -> None:
        """Cards of ended jobs of the tenant that ran this work, newest first."""
        tenant, limit = session.tenant, message.limit
        if not is_digest(message.text):
            raise RemoteError("MALFORMED", f"text is {message.text!r:.80}, must be 64 hex digits")
        work = bytes.fromhex(message.text)
        self._read(
            session,
            message.request,
            lambda db: past.find_same_work(db, tenant, work, limit),
            lambda cards: self._say(session, message.request, cards),
        )

    # ------------------------------------------------------------ results

    def subscribe(self, session: ClientSession, message: Subscribe) -> None:
        """Starts a subscription: of an unfinished job at once, of a past one after a look."""
        flow = self._delivery.find(message.job)
        if flow is not None:
            if flow.tenant != session.tenant:
                self._unknown(session, message.request, message.job)
                return
            self._begin(session, message, flow)
            return
        tenant, job = session.tenant, message.job

        def arrived(found: past.PastJob | None) -> None:
            if found is None or found.status is None:
                self._unknown(session, message.request, job)
                return
            results = max(found.status.results, found.results_last)
            expires_ms = found.status.finished_ms + found.record.spec.retention_s * 1_000
            is_final = found.status.state in FINAL_JOB_STATES
            is_over = is_final and expires_ms <= self._clock()[1]
            if is_over or (found.results_last == 0 and message.after < results):
                text = f"the results of {format_job(job)} were kept until {format_utc(expires_ms)}"
                text += "" if is_over else " at most, and freed once they were read"
                text += f"; its content has the digest {content_digest(found.record.spec).hex()}"
                self.refuse(session, message.request, RemoteError("EXPIRED", text), job)
                return
            if found.status.state not in FINAL_JOB_STATES:
                # Not in the state, and its last card is not final: its row did not survive a start.
                text = f"{format_job(job)} is damaged on the broker's disk and was not taken up"
                self.refuse(session, message.request, RemoteError("INTERNAL", text), job)
                return
            flow = self._delivery.find(job)
            if flow is None:
                spec = found.record.spec
                flow = Flow(job, tenant, spec.keep, spec.is_durable, results)
                flow.status = found.status
                self._delivery.open(flow)
            self._begin(session, message, flow)

        self._read(session, message.request, lambda db: past.find_job(db, tenant, job), arrived)

    def _begin(self, session: ClientSession, message: Subscribe, flow: Flow) -> None:
        if not session.token:
            return  # it left while the journal was read
        self._mailbox.send(session.peer, [encode(Answer(message.request))])
        found = find_status(self._state, flow.job, self._clock()[0])
        if flow.status is None and found is not None:
            self._when_durable(lambda: self._delivery.tell_first(flow, found[1]))
        self._delivery.subscribe(
            session, flow, message.after, message.bytes_allowed, message.request
        )

    # ------------------------------------------------------------ workers, grid, money, grants

    def _worker_rows(self, session: ClientSession, message: Ask) -> None:
        rows: list[WorkerRow] = []
        now_ms = self._clock()[0]
        for worker in itertools.islice(self._workers, message.limit):
            row = worker_row(self._state, worker.number, now_ms)
            if row is not None:
                rows.append(
                    msgspec.structs.replace(
                        row,
                        version=worker.hello.version,
                        seen_ms=worker.seen_utc_ms,
                        reading=worker.reading,
                    )
                )
        self._say(session, message.request, rows)

    def _grid(self, session: ClientSession, message: Ask) -> None:
        self._say(session, message.request, self._figures())

    def _grant(self, session: ClientSession, message: Ask) -> None:
        answer = self._grants.answer(
            session.tenant, message.text, message.digest, message.size_bytes, self._clock()[1]
        )
        self._say(session, message.request, answer)
