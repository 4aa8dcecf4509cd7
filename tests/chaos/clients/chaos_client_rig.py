"""What the tests of clients share: bounded waiting, a function that takes a while."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from gristmill.cli.grid import Grid

SECONDS = 60.0  #: a wait that passes this is a failure
DEAD_S = 15.0  #: the promise: nobody waits longer for a dead broker


def until(what: str, condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What the condition gives as soon as it is true; looks again and again, bounded."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.02)


def doubled(number: int, seconds: float = 0.0) -> int:
    """A call whose value shows which call it was."""
    time.sleep(seconds)
    return 2 * number


def gristmill(grid: Grid, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command as a person would type it, against this grid."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "gristmill.cli.main", *arguments],
        env={**os.environ, "GRISTMILL_ADDRESS": grid.address, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
