"""Questions to the books: balances and bills, each small enough for one header frame.

A bill that has more rows than fit ends in a row ``(others)`` with the sums of the rest: a bill is
never cut in silence, and its columns always add up.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from gristmill.ledger.core.state import Account, LedgerState
from gristmill.ledger.engine import Database
from gristmill.ledger.watches import tag_of
from gristmill.wire.client import AccountRow, BalanceAnswer, UsageRow
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import format_job
from gristmill.wire.ledger import AskUsage, parse_by

ANSWER_BYTES_MAX = 48 << 10  #: of rows; the whole header may have 64 KiB
OTHERS = "(others)"

_FIELDS = ("subtasks", "failed", "cpu_us", "wall_us", "amount", "toll")
_DAY_MS = 86_400_000
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


def usage(db: Database, question: AskUsage) -> list[UsageRow]:
    """The bill: newest job or day first, or what cost most where it is split by neither.

    The key of a job is ``j17`` while all jobs of the answer are of one broker, else its whole
    ``ref``. ``subtasks`` are the billed ones.

    Raises:
        RemoteError: ``UNKNOWN_JOB`` when ``ref`` names a job that this tenant has no hold for,
            ``INVALID_SPEC`` when ``by`` is no split.
    """
    try:
        by = parse_by(question.by)
    except ValueError as error:
        raise RemoteError("INVALID_SPEC", f"usage by {error}") from None
    hold = _find_hold(db, question) if question.ref else 0
    query, values = _query(by, question.tenant, hold)
    bodies: list[tuple[tuple[Any, ...], tuple[Any, ...]]]
    bodies = [(found[: len(by)], found[len(by) :]) for found in db.execute(query, values)]
    if "day" in by:
        at = by.index("day")
        bodies = [((*k[:at], _day_of(k[at]), *k[at + 1 :]), sums) for k, sums in bodies]
    if "job" in by:
        at = by.index("job")
        names = _short_names([keys[at] for keys, _ in bodies])
        bodies = [((*k[:at], names[k[at]], *k[at + 1 :]), sums) for k, sums in bodies]
    rows = [_row(keys, *sums) for keys, sums in bodies]
    return _fit(rows, _merge_usage)


def _row(
    keys: Sequence[str], subtasks: int, failed: int, cpu_us: int, wall_us: int, amount: int,
    toll: int,
) -> UsageRow:  # fmt: skip
    name = " ".join(keys)
    return UsageRow(name, subtasks, failed, cpu_us, wall_us, amount, toll, list(keys))


def _find_hold(db: Database, question: AskUsage) -> int:
    found = list(db.execute("SELECT id, tenant FROM hold WHERE ref = ?", (question.ref,)))
    if not found or question.tenant not in ("", found[0][1]):
        raise RemoteError("UNKNOWN_JOB", f"the ledger has no hold {question.ref!r}")
    return int(found[0][0])


def _query(by: list[str], tenant: str, hold: int) -> tuple[str, tuple[str | int, ...]]:
    """The statement, from the table that has the fewest rows for it, and its values.

    Sums by hold and by (tenant, node, day) stand in tables of their own; only a bill that splits a
    job by node or day reads its contributions. Days are numbers of days, or texts in a tally.
    """
    day = f"contribution.ended_ms / {_DAY_MS}"
    if not hold and "job" not in by:
        table, columns = "tally", {"tenant": "tenant", "node": "node", "day": "day"}
        amounts: tuple[str, ...] = _FIELDS
    elif "node" not in by and "day" not in by:
        table, columns = "hold", {"tenant": "tenant", "job": "ref"}
        amounts = tuple("spent" if field == "amount" else field for field in _FIELDS)
    else:
        table = "contribution JOIN hold ON hold.id = contribution.hold"
        columns = {"tenant": "hold.tenant", "node": "node", "job": "hold.ref", "day": day}
        amounts = tuple(f"contribution.{field}" for field in _FIELDS)
    sums = ", ".join(f"sum({amount})" for amount in amounts)
    keys = [columns[key] for key in by]
    where: list[str] = []
    values: list[str | int] = []
    if tenant:
        where.append(f"{columns['tenant']} = ?")
        values.append(tenant)
    if hold:
        where.append("hold.id = ?")
        values.append(hold)
    order = [f"{columns['day']} DESC"] if "day" in by else []
    order += ["max(hold.id) DESC"] if "job" in by else []
    order += [f"sum({amounts[4]}) DESC", *keys]
    query = f"SELECT {', '.join((*keys, sums))} FROM {table}"
    query += f" WHERE {' AND '.join(where)}" if where else ""
    return f"{query} GROUP BY {', '.join(keys)} ORDER BY {', '.join(order)}", tuple(values)


def _day_of(day: str | int) -> str:
    """``2026-11-22``, of the number of a day since the epoch."""
    if isinstance(day, str):
        return day
    return time.strftime("%Y-%m-%d", time.gmtime(day * _DAY_MS // 1000))


def _short_names(refs: list[str]) -> dict[str, str]:
    brokers = {ref.rpartition("/")[0] for ref in refs}
    names = {}
    for ref in refs:
        job = ref.rpartition("/")[2]
        is_number = job.isascii() and job.isdigit()
        short = format_job(int(job)) if is_number else job
        names[ref] = ref if len(brokers) > 1 else short
    return names


def balance(db: Database, state: LedgerState, tenant: str) -> BalanceAnswer:
    """The tenant's accounts, or all of them; and the sum of *all* accounts, which is zero.

    The sum is read from the file, not from memory: it is there to be compared.
    """
    accounts = list(state.accounts.values())
    if tenant:
        shown = state.accounts_of(tenant)
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
        tag_of(state, tenant),
    )


def _is_many(account: Account) -> bool:
    """Tenants and nodes come after the accounts that there is one of."""
    return ":" in account.name
