"""A node at the enrolment port: its token, its name, its key, in this order.

Whoever has no good token learns nothing and leaves nothing behind, not even a record. Who has one
that somebody else used, or a name that somebody else has, is flagged: an operator should know.
"""

from msgspec.structs import replace

from gristmill.broker.registry.core.changes import append, save_row, save_token, state_of
from gristmill.broker.registry.core.decisions import too_many, wrong_state
from gristmill.broker.registry.core.records import (
    AnswerRow,
    Ask,
    Effect,
    EnrolSaid,
    Refuse,
    Row,
    SaveRow,
    SaveToken,
    State,
    Token,
)
from gristmill.broker.registry.core.table import NOBODY, next_state
from gristmill.wire.registry import Principal

_NEW = "an operator issues a new one: gristmill node token"


def on_enrol_said(state: State, event: EnrolSaid, now_ms: int) -> list[Effect]:
    """What the node is from now on, the wish for its signature, or why not."""
    token = state.tokens.get(event.digest)
    if token is None:
        return [Refuse("UNAUTHORISED", "this grid knows no such token", f"{_NEW} {event.name}")]
    if event.name != token.name:
        return [
            Refuse(
                "FORBIDDEN",
                f"this token is for node {token.name}, not for {event.name!r:.80}",
                f"enrol as {token.name}, or {_NEW} {event.name:.80}",
            )
        ]
    known = state.rows.get(event.public)
    if token.state == "used":
        if event.public != token.used_by:
            return _second_use(state, token, event, now_ms)
        if known is not None:  # it lost our answer, or wants to know what was decided
            return _seen(state, known, token, event, now_ms)
    if token.state == "open" and token.expires_ms <= now_ms:
        token = replace(token, state="expired")  # the record comes with the next tick
    if token.state != "open":
        what = "EXPIRED" if token.state == "expired" else "REVOKED"
        why = "after its time" if what == "EXPIRED" else "by another one for the same name"
        return [
            Refuse(
                f"TOKEN_{what}",
                f"the token for {token.name} was {token.state} {why}",
                f"{_NEW} {token.name}",
            )
        ]
    return _open(state, known, token, event, now_ms)


def _open(
    state: State, known: Row | None, token: Token, event: EnrolSaid, now_ms: int
) -> list[Effect]:
    """An open token of this name."""
    if known is not None and (known.principal.role, known.principal.name) != ("worker", token.name):
        return [
            Refuse(
                "IDENTITY_CONFLICT",
                f"this key is {known.principal.role} {known.principal.name} already",
                "one key is one principal: enrol with a state folder of this node's own",
            )
        ]
    holder = state.rows.get(state.nodes.get(token.name, ""))
    if token.replaces:
        if holder is None or holder.principal.public != token.replaces:
            return [
                Refuse(
                    "TOKEN_REVOKED",
                    f"the key that this token replaces no longer has the name {token.name}",
                    f"{_NEW} {token.name}",
                )
            ]
        if known is not None or event.replaces != token.replaces:
            return [
                Refuse(
                    "FORBIDDEN",
                    f"this token lets {token.name} take a new key; the one that it has must sign",
                    "run 'gristmill node enrol' on that node, with its state folder; if its key is"
                    f" lost: gristmill node revoke {token.name}, then a new token",
                )
            ]
    elif holder is not None and holder.principal.public != event.public:
        return _conflict(state, holder, event, now_ms)
    before = known.principal.state if known is not None else NOBODY
    after = next_state(before, "enrol")
    if after is None:
        assert known is not None
        return [
            Refuse(
                "NODE_REFUSED",
                f"the key of {known.principal.name} is {before}: {known.principal.reason}",
                "ask the operator why",
            )
        ]
    bad = [check for check in event.report.checks if not check.is_ok]
    if bad:
        return [
            Refuse(
                "SELF_TEST_FAILED",
                "; ".join(f"{check.name}: {check.detail:.200}" for check in bad),
                "; ".join(check.remedy for check in bad if check.remedy),
            )
        ]
    if known is None and len(state.rows) >= state.policy.principals_max:
        return [too_many(state)]
    if after == "pending" and holder is None:
        pending = sum(state.rows[key].principal.state == "pending" for key in state.nodes.values())
        if pending >= state.policy.pending_max:
            return [
                Refuse(
                    "QUOTA",
                    f"{pending} nodes are pending; the limit is {state.policy.pending_max}",
                    "an operator decides about some first",
                )
            ]
    if not event.is_proven:
        return [Ask(token)]
    return _enter(state, known, token, event, now_ms)


def _enter(
    state: State, known: Row | None, token: Token, event: EnrolSaid, now_ms: int
) -> list[Effect]:
    """The token is used up, the node is there."""
    used = replace(token, state="used", used_by=event.public)
    effects = save_token(state, used, event.public, f"from {event.source}", now_ms)
    if token.replaces:
        return [*effects, *_rotate(state, token, event, now_ms)]
    before = known.principal.state if known is not None else NOBODY
    after = next_state(before, "enrol")
    assert after is not None
    if known is None or after != before:
        principal = Principal(
            public=event.public,
            role="worker",
            name=token.name,
            tenant=token.tenant,
            state=after,  # type: ignore[arg-type]  # a state of the table
            version=known.principal.version + 1 if known is not None else 1,
            node_class=token.node_class,
        )
        until_ms = now_ms + state.policy.pending_ttl_ms
    else:
        principal = replace(known.principal, version=known.principal.version + 1)
        until_ms = known.until_ms
    row = Row(
        principal=principal,
        change=0,
        decided="",
        decided_by=event.public,
        decided_ms=now_ms,
        source=event.source,
        report=event.report,
        enrolled_ms=now_ms,
        seen_ms=now_ms,
        until_ms=until_ms,
        flags=known.flags if known is not None else 0,
        flagged=known.flagged if known is not None else "",
    )
    version = known.principal.version if known is not None else 0
    why = f"from {event.source}, token of {token.by}"
    effects += save_row(state, row, event.public, "enrol", before, version, why, now_ms)
    return [*effects, AnswerRow(state_of(state, event.public))]


def _rotate(state: State, token: Token, event: EnrolSaid, now_ms: int) -> list[Effect]:
    """The new key has the old one's place, the old one is nobody from now on."""
    old = state.rows[token.replaces]
    was = old.principal
    after = next_state(was.state, "rotate")
    if after is None:
        return [wrong_state(old, "rotate")]
    why = f"key replaced by {event.public[:16]}, token of {token.by}"
    ended = replace(was, state=after, version=was.version + 1, reason=why)
    effects = save_row(
        state,
        replace(old, principal=ended, decided="", decided_by=token.by, decided_ms=now_ms),
        token.by, "rotate", was.state, was.version, why, now_ms,
    )  # fmt: skip
    row = replace(
        old,
        principal=replace(was, public=event.public, version=1, reason=""),
        decided="",
        decided_by=token.by,
        decided_ms=now_ms,
        source=event.source,
        report=event.report,
        enrolled_ms=now_ms,
        seen_ms=now_ms,
    )
    told = f"takes the place of key {token.replaces[:16]}"
    effects += save_row(state, row, token.by, "rotate", NOBODY, 0, told, now_ms)
    return [*effects, AnswerRow(state_of(state, event.public))]


def _seen(state: State, known: Row, token: Token, event: EnrolSaid, now_ms: int) -> list[Effect]:
    """The node that used the token asks again: it is alive. That is no record."""
    if not event.is_proven:
        return [Ask(token)]
    row = replace(known, seen_ms=now_ms, source=event.source)
    state.rows[event.public] = row  # its place in the order of changes stays
    return [AnswerRow(row, is_repeat=True)]


def _second_use(state: State, token: Token, event: EnrolSaid, now_ms: int) -> list[Effect]:
    told = f"its token was used again, by key {event.public[:16]} from {event.source}"
    effects: list[Effect] = []
    flags = token.flags + 1
    token = replace(token, flags=flags)
    if flags.bit_count() == 1:  # 1, 2, 4, ...: no flood of records
        effects += save_token(state, token, event.public, told, now_ms, "second-use")
    else:
        state.tokens[token.digest] = token
        effects.append(SaveToken(token))
    effects += _flag(state, state.rows.get(token.used_by), told)
    return [
        *effects,
        Refuse(
            "TOKEN_USED",
            f"the token for {token.name} was used by another key; its node is flagged",
            f"if you are {token.name}, tell the operator at once: {_NEW} {token.name}",
        ),
    ]


def _conflict(state: State, holder: Row, event: EnrolSaid, now_ms: int) -> list[Effect]:
    principal = holder.principal
    told = f"another key, {event.public[:16]} from {event.source}, asked for its name"
    effects: list[Effect] = []
    if (holder.flags + 1).bit_count() == 1:
        same = (principal.version, principal.version), (principal.state, principal.state)
        effects.append(
            append(
                state, event.public, "conflict", principal.public, principal.name,
                *same, told, now_ms,
            )
        )  # fmt: skip
    effects += _flag(state, holder, told)
    return [
        *effects,
        Refuse(
            "IDENTITY_CONFLICT",
            f"node {principal.name} is {principal.state} with another key; it keeps its place",
            f"enrol under another name; for a new key of the same node: gristmill node rotate"
            f" {principal.name}; if the node is gone: gristmill node revoke {principal.name}",
        ),
    ]


def _flag(state: State, row: Row | None, told: str) -> list[Effect]:
    """Counted on the node; neither its version nor its place among the changes is touched."""
    if row is None:
        return []
    row = replace(row, flags=row.flags + 1, flagged=told)
    state.rows[row.principal.public] = row
    return [SaveRow(row)]
