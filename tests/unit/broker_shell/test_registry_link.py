"""The broker's line to the registry: what is decided there is in the file that the broker reads."""

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from grid_rig import until
from nacl.signing import SigningKey

from gristmill.broker import registry_link
from gristmill.broker.principals import make_token, read
from gristmill.broker.registry_link import RegistryLink
from gristmill.wire.frames import encode
from gristmill.wire.registry import Changes, Follow, Principal, decode_to_registry


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

    def asked(self, link: RegistryLink) -> Follow:
        def look() -> bool:
            link.look()
            link.receive()
            return bool(self.router.poll(10))

        until("it asks", look)
        self.peer, frame = self.router.recv_multipart()
        follow = decode_to_registry.decode(frame)
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
    return {one.name: one.state for one in read(folder / "principals")}


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
    registry.tell(encode(Changes(3, [principal(3)])))
    told(link, tmp_path, {"n1": "active", "n2": "pending", "n3": "active"})
    registry.tell(encode(Changes(4, [principal(2, "active", 2)])))
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
    make_token(tmp_path, "ann", is_operator=False)
    (by_hand,) = states(tmp_path)
    registry.asked(link)
    registry.tell(b"\xc1")

    def full(*_: object) -> None:
        raise OSError(28, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(registry_link, "write", full)
        registry.tell(encode(Changes(1, [principal(1)])))
        until("it was read", lambda: link.receive() or link._is_up)
        assert states(tmp_path) == {by_hand: "active"}
    monkeypatch.setattr(registry_link, "FOLLOW_S", 0.05)
    assert registry.asked(link) == Follow("b", 0), "what was not kept is not known"
    registry.tell(encode(Changes(1, [principal(1)])))
    told(link, tmp_path, {by_hand: "active", "n1": "active"})


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
