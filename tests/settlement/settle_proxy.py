"""Between a settlement and its RPC: drops, delays, duplicates and lies, by a seed."""

import http.client
import http.server
import json
import random
import threading
import time
from typing import Any

LATE_S = 0.7  #: longer than the settlement of the tests waits


class Proxy:
    """One address that stands for an RPC. ``percent``: of requests that something happens to.

    Attributes:
        told: how often each fault was made.
    """

    def __init__(self, port: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.percent = 0
        self.told: dict[str, int] = {}
        self._port = port
        self._lock = threading.Lock()
        self._mine = threading.local()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # 40 ms for each answer
            wbufsize = -1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = proxy.answer(body)
                if answer is None:
                    self.close_connection = True
                    return
                try:
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                    self.wfile.flush()
                except OSError:
                    self.close_connection = True  # it waited no longer, or was killed

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _pick(self, method: str) -> str:
        faults = ["drop before", "drop after", "late", "twice"]
        if method == "eth_getLogs":
            faults += ["no events"] * 4
        elif method in ("eth_getTransactionReceipt", "eth_getTransactionByHash"):
            faults += ["not found"] * 8
        elif method == "eth_getTransactionCount":
            faults += ["old nonce"] * 4
        elif method == "eth_getBlockByNumber":
            faults += ["old head"] * 4
        with self._lock:
            if self.random.random() * 100 >= self.percent:
                return ""
            fault = self.random.choice(faults)
            if fault == "late" and self.random.random() < 0.8:
                return ""  # each costs time
            self.told[fault] = self.told.get(fault, 0) + 1
            return fault

    def answer(self, body: bytes) -> bytes | None:
        """What the settlement gets; None: the connection ends."""
        asked = json.loads(body)
        fault = self._pick(asked["method"])
        if fault == "drop before":
            return None
        if fault == "old head" and asked["params"][0] == "latest":
            newest = int(json.loads(self._forward(body))["result"]["number"], 16)
            asked["params"][0] = hex(max(0, newest - 2))
            body = json.dumps(asked).encode()
        answer = self._forward(body)
        if fault == "twice":
            answer = self._forward(body)
        if fault == "late":
            time.sleep(LATE_S)
        if fault == "drop after":
            return None
        told = json.loads(answer)
        if fault == "no events" and "result" in told:
            told["result"] = []
        elif fault == "not found":
            told["result"] = None
        elif fault == "old nonce" and "result" in told:
            told["result"] = hex(max(0, int(told["result"], 16) - 1))
        else:
            return answer
        return json.dumps(told).encode()

    def _forward(self, body: bytes) -> bytes:
        """On a connection of the thread's own."""
        known: http.client.HTTPConnection | None = getattr(self._mine, "connection", None)
        connection = known or http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        self._mine.connection = connection
        connection.request("POST", "/", body, {"Content-Type": "application/json"})
        return connection.getresponse().read()
