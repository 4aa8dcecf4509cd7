"""gristmill login and logout: the token is tried, kept for its owner only, and found again."""

import os
import pathlib
import stat
import subprocess
import sys
from collections.abc import Iterator

import pytest
from grid_rig import free_port

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.errors import GridError
from gristmill.wire.login import Login, login_path, read_login, write_login


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    with Grid.temporary(workers=0, front=f"tcp://127.0.0.1:{free_port()}") as made:
        yield made


@pytest.fixture
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("GRISTMILL_RUN", str(tmp_path / "run"))
    for name in ("GRISTMILL_ADDRESS", "GRISTMILL_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "gristmill.cli.main", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)


def test_a_login_is_tried_kept_and_used(grid: Grid, home: pathlib.Path) -> None:
    token = grid.token("ann")
    done = run("login", "--address", grid.address, stdin=f"{token}\n")
    assert done.returncode == 0, done.stderr
    assert "knows you as ann" in done.stdout
    secret = token.split("_")[2]
    assert secret not in done.stdout + done.stderr
    path = login_path(os.environ)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert run("status", "--json").returncode == 0
    with Client() as client:
        assert (client.address, client.who()) == (grid.address, "ann")
    done = run("logout")
    assert done.returncode == 0 and "until an operator revokes it" in done.stdout
    assert not path.exists()
    assert run("status").returncode == 3, "there is no grid on this machine"
    assert "no login" in run("logout").stdout


def test_a_token_that_is_not_known_is_not_kept(grid: Grid, home: pathlib.Path) -> None:
    token = grid.token("ann")
    wrong = token.replace(token.split("_")[2], "7" * 64)
    for text in (wrong, "nonsense", ""):
        done = run("login", "--address", grid.address, stdin=f"{text}\n")
        assert done.returncode == 4 and "UNAUTHORISED" in done.stderr
        assert "Traceback" not in done.stderr and "7" * 64 not in done.stderr
    done = run("login", stdin=token)
    assert done.returncode == 2 and "--address tcp://HOST:PORT" in done.stderr
    assert not login_path(os.environ).exists()


def test_a_login_that_others_can_read_is_refused(grid: Grid, home: pathlib.Path) -> None:
    path = write_login(os.environ, Login(grid.address, grid.token()))
    path.chmod(0o644)
    done = run("status")
    assert done.returncode == 4 and f"chmod 600 {path}" in done.stderr
    path.chmod(0o600)
    path.write_text("{}")
    done = run("status")
    assert done.returncode == 4 and "is no login" in done.stderr
    assert run("logout").returncode == 0 and not path.exists()


def test_a_token_goes_to_its_own_grid_only(grid: Grid, home: pathlib.Path) -> None:
    write_login(os.environ, Login("tcp://192.0.2.1:7031", grid.token()))
    with pytest.raises(GridError, match="asks for a token"):
        Client(grid.address)
    login = read_login(os.environ)
    assert login is not None and login.token not in repr(login)
