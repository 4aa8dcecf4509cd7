"""Epochs: when they close, what proves a receipt, and that nothing before a head can change."""

import itertools
import pathlib
import sqlite3
from collections.abc import Iterator

import apsw
import msgspec
import pytest
from nacl.signing import SigningKey
from receipt_rig import NOW_MS, Maker, public_of

from gristmill.ledger import schema
from gristmill.ledger.core.epochs import RECEIPTS_MAX, is_due
from gristmill.ledger.epochs import Epochs
from gristmill.ledger.sqlite import SqliteBook
from gristmill.wire import proofs
from gristmill.wire.epochs import ReceiptsPage
from gristmill.wire.errors import RemoteError
from gristmill.wire.ledger import (
    AskReceipts,
    Contribution,
    Fund,
    Hold,
    Key,
    LedgerAnswer,
    LedgerRefused,
    Post,
    Release,
)
from gristmill.wire.limits import HEADER_BYTES_MAX

NOW = NOW_MS + 100_000
EPOCH_MS = 60_000


class Rig:
    """A book with its epochs, and a broker that posts what a real one signs."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.maker = Maker()
        self.posted: dict[str, int] = {}
        self.open()
        self.book.apply([Fund(0, "ann", 10**15, "f")], NOW)

    def open(self) -> None:
        self.book = SqliteBook(self.folder)
        self.book.load()
        self.epochs = Epochs(self.book, self.maker.ledger, EPOCH_MS)
        self.epochs.load(NOW - 50_000)

    def restart(self) -> None:
        self.book.close()
        self.open()

    def post(self, *entries: object, broker: str = "", now: int = NOW) -> None:
        broker = broker or self.maker.broker_name
        first = self.posted.get(broker, 0) + 1
        (effects,) = self.book.apply([Post(broker, first, list(entries))], now)
        assert not [one for one in effects[-1].verdicts if one.code], effects[-1]
        self.posted[broker] = first + len(entries) - 1
        self.epochs.note(sum(isinstance(one, Contribution) for one in entries), now)

    def begin(self, job: int = 7, broker: str = "") -> None:
        broker = broker or self.maker.broker_name
        maker = self.maker
        if not self.posted.get(broker):
            self.post(
                Key("broker", broker, public_of(maker.broker), NOW_MS),
                Key("node", f"{broker}/w0", public_of(maker.node), NOW_MS),
                broker=broker,
            )
        self.post(Hold(f"{broker}/{job}", "ann", 10**12), broker=broker)

    def contribute(self, first: int, job: int = 7, broker: str = "", **more: object) -> None:
        broker = broker or self.maker.broker_name
        ref = f"{broker}/{job}"
        self.post(self.maker.contribution(first, ref=ref, **more), broker=broker)

    def pages(self, ref: str = "", index: int = -1) -> list[ReceiptsPage]:
        found: list[ReceiptsPage] = []
        while not found or found[-1].after:
            after = found[-1].after if found else 0
            ask = AskReceipts(1, "ann", ref or f"{self.maker.broker_name}/7", index, after)
            page = self.epochs.page(ask)
            raw = msgspec.msgpack.encode(page)
            assert len(raw) < HEADER_BYTES_MAX - 64
            found.append(msgspec.msgpack.decode(raw, type=ReceiptsPage))
        return found

    def verdict(self, job: int = 7, **asked: object) -> proofs.Verdict:
        pages = self.pages(**asked)  # type: ignore[arg-type]
        rows, heads, keys = (
            [one for page in pages for one in getattr(page, part)]
            for part in ("receipts", "heads", "keys")
        )
        heads = list({one.head.number: one for one in heads}.values())
        keys = list({one.statement: one for one in keys}.values())
        return proofs.verify(proofs.text_of(proofs.document_of(job, rows, heads, keys)).encode())

    def count(self, table: str) -> int:
        (number,) = self.book.db.execute(f"SELECT count(*) FROM {table}").fetchone()
        return number


@pytest.fixture
def rig(tmp_path: pathlib.Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "state")
    yield made
    made.book.close()


def test_an_epoch_closes_so_long_after_its_first_receipt_and_an_idle_ledger_closes_none(
    rig: Rig,
) -> None:
    rig.epochs.look(NOW + 10 * EPOCH_MS)
    rig.begin()
    assert rig.epochs.wait_ms(NOW) is None
    rig.epochs.look(NOW + 10 * EPOCH_MS, is_ending=True)
    assert rig.count("epoch") == 0, "holds and keys are no receipts"
    rig.contribute(0)
    rig.contribute(10)
    assert rig.epochs.wait_ms(NOW + 1) == EPOCH_MS - 1
    rig.epochs.look(NOW + EPOCH_MS - 1)
    assert rig.count("epoch") == 0
    rig.epochs.look(NOW + EPOCH_MS)
    assert rig.count("epoch") == 1 and rig.epochs.wait_ms(NOW) is None
    rig.epochs.look(NOW + 20 * EPOCH_MS, is_ending=True)
    assert rig.count("epoch") == 1


def test_it_is_due_when_it_is_full_or_when_the_clock_says_so() -> None:
    assert not is_due(0, 0, NOW, 1)
    assert is_due(NOW, RECEIPTS_MAX, NOW, EPOCH_MS)
    assert not is_due(NOW, RECEIPTS_MAX - 1, NOW, EPOCH_MS)


def test_an_orderly_end_closes_and_a_kill_loses_nothing(rig: Rig) -> None:
    rig.begin()
    rig.contribute(0)
    rig.restart()  # as after a kill: the receipt waits for the next epoch
    assert rig.epochs.wait_ms(NOW) is not None
    rig.contribute(10)
    rig.epochs.look(NOW, is_ending=True)
    rig.restart()
    assert rig.epochs.wait_ms(NOW) is None
    verdict = rig.verdict()
    assert not verdict.faults and len(verdict.proven) == 2


def test_receipts_of_several_brokers_and_epochs_are_each_proven(rig: Rig) -> None:
    names = [rig.maker.broker_name, "another", "third"]
    for name in names:
        rig.begin(broker=name)
        rig.begin(8, broker=name)
    for turn in range(4):
        for at, name in enumerate(names):
            for more in range(at + turn):
                rig.contribute(100 * turn + 10 * more, broker=name)
                rig.contribute(100 * turn + 10 * more, 8, broker=name)
        rig.epochs.look(NOW + turn, is_ending=True)
        if turn == 1:
            rig.restart()  # trees are made again
    assert rig.count("epoch") == 4
    for name, job in itertools.product(names, (7, 8)):
        verdict = rig.verdict(job, ref=f"{name}/{job}")
        assert not verdict.faults, (name, job)
        assert len(verdict.proven) == sum(names.index(name) + turn for turn in range(4))
    places = {(one.epoch, one.place) for n in names for one in rig.verdict(7, ref=f"{n}/7").proven}
    places |= {(one.epoch, one.place) for n in names for one in rig.verdict(8, ref=f"{n}/8").proven}
    (receipts,) = rig.book.db.execute("SELECT sum(receipts) FROM epoch").fetchone()
    assert len(places) == receipts == rig.count("contribution")
    assert not rig.book.faults()


def test_pages_fit_a_header_and_have_each_receipt_once(rig: Rig) -> None:
    rig.begin()
    for first in range(0, 3_000, 10):
        rig.contribute(first)
        if first % 1_000 == 990:
            rig.epochs.look(NOW, is_ending=True)
    pages = rig.pages()
    assert len(pages) > 2 and all(page.receipts for page in pages)
    firsts = [row.contribution.first for page in pages for row in page.receipts]
    assert firsts == list(range(0, 3_000, 10))
    assert len(rig.verdict().proven) == 300
    (page,) = rig.pages(index=1_234)
    assert [row.contribution.first for row in page.receipts] == [1_230]
    assert rig.pages(index=5_000)[0].receipts == []


def test_a_receipt_of_an_open_epoch_has_no_proof_yet(rig: Rig) -> None:
    rig.begin()
    rig.contribute(0)
    rig.epochs.look(NOW, is_ending=True)
    rig.contribute(10)
    (page,) = rig.pages()
    assert [row.epoch for row in page.receipts] == [1, 0]
    assert page.receipts[1].proof == [] and page.epoch_ms == EPOCH_MS
    assert [fault.field for fault in rig.verdict().faults] == ["receipts[1].epoch"]


def test_what_was_refused_is_in_no_tree(rig: Rig) -> None:
    rig.begin()
    rig.contribute(0)
    again = rig.maker.contribution(5)
    first = rig.posted[rig.maker.broker_name] + 1
    (effects,) = rig.book.apply([Post(rig.maker.broker_name, first, [again])], NOW)
    assert effects[-1].verdicts[0].code == "LEDGER_CONFLICT"
    rig.posted[rig.maker.broker_name] = first
    rig.contribute(100)
    rig.epochs.look(NOW, is_ending=True)
    assert rig.book.db.execute("SELECT receipts FROM epoch").fetchone() == (2,)
    assert len(rig.verdict().proven) == 2


def test_another_tenants_receipts_are_not_told(rig: Rig) -> None:
    rig.begin()
    for tenant, ref in (("bob", "bröker-1/7"), ("ann", "bröker-1/9"), ("ann", "\0")):
        with pytest.raises(RemoteError) as caught:
            rig.epochs.page(AskReceipts(1, tenant, ref))
        assert caught.value.code == "UNKNOWN_JOB"


@pytest.mark.parametrize("table", ["epoch", "epoch_range", "public_key"])
def test_rows_are_for_ever(rig: Rig, table: str) -> None:
    rig.begin()
    rig.contribute(0)
    rig.epochs.look(NOW, is_ending=True)
    assert rig.count(table) > 0
    column = {"epoch": "receipts", "epoch_range": "last", "public_key": "from_ms"}[table]
    for statement in (f"UPDATE {table} SET {column} = {column} + 1", f"DELETE FROM {table}"):
        with pytest.raises(apsw.ConstraintError):
            rig.book.db.execute(statement)


#: (what somebody with a SQLite shell does, sealing the row again, what the audit says)
FORGERIES = [
    ("epoch", "receipts = receipts + 1", "signature of epoch 1"),
    ("epoch", "closed_ms = closed_ms + 1", "signature of epoch 1"),
    ("epoch", "root = zeroblob(32)", "do not make its root"),
    ("epoch", "signature = zeroblob(64)", "signature of epoch 1"),
    ("epoch", "public = replace(public, '8', '9')", "was not the ledger's"),
    ("epoch_range", "last = last - 1", "entry"),
    ("epoch_range", "first = first + 1", "begins with entry"),
    ("epoch_range", "chain = zeroblob(32)", "is not the one that epoch 1 saw"),
    ("public_key", "from_ms = from_ms + 1000000000", "was not the ledger's"),
]


@pytest.mark.parametrize(("table", "change", "told"), FORGERIES)
def test_the_audit_finds_a_forged_epoch(rig: Rig, table: str, change: str, told: str) -> None:
    rig.begin()
    rig.contribute(0)
    rig.epochs.look(NOW, is_ending=True)
    assert not rig.book.faults()
    rig.book.close()
    forge(rig.folder / "ledger.db", table, change)
    rig.book = SqliteBook(rig.folder)
    faults = rig.book.faults()
    assert any(told in fault for fault in faults), faults


def forge(path: pathlib.Path, table: str, change: str) -> None:
    """Changes all rows as a forger would who knows of the checksum, not of the keys."""
    columns = {"epoch": schema.EPOCH, "epoch_range": schema.EPOCH_RANGE}
    names = columns.get(table, schema.PUBLIC_KEY)
    with sqlite3.connect(path) as db:
        (trigger,) = db.execute(
            "SELECT sql FROM sqlite_schema WHERE name = ?", (f"{table}_immutable",)
        ).fetchone()
        db.execute(f"DROP TRIGGER {table}_immutable")
        db.create_function("seal", -1, lambda *row: schema.checksum(row))
        db.execute(f"UPDATE {table} SET {change}")
        db.execute(f"UPDATE {table} SET crc = seal({names})")
        db.execute(trigger)


def test_a_changed_receipt_is_found_through_its_epoch(rig: Rig) -> None:
    """A forger who mends chains, checksums and sums still has no ledger key."""
    rig.begin()
    rig.contribute(0)
    rig.epochs.look(NOW, is_ending=True)
    rig.book.close()
    path = rig.folder / "ledger.db"
    with sqlite3.connect(path) as db:
        (sql,) = db.execute(
            "SELECT sql FROM sqlite_schema WHERE name = 'entry_immutable'"
        ).fetchone()
        db.execute("DROP TRIGGER entry_immutable")
        db.execute("UPDATE entry SET digest = zeroblob(32) WHERE kind = 3")
        chain = schema.NO_CHAIN
        for row in db.execute(f"SELECT {schema.ENTRY} FROM entry ORDER BY sequence").fetchall():
            chain = schema.chained(chain, row)
            db.execute("UPDATE entry SET chain = ? WHERE sequence = ?", (chain, row[1]))
        db.execute(sql)
    rig.book = SqliteBook(rig.folder)
    faults = rig.book.faults()
    assert any("epoch 1 saw" in fault for fault in faults)
    assert any("do not make its root" in fault for fault in faults)


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        (Key("broker", "b", "ab" * 32, 5), ""),
        (Key("node", "b/w0", "ab" * 32, 5), ""),
        (Key("broker", "c", "ab" * 32, 5), "FORBIDDEN"),
        (Key("node", "c/w0", "ab" * 32, 5), "FORBIDDEN"),
        (Key("node", "w0", "ab" * 32, 5), "FORBIDDEN"),
        (Key("broker", "b", "AB" * 32, 5), "MALFORMED"),
        (Key("broker", "b", "ab", 5), "MALFORMED"),
        (Key("broker", "b", "ab" * 32, -1), "MALFORMED"),
        (Key("node", "b/w\0", "ab" * 32, 5), "MALFORMED"),
        (Key("node", "b/" + "w" * 500, "ab" * 32, 5), "MALFORMED"),
    ],
)
def test_a_broker_speaks_for_itself_and_its_nodes(book: SqliteBook, entry: Key, code: str) -> None:
    (effects,) = book.apply([Post("b", 1, [entry])], NOW)
    verdicts = [one.code for one in effects[-1].verdicts]
    assert verdicts == ([code] if code else [])
    (rows,) = book.db.execute("SELECT count(*) FROM public_key").fetchone()
    assert rows == (not code)
    assert book.db.execute("SELECT kind FROM entry").fetchone() == (4,)


def test_another_key_for_a_name_is_another_row_from_later_on(book: SqliteBook) -> None:
    def posted(number: int, public: str, from_ms: int) -> list[str]:
        (effects,) = book.apply([Post("b", number, [Key("broker", "b", public, from_ms)])], NOW)
        return [one.code for one in effects[-1].verdicts]

    assert posted(1, "ab" * 32, 5) == []
    assert posted(2, "ab" * 32, 9) == [], "the same key again: a journal that was restored"
    assert posted(3, "cd" * 32, 5) == ["LEDGER_CONFLICT"]
    book.load()
    assert posted(4, "cd" * 32, 6) == []
    assert posted(4, "cd" * 32, 6) == [], "a repeat"
    rows = list(book.db.execute("SELECT public, from_ms FROM public_key ORDER BY from_ms"))
    assert rows == [("ab" * 32, 5), ("cd" * 32, 6)]


def test_the_ledgers_key_is_a_row_and_another_file_is_another_one(rig: Rig) -> None:
    rig.begin()
    rig.contribute(0)
    rig.epochs.look(NOW, is_ending=True)
    rig.maker.ledger = SigningKey(bytes([77]) * 32)
    rig.restart()
    rig.contribute(10)
    rig.epochs.look(NOW, is_ending=True)
    rows = list(rig.book.db.execute("SELECT public FROM public_key WHERE kind = 'ledger'"))
    assert len(rows) == 2
    verdict = rig.verdict()
    assert not verdict.faults and len(verdict.proven) == 2, "old heads are signed by the new key"
    assert verdict.publics["ledger"] == public_of(rig.maker.ledger)
    assert not rig.book.faults(), "each head by the key that was valid when it closed"


# ---------------------------------------------------------------- the process


def test_the_process_closes_by_its_clock_at_its_end_and_answers_questions(ledger) -> None:  # type: ignore[no-untyped-def]
    maker = Maker()
    ledger.start("--fund", "ann=1000", "--epoch-s", "1")
    name = maker.broker_name
    ref = f"{name}/7"
    ledger.post(
        1,
        Key("broker", name, public_of(maker.broker), NOW_MS),
        Key("node", f"{name}/w0", public_of(maker.node), NOW_MS),
        Hold(ref, "ann", 10**8),
        maker.contribution(0),
        maker.contribution(10),
        broker=name,
    )

    def page() -> ReceiptsPage:
        answer = ledger.ask(AskReceipts(9, "ann", ref))
        assert isinstance(answer, LedgerAnswer)
        return msgspec.msgpack.decode(answer.body, type=ReceiptsPage)

    found = page()
    while not all(row.epoch for row in found.receipts):
        found = page()
    document = proofs.document_of(7, found.receipts, found.heads, found.keys)
    verdict = proofs.verify(proofs.text_of(document).encode())
    assert not verdict.faults and len(verdict.proven) == 2
    refused = ledger.ask(AskReceipts(9, "bob", ref))
    assert isinstance(refused, LedgerRefused) and refused.code == "UNKNOWN_JOB"
    ledger.post(6, maker.contribution(20), Release(ref), broker=name)
    code, told = ledger.end()
    assert code == 0 and "epoch=2 closed receipts=1" in told
    assert (ledger.state / "ledger.key").stat().st_mode & 0o077 == 0
    ledger.start("--epoch-s", "1")
    assert [row.epoch for row in page().receipts] == [1, 1, 2]
