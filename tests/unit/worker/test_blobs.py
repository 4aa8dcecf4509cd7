"""The store as a worker uses it: what is down for a moment costs time, and no subtask."""

import hashlib
import os
import pathlib
import select
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
        self.owners = {"g"}

    def get(self, grant: str, digest: str, size_max: int) -> bytes:
        self._answer()
        return BODY

    def get_to_file(self, grant: str, digest: str, path: pathlib.Path, size_max: int) -> int:
        self._answer()
        path.unlink(missing_ok=True)
        return path.write_bytes(BODY)

    def size_of(self, grant: str, digest: str) -> int | None:
        return len(BODY) if grant in self.owners else None

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


def test_what_one_tenant_fetched_is_not_another_tenants(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store says so of its blobs; a worker's cache must not be a way round."""
    store = Store(times=0)
    blobs = blobs_of(tmp_path, store, monkeypatch)
    assert blobs.fetch("g", REF) == BODY
    assert blobs.fetch_file("g", REF).read_bytes() == BODY
    for ask in (blobs.fetch, blobs.fetch_file, blobs.share):
        with pytest.raises(RemoteError, match="BLOB_MISSING"):
            ask("of a tenant that never put it", REF)
    store.owners.add("of one that did")
    assert blobs.fetch("of one that did", REF) == BODY
    assert blobs.fetch_file("of one that did", REF).read_bytes() == BODY
    assert store.asked == 2  # once for memory, once for the disk


def test_a_file_that_a_crash_cut_is_fetched_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = blobs_of(tmp_path, Store(times=0), monkeypatch)
    (tmp_path / "cache" / REF.digest).write_bytes(b"")
    assert blobs.fetch_file("g", REF).read_bytes() == BODY


def test_many_who_want_the_same_at_once_ask_the_store_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(times=0)
    blobs = blobs_of(tmp_path, store, monkeypatch)
    everybody_is_there = threading.Event()
    plain = store._answer

    def slow() -> None:
        plain()
        assert everybody_is_there.wait(20)

    monkeypatch.setattr(store, "_answer", slow)
    for ask in (blobs.fetch, blobs.fetch_file):
        store.asked = 0
        everybody_is_there.clear()
        threads = [threading.Thread(target=ask, args=("g", REF)) for _ in range(6)]
        for thread in threads:
            thread.start()
        while blobs._flights.get(REF.digest, (None, 0))[1] < 6:
            assert any(thread.is_alive() for thread in threads)
        everybody_is_there.set()
        for thread in threads:
            thread.join(20)
        assert store.asked == 1 and not blobs._flights


def test_errands_of_one_key_are_run_once() -> None:
    errands = worker_blobs.Errands()
    gate, told, runs = threading.Event(), [], []

    def work() -> int:
        gate.wait(20)
        runs.append(1)
        return len(runs)

    for _ in range(5):
        errands.run_once("key", work, told.append)
    errands.run_once("another", work, told.append)
    gate.set()
    while len(told) < 6:
        select.select([errands], [], [], 20)
        errands.settle()
    assert len(runs) == 2 and sorted(told) in ([1] * 5 + [2], [1] + [2] * 5)
    errands.run_once("key", work, told.append)  # over, so it is done again
    while len(told) < 7:
        select.select([errands], [], [], 20)
        errands.settle()
    assert len(runs) == 3
    errands.close()


@pytest.mark.parametrize("uid", [0, 1000])
def test_what_is_shared_is_mapped_and_cannot_be_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, uid: int
) -> None:
    blobs = blobs_of(tmp_path, Store(times=0), monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    shared = blobs.share("g", REF)
    assert os.pread(shared.fd, 10, 0) == BODY
    with pytest.raises(OSError):
        os.write(shared.fd, b"x")
    if uid:  # the owner may ask for it again, to write: the seal says no
        assert blobs.share("g", REF) is shared
        with pytest.raises(PermissionError):
            again = os.open(f"/proc/self/fd/{shared.fd}", os.O_RDWR)
            os.pwrite(again, b"x", 0)


def test_the_cache_is_looked_through_only_when_it_may_be_full(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, plain = [], pathlib.Path.iterdir

    def listed(path: pathlib.Path) -> Any:
        looked.append(path)
        return plain(path)

    monkeypatch.setattr(pathlib.Path, "iterdir", listed)
    blobs = blobs_of(tmp_path, Store(times=0), monkeypatch)
    monkeypatch.setattr(blobs, "_disk_bytes_max", 40 * len(BODY))
    paths = []
    for number in range(100):
        paths.append(blobs.fetch_file("g", BlobRef(f"{number:064x}", len(BODY))))
        os.utime(paths[-1], (number, number))
        there = [path for path in paths if path.exists()]
        assert len(there) <= 40 and there == paths[-len(there) :], "the oldest go"
    assert 35 <= len(there) and 8 <= len(looked) <= 100 // 5
