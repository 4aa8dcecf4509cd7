"""A pickle in every field of every message, at every socket of real processes: none is opened.

The pickle makes a folder on this host. A server that opened it would also end (exit 70): it has an
audit hook. Workers and clients have none, so for them the folder alone decides; in a jail, where a
tenant's pickles are opened, its parent does not exist.
"""

import hashlib
import http.client
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any, get_args

import msgspec
import pytest
import zmq
from sockets_peers import CONTEXT, ClientPeer, Link, WorkerPeer, until
from sockets_pickles import Payload, messages, places, tree

import gristmill.wire.client as wc
import gristmill.wire.ledger as wl
import gristmill.wire.worker as ww
from gristmill.cli.grid import Grid
from gristmill.wire import limits
from gristmill.wire.frames import encode
from gristmill.wire.meter import pack_meter

SERVERS = ("broker", "ledger", "store", "treasury")


@pytest.fixture
def payload() -> Iterator[Payload]:
    """Its marker has a short path: names have limits."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="gm"))
    yield Payload(folder / "m")
    shutil.rmtree(folder)


@pytest.fixture
def grid() -> Iterator[Grid]:
    made = Grid.temporary(workers=1, slots=1, payments="")
    made.options["treasury"] = ["--listen", f"unix://{made.run}/callbacks"]
    try:
        yield made.start()
    finally:
        print(made.tails())  # seen when the test failed
        made.stop(grace_s=0.0)


def kinds(*unions: Any) -> list[Any]:
    return [one for union in unions for one in get_args(union)]


# ---------------------------------------------------------------- what a grid is told


class Front:
    """A client that says each message with each pickle, in a session that lives."""

    def __init__(self, grid: Grid, payload: Payload) -> None:
        self.peer, self.payload = ClientPeer(grid.address), payload
        assert isinstance(self.peer.hello(), wc.Welcome)
        self.sent, self.answers, self.at = 0, set[str](), set[str]()

    def attack(self) -> None:
        rare = (wc.Hello, wc.Goodbye)  # these end the session: last
        for kind in [one for one in kinds(wc.ClientMessage) if one not in rare] + [*rare]:
            job = self.peer.submit().job
            known = {
                "session": self.peer.session, "job": job, "request": 10**6,
                "client": os.urandom(16), "first": 0, "count": 1,
                "submission": lambda: os.urandom(16), "protocol": limits.PROTOCOL,
                "tenant": "local", "about": "grid", "limit": 5, "codec": "q", "worker": "worker-0",
                "backend": "manual", "argv": "true", "digest": "0" * 64, "path": "a", "env": "A",
                "labels": "a", "files_out": "a", "cap_ucredits": 1_000,
                "memory_bytes": 1 << 26,
            }  # fmt: skip
            for place, header in messages(kind, self.payload, known):
                for bodies in ([], [b""], [self.payload.frames[-1]]):
                    self.peer.socket.send_multipart([header, *bodies])
                    self.sent += 1
                self.at.add(place)
            self.fence()

    def fence(self) -> None:
        """Until it has answered all that went before, in a session."""
        while True:
            self.peer.send(wc.Ask(self.peer.session, 7, "grid"))
            while got := self.peer.receive():
                message = got[0]
                self.answers.add(getattr(message, "code", "") or type(message).__name__)
                if isinstance(message, wc.Answer) and message.request == 7:
                    return
                if isinstance(message, wc.Refused) and message.request == 7:
                    assert message.code == "REJOIN", message
                    assert isinstance(self.peer.hello(), wc.Welcome)
                    break
            else:
                raise AssertionError("the broker says nothing any more")


class Back:
    """A worker with leases that says each message with each pickle."""

    def __init__(self, grid: Grid, payload: Payload) -> None:
        self.grid, self.payload = grid, payload
        self.sent, self.answers, self.at = 0, set[str](), set[str]()

    def attack(self) -> None:
        for number, kind in enumerate(kinds(ww.WorkerMessage)):
            peer = WorkerPeer(self.grid.back, f"pickler-{number}")
            peer.hello()
            known = {
                "session": peer.session, "name": peer.name, "node": peer.node, "codec": "q",
                "instance": peer.instance, "protocol": limits.PROTOCOL, "metering": "wait4",
                "lease_id": 1, "number": 1, "tiers": "batch", "is_full": True,
            }  # fmt: skip
            for place, header in messages(kind, self.payload, known):
                frame = self.payload.frames[-1]
                for bodies in ([], [frame] * 4, [frame, pack_meter(1), b"", b""]):
                    peer.socket.send_multipart([header, *bodies])
                    self.sent += 1
                self.at.add(place)
            self.fence(peer)
            peer.close()

    def fence(self, peer: WorkerPeer) -> None:
        """Takes all answers so far; then it joins again, as an honest worker, and is heard."""
        while got := peer.receive(0.2):
            self.answers.add(getattr(got[0], "code", "") or type(got[0]).__name__)
        peer.hello()
        peer.send(ww.Report(peer.session, 1, True, [], [], [], []))
        while got := peer.receive():
            if isinstance(got[0], ww.Orders) and got[0].answers == 1:
                return
        raise AssertionError("the broker says nothing any more")


def attack_ledger(grid: Grid, payload: Payload) -> tuple[int, set[str], set[str]]:
    """As a broker and as a treasury; count, answers and places."""
    link = Link(f"ipc://{grid.run}/ledger", wl.decode_from_ledger)
    sent, answers, at = 0, set(), set()
    for kind in kinds(wl.ToLedger):
        known = {
            "broker": "evil", "first": 1, "tenant": "local", "ref": "evil/1", "request": 5,
            "public": "ab" * 32, "name": "evil", "kind": "broker", "by": "tenant", "backend": "x",
            "id": os.urandom(16) if kind is wl.Transfer else "pi" + "0" * 30,
        }  # fmt: skip
        for place, header in messages(kind, payload, known):
            link.socket.send_multipart([header])
            sent += 1
            at.add(place)
        link.send(wl.Ping("fence"))
        while got := link.receive():
            answers.add(getattr(got[0], "code", "") or type(got[0]).__name__)
            if isinstance(got[0], wl.Acked) and got[0].broker == "fence":
                break
        else:
            raise AssertionError("the ledger says nothing any more")
    link.close()
    return sent, answers, at


def ask_unix(path: pathlib.Path, verb: str, target: str, body: bytes, headers: Any) -> int:
    """A request over a unix socket: its status, 0 when there was none."""
    connection = http.client.HTTPConnection("localhost", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    try:
        connection.putrequest(verb, target, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": "x", "Content-Length": str(len(body)), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        return connection.getresponse().status
    except (ConnectionError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def attack_http(grid: Grid, payload: Payload, grant: str) -> set[int]:
    """The store and the listener for callbacks: targets, headers and bodies."""
    from urllib.parse import quote, quote_from_bytes

    statuses = set()
    for frame in payload.frames:
        digest = hashlib.sha256(frame).hexdigest()
        text = quote_from_bytes(frame, safe="")
        header = frame.decode("latin-1").replace("\n", " ").replace("\r", " ")
        for verb, target, body, headers in (
            ("PUT", f"/blobs/{digest}?grant={quote(grant)}", frame, {}),
            ("PUT", f"/blobs/{text}?grant={quote(grant)}", frame, {}),
            ("GET", f"/blobs/{digest}?grant={text}", b"", {}),
            ("GET", f"/{text}", b"", {}),
            ("GET", f"/blobs/{digest}?grant={quote(grant)}", b"", {"Range": header}),
            ("POST", f"/pins?grant={quote(grant)}", frame, {"Content-Type": header}),
            ("POST", f"/pins?grant={quote(grant)}", msgspec.json.encode(
                {"digest": payload.text, "owner": payload.text, "until_ms": 5}), {}),
        ):  # fmt: skip
            statuses.add(ask_unix(grid.run / "store", verb, target, body, headers))
        for target in (f"/callbacks/{text}", "/callbacks/manual", "/callbacks/btcpay"):
            statuses.add(
                ask_unix(grid.run / "callbacks", "POST", target, frame, {"BTCPay-Sig": header})
            )
    return statuses


def test_no_server_of_a_grid_opens_one(
    grid: Grid, payload: Payload, figures: Callable[..., None]
) -> None:
    pids = {name: grid.pid(name) for name in grid.names}
    front, back = Front(grid, payload), Back(grid, payload)
    front.attack()
    back.attack()
    sent, answers, at = attack_ledger(grid, payload)
    # What reached the sessions was not all refused at the door.
    assert {"Accepted", "Answer", "MALFORMED", "INVALID_SPEC"} <= front.answers, front.answers
    assert {"Orders", "MALFORMED"} <= back.answers, back.answers
    assert {"Acked", "LedgerAnswer", "MALFORMED"} <= answers, answers
    asked = ClientPeer(grid.address)
    assert isinstance(asked.hello(), wc.Welcome)
    grant = asked.ask("grant", wc.GrantAnswer, text="put", digest="*", size_bytes=1 << 20).grant
    statuses = attack_http(grid, payload, grant)
    # 0: it was refused, and the connection ended, before all of it was sent.
    assert {201, 400, 404} <= statuses and 500 not in statuses, statuses
    # It is in the journals now; they are read again.
    assert not grid.dead() and {name: grid.pid(name) for name in grid.names} == pids
    for name in SERVERS:
        grid.restart(name)
    until(lambda: _answers(grid), "the broker is back")
    assert not grid.dead()
    assert not payload.marker.exists()
    # Nor does its text write lines of its own into a log.
    for name in grid.names:
        lines = grid.log(name).read_text().splitlines()
        assert "mkdir" not in lines and lines, (name, lines[-5:])
    assert any("cos\\nmkdir\\n(V" in line for line in grid.log("ledger").read_text().splitlines())
    figures(
        frames=front.sent + back.sent + sent, places=len(front.at | back.at | at),
        http_statuses=len(statuses), opened=0,
    )  # fmt: skip


def _answers(grid: Grid) -> bool:
    peer = ClientPeer(grid.address)
    try:
        return isinstance(peer.hello(), wc.Welcome)
    finally:
        peer.close()


# ---------------------------------------------------------------- what they are told by others


class Speaker:
    """A ROUTER that says to whoever comes what a test gives, then answers pings of nobody."""

    def __init__(self, address: str, said: list[bytes], welcome: Callable[[Any], Any]) -> None:
        self.said, self.welcome, self.done = said, welcome, threading.Event()
        self.heard = 0
        self._stop = threading.Event()
        self._socket = CONTEXT.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(address)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self._socket.poll(20):
                continue
            routing, header, *_ = self._socket.recv_multipart()
            self.heard += 1
            answer = self.welcome(header)
            if answer is not None:
                self._socket.send_multipart([routing, encode(answer)])
            for _ in range(20):  # some at each message that is heard: nobody is flooded
                if self.said:
                    self._socket.send_multipart([routing, *self.said.pop(0)])
            if not self.said:
                self.done.set()
        self._socket.close()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)


def all_messages(union: Any, payload: Payload, known: dict[str, Any], last: Any) -> list[Any]:
    """Frames of every kind, those of ``last`` at the end: they may end whoever hears them."""
    ordered = sorted(kinds(union), key=lambda one: one in last)
    return [
        [header, *bodies]
        for kind in ordered
        for _, header in messages(kind, payload, known)
        for bodies in ([], [payload.frames[-1]] * 2)
    ]


def test_a_broker_opens_nothing_of_a_ledger(
    broker: Any, payload: Payload, figures: Callable[..., None]
) -> None:
    said = all_messages(wl.FromLedger, payload, {"broker": "b", "request": 1, "sequence": 0}, ())
    count = len(said)

    def answer(header: bytes) -> Any:
        message = wl.decode_to_ledger.decode(header)
        return wl.Acked(message.broker, 0) if isinstance(message, wl.Ping) else None

    speaker = Speaker(broker.ledger_address, said, answer)
    broker.closers.append(speaker.close)
    broker.start(ledger_resend_ms=20, ledger_ttl_ms=1_000)
    client = broker.client()
    client.submit()
    assert speaker.done.wait(30), speaker.heard
    told = client.ask("grid")
    assert isinstance(told, dict), told
    assert broker.process.poll() is None
    assert not payload.marker.exists()
    figures(frames=count, opened=0)


def test_a_worker_opens_nothing_of_a_broker(
    tmp_path: pathlib.Path, payload: Payload, figures: Callable[..., None]
) -> None:
    run = pathlib.Path(tempfile.mkdtemp(prefix="gm-"))
    known = {"session": b"s" * 16, "tenant": "t", "codec": "q", "kind": "function",
             "code": "REJOIN", "report_ms": 50, "ttl_ms": 3_500, "job": 1}  # fmt: skip
    said = all_messages(ww.BrokerToWorker, payload, known, (ww.Refused, ww.Welcome))
    count = len(said)

    def answer(header: bytes) -> Any:
        message = ww.decode_worker.decode(header)
        if isinstance(message, ww.Hello):
            return ww.Welcome(b"s" * 16, 1, "b" * 64, 50, 3_500, "")
        if isinstance(message, ww.Report):
            return ww.Orders(message.number, 0, [], [], [], [], [], 50, 3_500)
        return None

    speaker = Speaker(f"ipc://{run}/back", said, answer)
    command = [sys.executable, "-P", "-m", "gristmill.worker", "--broker", f"ipc://{run}/back"]
    command += ["--name", "w", "--slots", "1", "--state", str(tmp_path / "state")]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: speaker.done.is_set() or worker.poll() is not None, "all is said", 40)
    finally:
        worker.terminate()
        worker.wait(20)
        speaker.close()
        shutil.rmtree(run)
    assert not payload.marker.exists()
    # A worker that was told too much nonsense may end; it heard most of it.
    figures(frames=count - len(speaker.said), of=count, opened=0)
    assert len(speaker.said) < count // 2, (tmp_path / "log").read_text()[-3_000:]


CLIENT = """
import sys
from gristmill.client import Client
try:
    with Client(sys.argv[1], trust="none", timeout=20) as client:
        for _ in range(200):
            client.jobs()
except Exception as error:
    print(type(error).__name__, file=sys.stderr)
"""


def test_a_client_that_trusts_nobody_opens_nothing_of_a_broker(
    payload: Payload, figures: Callable[..., None]
) -> None:
    run = pathlib.Path(tempfile.mkdtemp(prefix="gm-"))
    known = {"session": b"s" * 16, "job": 1, "codec": "p", "request": 1, "code": "REJOIN"}
    said = all_messages(wc.BrokerToClient, payload, known, (wc.Refused, wc.Welcome))
    count = len(said)

    def answer(header: bytes) -> Any:
        message = wc.decode_client.decode(header)
        if isinstance(message, wc.Hello):
            return wc.Welcome(b"s" * 16, "b" * 64, "t", 50, 15_000, "", True, ["3.11"])
        if isinstance(message, wc.Ask):
            return wc.Answer(message.request, msgspec.Raw(msgspec.msgpack.encode([])))
        return wc.Pong() if isinstance(message, wc.Ping) else None

    speaker = Speaker(f"ipc://{run}/front", said, answer)
    client = subprocess.Popen(
        [sys.executable, "-P", "-c", CLIENT, f"ipc://{run}/front"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: speaker.done.is_set() or client.poll() is not None, "all is said", 40)
    finally:
        client.kill()
        told = client.communicate(timeout=10)[1]
        speaker.close()
        shutil.rmtree(run)
    assert not payload.marker.exists()
    assert len(speaker.said) < count // 2, told
    figures(frames=count - len(speaker.said), of=count, opened=0)


# ---------------------------------------------------------------- the attack itself


def test_every_text_and_every_bytes_of_every_message_is_a_place() -> None:
    made = {
        place.path
        for union in (wc.ClientMessage, ww.WorkerMessage, wl.ToLedger, wc.BrokerToClient,
                      ww.BrokerToWorker, wl.FromLedger)
        for kind in kinds(union)
        for place in places(tree(msgspec.inspect.type_info(kind), {}))
    }  # fmt: skip
    names = {path.rpartition(".")[2].split("[")[0] for path in made}
    for expected in (
        "session", "submission", "codec", "worker", "signature", "tenant", "completion",
        "argv", "files_out", "digest", "key", "value", "detail", "labels", "countersignature",
        "ref", "hint", "put_grant", "store", "environment", "public", "instance", "pythons",
        "cause",
    ):  # fmt: skip
        assert expected in names or any(f".{expected}" in path for path in made), expected
    assert {"Submit.session", "Submit.spec.JobSpec.command.Command.argv[]"} <= made
    assert len(made) > 150


@pytest.mark.parametrize("protocol", range(4))
def test_the_payload_does_what_it_says_where_it_is_opened(protocol: int, payload: Payload) -> None:
    code = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    command = [sys.executable, "-P", "-c", code]
    subprocess.run(command, input=payload.frames[protocol], check=True, timeout=60)
    assert payload.marker.is_dir()
