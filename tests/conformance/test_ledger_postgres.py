"""Books in PostgreSQL pass the suite that books anywhere must pass, and a server that dies."""

import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import chain_suite
import ledger_suite as suite
import psycopg
import pytest
import statement_suite
from ledger_rig import LedgerProcess
from postgres_rig import Cluster, cluster, find_programs

from gristmill.ledger.engine import GoneError
from gristmill.ledger.postgres import PostgresBook
from gristmill.wire.errors import RemoteError


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    if find_programs() is None:
        pytest.skip("PostgreSQL is not installed here (Debian: postgresql)")
    with cluster() as made:
        yield made


class Books:
    """The books of one database; closed and opened again by ``open``."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.book: PostgresBook | None = None

    def open(self) -> PostgresBook:
        if self.book is not None:
            self.book.close()
        self.book = PostgresBook(self.url)
        self.book.load()
        return self.book

    def tamper(self, statement: str) -> None:
        assert self.book is not None
        self.book.db.execute("SET session_replication_role = replica")
        self.book.db.execute(statement)
        self.book.db.execute("SET session_replication_role = origin")


@pytest.fixture
def books(server: Cluster) -> Iterator[Books]:
    made = Books(server.new())
    made.open()
    yield made
    assert made.book is not None
    made.book.close()


CHECKS = [*suite.CHECKS, *statement_suite.CHECKS, *chain_suite.CHECKS]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_postgres(check: Any, books: Books) -> None:
    twice = lambda: PostgresBook(books.url)  # noqa: E731
    check(suite.Bench(books.book, books.open, twice, books.tamper, r"'\x"))


def test_a_connection_that_dies_in_a_transaction_leaves_nothing(books: Books) -> None:
    book = books.book
    assert book is not None
    suite.fill(book)
    there = suite.dump(book)
    write = book._write
    pid = book.db._raw.info.backend_pid

    def cut(*given: Any) -> Any:
        done = write(*given)
        with psycopg.connect(books.url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", (pid,))
        return done

    book._write = cut  # type: ignore[method-assign]
    with pytest.raises(GoneError, match="is gone"):
        book.apply([suite.Post("b", 9, [suite.bill(500)])], suite.NOW)
    again = books.open()
    assert suite.dump(again) == there
    assert again.faults() == []


def test_a_trigger_that_is_off_is_a_fault(books: Books) -> None:
    assert books.book is not None
    books.book.db.execute("ALTER TABLE transfer DISABLE TRIGGER transfer_immutable")
    told = "the trigger transfer_immutable is missing or switched off"
    assert books.book.faults() == [told]


def test_books_of_another_release_are_refused(books: Books) -> None:
    assert books.book is not None
    books.book.db.execute("UPDATE ledger_version SET version = 99")
    with pytest.raises(RemoteError, match="is of version 99; this release reads"):
        books.open()


def test_the_ledgers_process_has_its_books_there_and_ends_with_the_server(
    tmp_path: pathlib.Path,
) -> None:
    if find_programs() is None:
        pytest.skip("PostgreSQL is not installed here (Debian: postgresql)")
    with tempfile.TemporaryDirectory(prefix="gm-") as run, cluster() as server:
        url = server.new()
        ledger = LedgerProcess(tmp_path / "state", pathlib.Path(run))
        try:
            ledger.start("--books", url, "--fund", "ann=5")
            acked = ledger.post(1, suite.Hold("b/1", "ann", 2_000_000), suite.bill(0))
            assert acked.sequence == 2 and [one.code for one in acked.verdicts] == [""]
            before = ledger.accounts()
            assert ledger.end()[0] == 0
            ledger.start("--books", url, "--fund", "ann=5")
            assert ledger.accounts() == before and ledger.applied() == 2
            assert not (tmp_path / "state" / "ledger.db").exists()
            server.stop()
            ledger.send(suite.Post("b", 3, [suite.bill(50)]))
            assert ledger.process is not None
            _, told = ledger.process.communicate(timeout=20)
            assert ledger.process.returncode == 1 and "is gone" in told, told
        finally:
            ledger.close()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql:///x?host=/nonexistent", "the database of --books cannot be reached"),
        ("mysql://x", "--books: String should match pattern"),
    ],
)
def test_a_database_that_is_not_there(tmp_path: pathlib.Path, url: str, told: str) -> None:
    command = [sys.executable, "-P", "-m", "gristmill.ledger", "--state", str(tmp_path)]
    command += ["--listen", f"ipc://{tmp_path}/ledger", "--books", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode in (2, 3) and told in done.stderr, done
