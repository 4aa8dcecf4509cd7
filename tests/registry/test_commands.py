"""The commands that the flows do not show: people's tokens, rotations cut off, heads, bad input."""

import os
import pathlib
import subprocess

import apsw
import pytest
from registry_rig import RegistryProcess

from gristmill.cli.main import main
from gristmill.sandbox.probe import HostReport
from gristmill.wire.enrolment import parse_token
from gristmill.wire.errors import RemoteError
from gristmill.wire.keys import WORKER_KEY, load_key
from gristmill.wire.tokens import parse_token as parse_person
from gristmill.worker import enrolment
from gristmill.worker.enrolment import Door, check_clock, check_self, measure

BROKER = "58" * 32  #: a public key: any point will do


def test_a_persons_token_is_made_listed_and_revoked(registry: RegistryProcess) -> None:
    registry.start()
    public = bytes(load_key(registry.state / "registry.key").verify_key).hex()
    words = ["token", "create", "ci", "--tenant", "lab", "--broker-key", public]
    told = registry.inside(*words, "--scope", "submit", "--scope", "read", "--expires", "90d")
    token = parse_person(told.stdout)
    followed = registry.follow()
    assert followed.states == {"ci": "active"}
    (listed,) = registry.documents("token", "list")
    (row,) = listed["tokens"]
    assert (row["public"], row["tenant"]) == (token.public, "lab")
    assert row["scopes"] == ["submit", "read"]
    assert row["expires_ms"] > 0
    assert "client" in registry.inside("token", "list").stdout
    told = registry.inside(*words, code=5)
    assert "IDENTITY_CONFLICT another key is ci" in told.stderr
    registry.inside("token", "revoke", "ci", "--reason", "lost")
    followed.take()
    assert followed.states == {"ci": "revoked"}
    told = registry.inside("token", "revoke", "ci", code=5)
    assert "client ci is revoked: it cannot be revoked" in told.stderr
    told = registry.inside("token", "revoke", "nobody", code=2)
    assert "no token is 'nobody'" in told.stderr
    told = registry.inside("token", "create", "root", "--operator", *words[3:])
    (again,) = [row for row in registry.documents("token", "list")[0]["tokens"]
                if row["name"] == "root"]  # fmt: skip
    assert (again["role"], again["scopes"]) == ("operator", ["submit", "read", "pay"])
    kept = b"".join(path.read_bytes() for path in registry.state.glob("registry.db*"))
    assert token.key.encode() not in kept
    assert token.key.encode().hex().encode() not in kept


def test_what_was_changed_or_cut_off_is_told(registry: RegistryProcess) -> None:
    registry.start()
    registry.inside("node", "token", "a")
    (whole,) = registry.documents("audit", "verify")
    assert (whole["faults"], whole["records"]) == ([], 1)
    registry.inside("node", "token", "b")
    registry.inside("audit", "verify", "--head", whole["head"])
    (last,) = registry.documents("audit", "verify")
    registry.kill()
    assert "is no head" in registry.inside("audit", "verify", "--head", "x", code=2).stderr
    other = f"1:{'0' * 64}"
    told = registry.inside("audit", "verify", "--head", other, code=1)
    assert "record 1 is not what it was" in told.stdout
    db = apsw.Connection(str(registry.state / "registry.db"))
    (trigger,) = db.execute("SELECT sql FROM sqlite_schema WHERE name = 'record_stays'").fetchone()
    (kept,) = db.execute("SELECT sql FROM sqlite_schema WHERE name = 'token_stays'").fetchone()
    db.execute("DROP TRIGGER record_stays; DROP TRIGGER token_stays")
    db.execute("DELETE FROM record WHERE number = 2; DELETE FROM token WHERE name = 'b'")
    db.execute(trigger)
    db.execute(kept)
    db.close()
    registry.inside("audit", "verify")  # by itself it looks whole
    told = registry.inside("audit", "verify", "--head", last["head"], code=1)
    assert "record 2 was there when the head was taken" in told.stdout
    told = registry.inside("audit", "log", "--state", "/nowhere", code=2)
    assert "there is no registry at /nowhere" in told.stderr


def test_a_rotation_that_was_cut_off_goes_on(
    registry: RegistryProcess, tmp_path: pathlib.Path
) -> None:
    registry.start()
    state = tmp_path / "node"
    words = ["node", "enrol", "--state", str(state)]
    told = registry.inside(*words, "--rotate", registry.token().token, code=2)
    assert "has no key that could be replaced" in told.stderr
    state.mkdir(mode=0o700, exist_ok=True)
    first = load_key(state / WORKER_KEY)
    token = registry.token()
    with Door(parse_token(token.token), first) as door:
        report = measure(state)
        door.enrol(report)
    registry.decide("approve")
    new = registry.inside("node", "rotate", "mill")
    assert "enrol" in new.stderr
    assert "--rotate" in new.stderr
    rotation = new.stdout.strip()
    # The registry has the new key, the node has not heard of it.
    second = load_key(state / "worker.key.next")
    with Door(parse_token(rotation), second, first) as door:
        assert door.enrol(report).state == "approved"
    registry.inside(*words, "--rotate", rotation)
    assert load_key(state / WORKER_KEY) == second
    assert not (state / "worker.key.next").exists()
    # Cut off between the two files: the next run ends it, without the registry.
    (state / WORKER_KEY).rename(state / "worker.key.next")
    load_key(state / WORKER_KEY)
    registry.kill()
    registry.inside(*words, "--rotate", rotation)
    assert load_key(state / WORKER_KEY) == second


def test_a_host_that_fails_its_own_test_tells_nobody(
    registry: RegistryProcess,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    registry.start()
    reasons, remedies = ("user namespaces are off",), ("sysctl -w user.max_user_namespaces=15000",)
    monkeypatch.setattr(
        enrolment, "probe", lambda folder: HostReport(False, reasons=reasons, remedies=remedies)
    )
    code = main(["node", "enrol", registry.token().token, "--state", str(tmp_path / "node")])
    assert code == 78
    told = capsys.readouterr().err
    assert told.splitlines() == [
        "SELF_TEST_FAILED jail: user namespaces are off",
        "  next: sysctl -w user.max_user_namespaces=15000",
    ]
    assert registry.nodes() == []


def test_clock_and_disk_are_part_of_the_test(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_clock(1_000_000, 1_030_000)
    with pytest.raises(RemoteError, match=r"clock: 30.* ahead of the registry's"):
        check_clock(1_000_000, 1_030_001)
    with pytest.raises(RemoteError, match="behind the registry's"):
        check_clock(1_040_000, 1_000_000)
    monkeypatch.setattr(enrolment, "probe", lambda folder: HostReport(True))
    monkeypatch.setattr(enrolment, "DISK_BYTES_MIN", 1 << 60)
    with pytest.raises(RemoteError, match=r"disk: .* needed"):
        check_self(measure(tmp_path))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "as an argument, or in a file"),
        (["gme_x", "--token-file", "y"], "as an argument, or in a file"),
        (["gme_mill_123"], "this is no token of a node"),
        (["--token-file", "/nowhere"], "cannot read the token"),
    ],
)
def test_bad_tokens_are_told_without_the_token(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["node", "enrol", *words]) in (2, 4)
    text = capsys.readouterr().err
    assert told in text
    assert "gme_mill_123" not in text


def test_no_registry_is_one_line(tmp_path: pathlib.Path) -> None:
    environment = {**os.environ, "GRISTMILL_REGISTRY": f"ipc://{tmp_path}/none"}
    argv = RegistryProcess.argv("node", "approve", "mill")
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert done.stderr.startswith("REGISTRY_DOWN no registry listens at")
