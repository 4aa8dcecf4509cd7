"""What a client asks and orders besides work: jobs, results, bills, workers."""

import abc
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from gristmill.client.attach import attach
from gristmill.client.command import CommandOutput
from gristmill.client.decode import ResultReader
from gristmill.client.futures import Future
from gristmill.client.jobs import Job, job_number, poll_until_final
from gristmill.client.link import Link, decode_body
from gristmill.client.map import MapResults
from gristmill.client.progress import progress
from gristmill.wire import client as wire
from gristmill.wire.values import BlobRef

AnyJob = int | str | Job | Future | MapResults


class Questions(abc.ABC):
    """The half of ``Client`` that makes no work; see there."""

    def __init__(self, link: Link, warn: Callable[[str], None]) -> None:
        self._link = link
        self._warn = warn
        self._blobs: Any = None

    # ------------------------------------------------------------ jobs

    def job(self, job: AnyJob) -> Job:
        """A handle on a job: ``client.job("j17")``."""
        return Job(self, job_number(job))

    def status(self, job: AnyJob) -> wire.JobStatus:
        """The card of a job: state, counts, cost, first errors."""
        return self._question(wire.JobStatus, "job", job=job_number(job))  # type: ignore[no-any-return]

    def jobs(self, limit: int = 100) -> list[wire.JobStatus]:
        """The newest jobs of the tenant, newest first."""
        return self._question(list[wire.JobStatus], "jobs", limit=limit)  # type: ignore[no-any-return]

    def subtasks(
        self, job: AnyJob, first: int = 0, limit: int = 100, state: str = ""
    ) -> list[wire.SubtaskRow]:
        """Subtasks of a job from an index on, of one state or all."""
        return self._question(  # type: ignore[no-any-return]
            list[wire.SubtaskRow],
            "subtasks",
            job=job_number(job),
            first=first,
            limit=limit,
            text=state,
        )

    def why(self, job: AnyJob) -> wire.WhyAnswer:
        """What keeps a job from running, and the cheapest change."""
        return self._question(wire.WhyAnswer, "why", job=job_number(job))  # type: ignore[no-any-return]

    def results(
        self,
        job: AnyJob,
        *,
        after: int = 0,
        ordered: bool = True,
        return_exceptions: bool = False,
    ) -> Iterator[Any]:
        """Values of any job, those to come included; leaving it early does not cancel the job.

        Args:
            job: ``"j17"``, 17, or what ``map`` and ``submit`` returned in another client.
            after: skip results up to this sequence number.
            ordered: in index order; False as they were committed.
            return_exceptions: exceptions are yielded in place instead of raised.
        """
        return attach(
            self._link,
            job_number(job),
            self._reader(self._is_command(job)),
            after=after,
            ordered=ordered,
            return_exceptions=return_exceptions,
            warn=self._warn,
        )

    def wait(self, job: AnyJob, timeout: float | None = None) -> wire.JobStatus:
        """The card of a job once it has ended.

        Raises:
            TimeoutError: it has not within ``timeout`` seconds; it goes on.
        """
        handle = self.job(job)
        try:
            return poll_until_final(handle, timeout)
        except KeyboardInterrupt:
            self._warn(
                f"{handle.id} goes on; come back with 'gristmill wait {handle.id}' or "
                f'client.results("{handle.id}")'
            )
            raise

    def cancel(self, job: AnyJob, indices: Iterable[int] | None = None) -> None:
        """Cancel a job, some of its subtasks, or the call behind a future."""
        if isinstance(job, Future):
            job.cancel()
            return
        runs = _runs(indices) if indices is not None else []
        if indices is not None and not runs:
            return
        self._link.ask(wire.Cancel(b"", 0, job_number(job), runs))

    def pause(self, job: AnyJob) -> None:
        """Hand out no more of a job; what runs goes on."""
        self._link.ask(wire.Steer(b"", 0, job_number(job), "pause"))

    def resume(self, job: AnyJob) -> None:
        """Hand out a paused job again."""
        self._link.ask(wire.Steer(b"", 0, job_number(job), "resume"))

    def logs(self, job: AnyJob, index: int = 0, limit: int = 1) -> list[wire.LogRow]:
        """What subtasks wrote to stdout and stderr, from an index on.

        Long output is fetched from the store.
        """
        rows: list[wire.LogRow] = self._question(
            list[wire.LogRow], "logs", job=job_number(job), first=index, limit=limit
        )
        return [self._whole_log(row) for row in rows]

    def manifest(self, job: AnyJob, after: int = 0, limit: int = 1_000) -> list[wire.ManifestRow]:
        """What a job published: ranges with their node, attempt and the sha-256 of their values."""
        return self._question(  # type: ignore[no-any-return]
            list[wire.ManifestRow], "manifest", job=job_number(job), first=after, limit=limit
        )

    def progress(self, job: AnyJob, *, visible: bool | None = None) -> wire.JobStatus:
        """Follow a job to its end: a bar on a terminal, lines elsewhere if ``visible``."""
        return progress(self.job(job), visible=visible)

    # ------------------------------------------------------------ the grid

    def usage(
        self, by: Literal["job", "node", "day"] = "job", job: AnyJob | None = None
    ) -> list[wire.UsageRow]:
        """The bill of the tenant by job, node or day; of one job if given."""
        number = 0 if job is None else job_number(job)
        return self._question(list[wire.UsageRow], "usage", text=by, job=number)  # type: ignore[no-any-return]

    def balance(self, everyone: bool = False) -> wire.BalanceAnswer:
        """The tenant's accounts, and the sum over the whole ledger, which is zero.

        ``everyone``: all accounts (world, tenants, nodes, toll); for operators.
        """
        return self._question(wire.BalanceAnswer, "balance", text="all" if everyone else "")  # type: ignore[no-any-return]

    def workers(self) -> list[wire.WorkerRow]:
        """The workers of the grid with their readings."""
        return self._question(list[wire.WorkerRow], "workers")  # type: ignore[no-any-return]

    def grid(self) -> dict[str, Any]:
        """Counters of the broker."""
        return self._question(dict[str, Any], "grid")  # type: ignore[no-any-return]

    def drain(self, worker: str) -> None:
        """Operator: a worker finishes what it has and takes no more."""
        self._link.ask(wire.DrainWorker(b"", 0, worker))

    # ------------------------------------------------------------ inside

    @abc.abstractmethod
    def _reader(self, convert: Callable[[Any], Any] | None = None) -> ResultReader:
        """Whether to unpickle is the client's to decide."""

    def _is_command(self, job: AnyJob) -> Callable[[Any], Any] | None:
        if self.status(job).kind != "command":
            return None
        return lambda value: CommandOutput(value, self._fetch_blob)

    def _question(self, kind: Any, about: Any, **arguments: Any) -> Any:
        return decode_body(self._link.ask(wire.Ask(b"", 0, about, **arguments)), kind)

    def _blob_store(self) -> Any:
        if self._blobs is None:
            from gristmill.client.blobs import Blobs  # brings an HTTP client: only when needed

            self._blobs = Blobs(self._link)
        return self._blobs

    def _store_blob(self, body: bytes) -> BlobRef:
        return self._blob_store().put(body)  # type: ignore[no-any-return]

    def _fetch_blob(self, reference: BlobRef) -> bytes:
        return self._blob_store().get(reference)  # type: ignore[no-any-return]

    def _whole_log(self, row: wire.LogRow) -> wire.LogRow:
        stdout, stderr = row.stdout, row.stderr
        if row.stdout_digest:
            stdout = self._fetch_blob(BlobRef(row.stdout_digest, 0))
        if row.stderr_digest:
            stderr = self._fetch_blob(BlobRef(row.stderr_digest, 0))
        if (stdout, stderr) == (row.stdout, row.stderr):
            return row
        return wire.LogRow(
            row.index, row.count, row.attempt, stdout, stderr,
            row.stdout_digest, row.stderr_digest, row.is_cut,
        )  # fmt: skip


def _runs(indices: Iterable[int]) -> list[tuple[int, int]]:
    """Indices as runs of consecutive ones."""
    runs = []
    for _, group in itertools.groupby(
        enumerate(sorted(set(indices))), lambda pair: pair[1] - pair[0]
    ):
        members = [index for _, index in group]
        runs.append((members[0], len(members)))
    return runs
