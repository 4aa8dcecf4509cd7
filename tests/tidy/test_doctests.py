"""Every example in a docstring runs; those of the client and the command run inside a grid."""

import pathlib
import subprocess
import sys

import pytest

IN_A_GRID = ("cli", "client")

# Modules are imported by their installed names: pytest's own collection would import a second copy.
RUN = """
import doctest, importlib, sys
attempted = 0
for name in sys.argv[1:]:
    failed, number = doctest.testmod(importlib.import_module(name))
    attempted += number
    if failed:
        sys.exit(f"{failed} examples of {name} failed")
print(attempted, "examples")
"""


def modules(root: pathlib.Path, rooms: list[str]) -> list[str]:
    """The installed names of the modules that have examples."""
    paths = [path for room in rooms for path in sorted((root / room).rglob("*.py"))]
    with_examples = [path for path in paths if ">>> " in path.read_text()]
    names = [path.relative_to(root).with_suffix("").parts for path in with_examples]
    return [".".join(("gristmill", *parts)).removesuffix(".__init__") for parts in names]


def run(names: list[str], *prefix: str) -> None:
    if not names:
        return
    command = [*prefix, sys.executable, "-P", "-c", RUN, *names]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert int(done.stdout.split()[-2]) > 0


def test_examples(root: pathlib.Path, rooms: list[str]) -> None:
    names = modules(root, [room for room in rooms if room not in IN_A_GRID])
    assert names
    run(names)


@pytest.mark.slow
def test_examples_in_a_grid(root: pathlib.Path, rooms: list[str], tmp_path: pathlib.Path) -> None:
    gristmill = str(pathlib.Path(sys.executable).with_name("gristmill"))
    grid = (gristmill, "up", "--state", str(tmp_path / "state"), "--workers", "1", "--")
    run(modules(root, [room for room in rooms if room in IN_A_GRID]), *grid)


def test_an_example_that_is_wrong_is_found(tmp_path: pathlib.Path) -> None:
    (tmp_path / "wrong.py").write_text('"""\n>>> 1 + 1\n3\n"""\n')
    command = [sys.executable, "-c", RUN, "wrong"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "1 examples of wrong failed" in done.stderr
