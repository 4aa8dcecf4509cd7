"""Damages copies of a journal and looks at what clients are told: ``disk_rot.py JOB.json``.

Each damaged copy gets a real broker of its own (in a thread, on real sockets), a client that reads
everything that can be read, and a peer in the ledger's place that takes the outbox. What an
undamaged copy says is the truth; a damaged one may say less, if it reports so, but nothing else.
"""

import contextlib
import copy
import json
import logging
import os
import pathlib
import random
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import disk_damage
import msgspec
import zmq
from disk_client import digest_of_frames
from disk_cuts import memory_folder

from gristmill.broker.app import Broker
from gristmill.broker.settings import read_settings
from gristmill.wire import client as say
from gristmill.wire import ledger as wl
from gristmill.wire.frames import encode
from gristmill.wire.limits import PROTOCOL
from gristmill.wire.spec import Command, JobSpec

ANSWER_S = 20.0
PAGE = 200  #: rows of one answer
QUIET_S = 0.03  #: nothing more comes on a subscription after this silence
MISSING_S = 0.5  #: nor after this, while a result is missing


class Reports(logging.Handler):
    """What the broker's log says is damaged, and whatever it calls critical."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


class Seen(msgspec.Struct):
    """Everything that a client and a ledger were told."""

    cards: dict[int, say.JobStatus] = {}
    results: dict[tuple[int, int], tuple[Any, ...]] = {}
    subtasks: dict[tuple[int, int], say.SubtaskRow] = {}
    manifest: dict[tuple[int, int], say.ManifestRow] = {}
    entries: dict[int, bytes] = {}
    refusals: list[str] = []
    submissions: dict[int, int] = {}  #: what a repeated submission is answered: index to job


class Client:
    """Asks one question at a time, and plays the ledger meanwhile."""

    def __init__(self, folder: pathlib.Path, applied: int) -> None:
        self._context = zmq.Context()
        self._ledger = self._context.socket(zmq.ROUTER)
        self._ledger.bind(f"ipc://{folder}/ledger.sock")
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(f"ipc://{folder}/front")
        self._poller = zmq.Poller()
        self._poller.register(self._ledger, zmq.POLLIN)
        self._poller.register(self._socket, zmq.POLLIN)
        self._request = 0
        self._applied = applied
        self._session = b""
        self.seen = Seen()
        self.is_over: Callable[[], Any] = lambda: False

    def close(self) -> None:
        self._ledger.close(0)
        self._socket.close(0)
        self._context.term()

    def hello(self) -> None:
        self._send(say.Hello(PROTOCOL, os.urandom(16), "local", "3.11", "rot"))
        self._until(lambda message: isinstance(message, say.Welcome))

    def _send(self, message: msgspec.Struct, *frames: bytes) -> None:
        self._socket.send_multipart([encode(message), *frames])

    def _turn(self, seconds: float) -> list[Any]:
        """What came on the client's socket; the ledger's is answered."""
        ready = dict(self._poller.poll(max(0, int(seconds * 1000))))
        if self._ledger in ready:
            peer, frame = self._ledger.recv_multipart()
            self._play_ledger(peer, wl.decode_to_ledger.decode(frame))
        found = []
        while self._socket.poll(0):
            header, *frames = self._socket.recv_multipart()
            message = say.decode_broker.decode(header)
            found.append(message)
            if isinstance(message, say.Welcome):
                self._session = message.session
            elif isinstance(message, say.Results):
                what = (
                    message.head.first, message.head.count, message.attempt, message.node,
                    [tuple(run) for run in message.not_final], digest_of_frames(frames),
                )  # fmt: skip
                self.seen.results[message.job, message.sequence] = what
            elif isinstance(message, say.Refused):
                self.seen.refusals.append(f"{message.code} {message.message}")
        return found

    def _play_ledger(self, peer: bytes, message: Any) -> None:
        verdicts = []
        if isinstance(message, wl.Post):
            for sequence, entry in enumerate(message.entries, message.first):
                self.seen.entries.setdefault(sequence, msgspec.msgpack.encode(entry))
                if isinstance(entry, wl.Hold):
                    verdicts.append(wl.Verdict(sequence, entry.ref))
            if message.first <= self._applied + 1:
                self._applied = max(self._applied, message.first + len(message.entries) - 1)
        if isinstance(message, wl.Post | wl.Ping):
            answer = wl.Acked(message.broker, self._applied, verdicts)
            self._ledger.send_multipart([peer, encode(answer)])

    def _until(self, wanted: Any) -> Any:
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline and not self.is_over():
            for message in self._turn(0.05):
                if wanted(message):
                    return message
        raise TimeoutError("the broker does not answer")

    def call(self, kind: Any, *given: Any, frame: bytes | None = None, **more: Any) -> Any:
        self._request += 1
        number = self._request
        message = kind(self._session, number, *given, **more)
        self._send(message, *([] if frame is None else [frame]))
        return self._until(lambda answer: getattr(answer, "request", -1) == number)

    def ask(self, about: str, kind: Any, **more: Any) -> Any:
        """The answer, or None when it was refused."""
        answer = self.call(say.Ask, about, **more)
        if isinstance(answer, say.Refused):
            return None
        return msgspec.msgpack.decode(answer.body, type=kind)

    # ------------------------------------------------------------ everything

    def read_all(self, jobs: list[int]) -> Seen:
        seen = self.seen
        for card in self.ask("jobs", list[say.JobStatus], limit=10_000) or ():
            seen.cards[card.job] = card
        for job in jobs:
            card = self.ask("job", say.JobStatus, job=job)
            if card is not None:
                assert seen.cards.setdefault(job, card).count == card.count
            rows = self._pages("subtasks", say.SubtaskRow, job, lambda row: row.index + 1)
            seen.subtasks.update({(job, row.index): row for row in rows})
            lines = self._pages("manifest", say.ManifestRow, job, lambda row: row.sequence)
            seen.manifest.update({(job, line.sequence): line for line in lines})
            self._read_results(job)
        self._wait_for_outbox()
        return seen

    def _pages(self, about: str, kind: Any, job: int, after: Any) -> list[Any]:
        rows: list[Any] = []
        while True:
            first = after(rows[-1]) if rows else 0
            more = self.ask(about, list[kind], job=job, first=first, limit=PAGE)
            if not more or len(rows) > 100 * PAGE:
                return rows
            rows += more

    def _read_results(self, job: int) -> None:
        answer = self.call(say.Subscribe, job, 0, 1 << 50)
        if isinstance(answer, say.Refused):
            return
        card = self.seen.cards.get(job)
        last = (job, card.results if card else 0)
        quiet = time.monotonic() + MISSING_S
        while time.monotonic() < quiet:
            if self._turn(QUIET_S):
                quiet = time.monotonic() + MISSING_S
            elif last in self.seen.results or not last[1]:
                break
        self._send(say.Unsubscribe(self._session, job))

    def _wait_for_outbox(self) -> None:
        deadline = time.monotonic() + 3.0
        while self.ask("grid", dict[str, Any])["outbox"] and time.monotonic() < deadline:
            self._turn(0.02)

    def submit(self, submission: bytes) -> Any:
        """A new small job, of a command, so that no function is needed."""
        spec = JobSpec("command", command=Command(["true"]), count=1, name="after")
        return self.call(say.Submit, submission, spec, frame=b"")


class Look:
    """What one copy of a state folder says."""

    def __init__(self, state: pathlib.Path, applied: int) -> None:
        self.seen = Seen()
        self.faults: list[str] = []
        self.is_writable = False
        self.reports = Reports()
        self.quarantined = 0
        with tempfile.TemporaryDirectory(prefix="gm-rot-") as run:
            folder = pathlib.Path(run)
            logger = logging.getLogger("gristmill")
            logger.addHandler(self.reports)
            logging.getLogger().handlers[:] = [logging.NullHandler()]
            client = Client(folder, applied)
            try:
                self._look(state, folder, client)
            finally:
                logger.removeHandler(self.reports)
                client.close()

    def _look(self, state: pathlib.Path, folder: pathlib.Path, client: Client) -> None:
        given = {
            "state": state, "front": f"ipc://{folder}/front", "back": f"ipc://{folder}/back",
            "ledger": f"ipc://{folder}/ledger.sock", "disk_reserve_bytes": 0,
        }  # fmt: skip
        jobs = _job_numbers(state)
        try:
            broker = Broker(read_settings(given, {}))
        except Exception as error:  # whatever it is: it must always start
            self.faults.append(f"it does not start: {error!r}")
            return
        ended: list[BaseException] = []

        def run() -> None:
            try:
                broker.run()
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        client.is_over = lambda: ended
        try:
            client.hello()
            self.seen = copy.deepcopy(client.read_all(jobs))
            answer = client.submit(os.urandom(16))
            self.is_writable = isinstance(answer, say.Accepted)
            if not self.is_writable:
                self.reports.texts.append(f"new work is refused: {answer}")
        except TimeoutError as error:
            if not ended:
                self.faults.append(f"{error}; {self.reports.texts[-3:]}")
            self.seen = copy.deepcopy(client.seen)
        self.quarantined = broker.metrics.rows_quarantined
        broker.stop()
        thread.join(ANSWER_S)
        if ended and "cannot be written" in str(ended[0]):
            self.reports.texts.append(f"journal {ended[0]}")  # it ended, and said why
        elif ended:
            self.faults.append(f"it ended with {ended[0]!r}")

    @property
    def is_reported(self) -> bool:
        """Whether it said that something is damaged."""
        if self.quarantined or any(text.startswith("journal ") for text in self.reports.texts):
            return True
        return any("damaged" in text for text in self.seen.refusals)

    @property
    def is_cut(self) -> bool:
        """Whether it said that the end of its log is lost: what it says may be older."""
        return any(
            "journal damaged: " in text or "unreadable" in text for text in self.reports.texts
        )

    def lies(self, truth: "Look", last_entry: int) -> tuple[list[str], list[str]]:
        """(what it says that was never so, what it does not say any more)."""
        wrong: list[str] = []
        less: list[str] = []
        mine, real = self.seen, truth.seen
        for job, card in real.cards.items():
            if job not in mine.cards:
                less.append(f"j{job}")
            elif _told(mine.cards[job]) != _told(card):
                is_older = _is_less(mine.cards[job], card)
                kind = less if is_older else wrong
                kind.append(f"card {mine.cards[job]} instead of {card}")
        names = ("results", "subtasks", "manifest", "entries")
        for name in names[: 3 if self.is_cut else 4]:  # entries are numbered anew behind a cut
            have, should = dict(getattr(mine, name)), getattr(real, name)
            if name == "entries":  # what the start itself adds may differ
                should = {key: value for key, value in should.items() if key <= last_entry}
                have = {key: value for key, value in have.items() if key <= last_entry}
            for key, value in should.items():
                if key not in have:
                    less.append(f"{name} {key}")
                elif have[key] != value:
                    kind = less if _is_void(name, have[key]) else wrong
                    kind.append(f"{name} {key}: {have[key]!r:.300} instead of {value!r:.300}")
            wrong += [f"{name} {key} was never: {have[key]!r:.200}" for key in have.keys() - should]
        wrong += [f"j{job} was never" for job in mine.cards.keys() - real.cards.keys()]
        return wrong, less


def _told(card: say.JobStatus) -> Any:
    """A card without what passes with time."""
    return msgspec.structs.replace(card, eta_ms=0, reason="", started_ms=0)


def _is_less(card: say.JobStatus, real: say.JobStatus) -> bool:
    """Older, or less far: nothing but how far it came may differ."""
    same = ("job", "name", "kind", "tenant", "tier", "priority", "submitted_ms", "cap_ucredits",
            "parent")  # fmt: skip
    far = ("done", "failed", "cancelled", "spent_ucredits", "results")
    return (
        card.state not in say.FINAL_JOB_STATES
        and all(getattr(card, name) == getattr(real, name) for name in same)
        and all(getattr(card, name) <= getattr(real, name) for name in far)
    )


def _is_void(name: str, found: Any) -> bool:
    """A result in whose place nothing is final, a subtask without an end, a filler entry."""
    if name == "subtasks":
        return found.state in ("waiting", "ready", "leased")
    if name == "results":
        return found[4] == [(0, found[1])] and found[3] == ""
    if name == "manifest":
        return bool(found.not_final == [(0, found.count)] and not found.node)
    if name == "entries":
        return b"/0" in found and len(found) < 60
    return False


def _job_numbers(state: pathlib.Path) -> list[int]:
    """From the truth's list, which the test writes beside the journal."""
    return json.loads((state / "jobs.json").read_text())


def look_at(source: pathlib.Path, kind: str, dice: random.Random, applied: int) -> tuple[Look, str]:
    """A damaged copy, looked at; and what was done to it."""
    with tempfile.TemporaryDirectory(prefix="gm-rot-", dir=memory_folder()) as name:
        state = pathlib.Path(name) / "broker"
        shutil.copytree(source, state)
        if kind.startswith("cell:"):
            table, _, column = kind.removeprefix("cell:").partition(".")
            done = disk_damage.flip_cell(state / "journal.db", table, column, dice)
        else:
            done = disk_damage.DAMAGES[kind](state / "journal.db", dice)
        return Look(state, applied), done


def main() -> None:
    """Looks at as many copies as the file says; prints what it found as one JSON line."""
    job = json.loads(pathlib.Path(sys.argv[1]).read_text())
    source, dice = pathlib.Path(job["state"]), random.Random(job["seed"])
    with contextlib.closing(sqlite3.connect(f"file:{source}/journal.db?mode=ro", uri=True)) as db:
        (last,) = db.execute("SELECT ifnull(max(sequence), 0) FROM outbox")
        (acked,) = db.execute("SELECT ifnull(max(value), 0) FROM meta WHERE key = 'outbox_acked'")
    truth, _ = look_at(source, "none", dice, acked[0])
    assert not truth.faults, truth.faults
    told: dict[str, Any] = {"copies": {}, "reported": {}, "unwritable": {}, "faults": []}
    for kind, copies in job["damages"].items():
        for number in range(copies):
            look, done = look_at(source, kind, dice, acked[0])
            wrong, less = look.lies(truth, last[0])
            faults = look.faults + wrong
            if less and not look.is_reported:
                faults.append(f"silent about {less[:3]} ({len(less)}); its log: "
                              f"{look.reports.texts[:3]}")  # fmt: skip
            told["copies"][kind] = number + 1
            told["reported"][kind] = told["reported"].get(kind, 0) + look.is_reported
            told["unwritable"][kind] = told["unwritable"].get(kind, 0) + (not look.is_writable)
            told["faults"] += [f"{kind} ({done}): {text:.600}" for text in faults[:2]]
    print(json.dumps(told))


if __name__ == "__main__":
    main()
