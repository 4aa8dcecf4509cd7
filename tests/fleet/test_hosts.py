"""A fleet of several hosts, each with an address of its own: deployed, at work, drained.

What one host prints is typed on the other (tests/rig/hosts_rig.py), and a person who has an address
and a token submits. ``test_hosts_release.py`` has what takes longer.
"""

import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hosts_rig import LONGER, Fleet, hosts_wanted, lines_of, why_not

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can"),
]

WORKER = "gristmill-worker@1"
#: fails where it sees what the host has, as it would without a jail
JAILED = "test ! -e /etc/gristmill && test ! -e /var/lib/gristmill && echo $GRISTMILL_INDEX"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(hosts_wanted()) as made:
        made.deploy()
        yield made


def test_a_person_elsewhere_has_a_job_done_and_billed_once(
    fleet: Fleet, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    """By all hosts, in jails; receipts and charges agree, and the books are in order."""
    count = sized(1_000, 5_000)
    job = fleet.submit(count, JAILED)
    assert fleet.finish(job) == lines_of(count)
    bill = fleet.bill(job)
    assert bill.done == count and bill.nodes == len(fleet.millers)
    figures(hosts=len(fleet.hosts), subtasks=count, receipts=bill.receipts, ucredits=bill.ucredits)


def test_what_is_large_goes_through_the_store_of_another_host(
    fleet: Fleet, tmp_path: pathlib.Path, figures: Callable[..., None]
) -> None:
    """A person's file in, a worker's file and log out: over TLS, to the store that has the key."""
    big, out = tmp_path / "big", tmp_path / "out"
    big.write_bytes(os.urandom(1 << 20))
    command = "seq 1 30000; cp big out.bin"
    count = 2 * len(fleet.millers)
    files = ("--file-in", f"{big}=big", "--file-out", "out.bin")
    jobs = [fleet.submit(count, command, "--tier", tier, *files) for tier in ("job", "strict")]
    for job in jobs:
        assert fleet.finish(job) == Counter({str(line): count for line in range(1, 30_001)})
        fleet.person("result", job, "--out", str(out / job))
        found = list((out / job).rglob("out.bin"))
        assert [path.read_bytes() == big.read_bytes() for path in found] == [True] * count
        assert fleet.bill(job).done == count
    kept = list((fleet.broker.root / "var/lib/gristmill/store/blobs").glob("*/*"))
    assert sum(path.stat().st_size == 1 << 20 for path in kept) == 1, "equal bytes, once"
    journal = fleet.broker.journal("-u", "gristmill-store", "-o", "cat")
    assert f"ready store https://{fleet.broker.address}:7034#" in journal
    figures(subtasks=count * len(jobs), blobs=len(kept))


def test_a_drained_host_leaves_a_job_that_runs(fleet: Fleet, figures: Callable[..., None]) -> None:
    """What it had begun it ends; nothing is begun twice; the others go on; it comes when called."""
    host, task = fleet.millers[0], "sleep 0.2; echo $GRISTMILL_INDEX $GRISTMILL_ATTEMPT"
    for factor in LONGER:
        count = factor * 20 * len(fleet.millers)
        job = fleet.submit(count, task, "--retries=0")
        fleet.until_done(job, 1)
        since = host.now()
        fleet.broker.gristmill("node", "drain", "--wait", "--timeout", "30s", f"{host.name}-1")
        host.until("its end", lambda: host.property_of(WORKER, "ActiveState") == "inactive")
        left = fleet.count_of(job, "done")
        assert host.property_of(WORKER, "Result") == "success"
        assert host.property_of(WORKER, "NRestarts") == "0", "who was sent away stays away"
        assert "SIGKILL" not in host.journal(since), "it was given its time"
        assert f"{host.name}-1" not in fleet.nodes()
        assert fleet.finish(job) == Counter(f"{index} 1" for index in range(count))
        assert fleet.count_of(job, "lost") == fleet.count_of(job, "superseded") == 0
        assert fleet.bill(job).done == count
        host.systemctl("start", WORKER)
        assert fleet.nodes()[f"{host.name}-1"] == "idle"
        if left < count:
            break
    assert left < count, "the job was over before the worker had left"
    figures(subtasks=count, done_when_it_left=left)
