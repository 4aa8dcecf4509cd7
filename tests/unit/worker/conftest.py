"""Modules that tests here share: worker_rig; and the page of a slot."""

import os
import pathlib
import sys
from typing import Any

import pytest

from gristmill.worker.runners import protocol

sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture
def page() -> Any:
    fd = os.memfd_create("page")
    os.ftruncate(fd, protocol.PAGE_BYTES)
    made = protocol.Page(fd)
    os.close(fd)
    yield made
    made.close()
