"""Where the folders are, and who may have them."""

import fcntl
import json
import os
import pathlib
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from gristmill.cli import places
from gristmill.wire.errors import RemoteError


def test_folders_follow_the_environment_in_order() -> None:
    both = {"GRISTMILL_STATE": "/a", "XDG_STATE_HOME": "/b"}
    assert places.state_folder(both) == pathlib.Path("/a")
    assert places.state_folder({"XDG_STATE_HOME": "/b"}) == pathlib.Path("/b/gristmill")
    home = pathlib.Path(os.path.expanduser("~"))
    assert places.state_folder({}) == home / ".local/state/gristmill"
    both = {"GRISTMILL_RUN": "/a", "XDG_RUNTIME_DIR": "/b"}
    assert places.run_folder(both) == pathlib.Path("/a")
    assert places.run_folder({"XDG_RUNTIME_DIR": "/b"}) == pathlib.Path("/b/gristmill")
    assert places.run_folder({}) == pathlib.Path(f"/tmp/gristmill-{os.geteuid()}")
    assert places.default_address({"GRISTMILL_RUN": "/a"}) == "ipc:///a/front"
    told = {"GRISTMILL_RUN": "/a", "GRISTMILL_ADDRESS": "tcp://127.0.0.1:7"}
    assert places.default_address(told) == "tcp://127.0.0.1:7"


def test_a_folder_is_made_for_its_owner_only(tmp_path: pathlib.Path) -> None:
    made = places.make_private(tmp_path / "a" / "b")
    assert made.stat().st_mode & 0o777 == 0o700
    open_one = tmp_path / "open"
    open_one.mkdir(mode=0o755)
    assert places.make_private(open_one).stat().st_mode & 0o777 == 0o700


def test_a_link_is_not_followed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(RemoteError, match="link is not a folder") as caught:
        places.make_private(tmp_path / "link")
    assert "--run DIR" in caught.value.hint


@pytest.mark.root
def test_another_users_folder_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)
    with pytest.raises(RemoteError, match="is another user's"):
        places.make_private(tmp_path / "theirs")


def test_a_second_claim_is_refused_with_the_pid(tmp_path: pathlib.Path) -> None:
    claim = places.Claim(tmp_path)
    claim.write({"pid": 4711, "address": "ipc:///there", "children": {}})
    with pytest.raises(places.AlreadyRunningError, match=r"pid 4711.*ipc:///there") as caught:
        places.Claim(tmp_path)
    assert caught.value.pid == 4711
    claim.release()
    claim.release()
    places.Claim(tmp_path).release()


def test_stale_sockets_and_records_are_cleaned(tmp_path: pathlib.Path) -> None:
    for name in ("front", "back"):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / name))
    (tmp_path / "ledger").mkdir()
    (tmp_path / "store").write_text("no socket: not ours to remove")
    (tmp_path / places.RECORD).write_text('{"pid": 1, "children": {"broker": [1, 1]}')  # torn
    claim = places.Claim(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"ledger", "store", places.RECORD}
    with socket.socket(socket.AF_UNIX) as ours:
        ours.bind(str(tmp_path / "back"))
    claim.release()
    assert {path.name for path in tmp_path.iterdir()} == {"ledger", "store", places.RECORD}


@pytest.fixture(params=["few", "many"])
def descriptors(request: pytest.FixtureRequest) -> Iterator[None]:
    """``many``: every one that select() can take is in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    if request.param == "many":
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4_096), hard))
        held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]
    yield
    for fd in held:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_leftover_process_is_ended_first(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, descriptors: None
) -> None:
    monkeypatch.setattr(places, "ENDING_WAIT_S", 0.05)
    left = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1)
    try:
        other = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1)
        try:
            children = {
                "broker": [left.pid, places.start_ticks(left.pid)],
                "ledger": [other.pid, places.start_ticks(other.pid) + 1],  # its pid was reused
            }
            (tmp_path / places.RECORD).write_text(json.dumps({"pid": 1, "children": children}))
            places.Claim(tmp_path).release()
            assert left.wait(10) == -9
            assert other.poll() is None
        finally:
            other.kill()
            other.communicate()
    finally:
        left.kill()
        left.communicate()


def test_the_lock_is_not_inherited(tmp_path: pathlib.Path) -> None:
    claim = places.Claim(tmp_path)
    script = "import sys; print(flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=-1, stdout=-1, close_fds=False, text=True
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()  # it is past its exec
        claim.release()
        with open(tmp_path / places.RECORD) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        child.communicate()


def test_start_ticks_of_nobody_is_zero() -> None:
    assert places.start_ticks(os.getpid()) > 0
    gone = subprocess.Popen([sys.executable, "-c", ""])
    pid = gone.pid
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert places.start_ticks(pid) == 0  # a zombie is as good as gone
    gone.wait()
    assert places.start_ticks(pid) == 0


def test_only_what_a_killed_temporary_grid_left_is_removed(tmp_path: pathlib.Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead = {"is_temporary": True, "children": {"broker": [gone.pid, 1]}}
    alive = {"broker": [os.getpid(), places.start_ticks(os.getpid())]}
    records = {
        "gristmill-dead": json.dumps(dead),
        "gristmill-somebodys": json.dumps({**dead, "is_temporary": False}),
        "gristmill-old": json.dumps({"children": {}}),
        "gristmill-ending": json.dumps({**dead, "children": alive}),
        "gristmill-held": json.dumps(dead),
        "gristmill-begins": "",
        "gristmill-torn": '{"is_temporary": true, "children": {"broker": [1, 1]}',
        "other-dead": json.dumps(dead),
    }
    for name, record in records.items():
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / places.RECORD).write_text(record)
        (tmp_path / name / "state").mkdir()
    (tmp_path / "gristmill-empty").mkdir()
    (tmp_path / "gristmill-file").write_text("")
    (tmp_path / "gristmill-link").symlink_to(tmp_path / "other-dead")
    before = {path.name for path in tmp_path.iterdir()}
    with open(tmp_path / "gristmill-held" / "run" / places.RECORD) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert places.remove_abandoned(tmp_path) == [tmp_path / "gristmill-dead"]
    assert {path.name for path in tmp_path.iterdir()} == before - {"gristmill-dead"}
