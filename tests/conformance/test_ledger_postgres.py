"""Books in PostgreSQL pass the suite that books anywhere must pass, and a server that dies."""

import importlib.util
import pathlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from postgres_rig import Cluster, cluster, find_programs

from gristmill.ledger.postgres import PostgresBook
from gristmill.wire.errors import RemoteError

_PATH = pathlib.Path(__file__).with_name("ledger_suite.py")
_spec = importlib.util.spec_from_file_location("ledger_suite", _PATH)
assert _spec is not None and _spec.loader is not None
suite: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(suite)


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


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
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
    with pytest.raises(psycopg.OperationalError):
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
