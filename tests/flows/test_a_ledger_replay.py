"""Row A15, the receipts' side: the whole stream again and again, tampered, and after an absence.

The stream is what the broker posts: a listener in front of the real ledger keeps a copy of it.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator

import msgspec
import zmq
from grid_rig import gristmill, until

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.errors import GridError
from gristmill.wire.frames import encode
from gristmill.wire.ledger import (
    Acked,
    Contribution,
    Post,
    decode_from_ledger,
    decode_to_ledger,
)

ANSWER_MS = 20_000


def double(x: int) -> int:
    return 2 * x


def rows(grid: Grid) -> dict[str, list[tuple[object, ...]]]:
    """Everything that the ledger has on its disk, by table."""
    path = grid.state / "ledger" / "ledger.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        tables = [n for (n,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {name: sorted(db.execute(f"SELECT * FROM {name}"), key=repr) for name in tables}


class Listener:
    """Between broker and ledger: keeps every post, changes nothing."""

    def __init__(self, front: str, behind: str) -> None:
        self.posts: dict[int, msgspec.Struct] = {}
        self.broker = ""
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.bind(front)
        self._dealers: dict[bytes, zmq.Socket[bytes]] = {}
        self._behind = behind
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        while not self._is_over.is_set():
            ready = dict(poller.poll(50))
            if self._router in ready:
                peer, frame = self._router.recv_multipart()
                if peer not in self._dealers:
                    dealer = self._dealers[peer] = self._context.socket(zmq.DEALER)
                    dealer.connect(self._behind)
                    poller.register(dealer, zmq.POLLIN)
                message = decode_to_ledger.decode(frame)
                if isinstance(message, Post):
                    self.broker = message.broker
                    self.posts.update(enumerate(message.entries, message.first))
                self._dealers[peer].send(frame)
            for peer, dealer in self._dealers.items():
                if dealer in ready:
                    self._router.send_multipart([peer, dealer.recv()])

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()
        self._context.destroy(0)


class Replayer:
    """Somebody who has the stream and posts it again."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(address)

    def post(self, broker: str, first: int, *entries: msgspec.Struct) -> Acked:
        self._socket.send(encode(Post(broker, first, list(entries))))  # type: ignore[arg-type]
        assert self._socket.poll(ANSWER_MS), "the ledger does not answer"
        answer = decode_from_ledger.decode(self._socket.recv())
        assert isinstance(answer, Acked), answer
        return answer

    def close(self) -> None:
        self._context.destroy(0)


@contextlib.contextmanager
def listened(grid: Grid) -> Iterator[Listener]:
    """A listener on the way from this grid's broker to its ledger."""
    listener = Listener(f"ipc://{grid.run}/heard", f"ipc://{grid.run}/ledger")
    try:
        yield listener
    finally:
        listener.close()


def tallied(client: Client) -> tuple[int, int]:
    """(subtasks, micro-credits) of the bill; (-1, -1) while the ledger does not answer."""
    try:
        bill = client.usage()
    except GridError as error:
        assert error.code == "LEDGER_DOWN", error
        return -1, -1
    return sum(row.subtasks for row in bill), sum(row.amount_ucredits for row in bill)


def is_proven(client: Client) -> Callable[[int], bool]:
    """Whether a job has receipts and each of them its proof."""

    def ask(job: int) -> bool:
        rows = [row for page in client.receipts(job) for row in page.receipts]
        return bool(rows) and all(row.epoch for row in rows)

    return ask


def test_a15_the_whole_stream_twice_changes_nothing_and_tampering_is_refused() -> None:
    grid = Grid.temporary(workers=2, slots=1)
    # The last option of a name wins: the broker finds its ledger behind the listener.
    grid.options["broker"] = ["--ledger", f"ipc://{grid.run}/heard"]
    grid.options["ledger"] = ["--epoch-s", "1"]
    with grid, listened(grid) as listener, Client(grid.address) as client:
        assert list(client.map(double, range(500), tier="batch", window=100)) == [
            2 * x for x in range(500)
        ]
        assert list(client.map(double, range(50), tier="batch")) == [2 * x for x in range(50)]
        until("everything is tallied", lambda: tallied(client)[0] == 550)
        held = lambda: [r for r in client.balance(everyone=True).accounts if r.held_ucredits]  # noqa: E731
        until("every hold is released", lambda: not held())
        jobs = [status.job for status in client.jobs()]
        until("every receipt is in a closed epoch", lambda: all(map(is_proven(client), jobs)))
        before, stream = rows(grid), [listener.posts[n] for n in sorted(listener.posts)]
        assert sorted(listener.posts) == list(range(1, len(stream) + 1))
        units = [
            (entry.ref, entry.replica, entry.attempt, index)
            for entry in stream
            if isinstance(entry, Contribution)
            for index in range(entry.first, entry.first + entry.count)
        ]
        assert len(units) == len(set(units)) == 550, "one receipt for each accepted attempt"
        replayer = Replayer(f"ipc://{grid.run}/ledger")
        try:
            for _ in range(2):
                for at in range(0, len(stream), 100):
                    acked = replayer.post(listener.broker, at + 1, *stream[at : at + 100])
                    assert acked.sequence == len(stream)
                    assert not [one for one in acked.verdicts if one.code]
            assert rows(grid) == before, "an idle ledger closes no epoch either"
            for job in jobs:
                done = gristmill(grid, "audit", "prove", f"j{job}")
                assert done.returncode == 0, done.stdout
            alarms = grid.log("ledger").read_text().count("ALARM")
            assert alarms == 0
            place, entry = next(
                (place, one) for place, one in enumerate(stream) if isinstance(one, Contribution)
            )
            forged = msgspec.structs.replace(entry, amount_ucredits=entry.amount_ucredits + 1)
            (verdict,) = replayer.post(listener.broker, place + 1, forged).verdicts
            assert verdict.code == "LEDGER_CONFLICT" and "another content" in verdict.message
            # The same work under a number of its own is refused as well: the unit is the key.
            again = replayer.post(listener.broker, len(stream) + 1, entry)
            assert [one.code for one in again.verdicts] == ["LEDGER_CONFLICT"]
        finally:
            replayer.close()
        assert grid.log("ledger").read_text().count("ALARM") == 2
        after = rows(grid)
        money = ("account", "transfer", "hold", "contribution", "tally", "mint")
        for table in (*money, "epoch", "epoch_range", "public_key"):
            assert after[table] == before[table], f"{table}: nothing is ever adjusted"


def test_a15_while_the_ledger_is_down_contributions_spool_and_then_tally(
    own_grid: Callable[..., Grid],
) -> None:
    grid = own_grid(workers=2)
    with Client(grid.address) as client:
        stream = client.map(double, range(3_000), tier="batch", window=500)
        first = next(stream)
        grid.kill("ledger")
        assert [first, *stream] == [2 * x for x in range(3_000)]
        assert client.grid()["outbox"] > 0, "contributions wait in the outbox"
        grid.restart("ledger")
        job = client.jobs(1)[0].job
        until("all of them arrived", lambda: client.grid()["outbox"] == 0)
        until("tallied", lambda: tallied(client) == (3_000, client.status(job).spent_ucredits))
        assert client.balance().sum_ucredits == 0
    books = rows(grid)
    assert sum(row[4] for row in books["contribution"]) == 3_000
