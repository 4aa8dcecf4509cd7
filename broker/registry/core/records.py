"""What the registry knows, what happens to it, and what it wants done.

``Row`` and ``Token`` are what is kept; each change of one is a ``Record`` of the log with the next
number. Times are ms since the epoch.
"""

import msgspec

from gristmill.broker.registry.core.table import HOLDING
from gristmill.wire.enrolment import Report
from gristmill.wire.registry import Principal, Record

NO_REPORT = Report("", "", 0, 0, 0, "", [], {}, [])


class Policy(msgspec.Struct, frozen=True):
    """What the owner of the grid decided about enrolment."""

    approvals: int = 1  #: different operators who must approve a node
    token_ttl_ms: int = 15 * 60_000  #: longest life of a node's token, and the default
    pending_ttl_ms: int = 24 * 3_600_000
    vanished_ms: int = 30_000  #: a pending node that was silent for so long is not approved
    pending_max: int = 1_000  #: pending nodes
    tokens_max: int = 1_000  #: open tokens of nodes
    principals_max: int = 100_000


class Row(msgspec.Struct, frozen=True):
    """A principal with what only the registry knows. ``decided``: the last decision, as it came.

    The fields behind ``decided`` are of nodes.
    """

    principal: Principal
    change: int
    decided: str
    decided_by: str
    decided_ms: int
    source: str = ""
    report: Report = NO_REPORT
    enrolled_ms: int = 0
    seen_ms: int = 0
    until_ms: int = 0
    approvals: tuple[str, ...] = ()
    flags: int = 0
    flagged: str = ""

    @property
    def is_holding(self) -> bool:
        """Whether nobody else may have its name."""
        return self.principal.state in HOLDING


class Token(msgspec.Struct, frozen=True):
    """A node's token. ``state``: open, used, revoked or expired; ``replaces``: of a rotation."""

    digest: str
    name: str
    tenant: str
    node_class: str
    by: str
    made_ms: int
    expires_ms: int
    state: str = "open"
    used_by: str = ""
    replaces: str = ""
    flags: int = 0

    @property
    def subject(self) -> str:
        """What the log calls it."""
        return f"token:{self.digest[:16]}"


class State(msgspec.Struct):
    """Everything, as of record ``number``.

    ``rows``: by public key, in the order of their last change. ``nodes`` and ``others``: who holds
    a name. ``open_tokens``: name to digest. ``noted``: when a refusal at a door was last recorded.
    """

    policy: Policy
    number: int = 0
    rows: dict[str, Row] = {}
    nodes: dict[str, str] = {}
    others: dict[str, str] = {}
    tokens: dict[str, Token] = {}
    open_tokens: dict[str, str] = {}
    noted: dict[str, int] = {}


# ------------------------------------------------------------ events


class TokenAsked(msgspec.Struct, frozen=True):
    """``IssueToken`` came; ``digest`` is that of a secret that was drawn for it."""

    by: str
    name: str
    tenant: str
    node_class: str
    ttl_ms: int
    is_rotation: bool
    digest: str


class DecisionSaid(msgspec.Struct, frozen=True):
    """``Decide`` came."""

    by: str
    act: str
    name: str
    seen: int
    reason: str = ""
    slots_max: int = 0
    node_class: str = ""
    is_token: bool = False

    @property
    def words(self) -> str:
        """Equal for the same decision said again."""
        return msgspec.json.encode(self).decode()


class PrincipalSaid(msgspec.Struct, frozen=True):
    """``AddPrincipal`` came."""

    by: str
    public: str
    role: str
    name: str
    tenant: str
    scopes: tuple[str, ...]
    expires_ms: int


class EnrolSaid(msgspec.Struct, frozen=True):
    """A node spoke at the enrolment port. ``is_proven``: over a fresh challenge, by its key."""

    digest: str
    public: str
    name: str
    report: Report
    source: str
    is_proven: bool
    replaces: str = ""


class RefusalNoted(msgspec.Struct, frozen=True):
    """A broker refused somebody."""

    broker: str
    code: str
    public: str
    name: str
    why: str


class Ticked(msgspec.Struct, frozen=True):
    """Time went by."""


Event = TokenAsked | DecisionSaid | PrincipalSaid | EnrolSaid | RefusalNoted | Ticked


# ------------------------------------------------------------ effects


class SaveRow(msgspec.Struct, frozen=True):
    """Keep this row, instead of the one of the same key."""

    row: Row


class SaveToken(msgspec.Struct, frozen=True):
    """Keep this token, instead of the one of the same digest."""

    token: Token


class Append(msgspec.Struct, frozen=True):
    """Append this record to the log."""

    record: Record


class AnswerRow(msgspec.Struct, frozen=True):
    """Tell whoever asked how the node or token is now."""

    row: Row
    is_repeat: bool = False


class AnswerToken(msgspec.Struct, frozen=True):
    """Tell whoever asked their token. ``revoked``: one that this one takes the place of."""

    token: Token
    revoked: bool


class Ask(msgspec.Struct, frozen=True):
    """The token is good: ask for the signature."""

    token: Token


class Refuse(msgspec.Struct, frozen=True):
    """Tell whoever asked that nothing was done, and why."""

    code: str
    message: str
    hint: str = ""


Effect = SaveRow | SaveToken | Append | AnswerRow | AnswerToken | Ask | Refuse
