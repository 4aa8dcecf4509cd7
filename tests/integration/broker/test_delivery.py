"""Results under credit, from memory and from disk, and what is freed."""

import os
import sqlite3

import gristmill.wire.client as wc
from gristmill.wire.values import pack_range


def finished(grid, count=2_000, credit=None, keep=True, **fields):
    """A job that is done, and the client that submitted it (subscribed with this credit)."""
    client = grid.client()
    worker = grid.worker()
    worker.hello()
    worker.start()
    spec = grid.function_spec(keep=keep, **fields)
    job = client.submit(spec).job
    if credit is not None:
        client.subscribe(job, credit=credit)
    client.upload(job, count)
    client.close_upload(job, count)
    client.watch(lambda: client.ask("job", wc.JobStatus, job=job).state == "done")
    return client, job


def stored(grid, job):
    with sqlite3.connect(grid.state / "journal.db") as db:
        return [
            n
            for (n,) in db.execute(
                "SELECT sequence FROM results WHERE job = ? ORDER BY sequence", (job,)
            )
        ]


def size(frames):
    return sum(map(len, frames))


def test_the_broker_stays_within_the_credit(grid):
    client, job = finished(grid, credit=3_000)
    client.drain()
    taken = sum(size(frames) for _, frames in client.results)
    last = size(client.results[-1][1])
    assert taken - last < 3_000 <= taken  # one message may cross the limit
    assert not [card for card in client.cards if card.state == "done"]
    before = len(client.results)
    for _ in range(3):  # cumulative: repeating it changes nothing
        client.send(wc.Credit(client.session, job, before, 3_000))
    client.ask("grid")
    assert len(client.results) == before
    client.send(wc.Credit(client.session, job, before, 1 << 40))
    card = client.finish(job)
    assert [m.sequence for m, _ in client.results] == list(range(1, card.results + 1))
    assert sum(m.head.count for m, _ in client.results) == 2_000


def test_no_credit_is_no_results(grid):
    client, job = finished(grid, count=100, credit=0)
    assert client.results == []
    client.send(wc.Credit(client.session, job, 0, 1))
    client.watch(lambda: client.results)
    client.ask("grid")
    assert len(client.results) == 1


def test_results_that_left_memory_come_from_disk(broker):
    broker.ledger().start()
    broker.start(result_cache_bytes=1 << 20, parcel_cache_bytes=1 << 20)
    count = 300_000  # 5 MB of results with their meters
    client, job = finished(broker, count=count, credit=0)
    client.send(wc.Credit(client.session, job, 0, 1 << 40))
    card = client.finish(job)
    assert [m.sequence for m, _ in client.results] == list(range(1, card.results + 1))
    assert sum(m.head.count for m, _ in client.results) == count
    figures = client.ask("grid")
    assert figures["results_read_back"] > 0
    assert figures["result_cache_bytes"] <= 1 << 20


def test_parcels_that_left_memory_come_from_disk(broker):
    broker.ledger().start()
    broker.start(parcel_cache_bytes=1 << 20)
    client = broker.client()
    job = client.submit().job
    client.subscribe(job)
    client.upload(job, 300_000, each=1_000)
    client.close_upload(job, 300_000)
    worker = broker.worker()
    worker.hello()
    worker.start()
    assert client.finish(job).done == 300_000
    assert client.ask("grid")["parcels_read_back"] > 0


def test_two_subscribers_get_the_same(grid):
    client, job = finished(grid, credit=1 << 40)
    other = grid.client()
    other.subscribe(job)
    client.finish(job)
    other.finish(job)
    assert [frames for _, frames in client.results] == [frames for _, frames in other.results]


def test_acknowledged_results_are_freed_at_the_end(grid):
    client, job = finished(grid, credit=0, keep=False)
    client.send(wc.Credit(client.session, job, 0, 3_000))
    client.watch(lambda: client.results)
    client.ask("grid")
    total = client.ask("job", wc.JobStatus, job=job).results
    assert stored(grid, job) == list(range(1, total + 1))
    client.send(wc.Credit(client.session, job, client.results[-1][0].sequence, 1 << 40))
    client.watch(lambda: client.results[-1][0].sequence == total)
    client.send(wc.Credit(client.session, job, total, 1 << 40))
    grid.until(lambda: not stored(grid, job), "results are freed")
    assert grid.client().subscribe(job).code == "EXPIRED"


def test_results_are_freed_while_the_job_runs(grid):
    client, worker = grid.client(), grid.worker()
    worker.hello()
    job = client.submit(grid.function_spec(keep=False)).job
    client.subscribe(job)
    client.upload(job, 3_000)

    def has_many() -> bool:
        worker.take(0.01)
        worker.work_off(split=5)
        client.drain()
        return len(client.results) > 80

    grid.until(has_many, "80 results")
    acked = client.results[-1][0].sequence
    client.send(wc.Credit(client.session, job, acked, 1 << 40))
    grid.until(lambda: all(at > acked for at in stored(grid, job)), "results are freed")


def test_past_results_that_are_gone_are_called_expired(broker):
    broker.ledger().start()
    broker.start()
    client, job = finished(broker, count=100, credit=1 << 40, retention_s=0)
    client.finish(job)
    assert broker.terminate() == 0
    broker.start()
    again = broker.client()
    broker.until(lambda: not stored(broker, job), "results expire")
    answer = again.subscribe(job)
    assert (answer.code, answer.job) == ("EXPIRED", job)
    assert again.ask("job", wc.JobStatus, job=job).done == 100


def test_a_slow_subscriber_does_not_hold_up_another(broker):
    broker.ledger().start()
    broker.start(peer_queue_bytes=1 << 20)
    _, job = finished(broker, count=200_000, credit=0)
    slow, quick = broker.client(), broker.client()
    slow.subscribe(job)  # and never reads
    quick.subscribe(job)
    assert quick.finish(job).done == 200_000
    assert sum(m.head.count for m, _ in quick.results) == 200_000
    assert slow.finish(job).done == 200_000  # nothing was lost for it
    assert sum(m.head.count for m, _ in slow.results) == 200_000


def test_a_tenants_results_on_disk_are_bounded(broker):
    broker.ledger().start()
    broker.start(tenant_disk_bytes=1 << 20)
    client, job = finished(broker, count=150_000, credit=0, keep=False)  # 1.2 MB of results
    refused = client.submit()
    assert refused.code == "QUOTA" and "1 MiB" in refused.message
    assert broker.client(tenant="other").submit().job == job + 1
    assert broker.terminate() == 0
    broker.start()  # what is on disk counts again
    again = broker.client()
    broker.until(lambda: getattr(again.submit(), "code", "") == "QUOTA", "it is counted")
    again.subscribe(job)
    total = again.finish(job).results
    again.send(wc.Credit(again.session, job, total, 1 << 40))
    broker.until(lambda: isinstance(again.submit(), wc.Accepted), "there is room again")


def test_credit_stands_still_while_a_tenants_disk_is_full(broker):
    broker.ledger().start()
    broker.start(tenant_disk_bytes=1 << 20)
    client, worker = broker.client(), broker.worker()
    worker.hello()
    worker.start()
    claim = os.urandom(16)
    accepted = client.submit(broker.function_spec(keep=False), claim)
    job, first_allowed = accepted.job, accepted.bytes_allowed
    client.subscribe(job, credit=0)
    for first in range(0, 150_000, 50_000):  # 48 bytes of parcels, 1.2 MB of results
        frame = pack_range(first, 1)
        client.send(wc.Parcel(client.session, job, first, 50_000, frame[0]), frame[1])
    client.watch(lambda: client.ask("job", wc.JobStatus, job=job).done == 150_000)
    client.drain()
    committed, allowed = client.committed.get(job, 0), client.allowed.get(job, first_allowed)
    client.parcel(job, 150_000, [1, 2, 3])
    client.watch(lambda: client.ask("job", wc.JobStatus, job=job).done == 150_003)
    client.drain()
    assert client.committed.get(job, 0) == committed < 150_003
    assert client.submit(broker.function_spec(keep=False), claim).bytes_allowed == allowed
    client.send(wc.Credit(client.session, job, 0, 1 << 40))
    client.watch(lambda: sum(m.head.count for m, _ in client.results) == 150_003)
    client.send(wc.Credit(client.session, job, client.results[-1][0].sequence, 1 << 40))
    client.watch(lambda: client.committed.get(job) == 150_003, "the credit goes on")
