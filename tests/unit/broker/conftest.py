"""A driver of the core for tests: one event in, its effects out, invariants after each."""

from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from core_driver import Core


@pytest.fixture
def core() -> Core:
    return Core()
