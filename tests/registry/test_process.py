"""The real process: nodes at the enrolment port, brokers that follow, operators, restarts."""

import os
import pathlib
import socket
import time
from collections.abc import Callable

import msgspec
import pytest
import zmq
from desk_rig import REPORT
from nacl.signing import SigningKey
from registry_rig import Refused, RegistryProcess

from gristmill.broker.registry.db import open_for_reading, verify
from gristmill.wire.curve import curve_public, curve_secret
from gristmill.wire.enrolment import (
    Challenge,
    Enrol,
    Enrolled,
    EnrolRefused,
    decode_from_enrolment,
    parse_token,
    sign,
)
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.registry import AddPrincipal, Decide, IssueToken, Note
from gristmill.worker.enrolment import Door


def enrol(token: str, key: SigningKey, old: SigningKey | None = None) -> Enrolled:
    with Door(parse_token(token), key, old) as door:
        return door.enrol(REPORT)


def test_a_node_enrols_and_every_follower_hears_of_it(
    registry: RegistryProcess, figures: Callable[..., None]
) -> None:
    registry.start("--broker", f"tcp://10.0.0.1:7032={'ab' * 32}")
    followed = registry.follow()
    assert followed.states == {}
    token = registry.token(node_class="gpu")
    key = SigningKey.generate()
    began = time.monotonic()
    told = enrol(token.token, key)
    followed.take()
    pending_s = time.monotonic() - began
    assert (told.state, told.brokers, followed.states) == ("pending", [], {"mill": "pending"})
    row = registry.node()
    assert (row.source, row.report, row.principal.node_class) == ("127.0.0.1", REPORT, "gpu")
    registry.decide("approve")
    began = time.monotonic()
    followed.take()
    approved_s = time.monotonic() - began
    assert followed.states == {"mill": "approved"}
    told = enrol(token.token, key)  # as a node that waits does
    assert (told.state, told.brokers[0].address) == ("approved", "tcp://10.0.0.1:7032")
    registry.decide("canary_right", by="broker:b1")
    followed.take()
    assert followed.states == {"mill": "active"}
    figures(pending_ms=round(pending_s * 1000), approved_ms=round(approved_s * 1000))
    assert [record.act for record in registry.records()] == [
        "token", "token-used", "enrol", "approve", "canary_right",
    ]  # fmt: skip


def test_a_restart_loses_nothing(registry: RegistryProcess) -> None:
    registry.start()
    key = SigningKey.generate()
    tokens = [registry.token("mill"), registry.token("late")]
    enrol(tokens[0].token, key)
    registry.decide("approve")
    followed = registry.follow()
    registry.kill()
    registry.start()
    assert registry.node().principal.state == "approved"
    late = registry.follow(followed.known)
    assert late.states == {}  # what it knew, it is not told again
    again = registry.follow(0)
    assert again.states == {"mill": "approved"}
    told = registry.follow(10**9)  # it followed something that is lost
    assert told.states == {"mill": "approved"}
    assert told.known < 10**9
    assert "ALARM" in registry.log.read_text()
    assert enrol(tokens[1].token, SigningKey.generate()).state == "pending"
    assert registry.end() == 0
    db = open_for_reading(registry.state / "registry.db")
    assert list(verify(db)) == []
    db.close()


def test_a_push_that_was_lost_is_told_when_asked_again(registry: RegistryProcess) -> None:
    registry.start()
    followed = registry.follow()
    enrol(registry.token().token, SigningKey.generate())
    followed.take()
    known = followed.known
    registry.decide("approve")
    followed.take()
    followed.states.clear()
    followed.known = known  # as if it had not come
    followed.again()
    assert followed.states == {"mill": "approved"}


def test_many_nodes_are_told_in_pages(registry: RegistryProcess) -> None:
    registry.start()
    for number in range(250):  # a page has 48 KiB
        public = bytes(SigningKey.generate().verify_key).hex()
        registry.ask(AddPrincipal(1, "ann", public, "client", f"t{number}", "t" * 200, ["submit"]))
    followed = registry.follow()
    assert len(followed.states) == 250
    assert followed.pages > 1


def test_two_operators_and_a_log_that_says_who(registry: RegistryProcess) -> None:
    registry.start("--approvals", "2")
    enrol(registry.token(by="ann").token, SigningKey.generate())
    first = registry.decide("approve", by="ann")
    assert (first.principal.state, first.approvals) == ("pending", ["ann"])
    with pytest.raises(Refused, match="SECOND_OPERATOR"):
        registry.ask(Decide(1, "ann", "approve", "mill", 2, "once more"))
    with pytest.raises(Refused, match=r"STALE_DECISION.*version 2, by ann"):
        registry.ask(Decide(1, "bob", "approve", "mill", 1))
    second = registry.decide("approve", by="bob")
    assert second.principal.state == "approved"
    again = registry.ask(Decide(1, "bob", "approve", "mill", 2))
    assert again.is_repeat
    assert [record.by for record in registry.records("mill") if record.act == "approve"] == [
        "ann",
        "bob",
    ]


def test_only_digests_and_public_keys_are_in_the_file(registry: RegistryProcess) -> None:
    registry.start()
    key = SigningKey.generate()
    new = registry.token()
    enrol(new.token, key)
    registry.end()
    kept = b"".join(path.read_bytes() for path in registry.state.glob("registry.db*"))
    assert bytes(key.verify_key).hex().encode() in kept
    for secret in (parse_token(new.token).secret, key.encode().hex()):
        assert secret.encode() not in kept
        assert bytes.fromhex(secret) not in kept
    for path in registry.state.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def test_whoever_lacks_the_tokens_key_is_told_nothing(
    registry: RegistryProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.start()
    monkeypatch.setattr("gristmill.worker.enrolment.ANSWER_MS", 700)
    token = parse_token(registry.token().token)
    other = token._replace(public=bytes(SigningKey.generate().verify_key).hex())
    with pytest.raises(RemoteError, match=r"UNAUTHORISED.*does not have the key of the token"):
        enrol(str(other), SigningKey.generate())
    nobody = token._replace(place="127.0.0.1:1")
    with pytest.raises(RemoteError, match=r"UNREACHABLE.*127.0.0.1:1"):
        enrol(str(nobody), SigningKey.generate())
    assert registry.nodes() == []


class Peer:
    """Whoever speaks to the enrolment port, well or badly."""

    def __init__(self, registry: RegistryProcess) -> None:
        self.token = parse_token(registry.token("x").token)
        self.key = SigningKey.generate()
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        public = bytes(self.key.verify_key).hex()
        self.socket.setsockopt(zmq.CURVE_SERVERKEY, curve_public(self.token.public))
        self.socket.setsockopt(zmq.CURVE_PUBLICKEY, curve_public(public))
        self.socket.setsockopt(zmq.CURVE_SECRETKEY, curve_secret(self.key))
        self.socket.setsockopt(zmq.RCVTIMEO, 10_000)
        self.socket.connect(registry.enrolment)
        self.ask = Enrol(str(self.token), public, "x", REPORT)

    def say(self, *frames: bytes) -> Challenge | Enrolled | EnrolRefused:
        self.socket.send_multipart(frames)
        return decode_from_enrolment.decode(self.socket.recv())

    def close(self) -> None:
        self._context.destroy(0)


@pytest.fixture
def peer(registry: RegistryProcess):
    registry.start()
    made = Peer(registry)
    yield made
    made.close()


def test_bad_words_at_the_enrolment_port(registry: RegistryProcess, peer: Peer) -> None:
    def code(*frames: bytes) -> str:
        answer = peer.say(*frames)
        assert isinstance(answer, EnrolRefused), answer
        return answer.code

    ask = peer.ask
    assert code(b"garbage") == "MALFORMED"
    assert code(b"") == "MALFORMED"
    assert code(b"", encode(ask)) == "MALFORMED"
    assert code(encode(msgspec.structs.replace(ask, public="zz"))) == "MALFORMED"
    assert code(encode(msgspec.structs.replace(ask, token="gme_x"))) == "UNAUTHORISED"
    wrong = str(peer.token._replace(secret="0" * 32))
    assert code(encode(msgspec.structs.replace(ask, token=wrong))) == "UNAUTHORISED"
    assert code(encode(msgspec.structs.replace(ask, name="y"))) == "FORBIDDEN"
    # A challenge that we made up; one of another key; a signature by another; for another server.
    forged = msgspec.structs.replace(ask, challenge=bytes(32))
    assert code(encode(sign(forged, peer.key, peer.token.public))) == "UNAUTHORISED"
    challenge = peer.say(encode(ask))
    assert isinstance(challenge, Challenge)
    mine = msgspec.structs.replace(ask, challenge=challenge.challenge)
    stranger = SigningKey.generate()
    theirs = msgspec.structs.replace(mine, public=bytes(stranger.verify_key).hex())
    assert code(encode(sign(theirs, stranger, peer.token.public))) == "UNAUTHORISED"
    assert code(encode(sign(mine, stranger, peer.token.public))) == "UNAUTHORISED"
    assert code(encode(sign(mine, peer.key, "ab" * 32))) == "UNAUTHORISED"
    report = msgspec.structs.replace(REPORT, memory_bytes=1 << 50)
    changed = msgspec.structs.replace(sign(mine, peer.key, peer.token.public), report=report)
    assert code(encode(changed)) == "UNAUTHORISED"
    assert registry.nodes() == []
    signed = encode(sign(mine, peer.key, peer.token.public))
    assert isinstance(peer.say(signed), Enrolled)
    assert isinstance(peer.say(signed), Enrolled)  # lost answers are asked for again
    acts = [record.act for record in registry.records("x")]
    assert acts == ["token", "token-used", "enrol"]


def test_one_source_cannot_keep_the_port_busy(registry: RegistryProcess, peer: Peer) -> None:
    codes = []
    for _ in range(120):
        answer = peer.say(b"garbage")
        codes.append(answer.code)  # type: ignore[union-attr]
    assert codes[0] == "MALFORMED"
    assert codes.count("RATE_LIMITED") > 60
    assert registry.nodes() == []  # operators are answered meanwhile


def test_a_frame_that_is_too_large_drops_its_peer(registry: RegistryProcess, peer: Peer) -> None:
    peer.socket.setsockopt(zmq.RCVTIMEO, 300)
    with pytest.raises(zmq.Again):
        peer.say(bytes(64 << 10))
    assert registry.nodes() == []


def test_peers_without_a_handshake_are_dropped(registry: RegistryProcess) -> None:
    registry.start()
    host, _, port = registry.enrolment.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as silent:
        with socket.create_connection((host, int(port)), timeout=10) as talker:
            talker.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
            assert enrol(registry.token().token, SigningKey.generate()).state == "pending"
        began = time.monotonic()
        while silent.recv(1_024):  # the greeting, then the end
            pass
        assert time.monotonic() - began < 8


def test_a_null_peer_is_not_heard(registry: RegistryProcess) -> None:
    registry.start()
    context = zmq.Context()
    plain = context.socket(zmq.DEALER)
    plain.setsockopt(zmq.RCVTIMEO, 500)
    plain.setsockopt(zmq.SNDTIMEO, 500)  # who is dropped by now has nobody to send to
    token = registry.token().token
    plain.connect(registry.enrolment)
    with pytest.raises(zmq.Again):
        plain.send(encode(Enrol(token, "ab" * 32, "mill", REPORT)))
        plain.recv()
    context.destroy(0)
    assert registry.nodes() == []


def test_a_key_is_rotated_and_pending_expires(registry: RegistryProcess) -> None:
    registry.start("--pending-ttl", "1.5s")
    first, second = SigningKey.generate(), SigningKey.generate()
    enrol(registry.token().token, first)
    registry.decide("approve")
    rotation = registry.token(is_rotation=True)
    with pytest.raises(RemoteError, match="FORBIDDEN"):
        enrol(rotation.token, second)
    with pytest.raises(RemoteError, match="FORBIDDEN"):
        enrol(rotation.token, second, SigningKey.generate())
    told = enrol(rotation.token, second, first)
    assert (told.state, told.public) == ("approved", bytes(second.verify_key).hex())
    enrol(registry.token("slow").token, SigningKey.generate())
    followed = registry.follow()
    while followed.states["slow"] != "expired":
        followed.take()
    assert registry.node("slow").decided_by == "registry"


def test_what_a_broker_refuses_is_recorded(registry: RegistryProcess) -> None:
    registry.start()
    note = Note("b1", "FORBIDDEN", "ab" * 32, "eve", "node approve needs an operator")
    registry.socket.send(encode(note))
    registry.socket.send(encode(note))
    registry.socket.send(encode(msgspec.structs.replace(note, public="token:1")))
    with pytest.raises(Refused, match="MALFORMED"):
        registry.nodes()  # the answer to the third
    registry.nodes()
    records = registry.records()
    assert [(record.act, record.by, record.name) for record in records] == [
        ("refused", "broker:b1", "eve")
    ]


def test_a_registry_without_an_enrolment_port_issues_no_tokens(tmp_path: pathlib.Path) -> None:
    from gristmill.broker.registry.app import Registry
    from gristmill.broker.registry.settings import read_settings

    run = pathlib.Path(os.path.relpath(tmp_path))
    settings = read_settings(["--state", str(tmp_path / "s"), "--control", f"ipc://{run}/c"], {})
    made = Registry(settings)
    with pytest.raises(RemoteError, match="no enrolment port"):
        made._issue(b"", IssueToken(1, "ann", "mill", "local", ""))
    with pytest.raises(RemoteError, match="ALREADY_RUNNING"):
        Registry(settings)
    made.close()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--control", "tcp://127.0.0.1:7"], "--control"),
        (["--control", "ipc:///x/y", "--enrolment", "udp://x"], "--enrolment"),
        (["--control", "ipc:///x/y", "--broker", "tcp://x:1=zz"], "no broker"),
        (["--control", "ipc:///x/y", "--approvals", "0"], "--approvals"),
        (["--control", "ipc:///x/y", "--token-ttl", "soon"], "duration"),
    ],
)
def test_settings_name_what_is_wrong(arguments: list[str], told: str) -> None:
    from gristmill.broker.registry.settings import read_settings

    with pytest.raises(RemoteError, match=told):
        read_settings(["--state", "/x", *arguments], {})
