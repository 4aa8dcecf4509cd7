"""The start after a stop or a crash: facts from the journal's tables, for the core to rebuild.

Nothing here refuses to start. A row whose checksum does not fit is put into ``quarantine`` and
named in the log: a damaged job is left out, a damaged result is voided (its subtasks run again), a
damaged parcel ends its subtasks when they are handed out, a damaged outbox entry leaves a filler.
"""

import dataclasses
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import apsw
import msgspec

from gristmill.broker import records, schema
from gristmill.broker.core import journal_names as names
from gristmill.broker.core.effects import AnyEffect
from gristmill.broker.core.recovery import JobFact, ParcelFact, ResultFact, rebuild
from gristmill.broker.core.state import Config, State
from gristmill.broker.journal import Journal
from gristmill.broker.metrics import Metrics
from gristmill.wire.client import FINAL_JOB_STATES, JobStatus, Results
from gristmill.wire.errors import RemoteError
from gristmill.wire.failure import unpack_failures
from gristmill.wire.frames import encode
from gristmill.wire.meter import pack_meter, unpack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.worker import ResultHead

log = logging.getLogger("gristmill.broker.replay")

_decode_json = msgspec.json.Decoder().decode


@dataclasses.dataclass(frozen=True, slots=True)
class LiveJob:
    """An unfinished job: its row, and the sequence of its last result."""

    record: records.JobRecord
    results: int


@dataclasses.dataclass(frozen=True, slots=True)
class Recovered:
    """What a start begins with."""

    state: State
    effects: list[AnyEffect]
    jobs: list[LiveJob]
    nodes: dict[str, str]
    outbox_acked: int
    outbox_last: int


def recover(
    journal: Journal, config: Config, now_ms: int, now_utc_ms: int, metrics: Metrics
) -> Recovered:
    """Everything that the journal has, before the first event; see the module's text."""
    replay = _Replay(journal, now_utc_ms, metrics)
    try:
        facts = replay.facts()
        state, effects = rebuild(config, journal.incarnation, facts, now_ms, now_utc_ms)
        replay.finish_deletions(state)
        nodes = dict(replay.rows("nodes", "SELECT name, node FROM nodes"))
        meta = dict(replay.rows("meta", "SELECT key, value FROM meta"))
        acked = int(meta.get("outbox_acked", 0))
        last = max([row[0] for row in replay.rows("outbox", _LAST_ENTRY)], default=0)
        replay.check_outbox()
        state.job_counter = max(state.job_counter, replay.last_job)
    finally:
        replay.close()
    log.info(
        "journal incarnation=%d broker=%s unfinished=%d jobs=%d",
        journal.incarnation, journal.broker, len(state.jobs), replay.seen,
    )  # fmt: skip
    return Recovered(state, effects, replay.live, nodes, acked, max(acked, last))


_LAST_ENTRY = "SELECT ifnull(max(sequence), 0) FROM outbox"
_INTENTS = (
    names.HOLD_GRANTED, names.HOLD_REFUSED, names.UPLOAD_CLOSED, names.CANCEL_ASKED,
    names.PAUSED, names.RESUMED, names.CAP_REACHED,
)  # fmt: skip


class _Replay:
    """Reads by a connection of its own, before the loop runs; writes by the journal's groups."""

    def __init__(self, journal: Journal, now_utc_ms: int, metrics: Metrics) -> None:
        self._journal = journal
        self._now_utc_ms = now_utc_ms
        self._metrics = metrics
        self._connection = apsw.Connection(
            str(journal.path), flags=apsw.SQLITE_OPEN_READONLY, vfs=journal.vfs
        )
        self._connection.set_busy_timeout(10_000)
        self.live: list[LiveJob] = []
        self.seen = 0
        self.last_job = 0

    def close(self) -> None:
        self._connection.close()

    def rows(self, table: str, query: str, bindings: Any = ()) -> Iterator[Any]:
        """The rows of a query, as far as the file can be read."""
        try:
            yield from self._connection.execute(query, bindings)
        except apsw.CorruptError as error:
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

    # ------------------------------------------------------------ jobs

    def facts(self) -> Iterator[JobFact]:
        """Every job of the journal, in order."""
        statuses = self._statuses()
        for (job,) in list(self.rows("jobs", "SELECT job FROM jobs ORDER BY job")):
            self.last_job = max(self.last_job, job)
            for row in self.rows(
                "jobs", f"SELECT {records.JOB_COLUMNS} FROM jobs WHERE job = ?", (job,)
            ):
                try:
                    record = records.read_job(row)
                except records.DamagedError as error:
                    self.quarantine(error)
                    continue
                self.seen += 1
                yield self._fact(record, statuses.get(job))

    def _statuses(self) -> dict[int, JobStatus]:
        found: dict[int, JobStatus] = {}
        for row in self.rows("job_states", f"SELECT {records.STATE_COLUMNS} FROM job_states"):
            try:
                found[row[0]] = records.read_state(row)
            except records.DamagedError as error:
                self.quarantine(error)
        return found

    def _fact(self, record: records.JobRecord, status: JobStatus | None) -> JobFact:
        job = record.job
        is_final = status is not None and status.state in FINAL_JOB_STATES
        fact = JobFact(
            job=job,
            tenant=record.tenant,
            submission=record.submission,
            spec=record.spec,
            tariff=record.tariff,
            submitted_utc_ms=record.submitted_ms,
            status=status,
        )
        if is_final:
            return fact
        results = list(self._results(job))
        self.live.append(LiveJob(record, max((one.sequence for one in results), default=0)))
        return dataclasses.replace(
            fact, parcels=self._parcels(job), results=results, **self._intent(job)
        )

    def _intent(self, job: int) -> dict[str, Any]:
        marks = ",".join("?" * len(_INTENTS))
        found: dict[str, Any] = {}
        runs: list[Any] = []
        for name, text in self.rows(
            "events",
            f"SELECT name, detail FROM events WHERE job = ? AND name IN ({marks}) ORDER BY seq",
            (job, *_INTENTS),
        ):
            detail = _decode_json(text)
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
            else:
                found["is_capped"] = True
        return found | {"cancelled_runs": runs}

    def _parcels(self, job: int) -> Iterable[ParcelFact]:
        expected = 0
        for first, count, codec, size in self.rows(
            "parcels",
            "SELECT first, count, codec, length(body) FROM parcels WHERE job = ? ORDER BY first",
            (job,),
        ):
            if first != expected:
                log.error("journal job=%d has no parcel at %d: the client sends it again",
                          job, expected)  # fmt: skip
                return
            expected = first + count
            yield ParcelFact(first, count, codec, size)

    # ------------------------------------------------------------ results

    def _results(self, job: int) -> Iterator[ResultFact]:
        for row in self.rows(
            "results",
            f"SELECT {records.RESULT_COLUMNS}, first, count, attempt, wall_us, cpu_us, peak_kib,"
            " amount_ucredits FROM results WHERE job = ? ORDER BY sequence",
            (job,),
        ):
            sequence, payload = row[1], row[4]
            first, count, attempt, wall_us, cpu_us, peak_kib, amount = row[8:]
            try:
                header, _, meter_frame, failures, _ = records.read_result(row[:8])
                message = records.decode_header(header)
                meter = unpack_meter(meter_frame, count)
            except (records.DamagedError, RemoteError, msgspec.DecodeError) as fault:
                error = records.DamagedError("results", f"{job}/{sequence}", str(fault))
                self.quarantine(error, bytes(payload))
                self._void(job, sequence, first, count, attempt)
                # Nothing of it ended: its subtasks are tried again, as if they had been lost.
                again = [(first, count)]
                yield ResultFact(sequence, first, count, attempt, bytes([Outcome.SETUP]), again)
                continue
            yield ResultFact(
                sequence, first, count, attempt,
                meter.outcome or bytes([meter.uniform]),
                [(first + start, length) for start, length in message.not_final],
                amount, wall_us, cpu_us, peak_kib,
                _first_message(failures) if message.head.number == 0 else "",
            )  # fmt: skip

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

    def check_outbox(self) -> None:
        """Names entries that are damaged; they are sent as fillers."""
        for row in self.rows("outbox", f"SELECT {records.ENTRY_COLUMNS} FROM outbox"):
            try:
                records.read_entry(row)
            except records.DamagedError as error:
                self.quarantine(error, bytes(row[3]))

    def finish_deletions(self, state: State) -> None:
        """Parcels of jobs that are over, which a crash left behind."""
        for (job,) in list(self.rows("parcels", "SELECT DISTINCT job FROM parcels")):
            if job not in state.jobs:
                self._journal.add_chore(schema.DROP_PARCELS, (job,))


def _first_message(failures: bytes) -> str:
    try:
        found = unpack_failures(failures)
    except RemoteError:
        return ""
    return found[0][1].message if found else ""
