"""Nothing may be unpickled in broker, ledger, store and treasury (DESIGN, trust): they end instead.

The processes are the real ones, of a grid; the pickle is opened inside of them by a planted module.
"""

import os
import pathlib
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
from grid_rig import until

from gristmill.cli.grid import Grid
from gristmill.wire.errors import EXIT_UNPICKLED

HERE = pathlib.Path(__file__).parent
WAYS = {"broker": "c", "ledger": "python", "store": "unpickler", "treasury": "numpy"}


class Touch:
    """A pickle of this makes a file when it is opened."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def planted(tmp_path: pathlib.Path) -> dict[str, str]:
    """The environment of a process with the planted module, and its pickle."""
    (tmp_path / "site").mkdir()
    shutil.copy(HERE / "planted_pickle.py", tmp_path / "site" / "sitecustomize.py")
    (tmp_path / "pickle").write_bytes(pickle.dumps(Touch(tmp_path / "marker")))
    return {
        "PYTHONPATH": str(tmp_path / "site"),
        "PLANTED_PICKLE": str(tmp_path / "pickle"),
        "PLANTED_TRIGGER": str(tmp_path / "trigger"),
    }


def test_each_process_ends_before_the_pickle_calls_anything(
    planted: dict[str, str], tmp_path: pathlib.Path
) -> None:
    with Grid.temporary(workers=0, payments="") as grid:
        for name, way in WAYS.items():
            trigger = tmp_path / f"trigger-{name}"
            grid.environment = {**planted, "PLANTED_WAY": way, "PLANTED_TRIGGER": str(trigger)}
            grid.restart(name)
            assert not grid.dead()
            trigger.touch()
            (ended,) = until(f"{name} has ended", grid.dead)
            assert (ended.name, ended.returncode) == (name, EXIT_UNPICKLED), ended
            log = grid.log(name).read_text()
            assert f"{name} ends: something in it unpickles 'posix.mkdir'" in log
            assert not (tmp_path / "marker").exists()
            grid.environment = {}
            grid.restart(name)


@pytest.mark.parametrize("way", sorted(WAYS.values()))
def test_without_the_hook_each_way_calls_it(
    way: str, planted: dict[str, str], tmp_path: pathlib.Path
) -> None:
    """The planted module does what it says, or the test above could not fail."""
    code = (
        "import os, sitecustomize\n"
        "sitecustomize._open(open(os.environ['PLANTED_PICKLE'], 'rb').read(), "
        "os.environ['PLANTED_WAY'])"
    )
    own = {**os.environ, **planted, "PLANTED_WAY": way}
    subprocess.run([sys.executable, "-c", code], env=own, check=True, timeout=60)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (pickle.dumps(["plain", 1, b"data", {"a": (None, 2.5)}]), 0),  # asks for no class
        (pickle.dumps(Touch(pathlib.Path("/nowhere/marker"))), EXIT_UNPICKLED),
        (pickle.dumps(pathlib.PurePosixPath), EXIT_UNPICKLED),
        (b"c" + b"x" * 5_000 + b"\x1b[31m\nname\n.", EXIT_UNPICKLED),
    ],
    ids=["plain", "a call", "a class", "a long name"],
)
def test_what_ends_a_process_and_what_it_says(frame: bytes, code: int) -> None:
    script = (
        "import pickle, sys\n"
        "from gristmill.wire.process import forbid_unpickling\n"
        "forbid_unpickling('it')\n"
        "try:\n    pickle.loads(sys.stdin.buffer.read())\nexcept BaseException:\n    pass\n"
    )
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, input=frame, capture_output=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    lines = done.stderr.decode().splitlines()
    assert len(lines) == (code != 0)
    if code:
        assert lines[0].startswith("it ends: something in it unpickles '")
        assert len(lines[0]) < 300 and lines[0].isascii() and "\x1b" not in lines[0]
