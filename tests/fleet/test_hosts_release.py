"""A fleet of several hosts upgraded, cut off, killed, without power: a job runs through each.

What each test asserts of its job: every subtask has its line once, and was paid for once; receipts
and charges agree, and the books are in order. `make fleet` runs this file, `make test` does not.
"""

import pathlib
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from fleet_rig import FleetHost
from hosts_rig import LONGER, Fleet, hosts_wanted, lines_of, why_not

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can"),
]

ROOT = pathlib.Path(__file__).parents[2]
WORKER = "gristmill-worker@1"
TASK = "sleep 0.3; echo $GRISTMILL_INDEX"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(hosts_wanted()) as made:
        made.deploy()
        yield made


def check(fleet: Fleet, job: str, count: int) -> dict[str, int]:
    """See the module's text; what became of the attempts."""
    assert fleet.finish(job) == lines_of(count)
    bill = fleet.bill(job)
    assert bill.done == count
    told = {name: fleet.count_of(job, name) for name in ("retried", "lost", "superseded")}
    return {"subtasks": count, "receipts": bill.receipts, **told}


def restarts(host: FleetHost, unit: str) -> int:
    return int(host.property_of(unit, "NRestarts"))


def pid_of(host: FleetHost, unit: str) -> str:
    return host.property_of(unit, "MainPID")


def test_a_rolling_restart_of_all_hosts(fleet: Fleet, figures: Callable[..., None]) -> None:
    """Each worker drains, leaves and is back before the next; nothing is run a second time."""
    count = 60 * len(fleet.millers)
    job = fleet.submit(count, f"{TASK} $GRISTMILL_ATTEMPT", "--retries=0")
    fleet.until_done(job, 2)
    for host in fleet.millers:
        before = pid_of(host, WORKER)
        host.systemctl("restart", WORKER)
        assert pid_of(host, WORKER) != before and restarts(host, WORKER) == 0
        assert fleet.nodes()[f"{host.name}-1"] in ("idle", "busy")
    assert fleet.count_of(job, "done") < count, "the job was over before all were restarted"
    assert fleet.finish(job) == Counter(f"{index} 1" for index in range(count))
    assert fleet.bill(job).done == count
    figures(subtasks=count, restarts=len(fleet.millers), lost=fleet.count_of(job, "lost"))


def test_a_host_that_is_cut_off_costs_time_and_no_credit(
    fleet: Fleet, figures: Callable[..., None]
) -> None:
    """The broker says who is away and why, others do its work, and it is back by itself."""
    host, broker = fleet.millers[0], fleet.broker
    name, pid = f"{host.name}-1", host.property_of(WORKER, "MainPID")
    for factor in LONGER:
        count = factor * 12 * len(fleet.millers)
        job = fleet.submit(count, "sleep 1; echo $GRISTMILL_INDEX", "--retries=0")
        fleet.until_done(job, 2)
        since = broker.now()
        fleet.network.cut(host.name)
        broker.until("away", lambda: lost_lines(fleet, since, name))  # noqa: B023
        assert name not in fleet.nodes()
        fleet.until_done(job, min(fleet.count_of(job, "done") + 4, count))
        fleet.network.mend(host.name)
        broker.until("it is back", lambda: name in fleet.nodes())
        assert fleet.finish(job) == lines_of(count)
        assert fleet.bill(job).done == count
        assert host.property_of(WORKER, "MainPID") == pid, "nobody had to start it again"
        if lost := fleet.count_of(job, "lost"):
            break
    assert lost, "nothing ran there when it was cut off"
    figures(subtasks=count, lost=lost, late=fleet.count_of(job, "superseded"))


def lost_lines(fleet: Fleet, since: str, name: str) -> list[str]:
    """What the broker says of a worker that is silent."""
    said = fleet.broker.journal(since, "-o", "cat", "GRISTMILL_ROOM=broker")
    words = ("worker.lost", f"'name': '{name}'", "silent for", "ms; the limit is ")
    return [line for line in said.splitlines() if all(word in line for word in words)]


@pytest.mark.parametrize("way", ["to the broker", "from the broker"])
def test_a_network_that_loses_one_way(fleet: Fleet, figures: Callable[..., None], way: str) -> None:
    """Either way the worker's work goes elsewhere; it is back without a hand, with late results."""
    host, broker = fleet.millers[0], fleet.broker
    name, pid = f"{host.name}-1", pid_of(host, WORKER)
    deaf, to = (host, broker) if way == "to the broker" else (broker, host)
    count = 60 * len(fleet.millers)
    job = fleet.submit(count, TASK)
    fleet.until_done(job, 2)
    since = broker.now()
    fleet.network.mute(deaf.name, to.address)
    broker.until("it is away", lambda: name not in fleet.nodes())
    before = fleet.count_of(job, "done")
    fleet.until_done(job, before + 8)
    assert name not in fleet.nodes()
    fleet.network.unmute(deaf.name, to.address)
    broker.until("it is back", lambda: name in fleet.nodes())
    said = broker.journal(since, "-o", "cat", "GRISTMILL_ROOM=broker")
    lost = [line for line in said.splitlines() if "worker.lost" in line and name in line]
    told = check(fleet, job, count)
    assert pid_of(host, WORKER) == pid and restarts(host, WORKER) == 0
    figures(cause=lost[0].partition("'cause': '")[2].partition("'")[0], **told)


def test_every_process_is_killed(fleet: Fleet, figures: Callable[..., None]) -> None:
    """systemd starts each again after a second, and the job runs through all of it."""
    broker, (first, second, *_) = fleet.broker, fleet.millers
    count = 150 * len(fleet.millers)
    job = fleet.submit(count, TASK, "--retries=5")
    fleet.until_done(job, 4)
    killed = 0
    for host, unit in (
        (first, WORKER),
        (broker, "gristmill-broker"),
        (broker, "gristmill-ledger"),
        (broker, "gristmill-store"),
        (second, WORKER),
        (broker, "gristmill-broker"),
    ):
        before = restarts(host, unit)
        host.run("kill", "-KILL", pid_of(host, unit))
        host.until(f"{unit} again", lambda: restarts(host, unit) > before)  # noqa: B023
        host.until(f"{unit} serves", lambda: fleet.is_active(host, unit))  # noqa: B023
        killed += 1
        fleet.until_done(job, min(fleet.count_of(job, "done") + 4, count))
    # And jails: all that run on one host, while their worker lives.
    assert fleet.count_of(job, "done") < count, "the job was over before all were killed"
    shells = "ps -o ppid= -C sleep || true"
    jails = first.until("jails", lambda: first.shell(shells).stdout)
    first.run("kill", "-KILL", *jails.split(), check=False)
    told = check(fleet, job, count)
    assert told["retried"] > told["lost"], "who was killed in a jail was not run again"
    figures(killed=killed, jails=len(jails.split()), **told)


def test_a_host_loses_its_power(fleet: Fleet, figures: Callable[..., None]) -> None:
    """One of workers, then the broker's: each boots, and its units are there without a hand."""
    host, broker = fleet.millers[-1], fleet.broker
    count = 120 * len(fleet.millers)
    job = fleet.submit(count, TASK)
    fleet.until_done(job, 2)
    host.power_cut()
    broker.until("it is away", lambda: f"{host.name}-1" not in fleet.nodes())
    fleet.until_done(job, fleet.count_of(job, "done") + 4)
    host.boot()
    broker.until("it is back", lambda: f"{host.name}-1" in fleet.nodes())
    assert fleet.is_active(host, WORKER)

    assert fleet.count_of(job, "done") < count, "the job was over before the second cut"
    broker.power_cut()
    broker.boot()
    units = [f"gristmill-{room}" for room in ("ledger", "store", "broker")]
    broker.until("its units", lambda: all(fleet.is_active(broker, unit) for unit in units))
    figures(cuts=2, **check(fleet, job, count))
    assert fleet.nodes().keys() == {f"{host.name}-1" for host in fleet.millers}


def wheel(folder: pathlib.Path, version: str, protocol: int = 1) -> pathlib.Path:
    """A wheel of this tree that says it is of this version and speaks this protocol."""
    source = folder / f"source-{version}"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file() and not name.startswith(("tests/", "bench/", "docs/plots")):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    for name, old, new in (
        ("setup.cfg", "\nversion = ", f"\nversion = {version}\nkeywords = "),
        ("wire/limits.py", "\nPROTOCOL = 1\n", f"\nPROTOCOL = {protocol}\n"),
    ):
        text = (source / name).read_text()
        assert text.count(old) == 1, name
        (source / name).write_text(text.replace(old, new))
    pip = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--wheel-dir", folder, source], check=True, cwd=folder)
    return folder / f"gristmill-{version}-py3-none-any.whl"


def upgrade(host: FleetHost, made: pathlib.Path, *units: str) -> None:
    """As docs/deploy.md says."""
    shutil.copy(made, host.root / "root" / made.name)
    host.shell(
        f"python -m pip install --quiet --no-deps --no-index --root-user-action=ignore "
        f"/root/{made.name} && gristmill deploy install --force && "
        f"systemctl daemon-reload && systemctl restart {' '.join(units)}"
    )


def versions(fleet: Fleet) -> dict[str, str]:
    rows = fleet.rows()
    return {row["name"]: row["version"] for row in rows}


def test_hosts_are_upgraded_one_after_the_other(
    fleet: Fleet, figures: Callable[..., None], tmp_path: pathlib.Path
) -> None:
    """A job runs on while two versions are in the fleet; another protocol is refused in words."""
    newer, alien = wheel(tmp_path, "0.1.7"), wheel(tmp_path, "0.9.0", protocol=2)
    broker, first = fleet.broker, fleet.millers[0]
    count = 150 * len(fleet.millers)
    job = fleet.submit(count, TASK)
    fleet.until_done(job, 2)

    # A worker that speaks another protocol: one line that names both, and it is not tried again.
    shutil.copy(alien, first.root / "root")
    since = first.now()
    install = "python -m pip install --quiet --no-deps --no-index --root-user-action=ignore"
    first.shell(f"{install} /root/{alien.name}")
    assert first.run("systemctl", "restart", WORKER, check=False).returncode != 0
    assert first.property_of(WORKER, "ActiveState") == "failed"
    assert restarts(first, WORKER) == 0
    (line,) = first.journal(since, "-o", "cat", "-t", "gristmill-worker", "-p", "err").splitlines()
    assert "gristmill 0.9.0" in line and "protocol 2" in line and "speaks 1" in line
    assert "Next: install the same release on both sides" in line

    # The broker's host first, then each host of workers: two versions are at work together.
    upgrade(broker, newer, "gristmill-ledger", "gristmill-store", "gristmill-broker")
    mixed = []
    for host in fleet.millers:
        upgrade(host, newer, WORKER)
        told = versions(fleet)
        assert told[f"{host.name}-1"] == "0.1.7"
        mixed.append(sorted(set(told.values())))
    assert mixed[0] == ["0.1.0", "0.1.7"] and mixed[-1] == ["0.1.7"]
    assert fleet.count_of(job, "done") < count, "the job was over before all were upgraded"
    figures(versions=" ".join(mixed[0]), **check(fleet, job, count))


def test_the_journal_of_each_host_has_fields_and_reasons(fleet: Fleet) -> None:
    """Rooms and workers are fields; a worker whose key nobody knows is one line at the broker."""
    broker, host = fleet.broker, fleet.millers[0]
    for room in ("broker", "ledger", "store"):
        assert "ready" in broker.journal(f"GRISTMILL_ROOM={room}", "-o", "cat")
    told = host.journal(f"GRISTMILL_WORKER={host.name}-1", "GRISTMILL_ROOM=worker", "-o", "cat")
    assert f"ready worker {host.name}-1 tcp://{broker.address}:7032" in told

    key = host.root / "etc/credstore/gristmill-worker-1.key"
    known = key.read_bytes()
    since = broker.now()
    key.write_bytes(bytes(reversed(known.strip())) + b"\n")
    host.systemctl("restart", "--no-block", WORKER)
    refused = "not let in: key="
    broker.until("refused", lambda: refused in broker.journal(since, "-u", "gristmill-broker"))
    lines = broker.journal(since, "-o", "cat", "-t", "gristmill-broker", "-p", "warning")
    (line,) = [line for line in lines.splitlines() if refused in line][:1]
    assert f"key={host.address} " in line and "'back'" in line
    waits = f"waits for the broker at tcp://{broker.address}:7032"
    host.until(waits, lambda: host.property_of(WORKER, "StatusText") == waits)
    key.write_bytes(known)
    host.systemctl("restart", WORKER)
    assert fleet.nodes()[f"{host.name}-1"] == "idle"
