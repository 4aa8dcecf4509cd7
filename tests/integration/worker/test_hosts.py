"""Hosts: one that cannot jail, a plain user without cgroups, interpreters in hidden places."""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from gristmill.wire.outcome import Outcome

ROOT = pathlib.Path(__file__).parents[3]


def test_a_host_that_cannot_jail_says_why_and_the_remedy_and_exits_78(
    tmp_path: pathlib.Path,
) -> None:
    # in a user namespace of its own that may hold no further one, as a hardened host
    script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    worker = [
        *(sys.executable, "-P", "-m", "gristmill.worker", "--broker", f"ipc://{tmp_path}/x"),
        *("--name", "w", "--slots", "1", "--state", str(tmp_path / "state")),
    ]
    ended = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", script, "sh", *worker],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "unshare" in ended.stderr:
        pytest.skip(f"no user namespace can be made here: {ended.stderr}")

    assert ended.returncode == 78, ended.stderr
    assert "No space left on device" in ended.stderr
    assert "sysctl -w user.max_user_namespaces" in ended.stderr
    assert "gristmill doctor" in ended.stderr


def test_wrong_settings_are_named_all_at_once(tmp_path: pathlib.Path) -> None:
    ended = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "gristmill.worker", "--slots", "0"),
            *("--tiers", "jobs", "--memory", "much", "--state", str(tmp_path / "state")),
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert ended.returncode == 2
    for part in (
        "slots",
        "tiers",
        "'jobs'",
        "memory",
        "'much'",
        "broker: missing",
        "name: missing",
    ):
        assert part in ended.stderr


@pytest.fixture
def user_pair(start: Any) -> Iterator[Any]:
    """A worker of the user nobody, without cgroups, with the system's Python."""
    python = "/usr/bin/python3"
    if not os.path.exists(python):
        pytest.skip(f"no {python}")
    version = subprocess.check_output([python, "-c", "import sys; print(sys.version_info[:2])"])
    if version.decode().strip() != str(sys.version_info[:2]):
        pytest.skip(f"{python} has version {version!r}: our packages are compiled for another")
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    path = f"{ROOT / 'namespace'}:{packages}"
    home = tempfile.mkdtemp(prefix="gw-home-")
    os.chown(home, 65534, 65534)
    pair = start(
        "--state", f"{home}/state",
        python=python, user=65534, group=65534, extra_groups=[], cwd="/",
        env={"PYTHONPATH": path, "HOME": home, "PATH": os.environ["PATH"]},
    )  # fmt: skip
    run = pathlib.Path(pair.peer.address.removeprefix("ipc://"))
    os.chown(run, 65534, 65534)
    os.chown(run.parent, 65534, 65534)
    yield pair.greet()
    pair.end()
    subprocess.run(["rm", "-rf", home], check=True)


@pytest.mark.root
def test_a_plain_user_jails_by_rlimits_and_says_so(user_pair: Any) -> None:
    assert "no cgroup" in user_pair.worker.text()
    assert user_pair.peer.hellos[0].metering == "proc"

    def work(x: int) -> int:
        import os

        if x == 1:
            return len(bytearray(2 << 30))
        return os.getuid()

    user_pair.run_function(work, [0, 1], tier="job", limits={"memory_bytes": 256 << 20})

    assert user_pair.peer.values() == {0: 1000}
    assert user_pair.peer.outcomes()[1] is Outcome.OOM
    assert {result.head.metering for result in user_pair.peer.results} == {"wait4"}
    assert all(result.head.cpu_us > 0 for result in user_pair.peer.results)

    user_pair.peer.forget()
    user_pair.run_function(lambda x: x, [4, 5], tier="batch")
    assert user_pair.peer.values() == {0: 4, 1: 5}
    assert {result.head.metering for result in user_pair.peer.results} == {"proc"}


@pytest.mark.root
def test_an_environment_below_a_private_home_is_used(pair: Any, tmp_path: pathlib.Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    venv = home / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "only_here.py").write_text("SECRET = 41\n")

    def work(x: int) -> list[object]:
        import sys

        import only_here

        return [only_here.SECRET + x, sys.prefix]

    executable = str(venv / "bin" / "python")
    pair.run_function(work, [1], tier="batch", environment=executable, results="safe")

    assert pair.peer.values() == {0: [42, str(venv)]}, pair.peer.failures()
    pair.peer.forget()
    pair.run_function(lambda x: __import__("only_here") and x, [1], tier="batch")
    assert pair.peer.failures()[0].kind == "ModuleNotFoundError"
