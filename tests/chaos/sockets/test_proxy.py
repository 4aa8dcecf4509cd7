"""The proxy itself: it passes everything by default, and each fault happens as often as told."""

import time
from collections.abc import Iterator

import pytest
import zmq
from chaos_proxy import DOWN, UP, ByteRelay, ChaosProxy, Faults

from gristmill.cli.grid import Grid
from gristmill.client import Client

Socket = zmq.Socket[bytes]


@pytest.fixture
def context() -> Iterator[zmq.Context[Socket]]:
    context: zmq.Context[Socket] = zmq.Context()
    yield context
    context.destroy(0)


@pytest.fixture(params=["ipc", "tcp"])
def router(request: pytest.FixtureRequest, context: zmq.Context[Socket], tmp_path) -> Socket:
    router = context.socket(zmq.ROUTER)
    router.bind(f"ipc://{tmp_path}/s" if request.param == "ipc" else "tcp://127.0.0.1:*")
    return router


def address_of(router: Socket) -> str:
    return router.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()


def dealer(context: zmq.Context[Socket], address: str) -> Socket:
    socket = context.socket(zmq.DEALER)
    socket.connect(address)
    return socket


def receive(socket: Socket, count: int, seconds: float = 10) -> list[list[bytes]]:
    found: list[list[bytes]] = []
    deadline = time.monotonic() + seconds
    while len(found) < count and socket.poll(max(0, (deadline - time.monotonic()) * 1_000)):
        found.append(socket.recv_multipart())
    return found


def test_each_peer_is_one_peer_for_the_process(context, router):
    with ChaosProxy(address_of(router)) as proxy:
        peers = [dealer(context, proxy.address) for _ in range(3)]
        for number, peer in enumerate(peers):
            peer.send_multipart([b"%d" % number, b"", b"body"])
        asked = receive(router, 3)
        assert len({frames[0] for frames in asked}) == 3
        for frames in asked:
            router.send_multipart(frames)
        for number, peer in enumerate(peers):
            assert receive(peer, 1) == [[b"%d" % number, b"", b"body"]]
    # (it counts what it sent when that may have arrived already)
    assert proxy.counts[UP, "passed"] == proxy.counts[DOWN, "passed"] == 3


def test_faults_are_as_told_and_the_same_again_for_the_same_seed(context, router):
    arrived = []
    for _ in range(2):
        with ChaosProxy(address_of(router), seed=3) as proxy:
            proxy.up = Faults(drop=0.2, duplicate=0.2)
            peer = dealer(context, proxy.address)
            for number in range(500):
                peer.send(b"%d" % number)

            def copies(proxy: ChaosProxy = proxy) -> int:
                return 500 - proxy.counts[UP, "dropped"] + proxy.counts[UP, "duplicated"]

            proxy_end = time.monotonic() + 10
            while proxy.seen(UP) < 500 or proxy.seen(UP, "passed") < copies():
                assert time.monotonic() < proxy_end
                time.sleep(0.01)
            arrived.append([frames[1] for frames in receive(router, copies())])
            assert 60 < proxy.counts[UP, "dropped"] < 140
            assert 40 < proxy.counts[UP, "duplicated"] < 120
            peer.close(0)
    assert arrived[0] == arrived[1]


def test_reordered_messages_all_arrive_in_another_order(context, router):
    with ChaosProxy(address_of(router)) as proxy:
        proxy.up = Faults(reorder=0.5)
        peer = dealer(context, proxy.address)
        sent = [b"%d" % number for number in range(200)]
        for frame in sent:
            peer.send(frame)
        found = [frames[1] for frames in receive(router, 200)]
        assert sorted(found) == sorted(sent) and found != sent


def test_a_cut_swallows_and_heals_and_a_reset_is_noticed(context, router):
    with ChaosProxy(address_of(router)) as proxy:
        peer = dealer(context, proxy.address)
        peer.send(b"1")
        assert len(receive(router, 1)) == 1
        proxy.cut()
        peer.send(b"2")
        deadline = time.monotonic() + 10
        while proxy.counts[UP, "cut"] < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not router.poll(100)
        proxy.heal()
        peer.send(b"3")
        (before,) = receive(router, 1)
        assert before[1] == b"3"
        proxy.reset()
        after: list[list[bytes]] = []
        deadline = time.monotonic() + 10
        while not after and time.monotonic() < deadline:
            peer.send(b"4")  # what goes into the old connection is lost
            after = receive(router, 1, 0.1)
        assert after[0][1] == b"4" and after[0][0] != before[0]


def test_a_relay_stalls_without_closing(context, router):
    with ByteRelay(address_of(router)) as relay:
        peer = dealer(context, relay.address)
        peer.send(b"1")
        assert len(receive(router, 1)) == 1
        relay.cut()
        peer.send(b"2")
        assert not router.poll(200)
        relay.heal()
        assert receive(router, 1)[0][1] == b"2"
        assert relay.connections == 1
        relay.reset()
        deadline = time.monotonic() + 10
        while relay.connections < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        peer.send(b"3")
        assert receive(router, 1)[0][1] == b"3"


def test_a_grid_works_through_proxies_on_all_its_links():
    grid = Grid.temporary(workers=1, slots=1)
    with (
        ChaosProxy(grid.address) as front,
        ChaosProxy(grid.back) as back,
        ChaosProxy(f"ipc://{grid.run}/ledger") as ledger,
    ):
        grid.options["worker"] = ["--broker", back.address]
        grid.options["broker"] = ["--ledger", ledger.address]
        with grid, Client(front.address) as client:
            assert list(client.map(abs, range(-50, 0))) == list(range(50, 0, -1))
            assert front.seen(UP) and back.seen(UP) and ledger.seen(UP)
