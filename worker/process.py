"""A slot's process as the agent holds it, in a jail or (tier ``trusted``) without one."""

import contextlib
import dataclasses
import os
import signal
import subprocess
from typing import Protocol

from gristmill.sandbox.cgroup import Reading, Usage
from gristmill.sandbox.jail import Jail
from gristmill.sandbox.limits import Limits
from gristmill.sandbox.procfs import Sampler, is_stopped
from gristmill.sandbox.verdict import Deed, LogFacts, Verdict, judge

MeteringWord = str  #: ``cgroup``, ``proc`` or ``wait4``


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What of the subtask that ran the verdict is about; the jail's own clock ran for longer."""

    deed: Deed
    limits: Limits
    wall_ms: float
    cpu_us: int
    output_bytes: int = 0


class SlotProcess(Protocol):
    """What the agent needs of a process tree."""

    is_jailed: bool

    def fileno(self) -> int:
        """Readable when it has ended."""

    def is_over(self) -> bool:
        """Whether every process of it is gone."""

    def is_stopped(self) -> bool:
        """Whether it stands still by a signal (state T)."""

    def is_lapsed(self) -> bool:
        """After the end: it was ended in our stead, when our right to run was over."""

    def kill(self) -> None:
        """End it for certain; returns at once."""

    def cpu_us(self) -> int:
        """So far."""

    def reading(self) -> Reading:
        """All meters."""

    def usage(self) -> Usage:
        """What it uses now, for people who watch."""

    def judge(self, facts: Facts) -> Verdict:
        """After the end."""

    def close(self) -> None:
        """Free everything; after the end it does not wait."""

    @property
    def metering(self) -> MeteringWord:
        """Where its readings come from."""


class JailedProcess:
    """One nsjail and everything below it."""

    is_jailed = True

    def __init__(self, jail: Jail) -> None:
        self._jail = jail
        self.metering = "cgroup" if jail.source.startswith("cgroup") else "proc"

    def fileno(self) -> int:
        """Readable when it has ended."""
        return self._jail.fileno()

    def is_over(self) -> bool:
        """Whether every process of it is gone."""
        return self._jail.poll() is not None

    def is_stopped(self) -> bool:
        """Whether nsjail or process 1 of the jail stands still by a signal."""
        return self._jail.is_stopped()

    def is_lapsed(self) -> bool:
        """After the end: the spawner ended it, since this agent stood still."""
        ending = self._jail.ending
        return ending is not None and ending.is_lapsed

    def kill(self) -> None:
        """End it for certain; returns at once."""
        self._jail.kill()

    def cpu_us(self) -> int:
        """So far."""
        return self._jail.cpu_us()

    def reading(self) -> Reading:
        """All meters."""
        return self._jail.reading()

    def usage(self) -> Usage:
        """What it uses now."""
        return self._jail.usage()

    def judge(self, facts: Facts) -> Verdict:
        """After the end."""
        ending = self._jail.ending
        assert ending is not None, "judge before the end of the jail"
        return _judge(facts, ending.wait_status, ending.log, ending.reading)

    def close(self) -> None:
        """Free everything; after the end it does not wait."""
        self._jail.close()


class OpenProcess:
    """A plain child in a session of its own: the operator's explicit choice."""

    is_jailed = False
    metering = "proc"

    def __init__(
        self,
        argv: list[str],
        env: dict[str, str],
        fds: tuple[int, ...],
        stdout: int,
        stderr: int,
        cwd: str,
    ) -> None:
        self._child = subprocess.Popen(
            argv,
            env=env,
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            start_new_session=True,
        )
        self._pidfd = os.pidfd_open(self._child.pid)
        self._sampler = Sampler(self._child.pid)

    def fileno(self) -> int:
        """Readable when it has ended."""
        return self._pidfd

    def is_over(self) -> bool:
        """Whether every process of it is gone."""
        if self._child.poll() is None:
            return False
        self._kill_group()
        return True

    def is_stopped(self) -> bool:
        """Whether it stands still by a signal."""
        return is_stopped(self._child.pid)

    def is_lapsed(self) -> bool:
        """Nobody ends it in our stead; see docs/rfc/0001, known weaknesses."""
        return False

    def kill(self) -> None:
        """End it for certain; returns at once."""
        self._sampler.sample()
        self._child.kill()  # first, or it would tell how the rest of its group died
        self._kill_group()

    def cpu_us(self) -> int:
        """So far."""
        return self._sampler.sample().cpu_us

    def reading(self) -> Reading:
        """All meters."""
        return self._sampler.sample()

    def usage(self) -> Usage:
        """What it uses now."""
        return self._sampler.usage()

    def judge(self, facts: Facts) -> Verdict:
        """After the end."""
        code = self._child.poll()
        assert code is not None, "judge before the end of the process"
        log = LogFacts(True, code if code >= 0 else None, -code if code < 0 else None)
        return _judge(facts, 0, log, self._sampler.reading())

    def close(self) -> None:
        """Free everything; after the end it does not wait."""
        if self._pidfd < 0:
            return
        self._kill_group()
        self._child.kill()
        self._child.wait()
        os.close(self._pidfd)
        self._pidfd = -1

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)


def _judge(facts: Facts, wait_status: int | None, log: LogFacts, reading: Reading) -> Verdict:
    mine = dataclasses.replace(reading, cpu_us=facts.cpu_us)
    return judge(
        facts.deed, wait_status, log, mine, facts.limits, facts.wall_ms, facts.output_bytes
    )
