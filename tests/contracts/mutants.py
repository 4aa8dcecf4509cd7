"""Plants bugs in contracts, one at a time, and has forge say which test finds each.

A file of mutants is TOML: ``tests`` names the tests that are to find them (patterns of file names
in contracts/test), then come ``[[mutant]]`` tables: ``name``, ``file`` (in contracts/), ``old``,
which stands in that file exactly once, and ``new``.

What the tests import is copied to a scratch folder, and nothing else is compiled. To be cheap the
copy is compiled without the optimizer and by a WASM engine that does not optimize either, with
tests that are not linked to what they test (of a mutant one file is compiled), and fuzzed with few
runs. So a mutant costs 1.5 to 2 CPU-seconds; with forge's defaults it was 17.
"""

import dataclasses
import fnmatch
import json
import os
import pathlib
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping

CONTRACTS = pathlib.Path(__file__).parents[2] / "contracts"
FORGE = pathlib.Path("node_modules/@foundry-rs/forge-linux-amd64/bin/forge")
IMPORTED = re.compile(r'^\s*(?:import|\}) .*?"(\.[^"]+)";', re.MULTILINE)
SETTINGS = {
    "FOUNDRY_OPTIMIZER": "false",
    "FOUNDRY_DYNAMIC_TEST_LINKING": "true",
    "FOUNDRY_FUZZ_RUNS": "24",
    "FOUNDRY_INVARIANT_RUNS": "6",
    "FOUNDRY_INVARIANT_DEPTH": "40",
}
#: a compiler that lives for a second: optimizing its own code costs more than it brings, and so
#: does loading it to ask for its version, as forge does each time
COMPILER = """#!/bin/sh
here="$(dirname "$0")"
case "$1" in
--version) exec cat "$here/version" ;;
*) exec node --liftoff-only "$here/solc.mjs" "$@" ;;
esac
"""
LIMIT_S = 300.0


class UnfitError(Exception):
    """The file of mutants is wrong, or what it is about: not the suite's fault."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One bug: in ``file`` the text ``old`` becomes ``new``."""

    name: str
    file: str
    old: str
    new: str


def load(mutants_file: pathlib.Path) -> tuple[list[str], list[Mutant]]:
    """The patterns of test files, and the mutants; raises UnfitError with all that is wrong."""
    with mutants_file.open("rb") as file:
        table = tomllib.load(file)
    mutants = [Mutant(**each) for each in table["mutant"]]
    wrong = []
    for mutant in mutants:
        count = (CONTRACTS / mutant.file).read_text().count(mutant.old)
        if count != 1:
            wrong.append(f"{mutant.name}: `old` stands {count} times in {mutant.file}, not once")
    names = [mutant.name for mutant in mutants]
    wrong += [f"{name}: twice" for name in sorted(set(names)) if names.count(name) > 1]
    if wrong:
        raise UnfitError("\n".join(wrong))
    return table["tests"], mutants


def run(
    mutants_file: pathlib.Path, scratch: pathlib.Path, settings: Mapping[str, str] = SETTINGS
) -> dict[str, str | None]:
    """Who finds each mutant: name to ``Suite.test``; None for one that nobody finds.

    ``scratch`` is an empty folder or one that does not exist. Raises UnfitError when the unchanged
    contracts fail, or a mutant does not compile.
    """
    tests, mutants = load(mutants_file)
    _lay_out(tests, scratch)
    killer = _killer(scratch, settings, "unchanged contracts")
    if killer:
        raise UnfitError(f"unchanged contracts fail: {killer}")
    killed_by = {}
    for mutant in sorted(mutants, key=lambda mutant: mutant.file):
        path = scratch / mutant.file
        text = path.read_text()
        path.write_text(text.replace(mutant.old, mutant.new))
        killed_by[mutant.name] = _killer(scratch, settings, mutant.name)
        path.write_text(text)
    return killed_by


def _lay_out(tests: list[str], scratch: pathlib.Path) -> None:
    """Tests and all that they import, forge's settings, the compiler."""
    wanted = [
        path
        for path in sorted((CONTRACTS / "test").iterdir())
        if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in tests)
    ]
    if not wanted:
        raise UnfitError(f"no test is named like any of {tests}")
    copied: set[pathlib.Path] = set()
    while wanted:
        path = wanted.pop()
        if path in copied:
            continue
        copied.add(path)
        target = scratch / path.relative_to(CONTRACTS)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text())
        wanted += [(path.parent / name).resolve() for name in IMPORTED.findall(path.read_text())]
    shutil.copy(CONTRACTS / "foundry.toml", scratch)
    shutil.copytree(CONTRACTS / "tools", scratch / "tools")
    (scratch / "node_modules").symlink_to((CONTRACTS / "node_modules").resolve())
    compiler = scratch / "tools" / "solc"
    version = subprocess.run([compiler, "--version"], stdout=subprocess.PIPE, check=True)
    (scratch / "tools" / "version").write_bytes(version.stdout)
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)


def _killer(scratch: pathlib.Path, settings: Mapping[str, str], name: str) -> str | None:
    """The first test that fails, None if none does."""
    for kept in ("fuzz", "invariant"):  # or it would begin with what the last mutant died of
        shutil.rmtree(scratch / "cache" / kept, ignore_errors=True)
    done = subprocess.run(
        [scratch / FORGE, "test", "--json", "--fail-fast"],
        cwd=scratch,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    if not done.stdout.startswith("{"):
        raise UnfitError(f"{name}: does not compile:\n{done.stdout}{done.stderr}")
    suites = json.loads(done.stdout)
    for suite, result in suites.items():
        for test, outcome in result["test_results"].items():
            if outcome["status"] != "Success":
                return f"{suite.rpartition(':')[2]}.{test.partition('(')[0]}"
    if done.returncode or not suites:
        raise UnfitError(f"{name}: forge failed without a failing test:\n{done.stderr}")
    return None
