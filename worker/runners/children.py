"""One child at a time: its start, its ways out, its limits, its end.

A child may speak on four pipes: ``note``, a reply that fits a page and is read once it has ended;
``bulk``, a larger one, read as it comes; stdout and stderr. Most children write one note and end,
so this process sleeps until then: it is woken once.

In a jail the pipes serve all children of a slot, one after another: before the next begins, every
process that could hold an end is gone, what was left in them is read, and the flags that a child
may have set on an end (``O_NONBLOCK``) are set back. Without a jail a daemon may live on, and each
child has pipes of its own.
"""

import contextlib
import errno
import fcntl
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

import msgspec

from gristmill.wire.limits import RESULT_FLUSH_MS
from gristmill.wire.outcome import Outcome
from gristmill.worker.runners import protocol
from gristmill.worker.runners.broom import WALL, Broom
from gristmill.worker.runners.lean import fork

#: What a child has written is shown to the agent when it has run for this long, and then each time.
SHOW_NS: Final = 250_000_000
CHUNK_BYTES: Final = 1 << 16
#: The least that a pipe holds, whatever size a child before gave it: no write of this much waits.
NOTE_BYTES_MAX: Final = 4096
REPLY_BYTES_MAX: Final = protocol.BODY_BYTES_MAX // 2 + (1 << 20)
EX_NO_REPLY: Final = 70  #: exit code of a child that could not even say what failed
NOTE_FD: Final = 3  #: of a child
BULK_FD: Final = 4
FDS_MAX: Final = 4096
PIPES_FROM: Final = 16  #: ours are above those of a child: they are moved to their numbers
DRAINS_MAX: Final = 64

LONG_MS: Final = RESULT_FLUSH_MS
LOOK: Final = os.WNOHANG | WALL
POLLIN: Final = select.POLLIN

#: What a child does with an input, given the descriptors of its note and its bulk.
Work = Callable[[Any, int, int], NoReturn]
#: (note, wall_ns, what it used) of a child that ended well.
Quick = tuple[bytes, int, resource.struct_rusage]


class Waited(msgspec.Struct):
    """What came of one child.

    ``deed``: the outcome when we ended it (TIME, OUTPUT), else None. ``output``: stdout, stderr, as
    far as kept; ``written``: bytes that there were of each.
    """

    status: int = 0
    cpu_us: int = 0
    peak_kib: int = 0
    wall_ns: int = 0
    reply: bytes | bytearray = b""
    output: tuple[bytearray, bytearray] = msgspec.field(
        default_factory=lambda: (bytearray(), bytearray())
    )
    output_bytes: int = 0
    written: list[int] = msgspec.field(default_factory=lambda: [0, 0])
    deed: Outcome | None = None


class Pipes:
    """The four ways out of a child; see the module."""

    def __init__(self) -> None:
        self.note, self.note_end = _pipe()
        self.bulk, self.bulk_end = _pipe()
        self.out, self.out_end = _pipe()
        self.err, self.err_end = _pipe()
        self.read = (self.bulk, self.out, self.err)
        self.ends = (self.note_end, self.bulk_end, self.out_end, self.err_end)
        self.poll = select.poll()
        for fd in self.read:
            self.poll.register(fd, POLLIN)

    def reset(self) -> None:
        """A child shares its ends with the next: what it may have set on them."""
        for end in self.ends:
            fcntl.fcntl(end, fcntl.F_SETFL, 0)

    def close(self) -> None:
        """Both ends of all."""
        for fd in (self.note, *self.read, *self.ends):
            os.close(fd)


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    try:
        read, write = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, PIPES_FROM) for fd in ends)
    finally:
        for fd in ends:
            os.close(fd)
    os.set_blocking(read, False)
    return read, write


def _read(note: int) -> bytes:
    """All that is in the pipe of a child that is gone."""
    text = b""
    try:
        while len(text) % CHUNK_BYTES == 0 and (part := os.read(note, CHUNK_BYTES)):
            text += part
    except BlockingIOError:
        pass
    return text


def _sinks(pipes: Pipes, waited: Waited) -> dict[int, bytearray]:
    return {pipes.bulk: bytearray(), pipes.out: waited.output[0], pipes.err: waited.output[1]}


def cpu_us_of(usage: resource.struct_rusage) -> int:
    """User and system together."""
    return int((usage.ru_utime + usage.ru_stime) * 1_000_000)


def _not_started(error: OSError) -> Waited:
    """EAGAIN: the jail is full of processes; ENOMEM."""
    waited = Waited(deed=Outcome.PIDS)
    waited.output[1].extend(f"the subtask could not be started: {error}\n".encode())
    return waited


class Children:
    """Runs one child after another under the limits of a job.

    ``show(waited, shown)`` is called while a child runs, each ``SHOW_NS``; ``on_long()`` when one
    of ``run_quick`` runs for longer than ``LONG_MS``.
    """

    @property
    def is_quick(self) -> bool:
        """Whether there is ``run_quick``."""
        return self._pipes is not None

    def __init__(
        self,
        setting: protocol.Setting,
        broom: Broom,
        show: Callable[[Waited, list[int]], None],
        on_long: Callable[[], None],
    ) -> None:
        self._setting = setting
        self._broom = broom
        self._show = show
        self._on_long = on_long
        self._pipes = Pipes() if broom.is_init else None
        self._cpu_s = _cpu_seconds(setting)
        self._fd_end = min(FDS_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    def run(self, work: Work, value: Any) -> Waited:
        """Fork, let the child do ``work`` (it never returns), and wait for the end of it all."""
        pipes = self._pipes or Pipes()
        before = time.perf_counter_ns()
        try:
            pid = fork()
        except OSError as error:
            return _not_started(error)
        if pid == 0:
            self._begin(pipes, work, value)
        return self._wait(pid, pipes, before)

    def run_program(self, spawn: Callable[[int, int], int]) -> Waited:
        """As ``run``, for what ``spawn(stdout, stderr)`` starts in the work folder.

        Raises:
            OSError: it could not be executed.
        """
        pipes = self._pipes or Pipes()
        before = time.perf_counter_ns()
        os.chdir(self._setting.work_dir)
        try:
            pid = spawn(pipes.out_end, pipes.err_end)
        except OSError as error:
            if self._pipes is None:
                pipes.close()
            if error.errno in (errno.EAGAIN, errno.ENOMEM):
                return _not_started(error)
            raise
        finally:
            os.chdir("/")
        if self._cpu_s is not None:
            # Not before it runs: a spawn cannot, and our own limit could not be raised again. What
            # it forked by then is held by the agent's look at the whole jail.
            with contextlib.suppress(OSError):
                resource.prlimit(pid, resource.RLIMIT_CPU, self._cpu_s)
        return self._wait(pid, pipes, before)

    def run_quick(
        self,
        work: Work,
        inputs: Sequence[Any],
        first: int,
        words: "memoryview[int]",
        stops_seen: int,
        until_ns: int,
        ended: list[Quick],
    ) -> Waited | None:
        """In a jail: ``work`` for one input after another, each in a child, while all goes well.

        Children that end as most do, with a note and no output, are appended to ``ended``. Comes
        back with the first that did not; or with None when the page's STOP is not ``stops_seen``,
        when ``until_ns`` of the clock is past, and after the last.

        After a fork, each page that this process writes to costs a fault; so does each object that
        is but looked at, since that counts a reference. Nothing is in this loop that can be done
        for several children at once.
        """
        pipes, prepare, clock = self._pipes, self._broom.prepare, time.perf_counter_ns
        assert pipes is not None
        poll, note_fd, ends = pipes.poll, pipes.note, pipes.ends
        stop_at, started_at = protocol.STOP, protocol.STARTED
        index = first
        for value in inputs:
            index += 1
            words[started_at] = index  # before STOP is read, as loop.py says
            if words[stop_at] != stops_seen:
                break
            prepare()
            before = clock()
            try:
                pid = fork()
            except OSError as error:
                return _not_started(error)
            if pid == 0:
                self._begin(pipes, work, value)
            pidfd = os.pidfd_open(pid)
            poll.register(pidfd, POLLIN)
            events = poll.poll(LONG_MS)
            now = clock()
            poll.unregister(pidfd)
            os.close(pidfd)
            if len(events) != 1 or events[0][0] != pidfd:
                if not events:
                    self._on_long()
                return self._wait(pid, pipes, before)
            _, status, usage = os.wait4(pid, 0)
            try:
                os.waitpid(-1, LOOK)
                self._broom.sweep()
            except ChildProcessError:
                pass  # nobody is left
            note = b"" if status or poll.poll(0) else _read(note_fd)
            if not note:
                waited = Waited(wall_ns=now - before)
                return self._settle(waited, pipes, _sinks(pipes, waited), status, usage)
            for end in ends:
                fcntl.fcntl(end, fcntl.F_SETFL, 0)
            ended.append((note, now - before, usage))
            if now > until_ns:
                break
        return None

    def _begin(self, pipes: Pipes, work: Work, value: Any) -> NoReturn:
        """In the child: nothing of the slot's but what is its own."""
        try:
            os.setpgid(0, 0)
            os.dup2(pipes.out_end, 1)
            os.dup2(pipes.err_end, 2)
            os.dup2(pipes.note_end, NOTE_FD, False)
            os.dup2(pipes.bulk_end, BULK_FD, False)
            os.closerange(BULK_FD + 1, self._fd_end)  # the slot's socket among them
            if self._cpu_s is not None:
                resource.setrlimit(resource.RLIMIT_CPU, self._cpu_s)
            os.chdir(self._setting.work_dir)
            work(value, NOTE_FD, BULK_FD)
        finally:
            os._exit(EX_NO_REPLY)

    def _wait(self, pid: int, pipes: Pipes, before: int) -> Waited:
        """Wait for a child's end under its limits."""
        waited = Waited()
        sinks = _sinks(pipes, waited)
        self._watch(pid, waited, pipes, sinks, before)
        _, status, usage = os.wait4(pid, 0)
        self._broom.sweep()
        return self._settle(waited, pipes, sinks, status, usage)

    def _settle(
        self,
        waited: Waited,
        pipes: Pipes,
        sinks: dict[int, bytearray],
        status: int,
        usage: resource.struct_rusage,
    ) -> Waited:
        """The child is gone, and all that it started: take what is left in the pipes."""
        waited.status = status
        waited.cpu_us = cpu_us_of(usage)
        waited.peak_kib = usage.ru_maxrss
        for fd, _ in pipes.poll.poll(0):
            for _ in range(DRAINS_MAX):  # bounded: without a jail, a daemon may write for ever
                if not self._take(fd, sinks, waited, fd != pipes.bulk, 0):
                    break
        waited.reply = _read(pipes.note) or sinks[pipes.bulk]
        if self._pipes is None:
            pipes.close()
        else:
            pipes.reset()
        return waited

    def _watch(
        self, pid: int, waited: Waited, pipes: Pipes, sinks: dict[int, bytearray], before: int
    ) -> None:
        pidfd = os.pidfd_open(pid)
        poll = pipes.poll
        poll.register(pidfd, POLLIN)
        deadline = before + self._setting.wall_ms * 1_000_000
        is_alive = True
        now = before
        show_at, shown = before + SHOW_NS, [0, 0]
        while is_alive:
            if now >= show_at:
                show_at = now + SHOW_NS
                self._show(waited, shown)
            if now >= deadline and waited.deed is None:
                _end_child(pid, waited, Outcome.TIME)
            left_ms = (min(deadline, show_at) - now) / 1e6
            timeout = None if waited.deed is not None else max(0, left_ms) + 1
            for fd, _ in poll.poll(timeout):
                if fd == pidfd:
                    is_alive = False
                else:
                    self._take(fd, sinks, waited, fd != pipes.bulk, pid)
            now = time.perf_counter_ns()
        waited.wall_ns = now - before
        poll.unregister(pidfd)
        os.close(pidfd)

    def _take(
        self, fd: int, sinks: dict[int, bytearray], waited: Waited, is_output: bool, pid: int
    ) -> bool:
        """Read once; False when there is nothing. ``pid`` is 0 once the child is gone."""
        try:
            part = os.read(fd, CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not is_output:
            sinks[fd] += part
            if len(sinks[fd]) > REPLY_BYTES_MAX and pid:
                _end_child(pid, waited, Outcome.ENCODING)
            return True
        room = self._setting.output_bytes - waited.output_bytes
        waited.output_bytes += len(part)
        waited.written[sinks[fd] is waited.output[1]] += len(part)
        if room > 0:
            sinks[fd] += part[:room]
        if len(part) > room:
            if pid:
                _end_child(pid, waited, Outcome.OUTPUT)
            elif waited.deed is None:
                waited.deed = Outcome.OUTPUT
        return True


def _cpu_seconds(setting: protocol.Setting) -> tuple[int, int] | None:
    """RLIMIT_CPU of a child. Soft below hard: the end is XCPU, which says what it was for.

    None where it could never be: the wall clock ends first whatever a process uses of all cores.
    """
    seconds = -(-setting.cpu_ms // 1000)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if not seconds or (hard != resource.RLIM_INFINITY and seconds >= hard):
        return None
    if seconds * 1000 > (setting.wall_ms + 1000) * (os.cpu_count() or 1 << 20):
        return None
    return seconds, seconds + 1


def _end_child(pid: int, waited: Waited, deed: Outcome) -> None:
    if waited.deed is None:
        waited.deed = deed
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # if it died before its setpgid, or left its group
