"""What a slot sends: results of contiguous ranges, split until they fit, and output files."""

import _thread
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from gristmill.wire.failure import Failure, LogEntry, pack_failures, pack_logs
from gristmill.wire.meter import PART_NS_MAX, pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.worker.runners import protocol
from gristmill.worker.runners.encode import (
    CannotTravelError,
    encode,
    is_sendable,
    is_small,
)

if TYPE_CHECKING:
    import _socket  # a slot starts without ``socket``, which takes 4 ms

ENCODING = int(Outcome.ENCODING)
#: of failures, and of logs, in one result of several subtasks
EXTRAS_BYTES_MAX = 48 << 10
STAMPED_MIN = 8  #: subtasks in a result whose meter has stamps
HELD_BYTES_MAX = 64 << 10  #: a frame above this is not copied to travel with others

JOINED_BYTES_MAX = 64 << 10  #: a larger body is sent from where it lies

#: (index, outcome, failure, errno) of a subtask that did not end OK
Trouble = tuple[int, int, Failure, protocol.Note | None]


class Range(msgspec.Struct):
    """Subtasks ``first .. first + count`` of a lease, all ended.

    Attributes:
        walls_ns: how long each took; empty where ``parts`` tell.
        parts: readings of the clock, u64: as a part begins, then as each of its subtasks ends.
        values: of the OK ones, in order.
        troubles: of the others, in order.
        cpu_us, peak_kib: by subtask where they were measured, else empty.
        logs: output by subtask; offsets are filled in from ``log_at``.
        written: see ``protocol.Done``; of a range that is cut, its first result has all output.
    """

    lease_id: int
    first: int
    walls_ns: list[int]
    values: list[Any]
    troubles: list[Trouble]
    cpu_us: list[int] = []
    peak_kib: list[int] = []
    logs: list[LogEntry] = []
    written: tuple[int, int] | None = None
    parts: list[bytes] = []

    @property
    def count(self) -> int:
        """Subtasks."""
        return len(self.walls_ns) or sum(map(len, self.parts)) // 8 - len(self.parts)

    @property
    def wall_ns(self) -> int:
        """Of all subtasks."""
        return sum(self.walls_ns) + sum(map(_part_ns, self.parts))

    @property
    def is_stamped(self) -> bool:
        """Whether its meter has stamps; few microseconds are shorter than theirs."""
        longest_ns = max(map(_part_ns, self.parts), default=PART_NS_MAX)
        return self.count >= STAMPED_MIN and longest_ns < PART_NS_MAX

    def walls_us(self) -> list[int]:
        """Of each subtask."""
        walls = list(self.walls_ns)
        for part in self.parts:
            readings = memoryview(part).cast("Q")
            walls += map(operator.sub, readings[1:], readings)
        return [ns // 1000 for ns in walls]

    def halves(self) -> "tuple[Range, Range]":
        """The same in two, each with at least one subtask."""
        half = self.count // 2
        middle = self.first + half
        early = [trouble for trouble in self.troubles if trouble[0] < middle]
        late = [trouble for trouble in self.troubles if trouble[0] >= middle]
        kept = half - len(early)
        return (
            Range(
                self.lease_id,
                self.first,
                self.walls_ns[:half],
                self.values[:kept],
                early,
                self.cpu_us[:half],
                self.peak_kib[:half],
                [log for log in self.logs if log.offset < half],
                self.written,
                _cut(self.parts, 0, half),
            ),
            Range(
                self.lease_id,
                middle,
                self.walls_ns[half:],
                self.values[kept:],
                late,
                self.cpu_us[half:],
                self.peak_kib[half:],
                [
                    msgspec.structs.replace(log, offset=log.offset - half)
                    for log in self.logs
                    if log.offset >= half
                ],
                self.written,
                _cut(self.parts, half, self.count),
            ),
        )


def _part_ns(part: bytes) -> int:
    readings = memoryview(part).cast("Q")
    return readings[-1] - readings[0]


def _cut(parts: list[bytes], begin: int, end: int) -> list[bytes]:
    """The parts of subtasks ``begin .. end``: two share the reading that is between them."""
    found, first = [], 0
    for part in parts:
        size = len(part) // 8 - 1
        low, high = max(begin - first, 0), min(end - first, size)
        if low < high:
            found.append(part[8 * low : 8 * (high + 1)])
        first += size
    return found


class Extras(msgspec.Struct, frozen=True):
    """What only a result of one subtask has; see ``protocol.Done``."""

    is_killed: bool = False
    files: int = 0
    refused: Sequence[tuple[str, str]] = ()


NO_EXTRAS = Extras()


class Outbox:
    """Sends frames on the slot's socket; waits for the agent to take them. Any thread may send.

    Attributes:
        is_single: one subtask a result, as a job with a quorum wants it: so they can be compared.
        outputs: descriptors of the pipes of stdout and stderr that user code has no name for.
    """

    def __init__(self, sock: "_socket.socket", is_safe: bool = False) -> None:
        self._socket = sock
        self.is_safe = is_safe
        self.is_single = False
        self.outputs: tuple[int, ...] = ()
        self._held: list[bytes] | None = None
        self._lock = _thread.allocate_lock()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def send(self, header: msgspec.Struct, *body: bytes | bytearray | memoryview) -> None:
        """One frame, whole: that of another thread comes before or after it."""
        with self._lock:
            self._send(header, *body)

    def _send(self, header: msgspec.Struct, *body: bytes | bytearray | memoryview) -> None:
        size = sum(map(len, body))
        if self._held is not None and size <= HELD_BYTES_MAX:
            self._held.append(protocol.pack_frame(header, *body))
            return
        self._release()
        if size < JOINED_BYTES_MAX:
            self._socket.sendall(protocol.pack_frame(header, *body))
            return
        parts = (protocol.pack_head(header, *body), *body)
        count = self._socket.sendmsg(parts)  # in one piece where it fits: the agent wakes once
        for part in parts:
            if count < len(part):
                self._socket.sendall(memoryview(part)[count:])
            count = max(0, count - len(part))

    def hold(self) -> None:
        """What is sent from now on goes in one piece at ``release``: the agent wakes once."""
        with self._lock:
            self._held = []

    def release(self) -> None:
        """See ``hold``."""
        with self._lock:
            self._release()

    def _release(self) -> None:
        held, self._held = self._held, None
        if held:
            self._socket.sendall(b"".join(held))

    def send_range(self, done: Range, extras: Extras = NO_EXTRAS) -> int:
        """The results of a range, in as many results as its size needs; how many bytes they have.

        A value that cannot travel ends its subtask as ENCODING; the others are not touched.
        """
        count = done.count
        if count > 1 and self.is_single:
            return self._send_halves(done)
        codec, frame = "", b""
        if done.values:
            try:
                codec, frame = encode(done.values, self.is_safe)
                if count == 1:
                    is_sendable(frame)
            except CannotTravelError as error:
                if count > 1:
                    return self._send_halves(done)
                codec, frame = "", b""
                done.troubles = [
                    (done.first, ENCODING, Failure(str(error), kind="EncodingError"), None)
                ]
        failures = pack_failures([(at - done.first, what) for at, _, what, _ in done.troubles])
        logs = pack_logs(done.logs)
        is_over = max(len(failures), len(logs)) > EXTRAS_BYTES_MAX
        if count > 1 and (is_over or not is_small(frame, failures, logs)):
            return self._send_halves(done)
        outcome = bytearray(count)
        for at, number, _, _ in done.troubles:
            outcome[at - done.first] = number
        if done.is_stamped:
            meter = pack_meter(count, outcome, parts=done.parts)
        else:
            meter = pack_meter(count, outcome, done.walls_us(), done.cpu_us, done.peak_kib)
        header = protocol.Done(
            lease_id=done.lease_id,
            first=done.first,
            count=count,
            codec=codec,
            wall_us=done.wall_ns // 1000,
            cpu_us=sum(done.cpu_us),
            peak_kib=max(done.peak_kib, default=0),
            sizes=(len(frame), len(meter), len(failures), len(logs)),
            notes=[
                protocol.Note(at - done.first, note.number, note.kind)
                for at, _, _, note in done.troubles
                if note is not None
            ],
            is_killed=extras.is_killed,
            files=extras.files,
            refused=list(extras.refused),
            written=done.written,
        )
        self.send(header, frame, meter, failures, logs)
        return len(frame) + len(failures) + len(logs)

    def send_frame(self, done: Range, codec: str, frame: bytes) -> None:
        """The result of one subtask that ended OK and whose value is framed already."""
        logs = pack_logs(done.logs)
        meter = pack_meter(1, Outcome.OK, done.walls_us(), done.cpu_us, done.peak_kib)
        header = protocol.Done(
            lease_id=done.lease_id,
            first=done.first,
            count=1,
            codec=codec,
            wall_us=done.wall_ns // 1000,
            cpu_us=sum(done.cpu_us),
            peak_kib=max(done.peak_kib, default=0),
            sizes=(len(frame), len(meter), 0, len(logs)),
        )
        self.send(header, frame, meter, logs)

    def _send_halves(self, done: Range) -> int:
        return sum(self.send_range(half) for half in done.halves())
