"""Large frames: into the store and out of it, with grants of the broker."""

import hashlib
import threading
import time
from collections.abc import Sequence

from gristmill.client.errors import grid_error
from gristmill.client.link import Link, decode_body
from gristmill.store.client import StoreClient
from gristmill.wire import limits
from gristmill.wire.client import Ask, GrantAnswer
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import digest_of
from gristmill.wire.values import BlobRef

_SPARE_MS = 30_000  #: a grant is not used in its last moments


class Blobs:
    """The tenant's blobs; grants are asked for when the first is needed."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._stores: dict[str, StoreClient] = {}
        self._grant: GrantAnswer | None = None

    def put(self, body: bytes) -> BlobRef:
        """Store bytes under their digest.

        Raises:
            GridError: ``STORE_DOWN``, ``STORE_FULL``, or what the broker refuses the grant with.
        """
        digest = digest_of(body)
        ask = Ask(b"", 0, "grant", text="put", digest=digest, size_bytes=len(body))
        grant = decode_body(self._link.ask(ask), GrantAnswer)
        try:
            self._store(grant.store).put(grant.grant, body, digest)
        except RemoteError as error:
            raise grid_error(error.code, error.message, error.hint) from error
        return BlobRef(digest, len(body))

    def put_parts(self, parts: Sequence[bytes | memoryview]) -> BlobRef:
        """The same for a body in parts, which are not joined; what is there is not sent.

        Raises:
            GridError: as ``put``.
        """
        hasher = hashlib.sha256()
        for part in parts:
            hasher.update(part)
        digest, size = hasher.hexdigest(), sum(map(len, parts))
        ask = Ask(b"", 0, "grant", text="put", digest=digest, size_bytes=size)
        grant = decode_body(self._link.ask(ask), GrantAnswer)
        try:
            return self._store(grant.store).put_parts(grant.grant, parts, digest)
        except RemoteError as error:
            raise grid_error(error.code, error.message, error.hint) from error

    def get(self, reference: BlobRef) -> bytes:
        """The bytes of a reference, checked against its digest.

        Raises:
            GridError: ``BLOB_MISSING``, ``BLOB_CORRUPT``, ``STORE_DOWN``.
        """
        grant = self._get_grant()
        size_max = reference.size_bytes or limits.VALUE_BYTES_MAX
        try:
            return self._store(grant.store).get(grant.grant, reference.digest, size_max)
        except RemoteError as error:
            raise grid_error(error.code, error.message, error.hint) from error

    def _get_grant(self) -> GrantAnswer:
        with self._lock:
            grant = self._grant
        if grant is None or grant.expires_ms < time.time_ns() // 1_000_000 + _SPARE_MS:
            answer = self._link.ask(Ask(b"", 0, "grant", text="get", digest="*"))
            grant = decode_body(answer, GrantAnswer)
            with self._lock:
                self._grant = grant
        return grant

    def _store(self, address: str) -> StoreClient:
        with self._lock:
            if address not in self._stores:
                self._stores[address] = StoreClient(address)
            return self._stores[address]
