"""Grids whose workers are killed while they print."""

import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gristmill.cli.grid import Grid

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for logs_rig, in importlib mode


@pytest.fixture
def grid_of() -> Iterator[Callable[..., Grid]]:
    """``grid_of(workers=2)``: a started grid of this test alone."""
    grids: list[Grid] = []

    def make(**options: Any) -> Grid:
        grid = Grid.temporary(**{"workers": 1, "slots": 1, **options})
        grids.append(grid)
        return grid.start()

    yield make
    for grid in grids:
        print(grid.tails())  # seen when the test failed
        grid.stop(grace_s=0.0)
