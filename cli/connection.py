"""The grid that a command speaks to: one place that knows how a client is made."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from gristmill.cli.places import default_address
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import JobId, parse_job, parse_subtask

if TYPE_CHECKING:
    from gristmill.client import Client

T = TypeVar("T")


def connect(address: str | None) -> "Client":
    """A client of the grid at this address, or of the one that ``gristmill up`` started here.

    Raises:
        RemoteError: ``UNREACHABLE`` that names the address.
    """
    from gristmill.client import Client

    return Client(address or default_address(os.environ))


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
