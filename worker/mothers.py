"""Jails of tier ``strict`` out of a warm process: one mother for each job (sandbox/warm.py).

A mother is started when a job takes its first jail here; until she is ready, jails are cold. She is
asked for a few jails ahead, so that the next subtask finds one. She dies with her job. One more is
kept for jobs like the last one, as spares.py does with jails: she belongs to nobody yet.

Where the host lets no jail be made inside a jail, a mother says why, and all jails stay cold.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
import time
from collections import deque

from gristmill.sandbox.errors import SandboxError
from gristmill.sandbox.host import Host, prepare_host
from gristmill.sandbox.interpreter import Interpreter
from gristmill.sandbox.warm import Mother
from gristmill.wire.spec import JobSpec
from gristmill.worker.port import Leaving, Port
from gristmill.worker.spares import Key, key_of
from gristmill.worker.starter import ready_python, seccomp_program, start_mother, start_slot

AHEAD = 2  #: jails that a mother has made and nobody uses yet
SAID_BYTES_MAX = 4_096
#: Mothers of one kind that may end before they are ready: then there is something in the way.
TRIES_MAX, KEYS_MAX = 3, 64
TRIAL_S = 20.0  #: a loaded machine is slow, not unable


@dataclasses.dataclass(slots=True)
class _Brood:
    """A mother, what she made, and what for. ``job`` is None while she is a spare."""

    key: Key
    spec: JobSpec
    mother: Mother
    output: int
    job: int | None
    born: deque[Port] = dataclasses.field(default_factory=deque)
    given: list[Port] = dataclasses.field(default_factory=list)

    @property
    def is_idle(self) -> bool:
        self.given = [port for port in self.given if not port.process.is_over()]
        return not self.given


class Mothers:
    """The mothers of a worker. Used from the main thread, which starts all jails.

    Attributes:
        refusal: why this host has no warm jails; empty while none failed.
    """

    def __init__(self, host: Host | None, count: int, spares: int, open_dir: pathlib.Path) -> None:
        self._host = host
        self._count = max(1, count)
        self._spares = spares
        self._open_dir = open_dir
        self._broods: list[_Brood] = []  # the one that was used last is the last
        self._wanted: tuple[Key, JobSpec] | None = None
        self._leaving = Leaving()
        self._ending: list[_Brood] = []
        self._unable: dict[Key, int] = {}  # mothers that ended before they were ready
        self.refusal = _unfit(host)

    def __len__(self) -> int:
        return len(self._ending) + len(self._leaving)

    @property
    def is_able(self) -> bool:
        """Whether jails may come from mothers here."""
        return self._host is not None and not self.refusal

    def take(
        self,
        job: int,
        spec: JobSpec,
        interpreter: Interpreter | None,
        inputs: pathlib.Path | None,
    ) -> Port | None:
        """A warm jail for a subtask of the job; None: it has to be a cold one."""
        if interpreter is None or not self.is_able:
            return None
        key = key_of(spec, interpreter)
        if self._unable.get(key, 0) >= TRIES_MAX:
            return None
        if inputs is None:
            self._wanted = key, spec
        brood = self._brood_of(job, key, inputs) or self._start(job, key, spec, inputs)
        if brood is None or not self._is_well(brood):
            return None
        self._broods.remove(brood)
        self._broods.append(brood)
        while brood.born:
            port = brood.born.popleft()
            if not port.process.is_over():
                break
            self._leaving.end(port)
        else:
            made = self._bear(brood)
            if made is None:
                return None
            port = made
        brood.given.append(port)
        return port

    @property
    def is_short(self) -> bool:
        """Whether ``refill`` would start or free something."""
        return bool(self._leaving or self._ending) or self._is_spare_missing()

    def refill(self, job: int | None = None) -> None:
        """Have the next jail of a job made; without one: start a spare mother, free what ended."""
        for brood in self._broods:
            if job is not None and brood.job == job:
                while len(brood.born) < min(AHEAD, self._spares):
                    port = self._bear(brood) if self._is_well(brood) else None
                    if port is None:
                        return
                    brood.born.append(port)
                return
        if job is not None:
            return
        self.sweep()
        if self._is_spare_missing():
            assert self._wanted is not None
            key, spec = self._wanted
            for brood in [brood for brood in self._broods if brood.job is None]:
                self._end(brood)  # of jobs unlike the last one
            self._start(None, key, spec, None)

    def drop_job(self, job: int) -> None:
        """The job is over: so is its mother."""
        for brood in [brood for brood in self._broods if brood.job == job]:
            self._end(brood)

    def drop(self) -> None:
        """End them all, without waiting; ``sweep`` frees what is left of them."""
        for brood in list(self._broods):
            self._end(brood)

    def sweep(self) -> None:
        """Free what has ended."""
        self._leaving.sweep()
        for brood in [each for each in self._ending if each.mother.jail.poll() is not None]:
            self._ending.remove(brood)
            _close(brood)

    def close(self) -> None:
        """End them all and free them."""
        self.drop()
        self._leaving.close()
        for brood in self._ending:
            _close(brood)
        self._ending.clear()

    def _is_spare_missing(self) -> bool:
        if not self.is_able or self._wanted is None or not self._spares:
            return False
        return not any(
            brood.job is None and brood.key == self._wanted[0] for brood in self._broods
        )

    def _brood_of(self, job: int, key: Key, inputs: pathlib.Path | None) -> _Brood | None:
        """The job's own; else a spare, which is its own from now on."""
        found = next((brood for brood in self._broods if brood.job == job), None)
        if found is None and inputs is None:
            fits = (each for each in self._broods if each.job is None and each.key == key)
            found = next(fits, None)
            if found is not None:
                found.job = job
        return found

    def _start(
        self, job: int | None, key: Key, spec: JobSpec, inputs: pathlib.Path | None
    ) -> _Brood | None:
        assert self._host is not None
        if len(self._broods) >= self._count:
            idle = [brood for brood in self._broods if brood.is_idle]
            if not idle:
                return None
            self._end(idle[0])
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mother = start_mother(spec, key[1], inputs, self._host, write)
        except (SandboxError, OSError):
            os.close(read)
            return None  # a cold one is tried, and says what is the matter
        finally:
            os.close(write)
        brood = _Brood(key, spec, mother, read, job)
        self._broods.append(brood)
        return brood

    def _is_well(self, brood: _Brood) -> bool:
        """Whether she can make jails now; one that cannot is ended."""
        mother = brood.mother
        is_over = mother.is_gone or mother.jail.poll() is not None or mother.jail.is_stopped()
        if mother.is_ready and not is_over:
            self._unable.pop(brood.key, None)
            return True
        is_own = brood.spec.environment in ("", sys.executable)
        if mother.refusal and is_own:
            self.refusal = mother.refusal  # of a Python that a job named it says nothing
        if mother.refusal or is_over:
            if not mother.is_ready:
                while len(self._unable) >= KEYS_MAX:
                    del self._unable[next(iter(self._unable))]
                tries = self._unable.get(brood.key, 0) + 1
                self._unable[brood.key] = TRIES_MAX if mother.refusal else tries
                if tries >= TRIES_MAX and is_own:
                    self.refusal = self.refusal or _last_words(brood)
            self._end(brood)
        return False

    def _bear(self, brood: _Brood) -> Port | None:
        assert self._host is not None
        with contextlib.suppress(SandboxError, OSError):
            return start_slot(
                -1, 0, brood.spec, brood.key[1], None, self._host, self._open_dir, brood.mother
            )
        return None

    def _end(self, brood: _Brood) -> None:
        self._broods.remove(brood)
        for port in brood.born:
            self._leaving.end(port)
        brood.born.clear()
        brood.mother.jail.kill()
        self._ending.append(brood)


def why_cold(folder: pathlib.Path) -> str:
    """Why jails of tier ``strict`` are cold on this host; empty: they are warm. May take a second.

    For people who ask (``gristmill doctor``); a worker finds out with the first job that needs it.

    Args:
        folder: as for ``prepare_host``.

    Raises:
        SandboxError: no jail at all can be started here.
    """
    with prepare_host(folder) as host:
        mothers = Mothers(host, 1, 1, folder)
        try:
            interpreter = ready_python(sys.executable, host)
            give_up_at = time.monotonic() + TRIAL_S
            while not mothers.refusal:  # a mother that ends says it, or says it by ending thrice
                port = mothers.take(0, JobSpec(kind="function"), interpreter, None)
                if port is not None:
                    port.kill("retire")
                    port.close()
                    return ""
                if time.monotonic() > give_up_at:
                    return f"the trial took more than {TRIAL_S:.0f} s"
                time.sleep(0.01)
            return mothers.refusal
        finally:
            mothers.close()


def _unfit(host: Host | None) -> str:
    """What is known before any trial."""
    if host is None or not host.place.version:
        return "no cgroup to meter them"
    try:
        seccomp_program()
    except SandboxError as error:
        return str(error)
    return ""


def _last_words(brood: _Brood) -> str:
    """Of a mother that ended before she could say why."""
    said = b""
    with contextlib.suppress(BlockingIOError):
        said = os.read(brood.output, SAID_BYTES_MAX)
    last = said.decode(errors="replace").strip().splitlines()[-1:]
    return ": ".join(["its first process ended", *last])


def _close(brood: _Brood) -> None:
    brood.mother.close()
    os.close(brood.output)
