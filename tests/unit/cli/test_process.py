"""One child process: ready, its end, its log, its group."""

import os
import pathlib
import signal
import sys

import pytest

from gristmill.cli.process import Process, ProcessEndedError, end_group, told_end, wait_readable

READY = """
import os, sys, signal
fd = int(sys.argv[sys.argv.index("--ready-fd") + 1])
print("ready thing", flush=True)
os.write(fd, b"READY\\n"); os.close(fd)
signal.pause()
"""


def start(tmp_path: pathlib.Path, script: str) -> Process:
    argv = [sys.executable, "-c", script]
    return Process("thing", argv, tmp_path / "thing.log", os.environ)


def await_ready(process: Process) -> None:
    while True:
        assert wait_readable([process.ready_fd()], 20), process.tail()
        if process.take_ready():
            return


def test_ready_then_ended_by_term(tmp_path: pathlib.Path) -> None:
    process = start(tmp_path, READY)
    await_ready(process)
    assert process.is_ready and process.ready_fd() == -1
    assert process.returncode is None
    assert os.getpgid(process.pid) == process.pid
    assert "--die-with-parent" in pathlib.Path(f"/proc/{process.pid}/cmdline").read_text()
    process.signal(signal.SIGTERM)
    assert process.wait(20)
    assert process.returncode == -signal.SIGTERM
    assert process.tail() == "ready thing"
    assert process.close() == []
    process.signal(signal.SIGTERM)  # after the end: nothing, and no error


def test_an_end_before_ready_has_the_log_and_the_exit_code(tmp_path: pathlib.Path) -> None:
    (tmp_path / "thing.log").write_text("of an earlier start\n")
    process = start(tmp_path, "import sys; print('no user namespaces'); sys.exit(78)")
    with pytest.raises(ProcessEndedError) as caught:
        await_ready(process)
    assert caught.value.exit_code == 78
    assert caught.value.code == "CANNOT_JAIL"
    assert caught.value.hint == "run 'gristmill doctor'"
    assert "thing ended before it was ready: exit 78" in caught.value.message
    assert "no user namespaces" in caught.value.message
    assert "earlier start" not in caught.value.message
    process.close()


def test_an_unexpected_end_is_internal_and_names_the_log(tmp_path: pathlib.Path) -> None:
    process = start(tmp_path, READY)
    await_ready(process)
    process.kill()
    assert process.wait(20)
    error = process.ended("by itself")
    assert error.exit_code == 1 and error.code == "INTERNAL"
    assert "thing ended by itself: killed by SIGKILL" in error.message
    assert str(tmp_path / "thing.log") in error.hint
    process.close()


def test_what_is_left_in_the_group_is_ended_and_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(end_group, "__defaults__", (0.05,))
    script = READY.replace(
        'print("ready',
        "child = os.fork()\nif not child:\n    os.close(fd); signal.pause()\n"
        'print(child)\nprint("ready',
    )
    process = start(tmp_path, script)
    await_ready(process)
    child = int(process.tail().split()[0])
    pidfd = os.pidfd_open(child)
    process.kill()
    assert process.wait(20)
    assert process.close() == [child]
    assert wait_readable([pidfd], 20), "the orphan lives"
    os.close(pidfd)


def test_a_long_log_is_set_aside(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gristmill.cli.process.LOG_BYTES_MAX", 10)
    (tmp_path / "thing.log").write_text("x" * 11)
    process = start(tmp_path, READY)
    await_ready(process)
    process.kill()
    process.wait(20)
    process.close()
    assert (tmp_path / "thing.log.1").read_text() == "x" * 11
    assert (tmp_path / "thing.log").read_text() == "ready thing\n"
    assert (tmp_path / "thing.log").stat().st_mode & 0o777 == 0o600


def test_told_end() -> None:
    assert told_end(3) == "exit 3"
    assert told_end(-9) == "killed by SIGKILL"
    assert told_end(-200) == "killed by signal 200"


def test_children_that_end_by_themselves_are_given_the_time(tmp_path: pathlib.Path) -> None:
    """As a worker's spawner does, which sees its socket close and cleans up."""
    script = READY.replace(
        'print("ready',
        "r, w = os.pipe()\nif not os.fork():\n"
        "    os.close(fd); os.close(w); os.read(r, 1)\n"
        "    print('cleaned up', flush=True); os._exit(0)\n"
        'print("ready',
    )
    process = start(tmp_path, script)
    await_ready(process)
    process.kill()
    assert process.wait(20)
    assert process.close() == []
    assert process.tail().endswith("cleaned up")
