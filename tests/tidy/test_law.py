"""The import law of setup.cfg finds what it forbids: each planted import breaks one contract."""

import pathlib
import shutil
import subprocess
import sys

import pytest

PLANTED = [
    ("broker/core/__init__.py", "import time", "a core has no socket, clock"),
    ("broker/registry/core/__init__.py", "import secrets", "a core has no socket, clock"),
    ("client/core/__init__.py", "from asyncio import sleep", "a core has no socket, clock"),
    ("broker/__init__.py", "import gristmill.worker", "imports go one way"),
    ("client/__init__.py", "def f():\n    from gristmill import ledger", "imports go one way"),
    ("sandbox/__init__.py", "import gristmill.store", "imports go one way"),
    ("wire/__init__.py", "import gristmill.client", "imports go one way"),
    ("ledger/__init__.py", "import pickle", "no pickle-family module"),
    ("store/__init__.py", "import cloudpickle", "no pickle-family module"),
]


@pytest.fixture
def copy(root: pathlib.Path, rooms: list[str], tmp_path: pathlib.Path) -> pathlib.Path:
    """The packages of the rooms, without their modules, as a real folder ``gristmill``."""
    shutil.copy(root / "setup.cfg", tmp_path)
    for room in rooms:
        for package in (root / room).rglob("__init__.py"):
            target = tmp_path / "gristmill" / package.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("")
    return tmp_path


def lint(folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = [str(pathlib.Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def test_empty_rooms_keep_the_law(copy: pathlib.Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout
    assert "3 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(("module", "line", "contract"), PLANTED)
def test_a_planted_import_breaks_it(
    copy: pathlib.Path, module: str, line: str, contract: str
) -> None:
    (copy / "gristmill" / module).write_text(line + "\n")
    done = lint(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    told = " ".join(done.stdout.split())
    assert "2 kept, 1 broken" in told
    # The contracts that are broken are told again, each with its imports.
    assert contract in told.partition("Broken contracts")[2]
