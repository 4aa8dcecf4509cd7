"""Peers that connect to front, back and ledger at once and say nothing, or only a greeting.

An honest client asks for one small job after the other all the while: none is lost or late, and
those who never prove a key are gone by HANDSHAKE_IVL.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from grid_rig import until
from sockets_zmtp import GREETING, open_stream

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.wire.keys import load_key

CURVE = GREETING.replace(b"NULL\0", b"CURVE")
WAIT_MAX_S = 5.0  #: no honest job takes longer; a busy machine alone takes a tenth of this
GONE_S_MAX = 20.0  #: HANDSHAKE_IVL is 1 s


#: of each window at least; a crowd is sent away and comes again once a second
ROUND_TRIPS, WINDOW_S, TURNS = 400, 1.2, 2
#: takes a crowd as a broker does and is none: what so many connections cost this machine
SINK = """
import collections, select, socket, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096)
server.setblocking(False)
held = collections.deque()
while True:
    select.select([server], [], [], 0.05)
    try:
        while True:
            held.append((time.monotonic(), server.accept()[0]))
    except BlockingIOError:
        pass
    while held and time.monotonic() - held[0][0] > 1.0:
        held.popleft()[1].close()
"""
#: keeps so many silent connections open at each address: HANDSHAKE_IVL ends them, it comes again.
#: It is a process of its own, or the honest client would share its interpreter.
CROWD = """
import select, socket, sys
count, greeting = int(sys.argv[1]), bytes.fromhex(sys.argv[2])
places = [address.removeprefix("tcp://").rsplit(":", 1) for address in sys.argv[3:]]
poll, peers = select.poll(), {}
def come(place):
    peer = socket.create_connection((place[0], int(place[1])))
    peer.sendall(greeting)
    peers[peer.fileno()] = peer, place
    poll.register(peer, select.POLLIN)
for place in places:
    for _ in range(count // len(places)):
        come(place)
print("here", flush=True)
while True:
    for number, _ in poll.poll():
        peer, place = peers[number]
        try:
            is_gone = not peer.recv(4096)
        except OSError:
            is_gone = True
        if is_gone:
            poll.unregister(peer)
            del peers[number]
            peer.close()
            come(place)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def grid() -> Iterator[Grid]:
    """Front, back and ledger all on TCP, where strangers come from."""
    ports = [f"tcp://127.0.0.1:{free_port()}" for _ in range(3)]
    made = Grid.temporary(workers=1, slots=1, front=ports[0], back=ports[1])
    broker, ledger = (
        load_key(made.state / name / f"{name}.key").verify_key.encode().hex()
        for name in ("broker", "ledger")
    )
    made.options = {
        "ledger": ["--listen", ports[2], "--allow", f"broker={broker}"],
        "broker": ["--ledger", ports[2], "--ledger-key", ledger],
    }
    made.environment = {"LEDGER": ports[2]}
    try:
        yield made.start()
    finally:
        print(made.tails())  # seen when the test failed
        made.stop(grace_s=0.0)


def connections(grid: Grid, name: str) -> int:
    return len(os.listdir(f"/proc/{grid.pid(name)}/fd"))


def crowd(address: str, count: int) -> list[socket.socket]:
    """Half of the peers stop before or within the greeting, half are silent after all of it."""
    silent = []
    for number in range(count):
        stream = open_stream(address)
        stream.sendall(CURVE if number % 2 else CURVE[: number // 2 % len(CURVE)])
        silent.append(stream)
    return silent


def quantile(seconds: list[float], share: float) -> float:
    """In ms."""
    return round(1_000 * sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))], 2)


def added(number: int) -> int:
    return number + 1


def test_silent_peers_at_every_socket_delay_nobody(
    grid: Grid, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    peers, jobs = sized(500, 5_000), sized(42, 400)
    targets = {"front": grid.address, "back": grid.back, "ledger": grid.environment["LEDGER"]}
    pids = {name: grid.pid(name) for name in grid.names}
    token = grid.token("local")
    with Client(grid.address, token=token, trust="fleet", environment=sys.executable) as client:

        def job(number: int) -> float:
            began = time.monotonic()
            assert list(client.map(added, [number], tier="batch")) == [number + 1]
            return time.monotonic() - began

        for number in range(5):
            job(number)  # jails are warm
        before = [job(number) for number in range(jobs)]
        base = {name: connections(grid, name) for name in ("broker", "ledger")}
        silent, during = [], []
        for address in targets.values():  # honest jobs between the thirds, too
            silent += crowd(address, peers)
            during += [job(number) for number in range(jobs // 6)]
        while len(during) < jobs:
            during.append(job(len(during)))
        began = time.monotonic()
        until(
            "those who never proved a key are gone",
            lambda: all(connections(grid, name) <= base[name] + 4 for name in base),
            GONE_S_MAX,
        )  # fmt: skip
        gone_s = time.monotonic() - began
        assert all(_is_closed(stream) for stream in silent)
        for stream in silent:
            stream.close()
        job(0)
        assert client.grid()["is_ledger_up"]
    assert max(during) < WAIT_MAX_S
    assert not grid.dead() and {name: grid.pid(name) for name in grid.names} == pids
    assert "Traceback" not in "".join(Path(grid.log(name)).read_text() for name in grid.names)
    figures(
        peers=3 * peers, jobs_meanwhile=len(during), lost=0, gone_s=round(gone_s, 2),
        before_ms_p50=quantile(before, 0.5), before_ms_p99=quantile(before, 0.99),
        during_ms_p50=quantile(during, 0.5), during_ms_p99=quantile(during, 0.99),
        ratio_p99=round(quantile(during, 0.99) / quantile(before, 0.99), 2),
    )  # fmt: skip


def test_a_clients_p99_alone_beside_a_crowd_elsewhere_and_here(
    grid: Grid, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    """The same client, in turns, in the same minute: alone, a crowd elsewhere, a crowd here.

    What a crowd costs the machine it costs elsewhere, too; the rest is the broker's: all of the
    crowd is sent away within one second, and comes back, through the one I/O thread of libzmq.
    """
    count, port = sized(500, 1_500), free_port()
    elsewhere, here = [f"tcp://127.0.0.1:{port}"], [grid.address, grid.back]
    places: dict[str, list[str]] = {"alone": [], "elsewhere": elsewhere, "here": here}
    times: dict[str, list[float]] = {name: [] for name in places}
    with (
        Client(grid.address, token=grid.token("local")) as client,
        subprocess.Popen([sys.executable, "-c", SINK, str(port)]) as sink,
    ):

        def window(times: list[float]) -> None:
            until_s, enough = time.monotonic() + WINDOW_S, len(times) + ROUND_TRIPS
            while time.monotonic() < until_s or len(times) < enough:
                began = time.monotonic()
                client.jobs(limit=1)
                times.append(time.monotonic() - began)

        try:
            window([])
            base = connections(grid, "broker") + 4
            for _ in range(TURNS):
                for name, addresses in places.items():
                    with _crowd_of(count, addresses):
                        window(times[name])
                    until("they are gone", lambda: connections(grid, "broker") <= base, GONE_S_MAX)
        finally:
            sink.kill()
    assert max(max(each) for each in times.values()) < WAIT_MAX_S
    told: dict[str, float] = {}
    for name, each in times.items():
        told[f"{name}_ms_p50"], told[f"{name}_ms_p99"] = quantile(each, 0.5), quantile(each, 0.99)
    figures(
        peers=count, round_trips_min=min(map(len, times.values())), **told,
        here_of_alone_p99=round(told["here_ms_p99"] / told["alone_ms_p99"], 2),
        here_of_elsewhere_p99=round(told["here_ms_p99"] / told["elsewhere_ms_p99"], 2),
    )  # fmt: skip


@contextlib.contextmanager
def _crowd_of(count: int, addresses: list[str]) -> Iterator[None]:
    """So many silent peers, parted among these addresses; nobody without an address."""
    if not addresses:
        yield
        return
    command = [sys.executable, "-c", CROWD, str(count), CURVE.hex(), *addresses]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as peers:
        try:
            assert peers.stdout is not None and peers.stdout.readline() == "here\n"
            yield
            assert peers.poll() is None, "they were there to the end"
        finally:
            peers.kill()


def _is_closed(stream: socket.socket) -> bool:
    """The other side has ended it; what it said before (its greeting) is read first."""
    stream.settimeout(0.0)
    try:
        while stream.recv(4_096):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True
