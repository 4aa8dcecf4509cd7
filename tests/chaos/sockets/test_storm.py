"""P13: a broker that is started again has all its workers back soon, without a storm of HELLOs."""

import collections
import multiprocessing
import time

import pytest
from sockets_peers import until
from sockets_storm import live

import gristmill.wire.client as wc

EACH = 500  #: workers in one process
BACK_MAX_S = 20.0  #: the promise is 5 s for 1,000; a busy machine gets a multiple
#: longer than a busy machine takes: who comes back only for the broker's silence comes too late
SILENCE_MS = 40_000
HELLOS_MAX = 4  #: of one worker for one restart: one, and some on the way
SUBTASKS = 20_000


class Fleet:
    """Light workers in processes of their own."""

    def __init__(self, back, count, is_deaf=False):
        spawning = multiprocessing.get_context("spawn")
        self.wires, self.processes = [], []
        for first in range(0, count, EACH):
            ours, theirs = spawning.Pipe()
            process = spawning.Process(
                target=live, args=(back, first, min(EACH, count - first), theirs, is_deaf),
                daemon=True,
            )  # fmt: skip
            process.start()
            theirs.close()
            self.wires.append(ours)
            self.processes.append(process)

    def told(self):
        """How many workers said how many HELLOs since this was last asked, and silences."""
        for wire in self.wires:
            wire.send("tell")
        answers = [wire.recv() for wire in self.wires]
        hellos = sum((hellos for hellos, _ in answers), collections.Counter())
        return hellos, sum(silences for _, silences in answers)

    def close(self):
        for process in self.processes:
            process.kill()
            process.join()


@pytest.mark.slow
def test_all_workers_are_back_soon_after_a_restart(broker, sized, figures):
    count, restarts = sized(1_000, 5_000), sized(1, 3)
    ledger = broker.ledger().start()
    broker.start(worker_ttl_ms=SILENCE_MS)
    fleet = Fleet(broker.back, count)
    broker.closers.append(fleet.close)
    client = broker.client()
    until(lambda: client.ask("grid")["workers"] == count, "all are in session", 60)
    fleet.told()
    back_s, most, said = [], 0, 0
    for _ in range(restarts):
        job = client.submit().job
        client.subscribe(job)
        client.upload(job, SUBTASKS, each=1_000)
        client.watch(lambda job=job: client.committed.get(job) == SUBTASKS, "its inputs are there")
        broker.kill()
        began = time.monotonic()
        broker.start()
        assert isinstance(client.hello(), wc.Welcome)
        until(lambda: client.ask("grid")["workers"] == count, "all are back", BACK_MAX_S)
        back_s.append(time.monotonic() - began)
        client.subscribe(job, after=client.results[-1][0].sequence if client.results else 0)
        client.close_upload(job, SUBTASKS)
        card = client.finish(job)
        assert (card.done, card.failed) == (SUBTASKS, 0), "the honest client's job went on"
        client.results.clear()
        hellos, silences = fleet.told()
        most, said = max(most, *hellos), said + sum(n * many for n, many in hellos.items())
        assert not silences, "one was not told to join again"
        told = client.ask("grid")
        assert told["workers"] == count and max(hellos) <= HELLOS_MAX, hellos
        assert told["rejoins"] <= 3 * count, "a storm of REJOIN"
    assert not ledger.faults
    figures(
        workers=count, restarts=restarts, back_s_max=round(max(back_s), 2),
        hellos_per_worker=round(said / count / restarts, 2), hellos_of_one_max=most,
        rejoins=told["rejoins"],
    )  # fmt: skip


@pytest.mark.slow
def test_workers_that_are_not_told_to_join_again_are_not_back_soon(broker, figures):
    """The planted bug: without REJOIN only the silence of the broker brings a worker back."""
    count = 50
    broker.ledger().start()
    broker.start(worker_ttl_ms=SILENCE_MS)
    fleet = Fleet(broker.back, count, is_deaf=True)
    broker.closers.append(fleet.close)
    client = broker.client()
    until(lambda: client.ask("grid")["workers"] == count, "all are in session", 60)
    broker.kill()
    broker.start()
    assert isinstance(client.hello(), wc.Welcome)
    heard = until(lambda: (f := client.ask("grid"))["rejoins"] >= count and f, "all were told")
    until(lambda: client.ask("grid")["rejoins"] >= 3 * count, "and told, and told", 20)
    assert heard["workers"] == client.ask("grid")["workers"] == 0
    figures(workers=count, back=0)
