"""Files that come from elsewhere, written below one folder and nowhere else."""

import contextlib
import os
from pathlib import Path

from gristmill.wire.errors import RemoteError

DEPTH_MAX = 64


class Folder:
    """A folder of ours in which names that others chose become files.

    A name is a relative path without ``..``, empty parts or control characters. No link below the
    folder is followed, whoever made it: each directory is opened in its parent with O_NOFOLLOW.

    Attributes:
        root: the folder; made when the first file is.
        files: how many were written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = 0

    def write(self, name: str, body: bytes) -> str:
        """Write one file, replacing an older one; its path.

        Raises:
            RemoteError: ``MALFORMED`` for a name that leads elsewhere, ``FORBIDDEN`` when the
                file system refuses.
        """
        parts = check_name(name)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                at = _opened(stack, str(self.root), None, follow=True)
                for part in parts[:-1]:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=at)
                    at = _opened(stack, part, at, follow=False)
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(parts[-1], flags, 0o666, dir_fd=at), "wb") as file:
                    file.write(body)
        except OSError as error:
            where = self.root / name
            raise RemoteError(
                "FORBIDDEN",
                f"cannot write {where}: {error.strerror}",
                "choose another folder",
            ) from None
        self.files += 1
        return str(self.root / name)


def check_name(name: str) -> list[str]:
    """The parts of a safe name.

    Raises:
        RemoteError: ``MALFORMED``, with the name made harmless.
    """
    parts = name.split("/")
    if (
        not name.isprintable()
        or len(parts) > DEPTH_MAX
        or any(part in ("", ".", "..") or len(os.fsencode(part)) > 255 for part in parts)
    ):
        raise RemoteError(
            "MALFORMED",
            f"a collected file is named {name!r:.200}, which is not a path below the folder",
            "read it by its digest, or rename it in the job",
        )
    return parts


def _opened(stack: contextlib.ExitStack, path: str, at: int | None, *, follow: bool) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    fd = os.open(path, flags, dir_fd=at)
    stack.callback(os.close, fd)
    return fd
