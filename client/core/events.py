"""What has happened to a client: the only inputs of its core.

``token`` is the caller's own name for a request, ``upload`` its own number of an upload; neither
travels. Times are the ``now_ms`` of ``step``, from a clock that never jumps.
"""

from typing import Any

import msgspec

from gristmill.wire.client import Submit


class Event(msgspec.Struct, frozen=True):
    """Base of the events."""


class LinkUp(Event, frozen=True):
    """The transport has a connection to the broker."""


class LinkLost(Event, frozen=True):
    """The transport lost its connection: what was on the way may be gone."""


class Requested(Event, frozen=True):
    """Somebody wants the answer to this message (its session and request number are the core's)."""

    token: int
    message: Any
    frames: list[bytes] = []


class JobRequested(Event, frozen=True):
    """Submit a job and open its upload, and at once a subscription to its results.

    ``may_continue``: when the broker closed the job because we were silent for too long, what it
    has not got goes on in a new job.
    """

    upload: int
    message: Submit
    function: bytes
    may_continue: bool = False


class ParcelReady(Event, frozen=True):
    """The next ``count`` inputs of an upload."""

    upload: int
    count: int
    codec: str
    frame: bytes


class UploadEnded(Event, frozen=True):
    """No more parcels for this upload."""

    upload: int


class ResultsWanted(Event, frozen=True):
    """Subscribe to a job's results after this sequence number."""

    job: int
    after: int = 0


class ResultTaken(Event, frozen=True):
    """The consumer took the result: its bytes are free for more."""

    job: int
    sequence: int
    size_bytes: int


class ResultsUnwanted(Event, frozen=True):
    """Nobody reads the job's results any more; the job goes on."""

    job: int


class Received(Event, frozen=True):
    """A message of the broker, decoded; ``frames`` are its body frames."""

    message: Any
    frames: list[bytes]


class TimePassed(Event, frozen=True):
    """``next_ms`` was reached."""


class Closed(Event, frozen=True):
    """The client ends: say goodbye."""


AnyEvent = (
    LinkUp
    | LinkLost
    | Requested
    | JobRequested
    | ParcelReady
    | UploadEnded
    | ResultsWanted
    | ResultTaken
    | ResultsUnwanted
    | Received
    | TimePassed
    | Closed
)
