"""From a slot's frame to a result: what is checked, what the kernel adds, what goes to the store.

Nothing that a slot says is believed beyond its own subtasks: lengths, counts and outcomes are
checked here, ranges by the core. Cpu time and peak memory of the head are readings from outside.
"""

import dataclasses
import time

import msgspec

from gristmill.sandbox.cgroup import Reading
from gristmill.sandbox.verdict import Deed, LogFacts, judge, outcome_of_errno
from gristmill.wire.failure import (
    Failure,
    LogEntry,
    pack_failures,
    pack_logs,
    unpack_failures,
    unpack_logs,
)
from gristmill.wire.limits import LOG_INLINE_BYTES_MAX
from gristmill.wire.meter import Meter, pack_meter, unpack_meter
from gristmill.wire.outcome import OWN_DOING, Outcome
from gristmill.wire.spec import JobSpec
from gristmill.worker.core import events as on
from gristmill.worker.port import Port
from gristmill.worker.runners import protocol
from gristmill.worker.starter import mode_of, subtask_limits

PEAK_AGE_S = 0.1  #: a peak reading of this age serves for a batch: all meters cost 100 us
_BILLED = bytes(int(outcome) for outcome in OWN_DOING)
Frames4 = tuple[bytes, bytes, bytes, bytes]


@dataclasses.dataclass(slots=True)
class Draft:
    """A result in the making; ``event`` makes it final."""

    done: protocol.Done
    frames: Frames4
    cpu_us: int
    peak_kib: int
    metering: str
    is_estimated: bool
    meter: Meter
    codec: str

    def event(self, port: Port) -> on.ResultArrived:
        """What the core is told."""
        done = self.done
        return on.ResultArrived(
            slot=port.slot,
            jail=port.jail,
            lease_id=done.lease_id,
            first=done.first,
            count=done.count,
            codec=self.codec,
            wall_us=done.wall_us,
            cpu_us=self.cpu_us,
            peak_kib=self.peak_kib,
            metering=self.metering,
            is_estimated=self.is_estimated,
            billed=_billed(self.meter),
            frames=self.frames,
        )

    def fail(self, outcome: Outcome, failure: Failure) -> None:
        """The result's only subtask did not end well after all."""
        assert self.done.count == 1
        self.codec = ""
        meter = self.meter
        frame = pack_meter(1, outcome, meter.wall_us, meter.cpu_us, meter.peak_kib)
        self.meter = unpack_meter(frame, 1)
        self.frames = (b"", frame, pack_failures([(0, failure)]), self.frames[3])


class Peaks:
    """Peak memory by port, read at most every ``PEAK_AGE_S``."""

    def __init__(self) -> None:
        self._read: dict[int, tuple[float, int]] = {}

    def peak_kib(self, port: Port, is_fresh: bool) -> int:
        """The jail's peak so far."""
        now = time.monotonic()
        seen = self._read.get(port.jail)
        if seen is None or is_fresh or now - seen[0] > PEAK_AGE_S:
            seen = (now, port.process.reading().memory_peak_bytes >> 10)
            self._read[port.jail] = seen
        return seen[1]

    def forget(self, port: Port) -> None:
        """The port is gone."""
        self._read.pop(port.jail, None)


def draft_result(
    port: Port, spec: JobSpec, done: protocol.Done, body: bytes, peaks: Peaks
) -> Draft:
    """Check a slot's result and add what was read outside.

    Raises:
        ValueError, RemoteError: it is no result of ours.
    """
    if min(done.sizes) < 0 or sum(done.sizes) != len(body) or done.count < 1:
        raise ValueError("a result whose lengths do not add up")
    ends, at = [], 0
    for size in done.sizes:
        ends.append(body[at : at + size])
        at += size
    values, meter_frame, failures, logs = ends
    meter = unpack_meter(meter_frame, done.count)
    is_forked = mode_of(spec) == "fork"
    is_measured = is_forked and port.process.metering != "cgroup"
    draft = Draft(
        done=done,
        frames=(values, meter_frame, failures, logs),
        cpu_us=done.cpu_us if is_measured else port.take_cpu_us(),
        peak_kib=done.peak_kib if is_measured else peaks.peak_kib(port, is_forked),
        metering="wait4" if is_measured else port.process.metering,
        is_estimated=done.count > 1 and not is_forked,
        meter=meter,
        codec=done.codec,
    )
    if done.notes and port.process.is_jailed:
        _name_walls(draft, port.process.reading(), spec)
    if done.is_killed and done.count == 1:
        _blame_kernel(draft, port, spec)
    if not is_forked:
        _add_output(draft, port)
    return draft


def large_logs(frame: bytes) -> list[LogEntry] | None:
    """The log entries, when one of them is too long to stay in the result."""
    if len(frame) <= LOG_INLINE_BYTES_MAX:
        return None
    entries = unpack_logs(frame)
    return entries if any(_is_long(entry) for entry in entries) else None


def long_streams(entry: LogEntry) -> list[tuple[str, bytes]]:
    """(``stdout`` or ``stderr``, bytes) of an entry that go to the store."""
    streams = (("stdout", entry.stdout), ("stderr", entry.stderr))
    return [(name, text) for name, text in streams if len(text) > LOG_INLINE_BYTES_MAX]


def moved_to_store(entry: LogEntry, name: str, digest: str) -> LogEntry:
    """The entry with one stream as its digest; an empty digest says that it is lost."""
    changes = {name: b"", f"{name}_digest": digest}
    if not digest:
        return msgspec.structs.replace(entry, **{name: b""}, is_cut=True)
    return msgspec.structs.replace(entry, **changes)


def _is_long(entry: LogEntry) -> bool:
    return max(len(entry.stdout), len(entry.stderr)) > LOG_INLINE_BYTES_MAX


def _billed(meter: Meter) -> int:
    if not meter.outcome:
        return meter.count if meter.uniform in _BILLED else 0
    return sum(meter.outcome.count(number) for number in _BILLED)


def _name_walls(draft: Draft, reading: Reading, spec: JobSpec) -> None:
    """An OSError in a jail may be one of its walls: FS, NET, SYSCALL, PIDS, OOM.

    Memory that is refused, as without a cgroup, is an exception that names no limit: we do.
    """
    meter = draft.meter
    outcome = bytearray(meter.outcome or bytes([meter.uniform]) * meter.count)
    for note in draft.done.notes:
        if 0 <= note.offset < meter.count and outcome[note.offset] == Outcome.ERROR:
            outcome[note.offset] = outcome_of_errno(note.number, note.kind, reading)
    frame = pack_meter(meter.count, outcome, meter.wall_us, meter.cpu_us, meter.peak_kib)
    draft.meter = unpack_meter(frame, meter.count)
    values, _, failures, logs = draft.frames
    if Outcome.OOM in outcome:
        failures = _with_memory_limit(failures, outcome, draft.peak_kib, spec.limits.memory_bytes)
    draft.frames = (values, frame, failures, logs)


def _with_memory_limit(
    failures: bytes, outcome: bytearray, peak_kib: int, memory_bytes: int
) -> bytes:
    entries = []
    for at, failure in unpack_failures(failures):
        if 0 <= at < len(outcome) and outcome[at] == Outcome.OOM:
            failure = msgspec.structs.replace(
                failure, limit=memory_bytes, peak=peak_kib << 10, suggested=memory_bytes * 2
            )
        entries.append((at, failure))
    return pack_failures(entries)


def _blame_kernel(draft: Draft, port: Port, spec: JobSpec) -> None:
    """A child killed by SIGKILL: the kernel's counters know whether it was for memory."""
    reading = port.process.reading()
    kills = reading.oom_kills - port.peak.oom_kills
    port.peak = reading
    if kills <= 0:
        return
    verdict = judge(
        Deed.NOTHING,
        9,
        LogFacts(is_started=True, signal_number=9),
        dataclasses.replace(reading, oom_kills=kills),
        subtask_limits(spec),
        draft.done.wall_us / 1000,
    )
    failure = Failure(
        verdict.detail,
        signal=9,
        limit=verdict.limit,
        peak=verdict.peak,
        suggested=verdict.suggested,
    )
    draft.fail(verdict.outcome, failure)


def _add_output(draft: Draft, port: Port) -> None:
    output = port.take_output(draft.done.written)
    if not output.written:
        return
    values, meter, failures, _ = draft.frames
    entry = LogEntry(
        0,
        output.stdout,
        output.stderr,
        stdout_bytes=output.stdout_bytes,
        stderr_bytes=output.stderr_bytes,
        is_cut=output.is_cut,
        count=draft.done.count,
    )
    draft.frames = (values, meter, failures, pack_logs([entry]))


def last_failure_of(draft: Draft) -> list[tuple[int, Failure]]:
    """The failures frame, decoded (a slot's may be nonsense).

    Raises:
        RemoteError: ``MALFORMED``.
    """
    return unpack_failures(draft.frames[2])
