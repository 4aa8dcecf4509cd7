"""Another library, with a SQLite of its own, adds the books up and finds the same.

Only when the ledger has closed them: see docs/adr/0010.
"""

import pathlib
from typing import Any

import sqlite_utils
from ledger_rig import LedgerProcess

from gristmill.wire.ledger import Hold, Release


def test_sqlite_utils_adds_up_the_same(
    ledger: LedgerProcess, entries: Any, tmp_path: pathlib.Path
) -> None:
    ledger.start("--fund", "ann=5", "--fund", "bob=3")
    ledger.post(1, Hold("b/1", "ann", 900_000), Hold("b/2", "bob", 500_000))
    ledger.post(3, entries.contribution(0), entries.contribution(10, node="barn", amount=34))
    ledger.post(5, entries.contribution(0, ref="b/2", tenant="bob", amount=33), Release("b/2"))
    told = {row.name: row for row in ledger.balance().accounts}
    assert ledger.end()[0] == 0

    books = sqlite_utils.Database(ledger.state / "ledger.db")
    names = {row["id"]: row["name"] for row in books["account"].rows}
    posted = dict.fromkeys(names, 0)
    held = dict.fromkeys(names, 0)
    for row in books["transfer"].rows_where(order_by="number"):
        kind, amount = row["kind"], row["amount"]
        if kind in (0, 2):
            posted[row["debit"]] -= amount
            posted[row["credit"]] += amount
        if kind:
            held[row["debit"]] += amount if kind == 1 else -amount
    assert sum(posted.values()) == 0
    for number, name in names.items():
        assert posted[number] == told[name].posted_ucredits, name
        assert held[number] == told[name].held_ucredits, name
    (earned,) = books.query("SELECT sum(amount) AS all_, sum(toll) AS toll FROM contribution")
    assert (earned["all_"], earned["toll"]) == (1_067, 30 + 1 + 0)
    assert posted[next(n for n, name in names.items() if name == "toll")] == 31
    books.close()
