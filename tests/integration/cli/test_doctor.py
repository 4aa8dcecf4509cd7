"""``gristmill doctor`` on this host with things that are really broken, and then really mended."""

import json
import os
import pathlib
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gristmill.cli.doctor_checks import judge
from gristmill.cli.doctor_facts import Trial
from gristmill.cli.doctor_probe import Grid as Told
from gristmill.cli.doctor_probe import collect, is_synchronised
from gristmill.cli.documents import Finding
from gristmill.cli.grid import Grid
from gristmill.wire.keys import BROKER_KEY, load_key

Run = Callable[..., Any]
COMMAND = [sys.executable, "-P", "-m", "gristmill.cli.main", "doctor", "--json"]


@pytest.fixture
def state(tmp_path: pathlib.Path) -> pathlib.Path:
    """A state folder as a broker leaves it."""
    load_key(tmp_path / "state" / "broker" / BROKER_KEY)
    return tmp_path / "state"


@pytest.fixture
def look(state: pathlib.Path, tmp_path: pathlib.Path) -> Callable[..., dict[str, Finding]]:
    """The rules on this very host; by name, the worst of each."""

    def judged(*listen: str, **environment: str) -> dict[str, Finding]:
        facts = collect(Trial(), "nsjail", state, tmp_path / "run", environment, listen)
        order = ["ok", "note", "warning", "fault"]
        return {one.name: one for one in sorted(judge(facts), key=lambda x: order.index(x.level))}

    return judged


def paste(finding: Finding) -> None:
    """What a person does with a remedy."""
    subprocess.run(["bash", "-euc", finding.remedy], check=True, timeout=30)


def in_namespace(flags: str, script: str, *more: str) -> dict[str, Any]:
    """The document of the command after a script, as root of namespaces of its own."""
    own = flags if os.geteuid() == 0 else f"{flags}Ur"
    command = ["unshare", f"-{own}", "sh", "-euc", f'{script}\nexec "$@"', "sh", *COMMAND, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if not done.stdout and "unshare" in done.stderr:
        pytest.skip(f"no such namespace can be made here: {done.stderr}")
    assert done.stdout, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["is_able"] is (done.returncode != 78)
    faults = [one for one in document["findings"] if one["level"] == "fault"]
    assert len(faults) == document["faults"]
    assert (done.returncode != 0) is bool(faults)
    return {one["name"]: one for one in document["findings"]}


# ---------------------------------------------------------------- keys


def test_keys_that_others_may_read_are_named_and_the_remedy_mends_them(
    look: Callable[..., dict[str, Finding]], state: pathlib.Path
) -> None:
    key = state / "broker" / BROKER_KEY
    assert look()["keys"].detail == "1 files of secrets, each for its owner alone"
    key.chmod(0o644)
    found = look()["keys"]
    assert (found.level, str(key) in found.detail) == ("fault", True)
    paste(found)
    key.parent.chmod(0o755)
    found = look()["keys"]
    assert "others may enter" in found.detail
    paste(found)
    assert look()["keys"].level == "ok"
    key.write_text("not a key\n")
    found = look()["keys"]
    assert "does not hold a key" in found.detail
    paste(found)
    assert not key.exists() and look()["keys"].level == "ok"
    key.symlink_to("/etc/hostname")
    found = look()["keys"]
    assert "is a link" in found.detail
    paste(found)
    load_key(key)
    assert look()["keys"].level == "ok"


def test_every_kind_of_secret_is_found(
    look: Callable[..., dict[str, Finding]], state: pathlib.Path
) -> None:
    names = (
        "ledger/ledger.key",
        "worker-7/worker.key",
        "treasury/treasury.key",
        "broker/principals",
    )
    for name in names:
        (state / name).parent.mkdir(mode=0o700, exist_ok=True)
        (state / name).touch(mode=0o640)
        assert str(state / name) in look()["keys"].detail
        (state / name).unlink()


@pytest.mark.root
def test_a_key_of_another_user_is_named_and_given_back(
    look: Callable[..., dict[str, Finding]], state: pathlib.Path
) -> None:
    os.chown(state / "broker" / BROKER_KEY, 12_345, -1)
    found = look()["keys"]
    assert "belongs to uid 12345" in found.detail
    if not pathlib.Path("/usr/bin/sudo").exists():
        found = Finding("", "", "", found.remedy.replace("sudo ", ""))
    paste(found)
    assert look()["keys"].level == "ok"


# ---------------------------------------------------------------- ports


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_port_that_is_taken_is_told_with_who_has_it(
    look: Callable[..., dict[str, Finding]], taken: int
) -> None:
    for variable, scheme, name in (
        ("GRISTMILL_BROKER_FRONT", "tcp", "port front"),
        ("GRISTMILL_STORE_LISTEN", "http", "port store"),
    ):
        found = look(**{variable: f"{scheme}://127.0.0.1:{taken}"})[name]
        assert (found.level, f"(pid {os.getpid()})" in found.detail) == ("fault", True), found
        assert f"sport = :{taken}" in found.remedy
    assert look(f"tcp://127.0.0.1:{taken}")["port given"].level == "fault"


def test_ports_that_others_could_reach_and_that_do_not_exist(
    look: Callable[..., dict[str, Finding]],
) -> None:
    for address, words in (
        ("tcp://0.0.0.0:7031", "NOT_LOOPBACK"),
        ("http://192.0.2.1:7031", "NOT_LOOPBACK"),
        ("tcp://127.0.0.1:70000", "there are 65535"),
        ("udp://127.0.0.1:1", "INVALID_SPEC"),
        (f"ipc:///{'x' * 120}/front", "limit 107"),
    ):
        found = look(address)["port given"]
        assert (found.level, words in found.detail) == ("fault", True), found
    assert look("tcp://127.0.0.1:*")["port given"].level == "ok"
    # The broker's own doors have keys; the ledger's may have, and is asked by itself.
    assert look(GRISTMILL_BROKER_FRONT="tcp://0.0.0.0:0")["port front"].level == "ok"
    assert look(GRISTMILL_LEDGER_LISTEN="tcp://0.0.0.0:0")["port ledger"].level == "fault"


def test_a_folder_of_sockets_that_is_open_to_others(
    look: Callable[..., dict[str, Finding]], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    found = look()["port front"]
    assert "open to other users" in found.detail
    paste(found)
    assert look()["port front"].level == "ok"


def test_a_socket_that_somebody_else_listens_on(
    look: Callable[..., dict[str, Finding]], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "run" / "ledger"))
        assert look()["port ledger"].level == "ok"  # left behind by a process that is gone
        listener.listen()
        found = look()["port ledger"]
    assert (found.level, f"(pid {os.getpid()})" in found.detail) == ("fault", True)


# ---------------------------------------------------------------- the rest of the host


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("mount -t tmpfs -o size=8m,nr_inodes=4000 t $at", "new jobs are refused"),
        ("mount -t tmpfs -o size=1m t $at; head -c 2M /dev/zero > $at/x || true", "refused"),
        ("mount -t tmpfs -o size=2g,nr_inodes=300 t $at", "of 300 inodes"),
        ("mount -t tmpfs -o size=2g t $at; mount -o remount,ro $at", "Read-only file system"),
        ("mount -t tmpfs -o size=2g t $at", "gone at the next boot"),
    ],
)
def test_disks_that_are_full_read_only_or_gone_tomorrow(
    script: str, words: str, tmp_path: pathlib.Path
) -> None:
    at = shlex.quote(str(tmp_path))
    probe = (
        "import json, pathlib, sys, msgspec\n"
        "from gristmill.cli.doctor_checks import judge\n"
        "from gristmill.cli.doctor_facts import Trial\n"
        "from gristmill.cli.doctor_probe import collect\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "found = judge(collect(Trial(), 'nsjail', path / 'state', path / 'run', {}))\n"
        "print(json.dumps([msgspec.to_builtins(one) for one in found]))\n"
    )
    flags = "-m" if os.geteuid() == 0 else "-Urm"
    command = ["unshare", flags, "sh", "-euc", f'at={at}; {script}\nexec "$@"', "sh"]
    command += [sys.executable, "-P", "-c", probe, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if not done.stdout:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr}")
    (found,) = [one for one in json.loads(done.stdout) if one["name"] == "disk of state"]
    assert words in found["detail"] and "on tmpfs" in found["detail"], found
    assert found["level"] == ("warning" if "boot" in words else "fault")


def test_user_namespaces_that_are_switched_off() -> None:
    script = "echo 0 > /proc/sys/user/max_user_namespaces"
    # a user namespace of its own, root or not: the setting of the host stays
    command = ["unshare", "-Ur", "sh", "-euc", f'{script}\nexec "$@"', "sh", *COMMAND]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if not done.stdout:
        pytest.skip(f"no user namespace can be made here: {done.stderr}")
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert done.returncode == 78
    assert found["user namespaces"]["level"] == found["jails"]["level"] == "fault"
    assert "sysctl -w user.max_user_namespaces=15000" in found["user namespaces"]["remedy"]


def test_too_few_descriptors_are_told_by_the_command(tmp_path: pathlib.Path) -> None:
    found = in_namespace("m", "ulimit -n 200", "--state", str(tmp_path), "--run", str(tmp_path))
    assert found["open files"]["level"] == "fault"
    assert "at most 200" in found["open files"]["detail"]


def test_the_kernel_is_asked_about_the_clock() -> None:
    """As ``timedatectl`` reads it, where there is one that answers."""
    own = is_synchronised()
    assert own in (True, False)
    if pathlib.Path("/run/systemd/system").exists():
        asked = subprocess.run(
            ["timedatectl", "show", "-P", "NTPSynchronized"], capture_output=True, text=True
        )
        assert asked.returncode or (asked.stdout.strip() == "yes") is own


def test_the_clock_of_a_broker_is_compared_in_the_middle_of_the_question() -> None:
    told = Told({"utc_ms": 5_000_300}, [], 5_000.0, 5_000.2)
    assert (told.ahead_ms, told.round_trip_ms) == (200, 200)
    assert Told({}, [], 1.0, 2.0).ahead_ms is None  # a broker of before


# ---------------------------------------------------------------- the command


def test_a_host_in_order_with_its_grid(run: Run, grid: Grid) -> None:
    done = run("doctor", "--json", "--state", str(grid.state), "--run", str(grid.run))
    found = {one["name"]: one for one in done.document["findings"]}
    assert (done.code, done.document["faults"]) == (0, 0), done.document
    for name in ("front", "back", "ledger", "store"):
        assert "of the grid that runs" in found[f"port {name}"]["detail"]
    assert found["keys"]["detail"].startswith("3 files of secrets")
    assert "1 workers" in found["gristmill"]["detail"]
    told = float(found["clock of the broker"]["detail"].split()[3])
    assert told < 1.0 and found["clock of the broker"]["level"] == "ok"
    assert {one["remedy"] == "" for one in found.values() if one["level"] == "ok"} == {True}


def test_a_fault_that_is_no_jails_ends_with_1(run_anywhere: Run, tmp_path: pathlib.Path) -> None:
    key = tmp_path / "state" / "worker-0" / "worker.key"
    load_key(key)
    key.chmod(0o604)
    done = run_anywhere("doctor")
    assert done.code == 1
    assert f"try: chmod 600 {key}" in done.out and "can run jailed work" in done.out
    done = run_anywhere("doctor", "--address", f"ipc://{tmp_path}/nobody", "--state", "/proc/none")
    assert done.code == 1
    assert "no grid is running there" in done.out and "try: gristmill up" in done.out
    assert "nothing can be written and synced in /proc" in done.out


def test_it_leaves_nothing_behind(
    look: Callable[..., dict[str, Finding]], state: pathlib.Path
) -> None:
    before = sorted(state.rglob("*"))
    began = time.monotonic()
    look()
    assert sorted(state.rglob("*")) == before
    assert time.monotonic() - began < 5
