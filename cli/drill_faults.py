"""The faults of a drill: what is done to the grid, and what must be true while it lasts.

A fault is a function of the ``Arena``: it does harm, undoes it, and returns in words what it hit.
``Skipped`` says why it cannot be done here. Whatever it starts it ends.
"""

import dataclasses
import os
import pathlib
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from gristmill.cli.drill_load import Load, quiet_client
from gristmill.cli.grid import Grid
from gristmill.cli.process import ProcessEndedError, wait_readable

WORKER_TTL_S = 1.5  #: of the drill's grid: a worker that is silent for so long is given up
LEDGER_TTL_S = 1.5
STOP_S = WORKER_TTL_S + 1.0
DOWN_S = 3.0
FLOOD_S = 2.0
FULL_BYTES = 4 << 10  #: no file may be written beyond this
WAIT_S = 30.0
ENVIRONMENT = {
    "GRISTMILL_BROKER_WORKER_TTL_MS": str(int(WORKER_TTL_S * 1000)),
    "GRISTMILL_BROKER_WORKER_REPORT_MS": "300",
    "GRISTMILL_BROKER_LEDGER_TTL_MS": str(int(LEDGER_TTL_S * 1000)),
    "GRISTMILL_BROKER_LEDGER_RESEND_MS": "300",
}


class Skipped(Exception):  # noqa: N818 - no error
    """The fault cannot be done on this host; the text says why."""


@dataclasses.dataclass
class Arena:
    """The grid, its customers, and the dice."""

    grid: Grid
    load: Load
    dice: random.Random

    def a_worker(self) -> str:
        """One of the workers that run."""
        return self.dice.choice([n for n in self.grid.worker_names if n in self.grid.pidfds()])

    def until(self, what: str, condition: Callable[[], bool], seconds: float = WAIT_S) -> None:
        """Wait for a condition.

        Raises:
            TimeoutError: it does not come true in time.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {seconds:g} s")
            time.sleep(0.02)


# ---------------------------------------------------------------- processes die


def kill_broker(arena: Arena) -> str:
    """Kill -9 of the broker."""
    return _kill(arena, "broker")


def kill_ledger(arena: Arena) -> str:
    """Kill -9 of the ledger."""
    return _kill(arena, "ledger")


def kill_store(arena: Arena) -> str:
    """Kill -9 of the store."""
    return _kill(arena, "store")


def kill_worker(arena: Arena) -> str:
    """Kill -9 of a worker's agent: its jails die with it."""
    return _kill(arena, arena.a_worker())


def _kill(arena: Arena, name: str) -> str:
    pid = arena.grid.pid(name)
    arena.grid.kill(name)
    arena.grid.restart(name)
    return f"{name} (pid {pid})"


def kill_slot(arena: Arena) -> str:
    """Kill -9 of a jail that runs a subtask."""
    name = arena.a_worker()
    found: list[int] = []

    def look() -> bool:
        found[:] = [
            pid
            for pid in descendants(arena.grid.pid(name))
            if not children(pid) and pid not in children(arena.grid.pid(name))
        ]
        return bool(found)

    arena.until(f"a jail of {name}", look)
    pid = arena.dice.choice(found)
    _signal(pid, signal.SIGKILL)
    return f"a jail of {name} (pid {pid})"


def kill_spawner(arena: Arena) -> str:
    """Kill -9 of the process that makes a worker's jails."""
    name = arena.a_worker()
    direct = children(arena.grid.pid(name))
    if not direct:
        raise Skipped(f"{name} has no spawner")
    _signal(direct[0], signal.SIGKILL)
    return f"the spawner of {name} (pid {direct[0]})"


# ---------------------------------------------------------------- processes stand still


def stop_broker(arena: Arena) -> str:
    """SIGSTOP of the broker for longer than a worker's time-to-live."""
    return _stop(arena, "broker", STOP_S)


def stop_ledger(arena: Arena) -> str:
    """SIGSTOP of the ledger for longer than it may be silent."""
    return _stop(arena, "ledger", LEDGER_TTL_S + 1.0)


def stop_worker(arena: Arena) -> str:
    """SIGSTOP of a worker past its time-to-live: its leases are given to others, then it wakes."""
    return _stop(arena, arena.a_worker(), STOP_S)


def _stop(arena: Arena, name: str, seconds: float) -> str:
    arena.grid.signal(name, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        arena.grid.signal(name, signal.SIGCONT)
    return f"{name}, for {seconds:g} s"


def drain_worker(arena: Arena) -> str:
    """A worker is drained under load and ends; another takes its place."""
    name = arena.a_worker()
    with quiet_client(arena.grid.address) as client:
        client.drain(name)
    if not wait_readable([arena.grid.pidfds()[name]], WAIT_S):
        raise TimeoutError(f"{name} has not ended {WAIT_S:g} s after its drain was asked for")
    code = arena.grid.dead()[0].returncode
    arena.grid.restart(name)
    if code:
        raise TimeoutError(f"{name} was drained and ended with exit {code}")
    return f"{name} ended with exit 0"


def ledger_down(arena: Arena) -> str:
    """The ledger is away for a while: jobs whose credits are held run on, new ones wait."""
    acked = arena.load.acked
    arena.grid.kill("ledger")
    time.sleep(DOWN_S)
    more = arena.load.acked - acked
    arena.grid.restart("ledger")
    return f"ledger, for {DOWN_S:g} s ({more} acks meanwhile)"


def disk_full(arena: Arena) -> str:
    """The broker's files may not grow any more (RLIMIT_FSIZE): it must end, not lie."""
    grid, pid = arena.grid, arena.grid.pid("broker")
    try:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (FULL_BYTES, resource.RLIM_INFINITY))
    except (PermissionError, ValueError, OSError) as error:
        raise Skipped(f"no limit on the broker's files: {error}") from None
    wait_readable([grid.pidfds()["broker"]], DOWN_S)
    told = "which ended" if any(each.name == "broker" for each in grid.dead()) else "which went on"
    grid.restart("broker")
    return f"broker's files ({FULL_BYTES >> 10} KiB at most), {told}"


# ---------------------------------------------------------------- clients and strangers


def kill_client(arena: Arena) -> str:
    """A client is killed while it reads; another asks by the same key and gets everything."""
    number = arena.dice.randrange(1 << 30)
    promise = arena.load.add(f"drill-returned-{number}", number, 60)
    # Imported, not run: what a job's function is must not depend on the name of its module.
    program = "from gristmill.cli.drill_load import main; main()"
    command = [sys.executable, "-P", "-c", program, arena.grid.address]
    command += [promise.key, str(promise.base), str(promise.count)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        wait_readable([child.stdout.fileno()], WAIT_S)
        told = child.stdout.readline().split()
        if told[:1] != ["READY"]:
            raise TimeoutError("the client that was to be killed did not get a first value")
        promise.job = int(told[1])
    finally:
        child.kill()
        child.wait()
        child.stdout.close() if child.stdout else None
    job = promise.job
    with quiet_client(arena.grid.address) as client:
        arena.load.carry(client, promise, "job", 0.02)
    if promise.job != job:
        promise.wrong.append(f"{promise.key} was job {job} and is {promise.job} now")
    return f"the client of j{job} (pid {child.pid})"


def flood(arena: Arena) -> str:
    """Garbage on the broker's sockets: bytes that are no ZeroMQ, frames that are no messages."""
    import zmq

    deadline, sent = time.monotonic() + FLOOD_S, 0
    context = zmq.Context()
    dealers = [context.socket(zmq.DEALER) for _ in range(4)]
    try:
        for number, dealer in enumerate(dealers):
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.connect(arena.grid.back if number % 2 else arena.grid.address)
        while time.monotonic() < deadline:
            for address in (arena.grid.address, arena.grid.back):
                with socket.socket(socket.AF_UNIX) as raw:
                    raw.settimeout(1.0)
                    try:
                        raw.connect(address.removeprefix("ipc://"))
                        raw.sendall(arena.dice.randbytes(4_096))
                    except OSError:
                        pass  # refused, or cut off: as it should be
            for dealer in dealers:
                frames = [arena.dice.randbytes(arena.dice.randrange(200)) for _ in range(3)]
                try:
                    dealer.send_multipart(frames, zmq.NOBLOCK)
                    sent += 1
                except zmq.Again:
                    pass
    finally:
        for dealer in dealers:
            dealer.close()
        context.term()
    return f"broker, {sent:,} frames of garbage"


# ---------------------------------------------------------------- the catalogue

Fault = Callable[[Arena], str]
CATALOGUE: dict[str, Fault] = {
    function.__name__.replace("_", "-"): function
    for function in (
        kill_broker,
        kill_ledger,
        kill_store,
        kill_worker,
        kill_slot,
        kill_spawner,
        stop_broker,
        stop_ledger,
        stop_worker,
        drain_worker,
        kill_client,
        ledger_down,
        disk_full,
        flood,
    )
}


def children(pid: int) -> list[int]:
    """Child processes of a process, the oldest first."""
    found: list[int] = []
    try:
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:
        return sorted(found)  # it has ended
    return sorted(found)


def descendants(pid: int) -> Iterator[int]:
    """Everything below a process."""
    for child in children(pid):
        yield child
        yield from descendants(child)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


#: a fault that raised one of these was not recovered from
HARD = (TimeoutError, ProcessEndedError)
