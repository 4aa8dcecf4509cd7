"""JSON-RPC over HTTP to one URL, by the standard library: a deadline, a size, nothing followed.

web3's own provider has a time-out for each read and takes an answer of any size; here a server that
drips its bytes, or never ends, is cut off. A connection is kept for a minute at most, so that
whoever asks who is there (``on_connect``) asks again.
"""

import contextlib
import http.client
import itertools
import json
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gristmill.wire.errors import RemoteError

ANSWER_BYTES_MAX = 16 << 20  #: of one answer; logs of a full range are the longest
CONNECTION_S = 60.0  #: how long one connection is used
TIMEOUT_S = 15.0  #: of one question and its whole answer


class RpcError(Exception):
    """The other side understood, and refuses: JSON-RPC's code, words and, for a revert, data."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        self.code, self.message, self.data = code, message, data
        super().__init__(f"{message} ({code})")


@contextlib.contextmanager
def _cut_after(sock: socket.socket, timeout_s: float) -> Iterator[None]:
    """Within it a connection lives so long, however its bytes come: a byte now and then, too."""
    is_over = threading.Event()

    def cut() -> None:
        is_over.set()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # below TLS, which another thread reads

    timer = threading.Timer(timeout_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException):
        if is_over.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
    if is_over.is_set():  # what was read ends where it was cut
        raise TimeoutError


class Endpoint:
    """One URL that is asked.

    Args:
        url: ``http://`` or ``https://``; its path may be a secret and is never shown.
        timeout_s: of one question and its whole answer.
        on_connect: called on each new connection, before its first question, with a function that
            asks on that connection.

    Attributes:
        shown: the URL without its path, for messages.

    Raises:
        RemoteError: ``INVALID_SPEC``, for what is no such URL.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float = TIMEOUT_S,
        on_connect: Callable[[Callable[[str, Sequence[Any]], Any]], None] | None = None,
    ) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            parts = urllib.parse.urlsplit("")
        if parts.scheme not in ("http", "https") or not self._host:
            raise RemoteError(
                "INVALID_SPEC",
                f"{url.partition('?')[0]!r:.60} is no address of an RPC",
                "write it as https://host[:port]/path or http://127.0.0.1:8545",
            )
        if parts.username is not None:
            raise RemoteError(
                "INVALID_SPEC",
                f"the address of the RPC at {self._host} has a user or a password in it",
                "use the provider's address with a key in its path",
            )
        self.shown = f"{parts.scheme}://{parts.netloc}"
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._timeout_s = timeout_s
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._on_connect = on_connect
        self._connection: http.client.HTTPConnection | None = None
        self._until = 0.0
        self._ids = itertools.count(1)

    def ask(self, method: str, params: Sequence[Any]) -> Any:
        """The ``result`` of one question; asked again once where a kept connection was dead.

        Raises:
            RpcError: the other side refuses.
            RemoteError: ``CHAIN_DOWN``: no whole answer in time, or one that is no JSON-RPC.
        """
        if self._connection is not None and (
            self._connection.sock is None or time.monotonic() > self._until
        ):
            self.close()  # the other side ended it with its last answer, or it is old
        if self._connection is not None:
            try:
                return self._ask(method, params)
            except (http.client.RemoteDisconnected, ConnectionError):
                self.close()  # it was closed while nobody asked
            except (OSError, http.client.HTTPException) as error:
                raise self._down(error) from None
        try:
            self._connect()
            if self._on_connect is not None:
                self._on_connect(self._ask)
            return self._ask(method, params)
        except (OSError, http.client.HTTPException) as error:
            raise self._down(error) from None
        except RemoteError:
            self.close()
            raise

    def close(self) -> None:
        """Forget the connection; the next question makes one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> None:
        if self._tls is not None:
            self._connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout_s, context=self._tls
            )
        else:
            self._connection = http.client.HTTPConnection(
                self._host, self._port, timeout=self._timeout_s
            )
        self._until = time.monotonic() + CONNECTION_S

    def _ask(self, method: str, params: Sequence[Any]) -> Any:
        assert self._connection is not None
        number = next(self._ids)
        asked = {"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)}
        if self._connection.sock is None:
            self._connection.connect()
        with _cut_after(self._connection.sock, self._timeout_s):
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            self._connection.request("POST", self._path, json.dumps(asked).encode(), headers)
            response = self._connection.getresponse()
            raw = self._read(response)
        try:
            answer = json.loads(raw)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or answer.get("id") not in (number, None):
            raise self._odd(f"{method} got status {response.status} and no JSON-RPC: {raw[:60]!r}")
        error = answer.get("error")
        if error is not None:
            if not isinstance(error, dict):
                raise self._odd(f"{method} got an error that is no object: {error!r:.60}")
            code = error.get("code")
            told = str(error.get("message", ""))[:2000]
            raise RpcError(code if type(code) is int else 0, told, error.get("data"))
        if response.status != 200 or "result" not in answer:
            raise self._odd(f"{method} got status {response.status} and neither result nor error")
        return answer["result"]

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        """The body, at most ``ANSWER_BYTES_MAX`` of it."""
        raw = response.read(ANSWER_BYTES_MAX + 1)
        response.close()  # else the connection takes no next question
        if len(raw) > ANSWER_BYTES_MAX:
            raise self._odd(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
        return raw

    def _odd(self, told: str) -> RemoteError:
        self.close()
        return RemoteError("CHAIN_DOWN", f"{self.shown}: {told}")

    def _down(self, error: Exception) -> RemoteError:
        self.close()
        if isinstance(error, TimeoutError):
            told = f"no whole answer within {self._timeout_s:g} s"
        else:
            told = str(getattr(error, "strerror", None) or error) or type(error).__name__
        return RemoteError("CHAIN_DOWN", f"{self.shown}: {told}")
