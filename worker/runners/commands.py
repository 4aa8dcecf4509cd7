"""Commands in the slot: substitution, input files, the start, output files."""

import contextlib
import errno
import os
import re
import signal
from collections.abc import Iterator
from typing import Any, Final

from gristmill.wire.failure import Failure
from gristmill.wire.limits import FILES_MAX, PATH_DEPTH_MAX, PATH_PART_BYTES_MAX
from gristmill.wire.paths import is_below
from gristmill.worker.runners import protocol
from gristmill.worker.runners.encode import CannotTravelError
from gristmill.worker.runners.outbox import Outbox

PLACEHOLDER: Final = re.compile(r"\{(index|[0-9]*)\}")
#: Signals that Python ignores and a command must find as they are by default.
RESTORED: Final = (signal.SIGPIPE, signal.SIGXFSZ)


def substitute(text: str, parts: list[str], index: int) -> str:
    """``{}`` is the input (its parts joined by blanks), ``{0}`` its first part, ``{index}``.

    Other braces stay as they are.

    Raises:
        CannotTravelError: a part is named that the input does not have.

    >>> substitute("run {0} --seed {index} {x}", ["a", "b"], 7)
    'run a --seed 7 {x}'
    """

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        if name == "index":
            return str(index)
        if not name:
            return " ".join(parts)
        if int(name) >= len(parts):
            raise CannotTravelError(
                f"the command asks for {{{name}}} and the input has {len(parts)} parts"
            )
        return parts[int(name)]

    return PLACEHOLDER.sub(value_of, text)


def parts_of(value: Any) -> list[str]:
    """The texts that an input stands for.

    Raises:
        CannotTravelError: it has none, or a NUL, which no argument can carry.
    """
    items = value if isinstance(value, list | tuple) else [value]
    parts = []
    for item in items:
        if isinstance(item, bytes):
            item = os.fsdecode(item)
        elif isinstance(item, dict | list | tuple) or item is None:
            raise CannotTravelError(f"{item!r:.80} cannot be an argument; send texts or numbers")
        text = str(item)
        if "\0" in text:
            raise CannotTravelError(f"an argument cannot have a NUL: {text!r:.80}")
        parts.append(text)
    return parts


class Plan:
    """One command, ready to be started.

    It is spawned, which shares the slot's memory until the exec: a fork of the slot would take as
    long as a short program does.
    """

    def __init__(self, argv: list[str], env: dict[str, str], stdin: bytes | None) -> None:
        self.argv = argv
        self.env = env
        self.stdin = stdin

    def spawn(self, stdout: int, stderr: int) -> int:
        """Start it in the present folder; its pid. Every other descriptor of ours ends with exec.

        Raises:
            OSError: it cannot be executed (``why``), or no process can be had.
        """
        stdin = self._open_stdin()
        try:
            fds = (stdin, stdout, stderr)
            actions = [(os.POSIX_SPAWN_DUP2, fd, at) for at, fd in enumerate(fds)]
            if "/" in self.argv[0]:
                return self._spawn(self.argv[0], actions)
            first: OSError | None = None
            for folder in self.env.get("PATH", os.defpath).split(os.pathsep):
                path = os.path.join(folder, self.argv[0])
                try:
                    if os.path.exists(path):
                        return self._spawn(path, actions)
                except OSError as error:
                    first = first or error
            raise first or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        finally:
            os.close(stdin)

    def _spawn(self, path: str, actions: list[tuple[int, int, int]]) -> int:
        return os.posix_spawn(
            path, self.argv, self.env, file_actions=actions, setpgroup=0, setsigdef=RESTORED
        )

    def _open_stdin(self) -> int:
        if self.stdin is None:
            return os.open("/dev/null", os.O_RDONLY)
        fd = os.memfd_create("stdin")
        view = memoryview(self.stdin)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def why(self, error: OSError) -> Failure:
        """Why it did not start, for a person."""
        name = self.argv[0]
        if isinstance(error, FileNotFoundError):
            where = "" if "/" in name else f" on PATH={self.env.get('PATH', '')}"
            return Failure(
                f"the command {name!r} does not exist in the jail{where}; "
                "give its absolute path, or ship it as an input file",
                kind="NO_COMMAND",
                exit_code=127,
            )
        return Failure(
            f"the command {name!r} cannot be started: {error.strerror}; "
            "an input file needs is_executable, a script its #! line",
            kind="NO_COMMAND",
            exit_code=126,
        )


class CommandRunner:
    """The command of a job: makes each subtask's plan and collects its files."""

    def __init__(self, setting: protocol.Setting) -> None:
        self._setting = setting
        self._written: tuple[str, os.stat_result] | None = None
        self._base = {name: text for name, text in os.environ.items() if name != "LC_CTYPE"}

    def plan(self, value: Any, feed: protocol.Feed, index: int) -> Plan:
        """What to start for this input; its input files are linked into the work folder.

        Raises:
            CannotTravelError: the input does not fit the command.
        """
        setting = self._setting
        self._written = None
        stdin = None
        if setting.is_stdin_value:
            stdin = _bytes_of(value)
            argv = list(setting.argv)

            def fill(text: str) -> str:
                return text.replace("{index}", str(index))
        else:
            parts = [self._write_input(value)] if setting.is_file_value else parts_of(value)
            argv = [substitute(word, parts, index) for word in setting.argv]

            def fill(text: str) -> str:
                return substitute(text, parts, index)

        env = {name: fill(text) for name, text in setting.env.items()}
        own = {
            "GRISTMILL_JOB": f"j{setting.job}",
            "GRISTMILL_INDEX": str(index),
            "GRISTMILL_ATTEMPT": str(feed.attempt),
            "GRISTMILL_LEASE": str(feed.lease_id),
            "HOME": setting.work_dir,
            "PWD": setting.work_dir,
        }
        self._link_inputs()
        self._patterns = [fill(pattern) for pattern in setting.files_out]
        return Plan(argv, {**self._base, **own, **env}, stdin)

    def _write_input(self, value: Any) -> str:
        """The input as a file in the work folder; its path there."""
        if not (isinstance(value, list | tuple) and list(map(type, value)) == [str, bytes]):
            raise CannotTravelError(f"the command takes a path and bytes, not {value!r:.80}")
        name, body = value
        if not is_below(name):
            raise CannotTravelError(
                f"{name!a:.80} is no path below the working directory: at most {PATH_DEPTH_MAX}"
                f" names of {PATH_PART_BYTES_MAX} bytes, none of them empty, '.' or '..'"
            )
        path = os.path.join(self._setting.work_dir, name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "xb") as file:
                file.write(body)
            self._written = path, os.stat(path)
        except OSError as error:
            raise CannotTravelError(
                f"the input file {name!r:.80} of {len(body)} bytes cannot be written: "
                f"{error.strerror}; ask for more scratch"
            ) from None
        return str(name)

    def _link_inputs(self) -> None:
        for file in self._setting.files_in:
            path = os.path.join(self._setting.work_dir, file.path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.symlink(os.path.join(self._setting.inputs_dir, file.name), path)

    def collect(
        self, outbox: Outbox, lease_id: int, index: int
    ) -> tuple[int, list[tuple[str, str]]]:
        """Send the output files; (how many, what was refused). No process of the subtask lives.

        Input files that still are what we linked are no output, whatever the patterns say.
        """
        if not self._patterns:
            return 0, []

        def send(path: str, chunks: Iterator[bytes]) -> None:
            part = protocol.FilePart(lease_id, index, path)
            outbox.send(part)
            for chunk in chunks:
                outbox.send(part, chunk)

        from gristmill.sandbox.collect import collect  # takes 15 ms, and few have files

        self._unlink_inputs()
        taken = collect(
            self._setting.work_dir,
            self._patterns,
            send,
            files_max=FILES_MAX,
            bytes_max=self._setting.scratch_bytes,
        )
        return len(taken.files), list(taken.refused[:FILES_MAX])

    def _unlink_inputs(self) -> None:
        if self._written is not None:
            path, before = self._written
            with contextlib.suppress(OSError):
                if _facts(os.lstat(path)) == _facts(before):
                    os.unlink(path)
        for file in self._setting.files_in:
            path = os.path.join(self._setting.work_dir, file.path)
            try:
                is_ours = os.readlink(path).startswith(self._setting.inputs_dir + "/")
            except OSError:
                continue
            if is_ours:
                with contextlib.suppress(OSError):
                    os.unlink(path)


def _facts(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int | float):
        return str(value).encode()
    raise CannotTravelError(
        f"standard input takes text or bytes, not a {type(value).__name__}: {value!r:.80}"
    )
