"""Objects as shared blobs and back; see wire/shared.py."""

import io
import pickle
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from gristmill.client.errors import UnpicklableError, grid_error
from gristmill.client.pickling import own_modules_by_value
from gristmill.wire.errors import RemoteError
from gristmill.wire.limits import BLOB_BYTES_MAX
from gristmill.wire.shared import Ref, lay_out, parts_of
from gristmill.wire.units import format_bytes


def take_apart(value: Any) -> list[bytes | memoryview]:
    """The parts of an object's blob; of arrays and their like, their own memory.

    Raises:
        TypeError: it is a ref already.
        UnpicklableError: it cannot be serialised.
        GridError: ``PARCEL_TOO_LARGE``.
    """
    if isinstance(value, Ref):
        raise TypeError(f"{value!r} is in the store already: use it as it is")
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            buffers.append(buffer.raw())
        except BufferError:  # its memory is not in one piece
            return True
        return False

    file = io.BytesIO()
    try:
        with own_modules_by_value():
            cloudpickle.CloudPickler(file, protocol=5, buffer_callback=keep).dump(value)
    except Exception as error:  # whatever a __reduce__ raises
        kind = type(value).__qualname__
        raise UnpicklableError(
            "UNPICKLABLE", f"the object to share, a {kind}, cannot be serialised: {error}"
        ) from error
    parts = lay_out(file.getvalue(), buffers)
    size = sum(map(len, parts))
    if size > BLOB_BYTES_MAX:
        raise grid_error(
            "PARCEL_TOO_LARGE",
            f"the object to share has {format_bytes(size)}; at most {format_bytes(BLOB_BYTES_MAX)}",
            "share it in several parts",
        )
    return parts


def put_together(blob: bytes) -> Any:
    """The object of a blob.

    Raises:
        GridError: ``MALFORMED``.
    """
    try:
        pickled, buffers = parts_of(memoryview(blob))
    except RemoteError as error:
        raise grid_error(error.code, error.message, error.hint) from None
    return pickle.loads(pickled, buffers=buffers)
