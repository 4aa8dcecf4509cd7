"""The examples as a person runs them; small, except where the size is the point."""

import csv
import os
import pathlib
import subprocess
import sys

import pytest

from gristmill.cli.grid import Grid

EXAMPLES = pathlib.Path(__file__).parents[3] / "examples"
PNG = b"\x89PNG\r\n"


def run(grid: Grid, name: str, folder: pathlib.Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", str(EXAMPLES / f"{name}.py"), "--out", str(folder), *arguments],
        env={**os.environ, "GRISTMILL_ADDRESS": grid.address},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nresults: " in done.stdout and "\nbill: j" in done.stdout
    return done.stdout


def test_stdlib_audit(grid: Grid, tmp_path: pathlib.Path) -> None:
    said = run(grid, "stdlib_audit", tmp_path, "--limit", "40")
    assert "40 files, 0 of them do not parse" in said
    rows = list(csv.DictReader((tmp_path / "stdlib_audit.csv").open()))
    (argparse,) = [row for row in rows if row["module"] == "argparse.py"]
    assert int(argparse["functions"]) > 100 and int(argparse["worst"]) > 10
    assert (tmp_path / "stdlib_audit.png").read_bytes().startswith(PNG)


def test_mandelbrot(grid: Grid, tmp_path: pathlib.Path) -> None:
    said = run(grid, "mandelbrot", tmp_path, "--columns", "4", "--side", "32")
    # An area of 1.507 in a picture of 3.2 × 2.4: 19.6 %, and a bit at 400 rounds.
    (share,) = [line for line in said.splitlines() if line.startswith("12 tiles by 1 nodes; ")]
    assert 19 < float(share.split("; ")[1].partition("%")[0]) < 21
    assert (tmp_path / "mandelbrot.png").read_bytes().startswith(PNG)


@pytest.mark.slow
def test_test_suite(grid: Grid, tmp_path: pathlib.Path) -> None:
    """Needs a package index."""
    said = run(grid, "test_suite", tmp_path)
    assert "on the grid: passed: 180 passed" in said
    assert (tmp_path / "test_suite.xml").read_text().count("<testcase") == 180
