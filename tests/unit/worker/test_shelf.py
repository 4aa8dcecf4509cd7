"""Shared objects in a slot: mapped from the agent's descriptor, kept, refused."""

import os
import threading
import tracemalloc
from typing import Any

import msgspec
import numpy
import pytest

from gristmill.client.sharing import take_apart
from gristmill.wire.values import BlobRef, encode_ref, pack_rows
from gristmill.worker.runners import protocol, shelf
from gristmill.worker.runners.encode import CannotTravelError
from gristmill.worker.runners.shelf import NotSharedError, Shelf
from gristmill.worker.runners.zygote import _Decoded, _Parcels

MIB = 1 << 20


class Agent:
    """Gives descriptors of blobs that a test has made."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []

    def ask(self, digest: str, size_bytes: int) -> int | str:
        self.asked.append(digest)
        if digest not in self.blobs:
            return "no such blob"
        fd = os.memfd_create("blob")
        os.write(fd, self.blobs[digest])
        return fd


@pytest.fixture
def agent() -> Agent:
    return Agent()


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_an_object_is_mapped_once_and_is_read_only(agent: Agent) -> None:
    agent.blobs["a"] = b"".join(take_apart(numpy.arange(2 * MIB)))
    store = Shelf(agent.ask)
    tracemalloc.start()
    array = store.load("a", 16 * MIB)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MIB, peak
    assert array[-1] == 2 * MIB - 1 and array.flags.aligned
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    assert store.load("a", 16 * MIB) is array and agent.asked == ["a"]


def test_the_newest_objects_are_kept_within_a_limit(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "KEPT_BYTES", 100)
    for name in "abc":
        agent.blobs[name] = b"".join(take_apart(name))
    store, before = Shelf(agent.ask), fds()
    for name in "abcba":
        assert store.load(name, 60) == name
    assert agent.asked == list("abcba")  # one at a time fits
    assert store.load("a", 60) == "a" and len(agent.asked) == 5
    assert fds() <= before + 1


def test_what_cannot_be_had_is_told(agent: Agent) -> None:
    store = Shelf(agent.ask)
    with pytest.raises(NotSharedError, match="no such blob"):
        store.load("a", 10)
    agent.blobs["a"] = b"no object"
    with pytest.raises(NotSharedError, match="no shared object"):
        store.load("a", 10)
    caught: list[BaseException] = []

    def elsewhere() -> None:
        try:
            store.load("a", 10)
        except NotSharedError as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "not by a subtask itself" in str(caught[0])


def test_a_large_input_is_mapped_and_not_read(agent: Agent) -> None:
    array = numpy.arange(2 * MIB)
    packed = pack_rows([array])
    assert packed is not None
    agent.blobs["ab" * 32] = packed[1]
    ref = encode_ref(BlobRef("ab" * 32, len(packed[1])))
    feed = protocol.Feed(1, 1, [(0, 1)], [(0, 1, "@r", len(ref))])
    parcels: Any = _Parcels(feed, ref, _Decoded(), Shelf(agent.ask))
    tracemalloc.start()
    (value,) = parcels.inputs(0, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MIB and (value == array).all() and not value.flags.writeable
    assert parcels.inputs(0, 1)[0] is value and len(agent.asked) == 1
    lost = encode_ref(BlobRef("cd" * 32, 10))
    feed = msgspec.structs.replace(feed, parcels=[(0, 1, "@r", len(lost))])
    with pytest.raises(CannotTravelError, match="no such blob"):
        _Parcels(feed, lost, _Decoded(), Shelf(agent.ask)).inputs(0, 1)
