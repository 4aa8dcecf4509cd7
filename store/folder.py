"""What every back-end does with its folder: takes the bytes of a put into it."""

import errno
import hashlib
import os
import pathlib
from collections.abc import Iterable

from gristmill.store.interface import Piece
from gristmill.wire.errors import RemoteError

SYNC_EVERY_BYTES = 256 << 20  #: bounds the dirty pages of a long put, and its last fsync
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def take_pieces(digest: str, size_bytes: int, pieces: Iterable[Piece], file: int | None) -> None:
    """Hash the pieces, and write them if there is a file; refuse another length or digest."""
    hasher = hashlib.sha256()
    at = unsynced = 0
    for piece in pieces:
        at += len(piece)
        if at > size_bytes:
            break
        hasher.update(piece)
        if file is not None:
            view = memoryview(piece)
            while len(view):
                view = view[os.write(file, view) :]
            unsynced += len(piece)
            if unsynced >= SYNC_EVERY_BYTES:
                os.fdatasync(file)
                unsynced = 0
    if at != size_bytes:
        raise RemoteError("BLOB_CORRUPT", f"{at} bytes came; {size_bytes} were promised")
    if hasher.hexdigest() != digest:
        raise RemoteError(
            "BLOB_CORRUPT", f"the bytes have the digest {hasher.hexdigest()}, not {digest}"
        )


def sync_folder(path: pathlib.Path) -> None:
    """Names in it are on disk at return."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
