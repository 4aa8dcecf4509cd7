"""A whole grid on this machine, as child processes: what ``gristmill up`` and the tests start.

    >>> from gristmill.cli.grid import Grid
    >>> with Grid.temporary(workers=2) as grid:  # doctest: +SKIP
    ...     Client(grid.address).map(abs, range(1_000))

Ledger, broker, store and workers start side by side: each connects to the others as they appear.
The store needs the broker's key, which is made here if it is not there yet. A process that ends by
itself is never restarted silently: ``dead`` names it and ``restart`` is somebody's decision.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from gristmill.cli.places import Claim, make_private, remove_abandoned
from gristmill.cli.process import Process, ProcessEndedError, wait_readable
from gristmill.wire.errors import RemoteError
from gristmill.wire.socket import check_listen_address

FUND = "local=1000000"  #: credits of the tenant of a grid on one machine, minted once
START_S = 60.0  #: a grid that is not up by then does not come up
WORKER_GRACE_S = 3.0  #: for what workers run when the grid ends; what is left returns unspent
NAME_PAUSE_S = 0.5  #: between two starts of a worker whose name is not free yet
END_S = 10.0  #: broker, ledger and store write what they have within this
TIERS = ("strict", "job", "batch")
_SERVICES = ("ledger", "store", "broker", "treasury", "settlement")
#: services whose module is not their name
_MODULES = {"treasury": "ledger.payments", "settlement": "ledger.settlement"}


class Grid:
    """Ledger, store, broker and workers on this machine. A context manager.

    Args:
        state: folder of jobs, money, blobs, keys and ``logs/<name>.log``; kept.
        run: folder of the sockets, 0700; ``state/run`` by default. Its path must be short: a
            socket's path has at most 107 bytes.
        workers: how many worker processes: ``worker-0``, ``worker-1``, ...
        slots: room for subtasks in each worker; by default the cpus of this machine, shared out.
        tiers: jail tiers that the workers admit.
        labels: of every worker.
        options: more command-line options, by process (``worker-1``) or by kind (``worker``).
        environment: what to add to the environment of the processes.
        front: address for clients, instead of a socket in ``run``; over TCP they need a ``token``.
        back: address for workers, instead of a socket in ``run``; over TCP those of this grid are
            known by their keys.
        fund: ``TENANT=CREDITS`` to mint at the first start; empty for nothing.
        payments: file of the treasury's settings, empty for what an operator confirms only; None
            for no treasury: no credits are sold.
        settlement: file of the settlement's settings; empty for none: nothing is on a chain.
        on_event: told, in words, what happens (a process that had to be killed, say).
        stop_fd: when this becomes readable while processes start, ``KeyboardInterrupt``.

    Attributes:
        address: for clients.
        back: for workers.

    Raises:
        AlreadyRunningError: (from ``start``) another grid has these folders.
        ProcessEndedError: (from ``start``, ``restart``) a process ended before it was ready.
    """

    def __init__(
        self,
        state: str | os.PathLike[str],
        run: str | os.PathLike[str] | None = None,
        *,
        workers: int = 1,
        slots: int | None = None,
        tiers: Sequence[str] = TIERS,
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, Sequence[str]] | None = None,
        environment: Mapping[str, str] | None = None,
        front: str = "",
        back: str = "",
        fund: str = FUND,
        payments: str | None = None,
        settlement: str = "",
        on_event: Callable[[str], None] | None = None,
        stop_fd: int | None = None,
    ) -> None:
        self.state = Path(os.path.abspath(state))
        self.run = Path(os.path.abspath(run if run is not None else self.state / "run"))
        if self.run == self.state:  # a socket and a folder would have one name
            self.run = self.state / "run"
        self.workers = workers
        self.slots = slots or max(1, len(os.sched_getaffinity(0)) // max(1, workers))
        self.tiers = tuple(tiers)
        self.labels = dict(labels or {})
        self.options = {name: list(more) for name, more in (options or {}).items()}
        self.environment = dict(environment or {})
        self.address = front or f"ipc://{self.run}/front"
        self.back = back or f"ipc://{self.run}/back"
        self.fund = fund
        self.payments = payments
        self.settlement = settlement
        self._stop_fds = [] if stop_fd is None else [stop_fd]
        self._tell = on_event or (lambda _: None)
        self._processes: dict[str, Process] = {}
        self._claims: list[Claim] = []
        self._temporary: Path | None = None

    @classmethod
    def temporary(cls, **options: Any) -> "Grid":
        """A grid whose state and sockets are in a new folder that goes with it.

        When the body of its ``with`` raises, the tails of all logs are printed to stderr first.
        What earlier ones left that were killed is removed.
        """
        remove_abandoned(Path(tempfile.gettempdir()))
        folder = Path(tempfile.mkdtemp(prefix="gristmill-"))
        grid = cls(folder / "state", folder / "run", **options)
        grid._temporary = folder
        return grid

    # ------------------------------------------------------------ life

    def start(self, timeout_s: float = START_S) -> "Grid":
        """Start every process and wait until all are ready.

        But for the settlement, which waits for its chain: a grid works without it.
        """
        for name in ("front", "back", "ledger"):
            check_listen_address(f"ipc://{self.run}/{name}")
        try:
            self._claim()
            left_out = {"settlement"} if self.payments is not None else {"treasury", "settlement"}
            services = [name for name in _SERVICES if name not in left_out]
            names = [*services, *(f"worker-{number}" for number in range(self.workers))]
            for name in [*names, *(["settlement"] if self.settlement else [])]:
                self._spawn(name, self.command(name))
            self._await(names, timeout_s)
        except BaseException:
            self.stop(grace_s=0.0)
            raise
        return self

    def stop(self, grace_s: float = WORKER_GRACE_S) -> None:
        """End everything: workers first, then broker, store and ledger. Idempotent.

        Workers get ``grace_s`` for what runs, then are killed: what they held runs again in the
        next grid on this state. No process, no socket file is left behind.
        """
        names = list(self._processes)
        try:
            self._end([name for name in names if name not in _SERVICES], grace_s)
            for name in ("settlement", "treasury", "broker", "store", "ledger"):
                self._end([name] if name in names else [], END_S)
        finally:
            for claim in self._claims:
                claim.release()
            self._claims.clear()
            if self._temporary is not None:
                shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> "Grid":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self._temporary is not None:
            print(self.tails(), file=sys.stderr)
        self.stop()

    # ------------------------------------------------------------ single processes

    @property
    def names(self) -> list[str]:
        """Processes of this grid, dead ones included, in the order of their start."""
        return list(self._processes)

    @property
    def worker_names(self) -> list[str]:
        """The workers among them."""
        return [name for name in self._processes if name not in _SERVICES]

    def pid(self, name: str) -> int:
        """Of a process of this grid."""
        return self._processes[name].pid

    def log(self, name: str) -> Path:
        """The file that a process writes its stdout and stderr to."""
        return self.state / "logs" / f"{name}.log"

    def alarms(self, name: str) -> list[str]:
        """What a process has said since its start that needs somebody."""
        return self._processes[name].alarms()

    def pidfds(self) -> dict[str, int]:
        """Of the processes that have not been seen to end: readable when they do."""
        return {name: each.pidfd for name, each in self._processes.items() if each.pidfd >= 0}

    def dead(self) -> list[ProcessEndedError]:
        """Processes that ended by themselves, until ``forget`` or ``restart``."""
        return [
            each.ended("by itself")
            for each in self._processes.values()
            if each.pidfd >= 0 and each.returncode is not None
        ]

    def forget(self, name: str) -> None:
        """Stop speaking of a process that ended; ``restart`` still can start it again."""
        self._end([name], 0.0)

    def kill(self, name: str) -> None:
        """SIGKILL to one process, and wait for its end: for tests."""
        self._processes[name].kill()
        self._processes[name].wait(None)

    def signal(self, name: str, number: signal.Signals) -> None:
        """A signal to one process, such as SIGSTOP: for tests."""
        self._processes[name].signal(number)

    def restart(self, name: str, timeout_s: float = START_S) -> None:
        """Start one process again with the same command, ending it first if it runs.

        The broker keeps a worker's name for its session until that was silent for a while: a
        worker that died is started again until its name is free.
        """
        old = self._processes[name]
        old.signal(signal.SIGCONT)
        self._end([name], END_S)
        deadline = time.monotonic() + timeout_s
        while True:
            self._spawn(name, old.argv)
            try:
                self._await([name], deadline - time.monotonic())
                return
            except ProcessEndedError as error:
                is_name = name not in _SERVICES and "NAME_TAKEN" in error.message
                if not is_name or time.monotonic() + NAME_PAUSE_S > deadline:
                    raise
            self._end([name], 0.0)
            if wait_readable(self._stop_fds, NAME_PAUSE_S):
                raise KeyboardInterrupt

    def add_worker(self, name: str, *options: str, timeout_s: float = START_S) -> None:
        """One more worker, with options that override this grid's: for tests."""
        self._spawn(name, [*self.command(name), *options])
        self._await([name], timeout_s)

    def tails(self) -> str:
        """The ends of all logs."""
        return "\n".join(
            f"--- {name} (pid {each.pid}, {each.log})\n{each.tail(40)}"
            for name, each in self._processes.items()
        )

    # ------------------------------------------------------------ inside

    def command(self, name: str) -> list[str]:
        """The command line of one process, without what every process gets."""
        state, kind = str(self.state / name), name if name in _SERVICES else "worker"
        ledger, store = f"ipc://{self.run}/ledger", f"unix://{self.run}/store"
        own: dict[str, Callable[[], list[str]]] = {
            "ledger": lambda: ["--listen", ledger, *(["--fund", self.fund] if self.fund else [])],
            "store": lambda: [
                *("--listen", store, "--key", self._broker_key()),
                *(["--publisher", self._publisher()] if self.settlement else []),
            ],
            "broker": lambda: [
                *("--front", self.address, "--back", self.back),
                *("--ledger", ledger, "--store", store),
            ],
            "worker": lambda: self._worker_options(name),
            "treasury": lambda: [
                *("--ledger", ledger),
                *(["--config", os.path.abspath(self.payments)] if self.payments else []),
            ],
            "settlement": lambda: [
                *("--ledger", ledger, "--config", os.path.abspath(self.settlement)),
                *("--store", store),
            ],
        }
        module = _MODULES.get(kind, kind)
        argv = [sys.executable, "-P", "-m", f"gristmill.{module}", "--state", state, *own[kind]()]
        return argv + self.options.get(kind, []) + (self.options.get(name, []) * (name != kind))

    def _worker_options(self, name: str) -> list[str]:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // max(1, self.workers)
        options = ["--broker", self.back, "--name", name, "--slots", str(self.slots)]
        if not self.back.startswith("ipc://"):
            options += ["--broker-key", self._broker_key()]
        options += ["--tiers", ",".join(self.tiers), "--cpus", str(self.slots)]
        options += ["--memory", str(memory)]
        for key, value in self.labels.items():
            options += ["--label", f"{key}={value}"]
        return options

    def _broker_key(self) -> str:
        """Hex of the broker's public key: it signs grants, and is that of its sockets.

        Made in this process: asking the broker for it would put one start behind the other.
        """
        from gristmill.wire.keys import BROKER_KEY, load_key

        return load_key(self.state / "broker" / BROKER_KEY).verify_key.encode().hex()

    def _publisher(self) -> str:
        """Hex of the settlement's public key, which the store knows it by."""
        from gristmill.wire.keys import load_key

        folder = self.state / "settlement"
        make_private(folder)
        return load_key(folder / "settlement.key").verify_key.encode().hex()

    def token(self, tenant: str = "local", *, is_operator: bool = False) -> str:
        """A new token for clients over TCP, good while this grid's state is kept."""
        from gristmill.broker.principals import make_token

        return make_token(self.state / "broker", tenant, is_operator)

    def _enrol(self, name: str) -> None:
        """Have the broker know a worker of ours, which is on this machine, by its key."""
        from gristmill.broker.principals import add_node
        from gristmill.wire.keys import WORKER_KEY, load_key

        make_private(self.state / name)
        public = load_key(self.state / name / WORKER_KEY).verify_key.encode().hex()
        add_node(self.state / "broker", name, public)

    def _claim(self) -> None:
        make_private(self.state)
        for folder in (self.run, self.state):
            self._claims.append(Claim(folder))
        make_private(self.state / "logs")

    def _spawn(self, name: str, argv: list[str]) -> None:
        make_private(self.state / name)
        if name not in _SERVICES and not self.back.startswith("ipc://"):
            self._enrol(name)
        environment = {**os.environ, **self.environment}
        for own in ("GRISTMILL_ADDRESS", "GRISTMILL_STATE", "GRISTMILL_RUN"):
            environment.pop(own, None)
        self._processes[name] = Process(name, argv, self.log(name), environment)
        record = {
            "pid": os.getpid(),
            "address": self.address,
            "state": str(self.state),
            "run": str(self.run),
            "is_temporary": self._temporary is not None,
            "children": {
                each.name: [each.pid, each.ticks]
                for each in self._processes.values()
                if each.pidfd >= 0
            },
        }
        for claim in self._claims:
            claim.write(record)

    def _await(self, names: list[str], timeout_s: float) -> None:
        """Until all of these are ready.

        Raises:
            ProcessEndedError: one ended first (of several, the one in the order of ``names``).
            RemoteError: ``INTERNAL``: one neither ended nor was ready in time.
            KeyboardInterrupt: ``stop_fd`` said so.
        """
        deadline = time.monotonic() + timeout_s
        waiting = {self._processes[name].ready_fd(): self._processes[name] for name in names}
        while waiting:
            left = max(0.0, deadline - time.monotonic())
            readable = wait_readable([*waiting, *self._stop_fds], left)
            if not set(readable).isdisjoint(self._stop_fds):
                raise KeyboardInterrupt
            if not readable:
                late = next(iter(waiting.values()))
                raise RemoteError(
                    "INTERNAL",
                    f"{late.name} was not ready after {timeout_s:g} s:\n{late.tail()}",
                    f"its whole log is {late.log}",
                )
            for fd in readable:
                if waiting[fd].take_ready():
                    del waiting[fd]

    def _end(self, names: list[str], grace_s: float) -> None:
        """SIGTERM to all of these, SIGKILL to what has not ended after the grace."""
        ending = [self._processes[name] for name in names if self._processes[name].pidfd >= 0]
        for each in ending:
            each.signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        for each in ending:
            if not each.wait(max(0.0, deadline - time.monotonic())):
                self._tell(f"{each.name} had not ended after {grace_s:g} s: killed")
                each.kill()
                each.wait(None)
            if left := each.close():
                self._tell(f"{each.name} left processes behind: {left}; killed")
