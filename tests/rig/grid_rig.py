"""What many suites use: waiting for a condition, and the command as a person types it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from gristmill.cli.grid import Grid

SECONDS = 60.0  #: nothing here takes long; a wait that passes this is a failure


def until(what: str, condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What the condition gives as soon as it is true; looks again and again, bounded."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.01)


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def gristmill(
    grid: Grid, *arguments: str, stdin: str | None = None, token: str = ""
) -> subprocess.CompletedProcess[str]:
    """The command as a person would type it, against this grid."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "gristmill.cli.main", *arguments],
        env={
            **os.environ,
            "GRISTMILL_ADDRESS": grid.address,
            "GRISTMILL_TOKEN": token,
            "NO_COLOR": "1",
        },
        capture_output=True,
        text=True,
        input=stdin,
        timeout=SECONDS,
        check=False,
    )


def grids_of_a_test(grace_s: float = 0.0) -> Iterator[Callable[..., Grid]]:
    """Body of a fixture: ``make(workers=2)`` starts a grid, stopped and told of at the test's end.

    ``grace_s``: for what still runs then.
    """
    grids: list[Grid] = []

    def make(**options: Any) -> Grid:
        grid = Grid.temporary(**{"workers": 1, "slots": 1, **options})
        grids.append(grid)
        return grid.start()

    yield make
    for grid in grids:
        print(grid.tails())  # seen when the test failed
        grid.stop(grace_s=grace_s)
