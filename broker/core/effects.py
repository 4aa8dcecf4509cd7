"""What the shell must do, in order: the only outputs of the broker's core.

The law of durability is the shell's and needs no help from here: a ``Record...`` or ``Keep...``
effect goes to the journal's next group; a *durable* effect (see ``IS_DURABLE``) that comes after
it in any later list waits until that group is on disk; everything else (leases, recalls) may
leave at once.
"""

import msgspec

from gristmill.wire.client import JobStatus, Reason
from gristmill.wire.ledger import Contribution, Entry
from gristmill.wire.spec import JobSpec
from gristmill.wire.worker import LeaseGrant, Run


class Effect(msgspec.Struct, frozen=True):
    """Base of the effects."""


# ---------------------------------------------------------------- journal


class RecordJob(Effect, frozen=True):
    """A new job's row: on disk before ``AcceptJob`` leaves."""

    job: int
    tenant: str
    submission: bytes
    spec: JobSpec
    now_utc_ms: int


class KeepParcel(Effect, frozen=True):
    """Write the parcel that just arrived (the shell has its frame) to the journal."""

    job: int
    first: int
    count: int
    codec: str


class KeepResult(Effect, frozen=True):
    """Write this result and its columns, then deliver it to subscribers under ``sequence``.

    ``ref`` 0: a result without a worker (cancelled, lost, out of budget): the shell makes the
    frames from ``outcome`` and ``message``; ``lease_id`` is 0, ``node`` is set for a subtask lost
    with its worker, and ``count`` may be any (the rest of a cancelled job is one result). With a
    ``ref`` the frames say how each ended; ``outcome`` is the one that all had, or -1 for mixed.
    ``not_final``: runs that will be tried again.
    """

    job: int
    sequence: int
    ref: int
    first: int
    count: int
    attempt: int
    lease_id: int
    node: str
    outcome: int
    message: str
    not_final: list[Run]


class KeepVote(Effect, frozen=True):
    """Right behind its ``KeepResult``: this result is not decided, another replica is wanted.

    Its contribution (None when nothing is billed) is signed and kept until ``SettleVote``.
    """

    job: int
    sequence: int
    index: int
    attempt: int
    owner: str
    node: str
    lease_id: int
    outcome: int
    digest: bytes
    amount_ucredits: int
    entry: Contribution | None


class SettleVote(Effect, frozen=True):
    """The result of this sequence is decided: its contribution is posted, or forgotten."""

    job: int
    sequence: int
    is_paid: bool


class KeepStanding(Effect, frozen=True):
    """What is known of a node: confirmed results in a row, why it is in quarantine or empty."""

    node: str
    streak: int
    cause: str


class KeepSuperseded(Effect, frozen=True):
    """A late or forged result: counted, never used, never billed; its frames can go."""

    job: int
    lease_id: int
    first: int
    count: int
    node: str
    ref: int


class RecordEvent(Effect, frozen=True):
    """A line of the event log with a stable name, see ``broker/core/journal_names.py``.

    ``detail``: plain values.
    """

    job: int
    name: str
    detail: dict[str, str | int | list[Run]]
    now_ms: int


class AmendCard(Effect, frozen=True):
    """A final job's card says more than when it ended (a late result was superseded)."""

    job: int
    tenant: str
    status: JobStatus


class RecordState(Effect, frozen=True):
    """The job's state changed; ``status`` is its card.

    On the change to a final state it is the job's last record.
    """

    job: int
    status: JobStatus


class AddToOutbox(Effect, frozen=True):
    """An entry for the ledger, in the same journal group as what it stands for."""

    entry: Entry


class FreeParcels(Effect, frozen=True):
    """A job's parcels before ``upto`` (the end of one) leave the disk.

    ``body_bytes``: of all that have left so far, which a restart has to know.
    """

    job: int
    upto: int
    body_bytes: int


class FreeJob(Effect, frozen=True):
    """The job is final: parcels leave memory and disk; results stay for their retention."""

    job: int


# ---------------------------------------------------------------- to clients


class AcceptJob(Effect, frozen=True):
    """Durable: tell the client that its job is on disk."""

    client: int
    request: int
    job: int
    is_replayed: bool
    bytes_allowed: int


class AnswerDryRun(Effect, frozen=True):
    """What a submission would do."""

    client: int
    request: int
    spec: JobSpec
    workers_matching: int
    workers_of: int
    reasons: list[Reason]


class AllowInput(Effect, frozen=True):
    """Parcels up to ``committed`` are on disk.

    The client may send this many bytes since the job began.
    """

    job: int
    committed: int
    bytes_allowed: int


class Confirm(Effect, frozen=True):
    """Durable: a plain yes to a request."""

    client: int
    request: int


class RefuseRequest(Effect, frozen=True):
    """A request was refused."""

    client: int
    request: int
    job: int
    code: str
    message: str
    hint: str


class TellStatus(Effect, frozen=True):
    """Durable: send the job's card to its subscribers."""

    job: int
    status: JobStatus


# ---------------------------------------------------------------- to workers


class OpenJob(Effect, frozen=True):
    """Before the first lease of a job on a worker: its spec and function."""

    worker: int
    job: int


class Dispatch(Effect, frozen=True):
    """Send a lease with the parcels that cover it (the grant names them.

    The shell attaches the frames).
    """

    worker: int
    lease: LeaseGrant


class RecallLease(Effect, frozen=True):
    """Ask a worker to hand back what has not started."""

    worker: int
    lease_id: int


class StopLease(Effect, frozen=True):
    """Ask a worker to kill what runs of a lease with this outcome."""

    worker: int
    lease_id: int
    outcome: int


class CloseJob(Effect, frozen=True):
    """No more leases of this job for this worker."""

    worker: int
    job: int


class AckReport(Effect, frozen=True):
    """Durable: answer a report; ``results_upto`` is the last result number seen.

    Carries ttl and interval.
    """

    worker: int
    number: int
    results_upto: int
    report_ms: int
    ttl_ms: int
    is_drain: bool


class DropWorker(Effect, frozen=True):
    """The worker is lost to the core: forget its session.

    Whatever it says next is answered with REJOIN.
    """

    worker: int
    cause: str


#: effects that wait for the journal group of everything recorded before them
IS_DURABLE: tuple[type[Effect], ...] = (AcceptJob, Confirm, TellStatus, AckReport)

AnyEffect = (
    RecordJob
    | KeepParcel
    | KeepResult
    | KeepVote
    | SettleVote
    | KeepStanding
    | KeepSuperseded
    | RecordEvent
    | RecordState
    | AmendCard
    | AddToOutbox
    | FreeParcels
    | FreeJob
    | AcceptJob
    | AnswerDryRun
    | AllowInput
    | Confirm
    | RefuseRequest
    | TellStatus
    | OpenJob
    | Dispatch
    | RecallLease
    | StopLease
    | CloseJob
    | AckReport
    | DropWorker
)
