"""Leases on real grids: short time-to-live, so that silence is soon noticed."""

import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from grid_rig import grids_of_a_test

from gristmill.cli.grid import Grid

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for lease_rig, in importlib mode
from lease_rig import REPORT_MS, TTL_MS


@pytest.fixture
def grid_of() -> Iterator[Callable[..., Grid]]:
    """``grid_of(workers=2)``: a started grid of this test alone."""
    for make in grids_of_a_test():

        def timed(ttl_ms: int = TTL_MS, report_ms: int = REPORT_MS, **options: Any) -> Grid:
            times = {
                "GRISTMILL_BROKER_WORKER_TTL_MS": str(ttl_ms),
                "GRISTMILL_BROKER_WORKER_REPORT_MS": str(report_ms),
                **options.pop("environment", {}),
            }
            return make(environment=times, **options)  # noqa: B023 - there is one

        yield timed
