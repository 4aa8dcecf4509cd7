"""A key that signs grants, and stores: in this process, and as the real process."""

import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from nacl.signing import SigningKey

from gristmill.store.address import listen
from gristmill.store.client import StoreClient
from gristmill.store.local import LocalStore
from gristmill.store.server import StoreServer
from gristmill.wire.grants import Grant, sign_grant

GrantMaker = Callable[..., str]


@pytest.fixture(scope="session")
def key() -> SigningKey:
    return SigningKey(bytes(range(32)))


@pytest.fixture(scope="session")
def grant(key: SigningKey) -> GrantMaker:
    def make(
        verb: str,
        tenant: str = "ann",
        digest: str = "*",
        bytes_max: int = 1 << 40,
        expires_ms: int = 0,
        signer: SigningKey = key,
    ) -> str:
        until = expires_ms or time.time_ns() // 1_000_000 + 600_000
        fields = Grant(tenant, verb, digest, bytes_max, until, b"n" * 8)  # type: ignore[arg-type]
        return sign_grant(fields, signer)

    return make


@pytest.fixture
def run_folder() -> Iterator[pathlib.Path]:
    # tmp_path may be too long for the path of a socket
    with tempfile.TemporaryDirectory(prefix="gm-") as folder:
        yield pathlib.Path(folder)


class Served(NamedTuple):
    """A server in this process."""

    server: StoreServer
    store: LocalStore
    address: str
    path: str
    client: StoreClient


@pytest.fixture
def served(tmp_path: pathlib.Path, run_folder: pathlib.Path, key: SigningKey) -> Iterator[Served]:
    store = LocalStore(tmp_path / "store", 32 << 20, lambda: time.time_ns() // 1_000_000)
    listener, address = listen(f"unix://{run_folder}/store")
    server = StoreServer(
        listener, store, key.verify_key, lambda: time.time_ns() // 1_000_000, 5.0, 8
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    with StoreClient(address, 10.0) as client:
        yield Served(server, store, address, f"{run_folder}/store", client)
    server.shutdown()
    thread.join()
    server.server_close()
    store.close()


class StoreProcess:
    """The real process; ``start`` returns when it says READY."""

    def __init__(self, state: pathlib.Path, listen: str, key: str) -> None:
        self.arguments = ["--state", str(state), "--listen", listen, "--key", key]
        self.address = listen
        self.process: subprocess.Popen[str] | None = None

    def start(self, *more: str) -> "StoreProcess":
        readable, writable = os.pipe()
        command = [sys.executable, "-P", "-m", "gristmill.store", *self.arguments, *more]
        self.process = subprocess.Popen(
            [*command, "--ready-fd", str(writable)],
            pass_fds=[writable],
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(writable)
        said = os.read(readable, 64)
        os.close(readable)
        assert said == b"READY\n", self.process.communicate(timeout=10)
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def end(self) -> tuple[int, str]:
        """SIGTERM; exit code and stderr."""
        assert self.process is not None
        self.process.terminate()
        _, told = self.process.communicate(timeout=20)
        return self.process.returncode, told

    def kill(self) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=20)


@pytest.fixture
def process(
    tmp_path: pathlib.Path, run_folder: pathlib.Path, key: SigningKey
) -> Iterator[StoreProcess]:
    made = StoreProcess(
        tmp_path / "state", f"unix://{run_folder}/store", bytes(key.verify_key).hex()
    )
    yield made
    if made.process is not None:
        made.kill()
