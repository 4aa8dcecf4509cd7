"""``Client``: a grid from Python.

>>> with Client() as client:                                      # doctest: +SKIP
...     print(sum(client.map(pow, range(1000), range(1000))))
"""

import concurrent.futures
import os
import pickle
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Unpack

from gristmill.client.address import default_address
from gristmill.client.calls import CoalescedJob, keep_keywords
from gristmill.client.command import CommandOutput, FilesIn, input_text, make_command, read_files
from gristmill.client.decode import ResultReader
from gristmill.client.decompose import Decomposition, decompose
from gristmill.client.encode import Parcels
from gristmill.client.errors import BrokerUnavailable, GridError, grid_error
from gristmill.client.future import Future
from gristmill.client.jobs import Job
from gristmill.client.keyed import KeptParcels, submission_of
from gristmill.client.link import Link, decode_body
from gristmill.client.map import MapResults, Stream, tell, zipped
from gristmill.client.options import Duration, Options, make_spec
from gristmill.client.pickling import FunctionBytes, dump_function
from gristmill.client.posting import post
from gristmill.client.progress import Bar
from gristmill.client.questions import Questions
from gristmill.client.submitter import Submitter, name_of, origin_of, own_version
from gristmill.wire import client as wire
from gristmill.wire import limits
from gristmill.wire.login import token_for
from gristmill.wire.spec import Command, JobSpec
from gristmill.wire.units import parse_ms
from gristmill.wire.values import encode_ref

if TYPE_CHECKING:
    from gristmill.client.decompose.suite import SuiteVerdict
    from gristmill.client.pricing import Price

Trust = Literal["auto", "fleet", "none"]

_CLOSE_S = 5.0  #: how long a close waits for open uploads to be counted


class Client(Questions):
    """A connection to one grid; use it as a context manager.

    Nothing is connected before the first call that needs the broker. All methods may be called
    from any thread.

    Args:
        address: of the broker's front; by default ``$GRISTMILL_ADDRESS``, else the grid that
            ``gristmill up`` started for this user.
        tenant: who pays; by default who the broker says that we are.
        token: for a grid on TCP; by default ``$GRISTMILL_TOKEN``, else that of ``gristmill login``.
        trust: whether results may be unpickled: ``auto`` if the broker says that every worker is
            ours, ``fleet`` always, ``none`` never (docs/trust.md).
        environment: path of the Python that runs functions on the worker's host; by default
            this interpreter for a grid on this machine (``ipc://``), else the workers' own.
        timeout: seconds of silence after which a request fails with ``BrokerUnavailable``.
        warn: called with lines for a person; by default they go to stderr.

    >>> with Client() as client:                                  # doctest: +SKIP
    ...     for root in client.map(math.sqrt, [1, 4, 9]):
    ...         print(root)
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        tenant: str | None = None,
        token: str | None = None,
        trust: Trust = "auto",
        environment: str | None = None,
        timeout: float = 10.0,
        warn: Callable[[str], None] = tell,
    ) -> None:
        if trust not in ("auto", "fleet", "none"):
            raise ValueError(f"trust is {trust!r}; it is 'auto', 'fleet' or 'none'")
        self.address = address or default_address()
        self._trust = trust
        if environment is None:
            environment = sys.executable if self.address.startswith("ipc://") else ""
        self._environment = environment
        hello = wire.Hello(
            limits.PROTOCOL,
            os.urandom(16),
            tenant or "",
            f"{sys.version_info[0]}.{sys.version_info[1]}",
            own_version(),
        )
        secret = token_for(os.environ, self.address, token)
        super().__init__(Link(self.address, hello, secret, timeout, warn), warn)
        self._lock = threading.Lock()
        self._functions = FunctionBytes()
        self._groups: dict[tuple[Any, ...], CoalescedJob] = {}
        self._old_groups: list[CoalescedJob] = []
        self._calls: dict[tuple[Any, ...], tuple[Callable[..., Any], Callable[..., Any]]] = {}
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._background: concurrent.futures.ThreadPoolExecutor | None = None
        self._finalizer = weakref.finalize(self, _end, self._link, self._streams)

    # ------------------------------------------------------------ work

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        window: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        chunk: int | None = None,
        progress: bool | None = False,
        key: str | None = None,
        **options: Unpack[Options],
    ) -> MapResults:
        """Values of ``fn`` over inputs, as they come.

        Lazy at both ends: inputs are read as results make room, so an endless generator is
        welcome and memory stays flat. Work starts with the first ``next``. Dropping the iterator
        cancels the rest; Ctrl-C leaves the job running and says how to come back.

        Args:
            fn: called with one item of each iterable, as the builtin ``map`` does. It travels by
                value unless it is installed.
            iterables: inputs; ranges, lists and numpy arrays are the fastest.
            window: how many inputs may be on their way; by default bounded by bytes.
            ordered: False yields values as subtasks end.
            return_exceptions: exceptions are yielded in place instead of raised.
            chunk: inputs in one parcel; by default 2,000 to 8,000 of at most 384 KiB.
            progress: True draws a bar on a terminal, or prints lines elsewhere; None only draws
                on a terminal.
            key: the same key is the same job, also after a crash of anybody: its results come
                again, nothing runs twice. The inputs are read to their end first, and another
                function, option or input under the key is refused.
            options: see ``Options``.

        Raises (from the iterator, unless said otherwise):
            UnpicklableError: at the call, naming what cannot travel.
            GridError: at the call for a bad option; later for what the broker refuses.
            BrokerUnavailable: the broker does not answer; results that were on their way are
                waited for instead, with a line on stderr.
            Exception: what ``fn`` raised, with the remote traceback as its cause.
            SubtaskError: an end of another kind (``TimeLimit``, ``OutOfMemory``, ...).
        """
        if not iterables:
            raise TypeError("map needs at least one iterable")
        if window is not None and window < 1:
            raise ValueError(f"window is {window}; it is at least 1")
        body = dump_function(fn)
        spec, frame = self._function_spec(
            options, body, len(iterables) > 1, name_of(fn), **origin_of(iterables[0])
        )
        return self._stream(
            spec, frame, zipped(iterables), window, ordered, return_exceptions, chunk, progress, key
        )

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """One call, as a future.

        Calls of the same function share one job; options are given with ``with_options``.

        Raises:
            UnpicklableError: the function cannot travel (an argument that cannot is the
                future's exception).
        """
        return self._submit({}, "", fn, args, kwargs)

    def with_options(self, **options: Unpack[Options]) -> "Submitter":
        """``client.with_options(memory="2G").submit(fn, ...)``: ``submit`` with options."""
        return Submitter(self, options)

    def run(
        self,
        argv: Iterable[str | os.PathLike[str]],
        *,
        each: Iterable[Any] | None = None,
        stdin: str | bytes | None = None,
        each_stdin: bool = False,
        env: Mapping[str, str] | None = None,
        files_in: FilesIn | None = None,
        files_out: Iterable[str] = (),
        ok_exit_codes: Iterable[int] = (0,),
        window: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        progress: bool | None = False,
        key: str | None = None,
        **options: Unpack[Options],
    ) -> MapResults:
        """Runs of a command, each in a jail; yields a ``CommandOutput`` for each.

        Args:
            argv: the command; ``{}`` stands for the input, ``{0}``, ``{1}`` for its parts,
                ``{index}`` for the index of the subtask. Likewise in ``env`` and ``files_out``.
            each: inputs: texts, or lists of texts; without it the command runs once.
            stdin: the standard input of a single run.
            each_stdin: every input is the standard input, and ``argv`` is used as it is.
            files_in: paths, or a mapping of names in the jail to paths or bytes.
            files_out: glob patterns of files to collect.
            ok_exit_codes: others raise ``CommandFailed``.
            env: environment of the command.
            window: as in ``map``.
            ordered: as in ``map``.
            return_exceptions: as in ``map``.
            progress: as in ``map``.
            key: as in ``map``.
            options: see ``Options``.
        """
        if each is not None and stdin is not None:
            raise ValueError("stdin is for a single run; give each= with each_stdin=True instead")
        is_stdin = each_stdin or stdin is not None
        inputs: Iterable[Any] = [stdin if stdin is not None else ""] if each is None else each
        bodies = read_files(files_in)
        command = make_command(
            argv,
            env=env,
            is_stdin=is_stdin,
            files_in=bodies,
            files_out=files_out,
            ok_exit_codes=ok_exit_codes,
        )
        spec, _ = self.make_spec(command, **origin_of(each), **options)
        for _, body, _ in bodies:
            self.store_blob(body)
        return self._stream(
            spec,
            b"",
            inputs if isinstance(inputs, range) else (input_text(value) for value in inputs),
            window,
            ordered,
            return_exceptions,
            None,
            progress,
            key,
            lambda value: CommandOutput(value, self.fetch_blob),
        )

    def price(
        self,
        fn: Callable[..., Any],
        inputs: Iterable[Any],
        *,
        sample: int = 20,
        **options: Unpack[Options],
    ) -> "Price":
        """What ``map`` would cost, as an interval; it may run a sample, see ``pricing.price``."""
        from gristmill.client.pricing import price  # signatures come with it

        return price(self, *self.make_spec(fn, **options), inputs, sample)

    def decompose(
        self,
        name: str,
        *,
        decompose_timeout: Duration = limits.DECOMPOSE_WALL_MS / 1000,
        **arguments: Any,
    ) -> Decomposition:
        """The inputs of a request that a plug-in splits: ``lines``, ``glob``, ``sweep``, ...

        It runs in a jail, at no charge, and the same request gives the same list. Give what it
        returns to ``map`` or ``run(each=...)``.

        Args:
            name: of the decomposer.
            decompose_timeout: its deadline.
            arguments: what it asks for; of ``sweep``, the parameters.

        Raises:
            DecomposeError: nothing was created or charged.
        """
        return decompose(self, name, arguments, parse_ms(decompose_timeout))

    def pytest(
        self,
        tree: str | os.PathLike[str],
        *,
        args: Sequence[str] = (),
        junit: str | os.PathLike[str] | None = None,
        **options: Unpack[Options],
    ) -> "SuiteVerdict":
        """The verdict of a source tree's test suite, each test file in a jail of its own.

        See ``decompose.suite.run_suite``.
        """
        from gristmill.client.decompose.suite import run_suite  # tar and XML: only when needed

        return run_suite(self, tree, args=args, junit=junit, **options)

    def dry_run(
        self,
        fn: Callable[..., Any] | None = None,
        *,
        argv: Iterable[str] | None = None,
        **options: Unpack[Options],
    ) -> wire.DryRun:
        """What a submission would do: the full spec, workers that match, reasons of the others."""
        if (fn is None) == (argv is None):
            raise TypeError("dry_run needs a function or argv")
        if fn is not None:
            return self.try_out(*self.make_spec(fn, **options))
        assert argv is not None
        command = make_command(
            argv, env=None, is_stdin=False, files_in=[], files_out=(), ok_exit_codes=(0,)
        )
        return self.try_out(*self.make_spec(command, **options))

    def make_spec(
        self,
        work: Callable[..., Any] | Command,
        *,
        is_star: bool = False,
        count: int = -1,
        parent: int = 0,
        request_digest: str = "",
        **options: Unpack[Options],
    ) -> tuple[JobSpec, bytes]:
        """(spec, function frame) of a job: what ``post`` and ``try_out`` take.

        Args:
            work: a function, or a command whose input files are in the store (``store_blob``).
            is_star: an input is a tuple of the function's arguments.
            count: how many inputs there will be, if that is known.
            parent: the job of the decomposition that made the inputs.
            request_digest: of that decomposition.
            options: see ``Options``.
        """
        more: Any = {"count": count, "parent": parent, "request_digest": request_digest}
        if isinstance(work, Command):
            more["name"] = os.path.basename(work.argv[0]) if work.argv else ""
            return make_spec(options, command=work, environment=self._environment, **more), b""
        return self._function_spec(options, dump_function(work), is_star, name_of(work), **more)

    def post(
        self, spec: JobSpec, function: bytes, inputs: Iterable[Any], *, key: str | None = None
    ) -> Job:
        """Submit a job and leave it to go on: returns once every input is on the broker's disk.

        When this is interrupted, or an input cannot be read, the job is cancelled. With a ``key``
        it is not, and doing it again is harmless: see ``map``.

        >>> client.post(*client.make_spec(math.sqrt), [1, 4, 9]).id  # doctest: +SKIP
        'j17'
        """
        return self.job(post(self._link, self.store_blob, spec, function, inputs, key))

    def try_out(self, spec: JobSpec, function: bytes = b"") -> wire.DryRun:
        """What ``post`` would do: nothing is created."""
        message = wire.Submit(b"", 0, os.urandom(16), spec, True)
        return decode_body(self._link.ask(message, [function]), wire.DryRun)  # type: ignore[no-any-return]

    # ------------------------------------------------------------ trust

    @property
    def is_fleet_trusted(self) -> bool:
        """Whether this client unpickles results."""
        if self._trust == "auto":
            return self._link.wait_welcome().is_fleet_trusted
        return self._trust == "fleet"

    @property
    def pythons(self) -> list[str]:
        """Versions of Python that the workers offered when this client joined."""
        return self._link.wait_welcome().pythons

    # ------------------------------------------------------------ life

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            for stream in list(self._streams):
                stream.leave()
        self.close()

    def close(self) -> None:
        """End the session.

        Maps that were not read to their end are cancelled; calls without a value go on, their
        futures fail; jobs go on.
        """
        for stream in list(self._streams):
            stream.close()
        with self._lock:
            groups = [*self._groups.values(), *self._old_groups]
            self._groups, self._old_groups = {}, []
        for group in groups:
            group.close()
        deadline = time.monotonic() + _CLOSE_S
        for group in groups:
            group.wait_closed(max(deadline - time.monotonic(), 0))
        for group in groups:
            group.abandon(
                grid_error(
                    "UNREACHABLE",
                    "the client was closed before the call had a value",
                    f'its job goes on: client.results("j{group.job}") in another client',
                )
            )
        self._finalizer()
        if self._background is not None:
            self._background.shutdown(wait=False)
        if self._blobs is not None:
            self._blobs.close()

    def __repr__(self) -> str:
        return f"<gristmill Client {self.address}{'' if self._link.is_open else ' closed'}>"

    def _repr_html_(self) -> str:
        try:
            rows = self.workers()
        except BrokerUnavailable:
            return f"<b>gristmill</b> {self.address}: no answer"
        slots, busy = sum(row.slots for row in rows), sum(row.busy for row in rows)
        return (
            f"<b>gristmill</b> {self.address}<br>{len(rows)} workers, {busy} of {slots} slots busy"
        )

    # ------------------------------------------------------------ inside

    def _function_spec(
        self, options: Options, body: bytes, is_star: bool, name: str, **more: Any
    ) -> tuple[JobSpec, bytes]:
        """(spec, frame) of a function; a large one goes to the store first."""
        is_stored = len(body) > limits.FUNCTION_BYTES_MAX
        spec = make_spec(
            options,
            function=body,
            is_function_stored=is_stored,
            is_star=is_star,
            name=name,
            environment=self._environment,
            is_trusted=options.get("results") is None and self.is_fleet_trusted,
            **more,
        )
        if spec.results == "any" and not self.is_fleet_trusted:
            raise grid_error(
                "UNSAFE_RESULT",
                "results='any' asks for pickles, and this client does not trust its fleet",
            )
        return spec, encode_ref(self.store_blob(body)) if is_stored else body

    def _stream(
        self,
        spec: JobSpec,
        function: bytes,
        source: Iterable[Any],
        window: int | None,
        ordered: bool,
        return_exceptions: bool,
        chunk: int | None,
        progress: bool | None,
        key: str | None,
        convert: Callable[[Any], Any] | None = None,
    ) -> MapResults:
        items_max = chunk
        if window is not None:
            # Several parcels to a window: one comes back while the next is on its way.
            items_max = max(1, min(chunk or limits.PARCEL_OBJECTS_TARGET, window // 4 or 1))
        parcels = Parcels(source, items_max, self.store_blob, self._begin_store)
        if key is not None:
            parcels = kept = KeptParcels(source, self.store_blob)
            spec = kept.spec(spec)
        bar = (
            Bar(spec.name, parcels.length, is_forced=bool(progress))
            if progress is not False
            else None
        )
        return self._start(
            spec,
            function,
            parcels,
            self._reader(convert),
            submission_of(key),
            window=None if key else window,
            ordered=ordered,
            return_exceptions=return_exceptions,
            on_count=bar.show if bar else None,
        )

    def _start(
        self,
        spec: JobSpec,
        function: bytes,
        parcels: Parcels,
        reader: ResultReader,
        submission: bytes,
        **how: Any,
    ) -> MapResults:
        message = wire.Submit(b"", 0, submission, spec)
        stream = Stream(self._link, message, function, parcels, reader, warn=self._warn, **how)
        self._streams.add(stream)
        return MapResults(stream)

    def _split_job(
        self, split: Callable[[Any], Any], value: Any, name: str, timeout_ms: int, digest: str
    ) -> MapResults:
        """A decomposition: one subtask, no charge, plain values, a deadline."""
        options: Options = {"timeout": f"{timeout_ms}ms", "results": "safe", "pids": 256}
        spec, frame = self._function_spec(
            options,
            dump_function(split),
            False,
            name,
            tariff="zero",
            count=1,
            request_digest=digest,
        )
        reader = ResultReader(None, self.fetch_blob)
        parcels = Parcels([value], 1, self.store_blob)
        return self._start(spec, frame, parcels, reader, submission_of(None))

    def _submit(
        self,
        options: Options,
        options_key: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Future:
        names = tuple(sorted(kwargs))
        if names:
            args = (*args, *(kwargs[name] for name in names))
        body = self._functions.of(fn)
        key = (body, options_key, len(args) if names else -1, names)
        group = self._groups.get(key)
        if group is not None and (future := group.call(args)) is not None:
            return future
        with self._lock:
            group = self._groups.get(key)
            if group is None or group.is_closed:
                if group is not None:
                    self._old_groups = [g for g in (*self._old_groups, group) if g.pending]
                group = self._groups[key] = self._new_group(options, fn, body, len(args), names)
        future = group.call(args)
        if future is None:
            raise grid_error("UNREACHABLE", "the client is closed")
        return future

    def _new_group(
        self,
        options: Options,
        fn: Callable[..., Any],
        body: bytes,
        arguments: int,
        names: tuple[str, ...],
    ) -> CoalescedJob:
        if names:
            body = dump_function(keep_keywords(fn, arguments - len(names), names))
        single: Options = {"keep": False, **options}
        spec, frame = self._function_spec(single, body, True, name_of(fn))
        return CoalescedJob(
            self._link,
            wire.Submit(b"", 0, os.urandom(16), spec),
            frame,
            self._reader(),
            self.store_blob,
            self._in_background,
            self._warn,
        )

    def _in_background(self, work: Callable[[], None]) -> None:
        with self._lock:
            if self._background is None:
                self._background = concurrent.futures.ThreadPoolExecutor(
                    1, thread_name_prefix="gristmill-blobs"
                )
            self._background.submit(work)

    def _reader(self, convert: Callable[[Any], Any] | None = None) -> ResultReader:
        loads = pickle.loads if self.is_fleet_trusted else None
        return ResultReader(loads, self.fetch_blob, convert, self._begin_fetch)


def _end(link: Link, streams: "weakref.WeakSet[Stream]") -> None:
    """The client or the program ends; of a program, also by Ctrl-C outside any ``with``."""
    is_interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt
    for stream in list(streams):
        if is_interrupted:
            stream.leave()
        else:
            stream.close()
    link.close()


__all__ = ["Client", "GridError", "Submitter"]
