"""Whether the books are in order: every checksum, every balance from its transfers, sum zero.

Run whenever the ledger opens its file. It reads every row (about 10 us for each contribution,
with its transfers and its entry): what is money is not sampled.
"""

import itertools
import pathlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import apsw

from gristmill.ledger import schema

FAULTS_MAX = 20  #: faults named; a broken file has thousands

_MONEY = {
    "account": schema.ACCOUNT,
    "transfer": schema.TRANSFER,
    "hold": schema.HOLD,
    "contribution": schema.CONTRIBUTION,
    "mint": schema.MINT,
    "entry": schema.ENTRY,
    "outbox": schema.OUTBOX,
}


def open_for_reading(path: pathlib.Path, patience_ms: int = 10_000) -> apsw.Connection:
    """A SQLite file that another process may be writing."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    db.set_busy_timeout(patience_ms)
    return db


def audit(db: apsw.Connection) -> list[str]:
    """Faults in words, at most ``FAULTS_MAX``; empty when the books are in order."""
    faults: list[str] = []
    try:
        for fault in _faults(db):
            faults.append(fault)
            if len(faults) >= FAULTS_MAX:
                faults.append("and perhaps more")
                break
    except (apsw.Error, ArithmeticError, LookupError, TypeError, ValueError) as error:
        # A damaged page can make anything of a value: a text that is none, a number that is null.
        faults.append(f"the file cannot be read: {error!r}")
    return faults


def list_fault(db: apsw.Connection) -> str:
    """What of SQLite's list of tables is not as this release makes it, in words; empty for nothing.

    The list has no checksum of its own: a flipped bit changes a name, a check or a trigger.
    """
    fresh = apsw.Connection(":memory:")
    fresh.execute(schema.TABLES)
    query = "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL"
    try:
        missing = set(fresh.execute(query)) - set(db.execute(query))
    except (apsw.Error, UnicodeDecodeError) as error:
        return f"the list of tables cannot be read: {error}"
    finally:
        fresh.close()
    names = sorted(str(name) for _, name, *_ in missing)
    return f"the list of tables is damaged: {', '.join(names[:5])} not as made" if names else ""


def _faults(db: apsw.Connection) -> Iterator[str]:
    for (told,) in db.execute("PRAGMA quick_check(5)"):
        if told != "ok":
            yield f"SQLite says: {told}"
    for (told,) in db.execute("SELECT \"table\" || ' ' || rowid FROM pragma_foreign_key_check"):
        yield f"a row of {told} refers to nothing"
    for table, columns in _MONEY.items():
        for row in db.execute(f"SELECT {columns}, crc FROM {table}"):
            if schema.checksum(row[:-1]) != row[-1]:
                yield f"a row of {table} does not have its checksum: {row!r:.200}"
    yield from _transfer_faults(db)
    yield from _contribution_faults(db)
    yield from _entry_faults(db)


def _transfer_faults(db: apsw.Connection) -> Iterator[str]:
    """Balances and holds against the transfers that made them."""
    debits: defaultdict[int, int] = defaultdict(int)
    credits_: defaultdict[int, int] = defaultdict(int)
    debits_pending: defaultdict[int, int] = defaultdict(int)
    spent: defaultdict[int, int] = defaultdict(int)
    amounts: dict[int, int] = {}
    voids: dict[int, int] = {}
    expected = 0
    for id_, kind, debit, credit, amount, pending in db.execute(
        "SELECT id, kind, debit, credit, amount, pending FROM transfer ORDER BY id"
    ):
        expected += 1
        if id_ != expected:
            yield f"transfer {expected} is missing; the next is {id_}"
            expected = id_
        if kind == 1:
            debits_pending[debit] += amount
            amounts[id_] = amount
            continue
        if kind in (2, 3):
            debits_pending[debit] -= amount
            if kind == 3:
                voids[pending] = amount
                continue
            spent[pending] += amount
        debits[debit] += amount
        credits_[credit] += amount
    pending_sum = sum(debits_pending.values())
    total = 0
    for id_, name, may_overdraw, *sides in db.execute(f"SELECT {schema.ACCOUNT} FROM account"):
        found = (
            debits[id_],
            credits_[id_],
            debits_pending[id_],
            pending_sum if name == "escrow" else 0,
        )
        if found != tuple(sides):
            yield f"account {name} has {tuple(sides)}; its transfers make {found}"
        total += sides[1] - sides[0]
        if sides[0] + sides[2] > sides[1] and not may_overdraw:
            yield f"account {name} is overdrawn"
    if total:
        yield f"the sum of all accounts is {total}, not 0"
    for id_, ref, amount, was_spent, closed_ms in db.execute(
        "SELECT id, ref, amount, spent, closed_ms FROM hold"
    ):
        if amounts.pop(id_, None) != amount or spent[id_] != was_spent:
            yield f"hold {ref}: {was_spent} of {amount} spent; its transfers make {spent[id_]}"
        if voids.get(id_) != (amount - was_spent if closed_ms else None):
            yield f"hold {ref} is {'closed' if closed_ms else 'open'}; void: {voids.get(id_)}"
    for (ref,) in db.execute(
        "SELECT ref FROM mint LEFT JOIN transfer AS t ON t.id = mint.transfer"
        " LEFT JOIN account ON account.id = t.credit WHERE t.kind IS NOT 0"
        " OR t.amount IS NOT mint.amount OR name IS NOT 'tenant:' || tenant"
    ):
        yield f"funding {ref} is not what its transfer moved"
    for id_ in amounts:
        yield f"pending transfer {id_} has no hold"


def _contribution_faults(db: apsw.Connection) -> Iterator[str]:
    """Contributions against holds, tallies and each other."""
    query = (
        "SELECT ref, hold.subtasks, hold.failed, hold.cpu_us, hold.wall_us, spent, hold.toll,"
        " ifnull(sum(c.subtasks), 0), ifnull(sum(c.failed), 0), ifnull(sum(c.cpu_us), 0),"
        " ifnull(sum(c.wall_us), 0), ifnull(sum(c.amount), 0), ifnull(sum(c.toll), 0)"
        " FROM hold LEFT JOIN contribution AS c ON c.hold = hold.id GROUP BY hold.id"
    )
    for ref, *sums in db.execute(query):
        if sums[:6] != sums[6:]:
            yield f"hold {ref} has sums {sums[:6]}; its contributions make {sums[6:]}"
    last: tuple[Any, ...] = ()
    end = 0
    for hold, replica, attempt, first, count in db.execute(
        "SELECT hold, replica, attempt, first, count FROM contribution"
        " ORDER BY hold, replica, attempt, first"
    ):
        if (hold, replica, attempt) != last:
            last, end = (hold, replica, attempt), 0
        if first < end:
            yield f"subtask {first} of hold {hold}, attempt {attempt}, is billed twice"
        end = first + count
    (toll,) = db.execute("SELECT ifnull(sum(toll), 0) FROM contribution").fetchone() or (0,)
    row = db.execute("SELECT credits FROM account WHERE name = 'toll'").fetchone()
    if toll != (row[0] if row else 0):
        yield f"contributions make a toll of {toll}; the account toll got {row and row[0]}"
    made = (
        "sum(c.subtasks), sum(c.failed), sum(c.cpu_us), sum(c.wall_us), sum(c.amount), sum(c.toll)"
    )
    contributed = db.execute(
        f"SELECT tenant, date(ended_ms / 1000, 'unixepoch') AS day, node, {made}"
        " FROM contribution AS c JOIN hold ON hold.id = c.hold"
        " GROUP BY tenant, day, node ORDER BY tenant, day, node"
    )
    tallied = db.execute(
        "SELECT tenant, day, node, subtasks, failed, cpu_us, wall_us, amount, toll FROM tally"
        " ORDER BY tenant, day, node"
    )
    for found, expected in itertools.zip_longest(tallied, contributed):
        if found != expected:
            yield f"a tally is {found!r:.200}; contributions make {expected!r:.200}"
            break


def _entry_faults(db: apsw.Connection) -> Iterator[str]:
    """Every outbox without a gap."""
    query = (
        "SELECT outbox.broker, applied, count(sequence), ifnull(max(sequence), 0) FROM outbox"
        " LEFT JOIN entry ON entry.broker = outbox.id GROUP BY outbox.id"
    )
    for broker, applied, count, last in db.execute(query):
        if not applied == last == count:
            yield f"outbox {broker} is applied up to {applied}; it has {count} entries up to {last}"


def audit_seconds(db: apsw.Connection) -> tuple[list[str], float]:
    """The audit and how long it took."""
    started = time.monotonic()
    return audit(db), time.monotonic() - started
