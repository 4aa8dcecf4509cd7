"""What a client says of a job's cap: each mark once."""

import io

import msgspec
import pytest

from gristmill.cli.show import told_money
from gristmill.client.map import JobFeed, tell_cap
from gristmill.client.progress import Bar
from gristmill.wire.client import JobStatus

CARD = JobStatus(
    7, "", "function", "t", "running", "job", 4, 9, 9, 0, 0, 0, 2, *[0] * 8, 0, 0, 0, 5_100_000,
    10_000_000, 0, 2,
)  # fmt: skip


def card(percent: int, job: int = 7) -> JobStatus:
    return msgspec.structs.replace(CARD, job=job, noticed_percent=percent)


def test_each_mark_is_said_once_for_each_job() -> None:
    said: list[str] = []
    told: dict[int, int] = {}
    for percent in (0, 50, 50, 50, 80, 50, 100, 100):
        tell_cap(card(percent), told, said.append)
    tell_cap(card(80, job=8), told, said.append)
    assert [text.split(";")[0] for text in said] == [
        f"{job} has spent 5.1 of its cap of 10 credits (notice at {percent} %)"
        for job, percent in (("j7", 50), ("j7", 80), ("j7", 100), ("j8", 80))
    ]
    assert said[2].endswith("it stops here") and said[0].endswith("'gristmill status j7'")


def test_a_map_says_it_whatever_comes_after_a_reconnect() -> None:
    said: list[str] = []
    feed = JobFeed(said.append)
    for status in (card(0), card(50), card(50)):
        feed.on_status(status, is_final=False)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("percent", "text"),
    [(0, "5.1 of at most 10"), (50, "5.1 of at most 10 (51 % of its cap; notice at 50 %)")],
)
def test_status_shows_the_last_notice(percent: int, text: str) -> None:
    assert told_money(card(percent)) == text


def test_progress_shows_the_cap_once_half_of_it_is_spent() -> None:
    bar = Bar("m", 9, stream=io.StringIO())
    assert bar.line(2, card(0), 1.0).endswith("cost 5.1")
    assert bar.line(2, card(50), 1.0).endswith("cost 5.1 of at most 10")
