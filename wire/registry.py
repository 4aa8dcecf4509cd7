"""The registry dialogue (docs/rfc/0005): who may speak on this grid, as what, until when.

A principal is an Ed25519 public key. Its X25519 form is the CURVE key of its sockets, its
signatures are those of its receipts: one key, one principal. The registry is the only writer of
principals; brokers follow it, and keep what they know while it is away.
"""

from typing import Annotated, Any, Literal

import msgspec

from gristmill.wire.enrolment import BrokerAt, Report
from gristmill.wire.frames import HeaderDecoder, Integer
from gristmill.wire.limits import NAME_CHARS_MAX

Role = Literal["client", "operator", "worker", "ledger", "broker", "portal"]
#: clients and services are active until they are revoked; nodes go through all of these
State = Literal[
    "pending", "approved", "active", "draining", "quarantined",
    "rejected", "expired", "banned", "revoked",
]  # fmt: skip
#: what is decided about a node that is known; ``canary_*`` and ``drain`` are said by brokers
Decision = Literal[
    "approve", "reject", "limit", "canary_right", "canary_wrong", "drain", "quarantine", "release",
    "ban", "revoke",
]  # fmt: skip
Name = Annotated[str, msgspec.Meta(max_length=NAME_CHARS_MAX)]
Words = Annotated[str, msgspec.Meta(max_length=4_000)]
Public = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
LIMIT_MAX = 1 << 53
Limit = Annotated[int, msgspec.Meta(ge=0, le=LIMIT_MAX)]
SCOPES = ("submit", "read", "pay")  #: of a client: run work, look at it, buy and spend credits


class Message(msgspec.Struct, array_like=True, frozen=True, tag_field="type", gc=False):
    """Base of the dialogue's messages."""


class Limits(msgspec.Struct, array_like=True, frozen=True):
    """How much one key may ask for; 0 for what the broker's settings say.

    ``requests_per_s`` and ``bytes_per_s``: messages of its connections and their bytes, with what
    may come at once (``..._burst``). ``sessions_max``: open at a time. ``jobs_max`` and
    ``subtasks_max``: unfinished ones of its tenant, with which this key may still submit another.
    """

    requests_per_s: Limit = 0
    requests_burst: Limit = 0
    bytes_per_s: Limit = 0
    bytes_burst: Limit = 0
    sessions_max: Limit = 0
    jobs_max: Limit = 0
    subtasks_max: Limit = 0


NO_LIMITS = Limits()  #: of its own: those of the broker


class LimitRow(msgspec.Struct, frozen=True):
    """What one key may ask for, and what it did: as it holds now, 0 for no limit.

    ``sessions``, ``passed``, ``refused``: of this broker since its start; ``wait_ms``: nothing of
    it is taken for so long. ``jobs``, ``subtasks``: unfinished ones of its tenant.
    """

    name: str
    public: str
    tenant: str
    role: str
    requests_per_s: int
    requests_burst: int
    bytes_per_s: int
    bytes_burst: int
    sessions_max: int
    jobs_max: int
    subtasks_max: int
    sessions: int
    jobs: int
    subtasks: int
    passed: int
    refused: int
    wait_ms: int


class Principal(msgspec.Struct, array_like=True, frozen=True):
    """A public key and what it may do.

    ``public``: 64 hex characters, Ed25519. ``name``: of the node, or of the token. ``tenant``:
    whose it is: the tenant of a client, the owner of a node. ``version``: of this row, one more
    with each change. ``expires_ms``: 0 for never; past it the key is refused, whatever its state.
    ``slots_max`` and ``node_class``: what was approved of a node (0: what it has).
    """

    public: str
    role: Role
    name: str
    tenant: str
    state: State
    version: int = 1
    scopes: list[str] = []
    expires_ms: int = 0
    slots_max: int = 0
    node_class: str = ""
    reason: str = ""
    limits: Limits = NO_LIMITS


class Follow(Message, frozen=True, tag=1):
    """A broker: tell me all that changed behind change ``known``, and what changes from now on.

    Said again every 10 s: what was lost is told then.
    """

    broker: str
    known: Integer


class Changes(Message, frozen=True, tag=1):
    """Principals as they are now, each as of a change behind ``after`` and up to ``known``; a page.

    ``is_all``: nothing behind ``known`` is left to tell.
    """

    known: Integer
    principals: list[Principal]
    is_all: bool = True
    after: Integer = 0


class IssueToken(Message, frozen=True, tag=2):
    """An operator: let one node enrol as ``name``, once, within ``ttl_ms`` (0: as the grid says).

    ``by``: who decides, as the broker proved it; on the registry's own host, as they say it.
    ``is_rotation``: for the node that has the name, with another key. Answered with ``NewToken``.
    """

    request: Integer
    by: Name
    name: Name
    tenant: Name
    node_class: Name
    ttl_ms: Integer = 0
    is_rotation: bool = False


class Decide(Message, frozen=True, tag=3):
    """A decision about a node (or a token, ``is_token``) that was at version ``seen``.

    ``name``: of it, or its public key. ``reason``: why; of a wrong canary, the difference.
    Answered with the ``NodeRow``, or the ``PrincipalRow`` of a token. The same decision again is
    answered and changes nothing; of two about one version, the second is ``STALE_DECISION``.
    """

    request: Integer
    by: Name
    act: Decision
    name: Name
    seen: Integer
    reason: Words = ""
    slots_max: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0
    node_class: Name = ""
    is_token: bool = False


class AddPrincipal(Message, frozen=True, tag=4):
    """An operator: this key may speak as a client, an operator or a service. Never of a node.

    Answered with the ``PrincipalRow``; the same again changes nothing.
    """

    request: Integer
    by: Name
    public: Public
    role: Literal["client", "operator", "ledger", "broker", "portal"]
    name: Name
    tenant: Name
    scopes: list[Literal["submit", "read", "pay"]] = []
    expires_ms: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0


class AskRows(Message, frozen=True, tag=5):
    """A page of ``NodeRow``, of ``PrincipalRow`` (the others), or of the log (``Record``).

    ``after``: of the last row that was told, its ``change`` (its number, of the log). Answered with
    a list of at most ``PAGE_ROWS``; an empty one is the end.
    """

    request: Integer
    what: Literal["nodes", "principals", "log"]
    after: Integer = 0
    name: Name = ""


class Note(Message, frozen=True, tag=6):
    """A broker refused somebody at its door: for the audit log, one a minute for each key and code.

    Not answered.
    """

    broker: Name
    code: Name
    public: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")]
    name: Name
    why: Words


class RegistryAnswer(Message, frozen=True, tag=2):
    """What was asked, or done. ``is_repeat``: it was done before and nothing changed."""

    request: Integer
    body: msgspec.Raw
    is_repeat: bool = False


class RegistryRefused(Message, frozen=True, tag=3):
    """Nothing was changed, and why."""

    request: Integer
    code: str
    message: str
    hint: str = ""


class NewToken(msgspec.Struct, frozen=True):
    """A token of a node, told this once. ``brokers``: where its worker is going to connect."""

    token: str
    name: str
    expires_ms: int
    enrolment: BrokerAt
    brokers: list[BrokerAt]
    revoked: bool = False  #: an earlier one for this name, not used yet


class PrincipalRow(msgspec.Struct, frozen=True):
    """A person's token or a service as operators see it; ``change`` as in ``NodeRow``."""

    principal: Principal
    change: int
    decided_by: str
    decided_ms: int


class NodeRow(msgspec.Struct, frozen=True):
    """A node as operators see it. ``change``: the record of the log that made it what it is.

    ``source``: the address it came from. ``seen_ms``: when it last asked; ``until_ms``: while
    pending, when that expires. ``approvals``: operators who said yes, of ``approvals_needed``.
    ``flags``: times that somebody else used its token or its name, and how it was the last time.
    """

    principal: Principal
    change: int
    source: str
    report: Report
    enrolled_ms: int
    seen_ms: int
    until_ms: int
    approvals: list[str]
    approvals_needed: int
    flags: int
    flagged: str
    decided_by: str
    decided_ms: int


class Record(msgspec.Struct, frozen=True):
    """One act in the audit log: who, what, about whom, from which version and state to which, why.

    ``subject``: a public key, or ``token:`` and the start of a token's digest. ``chain``: 64 hex
    characters, sha-256 over the chain of the record before and this one.
    """

    number: int
    at_ms: int
    by: str
    act: str
    subject: str
    name: str
    version_before: int
    version_after: int
    state_before: str
    state_after: str
    why: str
    chain: str = ""


PAGE_ROWS = 50  #: a node's report may have 1 KiB and more
ToRegistry = Follow | IssueToken | Decide | AddPrincipal | AskRows | Note
FromRegistry = Changes | RegistryAnswer | RegistryRefused
decode_to_registry: HeaderDecoder[Any] = HeaderDecoder(ToRegistry)
decode_from_registry: HeaderDecoder[Any] = HeaderDecoder(FromRegistry)
