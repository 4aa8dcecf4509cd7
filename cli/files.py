"""Files that a command writes because it was asked to: whole or not at all, never in place of more.

A regular file is made beside its name and takes it at the end. A link keeps pointing where it
points; a device or a pipe is written to, not replaced: ``-o /dev/null`` must not cost a host its
``/dev/null``.
"""

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TextIO, TypeVar

from gristmill.wire.errors import RemoteError

T = TypeVar("T")


def write_file(name: str, option: str, write: Callable[[TextIO], T]) -> T:
    """What ``write`` returns, once all that it wrote is in the file.

    Args:
        name: as it was typed after ``option``.
        option: what the hint names.
        write: writes all of it.

    Raises:
        RemoteError: ``INVALID_SPEC`` with the reason; a regular file is then as it was.
    """
    told = f"cannot write {name}"
    hint = f"choose another file with {option}"
    if "\0" in name:
        raise RemoteError("INVALID_SPEC", f"{told}: no name has a NUL in it", hint)
    try:
        if _is_special(name):
            with open(name, "w", newline="", encoding="utf-8") as out:
                return write(out)
        path = Path(os.path.realpath(name))
        beside = path.with_name(f".{path.name:.200}.{os.getpid()}")
        try:
            with beside.open("w", newline="", encoding="utf-8") as out:
                done = write(out)
            beside.replace(path)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
    except OSError as error:
        raise RemoteError("INVALID_SPEC", f"{told}: {error.strerror}", hint) from None
    return done


def _is_special(name: str) -> bool:
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode)
