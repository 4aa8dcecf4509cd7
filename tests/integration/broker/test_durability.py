"""What an ack means: kill -9 at its side, damaged rows, a file that is no journal."""

import hashlib
import os
import sqlite3

from gristmill.wire import client as wc
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec
from gristmill.wire.values import unpack


def indices(client, job):  # type: ignore[no-untyped-def]
    """Every index that some result made final, as often as it did."""
    found = []
    for message, frames in client.results:
        if message.job == job:
            again = [range(a, a + n) for a, n in message.not_final]
            values = unpack(message.head.codec, frames[0], message.head.count) if frames[0] else []
            found += [
                message.head.first + offset
                for offset in range(len(values))
                if not any(offset in run for run in again)
            ]
    return sorted(found)


def test_an_accepted_job_survives_kill_9(grid):
    client = grid.client()
    submission = os.urandom(16)
    accepted = client.submit(submission=submission)
    grid.kill()
    grid.start()
    again = grid.client()
    assert [card.job for card in again.ask("jobs", list[wc.JobStatus])] == [accepted.job]
    replayed = again.submit(submission=submission)
    assert (replayed.job, replayed.is_replayed) == (accepted.job, True)
    other = again.submit()
    assert other.job == accepted.job + 1


def test_another_content_under_the_same_submission_id_is_refused_after_a_restart(grid):
    from_spec = grid.client()
    submission = os.urandom(16)
    first = from_spec.submit(submission=submission)
    grid.kill()
    grid.start()
    client = grid.client()
    spec = JobSpec(
        "function", function=hashlib.sha256(b"def f(x): return x").hexdigest(), name="other"
    )
    refused = client.submit(spec, submission=submission)
    assert (refused.code, refused.job) == ("SUBMISSION_CONFLICT", first.job)


def test_a_job_goes_on_where_it_was(grid):
    client = grid.client()
    worker = grid.worker()
    worker.hello()
    job = client.submit().job
    client.subscribe(job)
    client.upload(job, 400)
    client.close_upload(job, 400)
    while sum(message.head.count for message, _ in client.results) < 5:
        worker.take(0.01)
        worker.work_off()
        client.drain()
    seen = {message.sequence: frames for message, frames in client.results}
    grid.kill()
    grid.start()

    again = grid.client()
    second = grid.worker("w1")
    second.hello()
    second.start()
    again.subscribe(job)
    card = again.finish(job)
    assert (card.state, card.done) == ("done", 400)
    assert indices(again, job) == list(range(400))
    assert [message.sequence for message, _ in again.results] == list(range(1, card.results + 1))
    for sequence, frames in seen.items():  # what was delivered is what stays
        assert again.results[sequence - 1][1] == frames


def test_results_of_a_past_job_are_read_after_a_restart(grid):
    client = grid.client()
    worker = grid.worker()
    worker.hello()
    worker.start()
    job = client.submit().job
    client.subscribe(job)
    client.upload(job, 1_000)
    client.close_upload(job, 1_000)
    client.finish(job)
    assert grid.terminate() == 0
    grid.start()
    again = grid.client()
    again.subscribe(job, after=3)
    again.finish(job)
    assert [m.sequence for m, _ in again.results] == [
        m.sequence for m, _ in client.results if m.sequence > 3
    ]
    assert again.results[0][1] == client.results[3][1]
    assert again.ask("job", wc.JobStatus, job=job).state == "done"


def test_a_damaged_result_is_named_and_its_subtasks_run_again(grid):
    client = grid.client()
    worker = grid.worker()
    worker.hello()
    job = client.submit().job
    client.upload(job, 200)  # not closed: it cannot be over too soon
    client.watch(lambda: client.committed.get(job) == 200)
    client.subscribe(job)
    while sum(message.head.count for message, _ in client.results) < 3:
        worker.take(0.01)
        worker.work_off()
        client.drain()
    grid.kill()
    with sqlite3.connect(grid.state / "journal.db") as db:
        first, count, body = db.execute(
            "SELECT first, count, payload FROM results WHERE job = ? AND sequence = 1", (job,)
        ).fetchone()
        body = bytes([body[0] ^ 1]) + body[1:]
        db.execute("UPDATE results SET payload = ? WHERE job = ? AND sequence = 1", (body, job))
    db.close()
    grid.start()
    assert f"quarantined table=results row={job}/1" in grid.text()
    again = grid.client()
    second = grid.worker("w1")
    second.hello()
    second.start()
    again.subscribe(job)
    again.close_upload(job, 200)
    assert again.finish(job).done == 200
    assert indices(again, job) == list(range(200))
    void = again.results[0][0]
    assert void.sequence == 1 and void.not_final == [(0, count)] and void.head.first == first
    db = sqlite3.connect(grid.state / "journal.db")
    assert db.execute("SELECT table_name, row_key, body FROM quarantine").fetchall() == [
        ("results", f"{job}/1", body)
    ]
    db.close()


def test_a_damaged_job_is_left_out_and_the_others_go_on(grid):
    client = grid.client()
    bad, good = client.submit().job, client.submit().job
    grid.kill()
    with sqlite3.connect(grid.state / "journal.db") as db:
        db.execute("UPDATE jobs SET tenant = 'thief' WHERE job = ?", (bad,))
    db.close()
    grid.start()
    assert f"quarantined table=jobs row={bad}" in grid.text()
    again = grid.client()
    assert [card.job for card in again.ask("jobs", list[wc.JobStatus])] == [good]
    assert again.submit().job == good + 1


def test_a_file_that_is_no_journal_is_moved_aside(broker):
    broker.state.mkdir(mode=0o700)
    (broker.state / "journal.db").write_bytes(b"not a database, " * 1000)
    broker.ledger().start()
    broker.start()
    assert "journal unreadable" in broker.text()
    aside = list(broker.state.glob("journal.db.unreadable-*"))
    assert len(aside) == 1 and aside[0].read_bytes().startswith(b"not a database")
    assert broker.client().submit().job == 1


def test_ids_outlive_restarts_and_incarnations_rise(grid):
    first = grid.client().ask("grid")
    assert grid.terminate() == 0
    grid.start()
    second = grid.client().ask("grid")
    assert second["broker"] == first["broker"] and len(first["broker"]) == 16
    assert (first["incarnation"], second["incarnation"]) == (1, 2)


def test_a_cancelled_job_stays_cancelled_after_kill_9(grid):
    client = grid.client()
    job = client.submit().job
    client.upload(job, 50)
    assert isinstance(client.call(wc.Cancel, job, []), wc.Answer)
    grid.kill()
    grid.start()
    again = grid.client()
    again.subscribe(job)
    card = again.finish(job)
    assert (card.state, card.cancelled) == ("cancelled", 50)
    meters = [frames[1] for _, frames in again.results]
    assert all(frame[1] == Outcome.CANCELLED for frame in meters)


def done(client):
    """Subtasks whose results have come."""
    return sum(message.head.count for message, _ in client.results)


def test_no_acknowledgement_is_lost_over_many_kills(grid):
    """Work goes on while the broker is killed at any moment; judged by what was acknowledged."""
    accepted, committed, delivered = {}, {}, {}
    for turn in range(8):
        client, worker = grid.client(), grid.worker(f"w{turn}")
        worker.hello()
        worker.start()
        submission = os.urandom(16)
        job = client.submit(grid.function_spec(), submission).job
        accepted[job] = submission
        client.subscribe(job)
        for first in range(0, 3_000, 50):
            client.parcel(job, first, list(range(50)))
        # The moment differs: after so many results, in the middle of parcels, commits and acks.
        client.watch(lambda n=turn, c=client: done(c) >= 300 * n if n % 2 else c.committed)
        client.drain()
        grid.kill()
        worker.close()
        client.drain()
        committed |= client.committed
        delivered |= {(m.job, m.sequence): frames for m, frames in client.results}
        grid.start()
    client = grid.client()
    for job, submission in accepted.items():
        again = client.submit(grid.function_spec(), submission)
        assert (again.job, again.is_replayed) == (job, True)
        assert client.ask("job", wc.JobStatus, job=job).uploaded >= committed.get(job, 0)
        client.subscribe(job)
    worker = grid.worker("last")
    worker.hello()
    worker.start()
    for job in accepted:
        uploaded = client.ask("job", wc.JobStatus, job=job).uploaded
        client.close_upload(job, uploaded)
        assert client.finish(job).done == uploaded
        assert indices(client, job) == list(range(uploaded))
    found = {(m.job, m.sequence): frames for m, frames in client.results}
    assert {key: found[key] for key in delivered} == delivered and delivered
    ledger = grid.ledger_peer
    grid.until(lambda: client.ask("grid")["outbox"] == 0, "the outbox is empty")
    assert not ledger.faults
    billed = [
        (entry.ref, index, entry.attempt)
        for entry in ledger.entries
        if hasattr(entry, "attempt")
        for index in range(entry.first, entry.first + entry.count)
    ]
    assert len(billed) == len(set(billed)) == sum(m.head.count for m, _ in client.results)
