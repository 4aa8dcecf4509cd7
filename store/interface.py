"""What every back-end of the store does; ``tests/conformance/store_suite.py`` says it as tests.

A blob is immutable bytes under their sha-256. It is kept once, and read only by a tenant that put
it: to put is to prove that one has the bytes. Errors are ``RemoteError``; anything else is a fault
of the back-end's host.
"""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Protocol

import msgspec

Piece = bytes | memoryview  #: part of a blob; a memoryview is valid until the next piece is asked

#: memory that one transfer takes: it is hashed and written while the processor's cache has it
PIECE_BYTES = 256 << 10
PINS_PER_BLOB_MAX = 1_000


class Usage(msgspec.Struct, frozen=True):
    """How full a store is; ``bytes_max`` 0 for no limit of its own."""

    blobs: int
    used_bytes: int
    bytes_max: int


class Collected(msgspec.Struct, frozen=True):
    """What a collection freed, or would free. ``digests``: the first thousand."""

    blobs: int
    freed_bytes: int
    digests: list[str]


class OpenBlob(Protocol):
    """A blob being read; it stays whole even if it is collected meanwhile."""

    size_bytes: int

    def verify(self) -> None:
        """Make sure that its bytes are right, now or by what is known since they were last read.

        Raises:
            RemoteError: ``BLOB_CORRUPT``; the blob is out of the way, a new put heals it.
        """

    def pieces(self) -> Iterator[Piece]:
        """All bytes, hashed on the way: the last piece comes only when everything was right.

        Raises:
            RemoteError: ``BLOB_CORRUPT``, as in ``verify``, before the last piece.
        """

    def part(self, start: int, count: int) -> Iterator[Piece]:
        """``count`` bytes from ``start``, which must be inside; call ``verify`` before."""

    def close(self) -> None:
        """Let go of it."""

    def __enter__(self) -> "OpenBlob":
        """Itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes."""


class BlobStore(Protocol):
    """Blobs by digest. Safe to use from many threads."""

    def put(self, tenant: str, digest: str, size_bytes: int, pieces: Iterable[Piece]) -> bool:
        """Keep a blob for a tenant; True when its bytes are new here. Safe on disk at return.

        Raises:
            RemoteError: ``BLOB_CORRUPT`` when the pieces are not ``size_bytes`` long or do not
                have the digest; ``STORE_FULL``, naming used and limit. Nothing is left behind.
        """

    def size_of(self, tenant: str, digest: str) -> int:
        """Bytes of a blob.

        Raises:
            RemoteError: ``BLOB_MISSING`` when this tenant put no such blob.
        """

    def open(self, tenant: str, digest: str) -> OpenBlob:
        """A blob for reading.

        Raises:
            RemoteError: ``BLOB_MISSING`` as in ``size_of``; ``BLOB_CORRUPT`` when it has not the
                size that it had.
        """

    def pin(self, tenant: str, digest: str, owner: str, until_ms: int) -> None:
        """Keep a blob until a time (ms since the epoch); a later call replaces, 0 unpins.

        Raises:
            RemoteError: ``BLOB_MISSING``; ``QUOTA`` at ``PINS_PER_BLOB_MAX`` owners.
        """

    def collect(self, now_ms: int, grace_ms: int, is_dry_run: bool = False) -> Collected:
        """Free blobs that nobody pins and nobody put for ``grace_ms``."""

    def usage(self) -> Usage:
        """How full it is."""

    def close(self) -> None:
        """Let go of the files."""
