"""Two real Lightning nodes (LDK) with a channel behind LND's REST, for as long as a test runs.

tests/rig/lightning/ is the Node process; ``npm ci --prefix tests/rig/lightning`` installs what it
needs. Without Node it is skipped with the reason, under CI=true it fails.
"""

import contextlib
import http.client
import json
import os
import pathlib
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

FOLDER = pathlib.Path(__file__).parent / "lightning"


class LightningRig:
    """Attributes: ``url`` and ``macaroon`` (hex) of the payee's LND interface."""

    def __init__(self) -> None:
        self.macaroon = secrets.token_hex(32)
        self._process = subprocess.Popen(
            ["node", "server.mjs", "--macaroon", self.macaroon],
            cwd=FOLDER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", "")},
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line[:1] == b"{":  # before it the bindings say their version
                self.port = int(json.loads(line)["port"])
                self.url = f"http://127.0.0.1:{self.port}"
                return
        raise AssertionError(f"the Lightning nodes ended with {self._process.wait()}")

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """As somebody else with the macaroon would."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(method, path, sent, {"Grpc-Metadata-macaroon": self.macaroon})
            response = connection.getresponse()
            answer = json.loads(response.read())
            assert response.status == 200, answer
            return answer
        finally:
            connection.close()

    def pay(self, bolt11: str, msat: int = 0) -> str:
        """The other node pays over the channel; the preimage in hex, empty when it failed."""
        asked = {"payment_request": bolt11, "amt_msat": msat}
        return str(self.ask("POST", "/test/pay", asked).get("payment_preimage", ""))

    def close(self) -> None:
        """End it by its pid."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()  # its sign to end
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def missing() -> str:
    """What keeps the nodes from running here; empty for nothing."""
    if not shutil.which("node"):
        return "no Node on this host: apt-get install nodejs npm"
    if not (FOLDER / "node_modules" / "lightningdevkit").is_dir():
        return "lightningdevkit is not installed: npm ci --prefix tests/rig/lightning"
    return ""


@contextlib.contextmanager
def lightning_rig() -> Iterator[LightningRig]:
    """Started, and ended with the test."""
    if lack := missing():
        pytest.skip(lack)
    rig = LightningRig()
    try:
        yield rig
    finally:
        rig.close()
