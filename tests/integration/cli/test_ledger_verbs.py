"""``gristmill ledger``: what an operator does with the books of a real grid."""

import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import apsw
import msgspec

Run = Callable[..., Any]


def credits_of(run: Run, name: str) -> str:
    rows = [line.split() for line in run("balance", "--all").out.splitlines()]
    return next((row[1] for row in rows if row[:1] == [name]), "none")


def test_credits_are_minted_and_moved_once(run: Run) -> None:
    assert run("ledger", "fund", "carl", "7.5", "--ref", "test-carl").code == 0
    assert run("ledger", "fund", "carl", "7.5", "--ref", "test-carl").code == 0
    assert credits_of(run, "tenant:carl") == "7.5"
    other = run("ledger", "fund", "carl", "8", "--ref", "test-carl")
    assert other.code == 1 and "LEDGER_CONFLICT" in other.err and "was 7.5 credits" in other.err
    legs = ("tenant:carl,tenant:local,2", "tenant:carl,tenant:local,0.5")
    for _ in range(2):
        assert run("ledger", "transfer", *legs, "--ref", "test-move").code == 0
    again = run("ledger", "transfer", legs[0], "--ref", "test-move")
    assert again.out.startswith("2 credits from tenant:carl to tenant:local; ")
    other = run("ledger", "transfer", "tenant:carl,tenant:local,1", "--ref", "test-move")
    assert "the transfer of this --ref was 2 credits" in other.err, other.err
    assert "another --ref" in other.err
    assert credits_of(run, "tenant:carl") == "5"
    for leg, told in (
        ("tenant:carl,tenant:local,5.1", "tenant:carl has 5 available; the transfer asks for 5.1"),
        ("tenant:carl,tenant:nobody,1", "there is no account 'tenant:nobody'"),
        ("tenant:carl,escrow,1", "credits of escrow are moved by holds and payments"),
        ("tenant:carl,1", "write FROM,TO,CREDITS"),
        ("tenant:carl,tenant:local,-1", "-1"),
    ):
        refused = run("ledger", "transfer", leg, "--ref", f"bad {leg}")
        assert refused.code and told in refused.err, (leg, refused.err)
    assert credits_of(run, "tenant:carl") == "5"


def test_a_ledger_that_does_not_answer(run: Run, tmp_path: pathlib.Path) -> None:
    told = run("ledger", "fund", "x", "1", "--ref", "r", "--ledger", "nonsense")
    assert told.code == 2 and "is not an address" in told.err
    assert "next: write it as ipc:///path/ledger or tcp://HOST:PORT" in told.err


def test_the_audit_names_the_first_bad_row(run: Run, grid: Any, tmp_path: pathlib.Path) -> None:
    run("submit", "--wait", "--", "echo", "hello")
    good = run("ledger", "audit", "--state", str(grid.state))
    assert good.code == 0 and "is in order" in good.out and "head of the transfers" in good.out
    document = msgspec.json.decode(run("ledger", "audit", "--state", str(grid.state), "--json").out)
    assert document["faults"] == [] and document["facts"]["transfers"] >= 3

    folder = tmp_path / "ledger"
    folder.mkdir()
    source = apsw.Connection(str(grid.state / "ledger" / "ledger.db"))
    copy = apsw.Connection(str(folder / "ledger.db"))
    with copy.backup("main", source, "main") as backup:
        backup.step()
    source.close()
    copy.execute("DROP TRIGGER transfer_immutable")
    copy.execute("UPDATE transfer SET amount = amount + 1 WHERE number = 2")
    copy.close()
    bad = run("ledger", "audit", "--state", str(tmp_path))
    assert bad.code == 1 and "NOT in order" in bad.err
    assert bad.out.startswith("transfer 2 is not the one that was chained to the last")

    (folder / "ledger.db").write_bytes(b"\0" * 8192)
    torn = run("ledger", "audit", "--state", str(tmp_path))
    assert torn.code == 2 and "the books cannot be read" in torn.err, (torn.out, torn.err)
    shutil.rmtree(folder)
    missing = run("ledger", "audit", "--state", str(tmp_path))
    assert missing.code == 2 and "there are no books at" in missing.err


def test_an_account_or_books_that_are_not_there_say_where_to_look(run: Run) -> None:
    told = run("statement", "--account", "nonsense")
    assert told.code == 2 and "there is no account 'nonsense'" in told.err
    assert "next: gristmill balance --all" in told.err
    told = run("ledger", "audit", "--books", "postgresql://127.0.0.1:1/none")
    assert told.code == 2 and "\t" not in told.err and len(told.err.splitlines()) == 2, told.err
    assert "next: --books postgresql://USER@HOST/NAME" in told.err
