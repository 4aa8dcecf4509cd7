"""Stands in front of a real store and loses, repeats or delays every request once.

HTTP runs over a stream, which loses nothing in its middle: what a process can see is a connection
that ends before the answer, a request that is carried out twice, and an answer that comes late.
"""

import http.client
import pathlib
import shutil
import socket
import socketserver
import tempfile
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler
from typing import Literal, cast

Fault = Literal["none", "drop", "duplicate", "delay"]
TIMEOUT_S = 60.0


class HttpFaults:
    """A context manager. Every connection has a thread of this process.

    ``drop``: the first time that a request is made it is carried out, and the connection ends
    without an answer. ``duplicate``: it is carried out twice, and the second answer is given.
    ``delay``: it waits for ``late_s`` first.

    Args:
        upstream: path of the real store's socket. It need not be there yet.

    Attributes:
        address: for the store's clients.
        kinds, hit: requests that came, and those that were lost, doubled or late; by method.
    """

    def __init__(self, upstream: pathlib.Path, fault: Fault, late_s: float) -> None:
        self.upstream, self.fault, self.late_s = upstream, fault, late_s
        self.kinds: Counter[str] = Counter()
        self.hit: Counter[str] = Counter()
        self._said: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self.is_closing = threading.Event()
        self._folder = tempfile.mkdtemp(prefix="chaos-")  # mode 0700
        self.address = f"unix://{self._folder}/store"
        self._server = _Server(f"{self._folder}/store", self)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> "HttpFaults":
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
        shutil.rmtree(self._folder, ignore_errors=True)

    def meet(self, method: str, path: str) -> Fault:
        """What happens to this request."""
        with self._lock:
            self.kinds[method] += 1
            is_first = (method, path) not in self._said
            self._said.add((method, path))
            if self.fault == "none" or (self.fault == "drop" and not is_first):
                return "none"
            self.hit[method] += 1
            return self.fault


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str, faults: HttpFaults) -> None:
        self.faults = faults
        super().__init__(path, _Request)


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass(self) -> None:
        faults = cast(_Server, self.server).faults
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = faults.meet(self.command, self.path)
        if fault == "delay":
            faults.is_closing.wait(faults.late_s)
        for _ in range(2 if fault == "duplicate" else 1):
            status, headers, answer = self._forward(faults.upstream, body)
        if fault == "drop":
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("connection", "server", "date"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_HEAD = do_PUT = do_POST = _pass  # noqa: N815

    def _forward(self, path: pathlib.Path, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection("store", timeout=TIMEOUT_S)
        upstream.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        upstream.sock.settimeout(TIMEOUT_S)
        upstream.sock.connect(str(path))
        try:
            upstream.request(self.command, self.path, body, dict(self.headers.items()))
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def address_string(self) -> str:
        return "store"

    def log_message(self, *_: object) -> None:
        """Nothing: the test says what it saw."""
