"""Large frames: into the store and out of it, with grants of the broker."""

import concurrent.futures
import hashlib
import threading
import time
from collections.abc import Sequence
from typing import Literal

from gristmill.client.errors import grid_error
from gristmill.client.link import Link, decode_body
from gristmill.store.client import StoreClient
from gristmill.wire import limits
from gristmill.wire.client import Ask, GrantAnswer
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import digest_of
from gristmill.wire.values import BlobRef

THREADS = 4  #: transfers at a time; the store keeps as many connections
_SPARE_MS = 30_000  #: a grant is not used in its last moments


class Blobs:
    """The tenant's blobs; grants are asked for when the first is needed.

    One grant serves all of them for a while: to ask for each blob is a journey more for each.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._stores: dict[str, StoreClient] = {}
        self._grants: dict[str, GrantAnswer] = {}
        self._begun: dict[str, concurrent.futures.Future[BlobRef]] = {}
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._is_closed = False

    def close(self) -> None:
        """Begin nothing more: what waits for its turn fails with ``UNREACHABLE``."""
        with self._lock:
            self._is_closed = True
            pool = self._pool
        if pool is not None:
            pool.shutdown(wait=False)

    def begin_put(self, body: bytes) -> tuple[BlobRef, concurrent.futures.Future[BlobRef]]:
        """As ``put``, meanwhile: it is in the store once the future has a result."""
        digest = digest_of(body)
        with self._lock:
            future = self._begun.get(digest)  # equal inputs often follow one another
            is_new = future is None
            if future is None:
                future = self._begun[digest] = self._threads().submit(self._put, body, digest)
        if is_new:
            future.add_done_callback(lambda _: self._forget(digest))
        return BlobRef(digest, len(body)), future

    def _forget(self, digest: str) -> None:
        with self._lock:
            del self._begun[digest]

    def begin_get(self, reference: BlobRef) -> concurrent.futures.Future[bytes]:
        """As ``get``, meanwhile."""
        with self._lock:
            return self._threads().submit(self.get, reference)

    def _threads(self) -> concurrent.futures.ThreadPoolExecutor:
        """Under the lock."""
        self._check_open()
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(THREADS, "gristmill-store")
        return self._pool

    def _check_open(self) -> None:
        if self._is_closed:
            raise grid_error("UNREACHABLE", "the client is closed", "make another one")

    def put(self, body: bytes) -> BlobRef:
        """Store bytes under their digest.

        Raises:
            GridError: ``STORE_DOWN``, ``STORE_FULL``, or what the broker refuses the grant with.
        """
        return self._put(body, digest_of(body))

    def _put(self, body: bytes, digest: str) -> BlobRef:
        grant = self._grant_to("put")
        try:
            return self._store(grant.store).put(grant.grant, body, digest)
        except RemoteError as error:
            raise grid_error(error.code, error.message, error.hint) from error

    def put_parts(self, parts: Sequence[bytes | memoryview]) -> BlobRef:
        """The same for a body in parts, which are not joined; what is there is not sent.

        Raises:
            GridError: as ``put``.
        """
        hasher = hashlib.sha256()
        for part in parts:
            hasher.update(part)
        grant = self._grant_to("put")
        try:
            return self._store(grant.store).put_parts(grant.grant, parts, hasher.hexdigest())
        except RemoteError as error:
            raise grid_error(error.code, error.message, error.hint) from error

    def get(self, reference: BlobRef) -> bytes:
        """The bytes of a reference, checked against its digest.

        Raises:
            GridError: ``BLOB_MISSING``, ``BLOB_CORRUPT``, ``STORE_DOWN``.
        """
        grant = self._grant_to("get")
        size_max = reference.size_bytes or limits.VALUE_BYTES_MAX
        try:
            return self._store(grant.store).get(grant.grant, reference.digest, size_max)
        except RemoteError as error:
            raise grid_error(error.code, error.message, error.hint) from error

    def _grant_to(self, verb: Literal["get", "put"]) -> GrantAnswer:
        with self._lock:
            self._check_open()
            grant = self._grants.get(verb)
        if grant is None or grant.expires_ms < time.time_ns() // 1_000_000 + _SPARE_MS:
            answer = self._link.ask(Ask(b"", 0, "grant", text=verb, digest="*"))
            grant = decode_body(answer, GrantAnswer)
            with self._lock:
                self._grants[verb] = grant
        return grant

    def _store(self, address: str) -> StoreClient:
        with self._lock:
            if address not in self._stores:
                self._stores[address] = StoreClient(address)
            return self._stores[address]
