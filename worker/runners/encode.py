"""Values to frames and back, in the slot: by codec, with pickle only where the job allows it.

A result carries the values of its OK subtasks. Values that cannot travel turn their subtasks into
ENCODING failures here; a frame that is too large is split, and a value too large for a frame stays
alone (the agent takes it to the store).
"""

import pickle
import struct
from collections.abc import Sequence
from typing import Any

from gristmill.wire import values as wire_values
from gristmill.wire.errors import RemoteError
from gristmill.wire.limits import RESULT_VALUES_BYTES_MAX, VALUE_BYTES_MAX
from gristmill.worker.runners.protocol import BODY_BYTES_MAX

_RANGE = struct.Struct("<qq")
_BYTES_MAX = min(VALUE_BYTES_MAX, BODY_BYTES_MAX // 2)


class CannotTravelError(Exception):
    """A value or an input does not fit the job's rule; the message is for its tenant."""


def decode(codec: str, frame: bytes | memoryview, count: int) -> list[Any]:
    """The inputs of a parcel.

    Raises:
        CannotTravelError: the frame does not decode here (a class that is not importable, say).
    """
    if codec == "r":
        return _rows(frame, count)
    try:
        return wire_values.unpack(codec, frame, count, pickle.loads)
    except RemoteError as error:
        raise CannotTravelError(error.message) from None
    except Exception as error:
        raise CannotTravelError(
            f"the input cannot be unpickled: {type(error).__name__}: {error}"
        ) from error


def decode_range(frame: bytes | memoryview, begin: int, end: int) -> list[int]:
    """Values ``begin .. end`` of a ``range`` parcel: 16 bytes may stand for 65,536.

    Raises:
        CannotTravelError: the frame is not 16 bytes.
    """
    try:
        start, step = _RANGE.unpack(frame)
    except struct.error as error:
        raise CannotTravelError(f"a range parcel does not decode: {error}") from None
    return [start + step * at for at in range(begin, end)]


def encode(values: Sequence[Any], is_safe: bool) -> tuple[str, bytes]:
    """(codec, frame) of at least one value.

    Raises:
        CannotTravelError: naming the first value that cannot travel.
    """
    packed = wire_values.pack_plain(values) or wire_values.pack_rows(values)
    if packed is not None:
        return packed
    if is_safe:
        try:
            return wire_values.pack_safe(values)
        except TypeError as error:
            raise CannotTravelError(f"{error}; the job asks for results='safe'") from None
    return "p", pickle_all(list(values))


def pickle_all(value: Any) -> bytes:
    """A pickle; cloudpickle where a class or function is known here only.

    Raises:
        CannotTravelError: naming the object.
    """
    try:
        return pickle.dumps(value, protocol=5)
    except Exception:
        pass  # by value, then: classes of __main__, lambdas
    try:
        import cloudpickle  # type: ignore[import-untyped]  # takes 15 ms, and few need it

        return cloudpickle.dumps(value, protocol=5)  # type: ignore[no-any-return]
    except Exception as error:
        raise CannotTravelError(
            f"the value cannot be pickled: {type(error).__name__}: {error}"
        ) from None


def is_sendable(frame: bytes) -> None:
    """Raises ``CannotTravelError`` when one value's frame is beyond what a slot may send."""
    if len(frame) > _BYTES_MAX:
        raise CannotTravelError(
            f"a value of {len(frame)} bytes; the limit is {_BYTES_MAX}: write it to a file"
        )


def is_small(frame: bytes, failures: bytes, logs: bytes) -> bool:
    """Whether a result of several subtasks may have these frames."""
    return len(frame) + len(failures) + len(logs) <= RESULT_VALUES_BYTES_MAX


def join_plain(codec: str, frame: bytes) -> Any:
    """The one value of a plain frame that a child sent; never unpickles.

    Raises:
        CannotTravelError: the child sent nonsense.
    """
    try:
        return wire_values.unpack(codec, frame, 1)[0]
    except RemoteError as error:
        raise CannotTravelError(error.message) from None


def _rows(frame: bytes | memoryview, count: int) -> list[Any]:
    try:
        import numpy
    except ImportError:
        raise CannotTravelError(
            "the inputs are numpy rows and this environment has no numpy: install it there"
        ) from None
    try:
        dtype, shape, raw = wire_values.split_rows(frame)
        if not raw.nbytes and 0 in shape:
            return [numpy.empty(shape, dtype) for _ in range(count)]
        rows = numpy.frombuffer(raw, numpy.dtype(dtype)).reshape(count, *shape)
    except (RemoteError, ValueError, TypeError) as error:
        raise CannotTravelError(f"numpy rows do not decode: {error}") from None
    return list(rows)
