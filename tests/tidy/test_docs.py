"""Every command that the pages show is run, or says why it is not.

The info string of a fenced block decides, in sight of whoever edits the page:

    ```sh test                  run, in order, inside one grid for the whole page
    ```python test              the same, as one script
    ```sh untested: REASON      shown only; the reason says what runs it instead, or why nothing can

A block of commands with neither is an error. Pages: README.md and docs/*.md; the protocol texts in
docs/rfc/ have no commands.
"""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest
from chain_rig import ANVIL, missing

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted([README, *(ROOT / "docs").glob("*.md")])
TEXTS = sorted([README, ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
SHELLS = {"sh", "bash", "shell", "console", "shell-session"}
FENCE = re.compile(r"^( *)(`{3,}|~{3,})[ ]*([^\n]*)\n(.*?)^ *\2[ ]*$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced block: its language, the words after it, its text and its line."""

    language: str
    rule: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    found = []
    for match in FENCE.finditer(page):
        language, _, rule = match[3].strip().partition(" ")
        line = page.count("\n", 0, match.start()) + 1
        found.append(Block(language, rule.strip(), match[4], line))
    return found


def fault(block: Block) -> str:
    """What is wrong with the info string of a block, or nothing."""
    if block.language not in SHELLS | {"python"} or block.rule == "test":
        return ""
    if block.rule.startswith("untested:"):
        return "" if len(block.rule.split()) > 2 else "say why it is untested"
    if block.language == "python" and not block.rule:
        return "" if ">>>" in block.text else "write ```python test, or untested: REASON"
    return f"write ```{block.language} test, or untested: REASON"


def script(page: str) -> str:
    """The tested blocks of a page as one shell script."""
    parts = []
    for block in blocks(page):
        if block.rule == "test" and block.language == "python":
            parts.append(f"python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK\n")
        elif block.rule == "test":
            lines = block.text.splitlines(keepends=True)
            if any(line.startswith("$ ") for line in lines):  # the other lines are the answers
                lines = [line[2:] for line in lines if line.startswith("$ ")]
            parts.append("".join(lines))
    return "".join(parts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_commands_has_a_rule(page: pathlib.Path) -> None:
    faults = {block.line: fault(block) for block in blocks(page.read_text())}
    assert not {f"{page.name}:{line}": told for line, told in faults.items() if told}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    links = LINK.findall(FENCE.sub("", page.read_text()))
    inside = [link.partition("#")[0] for link in links if "://" not in link]
    assert not [link for link in inside if link and not (page.parent / link).exists()]


def test_every_suite_is_described() -> None:
    page = (ROOT / "docs" / "testing.md").read_text()
    suites = {path.relative_to(ROOT / "tests").parts[0] for path in ROOT.glob("tests/*/**/*.py")}
    assert not [suite for suite in sorted(suites) if f"`tests/{suite}/`" not in page]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page == README or script(page.read_text())],
    ids=lambda page: page.name,
)
def test_the_commands_run(page: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert script(page.read_text()), "the first page must show a command that works"
    if page.name == "chain.md" and (lack := missing()):
        pytest.skip(lack)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    commands = tmp_path / "page.sh"
    commands.write_text(script(page.read_text()))
    scripts = str(pathlib.Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{scripts}:{ANVIL.parent}:{os.environ['PATH']}",
        "GRISTMILL_STATE": str(tmp_path / "state"),
        "GRISTMILL_LEDGER_EPOCH_S": "1",  # receipts are proven soon
    }
    grid = ["gristmill", "up", "--workers", "2", "--", "sh", "-eux", str(commands)]
    done = subprocess.run(
        grid,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(grid)}\n{done.stdout}\n{done.stderr}"


def test_the_rules_are_read() -> None:
    fence = "`" * 3
    page = (
        f"a\n{fence}sh test\n$ gristmill status\nno jobs\n$ echo 2\n{fence}\n"
        f"{fence}python test\nprint(1)\n{fence}\n"
        f"{fence}sh untested: make demo runs it\nmake demo\n{fence}\n"
        f"{fence}sh\nrm x\n{fence}\n{fence}sh untested:\nrm x\n{fence}\n{fence}\ntext\n{fence}\n"
    )
    found = blocks(page)
    assert [block.line for block in found] == [2, 7, 10, 13, 16, 19]
    assert [bool(fault(block)) for block in found] == [False, False, False, True, True, False]
    assert script(page) == (
        "gristmill status\necho 2\npython - <<'END_OF_BLOCK'\nprint(1)\nEND_OF_BLOCK\n"
    )
