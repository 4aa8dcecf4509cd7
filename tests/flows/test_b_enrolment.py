"""Rows B02 to B11: the real registry, the real command, real nodes at its port."""

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest
from desk_rig import REPORT
from grid_rig import until
from nacl.signing import SigningKey
from registry_rig import RegistryProcess

from gristmill.broker.principals import read
from gristmill.deploy import install
from gristmill.wire.enrolment import Enrolled, fingerprint, parse_token
from gristmill.wire.errors import RemoteError
from gristmill.wire.keys import WORKER_KEY, load_key
from gristmill.worker.enrolment import Door


@pytest.fixture
def registry(tmp_path: pathlib.Path) -> Iterator[RegistryProcess]:
    with tempfile.TemporaryDirectory(prefix="gm-") as run:
        made = RegistryProcess(tmp_path / "registry", pathlib.Path(run))
        yield made
        made.close()


def token_of(registry: RegistryProcess, name: str = "mill", *more: str) -> str:
    return registry.inside("node", "token", name, *more).stdout.strip()


def arrive(token: str, key: SigningKey | None = None) -> Enrolled:
    """A node that does not try itself first; ``gristmill node enrol`` does."""
    with Door(parse_token(token), key or SigningKey.generate()) as door:
        return door.enrol(REPORT)


def test_b01_every_act_has_somebody_who_did_it(registry: RegistryProcess) -> None:
    registry.start()
    arrive(token_of(registry))
    for act in ("approve", "quarantine", "release", "ban"):
        registry.command("node", act, "mill", "--by", "ann", "--reason", f"to {act}")
    (listed,) = registry.documents("node", "list", "--enrolled")
    (node,) = listed["nodes"]
    assert node["state"] == "banned"
    assert (node["decided_by"], node["reason"]) == ("ann", "to ban")
    table = registry.command("node", "list", "--enrolled").stdout
    assert "by ann; to ban" in table
    log = registry.command("audit", "log", "mill").stdout
    for act in ("approve", "quarantine", "release", "ban"):
        assert f" ann {act} mill " in log
    user = registry.documents("audit", "log")[0]["record"]["by"]
    assert user.startswith("local:")
    told = registry.command("audit", "verify")
    assert "is in order: 7 records" in told.stdout


def test_b02_a_restart_loses_no_approval_and_one_operator_wins(registry: RegistryProcess) -> None:
    registry.start()
    tokens = [token_of(registry, name) for name in ("mill", "race")]
    keys = [SigningKey.generate() for _ in tokens]
    for token, key in zip(tokens, keys, strict=True):
        arrive(token, key)
    registry.command("node", "approve", "mill")
    registry.kill()
    with pytest.raises(RemoteError, match="UNREACHABLE"):
        registry_away(tokens[1])
    told = registry.command("node", "approve", "race", code=3)  # nobody becomes anything
    assert "REGISTRY_DOWN" in told.stderr
    registry.start()
    assert arrive(tokens[0], keys[0]).state == "approved"
    arrive(tokens[1], keys[1])
    both = [
        subprocess.Popen(
            registry.argv("node", act, "race", "--version", "1", "--by", by, "--reason", "x"),
            env=registry.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for act, by in (("approve", "ann"), ("reject", "bob"))
    ]  # fmt: skip
    ends = [(one.communicate(timeout=60)[1], one.returncode) for one in both]
    assert sorted(code for _, code in ends) == [0, 5]
    winner = "ann" if ends[0][1] == 0 else "bob"
    (loser,) = [told for told, code in ends if code]
    assert f"STALE_DECISION race is {registry.node('race').principal.state}" in loser
    assert f"by {winner}" in loser


def registry_away(token: str) -> None:
    from gristmill.worker import enrolment

    before = enrolment.ANSWER_MS
    enrolment.ANSWER_MS = 500
    try:
        arrive(token)
    finally:
        enrolment.ANSWER_MS = before


def test_b03_a_token_is_good_once_for_one_name_and_class(registry: RegistryProcess) -> None:
    registry.start()
    (new,) = registry.documents("node", "token", "mill", "--class", "gpu", "--owner", "lab")
    life_ms = new["expires_ms"] - time.time() * 1000
    assert 14 * 60_000 < life_ms <= 15 * 60_000
    told = registry.inside("node", "token", "mill-2", "--ttl", "16m", code=2)
    assert "ttl is 960000 ms" in told.stderr
    parsed = parse_token(new["token"])
    with pytest.raises(RemoteError, match="FORBIDDEN"):
        arrive(str(parsed._replace(name="other")))
    arrive(new["token"])
    assert registry.node().principal.node_class == "gpu"
    assert registry.node().principal.tenant == "lab"
    with pytest.raises(RemoteError, match="TOKEN_USED"):
        arrive(new["token"])
    assert "FLAGGED 1 times: its token was used again" in (
        registry.inside("node", "list", "--enrolled").stdout
    )
    late = registry.documents("node", "token", "late", "--ttl", "1s")[0]["token"]
    until("expired", lambda: registry.records("late")[-1].act == "token-expired")
    with pytest.raises(RemoteError, match="TOKEN_EXPIRED"):
        arrive(late)
    assert parsed.secret.encode() not in (registry.state / "registry.db").read_bytes()


def test_b04_a_drop_in_to_paste_and_a_fingerprint(
    registry: RegistryProcess, tmp_path: pathlib.Path
) -> None:
    broker = "ab" * 32
    registry.start("--broker", f"tcp://10.0.0.1:7032={broker}")
    told = registry.command("node", "token", "mill")
    token = told.stdout.strip()
    parsed = parse_token(token)
    assert fingerprint(parsed.public) in told.stderr
    assert f"fingerprint of tcp://10.0.0.1:7032: {fingerprint(broker)}" in told.stderr
    # What is pasted, run on a root of its own: the token lies where the unit takes it from.
    script = told.stderr.partition("in one piece:\n\n")[2].partition("then: ")[0]
    root = tmp_path / "root"
    here = script.replace("/etc/", f"{root}/etc/").replace("systemctl", "echo systemctl")
    done = subprocess.run(["sh", "-eu"], input=here, text=True, capture_output=True, check=True)
    assert done.stdout.split()[:2] == ["systemctl", "daemon-reload"]
    credential = root / "etc" / "gristmill" / "enrol-mill"
    assert credential.read_text().strip() == token
    assert credential.stat().st_mode & 0o077 == 0
    unit = root / "etc/systemd/system/gristmill-worker@mill.service.d/enrol.conf"
    assert f"LoadCredential=enrol:{credential}" in unit.read_text()
    assert "node enrol --token-file ${CREDENTIALS_DIRECTORY}/enrol" in unit.read_text()
    # systemd finds no command of a virtual environment: the worker's unit names its interpreter.
    assert "ExecStartPre=/usr/bin/env ${GRISTMILL_PYTHON} -P -m gristmill" in unit.read_text()
    worker = (pathlib.Path(install.__file__).parent / "gristmill-worker@.service").read_text()
    assert "Environment=GRISTMILL_PYTHON=@PYTHON@\n" in worker
    settings = (root / "etc/gristmill/worker-mill.env").read_text().splitlines()
    assert settings == [
        "GRISTMILL_WORKER_NAME=mill",
        "GRISTMILL_WORKER_BROKER=tcp://10.0.0.1:7032",
        f"GRISTMILL_WORKER_BROKER_KEY={broker}",
    ]
    # There is no way to see it again; another one takes its place.
    shown = registry.command("node", "list", "--enrolled").stdout
    shown += registry.command("audit", "log").stdout
    assert parsed.secret not in shown
    again = registry.command("node", "token", "mill")
    assert "an earlier token for mill was revoked" in again.stderr
    with pytest.raises(RemoteError, match="TOKEN_REVOKED"):
        arrive(token)
    assert arrive(again.stdout.strip()).state == "pending"


def test_b06_a_node_makes_its_key_and_keeps_it(
    registry: RegistryProcess, tmp_path: pathlib.Path
) -> None:
    registry.start()
    state = tmp_path / "node"
    file = tmp_path / "token"
    file.write_text(token_of(registry))
    words = ["node", "enrol", "--token-file", str(file), "--state", str(state)]
    told = registry.command(*words, "--no-wait", code=1)
    assert "mill is pending, key" in told.stderr
    key = load_key(state / WORKER_KEY)
    assert (state / WORKER_KEY).stat().st_mode & 0o077 == 0
    row = registry.node()
    assert row.principal.public == bytes(key.verify_key).hex()
    assert fingerprint(row.principal.public) in told.stderr
    assert {"gristmill", "python", "libzmq"} <= set(row.report.versions)
    assert {check.name for check in row.report.checks} == {"jail", "cgroup", "disk"}
    for path in registry.state.iterdir():
        assert key.encode() not in path.read_bytes()
        assert key.encode().hex().encode() not in path.read_bytes()
    # The same name with another key, with a good token of its own: the old node keeps its place.
    registry.command("node", "approve", "mill")
    other = tmp_path / "other"
    told = registry.command(
        "node", "enrol", token_of(registry), "--state", str(other), "--no-wait", code=5
    )
    assert "IDENTITY_CONFLICT node mill is approved with another key" in told.stderr
    assert registry.node().principal.public == row.principal.public
    assert registry.node().flags == 1
    registry.command(*words)
    # From now on the node needs nobody: the registry may be away when its unit starts.
    registry.kill()
    assert "mill is enrolled already" in registry.command(*words).stderr


def test_b07_a_pending_node_is_seen_at_once_with_what_it_measured(
    registry: RegistryProcess, tmp_path: pathlib.Path, figures: Callable[..., None]
) -> None:
    registry.start("--pending-ttl", "4s")
    token = token_of(registry, "mill", "--class", "gpu")
    followed = registry.follow()
    began = time.monotonic()
    node = subprocess.Popen(
        registry.argv("node", "enrol", token, "--state", str(tmp_path / "node")),
        env=registry.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        followed.take()
        seen_s = time.monotonic() - began
        assert followed.states == {"mill": "pending"}
        (listed,) = registry.documents("node", "list", "--enrolled")
        (row,) = listed["nodes"]
        assert row["source"] == "127.0.0.1"
        assert row["node_class"] == "gpu"
        assert row["cpus_milli"] == len(os.sched_getaffinity(0)) * 1000
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert row["memory_bytes"] == memory
        while followed.states["mill"] != "expired":
            followed.take()
        _, told = node.communicate(timeout=60)  # it asks, and is told
    finally:
        node.kill()
        node.wait()
    assert node.returncode == 5
    assert "mill is expired: nobody decided about it in time" in told
    assert "expired" in registry.command("node", "list", "--enrolled").stdout
    figures(from_start_to_pending_ms=round(seen_s * 1000))


def test_b08_approval_with_limits_by_two_operators_of_a_node_that_is_there(
    registry: RegistryProcess,
) -> None:
    registry.start("--approvals", "2")
    token, key = token_of(registry), SigningKey.generate()
    arrive(token, key)
    first = registry.inside("node", "approve", "mill", "--slots", "2", "--by", "ann")
    assert "mill is pending, version 2: 1 of 2 approvals, by ann" in first.stdout
    told = registry.inside("node", "approve", "mill", "--by", "ann", "--reason", "x", code=5)
    assert "SECOND_OPERATOR" in told.stderr
    assert arrive(token, key).state == "pending"
    registry.inside("node", "approve", "mill", "--by", "bob")
    told = arrive(token, key)
    assert (told.state, told.slots_max) == ("approved", 2)
    arrive(token_of(registry, "bad"))
    told = registry.inside("node", "reject", "bad", code=2)
    assert "reject of bad without a reason" in told.stderr
    registry.inside("node", "reject", "bad", "--reason", "not ours")
    assert registry.node("bad").principal.reason == "not ours"


def test_b08_a_node_that_went_away_is_not_approved(registry: RegistryProcess) -> None:
    registry.start()
    arrive(token_of(registry))
    registry.kill()
    registry.start("--vanished", "1s")
    until("silent", lambda: registry.node().seen_ms < time.time() * 1000 - 1_000)
    told = registry.inside("node", "approve", "mill", code=5)
    assert "NODE_VANISHED mill was last seen" in told.stderr
    assert "127.0.0.1" in told.stderr
    assert registry.node().principal.state == "pending"


def test_b09_a_decision_said_again_or_too_late(registry: RegistryProcess) -> None:
    registry.start()
    arrive(token_of(registry))
    words = ("node", "approve", "mill", "--version", "1", "--by", "ann")
    registry.inside(*words)
    before = registry.records()
    registry.kill()
    registry.start()
    told = registry.inside(*words)
    assert "it was before, nothing changed" in told.stdout
    assert registry.records() == before
    told = registry.inside("node", "approve", "mill", "--by", "ann")  # about the version that is
    assert "it was before, nothing changed" in told.stdout
    told = registry.inside("node", "approve", "mill", "--by", "bob", code=5)
    assert "WRONG_STATE node mill is approved" in told.stderr
    assert registry.records() == before
    told = registry.inside("node", "ban", "mill", "--version", "1", "--reason", "x", code=5)
    assert "STALE_DECISION mill is approved in version 2, by ann" in told.stderr
    assert registry.records() == before


def test_b10_every_follower_hears_within_two_seconds(
    registry: RegistryProcess, figures: Callable[..., None]
) -> None:
    registry.start()
    brokers = [registry.follow() for _ in range(3)]
    arrive(token_of(registry))
    registry.inside("node", "approve", "mill")
    for broker in brokers:
        while broker.states.get("mill") != "approved":
            broker.take()
    began = time.monotonic()
    registry.decide("canary_right", by="broker:b1")
    for broker in brokers:
        while broker.states["mill"] != "active":
            broker.take()
    active_s = time.monotonic() - began
    figures(active_everywhere_ms=round(active_s * 1000))
    again = registry.follow()  # a broker that was started again
    assert again.states == {"mill": "active"}
    stale = registry.follow(brokers[0].known - 1)  # it missed the push, and asks
    assert stale.states == {"mill": "active"}


@contextlib.contextmanager
def broker_of(registry: RegistryProcess, state: pathlib.Path) -> Iterator[Callable[[], str]]:
    """A real broker that follows; gives what it knows of node 'mill'."""
    run = pathlib.Path(registry.address.removeprefix("ipc://")).parent
    command = [sys.executable, "-P", "-m", "gristmill.broker", "--state", str(state)]
    command += ["--front", f"ipc://{run}/front", "--back", f"ipc://{run}/back"]
    command += ["--ledger", f"ipc://{run}/ledger", "--registry", registry.address]
    with open(state.with_suffix(".log"), "ab") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        yield lambda: next(
            (one.state for one in read(state / "followed") if one.name == "mill"), ""
        )
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0


def test_b10_a_broker_learns_it_and_learns_it_again(
    registry: RegistryProcess, tmp_path: pathlib.Path, figures: Callable[..., None]
) -> None:
    registry.start()
    arrive(token_of(registry))
    registry.decide("approve")
    with broker_of(registry, tmp_path / "b1") as state:
        until("it follows", lambda: state() == "approved")
        began = time.monotonic()
        registry.decide("canary_right", by="broker:b1")
        until("it hears", lambda: state() == "active")
        figures(active_at_the_broker_ms=round((time.monotonic() - began) * 1000))
    (tmp_path / "b1" / "followed").unlink()
    with broker_of(registry, tmp_path / "b1") as state:  # it is started again, and asks for all
        until("it follows", lambda: state() == "active")
        registry.kill()
        assert state() == "active"


def test_b11_only_a_right_canary_opens_real_work(registry: RegistryProcess) -> None:
    registry.start()
    token, key = token_of(registry), SigningKey.generate()
    arrive(token, key)
    registry.inside("node", "approve", "mill")
    followed = registry.follow()
    assert followed.states == {"mill": "approved"}
    diff = "subtask 0: expected sha256 11.., got 22.."
    version = registry.node().principal.version
    from gristmill.wire.registry import Decide

    registry.ask(Decide(1, "broker:b1", "canary_wrong", "mill", version, diff))
    followed.take()
    assert followed.states == {"mill": "quarantined"}
    assert diff in registry.inside("node", "list", "--enrolled").stdout
    assert arrive(token, key).reason == diff
    registry.inside("node", "release", "mill", "--reason", "new memory")
    registry.decide("canary_right", by="broker:b1")
    assert registry.node().principal.state == "active"
    for act in ("drain", "release", "revoke"):
        registry.decide(act)
    assert registry.node().principal.state == "revoked"
