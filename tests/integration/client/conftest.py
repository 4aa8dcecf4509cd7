"""A real grid of one worker with two slots, for all tests of a module."""

from collections.abc import Iterator

import pytest

from gristmill.cli.grid import Grid
from gristmill.client import Client


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    with Grid.temporary(workers=1, slots=2) as grid:
        yield grid


@pytest.fixture
def client(grid: Grid) -> Iterator[Client]:
    with Client(grid.address, timeout=20) as client:
        yield client
