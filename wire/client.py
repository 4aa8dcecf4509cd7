"""The client dialogue (docs/rfc/0002): submit, upload, results, questions.

Every request that is answered has a ``request`` number made by the client; everything that changes
state is idempotent (submission id, parcel position, cumulative credit), so a client that hears
nothing sends again.
"""

from typing import Any, Literal

import msgspec

from gristmill.wire.frames import HeaderDecoder, Integer
from gristmill.wire.spec import JobSpec
from gristmill.wire.tariffs import Tariffs
from gristmill.wire.worker import HostReading, ResultHead, Run

JobState = Literal["decomposing", "accepted", "running", "paused", "done", "failed", "cancelled"]
FINAL_JOB_STATES: frozenset[str] = frozenset({"done", "failed", "cancelled"})
SubtaskState = Literal["waiting", "ready", "leased", "done", "failed", "cancelled"]


class Message(msgspec.Struct, array_like=True, frozen=True, tag_field="type", gc=False):
    """Base of the dialogue's messages."""


# ---------------------------------------------------------------- client to broker


class Hello(Message, frozen=True, tag=1):
    """First message of a session. ``client``: 16 random bytes, stable for one client object."""

    protocol: Integer
    client: bytes
    tenant: str
    python: str
    version: str


class Submit(Message, frozen=True, tag=2):
    """A new job; one body frame: the function's bytes (empty for a command), see ``JobSpec``."""

    session: bytes
    request: Integer
    submission: bytes
    spec: JobSpec
    is_dry_run: bool = False


class Parcel(Message, frozen=True, tag=3):
    """Inputs ``first .. first + count``; one body frame.

    Parcels of a job follow one another without gaps; one sent again is acknowledged again.
    """

    session: bytes
    job: Integer
    first: Integer
    count: Integer
    codec: str


class CloseUpload(Message, frozen=True, tag=4):
    """No more parcels: the job has ``count`` subtasks."""

    session: bytes
    request: Integer
    job: Integer
    count: Integer


class Subscribe(Message, frozen=True, tag=5):
    """Send me the job's results after ``after`` (a result sequence number, 0 for all) and its end.

    ``bytes_allowed``: cumulative result bytes that the broker may send on this subscription.
    """

    session: bytes
    request: Integer
    job: Integer
    after: Integer
    bytes_allowed: Integer


class Credit(Message, frozen=True, tag=6):
    """I took every result up to ``acked``; ``bytes_allowed`` is cumulative since the subscription.

    With ``keep=False`` acknowledged results are freed.
    """

    session: bytes
    job: Integer
    acked: Integer
    bytes_allowed: Integer


class Unsubscribe(Message, frozen=True, tag=7):
    """No more results of this job, please; the job goes on."""

    session: bytes
    job: Integer


class Cancel(Message, frozen=True, tag=8):
    """Cancel these runs of a job; an empty list is the whole job."""

    session: bytes
    request: Integer
    job: Integer
    runs: list[Run]


class Steer(Message, frozen=True, tag=9):
    """Pause or resume a job."""

    session: bytes
    request: Integer
    job: Integer
    verb: Literal["pause", "resume"]


class Ask(Message, frozen=True, tag=10):
    """A question.

    ``about`` and its arguments:

    ``jobs`` (limit) · ``job`` (job) · ``subtasks`` (job, first, limit, state or "") · ``why``
    (job) · ``workers`` · ``manifest`` (job, first: after this sequence, limit) · ``logs`` (job,
    first, limit) · ``usage`` (text: some of tenant, node, job, day; digest "all": every
    tenant, for operators) · ``balance`` (text "all": every account, for operators; digest: the
    tag of an answer: the next one comes when it is another, at most two seconds later) ·
    ``statement`` (text: an account, for operators, or "": the caller's; first: after; size_bytes:
    upto) · ``receipts`` (job, first: after, text: an index, ``#`` and the number of a receipt, or
    "") · ``grid`` · ``grant`` (verb "get" or "put", digest or "*", size_bytes) · ``decomposed``
    (request digest) · ``tariffs`` · ``terms`` (job: what was asked for, at which tariffs) ·
    ``history`` (text: 64 hex characters of the work; limit: ended jobs that ran it, newest first) ·
    ``offers`` · ``intents`` (text: one of them, or ""; digest "all": of every tenant, for
    operators; limit) · ``limits`` (of the caller's key; of every key, for operators).
    """

    session: bytes
    request: Integer
    about: Literal[
        "jobs", "job", "subtasks", "why", "workers", "logs", "usage", "balance", "statement",
        "receipts", "grid", "grant", "decomposed", "manifest", "tariffs", "terms", "history",
        "offers", "intents", "limits",
    ]  # fmt: skip
    job: Integer = 0
    first: Integer = 0
    limit: Integer = 100
    text: str = ""
    digest: str = ""
    size_bytes: Integer = 0


class DrainWorker(Message, frozen=True, tag=11):
    """Operator: the worker of this name finishes what it has and takes no more."""

    session: bytes
    request: Integer
    worker: str


class ReleaseNode(Message, frozen=True, tag=16):
    """Operator: the node of this worker leaves quarantine, and is checked from the beginning."""

    session: bytes
    request: Integer
    worker: str


class Operate(Message, frozen=True, tag=17):
    """Operator: this act, a message of the registry dialogue (docs/rfc/0005), by my name.

    Answered with ``Operated``.
    """

    session: bytes
    request: Integer
    act: bytes


class OnChain(Message, frozen=True, tag=18):
    """About rentals and payouts: ``said`` is a message of ``wire.chain.ByClients``, encoded.

    Answered as the ledger answers it.
    """

    session: bytes
    request: Integer
    said: bytes


class Ping(Message, frozen=True, tag=12):
    """I am here; answered with PONG."""

    session: bytes


class Goodbye(Message, frozen=True, tag=13):
    """The session ends; its jobs go on, its open-ended coalesced jobs close."""

    session: bytes


class Buy(Message, frozen=True, tag=14):
    """Credits, please: an intent to pay ``price`` and ``fee``, as they were shown, by a backend.

    ``key``: made by the client, one for each purchase; the same key is the same purchase.
    """

    session: bytes
    request: Integer
    key: str
    backend: str
    amount_ucredits: Integer
    price: Integer
    fee: Integer


class Purchase(Message, frozen=True, tag=15):
    """What becomes of an intent. ``cancel`` is its tenant's; the rest is for operators.

    ``confirm``: so much came (``received``, in the minor unit), under ``ref``; ``credit`` and
    ``refund`` decide an underpayment.
    """

    session: bytes
    request: Integer
    verb: Literal["cancel", "confirm", "credit", "refund"]
    intent: str
    received: Integer = 0
    ref: str = ""


ClientMessage = (
    Hello
    | Submit
    | Parcel
    | CloseUpload
    | Subscribe
    | Credit
    | Unsubscribe
    | Cancel
    | Steer
    | Ask
    | DrainWorker
    | ReleaseNode
    | Operate
    | Ping
    | Goodbye
    | Buy
    | Purchase
    | OnChain
)
decode_client: HeaderDecoder[Any] = HeaderDecoder(ClientMessage)


# ---------------------------------------------------------------- broker to client


class Welcome(Message, frozen=True, tag=1):
    """Answer to HELLO.

    ``is_fleet_trusted``: every worker is the tenant's own (``up``): a client may unpickle.
    """

    session: bytes
    broker: str
    tenant: str
    ping_ms: int
    ttl_ms: int
    store: str
    is_fleet_trusted: bool
    pythons: list[str] = []


class Accepted(Message, frozen=True, tag=2):
    """The job is on disk. ``bytes_allowed``: cumulative parcel bytes that the client may send."""

    request: int
    job: int
    is_replayed: bool
    bytes_allowed: int


class InputCredit(Message, frozen=True, tag=3):
    """Parcels up to subtask ``committed`` are on disk.

    ``bytes_allowed`` is cumulative since the job began.
    """

    job: int
    committed: int
    bytes_allowed: int


class Results(Message, frozen=True, tag=4):
    """One result, committed; frames as in ``ResultHead``.

    ``sequence`` rises by one for each result of a job. ``not_final``: offsets of subtasks that
    failed here and will be tried again: ignore them. For subtasks that ended without a worker
    (cancelled, lost, out of budget) the head's lease_id is 0.
    """

    job: int
    sequence: int
    head: ResultHead
    attempt: int
    node: str
    not_final: list[Run] = []


class JobStatus(msgspec.Struct, frozen=True):
    """Everything about one job that fits on a card.

    Times are ms since the epoch (UTC), 0 for not yet.

    ``reason``: why it waits, pauses or failed (an error code or words), ``errors``: the first
    three distinct failures, each
    (outcome word, message, how often, first index). ``expires_ms``: until then the results of an
    ended job are kept. ``noticed_percent``: 50, 80 or 100 once so much of the cap is spent.
    """

    job: int
    name: str
    kind: str
    tenant: str
    state: str
    tier: str
    priority: int
    count: int
    uploaded: int
    waiting: int
    ready: int
    leased: int
    done: int
    failed: int
    cancelled: int
    retried: int
    lost: int
    superseded: int
    submitted_ms: int
    started_ms: int
    finished_ms: int
    wall_us: int
    cpu_us: int
    peak_kib: int
    spent_ucredits: int
    cap_ucredits: int
    eta_ms: int
    results: int
    reason: str = ""
    errors: list[tuple[str, str, int, int]] = []
    parent: int = 0
    expires_ms: int = 0
    noticed_percent: int = 0


class JobEvent(Message, frozen=True, tag=5):
    """The job's state or counts changed (at most ten a second), sent to its subscribers.

    The last one has a final state and comes after the last result.
    """

    status: JobStatus


class SubtaskRow(msgspec.Struct, frozen=True):
    """One subtask: what ``status --subtasks`` prints. ``attempt`` is 0 before the first lease."""

    index: int
    state: str
    outcome: str
    attempt: int
    node: str
    wall_us: int
    cpu_us: int
    peak_kib: int
    is_estimated: bool
    metering: str
    message: str = ""


class Operated(msgspec.Struct, frozen=True):
    """What the registry answered. ``is_repeat``: it was done before and nothing changed."""

    body: msgspec.Raw
    is_repeat: bool = False


class WorkerRow(msgspec.Struct, frozen=True):
    """One worker: what ``status --workers`` prints."""

    name: str
    node: str
    state: str
    slots: int
    busy: int
    cpus_milli: int
    memory_bytes: int
    labels: dict[str, str]
    tiers: list[str]
    pythons: list[str]
    metering: str
    version: str
    seen_ms: int
    done: int
    reading: HostReading | None = None


class Reason(msgspec.Struct, frozen=True):
    """One constraint that keeps a job waiting.

    ``workers``: how many of ``of`` fail it; ``change``: the cheapest change.
    """

    constraint: str
    asked: str
    nearest: str
    workers: int
    of: int
    change: str = ""


class Turn(msgspec.Struct, frozen=True):
    """What decides when a waiting job is next: the lowest share, then priority with age.

    ``share_us``: cpu-microseconds that its tenant was given, by weight; ``age_ms`` since the
    submission; ``ahead``: jobs that come first, of ``of`` that wait for the same kind of slot.
    """

    priority: int
    share_us: int
    age_ms: int
    ahead: int
    of: int


class WhyAnswer(msgspec.Struct, frozen=True):
    """Why a job is not running (or that it is). ``turn``: of a job that waits for a slot."""

    job: int
    state: str
    summary: str
    reasons: list[Reason]
    turn: Turn | None = None


class LogRow(msgspec.Struct, frozen=True):
    """Output of one subtask attempt; long streams are by digest.

    ``state`` of the attempt: ``ended``, ``running`` (what it has written so far) or ``lost`` (what
    came before its worker was gone). ``stdout_bytes``, ``stderr_bytes``: how much it wrote; with
    ``is_cut`` there is less here. Of a running or lost attempt the text says where bytes miss.
    """

    index: int
    count: int
    attempt: int
    stdout: bytes
    stderr: bytes
    stdout_digest: str
    stderr_digest: str
    is_cut: bool
    state: str = "ended"
    stdout_bytes: int = 0
    stderr_bytes: int = 0


class ManifestRow(msgspec.Struct, frozen=True):
    """One published result: its range, who made it, and the sha-256 of its values frame.

    ``failed``: subtasks of the range that did not end OK; those of ``not_final`` runs were tried
    again and are published elsewhere. ``values`` is empty when the range has no value.
    """

    sequence: int
    first: int
    count: int
    attempt: int
    node: str
    codec: str
    values: str
    failed: int
    not_final: list[Run]


class UsageRow(msgspec.Struct, frozen=True):
    """One line of a bill.

    ``keys``: tenant, node, job and day, of those that the bill is split by, in the order asked for;
    ``key``: these in one text.
    """

    key: str
    subtasks: int
    failed: int
    cpu_us: int
    wall_us: int
    amount_ucredits: int
    toll_ucredits: int
    keys: list[str] = []


class AccountRow(msgspec.Struct, frozen=True):
    """One account: ``posted`` = credits - debits; ``held``: pending debits.

    ``available`` = posted - held.
    """

    name: str
    posted_ucredits: int
    held_ucredits: int
    available_ucredits: int


class BalanceAnswer(msgspec.Struct, frozen=True):
    """The caller's accounts, and the sum of all accounts of the ledger, which is zero.

    As of so many ``transfers``: all of them are in these figures, and none that follows.
    ``tag``: another one when the figures are others.
    """

    accounts: list[AccountRow]
    sum_ucredits: int
    transfers: int
    tag: str = ""


class GrantAnswer(msgspec.Struct, frozen=True):
    """A signed right to one blob, see ``wire.grants``."""

    grant: str
    store: str
    expires_ms: int


class DryRun(msgspec.Struct, frozen=True):
    """What a submission would do.

    The normalised spec, workers that match, reasons of those that do not.
    """

    spec: JobSpec
    workers_matching: int
    workers_of: int
    reasons: list[Reason]


class JobTerms(msgspec.Struct, frozen=True):
    """What a job asked for, and what work costs it on each class of nodes."""

    spec: JobSpec
    tariffs: Tariffs


class Answer(Message, frozen=True, tag=6):
    """Answer to a request.

    ``body``: MessagePack of the struct (or list of structs) that the question asks for; nil for a
    plain yes. One that is too large for a header follows as body frames instead, to be joined.
    """

    request: int
    body: msgspec.Raw = msgspec.Raw(b"\xc0")


class Refused(Message, frozen=True, tag=7):
    """A request was refused, or (request 0) a message made no sense.

    ``job`` when it is about one. ``session``: that of the message with ``REJOIN``; when it is not
    the client's present one, there is nothing to join again. ``retry_after_ms`` of
    ``RATE_LIMITED``: until then nothing of this key is taken, answered or not.
    """

    request: int
    code: str
    message: str
    hint: str
    job: int = 0
    session: bytes = b""
    retry_after_ms: int = 0


class Pong(Message, frozen=True, tag=8):
    """Answer to PING."""


BrokerToClient = Welcome | Accepted | InputCredit | Results | JobEvent | Answer | Refused | Pong
decode_broker: HeaderDecoder[Any] = HeaderDecoder(BrokerToClient)
