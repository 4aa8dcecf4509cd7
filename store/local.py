"""Blobs as files of this host: ``DIR/blobs/<first two of digest>/<digest>``, mode 0444.

A put is written to ``DIR/tmp``, synced, renamed, its folder synced, then its row is committed: at
any crash a blob is whole and known, or not there. What is found damaged goes to ``DIR/quarantine``.
One process owns the folder (``DIR/store.lock``).
"""

import contextlib
import hashlib
import os
import pathlib
import secrets
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

from gristmill.store.folder import sync_folder, take_pieces
from gristmill.store.indexed import IndexedStore
from gristmill.store.interface import PIECE_BYTES, Piece
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import is_digest
from gristmill.wire.units import format_bytes

#: a larger blob is sent while it is hashed: to read it first would outlast its reader's patience
VERIFY_FIRST_BYTES = 1 << 30

Stamp = tuple[int, int, int]  #: inode, bytes, mtime in ns: the file that was verified


class LocalStore(IndexedStore[Stamp]):
    """A ``BlobStore`` on a local file system; a file stays open for who reads it."""

    def __init__(self, folder: pathlib.Path, bytes_max: int, now_ms: Callable[[], int]) -> None:
        super().__init__(folder, bytes_max, now_ms)
        self._quarantine = folder / "quarantine"
        for path in (self._quarantine, folder / "blobs"):
            path.mkdir(mode=0o700, exist_ok=True)
        for byte in range(256):  # made once, so that a put has one folder to sync
            (folder / "blobs" / f"{byte:02x}").mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder / "blobs")

    def path_of(self, digest: str) -> pathlib.Path:
        """Where the file of a blob is, if it is there."""
        assert is_digest(digest)
        return self._folder / "blobs" / digest[:2] / digest

    # ------------------------------------------------------------ putting

    def _put(self, tenant: str, digest: str, size_bytes: int, pieces: Iterable[Piece]) -> bool:
        with self._putting(digest):
            with self._lock:
                is_known = self._is_whole(digest)
            with self._room(0 if is_known else size_bytes):
                if is_known:
                    take_pieces(digest, size_bytes, pieces, None)
                else:
                    self._write(digest, size_bytes, pieces)
                with self._lock:
                    return self._admit(tenant, digest, size_bytes)

    def _is_whole(self, digest: str) -> bool:
        """Whether the blob is known and its file has its size; a row without a file is dropped."""
        size_bytes = self._index.size(digest)
        if size_bytes is None:
            return False
        try:
            found = self.path_of(digest).stat().st_size
        except FileNotFoundError:
            found = -1
        if found == size_bytes:
            return True
        self._forget(digest)
        return False

    def _write(self, digest: str, size_bytes: int, pieces: Iterable[Piece]) -> None:
        path = self._tmp / f"{digest}.{secrets.token_hex(8)}"
        target = self.path_of(digest)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                take_pieces(digest, size_bytes, pieces, file)
                os.fchmod(file, 0o444)
                os.fsync(file)
                stamp = _stamp(file)
            finally:
                os.close(file)
            os.replace(path, target)
            sync_folder(target.parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        self.remember_verified(digest, stamp)

    def _admit(self, tenant: str, digest: str, size_bytes: int) -> bool:
        if not self.path_of(digest).exists():
            raise RemoteError(
                "BLOB_CORRUPT", f"the stored copy of {digest} was found damaged just now"
            )
        return self._add(tenant, digest, size_bytes)

    def _place(self) -> str:
        free = os.statvfs(self._folder)
        return f", {format_bytes(free.f_bavail * free.f_frsize)} free on the disk"

    # ------------------------------------------------------------ reading

    def open(self, tenant: str, digest: str) -> "LocalBlob":
        """See ``BlobStore.open``."""
        size_bytes = self.size_of(tenant, digest)
        try:
            file = os.open(self.path_of(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            with self._lock:
                if not self._busy[digest]:
                    self._is_whole(digest)
            raise RemoteError("BLOB_MISSING", f"the file of blob {digest} is gone") from None
        blob = LocalBlob(self, digest, size_bytes, file)
        if os.fstat(file).st_size != size_bytes:
            found = os.fstat(file).st_size
            blob.close()
            self.quarantine(digest, _NO_STAMP)
            raise RemoteError("BLOB_CORRUPT", f"{digest} has {found} bytes, not {size_bytes}")
        return blob

    def quarantine(self, digest: str, stamp: Stamp) -> None:
        """Move a damaged file out of the way, unless another one has taken its place."""
        path = self.path_of(digest)
        with self._lock:
            try:
                found = path.stat()
            except FileNotFoundError:
                return
            if stamp is not _NO_STAMP and found.st_ino != stamp[0]:
                return
            os.replace(path, self._quarantine / digest)
            self._forget(digest)

    # ------------------------------------------------------------ freeing

    def _free(self, now_ms: int, before_ms: int, is_dry_run: bool) -> Iterator[tuple[str, int]]:
        yield from self._loose(now_ms, before_ms, is_dry_run)
        yield from self._orphans(before_ms, is_dry_run)

    def _on_dropped(self, digest: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path_of(digest).unlink()

    def _orphans(self, before_ms: int, is_dry_run: bool) -> Iterator[tuple[str, int]]:
        for byte in range(256):
            folder = self._folder / "blobs" / f"{byte:02x}"
            orphans = []
            with self._lock, os.scandir(folder) as entries:
                for entry in entries:
                    if not is_digest(entry.name) or self._busy[entry.name]:
                        continue
                    found = entry.stat()
                    is_old = found.st_mtime_ns // 1_000_000 < before_ms
                    if is_old and self._index.size(entry.name) is None:
                        if not is_dry_run:
                            os.unlink(entry.path)
                        orphans.append((entry.name, found.st_size))
            yield from orphans


_NO_STAMP: Stamp = (-1, -1, -1)


class LocalBlob:
    """An ``OpenBlob``: an open file of a ``LocalStore``."""

    def __init__(self, store: LocalStore, digest: str, size_bytes: int, file: int) -> None:
        self._store, self._digest, self._file = store, digest, file
        self.size_bytes = size_bytes
        self._stamp = _stamp(file)
        self._buffer = memoryview(bytearray(min(PIECE_BYTES, max(size_bytes, 1))))

    def __enter__(self) -> "LocalBlob":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def verify(self) -> None:
        """See ``OpenBlob.verify``: reads the file at most once for each stamp and process."""
        if not self._store.is_verified(self._digest, self._stamp):
            for _ in self._hashed():
                pass

    def pieces(self) -> Iterator[Piece]:
        """See ``OpenBlob.pieces``."""
        if PIECE_BYTES < self.size_bytes <= VERIFY_FIRST_BYTES:
            self.verify()  # so that damage is told before the first byte leaves
        return self._hashed()

    def _hashed(self) -> Iterator[Piece]:
        hasher = hashlib.sha256()
        at = 0
        while True:
            piece = self._read(at, min(PIECE_BYTES, self.size_bytes - at))
            hasher.update(piece)
            at += len(piece)
            if at == self.size_bytes:
                break
            yield piece
        if hasher.hexdigest() != self._digest:
            raise self._damaged(f"the stored bytes of {self._digest} have another digest")
        self._store.remember_verified(self._digest, self._stamp)
        if len(piece):
            yield piece

    def part(self, start: int, count: int) -> Iterator[Piece]:
        """See ``OpenBlob.part``."""
        assert 0 <= start and start + count <= self.size_bytes
        while count:
            piece = self._read(start, min(PIECE_BYTES, count))
            yield piece
            start, count = start + len(piece), count - len(piece)

    def _read(self, at: int, count: int) -> memoryview:
        size = os.preadv(self._file, [self._buffer[:count]], at)
        if size == 0 and count:
            raise self._damaged(f"the stored bytes of {self._digest} end at {at}")
        return self._buffer[:size]

    def _damaged(self, message: str) -> RemoteError:
        self._store.quarantine(self._digest, self._stamp)
        return RemoteError("BLOB_CORRUPT", message)


def _stamp(file: int) -> Stamp:
    found = os.fstat(file)
    return found.st_ino, found.st_size, found.st_mtime_ns
