"""The client library against a real server."""

import io
import os
import pathlib
import socket
import threading
from typing import Any

import pytest

from gristmill.store.address import parse_address
from gristmill.store.client import StoreClient
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import digest_of
from gristmill.wire.values import BlobRef


def refused(code: str, call: Any, *arguments: Any) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        call(*arguments)
    assert caught.value.code == code, caught.value
    return caught.value


@pytest.mark.parametrize("size", [0, 1, 70_000, (1 << 20) + 1, 5 << 20])
def test_bytes_and_files_come_back(
    served: Any, grant: Any, tmp_path: pathlib.Path, size: int
) -> None:
    body = os.urandom(size)
    ref = BlobRef(digest_of(body), size)
    (tmp_path / "in").write_bytes(body)
    for source in (
        body,
        memoryview(body),
        bytearray(body),
        io.BytesIO(body),
        tmp_path / "in",
    ):
        assert served.client.put(grant("put"), source) == ref
    assert served.client.get(grant("get"), ref.digest, size) == body
    assert served.client.size_of(grant("get"), ref.digest) == size
    length = served.client.get_to_file(grant("get"), ref.digest, tmp_path / "out", size)
    assert length == size
    assert (tmp_path / "out").read_bytes() == body
    if size > 10:
        assert served.client.get_range(grant("get"), ref.digest, 3, 7) == body[3:10]
    assert served.store.usage().blobs == 1


def test_a_file_is_read_from_its_position(served: Any, grant: Any) -> None:
    file = io.BytesIO(b"skip this, keep that")
    file.seek(11)
    ref = served.client.put(grant("put"), file)
    assert served.client.get(grant("get"), ref.digest, 100) == b"keep that"


def test_what_is_there_is_not_sent_again(served: Any, grant: Any) -> None:
    body = os.urandom(2 << 20)
    served.client.put(grant("put"), body)
    before = served.server.counts["PUT"]
    served.client.put(grant("put"), body)
    assert served.server.counts["PUT"] == before
    served.client.put(grant("put", tenant="bob"), body)  # who must prove to have it
    assert served.server.counts["PUT"] == before + 1


def test_a_refusal_stops_a_long_upload(served: Any, grant: Any) -> None:
    read: list[int] = []

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            read.append(1)
            return super().read(size)

    body = Counting(bytes(200 << 20))
    error = refused("STORE_FULL", served.client.put, grant("put"), body, "ab" * 32)
    assert "used of 32 MiB" in error.message
    assert len(read) < 150
    assert served.client.health()["status"] == "ok"


def test_limits_and_missing(served: Any, grant: Any, tmp_path: pathlib.Path) -> None:
    ref = served.client.put(grant("put"), b"twelve bytes")
    refused("PARCEL_TOO_LARGE", served.client.get, grant("get"), ref.digest, 11)
    out = tmp_path / "out"
    refused("PARCEL_TOO_LARGE", served.client.get_to_file, grant("get"), ref.digest, out, 11)
    refused("BLOB_MISSING", served.client.get, grant("get"), "0" * 64, 100)
    refused("BLOB_MISSING", served.client.get, grant("get", tenant="bob"), ref.digest, 100)
    refused("UNAUTHORISED", served.client.get, "no.grant", ref.digest, 100)
    refused("UNAUTHORISED", served.client.size_of, "no.grant", ref.digest)
    refused("FORBIDDEN", served.client.pin, grant("get"), ref.digest, "j1", 0)
    assert served.client.size_of(grant("get"), "0" * 64) is None
    assert list(tmp_path.glob(".out*")) == []
    assert not out.exists()


def test_damage_is_told_even_in_mid_stream(served: Any, grant: Any, tmp_path: pathlib.Path) -> None:
    body = os.urandom(4 << 20)
    ref = served.client.put(grant("put"), body)
    path = served.store.path_of(ref.digest)
    before = path.stat()
    path.chmod(0o600)
    path.write_bytes(b"X" + body[1:])
    # The file's clock hides it, so the server begins to send, finds out, and breaks off.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    out = tmp_path / "out"
    error = refused(
        "BLOB_MISSING", served.client.get_to_file, grant("get"), ref.digest, out, 1 << 30
    )
    assert ref.digest in error.message
    assert not out.exists()
    assert served.client.put(grant("put"), body) == ref
    assert served.client.get(grant("get"), ref.digest, 1 << 30) == body


def test_a_store_that_lies_is_found_out(run_folder: pathlib.Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{run_folder}/liar")
    listener.listen(1)

    def lie() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nlie")

    thread = threading.Thread(target=lie)
    thread.start()
    with StoreClient(f"unix://{run_folder}/liar", 10.0) as client:
        refused("BLOB_CORRUPT", client.get, "g", digest_of(b"truth"), 100)
    thread.join()
    listener.close()


def test_connections_are_used_again_and_survive_the_store(served: Any, grant: Any) -> None:
    accepted: list[int] = []
    real = served.server.get_request

    def get_request() -> Any:
        accepted.append(1)
        return real()

    served.server.get_request = get_request
    for number in range(20):
        served.client.put(grant("put"), b"%d" % number)
    assert len(accepted) == 1
    # The store closes what was idle for long; the next request must not notice.
    with served.client._lock:
        served.client._idle[0].sock.shutdown(socket.SHUT_RDWR)
    assert served.client.get(grant("get"), digest_of(b"7"), 10) == b"7"
    assert len(accepted) == 2


def test_an_answer_that_is_lost_once_is_asked_for_again(run_folder: pathlib.Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{run_folder}/lossy")
    listener.listen(2)
    listener.settimeout(10)
    heard = []

    def serve() -> None:
        for answer in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ntruth"):
            connection, _ = listener.accept()
            with connection:
                heard.append(connection.recv(65536))
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    with StoreClient(f"unix://{run_folder}/lossy", 10.0) as client:
        assert client.get("g", digest_of(b"truth"), 100) == b"truth"
    thread.join()
    listener.close()
    assert len(heard) == 2 and heard[0] == heard[1]


def test_many_threads(served: Any, grant: Any) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                body = b"%d %d" % (number, turn) * 1000
                ref = served.client.put(grant("put"), body)
                assert served.client.get(grant("get"), ref.digest, 1 << 20) == body
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_store_that_is_not_there(run_folder: pathlib.Path) -> None:
    address = f"unix://{run_folder}/nobody"
    error = refused("STORE_DOWN", StoreClient(address).get, "g", "0" * 64, 100)
    assert address in error.message
    refused("STORE_DOWN", StoreClient("http://127.0.0.1:1").health)


@pytest.mark.parametrize(
    "address", ["", "unix://relative", "http://host", "https://h:1#abc", "tcp://h:1", "http://h:99999",
                "unix:///" + "x" * 120]
)  # fmt: skip
def test_what_is_no_address(address: str) -> None:
    refused("INVALID_SPEC", parse_address, address)
