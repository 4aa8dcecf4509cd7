"""A store that keeps its blobs in an S3 bucket: its process, its refusals, what a crash leaves."""

import os
import pathlib
import socket
import stat
import subprocess
import sys
import threading
import time
from typing import Any

import obstore
import pytest
from s3_rig import S3Server

from gristmill.store.app import open_store as open_back_end
from gristmill.store.bucket import Bucket, Credentials, read_credentials
from gristmill.store.client import StoreClient
from gristmill.store.s3 import S3Store
from gristmill.store.settings import read_settings
from gristmill.wire.errors import EXIT_UNREACHABLE, EXIT_USAGE, RemoteError
from gristmill.wire.ids import digest_of

KEY = "ab" * 32
DAY_MS = 86_400_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture(scope="module")
def bucket_name(s3: S3Server) -> str:
    return s3.make_bucket()


def account_of(s3: S3Server) -> Credentials:
    return Credentials(s3.access_key, s3.secret_key, "", "the test")


def open_store(s3: S3Server, address: str, folder: pathlib.Path, endpoint: str = "") -> S3Store:
    bucket = Bucket(address, endpoint or s3.endpoint, "us-east-1", account_of(s3))
    return S3Store(bucket, folder, 0, now_ms)


def put(store: S3Store, body: bytes) -> bool:
    return store.put("ann", digest_of(body), len(body), [body])


def test_the_process_keeps_blobs_in_the_bucket(
    process: Any, grant: Any, s3: S3Server, bucket_name: str, tmp_path: pathlib.Path
) -> None:
    account = s3.credentials_file(tmp_path / "account")
    process.arguments += ["--s3", f"s3://{bucket_name}/process", "--s3-endpoint", s3.endpoint]
    process.arguments += ["--s3-credentials", str(account)]
    process.start()
    body = os.urandom(9 << 20)  # a multipart upload
    with StoreClient(process.address) as client:
        ref = client.put(grant("put"), body)
        small = client.put(grant("put"), b"small")
        shown = pathlib.Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert s3.secret_key.encode() not in shown and s3.access_key.encode() not in shown
        process.kill()  # what was answered is in the bucket
        process.start()
        assert client.get(grant("get"), ref.digest, 10 << 20) == body
        assert client.get(grant("get"), small.digest, 100) == b"small"
        assert client.get_range(grant("get"), ref.digest, 5 << 20, 1000) == body[5 << 20 :][:1000]
        with pytest.raises(RemoteError, match="BLOB_MISSING"):
            client.get(grant("get", tenant="bob"), ref.digest, 10 << 20)
        assert client.health()["used_bytes"] == len(body) + 5
    code, told = process.end()
    assert code == 0 and s3.secret_key not in told
    behind = s3.objects(bucket_name, "process")
    found = {each["path"]: each["size"] for batch in obstore.list(behind) for each in batch}
    expected = {f"blobs/{ref.digest}": len(body), f"blobs/{small.digest}": 5, "owner": 32}
    assert found == expected
    on_disk = {path.name for path in (tmp_path / "state").rglob("*") if path.is_file()}
    assert not on_disk & {ref.digest, small.digest}


def refused(tmp_path: pathlib.Path, *options: str) -> tuple[int, str]:
    """A start that must fail: the exit code and the message of its refusal."""
    arguments = ["--state", str(tmp_path / "state"), "--listen", f"unix://{tmp_path}/s"]
    with pytest.raises(RemoteError) as caught:
        open_back_end(read_settings([*arguments, "--key", KEY, *options], {}))
    return caught.value.spec.exit_code, str(caught.value)


def test_a_process_that_is_refused_says_so_and_ends(
    s3: S3Server, bucket_name: str, tmp_path: pathlib.Path
) -> None:
    command = [sys.executable, "-P", "-m", "gristmill.store", "--state", str(tmp_path / "state")]
    command += ["--listen", f"unix://{tmp_path}/s", "--key", KEY]
    command += ["--s3", f"s3://{bucket_name}/x", "--s3-endpoint", s3.endpoint]
    wrong = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": "guessed-secret"}
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, **wrong}
    )
    assert ended.returncode == EXIT_USAGE
    assert "refuses the credentials of the environment (SignatureDoesNotMatch)" in ended.stderr
    assert "guessed-secret" not in ended.stderr and "Traceback" not in ended.stderr


def test_what_cannot_work_is_refused_at_the_start_with_its_name(
    s3: S3Server, bucket_name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    account = s3.credentials_file(tmp_path / "account")
    at = ("--s3-endpoint", s3.endpoint, "--s3-credentials", str(account))
    code, told = refused(tmp_path, "--s3", "s3://no-such-bucket/x", *at)
    assert code == EXIT_USAGE and "there is no bucket no-such-bucket at http://127" in told

    address = ("--s3", f"s3://{bucket_name}/x")
    code, told = refused(tmp_path, *address, *at[:2])
    assert code == EXIT_USAGE and "AWS_ACCESS_KEY_ID" in told

    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    code, told = refused(tmp_path, *address, "--s3-endpoint", f"http://127.0.0.1:{port}", *at[2:])
    assert code == EXIT_UNREACHABLE and f"127.0.0.1:{port} does not answer" in told

    code, told = refused(tmp_path, *address, "--s3-endpoint", "http://example.com", *at[2:])
    assert code == EXIT_USAGE and "use https://" in told

    account.chmod(0o644)
    code, told = refused(tmp_path, *address, *at)
    assert code == EXIT_USAGE and f"chmod 600 {account}" in told

    code, told = refused(tmp_path, "--s3", "bucket", *at)
    assert code == EXIT_USAGE and "--s3" in told


def test_a_file_that_is_none_is_not_quoted(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "account"
    path.touch(mode=0o600)
    path.write_text("my-secret-without-a-section")
    with pytest.raises(RemoteError) as caught:
        read_credentials(path)
    assert "my-secret" not in str(caught.value) and str(path) in str(caught.value)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_prefix_belongs_to_one_state_folder(
    s3: S3Server, bucket_name: str, tmp_path: pathlib.Path
) -> None:
    address = f"s3://{bucket_name}/owned"
    store = open_store(s3, address, tmp_path / "one")
    put(store, b"mine")
    with pytest.raises(RemoteError, match="another state folder"):
        open_store(s3, address, tmp_path / "two")
    store.close()
    store = open_store(s3, address, tmp_path / "one")
    assert store.size_of("ann", digest_of(b"mine")) == 4
    store.close()


def test_what_a_crash_left_is_collected_and_nothing_else(
    s3: S3Server, bucket_name: str, tmp_path: pathlib.Path
) -> None:
    store = open_store(s3, f"s3://{bucket_name}/orphans", tmp_path / "state")
    behind = s3.objects(bucket_name, "orphans")
    orphan = digest_of(b"uploaded, and the row was not yet written")
    put(store, b"kept")
    store.pin("ann", digest_of(b"kept"), "j1", now_ms() + 9 * DAY_MS)
    obstore.put(behind, f"blobs/{orphan}", b"uploaded, and the row was not yet written")
    assert store.collect(now_ms(), DAY_MS).blobs == 0  # it may be on its way
    told = store.collect(now_ms() + 2 * DAY_MS, DAY_MS)
    assert told.digests == [orphan]
    left = {each["path"] for batch in obstore.list(behind) for each in batch}
    assert left == {f"blobs/{digest_of(b'kept')}", "owner"}
    store.close()


def test_a_reader_keeps_a_collected_object_until_it_lets_go(
    s3: S3Server, bucket_name: str, tmp_path: pathlib.Path
) -> None:
    store = open_store(s3, f"s3://{bucket_name}/readers", tmp_path / "state")
    behind = s3.objects(bucket_name, "readers")
    body = os.urandom(9 << 20)  # three requests
    key = f"blobs/{digest_of(body)}"
    for comes_back in (False, True):
        put(store, body)
        with store.open("ann", digest_of(body)) as blob:
            pieces = blob.pieces()
            got = [bytes(next(pieces))]
            assert store.collect(now_ms() + 2 * DAY_MS, DAY_MS).blobs == 1
            with pytest.raises(RemoteError, match="BLOB_MISSING"):
                store.open("ann", digest_of(body))
            if comes_back:  # a put meanwhile makes it a blob again
                assert put(store, body) is True
            got += [bytes(piece) for piece in pieces]
            assert b"".join(got) == body
        left = [each["path"] for batch in obstore.list(behind, "blobs") for each in batch]
        assert left == ([key] if comes_back else [])
    store.close()


class Door:
    """Passes connections on to a port until it is shut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self.is_shut = False
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.is_shut:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._port))
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket) -> None:
        try:
            while piece := one.recv(1 << 16):
                other.sendall(piece)
        except OSError:
            pass
        for each in (one, other):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def shut(self) -> None:
        self.is_shut = True
        for each in self._open:
            each.close()

    def close(self) -> None:
        self.shut()
        self._listener.close()


def test_a_server_that_goes_away_loses_nothing_that_was_answered(
    s3: S3Server, bucket_name: str, tmp_path: pathlib.Path
) -> None:
    door = Door(int(s3.endpoint.rpartition(":")[2]))
    store = open_store(s3, f"s3://{bucket_name}/door", tmp_path / "state", door.address)
    put(store, b"before")
    door.shut()
    with pytest.raises(RemoteError, match="STORE_DOWN"):
        put(store, b"during")
    with pytest.raises(RemoteError, match="STORE_DOWN"):
        store.open("ann", digest_of(b"before"))
    with pytest.raises(RemoteError, match="BLOB_MISSING"):
        store.size_of("ann", digest_of(b"during"))
    assert store.usage().blobs == 1 and list((tmp_path / "state" / "tmp").iterdir()) == []
    door.is_shut = False
    assert put(store, b"during") is True
    with store.open("ann", digest_of(b"before")) as blob:
        assert b"".join(map(bytes, blob.pieces())) == b"before"
    store.close()
    door.close()
