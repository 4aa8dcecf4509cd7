"""A store that other hosts reach: over TLS, to the store that has the key and to no other."""

import pathlib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from nacl.signing import SigningKey, VerifyKey

from gristmill.store import tls
from gristmill.store.address import key_of, listen, parse_address
from gristmill.store.client import StoreClient
from gristmill.store.local import LocalStore
from gristmill.store.server import StoreServer
from gristmill.wire.errors import RemoteError

OWN = SigningKey(bytes(range(100, 132)))
PUBLIC = OWN.verify_key.encode().hex()
OTHER = SigningKey(bytes(range(1, 33))).verify_key.encode().hex()


@pytest.fixture
def server(tmp_path: pathlib.Path, key: SigningKey) -> Iterator[StoreServer]:
    store = LocalStore(tmp_path / "store", 64 << 20, lambda: time.time_ns() // 1_000_000)
    listener, _ = listen("https://127.0.0.1:0")
    secured = tls.server_context(OWN)
    made = StoreServer(
        listener, store, key.verify_key, lambda: time.time_ns() // 1_000_000, 5.0, 8, secured
    )
    thread = threading.Thread(target=made.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()
    store.close()


def address_of(server: StoreServer, public: str = PUBLIC) -> str:
    return f"https://127.0.0.1:{server.socket.getsockname()[1]}#{public}"


@pytest.mark.parametrize("size_bytes", [0, 1, 300_000, 5_000_000])
def test_blobs_go_both_ways(
    server: StoreServer, grant: Callable[..., str], tmp_path: pathlib.Path, size_bytes: int
) -> None:
    body = bytes(range(256)) * (size_bytes // 256 + 1)
    body = body[:size_bytes]
    with StoreClient(address_of(server), 10.0) as client:
        ref = client.put(grant("put"), body)
        assert client.put(grant("put"), body) == ref
        assert bytes(client.get(grant("get"), ref.digest, 1 << 30)) == body
        with pytest.raises(RemoteError, match="not to get") as caught:
            client.get(grant("put"), ref.digest, 1 << 30)
        assert caught.value.code == "FORBIDDEN"
        assert client.health()["status"] == "ok"
    assert server.counts["refused_handshakes"] == 0


def test_a_refusal_before_the_body_was_sent_is_heard(
    server: StoreServer, grant: Callable[..., str]
) -> None:
    with StoreClient(address_of(server), 10.0) as client:
        with pytest.raises(RemoteError) as caught:
            client.put(grant("put", bytes_max=10), bytes(30 << 20))
        assert caught.value.code == "FORBIDDEN"


def test_a_kept_connection_that_the_store_closed_costs_nothing(
    server: StoreServer, grant: Callable[..., str]
) -> None:
    server.idle_s = 0.05
    with StoreClient(address_of(server), 10.0) as client:
        ref = client.put(grant("put"), b"grain")
        for _ in range(3):
            time.sleep(0.15)  # longer than the store keeps a silent connection
            assert bytes(client.get(grant("get"), ref.digest, 100)) == b"grain"


def test_a_store_with_another_key_is_told_nothing(
    server: StoreServer, grant: Callable[..., str]
) -> None:
    with (
        StoreClient(address_of(server, OTHER), 5.0) as client,
        pytest.raises(RemoteError, match="does not have the key") as caught,
    ):
        client.put(grant("put"), b"secret")
    assert caught.value.code == "UNAUTHORISED" and "--print-key" in caught.value.hint
    assert not server.counts["PUT"]


def test_only_the_certificate_that_the_key_makes_is_its() -> None:
    made, public = tls.certificate_of(OWN), OWN.verify_key.encode()
    assert tls.is_certificate_of(made, public)
    VerifyKey(public).verify(tls._to_be_signed(public), made[-64:])
    for wrong in (b"", made[:-1], made + b"\0", b"\0" + made, made[:40] + b"\1" + made[41:]):
        assert not tls.is_certificate_of(wrong, public)
    other = SigningKey(bytes(range(7, 39)))
    assert not tls.is_certificate_of(tls.certificate_of(other), public)
    assert public not in tls.certificate_of(other)


def test_strangers_cost_a_thread_for_a_moment(
    server: StoreServer, grant: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Garbage, plain HTTP and silence: the store serves on."""
    monkeypatch.setattr("gristmill.store.server.HANDSHAKE_S", 0.2)
    at = parse_address(address_of(server))
    for said in (b"GET /health HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01" + bytes(300), b""):
        with socket.create_connection(at, 5) as stranger:
            stranger.sendall(said)
            stranger.settimeout(5)
            heard = b""
            try:
                while piece := stranger.recv(1000):
                    heard += piece
            except ConnectionResetError:
                pass
            assert b"HTTP/" not in heard
    with StoreClient(address_of(server), 10.0) as client:
        assert client.put(grant("put"), b"grain").size_bytes == 5
    assert server.counts["refused_handshakes"] == 4


def test_old_tls_is_not_spoken(server: StoreServer) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(parse_address(address_of(server)), 5) as connection,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(connection)


def test_an_address_elsewhere_has_the_key() -> None:
    assert key_of("unix:///run/store") == key_of("http://127.0.0.1:7034") == ""
    assert key_of(f"https://[fd00::1]:7034#{PUBLIC}") == PUBLIC
    for address in ("https://10.0.0.1:7034", "https://10.0.0.1:7034#abc", "https://a:99999#x"):
        with pytest.raises(RemoteError) as caught:
            StoreClient(address)
        assert caught.value.code == "INVALID_SPEC"
    with pytest.raises(RemoteError) as caught:
        listen("http://10.0.0.1:7034")
    assert caught.value.code == "NOT_LOOPBACK" and "https://" in caught.value.hint


def test_the_process_tells_its_address_with_its_key(
    tmp_path: pathlib.Path, key: SigningKey, grant: Callable[..., str]
) -> None:
    command = [sys.executable, "-P", "-m", "gristmill.store", "--state", str(tmp_path / "store")]
    told = subprocess.run([*command, "--print-key"], capture_output=True, text=True, check=True)
    options = ["--listen", "https://127.0.0.1:0", "--key", key.verify_key.encode().hex()]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith("ready store "))
        address = line.split()[-1]
        assert address.endswith(f"#{told.stdout.strip()}")
        with StoreClient(address, 10.0) as client:
            ref = client.put(grant("put"), b"grain")
            assert bytes(client.get(grant("get"), ref.digest, 100)) == b"grain"
        process.terminate()
        process.stderr.read()
        assert process.wait(20) == 0
