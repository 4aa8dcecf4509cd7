"""A key that was changed in an index hides no row: a start finds it, or a look beside the work."""

import pathlib
import shutil
import threading

import apsw
import pytest
from journal_files import JOBS, PAGE, UTC, pages_of, start, write

from gristmill.broker import indexes, past, records, salvage, schema
from gristmill.broker.metrics import Metrics
from gristmill.broker.reader import Reader

FRESH = apsw.Connection(":memory:")
FRESH.execute(schema.SCHEMA)
INDEXES = indexes.indexes(FRESH)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A journal that has rows in every index."""
    path = write(tmp_path_factory.mktemp("journal"))
    db = apsw.Connection(str(path))
    with db:
        for n in range(2, 300):
            result = (n + JOBS, n, n, 3, 1, n, "n", "m", 0, 0, 0, "none", 0, 0, UTC, 0, 1)
            db.execute(schema.ADD_RESULT, (*result, b"h", b"", b"", b"", b""))
            db.execute(schema.SET_STATE, (n + JOBS, "t", "done", 1, UTC * 2, b"", 1))
            db.execute(schema.ADD_TOMBSTONE, (n + JOBS, "t", b"g%d" % n, "done", UTC, UTC))
            db.execute(schema.ADD_LINES, (n + JOBS, 2, 1, n, 1, 2, 3, 1, b"line"))
            db.execute(schema.ADD_QUARANTINE, ("results", f"{n}/2", "it is so", UTC, b""))
        db.execute("UPDATE jobs SET request_digest = 'd' || job")
    db.close()
    return path


@pytest.fixture
def path(written: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copy(written, tmp_path))


def change_key(path: pathlib.Path, index: str, place: str) -> None:
    """One bit of an entry in the middle of a leaf page: of its first column, or of its rowid."""
    pages = pages_of(path, index)
    number = pages[len(pages) // 2]
    body = bytearray(path.read_bytes())
    page = memoryview(body)[(number - 1) * PAGE : number * PAGE]
    assert page[0] == 10, "a leaf page of an index"
    cells = int.from_bytes(page[3:5])
    pointer = 8 + cells // 2 * 2
    cell = int.from_bytes(page[pointer : pointer + 2])
    size, header = page[cell], page[cell + 1]  # both below 128 here
    page[cell + (1 + header if place == "key" else size)] ^= 2
    path.write_bytes(body)


def rows_of(path: pathlib.Path) -> dict[str, int]:
    with apsw.Connection(str(path)) as db:
        return {
            one.table: db.execute(f"SELECT count(*) FROM {one.table} NOT INDEXED").get
            for one in INDEXES
            if one.table not in ("events", "quarantine")  # a start adds to them
        }


def test_every_index_of_the_schema_is_looked_at() -> None:
    made = FRESH.execute("SELECT name FROM sqlite_schema WHERE type = 'index'").fetchall()
    keyed = {"sqlite_autoindex_meta_1", "sqlite_autoindex_nodes_1"}
    keyed.add("sqlite_autoindex_live_workers_1")  # the tables themselves
    assert {one.name for one in INDEXES} - {""} == {name for (name,) in made} - keyed
    assert all(one.columns for one in INDEXES if one.name)


@pytest.mark.parametrize("place", ["key", "rowid"])
@pytest.mark.parametrize("index", [one.name for one in INDEXES if one.name])
def test_a_changed_key_is_found_by_the_start_and_costs_nothing(
    path: pathlib.Path, index: str, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = rows_of(path)
    change_key(path, index, place)
    _, metrics = start(path)
    assert metrics.journal_salvaged == 1 and index in caplog.text
    assert rows_of(path) == before
    with apsw.Connection(str(path)) as db:
        indexes.check(db)
        assert db.execute("PRAGMA integrity_check").get == "ok"
    _, metrics = start(path)
    assert metrics.journal_salvaged == 0


def test_a_submission_is_not_taken_for_new(path: pathlib.Path) -> None:
    change_key(path, "jobs_submission", "key")
    with apsw.Connection(str(path)) as db:
        hidden = [n for n in range(1, JOBS) if not past.find_submission(db, "t", b"s%d" % n)]
    assert hidden, "the damage does not damage"
    start(path)
    with apsw.Connection(str(path)) as db:
        assert all(past.find_submission(db, "t", b"s%d" % n) for n in range(1, JOBS))


@pytest.mark.parametrize("index", ["jobs_submission", "results_first", "lines_at"])
def test_a_large_file_is_looked_at_beside_the_work(
    path: pathlib.Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "START_BYTES", 0)
    monkeypatch.setattr(indexes, "SLICE_ROWS", 7)
    change_key(path, index, "key")
    _, metrics = start(path)
    assert metrics.journal_salvaged == 0, "it was not to be looked at yet"

    told: list[object] = []
    assert look_beside(path, told) is False
    if index == "jobs_submission":
        assert told == [], "nobody is answered before submissions were looked at"
    assert salvage.suspect_mark(path).exists()
    _, metrics = start(path)
    assert metrics.journal_salvaged == 1 and not salvage.suspect_mark(path).exists()
    assert look_beside(path, told) is True and told[-2:] == ["asked", 0]


def test_a_result_that_covers_less_than_it_did_is_named(
    path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its indexes agree with it: it is missing from pages all the same."""
    columns = (70, 1, 0, 3, 1, 1, "n", "m", 0, 0, 0, "none", 0, 0, UTC, 0)
    with apsw.Connection(str(path)) as db:
        row = (*columns, records._joined(columns, 5), b"h", b"", b"", b"", b"")
        db.execute(schema.ADD_RESULT, row)
    told: list[object] = []
    assert look_beside(path, told) is True and told == ["asked", 0]
    with apsw.Connection(str(path)) as db:
        db.execute("UPDATE results SET count = 1 WHERE job = 70 AND sequence = 1")
    assert look_beside(path, told) is True and told[2:] == ["asked", 1]
    assert "journal damaged results 70/1" in caplog.text


def look_beside(path: pathlib.Path, told: list[object]) -> bool:
    """Whether a reader comes to the end of its look, with a question of somebody's beside it."""
    awake = threading.Event()
    reader = Reader(path, awake.set)
    ended: list[bool] = []
    metrics = Metrics()
    indexes.look_beside(reader, metrics, lambda: ended.append(True))
    reader.ask(lambda db: "asked", told.append, told.append)
    try:
        while not ended:
            assert awake.wait(10)
            awake.clear()
            try:
                reader.deliver()
            except OSError as error:
                assert "IndexDamagedError" in str(error)
                return False
        told.append(metrics.rows_quarantined)
        return True
    finally:
        reader.close()


def test_a_row_whose_key_another_has_is_told_by_a_salvage(path: pathlib.Path) -> None:
    with apsw.Connection(str(path)) as db:
        db.execute("DROP INDEX results_sequence")
        db.execute("UPDATE results SET job = 70, sequence = 10 WHERE job = 77")
    found = salvage.salvage(path)
    assert found.lost == [("results", "row 70")] and found.rows["results"] == 297
