"""A put and a get of the store's own files, beside obstore's LocalStore (Rust's ``object_store``).

An acknowledged blob is hashed and on disk, and its row says whose it is: ``files`` do that.
``obstore, synced`` is given what an acknowledgement needs beside a row: a hash of the body, and
syncs of file and folder. ``obstore`` is its put as it is. Gets are hashed, too, except of
``obstore`` as it is. Every body is another, and every get is compared with its digest.
"""

import hashlib
import os
import pathlib
import tempfile
import time
from collections.abc import Callable

from harness.measure import Runs, arguments, own_cpu_us
from obstore.store import LocalStore as Objects

from gristmill.store.folder import sync_folder
from gristmill.store.local import LocalStore

KIB, MIB = 1 << 10, 1 << 20
COUNTS = {KIB: 60, MIB: 20, 100 * MIB: 3}
QUICK = {KIB: 2, MIB: 2}
TENANT = "bench"


def body_of(size: int, number: int) -> bytes:
    """Bytes that no other number has."""
    block = hashlib.sha256(f"{size} {number} {os.getpid()}".encode()).digest()
    return block * (size // len(block))


class Files:
    """The store's files, as its server calls them."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._store = LocalStore(folder, 0, lambda: time.time_ns() // 1_000_000)

    def put(self, digest: str, body: bytes) -> None:
        """Hashed, synced, with its row."""
        assert self._store.put(TENANT, digest, len(body), [body])

    def get(self, digest: str) -> str:
        """The digest of what was read."""
        hasher = hashlib.sha256()
        with self._store.open(TENANT, digest) as blob:
            for piece in blob.part(0, blob.size_bytes):
                hasher.update(piece)
        return hasher.hexdigest()


class Plain:
    """obstore's LocalStore as it is."""

    def __init__(self, folder: pathlib.Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._objects = Objects(folder)

    def put(self, digest: str, body: bytes) -> None:
        """Neither hashed nor synced."""
        self._objects.put(digest, body)

    def get(self, digest: str) -> str:
        """Not hashed; only its length is looked at."""
        size = sum(len(part) for part in self._objects.get(digest).stream(MIB))
        assert size == (self._folder / digest).stat().st_size
        return digest


class Synced(Plain):
    """The same with what an acknowledgement needs."""

    def put(self, digest: str, body: bytes) -> None:
        """Hashed and synced."""
        assert hashlib.sha256(body).hexdigest() == digest
        super().put(digest, body)
        file = os.open(self._folder / digest, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
        sync_folder(self._folder)

    def get(self, digest: str) -> str:
        """The digest of what was read."""
        hasher = hashlib.sha256()
        for part in self._objects.get(digest).stream(MIB):
            hasher.update(part)
        return hasher.hexdigest()


def measured(call: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU of all threads) in us."""
    wall, cpu = time.perf_counter(), own_cpu_us()
    call()
    return (time.perf_counter() - wall) * 1e6, own_cpu_us() - cpu


def turn(runs: Runs, what: str, store: Files | Plain, size: int, bodies: list[bytes]) -> None:
    """Puts, then gets."""
    digests = [hashlib.sha256(body).hexdigest() for body in bodies]
    found: list[str] = []

    def put_all() -> None:
        for digest, body in zip(digests, bodies, strict=True):
            store.put(digest, body)

    put = measured(put_all)
    get = measured(lambda: found.extend(store.get(digest) for digest in digests))
    assert found == digests, "another body came back"
    count = len(bodies)
    for name, (wall_us, cpu_us) in (("put", put), ("get", get)):
        runs.add(
            f"{what} {name}", size=size, n=count, wall_us=wall_us / count, cpu_us=cpu_us / count
        )


def main() -> None:
    """Each size: files, obstore with syncs, obstore, in turn."""
    options = arguments(__doc__ or "", quick={"rounds": 1}, rounds=3)
    runs, number = Runs("blobs", vars(options)), 0
    with tempfile.TemporaryDirectory() as folder:
        for size, count in (QUICK if options.quick else COUNTS).items():
            for at in range(options.rounds):
                for what, kind in (
                    ("files", Files), ("obstore, synced", Synced), ("obstore", Plain),
                ):  # fmt: skip
                    number += 1
                    place = pathlib.Path(folder) / f"{number}"
                    bodies = [body_of(size, at * count + each) for each in range(count)]
                    turn(runs, what, kind(place), size, bodies)
    runs.finish(
        **{
            f"{name}_of_files_{size}": round(
                runs.median(f"obstore, synced {name}", "cpu_us", size=size)
                / runs.median(f"files {name}", "cpu_us", size=size), 2,
            )
            for size in (QUICK if options.quick else COUNTS)
            for name in ("put", "get")
        }
    )  # fmt: skip


if __name__ == "__main__":
    main()
