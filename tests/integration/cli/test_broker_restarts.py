"""A broker that is killed and started again, under real workers that have work in their jails."""

import time

from gristmill.cli.grid import Grid
from gristmill.client import Client


def _slow(seconds: float) -> float:
    import time

    began = time.monotonic()
    time.sleep(seconds)
    return began


def test_a_subtask_that_runs_while_the_broker_is_killed_runs_once(figures) -> None:  # type: ignore[no-untyped-def]
    # However slow this machine is, the broker is back in time, and waits for its workers.
    patient = {"GRISTMILL_BROKER_WORKER_TTL_MS": "60000", "GRISTMILL_BROKER_ADOPT_MS": "30000"}
    with (
        Grid.temporary(workers=2, slots=1, environment=patient) as grid,
        Client(grid.address) as client,
    ):
        slow = client.map(_slow, [5.0])
        assert client.status(slow.job).count == 1  # asking for it sends it
        _until(lambda: any(row.reading and row.reading.slots for row in client.workers()))
        quick = client.map(abs, range(200), tier="batch")
        began = time.monotonic()
        grid.kill("broker")
        grid.restart("broker")
        ready_s = time.monotonic() - began
        (started,) = list(slow)
        # A busy host may begin it late; anew it is handed out only by a broker that is back.
        assert started < began + ready_s, "it was started anew"
        assert len(list(quick)) == 200
        card = client.status(slow.job)
        assert (card.done, card.lost, card.retried, card.superseded) == (1, 0, 0, 0)
        _until(lambda: sum(row.subtasks for row in client.usage(by="job")) == 201)
        assert client.balance().sum_ucredits == 0
        assert "lease.adopted" in grid.log("broker").read_text()
        figures(restart_s=round(ready_s, 3))


def _until(condition) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
