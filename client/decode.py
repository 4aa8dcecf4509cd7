"""Result frames to values and exceptions; nothing is decoded before somebody asks for it."""

import concurrent.futures
from collections.abc import Callable
from typing import Any, NamedTuple

from gristmill.client.errors import GridError, UnsafeResultError, grid_error
from gristmill.client.outcomes import exception_for
from gristmill.wire import values as codecs
from gristmill.wire.client import Results
from gristmill.wire.errors import RemoteError
from gristmill.wire.failure import unpack_failures, unpack_logs
from gristmill.wire.meter import unpack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.values import BlobRef

AHEAD_BYTES_MAX = 8 << 20  #: of a blob that is fetched before its turn


class Piece(NamedTuple):
    """Final subtasks ``first .. first + len(values)``.

    ``errors``: offset in ``values`` to the exception that stands there.
    """

    first: int
    values: list[Any]
    errors: dict[int, BaseException]


class ResultReader:
    """Reads the results of one job.

    Args:
        loads: unpickles values and exceptions; None for a fleet that is not trusted.
        fetch: gets a blob from the store.
        convert: makes the caller's object of a value, or None.
        begin: gets a blob meanwhile, for ``expect``.
    """

    def __init__(
        self,
        loads: Callable[[Any], Any] | None,
        fetch: Callable[[BlobRef], bytes],
        convert: Callable[[Any], Any] | None = None,
        begin: Callable[[BlobRef], concurrent.futures.Future[bytes]] | None = None,
    ) -> None:
        self._loads = loads
        self._fetch = fetch
        self._convert = convert
        self._begin = begin
        self._begun: dict[str, concurrent.futures.Future[bytes]] = {}

    def expect(self, result: Results, frames: list[bytes]) -> None:
        """This result is read soon: what of it lies in the store is fetched meanwhile."""
        if self._begin is None or not result.head.codec.startswith("@") or not frames:
            return
        try:
            reference = codecs.decode_ref(frames[0])
        except RemoteError:  # told when it is read
            return
        if 0 < reference.size_bytes <= AHEAD_BYTES_MAX and reference.digest not in self._begun:
            self._begun[reference.digest] = self._begin(reference)

    def read(self, result: Results, frames: list[bytes]) -> list[Piece]:
        """The final subtasks of a result, in index order; gaps are tried again elsewhere.

        Raises:
            UnsafeResultError: a value is a pickle and the fleet is not trusted.
            GridError: ``MALFORMED``, or what the store said.
        """
        head = result.head
        try:
            values_frame, meter_frame, failures_frame, logs_frame = frames
            meter = unpack_meter(meter_frame, head.count)
            is_whole = not meter.outcome and meter.uniform == Outcome.OK
            count = head.count if is_whole else _count_ok(meter.outcome, meter.uniform, head.count)
            values = self._values(head.codec, values_frame, count) if count else []
            if is_whole and not result.not_final:
                return [Piece(head.first, values, {})]
            failures = dict(unpack_failures(failures_frame))
            logs = {entry.offset: entry for entry in unpack_logs(logs_frame)}
        except (RemoteError, ValueError) as error:
            raise self._blame(error, result) from None
        skipped = bytearray(head.count)
        for start, length in result.not_final:
            skipped[start : start + length] = b"\1" * length
        pieces: list[Piece] = []
        ok = iter(values)
        for offset in range(head.count):
            outcome = meter.outcome_at(offset)
            value = next(ok) if outcome is Outcome.OK else None
            if skipped[offset]:
                continue
            if not pieces or pieces[-1].first + len(pieces[-1].values) != head.first + offset:
                pieces.append(Piece(head.first + offset, [], {}))
            piece = pieces[-1]
            if outcome is not Outcome.OK:
                where = {
                    "job": result.job,
                    "index": head.first + offset,
                    "attempt": result.attempt,
                    "node": result.node,
                }
                piece.errors[len(piece.values)] = exception_for(
                    outcome, failures.get(offset), logs.get(offset), where, self._loads
                )
            piece.values.append(value)
        return pieces

    def _values(self, codec: str, frame: bytes, count: int) -> list[Any]:
        if codec.startswith("@"):
            reference = codecs.decode_ref(frame)
            begun = self._begun.pop(reference.digest, None)
            codec, frame = codec[1:], begun.result() if begun else self._fetch(reference)
        if codec == "r":
            return _rows(frame, count)
        values = codecs.unpack(codec, frame, count, self._loads)
        return [self._convert(value) for value in values] if self._convert else values

    def _blame(self, error: RemoteError | ValueError, result: Results) -> GridError:
        if isinstance(error, GridError):
            return error
        where = f"result {result.sequence} of job j{result.job}"
        if isinstance(error, RemoteError):
            if error.code == "UNSAFE_RESULT":
                return UnsafeResultError(error.code, f"{where} would need unpickling", error.hint)
            return grid_error(error.code, f"{where}: {error.message}", error.hint)
        return grid_error("MALFORMED", f"{where}: {error}")


def _count_ok(outcome: bytes, uniform: int, count: int) -> int:
    if outcome:
        return outcome.count(int(Outcome.OK))
    return count if uniform == Outcome.OK else 0


def _rows(frame: bytes, count: int) -> list[Any]:
    dtype, shape, raw = codecs.split_rows(frame)
    try:
        import numpy  # the values are numpy's: their reader has it, or cannot use them
    except ImportError:
        raise grid_error(
            "MALFORMED", "the values are numpy rows and numpy is not installed", "pip install numpy"
        ) from None
    try:
        # A copy: values that a caller may write to, not views of a received frame.
        if not raw.nbytes:
            return [numpy.empty(shape, dtype) for _ in range(_empty(count, shape))]
        rows = numpy.frombuffer(raw, dtype).reshape(count, *shape)
        return [row.copy() for row in rows] if shape else list(rows)
    except (ValueError, TypeError, SyntaxError, OverflowError) as error:
        raise grid_error("MALFORMED", f"numpy rows do not decode: {error}") from None


def _empty(count: int, shape: tuple[int, ...]) -> int:
    """The count, checked: no bytes are said to be so many rows of this shape."""
    if 0 not in shape:
        raise ValueError(f"no bytes for {count} rows of shape {shape}")
    return count
