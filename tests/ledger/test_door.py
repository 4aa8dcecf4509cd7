"""The ledger over TCP: only keys that it was told of, each with what its role may say."""

import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest
import zmq
from grid_rig import free_port
from ledger_rig import LedgerProcess
from nacl.signing import SigningKey

from gristmill.ledger.core.state import LedgerState
from gristmill.ledger.door import VERBS, Door, Role
from gristmill.wire.curve import be_client
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.keys import LEDGER_KEY, load_key
from gristmill.wire.ledger import (
    Acked,
    AskBalance,
    Fund,
    Hold,
    Key,
    LedgerAnswer,
    LedgerRefused,
    Ping,
    Post,
    ToLedger,
    decode_from_ledger,
)

WAIT_MS = 10_000
KEYS = {role: SigningKey.generate() for role in (*get_args(Role), "another", "stranger")}


def public_of(name: str) -> str:
    return KEYS[name].verify_key.encode().hex()


class Peer:
    """A DEALER with one of the keys."""

    def __init__(self, address: str, server: str, name: str) -> None:
        self.context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        be_client(self.socket, KEYS[name], server)
        self.socket.connect(address)

    def ask(self, message: Any, wait_ms: int = WAIT_MS) -> Any:
        self.socket.send(encode(message))
        return decode_from_ledger.decode(self.socket.recv()) if self.socket.poll(wait_ms) else None

    def close(self) -> None:
        self.socket.close()
        self.context.term()


@pytest.fixture
def keyed(tmp_path: pathlib.Path) -> Iterator[LedgerProcess]:
    made = LedgerProcess(tmp_path / "state", tmp_path)
    made.address = f"tcp://127.0.0.1:{free_port()}"
    allowed = [f"{role}={public_of(role)}" for role in get_args(Role)]
    allowed.append(f"broker={public_of('another')}")
    made.start(*[part for one in allowed for part in ("--allow", one)])
    yield made
    made.close()


@pytest.fixture
def peers(keyed: LedgerProcess) -> Iterator[dict[str, Peer]]:
    server = load_key(keyed.state / LEDGER_KEY).verify_key.encode().hex()
    made = {name: Peer(keyed.address, server, name) for name in KEYS}
    made["wrong server"] = Peer(keyed.address, public_of("stranger"), "broker")
    yield made
    for one in made.values():
        one.close()


def test_each_key_may_say_what_its_role_may(peers: dict[str, Peer]) -> None:
    assert isinstance(peers["operator"].ask(Fund(1, "ann", 500, "f")), LedgerAnswer)
    for role in ("broker", "treasury"):
        refused = peers[role].ask(Fund(2, "ann", 500, "g"))
        assert (refused.code, refused.request) == ("FORBIDDEN", 2) and role in refused.message
    assert isinstance(peers["operator"].ask(AskBalance(3, "ann")), LedgerAnswer)
    assert peers["treasury"].ask(AskBalance(4, "ann")).code == "FORBIDDEN"
    for nobody in ("stranger", "wrong server"):
        assert peers[nobody].ask(AskBalance(5, "ann"), 1_500) is None


def test_a_broker_posts_under_its_own_name_only(peers: dict[str, Peer]) -> None:
    own, thief = peers["broker"], peers["another"]
    assert own.ask(Post("b", 1, [Hold("b/1", "ann", 0)])).code == "FORBIDDEN", "says no key"
    key = Key("broker", "b", public_of("broker"), 1)
    assert thief.ask(Post("b", 1, [key])).code == "FORBIDDEN", "of another key than its own"
    assert own.ask(Post("b", 1, [key, Hold("b/1", "ann", 0)])) == Acked("b", 2, [
        verdict for verdict in own.ask(Post("b", 1, [key, Hold("b/1", "ann", 0)])).verdicts
    ])  # fmt: skip
    for message in (Post("b", 3, [Hold("b/2", "ann", 0)]), Ping("b")):
        refused = thief.ask(message)
        assert isinstance(refused, LedgerRefused) and refused.code == "FORBIDDEN"
    stolen = Key("broker", "b", public_of("another"), 2)
    assert thief.ask(Post("b", 3, [stolen])).code == "FORBIDDEN"
    assert own.ask(Ping("b")) == Acked("b", 2)


def test_every_verb_has_its_row_and_every_cell_is_as_it_says() -> None:
    assert set(VERBS) == set(get_args(ToLedger))
    context = zmq.Context()
    router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    allow = {public_of(role): role for role in get_args(Role)}
    door = Door(context, router, KEYS["stranger"], allow)

    state = LedgerState()
    for kind, roles in VERBS.items():
        message = kind(*[""] * len(msgspec.structs.fields(kind)))
        for public, role in allow.items():
            if role in roles:
                door.check(public, message, state)
            else:
                with pytest.raises(RemoteError, match=f"{kind.__name__} is not for the {role}"):
                    door.check(public, message, state)
    door.close()
    router.close()
    context.term()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ((), "would let everybody in"),
        (("--allow", f"portal={'a' * 64}"), "lets nobody in"),
        (("--allow", "broker=abc"), "lets nobody in"),
    ],
)
def test_no_listener_on_tcp_without_keys(
    tmp_path: pathlib.Path, more: tuple[str, ...], told: str
) -> None:
    listen = f"tcp://127.0.0.1:{free_port()}"
    command = [sys.executable, "-P", "-m", "gristmill.ledger", "--state", str(tmp_path / "s")]
    done = subprocess.run(
        [*command, "--listen", listen, *more], capture_output=True, text=True, timeout=30
    )
    assert done.returncode and told in done.stderr and "Traceback" not in done.stderr
