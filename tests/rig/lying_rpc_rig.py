"""An RPC that lies: a real HTTP server on loopback whose answers a test writes."""

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

Answer = Callable[[str, Any], Any]  #: (method, params) -> result, an ``Error`` or ``Raw`` bytes


class Raw(bytes):
    """Bytes that are the whole body."""


class Error(dict[str, Any]):
    """A JSON-RPC error object."""


class Liar(http.server.ThreadingHTTPServer):
    """Attributes: ``url``; ``asked``: methods in order; ``answer``: what a test wants said.

    ``status``: of every answer. ``connections``: how many were made. ``is_closing``: after each
    answer.
    """

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.asked: list[str] = []
        self.status = 200
        self.connections = 0
        self.is_closing = False
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Liar

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(told["method"])
        found = self.server.answer(told["method"], told["params"])
        if isinstance(found, Raw):
            body = bytes(found)
        elif isinstance(found, Error):
            body = json.dumps({"jsonrpc": "2.0", "id": told["id"], "error": found}).encode()
        else:
            body = json.dumps({"jsonrpc": "2.0", "id": told["id"], "result": found}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        if self.server.is_closing:
            self.send_header("Connection", "close")
        self.end_headers()
        with contextlib.suppress(OSError):  # who asked may have gone
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a test looks at ``asked``."""


@contextlib.contextmanager
def liar(answer: Answer) -> Iterator[Liar]:
    """Started, and ended with the test."""
    server = Liar(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
