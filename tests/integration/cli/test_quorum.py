"""A worker that lies, among real ones: it is found, not paid, shut out, and let in again."""

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from grid_rig import grids_of_a_test, gristmill, until

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.errors import GridError, SubtaskError


def square(x: int) -> int:
    """The square, but on the worker named liar: a slot without a jail sees where it is."""
    import os
    import time

    time.sleep(0.02)
    return -x if "/liar/" in os.environ["HOME"] else x * x


def anything(x: int) -> bytes:
    """Another value whenever it runs."""
    import os

    return os.urandom(8)


@pytest.fixture
def make() -> Iterator[Callable[..., Grid]]:
    yield from grids_of_a_test()


def states(client: Client) -> dict[str, str]:
    return {row.name: row.state for row in client.workers()}


def billed(client: Client, job: int) -> dict[str, int]:
    """Subtasks that each node was paid for, of one job."""
    return {row.key: row.subtasks for row in client.usage(by="node", job=job)}


def events(grid: Grid, name: str) -> list[dict[str, Any]]:
    path = f"file:{grid.state / 'broker' / 'journal.db'}?mode=ro"
    with contextlib.closing(sqlite3.connect(path, uri=True)) as db:
        rows = db.execute("SELECT detail FROM events WHERE name = ? ORDER BY seq", (name,))
        return [json.loads(detail) for (detail,) in rows]


def test_a_liar_is_found_unpaid_shut_out_and_released(make: Callable[..., Grid]) -> None:
    grid = make(workers=2, tiers=("trusted",))
    grid.add_worker("liar")
    with Client(grid.address) as client:
        got = list(client.map(square, range(1, 61), quorum="2/3", tier="trusted"))
        assert got == [x * x for x in range(1, 61)]
        assert states(client)["liar"] == "quarantined"
        card = client.jobs(1)[0]
        nodes = {row.name: row.node for row in client.workers()}
        (shut,) = events(grid, "node.quarantined")
        assert (shut["node"], shut["name"]) == (nodes["liar"], "liar")
        assert f"j{card.job}/" in shut["cause"]
        unpaid = events(grid, "result.unpaid")
        assert unpaid and {one["node"] for one in unpaid} == {nodes["liar"]}
        until("the ledger has it all", lambda: client.grid()["outbox"] == 0)
        paid = billed(client, card.job)
        assert nodes["liar"] not in paid
        assert sum(paid.values()) == 120  # two equal results of each subtask
        grid.kill("broker")
        grid.restart("broker")
        until("they are back", lambda: len(states(client)) == 3)
        assert states(client)["liar"] == "quarantined", "a restart forgot it"
        told = gristmill(grid, "node", "release", "--json", "liar")
        assert json.loads(told.stdout)["worker"] == "liar", told.stderr
        until("it is back", lambda: states(client)["liar"] != "quarantined")
        refused = gristmill(grid, "node", "release", "nobody")
        assert refused.returncode and "no worker was ever named 'nobody'" in refused.stderr


def test_who_waits_for_another_owner_is_told_and_a_restart_forgets_no_half(
    make: Callable[..., Grid],
) -> None:
    grid = make(workers=1, tiers=("trusted",))
    with Client(grid.address) as client:
        asked = ("submit", "--json", "--quorum", "2/2", "--tier", "trusted", "--", "echo", "same")
        number = json.loads(gristmill(grid, *asked).stdout)["job"]

        def waiting() -> str:
            told = gristmill(grid, "why", f"j{number}").stdout
            return told if "QUORUM" in told else ""

        told = until("it waits for another owner", waiting)
        assert "1 subtask wait" in told and "add a worker of another owner" in told
        assert len(events(grid, "result.held")) == 1
        grid.kill("broker")
        grid.restart("broker")
        grid.add_worker("second")
        until("it is done", lambda: client.status(number).state == "done")
        assert len(events(grid, "result.held")) == 1, "the first replica ran again"
        until("the ledger has it all", lambda: client.grid()["outbox"] == 0)
        assert sum(billed(client, number).values()) == 2


def test_a_function_that_cannot_be_compared_ends_as_disputed(make: Callable[..., Grid]) -> None:
    grid = make(workers=3, tiers=("trusted",))
    with Client(grid.address) as client:
        with pytest.raises(
            SubtaskError, match=r"3 different results.*does the function give the same bytes"
        ):
            list(client.map(anything, range(4), quorum="2/3", tier="trusted"))
        assert set(states(client).values()) <= {"idle", "busy"}, "nobody is accused"
        with pytest.raises(GridError, match="write adaptive, or K/N"):
            client.map(anything, [1], quorum="3/2")
