"""A registry's core with a clock and a disk, and the real process."""

import pathlib
import tempfile
from collections.abc import Iterator

import pytest
from desk_rig import Desk
from registry_rig import RegistryProcess


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def registry(tmp_path: pathlib.Path) -> Iterator[RegistryProcess]:
    """The real process, started by the test."""
    with tempfile.TemporaryDirectory(prefix="gm-") as run:
        made = RegistryProcess(tmp_path / "registry", pathlib.Path(run))
        yield made
        made.close()
