"""The machinery of `make test` itself: nothing is left behind, skipped or endless in silence."""

import os
import pathlib
import re
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


def lanes(folder: pathlib.Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "rig").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    shutil.copy(ROOT / "tests" / "rig" / "lane_rig.py", folder / "rig")
    command = [sys.executable, str(ROOT / ".ci" / "lanes.py"), sys.executable, "-m", "pytest"]
    command += ["-p", "no:cacheprovider", "--import-mode=importlib", *options, str(folder)]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "CI": ""}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def test_two_lanes_run_each_test_once_and_tell_of_all(tmp_path: pathlib.Path) -> None:
    # The first module and the last wait until the other has begun: it takes two lanes.
    meet = f"meet = os.path.join({str(tmp_path)!r}, 'begun-')"
    for number in range(9):
        (tmp_path / f"suite{number}").mkdir()
        (tmp_path / f"suite{number}" / "test_it.py").write_text(
            f"import os, time, pytest\n{meet}\n"
            "@pytest.mark.parametrize('case', range(3))\n"
            "def test_one(case, figures):\n"
            f"    open(meet + '{number}', 'w').close()\n"
            f"    while {number in (0, 8)} and not os.path.exists(meet + '{8 - number}'):\n"
            "        time.sleep(0.01)\n"
            f"    with open({str(tmp_path)!r} + '/ran-{number}', 'a') as file:\n"
            "        file.write(f'{case} {os.getpid()}\\n')\n"
            "    figures(case=case)\n"
            f"    assert ({number}, case) != (5, 1)\n"
        )
    done = lanes(tmp_path)
    assert done.returncode == 1, done.stdout
    runners = set()
    for number in range(9):
        ran = [line.split() for line in (tmp_path / f"ran-{number}").read_text().splitlines()]
        assert [case for case, _ in ran] == ["0", "1", "2"]
        assert len({pid for _, pid in ran}) == 1
        runners.add(ran[0][1])
    assert len(runners) == 2
    assert "1 failed" in done.stdout
    assert done.stdout.count("= minutes per suite =") == 1
    table = done.stdout.partition("minutes per suite")[2].splitlines()
    # The other lane's failures follow when both ended at once.
    told = [line.split(maxsplit=3) for line in table if re.match(r"suite\d ", line)]
    assert [line[0] for line in told] == [f"suite{number}" for number in range(9)]
    assert told[4][3] == "3 passed"
    assert told[5][3] == "2 passed, 1 failed"
    assert done.stdout.count(": case ") == 27
    assert "= 1 failed, 26 passed in " in done.stdout.splitlines()[-1]


def test_suites_that_race_are_in_one_lane(tmp_path: pathlib.Path) -> None:
    for suite in ("chaos", "flows", "zone"):
        (tmp_path / suite).mkdir()
        (tmp_path / suite / "test_it.py").write_text(
            "import os, time\n"
            "def test_one():\n"
            f"    with open({str(tmp_path)!r} + '/ran', 'a') as file:\n"
            f"        file.write(f'{suite} {{os.getpid()}}\\n')\n"
            "    time.sleep(1)\n"
        )
    done = lanes(tmp_path)
    assert done.returncode == 0 and "= 3 passed in " in done.stdout.splitlines()[-1], done.stdout
    ran = dict(line.split() for line in (tmp_path / "ran").read_text().splitlines())
    assert ran["chaos"] == ran["flows"] != ran["zone"]


def test_a_module_that_does_not_import_fails_both_lanes(tmp_path: pathlib.Path) -> None:
    (tmp_path / "test_good.py").write_text("def test_good(): pass")
    (tmp_path / "test_bad.py").write_text("import nothing_of_this_name")
    done = lanes(tmp_path)
    assert done.returncode == 2, done.stdout
    assert "exit codes [2, 2]" in done.stdout
    assert "= 2 errors in " in done.stdout.splitlines()[-1]
