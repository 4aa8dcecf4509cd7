"""Rows B01, B10, B11: a stranger's machine becomes a node of a real grid, works, and leaves it."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
from enrolled_rig import Enrolled, enrolled_grid
from grid_rig import gristmill, until

from gristmill.client import Client
from gristmill.wire import limits
from gristmill.wire import worker as ww
from gristmill.wire.curve import be_client
from gristmill.wire.frames import encode
from gristmill.wire.keys import BROKER_KEY, WORKER_KEY, load_key
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.values import pack_safe

ACTIVE_S = 2.0  #: after the approval of a node that waits


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enrolled]:
    with enrolled_grid(tmp_path_factory.mktemp("members")) as made:
        yield made


def client_of(grid: Enrolled) -> Client:
    return Client(grid.grid.address, token=grid.operator, trust="fleet", environment=sys.executable)


def squares(grid: Enrolled, count: int = 20) -> list[int]:
    with client_of(grid) as client:
        return list(client.map(lambda x: x * x, range(count), tier="batch"))


def test_b11_a_canary_opens_real_work_and_nothing_else_does(
    grid: Enrolled, figures: Callable[..., None]
) -> None:
    """Also: limits hold, quarantine and drain outlast the worker, a ban ends it, a key rotates."""
    token = grid.ask_in("mill")
    assert " pending " in grid.say("node", "list", "--enrolled")
    with client_of(grid) as client:
        futures = client.map(lambda x: x + 1, range(5), tier="batch")
        grid.say("node", "approve", "mill", "--slots", "1")
        assert grid.node_says("mill", token).returncode == 0
        grid.start("mill", "--slots", "2")
        began = time.monotonic()
        until("it is active", lambda: grid.state_of("mill") == "active")
        figures(from_start_to_active_ms=round((time.monotonic() - began) * 1_000))
        assert list(futures) == [1, 2, 3, 4, 5]
        (row,) = client.workers()
        assert (row.name, row.slots, row.labels.get("owner")) == ("mill", 1, None)
    log = grid.say("audit", "log", "mill")
    for act in ("approve", "canary_right"):
        assert f" {act} mill " in log
    operator = grid.operator.split("_")[1]
    assert f"{operator} approve mill" in log and "broker:" in log

    grid.say("node", "quarantine", "mill", "--reason", "memory errors")
    until("it is out", lambda: grid.states() == {})
    until(
        "it waits",
        lambda: "quarantined, and waits for its release: memory errors" in grid.log("mill"),
    )
    grid.say("node", "release", "mill")
    until("it passed another canary", lambda: grid.state_of("mill") == "active")
    assert grid.say("audit", "log", "mill").count(" canary_right mill ") == 2
    assert squares(grid) == [x * x for x in range(20)]

    grid.say("node", "limit", "mill", "--slots", "2")
    until("both slots", lambda: slots_of(grid) == {"mill": 2})

    grid.say("node", "drain", "--wait", "mill")
    assert grid.end("mill") == 0
    until("the registry has it", lambda: grid.state_of("mill") == "draining")
    assert f"{operator} drain mill" in grid.say("audit", "log", "mill")
    grid.start("mill")
    assert grid.end("mill") == 0, "drained before it came: it goes again"
    grid.say("node", "release", "mill")
    grid.start("mill")
    until("it works again", lambda: grid.states() == {"mill": "idle"})

    token = grid.say("node", "rotate", "mill").splitlines()[0]
    before = load_key(grid.folder("mill") / WORKER_KEY).verify_key.encode()
    assert grid.node_says("mill", token, "--rotate").returncode == 0
    assert load_key(grid.folder("mill") / WORKER_KEY).verify_key.encode() != before
    assert grid.end("mill") == 4, "the old key is nobody's"
    grid.start("mill")
    until("the new one has its place", lambda: grid.states() == {"mill": "idle"})
    assert squares(grid) == [x * x for x in range(20)]

    grid.say("node", "ban", "mill", "--reason", "stolen")
    assert grid.end("mill") == 4
    assert "is banned: stolen" in grid.log("mill")


def slots_of(grid: Enrolled) -> dict[str, int]:
    with client_of(grid) as client:
        return {row.name: row.slots for row in client.workers()}


class Peer:
    """A node that speaks the dialogue itself, and answers as it likes."""

    def __init__(self, grid: Enrolled, name: str) -> None:
        self.key = load_key(grid.folder(name) / WORKER_KEY)
        server = load_key(grid.grid.state / "broker" / BROKER_KEY).verify_key.encode().hex()
        self.context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, 20_000)
        be_client(self.socket, self.key, server)
        self.socket.connect(grid.grid.back)
        self.name = name
        self.number = 0

    def hello(self, labels: dict[str, str]) -> Any:
        public = self.key.verify_key.encode().hex()
        hello = ww.Hello(
            limits.PROTOCOL, self.name, public, bytes(16), 4, 1_000, 1 << 30, 1 << 30, labels,
            ["batch"], ["3.11"], "proc", "test",
        )  # fmt: skip
        self.socket.send(encode(hello))
        welcome = ww.decode_orders.decode(self.socket.recv_multipart()[0])
        assert isinstance(welcome, ww.Welcome), welcome
        self.session = welcome.session
        return welcome

    def lease(self) -> tuple[ww.JobOpening, ww.LeaseGrant]:
        """The first one that comes, with its job."""
        while True:
            orders = ww.decode_orders.decode(self.socket.recv_multipart()[0])
            if isinstance(orders, ww.Orders) and orders.leases:
                return orders.openings[0], orders.leases[0]

    def answer(self, grant: ww.LeaseGrant, stdout: bytes) -> None:
        codec, frame = pack_safe([{"exit_code": 0, "stdout": stdout}])
        self.number += 1
        head = ww.ResultHead(
            1, grant.lease_id, grant.job, grant.runs[0][0], 1, codec, 1_000, 1_000, 1_024, "proc"
        )
        report = ww.Report(self.session, self.number, False, [], [], [head], [])
        self.socket.send_multipart([encode(report), frame, pack_meter(1, Outcome.OK), b"", b""])

    def close(self) -> None:
        self.socket.close(0)
        self.context.term()


def test_b07_a_pending_node_gets_no_work(grid: Enrolled) -> None:
    grid.ask_in("early")
    told = grid.grid.state / "broker" / "followed"
    until("the broker has heard", lambda: '"early"' in told.read_text())
    peer = Peer(grid, "early")
    with pytest.raises(AssertionError, match=r"NODE_PENDING.*waits for an operator's approval"):
        peer.hello({})
    peer.close()


def test_b11_a_wrong_canary_is_quarantine_with_the_difference(grid: Enrolled) -> None:
    grid.let_in("liar", "--class", "standard")
    peer = Peer(grid, "liar")
    peer.hello({"owner": "somebody-else", "class": "big"})
    opening, grant = peer.lease()
    assert opening.tenant == "gristmill/canary" and opening.spec.name == "canary of liar"
    with client_of(grid) as client:
        (row,) = client.workers()
        assert row.state == "approved"
        assert row.labels.get("owner") is None, "whose it is, the registry says"
        asked = client.map(lambda x: x, range(3), tier="batch")
        peer.answer(grant, b"42\n")
        until("it is shut out", lambda: grid.state_of("liar") == "quarantined")
        reason = grid.desk.node("liar").principal.reason
        assert reason.startswith("the canary '") and reason.endswith("it said '42'")
        assert reason in grid.say("node", "list", "--enrolled")
        until("it is gone", lambda: client.workers() == [])
        client.cancel(client.jobs(1)[0].job)
        del asked
    peer.close()


def test_b01_who_is_no_operator_is_refused_and_the_log_has_it(grid: Enrolled) -> None:
    ann = grid.say(
        "token",
        "create",
        "ann",
        "--tenant",
        "lab",
        "--scope",
        "read",
        "--broker-key",
        broker_key(grid),
    ).splitlines()[0]
    until("the broker knows", lambda: gristmill(grid.grid, "status", token=ann).returncode == 0)
    refused = gristmill(grid.grid, "node", "ban", "liar", "--reason", "x", token=ann)
    assert refused.returncode == 4 and "FORBIDDEN" in refused.stderr
    until("the log has it", lambda: "refused ann" in grid.say("audit", "log", "ann"))
    assert "FORBIDDEN: Operate is for operators" in grid.say("audit", "log", "ann")
    grid.say("token", "revoke", "ann", "--reason", "lost")
    until("it is out", lambda: gristmill(grid.grid, "status", token=ann).returncode == 4)
    until("A08: that, too", lambda: "KEY_REVOKED" in grid.say("audit", "log", "ann"))


def test_b11_who_is_let_in_by_this_host_alone_is_the_brokers(grid: Enrolled) -> None:
    """The registry does not know it: it is drained and released all the same."""
    grid.grid.add_worker("own")
    until("it is here", lambda: grid.states().get("own") == "idle")
    assert "is not in quarantine" in grid.say("node", "release", "own")
    assert "no worker was ever named" in grid.say("node", "release", "nobody", code=2)
    grid.say("node", "drain", "--wait", "own")
    assert "UNKNOWN_NODE" in grid.say("node", "ban", "own", "--reason", "x", code=2)
    assert "registry refused" not in grid.grid.log("broker").read_text()


def broker_key(grid: Enrolled) -> str:
    return load_key(grid.grid.state / "broker" / BROKER_KEY).verify_key.encode().hex()


def test_b02_nobody_becomes_active_while_the_registry_is_away(grid: Enrolled) -> None:
    """It dies before it hears of the canary; what is active works on."""
    grid.let_in("old")
    grid.start("old")
    until("old is active", lambda: grid.state_of("old") == "active")
    grid.let_in("new")
    grid.desk.kill()
    log = grid.grid.log("broker")
    ended = log.read_text().count("canary.ended")
    grid.start("new")
    until("new had its canary", lambda: log.read_text().count("canary.ended") > ended)
    assert grid.states() == {"old": "idle", "new": "approved"}
    assert squares(grid) == [x * x for x in range(20)]
    refused = gristmill(grid.grid, "node", "list", "--enrolled", token=grid.operator)
    assert refused.returncode == 3 and "REGISTRY_DOWN" in refused.stderr
    grid.desk.start()
    until("new is active", lambda: grid.state_of("new") == "active")
    until("new works", lambda: grid.states() == {"old": "idle", "new": "idle"})
    grid.grid.kill("broker")
    grid.grid.restart("broker")
    until("both are back", lambda: grid.states() == {"old": "idle", "new": "idle"})

    def slow(x: int) -> int:
        import time

        time.sleep(0.2)
        return x

    with client_of(grid) as client:  # B11: who leaves, leaves its work to others
        values = client.map(slow, range(24), tier="batch", chunk=1)
        assert next(values) == 0
        grid.say("node", "revoke", "old")
        assert list(values) == list(range(1, 24))
    assert grid.end("old") == 4 and grid.states() == {"new": "idle"}
