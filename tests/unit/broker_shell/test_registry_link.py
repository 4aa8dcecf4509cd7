"""The broker's line to the registry: what is decided there is in the file that the broker reads."""

import pathlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import zmq
from grid_rig import until
from nacl.signing import SigningKey

from gristmill.broker import registry_link
from gristmill.broker.principals import read
from gristmill.broker.registry_link import RegistryLink
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.registry import (
    AskRows,
    Changes,
    Decide,
    Follow,
    Note,
    Principal,
    RegistryAnswer,
    RegistryRefused,
    decode_to_registry,
)


def principal(number: int, state: Any = "active", version: int = 1) -> Principal:
    public = SigningKey(bytes([number]) * 32).verify_key.encode().hex()
    return Principal(public, "worker", f"n{number}", "ann", state, version)


class Registry:
    """A socket where a registry would be."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.context = zmq.Context()
        self.address = f"ipc://{folder}/registry"
        self.router: zmq.Socket[bytes] = self.context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        self.router.bind(self.address)
        self.peer = b""

    def heard(self, link: RegistryLink) -> Any:
        def look() -> bool:
            link.look()
            link.receive()
            return bool(self.router.poll(10))

        until("it says something", look)
        self.peer, frame = self.router.recv_multipart()
        return decode_to_registry.decode(frame)

    def asked(self, link: RegistryLink) -> Follow:
        follow = self.heard(link)
        assert isinstance(follow, Follow)
        return follow

    def tell(self, *frames: bytes) -> None:
        self.router.send_multipart([self.peer, *frames])


@pytest.fixture
def registry(tmp_path: pathlib.Path) -> Iterator[Registry]:
    made = Registry(tmp_path)
    yield made
    made.router.close()
    made.context.term()


@pytest.fixture
def link(registry: Registry, tmp_path: pathlib.Path) -> Iterator[RegistryLink]:
    made = RegistryLink(registry.context, registry.address, "b", tmp_path)
    yield made
    made.close()


def states(folder: pathlib.Path) -> dict[str, str]:
    return {one.name: one.state for one in read(folder / "followed")}


def told(link: RegistryLink, folder: pathlib.Path, expected: dict[str, str]) -> None:
    def look() -> bool:
        link.receive()
        return states(folder) == expected

    until("the file has it", look)


def test_pages_come_one_after_the_other_and_changes_by_themselves(
    registry: Registry, link: RegistryLink, tmp_path: pathlib.Path
) -> None:
    assert registry.asked(link) == Follow("b", 0)
    registry.tell(encode(Changes(2, [principal(1), principal(2, "pending")], is_all=False)))
    assert registry.asked(link) == Follow("b", 2), "the next page, at once"
    registry.tell(encode(Changes(3, [principal(3)], after=2)))
    told(link, tmp_path, {"n1": "active", "n2": "pending", "n3": "active"})
    registry.tell(encode(Changes(4, [principal(2, "active", 2)], after=3)))
    told(link, tmp_path, {"n1": "active", "n2": "active", "n3": "active"})


def test_what_was_missed_is_asked_for_again(
    registry: Registry, link: RegistryLink, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_link, "FOLLOW_S", 0.05)
    registry.asked(link)
    registry.tell(encode(Changes(1, [principal(1)])))
    told(link, tmp_path, {"n1": "active"})
    assert registry.asked(link) == Follow("b", 1)


def test_nonsense_and_a_full_disk_lose_nothing(
    registry: Registry, link: RegistryLink, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.asked(link)
    registry.tell(encode(Changes(1, [principal(2)])))
    told(link, tmp_path, {"n2": "active"})
    registry.tell(b"\xc1")

    def full(*_: object) -> None:
        raise OSError(28, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(registry_link, "write", full)
        registry.tell(encode(Changes(2, [principal(1)], after=1)))
        until("it was read", lambda: link.receive() or not link._known)
        assert states(tmp_path) == {"n2": "active"}
    monkeypatch.setattr(registry_link, "FOLLOW_S", 0.05)
    assert registry.asked(link) == Follow("b", 0), "what was not kept is not known"
    registry.tell(encode(Changes(2, [principal(2), principal(1)])))
    told(link, tmp_path, {"n2": "active", "n1": "active"})


def test_a_registry_that_is_away_is_asked_when_it_is_back(
    registry: Registry, link: RegistryLink, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FOLLOW_S", "AGAIN_S"):
        monkeypatch.setattr(registry_link, name, 0.02)
    registry.asked(link)
    registry.tell(encode(Changes(1, [principal(1)])))
    told(link, tmp_path, {"n1": "active"})
    registry.router.close()

    def is_down() -> bool:
        link.look()
        return not link._is_up

    until("it is missed", is_down)
    assert states(tmp_path) == {"n1": "active"}
    registry.router = registry.context.socket(zmq.ROUTER)
    registry.router.setsockopt(zmq.LINGER, 0)
    registry.router.bind(registry.address)
    assert registry.asked(link).known == 1


def test_a_registry_that_knows_less_is_believed_once_it_has_told_all(
    registry: Registry, link: RegistryLink, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_link, "FOLLOW_S", 0.05)
    registry.asked(link)
    registry.tell(encode(Changes(9, [principal(1), principal(2)])))
    told(link, tmp_path, {"n1": "active", "n2": "active"})
    assert registry.asked(link).known == 9
    registry.tell(encode(Changes(1, [principal(3)], is_all=False)))
    while registry.asked(link).known != 1:
        pass
    assert states(tmp_path) == {"n1": "active", "n2": "active"}, "half of it is no news"
    registry.tell(encode(Changes(2, [principal(2, "banned")], after=1)))
    told(link, tmp_path, {"n3": "active", "n2": "banned"})


def test_a_page_behind_a_lost_one_changes_nothing_and_is_asked_for(
    registry: Registry, link: RegistryLink, tmp_path: pathlib.Path
) -> None:
    registry.asked(link)
    registry.tell(encode(Changes(1, [principal(1)])))
    told(link, tmp_path, {"n1": "active"})
    registry.tell(encode(Changes(3, [principal(3)], after=2)))
    assert registry.asked(link) == Follow("b", 1), "at once"
    assert states(tmp_path) == {"n1": "active"}
    registry.tell(encode(Changes(1, [], after=0, is_all=False)))  # late: the first one again
    assert registry.asked(link) == Follow("b", 1)
    registry.tell(encode(Changes(3, [principal(2), principal(3)], after=1)))
    told(link, tmp_path, {"n2": "active", "n3": "active"})


def test_a_decision_is_said_until_it_is_answered(
    registry: Registry, link: RegistryLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_link, "AGAIN_S", 0.02)
    registry.asked(link)
    registry.tell(encode(Changes(1, [principal(1)])))
    public = principal(1).public
    link.decide(Decide(0, "broker:b", "canary_right", public, 1))
    first = registry.heard(link)
    assert (first.act, first.seen, first.by) == ("canary_right", 1, "broker:b")
    assert registry.heard(link) == first and link.is_deciding(public)
    registry.tell(encode(RegistryRefused(first.request, "STALE_DECISION", "it is version 2")))
    until("it is over", lambda: link.receive() or not link.is_deciding(public))


def test_an_act_is_answered_once_or_told_that_it_was_not(
    registry: Registry, link: RegistryLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.asked(link)
    answers: list[Any] = []
    link.ask(AskRows(7, "nodes"), answers.append)
    asked = registry.heard(link)
    assert asked.request != 7, "the link has numbers of its own"
    registry.tell(encode(RegistryAnswer(asked.request, msgspec.Raw(b"\x90"))))
    registry.tell(encode(RegistryAnswer(asked.request, msgspec.Raw(b"\x91\x01"))))
    until("it is answered", lambda: link.receive() or answers)
    link.receive()
    (answer,) = answers
    assert isinstance(answer, RegistryAnswer) and bytes(answer.body) == b"\x90"
    monkeypatch.setattr(registry_link, "ASK_S", 0.01)
    link.ask(AskRows(1, "nodes"), answers.append)
    until("it is over", lambda: link.look() or len(answers) == 2)
    assert isinstance(answers[1], RemoteError) and answers[1].code == "REGISTRY_DOWN"
    monkeypatch.setattr(registry_link, "ASKED_MAX", 0)
    with pytest.raises(RemoteError, match="wait for the registry"):
        link.ask(AskRows(1, "nodes"), answers.append)


def test_refusals_are_noted_one_a_minute_for_each_key_and_code(
    registry: Registry, link: RegistryLink
) -> None:
    registry.asked(link)
    for _ in range(3):
        link.note("KEY_REVOKED", principal(1), "it was revoked")
    link.note("FORBIDDEN", principal(1), "Submit needs a scope")
    noted = [registry.heard(link) for _ in range(2)]
    assert all(isinstance(one, Note) for one in noted)
    assert [one.code for one in noted] == ["KEY_REVOKED", "FORBIDDEN"]
    assert noted[0].public == principal(1).public and not registry.router.poll(20)
