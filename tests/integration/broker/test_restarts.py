"""What a start after kill -9 must not undo, and what it looks up only when somebody asks."""

import hashlib
import os
import sqlite3

from gristmill.wire import client as wc
from gristmill.wire.ledger import Contribution
from gristmill.wire.spec import JobSpec


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
