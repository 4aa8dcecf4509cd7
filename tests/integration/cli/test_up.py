"""``gristmill up`` as a process: what it prints, how it ends, what it leaves."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import apsw
import pytest

from gristmill.cli.places import start_ticks

COMMAND = [sys.executable, "-P", "-m", "gristmill.cli.main"]
DEADLINE_S = 60.0


class Up:
    """``gristmill up`` with folders of its own."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GRISTMILL_")}
        self.environment = {
            **kept,
            "GRISTMILL_STATE": str(folder / "state"),
            "GRISTMILL_RUN": str(folder / "run"),
        }
        self.children: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        argv = [*COMMAND, "up", *arguments]
        child = subprocess.Popen(argv, env=self.environment, stdout=-1, stderr=-1, text=True)
        self.children.append(child)
        return child

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*COMMAND, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    @property
    def record(self) -> dict[str, Any]:
        """Who holds the folder, and its processes."""
        record = json.loads((self.folder / "run" / "grid.json").read_text() or "{}")
        assert isinstance(record, dict)
        return record


@pytest.fixture
def up() -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="gm-") as folder:  # a socket's path must be short
        started = Up(pathlib.Path(folder))
        yield started
        for child in started.children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
            child.communicate(timeout=DEADLINE_S)


def await_line(stream: IO[str], text: str) -> str:
    """The lines up to the one that has this text."""
    seen = ""
    for line in stream:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} did not come: {seen}")


def alive(record: dict[str, Any]) -> dict[str, int]:
    """Processes of a record that still run."""
    return {
        name: pid for name, (pid, ticks) in record["children"].items() if start_ticks(pid) == ticks
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_of_it(up: Up, number: signal.Signals) -> None:
    child = up.start("--slots", "1")
    assert child.stdout is not None
    page = await_line(child.stdout, "Ctrl-C ends the grid")
    assert f"ipc://{up.folder}/run/front" in page
    assert "gristmill submit --wait -- echo hello" in page
    record = up.record
    assert sorted(alive(record)) == ["broker", "ledger", "store", "treasury", "worker-0"]
    child.send_signal(number)
    assert child.wait(DEADLINE_S) == 0
    assert alive(record) == {}
    assert [path.name for path in (up.folder / "run").iterdir()] == ["grid.json"]


def test_a_second_one_is_refused_with_the_pid(up: Up) -> None:
    child = up.start("--workers", "0")
    assert child.stdout is not None
    await_line(child.stdout, "Ctrl-C")
    second = up.run("up")
    assert second.returncode == 5
    assert f"pid {child.pid}" in second.stderr
    assert "--run DIR" in second.stderr
    assert child.poll() is None


def test_one_that_was_killed_leaves_no_obstacle(up: Up) -> None:
    child = up.start("--slots", "1")
    assert child.stdout is not None
    await_line(child.stdout, "Ctrl-C")
    record = up.record
    child.kill()
    child.wait()
    again = up.start("--slots", "1")
    assert again.stdout is not None
    await_line(again.stdout, "Ctrl-C")
    assert alive(record) == {}
    assert up.run("submit", "--wait", "--", "true").returncode == 0


def test_a_command_has_the_grid_to_itself_and_its_exit_code_counts(up: Up) -> None:
    del up.environment["GRISTMILL_RUN"]
    script = (
        'gm() { "$PYTHON" -P -m gristmill.cli.main "$@"; }; gm submit --wait -- echo hi; exit 7'
    )
    up.environment["PYTHON"] = sys.executable
    done = up.run("up", "--slots", "1", "--", "sh", "-c", script)
    assert done.returncode == 7
    assert done.stdout.splitlines() == ["j1", "j1 done: 1 of 1"]
    assert "gristmill is up" in done.stderr
    assert up.run("up", "--workers", "0", "--", "sh", "-c", "kill -9 $$").returncode == 137
    missing = up.run("up", "--workers", "0", "--", "no-such-command")
    assert missing.returncode == 127
    assert "no-such-command: No such file" in missing.stderr


def test_term_is_passed_on_to_the_command(up: Up) -> None:
    script = (
        "import signal, sys; signal.signal(15, lambda *_: sys.exit(9)); "
        "print('on', flush=True); signal.pause()"
    )
    child = up.start("--workers", "0", "--", sys.executable, "-c", script)
    assert child.stdout is not None
    await_line(child.stdout, "on")
    record = up.record
    child.send_signal(signal.SIGTERM)
    assert child.wait(DEADLINE_S) == 9
    assert alive(record) == {}


def test_a_process_that_dies_is_reported_and_started_again(up: Up) -> None:
    child = up.start("--slots", "1")
    assert child.stdout is not None and child.stderr is not None
    await_line(child.stdout, "Ctrl-C")
    before = up.record["children"]["ledger"]
    os.kill(before[0], signal.SIGKILL)
    told = await_line(child.stderr, "ledger was started again")
    assert "ledger ended by itself: killed by SIGKILL; its last lines:" in told
    assert "ready ledger" in told
    assert "logs/ledger.log" in told
    assert up.record["children"]["ledger"] != before
    assert up.run("submit", "--wait", "--", "true").returncode == 0


def test_a_loop_of_crashes_ends_the_grid(up: Up) -> None:
    child = up.start("--workers", "0")
    assert child.stdout is not None
    await_line(child.stdout, "Ctrl-C")
    assert child.stderr is not None
    for number in range(4):
        record = up.record
        os.kill(record["children"]["store"][0], signal.SIGKILL)
        if number < 3:
            await_line(child.stderr, "store was started again")
    _, err = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 1
    assert "store ended 4 times in 60 s" in err
    assert alive(record) == {}


def test_a_drained_worker_is_not_started_again(up: Up) -> None:
    child = up.start("--workers", "2", "--slots", "1")
    assert child.stdout is not None and child.stderr is not None
    await_line(child.stdout, "Ctrl-C")
    assert up.run("worker", "drain", "worker-1").returncode == 0
    await_line(child.stderr, "worker-1 has drained and ended")
    listed = json.loads(up.run("worker", "list", "--json").stdout)
    assert [worker["name"] for worker in listed["workers"]] == ["worker-0"]


def test_trusted_is_printed_and_is_never_the_default(up: Up) -> None:
    child = up.start("--slots", "1", "--with-trusted")
    assert child.stdout is not None
    assert "WITHOUT a jail" in await_line(child.stdout, "Ctrl-C")
    assert up.run("submit", "--tier", "trusted", "--wait", "--", "true").returncode == 0


def test_json(up: Up) -> None:
    child = up.start("--slots", "1", "--json")
    assert child.stdout is not None
    document = json.loads(child.stdout.readline())
    assert document["schema"] == "gristmill/up/1"
    assert document["pid"] == child.pid
    assert document["workers"][0]["name"] == "worker-0"


def test_a_worker_beside_the_grid(up: Up) -> None:
    """``gristmill worker`` finds the grid of this machine by itself."""
    child = up.start("--workers", "0")
    assert child.stdout is not None
    await_line(child.stdout, "Ctrl-C")
    ready, write = os.pipe()
    argv = [*COMMAND, "worker", "--name", "beside", "--slots", "1", "--ready-fd", str(write)]
    worker = subprocess.Popen(
        argv, env=up.environment, pass_fds=(write,), stdout=-1, stderr=-1, text=True
    )
    up.children.append(worker)
    os.close(write)
    with open(ready) as pipe:
        assert pipe.read() == "READY\n"
    done = up.run("submit", "--wait", "--", "true")
    assert done.returncode == 0, done.stderr


def test_books_that_are_not_in_order_are_said_and_can_be_read(up: Up) -> None:
    """The ledger takes nothing then, and says why; who asks what is in it is answered."""
    assert up.run("up", "--slots", "1", "--", "true").returncode == 0
    db = apsw.Connection(str(up.folder / "state" / "ledger" / "ledger.db"))
    db.execute("UPDATE account SET credits = credits + 1 WHERE name = 'tenant:local'")
    db.close()
    command = shlex.join(COMMAND)
    done = up.run(
        "up", "--slots", "1", "--", "sh", "-c",
        f"{command} balance; {command} statement; {command} submit -- true; {command} why j1",
    )  # fmt: skip
    assert "the ledger: this ledger is read-only: its audit failed: " in done.stderr
    assert "next: gristmill ledger audit" in done.stderr
    assert "tenant:local  1,000,000.000001" in done.stdout
    assert "sum of all accounts: 0.000001" in done.stdout
    assert "THIS STATEMENT DOES NOT ADD UP" in done.stderr
    assert "LEDGER_DOWN" in done.stdout, "the job waits"
    log = (up.folder / "state" / "logs" / "broker.log").read_text()
    assert log.count("ledger refuses: LEDGER_DOWN the ledger is read-only: its audit") == 1
    assert log.count("ledger up") == 1, "when its books were in order"
