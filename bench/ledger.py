"""Transfers a second at batches of 8,190, 100 and 1, beside raw ``executemany`` on the same tables.

A contribution is two transfers (97 % to the node, 3 % toll), a line on the bill and an entry of the
outbox. ``book`` applies posts in this process; ``process`` is the ledger's own, over its socket,
as the broker's outbox sends (posts that fill a header, four on the way: it takes what waits in one
transaction); ``rows`` inserts the very rows that the book wrote into new tables
of the same schema, triggers and constraints, one transaction a batch with FULL syncs, and does
nothing else: no decisions, no sums, no checksums, no answers. Sums are audited in the end.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import apsw
import msgspec
import zmq
from harness.measure import Runs, arguments, own_cpu_us, process_cpu_us

from gristmill.broker.outbox import BATCH_BYTES, BATCH_ENTRIES
from gristmill.ledger import audit, schema
from gristmill.ledger.sqlite import SqliteBook
from gristmill.ledger.sqlite_checks import TABLES as SCRIPT
from gristmill.wire.frames import encode
from gristmill.wire.ledger import (
    Acked,
    Contribution,
    Fund,
    Hold,
    Post,
    decode_from_ledger,
)

BROKER, REF, TENANT = "bench", "bench/1", "local"
AMOUNT, TOLL = 1_000, 30
WINDOW = 4  #: posts on the way to the ledger's process
POSTS_MAX = 256  #: of any size: each has an answer, and 1,000 of those wait for a peer at most
ANSWER_MS = 60_000
#: kept in this order: a row refers to those of the tables before it
TABLES = {
    "account": schema.ACCOUNT,
    "transfer": schema.TRANSFER,
    "hold": schema.HOLD,
    "contribution": schema.CONTRIBUTION,
    "entry": schema.ENTRY,
}


def contributions(first: int, count: int) -> list[Any]:
    """Entries of one job: each bills a thousand subtasks."""
    return [
        Contribution(
            REF, TENANT, "n" * 64, 1 + at, 1_000 * at, 1_000, 1, 1_000, 0, 20_000, 19_000, 9_000,
            "cgroup", True, AMOUNT, TOLL, 1_790_000_000_000, 0, b"s" * 64, b"w" * 32, b"o" * 32,
            20_000, 19_000, 1_000_000, 10, 50_000, 512 << 20, "standard", b"c" * 64,
        )
        for at in range(first, first + count)
    ]  # fmt: skip


def batches(count: int, batch: int) -> list[Post]:
    """The outbox, cut; entry 1 is the job's hold."""
    return [
        Post(BROKER, 2 + first, contributions(first, min(batch, count - first)))
        for first in range(0, count, batch)
    ]


def opening(count: int) -> Post:
    """The hold that all of it is billed to."""
    return Post(BROKER, 1, [Hold(REF, TENANT, AMOUNT * count)])


def check(db: apsw.Connection, count: int) -> None:
    """The books are in order, and everything is billed once."""
    faults = audit.audit(db)
    assert not faults, faults
    billed = db.execute("SELECT count(*), sum(amount), sum(toll) FROM contribution").fetchone()
    assert billed == (count, AMOUNT * count, TOLL * count), billed


def book(folder: pathlib.Path, count: int, batch: int) -> dict[str, float]:
    """``Book.apply``, one post a transaction."""
    made = SqliteBook(folder)
    made.load()
    made.apply([Fund(0, TENANT, AMOUNT * count, "fund"), opening(count)], 1)
    posts = batches(count, batch)
    cpu, began = own_cpu_us(), time.perf_counter()
    for post in posts:
        made.apply([post], 1)
    seconds = time.perf_counter() - began
    cpu = own_cpu_us() - cpu
    check(made.db, count)
    made.close()
    return {"rate": 2 * count / seconds, "seconds": seconds, "cpu_us": cpu / (2 * count)}


def rows(folder: pathlib.Path, source: pathlib.Path, count: int, batch: int) -> dict[str, float]:
    """The same rows, inserted raw."""
    old = apsw.Connection(str(source / "ledger.db"), flags=apsw.SQLITE_OPEN_READONLY)
    found = {
        table: list(old.execute(f"SELECT {columns}, {schema.seal_of(table)} FROM {table}"))
        for table, columns in TABLES.items()
    }
    brokers = list(old.execute(f"SELECT {schema.OUTBOX}, crc FROM outbox"))
    old.close()
    db = apsw.Connection(str(folder / "raw.db"))
    db.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON")
    db.execute("PRAGMA cache_size=-65536")
    db.execute(f"BEGIN IMMEDIATE; {SCRIPT} COMMIT;")
    statements = {table: schema.insert(table, columns) for table, columns in TABLES.items()}
    is_ours = len(found["transfer"]) - 2 * count  # funding and the hold's own transfer
    db.execute("BEGIN IMMEDIATE")
    db.executemany(statements["account"], found["account"])
    db.executemany(statements["transfer"], found["transfer"][:is_ours])
    db.executemany(statements["hold"], found["hold"])
    db.executemany(schema.insert("outbox", schema.OUTBOX), brokers)
    db.executemany(statements["entry"], found["entry"][:1])
    db.execute("COMMIT")
    parts = [
        (
            found["transfer"][is_ours + 2 * at : is_ours + 2 * (at + batch)],
            found["contribution"][at : at + batch],
            found["entry"][1 + at : 1 + at + batch],
        )
        for at in range(0, count, batch)
    ]
    cpu, began = own_cpu_us(), time.perf_counter()
    for transfers, lines, entries in parts:
        db.execute("BEGIN IMMEDIATE")
        db.executemany(statements["transfer"], transfers)
        db.executemany(statements["contribution"], lines)
        db.executemany(statements["entry"], entries)
        db.execute("COMMIT")
    seconds = time.perf_counter() - began
    cpu = own_cpu_us() - cpu
    assert db.execute("SELECT count(*) FROM contribution").fetchone() == (count,)
    db.close()
    return {"rate": 2 * count / seconds, "seconds": seconds, "cpu_us": cpu / (2 * count)}


def process(folder: pathlib.Path, count: int, batch: int) -> dict[str, float]:
    """The ledger's process, as the broker speaks to it."""
    address = f"ipc://{folder}/socket"
    ledger = subprocess.Popen(
        [sys.executable, "-P", "-m", "gristmill.ledger", "--state", str(folder / "state"),
         "--listen", address, "--fund", f"{TENANT}={AMOUNT * count // 1_000_000 + 1}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(address)
    try:
        acked = _post(socket, [opening(count)])
        room = BATCH_BYTES // len(msgspec.msgpack.encode(contributions(count, 1)[0]))
        size = min(batch, BATCH_ENTRIES, room)
        posts = batches(count, size)
        messages = [encode(post) for post in posts]
        cpu, began = process_cpu_us(ledger.pid), time.perf_counter()
        sent = 0
        while acked < count + 1:
            while (
                sent < len(posts)
                and posts[sent].first < acked + 1 + WINDOW * BATCH_ENTRIES
                and sent - (acked - 1) // size < POSTS_MAX
            ):
                socket.send(messages[sent])
                sent += 1
            acked = _acked(socket)
        seconds = time.perf_counter() - began
        cpu = process_cpu_us(ledger.pid) - cpu
    finally:
        ledger.terminate()
        ledger.wait(20)
        context.destroy(0)
    db = apsw.Connection(str(folder / "state" / "ledger.db"))
    check(db, count)
    db.close()
    return {"rate": 2 * count / seconds, "seconds": seconds, "cpu_us": cpu / (2 * count)}


def _post(socket: "zmq.Socket[bytes]", posts: list[Post]) -> int:
    for post in posts:
        socket.send(encode(post))
    return _acked(socket)


def _acked(socket: "zmq.Socket[bytes]") -> int:
    assert socket.poll(ANSWER_MS), "the ledger does not answer"
    answer = decode_from_ledger.decode(socket.recv())
    assert isinstance(answer, Acked), answer
    assert not any(verdict.code for verdict in answer.verdicts), answer.verdicts
    return answer.sequence


def main() -> None:
    """Raw rows, the book, the process, raw rows, for each batch."""
    options = arguments(
        __doc__ or "",
        quick={"n8190": 500, "n100": 200, "n1": 20, "rounds": 1},
        n8190=49_140, n100=20_000, n1=1_000, rounds=3,
    )  # fmt: skip
    runs = Runs("ledger", vars(options))
    summary: dict[str, float] = {}
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="gristmill-ledger-"))
    try:
        for batch in (8_190, 100, 1):
            count = getattr(options, f"n{batch}")
            for number in range(options.rounds):
                folder = scratch / f"{batch}-{number}"
                (folder / "process").mkdir(parents=True, mode=0o700)
                ours = book(folder / "book", count, batch)
                runs.add(f"rows {batch}", **rows(folder, folder / "book", count, batch))
                runs.add(f"book {batch}", **ours)
                runs.add(f"process {batch}", **process(folder / "process", count, batch))
                shutil.rmtree(folder)
            floor = runs.median(f"rows {batch}", "rate")
            for what in ("book", "process"):
                rate = runs.median(f"{what} {batch}", "rate")
                summary[f"{what}_{batch}_rate"] = round(rate)
                summary[f"{what}_{batch}_of_floor"] = round(rate / floor, 3)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    runs.finish(**summary)


if __name__ == "__main__":
    main()
