"""What back-ends do alike: own a folder and its index, promise room, keep totals, pins, rights.

A back-end says where bytes are. ``_lock`` guards the index and everything here; it is held for
moments, and never while a server is asked.
"""

import contextlib
import logging
import os
import pathlib
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from gristmill.store.folder import NO_ROOM
from gristmill.store.index import Index
from gristmill.store.interface import PINS_PER_BLOB_MAX, Collected, Piece, Usage
from gristmill.wire.errors import RemoteError
from gristmill.wire.process import own_folder
from gristmill.wire.units import format_bytes

log = logging.getLogger("gristmill.store")

VERIFIED_MAX = 65_536  #: blobs remembered as verified
_COLLECT_BATCH = 256
_DIGESTS_TOLD_MAX = 1_000

Stamp = TypeVar("Stamp")  #: tells one copy of a blob's bytes from another


class IndexedStore(Generic[Stamp]):
    """The half of a ``BlobStore`` that does not know where bytes are.

    Args:
        folder: made with mode 0700 if it is missing; of the index, and of bodies on their way.
        bytes_max: a put that would pass it is refused; 0 for no limit of ours.
        now_ms: the clock, in ms since the epoch.

    Raises:
        RemoteError: ``ALREADY_RUNNING`` when another process has the folder open.
    """

    def __init__(self, folder: pathlib.Path, bytes_max: int, now_ms: Callable[[], int]) -> None:
        self._folder, self._bytes_max, self._now_ms = folder, bytes_max, now_ms
        self._lock_fd = own_folder(folder, "store")
        try:
            self._tmp = folder / "tmp"
            self._tmp.mkdir(mode=0o700, exist_ok=True)
            for path in self._tmp.iterdir():  # half taken when the last process ended
                path.unlink()
            self._index = Index(folder / "store.db")
        except BaseException:
            os.close(self._lock_fd)
            raise
        self._lock = threading.Lock()
        self._blobs, self._used = self._index.totals()
        self._reserved = 0
        self._busy: Counter[str] = Counter()  # puts by digest: a collection leaves them alone
        self._verified: dict[str, Stamp] = {}

    def close(self) -> None:
        """Let go of the folder."""
        with self._lock:
            self._index.close()
        os.close(self._lock_fd)

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
                raise self._full(size_bytes, f" ({self._folder}: {error.strerror})") from None
            raise self._failed(digest, error) from error

    def _put(self, tenant: str, digest: str, size_bytes: int, pieces: Iterable[Piece]) -> bool:
        """As ``put``, with the errors of disk and index."""
        raise NotImplementedError

    def _failed(self, digest: str, error: Exception) -> RemoteError:
        log.error("disk of %s failed, blob %s is refused: %r", self._folder, digest, error)
        return RemoteError(
            "STORE_DOWN",
            f"the disk of the store failed ({error}); nothing of blob {digest} is kept",
            "put it again; if that fails too, look at the disk of the store's state folder",
        )

    @contextlib.contextmanager
    def _putting(self, digest: str) -> Iterator[None]:
        with self._lock:
            self._busy[digest] += 1
        try:
            yield
        finally:
            with self._lock:
                take_one(self._busy, digest)

    @contextlib.contextmanager
    def _room(self, size_bytes: int) -> Iterator[None]:
        """So much is promised to a put, which may need none.

        Raises:
            RemoteError: ``STORE_FULL``.
        """
        with self._lock:
            used = self._used + self._reserved + size_bytes
            if self._bytes_max and size_bytes and used > self._bytes_max:
                raise self._full(size_bytes)
            self._reserved += size_bytes
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= size_bytes

    def _full(self, size_bytes: int, detail: str = "") -> RemoteError:
        limit = format_bytes(self._bytes_max) if self._bytes_max else "no limit"
        return RemoteError(
            "STORE_FULL",
            f"a blob of {format_bytes(size_bytes)} does not fit{detail}: "
            f"{format_bytes(self._used)} used of {limit}{self._place()}",
        )

    def _place(self) -> str:
        """What else to say of where there is no room."""
        raise NotImplementedError

    def _add(self, tenant: str, digest: str, size_bytes: int) -> bool:
        """The row that makes whole bytes a blob of this tenant; under the lock.

        Returns:
            whether they are new here.
        """
        is_new = self._index.size(digest) is None
        self._index.add(tenant, digest, size_bytes, self._now_ms())
        if is_new:
            self._blobs += 1
            self._used += size_bytes
        return is_new

    def _forget(self, digest: str) -> None:
        """Its bytes are gone or wrong, and so is its row; under the lock."""
        size_bytes = self._index.size(digest)
        if size_bytes is not None:
            self._index.remove([digest])
            self._drop(digest, size_bytes)

    def _drop(self, digest: str, size_bytes: int) -> None:
        self._verified.pop(digest, None)
        self._blobs -= 1
        self._used -= size_bytes

    # ------------------------------------------------------------ reading

    def size_of(self, tenant: str, digest: str) -> int:
        """See ``BlobStore.size_of``."""
        with self._lock:
            return self._size_for(tenant, digest)

    def _size_for(self, tenant: str, digest: str) -> int:
        size_bytes = self._index.size_for(tenant, digest)
        if size_bytes is None:
            raise RemoteError("BLOB_MISSING", f"tenant {tenant} has no blob {digest}")
        return size_bytes

    def is_verified(self, digest: str, stamp: Stamp) -> bool:
        """Whether this very copy was read and right since the process began."""
        with self._lock:
            return self._verified.get(digest) == stamp

    def remember_verified(self, digest: str, stamp: Stamp) -> None:
        """The copy was read and is right."""
        with self._lock:
            if len(self._verified) >= VERIFIED_MAX:
                self._verified.clear()
            self._verified[digest] = stamp

    # ------------------------------------------------------------ keeping and freeing

    def pin(self, tenant: str, digest: str, owner: str, until_ms: int) -> None:
        """See ``BlobStore.pin``."""
        with self._lock:
            self._size_for(tenant, digest)
            if until_ms <= 0:
                self._index.unpin(tenant, digest, owner)
            elif self._index.pins(digest) >= PINS_PER_BLOB_MAX:
                raise RemoteError(
                    "QUOTA", f"blob {digest} has {PINS_PER_BLOB_MAX} pins, which is the limit"
                )
            else:
                self._index.pin(tenant, digest, owner, until_ms)

    def collect(self, now_ms: int, grace_ms: int, is_dry_run: bool = False) -> Collected:
        """See ``BlobStore.collect``. Bytes without a row, left by a crash, count as well."""
        count, freed = 0, 0
        told: list[str] = []
        for digest, size in self._free(now_ms, now_ms - grace_ms, is_dry_run):
            count, freed = count + 1, freed + size
            if len(told) < _DIGESTS_TOLD_MAX:
                told.append(digest)
        return Collected(count, freed, told)

    def _free(self, now_ms: int, before_ms: int, is_dry_run: bool) -> Iterator[tuple[str, int]]:
        """(digest, bytes) of what nobody keeps, freed unless this is a dry run."""
        raise NotImplementedError

    def _loose(self, now_ms: int, before_ms: int, is_dry_run: bool) -> Iterator[tuple[str, int]]:
        """Rows that nobody keeps, dropped unless this is a dry run.

        Rows go first: a crash in between leaves bytes without a row, never the other way round.
        """
        after = ""
        while True:
            with self._lock:
                batch = self._index.loose(now_ms, before_ms, after, _COLLECT_BATCH)
                loose = [(digest, size) for digest, size in batch if not self._busy[digest]]
                if not is_dry_run:
                    self._index.remove([digest for digest, _ in loose])
                    for digest, size in loose:
                        self._drop(digest, size)
                        self._on_dropped(digest)
            yield from loose
            if len(batch) < _COLLECT_BATCH:
                return
            after = batch[-1][0]

    def _on_dropped(self, digest: str) -> None:
        """Its row has just gone; under the lock."""

    def usage(self) -> Usage:
        """See ``BlobStore.usage``."""
        with self._lock:
            return Usage(self._blobs, self._used, self._bytes_max)


def take_one(counter: Counter[str], key: str) -> None:
    """One less of it; none is no entry."""
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
