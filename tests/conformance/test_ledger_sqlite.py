"""Books in a SQLite file pass the suite that books anywhere must pass."""

import pathlib
from typing import Any

import chain_suite
import ledger_suite as suite
import pytest
import statement_suite

from gristmill.ledger.sqlite import SqliteBook

CHECKS = [*suite.CHECKS, *statement_suite.CHECKS, *chain_suite.CHECKS]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_sqlite(check: Any, tmp_path: pathlib.Path) -> None:
    opened: list[SqliteBook] = []

    def open_() -> SqliteBook:
        if opened:
            opened[-1].close()
        opened.append(SqliteBook(tmp_path / "state"))
        opened[-1].load()
        return opened[-1]

    def tamper(statement: str) -> None:
        db = opened[-1].db
        kept = list(db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"))
        db.execute("PRAGMA foreign_keys=OFF")
        db.execute("BEGIN")
        for name, _ in kept:
            db.execute(f"DROP TRIGGER {name}")
        db.execute(statement)
        for _, sql in kept:
            db.execute(sql)
        db.execute("COMMIT")
        db.execute("PRAGMA foreign_keys=ON")

    book = open_()
    try:
        twice = lambda: SqliteBook(tmp_path / "state")  # noqa: E731
        check(suite.Bench(book, open_, twice, tamper, "x'"))
    finally:
        opened[-1].close()
