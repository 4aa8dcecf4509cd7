"""The rig of the flows: one host, broker, ledger, store, three workers; all of it real."""

from collections.abc import Callable, Iterator

import pytest
from grid_rig import grids_of_a_test

from gristmill.cli.grid import WORKER_GRACE_S, Grid
from gristmill.client import Client


@pytest.fixture(scope="session")
def grid() -> Iterator[Grid]:
    """Shared by the rows that break nothing: three workers of one slot."""
    with Grid.temporary(workers=3, slots=1) as grid:
        yield grid


@pytest.fixture
def client(grid: Grid) -> Iterator[Client]:
    """A client of the shared grid."""
    with Client(grid.address) as client:
        yield client


@pytest.fixture
def own_grid() -> Iterator[Callable[..., Grid]]:
    """Grids of this test alone, for rows that break things."""
    yield from grids_of_a_test(WORKER_GRACE_S)
