"""Rows A08 and A20: who is not known, or not any more, does nothing here; and is told why."""

import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import zmq
from grid_rig import free_port, gristmill, until
from nacl.signing import SigningKey

from gristmill.broker import principals
from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.errors import GridError
from gristmill.wire import client as wc
from gristmill.wire import limits
from gristmill.wire import worker as ww
from gristmill.wire.curve import be_client
from gristmill.wire.errors import EXIT_AUTH
from gristmill.wire.frames import encode
from gristmill.wire.keys import BROKER_KEY, LEDGER_KEY, WORKER_KEY, load_key
from gristmill.wire.tokens import parse_token

BITES_S = 1.0  #: of promise P17: from the revocation to the refusal


@pytest.fixture
def keyed(own_grid: Callable[..., Grid]) -> Grid:
    """Clients and workers come by TCP, with keys."""
    ports = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
    return own_grid(workers=1, slots=1, front=ports[0], back=ports[1])


def change(grid: Grid, public: str, **fields: Any) -> None:
    """What the registry does: the principals are replaced whole."""
    path = grid.state / "broker" / principals.FILE_NAME
    rows = principals.read(path)
    assert any(row.public == public for row in rows)
    principals.write(
        path,
        [msgspec.structs.replace(row, **fields) if row.public == public else row for row in rows],
    )


def public_of(token: str) -> str:
    return parse_token(token).public


def code_of(client: Client) -> str:
    try:
        client.jobs()
    except GridError as error:
        return error.code
    return ""


def test_a08_each_bad_token_has_its_own_code_and_makes_no_job(keyed: Grid) -> None:
    operator = keyed.token(is_operator=True)
    expired, revoked, reader = keyed.token("ann"), keyed.token("ann"), keyed.token("ann")
    now_ms = time.time_ns() // 1_000_000
    change(keyed, public_of(expired), expires_ms=now_ms - 1)
    change(keyed, public_of(revoked), state="revoked", reason="it leaked")
    change(keyed, public_of(reader), scopes=["read"])
    stranger = expired.replace(expired.split("_")[2], "5" * 64)
    told = {}
    for name, token in (
        ("expired", expired), ("revoked", revoked), ("wrong scope", reader), ("unknown", stranger)
    ):  # fmt: skip
        done = gristmill(keyed, "submit", "--", "true", token=token)
        assert done.returncode == EXIT_AUTH and "Traceback" not in done.stderr, done.stderr
        told[name] = done.stderr.split()[0]
        assert token.split("_")[2] not in done.stderr, "no secret is shown"
    assert told == {
        "expired": "KEY_EXPIRED", "revoked": "KEY_REVOKED", "wrong scope": "FORBIDDEN",
        "unknown": "UNAUTHORISED",
    }  # fmt: skip
    done = gristmill(keyed, "submit", "--", "true", token=revoked)
    assert "it leaked" in done.stderr
    with Client(keyed.address, token=operator) as client:
        assert client.jobs() == [] and client.dry_run(["true"])
    with Client(keyed.address, token=reader) as client:
        assert client.jobs() == []


def test_a08_a_revocation_bites_live_sessions_within_a_second(keyed: Grid) -> None:
    token = keyed.token("local")
    with Client(keyed.address, token=token, trust="fleet", environment=sys.executable) as client:
        assert list(client.map(lambda x: x, range(10), tier="batch")) == list(range(10))
        change(keyed, public_of(token), state="revoked", reason="")
        began = time.monotonic()
        code = until("it is refused", lambda: code_of(client))
        took = time.monotonic() - began
        assert code == "KEY_REVOKED" and took < BITES_S, (code, took)
        assert code_of(client) == "KEY_REVOKED"
    with Client(keyed.address, token=keyed.token("local"), trust="fleet") as other:
        assert other.jobs(), "what it had submitted is there for its tenant"


def test_a08_a_token_ends_at_its_time_and_a_scope_is_taken_from_a_live_session(
    keyed: Grid,
) -> None:
    short, wide = keyed.token("ann"), keyed.token("ann")
    with Client(keyed.address, token=short) as ends, Client(keyed.address, token=wide) as loses:
        assert code_of(ends) == code_of(loses) == ""
        change(keyed, public_of(short), expires_ms=time.time_ns() // 1_000_000 + 700)
        change(keyed, public_of(wide), scopes=["submit"])
        assert until("it ended", lambda: code_of(ends)) == "KEY_EXPIRED"
        assert until("it may not read", lambda: code_of(loses)) == "FORBIDDEN"


def test_a20_a_worker_is_its_key_and_nobody_elses(keyed: Grid) -> None:
    own = load_key(keyed.state / "worker-0" / WORKER_KEY)
    server = load_key(keyed.state / "broker" / BROKER_KEY).verify_key.encode().hex()
    other = SigningKey.generate()
    principals.add_node(keyed.state / "broker", "mill", other.verify_key.encode().hex())
    context = zmq.Context()

    def ask(key: SigningKey, name: str, node: SigningKey, slots: int = 1) -> Any:
        dealer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        be_client(dealer, key, server)
        dealer.connect(keyed.back)
        hello = ww.Hello(
            limits.PROTOCOL, name, node.verify_key.encode().hex(), bytes(16), slots, 1_000,
            1 << 30, 1 << 30, {}, ["batch"], ["3.11"], "proc", "test",
        )  # fmt: skip
        dealer.send(encode(hello))
        assert dealer.poll(10_000)
        answer = ww.decode_orders.decode(dealer.recv_multipart()[0])
        dealer.close()
        return answer

    def refusal(answer: Any) -> ww.Refused | None:
        return answer if isinstance(answer, ww.Refused) else None

    for key, name, node, told in (
        (other, "worker-0", own, "its connection has"),  # another's name and key
        (other, "mill", own, "its connection has"),  # another's key: its receipts
        (other, "worker-0", other, "is of the node 'mill'"),
    ):
        refused = ask(key, name, node)
        assert refused.code == "FORBIDDEN" and told in refused.message
    change(keyed, other.verify_key.encode().hex(), slots_max=2)
    with Client(keyed.address, token=keyed.token(is_operator=True)) as client:

        def slots() -> int:
            assert isinstance(ask(other, "mill", other, slots=3), ww.Welcome)
            return next(row.slots for row in client.workers() if row.name == "mill")

        until("it offers three, and has two", lambda: slots() == 2)
    change(keyed, other.verify_key.encode().hex(), state="quarantined", reason="it lied")
    refused = until("it bites", lambda: refusal(ask(other, "mill", other)))
    assert refused.code == "NODE_PENDING" and "it lied" in refused.message
    context.term()


def test_a20_a_session_is_of_its_connection(keyed: Grid) -> None:
    """Another known key says what the first one said, with its routing id and its session."""
    server = load_key(keyed.state / "broker" / BROKER_KEY).verify_key.encode().hex()
    context = zmq.Context()

    def peer(token: str, routing: bytes) -> Any:
        dealer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.ROUTING_ID, routing)
        be_client(dealer, parse_token(token).key, server)
        dealer.connect(keyed.address)
        return dealer

    ann, thief = keyed.token("ann"), keyed.token("bob")
    owner = peer(ann, b"ann")
    owner.send(encode(wc.Hello(limits.PROTOCOL, b"c" * 16, "", "3.11", "test")))
    assert owner.poll(10_000)
    session = wc.decode_broker.decode(owner.recv_multipart()[0]).session
    asked = encode(wc.Ask(session, 1, "jobs"))
    same = peer(thief, b"ann")  # while the owner lives, the address is taken
    same.send(asked)
    assert not same.poll(500)
    same.close()
    away = peer(thief, b"other")
    away.send(asked)
    assert away.poll(10_000)
    assert wc.decode_broker.decode(away.recv_multipart()[0]).code == "REJOIN"
    owner.close()

    def told_late() -> bytes:
        late = peer(thief, b"ann")  # the address is free, the session is not
        late.send(encode(wc.Hello(limits.PROTOCOL, b"c" * 16, "ann", "3.11", "test")))
        answer = late.recv_multipart()[0] if late.poll(1_000) else b""
        late.close()
        return answer

    refused = wc.decode_broker.decode(until("the owner is gone", told_late))
    assert refused.code == "FORBIDDEN" and "of tenant bob" in refused.message
    away.close()
    context.term()


def test_a20_a_worker_that_is_banned_stops_and_its_work_runs_elsewhere(
    keyed: Grid,
) -> None:
    with Client(
        keyed.address, token=keyed.token("local"), trust="fleet", environment=sys.executable
    ) as client:

        def slow(x: int) -> int:
            import time

            time.sleep(0.3)
            return x

        values = client.map(slow, range(8), tier="batch", chunk=1)
        assert next(values) == 0
        keyed.add_worker("worker-1")
        public = load_key(keyed.state / "worker-0" / WORKER_KEY).verify_key.encode().hex()
        change(keyed, public, state="banned", reason="by hand")
        began = time.monotonic()
        until("it is gone", lambda: [w.name for w in client.workers()] == ["worker-1"])
        assert time.monotonic() - began < BITES_S
        assert list(values) == list(range(1, 8))
    until("it ended", lambda: [one.name for one in keyed.dead()] == ["worker-0"])
    assert "NODE_REFUSED" in keyed.log("worker-0").read_text()
    assert "'worker-0' is banned: by hand" in keyed.log("worker-0").read_text()


def test_a20_a_node_that_waits_for_approval_works_when_it_comes(keyed: Grid) -> None:
    keyed.add_worker("worker-1")
    public = load_key(keyed.state / "worker-1" / WORKER_KEY).verify_key.encode().hex()
    with Client(keyed.address, token=keyed.token(is_operator=True)) as client:
        until("both are here", lambda: len(client.workers()) == 2)
        change(keyed, public, state="pending")
        until("it is not heard", lambda: [w.name for w in client.workers()] == ["worker-0"])
        log = keyed.log("worker-1")
        until("it says so", lambda: "waits for an operator's approval" in log.read_text())
        change(keyed, public, state="active")
        until("it works", lambda: len(client.workers()) == 2)
    assert keyed.dead() == []


def test_a20_a_node_that_comes_before_its_key_is_known_is_let_in_later(
    keyed: Grid, tmp_path: pathlib.Path
) -> None:
    server = load_key(keyed.state / "broker" / BROKER_KEY).verify_key.encode().hex()
    public = load_key(tmp_path / WORKER_KEY).verify_key.encode().hex()
    command = [sys.executable, "-P", "-m", "gristmill.worker", "--state", str(tmp_path)]
    command += ["--name", "early", "--broker", keyed.back, "--broker-key", server]
    log = tmp_path / "log"
    with open(log, "wb") as file:
        worker = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        until("it says why it waits", lambda: f"does not know its key {public}" in log.read_text())
        principals.add_node(keyed.state / "broker", "early", public)
        with Client(keyed.address, token=keyed.token(is_operator=True)) as client:
            until("it is there", lambda: "early" in {row.name for row in client.workers()})
    finally:
        worker.kill()
        worker.wait()


def test_a20_a_broker_and_its_ledger_over_tcp_know_each_other(tmp_path: pathlib.Path) -> None:
    state, address = tmp_path / "ledger", f"tcp://127.0.0.1:{free_port()}"
    server = load_key(state / LEDGER_KEY).verify_key.encode().hex()
    broker = load_key(tmp_path / "grid" / "broker" / BROKER_KEY).verify_key.encode().hex()
    command = [sys.executable, "-P", "-m", "gristmill.ledger", "--state", str(state)]
    ledger = subprocess.Popen(
        [*command, "--listen", address, "--allow", f"broker={broker}", "--fund", "local=10"]
    )
    options = {"broker": ["--ledger", address, "--ledger-key", server]}
    try:
        with tempfile.TemporaryDirectory(prefix="gm-") as run:
            with (
                Grid(tmp_path / "grid", run, workers=1, slots=1, options=options) as grid,
                Client(grid.address) as client,
            ):
                values = client.map(lambda x: x, range(10), tier="batch", cap=5)
                assert list(values) == list(range(10))
                until("it is billed", lambda: client.usage())
                (account,) = client.balance().accounts
                assert 0 < account.posted_ucredits < 10_000_000
    finally:
        ledger.kill()
        ledger.wait()
