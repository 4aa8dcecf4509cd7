"""Records what a real broker and a real ledger write to their disk, and what they say meanwhile.

Run as a process: ``python -P disk_record.py OUT FAULT SEED JOBS``. Broker and ledger run here, in
threads, through a VFS that notes every write, truncation, deletion and sync of their files in one
order; real workers and a client give them work; both are ended and started again in between. Every
message that leaves a socket is noted with its place in that order: what it promises must be on the
disk by then. FAULT plants a broken promise: see ``FAULTS``.
"""

import contextlib
import logging
import os
import pathlib
import socket as sockets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import apsw
import msgspec
import zmq
from disk_client import KINDS, Customer, Order

from gristmill.broker import bodies, journal, reader
from gristmill.broker.app import Broker
from gristmill.broker.settings import read_settings
from gristmill.ledger import app as ledger_app
from gristmill.ledger import sqlite
from gristmill.ledger.settings import Settings as LedgerSettings
from gristmill.wire import client as say
from gristmill.wire import ledger as wl

#: pages of the log between two checkpoints: many of them in a short run
CHECKPOINT_PAGES = 40
#: bodies of this many bytes lie beside the journal; so many are in each segment: again many
LARGE_BYTES, SEGMENT_BYTES = 24, 40 << 10
RUN_S = 60.0


class Op(msgspec.Struct, array_like=True):
    """One operation on a file: (w)rite, (t)runcate, (s)ync, (d)elete."""

    kind: str
    file: str
    offset: int = 0
    body: bytes = b""


class Said(msgspec.Struct, array_like=True):
    """What left a process when ``at`` operations had been done."""

    at: int
    who: str
    header: bytes
    frames: list[bytes]


class Recording(msgspec.Struct):
    """A whole run. ``begin``: operations before the first promise."""

    operations: list[Op]
    said: list[Said]
    orders: list[Order]
    begin: int


class Recorder(apsw.VFS):  # type: ignore[misc]
    """The operating system's VFS, noted: the default of this process from now on."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.log: list[Op] = []
        super().__init__("recorder", "unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> Any:  # noqa: N802
        return _Recorded(self, name, flags)

    def xDelete(self, name: str, sync: bool) -> None:  # noqa: N802
        super().xDelete(name, sync)
        self.log.append(Op("d", os.path.relpath(name, self.folder)))


class _Recorded(apsw.VFSFile):  # type: ignore[misc]
    def __init__(self, recorder: Recorder, name: Any, flags: list[int]) -> None:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._log = recorder.log
        self._file = os.path.relpath(path, recorder.folder) if path else ""
        super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        super().xWrite(data, offset)
        self._log.append(Op("w", self._file, offset, bytes(data)))

    def xTruncate(self, size: int) -> None:  # noqa: N802
        super().xTruncate(size)
        self._log.append(Op("t", self._file, size))

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        self._log.append(Op("s", self._file))


# ---------------------------------------------------------------- planted faults


def _with_synchronous(level: str) -> None:
    opened = journal._open

    def weaker(*given: Any) -> apsw.Connection:
        connection = opened(*given)
        connection.execute(f"PRAGMA synchronous={level}")
        return connection

    journal._open = weaker


def _ack_before_commit() -> None:
    """What was handed to the committer counts as committed."""
    pump = journal.Journal.pump

    def hasty(self: journal.Journal) -> bool:
        is_done = pump(self)
        if self._in_flight is not None:
            self.committed = self._in_flight.number
        return is_done

    journal.Journal.pump = hasty  # type: ignore[method-assign]


def _hasty_ledger() -> None:
    opened = ledger_app.SqliteBook.__init__

    def weaker(self: Any, *given: Any) -> None:
        opened(self, *given)
        self.db.execute("PRAGMA synchronous=NORMAL")

    ledger_app.SqliteBook.__init__ = weaker  # type: ignore[method-assign]


_unsynced: list[str] = []  #: folders whose syncs are not made


def _bodies_unsynced() -> None:
    """Rows are committed before the bodies that they refer to are safe."""
    _unsynced.append(f"/{bodies.FOLDER}/")


FAULTS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "bodies-unsynced": _bodies_unsynced,
    "broker-off": lambda: _with_synchronous("OFF"),
    "broker-normal": lambda: _with_synchronous("NORMAL"),
    "broker-acks-first": _ack_before_commit,
    "ledger-normal": _hasty_ledger,
}


# ---------------------------------------------------------------- the run


def _note_marks(recorder: Recorder) -> None:
    """What is written past SQLite: marks in the lock files, and bodies beside the journal."""
    write, sync, unlink, punch = os.pwrite, os.fdatasync, os.unlink, bodies._punch

    def lock_of(file: int) -> str:
        path = os.readlink(f"/proc/self/fd/{file}")
        is_ours = path.endswith(".lock") or f"/{bodies.FOLDER}/" in path
        return os.path.relpath(path, recorder.folder) if is_ours else ""

    def written(file: int, body: bytes, at: int) -> int:
        if name := lock_of(file):
            recorder.log.append(Op("w", name, at, bytes(body)))
        return write(file, body, at)

    def synced(file: int) -> None:
        if any(part in os.readlink(f"/proc/self/fd/{file}") for part in _unsynced):
            return
        sync(file)
        if name := lock_of(file):
            recorder.log.append(Op("s", name))

    def unlinked(path: Any, *given: Any, **more: Any) -> None:
        unlink(path, *given, **more)
        if f"/{bodies.FOLDER}/" in os.fspath(path):
            recorder.log.append(Op("d", os.path.relpath(path, recorder.folder)))

    def punched(file: int, offset: int, size: int) -> bool:
        is_done = punch(file, offset, size)
        recorder.log.append(Op("w", lock_of(file), offset, bytes(size)))
        return is_done

    os.pwrite, os.fdatasync, os.unlink, bodies._punch = written, synced, unlinked, punched


def _close_for_reading() -> None:
    """SQLite itself takes no notice that a file opened for reading cannot be locked at its close.

    apsw raises it when the VFS is in Python.
    """
    close = reader.Reader.close

    def quietly(self: reader.Reader) -> None:
        with contextlib.suppress(apsw.IOError):
            close(self)

    reader.Reader.close = quietly  # type: ignore[method-assign]


class Run:
    """Broker and ledger in threads of this process, workers as processes, one client."""

    def __init__(self, folder: pathlib.Path, seed: int) -> None:
        self.folder = folder
        self.recorder = Recorder(folder)
        _note_marks(self.recorder)
        self.said: list[Said] = []
        self._speakers: dict[int, str] = {}
        self._halves: dict[int, tuple[int, list[bytes]]] = {}
        self._listen()
        kinds = tuple(kind for kind in KINDS if kind != "large")  # there is no store here
        self.customer = Customer(f"ipc://{folder}/front", seed, at_once=4, kinds=kinds)

    def _listen(self) -> None:
        """Notes every frame that leaves the front of the broker or the ledger, before it does."""
        send = zmq.Socket.send

        def noted(socket: Any, data: Any, flags: int = 0, *given: Any, **more: Any) -> Any:
            who = self._speakers.get(id(socket))
            if who is None:
                return send(socket, data, flags, *given, **more)
            at, frames = self._halves.pop(id(socket), (len(self.recorder.log), []))
            frames.append(bytes(data))
            if not flags & zmq.SNDMORE and len(frames) > 1:
                self.said.append(Said(at, who, frames[1], frames[2:]))
            told = send(socket, data, flags, *given, **more)  # a peer that is gone: it raises
            if flags & zmq.SNDMORE:
                self._halves[id(socket)] = at, frames
            return told

        zmq.Socket.send = noted  # type: ignore[method-assign]

    def start_ledger(self) -> Callable[[], None]:
        settings = LedgerSettings(
            state=self.folder / "ledger", listen=f"ipc://{self.folder}/ledger.sock",
            fund=(("local", 10**13),),
        )  # fmt: skip
        ledger = ledger_app.Ledger(settings)
        self._speakers[id(ledger._socket)] = "ledger"
        ledger.open()
        assert not ledger.read_only, ledger.read_only
        stop, wake = sockets.socketpair()
        thread = threading.Thread(target=ledger.run, args=(stop,), daemon=True)
        thread.start()

        def end() -> None:
            wake.send(b"x")
            thread.join()
            ledger.close()
            del self._speakers[id(ledger._socket)]  # what it says until then is promised, too

        return end

    def start_broker(self) -> Callable[[], None]:
        addresses = {name: f"ipc://{self.folder}/{name}" for name in ("front", "back")}
        given = {
            **addresses, "state": self.folder / "broker",
            "ledger": f"ipc://{self.folder}/ledger.sock", "ledger_resend_ms": 200,
        }  # fmt: skip
        broker = Broker(read_settings(given, {}))
        self._speakers[id(broker._front_socket)] = "broker"
        thread = threading.Thread(target=broker.run, daemon=True)
        thread.start()

        def end() -> None:
            broker.stop()
            thread.join()
            del self._speakers[id(broker._front_socket)]  # what it says until then is promised, too

        return end

    def start_worker(self, name: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-P", "-m", "gristmill.worker", "--state", str(self.folder / name)]
        argv += ["--broker", f"ipc://{self.folder}/back", "--name", name, "--slots", "1"]
        with open(self.folder / f"{name}.log", "wb") as log:
            return subprocess.Popen([*argv, "--die-with-parent"], stdout=log, stderr=log)

    def until(self, jobs: int) -> None:
        """Until this many jobs of the client are over."""
        orders = self.customer.orders
        reached = lambda: sum(order.final is not None for order in orders) >= jobs  # noqa: E731
        assert self.customer.run_until(reached, RUN_S), "the grid stands still"


def main() -> None:
    """Records a run: work, a restart of each process under load, work."""
    out, fault, seed, jobs = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    logging.basicConfig(level=logging.ERROR)
    FAULTS[fault]()
    _close_for_reading()
    bodies.LARGE_BYTES, bodies.SEGMENT_BYTES = LARGE_BYTES, SEGMENT_BYTES
    journal._CHECKPOINT_PAGES = sqlite.CHECKPOINT_PAGES = CHECKPOINT_PAGES
    with tempfile.TemporaryDirectory(prefix="gm-") as folder:
        run = Run(pathlib.Path(folder), seed)
        workers = [run.start_worker(f"w{number}") for number in range(2)]
        try:
            end_ledger, end_broker = run.start_ledger(), run.start_broker()
            begin = len(run.recorder.log)
            run.until(jobs)
            end_broker()
            end_broker = run.start_broker()
            run.until(2 * jobs)
            end_ledger()
            end_ledger = run.start_ledger()
            run.until(3 * jobs)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        recording = Recording(run.recorder.log, run.said, run.customer.orders, begin)
        with open(out, "wb") as file:
            file.write(msgspec.msgpack.encode(recording))
        run.customer.close()
        end_broker()
        end_ledger()


# ---------------------------------------------------------------- promises, by place


def promises(recording: Recording) -> list[tuple[int, Callable[[dict[int, Order]], None]]]:
    """(place, what was promised there) in order, as changes to the list of a client's orders.

    Order 0 stands for the broker as the ledger's client: ``committed`` is what the ledger acked.
    """
    from disk_client import Kept, digest_of_frames

    known = {order.job: order for order in recording.orders if order.job}
    found: list[tuple[int, Callable[[dict[int, Order]], None]]] = []

    def add(at: int, change: Callable[[dict[int, Order]], None]) -> None:
        found.append((at, change))

    for said in recording.said:
        if said.who == "ledger":
            message = wl.decode_from_ledger.decode(said.header)
            if isinstance(message, wl.Acked):
                sequence = message.sequence

                def acked(orders: dict[int, Order], sequence: int = sequence) -> None:
                    orders[0].committed = max(orders[0].committed, sequence)

                add(said.at, acked)
            continue
        told = say.decode_broker.decode(said.header)
        order = known.get(getattr(told, "job", 0) or getattr(getattr(told, "status", 0), "job", 0))
        if order is None:
            continue
        make = _promise(told, order, lambda frames=said.frames: digest_of_frames(frames), Kept)
        if make is not None:
            add(said.at, make)
    return found


def _promise(
    told: Any, order: Order, digest: Callable[[], str], kept: Any
) -> Callable[[dict[int, Order]], None] | None:
    if isinstance(told, say.Accepted):

        def accepted(orders: dict[int, Order]) -> None:
            new = Order(order.submission, order.kind, order.count, order.base, told.job)
            orders.setdefault(told.job, new)

        return accepted
    if isinstance(told, say.InputCredit):

        def committed(orders: dict[int, Order]) -> None:
            if one := orders.get(told.job):
                one.committed = max(one.committed, told.committed)

        return committed
    if isinstance(told, say.Results):
        head = told.head
        one = kept(
            told.sequence, head.first, head.count, told.attempt, told.node,
            list(told.not_final), digest(),
        )  # fmt: skip

        def delivered(orders: dict[int, Order]) -> None:
            results = orders[told.job].results
            if not results or results[-1].sequence < one.sequence:
                results.append(one)

        return delivered
    if isinstance(told, say.JobEvent) and told.status.state in say.FINAL_JOB_STATES:

        def final(orders: dict[int, Order]) -> None:
            orders[told.status.job].final = told.status

        return final
    return None


if __name__ == "__main__":
    main()
