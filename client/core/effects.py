"""What the client's process must do, in order: the only outputs of its core."""

from typing import Any

import msgspec

from gristmill.wire.client import JobStatus, Results, Welcome


class Effect(msgspec.Struct, frozen=True):
    """Base of the effects."""


class Send(Effect, frozen=True):
    """Send this message; if the transport has no connection it is dropped and comes again."""

    message: Any
    frames: list[bytes] = []


class Welcomed(Effect, frozen=True):
    """A session is open (again)."""

    welcome: Welcome


class BrokerSilent(Effect, frozen=True):
    """Nothing was heard for ``silent_ms`` while something is wanted; told once a silence.

    After ``left_ms`` more, all that waits fails.
    """

    silent_ms: int
    left_ms: int


class BrokerBack(Effect, frozen=True):
    """After ``BrokerSilent``: the broker answers again."""


class BrokerRecovering(Effect, frozen=True):
    """It was started again and reads its journal; told once, in its own words."""

    message: str


class Held(Effect, frozen=True):
    """We are over the rate of our key: what is wanted goes on by itself after ``wait_ms``.

    Told once a spell, in the broker's words.
    """

    wait_ms: int
    message: str


class Answered(Effect, frozen=True):
    """The answer to a request: ``Answer`` or ``Accepted``."""

    token: int
    answer: Any


class RequestFailed(Effect, frozen=True):
    """A request was refused, or the broker did not answer in time (``UNREACHABLE``)."""

    token: int
    code: str
    message: str
    hint: str


class JobAccepted(Effect, frozen=True):
    """The job of an upload is on disk."""

    upload: int
    job: int


class UploadMoved(Effect, frozen=True):
    """Inputs up to ``committed`` are on the broker's disk; ``unsent`` parcels wait for credit."""

    upload: int
    committed: int
    unsent: int


class UploadContinued(Effect, frozen=True):
    """The job of an upload was closed at ``base`` inputs (of all its jobs).

    A new job takes the rest: its ``JobAccepted`` follows.
    """

    upload: int
    job: int
    base: int


class UploadClosed(Effect, frozen=True):
    """Every input is on the broker's side and counted."""

    upload: int


class UploadFailed(Effect, frozen=True):
    """The submission or a parcel was refused; nothing more is sent for it."""

    upload: int
    code: str
    message: str
    hint: str


class ResultArrived(Effect, frozen=True):
    """One result, each exactly once and in sequence."""

    result: Results
    frames: list[bytes]


class StatusArrived(Effect, frozen=True):
    """The job's card changed; when ``is_final`` every result came before."""

    status: JobStatus
    is_final: bool


class ResultsFailed(Effect, frozen=True):
    """The subscription was refused."""

    job: int
    code: str
    message: str
    hint: str


AnyEffect = (
    Send
    | Welcomed
    | BrokerSilent
    | BrokerBack
    | BrokerRecovering
    | Held
    | Answered
    | RequestFailed
    | JobAccepted
    | UploadMoved
    | UploadContinued
    | UploadClosed
    | UploadFailed
    | ResultArrived
    | StatusArrived
    | ResultsFailed
)
