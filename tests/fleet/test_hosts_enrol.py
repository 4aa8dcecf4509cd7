"""A fleet that enrols itself: what ``node token`` prints is pasted on another host, no more.

``make fleet`` runs this file, ``make test`` does not: tests/flows/test_b_enrolment.py has each step
without systemd. The operator is elsewhere: what they decide goes through the broker.
"""

from collections import Counter
from collections.abc import Callable

import pytest
from hosts_rig import Fleet, behind, lines_of, why_not

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can"),
]


def start_with_registry(fleet: Fleet) -> str:
    """Broker's host: deployed, with a registry; the broker's public key."""
    broker = fleet.broker
    said = broker.shell(f"gristmill deploy install --no-worker --address {broker.address}")
    broker.shell("systemd-sysusers && systemd-tmpfiles --create gristmill.conf")
    key = broker.shell(". /etc/gristmill/keys.env; echo $GRISTMILL_STORE_KEY").stdout.strip()
    broker.shell(behind(said.stderr, "next: "))
    return key


def state_of(fleet: Fleet, name: str) -> str:
    """Of a node, as the operator is told."""
    listed = fleet.broker.gristmill("node", "list", "--enrolled").stdout
    rows = [line.split() for line in listed.splitlines()]
    return next((row[1] for row in rows if row[0] == name), "")


def work(fleet: Fleet) -> None:
    """A job of the operator's, done right."""
    job = fleet.broker.gristmill(
        "submit", "--array", "1-200", "--", "sh", "-c", "echo $GRISTMILL_INDEX"
    ).stdout.strip()
    fleet.broker.gristmill("wait", job, "--timeout", "100s")
    lines = fleet.broker.gristmill("result", job).stdout.splitlines()
    assert Counter(lines) == lines_of(200)


def test_hosts_enrol_themselves_and_one_is_banned(figures: Callable[..., None]) -> None:
    with Fleet(3) as fleet:
        broker = fleet.broker
        key = start_with_registry(fleet)
        fleet.fund("local")
        names = [f"mill-{host.name}" for host in fleet.millers]
        for name, host in zip(names, fleet.millers, strict=True):
            host.shell(
                f"gristmill deploy install --broker tcp://{broker.address}:7032 "
                f"--broker-key {key} && systemd-sysusers && "
                "systemd-tmpfiles --create gristmill.conf && systemctl daemon-reload"
            )
            told = broker.gristmill("node", "token", name).stderr
            host.shell(told.partition("in one piece:\n\n")[2].partition("then: ")[0])
        for name, host in zip(names, fleet.millers, strict=True):
            unit = f"gristmill-worker@{name}"
            broker.until("pending", lambda: state_of(fleet, name) == "pending")  # noqa: B023
            assert host.property_of(unit, "ActiveState") == "activating"
            assert name not in fleet.nodes()
            broker.gristmill("node", "approve", name)
            host.until(unit, lambda: fleet.is_active(host, unit))  # noqa: B023
            broker.until("its canary", lambda: state_of(fleet, name) == "active")  # noqa: B023
        work(fleet)

        unit, host = f"gristmill-worker@{names[0]}", fleet.millers[0]
        broker.gristmill("node", "ban", names[0], "--reason", "it lies")
        host.until("its end", lambda: host.property_of(unit, "ActiveState") == "failed")
        assert names[0] not in fleet.nodes()
        said = host.journal("-u", unit, "-o", "cat", "-p", "err", "-t", "gristmill-worker")
        (line,) = said.splitlines()
        assert "NODE_REFUSED" in line and "it lies" in line and "Next: " in line
        work(fleet)
        figures(enrolled=len(names), banned=1)
