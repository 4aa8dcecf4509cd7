"""The Solidity tests of contracts/: all pass, they reach every branch, and gas is what it was."""

from collections import Counter
from collections.abc import Callable

import forge_rig
import gas
import pytest

BRANCHES_MIN = 95.0  #: per cent, of each file
#: What unit and fuzz tests reach by themselves: a random walk or a search would hide a missing one.
OF_COVERAGE = ("--no-match-contract", "(Gas|Search|Invariant)Test")

pytestmark = [
    pytest.mark.skipif(bool(forge_rig.missing()), reason=forge_rig.missing() or "forge runs here"),
    pytest.mark.slow,
]


def test_every_test_passes(figures: Callable[..., None]) -> None:
    run = forge_rig.forge("tests", "test", "--json")
    tests = forge_rig.outcomes(run.stdout or run.stderr)
    assert not [f"{test.name}: {test.reason}" for test in tests if not test.has_passed]
    assert run.returncode == 0, run.stderr[-2000:]
    number = Counter(test.kind for test in tests)
    fuzz_runs = sum(test.runs for test in tests if test.kind == "fuzz")
    calls = sum(test.calls for test in tests if test.kind == "invariant")
    figures(
        unit=number["unit"],
        fuzz=number["fuzz"],
        fuzz_runs=fuzz_runs,
        invariants=number["invariant"],
        invariant_calls=calls,
    )
    # Nothing was left out: each kind ran, and as often as foundry.toml says.
    assert number["unit"] >= 100 and number["fuzz"] >= 10 and number["invariant"] >= 6
    assert fuzz_runs >= 256 * number["fuzz"]
    assert calls >= 64 * 64 * number["invariant"]


def test_tests_reach_the_branches_of_each_file(figures: Callable[..., None]) -> None:
    lcov = forge_rig.FOLDER / "out" / "coverage" / "lcov.info"
    lcov.unlink(missing_ok=True)
    report = ("--report", "lcov", "--report-file", str(lcov))
    run = forge_rig.forge("coverage", "coverage", *report, *OF_COVERAGE, FOUNDRY_FUZZ_RUNS="64")
    assert lcov.exists(), run.stderr[-2000:]
    covered = forge_rig.coverage(lcov.read_text())
    own = {file: found for file, found in covered.items() if file.startswith("src/")}
    for file, found in own.items():
        lines, branches = found.lines, found.branches
        print(f"{file:30} lines {lines.percent:5.1f} %  branches {branches.percent:5.1f} %", end="")
        print(f" ({branches.hit} of {branches.found})")
        if branches.found:
            figures(**{file: f"{branches.percent:.0f} %"})
    sources = {f"src/{path.name}" for path in (forge_rig.FOLDER / "src").glob("*.sol")}
    assert set(own) == sources
    few = {
        file: f"branches {found.branches.percent:.1f} %, lines not reached: {found.missed}"
        for file, found in own.items()
        if found.branches.percent < BRANCHES_MIN
    }
    assert not few


def test_everything_public_is_described(figures: Callable[..., None]) -> None:
    run = forge_rig.forge("tests", "build")
    assert run.returncode == 0, run.stderr[-2000:]
    number, bare = 0, {}
    for path in sorted((forge_rig.FOLDER / "src").glob("*.sol")):
        public, told = forge_rig.described(path.stem)
        number += len(public)
        if public - told:
            bare[path.stem] = sorted(public - told)
    figures(described=number)
    assert not bare
    assert number > 100


def test_gas_is_what_it_was(figures: Callable[..., None]) -> None:
    after = gas.measured()
    figures(operations=len(after))
    said = gas.changes(gas.written(), after)
    assert not said, f"if that is meant: {gas.RENEW}"


def test_a_root_costs_the_same_whatever_it_is_over() -> None:
    # 12 gas for each byte of calldata that happens not to be zero: of the total, here.
    costs = [cost for name, cost in gas.written().items() if name.startswith("WorkPool: post, 1")]
    assert len(costs) == 3
    assert max(costs) - min(costs) <= 12 * 16
