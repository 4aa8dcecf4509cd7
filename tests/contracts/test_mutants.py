"""Every planted bug of every contract is found by that contract's tests."""

import pathlib
import resource
import sys
from collections.abc import Callable

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for mutants, in importlib mode

import mutants

PLANTED = """
tests = ["FeeWallet.t.sol"]
[[mutant]]
name = "{name}"
file = "src/FeeWallet.sol"
old = "{old}"
new = "{new}"
"""
FILES = sorted(pathlib.Path(__file__).parent.glob("*_mutants.toml"))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture
def forge() -> None:
    if not (mutants.CONTRACTS / mutants.FORGE).exists():
        pytest.skip("no forge: npm ci --ignore-scripts --prefix contracts")


@pytest.mark.slow
@pytest.mark.usefixtures("forge")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem.removesuffix("_mutants"))
def test_every_mutant_is_found(
    file: pathlib.Path, tmp_path: pathlib.Path, figures: Callable[..., None]
) -> None:
    before = _cpu_s()
    killed_by = mutants.run(file, tmp_path)
    for name, killer in killed_by.items():
        print(f"{name}: {killer or 'NOBODY'}")
    figures(mutants=len(killed_by), cpu_s=round(_cpu_s() - before))
    survivors = [name for name, killer in killed_by.items() if killer is None]
    assert not survivors, f"{file.name}: no test finds {survivors}"


def planted(tmp_path: pathlib.Path, name: str, old: str, new: str) -> pathlib.Path:
    file = tmp_path / "planted.toml"
    file.write_text(PLANTED.format(name=name, old=old, new=new))
    return file


@pytest.mark.usefixtures("forge")
def test_who_is_not_found_is_told(tmp_path: pathlib.Path) -> None:
    file = planted(tmp_path, "harmless", "amount * FEE_BPS", "FEE_BPS * amount")
    assert mutants.run(file, tmp_path / "scratch") == {"harmless": None}


@pytest.mark.usefixtures("forge")
def test_what_does_not_compile_is_no_find(tmp_path: pathlib.Path) -> None:
    file = planted(tmp_path, "nonsense", "amount * FEE_BPS", "amount * FEE_")
    with pytest.raises(mutants.UnfitError, match="nonsense: does not compile"):
        mutants.run(file, tmp_path / "scratch")


def test_what_is_replaced_stands_there_once(tmp_path: pathlib.Path) -> None:
    for old in ("no such text", "wallet"):
        file = planted(tmp_path, "stale", old, "x")
        count = (mutants.CONTRACTS / "src/FeeWallet.sol").read_text().count(old)
        with pytest.raises(mutants.UnfitError, match=f"stale: `old` stands {count} times"):
            mutants.load(file)
