"""``gristmill credits`` by ``manual``, which every grid of ``up`` sells, as a person types it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gristmill.cli.grid import Grid

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    """One that sells credits."""
    with Grid.temporary(workers=1, slots=1, payments="") as running:
        yield running


def bought(run: Run, amount: str, key: str) -> str:
    done = run("credits", "buy", amount, "--with", "manual", "--yes", "--key", key)
    assert done.code == 0, done.err
    return str(done.out.split()[0])


def test_what_contradicts_a_purchase_says_what_to_type_next(run: Run) -> None:
    intent = bought(run, "3", "contradicted")
    other = run("credits", "buy", "4", "--with", "manual", "--yes", "--key", "contradicted")
    assert other.code == 1 and "was used to buy 3 credits" in other.err
    assert "choose another --key" in other.err and "outbox" not in other.err
    confirm = ("credits", "confirm", intent, "--ref", "transfer 1", "--received")
    assert run(*confirm, "300").code == 0
    other = run(*confirm, "301")
    assert other.code == 1 and "another payment has another --ref" in other.err
    for act in (("cancel", intent), ("decide", intent, "credit", "--ref", "r")):
        other = run("credits", *act)
        assert other.code == 1 and f"next: gristmill credits status {intent}" in other.err


def test_money_after_the_end_is_said_to_be_a_purchase_of_its_own(run: Run) -> None:
    intent = bought(run, "5", "late")
    assert run("credits", "cancel", intent).code == 0
    late = run("credits", "confirm", intent, "--received", "500", "--ref", "transfer 2")
    assert late.code == 0 and f"{intent} had ended" in late.err
    assert "settled (late)" in run("credits", "list").out


def test_a_wait_that_was_in_vain_says_so(run: Run) -> None:
    intent = bought(run, "6", "waits")
    done = run("credits", "status", intent, "--wait", "--timeout", "100ms")
    assert done.code == 1 and "not paid within 100 ms" in done.err
    assert f"gristmill credits status {intent}" in done.err
    assert "in 6 d 23 h" in done.out
