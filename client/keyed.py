"""Idempotency keys: the same key is the same job, however often it is asked for.

A key becomes the submission's id, which the broker knows for ever. The content belongs to it: the
options, the function, and the inputs by their digest. So inputs are read to their end before
anything is sent: an endless source cannot have a key.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from gristmill.client.encode import Packed, Parcels
from gristmill.client.errors import grid_error
from gristmill.wire import limits
from gristmill.wire.spec import JobSpec
from gristmill.wire.values import BlobRef

_ALL = 1 << 40


def submission_of(key: str | None) -> bytes:
    """The id of a submission: of its key, or random.

    Raises:
        GridError: ``INVALID_SPEC``: the key is empty or too long.
    """
    if key is None:
        return os.urandom(16)
    if not 0 < len(key) <= limits.NAME_CHARS_MAX:
        raise grid_error(
            "INVALID_SPEC",
            f"the key has {len(key)} characters; it has 1 to {limits.NAME_CHARS_MAX}",
        )
    return hashlib.sha256(b"gristmill-key-1\0" + key.encode()).digest()[:16]


class KeptParcels(Parcels):
    """All inputs of a source, packed: ``digest`` and ``count`` are known before they travel."""

    def __init__(self, source: Iterable[Any], store: Callable[[bytes], BlobRef]) -> None:
        super().__init__((), None, store)
        rest = Parcels(source, None, store)
        self._kept: deque[Packed] = deque()
        told = hashlib.sha256()
        self.count = 0
        while (packed := rest.take(_ALL)) is not None:
            self._kept.append(packed)
            self.count += packed.items
            told.update(b"%d:%s:%d:" % (packed.items, packed.codec.encode(), len(packed.frame)))
            told.update(packed.frame)
        self.digest = told.hexdigest()
        self.length = self.count

    def take(self, items_max: int) -> Packed | None:
        """The next parcel, whatever its size: memory holds it already."""
        return self._kept.popleft() if self._kept else None

    @property
    def is_empty(self) -> bool:
        """Whether everything was taken."""
        return not self._kept

    def spec(self, spec: JobSpec) -> JobSpec:
        """The spec of a job of these inputs: their number and, unless it is there, their name."""
        name = spec.request_digest or f"inputs:{self.digest}"
        return msgspec.structs.replace(spec, count=self.count, request_digest=name)
