"""What the agent is to do, in this order."""

import dataclasses
from typing import Literal

from gristmill.wire.worker import Goodbye, Hello, JobOpening, ParcelHead, Report, Run

#: Why a jail is killed. ``retire``: it is idle; ``park``: it is, but its job goes on, so it may be
#: kept out of the slot; ``lapse``: we may no longer run; the others name
#: the limit that was passed, or who asked; ``hung``: it no longer answers (slots.py says when).
KillCause = Literal[
    "retire", "park", "lapse", "drain", "cancel", "budget", "time", "cpu", "output", "start",
    "lied", "hung",
]  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class SendHello:
    """Say who we are and what we hold."""

    message: Hello


@dataclasses.dataclass(frozen=True, slots=True)
class SendReport:
    """``frames``: four for each result, in order; ``attempts`` and ``openings``: of each.

    The agent signs each result's receipt on the way out.
    """

    message: Report
    frames: tuple[tuple[bytes, bytes, bytes, bytes], ...]
    attempts: tuple[int, ...]
    openings: tuple[JobOpening, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class SendGoodbye:
    """The last message."""

    message: Goodbye


@dataclasses.dataclass(frozen=True, slots=True)
class OpenJob:
    """Prepare what the job's jails need; again with newer grants for an open one."""

    opening: JobOpening
    function: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class CloseJob:
    """Forget the job; no jail of it is left."""

    job: int


@dataclasses.dataclass(frozen=True, slots=True)
class StartJail:
    """Start jail number ``jail`` in the slot, for this job."""

    slot: int
    jail: int
    job: int


@dataclasses.dataclass(frozen=True, slots=True)
class FeedSlot:
    """Give a lease, or part of it, to the slot's jail."""

    slot: int
    jail: int
    job: int
    lease_id: int
    attempt: int
    runs: tuple[Run, ...]
    parcels: tuple[ParcelHead, ...]
    frames: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class StopLeases:
    """Of these leases the slot may start nothing more; then look at the slot soon."""

    slot: int
    jail: int
    lease_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class KillJail:
    """End the slot's jail; ``JailEnded`` follows."""

    slot: int
    jail: int
    cause: KillCause


@dataclasses.dataclass(frozen=True, slots=True)
class ReplaceSpawner:
    """The process that starts jails stands still: end it, all jails with it, and make a new one.

    A ``JailEnded`` with outcome LOST follows for each.
    """


@dataclasses.dataclass(frozen=True, slots=True)
class Tell:
    """A line for the person who runs this worker."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Exit:
    """End the process with this code; ``message`` goes to stderr when not empty."""

    code: int
    message: str = ""


Effect = (
    SendHello
    | SendReport
    | SendGoodbye
    | OpenJob
    | CloseJob
    | StartJail
    | FeedSlot
    | StopLeases
    | KillJail
    | ReplaceSpawner
    | Tell
    | Exit
)
