"""One contender's process tree: started, ordered about, measured and ended, each by its own pid."""

import contextlib
import ctypes
import json
import os
import pathlib
import select
import subprocess
import time
from typing import Any

import psutil

CONTENDERS = pathlib.Path(__file__).parent / "contenders"
START_S = 90.0
ORDER_S = 60.0
STOP_S = 20.0
GRACE_S = 3.0
PR_SET_CHILD_SUBREAPER = 36


class ContenderError(Exception):
    """What a contender answered instead of a result, or that it did not answer."""


def adopt_orphans() -> None:
    """What a contender leaves behind becomes a child of this process, which ends it."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class ContenderProcess:
    """A contender in its own interpreter, ordered by JSON lines over pipes.

    Only one is there at a time: whatever is below this process belongs to it.
    """

    def __init__(self, python: pathlib.Path, script: str, scratch: pathlib.Path) -> None:
        self.log = scratch / "log"
        # Workers import the tasks by name from the same folder.
        environment = {**os.environ, "PYTHONPATH": str(CONTENDERS), "PYTHONUNBUFFERED": "1"}
        environment["PATH"] = f"{python.parent}:{environment.get('PATH', os.defpath)}"
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [str(python), str(CONTENDERS / script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=scratch,
                env=environment,
                start_new_session=True,  # Ctrl-C is for us, who then end it
            )
        self._buffer = b""
        self._is_stuck = False

    def order(self, do: str, timeout_s: float = ORDER_S, **more: Any) -> dict[str, Any]:
        """One order and its answer.

        Raises:
            ContenderError: it failed, ended or did not answer in time.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ContenderError(f"ended before {do}: {self.last_line()}") from None
        answer: dict[str, Any] = json.loads(self._line(do, timeout_s))
        if "error" in answer:
            raise ContenderError(answer["error"])
        return answer

    def _line(self, do: str, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        fd, deadline = self._process.stdout.fileno(), time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                self._is_stuck = True
                raise ContenderError(f"no answer to {do} within {timeout_s:.0f} s")
            if not (more := os.read(fd, 1 << 16)):
                raise ContenderError(f"ended in {do}: {self.last_line()}")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    @property
    def is_gone(self) -> bool:
        """It ended, or is stuck in an order: no further one makes sense."""
        return self._is_stuck or self._process.poll() is not None

    def last_line(self) -> str:
        """Of what it wrote, for a person."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "no word"

    def end(self, grace_s: float = GRACE_S) -> None:
        """End it as its users would, then whatever is left of it, by pid."""
        with contextlib.suppress(ContenderError, subprocess.TimeoutExpired):
            self.order("stop", STOP_S)
            self._process.wait(grace_s)
        left = psutil.Process().children(recursive=True)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(left, grace_s)
        while alive:  # a supervisor may have started another one meanwhile
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(alive, grace_s)
            alive = psutil.Process().children(recursive=True)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
