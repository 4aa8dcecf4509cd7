"""What is known of an attempt that did not end well: the failures frame of a result.

A MessagePack array of ``[offset, Failure]`` in index order, one for each subtask of the range whose
outcome is not OK and that has more to say than its outcome.
"""

import msgspec

from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import UNDECODABLE

MESSAGE_CHARS_MAX = 4_000
TRACEBACK_CHARS_MAX = 16_000
PICKLED_BYTES_MAX = 32_000


class Failure(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Why one attempt failed, in the words a person needs.

    ``kind`` is the exception's qualified type name (``ValueError``, ``mymod.Odd``) or empty;
    ``pickled`` the exception itself for a client that trusts its fleet; ``exit_code`` of a command;
    ``limit`` and ``peak`` in the unit of the outcome (bytes, ms, processes), ``suggested`` a
    limit that
    would probably do.
    """

    message: str
    kind: str = ""
    traceback: str = ""
    pickled: bytes = b""
    exit_code: int = 0
    signal: int = 0
    limit: int = 0
    peak: int = 0
    suggested: int = 0


class LogEntry(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Output of one subtask: inline, or its digest in the store.

    ``stdout_bytes``, ``stderr_bytes``: how much was written; with ``is_cut`` less is here, from
    byte ``stdout_at`` and ``stderr_at`` on. ``count`` > 1: shared by a batch.
    """

    offset: int
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_digest: str = ""
    stderr_digest: str = ""
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    is_cut: bool = False
    count: int = 1
    stdout_at: int = 0
    stderr_at: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode_failures = msgspec.msgpack.Decoder(list[tuple[int, Failure]]).decode
_decode_logs = msgspec.msgpack.Decoder(list[LogEntry]).decode


def pack_failures(failures: list[tuple[int, Failure]]) -> bytes:
    """A failures frame; empty bytes for none."""
    return _encode(failures) if failures else b""


def unpack_failures(frame: bytes | memoryview) -> list[tuple[int, Failure]]:
    """The failures of a frame; of an empty frame, none.

    Raises:
        RemoteError: ``MALFORMED``.
    """
    try:
        return _decode_failures(frame) if len(frame) else []
    except UNDECODABLE as error:
        raise RemoteError("MALFORMED", f"a failures frame does not decode: {error}") from None


def pack_logs(entries: list[LogEntry]) -> bytes:
    """A logs frame; empty bytes for none."""
    return _encode(entries) if entries else b""


def unpack_logs(frame: bytes | memoryview) -> list[LogEntry]:
    """The log entries of a frame; of an empty frame, none.

    Raises:
        RemoteError: ``MALFORMED``.
    """
    try:
        return _decode_logs(frame) if len(frame) else []
    except UNDECODABLE as error:
        raise RemoteError("MALFORMED", f"a logs frame does not decode: {error}") from None
