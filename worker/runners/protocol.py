"""What agent and slot say to each other: frames on a socket, and one shared page of memory.

A frame is two u32 little-endian lengths, a MessagePack header and a body. Only the standard library
and msgspec, so that any Python can be a slot. The agent trusts nothing that comes from a slot.

The page lets the agent cut a running lease and see what runs without a message. Words are u64:

======  ========  =====================================================================
word    writer    meaning
======  ========  =====================================================================
0       agent     STOP: twice the changes of the stop list; odd while it is written
1       slot      LEASE: lease that runs
2       slot      STARTED: index that runs, plus one; 0 between subtasks; in a part: see below
3       agent     length of the stop list
4       agent     READS: odd while the agent reads output
5, 6    agent     bytes that it has read of stdout, of stderr
7..     agent     the stop list: leases of which no further subtask may start
======  ========  =====================================================================

A slot reads STOP before each subtask that it forks for, and the list only when STOP changed. Words
4 to 6 let a slot know how much it has written, whoever wrote it and however (a C library, a child):
what was read, and what still is in the pipe. So output lands in the result of the subtasks that
wrote it.

Subtasks that run in place come in *parts* of up to ``PART_MAX``. STARTED then has the first one's
index, plus one, and above ``PART_SHIFT`` how many they are. The second page and those after it:

========  ============  ===================================================================
words     writer        meaning
========  ============  ===================================================================
stamps    slot          u64: the clock as the part begins, then as each of its subtasks ends
permits   slot, agent   u16: number of each subtask in the part, from 1; 0: it may not start
========  ============  ===================================================================

So one store a subtask says what runs, and for how long each did; and a slot walks over permits
where it would count. Whoever wants it to stop clears all permits: the agent, after it wrote the
stop list, and the slot's second thread. A slot renews them before it looks at the list.
"""

import fcntl
import mmap
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

HEAD = struct.Struct("<II")
HEADER_BYTES_MAX = 1 << 20
BODY_BYTES_MAX = 1 << 30

PART_MAX = 4_000  #: subtasks in a part, as in most parcels
PART_SHIFT = 40
_STAMPS_AT = 4096
_PERMITS_AT = _STAMPS_AT + 32_768
PAGE_BYTES = _PERMITS_AT + 8192
_ZEROS = bytes(8 * (PART_MAX + 1))
_NUMBERS = struct.pack(f"{PART_MAX}H", *range(1, PART_MAX + 1))
STOP, LEASE, STARTED, LISTED, READS, TAKEN, LIST = 0, 1, 2, 3, 4, 5, 7
STOPS_MAX = _STAMPS_AT // 8 - LIST
#: How long a slot looks for a moment in which the agent does not read its output: an agent that
#: was set aside by a busy host, in the midst of reading, comes back to it.
LOOK_S = 5.0
LOOK_PAUSE_S = 0.0001

Run = tuple[int, int]


class FilePlace(msgspec.Struct, array_like=True, frozen=True):
    """An input file: ``name`` in the jail's directory of inputs, ``path`` in the work folder."""

    name: str
    path: str


class Setting(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """First frame to a slot: its job. The body is the function's bytes (empty for a command).

    ``mode``: ``loop`` runs subtasks in place, ``fork`` each in a child of its own. Limits are those
    of one subtask; ``wall_ms`` and ``output_bytes`` are kept here only in mode ``fork``.
    ``is_single``: each result is of one subtask.
    """

    job: int
    kind: str
    mode: str
    is_star: bool
    is_safe: bool
    wall_ms: int
    cpu_ms: int
    output_bytes: int
    scratch_bytes: int
    work_dir: str
    inputs_dir: str
    argv: list[str] = []
    env: dict[str, str] = {}
    is_stdin_value: bool = False
    files_in: list[FilePlace] = []
    files_out: list[str] = []
    ok_exit_codes: tuple[int, ...] = (0,)
    is_file_value: bool = False
    is_single: bool = False


def with_command(setting: Setting, **command: Any) -> Setting:
    """The same for a command job."""
    return msgspec.structs.replace(setting, **command)


class Feed(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """A lease, or a part of one; the body is its parcels, one after another.

    ``parcels``: (first, count, codec, bytes) of each.
    """

    lease_id: int
    attempt: int
    runs: list[Run]
    parcels: list[tuple[int, int, str, int]]


class Given(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """The answer to ``Want``: a descriptor comes along, unless ``failure`` says why not."""

    failure: str = ""


ToSlot = Setting | Feed | Given
decode_to_slot = msgspec.msgpack.Decoder(ToSlot).decode


class Ready(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """The slot is up; ``python`` is its version, ``3.11.7``."""

    python: str


class Note(msgspec.Struct, array_like=True, frozen=True):
    """An OSError that a subtask ended with: the agent decides which wall of the jail it was.

    ``offset``: of the subtask in its result.
    """

    offset: int
    number: int
    kind: str


class Done(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """A result. The body is values, meter, failures and logs of these ``sizes``.

    ``notes``: see ``Note``. The rest is of a result of one subtask. ``is_killed``: it died by
    SIGKILL, which the agent checks for the kernel's out-of-memory killer. ``files``: output files
    that went before; ``refused``: (path, reason) of those that were not taken. ``written``: bytes
    of stdout and stderr since the process began up to this result; None where that is not known.
    """

    lease_id: int
    first: int
    count: int
    codec: str
    wall_us: int
    cpu_us: int
    peak_kib: int
    sizes: tuple[int, int, int, int]
    notes: list[Note] = []
    is_killed: bool = False
    files: int = 0
    refused: list[tuple[str, str]] = []
    written: tuple[int, int] | None = None


class FilePart(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """A piece of an output file of a subtask: the body is its bytes; empty begins a file."""

    lease_id: int
    index: int
    path: str


class Ended(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """The slot is through with the oldest feed: finished, or stopped by the page."""

    lease_id: int


class Output(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """What a subtask that still runs has written to ``stream`` from ``offset`` on: the body."""

    lease_id: int
    index: int
    stream: int
    offset: int


class Want(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """A blob that an input of this lease (0: the function) refers to; the slot waits for it."""

    lease_id: int
    digest: str
    size_bytes: int


FromSlot = Ready | Done | FilePart | Ended | Output | Want
decode_from_slot = msgspec.msgpack.Decoder(FromSlot).decode

_encode = msgspec.msgpack.Encoder().encode


def pack_frame(header: msgspec.Struct, *body: bytes | bytearray | memoryview) -> bytes:
    """A frame, whole."""
    head = _encode(header)
    return b"".join((HEAD.pack(len(head), sum(map(len, body))), head, *body))


def pack_head(header: msgspec.Struct, *body: bytes | bytearray | memoryview) -> bytes:
    """What of a frame comes before its body."""
    head = _encode(header)
    return HEAD.pack(len(head), sum(map(len, body))) + head


class Frames:
    """Frames out of a stream that arrives in pieces.

    Raises (from iteration):
        ValueError: a length beyond its limit: the peer does not speak this protocol.
    """

    def __init__(self, body_bytes_max: int = BODY_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self._piece: bytes | bytearray | memoryview = b""
        self._missing = HEAD.size
        self._body_bytes_max = body_bytes_max

    def push(self, piece: bytes | bytearray | memoryview) -> None:
        """Take what was read; frames that are whole in it are copied once, when they are asked for.

        ``piece`` stays as it is until the frames were asked for, and nothing is pushed meanwhile.
        """
        self._spill()
        if self._buffer:
            self._buffer += piece
        else:
            self._piece = piece

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """(header, body) of every frame that is complete."""
        source, at = self._piece or self._buffer, 0
        try:
            while len(source) - at >= max(HEAD.size, self._missing):
                head_bytes, body_bytes = HEAD.unpack_from(source, at)
                if head_bytes > HEADER_BYTES_MAX or body_bytes > self._body_bytes_max:
                    raise ValueError(f"a frame of {head_bytes} and {body_bytes} bytes")
                start = at + HEAD.size
                end = start + head_bytes + body_bytes
                if len(source) < end:
                    self._missing = end - at
                    return
                middle = start + head_bytes
                with memoryview(source) as view:
                    header, body = bytes(view[start:middle]), bytes(view[middle:end])
                at, self._missing = end, HEAD.size
                yield header, body
        finally:
            self._spill(at)

    def _spill(self, taken: int = 0) -> None:
        """Keep what is left of what was read, without the bytes that were taken."""
        piece, self._piece = self._piece, b""
        if piece:
            self._buffer += memoryview(piece)[taken:]
        elif taken:
            del self._buffer[:taken]


class Page:
    """The shared page; see the module."""

    def __init__(self, fd: int) -> None:
        self.mapping = mmap.mmap(fd, PAGE_BYTES)
        whole = memoryview(self.mapping)
        self.words = whole[:_STAMPS_AT].cast("Q")
        self._stamps = whole[_STAMPS_AT : _STAMPS_AT + 8 * (PART_MAX + 1)]
        self._permits = whole[_PERMITS_AT : _PERMITS_AT + 2 * PART_MAX]
        self.stamps = self._stamps.cast("l")  # stored a quarter faster than as "Q" (CPython 3.11)
        self.permits = self._permits.cast("H")

    def hide_from_children(self) -> None:
        """Slot: a forked child has no such memory; to touch it there is a crash."""
        self.mapping.madvise(mmap.MADV_DONTFORK)

    def started(self) -> tuple[int, int]:
        """(lease, index) that runs now; index -1 between subtasks."""
        words = self.words
        while True:
            lease, started = words[LEASE], words[STARTED]
            count = min(started >> PART_SHIFT, PART_MAX)
            ended = self.ended(count)
            if words[LEASE] == lease and words[STARTED] == started:
                first = (started & (1 << PART_SHIFT) - 1) - 1
                return lease, -1 if count and ended == count else first + ended

    def ended(self, count: int) -> int:
        """How many subtasks of a part of this size have ended."""
        told = bytes(self._stamps[8 : 8 * (count + 1)]).rstrip(b"\0")
        return -(-len(told) // 8)

    def readings(self, begin: int, end: int) -> bytes:
        """The clock as subtask ``begin`` of a part began, and as those up to ``end`` ended."""
        return bytes(self._stamps[8 * begin : 8 * (end + 1)])

    def begin_part(self, first: int, count: int) -> None:
        """Slot: these subtasks are next; look at the stop list before the first one starts."""
        self.words[STARTED] = 0
        self._stamps[: 8 * (count + 1)] = _ZEROS[: 8 * (count + 1)]
        self._permits[: 2 * count] = _NUMBERS[: 2 * count]
        self.words[STARTED] = count << PART_SHIFT | first + 1

    def end_part(self) -> None:
        """Slot: nothing runs."""
        self.words[STARTED] = 0

    def clear_permits(self) -> None:
        """Nothing more of the part starts."""
        self._permits[:] = _ZEROS[: len(self._permits)]

    def write_stops(self, leases: list[int]) -> None:
        """Agent: of these leases no further subtask may start."""
        words = self.words
        listed = leases[-STOPS_MAX:]
        words[STOP] = words[STOP] + 1  # odd: a slot that looks now waits
        for at, lease in enumerate(listed):
            words[LIST + at] = lease
        words[LISTED] = len(listed)
        words[STOP] = words[STOP] + 1
        self.clear_permits()

    def is_stopped(self, lease: int) -> bool:
        """Slot: whether this lease may start nothing more."""
        words = self.words
        while True:
            stops = words[STOP]
            if not stops & 1:
                listed = range(min(words[LISTED], STOPS_MAX))
                found = any(words[LIST + at] == lease for at in listed)
                if words[STOP] == stops:
                    return found
            time.sleep(LOOK_PAUSE_S)

    def begin_reading(self) -> None:
        """Agent: bytes may leave an output pipe from now on."""
        self.words[READS] = (self.words[READS] | 1) & 0xFFFFFFFF

    def end_reading(self, stdout_bytes: int, stderr_bytes: int) -> None:
        """Agent: this much was read of both, ever."""
        self.words[TAKEN], self.words[TAKEN + 1] = stdout_bytes, stderr_bytes
        self.words[READS] = (self.words[READS] + 1) & 0xFFFFFFFE

    def written(self, outputs: Sequence[int]) -> tuple[int, int] | None:
        """Slot: bytes written to stdout and stderr so far; None when it cannot be known.

        ``outputs``: descriptors of the two pipes.
        """
        words, give_up_at = self.words, time.monotonic() + LOOK_S
        while True:
            reads = words[READS]
            if not reads & 1:
                try:
                    stdout, stderr = (
                        words[TAKEN + at] + _bytes_in(fd) for at, fd in enumerate(outputs)
                    )
                except OSError:  # no pipe any more
                    return None
                if words[READS] == reads:
                    return stdout, stderr
            if time.monotonic() > give_up_at:
                return None
            time.sleep(LOOK_PAUSE_S)

    def close(self) -> None:
        """Unmap."""
        for view in (self.words, self.stamps, self.permits, self._stamps, self._permits):
            view.release()
        self.mapping.close()


def _bytes_in(pipe: int) -> int:
    import termios  # not for a slot that forks: each library is mapped again in every child

    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
