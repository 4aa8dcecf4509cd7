"""Inputs of a map that goes on for ever: as much as is read leaves the broker's disk."""

import time
from collections.abc import Iterator

import pytest

from gristmill.cli.grid import Grid
from gristmill.client import Client

ROOM = 2 << 20
INPUT = 20_000  #: bytes
COUNT = 500  #: 10 MB in all


def length(value: bytes) -> int:
    """The subtask."""
    return len(value)


@pytest.fixture
def grid() -> Iterator[Grid]:
    """A tenant may have 2 MiB of inputs on its broker's disk."""
    room = {"GRISTMILL_BROKER_TENANT_DISK_BYTES": str(ROOM)}
    with Grid.temporary(workers=1, slots=2, environment=room) as grid:
        yield grid


def test_a_map_may_have_more_inputs_than_the_disk(grid: Grid) -> None:
    """Across a broker that is killed, too."""
    with Client(grid.address) as client:
        inputs = (index.to_bytes(8, "little") * (INPUT // 8) for index in range(COUNT))
        found = client.map(length, inputs, tier="batch", keep=False)
        got = [next(found) for _ in range(COUNT // 2)]
        grid.kill("broker")
        grid.restart("broker")
        got += found
        assert got == [INPUT] * COUNT
        (job,) = client.jobs()
        assert (job.done, job.failed) == (COUNT, 0)


def test_a_map_that_is_kept_says_why_it_waits(grid: Grid) -> None:
    """Its inputs and results stay until it ends: it needs room for all of them."""
    with Client(grid.address) as client:
        inputs = (b"x" * INPUT for _ in range(COUNT))
        found = client.map(length, inputs, tier="batch")
        for _ in range(ROOM // INPUT):
            next(found)
        deadline = time.monotonic() + 30
        expected = "QUOTA: inputs of tenant local fill its 2 MiB"
        # on its way there it may name others
        while not (reason := client.jobs()[0].reason).startswith(expected):
            assert time.monotonic() < deadline, f"the reason given is {reason!r}"
            time.sleep(0.05)
        assert "keep=False" in reason
        found.close()
