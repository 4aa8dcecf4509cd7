"""P11, pain 3: a peer that stops reading costs the broker a bounded queue, and loses nothing."""

import threading
import time

import zmq
from sockets_peers import CONTEXT, ClientPeer, WorkerPeer, until

import gristmill.wire.client as wc
import gristmill.wire.worker as ww
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.values import pack_plain

EACH = 64  #: subtasks in a result
VALUE = bytes(1_000)  #: of each subtask: a result has 64 kB
QUEUE_BYTES = 1 << 20
SLEEPERS = 4
#: for each sleeper: our queue and libzmq's pipe (128 results); the rest is what the broker grows by
#: when everybody reads
GROWTH_MAX = SLEEPERS * (QUEUE_BYTES + 128 * EACH * len(VALUE)) + (96 << 20)
DEAF_GROWTH_MAX = 32 << 20


class FatWorker(WorkerPeer):
    """Its results are large, and always the same bytes."""

    BODY = pack_plain([VALUE] * EACH)

    def heads(self, lease, split=EACH):
        heads, bodies = [], []
        for first, length in lease.runs:
            for at in range(first, first + length, EACH):
                count = min(EACH, first + length - at)
                self.numbers["result"] += 1
                heads.append(
                    ww.ResultHead(self.numbers["result"], lease.lease_id, lease.job, at, count,
                                  "q", count, count, 100, "wait4")
                )  # fmt: skip
                values = self.BODY if count == EACH else pack_plain([VALUE] * count)
                bodies += [values[1], pack_meter(count, Outcome.OK), b"", b""]
        return heads, bodies


def sleepy(peer):
    """The same peer, with almost no room of its own for what it does not read."""
    address = peer.socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
    peer.socket.close()
    peer.socket = CONTEXT.socket(zmq.DEALER)
    for option, value in ((zmq.LINGER, 0), (zmq.RCVHWM, 2), (zmq.SNDHWM, 0)):
        peer.socket.setsockopt(option, value)
    peer.socket.connect(address)
    return peer


def read_all(peer, job, upto):
    """Reads to the end, with HELLO and a new subscription where the session was lost."""
    deadline = time.monotonic() + 60
    while len(peer.results) < upto:
        assert time.monotonic() < deadline, f"{len(peer.results)} of {upto} results came"
        got = peer.receive(1.0)
        if got is None:
            peer.send(wc.Ping(peer.session))
            continue
        message, bodies = got
        if isinstance(message, wc.Refused) and message.code == "REJOIN":
            if message.session == peer.session:
                peer.send(wc.Hello(1, peer.id, peer.tenant, "3.11", "test"))
        elif isinstance(message, wc.Welcome):
            peer.session = message.session
            after = peer.results[-1][0].sequence if peer.results else 0
            peer.request += 1
            peer.send(wc.Subscribe(peer.session, peer.request, job, after, 1 << 40))
        else:
            peer._take(message, bodies)


def test_clients_that_stop_reading_are_bounded_queues(broker, sized, figures):
    count = sized(128_000, 640_000)  # 128 MB of results, or 640
    broker.ledger().start()
    broker.start(
        peer_queue_messages=64, peer_queue_bytes=QUEUE_BYTES, result_cache_bytes=4 << 20,
        tenant_disk_bytes=4 << 30, client_ttl_ms=120_000, journal_backlog_bytes=8 << 20,
    )  # fmt: skip
    honest = broker.client()
    sleepers = [sleepy(ClientPeer(broker.front)) for _ in range(SLEEPERS)]
    broker.closers.extend(each.close for each in sleepers)
    worker = FatWorker(broker.back, "fat")
    broker.closers.append(worker.close)
    worker.hello()
    job = honest.submit().job
    for asleep in sleepers:
        assert isinstance(asleep.hello(), wc.Welcome)
        assert isinstance(asleep.subscribe(job), wc.Answer)  # the last that it reads for a while
    before = honest.ask("grid")
    worker.start()
    honest.subscribe(job)
    peak, delays = 0, []
    for first in range(0, count, 6_400):
        for at in range(first, first + 6_400, 100):
            honest.parcel(job, at, list(range(at, at + 100)))
        began = time.monotonic()
        now = honest.ask("grid")
        delays.append(time.monotonic() - began)
        peak = max(peak, now["memory_bytes"])
        honest.results[:] = [(message, []) for message, _ in honest.results]
    honest.close_upload(job, count)
    results = honest.finish(job).results
    for asleep in sleepers[1:]:  # and they go on talking without listening
        for _ in range(1_000):
            asleep.send(wc.Ping(asleep.session))
    until(lambda: honest.ask("grid")["peers_dropped"] == SLEEPERS - 1, "dropped at their bound")
    peak = max(peak, honest.ask("grid")["memory_bytes"])
    assert sum(m.head.count for m, _ in honest.results) == count, "another's reading is its own"
    grown = peak - before["memory_bytes"]
    figures(
        results=results,
        unread_mb=SLEEPERS * count * len(VALUE) // 10**6,
        grown_mib=grown >> 20,
        honest_answer_ms_max=round(max(delays) * 1_000),
    )
    assert grown < GROWTH_MAX, f"{grown >> 20} MiB for peers that do not read"
    for asleep in sleepers[:2]:  # one that was kept waiting, one that was dropped
        read_all(asleep, job, results)
        assert [m.sequence for m, _ in asleep.results] == list(range(1, results + 1))
        assert sum(m.head.count for m, _ in asleep.results) == count
        asleep.results.clear()


def test_a_worker_that_stops_reading_is_dropped_and_its_work_is_done(broker, sized, figures):
    count = sized(2_000, 20_000)
    broker.ledger().start()
    broker.start(peer_queue_messages=64, peer_queue_bytes=QUEUE_BYTES, worker_ttl_ms=30_000)
    client = broker.client()
    deaf = sleepy(WorkerPeer(broker.back, "deaf", slots=4))
    broker.closers.append(deaf.close)
    deaf.hello()
    job = client.submit().job
    client.subscribe(job)
    client.upload(job, count)
    client.close_upload(job, count)
    until(lambda: client.ask("grid")["leases"], "it has leases")
    before = client.ask("grid")["memory_bytes"]
    sent = 0
    stop = time.monotonic() + 60
    while not client.ask("grid")["peers_dropped"]:  # it says that it lives, and hears nothing
        assert time.monotonic() < stop, f"never dropped after {sent} reports"
        for _ in range(100):
            deaf.report(is_full=True)
        sent += 100
    grown = client.ask("grid")["memory_bytes"] - before
    assert grown < DEAF_GROWTH_MAX
    worker = broker.worker("well")
    worker.hello()
    worker.start()
    card = client.finish(job)
    assert (card.done, card.failed) == (count, 0)
    assert sum(m.head.count for m, _ in client.results) == count
    # It wakes: what it still says is refused, it joins again, and has no lease of the old session.
    refused = threading.Event()
    deadline = time.monotonic() + 30
    while not refused.is_set():
        assert time.monotonic() < deadline, "never told to join again"
        deaf.report()
        message = deaf.take(0.05)
        if isinstance(message, ww.Refused) and message.code == "REJOIN":
            refused.set()
    while deaf.take(0.2) is not None:
        pass
    assert isinstance(deaf.hello(), ww.Welcome)
    figures(reports_unanswered=sent, grown_mib=grown >> 20, lost=0)
