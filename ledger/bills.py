"""Questions to the books: balances and bills, each small enough for one header frame.

A bill that has more rows than fit ends in a row ``(others)`` with the sums of the rest: a bill is
never cut in silence, and its columns always add up.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import apsw
import msgspec

from gristmill.ledger.core.state import Account, LedgerState
from gristmill.wire.client import AccountRow, BalanceAnswer, UsageRow
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import format_job
from gristmill.wire.ledger import AskUsage

ANSWER_BYTES_MAX = 48 << 10  #: of rows; the whole header may have 64 KiB
OTHERS = "(others)"

_SUMS = "sum(subtasks), sum(failed), sum(cpu_us), sum(wall_us), sum(amount), sum(toll)"
_encode = msgspec.msgpack.Encoder().encode
Row = TypeVar("Row", AccountRow, UsageRow)


def _fit(rows: Iterable[Row], merge: Callable[[list[Row]], Row]) -> list[Row]:
    """The first rows, and one for all that do not fit."""
    kept: list[Row] = []
    rest: list[Row] = []
    size = 0
    for row in rows:
        size += len(_encode(row))
        (kept if size <= ANSWER_BYTES_MAX and not rest else rest).append(row)
    if rest:
        kept.append(merge(rest))
    return kept


def _merge_usage(rows: list[UsageRow]) -> UsageRow:
    return UsageRow(
        OTHERS,
        sum(row.subtasks for row in rows),
        sum(row.failed for row in rows),
        sum(row.cpu_us for row in rows),
        sum(row.wall_us for row in rows),
        sum(row.amount_ucredits for row in rows),
        sum(row.toll_ucredits for row in rows),
    )


def _merge_accounts(rows: list[AccountRow]) -> AccountRow:
    return AccountRow(
        OTHERS,
        sum(row.posted_ucredits for row in rows),
        sum(row.held_ucredits for row in rows),
        sum(row.available_ucredits for row in rows),
    )


def usage(db: apsw.Connection, question: AskUsage) -> list[UsageRow]:
    """The bill: newest job or day first, or the node that earned most.

    The key of a job is ``j17`` while all jobs of the answer are of one broker, else its whole
    ``ref``. ``subtasks`` are the billed ones.

    Raises:
        RemoteError: ``UNKNOWN_JOB`` when ``ref`` names a job that this tenant has no hold for.
    """
    tenant = question.tenant
    if question.ref:
        row = db.execute(
            "SELECT id, tenant FROM hold WHERE ref = ? AND ? IN ('', tenant)",
            (question.ref, tenant),
        ).fetchone()
        if row is None:
            raise RemoteError("UNKNOWN_JOB", f"the ledger has no hold {question.ref!r}")
        if question.by == "job":
            query = (
                "SELECT ref, subtasks, failed, cpu_us, wall_us, spent, toll FROM hold WHERE id = ?"
            )
        elif question.by == "node":
            query = (
                f"SELECT node, {_SUMS} FROM contribution WHERE hold = ?"
                " GROUP BY node ORDER BY sum(amount) DESC, node"
            )
        else:
            query = (
                f"SELECT date(ended_ms / 1000, 'unixepoch') AS day, {_SUMS} FROM contribution"
                " WHERE hold = ? GROUP BY day ORDER BY day DESC"
            )
        rows = [UsageRow(*found) for found in db.execute(query, (row[0],))]
    else:
        if question.by == "job":
            query = (
                "SELECT ref, subtasks, failed, cpu_us, wall_us, spent, toll FROM hold"
                " WHERE ? IN ('', tenant) ORDER BY id DESC"
            )
        else:
            order = "sum(amount) DESC, node" if question.by == "node" else "day DESC"
            query = (
                f"SELECT {question.by}, {_SUMS} FROM tally WHERE ? IN ('', tenant)"
                f" GROUP BY {question.by} ORDER BY {order}"
            )
        rows = [UsageRow(*found) for found in db.execute(query, (tenant,))]
    return _fit(_short_keys(rows) if question.by == "job" else rows, _merge_usage)


def _short_keys(rows: list[UsageRow]) -> list[UsageRow]:
    brokers = {row.key.rpartition("/")[0] for row in rows}
    if len(brokers) > 1:
        return rows
    short = []
    for row in rows:
        job = row.key.rpartition("/")[2]
        is_number = job.isascii() and job.isdigit()
        short.append(msgspec.structs.replace(row, key=format_job(int(job)) if is_number else job))
    return short


def balance(db: apsw.Connection, state: LedgerState, tenant: str) -> BalanceAnswer:
    """The tenant's account, or all of them; and the sum of *all* accounts, which is zero.

    The sum is read from the file, not from memory: it is there to be compared.
    """
    accounts = list(state.accounts.values())
    if tenant:
        name = f"tenant:{tenant}"
        shown = [state.accounts.get(name) or Account(0, name)]
    else:
        shown = sorted(accounts, key=_is_many)
    rows = [
        AccountRow(account.name, account.posted, account.debits_pending, account.available)
        for account in shown
    ]
    return BalanceAnswer(
        _fit(rows, _merge_accounts),
        sum(row[0] for row in db.execute("SELECT credits - debits FROM account")),
        state.transfers,
    )


def _is_many(account: Account) -> bool:
    """Tenants and nodes come after the accounts that there is one of."""
    return ":" in account.name
