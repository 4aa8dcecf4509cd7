"""Everything between the core and the slot processes: starts, feeds, results, ends.

What a slot sends goes to the core in the slot's own order, even when a result waits for the store:
each port has a line of events, and only its head leaves.
"""

import contextlib
import os
import pathlib
import shutil
import sys
from collections import deque
from collections.abc import Callable, Sequence

from gristmill.sandbox.errors import SandboxError
from gristmill.sandbox.host import Host
from gristmill.sandbox.interpreter import Interpreter
from gristmill.wire.errors import RemoteError
from gristmill.wire.failure import Failure
from gristmill.wire.limits import BLOB_BYTES_MAX
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec
from gristmill.wire.values import BlobRef, decode_ref
from gristmill.worker import results
from gristmill.worker.blobs import Blobs, Errands, Shared
from gristmill.worker.core import effects as do
from gristmill.worker.core import events as on
from gristmill.worker.endings import ending_of, never_started
from gristmill.worker.jobs import JobRoom, Unready
from gristmill.worker.live import SHOW_MS, LiveLogs
from gristmill.worker.mothers import Mothers
from gristmill.worker.parked import Parked
from gristmill.worker.port import Port, pack_parts
from gristmill.worker.runners import protocol
from gristmill.worker.shipping import Cargo, FileTray, refuse_files, said
from gristmill.worker.spares import Spares
from gristmill.worker.starter import mode_of, ready_python, runtime_folder, start_slot

#: Some jails are made in a few milliseconds; a cold one, at a time, takes most of a hundred.
WARM_PAUSE_MS, COLD_PAUSE_MS = 50, 200
#: A larger input is mapped by its slot; a smaller one is copied sooner than asked for.
MAPPED_BYTES_MIN = 1 << 20


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

    def __init__(self, port: Port, room: JobRoom, spool: pathlib.Path) -> None:
        self.port = port
        self.room = room
        self.line = _Line()
        self.feeds: deque[list[Sequence[bytes] | None]] = deque()
        self.files = FileTray(spool, room.spec)
        self.run: tuple[int, int] = (0, -1)
        self.run_since_ms = 0
        self.run_cpu_us = 0
        self.is_over = False
        self.is_wanting = False


class Yard:
    """The slots of a worker, as processes.

    Args:
        host: None when the worker admits only tier ``trusted``.
        watch, unwatch: the loop's way to hear of a descriptor; ``watch(fd, is_write, call)``.
        clock_ms: the loop's monotonic clock.

    Attributes:
        live: what running subtasks have written.
    """

    def __init__(
        self,
        state_dir: pathlib.Path,
        host: Host | None,
        spares: int,
        parked: int,
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
        self.live = LiveLogs()
        self._events: list[on.Event] = []
        self.is_look_due = False
        self._spool = state_dir / "spool"
        self._spares = Spares(host, spares, state_dir / "open")
        self._mothers = Mothers(host, parked, spares, state_dir / "open")
        self._parked = Parked(parked)
        for folder in (self._spool, state_dir / "jobs", state_dir / "open"):
            _empty(folder)
        if host is not None:
            _empty(runtime_folder(host))

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
        return not self._occupants and not self._parked and not self._mothers

    # ------------------------------------------------------------ effects

    def open_job(self, effect: do.OpenJob) -> None:
        """Know the job; keep the newest grants."""
        room = self._rooms.get(effect.opening.job)
        if room is not None:
            room.opening = effect.opening
            return
        folder = self._state_dir / "jobs" / str(effect.opening.job)
        self._rooms[effect.opening.job] = JobRoom(
            effect.opening, effect.function, folder, self._host
        )

    def close_job(self, effect: do.CloseJob) -> None:
        """Forget the job."""
        room = self._rooms.pop(effect.job, None)
        if room is not None:
            self._parked.drop_job(effect.job)
            self._mothers.drop_job(effect.job)
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
        place: list[Sequence[bytes] | None] = [None]
        occupant.feeds.append(place)
        if not any(head.codec.startswith("@") for head in effect.parcels):
            place[0] = _pack_feed(effect, list(effect.frames), set())
            self._send_feeds(occupant)
            return
        grant = occupant.room.opening.get_grant

        def work() -> Sequence[bytes]:
            frames = list(effect.frames)
            fetched = set()
            for at, head in enumerate(effect.parcels):
                if head.codec.startswith("@"):
                    ref = decode_ref(frames[at])
                    if ref.size_bytes <= MAPPED_BYTES_MIN:  # else the slot asks for it: see Want
                        frames[at] = self._blobs.fetch(grant, ref)
                        fetched.add(at)
            return _pack_feed(effect, frames, fetched)

        def then(answer: "Sequence[bytes] | BaseException") -> None:
            if isinstance(answer, BaseException):
                occupant.feeds.remove(place)
                message = f"the inputs cannot be read from the store: {said(answer)}"
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
        if effect.cause == "lapse":
            self._spares.drop()  # cut off, a worker runs no jail at all
            self._parked.drop()
            self._mothers.drop()
        if self._pending.pop(effect.jail, None) is not None:
            self._events.append(never_started(effect))
            return
        occupant = self._occupants.get(effect.jail)
        if occupant is None or (effect.cause == "park" and self._park(occupant)):
            return
        occupant.port.kill(effect.cause)

    def replace_spawner(self) -> None:
        """End what starts jails, and all jails; it may not come back: then no jail starts."""
        assert self._host is not None
        with contextlib.suppress(SandboxError):
            self._host.replace_spawner()

    def run_until(self, until_ms: int) -> None:
        """Jails end then, even if this process stands still."""
        if self._host is not None:
            self._host.run_until(until_ms)

    def look(self) -> on.Looked:
        """Pages and meters of all running processes."""
        self.is_look_due = False
        self._parked.sweep(self._clock_ms())
        self._mothers.sweep()
        looks, shipping = [], []
        for occupant in self._occupants.values():
            port = occupant.port
            if occupant.is_over:
                shipping.append((port.slot, port.jail))  # else it would be forgotten by now
            elif port.cause is not None:
                port.process.kill()  # again: who tells its end may stand still since the first time
            if occupant.is_over or not port.is_ready:
                continue
            has_moved = self._see_run(occupant)
            if not has_moved:
                self._overhear(occupant)
            run, cpu_us = occupant.run, port.process.cpu_us()
            looks.append(
                on.Look(
                    port.slot,
                    port.jail,
                    run[0],
                    run[1],
                    cpu_us,
                    max(0, cpu_us - port.accounted_us),
                    port.output_bytes,
                    not has_moved and port.process.is_stopped(),
                )
            )
        return on.Looked(
            tuple(looks), tuple(shipping), self._host is not None and self._host.is_stopped
        )

    def expect(self, spec: JobSpec) -> None:
        """Have jails ready for jobs like this one until others were seen."""

        def then(answer: "Interpreter | BaseException") -> None:
            if not isinstance(answer, BaseException) and not self._rooms:
                self._mothers.want(spec, answer)
                self._spares.want(spec, answer)

        self._errands.run(lambda: ready_python(sys.executable, self._host), then)

    @property
    def is_short_of_spares(self) -> bool:
        """Whether ``refill`` has something to do."""
        return self._mothers.is_short or (not self._mothers.is_able and self._spares.is_short)

    @property
    def refill_pause_ms(self) -> int:
        """How long to wait before ``refill``: what it starts must not crowd out what just began."""
        return WARM_PAUSE_MS if self._mothers.is_able else COLD_PAUSE_MS

    def refill(self) -> None:
        """Have jails made ahead, by a mother where there can be one."""
        self._mothers.refill()
        if not self._mothers.is_able:
            self._spares.refill()

    def close(self) -> None:
        """End everything at once."""
        self._spares.close()
        self._parked.close()
        self._mothers.close()
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
            known = self._parked.take(effect.job)
            port = known or self._take_ready(room)
            host = self._host
            if port is None and host is not None and (host.is_stopped or not host.is_alive):
                host.replace_spawner()
            port = port or start_slot(
                slot, jail, room.spec, room.interpreter, room.inputs, self._host, work_dir
            )
        except (SandboxError, OSError) as error:
            failure = Failure(str(error))
            self._events.append(on.JailEnded(slot, jail, int(Outcome.SETUP), failure))
            return
        port.slot, port.jail = slot, jail
        occupant = self._occupants[jail] = _Occupant(port, room, self._spool)
        socket_fd, out, err, end = port.descriptors()
        self._watch(socket_fd, False, lambda: self._on_socket(occupant))
        self._watch(out, False, lambda: self._on_output(occupant, out))
        self._watch(err, False, lambda: self._on_output(occupant, err))
        self._watch(end, False, lambda: self._on_end(occupant))
        if known is not None:
            occupant.line.add(on.JailReady(slot, jail))
        else:
            port.send(room.setting(work_dir), room.function)
        self._update_watch(occupant)
        if room.spec.tier == "strict":  # the next subtask needs one, while this one runs
            if self._mothers.is_able:
                self._mothers.refill_last()
            else:
                self._spares.refill()

    def _take_ready(self, room: JobRoom) -> Port | None:
        spec, interpreter, inputs = room.spec, room.interpreter, room.inputs
        if spec.tier == "trusted":
            return None
        opening = room.opening
        port = self._mothers.take(opening.tenant, opening.job, spec, interpreter, inputs)
        return port or self._spares.take(spec, interpreter, inputs)

    def _park(self, occupant: _Occupant) -> bool:
        """Whether the jail could leave its slot without an end."""
        port, room = occupant.port, occupant.room
        if occupant.is_over or occupant.feeds or not occupant.line.is_empty or not port.is_ready:
            return False
        if port.is_sending or occupant.is_wanting or port.page.started()[1] >= 0:
            return False
        if room.spec.tier not in ("batch", "job") or self._rooms.get(room.opening.job) is not room:
            return False
        if port.process.is_over() or not self._parked.put(room.opening.job, port):
            return False
        for fd in port.descriptors():
            self._unwatch(fd)
        self._peaks.forget(port)
        self.live.end(port.jail)
        occupant.files.drop()
        del self._occupants[port.jail]
        ended = on.JailEnded(port.slot, port.jail, int(Outcome.RETURNED), Failure("it is parked"))
        self._events.append(ended)
        return True

    def _send_feeds(self, occupant: _Occupant) -> None:
        while occupant.feeds and occupant.feeds[0][0] is not None:
            parts = occupant.feeds.popleft()[0]
            assert parts is not None
            occupant.port.send_parts(parts)
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
            occupant.files.add(said, body)
        elif isinstance(said, protocol.Output):
            self.live.hear(port.jail, said, body)
        elif isinstance(said, protocol.Want):
            self._on_want(occupant, said)
        elif not port.is_ready:
            port.is_ready = True
            port.take_cpu_us()  # the start of the interpreter is not the tenant's
            occupant.line.add(on.JailReady(port.slot, port.jail))

    def _on_want(self, occupant: _Occupant, want: protocol.Want) -> None:
        """A blob that an input refers to: fetched once, whoever else asks for it meanwhile."""
        if occupant.is_wanting:
            raise ValueError("asks for a second blob at once")
        occupant.is_wanting = True
        port, room, blobs = occupant.port, occupant.room, self._blobs
        grant = room.opening.get_grant
        ref = BlobRef(want.digest, max(0, min(want.size_bytes, BLOB_BYTES_MAX)))

        def then(answer: "Shared | BaseException") -> None:
            occupant.is_wanting = False
            if occupant.is_over:
                return
            if isinstance(answer, BaseException):
                failure = f"a shared object cannot be had from the store: {said(answer)}"
                if want.lease_id:
                    told = on.InputFailed(port.slot, port.jail, want.lease_id, failure)
                    occupant.line.add(told)  # after the results that came before
                port.send(protocol.Given(failure))
            else:
                port.give(os.dup(answer.fd))
            self._update_watch(occupant)

        key = f"{room.opening.tenant} {want.digest}"
        self._errands.run_once(key, lambda: blobs.share(grant, ref), then)

    def _on_done(self, occupant: _Occupant, done: protocol.Done, body: bytes) -> None:
        port, room = occupant.port, occupant.room
        self.live.settle(port.jail, done.lease_id, done.first, done.count)
        draft = results.draft_result(port, room.spec, done, body, self._peaks)
        files = occupant.files.take(done)
        if done.refused:
            refuse_files(draft, done.refused)
        cargo = Cargo(draft, files)
        if cargo.is_light:
            occupant.line.add(draft.event(port))
            return
        place = occupant.line.add(None)
        grant = room.opening.put_grant

        def then(answer: "BaseException | None") -> None:
            cargo.land(answer)
            place[0] = draft.event(port)

        self._errands.run(lambda: cargo.ship(self._blobs, grant), then)

    # ------------------------------------------------------------ ends

    def _on_end(self, occupant: _Occupant) -> None:
        port = occupant.port
        if occupant.is_over or not port.process.is_over():
            return
        self._take_frames(occupant, True)
        self._see_run(occupant)
        self._overhear(occupant)
        self.live.end(port.jail)
        now_ms = self._clock_ms()
        wall_ms = now_ms - occupant.run_since_ms if occupant.run[1] >= 0 else 0
        spec = occupant.room.spec
        occupant.line.add(ending_of(port, spec, wall_ms, occupant.run_cpu_us))
        occupant.is_over = True
        self._close_port(occupant)

    def _see_run(self, occupant: _Occupant) -> bool:
        """What the page says runs, and since when we see it so; whether that is new."""
        run = occupant.port.page.started()
        has_moved = run != occupant.run
        if has_moved:
            occupant.run, occupant.run_since_ms = run, self._clock_ms()
            occupant.run_cpu_us = occupant.port.process.cpu_us()
        return has_moved

    def _overhear(self, occupant: _Occupant) -> None:
        """What runs for long shows its output; where it has no process of its own, we look."""
        is_long = self._clock_ms() - occupant.run_since_ms >= SHOW_MS
        if occupant.run[1] >= 0 and is_long and mode_of(occupant.room.spec) == "loop":
            self.live.overhear(occupant.port, occupant.run)

    def _close_port(self, occupant: _Occupant) -> None:
        port = occupant.port
        for fd in port.descriptors():
            self._unwatch(fd)
        self._peaks.forget(port)
        occupant.files.drop()
        port.close()

    def _forget(self, occupant: _Occupant) -> None:
        if not occupant.is_over:
            occupant.is_over = True
            self._close_port(occupant)
            self.live.end(occupant.port.jail)
        self._occupants.pop(occupant.port.jail, None)

    def sweep(self) -> None:
        """Forget processes whose last event has left."""
        for occupant in list(self._occupants.values()):
            if occupant.is_over and occupant.line.is_empty:
                self._forget(occupant)


def _pack_feed(effect: do.FeedSlot, frames: list[bytes], fetched: set[int]) -> Sequence[bytes]:
    """``fetched``: positions of frames that stand where a reference was."""
    parcels = [
        (head.first, head.count, head.codec[at in fetched :], len(frame))
        for at, (head, frame) in enumerate(zip(effect.parcels, frames, strict=True))
    ]
    feed = protocol.Feed(effect.lease_id, effect.attempt, list(effect.runs), parcels)
    return pack_parts(feed, *frames)


def _empty(folder: pathlib.Path) -> None:
    """What an agent that was killed left behind."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o711, parents=True)
