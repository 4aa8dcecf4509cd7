"""Everything between the core and the slot processes: starts, feeds, results, ends.

What a slot sends goes to the core in the slot's own order, even when a result waits for the store:
each port has a line of events, and only its head leaves.
"""

import contextlib
import hashlib
import pathlib
import secrets
import shutil
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from gristmill.sandbox.cgroup import Reading
from gristmill.sandbox.errors import SandboxError
from gristmill.sandbox.host import Host
from gristmill.sandbox.verdict import Deed
from gristmill.wire.errors import RemoteError
from gristmill.wire.failure import Failure, LogEntry, pack_logs
from gristmill.wire.limits import FILES_MAX, FRAME_BYTES_MAX
from gristmill.wire.outcome import Outcome
from gristmill.wire.values import BlobRef, decode_ref, encode_ref
from gristmill.worker import results
from gristmill.worker.blobs import Blobs, Errands
from gristmill.worker.core import effects as do
from gristmill.worker.core import events as on
from gristmill.worker.jobs import JobRoom, Unready
from gristmill.worker.port import Port
from gristmill.worker.process import Facts
from gristmill.worker.runners import protocol
from gristmill.worker.starter import start_slot, subtask_limits

_DEEDS: dict[str, Deed] = {
    "time": Deed.TIMED_OUT,
    "cpu": Deed.CPU_SPENT,
    "output": Deed.OUTPUT_CUT,
    "cancel": Deed.CANCELLED,
}
_decode_values = msgspec.msgpack.Decoder(list[dict[str, Any]]).decode
_encode_values = msgspec.msgpack.Encoder().encode


class _Line:
    """Events of one port, in order; each is None until it is known."""

    def __init__(self) -> None:
        self._places: deque[list[on.Event | None]] = deque()

    def add(self, event: "on.Event | None") -> list["on.Event | None"]:
        """A place at the end; set its only item when the event is known."""
        place = [event]
        self._places.append(place)
        return place

    @property
    def is_empty(self) -> bool:
        """Nothing waits."""
        return not self._places

    def take(self) -> list[on.Event]:
        """Events that may leave."""
        ready = []
        while self._places and self._places[0][0] is not None:
            event = self._places.popleft()[0]
            assert event is not None
            ready.append(event)
        return ready


class _Occupant:
    """One slot process with what the yard keeps of it."""

    def __init__(self, port: Port, room: JobRoom) -> None:
        self.port = port
        self.room = room
        self.line = _Line()
        self.feeds: deque[list[bytes | None]] = deque()
        self.files: list[tuple[str, pathlib.Path, Any]] = []
        self.file_bytes = 0
        self.run: tuple[int, int] = (0, -1)
        self.run_since_ms = 0
        self.run_cpu_us = 0
        self.is_over = False


class Yard:
    """The slots of a worker, as processes.

    Args:
        host: None when the worker admits only tier ``trusted``.
        watch, unwatch: the loop's way to hear of a descriptor; ``watch(fd, is_write, call)``.
        clock_ms: the loop's monotonic clock.
    """

    def __init__(
        self,
        state_dir: pathlib.Path,
        host: Host | None,
        blobs: Blobs,
        errands: Errands,
        watch: Callable[[int, bool, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        clock_ms: Callable[[], int],
    ) -> None:
        self._state_dir = state_dir
        self._host = host
        self._blobs = blobs
        self._errands = errands
        self._watch, self._unwatch = watch, unwatch
        self._clock_ms = clock_ms
        self._occupants: dict[int, _Occupant] = {}
        self._pending: dict[int, do.StartJail] = {}
        self._rooms: dict[int, JobRoom] = {}
        self._peaks = results.Peaks()
        self._events: list[on.Event] = []
        self.is_look_due = False
        self._spool = state_dir / "spool"
        for folder in (self._spool, state_dir / "jobs", state_dir / "open"):
            _empty(folder)

    def take_events(self) -> list[on.Event]:
        """What happened since the last call."""
        for occupant in list(self._occupants.values()):
            self._events += occupant.line.take()
        events, self._events = self._events, []
        return events

    def ports(self) -> list[tuple[Port, int, int]]:
        """(port, job, subtask that runs or -1) of each running process."""
        return [
            (occupant.port, occupant.room.opening.job, occupant.run[1])
            for occupant in self._occupants.values()
            if not occupant.is_over
        ]

    @property
    def is_empty(self) -> bool:
        """No process is left."""
        return not self._occupants

    # ------------------------------------------------------------ effects

    def open_job(self, effect: do.OpenJob) -> None:
        """Know the job; keep the newest grants."""
        room = self._rooms.get(effect.opening.job)
        if room is not None:
            room.opening = effect.opening
            return
        folder = self._state_dir / "jobs" / str(effect.opening.job)
        is_jailed = effect.opening.spec.tier != "trusted"
        self._rooms[effect.opening.job] = JobRoom(
            effect.opening, effect.function, folder, is_jailed
        )

    def close_job(self, effect: do.CloseJob) -> None:
        """Forget the job."""
        room = self._rooms.pop(effect.job, None)
        if room is not None:
            room.close()

    def start(self, effect: do.StartJail) -> None:
        """Start a process once the job is prepared."""
        self._pending[effect.jail] = effect
        room = self._rooms[effect.job]
        room.prepare(self._errands, self._blobs, lambda unready: self._start(effect, room, unready))

    def feed(self, effect: do.FeedSlot) -> None:
        """Send a lease, after its parcels that lie in the store are here."""
        occupant = self._occupants.get(effect.jail)
        if occupant is None:
            return
        place: list[bytes | None] = [None]
        occupant.feeds.append(place)
        if not any(head.codec.startswith("@") for head in effect.parcels):
            place[0] = _pack_feed(effect, list(effect.frames))
            self._send_feeds(occupant)
            return
        grant = occupant.room.opening.get_grant

        def work() -> bytes:
            frames = []
            for head, frame in zip(effect.parcels, effect.frames, strict=True):
                is_ref = head.codec.startswith("@")
                frames.append(self._blobs.fetch(grant, decode_ref(frame)) if is_ref else frame)
            return _pack_feed(effect, frames)

        def then(answer: "bytes | BaseException") -> None:
            if isinstance(answer, BaseException):
                occupant.feeds.remove(place)
                message = f"the inputs cannot be read from the store: {_said(answer)}"
                self._events.append(
                    on.InputFailed(effect.slot, effect.jail, effect.lease_id, message)
                )
            else:
                place[0] = answer
            self._send_feeds(occupant)

        self._errands.run(work, then)

    def stop_leases(self, effect: do.StopLeases) -> None:
        """Write the stop list, and look soon."""
        occupant = self._occupants.get(effect.jail)
        if occupant is not None and not occupant.is_over:
            occupant.port.page.write_stops(list(effect.lease_ids))
            self.is_look_due = True

    def kill(self, effect: do.KillJail) -> None:
        """End a process, or a start that has not come to one."""
        if self._pending.pop(effect.jail, None) is not None:
            self._events.append(_never_started(effect))
            return
        occupant = self._occupants.get(effect.jail)
        if occupant is not None:
            occupant.port.kill(effect.cause)

    def look(self) -> on.Looked:
        """Pages and meters of all running processes."""
        self.is_look_due = False
        now_ms = self._clock_ms()
        looks = []
        for occupant in self._occupants.values():
            port = occupant.port
            if occupant.is_over or not port.is_ready:
                continue
            run = port.page.started()
            cpu_us = port.process.cpu_us()
            if run != occupant.run:
                occupant.run, occupant.run_since_ms, occupant.run_cpu_us = run, now_ms, cpu_us
            looks.append(
                on.Look(
                    port.slot,
                    port.jail,
                    run[0],
                    run[1],
                    cpu_us,
                    max(0, cpu_us - port.accounted_us),
                    port.output_bytes,
                )
            )
        return on.Looked(tuple(looks))

    def close(self) -> None:
        """End everything at once."""
        for occupant in list(self._occupants.values()):
            self._forget(occupant)
        for room in self._rooms.values():
            room.close()

    # ------------------------------------------------------------ starts

    def _start(self, effect: do.StartJail, room: JobRoom, unready: Unready | None) -> None:
        if self._pending.pop(effect.jail, None) is None:
            return  # killed before it came to this
        slot, jail = effect.slot, effect.jail
        if unready is not None:
            self._events.append(on.JobUnready(slot, jail, unready.outcome, str(unready)))
            return
        work_dir = self._state_dir / "open" / str(slot)
        try:
            port = start_slot(
                slot, jail, room.spec, room.interpreter, room.inputs, self._host, work_dir
            )
        except (SandboxError, OSError) as error:
            failure = Failure(str(error))
            self._events.append(on.JailEnded(slot, jail, int(Outcome.SETUP), failure))
            return
        occupant = self._occupants[jail] = _Occupant(port, room)
        socket_fd, out, err, end = port.descriptors()
        self._watch(socket_fd, False, lambda: self._on_socket(occupant))
        self._watch(out, False, lambda: self._on_output(occupant, out))
        self._watch(err, False, lambda: self._on_output(occupant, err))
        self._watch(end, False, lambda: self._on_end(occupant))
        port.send(room.setting(work_dir), room.function)
        self._update_watch(occupant)

    def _send_feeds(self, occupant: _Occupant) -> None:
        while occupant.feeds and occupant.feeds[0][0] is not None:
            frame = occupant.feeds.popleft()[0]
            assert frame is not None
            occupant.port.send_frame(frame)
        self._update_watch(occupant)

    def _update_watch(self, occupant: _Occupant) -> None:
        port = occupant.port
        if not occupant.is_over and not port.is_at_end:
            self._watch(port.socket_fd, port.is_sending, lambda: self._on_socket(occupant))

    # ------------------------------------------------------------ what slots send

    def _on_socket(self, occupant: _Occupant) -> None:
        port = occupant.port
        if port.is_sending:
            port.flush()
        self._take_frames(occupant, False)
        if port.is_at_end:
            self._unwatch(port.socket_fd)
        else:
            self._update_watch(occupant)

    def _on_output(self, occupant: _Occupant, fd: int) -> None:
        for ended in occupant.port.read_output(fd):
            self._unwatch(ended)
            occupant.port.drop_output(ended)
        if occupant.port.output_bytes > occupant.room.spec.limits.output_bytes:
            self.is_look_due = True

    def _take_frames(self, occupant: _Occupant, is_last: bool) -> None:
        try:
            for header, body in occupant.port.receive(is_last):
                self._on_frame(occupant, protocol.decode_from_slot(header), body)
        except (ValueError, RemoteError, UnicodeDecodeError) as error:  # DecodeError among them
            if occupant.port.cause is None:
                port = occupant.port
                occupant.line.add(on.SlotLied(port.slot, port.jail, f"nonsense ({error})"))

    def _on_frame(self, occupant: _Occupant, said: protocol.FromSlot, body: bytes) -> None:
        port = occupant.port
        if isinstance(said, protocol.Done):
            self._on_done(occupant, said, body)
        elif isinstance(said, protocol.Ended):
            occupant.line.add(on.FeedEnded(port.slot, port.jail, said.lease_id))
        elif isinstance(said, protocol.FilePart):
            self._on_file_part(occupant, said, body)
        elif not port.is_ready:
            port.is_ready = True
            port.take_cpu_us()  # the start of the interpreter is not the tenant's
            occupant.line.add(on.JailReady(port.slot, port.jail))

    def _on_done(self, occupant: _Occupant, done: protocol.Done, body: bytes) -> None:
        port, room = occupant.port, occupant.room
        draft = results.draft_result(port, room.spec, done, body, self._peaks)
        files, occupant.files, occupant.file_bytes = occupant.files, [], 0
        for _, _, (file, _) in files:
            file.close()
        if len(files) != done.files or (done.count > 1 and (files or done.refused)):
            raise ValueError("a result whose files do not fit it")
        if done.refused:
            _refuse_files(draft, done.refused)
        is_large = len(draft.frames[0]) > FRAME_BYTES_MAX
        logs = results.large_logs(draft.frames[3])
        if not is_large and logs is None and not files:
            occupant.line.add(draft.event(port))
            return
        place = occupant.line.add(None)
        grant = room.opening.put_grant

        def then(answer: "BaseException | None") -> None:
            if isinstance(answer, BaseException):
                _lose_values(draft, f"the result cannot be put into the store: {_said(answer)}")
            for _, path, _ in files:
                path.unlink(missing_ok=True)
            place[0] = draft.event(port)

        self._errands.run(lambda: self._store(draft, grant, files, logs), then)

    def _store(
        self,
        draft: results.Draft,
        grant: str,
        files: list[tuple[str, pathlib.Path, Any]],
        logs: list[LogEntry] | None,
    ) -> None:
        """In a thread: put what is large; the draft then has references."""
        values, meter, failures, log_frame = draft.frames
        if logs is not None:
            kept = []
            for entry in logs:
                for name, text in results.long_streams(entry):
                    try:
                        digest = self._blobs.put(grant, text).digest
                    except RemoteError:
                        digest = ""  # the log is lost, the result is not
                    entry = results.moved_to_store(entry, name, digest)
                kept.append(entry)
            log_frame = pack_logs(kept)
            draft.frames = (values, meter, failures, log_frame)
        if files and values:
            taken = {}
            for path, spooled, (_, hasher) in files:
                ref = self._blobs.put(grant, spooled)
                assert ref.digest == hasher.hexdigest()
                taken[path] = (ref.digest, ref.size_bytes)
            (value,) = _decode_values(values)
            value["files"] = taken
            values = _encode_values([value])
            draft.frames = (values, meter, failures, log_frame)
        if len(values) > FRAME_BYTES_MAX:
            ref = self._blobs.put(grant, values)
            draft.codec = f"@{draft.codec}"
            draft.frames = (
                encode_ref(BlobRef(ref.digest, ref.size_bytes)),
                meter,
                failures,
                log_frame,
            )

    def _on_file_part(self, occupant: _Occupant, part: protocol.FilePart, body: bytes) -> None:
        spec = occupant.room.spec
        occupant.file_bytes += len(body)
        if spec.kind != "command" or occupant.file_bytes > spec.limits.scratch_bytes:
            raise ValueError("a file that no subtask may have")
        if not body:
            if len(occupant.files) >= FILES_MAX:
                raise ValueError("too many files")
            spooled = self._spool / secrets.token_hex(16)
            occupant.files.append((part.path, spooled, (spooled.open("xb"), hashlib.sha256())))
            return
        if not occupant.files or occupant.files[-1][0] != part.path:
            raise ValueError("a piece of no file")
        file, hasher = occupant.files[-1][2]
        file.write(body)
        hasher.update(body)

    # ------------------------------------------------------------ ends

    def _on_end(self, occupant: _Occupant) -> None:
        port = occupant.port
        if occupant.is_over or not port.process.is_over():
            return
        self._take_frames(occupant, True)
        stdout, stderr, output_bytes = port.take_output()
        run = port.page.started()
        now_ms = self._clock_ms()
        fresh_us = port.take_cpu_us()
        if run != occupant.run:
            occupant.run, occupant.run_since_ms = run, now_ms
            occupant.run_cpu_us = port.accounted_us - fresh_us
        wall_ms = now_ms - occupant.run_since_ms if run[1] >= 0 else 0
        facts = Facts(
            deed=_DEEDS.get(
                port.cause or "", Deed.NOTHING if port.cause is None else Deed.LOST_HOLD
            ),
            limits=subtask_limits(occupant.room.spec),
            wall_ms=wall_ms,
            cpu_us=port.accounted_us - occupant.run_cpu_us,
            output_bytes=output_bytes,
        )
        reading: Reading = port.process.reading()
        outcome, failure = _verdict(port, facts, stderr)
        logs = b""
        if stdout or stderr:
            is_cut = output_bytes > len(stdout) + len(stderr)
            entry = LogEntry(
                0,
                stdout[-4096:],
                stderr[-4096:],
                is_cut=is_cut or max(len(stdout), len(stderr)) > 4096,
                stdout_bytes=len(stdout),
                stderr_bytes=len(stderr),
            )
            logs = pack_logs([entry])
        if outcome is Outcome.SETUP and not port.is_ready and occupant.room.spec.environment:
            # a Python that somebody named does not work here: the host is not to blame
            unready = on.JobUnready(port.slot, port.jail, int(outcome), failure.message)
            occupant.line.add(unready)
            occupant.is_over = True
            self._close_port(occupant)
            return
        occupant.line.add(
            on.JailEnded(
                port.slot,
                port.jail,
                int(outcome),
                failure,
                lease_id=run[0],
                index=run[1],
                wall_us=wall_ms * 1000,
                cpu_us=fresh_us,
                peak_kib=reading.memory_peak_bytes >> 10,
                metering=port.process.metering,
                logs=logs,
            )
        )
        occupant.is_over = True
        self._close_port(occupant)

    def _close_port(self, occupant: _Occupant) -> None:
        port = occupant.port
        for fd in port.descriptors():
            self._unwatch(fd)
        self._peaks.forget(port)
        for _, path, (file, _) in occupant.files:
            file.close()
            path.unlink(missing_ok=True)
        occupant.files.clear()
        port.close()

    def _forget(self, occupant: _Occupant) -> None:
        if not occupant.is_over:
            occupant.is_over = True
            self._close_port(occupant)
        self._occupants.pop(occupant.port.jail, None)

    def sweep(self) -> None:
        """Forget processes whose last event has left."""
        for occupant in list(self._occupants.values()):
            if occupant.is_over and occupant.line.is_empty:
                self._forget(occupant)


def _pack_feed(effect: do.FeedSlot, frames: list[bytes]) -> bytes:
    parcels = [
        (head.first, head.count, head.codec.removeprefix("@"), len(frame))
        for head, frame in zip(effect.parcels, frames, strict=True)
    ]
    feed = protocol.Feed(effect.lease_id, effect.attempt, list(effect.runs), parcels)
    return protocol.pack_frame(feed, *frames)


def _verdict(port: Port, facts: Facts, stderr: bytes) -> tuple[Outcome, Failure]:
    if port.cause == "budget":
        return Outcome.BUDGET, Failure("the lease's budget is spent; submit with a higher --cap")
    if port.cause == "lied":
        return Outcome.ERROR, Failure(
            "the subtask wrote to a descriptor that is not its own and broke its slot's protocol"
        )
    if port.cause == "start":
        return Outcome.SETUP, Failure("its jail was not up in time")
    verdict = port.process.judge(facts)
    outcome, detail = verdict.outcome, verdict.detail
    if not port.is_ready and outcome is Outcome.EXIT:
        # our own code could not start in that interpreter: nobody's subtask ran
        last = stderr.decode(errors="replace").strip().splitlines()[-1:] or [detail]
        outcome, detail = Outcome.SETUP, f"the slot's Python did not start: {last[0]}"
    elif outcome is Outcome.OK:
        outcome, detail = Outcome.EXIT, "the subtask ended its whole process with exit code 0"
    elif outcome is Outcome.EXIT:
        detail = f"the subtask ended its whole process with exit code {verdict.exit_code}"
    failure = Failure(
        detail,
        exit_code=verdict.exit_code,
        signal=verdict.signal_number,
        limit=verdict.limit,
        peak=verdict.peak,
        suggested=verdict.suggested,
    )
    return outcome, failure


def _never_started(effect: do.KillJail) -> on.JailEnded:
    outcome = Outcome.SETUP if effect.cause == "start" else Outcome.RETURNED
    failure = Failure("its job was not ready in time")
    return on.JailEnded(effect.slot, effect.jail, int(outcome), failure)


def _refuse_files(draft: results.Draft, refused: list[tuple[str, str]]) -> None:
    told = "; ".join(f"{path}: {why}" for path, why in refused[:5])
    more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
    draft.fail(Outcome.FS, Failure(f"output files were refused: {told}{more}", kind="FilesRefused"))


def _lose_values(draft: results.Draft, message: str) -> None:
    if draft.done.count == 1:
        draft.fail(Outcome.STORE, Failure(message, kind="StoreError"))
        return
    values, meter, failures, _ = draft.frames
    draft.frames = (values, meter, failures, b"")  # only logs were to go: values stay


def _said(error: BaseException) -> str:
    if isinstance(error, RemoteError):
        return f"{error.code}: {error.message}"
    return f"{type(error).__name__}: {error}"


def _empty(folder: pathlib.Path) -> None:
    """What an agent that was killed left behind."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o711, parents=True)
