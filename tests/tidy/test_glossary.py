"""The words on the wire are the words of docs/glossary.md."""

import pathlib
import typing

import pytest

from gristmill.wire.client import JobState, SubtaskState
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import TIERS


def rows(page: str, title: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    section = page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


@pytest.fixture(scope="module")
def page(root: pathlib.Path) -> str:
    return (root / "docs" / "glossary.md").read_text()


def test_one_word_one_meaning(page: str) -> None:
    words = []
    for line in page.partition("\n## States\n")[0].splitlines():
        if line.startswith("| ") and not line.startswith("| Word"):
            words.append(line.split("|")[1].strip())
    for title in ("Jails", "Money", "Content and trust"):
        words += [row[0] for row in rows(page, title)]
    assert sorted(words) == sorted(set(words))
    assert len(words) > 60


def test_every_outcome(page: str) -> None:
    assert {row[0] for row in rows(page, "Outcomes")} == {outcome.word for outcome in Outcome}


@pytest.mark.parametrize(("thing", "states"), [("job", JobState), ("subtask", SubtaskState)])
def test_every_state(page: str, thing: str, states: object) -> None:
    told = {row[1] for row in rows(page, "States") if thing in row[0].split(", ")}
    assert told == set(typing.get_args(states))


def test_every_tier(page: str) -> None:
    tiers = {row[0].split()[0] for row in rows(page, "Jails") if row[1].startswith("Tier")}
    assert tiers == set(TIERS)
