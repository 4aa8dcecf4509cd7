"""What ``--json`` prints: one struct for each schema, so that a program can rely on the shape.

Every document has ``schema``: ``gristmill/<name>/<version>``. Fields are only ever added within a
version. Quantities are integers in the unit that ends their name (``_ms``, ``_us``, ``_kib``,
``_bytes``, ``_ucredits``: a millionth of a credit); times are ms since the epoch, UTC. Commands
that go on print one document a line. ``gristmill schema NAME`` prints the JSON Schema.
"""

from typing import Any

import msgspec

from gristmill.cli.document import Document
from gristmill.cli.documents_chain import DOCUMENTS as OF_CHAIN
from gristmill.cli.documents_rental import DOCUMENTS as RENTALS
from gristmill.wire.client import (
    AccountRow,
    JobStatus,
    Reason,
    SubtaskRow,
    Turn,
    UsageRow,
    WorkerRow,
)
from gristmill.wire.payments import IntentView, Offer
from gristmill.wire.registry import LimitRow, Record
from gristmill.wire.spec import JobSpec


class Up(Document, frozen=True, tag="gristmill/up/1"):
    """The grid is up. ``metering`` and ``tiers`` are those of its workers."""

    address: str
    state: str
    pid: int
    workers: list[WorkerRow]


class Submitted(Document, frozen=True, tag="gristmill/submit/1"):
    """The job is on disk. ``is_replayed``: it was there before, by the same submission id."""

    id: str
    job: int
    count: int
    decomposition: str = ""


class DryRunResult(Document, frozen=True, tag="gristmill/dry-run/1"):
    """What a submission would do. The price lies between these for work that ends by itself."""

    spec: JobSpec
    count: int
    workers_matching: int
    workers_of: int
    price_min_ucredits: int
    price_max_ucredits: int
    reasons: list[Reason]


class Suite(Document, frozen=True, tag="gristmill/suite/1"):
    """The verdict of ``--from pytest``. ``exit_code`` is plain pytest's; ``files``: one each."""

    id: str
    exit_code: int
    tests: int
    failures: int
    errors: int
    skipped: int
    files: dict[str, int]
    junit: str


class Jobs(Document, frozen=True, tag="gristmill/status/1"):
    """Jobs, newest first; one with ``status JOB``."""

    jobs: list[JobStatus]


class Subtasks(Document, frozen=True, tag="gristmill/subtasks/1"):
    """Subtasks of a job, in index order. ``is_cut``: there are more; see ``--limit``."""

    job: JobStatus
    subtasks: list[SubtaskRow]
    is_cut: bool


class Workers(Document, frozen=True, tag="gristmill/workers/1"):
    """Workers of the grid."""

    workers: list[WorkerRow]


class Limits(Document, frozen=True, tag="gristmill/limits/1"):
    """What keys may ask for, and what they did; one's own, or of every key for an operator."""

    keys: list[LimitRow]


class Waited(Document, frozen=True, tag="gristmill/wait/1"):
    """The ends of jobs, in the order asked for. ``failed``: ids of those that did not end well."""

    jobs: list[JobStatus]
    failed: list[str]


class FileOut(msgspec.Struct, frozen=True):
    """A file that a subtask gave back; ``written``: where it is now, empty without ``--out``."""

    path: str
    digest: str
    size_bytes: int
    written: str = ""


class SubtaskResult(Document, frozen=True, tag="gristmill/result/1"):
    """One subtask, one document a line.

    ``value``: of a function, where JSON can say it, else ``value_repr``. ``stdout``, ``stderr`` of
    a command, undecodable bytes replaced. ``error``: why there is no value.
    """

    id: str
    job: int
    index: int
    is_ok: bool
    value: Any = None
    value_repr: str = ""
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    files: list[FileOut] = msgspec.field(default_factory=list)
    error: str = ""
    outcome: str = ""
    written: str = ""


class LogLine(Document, frozen=True, tag="gristmill/log/1"):
    """Output of one attempt of subtasks ``index .. index + count``, one document a line.

    ``state`` of the attempt: ended, running or lost. ``stdout_bytes``, ``stderr_bytes``: how much
    it wrote; less is here when ``is_cut``.
    """

    id: str
    index: int
    count: int
    attempt: int
    stdout: str
    stderr: str
    is_cut: bool
    state: str = "ended"
    stdout_bytes: int = 0
    stderr_bytes: int = 0


class Cancelled(Document, frozen=True, tag="gristmill/cancel/1"):
    """What was asked to be cancelled; how far it got is in ``status``."""

    asked: list[str]


class Steered(Document, frozen=True, tag="gristmill/steer/1"):
    """What was asked to ``pause`` or to ``resume``; a job that has ended stays as it is."""

    verb: str
    asked: list[str]


class Why(Document, frozen=True, tag="gristmill/why/1"):
    """Why a job is not running, or that it is."""

    id: str
    job: int
    state: str
    summary: str
    reasons: list[Reason]
    turn: Turn | None = None


class Tariffs(Document, frozen=True, tag="gristmill/tariffs/1"):
    """Rates of each class of nodes: for a cpu second, a GiB-second of memory, a subtask."""

    tariffs: dict[str, dict[str, int]]


class Price(Document, frozen=True, tag="gristmill/price/1"):
    """What a job would cost.

    ``basis``: ``history``, ``sample``, ``limits`` or ``free``; with the first two, low and high are
    the 5th and the 95th percentile. ``job`` is the sample, which cost ``spent_ucredits``.
    """

    basis: str
    subtasks: int
    low_ucredits: int
    mid_ucredits: int
    high_ucredits: int
    per_subtask_ucredits: float
    measured: int
    is_capped: bool
    job: str
    spent_ucredits: int


class Efficiency(Document, frozen=True, tag="gristmill/eff/1"):
    """What a job asked for, what it used and what that cost.

    ``memory_ucredits``: of the bill, for reserved memory; ``idle_ucredits``: of that, for memory
    that nobody used; ``saved_ucredits``: what the suggestion (0 for none) would have saved.
    """

    id: str
    job: int
    subtasks: int
    cpus_asked_milli: int
    cpus_used_milli: int
    memory_asked_bytes: int
    memory_used_bytes: int
    wall_asked_ms: int
    wall_used_ms: int
    cpu_asked_ms: int
    cpu_used_ms: int
    spent_ucredits: int
    memory_ucredits: int
    idle_ucredits: int
    suggested_memory_bytes: int
    saved_ucredits: int
    is_estimated: bool


class Usage(Document, frozen=True, tag="gristmill/usage/1"):
    """A bill; ``keys`` of a row are what it is split by, in the order of ``by``."""

    by: str
    rows: list[UsageRow]


class Balance(Document, frozen=True, tag="gristmill/balance/1"):
    """Accounts, and the sum of all accounts of the ledger."""

    accounts: list[AccountRow]
    sum_ucredits: int
    transfers: int


class Entry(msgspec.Struct, frozen=True):
    """One entry of an account, of the columns of ``gristmill statement --csv``."""

    number: int
    at_ms: int
    what: str
    ref: str
    receipt: str
    amount_ucredits: int
    toll_ucredits: int
    held_ucredits: int
    posted_ucredits: int


class AccountStatement(Document, frozen=True, tag="gristmill/statement/1"):
    """An account as of transfer ``upto``; ``incident``: named if the entries do not add up."""

    account: str
    upto: int
    came_ucredits: int
    went_ucredits: int
    held_ucredits: int
    available_ucredits: int
    incident: str
    entries: list[Entry]


class Audit(Document, frozen=True, tag="gristmill/audit/1"):
    """Whether the books at ``place`` are in order: ``faults`` in words, the first bad row first."""

    place: str
    faults: list[str]
    facts: dict[str, int | str]


class Moved(Document, frozen=True, tag="gristmill/moved/1"):
    """Credits were minted or moved, now or when it was said before."""

    ref: str


class Proof(Document, frozen=True, tag="gristmill/proof/1"):
    """What a receipt file, or a job's receipts against its bill, prove; all of it without faults.

    ``keys``: the public keys that signed, by whose they are.
    """

    job: str
    receipts: int
    amount_ucredits: int
    faults: list[str]
    keys: dict[str, str]


class CreditOffers(Document, frozen=True, tag="gristmill/credit-offers/1"):
    """What credits are sold for; ``ledger_key`` signs what is to be paid."""

    offers: list[Offer]
    ledger_key: str


class Purchase(Document, frozen=True, tag="gristmill/purchase/1"):
    """One purchase. ``outcome``: its state, ``underpaid``, ``cancelling`` or ``settled (late)``."""

    outcome: str
    intent: IntentView


class Purchases(Document, frozen=True, tag="gristmill/purchases/1"):
    """Purchases, newest first."""

    intents: list[IntentView]


class LoggedIn(Document, frozen=True, tag="gristmill/login/1"):
    """Who we are at a grid from now on; empty texts after a logout."""

    address: str
    token: str
    tenant: str


class Drained(Document, frozen=True, tag="gristmill/drain/1"):
    """The worker was asked to finish what it has. ``is_ended``: with ``--wait``, it has."""

    worker: str
    is_ended: bool = False


class Released(Document, frozen=True, tag="gristmill/release/1"):
    """The node of this worker is not in quarantine."""

    worker: str


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. ``level``: ``ok``, ``note``, ``warning`` or ``fault``."""

    name: str
    level: str
    detail: str
    remedy: str = ""


class Doctor(Document, frozen=True, tag="gristmill/doctor/1"):
    """What this host can do. ``limits``: limit to who holds it. ``faults``: findings that are.

    ``is_able``: it can run jailed work. Everything in ``findings`` that is a fault or a warning has
    a ``remedy``: one line for a shell.
    """

    is_able: bool
    findings: list[Finding]
    limits: dict[str, str]
    faults: int = 0


class DeployedFile(msgspec.Struct, frozen=True):
    """One file of a grid under systemd. ``act``: what was done, or would be; ``text``: shown."""

    path: str
    act: str
    text: str = ""


class Deployed(Document, frozen=True, tag="gristmill/deploy/1"):
    """Files of a grid under systemd. ``is_dry_run``: nothing was written; ``next``: to type.

    ``elsewhere``: to type on another host, of workers or of the broker; empty where there is none.
    """

    is_dry_run: bool
    files: list[DeployedFile]
    next: str
    elsewhere: str = ""


class DrillRow(msgspec.Struct, frozen=True):
    """One fault. ``verdict``: ``ok``, ``FAILED``, ``STUCK`` (not recovered) or ``skipped``.

    ``recovery_ms``: from the end of the fault until a job that was submitted then was done.
    """

    fault: str
    hit: str
    recovery_ms: int
    lost: int
    doubled: int
    verdict: str


class Drill(Document, frozen=True, tag="gristmill/drill/1"):
    """What a drill found. ``accepted``, ``acked``, ``lost`` and ``doubled`` count subtasks.

    ``is_ok``: nothing lost, doubled or odd, and everything recovered. ``seed`` repeats its choices.
    """

    is_ok: bool
    accepted: int
    acked: int
    lost: int
    doubled: int
    jobs: int
    recovery_p50_ms: int
    recovery_max_ms: int
    contributions: int
    billed_ucredits: int
    ledger_sum_ucredits: int
    problems: list[str]
    faults: list[DrillRow]
    seed: int
    seconds: float
    date: str
    host: str
    versions: dict[str, str]


class Fault(Document, frozen=True, tag="gristmill/error/1"):
    """An error, on stdout as well when ``--json`` was given."""

    code: str
    message: str
    hint: str
    exit_code: int


class NodeToken(Document, frozen=True, tag="gristmill/node-token/1"):
    """A node's token, told this once. ``drop_in``: what its administrator pastes."""

    name: str
    token: str
    expires_ms: int
    fingerprint: str
    drop_in: str


class NodeCheck(msgspec.Struct, frozen=True):
    """One thing that a node tried on itself."""

    name: str
    is_ok: bool
    detail: str


class Node(msgspec.Struct, frozen=True):
    """A node as the registry has it; see ``wire/registry.py``, ``NodeRow``."""

    name: str
    public: str
    owner: str
    state: str
    version: int
    reason: str
    node_class: str
    slots_max: int
    source: str
    host: str
    kernel: str
    cpus_milli: int
    memory_bytes: int
    disk_bytes: int
    metering: str
    tiers: list[str]
    versions: dict[str, str]
    checks: list[NodeCheck]
    enrolled_ms: int
    seen_ms: int
    until_ms: int
    approvals: list[str]
    approvals_needed: int
    flags: int
    flagged: str
    decided_by: str
    decided_ms: int


class Nodes(Document, frozen=True, tag="gristmill/nodes/1"):
    """Nodes as the registry has them."""

    nodes: list[Node]


class Enrolment(Document, frozen=True, tag="gristmill/enrolment/1"):
    """What this machine is on its grid. ``brokers``: where its worker connects."""

    name: str
    public: str
    state: str
    reason: str
    brokers: list[str] = msgspec.field(default_factory=list)


class Token(msgspec.Struct, frozen=True):
    """A token of a person or a key of a service, as the registry has it."""

    name: str
    public: str
    role: str
    tenant: str
    state: str
    version: int
    scopes: list[str]
    expires_ms: int
    reason: str
    decided_by: str
    decided_ms: int


class NewToken(Document, frozen=True, tag="gristmill/new-token/1"):
    """A person's token, told this once: it is a key, of which the grid keeps the public part."""

    secret: str
    token: Token


class Tokens(Document, frozen=True, tag="gristmill/tokens/1"):
    """Tokens of people and keys of services."""

    tokens: list[Token]


class AuditRecord(Document, frozen=True, tag="gristmill/audit-record/1"):
    """One act of the audit log."""

    record: Record


class AuditVerified(Document, frozen=True, tag="gristmill/audit-verified/1"):
    """Whether the audit log is in order. ``head``: NUMBER:CHAIN, to be kept somewhere else."""

    place: str
    faults: list[str]
    records: int
    head: str


DOCUMENTS: tuple[type[Document], ...] = (
    Up,
    Submitted,
    DryRunResult,
    Suite,
    Jobs,
    Subtasks,
    Limits,
    Workers,
    Waited,
    SubtaskResult,
    LogLine,
    Cancelled,
    Steered,
    Why,
    Tariffs,
    Price,
    Efficiency,
    Usage,
    Balance,
    AccountStatement,
    Audit,
    Moved,
    Proof,
    CreditOffers,
    Purchase,
    Purchases,
    LoggedIn,
    Drained,
    Released,
    NodeToken,
    Nodes,
    Enrolment,
    NewToken,
    Tokens,
    AuditRecord,
    AuditVerified,
    Doctor,
    Deployed,
    Drill,
    *OF_CHAIN,
    *RENTALS,
    Fault,
)
BY_NAME: dict[str, type[Document]] = {
    str(document.__struct_config__.tag): document for document in DOCUMENTS
}


def encode(document: Document) -> bytes:
    """One line of JSON."""
    return msgspec.json.encode(document)
