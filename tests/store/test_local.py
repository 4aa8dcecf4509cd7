"""What only the local back-end can do wrong: files, crashes, clocks of files."""

import hashlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from gristmill.store.local import LocalStore
from gristmill.wire.errors import RemoteError


def digest_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def opened(folder: pathlib.Path, bytes_max: int = 0) -> LocalStore:
    return LocalStore(folder, bytes_max, lambda: 1_800_000_000_000)


def put(store: LocalStore, body: bytes, tenant: str = "ann") -> str:
    store.put(tenant, digest_of(body), len(body), [body])
    return digest_of(body)


def get(store: LocalStore, digest: str) -> bytes:
    with store.open("ann", digest) as blob:
        return b"".join(bytes(piece) for piece in blob.pieces())


@pytest.fixture
def store(tmp_path: pathlib.Path) -> Iterator[LocalStore]:
    made = opened(tmp_path / "store")
    yield made
    made.close()


def test_a_blob_is_a_read_only_file_of_its_name(store: LocalStore, tmp_path: pathlib.Path) -> None:
    digest = put(store, b"grist")
    path = tmp_path / "store" / "blobs" / digest[:2] / digest
    assert path.read_bytes() == b"grist"
    assert path.stat().st_mode & 0o777 == 0o444
    assert (tmp_path / "store").stat().st_mode & 0o077 == 0


def test_one_process_owns_the_folder(store: LocalStore, tmp_path: pathlib.Path) -> None:
    with pytest.raises(RemoteError, match="another store has"):
        opened(tmp_path / "store")


def test_a_put_is_synced_before_it_is_known(
    store: LocalStore, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(file: int) -> None:
        order.append(f"sync {pathlib.Path(os.readlink(f'/proc/self/fd/{file}')).parent.name}")
        real_fsync(file)

    def replace(source: pathlib.Path, target: pathlib.Path) -> None:
        order.append("rename")
        assert store._index.size(target.name) is None
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    put(store, b"durable")
    assert order == ["sync tmp", "rename", "sync blobs"]


def test_what_a_crash_left_is_cleaned_or_collected(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "store"
    opened(folder).close()
    (folder / "tmp" / "half").write_bytes(b"half a blob")
    orphan = digest_of(b"renamed, then no row")
    path = folder / "blobs" / orphan[:2] / orphan
    path.write_bytes(b"renamed, then no row")
    store = opened(folder)
    assert list((folder / "tmp").iterdir()) == []
    with pytest.raises(RemoteError, match="BLOB_MISSING"):
        store.open("ann", orphan)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    assert store.collect(1_800_000_000_000, 86_400_000, is_dry_run=True).digests == [orphan]
    assert path.exists()
    assert store.collect(1_800_000_000_000, 86_400_000).freed_bytes == 20
    assert not path.exists()
    store.close()


def test_a_killed_put_leaves_nothing(tmp_path: pathlib.Path) -> None:
    script = (
        "import os, sys, pathlib, hashlib\n"
        "from gristmill.store.local import LocalStore\n"
        f"store = LocalStore(pathlib.Path({str(tmp_path / 'store')!r}), 0, lambda: 1)\n"
        "store.put('ann', hashlib.sha256(b'kept').hexdigest(), 4, [b'kept'])\n"
        "def pieces():\n"
        "    yield b'x' * 1000000\n"
        "    os.kill(os.getpid(), 9)\n"
        "store.put('ann', '0' * 64, 2000000, pieces())\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], check=False, timeout=30)
    assert done.returncode == -9
    assert len(list((tmp_path / "store" / "tmp").iterdir())) == 1
    store = opened(tmp_path / "store")
    assert list((tmp_path / "store" / "tmp").iterdir()) == []
    assert (store.usage().blobs, store.usage().used_bytes) == (1, 4)
    assert get(store, digest_of(b"kept")) == b"kept"
    store.close()


def test_damage_that_the_file_clock_hides_is_found_by_a_whole_read(store: LocalStore) -> None:
    body = b"bit rot " * 400_000
    digest = put(store, body)
    assert get(store, digest) == body
    path = store.path_of(digest)
    before = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"X")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    got = 0
    with store.open("ann", digest) as blob:
        blob.verify()  # believes the clock
        with pytest.raises(RemoteError, match="BLOB_CORRUPT"):
            for piece in blob.pieces():
                got += len(piece)
    assert 0 < got < len(body)
    assert (path.parents[2] / "quarantine" / digest).exists()


def test_a_verified_blob_is_not_hashed_again_for_a_part(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b"parts " * 400_000
    digest = put(store, body)
    with store.open("ann", digest) as blob:
        monkeypatch.setattr(blob, "_hashed", lambda: pytest.fail("hashed again"))
        blob.verify()
        assert b"".join(bytes(piece) for piece in blob.part(6, 6)) == b"parts "


def test_a_very_large_blob_is_verified_while_it_is_read(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gristmill.store.local.VERIFY_FIRST_BYTES", 1 << 20)
    body = b"large " * 400_000 + b"end"
    digest = put(store, body)
    store._verified.clear()
    with store.open("ann", digest) as blob:
        monkeypatch.setattr(blob, "verify", lambda: pytest.fail("read before it was sent"))
        assert b"".join(bytes(piece) for piece in blob.pieces()) == body
    path = store.path_of(digest)
    path.chmod(0o600)
    path.write_bytes(b"X" + body[1:])
    with store.open("ann", digest) as blob, pytest.raises(RemoteError, match="BLOB_CORRUPT"):
        for piece in blob.pieces():
            assert not bytes(piece).endswith(b"end")


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_file_that_changed_behind_our_back(store: LocalStore, how: str) -> None:
    digest = put(store, b"whole")
    path = store.path_of(digest)
    path.chmod(0o600)
    if how == "cut":
        path.write_bytes(b"who")
    else:
        path.unlink()
    code = "BLOB_CORRUPT" if how == "cut" else "BLOB_MISSING"
    with pytest.raises(RemoteError, match=code):
        store.open("ann", digest)
    assert store.usage().used_bytes == 0
    assert store.put("ann", digest, 5, [b"whole"]) is True
    assert get(store, digest) == b"whole"
    assert store.usage().used_bytes == 5


def test_a_full_disk_is_store_full(
    store: LocalStore, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(file: int, view: bytes) -> int:
        raise OSError(28, "No space left on device")

    real = os.write
    monkeypatch.setattr(os, "write", no_room)
    with pytest.raises(RemoteError, match=r"STORE_FULL.*No space left"):
        put(store, b"does not fit")
    monkeypatch.setattr(os, "write", real)
    assert list((tmp_path / "store" / "tmp").iterdir()) == []
    assert get(store, put(store, b"does not fit")) == b"does not fit"


def test_pins_of_one_blob_have_a_limit(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gristmill.store.indexed.PINS_PER_BLOB_MAX", 2)
    digest = put(store, b"popular")
    store.pin("ann", digest, "j1", 1 << 50)
    store.pin("ann", digest, "j2", 1 << 50)
    with pytest.raises(RemoteError, match="QUOTA"):
        store.pin("ann", digest, "j3", 1 << 50)
