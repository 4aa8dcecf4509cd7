"""``gristmill submit``: a command, a Python function or a decomposed request becomes a job."""

import argparse
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from gristmill.cli import documents, wait
from gristmill.cli.connection import connect
from gristmill.cli.output import Terminal, plural
from gristmill.cli.selection import Array, parse_array
from gristmill.cli.why import show_reasons
from gristmill.client.command import make_command, read_files
from gristmill.client.options import Options
from gristmill.wire.client import DryRun
from gristmill.wire.errors import EXIT_OK, EXIT_POLICY, RemoteError
from gristmill.wire.spec import Command, JobSpec
from gristmill.wire.tariffs import CLASS_LABEL, Tariffs, tariff_of
from gristmill.wire.units import UCREDITS_PER_CREDIT, format_bytes, format_credits, format_ms

if TYPE_CHECKING:
    from gristmill.client import Client
    from gristmill.client.jobs import Job

PARTS = re.compile(r"\{[0-9]+\}")  #: a command with one of these gets the words of its input


class Inputs(NamedTuple):
    """What the subtasks are about. ``total``: how many, -1 until they have been read."""

    values: Iterable[Any]
    total: int
    at_once: int = 0


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Submit; print the id; wait for the end if that was asked."""
    check_arguments(args)
    with connect(args.address) as client:
        if args.decomposer:
            from gristmill.cli.decomposed import submit_decomposed

            return submit_decomposed(client, args, terminal)
        inputs = read_inputs(args)
        spec, function = make_request(client, args, inputs)
        if args.dry_run:
            count = inputs.total if inputs.total >= 0 else sum(1 for _ in inputs.values)
            answer, tariffs = client.try_out(spec, function), client.tariffs()
            return show_dry_run(answer, count, tariffs, terminal)
        terminal.way_back = "nothing was submitted"
        job = client.post(spec, function, inputs.values, key=args.key)
        return show_submitted(client, job, args, terminal)


def check_arguments(args: argparse.Namespace) -> None:
    """What argparse cannot say.

    Raises:
        RemoteError: ``INVALID_SPEC`` that names every contradiction.
    """
    bad = []
    has_command = bool(args.command)
    if args.command == []:
        bad.append("no command after --")
    if args.python and has_command:
        bad.append("--python and a command exclude each other")
    if not (has_command or args.python or args.decomposer or args.command == []):
        bad.append("nothing to run: a command goes after --, or give --python FILE:FUNCTION")
    if args.param and not args.decomposer:
        bad.append("--param is for --from")
    if args.decompose_timeout and not args.decomposer:
        bad.append("--decompose-timeout is for --from")
    for option, value in (
        ("--stdin", args.stdin),
        ("--file-in", args.file_in),
        ("--file-out", args.file_out),
        ("--env", args.env),
        ("--ok-exit", args.ok_exit),
    ):
        if value and args.python:
            bad.append(f"{option} is for commands")
    if bad:
        raise RemoteError("INVALID_SPEC", "; ".join(bad), "gristmill submit --help")


# ---------------------------------------------------------------- what is asked for


def options_of(args: argparse.Namespace, at_once: int = 0) -> Options:
    """The options that were given, as the client library takes them; its defaults stay its own."""
    options: Options = {}
    if args.cpus_milli is not None:
        options["cpus"] = args.cpus_milli / 1000
    if args.timeout is not None:
        options["timeout"] = args.timeout / 1000
    if args.cap is not None:
        whole, part = divmod(args.cap, UCREDITS_PER_CREDIT)
        options["cap"] = f"{whole}.{part:06d}"
    for name in (
        "memory", "scratch", "output", "pids", "tier", "environment",
        "name", "retries", "failures_max", "completion", "quorum", "rental", "priority", "keep",
    ):  # fmt: skip
        value = getattr(args, name)
        if value is not None:
            options[name] = value
    if args.label:
        options["labels"] = dict(args.label)
    if at_once:
        options["concurrency"] = at_once
    return options


def command_of(args: argparse.Namespace, client: "Client") -> Command:
    """The command; its input files are in the store when this returns."""
    bodies = read_input_files(args.file_in)
    command = make_command(
        args.command,
        env=environment_of(args.env, os.environ),
        is_stdin=args.stdin,
        is_file=args.decomposer == "glob",
        files_in=bodies,
        files_out=args.file_out,
        ok_exit_codes=args.ok_exit or (0,),
    )
    if not args.dry_run:
        for _, body, _ in bodies:
            client.store_blob(body)
    return command


def environment_of(
    given: Iterable[str], own: "os._Environ[str] | dict[str, str]"
) -> dict[str, str]:
    """Variables of the command, from ``KEY=VALUE`` and ``KEY`` (ours).

    Raises:
        RemoteError: ``INVALID_SPEC``: one of ours that is not set.
    """
    variables = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key or (not equals and key not in own):
            raise RemoteError(
                "INVALID_SPEC",
                f"--env {text}: {f'{key} is not set here' if key else 'no name'}",
                f"--env {key or 'KEY'}=VALUE",
            )
        variables[key] = value if equals else own[key]
    return variables


def read_input_files(given: Iterable[str]) -> list[tuple[str, bytes, bool]]:
    """Files of ``PATH`` or ``PATH=NAME``: (name, content, is executable).

    Raises:
        RemoteError: ``INVALID_SPEC``: one cannot be read, or two have one name.
    """
    named: dict[str, str] = {}
    for text in given:
        path, equals, name = text.rpartition("=")
        if not equals or Path(text).exists():
            path, name = text, Path(text).name
        if name in named:
            raise RemoteError(
                "INVALID_SPEC",
                f"--file-in: {named[name]} and {path} would both be {name!r}",
                f"--file-in {path}=OTHER-NAME",
            )
        named[name] = path
    try:
        return read_files(named)
    except OSError as error:
        raise RemoteError(
            "INVALID_SPEC", f"--file-in {error.filename}: {error.strerror}", "check the path"
        ) from None


def make_request(
    client: "Client", args: argparse.Namespace, inputs: Inputs
) -> tuple[JobSpec, bytes]:
    """(spec, function) of the job that the arguments ask for."""
    options = options_of(args, inputs.at_once)
    if not args.python:
        return client.make_spec(command_of(args, client), count=inputs.total, **options)
    function = load_function(args.python)
    is_bare = not (args.each_line or args.array)
    return client.make_spec(function, is_star=is_bare, count=inputs.total, **options)


def load_function(text: str) -> Callable[..., Any]:
    """``FILE:FUNCTION``: the file is run here, as ``python FILE`` would, but not as __main__.

    Raises:
        RemoteError: ``INVALID_SPEC`` that says what is wrong with it.
    """
    import importlib.util

    path, colon, name = text.rpartition(":")
    if not colon or not name.isidentifier():
        raise RemoteError("INVALID_SPEC", f"--python {text}: write it as FILE:FUNCTION")
    if not Path(path).is_file():
        raise RemoteError("INVALID_SPEC", f"--python {text}: there is no file {path}")
    module_name = re.sub(r"\W", "_", Path(path).stem)
    spec = importlib.util.spec_from_file_location(f"gristmill_submit_{module_name}", path)
    if spec is None or spec.loader is None:
        raise RemoteError("INVALID_SPEC", f"--python {text}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that its functions travel by value, as a whole
    sys.path.insert(0, str(Path(path).resolve().parent))  # for what the file imports beside it
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if _is_own(value, spec.name)]
        raise RemoteError(
            "INVALID_SPEC",
            f"--python {text}: {path} has no function {name!r}",
            f"it has: {', '.join(known) or 'none'}",
        )
    return function  # type: ignore[no-any-return]


def _is_own(value: object, module: str) -> bool:
    return callable(value) and getattr(value, "__module__", "") == module


# ---------------------------------------------------------------- inputs


def read_inputs(args: argparse.Namespace) -> Inputs:
    """The inputs that the options name; lines are read as they are sent.

    Raises:
        RemoteError: ``INVALID_SPEC``.
    """
    if args.array is not None:
        try:
            array = parse_array(args.array)
        except ValueError as error:
            raise RemoteError("INVALID_SPEC", f"--array: {error}", "--array 1-100%10") from None
        return Inputs(numbers_of(array, args.python is None), array.total, array.at_once)
    if args.each_line is not None:
        lines = lines_of(args.each_line)
        has_parts = args.command and any(map(PARTS.search, (*args.command, *args.file_out)))
        return Inputs((line.split() for line in lines) if has_parts else lines, -1)
    if args.python:
        return Inputs([()], 1)
    if args.stdin:
        return Inputs([sys.stdin.buffer.read()], 1)
    return Inputs([""], 1)


def numbers_of(array: Array, is_command: bool) -> Iterable[int]:
    """A range where it is one: it travels as 16 bytes, whatever its length."""
    ranges = array.ranges()
    return ranges[0] if len(ranges) == 1 else itertools.chain.from_iterable(ranges)


def lines_of(path: str) -> Iterator[str]:
    """Lines of a file (``-``: stdin) without their ends; an empty line is an input as well.

    Raises:
        RemoteError: ``INVALID_SPEC``: the file cannot be read, or a line is no UTF-8.
    """
    try:
        with _opened(path) as file:
            number = 0
            try:
                for line in file:
                    number += 1
                    yield line.removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                raise RemoteError(
                    "INVALID_SPEC",
                    f"--each-line {path}: after line {number}: no UTF-8 ({error.reason})",
                    "convert it, or give paths instead of contents",
                ) from None
    except OSError as error:
        raise RemoteError(
            "INVALID_SPEC", f"--each-line {path}: {error.strerror}", "check the path"
        ) from None


def _opened(path: str) -> TextIO:
    source: str | int = sys.stdin.fileno() if path == "-" else path
    return open(source, encoding="utf-8", newline="\n", closefd=path != "-")


# ---------------------------------------------------------------- what it says


def show_submitted(
    client: "Client",
    job: "Job",
    args: argparse.Namespace,
    terminal: Terminal,
    decomposition: str = "",
) -> int:
    """The id on stdout, the next command on stderr; with ``--wait`` the end."""
    name, status = job.id, job.status()
    count = status.count if status.count >= 0 else status.uploaded
    terminal.way_back = f"the job goes on; come back with: gristmill wait {name}"
    if terminal.is_json:
        document = documents.Submitted(name, job.job, count, decomposition)
        terminal.document(documents.encode(document))
    else:
        terminal.print(name)
        terminal.out.flush()
    if not (args.wait or args.progress):
        terminal.say(f"{plural(count, 'subtask')}\n  next: gristmill wait {name}")
        return EXIT_OK
    statuses = wait.follow_all(client, [job.job], None, terminal, is_forced=args.progress)
    code = wait.report(statuses, terminal)
    if code == EXIT_OK:
        terminal.say(f"  next: gristmill result {name}")
    return code


def show_dry_run(answer: DryRun, count: int, tariffs: Tariffs, terminal: Terminal) -> int:
    """The normalised request, who could run it, and what it may cost; 5 when nobody can."""
    low, high = price_of(answer.spec, count, tariffs)
    is_possible = answer.workers_matching > 0
    if terminal.is_json:
        document = documents.DryRunResult(
            answer.spec,
            count,
            answer.workers_matching,
            answer.workers_of,
            low,
            high,
            answer.reasons,
        )
        terminal.document(documents.encode(document))
        return EXIT_OK if is_possible else EXIT_POLICY
    spec = answer.spec
    limits = spec.limits
    terminal.card(
        f"would submit {plural(count, 'subtask')}",
        [
            ("what", " ".join(spec.command.argv) if spec.command else f"function {spec.name}"),
            ("tier", spec.tier),
            (
                "limits",
                f"{limits.cpus_milli / 1000:g} cpus, {format_bytes(limits.memory_bytes)}, "
                f"{format_ms(limits.wall_ms)}, retries {spec.retries}",
            ),
            ("workers", f"{answer.workers_matching} of {answer.workers_of} could run it"),
            ("price", f"{format_credits(low)} to {format_credits(high)} credits"),
        ],
    )
    show_reasons(answer.reasons, terminal)
    return EXIT_OK if is_possible else EXIT_POLICY


def price_of(spec: JobSpec, count: int, tariffs: Tariffs) -> tuple[int, int]:
    """The least and the most that it can cost, in micro-credits.

    On nodes of the class that it asks for, else of the cheapest and of the dearest.
    """
    from gristmill.client.pricing import span_by_limits

    asked = spec.labels.get(CLASS_LABEL)
    classes = list(tariffs.values()) if asked is None else [tariff_of(tariffs, asked)]
    spans = [span_by_limits(spec, tariff, count) for tariff in classes]
    low, high = min(low for low, _ in spans), max(high for _, high in spans)
    return min(low, spec.cap_ucredits), min(high, spec.cap_ucredits)
