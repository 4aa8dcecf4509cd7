"""The start after a stop or a crash: facts from the journal's tables, for the core to rebuild.

Only unfinished jobs are read (``open_jobs``), each table once and in order of job, so a start costs
what is unfinished and not what was ever done; past jobs are looked up when somebody asks.

Nothing here refuses to start. A row whose checksum does not fit is put into ``quarantine`` and
named in the log: a damaged job is left out, a damaged result is voided (its subtasks run again), a
damaged parcel ends its subtasks when they are handed out, a damaged outbox entry leaves a filler.
"""

import dataclasses
import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any

import apsw

from gristmill.broker import bodies, catalog, checkpoints, records, salvage, schema
from gristmill.broker.core import journal_names as names
from gristmill.broker.core.checks import Standing, Vote
from gristmill.broker.core.effects import AnyEffect
from gristmill.broker.core.events import Canary
from gristmill.broker.core.recovery import JobFact, ParcelFact, ResultFact, rebuild
from gristmill.broker.core.state import Config, State
from gristmill.broker.countersigning import KEY_TOLD
from gristmill.broker.journal import Journal
from gristmill.broker.metrics import Metrics
from gristmill.wire.client import FINAL_JOB_STATES, JobStatus, Results
from gristmill.wire.frames import encode
from gristmill.wire.ledger import Contribution
from gristmill.wire.limits import PARCEL_BYTES_MAX
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.worker import ResultHead

log = logging.getLogger("gristmill.broker.replay")

FUNCTIONS_BYTES = 32 << 20  #: functions kept from the start on; others are read when needed
SHARE = "share:"  #: before a tenant's name: key of its share in ``meta``
PROGRESS_ROWS = 256  #: rows between two calls of ``progress``


@dataclasses.dataclass(frozen=True, slots=True)
class LiveJob:
    """An unfinished job: its row (perhaps without its function's bytes), and its results.

    ``results``: sequence of its last result; ``freed``: up to here they have left the disk.
    """

    record: records.JobRecord
    results: int
    freed: int


@dataclasses.dataclass(frozen=True, slots=True)
class Recovered:
    """What a start begins with.

    ``last_row``: the newest result's rowid. ``held``: contributions of results that are not
    decided, by job and sequence. ``workers``: who was there when the broker ended.
    """

    state: State
    effects: list[AnyEffect]
    jobs: list[LiveJob]
    nodes: dict[str, str]
    outbox_acked: int
    outbox_last: int
    key_told: str
    last_row: int
    workers: list[str]
    held: dict[tuple[int, int], Contribution]


def recover(
    journal: Journal,
    config: Config,
    now_ms: int,
    now_utc_ms: int,
    metrics: Metrics,
    progress: Callable[[int], None] = lambda rows: None,
) -> Recovered:
    """Everything unfinished that the journal has, before the first event; see the module's text.

    A file that cannot be read somewhere is salvaged, and read again. ``progress`` is called now and
    then with the rows read so far.
    """
    given = journal, config, now_ms, now_utc_ms, metrics, progress
    try:
        return _recover(*given, is_strict=True)
    except salvage.DAMAGED as error:
        log.critical("journal damaged file=%s error=%r: salvaged first", journal.path, error)
    metrics.journal_salvaged += 1
    journal.salvage()
    return _recover(*given, is_strict=False)


def _recover(
    journal: Journal,
    config: Config,
    now_ms: int,
    now_utc_ms: int,
    metrics: Metrics,
    progress: Callable[[int], None],
    is_strict: bool,
) -> Recovered:
    replay = _Replay(journal, now_utc_ms, metrics, progress, is_strict)
    was_collecting = gc.isenabled()
    gc.disable()  # nothing is garbage here, and there is much to look through
    try:
        workers = [row[0] for row in replay.rows("live_workers", "SELECT name FROM live_workers")]
        meta = dict(replay.rows("meta", "SELECT key, value FROM meta"))
        shares = {
            key.removeprefix(SHARE): float(value)
            for key, value in meta.items()
            if key.startswith(SHARE)
        }
        state, effects = rebuild(
            config, journal.incarnation, replay.facts(), now_ms, now_utc_ms, workers, shares,
            replay.standings(meta),
        )  # fmt: skip
        replay.finish_deletions(state)
        nodes = dict(replay.rows("nodes", "SELECT name, node FROM nodes"))
        for key in meta:
            if key not in _META and not key.startswith(_META_OF):
                replay.quarantine(records.DamagedError("meta", key, "no key of ours"))
        acked, last = replay.outbox(meta.get("outbox_acked"))
        state.job_counter = max(
            [state.job_counter, *(row[0] for row in replay.rows("jobs", _LAST_JOB))]
        )
        state.has_past = state.job_counter > 0
        last_row = max([row[0] for row in replay.rows("results", _LAST_ROW)], default=0)
    finally:
        replay.close()
        if was_collecting:
            gc.enable()
    log.info(
        "journal incarnation=%d broker=%s unfinished=%d jobs=%d rows=%d",
        journal.incarnation, journal.broker, len(state.jobs), state.job_counter, replay.read,
    )  # fmt: skip
    told = meta.get(KEY_TOLD)
    told = told if isinstance(told, str) else ""
    return Recovered(
        state, effects, replay.live(), nodes, acked, last, told, last_row, workers,
        replay.held,
    )  # fmt: skip


_META = frozenset(
    {"schema_version", "broker", "incarnation", "outbox_acked", KEY_TOLD, catalog.SEAL}
)
_META_OF = (SHARE, bodies.KEY, records.STANDING)
_ENTRIES = f"SELECT {records.ENTRY_COLUMNS} FROM outbox ORDER BY sequence"
_LAST_ROW = "SELECT ifnull(max(rowid), 0) FROM results"
_LAST_JOB = (
    "SELECT max((SELECT ifnull(max(job), 0) FROM jobs),"
    " (SELECT ifnull(max(job), 0) FROM tombstones))"
)
_INTENTS = (
    names.HOLD_GRANTED, names.HOLD_REFUSED, names.UPLOAD_CLOSED, names.CANCEL_ASKED,
    names.PAUSED, names.RESUMED, names.CAP_NOTICE, names.CAP_REACHED,
    names.LEASE_RESCUED, names.RESULT_HELD, names.RESULT_SETTLED, names.RESULT_UNPAID,
    names.CANARY_SET,
)  # fmt: skip

# Of unfinished jobs, in order of job: (job, ...) each.
_OPEN = "FROM open_jobs o CROSS JOIN"
_JOBS = f"SELECT {records.JOB_COLUMNS} {_OPEN} jobs r USING(job) ORDER BY o.job"
_GONE = "SELECT job FROM open_jobs WHERE job NOT IN (SELECT job FROM jobs)"
_STATES = f"SELECT {records.STATE_COLUMNS} {_OPEN} job_states r USING(job) ORDER BY o.job"
_CHECKPOINTS = f"SELECT job, upto, crc, body {_OPEN} checkpoints r USING(job) ORDER BY o.job"
_PARCELS = f"SELECT {records.PARCEL_HEAD} {_OPEN} parcels r USING(job) ORDER BY o.job, r.first"
_PARCEL = f"SELECT {records.PARCEL_COLUMNS} FROM parcels WHERE rowid = ?"
_PARCELS_OF = f"SELECT {records.PARCEL_HEAD} FROM parcels r WHERE job = ?"
_RESULTS = (
    f"SELECT {checkpoints.FACT_COLUMNS} {_OPEN} results r USING(job) ORDER BY o.job, r.sequence"
)
_EVENTS = (
    f"SELECT {records.EVENT_COLUMNS} {_OPEN} events r USING(job)"
    f" WHERE name IN ({','.join('?' * len(_INTENTS))}) ORDER BY o.job, r.seq"
)
_LEFT_PARCELS = (
    "WITH RECURSIVE t(job) AS (SELECT min(job) FROM parcels UNION ALL"
    " SELECT (SELECT min(job) FROM parcels WHERE job > t.job) FROM t WHERE t.job IS NOT NULL)"
    " SELECT job FROM t WHERE job IS NOT NULL"
)


class _ByJob:
    """Rows in order of job, given out job by job."""

    def __init__(self, rows: Iterator[Any]) -> None:
        self._rows = rows
        self._next = next(rows, None)

    def take(self, job: int) -> Iterator[Any]:
        """The rows of this job; rows of jobs before it are passed over."""
        while self._next is not None and self._next[0] < job:
            self._next = next(self._rows, None)
        while self._next is not None and self._next[0] == job:
            row, self._next = self._next, next(self._rows, None)
            yield row


class _Replay:
    """Reads by a connection of its own, before the loop runs; writes by the journal's groups."""

    def __init__(
        self,
        journal: Journal,
        now_utc_ms: int,
        metrics: Metrics,
        progress: Callable[[int], None],
        is_strict: bool,
    ) -> None:
        self._is_strict = is_strict
        self._journal = journal
        self._now_utc_ms = now_utc_ms
        self._metrics = metrics
        self._progress = progress
        self._connection = apsw.Connection(
            str(journal.path), flags=apsw.SQLITE_OPEN_READONLY, vfs=journal.vfs
        )
        self._connection.set_busy_timeout(10_000)
        bodies.register(self._connection, journal.path.parent)
        self._records: list[records.JobRecord] = []
        self._functions_bytes = 0
        self._upto: dict[int, int] = {}
        self._freed: dict[int, int] = {}
        self._checkpoints: dict[int, checkpoints.Checkpoint] = {}  # until its results are read
        self._gone: dict[int, int] = {}  # job to the end of its parcels that have left
        self.held: dict[tuple[int, int], Contribution] = {}
        self.read = 0

    def close(self) -> None:
        self._connection.close()

    def rows(self, table: str, query: str, bindings: Any = ()) -> Iterator[Any]:
        """The rows of a query, as far as the file can be read (raises there if ``is_strict``)."""
        try:
            cursor = self._connection.execute(query, bindings)
            while True:
                try:
                    row = next(cursor)
                except StopIteration:
                    return
                except UnicodeDecodeError as error:  # the cursor is behind that row
                    self._metrics.rows_quarantined += 1
                    log.error("journal damaged table=%s: a row is left out: %s", table, error)
                    continue
                self.read += 1
                if not self.read % PROGRESS_ROWS:
                    self._progress(self.read)
                yield row
        except salvage.DAMAGED as error:
            if self._is_strict:
                raise
            self._metrics.rows_quarantined += 1
            log.critical(
                "journal damaged table=%s error=%s: what lies behind is not read; "
                "'sqlite3 %s .recover' may save it",
                table, error, self._journal.path,
            )  # fmt: skip

    def quarantine(self, error: records.DamagedError, body: bytes = b"") -> None:
        """Names a damaged row, once."""
        self._metrics.rows_quarantined += 1
        log.error("journal quarantined table=%s row=%s: %s", error.table, error.key, error.reason)
        row = (error.table, error.key, error.reason, self._now_utc_ms, body)
        self._journal.record("quarantine", schema.ADD_QUARANTINE, row, len(body) + 256)

    def standings(self, meta: dict[str, Any]) -> dict[str, Standing]:
        """What is known of nodes; one that cannot be read is checked from the beginning."""
        found = {}
        for key, value in meta.items():
            if key.startswith(records.STANDING):
                try:
                    node, standing = records.read_standing(key, value)
                except records.DamagedError as error:
                    self.quarantine(error)
                else:
                    found[node] = standing
        return found

    def live(self) -> list[LiveJob]:
        """The jobs that were given out as facts and are unfinished."""
        return [
            LiveJob(record, self._upto.get(record.job, 0), self._freed.get(record.job, 0))
            for record in self._records
        ]

    # ------------------------------------------------------------ jobs

    def facts(self) -> Iterator[JobFact]:
        """Every unfinished job of the journal, in order; each is used before the next is asked."""
        states = _ByJob(self.rows("job_states", _STATES))
        self._events = _ByJob(self.rows("events", _EVENTS, _INTENTS))
        self._parcel_rows = _ByJob(self.rows("parcels", _PARCELS))
        self._checkpoint_rows = _ByJob(self.rows("checkpoints", _CHECKPOINTS))
        self._result_rows = _ByJob(self.rows("results", _RESULTS))
        for row in self.rows("jobs", _JOBS):
            try:
                record = records.read_job(row)
            except records.DamagedError as error:
                self.quarantine(error)
                continue
            yield self._fact(record, self._status(states, record.job))
        for (job,) in self.rows("jobs", _GONE):
            self.quarantine(records.DamagedError("jobs", f"{job}", "its row is gone"))

    def _status(self, states: _ByJob, job: int) -> JobStatus | None:
        status = None
        for row in states.take(job):
            try:
                status = records.read_state(row)
            except records.DamagedError as error:
                self.quarantine(error)
        return status

    def _fact(self, record: records.JobRecord, status: JobStatus | None) -> JobFact:
        job = record.job
        fact = JobFact(
            job=job,
            tenant=record.tenant,
            submission=record.submission,
            spec=record.spec,
            tariffs=record.tariffs,
            submitted_utc_ms=record.submitted_ms,
            status=status,
        )
        if status is not None and status.state in FINAL_JOB_STATES:
            # Its last card says so, and with that it left the list: a number was changed, and the
            # job whose number that was is missed soon (``past.find_missed``).
            self.quarantine(records.DamagedError("open_jobs", f"{job}", "that job is over"))
            self._journal.record("open_jobs", schema.DROP_OPEN, (job,), 16)
            return fact
        self._functions_bytes += len(record.function)
        self._read_checkpoint(job)
        is_kept = self._functions_bytes <= FUNCTIONS_BYTES
        self._records.append(record if is_kept else record._replace(function=b""))
        return dataclasses.replace(
            fact,
            parcels=self._parcels(job, status),
            results=self._results(job),
            **self._intent(job),
        )

    def _intent(self, job: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        runs: list[Any] = []
        losses: list[tuple[int, int]] = []
        votes: dict[int, tuple[int, Vote]] = {}
        unpaid: list[tuple[int, int]] = []
        for row in self._events.take(job):
            try:
                name, detail = records.read_event(row)
            except records.DamagedError as error:
                self.quarantine(error)
                continue
            if name == names.HOLD_GRANTED:
                found["is_hold_granted"] = True
            elif name == names.HOLD_REFUSED:
                found["refusal"] = (detail["code"], detail["message"])
            elif name == names.UPLOAD_CLOSED:
                found["closed_at"] = detail["count"]
            elif name == names.CANCEL_ASKED:
                asked = [(start, length) for start, length in detail.get("runs", ())]
                runs += asked
                found["is_cancelled"] = found.get("is_cancelled", False) or not asked
            elif name == names.PAUSED:
                found["pause_reason"] = detail.get("reason") or "paused"
            elif name == names.RESUMED:
                found.pop("pause_reason", None)
                found["failed_at_resume"] = detail.get("failed", 0)
            elif name == names.CAP_NOTICE:
                percent = detail.get("percent", 0)
                found["noticed_percent"] = max(found.get("noticed_percent", 0), percent)
            elif name == names.CANARY_SET:
                found["canary"] = Canary(detail["node"], bytes.fromhex(detail["digest"]))
            elif name == names.RESULT_HELD:
                subtask, vote, entry = records.read_vote(detail)
                votes[vote.sequence] = subtask, vote
                if entry is not None:
                    self.held[job, vote.sequence] = entry
            elif name == names.RESULT_SETTLED:
                votes.pop(detail["sequence"], None)
                self.held.pop((job, detail["sequence"]), None)
            elif name == names.RESULT_UNPAID:
                count = sum(length for _, length in detail["runs"])
                unpaid.append((count, detail["amount_ucredits"]))
            elif name == names.LEASE_RESCUED:
                found.setdefault("rescued", []).append(detail["lease"])
                if detail.get("cut", -1) >= 0:
                    losses.append((detail["cut"], detail.get("attempt", 0)))
            else:
                found["is_capped"] = True
        return found | {
            "cancelled_runs": runs,
            "losses": losses,
            "votes": list(votes.values()),
            "unpaid": unpaid,
        }

    def _parcels(self, job: int, status: JobStatus | None) -> Iterator[ParcelFact]:
        expected, ended = 0, self._ended_before(job)
        for row in self._parcel_rows.take(job):
            _, first, count, codec, size, *_ = row
            if not self._is_placed(row):
                continue
            if first == records.FREED_AT:
                expected = self._gone[job] = count
                yield ParcelFact(0, count, "", records.freed_bytes(codec), True)
                continue
            if first < expected:
                continue  # on its way out when the broker ended
            if not expected and 0 < first <= ended:
                expected = first
                yield self._gone_unsaid(job, first)
            if first != expected:
                log.error("journal job=%d has no parcel at %d: the client sends it again",
                          job, expected)  # fmt: skip
                return
            expected = first + count
            yield ParcelFact(first, count, codec, size)
        if not expected and ended:
            expected = ended
            yield self._gone_unsaid(job, ended)
        if status is not None and expected < status.uploaded:
            log.error("journal damaged job=%d has parcels up to %d of %d: the client sends the rest"
                      " again", job, expected, status.uploaded)  # fmt: skip

    def _ended_before(self, job: int) -> int:
        """The first subtask that the job's checkpoint does not say has ended; 0 without one."""
        checkpoint = self._checkpoints.get(job)
        return 0 if checkpoint is None else checkpoints.ended_before(checkpoint)

    def _gone_unsaid(self, job: int, upto: int) -> ParcelFact:
        """Parcels that have left, although the row that said so is damaged.

        Of as many bytes as may have been: else their client would wait for credit.
        """
        self._gone[job] = upto
        return ParcelFact(0, upto, "", upto * PARCEL_BYTES_MAX, True)

    def _is_placed(self, row: records.Row) -> bool:
        """Whether a parcel is one of its job's; if not, it makes room for the right one."""
        if records.is_parcel_placed(row):
            return True
        error = records.DamagedError(
            "parcels", f"{row[0]}/{row[1]}", "the checksum of its columns does not fit"
        )
        for whole in list(self.rows("parcels", _PARCEL, (row[-1],))):
            try:
                records.read_parcel(whole)  # that of its body covers them, too
            except records.DamagedError:
                continue
            self.quarantine(error)
            return True
        self.quarantine(error)
        self._journal.record("parcels", schema.DROP_PARCEL, (row[-1],), 32)
        return False

    # ------------------------------------------------------------ results

    def _read_checkpoint(self, job: int) -> None:
        for row in self._checkpoint_rows.take(job):
            self._upto[job] = self._freed[job] = row[1]
            try:
                self._checkpoints[job] = checkpoints.read_checkpoint(row)
            except records.DamagedError as error:
                self.quarantine(error, bytes(row[3]))

    def _results(self, job: int) -> Iterator[ResultFact]:
        checkpoint, freed = self._checkpoints.pop(job, None), self._freed.get(job, 0)
        if checkpoint is not None:
            yield from checkpoints.unfold(checkpoint)
        elif gone := self._gone.get(job, 0):
            # Inputs leave when their subtasks have ended and their results were read.
            log.error("journal damaged job=%d: how its first %d subtasks ended and what they cost"
                      " is not known; they count as done, at no cost", job, gone)  # fmt: skip
            yield ResultFact(freed, 0, gone, 1, bytes([Outcome.OK]))
        for row in self._result_rows.take(job):
            sequence = row[1]
            if sequence <= freed:
                continue  # on its way out when the broker ended; the checkpoint has it
            before = self._upto.get(job, 0)
            self._upto[job] = sequence
            try:
                yield checkpoints.read_fact(row)
            except checkpoints.DamagedReadingsError as error:
                self.quarantine(error)
                yield error.fact
            except records.StrayError as error:
                self.quarantine(error, row[3])
                self._upto[job] = before
                self._journal.record("results", schema.DROP_RESULT, (job, sequence), 32)
            except records.DamagedError as error:
                first, count, attempt = row[8:11]
                if not all(isinstance(value, int) for value in row[8:11]):
                    self.quarantine(error)  # not even what it was about is known
                    continue
                self.quarantine(error, row[4] if isinstance(row[4], bytes) else b"")
                self._void(job, sequence, first, count, attempt)
                # Nothing of it ended: its subtasks are tried again, as if they had been lost.
                again = [(first, count)]
                yield ResultFact(sequence, first, count, attempt, bytes([Outcome.SETUP]), again)

    def _void(self, job: int, sequence: int, first: int, count: int, attempt: int) -> None:
        """Puts a result in its place of which nothing is final: clients ignore such subtasks."""
        count = max(1, min(count, 1 << 27))
        head = ResultHead(0, 0, job, first, count, "m", 0, 0, 0, "none")
        header = encode(Results(job, sequence, head, attempt, "", [(0, count)]))
        frames = [b"", pack_meter(count, Outcome.SETUP), b"", b""]
        crc = records.result_crc(header, frames)
        row = (header, *frames, crc, job, sequence)
        self._journal.record("results", schema.VOID_RESULT, row, 512)

    # ------------------------------------------------------------ the rest

    def outbox(self, mark: Any) -> tuple[int, int]:
        """(what the ledger has, the last entry's number), from the rows and from ``mark``.

        A row whose number was changed has one that was free: of an entry that the ledger has, or
        behind the last. Its own place is a hole, or behind the last that is whole: a number is left
        out there, so that no new entry gets one that the ledger has seen.
        """
        strays: list[int] = []
        first, last = (self._first_whole(order, strays) for order in ("", " DESC"))
        acked = mark if isinstance(mark, int) and mark >= 0 else None
        if first is not None:
            # Entries leave when they are acked: those before the first that is there were; unless
            # one of them is it that was found elsewhere.
            if acked is None or not first - 1 - len(strays) <= acked < first:
                acked = first - 1
        elif acked is None:
            acked = max(strays, default=0)
        last = max(acked, last or 0)
        strays = [sequence for sequence in strays if not acked < sequence < last]
        last += len(strays)
        for sequence in strays:
            error = records.DamagedError("outbox", f"{sequence}", "no entry of this number")
            self.quarantine(error)
            self._journal.record("outbox", schema.DROP_ENTRY, (sequence,), 32)
        return acked, last

    def _first_whole(self, order: str, strays: list[int]) -> int | None:
        for row in self.rows("outbox", _ENTRIES + order):
            try:
                sequence, _, _ = records.read_entry(row)
            except records.DamagedError:
                if row[0] not in strays:
                    strays.append(row[0])
                continue
            return sequence
        return None

    def finish_deletions(self, state: State) -> None:
        """Parcels of jobs that are over, which a crash left behind."""
        for (job,) in list(self.rows("parcels", _LEFT_PARCELS)):
            if job not in state.jobs:
                for row in list(self.rows("parcels", _PARCELS_OF, (job,))):
                    self._is_placed(row)  # one of another job's may have strayed there: name it
                self._journal.add_chore(schema.DROP_PARCELS, (job,))
