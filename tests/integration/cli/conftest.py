"""The command as a person runs it: a real grid, a process for each command."""

import io
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest

from gristmill.cli.grid import Grid
from gristmill.cli.main import main

COMMAND = [sys.executable, "-P", "-m", "gristmill.cli.main"]


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one document on stdout."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def documents(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Done]


def clean_environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GRISTMILL_")}
    return {**kept, "NO_COLOR": "1", **more}


@pytest.fixture(scope="session")
def grid() -> Iterator[Grid]:
    with Grid.temporary(workers=1, slots=2) as running:
        yield running


def runner(environment: Mapping[str, str], folder: pathlib.Path) -> Run:
    """Runs a command in this process: the start of an interpreter would be most of its time.

    Signals, pipes and terminals are for processes: see ``spawn``.
    """

    def run(*arguments: str, stdin: str = "") -> Done:
        (folder / "stdin").write_text(stdin)
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        with pytest.MonkeyPatch.context() as patch, open(folder / "stdin") as file:
            for name in set(os.environ) - set(environment):
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            for name, stream in (("stdin", file), ("stdout", out), ("stderr", err)):
                patch.setattr(sys, name, stream)
            path = list(sys.path)
            try:
                code = main(arguments)
            except SystemExit as ended:  # argparse
                assert isinstance(ended.code, int)
                code = ended.code
            finally:
                sys.path[:] = path
        return Done(code, *(said.detach().getvalue().decode() for said in (out, err)))

    return run


def spawn(environment: Mapping[str, str], *arguments: str, **more: Any) -> "subprocess.Popen[str]":
    """A command as a process of its own."""
    pipes: dict[str, Any] = {"stdout": -1, "stderr": -1, "text": True, **more}
    return subprocess.Popen([*COMMAND, *arguments], env=dict(environment), **pipes)


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Commands as processes, ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, **more: Any) -> "subprocess.Popen[str]":
        own = {**environment, **more.pop("environment", {})}
        started.append(spawn(own, *arguments, **more))
        return started[-1]

    yield begin
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()


@pytest.fixture
def environment(grid: Grid) -> dict[str, str]:
    return clean_environment(GRISTMILL_ADDRESS=grid.address)


@pytest.fixture
def run(environment: dict[str, str], tmp_path: pathlib.Path) -> Run:
    """``run("submit", "--wait", "--", "echo")`` against the grid of the session."""
    return runner(environment, tmp_path)


@pytest.fixture
def run_anywhere(tmp_path: pathlib.Path) -> Run:
    """The same, of somebody who has no grid: folders that are empty."""
    run, state = str(tmp_path / "run"), str(tmp_path / "state")
    return runner(clean_environment(GRISTMILL_RUN=run, GRISTMILL_STATE=state), tmp_path)
