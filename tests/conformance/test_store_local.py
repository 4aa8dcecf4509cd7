"""The local back-end of the store passes the suite that every back-end must pass."""

import pathlib
from typing import Any

import pytest
import store_suite as suite

from gristmill.store.interface import BlobStore
from gristmill.store.local import LocalStore


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_local(check: Any, tmp_path: pathlib.Path) -> None:
    clock = suite.Clock()
    opened = [LocalStore(tmp_path / "store", 8 << 20, clock)]

    def reopen() -> BlobStore:
        opened[-1].close()
        opened.append(LocalStore(tmp_path / "store", 8 << 20, clock))
        return opened[-1]

    def damage(digest: str) -> None:
        path = opened[-1].path_of(digest)
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)
            file.seek(-1, 2)
            file.write(bytes([last[0] ^ 1]))

    try:
        check(suite.Bench(opened[-1], clock, reopen, damage))
        assert list((tmp_path / "store" / "tmp").iterdir()) == []
    finally:
        opened[-1].close()
