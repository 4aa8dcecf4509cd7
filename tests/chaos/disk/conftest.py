"""Proofs of durability: ``disk_judge`` and ``disk_client`` serve several of them."""

import pathlib
import sys
from collections.abc import Iterator

import pytest

from gristmill.cli.grid import Grid

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for disk_*, in importlib mode


@pytest.fixture
def grids() -> Iterator[list[Grid]]:
    """Grids of this test; they end with it."""
    made: list[Grid] = []
    yield made
    for grid in made:
        grid.stop(grace_s=0.0)
