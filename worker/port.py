"""The agent's end of one slot process: its socket, its page, its output, its meters."""

import contextlib
import itertools
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from gristmill.sandbox.cgroup import Reading
from gristmill.worker.core import effects as do
from gristmill.worker.process import SlotProcess
from gristmill.worker.runners import protocol

READ_BYTES = 1 << 20
OUTPUT_READ_BYTES = 1 << 16
#: Reads of one slot in one turn of the loop, so that no slot keeps the others waiting.
READS_PER_TURN = 4
#: Of all slots: what is read is taken out at once. One for each would be filled with zeros first.
_READ = bytearray(READ_BYTES)
#: A frame of less is joined, which costs less than to send its parts.
JOINED_BYTES_MAX = 64 << 10
PARTS_A_CALL = 64  #: of frames that wait, in one call of the kernel


def pack_parts(header: msgspec.Struct, *body: bytes) -> Sequence[bytes]:
    """A frame in one part or a few; a large body is not copied for it."""
    if sum(map(len, body)) < JOINED_BYTES_MAX:
        return (protocol.pack_frame(header, *body),)
    return protocol.pack_head(header, *body), *body


def _has_no_descriptor(unsent: tuple[memoryview, int]) -> bool:
    return unsent[1] < 0


class Taken(NamedTuple):
    """Output of some subtasks: what was kept, and how much there was of it."""

    stdout: bytes
    stderr: bytes
    stdout_bytes: int
    stderr_bytes: int

    @property
    def written(self) -> int:
        """Bytes of both."""
        return self.stdout_bytes + self.stderr_bytes

    @property
    def is_cut(self) -> bool:
        """Not everything was kept."""
        return self.written > len(self.stdout) + len(self.stderr)


class Port:
    """One process in one slot. Nothing here blocks.

    Attributes:
        cause: why we killed it, None while we did not.
        output: stdout and stderr that no result has taken yet, cut at ``output_bytes_max``.
        output_bytes: how much there was, with what was cut.
        accounted_us: cpu time that is in results already (or was spent before the job began).
    """

    def __init__(
        self,
        slot: int,
        jail: int,
        process: SlotProcess,
        sock: socket.socket,
        page: protocol.Page,
        outputs: tuple[int, int],
        output_bytes_max: int,
        frame_bytes_max: int,
    ) -> None:
        self.slot, self.jail = slot, jail
        self.process = process
        self.page = page
        self.cause: do.KillCause | None = None
        self.is_ready = False
        self.output = (bytearray(), bytearray())
        self.output_bytes = 0
        self.accounted_us = 0
        self.is_at_end = False
        self.peak = Reading()
        self._socket = sock
        self._outputs = dict(zip(outputs, (0, 1), strict=True))
        self._read_bytes = [0, 0]
        self._taken_bytes = [0, 0]
        self._kept_from = [0, 0]  # where in its stream ``output`` begins: later, after a cut
        self._output_bytes_max = output_bytes_max
        self._frames = protocol.Frames(frame_bytes_max)
        self._unsent: deque[tuple[memoryview, int]] = deque()  # with a descriptor, or -1
        sock.setblocking(False)
        for fd in outputs:
            os.set_blocking(fd, False)

    def descriptors(self) -> list[int]:
        """What to watch: socket, output pipes, the process's end."""
        return [self._socket.fileno(), *self._outputs, self.process.fileno()]

    @property
    def socket_fd(self) -> int:
        """The slot's socket."""
        return self._socket.fileno()

    @property
    def is_sending(self) -> bool:
        """Whether to watch the socket for room."""
        return bool(self._unsent)

    def send(self, header: msgspec.Struct, *body: bytes) -> None:
        """Queue a frame and send what goes."""
        self.send_parts(pack_parts(header, *body))

    def send_parts(self, parts: Sequence[bytes]) -> None:
        """Queue a packed frame and send what goes."""
        self._unsent.extend((memoryview(part), -1) for part in parts)
        self.flush()

    def give(self, fd: int) -> None:
        """Send a descriptor, which is ours to close from now on."""
        self._unsent.append((memoryview(protocol.pack_frame(protocol.Given())), fd))
        self.flush()

    def flush(self) -> None:
        """Send what goes."""
        while self._unsent:
            view, fd = self._unsent[0]
            try:
                if fd < 0:
                    parts = itertools.takewhile(_has_no_descriptor, self._unsent)
                    views = [view for view, _ in itertools.islice(parts, PARTS_A_CALL)]
                    count = self._socket.sendmsg(views)
                else:
                    count = socket.send_fds(self._socket, [view], [fd])
            except BlockingIOError:
                return
            except OSError:  # it is gone; its end tells the rest
                self._drop_unsent()
                return
            if fd >= 0:  # it went with the first byte
                os.close(fd)
            while self._unsent and count >= len(view := self._unsent[0][0]):
                count -= len(view)
                self._unsent.popleft()
            if count:
                self._unsent[0] = view[count:], -1

    def _drop_unsent(self) -> None:
        for _, fd in self._unsent:
            if fd >= 0:
                os.close(fd)
        self._unsent.clear()

    def receive(self, is_last: bool = False) -> list[tuple[bytes, bytes]]:
        """Frames that are there; ``is_last`` reads until nothing is left.

        Raises:
            ValueError: the slot does not speak our protocol.
        """
        frames: list[tuple[bytes, bytes]] = []
        reads = 0
        while not self.is_at_end and (is_last or reads < READS_PER_TURN):
            reads += 1
            try:
                count = self._socket.recv_into(_READ)
            except BlockingIOError:
                break
            except OSError:
                count = 0
            if not count:
                self.is_at_end = True
                break
            self._frames.push(memoryview(_READ)[:count])
            frames.extend(self._frames)
            if count < READ_BYTES and not is_last:
                break
        return frames

    def read_output(self, fd: int | None = None) -> list[int]:
        """Take what is in the output pipes (or in one); descriptors that are at their end."""
        ended = []
        self.page.begin_reading()
        for each in [fd] if fd is not None else list(self._outputs):
            at = self._outputs.get(each)
            if at is not None and self._read_pipe(each, at):
                ended.append(each)
        self.page.end_reading(*self._read_bytes)
        return ended

    def _read_pipe(self, fd: int, at: int) -> bool:
        """Whether it is at its end."""
        for _ in range(16):  # bounded: a flood must not hold the loop
            try:
                part = os.read(fd, OUTPUT_READ_BYTES)
            except BlockingIOError:
                break
            if not part:
                return True
            position = self._read_bytes[at]
            room = self._output_bytes_max - self.output_bytes
            self.output_bytes += len(part)
            self._read_bytes[at] += len(part)
            sink = self.output[at]
            if not sink:
                self._kept_from[at] = position
            if room > 0 and self._kept_from[at] + len(sink) == position:  # nothing before was cut
                sink.extend(part[:room])
            if room <= len(part):
                break  # past the limit: the next look ends the jail
        return False

    def drop_output(self, fd: int) -> None:
        """A pipe is at its end."""
        if self._outputs.pop(fd, None) is not None:
            os.close(fd)

    @property
    def taken_bytes(self) -> tuple[int, int]:
        """How much of both streams is in results."""
        return self._taken_bytes[0], self._taken_bytes[1]

    def take_output(self, written: tuple[int, int] | None = None) -> Taken:
        """Output since the last result.

        ``written``: take no more than what came before these positions of the two streams: the
        slot may have begun to write for its next result.
        """
        self.read_output()
        texts, counts = [], []
        for at, sink in enumerate(self.output):
            before, upto = self._taken_bytes[at], self._read_bytes[at]
            if written is not None:
                upto = max(before, min(upto, written[at]))
            size = min(max(0, upto - self._kept_from[at]), len(sink))
            texts.append(bytes(sink[:size]))
            del sink[:size]
            self._kept_from[at] += size
            self._taken_bytes[at] = upto
            counts.append(upto - before)
        self.output_bytes -= sum(counts)
        return Taken(texts[0], texts[1], counts[0], counts[1])

    def take_cpu_us(self) -> int:
        """Cpu time since it was last taken."""
        now_us = self.process.cpu_us()
        fresh, self.accounted_us = now_us - self.accounted_us, now_us
        return max(0, fresh)

    def kill(self, cause: do.KillCause) -> None:
        """End the process."""
        self.cause = cause
        self.process.kill()

    def close(self) -> None:
        """Free everything."""
        self._socket.close()
        self._drop_unsent()
        for fd in list(self._outputs):
            self.drop_output(fd)
        self.process.close()
        with contextlib.suppress(BufferError):
            self.page.close()


class Leaving:
    """Processes that nobody needs: told to end, and freed once they have."""

    def __init__(self) -> None:
        self._ports: list[Port] = []

    def __len__(self) -> int:
        return len(self._ports)

    def end(self, port: Port) -> None:
        """Does not wait."""
        port.kill("retire")
        self._ports.append(port)

    def sweep(self) -> None:
        """Free those that have ended; tell the others again."""
        for port in list(self._ports):
            if port.process.is_over():
                self._ports.remove(port)
                port.close()
            else:
                port.process.kill()

    def close(self) -> None:
        """Free all of them."""
        for port in self._ports:
            port.close()
        self._ports.clear()
