"""The example that verifies a receipt file without us: how it takes what is no receipt file."""

import pathlib
import subprocess
import sys

import pytest

VERIFIER = pathlib.Path(__file__).parents[3] / "examples" / "verify_receipt.py"


def told(*arguments: str) -> str:
    """Its one line on stderr; it ends with 1."""
    done = subprocess.run(
        [sys.executable, "-I", VERIFIER, *arguments], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


@pytest.mark.parametrize("arguments", [(), ("a", "b", "c")])
def test_it_says_how_it_is_used(arguments: tuple[str, ...]) -> None:
    assert told(*arguments) == "usage: verify_receipt.py FILE [LEDGER_KEY]\n"


def test_it_names_a_file_that_cannot_be_read(tmp_path: pathlib.Path) -> None:
    missing = str(tmp_path / "nothing")
    assert told(missing) == f"cannot read {missing}: No such file or directory\n"
    assert told(str(tmp_path)) == f"cannot read {tmp_path}: Is a directory\n"


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", "null", '{"format": 3}'])
def test_what_is_no_receipt_file_is_not_proven(tmp_path: pathlib.Path, text: str) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    line = told(str(file))
    assert line.startswith("NOT PROVEN: ") and line.count("\n") == 1
