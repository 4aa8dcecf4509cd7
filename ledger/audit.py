"""Whether the books are in order: every chain and checksum, every balance from its transfers.

Run whenever the ledger opens its books, and by ``gristmill ledger audit``. Everything is computed
again from row one: what is money is not sampled. What is told first is the first bad row.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from typing import Any

from gristmill.ledger import chain_rows, intent_rows, schema
from gristmill.ledger.core.ids import NODES_LEG, TOLLS_LEG, named_id, outbox_id, outbox_prefix
from gristmill.ledger.core.step import digest_of_entry
from gristmill.ledger.engine import Database
from gristmill.ledger.epoch_audit import epoch_faults, key_faults
from gristmill.wire.ledger import Contribution

DAY_MS = 86_400_000
FAULTS_MAX = 20  #: faults named; a broken file has thousands

_MONEY = {
    "account": schema.ACCOUNT,
    "hold": schema.HOLD,
    "contribution": schema.CONTRIBUTION,
    "mint": schema.MINT,
    "outbox": schema.OUTBOX,
    "public_key": schema.PUBLIC_KEY,
    "epoch": schema.EPOCH,
    "epoch_range": schema.EPOCH_RANGE,
    **intent_rows.MONEY,
    **chain_rows.MONEY,
}


def audit(db: Database, own: Iterable[str] = ()) -> list[str]:
    """Faults in words, at most ``FAULTS_MAX``; empty when the books are in order.

    ``own``: what the database itself finds wrong with its files.
    """
    faults: list[str] = []
    try:
        for fault in itertools.chain(own, _faults(db)):
            faults.append(fault)
            if len(faults) >= FAULTS_MAX:
                faults.append("and perhaps more")
                break
    except Exception as error:
        # A damaged page can make anything of a value: a text that is none, a number that is null.
        faults.append(f"the file cannot be read: {error!r}")
    return faults


def _faults(db: Database) -> Iterator[str]:
    yield from _chain_faults(db)
    for table, columns in _MONEY.items():
        for row in db.execute(f"SELECT {columns}, crc FROM {table}"):
            if schema.checksum(row[:-1]) != row[-1]:
                yield f"a row of {table} does not have its checksum: {row!r:.200}"
    yield from _transfer_faults(db)
    yield from _contribution_faults(db)
    yield from _entry_faults(db)
    yield from key_faults(db)
    yield from epoch_faults(db)
    yield from intent_rows.faults(db)
    yield from chain_rows.faults(db)


def _chain_faults(db: Database) -> Iterator[str]:
    """Transfers and entries from row one: each in its place, and none changed since."""
    chain, number = schema.NO_CHAIN, 0
    for *row, found in db.execute(f"SELECT {schema.TRANSFER}, chain FROM transfer ORDER BY number"):
        number += 1
        if row[0] != number:
            yield f"transfer {number} is missing; the next is {row[0]}"
            number = row[0]
        elif schema.chained(chain, row) != found:
            yield f"transfer {number} is not the one that was chained to the last: {row!r:.200}"
        chain = found
    whose, sequence = 0, 0
    query = f"SELECT {schema.ENTRY}, chain FROM entry ORDER BY broker, sequence"
    for *row, found in db.execute(query):
        if row[0] != whose:
            whose, sequence, chain = row[0], 0, schema.NO_CHAIN
        sequence += 1
        if row[1] != sequence:
            yield f"entry {sequence} of outbox {whose} is missing; the next is {row[1]}"
            sequence = row[1]
        elif schema.chained(chain, row) != found:
            yield (
                f"entry {sequence} of outbox {whose} is not the one that was chained to the last: "
                f"{row!r:.200}"
            )
        chain = found


def _transfer_faults(db: Database) -> Iterator[str]:
    """Balances and holds against the transfers that made them."""
    debits: defaultdict[int, int] = defaultdict(int)
    credits_: defaultdict[int, int] = defaultdict(int)
    debits_pending: defaultdict[int, int] = defaultdict(int)
    spent: defaultdict[int, int] = defaultdict(int)
    amounts: dict[int, int] = {}
    voids: dict[int, int] = {}
    for id_, kind, debit, credit, amount, pending in db.execute(
        "SELECT number, kind, debit, credit, amount, pending FROM transfer"
    ):
        if kind == 1:
            debits_pending[debit] += amount
            amounts[id_] = amount
            continue
        if kind in (2, 3, 4):
            debits_pending[debit] -= amount
            if kind != 2:
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
    for ref, tenant, minted, *moved in db.execute(
        "SELECT ref, tenant, mint.amount, t.id, t.kind, t.amount, name FROM mint"
        " LEFT JOIN transfer AS t ON t.number = mint.transfer"
        " LEFT JOIN account ON account.id = t.credit"
    ):
        if moved != [named_id("fund", ref), 0, minted, f"tenant:{tenant}"]:
            yield f"funding {ref} is not what its transfer moved"
    for id_ in amounts:
        yield f"pending transfer {id_} has no hold"
    for (number,) in db.execute(
        "SELECT number FROM transfer JOIN account ON account.id = debit WHERE name = 'world'"
        " AND NOT EXISTS (SELECT 1 FROM mint WHERE mint.transfer = transfer.number)"
        " AND NOT EXISTS (SELECT 1 FROM payment WHERE payment.transfer = transfer.number)"
        " AND NOT EXISTS (SELECT 1 FROM chain_move WHERE chain_move.transfer = transfer.number)"
    ):
        yield f"transfer {number} minted credits for no funding, no payment and no rental"


def _contribution_faults(db: Database) -> Iterator[str]:
    """Contributions against holds, tallies and each other."""
    query = (
        "SELECT ref, hold.subtasks, hold.failed, hold.cpu_us, hold.wall_us, spent, hold.toll,"
        " coalesce(sum(c.subtasks), 0), coalesce(sum(c.failed), 0), coalesce(sum(c.cpu_us), 0),"
        " coalesce(sum(c.wall_us), 0), coalesce(sum(c.amount), 0), coalesce(sum(c.toll), 0)"
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
    (toll,) = db.execute("SELECT coalesce(sum(toll), 0) FROM contribution").fetchone() or (0,)
    query = (
        "SELECT coalesce(sum(amount), 0) FROM transfer JOIN account ON account.id = credit"
        " WHERE name = 'toll' AND kind = 2"
    )
    (got,) = db.execute(query).fetchone() or (0,)
    if toll != got:
        yield f"contributions make a toll of {toll}; the account toll got {got}"
    yield from _tally_faults(db)
    yield from _receipt_faults(db)


def _tally_faults(db: Database) -> Iterator[str]:
    """Sums for bills against the contributions that made them."""
    contributed: defaultdict[tuple[str, int, str], list[int]] = defaultdict(lambda: [0] * 6)
    for tenant, day, node, *sums in db.execute(
        f"SELECT tenant, ended_ms / {DAY_MS}, node, sum(c.subtasks), sum(c.failed), sum(c.cpu_us),"
        " sum(c.wall_us), sum(c.amount), sum(c.toll) FROM contribution AS c"
        f" JOIN hold ON hold.id = c.hold GROUP BY tenant, ended_ms / {DAY_MS}, node"
    ):
        contributed[tenant, day, node] = sums
    for tenant, day, node, *sums in db.execute(
        "SELECT tenant, day, node, subtasks, failed, cpu_us, wall_us, amount, toll FROM tally"
    ):
        made = contributed.pop((tenant, day_number(day), node), None)
        if made != sums:
            yield f"the tally of {tenant}, {node}, {day} is {sums}; contributions make {made}"
    for tenant, day, node in contributed:
        yield f"there is no tally of {tenant}, {node}, day {day}"


def _receipt_faults(db: Database) -> Iterator[str]:
    """Contributions against the entries that brought them and the transfers that paid them."""
    fields = ", ".join(f"c.{name.strip()}" for name in schema.CONTRIBUTION.split(","))
    prefixes: dict[str, bytes] = {}
    for ref, tenant, digest, code, *row in db.execute(
        f"SELECT ref, tenant, entry.digest, entry.code, {fields}, paid.id, paid.amount, kept.id,"
        " kept.amount FROM contribution AS c JOIN hold ON hold.id = c.hold"
        " LEFT JOIN entry ON entry.broker = c.broker AND entry.sequence = c.sequence"
        " LEFT JOIN transfer AS paid ON paid.number = c.node_transfer"
        " LEFT JOIN transfer AS kept ON kept.number = c.toll_transfer"
    ):
        *row, paid_id, paid, kept_id, kept = row
        entry = entry_of(ref, tenant, row)
        told = f"subtasks {entry.first} to {entry.first + entry.count - 1} of {ref}"
        if code != "" or digest_of_entry(entry) != digest:
            yield f"the contribution of {told} is not what entry {row[6]} brought"
        broker = ref.rpartition("/")[0]
        prefix = prefixes.setdefault(broker, outbox_prefix(broker))
        share = entry.amount_ucredits - entry.toll_ucredits
        legs = ((share, NODES_LEG, paid_id, paid), (entry.toll_ucredits, TOLLS_LEG, kept_id, kept))
        for amount, leg, id_, moved in legs:
            asked = (outbox_id(prefix, row[6], leg), amount) if amount else (None, None)
            if (id_, moved) != asked:
                yield f"the contribution of {told} is not what its transfers paid"
                break


def entry_of(ref: str, tenant: str, row: Sequence[Any]) -> Contribution:
    """The entry that a row of ``contribution`` (``schema.CONTRIBUTION``) came from."""
    (
        _, replica, attempt, first, count, _, _, node, lease_id, subtasks, failed, wall_us, cpu_us,
        peak_kib, metering, is_estimated, amount, toll, ended_ms, signature, work, *receipt, _, _,
    ) = row  # fmt: skip
    if lease_id < 0:  # u64 on the wire, signed 64 bits in a database
        lease_id += 1 << 64
    return Contribution(
        ref, tenant, node, lease_id, first, count, attempt, subtasks, failed, wall_us, cpu_us,
        peak_kib, metering, bool(is_estimated), amount, toll, ended_ms, replica, signature, work,
        *receipt,
    )  # fmt: skip


def _entry_faults(db: Database) -> Iterator[str]:
    """Every outbox up to where it is applied."""
    query = (
        "SELECT outbox.broker, applied, count(sequence), coalesce(max(sequence), 0) FROM outbox"
        " LEFT JOIN entry ON entry.broker = outbox.id GROUP BY outbox.id, outbox.broker, applied"
    )
    for broker, applied, count, last in db.execute(query):
        if not applied == last == count:
            yield f"outbox {broker} is applied up to {applied}; it has {count} entries up to {last}"


def day_number(day: str) -> int:
    """Days since the epoch until ``2026-11-22``."""
    return date.fromisoformat(day).toordinal() - date(1970, 1, 1).toordinal()
