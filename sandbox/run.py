"""Run one command in a jail and wait: clock, output cap, cpu limit, verdict.

The blocking convenience for the probe, ``gristmill doctor``, tests and the strict tier's simplest
form. A worker's loop uses ``Host.start`` and does the same steps itself.
"""

import dataclasses
import os
import select
import time

from gristmill.sandbox.host import Host
from gristmill.sandbox.jail import Ending, Jail
from gristmill.sandbox.spec import JailSpec
from gristmill.sandbox.verdict import Deed, Verdict

TICK_S = 0.05  #: between two looks at the meters
CHUNK_BYTES = 64 << 10


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What came of a jail: its verdict, its output (cut at the limit), its ending."""

    verdict: Verdict
    stdout: bytes
    stderr: bytes
    ending: Ending


def run(host: Host, spec: JailSpec, stdin: bytes = b"") -> Result:
    """Start a jail, feed it, read it, end it when it passes a limit, and judge it.

    ``spec.stdin``, ``stdout`` and ``stderr`` are replaced by pipes.

    Raises:
        SandboxError: see ``Host.start``.
    """
    stdin_read, feed = os.pipe()
    stdout_read, stdout_write = os.pipe()
    stderr_read, stderr_write = os.pipe()
    ours = (feed, stdout_read, stderr_read)
    try:
        jail = host.start(
            dataclasses.replace(spec, stdin=stdin_read, stdout=stdout_write, stderr=stderr_write)
        )
    except BaseException:
        for fd in ours:
            os.close(fd)
        raise
    finally:
        for fd in (stdin_read, stdout_write, stderr_write):
            os.close(fd)
    talk = _Talk(jail, stdin, feed, (stdout_read, stderr_read))
    try:
        ending = talk.run()
        verdict = jail.judge(talk.deed, talk.seen_bytes)
    finally:
        jail.close()
        talk.close()
    return Result(verdict, bytes(talk.kept[0]), bytes(talk.kept[1]), ending)


class _Talk:
    """The conversation with one jail until its end."""

    def __init__(self, jail: Jail, stdin: bytes, feed: int, outputs: tuple[int, int]) -> None:
        self.jail = jail
        self.deed = Deed.NOTHING
        self.seen_bytes = 0
        self.kept = (bytearray(), bytearray())
        self._stdin = memoryview(stdin)
        self._feed = feed
        self._outputs = dict(zip(outputs, self.kept, strict=True))
        self._poll = select.poll()
        for fd in (jail.fileno(), *outputs):
            self._poll.register(fd, select.POLLIN)
        os.set_blocking(self._feed, False)
        self._poll.register(self._feed, select.POLLOUT)

    def run(self) -> Ending:
        limits = self.jail.limits
        deadline = self.jail.started_at + limits.wall_ms / 1000
        while (ending := self.jail.poll()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                self._end(Deed.TIMED_OUT)
            elif self.jail.cpu_us() > limits.cpu_ms * 1000:
                self._end(Deed.CPU_SPENT)
            elif self.jail.is_over_memory():
                self._end(Deed.MEMORY_SPENT)
            wait = TICK_S if left <= 0 else min(TICK_S, left)
            for fd, _ in self._poll.poll(wait * 1000 + 1):
                self._on_ready(fd)
        for fd in list(self._outputs):
            while self._read(fd):  # every writer is gone: what is left is in the pipe
                pass
        return ending

    def close(self) -> None:
        self._stop_feeding()
        for fd in list(self._outputs):
            self._forget(fd)

    def _on_ready(self, fd: int) -> None:
        if fd == self._feed:
            self._write()
        elif fd in self._outputs:
            self._read(fd)

    def _write(self) -> None:
        try:
            count = os.write(self._feed, self._stdin[:CHUNK_BYTES]) if self._stdin else 0
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._stdin = memoryview(b"")
            count = 0
        self._stdin = self._stdin[count:]
        if not self._stdin:
            self._stop_feeding()

    def _stop_feeding(self) -> None:
        if self._feed >= 0:
            self._poll.unregister(self._feed)
            os.close(self._feed)
            self._feed = -1

    def _read(self, fd: int) -> bool:
        part = os.read(fd, CHUNK_BYTES)
        if not part:
            self._forget(fd)
            return False
        room = self.jail.limits.output_bytes_max - self.seen_bytes
        self.seen_bytes += len(part)
        if room > 0:
            self._outputs[fd] += part[:room]
        if len(part) > room:
            self._end(Deed.OUTPUT_CUT)
        return True

    def _forget(self, fd: int) -> None:
        self._poll.unregister(fd)
        del self._outputs[fd]
        os.close(fd)

    def _end(self, deed: Deed) -> None:
        if self.deed is Deed.NOTHING:
            self.deed = deed
            self.jail.kill()
