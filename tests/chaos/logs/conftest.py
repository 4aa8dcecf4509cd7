"""Grids whose workers are killed while they print."""

import pathlib
import sys
from collections.abc import Callable, Iterator

import pytest
from grid_rig import grids_of_a_test

from gristmill.cli.grid import Grid

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for logs_rig, in importlib mode


@pytest.fixture
def grid_of() -> Iterator[Callable[..., Grid]]:
    """``grid_of(workers=2)``: a started grid of this test alone."""
    yield from grids_of_a_test()
