"""``price`` and ``eff`` on a real grid: from limits, from a billed sample, from the past."""

from collections.abc import Callable
from typing import Any

import pytest

from gristmill.cli.grid import Grid
from gristmill.client import Client

Run = Callable[..., Any]
WORK = ("--array", "1-40", "--memory", "512M", "--timeout", "20s", "--", "sleep", "0.05")
CREDIT = 1_000_000


def test_the_tariffs_of_a_grid(run: Run) -> None:
    (rates,) = run("price", "--json").document["tariffs"].values()
    assert rates == {
        "cpu_second_ucredits": CREDIT, "gib_second_ucredits": CREDIT // 20, "subtask_ucredits": 10,
    }  # fmt: skip
    assert "standard" in run("price").out


def test_a_price_before_anything_ran_a_sample_and_the_past(run: Run) -> None:
    def jobs() -> list[dict[str, object]]:
        return list(run("status", "--json").document["jobs"])

    before = len(jobs())
    first = run("price", "--json", *WORK).document
    assert (first["basis"], first["subtasks"], first["job"]) == ("limits", 40, "")
    assert first["low_ucredits"] == 400 < first["high_ucredits"]
    assert "price --sample" in run("price", *WORK).err
    assert len(jobs()) == before, "nothing was run for that"

    told = run("price", "--sample", "6", "--json", *WORK)
    sample = told.document
    assert "the first 6 subtasks at most run now and are billed" in told.err
    assert (sample["basis"], sample["measured"], sample["subtasks"]) == ("sample", 6, 40)
    card = run("status", sample["job"], "--json").document["jobs"][0]
    assert card["name"] == "sleep (sample)" and card["count"] == 6
    assert sample["spent_ucredits"] == card["spent_ucredits"] > 60
    assert len(jobs()) == before + 1

    past = run("price", *WORK)
    assert past.out.startswith("40 subtasks, by 6 past ones: ") and "p90" in past.out
    assert len(jobs()) == before + 1, "known work is not run again"
    job = run("submit", "--wait", "--json", *WORK).documents[0]["id"]
    spent = run("status", job, "--json").document["jobs"][0]["spent_ucredits"]
    # One run is no test of an interval (that is tests/unit/client/test_pricing.py).
    assert sample["low_ucredits"] / 3 < spent < 3 * sample["high_ucredits"]
    assert run("price", "--json", *WORK).document["measured"] == 46

    other = run("price", "--json", "--array", "1-40", "--", "sleep", "0.06").document
    assert other["basis"] == "limits", "another command is other work"


def test_a_sample_of_all_comes_to_what_it_was_billed(run: Run) -> None:
    """Short commands: most of the bill is what the slot spends between them."""
    asked = ("--sample", "40", "--array", "1-40", "--", "true", "short")
    found = run("price", "--json", *asked).document
    assert found["measured"] == found["subtasks"] == 40
    assert abs(found["mid_ucredits"] / found["spent_ucredits"] - 1) < 0.02, found


def test_a_price_is_at_most_the_cap(run: Run) -> None:
    found = run("price", "--json", "--cap", "0.0001", *WORK).document
    assert found["high_ucredits"] == 100 and found["is_capped"]


def test_a_price_of_a_split_request(run: Run) -> None:
    asked = ("price", "--json", "--from", "sweep", "--param", "rate=1,2,3", "--", "test", "{rate}")
    assert run(*asked).document["subtasks"] == 3
    refused = run("price", "--from", "pytest", "--param", "tree=.")
    assert refused.code == 2 and "no price before it" in refused.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--sample", "0", "--", "true"), "'0' is not a number from 1 to 1000"),
        (("--sample", "1001", "--", "true"), "'1001' is not a number from 1 to 1000"),
        (("--sample",), "nothing to run"),
        (("--array", "x", "--", "true"), "--array"),
    ],
)
def test_what_has_no_price_is_refused(run: Run, arguments: tuple[str, ...], words: str) -> None:
    done = run("price", *arguments)
    assert done.code == 2 and words in done.err


def test_a_sample_that_cannot_run_says_so(run: Run) -> None:
    done = run("price", "--sample", "5", "--array", "1-9", "--cap", "0.000001", "--", "true")
    assert done.code == 1 and "JOB_FAILED" in done.err and "CAP_REACHED" in done.err


def test_eff_tells_what_idle_memory_cost(run: Run) -> None:
    job = run("submit", "--wait", "--json", "--memory", "2G", "--", "sleep", "0.3").documents[0][
        "id"
    ]
    found = run("eff", job, "--json").document
    assert found["memory_asked_bytes"] == 2 << 30
    assert 0 < found["memory_used_bytes"] < 200 << 20
    assert 0 < found["saved_ucredits"] <= found["idle_ucredits"] < found["memory_ucredits"]
    assert found["memory_ucredits"] <= found["spent_ucredits"]
    assert found["suggested_memory_bytes"] <= 300 << 20
    assert found["wall_used_ms"] >= 300
    text = run("eff", job).out
    assert "memory (peak)" in text and "it would have saved" in text
    assert run("eff", "j999999").code == 2
    waiting = run("submit", "--json", "--label", "no=such", "--", "true").document["id"]
    assert "has used nothing yet" in run("eff", waiting).err
    run("cancel", waiting)


def test_the_library_has_a_price_too(grid: Grid) -> None:
    def work(value: int) -> int:
        return value + sum(range(50_000))

    with Client(grid.address, timeout=20) as client:
        nothing = client.price(work, range(1_000), sample=0)
        assert (nothing.basis, nothing.job, nothing.subtasks) == ("limits", 0, 1_000)
        first = client.price(work, range(1_000), sample=8)
        assert (first.basis, first.measured) == ("sample", 8)
        assert first.spent_ucredits == client.status(first.job).spent_ucredits > 0
        again = client.price(work, iter(range(1_000)))
        assert (again.basis, again.job, again.spent_ucredits) == ("history", 0, 0)
        assert 0 < again.low_ucredits <= again.mid_ucredits <= again.high_ucredits
        assert str(again).startswith("1,000 subtasks, by 8 past ones")
