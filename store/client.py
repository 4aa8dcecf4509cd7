"""The client's side of a store: put, get and pin blobs over HTTP, with grants from the broker.

Standard library only, so that a person who only submits work loads nothing more. Connections are
kept and used again; a request whose connection ends before its answer is made once more on a new
one, which is safe: every verb here can be repeated.
"""

import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import secrets
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from gristmill.store import tls
from gristmill.store.address import key_of, parse_address, widen
from gristmill.wire.errors import CODES, RemoteError
from gristmill.wire.ids import digest_of
from gristmill.wire.values import BlobRef

TIMEOUT_S = 120.0  #: of one read or write; a store verifies or syncs a large blob meanwhile
PIECE_BYTES = 256 << 10  #: it is hashed and written while the processor's cache has it
LOOK_FIRST_BYTES = 3 << 19  #: a larger blob is asked for before it is sent
CONNECTIONS_KEPT = 4
_JSON_BYTES_MAX = 64 << 10
_BROKEN = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
_STALE = (http.client.RemoteDisconnected, *_BROKEN)

Answer = TypeVar("Answer")


class _Connection(http.client.HTTPConnection):
    """HTTP over TCP or, with port -1, over the unix socket whose path is the host.

    With a ``public`` key over TLS to the store that has it.
    """

    def __init__(self, host: str, port: int, timeout_s: float, public: str) -> None:
        self._path = host if port < 0 else ""
        self._public = public
        super().__init__("store" if self._path else host, None if self._path else port, timeout_s)

    def connect(self) -> None:
        if not self._path:
            super().connect()
            if self._public:
                self.sock = tls.connect(self.sock, self._public)
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        widen(self.sock)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class StoreClient:
    """Blobs of one store; safe to use from many threads.

    Args:
        address: ``unix:///path``, ``http://host:port`` or ``https://host:port#key``, as the broker
            tells it.
        timeout_s: of one read or write on the connection.

    Every method raises ``RemoteError``: what the store said, or ``STORE_DOWN`` when it does not
    answer.
    """

    def __init__(self, address: str, timeout_s: float = TIMEOUT_S) -> None:
        self.address = address
        self._host, self._port = parse_address(address)
        self._public = key_of(address)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._process = os.getpid()

    def __enter__(self) -> "StoreClient":
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes its connections."""
        self.close()

    def close(self) -> None:
        """Close the connections that nobody uses; the client can be used on."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    # ------------------------------------------------------------ verbs

    def put(
        self,
        grant: str,
        body: bytes | bytearray | memoryview | BinaryIO | pathlib.Path,
        digest: str = "",
    ) -> BlobRef:
        """Keep a blob: bytes, or a seekable file from its position on. Safe on disk at return.

        A file is read twice, once for its digest unless ``digest`` gives it; what the tenant has
        there already is not sent.
        """
        if isinstance(body, pathlib.Path):
            with body.open("rb") as file:
                return self.put(grant, file, digest)
        if isinstance(body, bytes | bytearray | memoryview):
            view = memoryview(body).cast("B")
            digest = digest or digest_of(view)
            ref = BlobRef(digest, len(view))
            make_pieces: Callable[[], Iterator[bytes | memoryview]] = lambda: _cut(view)  # noqa: E731
        else:
            start = body.tell()
            digest = digest or _digest_of_file(body)
            ref = BlobRef(digest, body.seek(0, os.SEEK_END) - start)
            file_body = body

            def make_pieces() -> Iterator[bytes | memoryview]:
                file_body.seek(start)
                return iter(lambda: file_body.read(PIECE_BYTES), b"")

        return self._send(grant, ref, make_pieces)

    def put_parts(self, grant: str, parts: Sequence[bytes | memoryview], digest: str) -> BlobRef:
        """As ``put``, of bytes that lie in several places and are not joined for it."""
        ref = BlobRef(digest, sum(map(len, parts)))
        return self._send(
            grant, ref, lambda: (piece for part in parts for piece in _cut(memoryview(part)))
        )

    def _send(
        self, grant: str, ref: BlobRef, make_pieces: Callable[[], Iterator[bytes | memoryview]]
    ) -> BlobRef:
        digest = ref.digest
        if ref.size_bytes > LOOK_FIRST_BYTES and self.size_of(grant, digest) == ref.size_bytes:
            return ref
        headers = {"Content-Length": str(ref.size_bytes)}
        self._exchange("PUT", f"/blobs/{digest}", grant, headers, _done, make_pieces)
        return ref

    def size_of(self, grant: str, digest: str) -> int | None:
        """Bytes of a blob of the grant's tenant, None when it has none of that digest."""

        def read(response: http.client.HTTPResponse) -> int | None:
            response.read()
            return int(response.headers.get("Content-Length", 0))

        try:
            return self._exchange("HEAD", f"/blobs/{digest}", grant, {}, read)
        except RemoteError as error:
            if error.code == "BLOB_MISSING":
                return None
            raise

    def get(self, grant: str, digest: str, size_max: int) -> bytes:
        """The bytes of a blob, verified.

        Raises:
            RemoteError: also ``PARCEL_TOO_LARGE`` when it has more than ``size_max`` bytes, before
                they are read; ``BLOB_CORRUPT`` when they are not those of the digest.
        """

        def read(response: http.client.HTTPResponse) -> bytes:
            body = response.read(_length(response, digest, size_max))
            _check(digest, hashlib.sha256(body).hexdigest())
            return body

        return self._exchange("GET", f"/blobs/{digest}", grant, {}, read)

    def get_range(self, grant: str, digest: str, start: int, count: int) -> bytes:
        """``count`` bytes from ``start``, fewer at the end; verified by the store, not here."""
        headers = {"Range": f"bytes={start}-{start + count - 1}"}

        def read(response: http.client.HTTPResponse) -> bytes:
            return response.read(_length(response, digest, count))

        return self._exchange("GET", f"/blobs/{digest}", grant, headers, read)

    def get_to_file(self, grant: str, digest: str, path: pathlib.Path | str, size_max: int) -> int:
        """Write a blob to a file and give its size; the file appears only whole and verified."""
        path = pathlib.Path(path)
        partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}")

        def read(response: http.client.HTTPResponse) -> int:
            left = length = _length(response, digest, size_max)
            hasher = hashlib.sha256()
            buffer = memoryview(bytearray(min(PIECE_BYTES, max(length, 1))))
            with partial.open("wb") as file:
                while left:
                    size = response.readinto(buffer[: min(len(buffer), left)])
                    if not size:
                        raise http.client.IncompleteRead(b"", left)
                    hasher.update(buffer[:size])
                    file.write(buffer[:size])
                    left -= size
            response.read(0)  # an empty body is over only when it is read
            _check(digest, hasher.hexdigest())
            os.replace(partial, path)
            return length

        try:
            return self._exchange("GET", f"/blobs/{digest}", grant, {}, read)
        finally:
            partial.unlink(missing_ok=True)

    def pin(self, grant: str, digest: str, owner: str, until_ms: int) -> None:
        """Keep a blob for ``owner`` until a time (ms since the epoch); 0 unpins. A put grant."""
        body = json.dumps({"digest": digest, "owner": owner, "until_ms": until_ms}).encode()
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
        self._exchange("POST", "/pins", grant, headers, _done, lambda: iter((body,)))

    def health(self) -> dict[str, Any]:
        """How full the store is: ``status``, ``blobs``, ``used_bytes``, ``bytes_max``."""

        def read(response: http.client.HTTPResponse) -> dict[str, Any]:
            found: dict[str, Any] = json.loads(response.read(_JSON_BYTES_MAX))
            return found

        return self._exchange("GET", "/health", "", {}, read)

    # ------------------------------------------------------------ requests

    def _take(self) -> tuple[_Connection, bool]:
        """A connection, and whether it has served before."""
        with self._lock:
            if self._process != os.getpid():  # after a fork the connections are the parent's
                self._idle, self._process = [], os.getpid()
            if self._idle:
                return self._idle.pop(), True
        return _Connection(self._host, self._port, self._timeout_s, self._public), False

    def _give_back(self, connection: _Connection) -> None:
        with self._lock:
            if connection.sock is not None and len(self._idle) < CONNECTIONS_KEPT:
                self._idle.append(connection)
                return
        connection.close()

    def _exchange(
        self,
        method: str,
        path: str,
        grant: str,
        headers: dict[str, str],
        read: Callable[[http.client.HTTPResponse], Answer],
        make_pieces: Callable[[], Iterator[bytes | memoryview]] | None = None,
    ) -> Answer:
        if grant:
            headers["Authorization"] = f"Grant {grant}"
        is_last = False
        while True:
            connection, is_used = self._take()
            try:
                answer = _request(connection, method, path, headers, read, make_pieces)
            except RemoteError:
                self._give_back(connection)
                raise
            except (*_STALE, http.client.IncompleteRead) as error:
                connection.close()
                # A kept connection may have been closed by the store: that costs no attempt. A
                # body that breaks off may be a blob found damaged: ask again to hear it said. An
                # answer may be lost with its connection: the request may have been carried out.
                if not is_used:
                    if is_last:
                        raise self._down(error) from None
                    is_last = True
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                raise self._down(error) from None
            except BaseException:
                connection.close()
                raise
            else:
                self._give_back(connection)
                return answer

    def _down(self, error: Exception) -> RemoteError:
        told = str(error) or type(error).__name__
        return RemoteError("STORE_DOWN", f"the store at {self.address} does not answer: {told}")


def _request(
    connection: _Connection,
    method: str,
    path: str,
    headers: dict[str, str],
    read: Callable[[http.client.HTTPResponse], Answer],
    make_pieces: Callable[[], Iterator[bytes | memoryview]] | None,
) -> Answer:
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    has_sent_all = True
    if make_pieces is not None:
        # A refusal comes before the body is read: stop sending when the answer is there.
        with contextlib.suppress(*_BROKEN):
            for piece in make_pieces():
                if len(piece) == PIECE_BYTES and _has_answered(connection):
                    has_sent_all = False
                    break
                connection.send(piece)
    response = connection.getresponse()
    try:
        if response.status >= 400:
            raise _refusal(response)
        answer = read(response)
        if not response.isclosed():  # a body longer than was read of it
            raise http.client.IncompleteRead(b"")
        return answer
    finally:
        if not has_sent_all or not response.isclosed():
            response.close()
            connection.close()


def _has_answered(connection: _Connection) -> bool:
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _refusal(response: http.client.HTTPResponse) -> RemoteError:
    """What the store said, as the exception that it is here."""
    body = response.read(_JSON_BYTES_MAX)
    try:
        told = json.loads(body)
        code, message, hint = str(told["code"]), str(told["message"]), str(told["hint"])
        if code in CODES:
            return RemoteError(code, message, hint)
    except (ValueError, KeyError, TypeError):
        pass
    # HEAD has no body: its status says which code is meant.
    code = {401: "UNAUTHORISED", 403: "FORBIDDEN", 404: "BLOB_MISSING", 410: "BLOB_CORRUPT"}.get(
        response.status, "STORE_DOWN"
    )
    return RemoteError(code, f"the store answered {response.status} {response.reason}")


def _length(response: http.client.HTTPResponse, digest: str, size_max: int) -> int:
    length = response.length
    if length is None:
        raise http.client.IncompleteRead(b"")
    if length > size_max:
        raise RemoteError(
            "PARCEL_TOO_LARGE",
            f"blob {digest} has {length} bytes; {size_max} are accepted here",
            "raise the limit of the call, or fetch it to a file",
        )
    return length


def _check(digest: str, found: str) -> None:
    if found != digest:
        raise RemoteError("BLOB_CORRUPT", f"the bytes of {digest} arrived with digest {found}")


def _done(response: http.client.HTTPResponse) -> None:
    response.read(_JSON_BYTES_MAX)


def _digest_of_file(file: BinaryIO) -> str:
    hasher = hashlib.sha256()
    for piece in iter(lambda: file.read(PIECE_BYTES), b""):
        hasher.update(piece)
    return hasher.hexdigest()


def _cut(view: memoryview) -> Iterator[memoryview]:
    for at in range(0, len(view), PIECE_BYTES):
        yield view[at : at + PIECE_BYTES]
