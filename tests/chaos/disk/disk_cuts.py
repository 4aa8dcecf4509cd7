"""Judges power cuts of one recording: ``disk_cuts.py RECORDING SEED CUTS SECONDS all|first``.

For each cut the disk is built as it may be then, the real broker's recovery and the real ledger's
opening run on it, what waits in the outbox is posted, and the judge compares the files with every
promise that had left by then. Prints what it counted as one JSON line; with ``first`` it ends soon
after the first fault.
"""

import collections
import json
import logging
import pathlib
import random
import shutil
import sys
import tempfile
import time
from typing import Any

import disk_judge
import msgspec
from disk_client import Order
from disk_images import MODES, Files, images, write_out
from disk_record import Recording, promises

from gristmill.broker.core.state import Config
from gristmill.broker.journal import Journal
from gristmill.broker.metrics import Metrics
from gristmill.broker.replay import recover
from gristmill.ledger.core.effects import RaiseAlarm
from gristmill.ledger.sqlite import SqliteBook
from gristmill.wire.ledger import Entry, Post

_decode_entry = msgspec.msgpack.Decoder(Entry).decode
BATCH = 256
FIRST = 30
ROUND = 500  #: cuts of one pass over the recording


def memory_folder() -> str | None:
    """Where files cost no disk, if this host has such a place."""
    place = pathlib.Path("/dev/shm")
    return str(place) if place.is_dir() and shutil.disk_usage(place).free > 1 << 30 else None


def judge_image(files: Files, orders: dict[int, Order]) -> disk_judge.Verdict:
    """Recovers from one image and judges it."""
    with tempfile.TemporaryDirectory(prefix="gm-cut-", dir=memory_folder()) as name:
        folder = pathlib.Path(name)
        write_out(files, folder)
        try:
            faults = _recover(folder / "broker") + _open_books(folder)
        except Exception as error:  # whatever it is, it is the verdict
            faults = [f"the start failed: {error!r}"]
        lists = [[order for number, order in orders.items() if number]]
        paths = folder / "broker" / "journal.db", folder / "ledger" / "ledger.db"
        verdict = disk_judge.judge(*paths, lists, is_over=False)
        for fault in faults:
            verdict.fault("damaged", fault)
        if verdict.counts["damaged"]:
            return verdict
        with disk_judge.opened(paths[1]) as db:
            (applied,) = db.execute("SELECT ifnull(max(applied), 0) FROM outbox").fetchone()
        if applied < orders[0].committed:
            verdict.fault("ledger_lost", f"{orders[0].committed} were acked, it has {applied}")
        return verdict


def _recover(state: pathlib.Path) -> list[str]:
    metrics = Metrics()
    journal = Journal(state, lambda: None, metrics)
    try:
        recover(journal, Config(broker=journal.broker), 0, 1_800_000_000_000, metrics)
    finally:
        journal.close()
    counted = metrics.rows_quarantined, metrics.journal_cuts
    faults = [f"{counted} (rows in quarantine, cuts of the log)"] * any(counted)
    return faults + [f"{path.name} set aside" for path in state.glob("*.unreadable-*")]


def _open_books(folder: pathlib.Path) -> list[str]:
    """The audit's faults; then whether what waits in the outbox goes in without an alarm."""
    book = SqliteBook(folder / "ledger")
    try:
        faults = book.faults()
        book.load()
        with disk_judge.opened(folder / "broker" / "journal.db") as db:
            (broker,) = db.execute("SELECT value FROM meta WHERE key = 'broker'").fetchone()
            rows = db.execute("SELECT sequence, entry FROM outbox ORDER BY sequence").fetchall()
        for at in range(0, len(rows), BATCH):
            part = rows[at : at + BATCH]
            post = Post(broker, part[0][0], [_decode_entry(body) for _, body in part])
            for effect in book.apply([post], 1_800_000_000_000)[0]:
                if isinstance(effect, RaiseAlarm):
                    faults.append(f"alarm at the next post: {effect.message}")
        return faults + book.faults()
    finally:
        book.close()


def judge_round(
    recording: Recording, dice: random.Random, cuts: int, deadline: float, told: list[Any]
) -> tuple[collections.Counter[str], list[str]]:
    """Cuts at rising places: half of them by chance, half at the moment of a promise."""
    end = len(recording.operations)
    moments = [at for at, _ in told if at >= recording.begin]
    places = sorted(
        dice.choice(moments) if number % 2 else dice.randrange(recording.begin, end + 1)
        for number in range(-(-cuts // len(MODES)))
    )
    orders = {0: Order(b"", "ledger", 0)}
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    at = 0
    for cut, mode, files in images(recording.operations, places, dice):
        if time.monotonic() > deadline:
            break
        while at < len(told) and told[at][0] <= cut:
            told[at][1](orders)
            at += 1
        verdict = judge_image(files, orders)
        counts["cuts"] += 1
        counts[f"cuts_{mode}"] += 1
        counts["promises_checked"] += verdict.counts["accepted"] + verdict.counts["acks"]
        for kind in disk_judge.FAULT_KINDS:
            counts[kind] += bool(verdict.counts[kind])
        if verdict.faults:
            counts["bad"] += 1
            faults += [f"cut at {cut}, {mode}: {text}" for text in verdict.faults[:3]]
    return counts, faults


def main() -> None:
    """Rounds of cuts all over the recording, until there are enough or the time is over."""
    path, seed, cuts, seconds, is_enough = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    with open(path, "rb") as file:
        recording = msgspec.msgpack.decode(file.read(), type=Recording)
    told = sorted(promises(recording), key=lambda promise: promise[0])
    dice = random.Random(int(seed))
    deadline = time.monotonic() + float(seconds)
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    while (left := int(cuts) - counts["cuts"]) > 0 and time.monotonic() < deadline:
        if faults and is_enough == "first":
            break
        size = min(left, FIRST if is_enough == "first" else ROUND)
        done, found = judge_round(recording, dice, size, deadline, told)
        counts += done
        faults += found
    print(json.dumps({"counts": counts, "operations": len(recording.operations),
                      "faults": faults[:20]}))  # fmt: skip


if __name__ == "__main__":
    main()
