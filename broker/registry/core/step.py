"""The registry's one door: an event in, effects out, the state moved on; total, deterministic.

Each change of a row or a token goes through ``_change``: it has one record in the log, with the
versions before and after. A refusal changes nothing but the count of flags.
"""

import re
from collections.abc import Iterator

from msgspec.structs import replace

from gristmill.broker.registry.core import decisions, enrolling
from gristmill.broker.registry.core.changes import append, save_row, save_token, state_of
from gristmill.broker.registry.core.records import (
    AnswerRow,
    AnswerToken,
    DecisionSaid,
    Effect,
    EnrolSaid,
    Event,
    PrincipalSaid,
    RefusalNoted,
    Refuse,
    Row,
    State,
    Token,
    TokenAsked,
)
from gristmill.broker.registry.core.table import NOBODY, next_state
from gristmill.wire.enrolment import NODE_NAME
from gristmill.wire.registry import Principal

NOTE_REST_MS = 60_000  #: between two records of the same refusal
NOTES_MAX = 4_096  #: kinds of refusals that are remembered
CLOCK = "registry"  #: who does what time does
TTL_MS_MIN = 1_000


def step(state: State, event: Event, now_ms: int) -> list[Effect]:
    """What is to be kept, appended and answered; all of it or, on a fault of the disk, nothing."""
    if isinstance(event, EnrolSaid):
        return enrolling.on_enrol_said(state, event, now_ms)
    if isinstance(event, DecisionSaid):
        return decisions.on_decision_said(state, event, now_ms)
    if isinstance(event, TokenAsked):
        return on_token_asked(state, event, now_ms)
    if isinstance(event, PrincipalSaid):
        return on_principal_said(state, event, now_ms)
    if isinstance(event, RefusalNoted):
        return on_refusal_noted(state, event, now_ms)
    return on_ticked(state, now_ms)


def on_token_asked(state: State, event: TokenAsked, now_ms: int) -> list[Effect]:
    """A token for a name; the one that was open for it is revoked."""
    ttl_max = state.policy.token_ttl_ms
    faults = []
    if not re.fullmatch(NODE_NAME, event.name):
        faults.append(
            f"name is {event.name!r:.80}: letters, digits, '.' and '-', at most 63, and neither of"
            " the two first"
        )
    if event.ttl_ms and not TTL_MS_MIN <= event.ttl_ms <= ttl_max:
        faults.append(f"ttl is {event.ttl_ms} ms: at least {TTL_MS_MIN}, at most {ttl_max}")
    if not event.by:
        faults.append("by is empty: every act has somebody who did it")
    if faults:
        return [Refuse("INVALID_SPEC", "; ".join(faults), "correct the named fields")]
    holder = state.rows.get(state.nodes.get(event.name, ""))
    if event.is_rotation:
        if holder is None:
            return [decisions.unknown(event.name)]
        if next_state(holder.principal.state, "rotate") is None:
            return [decisions.wrong_state(holder, "rotate")]
    if event.digest in state.tokens:
        return [Refuse("INTERNAL", "the same secret was drawn twice", "ask again")]
    effects: list[Effect] = []
    before = state.tokens.get(state.open_tokens.get(event.name, ""))
    if before is None and len(state.open_tokens) >= state.policy.tokens_max:
        return [
            Refuse(
                "QUOTA",
                f"{len(state.open_tokens)} tokens of nodes are open; the limit is"
                f" {state.policy.tokens_max}",
                "wait until some are used or expire",
            )
        ]
    if before is not None:
        why = "another token was issued for this name"
        effects += save_token(state, replace(before, state="revoked"), event.by, why, now_ms)
    token = Token(
        digest=event.digest,
        name=event.name,
        tenant=event.tenant,
        node_class=event.node_class,
        by=event.by,
        made_ms=now_ms,
        expires_ms=now_ms + (event.ttl_ms or ttl_max),
        replaces=holder.principal.public if event.is_rotation and holder is not None else "",
    )
    act = "rotate-token" if event.is_rotation else "token"
    why = f"class {event.node_class or 'any'}, owner {event.tenant}"
    effects += save_token(state, token, event.by, why, now_ms, act)
    return [*effects, AnswerToken(token, before is not None)]


def on_principal_said(state: State, event: PrincipalSaid, now_ms: int) -> list[Effect]:
    """A person's token, or a service: its public key."""
    principal = Principal(
        public=event.public,
        role=event.role,  # type: ignore[arg-type]  # the message's own type
        name=event.name,
        tenant=event.tenant,
        state="active",
        scopes=list(event.scopes),
        expires_ms=event.expires_ms,
    )
    known = state.rows.get(event.public)
    if known is not None:
        if replace(known.principal, version=1) == principal:
            return [AnswerRow(known, is_repeat=True)]
        return [
            Refuse(
                "IDENTITY_CONFLICT",
                f"this key is known as {known.principal.role} {known.principal.name!r:.80},"
                f" {known.principal.state}",
                "make another key: one key is one principal",
            )
        ]
    faults = []
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,39}", event.name):
        faults.append(f"name is {event.name!r:.80}: a-z, 0-9, '.' and '-' only, at most 40")
    if not event.tenant or not event.tenant.isprintable() or "/" in event.tenant:
        faults.append(f"tenant is {event.tenant!r:.80}: printable characters, no '/'")
    if event.expires_ms and event.expires_ms <= now_ms:
        faults.append("expires is in the past")
    if not event.by:
        faults.append("by is empty: every act has somebody who did it")
    if faults:
        return [Refuse("INVALID_SPEC", "; ".join(faults), "correct the named fields")]
    if event.name in state.others:
        return [
            Refuse(
                "IDENTITY_CONFLICT",
                f"another key is {event.name}; it keeps its name",
                f"choose another name, or: gristmill token revoke {event.name}",
            )
        ]
    if len(state.rows) >= state.policy.principals_max:
        return [decisions.too_many(state)]
    row = Row(principal, 0, "", event.by, now_ms)
    scopes = ",".join(event.scopes) or "all scopes"
    why = f"{event.role} of {event.tenant}, {scopes}"
    saved = save_row(state, row, event.by, "create", NOBODY, 0, why, now_ms)
    return [*saved, AnswerRow(state_of(state, event.public))]


def on_refusal_noted(state: State, event: RefusalNoted, now_ms: int) -> list[Effect]:
    """One record a minute for each broker, key and code: a log is not filled from outside."""
    kind = f"{event.broker}\0{event.code}\0{event.public}"
    last_ms = state.noted.pop(kind, None)
    if last_ms is not None and now_ms - last_ms < NOTE_REST_MS:
        state.noted[kind] = last_ms
        return []
    if len(state.noted) >= NOTES_MAX:
        oldest = next(iter(state.noted))
        if now_ms - state.noted[oldest] < NOTE_REST_MS:
            return []  # a flood of different keys; what comes first is enough
        del state.noted[oldest]
    state.noted[kind] = now_ms
    row = state.rows.get(event.public)
    version = row.principal.version if row else 0
    now = row.principal.state if row else NOBODY
    name = row.principal.name if row else event.name
    why = f"{event.code}: {event.why}"
    by = f"broker:{event.broker}"
    return [
        append(
            state, by, "refused", event.public, name, (version, version), (now, now), why, now_ms
        )
    ]


def on_ticked(state: State, now_ms: int) -> list[Effect]:
    """Pending nodes and open tokens whose time is over."""
    effects: list[Effect] = []
    for name in list(state.open_tokens):
        token = state.tokens[state.open_tokens[name]]
        if token.expires_ms <= now_ms:
            why = "nobody used it in time"
            effects += save_token(state, replace(token, state="expired"), CLOCK, why, now_ms)
    for row in list(_pending(state)):
        if row.until_ms <= now_ms:
            principal = row.principal
            why = "nobody decided about it in time"
            ended = replace(principal, state="expired", version=principal.version + 1, reason=why)
            row = replace(row, principal=ended, decided="", decided_by=CLOCK, decided_ms=now_ms)
            before = principal.version
            effects += save_row(state, row, CLOCK, "expire", "pending", before, why, now_ms)
    return effects


def wait_ms(state: State, now_ms: int) -> int | None:
    """How long until time does something; None for never."""
    times = [state.tokens[digest].expires_ms for digest in state.open_tokens.values()]
    times += [row.until_ms for row in _pending(state)]
    return max(0, min(times) - now_ms) if times else None


def changes_after(state: State, known: int, count: int) -> tuple[list[Row], bool]:
    """The next rows that changed after record ``known``, oldest change first; whether that is all.

    A follower that knows more than there is has followed another registry: it is told everything.
    """
    known = known if known <= state.number else 0
    found = []
    for row in reversed(state.rows.values()):
        if row.change <= known:
            break
        found.append(row)
    found.reverse()
    return found[:count], len(found) <= count


def _pending(state: State) -> Iterator[Row]:
    for public in state.nodes.values():
        row = state.rows[public]
        if row.principal.state == "pending":
            yield row
