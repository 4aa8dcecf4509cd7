"""A store that is away for a moment costs time, and no subtask."""

import time

from gristmill.cli.grid import Grid
from gristmill.client import Client

AWAY_S = 1.5


def test_values_wait_for_a_store_that_is_away() -> None:
    def large(number: int) -> bytes:
        return bytes([number]) * 300_000  # travels through the store

    with Grid.temporary(workers=1, slots=2) as grid, Client(grid.address) as client:
        assert list(client.map(large, [1], tier="batch")) == [large(1)]
        grid.kill("store")
        job = client.post(*client.make_spec(large, count=3, tier="batch", losses=0), range(3))
        began = time.monotonic()
        while time.monotonic() - began < AWAY_S:  # with no try left: one refusal would be its end
            card = job.status()
            assert card.failed == 0, card
            time.sleep(0.05)
        assert card.state == "running" and card.done == 0
        grid.restart("store")
        card = job.wait(60)
        assert (card.state, card.done, card.lost, card.retried) == ("done", 3, 0, 0)
        assert list(client.results(job.job)) == [large(number) for number in range(3)]
