"""How operators reach the registry: at its own socket on this host, else through the broker.

Whoever can open that socket's folder may do everything there, and is who they say they are
(``--by``). Through the broker they are who their token says.
"""

import abc
import argparse
import os
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from gristmill.cli import places
from gristmill.cli.connection import check_socket, connect
from gristmill.wire.errors import RemoteError
from gristmill.wire.registry import (
    AskRows,
    Record,
    RegistryAnswer,
    RegistryRefused,
    decode_from_registry,
)

if TYPE_CHECKING:
    from gristmill.client import Client

_ANSWER_MS = 10_000
PATIENCE_S = 1.0  #: with a registry that is started again
T = TypeVar("T")


class Desk(abc.ABC):
    """Where acts are said, and answered.

    Attributes:
        is_relayed: by the grid's broker, which is ``client``.
    """

    is_relayed = False

    @property
    def client(self) -> "Client":
        """Of the grid's broker, where acts go through it."""
        raise NotImplementedError

    def has_registry(self) -> bool:
        """Whether there is one behind it."""
        return True

    @abc.abstractmethod
    def ask(self, message: msgspec.Struct, kind: type[T]) -> tuple[T, bool]:
        """The answer, and whether it was done before.

        Raises:
            RemoteError: what the registry refuses with, or ``REGISTRY_DOWN``.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the connection."""

    def __enter__(self) -> "Desk":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rows(self, what: str, kind: type[T], name: str = "") -> list[T]:
        """All rows, page after page."""
        found: list[T] = []
        after = 0
        while True:
            question = AskRows(1, what, after, name)  # type: ignore[arg-type]
            page, _ = self.ask(question, list[kind])  # type: ignore[valid-type]
            if not page:
                return found
            found += page
            last: Any = page[-1]
            after = last.number if isinstance(last, Record) else last.change


class Control(Desk):
    """The registry's own socket, on this host.

    Raises:
        RemoteError: ``REGISTRY_DOWN``: nobody listens there.
    """

    def __init__(self, address: str) -> None:
        import zmq

        self._again = zmq.Again
        self.address = address
        try:
            if not self.address.startswith("ipc://"):
                raise RemoteError("UNREACHABLE", "it is no ipc:// address")
            check_socket(self.address.removeprefix("ipc://"), PATIENCE_S)
        except RemoteError:
            raise RemoteError(
                "REGISTRY_DOWN",
                f"no registry listens at {self.address}",
                "start it: python -m gristmill.broker.registry; or name it: --registry"
                " ipc:///path/registry",
            ) from None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, _ANSWER_MS)
        self._socket.connect(self.address)

    def close(self) -> None:
        """See ``Desk``."""
        self._socket.close(0)
        self._context.term()

    def ask(self, message: msgspec.Struct, kind: type[T]) -> tuple[T, bool]:
        """See ``Desk``."""
        from gristmill.wire.frames import encode

        try:
            self._socket.send(encode(message))
            answer = decode_from_registry.decode(self._socket.recv())
        except self._again:
            raise RemoteError(
                "REGISTRY_DOWN",
                f"the registry at {self.address} did not answer within {_ANSWER_MS // 1000} s:"
                " whether it was done is not known",
            ) from None
        if isinstance(answer, RegistryRefused):
            raise RemoteError(answer.code, answer.message, answer.hint)
        assert isinstance(answer, RegistryAnswer)
        return msgspec.msgpack.decode(answer.body, type=kind), answer.is_repeat


class Relayed(Desk):
    """The grid's broker, which says who we are.

    Raises:
        RemoteError: ``UNREACHABLE``.
    """

    is_relayed = True

    def __init__(self, address: str | None) -> None:
        self._client = connect(address)

    @property
    def client(self) -> "Client":
        """See ``Desk``."""
        return self._client

    def close(self) -> None:
        """See ``Desk``."""
        self._client.close()

    def has_registry(self) -> bool:
        """See ``Desk``."""
        return bool(self._client.grid().get("has_registry"))

    def ask(self, message: msgspec.Struct, kind: type[T]) -> tuple[T, bool]:
        """See ``Desk``."""
        body, is_repeat = self._client.operate(msgspec.msgpack.encode(message))
        return msgspec.msgpack.decode(body, type=kind), is_repeat


def open_desk(args: argparse.Namespace) -> Desk:
    """As was asked: ``--registry`` or ``--address``, else whichever is on this host.

    Raises:
        RemoteError: nobody is there.
    """
    named = args.registry or (None if args.address else os.environ.get("GRISTMILL_REGISTRY"))
    if named:
        return Control(named)
    front = args.address or places.default_address(os.environ)
    folder, _, name = front.rpartition("/")
    if front.startswith("ipc://") and name == "front":
        beside = f"{folder}/registry"
        if os.path.exists(beside.removeprefix("ipc://")):
            return Control(beside)
    return Relayed(args.address)
