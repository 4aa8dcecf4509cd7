"""examples/rental.py: a rental from the lock to the claims, with every process real."""

import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from chain_rig import missing

ROOT = pathlib.Path(__file__).parents[2]
SUBTASKS = 1_000


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing() or "anvil runs here")
def test_the_example_says_where_every_unit_is(figures: Callable[..., None]) -> None:
    script = str(ROOT / "examples" / "rental.py")
    command = [sys.executable, "-P", script, "--subtasks", str(SUBTASKS), "--nodes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "together     51: drift 0" in done.stdout
    found = re.search(r"post: ([\d,]+) gas in all,\s+([\d.,]+) gas a subtask", done.stdout)
    assert found is not None, done.stdout
    fixed, each = (float(text.replace(",", "")) for text in found.groups())
    assert each == pytest.approx(fixed / SUBTASKS, abs=0.01)
    figures(fixed_gas=int(fixed), gas_a_subtask=each)
