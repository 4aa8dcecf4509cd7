"""Process 1 of a job's jail: takes the job once, then its leases, one after another.

In mode ``loop`` subtasks run right here (loop.py), in mode ``fork`` each in a child (forked.py;
commands.py for commands). The agent ends the jail by killing it; the end of the socket ends it too.
"""

import _socket
import ctypes
import gc
import io
import mmap
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from gristmill.wire.errors import RemoteError
from gristmill.wire.failure import Failure
from gristmill.wire.outcome import Outcome
from gristmill.wire.shared import use_source
from gristmill.wire.values import decode_ref
from gristmill.worker.runners import protocol
from gristmill.worker.runners.encode import CannotTravelError, decode, decode_range
from gristmill.worker.runners.failures import describe
from gristmill.worker.runners.forked import Forker
from gristmill.worker.runners.loop import Looper, flush_output
from gristmill.worker.runners.outbox import Outbox, Range
from gristmill.worker.runners.shelf import NotSharedError, Shelf

PR_SET_DUMPABLE, PR_SET_PDEATHSIG = 4, 1
ENCODING, ERROR = int(Outcome.ENCODING), int(Outcome.ERROR)
READ_BYTES = 1 << 20
#: subtasks that end alike for one reason are told in results of this many
ALIKE_MAX = 256


def serve(slot_fd: int, page_fd: int) -> None:
    """Serve leases until the agent closes the socket."""
    libc = ctypes.CDLL(None)
    # Process 1 of a jail is deaf to signals from inside, but for those it has a handler for, and
    # Python has one for SIGINT: a child could end its slot with it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.getpid() != 1:  # no jail: die with the agent, whose end may already have come
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # Not dumpable: children of tier ``job`` cannot read /proc/1/mem or open /proc/1/fd/*.
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    # Lines leave as they are written: what stays in a buffer here dies with this process.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    sock = _socket.socket(fileno=slot_fd)
    os.set_inheritable(slot_fd, False)
    page = protocol.Page(page_fd)
    os.close(page_fd)
    Zygote(sock, page).run()


class Zygote:
    """The loop of a slot. One thread, one job."""

    def __init__(self, sock: _socket.socket, page: protocol.Page) -> None:
        self._socket = sock
        self._page = page
        self._frames = protocol.Frames()
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._outbox = Outbox(sock)
        self._function: Callable[..., Any] | None = None
        self._load_failure: Failure | None = None
        self._runner: Forker | Looper | None = None
        self._decoded = _Decoded()
        self._lease_id = 0
        self._is_used = False  #: it was fed
        self._is_thawed = False  #: not frozen yet: what the function brought
        self._unloaded = b""  #: a function that refers to what could not be had, last time
        self._shelf = Shelf(self._want)
        use_source(self._shelf.load)

    def run(self) -> None:
        """Until the socket's end."""
        self._outbox.send(protocol.Ready(".".join(map(str, sys.version_info[:3]))))
        for header, body in self._receive():
            order = protocol.decode_to_slot(header)
            if isinstance(order, protocol.Setting):
                self._open(order, body)
            elif isinstance(order, protocol.Feed):
                self._run_feed(order, body)

    def _receive(self) -> Iterator[tuple[bytes, bytes]]:
        buffer = mmap.mmap(-1, READ_BYTES)  # a bytearray would be filled with zeros first
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            count = self._socket.recv_into(buffer)
            if not count:
                return
            self._frames.push(memoryview(buffer)[:count])
            self._waiting.extend(self._frames)

    def _want(self, digest: str, size_bytes: int) -> int | str:
        """Ask the agent for a blob: its descriptor, or why there is none. Feeds may come before."""
        self._outbox.release()  # we wait here for the answer
        self._outbox.send(protocol.Want(self._lease_id, digest, size_bytes))
        fds: list[int] = []
        answer: protocol.Given | None = None
        while answer is None:
            data, ancillary, _, _ = self._socket.recvmsg(READ_BYTES, _socket.CMSG_SPACE(4))
            if not data:
                raise SystemExit(0)  # the agent closed the socket: nobody waits for us
            for level, kind, told in ancillary:
                if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                    fds.append(int.from_bytes(told[:4], sys.byteorder))
            self._frames.push(data)
            for header, body in self._frames:  # to its end: what lies there is not told again
                order = protocol.decode_to_slot(header)
                if isinstance(order, protocol.Given):
                    answer = order
                else:
                    self._waiting.append((header, body))
        return fds.pop() if fds else answer.failure or "the agent gave nothing"

    def _open(self, setting: protocol.Setting, body: bytes) -> None:
        self._outbox.is_safe = setting.is_safe
        self._outbox.is_single = setting.is_single
        os.makedirs(setting.work_dir, mode=0o700, exist_ok=True)
        if setting.kind == "function":
            self._load(body)
        if setting.mode == "fork":
            self._page.hide_from_children()
            self._runner = Forker(setting, self._outbox, self._page)
            self._is_thawed = True
        else:
            self._outbox.outputs = (os.dup(1), os.dup(2))
            self._runner = Looper(setting, self._outbox, self._page)
            os.chdir(setting.work_dir)

    def _load(self, body: bytes) -> None:
        self._load_failure, self._unloaded = None, b""
        try:
            self._function = pickle.loads(body)  # cloudpickle's, which it imports itself
            if not callable(self._function):
                raise TypeError(f"{self._function!r:.80} is not callable")
        except BaseException as error:
            if isinstance(error, ModuleNotFoundError):
                error.add_note(
                    f"in the worker's environment {sys.executable}; install the module there, or "
                    "name another with environment="
                )
            if isinstance(error, NotSharedError):
                self._unloaded = body  # it may be there for the next lease
            is_safe = self._outbox.is_safe
            self._load_failure = describe(error, is_pickled=not is_safe)
        flush_output()

    def _run_feed(self, feed: protocol.Feed, body: bytes) -> None:
        self._page.words[protocol.STARTED] = 0
        self._page.words[protocol.LEASE] = self._lease_id = feed.lease_id
        if self._unloaded:
            self._load(self._unloaded)
        if self._is_thawed and (self._is_used or sum(length for _, length in feed.runs) > 1):
            # Children share these pages for longer; in a jail of one subtask there is but one.
            self._is_thawed = False
            gc.collect()
            gc.freeze()
        self._is_used = True
        parcels = _Parcels(feed, body, self._decoded, self._shelf)
        for first, length in feed.runs:
            at, end = first, first + length
            while at < end and not self._page.is_stopped(feed.lease_id):
                ran = self._run_part(feed, parcels, at, end)
                at += ran
                if not ran:
                    break
            if at < end:
                break
        assert self._runner is not None
        self._outbox.hold()
        self._runner.flush()
        self._outbox.send(protocol.Ended(feed.lease_id))
        self._outbox.release()
        self._runner.tidy()

    def _run_part(self, feed: protocol.Feed, parcels: "_Parcels", first: int, end: int) -> int:
        """Run indices from ``first`` that lie in one parcel; how many ended."""
        assert self._runner is not None
        if self._load_failure is not None:
            return self._fail(feed, first, end, ERROR, self._load_failure)
        try:
            inputs = parcels.inputs(first, end)
        except CannotTravelError as error:
            failure = Failure(str(error), kind="EncodingError")
            return self._fail(feed, first, parcels.end_of(first, end), ENCODING, failure)
        return self._runner.run_inputs(self._function, inputs, feed, first)

    def _fail(
        self, feed: protocol.Feed, first: int, end: int, outcome: int, failure: Failure
    ) -> int:
        """The same end for all: no input was touched."""
        assert self._runner is not None
        self._runner.flush()
        count = min(end - first, ALIKE_MAX)
        short = Failure(failure.message, kind=failure.kind)
        troubles = [
            (first + offset, outcome, failure if offset == 0 else short, None)
            for offset in range(count)
        ]
        self._outbox.send_range(Range(feed.lease_id, first, [0] * count, [], list(troubles)))
        return count


class _Decoded:
    """The parcel that was decoded last: short leases of one parcel follow one another."""

    def __init__(self) -> None:
        self.first = -1
        self.values: list[Any] = []
        self.is_kept = False


class _Parcels:
    """The inputs of a lease, decoded one parcel at a time and once.

    A parcel of flat tuples stays decoded for the next lease: nobody can change those. Lists and
    what was unpickled are the user's to change, so each lease has its own.
    """

    def __init__(self, feed: protocol.Feed, body: bytes, decoded: _Decoded, shelf: Shelf) -> None:
        self._shelf = shelf
        self._parcels: list[tuple[int, int, str, memoryview]] = []
        at, view = 0, memoryview(body)
        for first, count, codec, size in feed.parcels:
            self._parcels.append((first, count, codec, view[at : at + size]))
            at += size
        self._decoded = decoded
        if not decoded.is_kept:
            decoded.first = -1

    def inputs(self, first: int, end: int) -> list[Any]:
        """Inputs from ``first``, up to the end of its parcel or ``end``.

        Raises:
            CannotTravelError: no parcel has it, or the parcel does not decode.
        """
        start, count, codec, frame = self._parcel_of(first)
        end = min(end, start + count)
        if codec in ("q", "d"):  # decode no more than is asked for
            return decode(codec, frame[8 * (first - start) : 8 * (end - start)], end - first)
        if codec == "range":
            return decode_range(frame, first - start, end - start)
        decoded = self._decoded
        if decoded.first != start:
            decoded.first = -1
            if codec.startswith("@"):
                codec, frame = self._mapped(codec, frame)
            decoded.values = decode(codec, frame, count)
            decoded.first = start
            decoded.is_kept = codec.startswith("t:")
        return decoded.values[first - start : end - start]

    def _mapped(self, codec: str, frame: memoryview) -> tuple[str, memoryview]:
        """What a reference stands for: a large frame is mapped, not read."""
        try:
            ref = decode_ref(frame)
            return codec[1:], self._shelf.view(ref.digest, ref.size_bytes)
        except (RemoteError, NotSharedError) as error:
            raise CannotTravelError(f"the input cannot be had: {error}") from None

    def end_of(self, first: int, end: int) -> int:
        """One past the last index of the parcel that has ``first``."""
        try:
            start, count, _, _ = self._parcel_of(first)
        except CannotTravelError:
            return first + 1
        return min(end, start + count)

    def _parcel_of(self, index: int) -> tuple[int, int, str, memoryview]:
        for parcel in self._parcels:
            if parcel[0] <= index < parcel[0] + parcel[1]:
                return parcel
        raise CannotTravelError(f"the lease came without an input for subtask {index}")
