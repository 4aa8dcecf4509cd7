"""What a start after kill -9 must not undo, and what it looks up only when somebody asks."""

import hashlib
import os
import pathlib
import sqlite3

import zmq

from gristmill.broker import indexes, records, schema
from gristmill.wire import client as wc
from gristmill.wire import limits
from gristmill.wire import worker as ww
from gristmill.wire.frames import encode
from gristmill.wire.ledger import Contribution
from gristmill.wire.spec import JobSpec, Tariff


def billed(grid):  # type: ignore[no-untyped-def]
    """(index, attempt) of every subtask that was billed, as often as it was."""
    return [
        (index, entry.attempt)
        for entry in grid.ledger_peer.entries
        if isinstance(entry, Contribution)
        for index in range(entry.first, entry.first + entry.count)
    ]


def test_what_a_client_acknowledged_and_nobody_keeps_never_runs_again(grid):
    """Results of ``keep=False`` leave the disk while their job goes on."""
    client, worker = grid.client(), grid.worker()
    worker.hello()
    job = client.submit(grid.function_spec(keep=False)).job
    client.subscribe(job)
    client.upload(job, 2_000)

    def is_freed():  # type: ignore[no-untyped-def]
        worker.take(0.005)
        worker.work_off(split=1)
        client.drain()
        client.send(wc.Credit(client.session, job, len(client.results), 1 << 40))
        with sqlite3.connect(grid.state / "journal.db") as db:
            ((left,),) = db.execute("SELECT min(sequence) FROM results WHERE job = ?", (job,))
        return left and left > 64

    grid.until(is_freed, "results left the disk")
    seen = len(client.results)
    done = {message.head.first for message, _ in client.results}
    grid.kill()
    worker.close()
    grid.start()

    again, second = grid.client(), grid.worker("w1")
    second.hello()
    second.start()
    again.subscribe(job)  # from the beginning: what is freed cannot come again
    again.close_upload(job, 2_000)
    card = again.watch(
        lambda: (
            again.send(wc.Credit(again.session, job, len(again.results) + 10**6, 1 << 40)),
            next((c for c in again.cards if c.state in wc.FINAL_JOB_STATES), None),
        )[1],
        "the job is final",
    )
    assert (card.done, card.retried) == (2_000, 0)
    first = again.results[0][0].sequence
    assert first > 64  # not 1: those were acknowledged
    indices = [m.head.first + i for m, _ in again.results for i in range(m.head.count)]
    assert len(set(indices)) == len(indices) and len(indices) < 2_000
    assert len(set(indices) | done) == 2_000 and seen
    grid.until(lambda: again.ask("grid")["outbox"] == 0, "the outbox is empty")
    bill = billed(grid)
    assert len(bill) == len(set(bill)) == 2_000 and not grid.ledger_peer.faults


def test_past_jobs_answer_after_a_restart(grid):
    client, worker = grid.client(), grid.worker()
    worker.hello()
    worker.start()
    submission = os.urandom(16)
    job = client.submit(submission=submission).job
    client.subscribe(job)
    client.upload(job, 10)
    client.close_upload(job, 10)
    client.finish(job)
    grid.kill()
    grid.start()
    again = grid.client()
    replayed = again.submit(submission=submission)
    assert (replayed.job, replayed.is_replayed) == (job, True)
    other = JobSpec("function", function=hashlib.sha256(b"def f(x): return x").hexdigest())
    refused = again.submit(other, submission=submission)
    assert (refused.code, refused.job) == ("SUBMISSION_CONFLICT", job)
    assert isinstance(again.call(wc.Cancel, job, []), wc.Answer)
    assert isinstance(again.close_upload(job, 10), wc.Answer)
    assert isinstance(again.call(wc.Steer, job, "pause"), wc.Answer)
    assert again.call(wc.Cancel, job + 1, []).code == "UNKNOWN_JOB"
    stranger = grid.client(tenant="stranger")
    assert stranger.call(wc.Cancel, job, []).code == "UNKNOWN_JOB"
    assert again.ask("job", wc.JobStatus, job=job).state == "done"


def test_a_job_that_was_damaged_is_refused_by_name_and_the_broker_lives(grid):
    client = grid.client()
    submission = os.urandom(16)
    job = client.submit(submission=submission).job
    grid.kill()
    with sqlite3.connect(grid.state / "journal.db") as db:
        db.execute("UPDATE jobs SET function = x'00' WHERE job = ?", (job,))
    db.close()
    grid.start()
    again = grid.client()
    refused = again.submit(submission=submission)  # a client that was away submits again
    assert (refused.code, refused.job) == ("INTERNAL", job) and "damaged" in refused.message
    assert again.submit().job == job + 1
    assert grid.process.poll() is None


def test_an_index_of_a_large_journal_that_hides_a_submission_is_found_and_made_anew(grid):
    """A larger file is looked at after the start, and before anybody's submission is looked up."""
    client = grid.client()
    submission = os.urandom(16)
    job = client.submit(submission=submission).job
    client.subscribe(job)
    client.close_upload(job, 0)
    client.finish(job)
    grid.terminate()
    path = grid.state / "journal.db"
    with sqlite3.connect(path) as db:
        size = indexes.START_BYTES + 1
        db.execute("INSERT INTO quarantine VALUES('t', 'k', 'r', 0, zeroblob(?))", (size,))
    db.close()
    body = bytearray(path.read_bytes())
    at = body.find(submission)
    while body[at // 4096 * 4096] != 10:  # a leaf of an index
        at = body.find(submission, at + 1)
    body[at] ^= 1
    path.write_bytes(body)
    grid.start()
    grid.until(lambda: grid.process.poll() is not None, "it ends by itself")
    assert grid.process.returncode > 0 and "salvaged next" in grid.text()
    grid.start()
    replayed = grid.client().submit(submission=submission)
    assert (replayed.job, replayed.is_replayed) == (job, True)
    assert grid.client().ask("grid")["journal_salvaged"] == 1


def test_who_knocks_while_the_journal_is_read_is_told_to_wait(broker):
    """``recovering`` until the replay ends, then everybody is let in without a new connection."""
    broker.ledger().start()
    broker.start()
    broker.terminate()
    fill(broker.state / "journal.db", jobs=6_000)
    front, back = knock(broker.front), knock(broker.back)
    hello = wc.Hello(limits.PROTOCOL, os.urandom(16), "local", "3.11", "test")
    front.send(encode(hello))
    back.send(encode(ww.Goodbye(b"old session", "whatever")))
    broker.start()
    refused = wc.decode_broker.decode(front.recv())
    assert (refused.code, refused.request) == ("RECOVERING", 0) and "rows in" in refused.message
    assert ww.decode_orders.decode(back.recv()).code == "RECOVERING"
    front.send(encode(hello))
    assert isinstance(wc.decode_broker.decode(front.recv()), wc.Welcome)
    front.close()
    back.close()
    figures = broker.client().ask("grid")
    assert figures["recovery_rows"] > 6_000 and figures["recovery_ms"] > 0
    assert figures["recovering"] >= 2 and figures["jobs"] == 6_000


def knock(address):  # type: ignore[no-untyped-def]
    """A socket that connects as soon as somebody listens there."""
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, 5)
    socket.setsockopt(zmq.RCVTIMEO, 30_000)
    socket.connect(address)
    return socket


def fill(path: pathlib.Path, jobs: int) -> None:
    """Unfinished jobs of one subtask each, with their inputs."""
    with sqlite3.connect(path) as db:
        for job in range(1, jobs + 1):
            spec = JobSpec("function", function="0" * 64, count=1)
            record = records.JobRecord(
                job, "local", b"%016d" % job, 1, spec, {"standard": Tariff()}, b"f"
            )
            db.execute(schema.ADD_JOB, records.job_row(record))
            db.execute(schema.ADD_OPEN, (job,))
            db.execute(schema.ADD_EVENT, records.event_row(job, 1, "hold.granted", {}))
            db.execute(schema.ADD_PARCEL, records.parcel_row(job, 0, 1, "m", b"x"))
    db.close()


def test_a_job_that_was_pruned_is_expired_with_its_date_and_never_unknown(grid):
    client, worker = grid.client(), grid.worker()
    worker.hello()
    worker.start()
    submission = os.urandom(16)
    spec = grid.function_spec(retention_s=0)
    job = client.submit(spec, submission).job
    client.subscribe(job)
    client.upload(job, 10)
    client.close_upload(job, 10)
    client.finish(job)
    worker.close()

    def rows(query):  # type: ignore[no-untyped-def]
        with sqlite3.connect(grid.state / "journal.db") as db:
            ((count,),) = db.execute(query, (job,))
        return count

    for query in ("SELECT count(*) FROM results WHERE job = ?",
                  "SELECT count(*) FROM events WHERE job = ?"):  # fmt: skip
        grid.terminate()
        grid.start(past_days=0)  # it looks at once, then each minute
        grid.until(lambda q=query: rows(q) == 0, query)
    again = grid.client()
    for refused in (
        again.ask("job", job=job),
        again.submit(spec, submission),
        again.subscribe(job),
        again.call(wc.Cancel, job, []),
    ):
        assert (refused.code, refused.job) == ("EXPIRED", job), refused
        assert " UTC as 'done'" in refused.message
    assert again.ask("job", job=job + 1).code == "UNKNOWN_JOB"
    assert grid.client(tenant="stranger").ask("job", job=job).code == "UNKNOWN_JOB"
    assert again.submit().job == job + 1  # its number is not used again
    assert rows("SELECT count(*) FROM tombstones WHERE job = ?") == 1


def test_a_key_of_a_past_job_is_refused_with_the_difference_before_and_after_a_restart(grid):
    client, worker = grid.client(), grid.worker()
    worker.hello()
    worker.start()
    spec, key = grid.function_spec(priority=3), os.urandom(16)
    job = client.submit(spec, key).job
    client.subscribe(job)
    client.upload(job, 5)
    client.close_upload(job, 5)
    assert client.finish(job).done == 5
    for is_restarted in (False, True):
        if is_restarted:
            grid.kill()
            grid.start()
            client = grid.client()
        refused = client.submit(grid.function_spec(priority=7), key)
        assert (refused.code, refused.job) == ("SUBMISSION_CONFLICT", job)
        assert "priority was 3 and is 7 now" in refused.message, (is_restarted, refused)
        again = client.submit(spec, key)
        assert (again.job, again.is_replayed) == (job, True)


def test_a_repeat_of_what_was_accepted_needs_no_room_on_the_disk(grid):
    """Its ack was lost: the client must not hear that it was refused while the job goes on."""
    client, spec, key = grid.client(), grid.function_spec(), os.urandom(16)
    job = client.submit(spec, key).job
    grid.kill()
    grid.start(disk_reserve_bytes=1 << 62)
    again = grid.client()
    repeated = again.submit(spec, key)
    assert (repeated.job, repeated.is_replayed) == (job, True)
    assert again.submit(grid.function_spec(), os.urandom(16)).code == "QUOTA"
