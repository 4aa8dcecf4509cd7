"""The file: what its triggers refuse, what the audit finds, a disk that is full."""

import pathlib
import re

import apsw
import pytest
from desk_rig import Desk, key_of

from gristmill.broker.registry.core.records import Policy
from gristmill.broker.registry.db import RegistryFile, open_for_reading, records, verify
from gristmill.wire.errors import RemoteError


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A registry with a history: an active node, one that was banned, an open token."""
    desk = Desk()
    file = RegistryFile(tmp_path)
    say = desk.say

    def saved(event):
        effects = say(event)
        file.apply(effects)
        return effects

    desk.say = saved  # type: ignore[method-assign]
    desk.into("active")
    desk.enrol(desk.token("bad"), key_of(2), "bad")
    desk.decide("ban", "bad")
    desk.token("next")
    state = file.load(Policy())
    assert list(state.rows) == list(desk.state.rows)
    assert (state.tokens, state.nodes, state.number) == (
        desk.state.tokens,
        desk.state.nodes,
        desk.state.number,
    )
    file.close()
    return tmp_path


def faults(folder: pathlib.Path, *statements: str) -> list[str]:
    """What the audit says after somebody with a shell, and without triggers, was there."""
    db = apsw.Connection(str(folder / "registry.db"))
    triggers = list(db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"))
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        db.execute(statement)
    for _, sql in triggers:
        db.execute(sql)
    found = list(verify(db))
    db.close()
    return found


def test_a_file_in_order(folder: pathlib.Path) -> None:
    assert faults(folder) == []
    db = open_for_reading(folder / "registry.db")
    assert [record.number for record in records(db, 0, "", 100)] == list(range(1, 11))
    assert {record.name for record in records(db, 0, "bad", 100)} == {"bad"}
    assert [record.number for record in records(db, 7, "", 1)] == [8]
    db.close()


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE record SET why = 'x' WHERE number = 3", "record 3 .* is not what was written"),
        ("UPDATE record SET by = 'eve' WHERE number = 10", "record 10"),
        ("DELETE FROM record WHERE number = 4", "record 4 is missing"),
        ("DELETE FROM record WHERE number = 10", "the log says otherwise"),
        ("UPDATE principal SET state = 'active' WHERE name = 'bad'", "does not agree with itself"),
        ("DELETE FROM record WHERE number > 5", "the log says"),
        ("UPDATE token SET state = 'open' WHERE name = 'bad'", "does not agree with itself"),
        ("UPDATE principal SET body = x'00' WHERE name = 'bad'", "cannot be read"),
    ],
)
def test_what_somebody_changed_is_named(folder: pathlib.Path, statement: str, told: str) -> None:
    found = faults(folder, statement)
    assert found
    assert any(re.search(told, fault) for fault in found), found
    with pytest.raises(RemoteError, match="is not in order"):
        RegistryFile(folder)


def test_a_dropped_trigger_is_named(folder: pathlib.Path) -> None:
    db = apsw.Connection(str(folder / "registry.db"))
    db.execute("DROP TRIGGER record_stays")
    assert list(verify(db)) == ["trigger record_stays is not as it was made"]
    db.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE record SET why = 'x'",
        "DELETE FROM record",
        "INSERT INTO record SELECT number + 5, at_ms, by, act, subject, name, version_before,"
        " version_after, state_before, state_after, why, chain FROM record WHERE number = 9",
        "DELETE FROM principal",
        "UPDATE principal SET state = 'active' WHERE name = 'bad'",
        "UPDATE principal SET version = version + 2, change = change + 9",
        "UPDATE principal SET name = 'x', version = version + 1, change = change + 9",
        "DELETE FROM token",
        "UPDATE token SET state = 'open' WHERE state = 'used'",
        "INSERT INTO token SELECT replace(digest, '0', '1'), name, 'open', body, crc FROM token"
        " WHERE state = 'open'",
        "INSERT INTO principal SELECT replace(public, '0', '7'), name, role, state, version,"
        " change, body, crc FROM principal WHERE name = 'mill'",
    ],
)
def test_the_tables_refuse_it(folder: pathlib.Path, statement: str) -> None:
    db = apsw.Connection(str(folder / "registry.db"))
    with pytest.raises(apsw.ConstraintError):
        db.execute(statement)
    assert list(verify(db)) == []
    db.close()


def test_a_group_that_cannot_be_kept_changes_nothing(tmp_path: pathlib.Path) -> None:
    file = RegistryFile(tmp_path)
    desk = Desk()
    effects = []
    say = desk.say
    desk.say = lambda event: effects.append(say(event)) or effects[-1]  # type: ignore
    desk.into("approved")
    file.db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(apsw.Error):
        for group in effects * 50:
            file.apply(group)
    file.db.execute("PRAGMA max_page_count = 1000000")
    assert file.db.get_autocommit()
    assert list(verify(file.db)) == []
    file.close()


def test_a_file_of_another_release(tmp_path: pathlib.Path) -> None:
    RegistryFile(tmp_path).close()
    db = apsw.Connection(str(tmp_path / "registry.db"))
    db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(RemoteError, match="is of version 9"):
        RegistryFile(tmp_path)
    with pytest.raises(RemoteError, match="is of version 9"):
        open_for_reading(tmp_path / "registry.db")
    with pytest.raises(RemoteError, match="there is no registry"):
        open_for_reading(tmp_path / "none" / "registry.db")
