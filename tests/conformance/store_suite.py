"""What every back-end of the blob store must do: ``CHECKS``, each run on a fresh empty store.

A back-end's test parametrises over ``CHECKS`` and hands each a ``Bench``; see test_store_local.py.
The suite knows a store only by ``gristmill.store.interface.BlobStore``.
"""

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from gristmill.store.interface import PIECE_BYTES, BlobStore
from gristmill.wire.errors import RemoteError

DAY_MS = 86_400_000


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now_ms


@dataclasses.dataclass
class Bench:
    """A store under test.

    ``reopen`` closes it and opens the same blobs again; ``damage`` changes one byte of a blob where
    the back-end keeps it, behind the store's back. ``bytes_max`` must be 8 MiB.
    """

    store: BlobStore
    clock: Clock
    reopen: Callable[[], BlobStore]
    damage: Callable[[str], None]


def digest_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def put(store: BlobStore, tenant: str, body: bytes, piece: int = 70_000) -> bool:
    pieces = (body[at : at + piece] for at in range(0, len(body), piece))
    return store.put(tenant, digest_of(body), len(body), pieces)


def get(store: BlobStore, tenant: str, digest: str) -> bytes:
    with store.open(tenant, digest) as blob:
        return b"".join(bytes(piece) for piece in blob.pieces())


def refused(code: str, call: Callable[[], object]) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        call()
    assert caught.value.code == code, caught.value
    return caught.value


BODIES = [b"", b"x", b"grist" * 1000, bytes(range(256)) * (PIECE_BYTES // 128) + b"end"]


def what_was_put_is_read(bench: Bench) -> None:
    for body in BODIES:
        assert put(bench.store, "ann", body) is True
        assert bench.store.size_of("ann", digest_of(body)) == len(body)
        assert get(bench.store, "ann", digest_of(body)) == body
    assert bench.store.usage().blobs == len(BODIES)
    assert bench.store.usage().used_bytes == sum(map(len, BODIES))


def equal_bytes_are_kept_once(bench: Bench) -> None:
    assert put(bench.store, "ann", b"same") is True
    assert put(bench.store, "ann", b"same") is False
    assert put(bench.store, "bob", b"same") is False
    assert bench.store.usage().used_bytes == 4


def a_tenant_reads_only_what_it_put(bench: Bench) -> None:
    digest = digest_of(b"secret")
    put(bench.store, "ann", b"secret")
    refused("BLOB_MISSING", lambda: bench.store.open("bob", digest))
    refused("BLOB_MISSING", lambda: bench.store.size_of("bob", digest))
    refused("BLOB_MISSING", lambda: bench.store.pin("bob", digest, "j1", 1 << 50))
    # Knowing the digest is not having the bytes: a put that lies gives no right to read.
    refused("BLOB_CORRUPT", lambda: bench.store.put("bob", digest, 6, [b"guess!"]))
    refused("BLOB_MISSING", lambda: bench.store.open("bob", digest))
    put(bench.store, "bob", b"secret")
    assert get(bench.store, "bob", digest) == b"secret"


def wrong_bytes_leave_nothing(bench: Bench) -> None:
    digest = digest_of(b"right")
    for size, pieces in ((5, [b"wrong"]), (5, [b"righ"]), (5, [b"rightt"]), (4, [b"right"])):
        refused("BLOB_CORRUPT", partial(bench.store.put, "ann", digest, size, pieces))
    assert bench.store.usage().blobs == 0
    assert bench.store.usage().used_bytes == 0
    refused("BLOB_MISSING", lambda: bench.store.open("ann", digest))


def a_put_that_breaks_off_leaves_nothing(bench: Bench) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        bench.store.put("ann", digest_of(b"halfhalf"), 8, broken())
    assert bench.store.usage().used_bytes == 0
    # What the broken put had reserved is free again.
    put(bench.store, "ann", bytes(8 << 20))


def the_limit_is_kept_and_named(bench: Bench) -> None:
    put(bench.store, "ann", bytes(6 << 20))
    error = refused("STORE_FULL", lambda: put(bench.store, "ann", b"1" * (3 << 20)))
    assert "6 MiB used of 8 MiB" in error.message
    assert put(bench.store, "bob", bytes(6 << 20)) is False  # takes no room
    assert put(bench.store, "ann", b"2" * (2 << 20)) is True


def parts_are_exact(bench: Bench) -> None:
    body = bytes(range(256)) * 8_193
    put(bench.store, "ann", body)
    with bench.store.open("ann", digest_of(body)) as blob:
        blob.verify()
        for start, count in ((0, 1), (5, 0), (1000, 2_000_000), (len(body) - 1, 1)):
            got = b"".join(bytes(piece) for piece in blob.part(start, count))
            assert got == body[start : start + count]


def damage_is_found_and_healed_by_a_new_put(bench: Bench) -> None:
    for body in (b"small blob", b"large " * 400_000):
        digest = digest_of(body)
        put(bench.store, "ann", body)
        bench.store = bench.reopen()  # nothing is remembered as verified
        bench.damage(digest)
        refused("BLOB_CORRUPT", partial(get, bench.store, "ann", digest))
        refused("BLOB_MISSING", partial(bench.store.open, "ann", digest))
        assert put(bench.store, "ann", body) is True
        assert get(bench.store, "ann", digest) == body


def damage_is_found_before_a_part_is_read(bench: Bench) -> None:
    body = b"ranged " * 300_000
    put(bench.store, "ann", body)
    bench.store = bench.reopen()
    bench.damage(digest_of(body))
    with bench.store.open("ann", digest_of(body)) as blob:
        refused("BLOB_CORRUPT", blob.verify)


def the_last_piece_comes_only_of_a_right_blob(bench: Bench) -> None:
    body = b"stream" * (1 << 20)
    put(bench.store, "ann", body)
    bench.store = bench.reopen()
    bench.damage(digest_of(body))
    got = 0
    with bench.store.open("ann", digest_of(body)) as blob:
        with pytest.raises(RemoteError, match="BLOB_CORRUPT"):
            for piece in blob.pieces():
                got += len(piece)
    assert got < len(body)


def everything_is_there_after_reopening(bench: Bench) -> None:
    put(bench.store, "ann", b"kept")
    put(bench.store, "bob", b"kept")
    bench.store.pin("ann", digest_of(b"kept"), "j1", bench.clock.now_ms + 50 * DAY_MS)
    before = bench.store.usage()
    bench.store = bench.reopen()
    assert bench.store.usage() == before
    assert get(bench.store, "bob", digest_of(b"kept")) == b"kept"
    refused("BLOB_MISSING", lambda: bench.store.open("eve", digest_of(b"kept")))
    bench.clock.now_ms += 49 * DAY_MS
    assert bench.store.collect(bench.clock.now_ms, DAY_MS).blobs == 0


def what_nobody_pins_is_freed_after_its_grace(bench: Bench) -> None:
    put(bench.store, "ann", b"loose")
    put(bench.store, "ann", b"pinned")
    until_ms = bench.clock.now_ms + 5 * DAY_MS
    bench.store.pin("ann", digest_of(b"pinned"), "j1", until_ms)
    assert bench.store.collect(bench.clock.now_ms, DAY_MS).blobs == 0
    bench.clock.now_ms += 2 * DAY_MS
    told = bench.store.collect(bench.clock.now_ms, DAY_MS, is_dry_run=True)
    assert (told.blobs, told.freed_bytes, told.digests) == (1, 5, [digest_of(b"loose")])
    assert get(bench.store, "ann", digest_of(b"loose")) == b"loose"
    assert bench.store.collect(bench.clock.now_ms, DAY_MS) == told
    refused("BLOB_MISSING", lambda: bench.store.open("ann", digest_of(b"loose")))
    assert get(bench.store, "ann", digest_of(b"pinned")) == b"pinned"
    bench.clock.now_ms = until_ms
    assert bench.store.collect(bench.clock.now_ms, DAY_MS).digests == [digest_of(b"pinned")]
    assert bench.store.usage().used_bytes == 0


def a_new_put_renews_the_grace(bench: Bench) -> None:
    put(bench.store, "ann", b"again")
    bench.clock.now_ms += 2 * DAY_MS
    put(bench.store, "bob", b"again")
    assert bench.store.collect(bench.clock.now_ms, DAY_MS).blobs == 0


def pins_are_counted_by_owner(bench: Bench) -> None:
    put(bench.store, "ann", b"shared")
    digest = digest_of(b"shared")
    far_ms = bench.clock.now_ms + 100 * DAY_MS
    bench.store.pin("ann", digest, "j1", far_ms)
    bench.store.pin("ann", digest, "j2", far_ms)
    bench.store.pin("ann", digest, "j1", 0)
    bench.clock.now_ms += 2 * DAY_MS
    assert bench.store.collect(bench.clock.now_ms, DAY_MS).blobs == 0
    bench.store.pin("ann", digest, "j2", 0)
    bench.store.pin("ann", digest, "nobody", 0)
    assert bench.store.collect(bench.clock.now_ms, DAY_MS).blobs == 1


def a_blob_being_put_is_not_collected(bench: Bench) -> None:
    put(bench.store, "ann", b"again")
    bench.clock.now_ms += 2 * DAY_MS

    def pieces() -> Iterator[bytes]:
        assert bench.store.collect(bench.clock.now_ms, DAY_MS).blobs == 0
        yield b"again"

    assert bench.store.put("bob", digest_of(b"again"), 5, pieces()) is False
    assert get(bench.store, "bob", digest_of(b"again")) == b"again"


def an_open_blob_outlives_its_collection(bench: Bench) -> None:
    body = b"read on " * 300_000
    put(bench.store, "ann", body)
    bench.clock.now_ms += 2 * DAY_MS
    with bench.store.open("ann", digest_of(body)) as blob:
        pieces = blob.pieces()
        got = [bytes(next(pieces))]
        assert bench.store.collect(bench.clock.now_ms, DAY_MS).blobs == 1
        got += [bytes(piece) for piece in pieces]
    assert b"".join(got) == body


def many_threads_put_the_same(bench: Bench) -> None:
    body = b"crowd" * 100_000
    gate = threading.Barrier(8)
    news: list[bool] = []

    def one(number: int) -> None:
        gate.wait()
        news.append(put(bench.store, f"tenant{number}", body))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(news) == [False] * 7 + [True]
    assert bench.store.usage().used_bytes == len(body)
    for number in range(8):
        assert get(bench.store, f"tenant{number}", digest_of(body)) == body


CHECKS: tuple[Callable[[Bench], None], ...] = (
    what_was_put_is_read,
    equal_bytes_are_kept_once,
    a_tenant_reads_only_what_it_put,
    wrong_bytes_leave_nothing,
    a_put_that_breaks_off_leaves_nothing,
    the_limit_is_kept_and_named,
    parts_are_exact,
    damage_is_found_and_healed_by_a_new_put,
    damage_is_found_before_a_part_is_read,
    the_last_piece_comes_only_of_a_right_blob,
    everything_is_there_after_reopening,
    what_nobody_pins_is_freed_after_its_grace,
    a_new_put_renews_the_grace,
    pins_are_counted_by_owner,
    a_blob_being_put_is_not_collected,
    an_open_blob_outlives_its_collection,
    many_threads_put_the_same,
)
