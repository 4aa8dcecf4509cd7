"""The book: what SQLite enforces by itself, restarts, full disks, and an audit that can fail."""

import copy
import itertools
import pathlib
import random
import shutil
from typing import Any

import apsw
import pytest

from gristmill.ledger import audit, bills, rows, schema, sqlite_checks
from gristmill.ledger.core import effects as fx
from gristmill.ledger.core import invariants
from gristmill.ledger.core.state import LedgerState
from gristmill.ledger.engine import PostponedError
from gristmill.ledger.sqlite import SqliteBook
from gristmill.wire.errors import RemoteError
from gristmill.wire.ledger import AskUsage, Fund, Hold, Post, Release

NOW = 1_800_000_000_000
DAY_MS = 86_400_000
TABLES = ("account", "transfer", "hold", "contribution", "mint", "entry", "outbox")


def fill(book: SqliteBook, entries: Any) -> None:
    """Two tenants, three jobs (one released, one untouched), two nodes, a refused entry."""
    book.apply([Fund(1, "ann", 1_000_000, "f1"), Fund(2, "bob", 50_000, "f2")], NOW)
    book.apply(
        [
            Post("b", 1, [Hold("b/1", "ann", 100_000), Hold("b/2", "bob", 40_000)]),
            Post(
                "b",
                3,
                [
                    entries.contribution(0, 10),
                    entries.contribution(20, 10, failed=3, node="barn"),
                    entries.contribution(20, 1),  # refused
                    entries.contribution(0, 5, ref="b/2", tenant="bob", ended_ms=NOW + DAY_MS),
                ],
            ),
        ],
        NOW,
    )
    book.apply([Post("b", 7, [Release("b/2"), Hold("b/3", "ann", 7)])], NOW + 5)


def shape(state: LedgerState) -> dict[str, Any]:
    """Everything in a state, comparable."""
    return {
        "accounts": copy.deepcopy(state.accounts),
        "holds": {
            ref: (
                hold.id, hold.tenant, hold.amount, hold.spent, hold.closed_ms, hold.subtasks,
                hold.toll,
                {key: list(zip(c.starts, c.ends, strict=True)) for key, c in hold.billed.items()},
            )
            for ref, hold in state.holds.items()
        },
        "applied": dict(state.applied),
        "transfers": state.transfers,
    }  # fmt: skip


def test_a_restart_reads_the_very_state(
    book: SqliteBook, entries: Any, tmp_path: pathlib.Path
) -> None:
    fill(book, entries)
    before = shape(book.state)
    assert before["holds"]["b/1"][-1] == {(0, 1): [(0, 10), (20, 30)]}
    assert "b/2" not in before["holds"]  # released
    assert before["applied"] == {"b": 8}
    assert book.faults() == []
    book.load()
    assert shape(book.state) == before
    assert invariants.check(book.state) == []
    with pytest.raises(RemoteError, match="another ledger has"):
        SqliteBook(tmp_path / "state")


def test_the_file_is_ours_alone(book: SqliteBook) -> None:
    assert book.path.stat().st_mode & 0o777 == 0o600
    assert book.path.parent.stat().st_mode & 0o777 == 0o700


def test_repeats_within_one_group(book: SqliteBook, entries: Any) -> None:
    fund = Fund(1, "ann", 1_000, "f")
    post = Post("b", 1, [Hold("b/1", "ann", 500), Hold("b/2", "ann", 501)])
    done = book.apply([fund, post, fund, post, Fund(9, "ann", 1, "f")], NOW)
    assert done[2] == [fx.AnswerOperator("", "", is_repeat=True)]
    assert done[3] == [effect for effect in done[1] if isinstance(effect, fx.Acknowledge)]
    assert isinstance(done[4][-1], fx.AnswerOperator)
    assert done[4][-1].code == "LEDGER_CONFLICT"
    again = book.apply([post], NOW + 1)[0]
    assert again == done[3]
    assert book.state.accounts["tenant:ann"].available == 500
    assert book.faults() == []


def test_a_released_hold_is_known_from_the_file(book: SqliteBook, entries: Any) -> None:
    fill(book, entries)
    late = Post("b", 9, [entries.contribution(50, ref="b/2", tenant="bob"), Release("b/2"),
                         Hold("b/2", "bob", 40_000)])  # fmt: skip
    (acknowledge,) = [e for e in book.apply([late], NOW)[0] if isinstance(e, fx.Acknowledge)]
    assert [one.code for one in acknowledge.verdicts] == ["LEDGER_CONFLICT"] * 3
    assert all("released" in one.message for one in acknowledge.verdicts)
    assert "b/2" not in book.state.holds


@pytest.mark.parametrize("count", [1, rows.ROWS_A_STATEMENT, 2 * rows.ROWS_A_STATEMENT + 5])
def test_many_rows_a_statement_are_the_rows_of_one_each(
    book: SqliteBook, entries: Any, tmp_path: pathlib.Path, count: int
) -> None:
    opening = [Fund(1, "ann", 9_000_000, "f"), Post("b", 1, [Hold("b/1", "ann", 9_000_000)])]
    billed = [
        entries.contribution(10 * at, node=f"mill{at % 3}", lease_id=(1 << 64) - 1 - at)
        for at in range(count)
    ]
    if count > 2:
        billed[count // 2] = entries.contribution(0, 5)  # refused: billed already
    single = SqliteBook(tmp_path / "single")
    single.load()
    book.apply([*opening, Post("b", 2, billed)], NOW)
    for message in [*opening, *(Post("b", 2 + at, [bill]) for at, bill in enumerate(billed))]:
        single.apply([message], NOW)
    for table in (*TABLES, "tally"):
        query = f"SELECT * FROM {table} ORDER BY 1, 2, 3, 4"
        assert list(book.db.execute(query)) == list(single.db.execute(query)), table
    assert shape(book.state) == shape(single.state)
    assert book.faults() == []
    single.close()


def test_a_full_disk_loses_nothing_and_heals(book: SqliteBook, entries: Any) -> None:
    fill(book, entries)
    before = shape(book.state)
    (pages,) = book.db.execute("PRAGMA page_count").fetchone() or (0,)
    book.db.execute(f"PRAGMA max_page_count={pages}")
    post = Post(
        "b", 9, [entries.contribution(100 + 10 * i, amount=1, node="m" * 150) for i in range(2_000)]
    )
    with pytest.raises(PostponedError, match="full"):
        book.apply([post], NOW)
    assert shape(book.state) == before
    assert book.faults() == []
    book.db.execute("PRAGMA max_page_count=1000000")
    (acknowledge,) = [e for e in book.apply([post], NOW)[0] if isinstance(e, fx.Acknowledge)]
    assert acknowledge == fx.Acknowledge("b", 2_008, [])
    assert book.faults() == []


# ---------------------------------------------------------------- the audit can fail

CHAINS = (("transfer", schema.TRANSFER, "number"), ("entry", schema.ENTRY, "broker, sequence"))

TAMPERING = [
    "UPDATE transfer SET amount = amount + 1 WHERE number = 1",
    "UPDATE transfer SET at_ms = at_ms + 1 WHERE number = 3",
    "UPDATE transfer SET id = zeroblob(16) WHERE number = 5",
    "DELETE FROM transfer WHERE number = 5",
    "DELETE FROM transfer WHERE number = (SELECT max(number) FROM transfer)",
    "UPDATE account SET credits = credits + 1 WHERE name = 'toll'",
    "UPDATE account SET credits = credits + 1, debits = debits + 1 WHERE name = 'tenant:ann'",
    "UPDATE hold SET spent = spent - 1 WHERE ref = 'b/1'",
    "UPDATE hold SET closed_ms = 5 WHERE ref = 'b/1'",
    "UPDATE contribution SET cpu_us = cpu_us + 1 WHERE first = 20",
    "DELETE FROM contribution WHERE first = 20",
    "UPDATE tally SET amount = amount + 1",
    "UPDATE tally SET node = 'thief' WHERE node = 'barn'",
    "DELETE FROM entry WHERE sequence = 2",
    "UPDATE outbox SET applied = applied + 1",
    "UPDATE mint SET amount = 5 WHERE ref = 'f1'",
]


@pytest.mark.parametrize("resealed", [False, True])
@pytest.mark.parametrize("statement", TAMPERING)
def test_tampering_is_found(
    book: SqliteBook, entries: Any, tmp_path: pathlib.Path, statement: str, resealed: bool
) -> None:
    fill(book, entries)
    book.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(book.path, tmp_path / "copy.db")
    db = apsw.Connection(str(tmp_path / "copy.db"))
    for (name,) in list(db.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'")):
        db.execute(f"DROP TRIGGER {name}")
    assert audit.audit(db) == []
    db.execute("PRAGMA foreign_keys=OFF")
    db.execute(statement)
    if resealed and "at_ms" in statement:
        return  # a forger who writes every row anew may change a time until it is in an epoch
    if resealed:  # one who knows the checksums and the chain is still caught by the sums
        for table, columns in audit._MONEY.items():
            names = [name.strip() for name in columns.split(",")]
            same = " AND ".join(f"{name} = ?" for name in names)
            for row in list(db.execute(f"SELECT {columns} FROM {table}")):
                db.execute(f"UPDATE {table} SET crc = ? WHERE {same}", (schema.checksum(row), *row))
        for table, columns, key in CHAINS:
            chain, whose = schema.NO_CHAIN, 0
            for row in list(db.execute(f"SELECT {columns} FROM {table} ORDER BY {key}")):
                if table == "entry" and row[0] != whose:
                    chain, whose = schema.NO_CHAIN, row[0]
                chain = schema.chained(chain, row)
                same = f"({key}) = ({', '.join(map(str, row[: key.count(',') + 1]))})"
                db.execute(f"UPDATE {table} SET chain = ? WHERE {same}", (chain,))
    assert audit.audit(db) != []
    db.close()


def test_flipped_bits_are_found(book: SqliteBook, entries: Any, tmp_path: pathlib.Path) -> None:
    fill(book, entries)
    book.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    clean = book.path.read_bytes()
    path = tmp_path / "flipped.db"

    def dump(db: apsw.Connection) -> list[Any]:
        return [list(db.execute(f"SELECT * FROM {table}")) for table in (*TABLES, "tally")]

    expected = dump(book.db)
    dice = random.Random(7)
    found = 0
    for _ in range(300):
        at = dice.randrange(100, len(clean))
        body = bytearray(clean)
        body[at] ^= 1 << dice.randrange(8)
        path.write_bytes(body)
        db = apsw.Connection(str(path))
        try:
            is_same = dump(db) == expected
        except apsw.Error:
            is_same = False
        if not is_same:
            found += 1
            assert audit.audit(db) != [], f"the bit at {at} changes rows and is not found"
        db.close()
    assert found > 20


@pytest.fixture
def shut(book: SqliteBook, entries: Any, tmp_path: pathlib.Path) -> pathlib.Path:
    """The file of books that a ledger has written and closed."""
    fill(book, entries)
    book.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    folder = tmp_path / "shut"
    folder.mkdir()
    shutil.copy(book.path, folder)
    once = SqliteBook(folder)
    assert once.loss == sqlite_checks.list_fault(once.db) == ""
    once.load()
    once.apply([Fund(9, "ann", 5, "f9")], NOW)
    once.close()
    return folder / "ledger.db"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE sqlite_schema SET name = 'one_toid', sql = replace(sql, 'one_void', 'one_toid')"
        " WHERE name = 'one_void'",
        "UPDATE sqlite_schema SET sql = replace(sql, 'debits >= 0', 'debits <= 0')"
        " WHERE name = 'account'",
        "DELETE FROM sqlite_schema WHERE name = 'transfer_of_hold'",
    ],
)
def test_books_whose_list_of_tables_is_damaged_are_not_written(
    shut: pathlib.Path, change: str
) -> None:
    db = apsw.Connection(str(shut))
    db.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    db.execute("PRAGMA writable_schema=ON")
    db.execute(change)
    assert db.changes() == 1
    db.close()
    book = SqliteBook(shut.parent)
    assert "the list of tables is damaged" in book.loss
    book.close()


def test_books_that_seem_new_and_are_not_are_refused(shut: pathlib.Path) -> None:
    clean = shut.read_bytes()
    version = bytearray(clean)
    version[60:64] = bytes(4)  # user_version
    for spoilt in (version, b""):
        shut.write_bytes(spoilt)
        with pytest.raises(RemoteError, match=r"says that it has no books\n.*restore .*ledger\.db"):
            SqliteBook(shut.parent)
        assert len(shut.read_bytes()) <= max(len(spoilt), 4096)  # no empty tables in their place
        shut.write_bytes(clean)
        book = SqliteBook(shut.parent)
        assert book.loss == "" and audit.audit(book.db) == []
        book.close()


# ---------------------------------------------------------------- bills


AMOUNTS = "subtasks failed cpu_us wall_us amount_ucredits toll_ucredits".split()


def keys(rows: list[Any]) -> list[tuple[str, int, int]]:
    return [(row.key, row.subtasks, row.amount_ucredits) for row in rows]


def test_bills(book: SqliteBook, entries: Any) -> None:
    fill(book, entries)

    def ask(by: Any, tenant: str = "", ref: str = "") -> list[tuple[str, int, int]]:
        return keys(bills.usage(book.db, AskUsage(1, tenant, by, ref)))

    assert ask("job") == [("j3", 0, 0), ("j2", 5, 1_000), ("j1", 20, 2_000)]
    assert ask("job", "ann") == [("j3", 0, 0), ("j1", 20, 2_000)]
    assert ask("node") == [("mill", 15, 2_000), ("barn", 10, 1_000)]
    assert ask("day") == [("2027-01-16", 5, 1_000), ("2027-01-15", 20, 2_000)]
    assert ask("day", "bob") == [("2027-01-16", 5, 1_000)]
    assert ask("job", "ann", "b/1") == [("j1", 20, 2_000)]
    assert ask("node", "ann", "b/1") == [("barn", 10, 1_000), ("mill", 10, 1_000)]
    assert ask("day", "", "b/2") == [("2027-01-16", 5, 1_000)]
    assert ask("job", "nobody") == []
    for tenant, ref in (("bob", "b/1"), ("", "b/404")):
        with pytest.raises(RemoteError, match="UNKNOWN_JOB"):
            ask("job", tenant, ref)
    book.apply([Post("c", 1, [Hold("c/1", "ann", 1)])], NOW)
    assert [key for key, _, _ in ask("job", "ann")] == ["c/1", "b/3", "b/1"]


KEYS = ("tenant", "node", "job", "day")
SPLITS = [",".join(keys) for size in range(1, 5) for keys in itertools.permutations(KEYS, size)]


@pytest.mark.parametrize(("tenant", "ref"), [("", ""), ("ann", ""), ("", "b/1"), ("ann", "b/1")])
def test_a_bill_adds_up_however_it_is_split(
    book: SqliteBook, entries: Any, tenant: str, ref: str
) -> None:
    fill(book, entries)
    facts: set[tuple[Any, ...]] = set()
    for by in SPLITS:
        rows = bills.usage(book.db, AskUsage(1, tenant, by, ref))
        sums = [sum(getattr(row, name) for row in rows) for name in AMOUNTS]
        assert all(len(row.keys) == by.count(",") + 1 for row in rows)
        assert len({tuple(row.keys) for row in rows}) == len(rows), "each key once"
        facts.add(tuple(sums))
        whole = dict(zip(by.split(","), zip(*(row.keys for row in rows), strict=True), strict=True))
        assert set(whole.get("tenant", ("ann",))) <= ({tenant} if tenant else {"ann", "bob"})
    assert len(facts) == 1, f"one total for all splits, not {facts}"


def test_a_bill_by_four_keys(book: SqliteBook, entries: Any) -> None:
    fill(book, entries)
    rows = bills.usage(book.db, AskUsage(1, "", "day,tenant,job,node"))
    assert [(row.keys, row.amount_ucredits) for row in rows] == [
        (["2027-01-16", "bob", "j2", "mill"], 1_000),
        (["2027-01-15", "ann", "j1", "barn"], 1_000),
        (["2027-01-15", "ann", "j1", "mill"], 1_000),
    ]


@pytest.mark.parametrize("by", ["", "moon", "job,job", "job,", "tenant;day"])
def test_another_split_is_refused(book: SqliteBook, by: str) -> None:
    with pytest.raises(RemoteError, match=r"INVALID_SPEC: usage by .* tenant, node, job, day"):
        bills.usage(book.db, AskUsage(1, "", by))


def test_a_long_bill_ends_in_its_sum(book: SqliteBook, entries: Any) -> None:
    book.apply([Fund(1, "ann", 10_000_000, "f")], NOW)
    sent: list[Any] = []
    for job in range(1, 1_001):
        sent += [Hold(f"b/{job}", "ann", 100), entries.contribution(0, 1, 100, ref=f"b/{job}")]
    book.apply([Post("b", 1, sent)], NOW)
    rows = bills.usage(book.db, AskUsage(1, "ann", "job"))
    assert rows[0].key == "j1000"
    assert rows[-1].key == bills.OTHERS
    assert sum(row.amount_ucredits for row in rows) == 100_000
    assert sum(row.toll_ucredits for row in rows) == 3_000


def test_balances(book: SqliteBook, entries: Any) -> None:
    fill(book, entries)
    whole = bills.balance(book.db, book.state, "")
    assert whole.sum_ucredits == 0
    assert sum(row.posted_ucredits for row in whole.accounts) == 0
    assert [row.name for row in whole.accounts][:3] == ["world", "escrow", "toll"]
    own = bills.balance(book.db, book.state, "ann")
    (row,) = own.accounts
    assert (row.name, row.posted_ucredits) == ("tenant:ann", 998_000)
    assert (row.held_ucredits, row.available_ucredits) == (98_007, 899_993)
    assert bills.balance(book.db, book.state, "new").accounts[0].available_ucredits == 0
