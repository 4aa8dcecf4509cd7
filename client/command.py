"""Commands: what goes into a spec, and what one run gives back."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gristmill.client.errors import grid_error
from gristmill.client.folder import Folder
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import digest_of
from gristmill.wire.spec import Command, FileIn
from gristmill.wire.values import BlobRef

FilesIn = Mapping[str, "str | os.PathLike[str] | bytes"] | Iterable["str | os.PathLike[str]"]


class CommandOutput:
    """What one run of a command gave back.

    Attributes:
        exit_code: 0, or another accepted code.
        stdout, stderr: bytes, cut at the output limit (then ``is_cut``).
        files: paths that ``files_out`` collected, with (digest, size).
    """

    def __init__(self, value: Mapping[str, Any], fetch: Callable[[BlobRef], bytes]) -> None:
        self.exit_code: int = value.get("exit_code", 0)
        self.stdout: bytes = value.get("stdout", b"")
        self.stderr: bytes = value.get("stderr", b"")
        self.is_cut: bool = value.get("is_cut", False)
        self.files = {path: (entry[0], entry[1]) for path, entry in value.get("files", {}).items()}
        self._fetch = fetch

    @property
    def text(self) -> str:
        """The standard output as text, without the last line's end."""
        return self.stdout.decode(errors="replace").rstrip("\n")

    def read(self, path: str) -> bytes:
        """The content of a collected file.

        Raises:
            KeyError: ``files_out`` collected no such path.
        """
        digest, size_bytes = self.files[path]
        return self._fetch(BlobRef(digest, size_bytes))

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write all collected files below a folder; returns their paths.

        Raises:
            GridError: ``MALFORMED`` for a name that leads elsewhere, ``FORBIDDEN`` when the file
                system refuses, a link below the folder included: none is followed.
        """
        below = Folder(Path(folder).resolve())
        try:
            return [Path(below.write(path, self.read(path))) for path in self.files]
        except RemoteError as error:
            raise grid_error(error.code, error.message, error.hint) from None

    def __repr__(self) -> str:
        return f"<CommandOutput exit {self.exit_code}, {self.stdout[:60]!r}>"


def read_files(files: FilesIn | None) -> list[tuple[str, bytes, bool]]:
    """(path in the jail, content, is executable) of files given as paths or a mapping.

    Raises:
        OSError: a file cannot be read.
    """
    if files is None:
        return []
    if not isinstance(files, Mapping):
        named: Mapping[str, str | os.PathLike[str] | bytes] = {
            os.path.basename(os.fspath(path)): path for path in files
        }
    else:
        named = files
    found: list[tuple[str, bytes, bool]] = []
    for name, source in named.items():
        if isinstance(source, bytes):
            found.append((name, source, False))
        else:
            path = Path(source)
            found.append((name, path.read_bytes(), os.access(path, os.X_OK)))
    return found


def make_command(
    argv: Iterable[str | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None,
    is_stdin: bool,
    is_file: bool = False,
    files_in: list[tuple[str, bytes, bool]],
    files_out: Iterable[str],
    ok_exit_codes: Iterable[int],
) -> Command:
    """The command part of a spec."""
    if isinstance(argv, str | bytes):
        raise TypeError(f"argv is a list of words, not {argv!r}; write ['sh', '-c', {argv!r}]")
    return Command(
        argv=[os.fspath(part) for part in argv],
        env=dict(env or {}),
        stdin="value" if is_stdin else "file" if is_file else "none",
        files_in=[FileIn(name, digest_of(body), len(body), x) for name, body, x in files_in],
        files_out=list(files_out),
        ok_exit_codes=tuple(ok_exit_codes),
    )


def input_text(value: Any) -> Any:
    """An input of a command as it travels: a text or a list of texts."""
    if isinstance(value, str | bytes):
        return value
    if isinstance(value, list | tuple):
        return [str(part) for part in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
