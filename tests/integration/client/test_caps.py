"""A job's cap on a real grid: its notices, once each, and its end."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.errors import BudgetReached

DEADLINE_S = 30.0


def slow(value: int) -> int:
    """Longer than the pause between two cards."""
    time.sleep(0.15)
    return value


def until(what: str, condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)
    return found


def test_a_cap_is_told_of_in_time_and_stops_the_job_with_its_results() -> None:
    said: list[str] = []
    tariff = ["--tariff", "standard=cpu:0,gib:0,subtask:1"]
    with (
        Grid.temporary(workers=1, slots=1, options={"broker": tariff}) as grid,
        Client(grid.address, timeout=20, warn=said.append) as client,
    ):
        stream = client.map(slow, range(1_000), cap=10, tier="batch", window=2, keep=True)
        values = [next(stream) for _ in range(6)]
        number = stream.job
        assert values == list(range(6))
        until("the first notice", lambda: any("notice at 50 %" in line for line in said))
        assert client.status(number).noticed_percent == 50
        grid.kill("broker")
        grid.restart("broker")
        with pytest.raises(BudgetReached, match="the job spent 10 of its cap of 10 credits"):
            for value in stream:
                values.append(value)
        assert values == list(range(10))
        card = client.wait(number)
        notices = [line for line in said if "of its cap of 10 credits (notice at" in line]
        # (the end may be heard before the last one)
        assert [line.split("notice at ")[1][:2] for line in notices][:2] == ["50", "80"], said
        assert len(notices) <= 3
        assert (card.state, card.noticed_percent) == ("failed", 100)
        assert card.reason.startswith("CAP_REACHED") and card.spent_ucredits == 10_000_000
        assert card.done == 10 and card.done + card.failed == card.count
        ended = client.results(number, return_exceptions=True)
        kept = [value for value in ended if not isinstance(value, Exception)]
        assert kept == list(range(10)), "what was paid for is there"

        def held() -> int:
            return sum(row.held_ucredits for row in client.balance().accounts)

        until("the rest of the hold is voided", lambda: not held())
        bill = client.usage(by="job", job=number)
        assert [row.amount_ucredits for row in bill] == [10_000_000]
