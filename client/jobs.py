"""``Job``: a handle on any job of the tenant, also one that another process submitted."""

import html
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gristmill.wire.client import FINAL_JOB_STATES, JobStatus, UsageRow, WhyAnswer
from gristmill.wire.ids import format_job, parse_job
from gristmill.wire.units import format_credits, format_ms

if TYPE_CHECKING:
    from gristmill.client.questions import Questions


def job_number(job: "int | str | Job | Any") -> int:
    """The number of a job given as 17, ``"j17"``, a ``Job``, a future or a map.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(job, int):
        return job
    if isinstance(job, str):
        return parse_job(job)
    number = getattr(job, "job", None)
    if not isinstance(number, int):
        raise ValueError(f"{job!r} is not a job; give j17, 17 or what map and submit returned")
    if not number:
        raise ValueError("the broker has not accepted this job yet")
    return number


def describe(status: JobStatus) -> str:
    """A job in one line."""
    total = status.count if status.count >= 0 else f"{status.uploaded}+"
    parts = [f"{status.done} of {total} done"]
    for what in ("failed", "cancelled", "leased", "retried", "lost"):
        if number := getattr(status, what):
            parts.append(f"{number} {what}")
    parts.append(f"cost {format_credits(status.spent_ucredits)}")
    if status.state in FINAL_JOB_STATES and status.finished_ms:
        parts.append(f"in {format_ms(status.finished_ms - status.submitted_ms)}")
    elif status.eta_ms:
        parts.append(f"{format_ms(status.eta_ms)} to go")
    if status.reason:
        parts.append(status.reason)
    title = f"{format_job(status.job)} {status.name}".strip()
    return f"{title}: {status.state}, {', '.join(parts)}"


class Job:
    """One job of the grid.

    >>> job = client.job("j17")                                    # doctest: +SKIP
    >>> job.wait().state, list(job.results())                      # doctest: +SKIP
    ('done', [1, 4, 9])
    """

    def __init__(self, client: "Questions", number: int) -> None:
        self._client = client
        self.job = number

    @property
    def id(self) -> str:
        """``j17``."""
        return format_job(self.job)

    def status(self) -> JobStatus:
        """Its card: counts, state, cost."""
        return self._client.status(self.job)

    def results(self, *, ordered: bool = True, return_exceptions: bool = False) -> Iterator[Any]:
        """Its values, those to come included."""
        return self._client.results(self.job, ordered=ordered, return_exceptions=return_exceptions)

    def wait(self, timeout: float | None = None) -> JobStatus:
        """Its card once it has ended."""
        return self._client.wait(self.job, timeout=timeout)

    def cancel(self) -> None:
        """Cancel what has not ended."""
        self._client.cancel(self.job)

    def why(self) -> WhyAnswer:
        """What holds it."""
        return self._client.why(self.job)

    def usage(self) -> list[UsageRow]:
        """Its bill."""
        return self._client.usage(by="job", job=self.job)

    def bill(self, timeout: float = 10.0) -> UsageRow:
        """What an ended job cost, once the ledger has all of it.

        Contributions reach the ledger a moment after the results reach their reader.

        Raises:
            TimeoutError: the ledger is behind by more than ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        spent = self.wait(timeout).spent_ucredits
        while True:
            rows = self.usage()
            if sum(row.amount_ucredits for row in rows) >= spent:
                return rows[0] if rows else UsageRow(self.id, 0, 0, 0, 0, 0, 0)
            if time.monotonic() >= deadline:
                raise TimeoutError(f"the ledger has not got all of {self.id} after {timeout} s")
            time.sleep(0.02)

    def __repr__(self) -> str:
        return f"<gristmill job {describe(self.status())}>"

    def _repr_html_(self) -> str:
        return card(self.status())


def card(status: JobStatus) -> str:
    """A job as a small piece of HTML for a notebook."""
    total = max(status.count if status.count >= 0 else status.uploaded, 1)
    ended = status.done + status.failed + status.cancelled
    width = 100 * ended // total
    colour = "#b3261e" if status.failed else "#2e7d32"
    return (
        f"<div style='font-family:sans-serif;max-width:32em'><b>{format_job(status.job)}</b> "
        f"{html.escape(status.name)} <i>{html.escape(status.state)}</i>"
        f"<div style='background:#ddd;height:8px;border-radius:4px'>"
        f"<div style='background:{colour};width:{width}%;height:8px;border-radius:4px'></div></div>"
        f"{html.escape(describe(status))}</div>"
    )


def poll_until_final(job: Job, timeout: float | None) -> JobStatus:
    """Asks, less and less often, until the job has ended.

    Raises:
        TimeoutError: it has not within ``timeout`` seconds.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = 0.01
    while True:
        status = job.status()
        if status.state in FINAL_JOB_STATES:
            return status
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"after {timeout} s {describe(status)}")
        time.sleep(pause if deadline is None else min(pause, max(deadline - time.monotonic(), 0)))
        pause = min(pause * 1.5, 0.5)
