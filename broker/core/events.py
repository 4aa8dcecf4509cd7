"""What has happened: the only inputs of the broker's core, one struct each, plain data.

``client`` and ``worker`` are numbers that the shell gives to live sessions; they are never
reused in one incarnation. ``ref`` is the shell's own name for bytes that the core never sees (a
frame, a journal row).
"""

import msgspec

from gristmill.wire.meter import Meter
from gristmill.wire.spec import JobSpec
from gristmill.wire.tariffs import Tariffs
from gristmill.wire.worker import Claim, Held, ResultHead, Returned, Run


class Event(msgspec.Struct, frozen=True):
    """Base of the events."""


# ---------------------------------------------------------------- clients


class Canary(msgspec.Struct, frozen=True):
    """What makes a job of one subtask a question with a known answer, to one node.

    ``digest``: of the value that is right, as in ``ResultArrived``.
    """

    node: str
    digest: bytes


class JobSubmitted(Event, frozen=True):
    """A client sent a spec that ``check_spec`` passed.

    ``is_dry_run``: only say what would happen. ``known``: (job, digest of its content) that the
    journal has under this submission id, when the state may have forgotten it. ``canary``: by the
    broker itself, never from a client; the job is done if the node's value is right, else failed.
    ``jobs_max``, ``subtasks_max``: of the client's key, 0 for the broker's.
    """

    client: int
    request: int
    tenant: str
    submission: bytes
    spec: JobSpec
    tariffs: Tariffs
    now_utc_ms: int
    is_dry_run: bool = False
    known: tuple[int, bytes] | None = None
    canary: Canary | None = None
    jobs_max: int = 0
    subtasks_max: int = 0


class ParcelArrived(Event, frozen=True):
    """Inputs ``first .. first + count`` of a job; the shell keeps the frame.

    ``subtasks_max``: of the client's key, 0 for the broker's.
    """

    client: int
    tenant: str
    job: int
    first: int
    count: int
    codec: str
    body_bytes: int
    subtasks_max: int = 0


class ParcelsCommitted(Event, frozen=True):
    """Parcels of a job up to this subtask are on disk: time to extend the input credit."""

    job: int
    upto: int


class InputsEnded(Event, frozen=True):
    """Every subtask before this one ended for good, and its results were read and are not kept.

    The journal has what that means to a restart: the inputs are not needed again.
    """

    job: int
    upto: int


class UploadClosed(Event, frozen=True):
    """No more parcels."""

    client: int
    request: int
    tenant: str
    job: int
    count: int


class CancelAsked(Event, frozen=True):
    """Cancel these runs; an empty list is the whole job."""

    client: int
    request: int
    tenant: str
    job: int
    runs: list[Run]


class PauseAsked(Event, frozen=True):
    """Hand out no more leases of a job."""

    client: int
    request: int
    tenant: str
    job: int


class ResumeAsked(Event, frozen=True):
    """Hand out leases of a paused job again."""

    client: int
    request: int
    tenant: str
    job: int


class ClientLost(Event, frozen=True):
    """A client's session is over; its jobs go on, its open-ended ones (count -1) are closed."""

    client: int


# ---------------------------------------------------------------- workers


class WorkerJoined(Event, frozen=True):
    """A worker's HELLO was admitted.

    ``held``: leases that it says it still has; ``claims``: what it says of them.
    """

    worker: int
    name: str
    node: str
    slots: int
    cpus_milli: int
    memory_bytes: int
    labels: dict[str, str]
    tiers: list[str]
    pythons: list[str]
    metering: str
    held: list[Held]
    claims: list[Claim] = []


class ResultArrived(Event, frozen=True):
    """One result of a report; ``ref`` names its four frames in the shell.

    ``digest``: of the values, of a job with a quorum; ``dice``: 32 random bits, drawn after the
    result was there: whether this one is checked is nothing that its worker can know.
    """

    worker: int
    head: ResultHead
    meter: Meter
    ref: int
    body_bytes: int
    failures: list[tuple[int, str]]
    now_utc_ms: int
    digest: bytes = b""
    dice: int = 0


class WorkerReported(Event, frozen=True):
    """A report, after its results were stepped one by one.

    ``is_full`` renews the leases of ``slots_alive``. ``open_jobs``: by number.
    """

    worker: int
    number: int
    is_full: bool
    slots_alive: list[int]
    held: list[Held]
    returned: list[Returned]
    is_draining: bool
    open_jobs: list[int] = []


class WorkerDrainAsked(Event, frozen=True):
    """An operator asks that the worker finishes and takes no more."""

    worker: int


class NodeShut(Event, frozen=True):
    """The registry says that a node gets no work: ``ON_TRIAL`` until its canary, or why."""

    node: str
    cause: str


class NodeReleased(Event, frozen=True):
    """An operator lets a node out of quarantine."""

    node: str


class WorkerLost(Event, frozen=True):
    """The worker said goodbye (``is_clean``) or its session was replaced or dropped."""

    worker: int
    is_clean: bool
    cause: str


# ---------------------------------------------------------------- ledger, time


class HoldAnswered(Event, frozen=True):
    """The ledger's verdict on a job's hold; ``code`` is empty for yes."""

    job: int
    code: str
    message: str


class LedgerSeen(Event, frozen=True):
    """The ledger went up or down, or the outbox passed its cap (``is_full``)."""

    is_up: bool
    is_full: bool


class TimePassed(Event, frozen=True):
    """Timers: expire leases and workers, recall, tell cards, place what can be placed.

    It closes no open-ended job for resting: the core cannot tell a coalescing client from a slow
    generator. The client closes its own (``COALESCED_JOB_REST_MS``), and ``ClientLost`` the rest.
    """


AnyEvent = (
    JobSubmitted
    | ParcelArrived
    | ParcelsCommitted
    | InputsEnded
    | UploadClosed
    | CancelAsked
    | PauseAsked
    | ResumeAsked
    | ClientLost
    | WorkerJoined
    | ResultArrived
    | WorkerReported
    | WorkerDrainAsked
    | NodeShut
    | NodeReleased
    | WorkerLost
    | HoldAnswered
    | LedgerSeen
    | TimePassed
)
