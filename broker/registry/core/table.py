"""The states of a node, what may be done to it in each, and what it is then: one table.

A node begins with a token, which an operator issues for one name. With it the node enrols and is
*pending*: it gets no work. An operator approves it: *approved*, which is good for canaries only. A
right canary makes it *active*, a wrong one puts it into *quarantine*, whence an operator releases
it to be tried again. What ended (rejected, expired, revoked) may enrol anew with a new token; a
banned key never. A name belongs to one node at a time: while it is in one of ``HOLDING``.

An empty cell is refused with ``WRONG_STATE``, and nothing changes. Expiries: a pending node that
nobody decided about expires after the policy's ``pending_ttl_ms``; a token after its own time.

``docs/rfc/0005-registry-dialogue.md`` has this table; a test compares them.
"""

STATES = (
    "pending", "approved", "active", "draining", "quarantined",
    "rejected", "expired", "banned", "revoked",
)  # fmt: skip
NOBODY = "-"  #: the state of a key that never enrolled
HOLDING = frozenset({"pending", "approved", "active", "draining", "quarantined"})
ACTS = (
    "enrol", "approve", "reject", "limit", "expire", "canary_right", "canary_wrong", "drain",
    "quarantine", "release", "ban", "revoke", "rotate",
)  # fmt: skip

#: state -> act -> next state; what is not there is refused
TABLE: dict[str, dict[str, str]] = {
    NOBODY: {
        "enrol": "pending",
    },
    "pending": {
        "enrol": "pending",
        "approve": "approved",
        "reject": "rejected",
        "limit": "pending",
        "expire": "expired",
        "ban": "banned",
    },
    "approved": {
        "enrol": "approved",
        "limit": "approved",
        "canary_right": "active",
        "canary_wrong": "quarantined",
        "quarantine": "quarantined",
        "ban": "banned",
        "revoke": "revoked",
        "rotate": "revoked",
    },
    "active": {
        "enrol": "active",
        "limit": "active",
        "canary_right": "active",
        "canary_wrong": "quarantined",
        "drain": "draining",
        "quarantine": "quarantined",
        "ban": "banned",
        "revoke": "revoked",
        "rotate": "revoked",
    },
    "draining": {
        "enrol": "draining",
        "limit": "draining",
        "canary_right": "draining",
        "canary_wrong": "quarantined",
        "quarantine": "quarantined",
        "release": "active",
        "ban": "banned",
        "revoke": "revoked",
        "rotate": "revoked",
    },
    "quarantined": {
        "enrol": "quarantined",
        "limit": "quarantined",
        "release": "approved",
        "ban": "banned",
        "revoke": "revoked",
    },
    "rejected": {
        "enrol": "pending",
        "ban": "banned",
    },
    "expired": {
        "enrol": "pending",
        "ban": "banned",
    },
    "banned": {},
    "revoked": {
        "enrol": "pending",
        "ban": "banned",
    },
}
#: acts after which the node has its state because of somebody's judgement: they say why
NEEDS_REASON = frozenset({"reject", "quarantine", "ban", "canary_wrong"})
#: a limit holds in whatever state it is set; a canary that is right again is no news
UNCHANGED = frozenset({"canary_right", "enrol"})


def next_state(state: str, act: str) -> str | None:
    """The state after an act; None where it is refused."""
    return TABLE[state].get(act)


def acts_of(state: str) -> list[str]:
    """What can be done to a node in this state, in the order of ``ACTS``."""
    return [act for act in ACTS if act in TABLE[state]]
