"""One process of a grid on this machine: started, awaited, watched and ended by its own pid."""

import contextlib
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gristmill.cli.places import start_ticks
from gristmill.wire.errors import (
    EXIT_AUTH,
    EXIT_CANNOT_JAIL,
    EXIT_POLICY,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    RemoteError,
)

LOG_BYTES_MAX = 16 << 20  #: a longer log is set aside (one generation) at the next start
TAIL_LINES = 20
GROUP_GRACE_S = 5.0  #: for children of a process that ended, to end themselves
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_OWN_REASONS = (EXIT_USAGE, EXIT_UNREACHABLE, EXIT_AUTH, EXIT_POLICY, EXIT_CANNOT_JAIL)


class ProcessEndedError(RemoteError):
    """A process of the grid ended by itself. ``exit_code``: what the command should end with."""

    def __init__(self, name: str, returncode: int, when: str, tail: str, log: Path) -> None:
        code = "CANNOT_JAIL" if returncode == EXIT_CANNOT_JAIL else "INTERNAL"
        lines = "".join(f"\n    {line}" for line in tail.splitlines())
        message = f"{name} ended {when}: {told_end(returncode)}"
        hint = "run 'gristmill doctor'" if code == "CANNOT_JAIL" else f"its whole log is {log}"
        super().__init__(code, message + (f"; its last lines:{lines}" if lines else ""), hint)
        self.name = name
        self.returncode = returncode
        self.exit_code = returncode if returncode in _OWN_REASONS else self.spec.exit_code


def told_end(returncode: int) -> str:
    """``exit 3``, or ``killed by SIGKILL``."""
    if returncode >= 0:
        return f"exit {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"


class Process:
    """A child in a process group of its own, with its output in a log file.

    It is started with ``--ready-fd N --die-with-parent``. The kernel ends it when the *thread* that
    started it ends: start it from a thread that outlives it.

    Attributes:
        name: ``worker-0``.
        log: the file with its stdout and stderr.
        pid: of the child.
        ticks: when it started, in clock ticks since boot; with the pid, an identity for ever.
    """

    def __init__(
        self, name: str, argv: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
            log.replace(log.with_name(log.name + ".1"))
        ready, write = os.pipe2(os.O_CLOEXEC)
        self._ready_fd = ready
        self.is_ready = False
        try:
            with open(log, "ab", opener=_open_private) as output:
                self._log_start = output.tell()
                self._child = subprocess.Popen(
                    [*argv, "--ready-fd", str(write), "--die-with-parent"],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=dict(environment),
                    pass_fds=(write,),
                    process_group=0,
                )
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(write)
        self.pid = self._child.pid
        self.ticks = start_ticks(self.pid)
        self.pidfd = os.pidfd_open(self.pid)

    def ready_fd(self) -> int:
        """Readable when it is ready, or has ended; -1 once it said so."""
        return self._ready_fd

    def take_ready(self) -> bool:
        """Read the pipe: true when it is ready, false when more is to come.

        Raises:
            ProcessEndedError: the pipe closed without a word.
        """
        said = os.read(self._ready_fd, 64)
        self.is_ready = self.is_ready or b"READY" in said
        if said and not self.is_ready:
            return False
        os.close(self._ready_fd)
        self._ready_fd = -1
        if not self.is_ready:
            # A process that closed the pipe and lives on is as lost to us as one that ended.
            if not self.wait(1.0):
                self.kill()
                self.wait(None)
            raise self.ended("before it was ready")
        return True

    @property
    def returncode(self) -> int | None:
        """Its exit code, minus the signal that killed it, None while it runs. Reaps it."""
        return self._child.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone; no error when it has ended."""
        if self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        """SIGKILL to this process alone: its own children are its own duty, even so."""
        self.signal(signal.SIGKILL)

    def wait(self, timeout_s: float | None) -> bool:
        """Whether it ended within this time."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self._child.poll() is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            wait_readable([self.pidfd], left)
        return True

    def close(self) -> list[int]:
        """After its end: free what we hold of it, and end what is left in its process group.

        Returns the pids that were left there: none, when the process kept its house.
        """
        assert self._child.poll() is not None, self.name
        for fd in (self._ready_fd, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self._ready_fd = self.pidfd = -1
        return end_group(self.pid)

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines that it wrote since this start."""
        with open(self.log, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, end - 16_384))
            text = file.read().decode(errors="replace")
        return "\n".join(_COLOURS.sub("", text).splitlines()[-lines:])

    def alarms(self) -> list[str]:
        """Lines of its log since it started that need somebody."""
        with open(self.log, "rb") as file:
            file.seek(self._log_start)
            text = file.read(LOG_BYTES_MAX).decode(errors="replace")
        return [
            line.partition("ALARM")[2].lstrip(": ") for line in text.splitlines() if "ALARM" in line
        ]

    def ended(self, when: str) -> ProcessEndedError:
        """The error that says how it ended; only after its end."""
        code = self._child.poll()
        assert code is not None, self.name
        return ProcessEndedError(self.name, code, when, self.tail(), self.log)


def wait_readable(fds: Iterable[int], timeout_s: float | None) -> list[int]:
    """Those of the descriptors that can be read (or have ended), once one can; none in time: []."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    timeout_ms = None if timeout_s is None else max(0.0, timeout_s) * 1000
    return [fd for fd, _ in poll.poll(timeout_ms)]


def end_group(group: int, grace_s: float = GROUP_GRACE_S) -> list[int]:
    """The end of a group whose leader has ended: what does not follow it in time is killed.

    A worker's spawner outlives a killed worker on purpose: it removes cgroups, then ends.

    Only within our own session, in case the kernel has given the number to a stranger since.

    Returns:
        the pids that were killed.
    """
    deadline = time.monotonic() + grace_s
    killed = []
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    for pid in pids:
        if _group_and_session(pid) != (group, os.getsid(0)):
            continue
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            if not wait_readable([fd], deadline - time.monotonic()):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                killed.append(pid)
            os.close(fd)
    return killed


def _group_and_session(pid: int) -> tuple[int, int]:
    try:
        return os.getpgid(pid), os.getsid(pid)
    except ProcessLookupError:
        return -1, -1


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
