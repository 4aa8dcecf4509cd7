"""``gristmill up``: a whole grid on this machine, for as long as it runs or a command does."""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gristmill.cli import documents
from gristmill.cli.connection import connect
from gristmill.cli.grid import END_S, TIERS, Grid
from gristmill.cli.output import Terminal, clean_lines, plural
from gristmill.cli.places import default_address, run_folder, state_folder
from gristmill.cli.process import ProcessEndedError, wait_readable
from gristmill.wire.client import WorkerRow
from gristmill.wire.errors import EXIT_MEMORY, EXIT_OK, RemoteError

RESTARTS_MAX = 3  #: of one process within ``RESTARTS_S``: past it the grid ends instead
RESTARTS_S = 60.0
MEMORY_PAUSE_S_MAX = 1.0  #: with the start itself, still back within two seconds
EXIT_NO_COMMAND, EXIT_NOT_EXECUTABLE = 127, 126  #: as a shell says it


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Start, show, wait, end; with a command, its exit code."""
    if args.command == []:
        raise RemoteError("INVALID_SPEC", "no command after --", "gristmill up --help")
    with _folders(args, os.environ) as (state, folder), Signals() as signals:
        grid = Grid(
            state,
            folder,
            workers=args.workers,
            slots=args.slots,
            tiers=[*(args.tier or TIERS), *(["trusted"] if args.with_trusted else [])],
            labels=dict(args.label),
            payments=args.payments or "",
            settlement=args.settlement or "",
            options={"broker": [part for text in args.tariff for part in ("--tariff", text)]},
            on_event=terminal.say,
            stop_fd=signals.fd,
        )
        try:
            began = time.monotonic()
            grid.start()
            try:
                return _live(grid, args.command, terminal, signals, began)
            finally:
                if args.command is None:
                    terminal.say("ending the grid ...")
                grid.stop()
        except KeyboardInterrupt:
            return EXIT_OK


class Signals:
    """SIGINT, SIGTERM and SIGHUP as bytes on a descriptor: they interrupt nothing half-way.

    An exception out of a signal handler could fall between the start of a process and the line
    that remembers it.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __enter__(self) -> "Signals":
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, lambda *_: None) for number in self.NUMBERS}
        self.fd = self._reader.fileno()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()

    def take(self) -> list[int]:
        """Numbers of the signals that came since the last call."""
        try:
            return [number for number in self._reader.recv(256) if number in self.NUMBERS]
        except BlockingIOError:
            return []


@contextlib.contextmanager
def _folders(
    args: argparse.Namespace, environment: Mapping[str, str]
) -> Iterator[tuple[Path, Path]]:
    """The state and the run folder.

    A grid for one command gets sockets of its own, since nobody else needs to find it: several
    can run side by side, if their states differ.
    """
    state = Path(args.state) if args.state else state_folder(environment)
    if args.run or environment.get("GRISTMILL_RUN") or args.command is None:
        yield state, Path(args.run) if args.run else run_folder(environment)
        return
    folder = tempfile.mkdtemp(prefix="gristmill-", dir=environment.get("XDG_RUNTIME_DIR"))
    try:
        yield state, Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _live(
    grid: Grid,
    command: Sequence[str] | None,
    terminal: Terminal,
    signals: Signals,
    began: float,
) -> int:
    with connect(grid.address) as client:
        workers = client.workers()
    took_s = time.monotonic() - began
    if terminal.is_json and command is None:
        terminal.document(
            documents.encode(
                documents.Up(grid.address, str(grid.state), os.getpid(), sorted_workers(workers))
            )
        )
    elif not terminal.is_json:
        _show(grid, workers, took_s, terminal, is_brief=command is not None)
    for told in grid.alarms("ledger"):
        terminal.say(f"the ledger: {clean_lines(told)}\n  next: gristmill ledger audit", "red")
    watch = Watch(grid, terminal)
    if command is not None:
        return _run_command(watch, command, signals)
    while True:
        watch.once([signals.fd])
        if signals.take():
            return EXIT_OK


def sorted_workers(workers: Sequence[WorkerRow]) -> list[WorkerRow]:
    """By name."""
    return sorted(workers, key=lambda worker: worker.name)


# ---------------------------------------------------------------- what it shows


def _show(
    grid: Grid, workers: Sequence[WorkerRow], took_s: float, terminal: Terminal, *, is_brief: bool
) -> None:
    slots = sum(worker.slots for worker in workers)
    title = (
        f"gristmill is up after {took_s:.1f} s: {plural(len(workers), 'worker')}, "
        f"{plural(slots, 'slot')} (pid {os.getpid()})"
    )
    jails, is_whole = told_jails(workers)
    if is_brief:  # stdout is the command's
        terminal.say(f"{title}, {jails}", "" if is_whole else "yellow")
        if "trusted" in grid.tiers:
            terminal.say(TRUSTED, "red")
        return
    here = grid.address == default_address({**os.environ, "GRISTMILL_ADDRESS": ""})
    pairs = [
        ("address", grid.address),
        ("", "" if here else f"elsewhere: export GRISTMILL_ADDRESS={shlex.quote(grid.address)}"),
        ("state", str(grid.state)),
        ("jails", terminal.style(jails, "green" if is_whole else "yellow")),
        ("trusted", terminal.style(TRUSTED, "red") if "trusted" in grid.tiers else ""),
        ("try", "gristmill submit --wait -- echo hello"),
        ("", "gristmill status · gristmill worker list · gristmill doctor"),
    ]
    terminal.card(title, pairs)
    terminal.print("Ctrl-C ends the grid; jobs and money stay in the state folder.")
    terminal.out.flush()


TRUSTED = "ADMITTED: jobs of tier 'trusted' run WITHOUT a jail, as the user who started this"


def told_jails(workers: Sequence[WorkerRow]) -> tuple[str, bool]:
    """What holds the jails of these workers, in words; false when something stands in."""
    tiers = sorted({tier for worker in workers for tier in worker.tiers if tier != "trusted"})
    tiers.sort(key=TIERS.index)
    metering = sorted({worker.metering for worker in workers})
    if not workers:
        return "no workers", False
    if metering == ["cgroup"]:
        return f"tiers {', '.join(tiers)}; limits and metering by cgroup", True
    if "cgroup" in metering:
        return f"tiers {', '.join(tiers)}; some workers have no cgroup: rlimits only", False
    return (
        f"tiers {', '.join(tiers)}; rlimits only, metering by {', '.join(metering)}: "
        "no cgroup here, see 'gristmill doctor'",
        False,
    )


# ---------------------------------------------------------------- watching


class Watch:
    """Reports every process that ends by itself, and starts it again, aloud.

    A process that ends ``RESTARTS_MAX`` times within ``RESTARTS_S`` ends the grid: a loop of
    crashes hides its cause. One that served and ended itself at its memory limit does not count:
    a hostile peer would end the grid with a few messages. It starts again after a short pause, for
    as long as it comes up.
    """

    def __init__(self, grid: Grid, terminal: Terminal) -> None:
        self.grid = grid
        self.terminal = terminal
        self._restarts: dict[str, deque[float]] = {}
        self._memory_ends: dict[str, tuple[int, float]] = {}

    def once(self, more: Sequence[int]) -> None:
        """Wait until a process has ended (it is started again) or one of ``more`` is readable.

        Raises:
            ProcessEndedError: one that does not keep running, or does not start any more.
        """
        wait_readable([*self.grid.pidfds().values(), *more], None)
        for ended in self.grid.dead():
            self._restart(ended, more)

    def _restart(self, ended: ProcessEndedError, more: Sequence[int]) -> None:
        name = ended.name
        is_worker = name in self.grid.worker_names
        if is_worker and ended.returncode == EXIT_OK:
            self.grid.forget(name)  # drained, as somebody asked
            self.terminal.say(f"{name} has drained and ended")
            return
        recent = self._restarts.setdefault(name, deque(maxlen=RESTARTS_MAX))
        has_served = True
        while True:
            self._tell(ended)
            now = time.monotonic()
            if has_served and ended.returncode == EXIT_MEMORY:
                if wait_readable(more, self._memory_pause(name, now)):
                    return  # somebody wants the end; if not, it is still dead the next time
            elif len(recent) == RESTARTS_MAX and now - recent[0] < RESTARTS_S:
                self.grid.forget(name)
                self.terminal.say(f"{name} ended {RESTARTS_MAX + 1} times in {RESTARTS_S:g} s")
                if is_worker:  # the other workers go on
                    return
                raise ended
            else:
                recent.append(now)
            try:
                self.grid.restart(name)
            except ProcessEndedError as error:
                ended, has_served = error, False
                continue
            self.terminal.say(f"{name} was started again (pid {self.grid.pid(name)})")
            return

    def _memory_pause(self, name: str, now: float) -> float:
        """Seconds before the next start: none at first, more when it happens again and again."""
        times, last = self._memory_ends.get(name, (0, 0.0))
        times = times + 1 if now - last < RESTARTS_S else 0
        self._memory_ends[name] = (times, now)
        return min(MEMORY_PAUSE_S_MAX, 0.05 * 2 ** min(times, 10)) if times else 0.0

    def _tell(self, ended: ProcessEndedError) -> None:
        self.terminal.say(clean_lines(f"{ended.message}\n  next: {ended.hint}"), "red")


def _run_command(watch: Watch, command: Sequence[str], signals: Signals) -> int:
    """The command in the foreground, in our own process group: Ctrl-C reaches it by itself."""
    grid = watch.grid
    environment = {
        **os.environ,
        "GRISTMILL_ADDRESS": grid.address,
        "GRISTMILL_STATE": str(grid.state),
        "GRISTMILL_RUN": str(grid.run),
    }
    try:
        child = subprocess.Popen(list(command), env=environment)
    except OSError as error:
        watch.terminal.say(f"{command[0]}: {error.strerror}")
        return EXIT_NO_COMMAND if isinstance(error, FileNotFoundError) else EXIT_NOT_EXECUTABLE
    pidfd = os.pidfd_open(child.pid)
    interrupts = 0
    try:
        while child.poll() is None:
            watch.once([pidfd, signals.fd])
            for number in signals.take():
                interrupts += number == signal.SIGINT
                # A terminal's Ctrl-C went to the command as well: it decides what that means.
                # Anything else, and a second Ctrl-C, is for us to pass on.
                if number != signal.SIGINT or interrupts > 1:
                    child.terminate()
    finally:
        os.close(pidfd)
        _end_command(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end_command(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(END_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
