"""HTTP in front of a blob store: one thread a connection, every transfer in bounded memory.

docs/rfc/0004 has the verbs. Every answer that is not a blob is JSON; a refusal is
``{"code", "message", "hint"}`` with the code of wire/errors.py.
"""

import contextlib
import itertools
import json
import logging
import secrets
import socket
import socketserver
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, cast

import msgspec
from nacl.signing import VerifyKey

from gristmill.store import ranges
from gristmill.store.address import widen
from gristmill.store.interface import PIECE_BYTES, BlobStore, Piece
from gristmill.wire import limits
from gristmill.wire.errors import RemoteError
from gristmill.wire.grants import PUBLISHED, Grant, check_grant, tenant_of
from gristmill.wire.ids import is_digest

log = logging.getLogger("gristmill.store")

IDLE_S = 60.0  #: a connection that neither sends nor takes for this long is closed
CONNECTIONS_MAX = 256
JSON_BYTES_MAX = 16 << 10
PIN_MS_MAX = 10 * 366 * 86_400_000
_LINGER_S = 2.0
HANDSHAKE_S = 5.0  #: of TLS, with somebody who has shown nothing yet
_LINGER_BYTES = 64 << 20


class PinRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /pins. ``until_ms``: ms since the epoch; 0 unpins."""

    digest: str
    owner: str
    until_ms: int


class Connection(BaseHTTPRequestHandler):
    """One connection; its requests one after the other."""

    protocol_version = "HTTP/1.1"
    server_version = "gristmill"
    sys_version = ""
    server: "StoreServer"

    def setup(self) -> None:
        """Set the time-out that every read and write has."""
        super().setup()
        self.connection.settimeout(self.server.idle_s)

    # ------------------------------------------------------------ the frame of a request

    def do_GET(self) -> None:
        """A blob, or how the store is."""
        self._serve({"blobs": self._get, "health": self._health})

    def do_HEAD(self) -> None:
        """Whether the tenant of the grant has a blob, and its size."""
        self._serve({"blobs": self._head, "health": self._health})

    def do_PUT(self) -> None:
        """Keep a blob."""
        self._serve({"blobs": self._put})

    def do_POST(self) -> None:
        """Pin a blob."""
        self._serve({"pins": self._pin})

    def _serve(self, resources: dict[str, Callable[[str, str], None]]) -> None:
        self._unread, self._has_answered = 0, False
        self.server.counts[self.command] += 1
        try:
            self._read_framing()
            resource, digest, grant = ranges.parse_target(self.path)
            if resource not in resources:
                raise StatusError(405, "MALFORMED", f"{self.command} is no verb of /{resource}")
            resources[resource](digest, grant)
        except RemoteError as error:
            self.server.counts[error.code] += 1
            if error.code in ("UNAUTHORISED", "FORBIDDEN"):
                path = self.path.partition("?")[0]
                log.warning("refused %s %r: %s", self.command, path[:80], error.message)
            self._refuse(error)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:  # the edge of the process: one request fails, with an id
            if self.server.is_ending:
                self.close_connection = True
                return
            number = secrets.token_hex(4)
            log.exception("request failed, id %s", number)
            self._refuse(
                RemoteError("INTERNAL", f"the store failed; its log says why, id {number}")
            )
        if self._unread:
            self._linger()

    def _read_framing(self) -> None:
        """How long the body is; framings that we do not speak end the connection."""
        self._unread = 0
        self._length: int | None = None
        if self.request_version not in ("HTTP/1.0", "HTTP/1.1"):
            self.close_connection = True
            raise RemoteError("MALFORMED", f"{self.request_version} is not spoken here")
        if self.headers.defects:
            self.close_connection = True
            raise RemoteError("MALFORMED", f"headers that are none: {self.headers.defects[0]!r}")
        if "transfer-encoding" in self.headers:
            self.close_connection = True
            raise StatusError(
                411, "MALFORMED", "Transfer-Encoding is not taken: send Content-Length"
            )
        try:
            self._length = ranges.parse_length(self.headers.get_all("content-length"))
        except RemoteError:
            self.close_connection = True
            raise
        self._unread = self._length or 0
        if self._unread and self.command not in ("PUT", "POST"):
            raise RemoteError("MALFORMED", f"{self.command} has a body of {self._unread} bytes")

    def handle_expect_100(self) -> bool:
        """Say 100 only when the body is wanted: see ``_body``."""
        return True

    def _body(self) -> Iterator[Piece]:
        """The body in pieces; the memory of one is used again for the next."""
        if self.headers.get("expect", "").lower() == "100-continue":
            self.send_response_only(HTTPStatus.CONTINUE)
            self.end_headers()
        buffer = memoryview(bytearray(min(PIECE_BYTES, max(self._unread, 1))))
        while self._unread:
            size = self.rfile.readinto(buffer[: min(len(buffer), self._unread)])
            if not size:
                raise ConnectionResetError("the body ends early")
            self._unread -= size
            self.server.counts["bytes_taken"] += size
            yield buffer[:size]

    def _linger(self) -> None:
        """Refused before the body was read: let the peer read the answer before we hang up.

        To close with unread bytes resets the connection, and the answer with it.
        """
        self.close_connection = True
        deadline = time.monotonic() + _LINGER_S
        left = _LINGER_BYTES
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER_S)
            while left > 0 and time.monotonic() < deadline:
                size = len(self.connection.recv(PIECE_BYTES))
                if not size:
                    return
                left -= size

    # ------------------------------------------------------------ verbs

    def _grant(self, verb: str, digest: str, query: str, size_bytes: int = 0) -> Grant:
        text = ranges.parse_credential(self.headers.get_all("authorization"), query)
        key = self.server.key
        if tenant_of(text) == PUBLISHED:  # what the broker signs is never for that
            if self.server.publisher is None:
                raise RemoteError("FORBIDDEN", "nobody publishes in this store")
            key = self.server.publisher
        return check_grant(text, key, verb, digest, size_bytes, self.server.now_ms())

    def _reader(self, digest: str, query: str) -> str:
        """The tenant whose blob is read: that of the grant; without one, what is published."""
        if not query and not self.headers.get_all("authorization"):
            if self.server.publisher is not None:
                return PUBLISHED
        return self._grant("get", digest, query).tenant

    def _put(self, digest: str, query: str) -> None:
        if self._length is None:
            raise StatusError(411, "MALFORMED", "a blob needs a Content-Length")
        if self._length > limits.BLOB_BYTES_MAX:
            raise StatusError(
                413,
                "PARCEL_TOO_LARGE",
                f"a blob of {self._length} bytes; the limit is {limits.BLOB_BYTES_MAX}",
                "split it",
            )
        tenant = self._grant("put", digest, query, self._length).tenant
        is_new = self.server.store.put(tenant, digest, self._length, self._body())
        answer = {"digest": digest, "size_bytes": self._length, "is_new": is_new}
        self._answer(HTTPStatus.CREATED if is_new else HTTPStatus.OK, answer)

    def _head(self, digest: str, query: str) -> None:
        try:
            tenant = self._reader(digest, query)
        except RemoteError as error:
            if error.code != "FORBIDDEN":
                raise
            tenant = self._grant("put", digest, query).tenant  # to skip what is there already
        self._blob_head(HTTPStatus.OK, digest, self.server.store.size_of(tenant, digest))

    def _get(self, digest: str, query: str) -> None:
        tenant = self._reader(digest, query)
        asked = self.headers.get_all("range")
        try:
            with self.server.store.open(tenant, digest) as blob:
                if not asked:
                    pieces = blob.pieces()
                    first = next(pieces, b"")  # a small blob is verified before anything leaves
                    self._blob_head(HTTPStatus.OK, digest, blob.size_bytes)
                    self._send_pieces(first, pieces)
                    return
                try:
                    if len(asked) > 1:
                        raise ranges.UnsatisfiableRangeError("several Range headers")
                    start, count = ranges.parse_range(asked[0], blob.size_bytes)
                except ranges.UnsatisfiableRangeError as error:
                    self._refuse(error, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, blob.size_bytes)
                    return
                blob.verify()
                part = (start, count, blob.size_bytes)
                self._blob_head(HTTPStatus.PARTIAL_CONTENT, digest, count, part)
                self._send_pieces(b"", blob.part(start, count))
        except RemoteError as error:
            if error.code != "BLOB_CORRUPT":
                raise
            log.error("ALARM BLOB_CORRUPT: %s; it is in quarantine", error.message)
            self._refuse(error, HTTPStatus.GONE)

    def _pin(self, _: str, query: str) -> None:
        if self._length is None or self._length > JSON_BYTES_MAX:
            raise StatusError(
                411 if self._length is None else 413,
                "MALFORMED",
                f"a body of {self._length} bytes; the limit is {JSON_BYTES_MAX}",
            )
        # The grant is checked against the digest that the body names, so the body comes first.
        ranges.parse_credential(self.headers.get_all("authorization"), query)
        try:
            asked = msgspec.json.decode(b"".join(map(bytes, self._body())), type=PinRequest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RemoteError("MALFORMED", f"the body does not decode: {error}") from None
        bad = []
        if not is_digest(asked.digest):
            bad.append(f"digest is {asked.digest!r:.80}, must be 64 of 0-9 and a-f")
        if not 0 < len(asked.owner) <= limits.NAME_CHARS_MAX:
            bad.append(f"owner has {len(asked.owner)} characters, 1 to {limits.NAME_CHARS_MAX}")
        if not 0 <= asked.until_ms <= self.server.now_ms() + PIN_MS_MAX:
            bad.append(f"until_ms is {asked.until_ms}, must be 0 or at most ten years from now")
        if bad:
            raise RemoteError("INVALID_SPEC", "; ".join(bad))
        tenant = self._grant("put", asked.digest, query).tenant
        self.server.store.pin(tenant, asked.digest, asked.owner, asked.until_ms)
        self._answer(HTTPStatus.OK, {"digest": asked.digest, "until_ms": asked.until_ms})

    def _health(self, _: str, __: str) -> None:
        usage = self.server.store.usage()
        self._answer(HTTPStatus.OK, {"status": "ok", **msgspec.structs.asdict(usage)})

    # ------------------------------------------------------------ answers

    def _blob_head(
        self,
        status: HTTPStatus,
        digest: str,
        length: int,
        part: tuple[int, int, int] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(length))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{digest}"')
        self.send_header("Cache-Control", "private, no-transform, immutable")
        self.send_header("X-Content-Type-Options", "nosniff")
        if part is not None:
            start, count, size = part
            self.send_header("Content-Range", f"bytes {start}-{start + count - 1}/{size}")
        self._has_answered = True
        self.end_headers()

    def _send_pieces(self, first: Piece, rest: Iterable[Piece]) -> None:
        for piece in itertools.chain((first,) if len(first) else (), rest):
            self.connection.sendall(piece)
            self.server.counts["bytes_sent"] += len(piece)

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        encoded = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        if self._unread:
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        self._has_answered = True
        self.end_headers()
        if self.command != "HEAD":
            self.connection.sendall(encoded)

    def _refuse(self, error: RemoteError, status: int = 0, size_bytes: int = -1) -> None:
        if self._has_answered:
            # The head of a blob is out: the missing end is the only way left to say no.
            self.close_connection = True
            return
        status = status or (
            error.status if isinstance(error, StatusError) else error.spec.http_status
        )
        with contextlib.suppress(ConnectionError, TimeoutError):
            if size_bytes >= 0:
                self._extra = ("Content-Range", f"bytes */{size_bytes}")
            self._answer(status, {"code": error.code, "message": error.message, "hint": error.hint})

    _extra: tuple[str, str] | None = None

    def end_headers(self) -> None:
        """Add the header that a refusal asked for."""
        if self._extra is not None:
            self.send_header(*self._extra)
            self._extra = None
        super().end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the parser of the request line and headers refuses, in our form."""
        self._unread, self._has_answered, self.close_connection = 0, False, True
        self.request_version = "HTTP/1.1"  # of what did not parse; else no headers are sent
        self.command = self.command if isinstance(self.command, str) else ""
        status = 405 if code == HTTPStatus.NOT_IMPLEMENTED else code
        self._refuse(RemoteError("MALFORMED", message or explain or "no HTTP request"), status)

    def address_string(self) -> str:
        """The peer, for logs; a unix socket has no address."""
        return str(self.client_address[0]) if self.client_address else "unix"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests are counted, refusals and failures logged."""


class StatusError(RemoteError):
    """A refusal whose HTTP status is not its code's own."""

    def __init__(self, status: int, code: str, message: str, hint: str = "") -> None:
        super().__init__(code, message, hint)
        self.status = status


class StoreServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Listens on an already bound socket and serves a store until ``shutdown``.

    Args:
        listener: bound and listening; unix or TCP.
        key: the broker's; grants signed by it are rights.
        now_ms: the clock, in ms since the epoch.
        secured: TLS, for a store that is reached from other hosts.
        publisher: who may put blobs that everybody reads (``wire.grants.PUBLISHED``).
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        listener: socket.socket,
        store: BlobStore,
        key: VerifyKey,
        now_ms: Callable[[], int],
        idle_s: float = IDLE_S,
        connections_max: int = CONNECTIONS_MAX,
        secured: ssl.SSLContext | None = None,
        publisher: VerifyKey | None = None,
    ) -> None:
        socketserver.BaseServer.__init__(self, listener.getsockname(), Connection)
        self.socket = listener
        self.store, self.key, self.now_ms, self.idle_s = store, key, now_ms, idle_s
        self.publisher = publisher
        self.counts: Counter[str] = Counter()
        self.is_ending = False  #: the store is closed under requests that are still on their way
        self._secured = secured
        self._room = threading.BoundedSemaphore(connections_max)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept one connection."""
        connection, address = self.socket.accept()
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            widen(connection)
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or refuse it when there are too many."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        self.counts["refused_connections"] += 1
        error = RemoteError("QUOTA", "the store has all the connections that it takes; try again")
        body = json.dumps({"code": error.code, "message": error.message, "hint": error.hint})
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            if self._secured is None:  # else a handshake would have to come first
                cast(socket.socket, request).send((head + body).encode(), socket.MSG_DONTWAIT)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The thread of one connection."""
        try:
            if self._secured is not None:
                request.settimeout(HANDSHAKE_S)
                request = self._secured.wrap_socket(request, server_side=True)
            super().process_request_thread(request, client_address)
        except OSError as error:  # of the handshake: requests have their own
            self.counts["refused_handshakes"] += 1
            log.debug("no handshake with %s: %s", client_address, error)
            self.shutdown_request(request)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke outside of a request."""
        log.debug("a connection broke", exc_info=True)
