"""``gristmill drill``: its verdict when all is well, and when something was really lost."""

import io
import json
import pathlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable

import msgspec
import pytest

from gristmill.broker import records
from gristmill.cli.drill import Drill
from gristmill.cli.drill_faults import CATALOGUE, Arena
from gristmill.cli.output import Terminal
from gristmill.wire.frames import encode


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-P", "-m", "gristmill.cli.main", "drill", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_short_drill_passes_and_reports(
    tmp_path: pathlib.Path, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    path = tmp_path / "report.json"
    names = ",".join(CATALOGUE) if sized(0, 1) else "kill-broker,kill-client"
    done = command("--faults", names, "--seed", "5", "--report", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert report["schema"] == "gristmill/drill/1" and report["is_ok"]
    assert (report["lost"], report["doubled"], report["problems"]) == (0, 0, [])
    assert report["accepted"] == report["acked"] > 0
    assert report["ledger_sum_ucredits"] == 0 and report["contributions"] > 0
    assert report["seed"] == 5 and report["host"] and report["versions"]["gristmill"]
    assert [row["fault"] for row in report["faults"]] == names.split(",")
    assert all(row["verdict"] in ("ok", "skipped") for row in report["faults"])
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["FAULT", "HIT", "BACK", "LOST", "TWICE", "VERDICT"]
    assert any(line.startswith("PASSED: ") for line in lines)
    assert "\x1b" not in done.stdout + done.stderr  # a pipe gets plain text
    figures(
        faults=len(report["faults"]),
        acked=report["acked"],
        recovery_max_ms=report["recovery_max_ms"],
    )


def lose(db: sqlite3.Connection, job: int) -> None:
    """A result that is gone."""
    first = "SELECT min(rowid) FROM results WHERE job = ?"
    done = db.execute(f"DELETE FROM results WHERE rowid = ({first})", (job,))
    assert done.rowcount == 1


def double(db: sqlite3.Connection, job: int) -> None:
    """The same subtasks final a second time, in a row that is whole."""
    row = db.execute("SELECT * FROM results WHERE job = ? ORDER BY rowid", (job,)).fetchone()
    names = [column[0] for column in db.execute("SELECT * FROM results").description]
    made = dict(zip(names, row, strict=True))
    message = records.decode_header(made["header"])
    made["sequence"] = message.sequence + 1_000_000
    made["header"] = encode(msgspec.structs.replace(message, sequence=made["sequence"]))
    frames = [made[name] for name in ("payload", "meter", "failures", "logs")]
    made["crc"] = records.result_crc(made["header"], frames)
    marks = ",".join("?" * len(made))
    db.execute(f"INSERT INTO results VALUES({marks})", list(made.values()))


def vandalised(change: Callable[[sqlite3.Connection, int], None]) -> Callable[[Arena], str]:
    """A fault that no grid may survive unnoticed: somebody changes the journal itself."""

    def vandal(arena: Arena) -> str:
        ended = [0]

        def look() -> bool:
            ended[:] = [each.job for each in arena.load.promises if each.is_ended]
            return bool(ended)

        arena.until("a job that ended", look)
        arena.grid.kill("broker")
        with sqlite3.connect(arena.grid.state / "broker" / "journal.db") as db:
            change(db, ended[0])
        db.close()
        arena.grid.restart("broker")
        return "one row"

    return vandal


@pytest.mark.parametrize("change, what", [(lose, "lost"), (double, "doubled")])
def test_a_drill_in_which_something_was_really_lost_or_doubled_fails(
    change: Callable[[sqlite3.Connection, int], None], what: str
) -> None:
    out = io.StringIO()
    report = Drill({"vandal": vandalised(change)}, Terminal(out, io.StringIO()), seed=1).run()
    assert not report.is_ok
    assert getattr(report, what) >= 1 and getattr(report.faults[0], what) >= 1
    assert report.faults[0].verdict == "FAILED"
    assert "FAILED" in out.getvalue()


def test_an_unknown_fault_gets_a_suggestion() -> None:
    done = command("--faults", "kil-broker,flood")
    assert done.returncode == 2
    assert "'kil-broker' is no fault; did you mean 'kill-broker'?" in done.stderr
    assert "next: known are kill-broker, " in done.stderr
