"""A registry's core with a clock and a disk of its own."""

from typing import Any

from gristmill.broker.registry.core.changes import adopt_row, adopt_token
from gristmill.broker.registry.core.records import (
    AnswerRow,
    AnswerToken,
    Append,
    Ask,
    DecisionSaid,
    Effect,
    EnrolSaid,
    Event,
    Policy,
    Refuse,
    Row,
    SaveRow,
    SaveToken,
    State,
    Ticked,
    Token,
    TokenAsked,
)
from gristmill.broker.registry.core.step import step
from gristmill.wire.enrolment import Check, Report, token_digest
from gristmill.wire.registry import Record

REPORT = Report(
    "mill-host", "6.1 x86_64", 4_000, 8 << 30, 100 << 30, "cgroup", ["job"],
    {"gristmill": "0.1.0"}, [Check("jail", True, "12 trials")],
)  # fmt: skip


def key_of(number: int) -> str:
    return f"{number:064x}"


class Desk:
    """The core, fed by a test; ``rows``, ``tokens`` and ``log`` are what its disk has."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.state = State(policy or Policy())
        self.now_ms = 1_800_000_000_000
        self.rows: dict[str, Row] = {}
        self.tokens: dict[str, Token] = {}
        self.log: list[Record] = []
        self._digests = 0

    def say(self, event: Event) -> list[Effect]:
        effects = step(self.state, event, self.now_ms)
        for effect in effects:
            if isinstance(effect, SaveRow):
                self.rows[effect.row.principal.public] = effect.row
            elif isinstance(effect, SaveToken):
                self.tokens[effect.token.digest] = effect.token
            elif isinstance(effect, Append):
                self.log.append(effect.record)
        return effects

    def restart(self) -> None:
        """Only what was saved is left."""
        state = State(self.state.policy, number=len(self.log))
        for row in sorted(self.rows.values(), key=lambda row: row.change):
            adopt_row(state, row)
        for token in self.tokens.values():
            adopt_token(state, token)
        self.state = state

    # ------------------------------------------------------------ words

    def token(self, name: str = "mill", by: str = "ann", **more: Any) -> str:
        """The digest of a new token."""
        self._digests += 1
        digest = token_digest(str(self._digests))
        fields = {"tenant": "local", "node_class": "gpu", "ttl_ms": 0, "is_rotation": False, **more}
        answer = self.say(TokenAsked(by=by, name=name, digest=digest, **fields))[-1]
        assert isinstance(answer, AnswerToken), answer
        return digest

    def enrol(
        self, digest: str, public: str, name: str = "mill", *, is_proven: bool = True, **more: Any
    ) -> AnswerRow | Ask | Refuse:
        fields = {"report": REPORT, "source": "10.0.0.9", **more}
        event = EnrolSaid(digest=digest, public=public, name=name, is_proven=is_proven, **fields)
        answer = self.say(event)[-1]
        assert isinstance(answer, AnswerRow | Ask | Refuse)
        return answer

    def decide(
        self, act: str, name: str = "mill", seen: int | None = None, by: str = "ann", **more: Any
    ) -> AnswerRow | Refuse:
        if seen is None:
            seen = self.row(name).principal.version
        more.setdefault("reason", "because")
        if act == "limit":
            more.setdefault("slots_max", 2)
        answer = self.say(DecisionSaid(by=by, act=act, name=name, seen=seen, **more))[-1]
        assert isinstance(answer, AnswerRow | Refuse)
        return answer

    def tick(self, ms: int = 0) -> list[Effect]:
        self.now_ms += ms
        return self.say(Ticked())

    def row(self, name: str = "mill") -> Row:
        """Of the node that has the name, or had it last."""
        found = [row for row in self.state.rows.values() if row.principal.name == name]
        holding = [row for row in found if row.is_holding]
        return (holding or found)[-1]

    def into(self, state: str) -> Row:
        """A node 'mill' that has gone the way into this state."""
        ways = {
            "pending": [],
            "approved": ["approve"],
            "active": ["approve", "canary_right"],
            "draining": ["approve", "canary_right", "drain"],
            "quarantined": ["approve", "canary_wrong"],
            "rejected": ["reject"],
            "expired": [],
            "banned": ["ban"],
            "revoked": ["approve", "revoke"],
        }
        self.enrol(self.token(), key_of(1))
        for act in ways[state]:
            self.decide(act)
        if state == "expired":
            self.tick(self.state.policy.pending_ttl_ms)
        assert self.row().principal.state == state
        return self.row()
