"""The store as a worker uses it: what is down for a moment costs time, and no subtask."""

import hashlib
import pathlib
import threading
from typing import Any

import pytest

from gristmill.wire.errors import RemoteError
from gristmill.wire.values import BlobRef
from gristmill.worker import blobs as worker_blobs
from gristmill.worker.blobs import Blobs

BODY = b"abc"
REF = BlobRef(hashlib.sha256(BODY).hexdigest(), len(BODY))


class Store:
    """A store that is down, or refuses, a number of times."""

    address = "unix:///somewhere"

    def __init__(self, times: int, code: str = "STORE_DOWN") -> None:
        self.times, self.code, self.asked = times, code, 0

    def get(self, grant: str, digest: str, size_max: int) -> bytes:
        self._answer()
        return BODY

    def put(self, grant: str, body: Any) -> BlobRef:
        self._answer()
        return REF

    def _answer(self) -> None:
        self.asked += 1
        if self.asked <= self.times:
            raise RemoteError(self.code, "not now")


def blobs_of(folder: pathlib.Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Blobs:
    monkeypatch.setattr(worker_blobs, "PAUSE_S", 0.001)
    monkeypatch.setattr(worker_blobs, "PAUSE_S_MAX", 0.002)
    blobs = Blobs(folder / "cache", 1 << 20)
    monkeypatch.setattr(blobs, "_client", store)
    return blobs


def test_a_store_that_is_down_is_asked_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(times=5)
    blobs = blobs_of(tmp_path, store, monkeypatch)
    assert blobs.put("g", BODY) == REF and store.asked == 6
    store.asked = 0
    assert blobs.fetch("g", REF) == BODY and store.asked == 6


def test_patience_has_an_end(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_blobs, "PATIENCE_S", 0.05)
    store = Store(times=1 << 30)
    with pytest.raises(RemoteError, match="not now") as told:
        blobs_of(tmp_path, store, monkeypatch).put("g", BODY)
    assert told.value.code == "STORE_DOWN" and store.asked > 1


def test_what_the_store_refuses_is_not_asked_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(times=1, code="STORE_FULL")
    with pytest.raises(RemoteError):
        blobs_of(tmp_path, store, monkeypatch).put("g", BODY)
    assert store.asked == 1


def test_a_worker_that_ends_waits_for_no_store(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = blobs_of(tmp_path, Store(times=1 << 30), monkeypatch)
    ended = threading.Event()

    def wait() -> None:
        with pytest.raises(RemoteError):
            blobs.put("g", BODY)
        ended.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    blobs.close()
    assert ended.wait(20)
    thread.join(20)
