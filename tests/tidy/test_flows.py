"""rows.toml, the tests in tests/flows/ and docs/flows.md say the same, and the checker can fail."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
REPORT = ROOT / "tests" / "flows" / "report.py"


def run_report(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPORT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def copy(tmp_path: pathlib.Path) -> pathlib.Path:
    """A small repository: the rows, all planned, no test, and a page that is up to date."""
    (tmp_path / "docs").mkdir()
    flows = tmp_path / "tests" / "flows"
    flows.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "flows" / "rows.toml", flows)
    rows = flows / "rows.toml"
    text = rows.read_text().replace('\nstate = "done"\n', '\nstate = "planned"\n')
    rows.write_text(re.sub(r'^left = ".*"\n', "", text, flags=re.MULTILINE))
    assert run_report("--root", str(tmp_path)).returncode == 0
    return tmp_path


def mark_done(copy: pathlib.Path, row: str) -> None:
    rows = copy / "tests" / "flows" / "rows.toml"
    head, mark, tail = rows.read_text().partition(f'id = "{row}"\n')
    assert mark
    rows.write_text(head + mark + tail.replace('state = "planned"', 'state = "done"', 1))


def test_rows_tests_and_page_agree() -> None:
    check = run_report("--check")
    assert check.returncode == 0, check.stderr


def test_a_row_that_is_done_needs_a_test(copy: pathlib.Path) -> None:
    mark_done(copy, "A07")
    check = run_report("--check", "--root", str(copy))
    assert check.returncode == 1
    assert "A07 is done, but no test_a07_... is in tests/flows/" in check.stderr


def test_a_test_needs_a_row_that_is_done(copy: pathlib.Path) -> None:
    tests = copy / "tests" / "flows" / "test_jobs.py"
    tests.write_text("def test_a07_ack(): ...\ndef test_a99_none(): ...\ndef test_other(): ...\n")
    check = run_report("--check", "--root", str(copy))
    assert check.returncode == 1
    assert 'A07 has test_jobs.py::test_a07_ack: set state = "done"' in check.stderr
    assert "test_jobs.py::test_a99_none: there is no row A99" in check.stderr
    assert "test_jobs.py::test_other: begin its name with the row it shows" in check.stderr


def test_the_page_follows_the_rows(copy: pathlib.Path) -> None:
    mark_done(copy, "A07")
    (copy / "tests" / "flows" / "test_jobs.py").write_text("async def test_a07_ack(): ...\n")
    assert "out of date" in run_report("--check", "--root", str(copy)).stderr
    assert run_report("--root", str(copy)).returncode == 0
    assert run_report("--check", "--root", str(copy)).returncode == 0
    assert "| done | `test_a07_ack` |" in (copy / "docs" / "flows.md").read_text()


def test_a_lost_or_repeated_row_is_named(copy: pathlib.Path) -> None:
    rows = copy / "tests" / "flows" / "rows.toml"
    rows.write_text(rows.read_text().replace('id = "A08"', 'id = "A07"'))
    assert "the id A07 stands twice" in run_report("--check", "--root", str(copy)).stderr
    text = rows.read_text()
    rows.write_text(text[: text.rindex("[[row]]")])
    assert "299 rows, must be 300" in run_report("--check", "--root", str(copy)).stderr
