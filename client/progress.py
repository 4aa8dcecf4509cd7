"""How far a job is: a bar on a terminal, plain lines elsewhere, nothing unless it is wanted."""

import shutil
import sys
import time
from typing import TYPE_CHECKING, TextIO

from gristmill.client.jobs import describe
from gristmill.wire.client import FINAL_JOB_STATES, JobStatus
from gristmill.wire.units import format_credits, format_ms

if TYPE_CHECKING:
    from gristmill.client.jobs import Job

TERMINAL_S = 0.1  #: between two drawings
LINES_S = 5.0  #: between two lines where nothing can be drawn over
_BAR = 24


class Bar:
    """Draws how far something is.

    Args:
        name: what it is.
        total: how many, None if nobody knows.
        is_forced: print lines where no terminal is.
        stream: where to; by default stderr.
    """

    def __init__(
        self, name: str, total: int | None, is_forced: bool = False, stream: TextIO | None = None
    ) -> None:
        self._name = name
        self._total = total
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._is_silent = not (self._is_terminal or is_forced)
        self._began = time.monotonic()
        self._due = self._began
        self._last = -1

    def set_total(self, total: int) -> None:
        """How many there are turned out later."""
        self._total = total

    def show(self, ended: int, status: JobStatus | None) -> None:
        """The count now; draws if it is time."""
        now = time.monotonic()
        is_end = ended == self._total and self._last != ended
        if self._is_silent or (now < self._due and not is_end):
            return
        self._due = now + (TERMINAL_S if self._is_terminal else LINES_S)
        self._last = ended
        line = self.line(ended, status, now - self._began)
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r" + line[:width].ljust(width) + ("\n" if is_end else ""))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def line(self, ended: int, status: JobStatus | None, seconds: float) -> str:
        """``name [####....] 50 of 100, 2.5/s, 20 s to go, cost 0.25``."""
        total = self._total
        rate = ended / seconds if seconds > 0 else 0.0
        parts = []
        if total:
            filled = _BAR * min(ended, total) // total
            parts.append(f"[{'#' * filled}{'.' * (_BAR - filled)}] {ended} of {total}")
        else:
            parts.append(f"{ended} done")
        parts.append(f"{rate:,.3g}/s")
        if total and rate and ended < total:
            parts.append(f"{format_ms((total - ended) / rate * 1000)} to go")
        if status is not None:
            if status.failed:
                parts.append(f"{status.failed} failed")
            cost = f"cost {format_credits(status.spent_ucredits)}"
            if status.noticed_percent:
                cost += f" of at most {format_credits(status.cap_ucredits)}"
            parts.append(cost)
        return f"{self._name} {', '.join(parts)}".strip()


def progress(job: "Job", *, visible: bool | None = None, stream: TextIO | None = None) -> JobStatus:
    """Follow a job to its end and return its last card.

    Args:
        job: the job.
        visible: None draws on a terminal only, True also prints lines elsewhere, False is silent.
        stream: where to; by default stderr.
    """
    bar: Bar | None = None
    pause = 0.02
    while True:
        status = job.status()
        ended = status.done + status.failed + status.cancelled
        if visible is not False:
            if bar is None:
                total = status.count if status.count >= 0 else None
                bar = Bar(f"{job.id} {status.name}".strip(), total, bool(visible), stream)
            elif status.count >= 0:
                bar.set_total(status.count)
            bar.show(ended, status)
        if status.state in FINAL_JOB_STATES:
            if visible:
                print(describe(status), file=stream or sys.stderr)
            return status
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)
