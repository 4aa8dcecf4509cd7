"""Tier ``job`` (and ``strict``): each subtask in a child of its own, swept up after.

The child calls and sends its reply (children.py waits for it, under its limits, and reads cpu and
peak memory from wait4). Nothing that a child sends is unpickled here: plain values are decoded (and
so checked), anything else is passed on as bytes.

After each subtask nothing of it is left (broom.py): every other process of the jail is killed and
scratch is emptied. What a subtask said is judged, encoded and sent for several at once, and at the
latest when the next has run for ``RESULT_FLUSH_MS``; of the last of a lease, at once.
"""

import functools
import os
import signal
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from gristmill.wire.failure import Failure, LogEntry
from gristmill.wire.limits import LINES_PIECE_BYTES_MAX, OUTPUT_BYTES, RESULT_FLUSH_MS
from gristmill.wire.outcome import Outcome
from gristmill.wire.units import format_bytes, format_ms
from gristmill.worker.runners import protocol
from gristmill.worker.runners.broom import Broom
from gristmill.worker.runners.children import (
    EX_NO_REPLY,
    NOTE_BYTES_MAX,
    REPLY_BYTES_MAX,
    Children,
    Quick,
    Waited,
    cpu_us_of,
)
from gristmill.worker.runners.encode import (
    CannotTravelError,
    encode,
    is_sendable,
    join_plain,
)
from gristmill.worker.runners.failures import describe, note_of
from gristmill.worker.runners.loop import flush_output
from gristmill.worker.runners.outbox import Extras, Outbox, Range

if TYPE_CHECKING:
    from gristmill.worker.runners.commands import CommandRunner

FLUSH_NS: Final = RESULT_FLUSH_MS * 1_000_000
GATHERED_BYTES_MAX: Final = 64 << 10  #: of values and output; more of them go at once
SHOWN_BYTES_MAX: Final = OUTPUT_BYTES  #: at a time; of more, the last
#: a reply: u8 what it is (``REPLY_*``), u32 bytes of its head, the head, the value
REPLY_HEAD: Final = struct.Struct("<BI")
REPLY_VALUE, REPLY_FAILURE = 1, 2
REPLY_SCALAR: Final = b"\x03"  #: and one value of ``SCALARS`` as MessagePack
SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})

_encode_reply = msgspec.msgpack.Encoder().encode
_decode_scalar = msgspec.msgpack.Decoder().decode
_decode_failure = msgspec.msgpack.Decoder(tuple[int, Failure, protocol.Note | None]).decode


class End(msgspec.Struct):
    """How one subtask ended: a value (plain, or a frame with its codec), or a trouble."""

    outcome: int = 0
    value: Any = None
    codec: str = ""
    frame: bytes = b""
    failure: Failure | None = None
    note: protocol.Note | None = None
    is_killed: bool = False
    refused: list[tuple[str, str]] = []
    files: int = 0


class Forker:
    """Runs subtasks in children and gathers their results for ``RESULT_FLUSH_MS``."""

    def __init__(self, setting: protocol.Setting, outbox: Outbox, page: protocol.Page) -> None:
        self._setting = setting
        self._outbox = outbox
        self._page = page
        self._broom = Broom(setting.work_dir)
        self._children = Children(setting, self._broom, self._show, self._hand_over)
        self._range: Range | None = None
        self._flush_at = 0
        self._extra_bytes = 0
        self._ended: list[Quick] = []
        self._next = 0  # index of the first of ``_ended``
        self._command: CommandRunner | None = None
        if setting.kind == "command":
            from gristmill.worker.runners import commands  # functions need none

            self._command = commands.CommandRunner(setting)
        os.chdir("/")

    def run_inputs(
        self,
        function: Callable[..., Any] | None,
        inputs: list[Any],
        feed: protocol.Feed,
        first: int,
    ) -> int:
        """Run consecutive inputs; how many ended before the agent stopped the lease."""
        if self._command is None and self._children.is_quick:
            return self._run_quick(function, inputs, feed, first)
        words = self._page.words
        for offset, value in enumerate(inputs):
            index = first + offset
            words[protocol.STARTED] = index + 1  # before the look, as loop.py says
            if self._page.is_stopped(feed.lease_id):
                words[protocol.STARTED] = 0
                return offset
            waited, end = self._run_one(function, value, feed, index)
            words[protocol.STARTED] = 0
            self._keep(feed.lease_id, index, waited, end)
        return len(inputs)

    def _run_quick(
        self,
        function: Callable[..., Any] | None,
        inputs: list[Any],
        feed: protocol.Feed,
        first: int,
    ) -> int:
        assert function is not None
        words, lease_id = self._page.words, feed.lease_id
        work = functools.partial(self._call, function)
        self._next, end = first, first + len(inputs)
        while self._next < end:
            stops_seen = words[protocol.STOP]  # before the list: a change is noticed
            if self._page.is_stopped(lease_id):
                break
            at = self._next - first
            until_ns = self._flush_at if self._range else time.perf_counter_ns() + FLUSH_NS
            waited = self._children.run_quick(
                work,
                inputs[at:] if at else inputs,
                self._next,
                words,
                stops_seen,
                until_ns,
                self._ended,
            )
            words[protocol.STARTED] = 0
            self._keep_ended(lease_id)
            if waited is not None:
                self._keep(lease_id, self._next, waited, self._judge(waited))
                self._next += 1
        return self._next - first

    def _keep_ended(self, lease_id: int) -> None:
        for note, wall_ns, usage in self._ended:
            waited = Waited(0, cpu_us_of(usage), usage.ru_maxrss, wall_ns, note)
            self._keep(lease_id, self._next, waited, _read_reply(note, 0))
            self._next += 1
        self._ended.clear()

    def _hand_over(self) -> None:
        """The subtask that runs takes long: those before it do not wait for its end."""
        self._keep_ended(self._page.words[protocol.LEASE])
        self.flush()

    def tidy(self) -> None:
        """What was sent waits for nobody; now there is time to clean."""
        self._broom.clean()

    def flush(self) -> None:
        """Send what was gathered."""
        done, self._range = self._range, None
        if done is not None:
            self._outbox.send_range(done)

    # ------------------------------------------------------------ one subtask

    def _run_one(
        self, function: Callable[..., Any] | None, value: Any, feed: protocol.Feed, index: int
    ) -> tuple[Waited, End]:
        self._broom.prepare()
        if self._command is None:
            assert function is not None
            waited = self._children.run(functools.partial(self._call, function), value)
        else:
            try:
                plan = self._command.plan(value, feed, index)
            except CannotTravelError as error:
                failure = Failure(str(error), kind="InputError")
                return Waited(), End(int(Outcome.ERROR), failure=failure)
            try:
                waited = self._children.run_program(plan.spawn)
            except OSError as error:
                return Waited(), End(int(Outcome.EXIT), failure=plan.why(error))
        end = self._judge(waited)
        if self._command is not None and end.outcome == 0:
            files, end.refused = self._command.collect(self._outbox, feed.lease_id, index)
            end.files = files
        return waited, end

    def _call(
        self, function: Callable[..., Any], value: Any, note_fd: int, bulk_fd: int
    ) -> NoReturn:
        """In the child: call, encode, send, leave."""
        note: protocol.Note | None = None
        me = os.getpid()
        try:
            result = function(*value) if self._setting.is_star else function(value)
            if type(result) in SCALARS and os.getpid() == me:
                self._send_scalar(result, note_fd)
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
        flush_output()
        if sum(map(len, message)) <= NOTE_BYTES_MAX:
            os.write(note_fd, b"".join(message))
            os._exit(0)
        for part in message:
            view = memoryview(part)
            while view:
                view = view[os.write(bulk_fd, view) :]
        os._exit(0)

    def _send_scalar(self, value: Any, note_fd: int) -> None:
        """In the child: the short way for what most functions return; back if it is too long."""
        try:
            text = REPLY_SCALAR + _encode_reply(value)
        except (OverflowError, UnicodeEncodeError):
            return
        if len(text) <= NOTE_BYTES_MAX:
            flush_output()
            os.write(note_fd, text)
            os._exit(0)

    def _show(self, waited: Waited, shown: list[int]) -> None:
        """Send the agent what was written since the last time; it may be all there will ever be."""
        self._hand_over()
        lease_id, index = self._page.started()
        for stream, sink in enumerate(waited.output):
            end = len(sink)
            for at in range(max(shown[stream], end - SHOWN_BYTES_MAX), end, LINES_PIECE_BYTES_MAX):
                part = sink[at : at + LINES_PIECE_BYTES_MAX]
                self._outbox.send(protocol.Output(lease_id, index, stream, at), part)
            shown[stream] = end

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
            end.is_killed or end.files or end.refused or len(end.frame) > GATHERED_BYTES_MAX
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
        elif time.perf_counter_ns() > self._flush_at or self._extra_bytes > GATHERED_BYTES_MAX:
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


def _read_reply(reply: bytes | bytearray, code: int) -> End:
    """A child's own words; nothing in them is believed beyond its own subtask."""
    if reply[:1] == REPLY_SCALAR:
        try:
            value = _decode_scalar(memoryview(reply)[1:])
        except msgspec.DecodeError as error:
            return _ended(Outcome.ENCODING, f"the subtask's reply does not decode: {error}")
        if type(value) in SCALARS:
            return End(value=value)
        return _ended(Outcome.ENCODING, "the subtask's reply is not what it says")
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
