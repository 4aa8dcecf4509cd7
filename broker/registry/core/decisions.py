"""What operators and brokers decide about nodes that are known, and about people's tokens.

A decision names the version that it saw: it holds for that one, or not at all. The same decision
again is told how things are and changes nothing; that needs the last decision only, because an
older one has an older version.
"""

from msgspec.structs import replace

from gristmill.broker.registry.core.changes import save_row, state_of
from gristmill.broker.registry.core.records import (
    AnswerRow,
    DecisionSaid,
    Effect,
    Refuse,
    Row,
    State,
)
from gristmill.broker.registry.core.table import NEEDS_REASON, UNCHANGED, acts_of, next_state

REASON_CHARS_MAX = 500  #: that brokers and nodes are told; the log has all of it


def on_decision_said(state: State, event: DecisionSaid, now_ms: int) -> list[Effect]:
    """One cell of the table, if it may be."""
    row = find(state, event.name, event.is_token)
    if row is None:
        return [unknown(event.name, event.is_token)]
    if row.decided == event.words:
        return [AnswerRow(row, is_repeat=True)]
    principal = row.principal
    if event.seen != principal.version:
        return [_stale(row, event, now_ms)]
    if principal.role != "worker":
        return _of_person(state, row, event, now_ms)
    after = next_state(principal.state, event.act)
    if after is None:
        return [wrong_state(row, event.act)]
    if event.act in UNCHANGED and after == principal.state:
        return [AnswerRow(row, is_repeat=True)]
    if refused := _refuse(state, row, event, now_ms):
        return [refused]
    slots_max, node_class, limits = principal.slots_max, principal.node_class, ""
    if event.act in ("approve", "limit") and (event.slots_max or event.node_class):
        slots_max, node_class = event.slots_max or slots_max, event.node_class or node_class
        limits = f"slots {slots_max or 'all'}, class {node_class or 'any'}"
    approvals: tuple[str, ...] = ()
    if event.act == "approve":
        is_same = (slots_max, node_class) == (principal.slots_max, principal.node_class)
        approvals = (*row.approvals, event.by) if is_same else (event.by,)
        if len(approvals) < state.policy.approvals:
            after = "pending"
    changed = replace(
        principal,
        state=after,
        version=principal.version + 1,
        slots_max=slots_max,
        node_class=node_class,
        reason=event.reason[:REASON_CHARS_MAX],
    )
    row = replace(
        row,
        principal=changed,
        decided=event.words,
        decided_by=event.by,
        decided_ms=now_ms,
        approvals=approvals if after == "pending" else (),
        until_ms=row.until_ms if after == "pending" else 0,
    )
    why = "; ".join(part for part in (limits, event.reason) if part)
    before = principal.state
    saved = save_row(state, row, event.by, event.act, before, principal.version, why, now_ms)
    return [*saved, AnswerRow(state_of(state, principal.public))]


def _refuse(state: State, row: Row, event: DecisionSaid, now_ms: int) -> Refuse | None:
    """Why this decision cannot be, although the table has it."""
    if not event.by:
        return Refuse(
            "INVALID_SPEC", "by is empty: every act has somebody who did it", "say who decides"
        )
    if event.act in NEEDS_REASON and not event.reason:
        return Refuse(
            "INVALID_SPEC",
            f"{event.act} of {row.principal.name} without a reason",
            "say why, for the node and for the log: --reason TEXT",
        )
    if event.act == "limit" and not event.slots_max and not event.node_class:
        return Refuse(
            "INVALID_SPEC",
            f"limit of {row.principal.name} to nothing in particular",
            "say to what: --slots N or --class NAME",
        )
    if event.act != "approve":
        return None
    silent_ms = now_ms - row.seen_ms
    if silent_ms > state.policy.vanished_ms:
        return Refuse(
            "NODE_VANISHED",
            f"{row.principal.name} was last seen {_told_ms(silent_ms)} ago, at {row.source}:"
            " nobody would know what was approved",
            "start it again there ('gristmill node enrol'), then approve it",
        )
    if event.by in row.approvals:
        return Refuse(
            "SECOND_OPERATOR",
            f"{event.by} approved {row.principal.name} before; {state.policy.approvals} different"
            " operators must",
            "ask another operator to approve it",
        )
    return None


def _of_person(state: State, row: Row, event: DecisionSaid, now_ms: int) -> list[Effect]:
    """People's tokens and services know one decision: revoked, for good."""
    principal = row.principal
    if event.act != "revoke" or principal.state != "active":
        return [
            Refuse(
                "WRONG_STATE",
                f"{principal.role} {principal.name} is {principal.state}: it cannot be"
                f" {told_act(event.act)}",
                "see 'gristmill token list'",
            )
        ]
    if not event.by:
        return [Refuse("INVALID_SPEC", "by is empty: every act has somebody who did it")]
    changed = replace(
        principal,
        state="revoked",
        version=principal.version + 1,
        reason=event.reason[:REASON_CHARS_MAX],
    )
    row = replace(
        row, principal=changed, decided=event.words, decided_by=event.by, decided_ms=now_ms
    )
    saved = save_row(
        state, row, event.by, "revoke", "active", principal.version, event.reason, now_ms
    )
    return [*saved, AnswerRow(state_of(state, principal.public))]


def find(state: State, name: str, is_token: bool) -> Row | None:
    """By public key, by the name that it holds, or the last one that had this name."""
    is_worker = not is_token
    if (row := state.rows.get(name)) is not None:
        return row if (row.principal.role == "worker") == is_worker else None
    held = state.nodes if is_worker else state.others
    if (public := held.get(name)) is not None:
        return state.rows[public]
    for row in reversed(state.rows.values()):
        if row.principal.name == name and (row.principal.role == "worker") == is_worker:
            return row
    return None


def _stale(row: Row, event: DecisionSaid, now_ms: int) -> Refuse:
    principal = row.principal
    ago = _told_ms(max(0, now_ms - row.decided_ms))
    return Refuse(
        "STALE_DECISION",
        f"{principal.name} is {principal.state} in version {principal.version}, by"
        f" {row.decided_by} {ago} ago{f' ({principal.reason:.200})' if principal.reason else ''};"
        f" {event.act!r} was decided about version {event.seen}",
        "look at it again, and decide about the version that is there",
    )


def wrong_state(row: Row, act: str) -> Refuse:
    """The table has nothing there."""
    principal = row.principal
    ways = [told_act(way) for way in acts_of(principal.state) if way not in ("enrol", "expire")]
    told = f"it can be {', '.join(ways)}" if ways else "nothing more happens to it"
    return Refuse(
        "WRONG_STATE",
        f"node {principal.name} is {principal.state}"
        f"{f' ({principal.reason:.200})' if principal.reason else ''}: it cannot be"
        f" {told_act(act)}; {told}",
        "see 'gristmill node list --enrolled'",
    )


_TOLD = {
    "enrol": "enrolled", "approve": "approved", "reject": "rejected", "limit": "limited",
    "expire": "expired", "canary_right": "passed by a canary", "canary_wrong": "failed by a canary",
    "drain": "drained", "quarantine": "quarantined", "release": "released", "ban": "banned",
    "revoke": "revoked", "rotate": "rotated",
}  # fmt: skip


def told_act(act: str) -> str:
    """What it is to somebody whom it happens to."""
    return _TOLD[act]


def unknown(name: str, is_token: bool = False) -> Refuse:
    """There is nobody of this name or key."""
    if is_token:
        return Refuse("UNKNOWN_NODE", f"no token is {name!r:.80}", "see 'gristmill token list'")
    return Refuse(
        "UNKNOWN_NODE",
        f"no node {name!r:.80} has enrolled",
        "see 'gristmill node list --enrolled'; a new one begins with 'gristmill node token NAME'",
    )


def too_many(state: State) -> Refuse:
    """No room for another key."""
    return Refuse(
        "QUOTA",
        f"{len(state.rows)} keys are known; the limit is {state.policy.principals_max}",
        "ask whoever runs the registry",
    )


def _told_ms(ms: int) -> str:
    for size, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min")):
        if ms >= 2 * size:
            return f"{ms // size} {unit}"
    return f"{ms / 1000:.1f} s"
