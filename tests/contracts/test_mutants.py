"""Every planted bug of every contract is found by that contract's tests."""

import pathlib
import resource
import sys
from collections.abc import Callable

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for mutants, in importlib mode

import mutants

FILES = sorted(pathlib.Path(__file__).parent.glob("*_mutants.toml"))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem.removesuffix("_mutants"))
def test_every_mutant_is_found(
    file: pathlib.Path, tmp_path: pathlib.Path, figures: Callable[..., None]
) -> None:
    if not (mutants.CONTRACTS / mutants.FORGE).exists():
        pytest.skip("no forge: npm ci --ignore-scripts --prefix contracts")
    before = _cpu_s()
    killed_by = mutants.run(file, tmp_path)
    for name, killer in killed_by.items():
        print(f"{name}: {killer or 'NOBODY'}")
    figures(mutants=len(killed_by), cpu_s=round(_cpu_s() - before))
    survivors = [name for name, killer in killed_by.items() if killer is None]
    assert not survivors, f"{file.name}: no test finds {survivors}"
