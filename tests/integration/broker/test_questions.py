"""Ask: live things from the state, past ones from the journal."""

import contextlib
import sqlite3

import msgspec

import gristmill.wire.client as wc
import gristmill.wire.worker as ww
from gristmill.wire.failure import Failure, LogEntry, pack_failures, pack_logs
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import Command, JobSpec
from gristmill.wire.values import pack_plain


def mixed_job(grid, **fields):
    """A job of ten commands: 3 failed with words, 4 was cut, the rest is ok; with output."""
    client, worker = grid.client(), grid.worker()
    worker.hello()
    spec = JobSpec("command", command=Command(["x"]), tier="batch", name="mixed", **fields)
    job = client.submit(spec).job
    client.subscribe(job)
    client.parcel(job, 0, [str(n) for n in range(10)])
    client.close_upload(job, 10)
    done = 0
    while done < 10:
        worker.take(0.01)
        while worker.leases:
            lease, _ = worker.leases.pop(0)
            for first, count in lease.runs:
                done += count
                report(worker, lease, first, count)
        client.drain()
    client.finish(job)
    return client, job


def report(worker, lease, first, count):
    worker.numbers["result"] += 1
    span = range(first, first + count)
    outcome = bytearray(
        Outcome.EXIT if n == 3 else Outcome.TIME if n == 4 else Outcome.OK for n in span
    )
    failures = [(n - first, Failure("exit 7", exit_code=7)) for n in span if n == 3]
    logs = [LogEntry(n - first, b"out %d" % n, b"err") for n in span if n % 2 == 0]
    values = pack_plain([n for n in span if n not in (3, 4)] or [0])
    head = ww.ResultHead(
        worker.numbers["result"], lease.lease_id, lease.job, first, count, values[0],
        count * 10, count * 5, 777, "cgroup",
    )  # fmt: skip
    meter = pack_meter(count, outcome, wall_us=[10 + n for n in span], cpu_us=[5] * count)
    worker.report([head], [values[1], meter, pack_failures(failures), pack_logs(logs)])


def check_answers(client, job):
    card = client.ask("job", wc.JobStatus, job=job)
    assert (card.state, card.done, card.failed, card.name) == ("failed", 8, 2, "mixed")
    assert card in client.ask("jobs", list[wc.JobStatus])
    rows = client.ask("subtasks", list[wc.SubtaskRow], job=job)
    assert [row.index for row in rows] == list(range(10))
    assert [row.state for row in rows].count("done") == 8
    assert (rows[3].outcome, rows[3].message) == ("exit", "exit 7")
    assert (rows[4].outcome, rows[5].wall_us, rows[5].cpu_us) == ("time", 15, 5)
    assert {row.attempt for row in rows} == {1} and len(rows[0].node) == 64
    failed = client.ask("subtasks", list[wc.SubtaskRow], job=job, text="failed")
    assert [row.index for row in failed] == [3, 4]
    page = client.ask("subtasks", list[wc.SubtaskRow], job=job, first=6, limit=2)
    assert [row.index for row in page] == [6, 7]
    logs = client.ask("logs", list[wc.LogRow], job=job, first=1, limit=3)
    assert [(row.index, row.stdout) for row in logs] == [
        (2, b"out 2"),
        (4, b"out 4"),
        (6, b"out 6"),
    ]
    why = client.ask("why", wc.WhyAnswer, job=job)
    assert why.job == job and why.state == "failed"
    assert why.summary.startswith("of 10 subtasks 2 failed, 8 done; exit: exit 7 (at j")


def test_a_finished_job_before_and_after_a_restart(grid):
    client, job = mixed_job(grid)
    check_answers(client, job)
    assert grid.terminate() == 0
    grid.start()
    check_answers(grid.client(), job)


def test_what_ended_and_is_not_on_disk_yet_is_not_missing(grid):
    client, worker = grid.client(), grid.worker()
    worker.hello()
    job = client.submit().job
    client.upload(job, 2)
    client.close_upload(job, 2)

    def granted():
        worker.take()
        return sum(count for lease, _ in worker.leases for _, count in lease.runs) == 2

    grid.until(granted, "everything is leased")
    with contextlib.closing(sqlite3.connect(grid.state / "journal.db")) as slow_disk:
        slow_disk.isolation_level = None
        slow_disk.execute("BEGIN IMMEDIATE")  # the broker's commit of the results waits for this
        worker.work_off()
        # Only refusals do not wait for the disk: they tell what the broker has taken.
        got = worker.hello(protocol=0)
        while not isinstance(got, ww.Refused):  # orders that close the job may come before
            got = worker.take(20)
            assert got, "no answer to HELLO"
        client.request += 1
        client.send(wc.Ask(client.session, client.request, "subtasks", job=job))
        assert isinstance(client.ask("jobs", limit=0), wc.Refused)
        slow_disk.execute("ROLLBACK")
    answer = client.wait_for(lambda m: isinstance(m, wc.Answer) and m.request == client.request - 1)
    rows = msgspec.msgpack.decode(answer.body, type=list[wc.SubtaskRow])
    assert [(row.index, row.state) for row in rows] == [(0, "done"), (1, "done")]


def test_a_waiting_job(grid):
    client = grid.client()
    job = client.submit().job
    client.upload(job, 30, each=10)
    client.watch(lambda: client.committed.get(job) == 30)
    card = client.ask("job", wc.JobStatus, job=job)
    assert (card.state, card.uploaded, card.ready, card.done) == ("accepted", 30, 30, 0)
    rows = client.ask("subtasks", list[wc.SubtaskRow], job=job, first=28)
    assert [(row.index, row.state, row.attempt) for row in rows] == [
        (28, "ready", 0),
        (29, "ready", 0),
    ]
    assert client.ask("why", wc.WhyAnswer, job=job).job == job
    client.subscribe(job)
    assert client.watch(lambda: client.cards)[0].job == job  # the first card comes at once


def test_jobs_are_listed_newest_first_and_limited(grid):
    client = grid.client()
    jobs = [client.submit().job for _ in range(5)]
    listed = client.ask("jobs", list[wc.JobStatus], limit=3)
    assert [card.job for card in listed] == jobs[::-1][:3]


def test_workers_with_their_last_reading(grid):
    worker = grid.worker("w3", slots=4)
    worker.hello(labels={"gpu": "none"})
    reading = ww.HostReading(1, 2, 3, 4, 5)
    worker.send(ww.Report(worker.session, 1, True, [0, 1, 2, 3], [], [], [], reading=reading))
    client = grid.client()
    rows = grid.until(
        lambda: [r for r in client.ask("workers", list[wc.WorkerRow]) if r.reading], "a reading"
    )
    row = rows[0]
    assert (row.name, row.slots, row.busy, row.labels) == ("w3", 4, 0, {"gpu": "none"})
    assert (row.reading, row.version, row.pythons) == (reading, "test", ["3.11"])


def test_a_decomposed_request_finds_its_job(grid):
    client, job = mixed_job(grid, request_digest="ab" * 32, parent=0)
    cards = client.ask("decomposed", list[wc.JobStatus], text="ab" * 32)
    assert [card.job for card in cards] == [job]
    assert client.ask("decomposed", text="cd" * 32) == []


def test_the_grid_counts(grid):
    client, job = mixed_job(grid)
    figures = client.ask("grid")
    assert figures["jobs_accepted"] == job == 1
    assert figures["results_kept"] == figures["results_delivered"] > 0
    assert figures["workers"] == 1 and figures["is_ledger_up"] is True
    assert figures["groups_committed"] > 0 and figures["malformed"] == 0
