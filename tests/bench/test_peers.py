"""bench/peers without any peer: what is missing is told, what is started ends, a lie is found."""

import pathlib
import subprocess
import sys
from typing import Any

import pytest

BENCH = pathlib.Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from harness.measure import Runs  # noqa: E402
from peers import report, run  # noqa: E402
from peers.catalogue import OURS, PEERS, QUALITIES, Peer  # noqa: E402
from peers.environment import reason_of  # noqa: E402

CONTENDERS = BENCH / "peers" / "contenders"

#: drives one contender as run.py does, in a process that may adopt and end what it left
DRIVE = f"""
import pathlib, sys, tempfile
sys.path.insert(0, {str(BENCH)!r})
import psutil
from peers.process import ContenderError, ContenderProcess, adopt_orphans
adopt_orphans()
with tempfile.TemporaryDirectory() as scratch:
    process = ContenderProcess(pathlib.Path(sys.executable), sys.argv[1], pathlib.Path(scratch))
    try:
        process.order("start", slots=2, scratch=scratch)
        process.order("prepare", scenario="each", n=50)
        print("below:", len(psutil.Process().children(recursive=True)))
        print("seconds:", process.order("run", seconds_max=1)["seconds"])
        process.order("check")
    except ContenderError as error:
        print("error:", error)
    finally:
        process.end(grace_s=0.2)
print("left:", psutil.Process().children(recursive=True))
"""


def drive(script: str | pathlib.Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", DRIVE, str(script)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_contender_is_there_and_is_told_of() -> None:
    scripts = sorted(path.name for path in CONTENDERS.glob("with_*.py"))
    assert scripts == sorted(peer.script for peer in (OURS, *PEERS))
    for path in CONTENDERS.glob("*.py"):
        compile(path.read_text(), str(path), "exec")
    assert [peer.slug for peer in run.chosen("dask, ray")] == ["dask", "ray"]
    assert run.chosen("") == list(PEERS)
    with pytest.raises(SystemExit, match=r"no dusk; there are mp_pool"):
        run.chosen("dusk")


def test_a_peer_that_cannot_be_installed_is_skipped_with_the_reason(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    peer = Peer("Nobody", "with_mp_pool.py", ("no-such-peer-1",), "", "docs/architecture.md",
                dict.fromkeys(QUALITIES, "no"))  # fmt: skip
    runs = Runs("peers", {"rounds": 1})
    runs.line["contenders"] = {
        each.name: {"setting": each.setting, "docs": each.docs, "does": each.does}
        for each in (OURS, peer)
    }
    run.Bench(runs, 60, venvs=tmp_path).take_turn(peer, 1, peer.scenarios)
    (only,) = runs.line["runs"]
    assert only["what"] == "Nobody"
    assert "No matching distribution found for no-such-peer-1" in only["skipped"]
    text = report.section({**runs.line, "load_after": 0.0})
    assert f"- Nobody, all: {only['skipped']}" in text
    assert "| Nobody | - |  | - |" in text


def test_a_reason_names_no_registry() -> None:
    said = "WARNING: slow\nERROR: Could not fetch https://packages.example.org/simple/dask: 403\n"
    assert reason_of(said) == "Could not fetch (address) 403"
    assert reason_of("Could not reach packages.example.org today") == (
        "Could not reach (address) today"
    )


def test_a_contender_runs_and_ends() -> None:
    told = drive("with_mp_pool.py")
    assert "seconds: 0." in told
    assert "left: []" in told


def test_what_a_contender_leaves_behind_is_counted_and_ended(tmp_path: pathlib.Path) -> None:
    script = tmp_path / "leaves.py"
    script.write_text(
        "import os, signal\n"
        "from stage import Contender, serve\n"
        "class Leaves(Contender):\n"
        "    def start(self, slots, scratch):\n"
        "        if os.fork() == 0:\n"
        "            if os.fork() == 0:\n"  # a daemon: its parent is gone
        "                signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "                os.execvp('sleep', ['sleep', '300'])\n"
        "            os._exit(0)\n"
        "        os.wait()\n"
        "    def each(self, values):\n"
        "        return values[1:]\n"
        "serve(Leaves())\n"
    )
    told = drive(script)
    assert "below: 2" in told
    assert "error: AssertionError: 49 results of 50 inputs, or others" in told
    assert "left: []" in told


def test_ratios_are_of_the_turns_beside() -> None:
    def ran(what: str, turn: int, rate: float) -> dict[str, Any]:
        return {"what": what, "scenario": "batched", "turn": turn, "rate": rate}

    runs = [ran("gristmill", 1, 100), ran("Ray", 2, 50), ran("gristmill", 3, 300)]
    runs += [ran("Dask", 4, 10), ran("gristmill", 5, 100)]
    line = {"runs": runs}
    assert report.times_ours(line, "Ray", "batched") == "4"
    assert report.times_ours(line, "Dask", "batched") == "20"
    assert report.times_ours(line, "gristmill", "batched") == ""
    assert [report.shown(value) for value in (0.00394, 4.2, 37.46, 9999.6)] == [
        "0.00394", "4.2", "37.5", "10,000",
    ]  # fmt: skip
