"""What docs/contracts/ says of harm names tests that are there."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "contracts").glob("*.md"))
NAMED = re.compile(r"`((?:test|testFuzz|invariant)_\w+)`")
WRITTEN = re.compile(r"function ((?:test|testFuzz|invariant)_\w+)\(")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_test_that_a_page_names_is_there(page: pathlib.Path) -> None:
    tests = {
        name
        for file in (ROOT / "contracts" / "test").glob("*.sol")
        for name in WRITTEN.findall(file.read_text())
    }
    named = set(NAMED.findall(page.read_text()))
    assert len(named) >= 10
    assert not named - tests
