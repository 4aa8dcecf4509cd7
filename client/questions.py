"""What a client asks and orders besides work: jobs, results, bills, workers."""

from __future__ import annotations

import abc
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from gristmill.client.attach import attach
from gristmill.client.command import CommandOutput
from gristmill.client.decode import ResultReader
from gristmill.client.errors import GridError
from gristmill.client.future import Future
from gristmill.client.jobs import Job, job_number, poll_until_final
from gristmill.client.link import Link, decode_body
from gristmill.client.map import MapResults
from gristmill.client.progress import progress
from gristmill.client.reading import Ended, ended, in_order, logs_of
from gristmill.wire import chain, payments
from gristmill.wire import client as wire
from gristmill.wire.frames import encode
from gristmill.wire.registry import LimitRow
from gristmill.wire.shared import Ref
from gristmill.wire.spec import Tariff
from gristmill.wire.values import BlobRef

if TYPE_CHECKING:
    from gristmill.client.statement import Statement
    from gristmill.wire.epochs import ReceiptsPage

AnyJob = int | str | Job | Future | MapResults


class Questions(abc.ABC):
    """The half of ``Client`` that makes no work; see there."""

    def __init__(self, link: Link, warn: Callable[[str], None]) -> None:
        self._link = link
        self._warn = warn
        self._blobs: Any = None

    def who(self) -> str:
        """The tenant as whom the broker knows us."""
        return self._link.wait_welcome().tenant

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

    def ended(self, job: AnyJob, *, ordered: bool = True) -> Iterator[Ended]:
        """How each subtask of any job ended, with its index; those to come included.

        Unlike ``results`` this tells what has no value apart from what has one, and goes on after
        an error.

        Args:
            job: ``"j17"``, 17, or what ``map`` and ``submit`` returned in another client.
            ordered: by index, which keeps what came before its turn; False as they were committed.

        Raises:
            GridError: the job is unknown or its results are gone.

        >>> for each in client.ended("j17"):                       # doctest: +SKIP
        ...     print(each.index, each.error or each.value)
        """
        reader = self._reader(self._is_command(job))
        found = ended(self._link, job_number(job), reader)
        return in_order(found) if ordered else found

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

    def cancel(self, job: AnyJob, indices: Iterable[int | range] | None = None) -> None:
        """Cancel a job, some of its subtasks, or the call behind a future.

        ``indices``: numbers of subtasks, and ranges of them, which cost nothing however long.
        """
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
        """What subtasks wrote to stdout and stderr, from an index on, by index and attempt.

        Those that run and those that were lost with their worker as well: ``row.state`` says
        which. ``limit``: rows; of the last index they are all there. Long output is fetched from
        the store.
        """
        rows: list[wire.LogRow] = self._question(
            list[wire.LogRow], "logs", job=job_number(job), first=index, limit=limit
        )
        return [self._whole_log(row) for row in rows]

    def follow_logs(self, job: AnyJob) -> Iterator[wire.LogRow]:
        """What subtasks of a job write, as their results come, until the job has ended."""
        return map(self._whole_log, logs_of(self._link, job_number(job)))

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
        self, by: str = "job", job: AnyJob | None = None, everyone: bool = False
    ) -> list[wire.UsageRow]:
        """The bill of the tenant; of one job if given.

        Args:
            by: some of ``tenant``, ``node``, ``job`` and ``day``, parted by commas.
            job: only what this job cost.
            everyone: of all tenants, for operators; who is one has it by ``tenant`` anyway.
        """
        return self._question(  # type: ignore[no-any-return]
            list[wire.UsageRow],
            "usage",
            text=by,
            job=0 if job is None else job_number(job),
            digest="all" if everyone else "",
        )

    def balance(self, everyone: bool = False) -> wire.BalanceAnswer:
        """The tenant's accounts, and the sum over the whole ledger, which is zero.

        ``everyone``: all accounts (world, tenants, nodes, toll); for operators.
        """
        return self._question(wire.BalanceAnswer, "balance", text="all" if everyone else "")  # type: ignore[no-any-return]

    def watch_balance(self, everyone: bool = False) -> Iterator[wire.BalanceAnswer]:
        """As ``balance``: what it is now, then each change, within two seconds of it.

        Each is as of its ``transfers``; the numbers of a watch never fall.

        Raises:
            GridError: ``LEDGER_DOWN``, say; whoever watches begins anew. ``INTERNAL``, the ledger
                knows fewer transfers than it did: its books were replaced by older ones.
        """
        seen: wire.BalanceAnswer | None = None
        text = "all" if everyone else ""
        while True:
            tag = seen.tag if seen else ""
            found: wire.BalanceAnswer = self._question(
                wire.BalanceAnswer, "balance", text=text, digest=tag
            )
            if seen and found.transfers < seen.transfers:
                raise GridError(
                    "INTERNAL",
                    f"the ledger had {seen.transfers} transfers and has {found.transfers}",
                    "ask the operator whether older books were put in its place",
                )
            if found.tag != tag:
                seen = found
                yield found

    def statement(self, account: str = "") -> Statement:
        """Every entry of the tenant's account, and whether they make what it has.

        Args:
            account: of another, for operators: ``toll``, ``tenant:ann``, ``node:...``; as
                ``balance(everyone=True)`` names them.
        """
        from gristmill.client.statement import Statement  # few ask for one
        from gristmill.wire.statement import StatementPage

        return Statement(
            lambda after, upto: self._question(
                StatementPage, "statement", text=account, first=after, size_bytes=upto
            )
        )

    def tariffs(self) -> dict[str, Tariff]:
        """What work costs on each class of nodes."""
        return self._question(dict[str, Tariff], "tariffs")  # type: ignore[no-any-return]

    def terms(self, job: AnyJob) -> wire.JobTerms:
        """What a job asked for, and what work costs it on each class of nodes."""
        return self._question(wire.JobTerms, "terms", job=job_number(job))  # type: ignore[no-any-return]

    def history(self, work: str, limit: int = 20) -> list[wire.JobStatus]:
        """The tenant's newest ended jobs that ran the same work (64 hex digits, ``work_of``)."""
        return self._question(list[wire.JobStatus], "history", text=work, limit=limit)  # type: ignore[no-any-return]

    def receipts(
        self, job: AnyJob, index: int | None = None, number: int = 0
    ) -> list[ReceiptsPage]:
        """The receipts of a job, or those that one of its subtasks is in, with what proves them.

        ``number``: the one receipt of this number, as a statement names it.
        ``wire.proofs.document_of`` makes a file of them that ``gristmill verify`` checks offline.
        Receipts whose epoch is still open have no proof yet.
        """
        from gristmill.wire.epochs import ReceiptsPage  # brings keys: only when needed

        pages: list[ReceiptsPage] = []
        after, text = 0, f"#{number}" if number else "" if index is None else str(index)
        while not pages or after:
            page: ReceiptsPage = self._question(
                ReceiptsPage, "receipts", job=job_number(job), first=after, text=text
            )
            pages.append(page)
            after = page.after
        return pages

    def workers(self) -> list[wire.WorkerRow]:
        """The workers of the grid with their readings."""
        return self._question(list[wire.WorkerRow], "workers")  # type: ignore[no-any-return]

    def limits(self) -> list[LimitRow]:
        """What this client's key may ask for; of every key, for an operator."""
        return self._question(list[LimitRow], "limits")  # type: ignore[no-any-return]

    def grid(self) -> dict[str, Any]:
        """Counters of the broker."""
        return self._question(dict[str, Any], "grid")  # type: ignore[no-any-return]

    def offers(self) -> payments.OffersAnswer:
        """What credits are sold for now, by each backend."""
        return self._question(payments.OffersAnswer, "offers")  # type: ignore[no-any-return]

    def intents(
        self, intent: str = "", *, everyone: bool = False, limit: int = 100
    ) -> list[payments.IntentView]:
        """Purchases, newest first; one of them by its id.

        Args:
            intent: ``"pi0abf..."``.
            everyone: of all tenants, for operators.
            limit: as many as fit an answer, at most.

        Raises:
            GridError: ``UNKNOWN_INTENT``.
        """
        return self._question(  # type: ignore[no-any-return]
            list[payments.IntentView],
            "intents",
            text=intent,
            limit=limit,
            digest="all" if everyone else "",
        )

    def buy(
        self, backend: str, amount_ucredits: int, price: payments.Price, key: str
    ) -> payments.IntentView:
        """An intent to pay for credits; the same ``key`` is the same purchase, however often.

        Args:
            backend: of ``offers``.
            amount_ucredits: micro-credits.
            price: as ``wire.payments.price_of`` has it, and as it was shown.
            key: made once for each purchase, and kept until its outcome is known.

        Raises:
            GridError: ``LEDGER_CONFLICT``: the price is another by now, or the key is another
                purchase's; ``LEDGER_DOWN``: ask again under the same key.
        """
        asked = wire.Buy(b"", 0, key, backend, amount_ucredits, price.price, price.fee)
        return decode_body(self._link.ask(asked), payments.IntentView)  # type: ignore[no-any-return]

    def change_purchase(
        self,
        verb: Literal["cancel", "confirm", "credit", "refund"],
        intent: str,
        *,
        received: int = 0,
        ref: str = "",
    ) -> payments.IntentView:
        """Cancel a purchase; for operators: confirm money for it, credit or refund what came."""
        asked = wire.Purchase(b"", 0, verb, intent, received, ref)
        return decode_body(self._link.ask(asked), payments.IntentView)  # type: ignore[no-any-return]

    def on_chain(self, said: chain.Message, kind: Any) -> Any:
        """Rentals and payouts: the ledger's answer, of this kind, to a message of ``ByClients``.

        Raises:
            GridError: what it refuses with: ``UNKNOWN_RENTAL``, ``SETTLEMENT_DOWN``, ...
        """
        return decode_body(self._link.ask(wire.OnChain(b"", 0, encode(said))), kind)

    def release(self, worker: str) -> None:
        """Let the node of a worker out of quarantine (operators); it is checked as a new one is.

        Raises:
            GridError: ``INVALID_SPEC``: no worker was ever named so.
        """
        self._link.ask(wire.ReleaseNode(b"", 0, worker))

    def operate(self, act: bytes) -> tuple[bytes, bool]:
        """Operators: an act of the registry dialogue (docs/rfc/0005), encoded, by their own name.

        Returns the registry's answer, encoded, and whether it had been done before.

        Raises:
            GridError: what the registry refuses with, or ``REGISTRY_DOWN``.
        """
        answer = decode_body(self._link.ask(wire.Operate(b"", 0, act)), wire.Operated)
        return bytes(answer.body), answer.is_repeat

    def drain(self, worker: str) -> None:
        """Operator: a worker finishes what it has and takes no more."""
        self._link.ask(wire.DrainWorker(b"", 0, worker))

    # ------------------------------------------------------------ the store

    def store_blob(self, body: bytes) -> BlobRef:
        """Put bytes into the grid's store: input files of a command, say."""
        return self._blob_store().put(body)  # type: ignore[no-any-return]

    def fetch_blob(self, reference: BlobRef) -> bytes:
        """Bytes out of the grid's store.

        Raises:
            GridError: they are gone, or not what their digest says.
        """
        return self._blob_store().get(reference)  # type: ignore[no-any-return]

    def _begin_store(self, body: bytes) -> tuple[BlobRef, concurrent.futures.Future[BlobRef]]:
        return self._blob_store().begin_put(body)  # type: ignore[no-any-return]

    def _begin_fetch(self, reference: BlobRef) -> concurrent.futures.Future[bytes]:
        return self._blob_store().begin_get(reference)  # type: ignore[no-any-return]

    def put(self, value: Any) -> Ref:
        """Put an object into the grid's store once, for many subtasks to read.

        The ref that comes back stands for the object: pass it in inputs of ``map`` and ``submit``,
        alone or inside of anything, or let a function capture it. It crosses the wire once for
        each node, and the memory of numpy arrays (and of whatever else gives its memory to
        pickle) is shared by all slots of a node. So arrays are read-only there: ``.copy()`` one to
        write to it. Without another put, the store frees it after its grace (30 days).

        Args:
            value: anything that pickles; ``bytes`` and plain Python objects are shared on the
                wire, and unpickled once for each slot.

        Raises:
            TypeError: it is a ref.
            UnpicklableError: it cannot be serialised.
            GridError: the store is down or full.

        >>> table = client.put(numpy.arange(13_000_000))         # doctest: +SKIP
        >>> rows = client.map(lambda row: table[row].sum(), range(1000))  # doctest: +SKIP
        """
        from gristmill.client.sharing import take_apart

        ref = self._blob_store().put_parts(take_apart(value))
        return Ref(ref.digest, ref.size_bytes)

    def get(self, ref: Ref) -> Any:
        """The object that ``put`` put there; a copy of our own.

        It is unpickled whatever the fleet: get only what you, or whom you trust, has put.

        Raises:
            TypeError: it is no ref.
            GridError: ``BLOB_MISSING``, ``BLOB_CORRUPT``, ``STORE_DOWN``.
        """
        if not isinstance(ref, Ref):
            raise TypeError(f"get needs a Ref that put gave, not {ref!r:.80}")
        from gristmill.client.sharing import put_together

        return put_together(self.fetch_blob(BlobRef(ref.digest, ref.size_bytes)))

    # ------------------------------------------------------------ inside

    @abc.abstractmethod
    def _reader(self, convert: Callable[[Any], Any] | None = None) -> ResultReader:
        """Whether to unpickle is the client's to decide."""

    def _is_command(self, job: AnyJob) -> Callable[[Any], Any] | None:
        if self.status(job).kind != "command":
            return None
        return lambda value: CommandOutput(value, self.fetch_blob)

    def _question(self, kind: Any, about: Any, **arguments: Any) -> Any:
        return decode_body(self._link.ask(wire.Ask(b"", 0, about, **arguments)), kind)

    def _blob_store(self) -> Any:
        if self._blobs is None:
            from gristmill.client.blobs import Blobs  # brings an HTTP client: only when needed

            self._blobs = Blobs(self._link)
        return self._blobs

    def _whole_log(self, row: wire.LogRow) -> wire.LogRow:
        stdout, stderr = row.stdout, row.stderr
        if row.stdout_digest:
            stdout = self.fetch_blob(BlobRef(row.stdout_digest, 0))
        if row.stderr_digest:
            stderr = self.fetch_blob(BlobRef(row.stderr_digest, 0))
        if (stdout, stderr) == (row.stdout, row.stderr):
            return row
        return msgspec.structs.replace(row, stdout=stdout, stderr=stderr)


def _runs(indices: Iterable[int | range]) -> list[tuple[int, int]]:
    """Indices and ranges of them as runs of consecutive ones.

    >>> _runs([5, range(7, 100), 4, range(90, 110), range(0, 4, 2)])
    [(0, 1), (2, 1), (4, 2), (7, 103)]
    """
    spans: list[tuple[int, int]] = []
    for each in indices:
        if isinstance(each, range):
            spans += [(each.start, each.stop)] if each.step == 1 else [(n, n + 1) for n in each]
        else:
            spans.append((each, each + 1))
    runs: list[tuple[int, int]] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if runs and start <= sum(runs[-1]):
            first = runs[-1][0]
            runs[-1] = (first, max(stop, sum(runs[-1])) - first)
        else:
            runs.append((start, stop - start))
    return runs
