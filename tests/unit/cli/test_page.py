"""docs/cli.md has every command, every option and an example of each, and nothing else."""

import argparse
import pathlib
import re

import pytest

from gristmill.cli.documents import BY_NAME
from gristmill.cli.parser import Parser, build, walk

PAGE = (pathlib.Path(__file__).parents[3] / "docs" / "cli.md").read_text()
GROUPS = (
    "audit",
    "chain",
    "chain key",
    "claim",
    "credits",
    "deploy",
    "ledger",
    "node",
    "rental",
    "token",
    "worker",
)  #: words with actions below them
VERBS = {path: child for path, child in walk(build()) if path.partition(" ")[2] not in GROUPS}
EVERYWHERE = {"-h", "--help", "--json", "--address"}


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.*)$", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def options(child: Parser) -> set[str]:
    found = {name for action in child._actions for name in action.option_strings}
    return found - EVERYWHERE


def test_every_command_has_its_section_and_no_other_has() -> None:
    assert list(sections()) == list(VERBS)


@pytest.mark.parametrize("path", VERBS)
def test_a_section_is_true(path: str) -> None:
    section = sections()[path]
    child = VERBS[path]
    rows = set(re.findall(r"^\| (.*?) \|", section, flags=re.MULTILINE))
    listed = {name for row in rows for name in re.findall(r"`(--?[a-z][a-z-]*)`", row)}
    assert listed - EVERYWHERE == options(child)  # one may say it in its own words, too
    for action in child._actions:
        is_told = action.help and not isinstance(action, argparse._HelpAction)
        if is_told and not set(action.option_strings) & EVERYWHERE:
            assert (action.help or "").replace("%%", "%") in section
    assert re.search(r"```sh (test|untested: .*)\n(.*\n)*?.*" + path.partition(" run")[0], section)


@pytest.mark.parametrize("path", VERBS)
def test_the_examples_use_options_that_exist(path: str) -> None:
    for line in re.findall(r"gristmill [^\n]*", "\n".join(re.findall(r"```sh.*?```", PAGE, re.S))):
        words = line.split(" -- ")[0].split()
        verb = " ".join(words[:3]) if words[1] in GROUPS else " ".join(words[:2])
        if verb != path or (words[1] in GROUPS and verb not in VERBS):
            continue
        used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= options(VERBS[path]) | EVERYWHERE, line


def test_the_page_names_the_exit_codes_and_a_schema_that_exists() -> None:
    for code in (0, 1, 2, 3, 4, 5, 78, 130):
        assert f"\n| {code} | " in PAGE
    for name in re.findall(r"gristmill/[a-z-]+/[0-9]+", PAGE):
        assert name in BY_NAME
