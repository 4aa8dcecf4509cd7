"""P15: the Nth call of the disk fails, for every N. Refused or ended, and what was told stays true.

A fixed story on the real journal, the real books and the real store. Each time the files are then
opened as a kill would have left them, on a disk that works again: what had been acknowledged is
there, nothing is there twice, no group is there by half.
"""

import contextlib
import gc
import hashlib
import pathlib
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import apsw
import pytest
from disk_cuts import memory_folder
from disk_nth import FailingDisk, as_killed, let_go

from gristmill.broker import journal as journals
from gristmill.broker import records, schema
from gristmill.broker.core import journal_names as names
from gristmill.broker.core.state import Config
from gristmill.broker.journal import Journal
from gristmill.broker.metrics import Metrics
from gristmill.broker.replay import recover
from gristmill.ledger import sqlite as books
from gristmill.ledger.book import Asked
from gristmill.ledger.engine import PostponedError, RefusedError
from gristmill.ledger.sqlite import SqliteBook
from gristmill.store.local import LocalStore
from gristmill.wire import payments
from gristmill.wire.client import Results
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.ledger import Contribution, Fund, Hold, Post, Release
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec, Tariff
from gristmill.wire.worker import ResultHead

NOW = 1_800_000_000_000
GROUPS = 10
WAYS = {
    "eio": {"is_full": False, "is_lasting": False},
    "dead": {"is_full": False, "is_lasting": True},
    "full": {"is_full": True, "is_lasting": False},
}

_disk: list[FailingDisk] = []


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    """One for all: SQLite keeps a VFS for as long as anything is open on it."""
    monkeypatch.setattr(journals, "_CHECKPOINT_PAGES", 12)  # several in a short story
    monkeypatch.setattr(books, "CHECKPOINT_PAGES", 12)
    monkeypatch.setattr(journals, "RETRY_S", 0.001)
    if not _disk:
        _disk.append(FailingDisk("nth"))
    _disk[0].arm(0)
    return _disk[0]


@pytest.fixture
def place() -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory(prefix="gm-nth-", dir=memory_folder()) as name:
        yield pathlib.Path(name)


class BrokenPromiseError(Exception):
    """A promise that does not hold."""


def every(
    disk: FailingDisk,
    place: pathlib.Path,
    way: dict[str, bool],
    stride: int,
    tell: Callable[[pathlib.Path, list[Any]], None],
    look: Callable[[pathlib.Path, list[Any]], None],
) -> dict[str, int]:
    """Tells the story once for each Nth call that fails, and looks at what it left.

    ``tell`` adds to its list whatever it was told is safe, and raises when it gives up.
    """
    counted = {"stories": 0, "gave_up": 0, "completed": 0}
    at = 1
    while True:
        state, killed = place / "state", place / "killed"
        state.mkdir()
        told: list[Any] = []
        disk.arm(at, **way)
        try:
            with disk.below(state):
                tell(state, told)
            counted["completed"] += 1
        except (apsw.Error, OSError, RemoteError, PostponedError, RefusedError):
            counted["gave_up"] += 1
            as_killed(state, killed)  # a kill closes nothing
        fired, last, calls = disk.fired, disk.last, disk.calls
        disk.arm(0)
        gc.collect()  # an end of the process by itself closes what it has open, in any order
        let_go(state)
        for copy in (killed, as_killed(state, place / "ended")):
            if not copy.exists():
                continue
            try:
                look(copy, told)
            except Exception as error:
                raise BrokenPromiseError(
                    f"call {at} of {calls} ({last}) failed; {copy.name}: {error!r}"
                ) from error
            finally:
                let_go(copy)
                shutil.rmtree(copy)
        shutil.rmtree(state)
        counted["stories"] += 1
        if not fired:  # the story has no such call
            assert counted["gave_up"] or way["is_full"]
            return counted | {"calls": calls}
        at += stride


# ---------------------------------------------------------------- the journal


def rows_of_group(job: int) -> list[tuple[str, str, tuple[Any, ...]]]:
    """(table, statement, row): a job with its inputs, a result of it, and what the ledger hears."""
    spec = JobSpec("function", function="0" * 64, count=20, tier="batch")
    record = records.JobRecord(
        job, "t", b"s%d" % job, NOW, spec, {"standard": Tariff()}, b"f" * 300
    )
    head = ResultHead(1, 7, job, 0, 10, "q", 1_000, 500, 7, "wait4")
    message = Results(job, 1, head, 1, "node")
    frames = [b"values of %d" % job, pack_meter(10, Outcome.OK), b"", b""]
    return [
        ("jobs", schema.ADD_JOB, records.job_row(record)),
        ("open_jobs", schema.ADD_OPEN, (job,)),
        ("events", schema.ADD_EVENT, records.event_row(job, NOW, names.HOLD_GRANTED, {})),
        ("parcels", schema.ADD_PARCEL, records.parcel_row(job, 0, 20, "m", b"inputs" * 500)),
        ("results", schema.ADD_RESULT,
         records.result_row(encode(message), message, frames, (1_000, 500, 11), NOW)),
        ("outbox", schema.ADD_ENTRY, records.entry_row(job, Release(f"b/{job}"))),
    ]  # fmt: skip


def tell_journal(vfs: str) -> Callable[[pathlib.Path, list[int]], None]:
    """Groups, each told when it is on disk, with a stop and a start between them."""

    def tell(state: pathlib.Path, told: list[int]) -> None:
        for jobs in (range(1, GROUPS // 2 + 1), range(GROUPS // 2 + 1, GROUPS + 1)):
            woken = threading.Event()
            journal = Journal(state, woken.set, Metrics(), vfs)
            try:
                recover(journal, Config(), 0, NOW, Metrics())
                for job in jobs:
                    for table, statement, row in rows_of_group(job):
                        journal.record(table, statement, row, 100)
                    group = journal.group
                    journal.pump()
                    while journal.committed < group:
                        assert woken.wait(30.0), "neither done nor failed"
                        woken.clear()
                        journal.pump()
                    told.append(job)
            except BaseException:
                journal._queue.put(None)  # the process would end here
                journal._thread.join(30.0)
                raise
            journal.close()

    return tell


def look_at_journal(state: pathlib.Path, told: list[int]) -> None:
    metrics = Metrics()
    journal = Journal(state, lambda: None, metrics)
    try:
        found = recover(journal, Config(), 0, NOW, metrics)
    finally:
        journal.close()
    assert not (metrics.rows_quarantined or metrics.journal_salvaged or metrics.journal_cuts)
    jobs = list(found.state.jobs)
    assert jobs == list(range(1, len(jobs) + 1)) and jobs[: len(told)] == told
    assert (found.outbox_acked, found.outbox_last) == (0, len(jobs))
    assert all((job.uploaded, job.done) == (20, 10) for job in found.state.jobs.values())
    with contextlib.closing(sqlite3.connect(state / "journal.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        for table in ("jobs", "open_jobs", "parcels", "results", "outbox"):
            wanted = [row for job in jobs for name, _, row in rows_of_group(job) if name == table]
            assert db.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall() == wanted, table
        (events,) = db.execute("SELECT count(*) FROM events").fetchone()
        assert events == len(jobs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # apsw tells all
@pytest.mark.parametrize("way", WAYS)
def test_the_journal_keeps_what_it_told_whichever_call_fails(
    way: str,
    disk: FailingDisk,
    place: pathlib.Path,
    sized: Callable[[int, int], int],
    figures: Callable[..., None],
) -> None:
    stride = sized(113, 1)
    counted = every(disk, place, WAYS[way], stride, tell_journal(disk.name), look_at_journal)
    figures(**counted)
    assert counted["calls"] > 60


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failure_that_the_journal_swallows_is_found(
    disk: FailingDisk, place: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Journal._write

    def careless(self: Journal, group: journals.Group) -> bool:
        try:
            return write(self, group)
        except apsw.IOError:
            return True

    monkeypatch.setattr(Journal, "_write", careless)
    with pytest.raises(BrokenPromiseError):
        every(disk, place, WAYS["eio"], 29, tell_journal(disk.name), look_at_journal)


# ---------------------------------------------------------------- the books


def contribution(first: int, ref: str, amount: int = 1_000) -> Contribution:
    return Contribution(
        ref, "ann", "mill", 7, first, 10, 1, 10, 0, 500, 400, 9_000, "cgroup", False, amount,
        amount * 3 // 100, NOW,
    )  # fmt: skip


#: without a fee: 200,000 micro-credits for 200 sat
OFFER = payments.Offer("btcpay", "sat", 1_000, 0, 1, 10**12, 60_000)


def purchases() -> list[payments.Asked]:
    """Bought and paid whole; paid by half, then whole; late; paid by half and given back."""
    made: list[payments.Asked] = []
    paid = {
        "whole": [(200,)], "half": [(90,), (90, 110)], "late": [(), (50,)], "back": [(30,)],
    }  # fmt: skip
    for key, looks in paid.items():
        id_ = payments.intent_id("ann", key)
        made.append(payments.CreateIntent(1, "ann", key, "btcpay", 200_000, 200, 0))
        made.append(payments.ReportInvoice(1, id_, f"inv-{key}", "bitcoin:x", NOW))
        for seen in looks:
            each = [payments.Paid(f"{key}{at}", sats) for at, sats in enumerate(seen)]
            state = "open" if key == "back" else "closed"
            made.append(
                payments.Observe(1, "btcpay", f"inv-{key}", state, each, "callback", b"{}")  # type: ignore[arg-type]
            )
    return [*made, payments.DecideIntent(1, id_, "refund", "r")]


def messages() -> list[Asked]:
    """Credits, then for each job a hold, two contributions and a release; then purchases."""
    made: list[Asked] = [Fund(1, "ann", 1_000_000, "f1")]
    first = 1
    for number in range(1, 5):
        ref = f"b/{number}"
        made.append(Post("b", first, [Hold(ref, "ann", 50_000)]))
        made.append(Post("b", first + 1, [contribution(0, ref), contribution(10, ref)]))
        made.append(Post("b", first + 3, [Release(ref)]))
        first += 4
    return made + purchases()


def tell_books(vfs: str) -> Callable[[pathlib.Path, list[int]], None]:
    """Every message, each told when it is on disk; a full disk is asked again, as brokers do."""

    def tell(state: pathlib.Path, told: list[int]) -> None:
        for half in (range(0, 7), range(7, len(messages()))):
            book = SqliteBook(state, vfs)
            if faults := book.faults():
                raise OSError(f"read-only: {faults}")
            book.load()
            book.offers = {"btcpay": OFFER}
            for number in half:
                for is_again in (False, True):
                    try:
                        book.apply([messages()[number]], NOW)
                        break
                    except PostponedError:
                        if is_again:
                            raise
                told.append(number)
            book.close()

    return tell


def rows_of(path: pathlib.Path) -> dict[str, list[tuple[Any, ...]]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tables = [n for (n,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {name: sorted(db.execute(f"SELECT * FROM {name}"), key=repr) for name in tables}


def look_at_books(truth: dict[str, Any]) -> Callable[[pathlib.Path, list[int]], None]:
    def look(state: pathlib.Path, told: list[int]) -> None:
        book = SqliteBook(state)
        try:
            assert book.faults() == []
            book.load()
            book.offers = {"btcpay": OFFER}
            entries = sum(
                len(message.entries)
                for number in told
                if isinstance(message := messages()[number], Post)
            )
            assert book.state.applied.get("b", 0) >= entries
            assert bool(book.state.accounts.get("tenant:ann")) >= bool(told)
            for message in messages():  # all of it comes again
                book.apply([message], NOW)
        finally:
            book.close()
        assert rows_of(state / "ledger.db") == truth

    return look


def whole_books(place: pathlib.Path) -> dict[str, Any]:
    book = SqliteBook(place / "whole")
    book.load()
    book.offers = {"btcpay": OFFER}
    for message in messages():
        book.apply([message], NOW)
    book.close()
    return rows_of(place / "whole" / "ledger.db")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # apsw tells all
@pytest.mark.parametrize("way", WAYS)
def test_the_books_keep_what_they_told_whichever_call_fails(
    way: str,
    disk: FailingDisk,
    place: pathlib.Path,
    sized: Callable[[int, int], int],
    figures: Callable[..., None],
) -> None:
    look = look_at_books(whole_books(place))
    counted = every(disk, place, WAYS[way], sized(113, 1), tell_books(disk.name), look)
    figures(**counted)
    assert counted["calls"] > 60


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failure_that_the_books_swallow_is_found(
    disk: FailingDisk, place: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = SqliteBook.apply

    def careless(self: SqliteBook, *given: Any) -> Any:
        try:
            return apply(self, *given)
        except apsw.IOError:
            return []

    monkeypatch.setattr(SqliteBook, "apply", careless)
    with pytest.raises(BrokenPromiseError):
        every(
            disk, place, WAYS["eio"], 29, tell_books(disk.name), look_at_books(whole_books(place))
        )


# ---------------------------------------------------------------- the store

BLOBS = [bytes([number]) * (700 * number) for number in range(1, 5)]
DIGESTS = [hashlib.sha256(body).hexdigest() for body in BLOBS]


class CountedIndex:
    """The connection of a store's index, each of whose statements is a call of the disk.

    The library that the store uses takes no file system of ours, so a statement fails as a whole.
    """

    def __init__(self, db: sqlite3.Connection, disk: FailingDisk) -> None:
        self._db, self._disk = db, disk

    def execute(self, *given: Any) -> sqlite3.Cursor:
        kind = "statement" if given[0].startswith("SELECT") else "write"
        if given[0] != "ROLLBACK" and self._disk.does_fail(kind):  # that one always ends it
            error = sqlite3.OperationalError("the disk failed")
            error.sqlite_errorcode = apsw.SQLITE_IOERR  # type: ignore[attr-defined]
            if self._disk.is_full:
                error.sqlite_errorcode = apsw.SQLITE_FULL  # type: ignore[attr-defined]
            raise error
        return self._db.execute(*given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


def put(store: LocalStore, number: int) -> None:
    body = BLOBS[number]
    store.put("ann", DIGESTS[number], len(body), [body[:500], body[500:]])


def get(store: LocalStore, number: int) -> bytes:
    with store.open("ann", DIGESTS[number]) as blob:
        return b"".join(bytes(piece) for piece in blob.pieces())


def tell_store(disk: FailingDisk, refusals: list[RemoteError]) -> Callable[..., None]:
    """Puts, each told when it is done; one that is refused is said again when the disk is back."""

    def tell(state: pathlib.Path, told: list[int]) -> None:
        store = LocalStore(state, 0, lambda: NOW)
        store._index._db = CountedIndex(store._index._db, disk)  # type: ignore[assignment]
        for number in range(len(BLOBS)):
            try:
                put(store, number)
            except RemoteError as error:
                refusals.append(error)
                with disk.away():
                    with pytest.raises(RemoteError, match="BLOB_MISSING"):
                        get(store, number)  # nothing of it is there
                    assert not list((state / "tmp").iterdir())
                    put(store, number)
            told.append(number)
            assert store.usage().used_bytes == sum(map(len, BLOBS[: number + 1]))
        store.close()

    return tell


def look_at_store(state: pathlib.Path, told: list[int]) -> None:
    store = LocalStore(state, 0, lambda: NOW)
    try:
        assert not list((state / "tmp").iterdir())
        for path in (state / "blobs").glob("*/*"):  # a file under a digest is whole
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        for number in told:
            assert get(store, number) == BLOBS[number]
        for number in range(len(BLOBS)):
            put(store, number)
            assert get(store, number) == BLOBS[number]
        assert store.usage().used_bytes == sum(map(len, BLOBS))
    finally:
        store.close()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_store_has_a_blob_whole_or_not_at_all_whichever_call_fails(
    way: str,
    disk: FailingDisk,
    place: pathlib.Path,
    sized: Callable[[int, int], int],
    figures: Callable[..., None],
) -> None:
    refusals: list[RemoteError] = []
    tell = tell_store(disk, refusals)
    counted = every(disk, place, WAYS[way], sized(11, 1), tell, look_at_store)
    figures(**counted, refused=len(refusals))
    assert {error.code for error in refusals} == (
        {"STORE_FULL"} if way == "full" else {"STORE_DOWN"}
    )
