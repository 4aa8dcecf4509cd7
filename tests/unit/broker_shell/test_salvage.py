"""A start on a damaged file: what was cut is counted and named, and the rest goes on."""

import pathlib
import shutil

import pytest
from journal_files import JOBS, PAGE, crashed, pages_of, quarantined, spoil, start, write

from gristmill.broker import salvage


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write(tmp_path_factory.mktemp("journal"))


@pytest.fixture
def path(written: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copy(written, tmp_path))


def test_a_whole_file_is_left_as_it_is(path: pathlib.Path) -> None:
    found, metrics = start(path)
    assert len(found.state.jobs) == JOBS and metrics.journal_salvaged == 0
    assert quarantined(path) == []


@pytest.mark.parametrize("body", [b"", b"\xff" * PAGE, bytes(range(256)) * 16])
@pytest.mark.parametrize("table", ["parcels", "jobs", "events", "open_jobs"])
def test_a_spoilt_page_costs_its_rows_and_no_others(
    path: pathlib.Path, table: str, body: bytes
) -> None:
    pages = pages_of(path, table)
    spoil(path, pages[len(pages) // 2], body)
    found, metrics = start(path)
    assert metrics.journal_salvaged == 1
    assert (table,) in {(name,) for name, _ in quarantined(path)}
    aside = list(path.parent.glob("journal.db.unreadable-*"))
    assert aside
    if len(pages) > 1:
        assert len(found.state.jobs) >= JOBS - 12
    again, metrics = start(path)
    assert metrics.journal_salvaged == 0 and list(again.state.jobs) == list(found.state.jobs)


def test_unfinished_jobs_are_found_without_their_list(path: pathlib.Path) -> None:
    (page,) = pages_of(path, "open_jobs")
    spoil(path, page)
    found, _ = start(path)
    assert len(found.state.jobs) == JOBS  # from the jobs themselves


def test_a_spoilt_index_costs_nothing(path: pathlib.Path) -> None:
    for page in pages_of(path, "parcels_first"):
        spoil(path, page)
    found, metrics = start(path)
    assert metrics.journal_salvaged == 1 and len(found.state.jobs) == JOBS
    assert all(job.uploaded == 100 for job in found.state.jobs.values())
    assert quarantined(path) == []


def test_a_truncated_file_keeps_what_lies_before_the_cut(path: pathlib.Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    found, _ = start(path)
    assert quarantined(path) and isinstance(found.state.jobs, dict)


def test_zero_filled_from_the_first_page_on(path: pathlib.Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)
    found, _ = start(path)
    assert found.state.jobs == {} and list(path.parent.glob("journal.db.unreadable-*"))


def test_a_lost_shm_costs_nothing(path: pathlib.Path) -> None:
    crashed(path)
    path.with_name("journal.db-shm").unlink(missing_ok=True)
    found, _ = start(path)
    assert len(found.state.jobs) == JOBS


def test_a_file_that_vanished_leaves_its_log_aside(
    path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    crashed(path)
    path.unlink()
    found, _ = start(path)
    assert found.state.jobs == {} and "is empty or missing, its log is not" in caplog.text
    assert list(path.parent.glob("journal.db.unreadable-*-wal"))


def test_a_write_that_finds_damage_has_all_of_it_looked_at_by_the_next_start(
    path: pathlib.Path,
) -> None:
    salvage.suspect_mark(path).touch()
    for page in pages_of(path, "results_first"):
        spoil(path, page)  # no start reads it, and every write would fail
    found, _ = start(path)
    assert len(found.state.jobs) == JOBS and not salvage.suspect_mark(path).exists()


def test_a_salvage_that_was_cut_is_done_again(path: pathlib.Path) -> None:
    spoil(path, pages_of(path, "parcels")[1])
    salvage.salvage(path)
    new = path.with_name("journal.db.salvaged")
    path.rename(new)  # the crash came between the two renames
    found, _ = start(path)
    assert len(found.state.jobs) == JOBS and not new.exists()
    shutil.copy(path, new)  # or before the first
    start(path)
    assert not new.exists()
