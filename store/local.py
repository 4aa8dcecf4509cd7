"""Blobs as files of this host: ``DIR/blobs/<first two of digest>/<digest>``, mode 0444.

A put is written to ``DIR/tmp``, synced, renamed, its folder synced, then its row is committed: at
any crash a blob is whole and known, or not there. What is found damaged goes to ``DIR/quarantine``.
One process owns the folder (``DIR/store.lock``).
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import secrets
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

from gristmill.store.folder import NO_ROOM, lock_folder, sync_folder, take_pieces
from gristmill.store.index import Index
from gristmill.store.interface import PIECE_BYTES, PINS_PER_BLOB_MAX, Collected, Piece, Usage
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import is_digest
from gristmill.wire.units import format_bytes

log = logging.getLogger("gristmill.store.local")

#: a larger blob is sent while it is hashed: to read it first would outlast its reader's patience
VERIFY_FIRST_BYTES = 1 << 30
VERIFIED_MAX = 65_536  #: blobs remembered as verified
_COLLECT_BATCH = 256
_DIGESTS_TOLD_MAX = 1_000

Stamp = tuple[int, int, int]  #: inode, bytes, mtime in ns: the file that was verified


class LocalStore:
    """A ``BlobStore`` on a local file system.

    Args:
        folder: made with mode 0700 if it is missing.
        bytes_max: a put that would pass it is refused; 0 for the disk's own limit.
        now_ms: the clock, in ms since the epoch.

    Raises:
        RemoteError: ``INVALID_SPEC`` when another process has the folder open.
    """

    def __init__(self, folder: pathlib.Path, bytes_max: int, now_ms: Callable[[], int]) -> None:
        self._folder, self._bytes_max, self._now_ms = folder, bytes_max, now_ms
        self._lock_fd = lock_folder(folder)
        self._tmp, self._quarantine = folder / "tmp", folder / "quarantine"
        for path in (self._tmp, self._quarantine, folder / "blobs"):
            path.mkdir(mode=0o700, exist_ok=True)
        for byte in range(256):  # made once, so that a put has one folder to sync
            (folder / "blobs" / f"{byte:02x}").mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder / "blobs")
        for path in self._tmp.iterdir():  # half written when the last process ended
            path.unlink()
        self._index = Index(folder / "store.db")
        self._lock = threading.Lock()  # of everything below, and of the index
        self._blobs, self._used = self._index.totals()
        self._reserved = 0
        self._busy: Counter[str] = Counter()
        self._verified: dict[str, Stamp] = {}

    def close(self) -> None:
        """Let go of the folder."""
        with self._lock:
            self._index.close()
        os.close(self._lock_fd)

    def path_of(self, digest: str) -> pathlib.Path:
        """Where the file of a blob is, if it is there."""
        assert is_digest(digest)
        return self._folder / "blobs" / digest[:2] / digest

    # ------------------------------------------------------------ putting

    def put(self, tenant: str, digest: str, size_bytes: int, pieces: Iterable[Piece]) -> bool:
        """See ``BlobStore.put``. Equal bytes are hashed, to prove possession, and not written.

        Raises:
            RemoteError: also ``STORE_DOWN`` when the disk fails; nothing of the blob is known then.
        """
        try:
            return self._put(tenant, digest, size_bytes, pieces)
        except (ConnectionError, TimeoutError):  # where the pieces come from, not the disk
            raise
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
                raise self._full(size_bytes, f" ({error})") from None
            raise self._failed(digest, error) from error
        except OSError as error:
            if error.errno in NO_ROOM:
                raise self._full(size_bytes, f" ({error.strerror})") from None
            raise self._failed(digest, error) from error

    def _put(self, tenant: str, digest: str, size_bytes: int, pieces: Iterable[Piece]) -> bool:
        with self._lock:
            is_known = self._is_whole(digest)
            room = 0 if is_known else size_bytes
            if self._bytes_max and room and self._used + self._reserved + room > self._bytes_max:
                raise self._full(size_bytes)
            self._reserved += room
            self._busy[digest] += 1  # a collection leaves it alone
        try:
            if is_known:
                take_pieces(digest, size_bytes, pieces, None)
            else:
                self._write(digest, size_bytes, pieces)
            with self._lock:
                return self._admit(tenant, digest, size_bytes)
        finally:
            with self._lock:
                self._reserved -= room
                self._busy[digest] -= 1
                if not self._busy[digest]:
                    del self._busy[digest]

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
        self._forget(digest, size_bytes)
        return False

    def _forget(self, digest: str, size_bytes: int) -> None:
        self._index.remove([digest])
        self._verified.pop(digest, None)
        self._blobs -= 1
        self._used -= size_bytes

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
        with self._lock:
            self._remember(digest, stamp)

    def _admit(self, tenant: str, digest: str, size_bytes: int) -> bool:
        """The row that makes a whole file a blob of this tenant."""
        before = self._index.size(digest)
        if not self.path_of(digest).exists():
            raise RemoteError(
                "BLOB_CORRUPT", f"the stored copy of {digest} was found damaged just now"
            )
        self._index.add(tenant, digest, size_bytes, self._now_ms())
        if before is None:
            self._blobs += 1
            self._used += size_bytes
        return before is None

    def _failed(self, digest: str, error: Exception) -> RemoteError:
        log.error("disk of %s failed, blob %s is refused: %r", self._folder, digest, error)
        return RemoteError(
            "STORE_DOWN",
            f"the disk of the store failed ({error}); nothing of blob {digest} is kept",
            "put it again; if that fails too, look at the disk of the store's state folder",
        )

    def _full(self, size_bytes: int, detail: str = "") -> RemoteError:
        limit = self._bytes_max
        free = os.statvfs(self._folder)
        return RemoteError(
            "STORE_FULL",
            f"a blob of {format_bytes(size_bytes)} does not fit{detail}: "
            f"{format_bytes(self._used)} used of {format_bytes(limit) if limit else 'no limit'}, "
            f"{format_bytes(free.f_bavail * free.f_frsize)} free on the disk",
        )

    # ------------------------------------------------------------ reading

    def size_of(self, tenant: str, digest: str) -> int:
        """See ``BlobStore.size_of``."""
        with self._lock:
            size_bytes = self._index.size_for(tenant, digest)
        if size_bytes is None:
            raise RemoteError("BLOB_MISSING", f"tenant {tenant} has no blob {digest}")
        return size_bytes

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

    def is_verified(self, digest: str, stamp: Stamp) -> bool:
        """Whether this very file was read and right since the process began."""
        with self._lock:
            return self._verified.get(digest) == stamp

    def remember_verified(self, digest: str, stamp: Stamp) -> None:
        """The file was read and is right."""
        with self._lock:
            self._remember(digest, stamp)

    def _remember(self, digest: str, stamp: Stamp) -> None:
        if len(self._verified) >= VERIFIED_MAX:
            self._verified.clear()
        self._verified[digest] = stamp

    def quarantine(self, digest: str, stamp: Stamp) -> None:
        """Move a damaged file out of the way, unless another one has taken its place."""
        path = self.path_of(digest)
        with self._lock:
            size_bytes = self._index.size(digest)
            try:
                found = path.stat()
            except FileNotFoundError:
                return
            if stamp is not _NO_STAMP and found.st_ino != stamp[0]:
                return
            os.replace(path, self._quarantine / digest)
            if size_bytes is not None:
                self._forget(digest, size_bytes)

    # ------------------------------------------------------------ keeping and freeing

    def pin(self, tenant: str, digest: str, owner: str, until_ms: int) -> None:
        """See ``BlobStore.pin``."""
        with self._lock:
            if self._index.size_for(tenant, digest) is None:
                raise RemoteError("BLOB_MISSING", f"tenant {tenant} has no blob {digest}")
            if until_ms <= 0:
                self._index.unpin(tenant, digest, owner)
            elif self._index.pins(digest) >= PINS_PER_BLOB_MAX:
                raise RemoteError(
                    "QUOTA", f"blob {digest} has {PINS_PER_BLOB_MAX} pins, which is the limit"
                )
            else:
                self._index.pin(tenant, digest, owner, until_ms)

    def collect(self, now_ms: int, grace_ms: int, is_dry_run: bool = False) -> Collected:
        """See ``BlobStore.collect``. Files without a row, left by a crash, count as well."""
        freed = 0
        told: list[str] = []
        count = 0
        after = ""
        while True:
            with self._lock:
                batch = self._index.loose(now_ms, now_ms - grace_ms, after, _COLLECT_BATCH)
                loose = [(digest, size) for digest, size in batch if not self._busy[digest]]
                if not is_dry_run:
                    # Rows first: a crash in between leaves orphans, never rows without files.
                    self._index.remove([digest for digest, _ in loose])
                    for digest, size in loose:
                        self._verified.pop(digest, None)
                        self._blobs -= 1
                        self._used -= size
                        with contextlib.suppress(FileNotFoundError):
                            self.path_of(digest).unlink()
            count += len(loose)
            freed += sum(size for _, size in loose)
            told += [digest for digest, _ in loose][: _DIGESTS_TOLD_MAX - len(told)]
            if len(batch) < _COLLECT_BATCH:
                break
            after = batch[-1][0]
        for digest, size in self._orphans(now_ms - grace_ms, is_dry_run):
            count, freed = count + 1, freed + size
            if len(told) < _DIGESTS_TOLD_MAX:
                told.append(digest)
        return Collected(count, freed, told)

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

    def usage(self) -> Usage:
        """See ``BlobStore.usage``."""
        with self._lock:
            return Usage(self._blobs, self._used, self._bytes_max)


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
