"""A real EVM node (anvil) with accounts that have coin, for as long as a session of tests runs.

``npm ci --ignore-scripts --prefix contracts`` installs it, with forge and solc. Where npm's
packages are not installed it is skipped with the reason, under CI=true it fails. Each test has the
chain as it was at first: what it did is taken back.
"""

import collections
import contextlib
import http.client
import json
import pathlib
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

CONTRACTS = pathlib.Path(__file__).parents[2] / "contracts"
PACKAGES = CONTRACTS / "node_modules" / "@foundry-rs"
ANVIL = PACKAGES / "anvil-linux-amd64" / "bin" / "anvil"
FORGE = PACKAGES / "forge-linux-amd64" / "bin" / "forge"
CHAIN_ID = 31337
#: a runner that is killed leaves no node behind
_DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
_OPTIONS = ("--host", "127.0.0.1", "--port", "0", "--hardfork", "cancun")
_LISTENS = re.compile(r"Listening on ([0-9.]+):(\d+)")
_ACCOUNT = re.compile(r"\(\d\) (0x[0-9a-fA-F]{40}) ")
_SECRET = re.compile(r"\(\d\) (0x[0-9a-f]{64})$")


class Person(NamedTuple):
    """An account with coin: ``address`` 20 bytes, ``secret`` 32."""

    address: bytes
    secret: bytes


class ChainRig:
    """Attributes: ``url`` of its RPC, ``people`` (ten with 10,000 coins each), ``pid``."""

    def __init__(self, *options: str) -> None:
        self._process = subprocess.Popen(
            [
                *_DIES_WITH_US,
                str(ANVIL),
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--hardfork",
                "cancun",
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        said: list[str] = []
        for line in self._process.stdout:
            said.append(line.rstrip())
            if listens := _LISTENS.search(line):
                self.port = int(listens[2])
                break
        else:
            raise AssertionError(f"anvil ended with {self._process.wait()}: {said[-5:]}")
        self.url = f"http://127.0.0.1:{self.port}"
        addresses = [found[1] for line in said if (found := _ACCOUNT.match(line))]
        secrets = [found[1] for line in said if (found := _SECRET.match(line))]
        self.people = [
            Person(bytes.fromhex(address[2:]), bytes.fromhex(secret[2:]))
            for address, secret in zip(addresses, secrets, strict=True)
        ]
        assert self.people, said
        #: what it said last; it says a line for each request
        self.said: collections.deque[str] = collections.deque(maxlen=100)
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _drain(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line)

    def ask(self, method: str, *params: Any) -> Any:
        """The result of a JSON-RPC method, by no code of ours."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            asked = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/", json.dumps(asked), headers)
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        assert "error" not in answer, answer
        return answer["result"]

    def mine(self, blocks: int = 1, seconds: int = 0) -> None:
        """Empty blocks, the first ``seconds`` after the last one."""
        if seconds:
            self.ask("evm_increaseTime", seconds)
        self.ask("anvil_mine", hex(blocks))

    def close(self) -> None:
        """End it by its pid."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


def missing() -> str:
    """What keeps anvil from running here; empty for nothing."""
    if not ANVIL.is_file():
        return "anvil is not installed: npm ci --ignore-scripts --prefix contracts"
    return ""


@contextlib.contextmanager
def chain_rig(*options: str) -> Iterator[ChainRig]:
    """Started, and ended with the session, or with a test that does to it what cannot be undone."""
    if lack := missing():
        pytest.skip(lack)
    rig = ChainRig(*options)
    try:
        yield rig
    finally:
        rig.close()


@contextlib.contextmanager
def taken_back(rig: ChainRig) -> Iterator[ChainRig]:
    """The same chain, on which nothing will have happened."""
    snapshot = rig.ask("evm_snapshot")
    try:
        yield rig
    finally:
        assert rig.ask("evm_revert", snapshot)
