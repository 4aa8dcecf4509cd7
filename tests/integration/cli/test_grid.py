"""The supervisor: it starts, survives and ends real processes, and leaves nothing."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from gristmill.cli.grid import Grid
from gristmill.cli.places import AlreadyRunningError, start_ticks
from gristmill.cli.process import ProcessEndedError
from gristmill.client import Client


def identities(grid: Grid) -> list[tuple[int, int]]:
    """(pid, start) of every process: a pid alone may be somebody else's by tomorrow."""
    return [(grid.pid(name), start_ticks(grid.pid(name))) for name in grid.names]


def test_a_grid_leaves_no_process_and_no_file() -> None:
    with Grid.temporary(workers=2, slots=1) as grid:
        assert grid.names == ["ledger", "store", "broker", "worker-0", "worker-1"]
        processes = identities(grid)
        folder = grid.state.parent
        assert grid.run.stat().st_mode & 0o777 == 0o700
        with Client(grid.address) as client:
            assert sum(client.map(abs, range(-100, 0))) == 5050
        assert grid.dead() == []
    assert [pid for pid, ticks in processes if start_ticks(pid) == ticks] == []
    assert not folder.exists()
    grid.stop()  # again: nothing


def test_state_outlives_the_grid(tmp_path: pathlib.Path) -> None:
    run = pathlib.Path(os.path.relpath(tmp_path)) / "run"  # made absolute; still short enough?
    with Grid(tmp_path / "state", run, slots=1) as grid, Client(grid.address) as client:
        assert list(client.map(abs, [-1])) == [1]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["grid.json"]
    with Grid(tmp_path / "state", run, slots=1) as grid, Client(grid.address) as client:
        assert client.status(1).state == "done"
        assert client.balance().sum_ucredits == 0
    assert {path.stem for path in (tmp_path / "state" / "logs").iterdir()} == {
        *("ledger", "store", "broker", "worker-0")
    }


def test_two_grids_do_not_share_folders(tmp_path: pathlib.Path) -> None:
    with Grid(tmp_path / "a", tmp_path / "r", workers=0):
        for state, run in (("a", "other"), ("b", "r")):
            with pytest.raises(AlreadyRunningError, match=f"pid {os.getpid()}"):
                Grid(tmp_path / state, tmp_path / run, workers=0).start()
    with Grid(tmp_path / "a", tmp_path / "r", workers=0):
        pass


@pytest.mark.parametrize("name", ["worker-0", "broker", "ledger", "store"])
def test_a_killed_process_is_named_and_can_be_restarted(name: str) -> None:
    with Grid.temporary(workers=1, slots=1) as grid:
        with Client(grid.address) as client:
            assert list(client.map(abs, [-1])) == [1]
        before = grid.pid(name)
        grid.kill(name)
        (ended,) = grid.dead()
        assert ended.name == name and ended.returncode == -signal.SIGKILL
        assert f"ready {name.partition('-')[0]}" in ended.message
        grid.restart(name)
        assert grid.dead() == []
        assert grid.pid(name) != before
        with Client(grid.address) as client:
            assert list(client.map(abs, [-2, -3])) == [2, 3]


def test_a_process_that_does_not_start_ends_the_others() -> None:
    grid = Grid.temporary(workers=1, options={"ledger": ["--no-such-option"]})
    with pytest.raises(ProcessEndedError, match="ledger ended before it was ready: exit 2") as told:
        grid.start()
    assert "--no-such-option" in told.value.message
    assert told.value.exit_code == 2
    assert [name for name in grid.names if start_ticks(grid.pid(name))] == []
    assert not grid.state.parent.exists()


def test_logs_are_shown_when_the_body_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), Grid.temporary(workers=0):
        raise ZeroDivisionError
    assert "ready broker" in capfd.readouterr().err


def test_one_more_worker() -> None:
    with Grid.temporary(workers=0) as grid:
        grid.add_worker("extra", "--slots", "1", "--label", "zone=far")
        with Client(grid.address) as client:
            (worker,) = client.workers()
        assert (worker.name, worker.slots, worker.labels) == ("extra", 1, {"zone": "far"})


def test_a_path_that_is_too_long_for_a_socket_is_told() -> None:
    grid = Grid("/tmp/" + "long/" * 30)
    with pytest.raises(Exception, match="choose a shorter folder") as caught:
        grid.start()
    assert "107" in str(caught.value)


def test_what_a_killed_temporary_grid_left_goes_with_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = (
        "import sys\n"
        "from gristmill.cli.grid import Grid\n"
        "with Grid.temporary(workers=0) as grid:\n"
        "    print(grid.state.parent, *map(grid.pid, grid.names), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with tempfile.TemporaryDirectory(prefix="gt-") as parent:  # short: sockets are in it
        monkeypatch.setenv("TMPDIR", parent)
        monkeypatch.setattr(tempfile, "tempdir", None)
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with child:
            assert child.stdout is not None
            folder, *pids = child.stdout.readline().decode().split()
            child.kill()
        deadline = time.monotonic() + 20
        while any(start_ticks(int(pid)) for pid in pids):
            assert time.monotonic() < deadline, "its processes end with it"
            time.sleep(0.02)
        assert pathlib.Path(folder).exists()
        with Grid.temporary(workers=0) as grid:
            assert not pathlib.Path(folder).exists()
            assert grid.state.exists()
