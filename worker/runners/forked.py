"""Tier ``job`` (and ``strict``): each subtask in a child of its own, swept up after.

The child calls and sends its reply on a pipe; this process waits for it with a clock, takes its
stdout and stderr, and reads cpu and peak memory from wait4. It never unpickles what a child sends:
plain values are decoded (and so checked), anything else is passed on as bytes.

After each subtask nothing of it is left: every other process of the jail is killed (as process 1 we
may: ``kill(-1)``) and scratch is emptied, since files would be seen by the next subtask and count
against its memory.
"""

import contextlib
import dataclasses
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

import msgspec

from gristmill.wire.failure import Failure, LogEntry
from gristmill.wire.limits import (
    FRAME_BYTES_MAX,
    LINES_PIECE_BYTES_MAX,
    OUTPUT_BYTES,
    RESULT_FLUSH_MS,
)
from gristmill.wire.outcome import Outcome
from gristmill.wire.units import format_bytes, format_ms
from gristmill.worker.runners import protocol
from gristmill.worker.runners.broom import Broom
from gristmill.worker.runners.commands import CommandRunner
from gristmill.worker.runners.encode import (
    CannotTravelError,
    encode,
    is_sendable,
    join_plain,
)
from gristmill.worker.runners.failures import describe, note_of
from gristmill.worker.runners.outbox import Extras, Outbox, Range

FLUSH_NS: Final = RESULT_FLUSH_MS * 1_000_000
#: What a child has written is shown to the agent when it has run for this long, and then each time.
SHOW_NS: Final = 250_000_000
SHOWN_BYTES_MAX: Final = OUTPUT_BYTES  #: at a time; of more, the last
CHUNK_BYTES: Final = 1 << 16
REPLY_BYTES_MAX: Final = protocol.BODY_BYTES_MAX // 2 + (1 << 20)
#: a reply: u8 what it is (``REPLY_*``), u32 bytes of its head, the head, the value
REPLY_HEAD: Final = struct.Struct("<BI")
REPLY_VALUE, REPLY_FAILURE = 1, 2
EX_NO_REPLY: Final = 70  #: exit code of a child that could not even say what failed

_encode_reply = msgspec.msgpack.Encoder().encode
_decode_failure = msgspec.msgpack.Decoder(tuple[int, Failure, protocol.Note | None]).decode


@dataclasses.dataclass(slots=True)
class Waited:
    """What came of one child.

    ``deed``: the outcome when we ended it (TIME, OUTPUT), else None. ``output``: stdout, stderr, as
    far as kept; ``written``: bytes that there were of each.
    """

    status: int = 0
    cpu_us: int = 0
    peak_kib: int = 0
    wall_ns: int = 0
    reply: bytearray = dataclasses.field(default_factory=bytearray)
    output: tuple[bytearray, bytearray] = dataclasses.field(
        default_factory=lambda: (bytearray(), bytearray())
    )
    output_bytes: int = 0
    written: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    deed: Outcome | None = None


@dataclasses.dataclass(slots=True)
class End:
    """How one subtask ended: a value (plain, or a frame with its codec), or a trouble."""

    outcome: int = 0
    value: Any = None
    codec: str = ""
    frame: bytes = b""
    failure: Failure | None = None
    note: protocol.Note | None = None
    is_killed: bool = False
    refused: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    files: int = 0


class Forker:
    """Runs subtasks in children and gathers their results for ``RESULT_FLUSH_MS``."""

    def __init__(self, setting: protocol.Setting, outbox: Outbox, page: protocol.Page) -> None:
        self._setting = setting
        self._outbox = outbox
        self._page = page
        self._broom = Broom(setting.work_dir)
        self._range: Range | None = None
        self._flush_at = 0
        self._extra_bytes = 0
        self._running = (0, 0)
        self._command = CommandRunner(setting) if setting.kind == "command" else None
        os.chdir("/")

    def run_inputs(
        self,
        function: Callable[..., Any] | None,
        inputs: list[Any],
        feed: protocol.Feed,
        first: int,
    ) -> int:
        """Run consecutive inputs; how many ended before the agent stopped the lease."""
        words = self._page.words
        for offset, value in enumerate(inputs):
            if self._page.is_stopped(feed.lease_id):
                return offset
            index = first + offset
            words[protocol.STARTED] = index + 1
            self._running = (feed.lease_id, index)
            waited, end = self._run_one(function, value, feed, index)
            words[protocol.STARTED] = 0
            self._keep(feed.lease_id, index, waited, end)
        return len(inputs)

    def flush(self) -> None:
        """Send what was gathered."""
        done, self._range = self._range, None
        if done is not None:
            self._outbox.send_range(done)

    # ------------------------------------------------------------ one subtask

    def _run_one(
        self, function: Callable[..., Any] | None, value: Any, feed: protocol.Feed, index: int
    ) -> tuple[Waited, End]:
        work_dir = self._setting.work_dir
        os.makedirs(work_dir, mode=0o700, exist_ok=True)
        end = None
        if self._command is not None:
            try:
                plan = self._command.plan(value, feed, index)
            except CannotTravelError as error:
                failure = Failure(str(error), kind="InputError")
                return Waited(), End(int(Outcome.ERROR), failure=failure)
            waited = self._in_child(lambda reply: plan.execute(reply))
        else:
            assert function is not None
            waited = self._in_child(lambda reply: self._call(function, value, reply))
        self._broom.sweep()
        end = self._judge(waited)
        if self._command is not None and end.outcome == 0:
            files, end.refused = self._command.collect(self._outbox, feed.lease_id, index)
            end.files = files
        self._broom.clean()
        return waited, end

    def _in_child(self, work: Callable[[int], NoReturn]) -> Waited:
        """Fork, let the child do ``work`` (it never returns), and wait for its end."""
        waited = Waited()
        reply, reply_end = os.pipe()
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        before = time.perf_counter_ns()
        try:
            pid = os.fork()
        except OSError as error:  # EAGAIN: the jail is full of processes; ENOMEM
            for fd in (reply, reply_end, out, out_end, err, err_end):
                os.close(fd)
            waited.deed = Outcome.PIDS
            waited.output[1].extend(f"the subtask could not be started: {error}\n".encode())
            return waited
        if pid == 0:
            try:
                os.setpgid(0, 0)
                os.dup2(out_end, 1)
                os.dup2(err_end, 2)
                kept = os.dup2(reply_end, 3, inheritable=False)
                os.closerange(4, 4096)  # the slot's socket among them
                self._limit_child()
                os.chdir(self._setting.work_dir)
                work(kept)
            finally:
                os._exit(EX_NO_REPLY)
        for fd in (reply_end, out_end, err_end):
            os.close(fd)
        try:
            self._watch(pid, waited, {reply: waited.reply}, (out, err), before)
        finally:
            for fd in (reply, out, err):
                os.close(fd)
        return waited

    def _limit_child(self) -> None:
        cpu_ms = self._setting.cpu_ms
        if cpu_ms:
            seconds = -(-cpu_ms // 1000)
            # soft below hard: the end is XCPU, which says what it was for; KILL a second later
            hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
            if hard == resource.RLIM_INFINITY or seconds < hard:
                resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))

    def _call(self, function: Callable[..., Any], value: Any, reply: int) -> NoReturn:
        """In the child: call, encode, send, leave."""
        note: protocol.Note | None = None
        me = os.getpid()
        try:
            result = function(*value) if self._setting.is_star else function(value)
            codec, frame = encode([result], self._outbox.is_safe)
            is_sendable(frame)
            head = codec.encode()
            message = (REPLY_HEAD.pack(REPLY_VALUE, len(head)), head, frame)
        except BaseException as error:
            outcome = Outcome.ENCODING if isinstance(error, CannotTravelError) else Outcome.ERROR
            if outcome is Outcome.ENCODING:
                failure = Failure(str(error), kind="EncodingError")
            else:
                failure = describe(error, is_pickled=not self._outbox.is_safe)
                note = note_of(error)
            head = _encode_reply((int(outcome), failure, note))
            message = (REPLY_HEAD.pack(REPLY_FAILURE, len(head)), head, b"")
        if os.getpid() != me:  # a process that the function forked and let return: one reply only
            os._exit(EX_NO_REPLY)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        for part in message:
            view = memoryview(part)
            while view:
                view = view[os.write(reply, view) :]
        os._exit(0)

    def _watch(
        self,
        pid: int,
        waited: Waited,
        replies: dict[int, bytearray],
        outputs: tuple[int, int],
        before: int,
    ) -> None:
        pidfd = os.pidfd_open(pid)
        poll = select.poll()
        sinks: dict[int, bytearray] = {**replies, **dict(zip(outputs, waited.output, strict=True))}
        for fd in (*sinks, pidfd):
            poll.register(fd, select.POLLIN)
        for fd in sinks:
            os.set_blocking(fd, False)
        deadline = before + self._setting.wall_ms * 1_000_000
        is_alive = True
        show_at, shown = before + SHOW_NS, [0, 0]
        while is_alive:
            now = time.perf_counter_ns()
            if now >= show_at:
                show_at = now + SHOW_NS
                self._show(waited, shown)
            if now >= deadline and waited.deed is None:
                self._end_child(pid, waited, Outcome.TIME)
            left_ms = (min(deadline, show_at) - now) / 1e6
            timeout = None if waited.deed is not None else max(0, left_ms) + 1
            for fd, _ in poll.poll(timeout):
                if fd == pidfd:
                    is_alive = False
                elif not self._take(fd, sinks, waited, fd in outputs, pid):
                    poll.unregister(fd)
        waited.wall_ns = time.perf_counter_ns() - before
        os.close(pidfd)
        for fd in sinks:  # what is still in the pipes; a daemon may hold their other end
            while self._take(fd, sinks, waited, fd in outputs, 0):
                pass
        _, waited.status, usage = os.wait4(pid, 0)
        waited.cpu_us = int((usage.ru_utime + usage.ru_stime) * 1_000_000)
        waited.peak_kib = usage.ru_maxrss

    def _show(self, waited: Waited, shown: list[int]) -> None:
        """Send the agent what was written since the last time; it may be all there will ever be."""
        lease_id, index = self._running
        for stream, sink in enumerate(waited.output):
            end = len(sink)
            for at in range(max(shown[stream], end - SHOWN_BYTES_MAX), end, LINES_PIECE_BYTES_MAX):
                part = sink[at : at + LINES_PIECE_BYTES_MAX]
                self._outbox.send(protocol.Output(lease_id, index, stream, at), part)
            shown[stream] = end

    def _take(
        self, fd: int, sinks: dict[int, bytearray], waited: Waited, is_output: bool, pid: int
    ) -> bool:
        """Read once; False at the end, or when there is nothing and the child is gone."""
        try:
            part = os.read(fd, CHUNK_BYTES)
        except BlockingIOError:
            return bool(pid)
        if not part:
            return False
        if not is_output:
            sinks[fd] += part
            if len(sinks[fd]) > REPLY_BYTES_MAX and pid:
                self._end_child(pid, waited, Outcome.ENCODING)
            return True
        room = self._setting.output_bytes - waited.output_bytes
        waited.output_bytes += len(part)
        waited.written[sinks[fd] is waited.output[1]] += len(part)
        if room > 0:
            sinks[fd] += part[:room]
        if len(part) > room:
            if pid:
                self._end_child(pid, waited, Outcome.OUTPUT)
            elif waited.deed is None:
                waited.deed = Outcome.OUTPUT
        return True

    def _end_child(self, pid: int, waited: Waited, deed: Outcome) -> None:
        if waited.deed is None:
            waited.deed = deed
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # if it died before its setpgid, or left its group

    # ------------------------------------------------------------ its end

    def _judge(self, waited: Waited) -> End:
        setting = self._setting
        if waited.deed is Outcome.TIME:
            wall_ms = waited.wall_ns // 1_000_000
            return _ended(
                Outcome.TIME,
                f"ran {format_ms(wall_ms)} of at most {format_ms(setting.wall_ms)} and used "
                f"{format_ms(waited.cpu_us / 1000)} of cpu; "
                f"try a wall limit of {format_ms(setting.wall_ms * 2)}",
                limit=setting.wall_ms,
                peak=wall_ms,
                suggested=setting.wall_ms * 2,
            )
        if waited.deed is Outcome.OUTPUT:
            return _ended(
                Outcome.OUTPUT,
                f"wrote more than {format_bytes(setting.output_bytes)} to stdout and stderr; "
                "write to a file, or raise the output limit",
                limit=setting.output_bytes,
                peak=waited.output_bytes,
                suggested=setting.output_bytes * 2,
            )
        if waited.deed is not None:
            message = waited.output[1].decode(errors="replace").strip()
            return _ended(waited.deed, message or f"a value above {REPLY_BYTES_MAX} bytes")
        code = os.waitstatus_to_exitcode(waited.status)
        if code < 0:
            return self._judge_signal(-code, waited)
        if self._command is not None:
            return self._judge_command(code, waited)
        return _read_reply(waited.reply, code)

    def _judge_signal(self, number: int, waited: Waited) -> End:
        cpu_ms, limit = waited.cpu_us // 1000, self._setting.cpu_ms
        is_spent = limit and cpu_ms >= limit * 0.98
        if number == signal.SIGXCPU or (number == signal.SIGKILL and is_spent):
            return _ended(
                Outcome.CPU,
                f"used {format_ms(cpu_ms)} of cpu of at most {format_ms(limit)}; "
                f"try a cpu limit of {format_ms(limit * 2)}",
                signal=number,
                limit=limit,
                peak=cpu_ms,
                suggested=limit * 2,
            )
        if number == signal.SIGSYS:
            return _ended(Outcome.SYSCALL, "made a system call that jails forbid", signal=number)
        end = _ended(Outcome.SIGNAL, f"killed by {_signal_name(number)}", signal=number)
        end.is_killed = number == signal.SIGKILL
        return end

    def _judge_command(self, code: int, waited: Waited) -> End:
        assert self._command is not None
        if waited.reply:  # exec failed: the child said why
            outcome, failure, note = _decode_failure(bytes(waited.reply))
            return End(outcome, failure=failure, note=note)
        stdout, stderr = map(bytes, waited.output)
        if code in self._setting.ok_exit_codes:
            return End(value={"exit_code": code, "stdout": stdout, "stderr": stderr})
        tail = stderr[-2000:].decode(errors="replace").strip()
        message = f"exit {code}" + (f"; its last words: {tail}" if tail else "")
        return _ended(Outcome.EXIT, message, exit_code=code)

    def _keep(self, lease_id: int, index: int, waited: Waited, end: End) -> None:
        """Add one subtask to what was gathered; send when it is time or it must stand alone."""
        logs = []
        if any(waited.output):
            stdout, stderr = map(bytes, waited.output)
            is_cut = waited.output_bytes > len(stdout) + len(stderr)
            logs = [
                LogEntry(
                    0,
                    stdout,
                    stderr,
                    stdout_bytes=waited.written[0],
                    stderr_bytes=waited.written[1],
                    is_cut=is_cut,
                )
            ]
        is_alone = bool(
            end.is_killed or end.files or end.refused or len(end.frame) > FRAME_BYTES_MAX
        )
        if is_alone or end.codec:
            self.flush()
        if end.codec:
            self._send_framed(lease_id, index, waited, end, logs)
            return
        done = self._range
        if done is None:
            done = self._range = Range(lease_id, index, [], [], [])
            self._flush_at = time.perf_counter_ns() + FLUSH_NS
            self._extra_bytes = 0
        elif done.lease_id != lease_id or done.first + len(done.walls_ns) != index:
            self.flush()
            return self._keep(lease_id, index, waited, end)
        offset = len(done.walls_ns)
        done.walls_ns.append(waited.wall_ns)
        done.cpu_us.append(waited.cpu_us)
        done.peak_kib.append(waited.peak_kib)
        done.logs.extend(msgspec.structs.replace(log, offset=offset) for log in logs)
        if end.failure is None:
            done.values.append(end.value)
        else:
            done.troubles.append((index, end.outcome, end.failure, end.note))
        self._extra_bytes += len(end.frame) + waited.output_bytes
        if is_alone:
            self._range = None
            extras = Extras(end.is_killed, end.files, end.refused)
            self._outbox.send_range(done, extras)
        elif time.perf_counter_ns() > self._flush_at or self._extra_bytes > FRAME_BYTES_MAX // 2:
            self.flush()

    def _send_framed(
        self, lease_id: int, index: int, waited: Waited, end: End, logs: list[LogEntry]
    ) -> None:
        self._outbox.send_frame(
            Range(
                lease_id,
                index,
                [waited.wall_ns],
                [],
                [],
                [waited.cpu_us],
                [waited.peak_kib],
                logs,
            ),
            end.codec,
            end.frame,
        )


def _ended(outcome: Outcome, message: str, **facts: int) -> End:
    return End(int(outcome), failure=Failure(message, **facts))  # type: ignore[arg-type]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _read_reply(reply: bytearray, code: int) -> End:
    """A child's own words; nothing in them is believed beyond its own subtask."""
    if len(reply) < REPLY_HEAD.size:
        if code == 0:
            return _ended(
                Outcome.ERROR, "the subtask ended its process with os._exit(0) and no value"
            )
        return _ended(
            Outcome.EXIT, f"the subtask ended its process with exit code {code}", exit_code=code
        )
    what, size = REPLY_HEAD.unpack_from(reply)
    head, frame = bytes(reply[REPLY_HEAD.size :][:size]), bytes(reply[REPLY_HEAD.size + size :])
    try:
        if what == REPLY_FAILURE:
            outcome, failure, note = _decode_failure(head)
            if outcome not in (int(Outcome.ERROR), int(Outcome.ENCODING)):
                raise ValueError(f"outcome {outcome}")
            return End(outcome, failure=failure, note=note)
        codec = head.decode("ascii")
        if codec in ("p", "r"):  # not ours to decode: whoever imports numpy, it is not the slot
            return End(codec=codec, frame=frame)
        return End(value=join_plain(codec, frame), frame=frame)
    except (CannotTravelError, msgspec.DecodeError, ValueError) as error:
        return _ended(Outcome.ENCODING, f"the subtask's reply does not decode: {error}")
