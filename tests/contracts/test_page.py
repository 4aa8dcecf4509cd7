"""docs/contracts.md says what the tests are held to."""

import pathlib
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).with_name("contracts_page.py")


def test_the_page_is_current() -> None:
    command = [sys.executable, "-P", str(SCRIPT), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
