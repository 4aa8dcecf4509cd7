"""A grid under a real systemd: it starts, works, is killed, stopped, drained, restarted and ended.

A host (tests/rig/fleet_rig.py) is a container; docs/deploy.md's own commands deploy the grid in it.
"""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from fleet_rig import FleetGrid, FleetHost, why_not

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can"),
]

#: with any of these a worker cannot jail: docs/deploy.md has them and why
FORBIDDEN = (
    "RestrictNamespaces=yes",
    "PrivateDevices=yes",
    "ProtectHostname=yes",
    "ProtectControlGroups=yes",
    "RestrictAddressFamilies=~AF_NETLINK",
    "SystemCallFilter=~@mount",
    "SystemCallFilter=~@privileged",
)


@pytest.fixture(scope="module")
def grid() -> Iterator[FleetGrid]:
    with FleetHost() as host:
        made = FleetGrid(host)
        made.deploy()
        made.start()
        yield made


def lines_of(count: int) -> Counter[str]:
    return Counter(str(index) for index in range(count))


def test_a_lost_worker_is_back_and_nothing_else_is_lost(
    grid: FleetGrid, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    """Killed, and (at release size) stopped, which only its watchdog finds."""
    host, unit = grid.host, "gristmill-worker@1"
    signals = ["KILL", "STOP"] * sized(1, 5)
    del signals[sized(1, 10) :]
    for signal in signals:
        before = grid.restarts(unit)
        job = grid.submit(20, "sleep 0.2; echo $GRISTMILL_INDEX")
        grid.until_runs(job)
        host.run("kill", f"-{signal}", str(grid.main_pid(unit)))
        grid.until_restarted(unit, before)
        assert Counter(grid.finish(job)) == lines_of(20)
    figures(**Counter(signals), lost=0)
    host.until("it is back", lambda: grid.is_active(unit))


def test_a_broker_that_stands_still_starves_the_workers_watchdog(
    grid: FleetGrid, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    """The worker's own loop turns; systemd ends it all the same, and both heal."""
    host, unit = grid.host, "gristmill-worker@1"
    rounds = sized(1, 5)
    for _ in range(rounds):
        before = grid.restarts(unit)
        job = grid.submit(20, "sleep 0.2; echo $GRISTMILL_INDEX")
        broker = str(grid.main_pid("gristmill-broker"))
        host.run("kill", "-STOP", broker)
        grid.until_restarted(unit, before)
        assert f"Watchdog timeout (limit {grid.watchdog_s}s)" in host.journal("-u", unit)
        host.run("kill", "-CONT", broker)
        host.until("the worker", lambda: grid.is_active(unit))
        assert Counter(grid.finish(job)) == lines_of(20)
    assert grid.restarts("gristmill-broker") == 0
    figures(stops=rounds, lost=0)


def test_a_rolling_restart_loses_nothing_and_repeats_nothing(
    grid: FleetGrid, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    """Each worker drains, ends and is back before the next; what ran was finished, not repeated."""
    host = grid.host
    units = ["gristmill-worker@1", "gristmill-worker@2"]
    host.systemctl("start", units[1])
    rounds = sized(1, 10)
    count = 60 * rounds
    job = grid.submit(count, "sleep 0.2; echo $GRISTMILL_INDEX", "--retries=0")
    started = {unit: [grid.main_pid(unit)] for unit in units}
    for _ in range(rounds):
        for unit in units:
            host.systemctl("restart", unit)
            started[unit].append(grid.main_pid(unit))
    lines = grid.finish(job)
    assert all(len(set(pids)) == rounds + 1 for pids in started.values())
    assert Counter(lines) == lines_of(count)
    assert "SIGKILL" not in host.journal("-u", units[1]), "it was given its time"
    figures(subtasks=count, restarts=2 * rounds, lost=0)
    host.systemctl("stop", units[1])


def test_a_drained_worker_stays_away(grid: FleetGrid) -> None:
    host, unit = grid.host, "gristmill-worker@1"
    host.gristmill("node", "drain", "--wait", "--timeout", "30s", "alpha-1")
    host.until("its end", lambda: host.property_of(unit, "ActiveState") == "inactive")
    assert host.property_of(unit, "Result") == "success"
    host.systemctl("start", unit)
    assert grid.is_active(unit)


def test_the_worker_forbids_what_jails_need(
    grid: FleetGrid, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    """Each directive that the page says is left out for workers, tried."""
    host, unit = grid.host, "gristmill-worker@3"
    tried = FORBIDDEN[: sized(1, len(FORBIDDEN))]
    works = []
    for line in tried:
        grid.drop_in("gristmill-worker@3", line)
        done = host.run("systemctl", "start", unit, check=False)
        if done.returncode == 0:
            works.append(line)
            host.systemctl("stop", unit)
            continue
        assert host.property_of(unit, "ExecMainStatus") == "78", host.journal("-u", unit)
        assert host.property_of(unit, "NRestarts") == "0", "a host that cannot is not tried again"
        host.systemctl("reset-failed", unit)
    grid.drop_in("gristmill-worker@3", "")
    figures(forbidden=len(tried))
    assert not works, "the page says that these are left out; they need not be"


def test_the_end_is_in_order(grid: FleetGrid) -> None:
    """Workers first, then the broker; the ledger outlives who writes to it. Nothing is killed."""
    host = grid.host
    host.systemctl("start", "gristmill.target", *FleetGrid.UNITS)
    since = host.now()
    host.systemctl("stop", "gristmill.target", *FleetGrid.UNITS)
    said = host.journal(since, "-o", "cat", "-t", "systemd")
    ends = {unit: said.index(f"Stopped {unit}.service") for unit in FleetGrid.UNITS}
    assert ends["gristmill-worker@1"] < said.index("Stopping gristmill-broker.service")
    last = min(said.index(f"Stopping gristmill-{room}.service") for room in ("ledger", "store"))
    assert ends["gristmill-broker"] < last
    assert "Failed" not in said and "SIGKILL" not in said
    assert not host.groups("memory") + host.groups("pids"), "cgroups of jails were left behind"
