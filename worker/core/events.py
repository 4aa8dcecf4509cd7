"""What happened to a worker. Times are milliseconds of a monotonic clock, given to ``step``."""

import dataclasses

from gristmill.wire.failure import Failure
from gristmill.wire.worker import HostReading, Orders, Run, Welcome


@dataclasses.dataclass(frozen=True, slots=True)
class Began:
    """The process is up and may say HELLO."""


@dataclasses.dataclass(frozen=True, slots=True)
class Welcomed:
    """The broker answered HELLO."""

    message: Welcome


@dataclasses.dataclass(frozen=True, slots=True)
class OrdersArrived:
    """``openings``: body of each opening; ``parcels``: bodies of each lease's parcels."""

    message: Orders
    openings: tuple[bytes, ...] = ()
    parcels: tuple[tuple[bytes, ...], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class WasRefused:
    """The broker did not accept a message of ours; ``session``: that of the message.

    ``retry_after_ms``: until then it takes nothing of ours.
    """

    code: str
    message: str
    hint: str
    session: bytes = b""
    retry_after_ms: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class JailReady:
    """The slot's process is up and waits for leases."""

    slot: int
    jail: int


@dataclasses.dataclass(frozen=True, slots=True)
class JailEnded:
    """A slot's process is gone, all of it, whoever ended it.

    ``outcome``, ``failure``: the verdict; ``SETUP`` when it never came to run anything.
    ``lease_id``, ``index``: what the shared page says was running (index -1: nothing).
    ``cpu_us``: not yet accounted for by results. ``logs``: a logs frame.
    """

    slot: int
    jail: int
    outcome: int
    failure: Failure
    lease_id: int = 0
    index: int = -1
    wall_us: int = 0
    cpu_us: int = 0
    peak_kib: int = 0
    metering: str = ""
    logs: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True)
class ResultArrived:
    """A slot ended ``count`` subtasks from ``first``; ``frames`` are values, meter, failures, logs.

    ``billed``: how many of them ended by their own doing.
    """

    slot: int
    jail: int
    lease_id: int
    first: int
    count: int
    codec: str
    wall_us: int
    cpu_us: int
    peak_kib: int
    metering: str
    is_estimated: bool
    billed: int
    frames: tuple[bytes, bytes, bytes, bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class FeedEnded:
    """The slot is through with what it was fed of this lease."""

    slot: int
    jail: int
    lease_id: int


@dataclasses.dataclass(frozen=True, slots=True)
class SlotLied:
    """A slot sent what no slot of ours sends: its jailed code got hold of the socket."""

    slot: int
    jail: int
    what: str


@dataclasses.dataclass(frozen=True, slots=True)
class JobUnready:
    """The slot's jail cannot be started, through no fault of this host.

    The job's function or files cannot be had from the store (``outcome`` STORE), or its environment
    is not here (``SETUP``). No process was started.
    """

    slot: int
    jail: int
    outcome: int
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class InputFailed:
    """A parcel of this lease cannot be had from the store; the slot was not fed."""

    slot: int
    jail: int
    lease_id: int
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """One slot as the agent's loop sees it.

    ``cpu_us`` of the jail since its start; ``fresh_cpu_us``: of it, not yet in a result.
    ``output_bytes``: stdout and stderr of the running lease that no result has taken yet.
    ``is_stopped``: its process stands still by a signal (state T of /proc).
    """

    slot: int
    jail: int
    lease_id: int
    index: int
    cpu_us: int = 0
    fresh_cpu_us: int = 0
    output_bytes: int = 0
    is_stopped: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class ReportDropped:
    """A report could not be sent: there is no connection.

    ``is_empty``: it only renewed; else it had results or returned runs.
    """

    number: int
    is_empty: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Looked:
    """The agent looked at the pages and meters of all running jails.

    ``shipping``: (slot, jail) whose process is gone while its results are on the way to the store.
    ``is_spawner_stopped``: the process that starts jails and tells their ends stands still.
    """

    looks: tuple[Look, ...]
    shipping: tuple[tuple[int, int], ...] = ()
    is_spawner_stopped: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class ReadingTaken:
    """Telemetry for the next full report."""

    reading: HostReading


@dataclasses.dataclass(frozen=True, slots=True)
class DrainAsked:
    """Finish what runs, take no more, end. ``exit_code`` is the process's, then.

    ``is_hurried``: somebody asked once more: what still runs then goes back at once.
    """

    reason: str
    exit_code: int = 0
    is_hurried: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class TurnEnded:
    """The agent's loop did all that was ready: timers are due, reports may go."""


Event = (
    Began
    | Welcomed
    | OrdersArrived
    | WasRefused
    | JailReady
    | JailEnded
    | ResultArrived
    | FeedEnded
    | SlotLied
    | InputFailed
    | JobUnready
    | ReportDropped
    | Looked
    | ReadingTaken
    | DrainAsked
    | TurnEnded
)

__all__ = ["Event", "Run"]
