"""Jails out of a warm process, a *mother* (sandbox/warm.py).

To start an interpreter takes most of a jail's start, so a mother does it once. She is told nothing
of any tenant, but her children share what she had at her start. So all of them are one tenant's,
or, of tier ``strict``, one job's; hers ends with it. One more is kept for jobs like the last one
that had none: she belongs to nobody until a job takes a jail of hers. She and the mother that was
used last have a few jails made ahead, so that a job finds them there. Idle mothers beyond a number
end, the one that was used longest ago first.

Until a mother is ready, jails are cold. Where the host lets no jail be made inside a jail, she says
why; all jails stay cold then, and spares.py keeps some of those ahead.
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
from gristmill.worker.spares import Key, key_of, model_of
from gristmill.worker.starter import (
    mode_of,
    ready_python,
    seccomp_program,
    start_mother,
    start_slot,
)

SAID_BYTES_MAX = 4_096
#: Mothers of one kind that may end before they are ready: then there is something in the way.
TRIES_MAX, KEYS_MAX = 3, 64
TRIAL_S = 20.0  #: a loaded machine is slow, not unable


@dataclasses.dataclass(slots=True)
class _Brood:
    """A mother, what she made, and what for.

    Attributes:
        spec: of the job that had her last jail.
        owner: a tenant or, of tier ``strict``, a job; None while she belongs to nobody.
        born: jails that she has made and nobody uses yet, each with its mode (``mode_of``).
        given: jails of hers that somebody uses.
    """

    key: Key
    spec: JobSpec
    owner: str | int | None
    mother: Mother
    output: int
    born: deque[tuple[str, Port]] = dataclasses.field(default_factory=deque)
    given: list[Port] = dataclasses.field(default_factory=list)

    @property
    def is_idle(self) -> bool:
        self.given = [port for port in self.given if not port.process.is_over()]
        return not self.given


class Mothers:
    """The mothers of a worker. Used from the main thread, which starts all jails.

    Args:
        count: idle mothers that are kept, beside the one that belongs to nobody.
        ahead: jails that a mother makes before they are asked for.

    Attributes:
        refusal: why this host has no warm jails; empty while none failed.
    """

    def __init__(self, host: Host | None, count: int, ahead: int, open_dir: pathlib.Path) -> None:
        self._host = host
        self._count = max(1, count)  # one may have no jail yet
        self._ahead = ahead
        self._open_dir = open_dir
        self._broods: list[_Brood] = []  # the one that was used last is the last
        self._wanted: tuple[Key, JobSpec] | None = None
        self._leaving = Leaving()
        self._ending: list[_Brood] = []
        self._unable: dict[Key, int] = {}  # mothers that ended before they were ready
        self._is_due = False
        self.refusal = _unfit(host)

    def __len__(self) -> int:
        return len(self._ending) + len(self._leaving)

    @property
    def is_able(self) -> bool:
        """Whether jails may come from mothers here."""
        return self._host is not None and not self.refusal

    def want(self, spec: JobSpec, interpreter: Interpreter) -> None:
        """Whom to keep for nobody from now on: a mother for jobs like this one."""
        self._wanted = key_of(spec, interpreter), model_of(spec)
        self._is_due = True

    def take(
        self,
        tenant: str,
        job: int,
        spec: JobSpec,
        interpreter: Interpreter | None,
        inputs: pathlib.Path | None,
    ) -> Port | None:
        """A warm jail for the tenant's job; None: it has to be a cold one.

        ``inputs``: as for ``start_slot``. Such files are mounted in all jails of a mother, so only
        tier ``strict`` has warm ones with them.
        """
        is_strict = spec.tier == "strict"
        if interpreter is None or not self.is_able or (inputs is not None and not is_strict):
            return None
        key = key_of(spec, interpreter)
        owner = job if is_strict else tenant
        brood = next(
            (each for each in self._broods if (each.owner, each.key) == (owner, key)), None
        )
        if brood is None and inputs is None:
            brood = self._adopt(owner, key)
            self.want(spec, interpreter)
        if brood is None and self._unable.get(key, 0) < TRIES_MAX:
            brood = self._start(owner, key, model_of(spec), inputs)  # for the owner's next one
        if brood is None or not self._is_well(brood):
            return None
        brood.spec = spec
        self._is_due = True
        self._broods.remove(brood)
        self._broods.append(brood)
        port = self._take_born(brood) or self._bear(brood)
        if port is not None:
            brood.given.append(port)
        return port

    @property
    def is_short(self) -> bool:
        """Whether ``refill`` would start or free something."""
        return self._is_due or bool(self._leaving or self._ending)

    def refill(self) -> None:
        """Start the mother that belongs to nobody, have jails made ahead, free what ended."""
        self.sweep()
        self._is_due = False
        if not self.is_able:
            return
        while len(idle := [each for each in self._owned() if each.is_idle]) > self._count:
            self._end(idle[0])
        if self._is_spare_missing():
            assert self._wanted is not None
            key, spec = self._wanted
            for brood in [each for each in self._broods if each.owner is None]:
                self._end(brood)  # of jobs unlike the last one
            self._start(None, key, spec, None)
        for brood in self._kept():
            self._fill(brood)
        self._is_due = self._is_due or any(map(self._lacks, self._kept()))

    def refill_last(self) -> None:
        """Have jails made ahead by the mother that was used last."""
        if self.is_able and (owned := self._owned()):
            self._fill(owned[-1])

    def drop_job(self, job: int) -> None:
        """The job is over: so is a mother of its own."""
        for brood in [brood for brood in self._broods if brood.owner == job]:
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

    def _owned(self) -> list[_Brood]:
        return [brood for brood in self._broods if brood.owner is not None]

    def _kept(self) -> list[_Brood]:
        """Who has jails made ahead: the one that was used last, and the one that is nobody's."""
        return [*self._owned()[-1:], *(each for each in self._broods if each.owner is None)]

    def _is_spare_missing(self) -> bool:
        if self._wanted is None or not self._ahead:
            return False
        key = self._wanted[0]
        if self._unable.get(key, 0) >= TRIES_MAX:
            return False
        return not any(brood.owner is None and brood.key == key for brood in self._broods)

    def _adopt(self, owner: str | int, key: Key) -> _Brood | None:
        """The one that was nobody's, if she fits: she is the owner's from now on."""
        for brood in self._broods:
            if brood.owner is None and brood.key == key:
                brood.owner = owner
                return brood
        return None

    def _start(
        self, owner: str | int | None, key: Key, spec: JobSpec, inputs: pathlib.Path | None
    ) -> _Brood | None:
        assert self._host is not None
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mother = start_mother(spec, key[1], inputs, self._host, write)
        except (SandboxError, OSError):
            os.close(read)
            return None  # a cold one is tried, and says what is the matter
        finally:
            os.close(write)
        brood = _Brood(key, spec, owner, mother, read)
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

    def _lacks(self, brood: _Brood) -> bool:
        return len(brood.born) < self._ahead

    def _fill(self, brood: _Brood) -> None:
        mode = mode_of(brood.spec)
        for has, port in list(brood.born):
            if has != mode or port.process.is_over():
                brood.born.remove((has, port))
                self._leaving.end(port)
        while len(brood.born) < self._ahead and self._is_well(brood):
            made = self._bear(brood)
            if made is None:
                return
            brood.born.append((mode, made))

    def _take_born(self, brood: _Brood) -> Port | None:
        """A jail that is there. The two modes have not the same limit of processes."""
        for has, port in list(brood.born):
            if has == mode_of(brood.spec):
                brood.born.remove((has, port))
                if not port.process.is_over():
                    return port
                self._leaving.end(port)
        return None

    def _bear(self, brood: _Brood) -> Port | None:
        assert self._host is not None
        with contextlib.suppress(SandboxError, OSError):
            return start_slot(
                -1, 0, brood.spec, brood.key[1], None, self._host, self._open_dir, brood.mother
            )
        return None

    def _end(self, brood: _Brood) -> None:
        self._is_due = True  # another one may have to take her place
        self._broods.remove(brood)
        for _, port in brood.born:
            self._leaving.end(port)
        brood.born.clear()
        brood.mother.jail.kill()
        self._ending.append(brood)


def why_cold(folder: pathlib.Path) -> str:
    """Why jails are cold on this host; empty: they are warm. May take a second.

    For people who ask (``gristmill doctor``); a worker finds out at its start.

    Args:
        folder: as for ``prepare_host``.

    Raises:
        SandboxError: no jail at all can be started here.
    """
    with prepare_host(folder) as host:
        mothers = Mothers(host, 1, 1, folder)
        try:
            interpreter = ready_python(sys.executable, host)
            spec = JobSpec(kind="function")
            mothers.want(spec, interpreter)
            give_up_at = time.monotonic() + TRIAL_S
            while not mothers.refusal:  # a mother that ends says it, or says it by ending thrice
                mothers.refill()
                port = mothers.take("", 0, spec, interpreter, None)
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
