"""One HTTP request with JSON, by the standard library alone: time-outs, TLS that is verified.

Each request has a connection of its own: there are few, and none can find a dead one.
"""

import http.client
import ipaddress
import json
import os
import pathlib
import ssl
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gristmill.ledger.payments.interface import BackendDownError, BackendRefusedError
from gristmill.wire.errors import RemoteError

ANSWER_BYTES_MAX = 4 << 20
SECRET_BYTES_MAX = 64 << 10


class Server:
    """Where a backend answers.

    Args:
        url: ``https://host[:port][/path]``; plain ``http`` on loopback only.
        headers: of every request: its credential.
        timeout_s: of a whole request.
        authority: a file with the certificate that signs the server's; by default the system's.

    Raises:
        RemoteError: ``INVALID_SPEC`` or ``NOT_LOOPBACK``, naming the address.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        timeout_s: float,
        authority: pathlib.Path | None = None,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RemoteError("INVALID_SPEC", f"{url!r} is no address; write it as https://host")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise RemoteError(
                "NOT_LOOPBACK",
                f"{url}: a credential would travel in clear; plain http is for loopback only",
                "use https://, with the server's certificate as 'authority' if it is its own",
            )
        self.url = url.rstrip("/")
        self._host, self._port = parts.hostname, parts.port
        self._path = parts.path.rstrip("/")
        self._headers = {**headers, "Accept": "application/json"}
        self._timeout_s = timeout_s
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = ssl.create_default_context(cafile=str(authority) if authority else None)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any, bytes]:
        """Status, JSON and bytes of the answer; decimals in JSON are text, never floats.

        Raises:
            BackendDownError: no whole answer in time; whether the request was done is not known.
        """
        deadline = time.monotonic() + self._timeout_s
        connection = self._connect(self._timeout_s)
        try:
            response = self._send(connection, method, path, body)
            raw = _read(connection, response, deadline)
        except (OSError, http.client.HTTPException) as error:
            raise BackendDownError(f"{self.url}: {error or type(error).__name__}") from None
        finally:
            connection.close()
        try:
            return response.status, json.loads(raw, parse_float=str) if raw else None, raw
        except (ValueError, RecursionError):
            if response.status < 500:
                told = f"{self.url}{path} did not answer in JSON (status {response.status})"
                raise BackendRefusedError(told) from None
            return response.status, None, raw

    def stream(self, path: str, is_stopping: Callable[[], bool], look_s: float) -> Iterator[Any]:
        """JSON lines of an answer that does not end; looks every ``look_s`` whether to stop.

        Raises:
            BackendDownError: the connection broke or was refused.
        """
        connection = self._connect(self._timeout_s)
        try:
            response = self._send(connection, "GET", path, None)
            if response.status != 200:
                raise BackendDownError(f"{self.url}{path}: status {response.status}")
            if connection.sock is not None:
                connection.sock.settimeout(look_s)
            pending = b""
            while not is_stopping():
                try:
                    more = response.read1(64 << 10)
                except TimeoutError:
                    # A response that timed out can be read no more: a new one goes on from here.
                    return
                if not more:
                    return
                *lines, pending = (pending + more).split(b"\n")
                if len(pending) > ANSWER_BYTES_MAX:
                    raise BackendDownError(f"{self.url}{path}: a line without an end")
                for line in lines:
                    if line.strip():
                        yield json.loads(line, parse_float=str)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BackendDownError(f"{self.url}: {error or type(error).__name__}") from None
        finally:
            connection.close()

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=timeout_s, context=self._tls
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)

    def _send(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any
    ) -> http.client.HTTPResponse:
        encoded = None if body is None else json.dumps(body).encode()
        headers = dict(self._headers)
        if encoded is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, self._path + path, encoded, headers)
        return connection.getresponse()


def _read(
    connection: http.client.HTTPConnection, response: http.client.HTTPResponse, deadline: float
) -> bytes:
    """The body; a server that drips its bytes is cut off at the deadline."""
    chunks: list[bytes] = []
    size = 0
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        if connection.sock is not None:
            connection.sock.settimeout(left)
        chunk = response.read1(64 << 10)
        if not chunk:
            return b"".join(chunks)
        size += len(chunk)
        if size > ANSWER_BYTES_MAX:
            raise http.client.HTTPException(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
        chunks.append(chunk)


def is_loopback(host: str) -> bool:
    """Whether only this machine answers there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_secret(path: pathlib.Path, what: str) -> bytes:
    """The bytes of a file that only its owner can read.

    Raises:
        RemoteError: ``UNAUTHORISED`` naming the file, when it is not there or others can read it.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise RemoteError(
            "UNAUTHORISED", f"{path} ({what}) cannot be read: {error.strerror}", f"make {path}"
        ) from None
    with os.fdopen(handle, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        secret = file.read(SECRET_BYTES_MAX + 1)
    if mode & 0o077:
        raise RemoteError(
            "UNAUTHORISED",
            f"{path} ({what}) has mode {mode & 0o777:04o}: others can read it; it must be 0600",
            f"chmod 600 {path}",
        )
    if not 0 < len(secret.strip()) <= SECRET_BYTES_MAX:
        raise RemoteError("UNAUTHORISED", f"{path} ({what}) is empty, or over {SECRET_BYTES_MAX}")
    return secret
