"""``gristmill result``: what a job gave back, on stdout or as files."""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.cli import documents
from gristmill.cli.connection import connect, subtask_of
from gristmill.cli.output import Terminal, clean, clean_lines, plural
from gristmill.client.command import CommandOutput
from gristmill.client.errors import SubtaskError, subtask_name
from gristmill.client.folder import Folder
from gristmill.client.reading import Ended
from gristmill.wire.client import FINAL_JOB_STATES
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK, RemoteError
from gristmill.wire.ids import JobId, format_job

if TYPE_CHECKING:
    from gristmill.client import Client

ERRORS_SHOWN = 10  #: then only their number


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Print or write every value; exit 1 if one is missing."""
    job, index = subtask_of(args.job)
    with connect(args.address) as client:
        results = _wanted(client, job, index, terminal)
        if args.out is None:
            return _each(job, results, terminal, lambda ended: _printed(job, ended, terminal))
        folder = Folder(Path(args.out))
        code = _each(job, results, terminal, lambda ended: _written(job, ended, folder, terminal))
        terminal.say(f"{plural(folder.files, 'file')} in {folder.root}")
        return code


def _wanted(client: "Client", job: JobId, index: int | None, terminal: Terminal) -> Iterator[Ended]:
    status = client.status(job)
    name = format_job(job)
    if status.state not in FINAL_JOB_STATES:
        terminal.way_back = f"the job goes on; come back with: gristmill result {name}"
        terminal.say(f"{name} is {status.state}: its results are shown as they come")
    if index is None:
        yield from client.ended(job)
        return
    if status.count >= 0 and index >= status.count:
        raise RemoteError(
            "INVALID_SPEC",
            f"{name} has {status.count} subtasks; there is no {name}/{index}",
            f"gristmill status {name} --subtasks",
        )
    for ended in client.ended(job, ordered=False):
        if ended.index == index:
            yield ended
            return
    raise RemoteError(
        "EXPIRED", f"{name}/{index} has no result", f"gristmill status {name} --subtasks"
    )


def _each(
    job: JobId, results: Iterator[Ended], terminal: Terminal, take: Callable[[Ended], None]
) -> int:
    missing = 0
    for ended in results:
        take(ended)
        if ended.error is None:
            continue
        missing += 1
        if missing <= ERRORS_SHOWN:
            name = subtask_name(job, ended.index)
            terminal.say(f"{name}: {told_error(ended.error)}", "red")
        elif missing == ERRORS_SHOWN + 1:
            terminal.say("... more errors follow; they are only counted")
    if missing:
        name = format_job(job)
        terminal.say(
            f"{missing:,} without a value\n"
            f"  next: gristmill status {name} --subtasks --state failed"
        )
    return EXIT_FAILED if missing else EXIT_OK


def told_error(error: BaseException) -> str:
    """An exception in one line."""
    kind = "" if isinstance(error, SubtaskError) else f"{type(error).__name__}: "
    return clean(f"{kind}{error}".strip().partition("\n")[0])


# ---------------------------------------------------------------- on stdout


def _printed(job: JobId, ended: Ended, terminal: Terminal) -> None:
    if terminal.is_json:
        terminal.document(documents.encode(document_of(job, ended)))
    elif ended.error is not None:
        _print_output_of(ended.error, terminal)
    elif isinstance(ended.value, CommandOutput):
        terminal.write_bytes(ended.value.stdout)
        _print_stderr(ended.value.stderr, terminal)
        if ended.value.is_cut:
            terminal.say(f"{subtask_name(job, ended.index)}: output cut at its limit")
    else:
        terminal.print(text_of(ended.value))


def _print_output_of(error: BaseException, terminal: Terminal) -> None:
    """A command that failed has output too."""
    stdout, stderr = getattr(error, "stdout", b""), getattr(error, "stderr", b"")
    if stdout:
        terminal.write_bytes(stdout)
    if stderr:
        _print_stderr(stderr, terminal)


def _print_stderr(body: bytes, terminal: Terminal) -> None:
    if body:
        terminal.say(clean_lines(body.decode(errors="replace").rstrip("\n")))


def text_of(value: Any) -> str:
    """A value for a person: a text as it is, plain data as JSON, the rest as Python writes it."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=True)
    except (TypeError, ValueError):
        return repr(value)


def document_of(job: JobId, ended: Ended, written: str = "") -> documents.SubtaskResult:
    """One subtask as a document."""
    name = subtask_name(job, ended.index)
    error, value = ended.error, ended.value
    if error is not None:
        return documents.SubtaskResult(
            name,
            job,
            ended.index,
            False,
            exit_code=getattr(error, "exit_code", None),
            stdout=getattr(error, "stdout", b"").decode(errors="replace"),
            stderr=getattr(error, "stderr", b"").decode(errors="replace"),
            error=told_error(error),
            outcome=error.outcome.word if isinstance(error, SubtaskError) else "error",
            written=written,
        )
    if isinstance(value, CommandOutput):
        return documents.SubtaskResult(
            name,
            job,
            ended.index,
            True,
            exit_code=value.exit_code,
            stdout=value.stdout.decode(errors="replace"),
            stderr=value.stderr.decode(errors="replace"),
            files=[documents.FileOut(path, *entry) for path, entry in value.files.items()],
            outcome="ok",
            written=written,
        )
    plain, shown = _as_json(value)
    return documents.SubtaskResult(
        name,
        job,
        ended.index,
        True,
        value=plain,
        value_repr=shown,
        outcome="ok",
        written=written,
    )


def _as_json(value: Any) -> tuple[Any, str]:
    """(the value, "") when JSON can say it, else (None, its repr)."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return None, repr(value)
    return value, ""


# ---------------------------------------------------------------- as files


def _written(job: JobId, ended: Ended, folder: Folder, terminal: Terminal) -> None:
    """``3.out``, ``3.err`` and ``3/<collected files>`` of a command; ``3.txt`` and so on else."""
    index, value = ended.index, ended.value
    where = ""
    if isinstance(value, CommandOutput):
        where = folder.write(f"{index}.out", value.stdout)
        if value.stderr:
            folder.write(f"{index}.err", value.stderr)
        for path in value.files:
            folder.write(f"{index}/{path}", value.read(path))
    elif ended.error is not None:
        for suffix, body in (
            ("out", getattr(ended.error, "stdout", b"")),
            ("err", getattr(ended.error, "stderr", b"")),
        ):
            if body:
                where = folder.write(f"{index}.{suffix}", body)
    elif isinstance(value, bytes):
        where = folder.write(f"{index}.bin", value)
    elif isinstance(value, str):
        where = folder.write(f"{index}.txt", value.encode())
    else:
        plain, shown = _as_json(value)
        if shown:
            where = folder.write(f"{index}.txt", shown.encode())
        else:
            where = folder.write(f"{index}.json", json.dumps(plain).encode() + b"\n")
    if terminal.is_json:
        terminal.document(documents.encode(document_of(job, ended, where)))
