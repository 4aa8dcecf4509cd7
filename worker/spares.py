"""Jails that are started before they are needed, on a host whose jails are cold (mothers.py).

A cold jail takes tens of milliseconds to be up, most of them the interpreter's imports; a spare of
the right limits and Python is there at once. Spares follow what was asked for last; before anything
was, they have the limits of a job that asks for nothing. A spare becomes the jail of one job, and
dies with it. A slot made for a function can run a command as well, so jobs of either kind share
spares; only where each subtask takes one (tier ``strict``) are they made for commands, which is
cheaper.
"""

import contextlib
import pathlib
from collections import deque

import msgspec

from gristmill.sandbox.errors import SandboxError
from gristmill.sandbox.host import Host
from gristmill.sandbox.interpreter import Interpreter
from gristmill.wire.spec import JobSpec, Limits
from gristmill.worker.port import Leaving, Port
from gristmill.worker.starter import mode_of, start_slot

#: what jails have to have in common for one to do for the other
Key = tuple[Limits, Interpreter, str]


#: and its mode: that of ``fork`` allows one process less (``starter.OWN_PIDS``)
_Fit = tuple[Key, str]


class Spares:
    """The spares of a worker. Used from the main thread, which starts all jails."""

    def __init__(self, host: Host | None, count: int, open_dir: pathlib.Path) -> None:
        self._host = host
        self._count = count
        self._open_dir = open_dir
        self._wanted: tuple[_Fit, JobSpec] | None = None
        self._ready: deque[tuple[_Fit, Port]] = deque()
        self._leaving = Leaving()

    @property
    def is_short(self) -> bool:
        """Whether ``refill`` would start or free something."""
        if self._host is None or self._wanted is None:
            return False
        return bool(self._leaving) or len(self._fitting()) < self._count

    def take(
        self,
        spec: JobSpec,
        interpreter: Interpreter | None,
        inputs: pathlib.Path | None,
    ) -> Port | None:
        """A spare that fits the job, no longer ours; and know what to keep from now on."""
        if self._host is None or interpreter is None or inputs:
            return None
        self.want(spec, interpreter)
        key = key_of(spec, interpreter), mode_of(spec)
        for at, (has, port) in enumerate(self._ready):
            if has == key:
                del self._ready[at]
                if not port.process.is_over():
                    return port
                self._leaving.end(port)
                break
        return None

    def want(self, spec: JobSpec, interpreter: Interpreter) -> None:
        """What to keep from now on."""
        self._wanted = (key_of(spec, interpreter), mode_of(spec)), model_of(spec)

    def _fitting(self) -> list[Port]:
        assert self._wanted is not None
        return [port for has, port in self._ready if has == self._wanted[0]]

    def refill(self) -> None:
        """Start what is missing, one at a time; end what no longer fits."""
        if self._host is None or self._wanted is None:
            return
        key, spec = self._wanted
        for has, port in list(self._ready):
            if has != key or port.process.is_over():
                self._ready.remove((has, port))
                self._leaving.end(port)
        self._leaving.sweep()
        if len(self._ready) < self._count:
            # a host that cannot start a jail just now says so when one is needed
            with contextlib.suppress(SandboxError, OSError):
                port = start_slot(-1, 0, spec, key[0][1], None, self._host, self._open_dir)
                self._ready.append((key, port))

    def drop(self) -> None:
        """End them all, without waiting; ``refill`` frees what is left of them."""
        for _, port in self._ready:
            self._leaving.end(port)
        self._ready.clear()

    def close(self) -> None:
        """End them all."""
        self.drop()
        self._leaving.close()


def key_of(spec: JobSpec, interpreter: Interpreter) -> Key:
    """Time limits are the agent's to keep: jails that differ in them only are alike."""
    kind = spec.kind if spec.tier == "strict" else "function"
    return msgspec.structs.replace(spec.limits, wall_ms=1, cpu_ms=0), interpreter, kind


def model_of(spec: JobSpec) -> JobSpec:
    """A job of functions, if that will do, whose jails are as this job's; see the module."""
    if spec.tier == "strict" or spec.kind == "function":
        return spec
    return msgspec.structs.replace(spec, kind="function", tier="job")
