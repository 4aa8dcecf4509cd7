"""``gristmill submit --from``: one request, split into subtasks by a decomposer in a jail."""

import argparse
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.cli import documents
from gristmill.cli.output import Terminal, plural
from gristmill.cli.submit import (
    command_of,
    load_function,
    options_of,
    show_dry_run,
    show_submitted,
)
from gristmill.client.decompose import Decomposition, decompose
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK, RemoteError
from gristmill.wire.ids import format_job
from gristmill.wire.limits import DECOMPOSE_WALL_MS
from gristmill.wire.spec import Command, JobSpec

if TYPE_CHECKING:
    from gristmill.client import Client

_TRUE, _FALSE = frozenset({"true", "yes", "1"}), frozenset({"false", "no", "0"})
_SWITCHES = {"lines": ("blank",), "glob": ("absolute",)}


def submit_decomposed(client: "Client", args: argparse.Namespace, terminal: Terminal) -> int:
    """Split, then submit what came out; ``pytest`` runs its own job and has a verdict."""
    arguments = arguments_of(args.decomposer, args.param)
    if args.decomposer == "pytest":
        if args.verb == "price":
            raise RemoteError(
                "INVALID_SPEC",
                "--from pytest finds its subtasks while it runs: there is no price before it",
                "gristmill submit --from pytest ... --cap CREDITS stops it in time",
            )
        return _run_suite(client, args, arguments, terminal)
    if not (args.command or args.python):
        raise RemoteError(
            "INVALID_SPEC",
            f"--from {args.decomposer} makes inputs; what is to be done with each of them?",
            f"gristmill submit --from {args.decomposer} --param ... -- COMMAND {{}}",
        )
    timeout_ms = args.decompose_timeout or DECOMPOSE_WALL_MS
    terminal.way_back = "nothing was submitted"
    request = decompose(client, args.decomposer, arguments, timeout_ms)
    again = ", as for the same request before" if request.is_reused else ""
    terminal.say(
        f"{args.decomposer} ({format_job(request.job)}): {plural(len(request), 'subtask')}{again}"
    )
    return _submit(client, args, request, terminal)


def _submit(
    client: "Client", args: argparse.Namespace, request: Decomposition, terminal: Terminal
) -> int:
    spec, body, inputs = make_decomposed(client, args, request)
    if args.verb == "price":
        from gristmill.cli.price import show_price

        return show_price(client, spec, body, inputs, args.sample, terminal)
    if args.dry_run:
        answer, tariffs = client.try_out(spec, body), client.tariffs()
        return show_dry_run(answer, len(request), tariffs, terminal)
    job = client.post(spec, body, inputs)
    decomposition = format_job(request.job)
    return show_submitted(client, job, args, terminal, decomposition)


def make_decomposed(
    client: "Client", args: argparse.Namespace, request: Decomposition
) -> tuple[JobSpec, bytes, Iterable[Any]]:
    """(spec, function, inputs) of the job."""
    origin: dict[str, Any] = {
        "parent": request.job,
        "request_digest": request.request_digest,
        "count": len(request),
    }
    options = options_of(args)
    inputs: Iterable[Any] = request
    if args.python:
        spec, body = client.make_spec(load_function(args.python), **origin, **options)
    else:
        command, take = with_names(command_of(args, client), request[0])
        inputs = map(take, request)
        if args.decomposer == "glob":  # a jail sees no files of ours: each goes with its subtask
            files = files_of(request.ids, Path(arguments_of("glob", args.param).get("root", ".")))
            inputs = (body for _, body in files) if args.stdin else files
        spec, body = client.make_spec(command, **origin, **options)
    return spec, body, inputs


def arguments_of(decomposer: str, given: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """What the decomposer is asked for, from ``--param KEY=VALUE``.

    Of ``sweep``, a value is a list with commas; a key that is given again adds to a list.
    """
    arguments: dict[str, Any] = {}
    for key, text in given:
        value: Any = text
        if decomposer == "sweep":
            value = arguments.get(key, []) + text.split(",")
        elif decomposer == "pytest" and key == "args":
            value = arguments.get(key, []) + shlex.split(text)
        elif key in _SWITCHES.get(decomposer, ()):
            value = _switch(key, text)
        elif key in arguments:
            earlier = arguments[key]
            value = [*(earlier if isinstance(earlier, list) else [earlier]), text]
        arguments[key] = value
    return arguments


def _switch(key: str, text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise RemoteError("INVALID_SPEC", f"--param {key}={text}: write true or false")
    return text.lower() in _TRUE


def with_names(command: Command, first: Any) -> tuple[Command, Callable[[Any], Any]]:
    """The command and how its inputs travel, when these are dicts: ``{rate}`` names a value.

    A worker knows ``{}``, ``{0}``, ``{index}``; names become numbers here, dicts lists.
    """
    if not isinstance(first, Mapping):
        return command, lambda value: value
    names = list(first)
    known = re.compile(r"\{(" + "|".join(map(re.escape, names)) + r")\}")

    def number(text: str) -> str:
        return known.sub(lambda match: f"{{{names.index(match[1])}}}", text)

    import msgspec

    numbered = msgspec.structs.replace(
        command,
        argv=[number(word) for word in command.argv],
        env={name: number(text) for name, text in command.env.items()},
        files_out=[number(pattern) for pattern in command.files_out],
    )
    return numbered, lambda value: [str(value[name]) for name in names]


def files_of(names: Iterable[str], root: Path) -> Iterator[tuple[str, bytes]]:
    """(path below ``root``, content) of files of ours, each read when its subtask is sent.

    The names come back from a jail: none of them leads out of the folder that was asked about.

    Raises:
        RemoteError: ``INVALID_SPEC``: one cannot be read.
    """
    for name in names:
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise RemoteError("INVALID_SPEC", f"glob found {name!r}, which is not below {root}")
        try:
            yield name, (root / name).read_bytes()
        except OSError as error:
            raise RemoteError(
                "INVALID_SPEC", f"{root / name}: {error.strerror}", "check the pattern"
            ) from None


def _run_suite(
    client: "Client", args: argparse.Namespace, arguments: dict[str, Any], terminal: Terminal
) -> int:
    junit = arguments.pop("junit", None)
    unknown = set(arguments) - {"tree", "args"}
    if unknown or "tree" not in arguments or args.command or args.python:
        raise RemoteError(
            "INVALID_SPEC",
            f"pytest takes tree, args and junit and no command; got {', '.join(arguments)}",
            "gristmill submit --from pytest --param tree=DIR --param args='-x' --param junit=FILE",
        )
    verdict = client.pytest(
        arguments["tree"], args=arguments.get("args", ()), junit=junit, **options_of(args)
    )
    failed = {name: code for name, code in verdict.files.items() if code}
    if terminal.is_json:
        document = documents.Suite(
            format_job(verdict.job),
            verdict.exit_code,
            verdict.tests,
            verdict.failures,
            verdict.errors,
            verdict.skipped,
            verdict.files,
            junit or "",
        )
        terminal.document(documents.encode(document))
    else:
        terminal.print(f"{format_job(verdict.job)} {verdict}")
        for name, code in failed.items():
            terminal.say(f"  {name}: exit code {code}", "red")
        if junit:
            terminal.say(f"report: {junit}")
    return EXIT_OK if verdict.exit_code == 0 else EXIT_FAILED
