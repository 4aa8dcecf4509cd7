"""The real registry process, a DEALER to its control socket, and nodes at its enrolment port."""

import contextlib
import io
import os
import pathlib
import select
import subprocess
import sys
from typing import Any, TypeVar
from unittest import mock

import msgspec
import zmq

from gristmill.cli.main import main
from gristmill.wire.frames import encode
from gristmill.wire.registry import (
    AskRows,
    Changes,
    Decide,
    Follow,
    IssueToken,
    NewToken,
    NodeRow,
    Record,
    RegistryAnswer,
    RegistryRefused,
    decode_from_registry,
)

TIMEOUT_MS = 20_000
T = TypeVar("T")


class Refused(Exception):  # noqa: N818 it is an answer
    """What the registry refused with."""

    def __init__(self, told: RegistryRefused) -> None:
        super().__init__(f"{told.code}: {told.message}\n{told.hint}")
        self.code = told.code


class RegistryProcess:
    """The real process, and operators of this host."""

    def __init__(self, state: pathlib.Path, run: pathlib.Path) -> None:
        self.state = state
        self.address = f"ipc://{run}/registry"
        self.enrolment = ""
        self.log = run / "registry.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._context = zmq.Context()
        self.socket = self.dealer()
        self._request = 0

    def dealer(self) -> "zmq.Socket[bytes]":
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL, 10)
        socket.connect(self.address)
        return socket

    def start(self, *more: str, enrolment: str = "tcp://127.0.0.1:*") -> "RegistryProcess":
        """Ready; again on the port that it had."""
        readable, writable = os.pipe()
        command = [sys.executable, "-P", "-m", "gristmill.broker.registry"]
        command += ["--state", str(self.state), "--control", self.address]
        command += ["--enrolment", self.enrolment or enrolment, "--ready-fd", str(writable), *more]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, pass_fds=[writable], stderr=log)
        os.close(writable)
        ready = select.select([readable], [], [], TIMEOUT_MS / 1_000)[0]
        said = os.read(readable, 64) if ready else b"nothing in time"
        os.close(readable)
        told = self.log.read_text()
        assert said == b"READY\n", told
        self.enrolment = told.rpartition("ready registry ")[2].split()[1]
        return self

    def ask(self, message: msgspec.Struct) -> RegistryAnswer:
        """Raises Refused; also what an earlier message without a number was refused with."""
        self._request += 1
        self.socket.send(encode(msgspec.structs.replace(message, request=self._request)))
        while True:
            answer = decode_from_registry.decode(self.socket.recv())
            if isinstance(answer, RegistryRefused) and answer.request in (0, self._request):
                raise Refused(answer)
            if isinstance(answer, RegistryAnswer) and answer.request == self._request:
                return answer

    def token(self, name: str = "mill", **more: Any) -> NewToken:
        fields = {"by": "ann", "tenant": "local", "node_class": "", **more}
        answer = self.ask(IssueToken(1, name=name, **fields))
        return msgspec.msgpack.decode(answer.body, type=NewToken)

    def decide(self, act: str, name: str = "mill", seen: int = 0, by: str = "ann") -> NodeRow:
        seen = seen or self.node(name).principal.version
        reason = "because" if act not in ("approve", "canary_right") else ""
        answer = self.ask(Decide(1, by, act, name, seen, reason))  # type: ignore[arg-type]
        return msgspec.msgpack.decode(answer.body, type=NodeRow)

    def _rows(self, what: str, kind: type[T], name: str) -> list[T]:
        found: list[T] = []
        after = 0
        while True:
            answer = self.ask(AskRows(1, what, after, name))  # type: ignore[arg-type]
            page = msgspec.msgpack.decode(answer.body, type=list[kind])  # type: ignore[valid-type]
            if not page:
                return found
            found += page
            after = getattr(page[-1], "number", 0) or page[-1].change  # type: ignore[attr-defined]

    def nodes(self, name: str = "") -> list[NodeRow]:
        return self._rows("nodes", NodeRow, name)

    def node(self, name: str = "mill") -> NodeRow:
        return self.nodes(name)[-1]

    def records(self, name: str = "") -> list[Record]:
        return self._rows("log", Record, name)

    def command(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """The real ``gristmill`` with these words; it must end with this code."""
        done = subprocess.run(
            self.argv(*words), env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        return done

    def inside(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """As ``command``, in this process: a third of a second faster."""
        out, err = io.StringIO(), io.StringIO()
        with mock.patch.dict(os.environ, self.environment):
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                found = main(list(words))
        assert found == code, f"{words}\n{out.getvalue()}\n{err.getvalue()}"
        return subprocess.CompletedProcess(words, found, out.getvalue(), err.getvalue())

    @staticmethod
    def argv(*words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "gristmill.cli.main", *words]

    @property
    def environment(self) -> dict[str, str]:
        more = {"GRISTMILL_REGISTRY": self.address, "GRISTMILL_STATE": str(self.state.parent)}
        return {**os.environ, **more}

    def documents(self, *words: str) -> list[Any]:
        """What ``--json`` prints."""
        lines = self.inside(*words, "--json").stdout.splitlines()
        return [msgspec.json.decode(line) for line in lines]

    def follow(self, known: int = 0) -> "Followed":
        return Followed(self, known)

    def end(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=20)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=20)
            self.process = None

    def close(self) -> None:
        self.kill()
        self._context.destroy(0)


class Followed:
    """What a broker knows that follows."""

    def __init__(self, registry: RegistryProcess, known: int) -> None:
        self.socket = registry.dealer()
        self.states: dict[str, str] = {}
        self.known = known
        self.pages = 0
        self.again()

    def again(self) -> None:
        """Say Follow, and take all that is told, page after page."""
        is_all = False
        while not is_all:
            self.socket.send(encode(Follow("b1", self.known)))
            is_all = self.take().is_all

    def take(self) -> Changes:
        message: Changes = decode_from_registry.decode(self.socket.recv())
        assert isinstance(message, Changes)
        self.pages += 1
        for principal in message.principals:
            self.states[principal.name] = principal.state
        self.known = message.known
        return message
