"""The judge: what the files say, compared with what clients were promised.

It knows the tables by their names and columns (plain SQL) and the structs of the wire, nothing of
the code that wrote them. It reads copies or files at rest, never a running process's memory. At
any moment, a crash included, it holds:

- every job, parcel, result and final card that a client was given is in ``journal.db``, unchanged;
- a subtask is final in at most one result;
- every billable result has exactly one contribution, of its own range, attempt and price: in the
  ledger, or in the outbox behind what the ledger has applied; and the ledger has no other;
- the sum of all accounts is zero, transfers make the balances, nothing acked by the ledger is gone.

Once everything is quiet (``is_over``): every accepted job is final, each of its subtasks exactly
once, nothing waits in the outbox, and no credits are held.
"""

import collections
import contextlib
import hashlib
import pathlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from disk_client import Order, digest_of_frames

from gristmill.broker import bodies, records
from gristmill.wire.client import FINAL_JOB_STATES, JobStatus, Results
from gristmill.wire.errors import RemoteError
from gristmill.wire.ledger import Contribution, Entry, Hold
from gristmill.wire.meter import unpack_meter
from gristmill.wire.outcome import GRIDS_DOING, OWN_DOING
from gristmill.wire.spec import JobSpec, toll_of

_decode_card = msgspec.msgpack.Decoder(JobStatus).decode
_decode_spec = msgspec.msgpack.Decoder(JobSpec).decode
_decode_results = msgspec.msgpack.Decoder(Results).decode
_decode_entry = msgspec.msgpack.Decoder(Entry).decode
_OWN = bytes(int(outcome) for outcome in OWN_DOING)
_GRIDS = bytes(int(outcome) for outcome in GRIDS_DOING)
FAULTS_NAMED = 20


class Unit(NamedTuple):
    """What is billed as one: a result's range, by the lease that made it."""

    job: int
    attempt: int
    first: int
    count: int
    lease_id: int


class Price(NamedTuple):
    """What its bill says. ``subtasks`` of the range ended by their own doing."""

    subtasks: int
    amount: int


class Verdict:
    """What was counted; ``faults`` is empty when every promise was kept."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []

    def fault(self, kind: str, text: str) -> None:
        """Counts a broken promise by its kind; the first few are told in words."""
        self.counts[kind] += 1
        if len(self.faults) < FAULTS_NAMED:
            self.faults.append(f"{kind}: {text}")


#: kinds of faults, all of which must be 0
FAULT_KINDS = (
    "lost_jobs", "lost_parcels", "lost_results", "lost_cards", "lost_blobs", "wrong_values",
    "not_final", "final_twice", "missing", "phantom", "double", "wrong_bill", "unbalanced",
    "holds_left", "outbox_left", "outbox_gap", "ledger_lost", "damaged",
)  # fmt: skip


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[sqlite3.Connection]:
    """A file at rest, for reading: its log is applied by whoever opens it."""
    connection = sqlite3.connect(path, isolation_level=None)
    for name, function in bodies.functions(path.parent).items():
        connection.create_function(name, 1, function)
    try:
        yield connection
    finally:
        connection.close()


def judge(
    journal: pathlib.Path,
    ledger: pathlib.Path,
    lists: Sequence[Iterable[Order]],
    *,
    is_over: bool = True,
    blobs: pathlib.Path | None = None,
) -> Verdict:
    """Compares the files with the lists; see the module's text."""
    verdict = Verdict()
    orders = [order for each in lists for order in each]
    with opened(journal) as jobs, opened(ledger) as books:
        try:
            for name, db in (("journal", jobs), ("ledger", books)):
                told = [row[0] for row in db.execute("PRAGMA integrity_check(5)")]
                if told != ["ok"]:
                    verdict.fault("damaged", f"{name}: {told}")
            _judge_promises(jobs, orders, is_over, verdict)
            expected = _judge_results(jobs, is_over, verdict)
            _judge_bills(jobs, books, expected, is_over, verdict)
            _judge_books(books, is_over, verdict)
        except (sqlite3.DatabaseError, msgspec.DecodeError) as error:
            verdict.fault("damaged", f"the files cannot be read: {error!r}")
    if blobs is not None:
        _judge_blobs(blobs, orders, verdict)
    return verdict


# ---------------------------------------------------------------- what clients were promised


def _judge_promises(
    db: sqlite3.Connection, orders: Sequence[Order], is_over: bool, verdict: Verdict
) -> None:
    accepted = [order for order in orders if order.job]
    verdict.counts["orders"] = len(orders)
    verdict.counts["accepted"] = len(accepted)
    seen: dict[int, bytes] = {}
    for order in accepted:
        if seen.setdefault(order.job, order.submission) != order.submission:
            verdict.fault("lost_jobs", f"j{order.job} was given to two submissions")
        row = db.execute("SELECT submission FROM jobs WHERE job = ?", (order.job,)).fetchone()
        if row is None or row[0] != order.submission:
            verdict.fault("lost_jobs", f"j{order.job}, accepted, is not in the journal")
            continue
        for text in order.wrong:
            verdict.fault("wrong_values", text)
        _judge_results_of(db, order, verdict)
        _judge_card_of(db, order, is_over, verdict)


def _judge_results_of(db: sqlite3.Connection, order: Order, verdict: Verdict) -> None:
    rows = {
        row[0]: row[1:]
        for row in db.execute(
            "SELECT sequence, header, whole(payload), meter, failures, logs FROM results"
            " WHERE job = ?",
            (order.job,),
        )
    }
    for kept in order.results:
        verdict.counts["acks"] += kept.count
        row = rows.get(kept.sequence)
        if row is None:
            verdict.fault("lost_results", f"result {kept.sequence} of j{order.job}, delivered")
            continue
        message = _decode_results(row[0])
        told = (
            message.head.first,
            message.head.count,
            message.attempt,
            message.node,
            [tuple(run) for run in message.not_final],
        )
        if told != (
            kept.first,
            kept.count,
            kept.attempt,
            kept.node,
            [tuple(run) for run in kept.not_final],
        ) or kept.digest != digest_of_frames([frame or b"" for frame in row[1:]]):
            verdict.fault("lost_results", f"result {kept.sequence} of j{order.job} has changed")


def _judge_card_of(db: sqlite3.Connection, order: Order, is_over: bool, verdict: Verdict) -> None:
    end = order.committed
    if order.final is None and end:  # parcels of jobs that are over may go
        rows = db.execute(
            f"SELECT {records.PARCEL_COLUMNS} FROM parcels WHERE job = ? ORDER BY first",
            (order.job,),
        ).fetchall()
        state = db.execute("SELECT is_final FROM job_states WHERE job = ?", (order.job,)).fetchone()
        reached = 0
        for row in rows:
            first, count = row[1:3]
            try:
                records.read_parcel(row)
            except records.DamagedError as error:
                if not (state and state[0]):
                    verdict.fault("lost_parcels", str(error))
            reached = first + count if first == reached else reached
        if reached < end and not (state and state[0]):
            verdict.fault("lost_parcels", f"j{order.job}: {end} were taken, {reached} are there")
    row = db.execute("SELECT status FROM job_states WHERE job = ?", (order.job,)).fetchone()
    card = _decode_card(row[0]) if row else None
    final = order.final
    if final is not None and card is not None and card.superseded > final.superseded:
        # a late result of a lease that was given up is noted on the card, also after the end
        final = msgspec.structs.replace(final, superseded=card.superseded)
    if final is not None and card != final:
        verdict.fault("lost_cards", f"j{order.job} was {final}; the card is {card}")
    if is_over and (card is None or card.state not in FINAL_JOB_STATES):
        verdict.fault("not_final", f"j{order.job} is {card.state if card else 'unknown'}")


def _judge_blobs(folder: pathlib.Path, orders: Sequence[Order], verdict: Verdict) -> None:
    for digest in {digest for order in orders for digest in order.blobs}:
        path = folder / digest[:2] / digest
        verdict.counts["blobs"] += 1
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            verdict.fault("lost_blobs", f"the value {digest:.12} is not in the store")


# ---------------------------------------------------------------- results, and what they cost


def _judge_results(db: sqlite3.Connection, is_over: bool, verdict: Verdict) -> dict[Unit, Price]:
    """Every subtask final at most once (exactly once when it is over); what must be billed."""
    free = set()
    counts: dict[int, int] = {}
    for job, body in db.execute("SELECT job, spec FROM jobs"):
        spec = _decode_spec(body)
        counts[job] = spec.count
        if spec.tariff == "zero":
            free.add(job)
    cards = {
        job: _decode_card(body) for job, body in db.execute("SELECT job, status FROM job_states")
    }
    verdict.counts["jobs"] = len(counts)
    expected: dict[Unit, Price] = {}
    final: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
    for job, lease_id, attempt, amount, header, meter_frame in db.execute(
        "SELECT job, lease_id, attempt, amount_ucredits, header, meter FROM results"
    ):
        message = _decode_results(header)
        head = message.head
        for first, count in _without(head.first, head.count, message.not_final):
            final[job].append((first, count))
        try:
            meter = unpack_meter(meter_frame, head.count)
        except RemoteError as error:
            verdict.fault("damaged", f"meter of {job}/{message.sequence}: {error}")
            continue
        outcomes = meter.outcome or bytes([meter.uniform]) * head.count
        by_own = sum(outcomes.count(number) for number in _OWN)
        by_grid = sum(outcomes.count(number) for number in _GRIDS)
        if lease_id and by_grid < head.count and job not in free:
            unit = Unit(job, attempt, head.first, head.count, lease_id)
            if unit in expected:
                verdict.fault("double", f"two results for {unit}")
            expected[unit] = Price(by_own, amount)
    for job, runs in final.items():
        end, covered = 0, 0
        for first, count in sorted(runs):
            if first < end:
                verdict.fault("final_twice", f"subtask {first} of j{job}")
            end = max(end, first + count)
            covered += count
        verdict.counts["subtasks"] += covered
        card = cards.get(job)
        if is_over and card is not None:
            if covered != end or covered != card.count:
                verdict.fault("not_final", f"j{job}: {covered} of {card.count} subtasks ended")
            if card.done + card.failed + card.cancelled != card.count:
                verdict.fault("not_final", f"j{job}: its card does not add up: {card}")
    if is_over:
        for job in counts.keys() - final.keys():
            if job in cards and cards[job].count:
                verdict.fault("not_final", f"j{job} has no result; {cards[job].count} subtasks")
    return expected


def _without(first: int, count: int, runs: Iterable[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """The range without the runs (offsets) that will be tried again."""
    at = first
    for start, length in sorted((run[0], run[1]) for run in runs):
        if first + start > at:
            yield at, first + start - at
        at = first + start + length
    if at < first + count:
        yield at, first + count - at


def _judge_bills(
    jobs: sqlite3.Connection,
    books: sqlite3.Connection,
    expected: dict[Unit, Price],
    is_over: bool,
    verdict: Verdict,
) -> None:
    meta = dict(jobs.execute("SELECT key, value FROM meta"))
    broker, acked = meta["broker"], meta.get("outbox_acked", 0)
    row = books.execute("SELECT applied FROM outbox WHERE broker = ?", (broker,)).fetchone()
    applied = row[0] if row else 0
    if applied < acked:
        verdict.fault("ledger_lost", f"it acked {acked} entries and has {applied}")
    billed: collections.Counter[Unit] = collections.Counter()
    prices: dict[Unit, Price] = {}

    def bill(ref: str, entry: Any) -> None:
        name, _, job = ref.rpartition("/")
        unit = Unit(int(job), entry[0], entry[1], entry[2], entry[3])
        if name != broker:
            verdict.fault("phantom", f"{ref} is of another broker")
            return
        billed[unit] += 1
        prices[unit] = Price(entry[4], entry[5])
        if not 0 <= entry[6] <= toll_of(entry[5]):
            verdict.fault("wrong_bill", f"{unit}: a toll of {entry[6]} of {entry[5]}")

    for ref, *entry in books.execute(
        "SELECT ref, attempt, first, count, lease_id, c.subtasks, c.amount, c.toll"
        " FROM contribution AS c JOIN hold ON hold.id = c.hold"
    ):
        entry[3] %= 1 << 64
        bill(ref, entry)
    in_ledger = set(billed)
    last = acked
    for sequence, body in jobs.execute("SELECT sequence, entry FROM outbox ORDER BY sequence"):
        if sequence <= acked:
            continue
        if sequence != last + 1:
            verdict.fault("outbox_gap", f"after {last} comes {sequence}")
        last = sequence
        _judge_entry(sequence, _decode_entry(body), applied, in_ledger, books, bill, verdict)
    if last < applied:
        verdict.fault("phantom", f"the ledger has {applied} entries; the broker made {last}")
    if is_over and last != applied:
        verdict.fault("outbox_left", f"{last - applied} entries wait")
    for unit, times in billed.items():
        if times > 1:
            verdict.fault("double", f"{unit} is billed {times} times")
        if unit not in expected:
            verdict.fault("phantom", f"{unit} is billed; no result is like it")
        elif expected[unit] != prices[unit]:
            verdict.fault("wrong_bill", f"{unit}: {prices[unit]}, its result {expected[unit]}")
    for unit in expected.keys() - billed.keys():
        verdict.fault("missing", f"{unit} is not billed")
    verdict.counts["contributions"] = sum(billed.values())
    verdict.counts["billed_subtasks"] = sum(price.subtasks for price in prices.values())


def _judge_entry(
    sequence: int,
    entry: Any,
    applied: int,
    in_ledger: set[Unit],
    books: sqlite3.Connection,
    bill: Any,
    verdict: Verdict,
) -> None:
    """An entry that is not acked: behind what the ledger applied it waits, before it is there."""
    if isinstance(entry, Contribution):
        job = int(entry.ref.rpartition("/")[2])
        unit = Unit(job, entry.attempt, entry.first, entry.count, entry.lease_id)
        if sequence > applied:
            row = (
                entry.attempt, entry.first, entry.count, entry.lease_id, entry.subtasks,
                entry.amount_ucredits, entry.toll_ucredits,
            )  # fmt: skip
            bill(entry.ref, row)
        elif unit not in in_ledger:
            verdict.fault("missing", f"entry {sequence} was applied; {unit} is not there")
    elif isinstance(entry, Hold) and sequence <= applied:
        row = books.execute(
            "SELECT 1 FROM entry WHERE sequence = ? AND code = ''", (sequence,)
        ).fetchone()
        hold = books.execute("SELECT amount FROM hold WHERE ref = ?", (entry.ref,)).fetchone()
        if row and (hold is None or hold[0] != entry.amount_ucredits):
            verdict.fault("missing", f"the hold {entry.ref}, entry {sequence}")


# ---------------------------------------------------------------- the books by themselves


def _judge_books(db: sqlite3.Connection, is_over: bool, verdict: Verdict) -> None:
    """Balances are what transfers make; the sum is zero; every side has its other side."""
    accounts = db.execute(
        "SELECT id, name, debits, credits, debits_pending, credits_pending FROM account"
    ).fetchall()
    made: dict[int, list[int]] = {row[0]: [0, 0, 0] for row in accounts}
    for kind, debit, credit, amount in db.execute(
        "SELECT kind, debit, credit, amount FROM transfer"
    ):
        if kind in (0, 2):
            made[debit][0] += amount
            made[credit][1] += amount
        if kind:
            made[debit][2] += amount if kind == 1 else -amount
    total = sum(row[3] - row[2] for row in accounts)
    pending = sum(row[5] - row[4] for row in accounts)
    verdict.counts["sum_ucredits"] = total
    if total or pending:
        verdict.fault("unbalanced", f"the sum is {total} posted, {pending} pending")
    for id_, name, debits, credits_, debits_pending, _ in accounts:
        if made[id_] != [debits, credits_, debits_pending]:
            verdict.fault("unbalanced", f"{name}: {debits}, {credits_}; transfers: {made[id_]}")
        if name != "world" and debits + debits_pending > credits_:
            verdict.fault("unbalanced", f"{name} is overdrawn")
    earned, tolls = db.execute(
        "SELECT ifnull(sum(amount - toll), 0), ifnull(sum(toll), 0) FROM contribution"
    ).fetchone()
    by_name = {row[1]: row[3] - row[2] for row in accounts}
    nodes = sum(value for name, value in by_name.items() if name.startswith("node:"))
    if (nodes, by_name.get("toll", 0)) != (earned, tolls):
        verdict.fault(
            "unbalanced", f"nodes have {nodes}, the toll {by_name.get('toll', 0)};"
            f" contributions make {earned} and {tolls}"
        )  # fmt: skip
    held = db.execute("SELECT count(*) FROM hold WHERE closed_ms = 0").fetchone()[0]
    if is_over and held:
        verdict.fault("holds_left", f"{held} holds of jobs that are over")
