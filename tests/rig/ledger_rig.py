"""The real ledger process and a DEALER to it."""

import os
import pathlib
import subprocess
import sys
from typing import Any

import msgspec
import zmq

from gristmill.wire.client import BalanceAnswer, UsageRow
from gristmill.wire.frames import encode
from gristmill.wire.ledger import (
    Acked,
    AskBalance,
    AskUsage,
    LedgerAnswer,
    LedgerRefused,
    Ping,
    Post,
    decode_from_ledger,
)

TIMEOUT_MS = 20_000


class LedgerProcess:
    """The real process and a DEALER to it."""

    def __init__(self, state: pathlib.Path, run: pathlib.Path) -> None:
        self.state = state
        self.address = f"ipc://{run}/ledger"
        self.process: subprocess.Popen[str] | None = None
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 10)
        self._request = 0

    def start(self, *more: str) -> "LedgerProcess":
        readable, writable = os.pipe()
        command = [sys.executable, "-P", "-m", "gristmill.ledger", "--state", str(self.state)]
        command += ["--listen", self.address, "--ready-fd", str(writable), *more]
        self.process = subprocess.Popen(
            command, pass_fds=[writable], stderr=subprocess.PIPE, text=True
        )
        os.close(writable)
        said = os.read(readable, 64)
        os.close(readable)
        assert said == b"READY\n", self.process.communicate(timeout=10)
        self.socket.connect(self.address)
        return self

    def send(self, message: msgspec.Struct) -> None:
        self.socket.send(encode(message))

    def receive(self) -> Acked | LedgerAnswer | LedgerRefused:
        message: Acked | LedgerAnswer | LedgerRefused = decode_from_ledger.decode(
            self.socket.recv()
        )
        return message

    def ask(self, message: msgspec.Struct) -> Any:
        self.send(message)
        return self.receive()

    def post(self, first: int, *entries: Any, broker: str = "b") -> Acked:
        answer = self.ask(Post(broker, first, list(entries)))
        assert isinstance(answer, Acked), answer
        return answer

    def applied(self, broker: str = "b") -> int:
        answer = self.ask(Ping(broker))
        assert isinstance(answer, Acked)
        return answer.sequence

    def balance(self, tenant: str = "") -> BalanceAnswer:
        answer = self.ask(AskBalance(5, tenant))
        assert isinstance(answer, LedgerAnswer), answer
        return msgspec.msgpack.decode(answer.body, type=BalanceAnswer)

    def usage(self, by: str, tenant: str = "", ref: str = "") -> list[UsageRow]:
        answer = self.ask(AskUsage(6, tenant, by, ref))  # type: ignore[arg-type]
        assert isinstance(answer, LedgerAnswer), answer
        return msgspec.msgpack.decode(answer.body, type=list[UsageRow])

    def accounts(self) -> dict[str, tuple[int, int]]:
        """(posted, held) by account."""
        found = self.balance()
        assert found.sum_ucredits == 0
        return {row.name: (row.posted_ucredits, row.held_ucredits) for row in found.accounts}

    def end(self) -> tuple[int, str]:
        assert self.process is not None
        self.process.terminate()
        _, told = self.process.communicate(timeout=20)
        return self.process.returncode, told

    def kill(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.communicate(timeout=20)

    def close(self) -> None:
        self.kill()
        self.socket.close(0)
        self._context.term()
