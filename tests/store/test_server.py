"""HTTP read strictly: every way to ask wrongly has its status and its words."""

import hashlib
import json
import socket
import time
from typing import Any

import pytest
from nacl.signing import SigningKey

from gristmill.wire.errors import RemoteError
from gristmill.wire.grants import PUBLISHED

DIGEST = hashlib.sha256(b"hello").hexdigest()


class Raw:
    """A connection on which a test writes bytes itself."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        self.socket.connect(path)
        self.file = self.socket.makefile("rb")

    def ask(self, text: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        self.socket.sendall(text.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
        return self.answer(text.startswith("HEAD"))

    def answer(self, is_head: bool = False) -> tuple[int, dict[str, str], bytes]:
        status = self.file.readline().decode()
        headers = {}
        while line := self.file.readline().strip().decode():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        size = 0 if is_head else int(headers.get("content-length", 0))
        return int(status.split()[1]), headers, self.file.read(size)

    def is_closed(self) -> bool:
        return self.file.read(1) == b""

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def raw(served: Any) -> Any:
    made = Raw(served.path)
    yield made
    made.close()


@pytest.fixture
def hello(served: Any, grant: Any) -> str:
    served.client.put(grant("put"), b"hello")
    return DIGEST


def refusal(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str, str]:
    status, headers, body = answer
    assert headers["content-type"] == "application/json"
    told = json.loads(body)
    assert set(told) == {"code", "message", "hint"}
    return status, told["code"], told["message"]


def test_a_connection_serves_many_requests(raw: Raw, grant: Any) -> None:
    get, put = f"Authorization: Grant {grant('get')}", f"Authorization: Grant {grant('put')}"
    for expected in (201, 200):
        status, _, body = raw.ask(
            f"PUT /blobs/{DIGEST} HTTP/1.1\nHost: x\n{put}\nContent-Length: 5", b"hello"
        )
        assert status == expected
        assert json.loads(body) == {
            "digest": DIGEST,
            "size_bytes": 5,
            "is_new": expected == 201,
        }
    status, headers, body = raw.ask(f"GET /blobs/{DIGEST} HTTP/1.1\nHost: x\n{get}")
    assert (status, body) == (200, b"hello")
    assert headers["etag"] == f'"{DIGEST}"'
    for either in (get, put):
        status, headers, _ = raw.ask(f"HEAD /blobs/{DIGEST} HTTP/1.1\nHost: x\n{either}")
        assert (status, headers["content-length"]) == (200, "5")
    status, _, body = raw.ask("GET /health HTTP/1.1\nHost: x")
    assert (status, json.loads(body)["used_bytes"]) == (200, 5)


@pytest.mark.parametrize(
    ("asked", "part", "told"),
    [
        ("bytes=0-0", b"h", "bytes 0-0/5"),
        ("bytes=1-3", b"ell", "bytes 1-3/5"),
        ("bytes=3-", b"lo", "bytes 3-4/5"),
        ("bytes=-2", b"lo", "bytes 3-4/5"),
        ("bytes=0-99", b"hello", "bytes 0-4/5"),
        ("bytes=-99", b"hello", "bytes 0-4/5"),
    ],
)
def test_ranges(raw: Raw, grant: Any, hello: str, asked: str, part: bytes, told: str) -> None:
    line = f"GET /blobs/{hello} HTTP/1.1\nAuthorization: Grant {grant('get')}\nRange: {asked}"
    status, headers, body = raw.ask(line)
    assert (status, body, headers["content-range"]) == (206, part, told)


@pytest.mark.parametrize(
    "asked",
    ["bytes=5-", "bytes=3-1", "bytes=-0", "bytes=0-1,3-4", "items=0-1", "bytes=-", "bytes=a-b",
     "bytes=" + "9" * 30 + "-", "0-4"],
)  # fmt: skip
def test_ranges_that_are_refused(raw: Raw, grant: Any, hello: str, asked: str) -> None:
    line = f"GET /blobs/{hello} HTTP/1.1\nAuthorization: Grant {grant('get')}\nRange: {asked}"
    answer = raw.ask(line)
    assert refusal(answer)[:2] == (416, "MALFORMED")
    assert answer[1]["content-range"] == "bytes */5"
    assert raw.ask("GET /health HTTP/1.1")[0] == 200  # the connection goes on


def test_the_grant_decides(raw: Raw, grant: Any, hello: str) -> None:
    stranger = SigningKey(bytes(32))
    other = hashlib.sha256(b"other").hexdigest()
    cases = [
        ("", 401, "UNAUTHORISED"),
        ("Authorization: Bearer x\n", 401, "UNAUTHORISED"),
        ("Authorization: Grant\n", 401, "UNAUTHORISED"),
        ("Authorization: Grant garbage.garbage\n", 401, "UNAUTHORISED"),
        ("Authorization: Grant \xff\xfe.\xe9\n", 401, "UNAUTHORISED"),
        (f"Authorization: Grant {grant('get', signer=stranger)}\n", 401, "UNAUTHORISED"),
        (f"Authorization: Grant {grant('get', expires_ms=1)}\n", 401, "UNAUTHORISED"),
        (f"Authorization: Grant {grant('put')}\n", 403, "FORBIDDEN"),
        (f"Authorization: Grant {grant('get', digest=other)}\n", 403, "FORBIDDEN"),
        (f"Authorization: Grant {grant('get', tenant='bob')}\n", 404, "BLOB_MISSING"),
        (f"Authorization: Grant {grant('get')}\n" * 2, 401, "UNAUTHORISED"),
        (f"Authorization: Grant {grant('get', digest=hello)}\n", 200, ""),
    ]
    for line, status, code in cases:
        answer = raw.ask(f"GET /blobs/{hello} HTTP/1.1\n{line}Host: x")
        assert answer[0] == status, (line, answer)
        if code:
            assert refusal(answer)[1] == code
    assert raw.ask(f"GET /blobs/{hello}?grant={grant('get')} HTTP/1.1\nHost: x")[2] == b"hello"


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/blobs/" + "A" * 64, 400),
        ("/blobs/" + "a" * 63, 400),
        ("/blobs/" + "a" * 64 + "/", 400),
        ("/blobs/../store.db", 400),
        ("/blobs/%2e%2e/store.db", 400),
        ("/blobs/", 400),
        ("/", 400),
        ("/other", 400),
        ("/health?x=1", 400),
        ("/health?", 200),
        ("/pins", 405),
    ],
)
def test_addresses(raw: Raw, target: str, status: int) -> None:
    answer = raw.ask(f"GET {target} HTTP/1.1\nHost: x")
    assert answer[0] == status
    if status != 200:
        assert refusal(answer)[1] == "MALFORMED"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("", 411),
        ("Transfer-Encoding: chunked\n", 411),
        ("Transfer-Encoding: chunked\nContent-Length: 5\n", 411),
        ("Content-Length: -1\n", 400),
        ("Content-Length: 5\nContent-Length: 5\n", 400),
        ("Content-Length: +5\n", 400),
        ("Content-Length: 5 5\n", 400),
        ("Content-Length: " + "9" * 40 + "\n", 400),
        ("Content-Length: 9999999999999\n", 413),
    ],
)
def test_lengths(raw: Raw, grant: Any, headers: str, status: int) -> None:
    line = f"PUT /blobs/{DIGEST} HTTP/1.1\n{headers}Authorization: Grant {grant('put')}"
    assert refusal(raw.ask(line, b"hello"))[0] == status


@pytest.mark.parametrize(
    "line",
    ["GET /health HTTP/2.0", "GET /health FTP/1.1", "GET", "BREW /pot HTTP/1.1", "a b c d",
     "GET /health HTTP/1.1\nno colon here and no value", "GET /" + "a" * 70_000 + " HTTP/1.1"],
)  # fmt: skip
def test_what_is_not_http(raw: Raw, served: Any, line: str) -> None:
    status, _, _ = raw.ask(line)
    assert 400 <= status < 506
    assert served.client.health()["status"] == "ok"


def test_what_is_published_is_read_by_everybody_and_put_by_one(
    served: Any, raw: Raw, grant: Any
) -> None:
    publisher = SigningKey(b"p" * 32)
    digest, mine = DIGEST, hashlib.sha256(b"mine").hexdigest()
    put = grant("put", PUBLISHED, signer=publisher)

    def got(name: str) -> tuple[int, bytes]:
        status, _, found = raw.ask(f"GET /blobs/{name} HTTP/1.1\nHost: store")
        return status, found if status == 200 else b""

    def refused(grant_: str) -> str:
        with pytest.raises(RemoteError) as caught:
            served.client.put_parts(grant_, [b"hello"], digest)
        return caught.value.code

    assert refused(put) == "FORBIDDEN"  # nobody publishes here
    assert got(digest)[0] == 401
    served.server.publisher = publisher.verify_key
    assert got(digest)[0] == 404
    assert refused(grant("put", PUBLISHED)) == "UNAUTHORISED"  # the broker is no publisher
    assert refused(grant("put", "ann", signer=publisher)) == "UNAUTHORISED"
    served.client.put_parts(put, [b"hello"], digest)
    assert got(digest) == (200, b"hello")
    served.client.put_parts(grant("put"), [b"mine"], mine)
    assert got(mine)[0] == 404


def test_a_body_on_get_ends_the_connection(raw: Raw) -> None:
    assert refusal(raw.ask("GET /health HTTP/1.1\nContent-Length: 5", b"hello"))[0] == 400
    assert raw.is_closed()


def test_wrong_bytes_are_refused_and_forgotten(raw: Raw, served: Any, grant: Any) -> None:
    line = f"PUT /blobs/{DIGEST} HTTP/1.1\nContent-Length: 5\nAuthorization: Grant {grant('put')}"
    status, code, message = refusal(raw.ask(line, b"wrong"))
    assert (status, code) == (422, "BLOB_CORRUPT")
    assert hashlib.sha256(b"wrong").hexdigest() in message
    assert served.store.usage().blobs == 0


def test_refused_before_the_body_is_read(raw: Raw, grant: Any) -> None:
    line = f"PUT /blobs/{DIGEST} HTTP/1.1\nContent-Length: 33554433\n"
    full = refusal(raw.ask(f"{line}Authorization: Grant {grant('put')}"))
    assert full[:2] == (507, "STORE_FULL")
    assert "0 B used of 32 MiB" in full[2]
    # The peer that goes on sending is listened to for a while, so that it can read the answer.
    raw.socket.sendall(b"x" * 100_000)
    raw.socket.shutdown(socket.SHUT_WR)
    assert raw.is_closed()


def test_a_grant_limits_the_size(raw: Raw, grant: Any) -> None:
    credential = f"Authorization: Grant {grant('put', bytes_max=4)}"
    line = f"PUT /blobs/{DIGEST} HTTP/1.1\nContent-Length: 5\n{credential}"
    assert refusal(raw.ask(line, b"hello"))[:2] == (403, "FORBIDDEN")


def test_expect_100_is_answered_when_the_body_is_wanted(raw: Raw, grant: Any) -> None:
    head = f"PUT /blobs/{DIGEST} HTTP/1.1\nContent-Length: 5\nExpect: 100-continue\n"
    assert raw.ask(f"{head}Authorization: Grant {grant('put')}")[0] == 100
    raw.socket.sendall(b"hello")
    assert raw.answer()[0] == 201
    assert refusal(raw.ask(f"{head}Authorization: Grant {grant('get')}"))[0] == 403


def test_a_put_that_breaks_off(raw: Raw, served: Any, grant: Any) -> None:
    line = f"PUT /blobs/{DIGEST} HTTP/1.1\nContent-Length: 5\nAuthorization: Grant {grant('put')}"
    raw.socket.sendall(line.replace("\n", "\r\n").encode() + b"\r\n\r\nhel")
    raw.socket.shutdown(socket.SHUT_WR)
    assert raw.is_closed()
    assert served.store.usage().blobs == 0
    assert list(served.store._tmp.iterdir()) == []


def test_pins(raw: Raw, served: Any, grant: Any, hello: str) -> None:
    def pin(body: Any, credential: str) -> tuple[int, dict[str, str], bytes]:
        encoded = json.dumps(body).encode() if not isinstance(body, bytes) else body
        line = f"POST /pins HTTP/1.1\nContent-Length: {len(encoded)}\n"
        return raw.ask(f"{line}Authorization: Grant {credential}", encoded)

    far_ms = time.time_ns() // 1_000_000 + 86_400_000
    good = {"digest": hello, "owner": "j1", "until_ms": far_ms}
    assert pin(good, grant("put"))[0] == 200
    assert served.store._index.pins(hello) == 1
    assert refusal(pin(good, grant("get")))[:2] == (403, "FORBIDDEN")
    assert refusal(pin(good, grant("put", tenant="bob")))[:2] == (404, "BLOB_MISSING")
    assert refusal(pin(b"{", grant("put")))[:2] == (400, "MALFORMED")
    assert refusal(pin({**good, "more": 1}, grant("put")))[:2] == (400, "MALFORMED")
    bad = {"digest": "x", "owner": "", "until_ms": 1 << 60}
    status, code, message = refusal(pin(bad, grant("put")))
    assert (status, code) == (422, "INVALID_SPEC")
    assert all(field in message for field in bad)  # all bad fields at once
    assert refusal(pin(b" " * 20_000, grant("put")))[0] == 413
    raw.close()
    again = Raw(served.path)
    body = json.dumps({**good, "until_ms": 0}).encode()
    line = f"POST /pins HTTP/1.1\nContent-Length: {len(body)}\n"
    assert again.ask(f"{line}Authorization: Grant {grant('put')}", body)[0] == 200
    again.close()
    assert served.store._index.pins(hello) == 0


@pytest.mark.parametrize("size", [5, 3 << 20])
def test_a_damaged_blob_is_gone_then_missing(raw: Raw, served: Any, grant: Any, size: int) -> None:
    body = b"h" * size
    digest = hashlib.sha256(body).hexdigest()
    served.client.put(grant("put"), body)
    path = served.store.path_of(digest)
    path.chmod(0o600)
    path.write_bytes(b"x" + body[1:])
    line = f"GET /blobs/{digest} HTTP/1.1\nAuthorization: Grant {grant('get')}"
    assert refusal(raw.ask(line))[:2] == (410, "BLOB_CORRUPT")
    assert refusal(raw.ask(line))[:2] == (404, "BLOB_MISSING")


def test_connections_have_a_limit(served: Any) -> None:
    held = [Raw(served.path) for _ in range(8)]
    try:
        for connection in held:
            assert connection.ask("GET /health HTTP/1.1")[0] == 200
        extra = Raw(served.path)
        status, code, _ = refusal(extra.answer())
        assert (status, code) == (503, "QUOTA")
        extra.close()
        assert held[0].ask("GET /health HTTP/1.1")[0] == 200
    finally:
        for connection in held:
            connection.close()


def test_no_grant_is_logged(
    raw: Raw, grant: Any, hello: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = grant("put")
    assert raw.ask(f"GET /blobs/{hello}?grant={text} HTTP/1.1\nHost: x")[0] == 403
    raw.ask("GET /health HTTP/1.1")
    assert "refused GET" in caplog.text
    assert text not in caplog.text
