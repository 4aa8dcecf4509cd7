"""Rows of the ledger's tables from what the core decided, and how very many of them are written.

A statement of many rows costs SQLite and its binding about two thirds of as many statements of one;
triggers, references and checks see each row all the same.
"""

import functools
import hashlib
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from gristmill.ledger import schema
from gristmill.ledger.core import effects as fx
from gristmill.ledger.core.state import Account, Hold
from gristmill.ledger.engine import Database

ROWS_A_STATEMENT = 32  #: of 32 columns at most, far below the values that a statement may have

Row = tuple[Any, ...]
Flat = list[Any]  #: sealed rows one behind the other
#: (tenant, node, day since the epoch) -> subtasks, failed, cpu, wall, amount, toll: for bills
Tallies = dict[tuple[str, str, int], list[int]]
DAY_MS = 86_400_000
_astuple = msgspec.structs.astuple
_encode = msgspec.msgpack.Encoder().encode
_crc32 = zlib.crc32
_sha256 = hashlib.sha256
_TRANSFER_WIDTH = schema.TRANSFER.count(",") + 2


@functools.cache
def _statements(table: str, columns: str) -> tuple[int, list[str]]:
    """(values of a sealed row, inserts of 1, 2, 4, ... rows)."""
    head, _, marks = schema.insert(table, columns).partition("VALUES")
    powers = range(ROWS_A_STATEMENT.bit_length())
    return marks.count("?"), [f"{head}VALUES{', '.join([marks] * (1 << at))}" for at in powers]


def insert_all(db: Database, table: str, columns: str, flat: Flat) -> None:
    """Inserts rows in their order; the caller's transaction undoes all of them when one is bad."""
    width, statements = _statements(table, columns)
    size = width * ROWS_A_STATEMENT
    done = len(flat) - len(flat) % size
    if done:
        db.executemany(statements[-1], [flat[at : at + size] for at in range(0, done, size)])
    while left := (len(flat) - done) // width:
        power = left.bit_length() - 1
        upto = done + (width << power)
        db.execute(statements[power], flat[done:upto])
        done = upto
    assert done == len(flat), (table, done, len(flat))


def account_row(account: Account) -> Row:
    """The row of ``account``; as all of these, sealed."""
    return schema.sealed(
        (
            account.id,
            account.name,
            int(account.may_overdraw),
            account.debits,
            account.credits,
            account.debits_pending,
            account.credits_pending,
        )
    )


def transfer_rows(effects: Iterable[fx.AddTransfer], chain: bytes) -> Flat:
    """Rows of ``transfer`` behind ``chain``: an effect has the columns in their order."""
    flat: Flat = []
    for row in map(_astuple, effects):
        chain = _sha256(chain + _encode(row)).digest()
        flat += row
        flat.append(chain)
    return flat


def accounts_of(transfers: Flat) -> dict[int, None]:
    """The accounts that these rows of ``transfer`` debit or credit."""
    return dict.fromkeys(transfers[3::_TRANSFER_WIDTH]) | dict.fromkeys(
        transfers[4::_TRANSFER_WIDTH]
    )


def is_any_pending(transfers: Flat) -> bool:
    """Whether one of these rows of ``transfer`` is of a hold."""
    return any(transfers[6::_TRANSFER_WIDTH])


def hold_row(hold: Hold) -> Row:
    """The row of ``hold``."""
    return schema.sealed(
        (
            hold.id,
            hold.ref,
            hold.tenant,
            hold.amount,
            hold.rental,
            hold.spent,
            hold.closed_ms,
            hold.subtasks,
            hold.failed,
            hold.cpu_us,
            hold.wall_us,
            hold.toll,
        )
    )


def opened_row(hold: Hold) -> Row:
    """The row of ``hold`` before anything was posted out of it."""
    return hold_row(Hold(hold.id, hold.ref, hold.tenant, hold.amount, hold.rental))


def contribution_rows(
    effects: Iterable[fx.AddContribution], outbox_of: Callable[[Hold], int], tallies: Tallies
) -> Flat:
    """Rows of ``contribution``; their sums are added to ``tallies``."""
    flat: Flat = []
    last: Hold | None = None
    outbox = 0
    key: tuple[str, str, int] | None = None
    sums: list[int] = []
    for effect in effects:
        (
            _, tenant, node, lease_id, first, count, attempt, subtasks, failed, wall_us, cpu_us,
            peak_kib, metering, is_estimated, amount, toll, ended_ms, replica, *receipt,
        ) = _astuple(effect.entry)  # fmt: skip
        if lease_id >> 63:  # u64 on the wire, signed 64 bits in SQLite
            lease_id -= 1 << 64
        hold = effect.hold
        if hold is not last:
            last, outbox = hold, outbox_of(hold)
        row = (
            hold.id, replica, attempt, first, count, outbox, effect.sequence, node, lease_id,
            subtasks, failed, wall_us, cpu_us, peak_kib, metering, int(is_estimated), amount, toll,
            ended_ms, *receipt, effect.node_transfer, effect.toll_transfer,
        )  # fmt: skip
        flat += row
        flat.append(_crc32(_encode(row)))
        if key != (its_key := (tenant, node, ended_ms // DAY_MS)):
            key = its_key
            sums = tallies.setdefault(key, [0] * 6)
        sums[0] += subtasks
        sums[1] += failed
        sums[2] += cpu_us
        sums[3] += wall_us
        sums[4] += amount
        sums[5] += toll
    return flat


def entry_rows(outbox: int, effects: Iterable[fx.AddEntry], chain: bytes) -> Flat:
    """Rows of ``entry`` behind ``chain``; ``outbox``: the number of their broker's."""
    flat: Flat = []
    for effect in effects:
        _, sequence, kind, digest, code, message = _astuple(effect)
        row = (outbox, sequence, kind, digest, code, message)
        chain = _sha256(chain + _encode(row)).digest()
        flat += row
        flat.append(chain)
    return flat


def mint_row(effect: fx.AddMint) -> Row:
    """The row of ``mint``."""
    return schema.sealed((effect.ref, effect.tenant, effect.amount, effect.transfer))
