"""Pain 2: packets between worker and broker are swallowed for seconds, and nobody is told."""

import threading
import time

from chaos_proxy import ByteRelay
from sockets_peers import WorkerPeer

import gristmill.wire.client as wc
import gristmill.wire.worker as ww

BACK_S_MAX = 10.0  #: what is promised: throughput is back


class FarWorker(WorkerPeer):
    """Follows RFC 0001 section 4.5: what was said to an earlier session of it is no call to join.

    The light peer answers each REJOIN with a HELLO; behind a cut there are many, and each HELLO
    would void the session before with all its leases.
    """

    def receive(self, timeout_s=20.0):
        while (got := super().receive(timeout_s)) is not None:
            message = got[0]
            is_old = isinstance(message, ww.Refused) and message.session != self.session
            if not is_old and not (self.is_joining and not isinstance(message, ww.Welcome)):
                return got
        return None

    is_joining = False

    def hello(self, *args, **fields):
        self.is_joining = True
        try:
            self.leases.clear()
            return super().hello(*args, **fields)
        finally:
            self.is_joining = False


def test_a_silent_cut_loses_and_doubles_nothing(broker, sized, figures):
    cuts, back_s = sized(3, 50), []
    broker.ledger().start()
    broker.start(worker_ttl_ms=2_000, worker_report_ms=500)
    client = broker.client()
    job = client.submit().job
    client.subscribe(job)
    count = 0
    with ByteRelay(broker.back) as relay:
        worker = FarWorker(relay.address, "far")
        broker.closers.append(worker.close)
        worker.hello()
        worker.start()

        def has(total):
            client.drain()
            return sum(m.head.count for m, _ in client.results) >= total

        def more():
            nonlocal count
            client.parcel(job, count, list(range(count, count + 100)))
            count += 100

        for cut in range(cuts):
            more()
            client.watch(lambda: has(count), "work goes on before the cut")
            relay.cut()
            more()  # leased, or on the way, or done and not told, while nothing passes
            healed = threading.Timer((0.5, 3.0, 5.0)[cut % 3], relay.heal)
            healed.start()
            healed.join()
            began = time.monotonic()
            more()
            client.watch(lambda: has(count), "work goes on after the cut")
            back_s.append(time.monotonic() - began)
        client.close_upload(job, count)
        card = client.finish(job)
    assert (card.done, card.failed) == (count, 0)
    told = sorted((m.head.first, m.head.count) for m, _ in client.results)
    assert sum(n for _, n in told) == count
    assert all(told[i][0] + told[i][1] == told[i + 1][0] for i in range(len(told) - 1))
    assert isinstance(card, wc.JobStatus)
    assert max(back_s) < BACK_S_MAX
    figures(cuts=cuts, subtasks=count, back_s_max=round(max(back_s), 2), lost=0, doubled=0)
