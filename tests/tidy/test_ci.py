"""The machinery of `make test` itself: nothing is left behind, skipped or endless in silence."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def supervise(limit_s: float, script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / "supervise.py"), "--limit-s", str(limit_s)]
    command += ["sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137)])
def test_the_exit_code_is_the_commands(script: str, code: int) -> None:
    assert supervise(30, script).returncode == code


def test_a_daemon_that_hides_is_named_and_ended(tmp_path: pathlib.Path) -> None:
    note = tmp_path / "pid"
    daemon = f"setsid env -i sh -c 'echo $$ >\"{note}\"; exec sleep 600' >/dev/null 2>&1"
    done = supervise(30, f'({daemon} &); until [ -s "{note}" ]; do :; done')
    pid = int(note.read_text())
    assert done.returncode == 70, done
    assert f"left behind: {pid} sleep 600" in done.stderr
    assert is_gone(pid)


def test_the_limit_ends_everything(tmp_path: pathlib.Path) -> None:
    note = tmp_path / "pid"
    done = supervise(1, f"setsid sh -c 'echo $$ >\"{note}\"; exec sleep 600' & sleep 600")
    assert done.returncode == 124
    assert is_gone(int(note.read_text()))


def test_orphans_are_collected_while_the_command_runs() -> None:
    script = (
        "import os, time\n"
        "reader, writer = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    orphan = os.fork()\n"
        "    if orphan:\n"
        "        os.write(writer, str(orphan).encode())\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "pid, deadline = os.read(reader, 20).decode(), time.monotonic() + 10\n"
        "while os.path.exists('/proc/' + pid) and time.monotonic() < deadline:\n"
        "    time.sleep(0.01)\n"
        "raise SystemExit(os.path.exists('/proc/' + pid))\n"
    )
    command = [sys.executable, str(ROOT / ".ci" / "supervise.py"), "--limit-s", "30"]
    command += [sys.executable, "-c", script]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(("ci", "code", "told"), [("true", 1, "CI=true"), ("", 0, "2 skipped")])
def test_a_skip_is_a_failure_under_ci(
    tmp_path: pathlib.Path, ci: str, code: int, told: str
) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_host.py").write_text(
        "import pytest\n"
        "def test_body(): pytest.skip('no cgroup')\n"
        "@pytest.mark.skipif(True, reason='no jail')\n"
        "def test_mark(): ...\n"
        "@pytest.mark.xfail\n"
        "def test_known(): assert False\n"
    )
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {**os.environ, "CI": ci}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout
    assert told in done.stdout
    assert "minutes per suite" in done.stdout
