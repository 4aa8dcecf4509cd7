"""A peer over a real socket and clients of it, ended with the test."""

import importlib.util
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gristmill.client import Client

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for client_core

# Test files are imported by path: this one makes the peer's module importable by its own name.
_path = pathlib.Path(__file__).with_name("peer.py")
_spec = importlib.util.spec_from_file_location("client_test_peer", _path)
assert _spec and _spec.loader
_module = importlib.util.module_from_spec(_spec)
sys.modules["client_test_peer"] = _module
_spec.loader.exec_module(_module)
Peer = _module.Peer


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="gmc-") as folder:
        yield f"ipc://{folder}/front"


@pytest.fixture
def make_peer(address: str) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def make(**options: Any) -> Any:
        made.append(Peer(address, **options))
        return made[-1]

    yield make
    for peer in made:
        peer.stop()
        assert not peer.faults, peer.faults[0]


@pytest.fixture
def peer(make_peer: Callable[..., Any]) -> Any:
    return make_peer()


@pytest.fixture
def told() -> list[str]:
    """Lines that clients told a person."""
    return []


@pytest.fixture
def client(make_peer: Callable[..., Any], address: str, told: list[str]) -> Iterator[Client]:
    # After ``make_peer``, so that the client says goodbye before its peer ends.
    with Client(address, timeout=3, warn=told.append) as client:
        yield client
