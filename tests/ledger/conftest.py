"""Entries of an outbox, a book in this process, and the real ledger process."""

import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from ledger_rig import LedgerProcess

from gristmill.ledger.app import Ledger
from gristmill.ledger.settings import Settings
from gristmill.ledger.sqlite import SqliteBook
from gristmill.wire.ledger import (
    Contribution,
)


class Entries:
    """Makes contributions with everything that a test does not care about."""

    @staticmethod
    def contribution(first: int, count: int = 10, amount: int = 1_000, **more: Any) -> Contribution:
        fields: dict[str, Any] = {
            "ref": "b/1",
            "tenant": "ann",
            "node": "mill",
            "lease_id": 7,
            "first": first,
            "count": count,
            "attempt": 1,
            "subtasks": count,
            "failed": 0,
            "wall_us": 500,
            "cpu_us": 400,
            "peak_kib": 9_000,
            "metering": "cgroup",
            "is_estimated": False,
            "amount_ucredits": amount,
            "toll_ucredits": amount * 3 // 100,
            "ended_ms": 1_800_000_000_000,
            **more,
        }
        return Contribution(**fields)


@pytest.fixture
def entries() -> Entries:
    return Entries()


@pytest.fixture
def book(tmp_path: pathlib.Path) -> Iterator[SqliteBook]:
    made = SqliteBook(tmp_path / "state")
    made.load()
    yield made
    made.close()


@pytest.fixture
def ledger(tmp_path: pathlib.Path) -> Iterator[LedgerProcess]:
    with tempfile.TemporaryDirectory(prefix="gm-") as run:
        made = LedgerProcess(tmp_path / "state", pathlib.Path(run))
        yield made
        made.close()


@pytest.fixture
def inside(tmp_path: pathlib.Path) -> Iterator[Ledger]:
    """A ledger in this process, whose turns the test takes."""
    with tempfile.TemporaryDirectory(prefix="gm-") as run:
        made = Ledger(Settings(state=tmp_path / "inside", listen=f"ipc://{run}/ledger"))
        made.open()
        yield made
        made.close()
