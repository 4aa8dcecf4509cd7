"""What the books need of the database that they are in.

A ``Database`` is used as an ``apsw.Connection`` is, with ``?`` for values; what its statements may
say is what SQLite and PostgreSQL both understand. tests/conformance/ledger_suite.py is what each
must pass.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

Row = tuple[Any, ...]


class PostponedError(Exception):
    """Nothing of it happened, and it may be asked again: no room, or somebody holds the file."""


class GoneError(Exception):
    """The database cannot be reached any more: end, and read what is true at the next start."""


class RefusedError(Exception):
    """The tables refuse what our own core decided, or cannot be read: people must look."""


class Cursor(Protocol):
    """What a statement found."""

    def __iter__(self) -> Iterator[Row]:
        """Its rows."""

    def fetchone(self) -> Row | None:
        """The next one."""


class Database(Protocol):
    """One connection, which is the only writer."""

    def execute(self, statement: str, values: Sequence[Any] = ...) -> Cursor:
        """One statement; its rows may be read until the next."""

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> object:
        """The same for each row of values."""

    @property
    def in_transaction(self) -> bool:
        """Between BEGIN and COMMIT."""
