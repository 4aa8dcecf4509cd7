"""Every cell of the table: what is in it happens, with one record; what is not is refused."""

import pathlib

import pytest
from desk_rig import Desk, key_of

from gristmill.broker.registry.core.records import AnswerRow, Refuse
from gristmill.broker.registry.core.table import ACTS, NOBODY, STATES, TABLE, UNCHANGED

ROOT = pathlib.Path(__file__).parents[2]
DECISIONS = [act for act in ACTS if act not in ("enrol", "expire", "rotate")]


def test_the_table_is_whole() -> None:
    assert set(TABLE) == {NOBODY, *STATES}
    for state, row in TABLE.items():
        assert set(row) <= set(ACTS), state
        assert set(row.values()) <= set(STATES), state


@pytest.mark.parametrize("act", DECISIONS)
@pytest.mark.parametrize("state", STATES)
def test_a_decision_in_each_state(desk: Desk, state: str, act: str) -> None:
    row = desk.into(state)
    records, version = len(desk.log), row.principal.version
    after = TABLE[state].get(act)
    answer = desk.decide(act)
    if after is None:
        assert isinstance(answer, Refuse)
        assert answer.code == "WRONG_STATE"
        assert state in answer.message
        assert desk.row() == row
        assert len(desk.log) == records
        return
    assert isinstance(answer, AnswerRow)
    assert desk.row() == answer.row
    assert answer.row.principal.state == after
    if act in UNCHANGED and after == state:
        assert answer.is_repeat
        assert len(desk.log) == records
        return
    assert len(desk.log) == records + 1
    record = desk.log[-1]
    assert (record.act, record.by, record.name) == (act, "ann", "mill")
    assert (record.state_before, record.state_after) == (state, after)
    assert (record.version_before, record.version_after) == (version, version + 1)
    assert "because" in record.why
    assert answer.row.change == record.number


@pytest.mark.parametrize("state", STATES)
def test_a_new_token_in_each_state(desk: Desk, state: str) -> None:
    public = desk.into(state).principal.public
    answer = desk.enrol(desk.token(), public)
    after = TABLE[state].get("enrol")
    if after is None:
        assert isinstance(answer, Refuse)
        assert answer.code == "NODE_REFUSED"
        assert desk.row().principal.state == state
    else:
        assert isinstance(answer, AnswerRow)
        assert desk.row().principal.state == after


@pytest.mark.parametrize("state", STATES)
def test_a_rotation_in_each_state(desk: Desk, state: str) -> None:
    row = desk.into(state)
    if "rotate" not in TABLE[state]:
        with pytest.raises(AssertionError, match=r"WRONG_STATE|UNKNOWN_NODE"):
            desk.token(is_rotation=True)
        return
    token = desk.token(is_rotation=True)
    answer = desk.enrol(token, key_of(2), replaces=row.principal.public)
    assert isinstance(answer, AnswerRow)
    assert answer.row.principal.public == key_of(2)
    assert answer.row.principal.state == state
    assert desk.state.rows[row.principal.public].principal.state == TABLE[state]["rotate"]
    assert desk.state.nodes["mill"] == key_of(2)


@pytest.mark.parametrize("state", STATES)
def test_time_in_each_state(desk: Desk, state: str) -> None:
    desk.into(state)
    desk.tick(10 * desk.state.policy.pending_ttl_ms)
    assert desk.row().principal.state == TABLE[state].get("expire", state)


def test_the_rfc_has_this_table() -> None:
    page = (ROOT / "docs" / "rfc" / "0005-registry-dialogue.md").read_text()
    section = page.partition("States and acts\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line[:1] == "|"]
    cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    acts = cells[0][1:]
    assert sorted(acts) == sorted(ACTS)
    told = {
        row[0]: {act: cell for act, cell in zip(acts, row[1:], strict=True) if cell}
        for row in cells[2:]
    }
    assert told == TABLE
