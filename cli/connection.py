"""The grid that a command speaks to: one place that knows how a client is made."""

import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from gristmill.cli.places import default_address
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import JobId, parse_job, parse_subtask

if TYPE_CHECKING:
    from gristmill.client import Client

T = TypeVar("T")
RESTART_S = 2.0  #: for a broker that was killed and is started again


def connect(address: str | None) -> "Client":
    """A client of the grid at this address, or of the one that ``gristmill up`` started here.

    Raises:
        RemoteError: ``UNREACHABLE`` that names the address.
    """
    where = address or default_address(os.environ)
    if where.startswith("ipc://"):
        check_socket(where.removeprefix("ipc://"))
    from gristmill.client import Client

    return Client(where)


def check_socket(path: str, patience_s: float = RESTART_S) -> None:
    """Return if somebody listens at a unix socket, without the patience that a network needs.

    A socket file that refuses is given a moment: its broker may be on its way back.

    Raises:
        RemoteError: ``UNREACHABLE``.
    """
    deadline = time.monotonic() + patience_s
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
                return
            except FileNotFoundError:
                told = "no grid is running there"
                break
            except ConnectionRefusedError:
                told = "its broker is gone"
            except OSError as error:
                told = error.strerror or str(error)
                break
        if time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    raise RemoteError("UNREACHABLE", f"ipc://{path}: {told}")


def asked(parse: Callable[[str], T], text: str) -> T:
    """What a person typed, parsed.

    Raises:
        RemoteError: ``INVALID_SPEC`` with the words of the ValueError.
    """
    try:
        return parse(text)
    except ValueError as error:
        raise RemoteError("INVALID_SPEC", str(error), "list your jobs: gristmill status") from None


def job_of(text: str) -> JobId:
    """A job id as typed."""
    return asked(parse_job, text)


def subtask_of(text: str) -> tuple[JobId, int | None]:
    """A job or one of its subtasks as typed."""
    return asked(parse_subtask, text)
