"""Rows of enrolment that a service manager has a part in, under a real systemd in a container."""

from collections.abc import Iterator

import pytest
from fleet_rig import PYTHON, FleetGrid, FleetHost, why_not
from nacl.signing import SigningKey

from gristmill.wire.keys import load_key
from gristmill.wire.tokens import Token

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can"),
]

WORKER = "gristmill-worker@1"
ROOMS = ("broker", "ledger", "store", "registry", "worker")


@pytest.fixture(scope="module")
def grid() -> Iterator[FleetGrid]:
    """Deployed, and nothing started but ledger and store."""
    with FleetHost() as host:
        made = FleetGrid(host)
        made.deploy()
        host.systemctl("start", "gristmill-ledger", "gristmill-store")
        yield made


def test_b05_active_means_ready_and_a_failed_self_test_is_one_line(grid: FleetGrid) -> None:
    host = grid.host
    # It tries its host, then waits for the broker: not active, and says what it waits for.
    host.systemctl("start", "--no-block", WORKER)
    told = "waits for the broker at tcp://127.0.0.1:7032"
    host.until(told, lambda: host.property_of(WORKER, "StatusText") == told)
    assert host.property_of(WORKER, "ActiveState") == "activating"
    host.systemctl("start", "gristmill-broker")
    host.until("the worker", lambda: grid.is_active(WORKER))
    assert host.property_of(WORKER, "StatusText") == "2 slots for tcp://127.0.0.1:7032"
    assert "alpha-1" in host.gristmill("node", "list").stdout
    assert "ready worker alpha-1" in host.journal("GRISTMILL_WORKER=alpha-1", "-o", "cat")
    loud = host.journal("GRISTMILL_ROOM=broker", "-p", "warning", "-o", "cat")
    assert "ledger up" in loud and "INFO" not in loud, "lines have their level"
    host.systemctl("stop", WORKER)

    # A host that cannot jail, a disk that cannot be written, no cgroup: each one line, exit 78.
    for drop_in, reason, remedy in (
        ("RestrictNamespaces=yes", "start: set-up: the jail could not be set up", "Next: "),
        ("ReadOnlyPaths=/var/lib/gristmill/worker-1", "Read-only file system", ""),
        ("Environment=GRISTMILL_WORKER_CGROUPS=no", "it must have cgroups, and has none", ""),
    ):
        grid.drop_in(WORKER, drop_in)
        since = host.now()
        assert host.run("systemctl", "start", WORKER, check=False).returncode != 0
        assert host.property_of(WORKER, "ActiveState") == "failed"
        assert host.property_of(WORKER, "ExecMainStatus") == "78"
        assert host.property_of(WORKER, "NRestarts") == "0"
        lines = host.journal(since, "-o", "cat", "-t", "gristmill-worker").split("\n")
        (line,) = [line for line in lines if line.startswith("CANNOT_JAIL: this host")]
        assert reason in line and remedy in line
        host.systemctl("reset-failed", WORKER)
    grid.drop_in(WORKER, "")


def test_a18_each_process_is_a_user_that_reads_no_others_state(grid: FleetGrid) -> None:
    host = grid.host
    units = {room: f"gristmill-{room}" for room in ROOMS[:-1]} | {"worker": WORKER}
    host.systemctl("start", *units.values())
    users = {}
    for room, unit in units.items():
        status = host.run("cat", f"/proc/{grid.main_pid(unit)}/status").stdout
        lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        users[room] = lines["Uid"].split()[0]
        assert int(lines["CapBnd"], 16) == int(lines["CapEff"], 16) == 0, room
        assert lines["NoNewPrivs"] == "1"
    assert len(set(users.values())) == len(ROOMS) and "0" not in users.values()
    secrets = {
        "broker": "/var/lib/gristmill/broker/journal.db",
        "ledger": "/var/lib/gristmill/ledger/ledger.db",
        "store": "/var/lib/gristmill/store/.",
        "registry": "/var/lib/gristmill/registry/registry.db",
        "worker": "/var/lib/gristmill/worker-1/.",
    }
    for room, path in secrets.items():
        host.run("test", "-e", path)
        for other in ROOMS:
            done = host.run(
                "setpriv", f"--reuid=gristmill-{other}", f"--regid=gristmill-{other}",
                "--clear-groups", "test", "-r", path, check=False,
            )  # fmt: skip
            assert (done.returncode == 0) == (room == other), f"{other} and {path}"
    # Keys came as credentials: no user but root reads where they came from.
    for room, name in (("broker", "broker"), ("ledger", "ledger"), ("worker-1", "worker")):
        key = f"/etc/credstore/gristmill-{room}.key"
        for other in ROOMS:
            done = host.run("setpriv", f"--reuid=gristmill-{other}", "cat", key, check=False)
            assert done.returncode != 0
        assert not (host.root / f"var/lib/gristmill/{room}/{name}.key").exists()
        assert host.run("cat", key).stdout.strip() not in host.journal()
    # And who has no key is refused, which is told.
    known = load_key(host.root / "etc/credstore/gristmill-broker.key").verify_key.encode().hex()
    stranger = Token("stranger", SigningKey.generate(), known).text
    command = ("env", f"GRISTMILL_TOKEN={stranger}", str(PYTHON), "-P", "-m", "gristmill.cli.main")
    refused = host.run(*command, "status", "--address", "tcp://127.0.0.1:7031", check=False)
    assert refused.returncode == 4 and "is not known" in refused.stderr
    host.until(
        "it is told", lambda: "not let in: key=127.0.0.1" in host.journal("-u", "gristmill-broker")
    )
