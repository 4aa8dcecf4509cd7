"""The listener for callbacks: ``POST /callbacks/<backend>``, on loopback or a unix socket.

A reverse proxy with TLS goes before it where the backend is elsewhere. A callback is a hint: its
signature is checked over the raw body, then the invoice is looked up, and 200 is the answer only
after the ledger has committed what came of it; anything else makes the sender try again.
"""

import contextlib
import http.server
import json
import logging
import os
import socketserver
import threading
from collections.abc import Mapping
from typing import Any

from gristmill.ledger.payments.desk import RAW_BYTES_MAX, Desk
from gristmill.ledger.payments.http import is_loopback
from gristmill.ledger.payments.interface import CallbackRefusedError
from gristmill.wire.errors import RemoteError

log = logging.getLogger("gristmill.treasury.callbacks")

AT_ONCE_MAX = 64  #: connections; more are closed without an answer
READ_S = 10.0
_PREFIX = "/callbacks/"


class _TcpServer(http.server.ThreadingHTTPServer):
    request_queue_size = 256


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 256


class Callbacks:
    """See the module's text.

    Args:
        listen: ``http://127.0.0.1:PORT`` (0: the kernel's choice) or ``unix:///path``.
        desks: by name of their backend.
        look_up_s: for one callback, until its sender is told to come again.

    Raises:
        RemoteError: ``NOT_LOOPBACK`` or ``INVALID_SPEC``, naming the address.
    """

    def __init__(self, listen: str, desks: Mapping[str, Desk], look_up_s: float) -> None:
        self.counts = {"done": 0, "later": 0, "refused": 0}
        handler = _handler(self, desks, look_up_s)
        self._slots = threading.BoundedSemaphore(AT_ONCE_MAX)
        self._path = ""
        try:
            if listen.startswith("unix://"):
                self._path = listen.removeprefix("unix://")
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)
                self._server: Any = _UnixServer(self._path, handler)
                self.address = listen
            else:
                host, _, port = listen.removeprefix("http://").rpartition(":")
                if not is_loopback(host.strip("[]")):
                    raise RemoteError(
                        "NOT_LOOPBACK",
                        f"callbacks at {listen}: the listener is for loopback and unix sockets",
                        "listen on http://127.0.0.1:PORT and put a proxy with TLS before it",
                    )
                self._server = _TcpServer((host.strip("[]"), int(port)), handler)
                self.address = f"http://{host}:{self._server.server_port}"
        except (OSError, ValueError, OverflowError) as error:
            told = f"cannot listen for callbacks on {listen}: {error}"
            raise RemoteError("INVALID_SPEC", told, "write it as http://127.0.0.1:PORT") from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def enter(self) -> bool:
        """Whether one more may be served now."""
        return self._slots.acquire(blocking=False)

    def leave(self) -> None:
        """One is served."""
        self._slots.release()

    def close(self) -> None:
        """Take no more; what is being answered is not waited for."""
        self._server.shutdown()
        self._server.server_close()
        if self._path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)


def _handler(
    owner: Callbacks, desks: Mapping[str, Desk], look_up_s: float
) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = READ_S

        def address_string(self) -> str:
            return "local"

        def do_POST(self) -> None:
            if not owner.enter():
                self.close_connection = True
                return
            try:
                status, told = self._answer()
            except OSError:
                self.close_connection = True
                return
            finally:
                owner.leave()
            body = json.dumps({"told": told}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _answer(self) -> tuple[int, str]:
            desk = desks.get(self.path.removeprefix(_PREFIX))
            if desk is None or not self.path.startswith(_PREFIX):
                return 404, f"no payment backend here; {_PREFIX}NAME of {sorted(desks)}"
            size = self.headers.get("Content-Length", "")
            if not (size.isascii() and size.isdigit()):
                return 411, "a callback needs its Content-Length"
            if int(size) > RAW_BYTES_MAX:
                return 413, f"a callback of {size} bytes; the limit is {RAW_BYTES_MAX}"
            body = self.rfile.read(int(size))
            if len(body) < int(size):
                return 400, "the callback is cut short"
            headers = {name.lower(): value for name, value in self.headers.items()}
            try:
                backend_id = desk.backend.verify_callback(headers, body)
            except CallbackRefusedError as error:
                owner.counts["refused"] += 1
                if owner.counts["refused"].bit_count() == 1:  # 1, 2, 4, ...: no flood
                    log.error("ALARM refused callbacks=%d: %s", owner.counts["refused"], error)
                return 401, str(error)
            verdict = desk.callback(backend_id, body, look_up_s)
            owner.counts[verdict] += 1
            if verdict == "later":
                return 503, "it is not on disk yet; send it again"
            return 200, "it is on disk"

        def log_message(self, format: str, *values: Any) -> None:
            pass

    return Handler
