"""docs/errors.md is the table of codes, and every code that our code raises is in the table."""

import ast
import pathlib
import re
import subprocess
import sys

from gristmill.wire import errors


def test_the_page_is_current(root: pathlib.Path) -> None:
    command = [sys.executable, "-P", str(root / "tests" / "tidy" / "errors_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_every_code_says_what_to_do() -> None:
    for code, spec in errors.CODES.items():
        assert code == spec.code
        assert re.fullmatch(r"[A-Z][A-Z0-9_]*", code)
        assert spec.meaning, code
        assert spec.next_move, code
        assert 200 <= spec.http_status < 600, code
        assert spec.exit_code in (0, 1, 2, 3, 4, 5, errors.EXIT_CANNOT_JAIL), code


def raised(path: pathlib.Path) -> list[tuple[int, str]]:
    """Line and code of every ``RemoteError("CODE", ...)`` in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            name = node.func.id if isinstance(node.func, ast.Name) else name
            if name == "RemoteError":
                found.append((node.lineno, str(node.args[0].value)))
    return found


def test_every_code_that_is_raised_is_known(root: pathlib.Path, rooms: list[str]) -> None:
    unknown = [
        f"{path.relative_to(root)}:{line} raises {code}"
        for room in rooms
        for path in sorted((root / room).rglob("*.py"))
        for line, code in raised(path)
        if code not in errors.CODES
    ]
    assert not unknown
