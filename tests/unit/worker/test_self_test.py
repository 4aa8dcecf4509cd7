"""What a worker tries beside its jails: a disk and a clock that fail, told with a remedy."""

import os
import pathlib
import time

import pytest

from gristmill.sandbox.errors import SandboxError
from gristmill.worker import self_test
from gristmill.worker.self_test import CLOCK_SLACK_S, check_clock, check_disk


def test_a_disk_that_keeps_what_it_is_given(tmp_path: pathlib.Path) -> None:
    check_disk(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named_with_its_limit(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SandboxError, match=r"free; a worker needs 1 EiB|needs ") as caught:
        check_disk(tmp_path, 1 << 60)
    assert caught.value.remedy.startswith("free some: du -xsh")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SandboxError, match="cannot be used") as caught:
        check_disk(tmp_path / "missing")
    assert caught.value.remedy.startswith("ls -ld ")


def test_a_disk_that_forgets(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda _: b"something else")
    with pytest.raises(SandboxError, match="does not give back what was written"):
        check_disk(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_clock_that_is_behind_the_software() -> None:
    check_clock()
    written = os.stat(self_test.__file__).st_mtime
    check_clock(written - CLOCK_SLACK_S + 1)
    with pytest.raises(SandboxError, match="the clock says 1970-01-01, but") as caught:
        check_clock(3_600.0)
    assert "timedatectl" in caught.value.remedy
    assert time.time() > written
