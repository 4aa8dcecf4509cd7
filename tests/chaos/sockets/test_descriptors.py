"""P11: connections that only take descriptors, down to the last one."""

import contextlib
import os
import resource
import signal
import time

import pytest
import zmq
from sockets_peers import ClientPeer, until
from sockets_zmtp import GREETING, greet, open_stream

import gristmill.wire.client as wc
from gristmill.wire.curve import be_client
from gristmill.wire.tokens import parse_token

CROWD = zmq.Context()
CROWD.set(zmq.MAX_SOCKETS, 8_000)
ROOM = 40  #: descriptors that are left when the bomb begins


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_kib(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 10


def narrow(broker):
    """Leaves the process only some descriptors."""
    pid = broker.process.pid
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid) + ROOM, hard))


def fill(broker, count):
    """Connections of a known key that shook hands, or were not even accepted, and say nothing."""
    token, held = parse_token(broker.crowd), []
    for _ in range(count):
        held.append(CROWD.socket(zmq.DEALER))
        held[-1].setsockopt(zmq.LINGER, 0)
        held[-1].setsockopt(zmq.HANDSHAKE_IVL, 0)  # they wait as long as it takes
        be_client(held[-1], token.key, token.broker)
        held[-1].connect(broker.front)
    return held


def work(client, worker_count=200):
    answer = client.submit()
    assert not isinstance(answer, wc.Refused), answer
    job = answer.job
    client.subscribe(job)
    client.upload(job, worker_count)
    client.close_upload(job, worker_count)
    card = client.finish(job)
    assert (card.done, card.failed) == (worker_count, 0)
    return job


@pytest.fixture
def tcp(broker):
    """A broker whose clients come by tcp."""
    broker.front = "tcp://127.0.0.1:*"
    broker.ledger().start()
    broker.start()
    ready = [line for line in broker.text().splitlines() if line.startswith("ready broker ")]
    broker.front = ready[-1].split()[2]
    broker.crowd = broker.token()  # once: whenever there is a new one the broker reads a file
    worker = broker.worker()
    worker.hello()
    worker.start()
    return broker


def test_it_takes_all_descriptors_that_it_may(broker):
    broker.ledger().start()
    broker.start()
    soft, hard = resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE)
    assert soft == hard
    figures = until(
        lambda: (f := broker.client().ask("grid"))["descriptors_limit"] and f, "it has looked"
    )
    assert figures["descriptors_limit"] == hard
    assert 0 < figures["descriptors"] <= descriptors(broker.process.pid) + 1


def test_a_descriptor_bomb_on_tcp_leaves_those_who_are_here_alone(tcp, sized, figures):
    honest = tcp.client()
    work(honest)
    narrow(tcp)
    bombs, jobs = sized(1, 10), 0
    for _ in range(bombs):
        held = fill(tcp, ROOM * 3)
        pid = tcp.process.pid
        limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
        until(lambda limit=limit, pid=pid: descriptors(pid) >= limit, "all are taken", 10)
        work(honest)  # journal, reader, results and the ledger's line need no new one
        jobs += 1
        until(lambda: honest.ask("grid")["descriptors_short"], "it is told")
        for stream in held:
            stream.close()
        late = ClientPeer(tcp.front, token=tcp.token())
        tcp.closers.append(late.close)
        assert isinstance(late.hello(), wc.Welcome), "served when there is room again"
        work(late)
    assert "RLIMIT_NOFILE" in tcp.text()
    assert tcp.process.poll() is None
    figures(bombs=bombs, connections=bombs * ROOM * 3, jobs_meanwhile=jobs, lost=0)


def test_connections_that_cannot_be_accepted_are_counted_and_told(tcp, sized, figures):
    honest, pid = tcp.client(), tcp.process.pid
    work(honest)
    narrow(tcp)
    limit, held = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0], []
    while descriptors(pid) < limit:
        before = descriptors(pid)
        held += fill(tcp, 1)
        until(lambda before=before: descriptors(pid) > before, "it is accepted")
    told = honest.ask("grid")
    assert (told["accepts_failed"], told["connections_waiting"]) == (0, 0), "all had room"
    before_kib, kept_out, crowds = resident_kib(pid), 0, (1, 1, 1, 1, 1, sized(500, 3_000))
    for crowd in crowds:
        held += fill(tcp, crowd)
        kept_out += crowd
        told = until(
            lambda n=kept_out: (f := honest.ask("grid"))["connections_waiting"] == n and f,
            f"{kept_out} are known to wait", 30,
        )  # fmt: skip
        assert told["accepts_failed"] == kept_out, "each is counted once, however long it waits"
        work(honest, 10)  # the loop that looks is the loop that works
    grown_kib = resident_kib(pid) - before_kib
    lines = [line for line in tcp.text().splitlines() if "could not be accepted" in line]
    assert 1 <= len(lines) <= kept_out.bit_length()
    assert f"all {limit} descriptors are taken (RLIMIT_NOFILE)" in lines[0]
    assert "ulimit -Hn" in lines[0], "the next step"
    assert grown_kib < 64 << 10, "nothing grows with the tries of libzmq"
    for stream in held:
        stream.close()
    until(lambda: not honest.ask("grid")["connections_waiting"], "they were served, or left", 30)
    late = ClientPeer(tcp.front, token=tcp.token())
    tcp.closers.append(late.close)
    assert isinstance(late.hello(), wc.Welcome), "served when there is room again"
    assert tcp.process.poll() is None
    figures(kept_out=kept_out, lines=len(lines), grown_mib=round(grown_kib / 1_024, 1))


def test_a_descriptor_bomb_on_ipc_costs_a_start_and_nothing_accepted(broker, sized, figures):
    """libzmq aborts; `gristmill up` starts a process that ended, as here."""
    broker.ledger().start()
    broker.start()
    worker = broker.worker()
    worker.hello()
    worker.start()
    honest, back_s, bombs = broker.client(), [], sized(2, 25)
    accepted = []
    for _ in range(bombs):
        accepted.append(honest.submit().job)
        honest.upload(accepted[-1], 300)
        honest.close_upload(accepted[-1], 300)
        until(lambda: honest.committed.get(accepted[-1]) == 300 or honest.drain(), "on disk")
        narrow(broker)
        held = []
        with contextlib.suppress(OSError):  # it is gone in the middle of a greeting
            while len(held) < 2 * ROOM:
                held.append(greet(broker.front))
        assert broker.process.wait(20) == -signal.SIGABRT
        assert broker.text().count("Too many open files (src/ipc_listener.cpp:") == len(accepted)
        for stream in held:
            stream.close()
        began = time.monotonic()
        broker.start()
        assert isinstance(honest.hello(), wc.Welcome)
        back_s.append(time.monotonic() - began)
    for job in accepted:
        honest.watch(
            lambda job=job: honest.ask("job", wc.JobStatus, job=job).state == "done",
            f"job {job} is done",
        )
        card = honest.ask("job", wc.JobStatus, job=job)
        assert (card.done, card.failed) == (300, 0)
    figures(bombs=bombs, lost=0, back_s_max=round(max(back_s), 2))


def test_silent_half_handshakes_go_and_the_honest_are_served(tcp, sized, figures):
    count = sized(500, 5_000)
    honest, pid = tcp.client(), tcp.process.pid
    base, held, jobs = descriptors(pid), [], 0
    for n in range(count):
        stream = open_stream(tcp.front)
        stream.sendall(GREETING[: n % len(GREETING)])  # each stops at another byte
        held.append(stream)
        if n % 100 == 99:
            work(honest, 10)
            jobs += 1
    began = time.monotonic()
    until(lambda: descriptors(pid) <= base + 2, "they are gone by HANDSHAKE_IVL", 20)
    gone_s = time.monotonic() - began
    work(honest)
    for stream in held:
        stream.close()
    figures(half_handshakes=count, gone_s=round(gone_s, 2), jobs_meanwhile=jobs)
