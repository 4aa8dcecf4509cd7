"""Files as they are installed, with an interpreter that any user may run."""

import os
import pathlib

import pytest

from gristmill.deploy.install import Site, install

#: minutes of real hosts: make fleet
collect_ignore = (
    []
    if os.environ.get("GRISTMILL_SIZE") == "release"
    else ["test_hosts_release.py", "test_hosts_enrol.py"]
)
PYTHON = "/usr/bin/env"  # is there, and is run by nobody: units are only looked at


@pytest.fixture
def image(tmp_path: pathlib.Path) -> pathlib.Path:
    """The root of a host with our files in it."""
    install(tmp_path, Site(PYTHON, "alpha"), is_forced=False)
    return tmp_path
