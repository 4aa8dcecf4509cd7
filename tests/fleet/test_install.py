"""Files are written whole or not at all, and what a person wrote is left alone."""

import json
import os
import pathlib
import stat
import subprocess
import sys

import pytest

from gristmill.deploy.install import (
    ALLOW,
    BROKER_KEY,
    OF_WORKERS,
    OPERATOR_TOKEN,
    TARGETS,
    UNITS,
    Site,
    check_python,
    elsewhere,
    install,
    plan,
    text_of,
    workers_there,
)
from gristmill.wire.errors import EXIT_AUTH, EXIT_USAGE, RemoteError
from gristmill.wire.keys import load_key
from gristmill.wire.tokens import parse_token

PYTHON = "/opt/gristmill/bin/python"
SITE = Site(PYTHON, "alpha")
MADE = (
    7  #: keys of broker, ledger, store, registry, operator and worker 1, and the operator's token
)


def acts(root: pathlib.Path, **options: str) -> dict[str, str]:
    return acts_of(root, Site(options.get("python", PYTHON), "alpha"))


def acts_of(root: pathlib.Path, site: Site) -> dict[str, str]:
    return {step.path.name: step.act for step in plan(root, site)}


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "gristmill.cli.main", "deploy", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_everything_is_written_with_the_right_interpreter_and_key(tmp_path: pathlib.Path) -> None:
    assert set(acts(tmp_path).values()) == {"write"}
    assert not list(tmp_path.iterdir()), "a plan changes nothing"
    install(tmp_path, SITE, is_forced=False)
    for name, target in TARGETS.items():
        path = tmp_path / target
        assert "@PYTHON@" not in path.read_text() and "_KEY@" not in path.read_text(), name
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    for room in ("broker", "ledger", "store", "registry", "worker@"):
        unit = (tmp_path / UNITS / f"gristmill-{room}.service").read_text()
        module = "broker.registry" if room == "registry" else room.rstrip("@")
        assert f"ExecStart={PYTHON} -P -m gristmill.{module}\n" in unit
    key = tmp_path / BROKER_KEY
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    public = load_key(key).verify_key.encode().hex()
    settings = (tmp_path / TARGETS["keys.env"]).read_text()
    assert f"GRISTMILL_STORE_KEY={public}\n" in settings
    for name in ("broker", "ledger", "store", "registry", "operator", "worker-1"):
        key = tmp_path / f"etc/credstore/gristmill-{name}.key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        known = load_key(key).verify_key.encode().hex() in settings
        assert known == (name != "registry"), "nodes know the registry by their tokens"
        assert key.read_text().strip() not in settings
    worker = load_key(tmp_path / "etc/credstore/gristmill-worker-1.key").verify_key.encode().hex()
    assert f"worker:alpha-1={worker}" in settings
    token = tmp_path / OPERATOR_TOKEN
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert parse_token(token.read_text()).broker == public


def test_another_worker_later_is_let_in_beside_the_first(tmp_path: pathlib.Path) -> None:
    install(tmp_path, SITE, is_forced=False)
    first = (tmp_path / TARGETS["keys.env"]).read_text()
    install(tmp_path, Site(PYTHON, "alpha", ("2",)), is_forced=False)
    both = (tmp_path / TARGETS["keys.env"]).read_text()
    assert "worker:alpha-1=" in both and "worker:alpha-2=" in both and len(both) > len(first)


def test_hosts_of_workers_have_no_secret_of_another_host(tmp_path: pathlib.Path) -> None:
    """Between hosts go public keys and addresses; the broker lets in whom it was told of."""
    broker, mill = tmp_path / "alpha", tmp_path / "beta"
    broker.mkdir(), mill.mkdir()
    near = Site(PYTHON, "alpha", (), "10.0.0.1")
    install(broker, near, is_forced=False)
    settings = (broker / TARGETS["broker.env"]).read_text()
    assert "GRISTMILL_BROKER_FRONT=tcp://10.0.0.1:7031\n" in settings
    assert "GRISTMILL_BROKER_LEDGER=tcp://127.0.0.1:7033\n" in settings
    assert "GRISTMILL_BROKER_STORE=https://10.0.0.1:7034\n" in settings
    assert not list((broker / "etc/credstore").glob("*worker*"))
    assert "worker@" not in near.next_command()
    public = load_key(broker / BROKER_KEY).verify_key.encode().hex()
    options = f"--broker tcp://10.0.0.1:7032 --broker-key {public}"
    assert elsewhere(broker, near) == f"gristmill deploy install {options}"

    far = Site(PYTHON, "beta", ("1", "2"), broker="tcp://10.0.0.1:7032", broker_key=public)
    install(mill, far, is_forced=False)
    files = sorted(path.name for path in mill.rglob("*") if path.is_file())
    assert files == sorted(
        ["gristmill-worker-1.key", "gristmill-worker-2.key"]
        + [pathlib.Path(TARGETS[name]).name for name in OF_WORKERS]
    )
    assert (mill / TARGETS["keys.env"]).read_text().splitlines()[1:] == [
        f"GRISTMILL_WORKER_BROKER_KEY={public}"
    ]
    told = (mill / TARGETS["worker.env"]).read_text()
    assert "GRISTMILL_WORKER_BROKER=tcp://10.0.0.1:7032\n" in told and "127.0.0.1" not in told
    first, second = (
        f"worker:beta-{name}={load_key(mill / key).verify_key.encode().hex()}"
        for name, key in ((n, f"etc/credstore/gristmill-worker-{n}.key") for n in "12")
    )
    assert elsewhere(mill, far).startswith(
        f"gristmill deploy install --allow {first} --allow {second} && "
    )

    install(broker, Site(PYTHON, "alpha", (), allow=(first,)), is_forced=False)
    with (broker / ALLOW).open("a") as file:
        file.write("# of Ann's lab\n")
    install(broker, Site(PYTHON, "alpha", (), allow=(second, first)), is_forced=False)
    keys = (broker / TARGETS["keys.env"]).read_text()
    assert keys.count(first) == keys.count(second) == 1 and "operator=" in keys
    assert "# of Ann's lab\n" in (broker / ALLOW).read_text()
    assert acts_of(broker, Site(PYTHON, "alpha", ()))["allow"] == "same"
    assert workers_there(broker) == [] and workers_there(mill) == ["1", "2"]


@pytest.mark.parametrize(
    "site, told",
    [
        (Site(PYTHON, "beta", broker="tcp://10.0.0.1:7032"), "--broker-key is not"),
        (Site(PYTHON, "beta", broker_key="a" * 64), "--broker is not"),
        (Site(PYTHON, "beta", broker="10.0.0.1:7032", broker_key="a" * 64), "tcp://HOST:7032"),
        (Site(PYTHON, "beta", broker="tcp://a:0", broker_key="a" * 64), "tcp://HOST:7032"),
        (Site(PYTHON, "beta", broker="tcp://a:7032", broker_key="abc"), "64 hex characters"),
        (Site(PYTHON, "beta", address="mill.lan"), "must be an IP address of this host"),
        (Site(PYTHON, "beta", address="0.0.0.0"), "must be an IP address of this host"),
        (
            Site(PYTHON, "beta", address="10.0.0.2", broker="tcp://a:7032", broker_key="a" * 64),
            "of the broker's host",
        ),
    ],
)
def test_a_site_that_makes_no_sense_writes_nothing(
    tmp_path: pathlib.Path, site: Site, told: str
) -> None:
    with pytest.raises(RemoteError, match=told) as caught:
        install(tmp_path, site, is_forced=True)
    assert caught.value.code == "INVALID_SPEC"
    assert not list(tmp_path.iterdir())


def test_a_host_stays_of_its_kind_and_its_settings_are_a_persons(tmp_path: pathlib.Path) -> None:
    broker, mill = tmp_path / "alpha", tmp_path / "beta"
    broker.mkdir(), mill.mkdir()
    far = Site(PYTHON, "beta", broker="tcp://10.0.0.1:7032", broker_key="ab" * 32)
    install(broker, SITE, is_forced=False)
    install(mill, far, is_forced=False)
    with pytest.raises(RemoteError, match="has a broker of its own"):
        install(broker, far, is_forced=True)
    with pytest.raises(RemoteError, match="it has none of its own") as caught:
        install(mill, SITE, is_forced=True)
    assert "--broker tcp://10.0.0.1:7032 --broker-key abab" in caught.value.hint
    with pytest.raises(
        RemoteError, match=r"GRISTMILL_BROKER_FRONT=tcp://\[fd00::1\]:7031"
    ) as caught:
        install(broker, Site(PYTHON, "alpha", address="fd00::1"), is_forced=True)
    assert caught.value.code == "FORBIDDEN"
    moved = Site(PYTHON, "beta", broker="tcp://10.0.0.9:7032", broker_key="ab" * 32)
    with pytest.raises(RemoteError, match=r"WORKER_BROKER=tcp://10\.0\.0\.9:7032"):
        install(mill, moved, is_forced=True)


def test_a_second_time_changes_nothing(tmp_path: pathlib.Path) -> None:
    install(tmp_path, SITE, is_forced=False)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    install(tmp_path, SITE, is_forced=False)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert acts(tmp_path)["gristmill-broker.service"] == "same"
    assert acts(tmp_path)["gristmill-broker.key"] == "keep"


def test_what_is_there_with_other_content_is_a_refusal_that_writes_nothing(
    tmp_path: pathlib.Path,
) -> None:
    unit = tmp_path / TARGETS["gristmill-ledger.service"]
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/usr/bin/true\n")
    with pytest.raises(RemoteError, match=r"gristmill-ledger\.service; nothing was") as caught:
        install(tmp_path, SITE, is_forced=False)
    assert caught.value.code == "FORBIDDEN"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [unit]
    install(tmp_path, SITE, is_forced=True)
    assert unit.read_text() == text_of("gristmill-ledger.service", SITE, {})


def test_settings_and_keys_of_a_person_are_never_written_over(tmp_path: pathlib.Path) -> None:
    install(tmp_path, SITE, is_forced=False)
    settings, key = tmp_path / TARGETS["worker.env"], tmp_path / BROKER_KEY
    settings.write_text("GRISTMILL_WORKER_BROKER=tcp://127.0.0.1:9\n")
    mine = key.read_bytes()
    install(tmp_path, Site("/usr/local/bin/python3", "alpha"), is_forced=True)
    assert settings.read_text() == "GRISTMILL_WORKER_BROKER=tcp://127.0.0.1:9\n"
    assert key.read_bytes() == mine
    unit = (tmp_path / TARGETS["gristmill-store.service"]).read_text()
    assert "ExecStart=/usr/local/bin/python3 -P" in unit


def test_an_interpreter_that_the_units_cannot_run(tmp_path: pathlib.Path) -> None:
    check_python("/usr/bin/env")
    for python, told in (
        ("/usr/bin/no-python", "is not an interpreter"),
        ("/etc/passwd", "is not an interpreter"),
        ("/opt/my grid/bin/python", "characters that a unit cannot take"),
        ("/opt/%i/python", "characters that a unit cannot take"),
    ):
        with pytest.raises(RemoteError, match=told) as caught:
            check_python(python)
        assert "python3 -m venv /opt/gristmill" in caught.value.hint
    hidden = tmp_path / "python"
    hidden.symlink_to("/usr/bin/env")
    with pytest.raises(RemoteError, match="below /tmp, which the units' processes cannot see"):
        check_python("/tmp/../tmp" + str(hidden).removeprefix("/tmp"))


def test_the_verbs(tmp_path: pathlib.Path) -> None:
    dry = command("install", "--root", str(tmp_path), "--python", PYTHON, "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    said = json.loads(dry.stdout)
    assert said["schema"] == "gristmill/deploy/1" and said["is_dry_run"]
    assert len(said["files"]) == len(TARGETS) + MADE
    assert not list(tmp_path.iterdir())
    done = command("install", "--root", str(tmp_path), "--python", PYTHON)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written ") == len(TARGETS) + MADE
    assert "next: systemd-sysusers && " in done.stderr
    again = command("install", "--root", str(tmp_path), "--python", "/usr/bin/python3")
    assert again.returncode == EXIT_AUTH
    assert "nothing was written" in again.stderr and "--force" in again.stderr
    shown = command("show", "gristmill-broker.service", "--python", PYTHON)
    written = (tmp_path / TARGETS["gristmill-broker.service"]).read_text()
    assert shown.stdout == written
    assert "gristmill.target" in command("show").stdout
    unknown = command("show", "gristmill-cook.service")
    assert unknown.returncode == EXIT_USAGE and "gristmill-broker.service" in unknown.stderr
    nowhere = command("install", "--root", str(tmp_path / "missing"))
    assert nowhere.returncode == EXIT_USAGE and "mkdir -p" in nowhere.stderr


def test_the_verb_tells_what_is_typed_on_the_other_host(tmp_path: pathlib.Path) -> None:
    broker, mill = tmp_path / "alpha", tmp_path / "beta"
    broker.mkdir(), mill.mkdir()
    more = ("--python", PYTHON, "--root")
    near = ("install", "--host", "alpha", "--no-worker", "--address", "10.0.0.1")
    done = command(*near, *more, str(broker))
    assert done.returncode == 0, done.stderr
    words = done.stderr.partition("on each host of workers for this broker: gristmill deploy ")[2]
    done = command(*words.split(), "--host", "beta", "--json", *more, str(mill))
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)["elsewhere"]
    words = there.removeprefix("gristmill deploy ").removesuffix(
        " && systemctl restart gristmill-broker"
    )
    done = command(*words.split(), "--host", "alpha", *more, str(broker))
    assert done.returncode == 0, done.stderr
    assert "worker:beta-1=" in (broker / TARGETS["keys.env"]).read_text()
    assert "worker:alpha-1=" not in (broker / TARGETS["keys.env"]).read_text()
    for root, host in ((broker, "alpha"), (mill, "beta")):  # an upgrade needs no option
        before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        again = command("install", "--force", "--host", host, *more, str(root))
        assert again.returncode == 0, again.stderr
        assert {path: path.read_bytes() for path in before} == before
        assert len(before) == len([path for path in root.rglob("*") if path.is_file()])
        assert "tcp://10.0.0.1:7032" in again.stderr or host == "beta"
    bad = command("install", "--allow", "worker:beta-1=abc", *more, str(broker))
    assert bad.returncode == EXIT_USAGE and "64 hex characters" in bad.stderr


def test_a_folder_that_may_not_be_written(tmp_path: pathlib.Path) -> None:
    (tmp_path / "etc").write_text("a file, where a folder must be")
    with pytest.raises(RemoteError, match="cannot write") as caught:
        install(tmp_path, SITE, is_forced=True)
    assert caught.value.code == "FORBIDDEN"
    assert os.listdir(tmp_path) == ["etc"]
