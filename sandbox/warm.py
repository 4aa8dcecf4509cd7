"""Warm jails: made by a *mother*, a process that is in a jail and has its interpreter up.

A cold jail is nsjail and the start of an interpreter, most of it imports. A mother is started once
as a jail of its own (``JailSpec.is_mother``) and clones a child for each warm jail; the child seals
itself as nsjail would have done, and enters a cgroup that is made here, outside, before. Walls and
limits are those of a cold jail; worker/runners/mother.py and seal.py are what runs inside.

A mother must never be given anything of a tenant: her children have a copy of all that she has.
She serves one job and dies with it. Where a host lets no jail be made inside a jail, she says so
(``Mother.refusal``), and jails are cold.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Sequence

from gristmill.sandbox.cgroup import Group
from gristmill.sandbox.jail import RECORD_BYTES_MAX, Jail
from gristmill.sandbox.limits import Limits
from gristmill.sandbox.procfs import is_stopped
from gristmill.sandbox.verdict import LogFacts, parse_log

READY = b"ready"
LOG_LINES_MAX = 64 << 10


class WarmJail(Jail):
    """A jail that a mother made. As ``Jail``, but its end is told by her, not by the spawner.

    ``pid`` and ``pidfd`` are of process 1 of the jail, 0 and -1 until she has told them.
    """

    def __init__(
        self,
        end: socket.socket,
        mother: Jail,
        limits: Limits,
        group: Group,
        leave_group: Callable[[Group], None],
        has_lapsed: Callable[[], bool],
    ) -> None:
        self._mother = mother
        self._is_past = has_lapsed
        self._end = end
        self._lines = b""
        self._is_condemned = False
        super().__init__(0, -1, end.fileno(), -1, limits, group, leave_group)

    def is_stopped(self) -> bool:
        """Whether process 1 of the jail or its mother stands still."""
        if self.ending is not None:
            return False
        self._listen()
        return self._mother.is_stopped() or (self.pid > 0 and is_stopped(self.pid))

    def kill(self) -> None:
        """As ``Jail.kill``. A mother that stands still would not tell the end: she ends as well."""
        if self.ending is not None:
            return
        self._is_condemned = True  # told of its process later, it is killed then
        if self.pidfd >= 0:
            self._kill_first()
        self._listen()
        if self._mother.is_stopped():
            self._mother.kill()

    def _kill_first(self) -> None:
        """Process 1: the kernel ends every other process of its namespace with it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """As ``Jail.close``."""
        super().close()
        self._end.detach()  # closed by number

    def _is_record_complete(self) -> bool:
        return self._listen()

    def _listen(self) -> bool:
        """Take what was told; whether it is all."""
        while not self._record:
            try:
                data, fds, _, _ = socket.recv_fds(
                    self._end, RECORD_BYTES_MAX, 1, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return False
            except OSError:
                return True  # she is gone
            if not data:
                return True
            if fds:
                self.pidfd, self.pid = fds[0], _pid_of(fds[0])
                data = data.removeprefix(b"p")
                if self._is_condemned:
                    self._kill_first()
            self._lines = (self._lines + data)[-LOG_LINES_MAX:]
            if self._lines.endswith(b"}\n"):
                at = self._lines.rindex(b"{")
                self._record, self._lines = self._lines[at:], self._lines[:at]
        return True

    def _facts(self, status: int | None) -> LogFacts:
        log = parse_log(self._lines.decode(errors="replace"))
        if status is None or log.errors:
            return log
        code = os.waitstatus_to_exitcode(status)
        return LogFacts(True, code if code >= 0 else None, -code if code < 0 else None)

    def _has_lapsed(self) -> bool:
        return self._is_past()


class Mother:
    """One mother, as the owner of the host holds her. See ``Host.start_mother``.

    Attributes:
        jail: her own.
        refusal: why she can make no jails, in her words; empty while she said nothing of it.
        is_gone: she closed her socket.

    Before she says that she is ready she has made a jail for trial, in the cgroup ``trial``.
    """

    def __init__(
        self,
        jail: Jail,
        control: socket.socket,
        trial: Group,
        leave_group: Callable[[Group], None],
    ) -> None:
        self.jail = jail
        self._trial: Group | None = trial
        self._leave_group = leave_group
        self.refusal = ""
        self.is_gone = False
        self._control = control
        self._is_ready = False
        control.setblocking(False)

    @property
    def is_ready(self) -> bool:
        """Whether she has said that she can make jails."""
        self._listen()
        return self._is_ready

    def fileno(self) -> int:
        """Readable when she has something to say."""
        return self._control.fileno()

    def order(self, fds: Sequence[int]) -> None:
        """Ask for a jail (or, the first time, a trial); see worker/runners/mother.py.

        Raises:
            OSError: she is gone, or does not keep up.
        """
        socket.send_fds(self._control, [b"o"], list(fds))

    def close(self) -> None:
        """End her and all her jails, and wait. Idempotent."""
        self._control.close()
        self.jail.close()
        self._end_trial()

    def _listen(self) -> None:
        if self.is_gone or self._control.fileno() < 0:
            return
        try:
            said = self._control.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if said == READY:
            self._is_ready = True
        elif said:
            self.refusal = said.decode(errors="replace")
        else:
            self.is_gone = True
        self._end_trial()

    def _end_trial(self) -> None:
        trial, self._trial = self._trial, None
        if trial is not None:
            self._leave_group(trial)


def _pid_of(pidfd: int) -> int:
    """The number of a process that is held; 0 when it is gone."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        for line in file:
            if line.startswith("Pid:"):
                return max(0, int(line.split()[1]))
    return 0
