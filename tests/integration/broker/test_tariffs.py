"""Tariffs by class of node: refused at HELLO, sent with the job, kept with it over a restart."""

import gristmill.wire.client as wc
import gristmill.wire.worker as ww
from gristmill.wire.spec import Tariff

TARIFFS = "standard=cpu:1,gib:0.05,subtask:0.00001; big=cpu:2,gib:0.1,subtask:0.00002"
BIG = Tariff(2_000_000, 20, 100_000)


def offered(grid, worker):
    """The tariff of a new job as a worker hears it."""
    client = grid.client()
    job = client.submit().job
    client.upload(job, 1)
    client.close_upload(job, 1)
    grid.until(lambda: worker.take(0.01) and job in worker.openings, "the opening")
    return job, worker.openings[job].tariff


def test_a_class_without_a_tariff_is_refused_with_the_known_ones(broker):
    broker.ledger().start()
    broker.start(tariff=TARIFFS)
    refused = broker.worker("w0").hello(labels={"class": "huge"})
    assert isinstance(refused, ww.Refused) and refused.code == "UNKNOWN_CLASS"
    assert "'huge'" in refused.message and "big, standard" in refused.message
    assert isinstance(broker.worker("w1").hello(labels={"class": "big"}), ww.Welcome)
    assert "huge" not in str(broker.client().ask("workers", list[wc.WorkerRow]))


def test_a_worker_hears_its_classs_tariff_and_a_job_keeps_it(broker):
    broker.ledger().start()
    broker.start(tariff=TARIFFS)
    worker = broker.worker("w0")
    worker.hello(labels={"class": "big"})
    job, tariff = offered(broker, worker)
    assert tariff == BIG
    broker.kill()
    broker.start(tariff="standard=cpu:9; big=cpu:9")
    worker.openings.clear()
    worker.hello(labels={"class": "big"})
    broker.until(lambda: worker.take(0.01) and job in worker.openings, "the opening again")
    assert worker.openings[job].tariff == BIG, "that of the time at which it was accepted"
    lease, _ = worker.leases.pop()
    worker.report(*worker.heads(lease))
    assert offered(broker, worker)[1].cpu_second_ucredits == 9_000_000
