"""A damaged list of tables: it is noticed before anything is made, and costs no row."""

import pathlib
import random
import shutil
import sqlite3

import apsw
import pytest
from journal_files import JOBS, PAGE, crashed, pages_of, quarantined, spoil, start, write

from gristmill.broker import catalog, replay, schema

#: tables in which ``write`` or a start puts rows
FILLED = ("meta", "jobs", "open_jobs", "parcels", "events", "nodes")


def fill(path: pathlib.Path) -> pathlib.Path:
    """Sealed by a start, and with rows in tables whose rows look alike."""
    with sqlite3.connect(path) as db:
        for name in ("n1", "n2"):
            db.execute(schema.ADD_NODE, (name, "ed25519:" + name, 1_800_000_000_000))
    start(path)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return fill(write(tmp_path_factory.mktemp("journal")))


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Its tables lie in another order, as in a file that began with an earlier release."""
    folder = tmp_path_factory.mktemp("moved")
    db = apsw.Connection(str(folder / "journal.db"))
    statements = [text for text in schema.SCHEMA.split(";") if text.strip()]
    for kind in ("CREATE TABLE", "CREATE"):
        for text in reversed(statements):
            if kind in text:
                db.execute(text)
    db.close()
    return fill(write(folder))


@pytest.fixture(params=["written", "moved"])
def path(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copy(request.getfixturevalue(request.param), tmp_path))


def list_pages(path: pathlib.Path) -> list[int]:
    return [1, *pages_of(path, "sqlite_schema")]


def is_set_aside(path: pathlib.Path) -> bool:
    return bool(list(path.parent.glob("journal.db.unreadable-*")))


def assert_whole(found: replay.Recovered) -> None:
    assert len(found.state.jobs) == JOBS
    assert all(job.uploaded == 100 for job in found.state.jobs.values())
    assert sorted(found.nodes) == ["n1", "n2"]


def change(path: pathlib.Path, statement: str) -> None:
    """Past SQLite's back: its count of changes of the list stays."""
    db = apsw.Connection(str(path))
    db.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    db.execute("PRAGMA writable_schema=ON")
    db.execute(statement)
    assert db.changes() == 1
    db.close()


@pytest.mark.parametrize("table", FILLED)
def test_a_table_by_another_name_is_not_replaced_by_an_empty_one(
    path: pathlib.Path, table: str
) -> None:
    other = table[:-1] + chr(ord(table[-1]) ^ 1)
    change(
        path,
        f"UPDATE sqlite_schema SET name = '{other}', tbl_name = '{other}',"
        f" sql = replace(sql, '{table}', '{other}') WHERE name = '{table}'",
    )
    found, _ = start(path)
    assert is_set_aside(path)
    assert_whole(found)


@pytest.mark.parametrize(
    ("what", "where"),
    [
        ("sql = replace(sql, 'function', 'gunction')", "name = 'jobs'"),
        ("sql = replace(sql, '<>', '<=')", "name = 'jobs_request'"),
        ("sql = replace(sql, 'UNIQUE ', '')", "name = 'parcels_first'"),
        ("type = 'tible'", "name = 'open_jobs'"),
        ("rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'job_states')",
         "name = 'open_jobs'"),
        ("rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'live_workers')",
         "name = 'nodes'"),
        ("rootpage = rootpage ^ 512", "name = 'parcels'"),
    ],
)  # fmt: skip
def test_a_changed_word_or_page_of_the_list_costs_nothing(
    path: pathlib.Path, what: str, where: str
) -> None:
    what = what.replace("rootpage ^ 512", "(rootpage | 512) - (rootpage & 512)")
    change(path, f"UPDATE sqlite_schema SET {what} WHERE {where}")
    found, _ = start(path)
    assert is_set_aside(path)
    assert_whole(found)


def test_a_row_gone_from_the_list_is_missed(path: pathlib.Path) -> None:
    change(path, "DELETE FROM sqlite_schema WHERE name = 'parcels'")
    found, _ = start(path)
    assert is_set_aside(path)
    assert_whole(found)


def test_a_bit_anywhere_in_the_list_costs_nothing(path: pathlib.Path) -> None:
    dice = random.Random(3)
    clean, noticed = path.read_bytes(), 0
    for _ in range(8):
        place = path.parent / "copy"
        place.mkdir()
        body = bytearray(clean)
        at = (dice.choice(list_pages(path)) - 1) * PAGE + dice.randrange(PAGE)
        body[at] ^= 1 << dice.randrange(8)
        (place / path.name).write_bytes(body)
        found, _ = start(place / path.name)
        noticed += is_set_aside(place / path.name)
        assert_whole(found)
        shutil.rmtree(place)
    assert noticed > 1


@pytest.mark.parametrize("body", [b"", b"\xff" * PAGE, random.Random(1).randbytes(PAGE)])
def test_a_page_of_the_list_costs_no_job(path: pathlib.Path, body: bytes) -> None:
    for page in list_pages(path):
        place = path.parent / "copy"
        place.mkdir()
        copy = pathlib.Path(shutil.copy(path, place))
        spoil(copy, page, body)
        found, _ = start(copy)
        assert is_set_aside(copy) and len(found.state.jobs) == JOBS
        assert all(job.uploaded == 100 for job in found.state.jobs.values())
        # Pinned keys look like an index: in an unknown order they are named instead.
        lost = {table for table, _ in quarantined(copy)}
        assert sorted(found.nodes) == ["n1", "n2"] or "nodes" in lost
        assert not list(place.glob("*.readable*"))
        shutil.rmtree(place)


def test_what_only_the_log_has_is_found_under_a_damaged_list(path: pathlib.Path) -> None:
    crashed(path)
    db = apsw.Connection(str(path))
    before = db.execute("SELECT count(*) FROM events").fetchone()
    db.close()
    crashed(path)  # the log has five more
    spoil(path, 1)
    found, _ = start(path)
    assert_whole(found)
    with sqlite3.connect(path) as after:
        assert after.execute("SELECT count(*) FROM events").fetchone()[0] >= before[0] + 5  # type: ignore[index]


def test_pages_behind_the_end_that_the_first_page_tells_are_read(path: pathlib.Path) -> None:
    with path.open("r+b") as file:
        file.seek(28)
        file.write((path.stat().st_size // PAGE // 2).to_bytes(4, "big"))
    found, _ = start(path)
    assert_whole(found)


def test_a_list_that_sqlite_changed_by_itself_is_no_damage(path: pathlib.Path) -> None:
    db = apsw.Connection(str(path))
    db.execute("VACUUM")
    db.execute("CREATE TABLE notes(of_a_person TEXT)")
    db.close()
    for _ in range(2):
        found, metrics = start(path)
        assert_whole(found)
        assert metrics.journal_salvaged == 0 and not is_set_aside(path)


def test_a_file_from_before_the_seal_is_judged_by_its_words(path: pathlib.Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM meta WHERE key = ?", (catalog.SEAL,))
    start(path)
    assert not is_set_aside(path)
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM meta WHERE key = ?", (catalog.SEAL,))
    change(path, "DELETE FROM sqlite_schema WHERE name = 'open_jobs'")
    found, _ = start(path)
    assert is_set_aside(path)
    assert_whole(found)


def test_a_mark_or_name_that_is_no_text_or_number_costs_itself(path: pathlib.Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = 'x' WHERE key = 'outbox_acked'")
        db.execute("UPDATE meta SET value = 'x' WHERE key = 'incarnation'")
        db.execute("UPDATE jobs SET name = CAST(x'ff' AS TEXT) WHERE job = 7")
    found, _ = start(path)
    assert len(found.state.jobs) == JOBS - 1
    assert ("meta", "row 'incarnation'") in quarantined(path)


def test_a_journal_that_was_emptied_is_told(
    path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(path)
    assert "begins anew" not in caplog.text
    path.write_bytes(b"")
    found, _ = start(path)
    assert found.state.jobs == {} and "begins anew" in caplog.text
