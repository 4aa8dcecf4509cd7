"""Blobs as objects of an S3 bucket: ``PREFIX/blobs/<digest>``; owners and pins in a local index.

A put is taken whole and checked here first, then uploaded, which S3 does all or nothing, then its
row is committed: at any crash a blob is whole and known, or not there. What is found damaged goes
to ``PREFIX/quarantine``. The object ``PREFIX/owner`` names the one state folder that uses the
prefix: another store's collection would take our blobs for orphans.

A blob's stripe is held while its object is put or removed, so that a removal that was decided
before a put is not done after it.
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

from gristmill.store.bucket import RANGE_BYTES, Bucket
from gristmill.store.folder import take_pieces
from gristmill.store.indexed import IndexedStore, take_one
from gristmill.store.interface import PIECE_BYTES, Piece
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import is_digest

log = logging.getLogger("gristmill.store.s3")

_STRIPES = 64
_OWNER = "owner"

Stamp = tuple[int, str]  #: bytes, entity tag: the object that was verified


class S3Store(IndexedStore[Stamp]):
    """A ``BlobStore`` in a bucket.

    Raises:
        RemoteError: ``INVALID_SPEC``: the bucket is not there, refuses us, or belongs to another
            store; ``STORE_DOWN``: the server does not answer.
    """

    def __init__(
        self, bucket: Bucket, folder: pathlib.Path, bytes_max: int, now_ms: Callable[[], int]
    ) -> None:
        super().__init__(folder, bytes_max, now_ms)
        self._bucket = bucket
        self._readers: Counter[str] = Counter()
        self._doomed: set[str] = set()  # collected while somebody reads them
        self._stripes = [threading.Lock() for _ in range(_STRIPES)]
        try:
            self._own(folder / "s3-owner")
        except BaseException:
            self.close()
            raise

    def _own(self, path: pathlib.Path) -> None:
        """Make sure that the prefix is this folder's."""
        found = self._bucket.probe(_OWNER)
        mine = path.read_bytes() if path.exists() else b""
        if found is None:
            mine = mine or secrets.token_hex(16).encode()
            with path.open("wb") as file:
                file.write(mine)
                os.fsync(file.fileno())
            self._bucket.put(_OWNER, mine)
        elif found != mine:
            raise RemoteError(
                "INVALID_SPEC",
                f"{self._bucket.address} belongs to a store with another state folder",
                "give the --state that it had, or another prefix; if that folder is lost for "
                f"good, remove the object {_OWNER!r} under the prefix: its blobs are then freed "
                "after their grace",
            )

    @contextlib.contextmanager
    def _alone_with(self, digest: str) -> Iterator[None]:
        with self._stripes[int(digest[:8], 16) % _STRIPES]:
            yield

    # ------------------------------------------------------------ putting

    def _put(self, tenant: str, digest: str, size_bytes: int, pieces: Iterable[Piece]) -> bool:
        with self._putting(digest):
            is_known = self._is_whole(digest)
            with self._room(0 if is_known else size_bytes):
                if not is_known:
                    return self._upload(tenant, digest, size_bytes, pieces)
                take_pieces(digest, size_bytes, pieces, None)
                return self._admit(tenant, digest, size_bytes)

    def _upload(self, tenant: str, digest: str, size_bytes: int, pieces: Iterable[Piece]) -> bool:
        path = self._tmp / f"{digest}.{secrets.token_hex(8)}"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                take_pieces(digest, size_bytes, pieces, file)
            finally:
                os.close(file)
            with self._alone_with(digest):
                if not self._is_whole(digest):  # somebody else may have been faster
                    self._bucket.put(_key(digest), path)
                return self._admit(tenant, digest, size_bytes)
        finally:
            path.unlink()

    def _is_whole(self, digest: str) -> bool:
        """Whether the blob is known and its object has its size; else its row is dropped."""
        with self._lock:
            size_bytes = self._index.size(digest)
        if size_bytes is None:
            return False
        found = self._bucket.find(_key(digest))
        if found is not None and found[0] == size_bytes:
            return True
        with self._lock:
            self._forget(digest)
        return False

    def _admit(self, tenant: str, digest: str, size_bytes: int) -> bool:
        with self._lock:
            self._doomed.discard(digest)
            return self._add(tenant, digest, size_bytes)

    def _place(self) -> str:
        return f" in {self._bucket.address}"

    # ------------------------------------------------------------ reading

    def open(self, tenant: str, digest: str) -> "S3Blob":
        """See ``BlobStore.open``."""
        with self._lock:  # from here on a collection leaves the object until we let go
            size_bytes = self._size_for(tenant, digest)
            self._readers[digest] += 1
        try:
            found = self._bucket.find(_key(digest))
            if found is None:
                with self._lock:
                    if not self._busy[digest]:
                        self._forget(digest)
                raise RemoteError("BLOB_MISSING", f"the object of blob {digest} is gone")
            if found[0] != size_bytes:
                self.quarantine(digest, found)
                raise RemoteError(
                    "BLOB_CORRUPT", f"{digest} has {found[0]} bytes, not {size_bytes}"
                )
        except BaseException:
            self.let_go(digest)
            raise
        return S3Blob(self, self._bucket, digest, found)

    def let_go(self, digest: str) -> None:
        """A reader is through; the last one of a blob that was collected meanwhile removes it."""
        with self._lock:
            take_one(self._readers, digest)
            is_last = digest in self._doomed and not self._readers[digest]
        if is_last:
            self._remove(digest)

    def _remove(self, digest: str) -> bool:
        """Remove the object of a blob that has no row; whether that was done."""
        with self._alone_with(digest):
            with self._lock:
                if self._busy[digest] or self._index.size(digest) is not None:
                    self._doomed.discard(digest)
                    return False
                if self._readers[digest]:
                    self._doomed.add(digest)
                    return True
                self._doomed.discard(digest)
            try:
                self._bucket.remove([_key(digest)])
            except RemoteError as error:  # it has no row: a later collection finds it
                log.warning("%s was not removed: %s", digest, error.message)
                return False
        return True

    def quarantine(self, digest: str, stamp: Stamp) -> None:
        """Move a damaged object out of the way, unless another one has taken its place."""
        with self._alone_with(digest):
            if self._bucket.find(_key(digest)) == stamp:
                self._bucket.move(_key(digest), f"quarantine/{digest}")
                with self._lock:
                    self._forget(digest)

    # ------------------------------------------------------------ freeing

    def _free(self, now_ms: int, before_ms: int, is_dry_run: bool) -> Iterator[tuple[str, int]]:
        for digest, size in self._loose(now_ms, before_ms, is_dry_run):
            if not is_dry_run:
                self._remove(digest)
            yield digest, size
        for key, size, put_ms in self._bucket.names("blobs"):
            digest = key.rpartition("/")[2]
            if not is_digest(digest) or put_ms >= before_ms:
                continue
            with self._lock:
                is_kept = self._index.size(digest) is not None or digest in self._doomed
                is_kept = is_kept or bool(self._busy[digest])
            if not is_kept and (is_dry_run or self._remove(digest)):
                yield digest, size


class S3Blob:
    """An ``OpenBlob``: an object that stays for as long as this is open."""

    def __init__(self, store: S3Store, bucket: Bucket, digest: str, stamp: Stamp) -> None:
        self._store, self._bucket, self._digest, self._stamp = store, bucket, digest, stamp
        self.size_bytes = stamp[0]
        self._is_open = True

    def __enter__(self) -> "S3Blob":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the object."""
        if self._is_open:
            self._is_open = False
            self._store.let_go(self._digest)

    def verify(self) -> None:
        """See ``OpenBlob.verify``: reads the object at most once for each stamp and process."""
        if not self._store.is_verified(self._digest, self._stamp):
            for _ in self.pieces():
                pass

    def pieces(self) -> Iterator[Piece]:
        """See ``OpenBlob.pieces``: read once, so damage beyond the first piece is told late."""
        hasher = hashlib.sha256()
        last: Piece = b""
        for piece in self.part(0, self.size_bytes):
            if len(last):
                yield last
            hasher.update(piece)
            last = piece
        if hasher.hexdigest() != self._digest:
            raise self._damaged(f"the stored bytes of {self._digest} have another digest")
        self._store.remember_verified(self._digest, self._stamp)
        if len(last):
            yield last

    def part(self, start: int, count: int) -> Iterator[Piece]:
        """See ``OpenBlob.part``."""
        assert 0 <= start and start + count <= self.size_bytes
        while count:
            asked = min(RANGE_BYTES, count)
            try:
                got = self._bucket.read(_key(self._digest), start, asked)
            except FileNotFoundError:
                raise RemoteError(
                    "BLOB_MISSING", f"the object of blob {self._digest} is gone"
                ) from None
            if len(got) != asked:
                raise self._damaged(f"the stored bytes of {self._digest} end early")
            for at in range(0, asked, PIECE_BYTES):
                yield got[at : at + PIECE_BYTES]
            start, count = start + asked, count - asked

    def _damaged(self, message: str) -> RemoteError:
        self._store.quarantine(self._digest, self._stamp)
        return RemoteError("BLOB_CORRUPT", message)


def _key(digest: str) -> str:
    return f"blobs/{digest}"
