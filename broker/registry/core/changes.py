"""The one way in which rows and tokens change: with a record in the log, and the names in order."""

from msgspec.structs import replace

from gristmill.broker.registry.core.records import (
    Append,
    Effect,
    Row,
    SaveRow,
    SaveToken,
    State,
    Token,
)
from gristmill.wire.registry import Record

WHY_CHARS_MAX = 4_000


def append(
    state: State,
    by: str,
    act: str,
    subject: str,
    name: str,
    versions: tuple[int, int],
    states: tuple[str, str],
    why: str,
    now_ms: int,
) -> Append:
    """The next record of the log; ``versions`` and ``states``: before and after."""
    state.number += 1
    why = why[:WHY_CHARS_MAX]
    return Append(Record(state.number, now_ms, by, act, subject, name, *versions, *states, why))


def save_row(
    state: State,
    row: Row,
    by: str,
    act: str,
    before: str,
    version_before: int,
    why: str,
    now_ms: int,
) -> list[Effect]:
    """A principal as it is from now on; ``before`` and ``version_before``: as it was."""
    principal = row.principal
    record = append(
        state, by, act, principal.public, principal.name,
        (version_before, principal.version), (before, principal.state), why, now_ms,
    )  # fmt: skip
    row = replace(row, change=state.number)
    adopt_row(state, row)
    return [record, SaveRow(row)]


def adopt_row(state: State, row: Row) -> None:
    """Put a row into the state: last in the order of changes, its name held or free."""
    principal = row.principal
    held = state.nodes if principal.role == "worker" else state.others
    state.rows.pop(principal.public, None)
    state.rows[principal.public] = row
    if row.is_holding:
        held[principal.name] = principal.public
    elif held.get(principal.name) == principal.public:
        del held[principal.name]


def save_token(
    state: State, token: Token, by: str, why: str, now_ms: int, act: str = ""
) -> list[Effect]:
    """A token as it is from now on. ``act``: what happened, where its state does not say it."""
    old = state.tokens.get(token.digest)
    before = old.state if old else "-"
    record = append(
        state, by, act or f"token-{token.state}", token.subject, token.name,
        (0, 0), (before, token.state), why, now_ms,
    )  # fmt: skip
    adopt_token(state, token)
    return [record, SaveToken(token)]


def adopt_token(state: State, token: Token) -> None:
    """Put a token into the state."""
    state.tokens[token.digest] = token
    if token.state == "open":
        state.open_tokens[token.name] = token.digest
    elif state.open_tokens.get(token.name) == token.digest:
        del state.open_tokens[token.name]


def state_of(state: State, public: str) -> Row:
    """The row of a key that is known."""
    return state.rows[public]
