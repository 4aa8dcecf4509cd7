"""A module and a function fit in a reader's head."""

import ast
import pathlib

MODULE_LINES_MAX = 600  #: the goal is 500
FUNCTION_LINES_MAX = 100  #: the goal is 70


def python(files: list[pathlib.Path]) -> list[pathlib.Path]:
    return [path for path in files if path.suffix == ".py"]


def test_modules(root: pathlib.Path, files: list[pathlib.Path]) -> None:
    sizes = {path.relative_to(root): path.read_bytes().count(b"\n") for path in python(files)}
    long = [f"{path}: {size} lines" for path, size in sizes.items() if size > MODULE_LINES_MAX]
    assert not long, f"over {MODULE_LINES_MAX} lines: split by noun"


def test_functions(root: pathlib.Path, files: list[pathlib.Path]) -> None:
    long = []
    for path in python(files):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > FUNCTION_LINES_MAX:
                    long.append(f"{path.relative_to(root)}:{node.lineno} {node.name}: {size} lines")
    assert not long, f"over {FUNCTION_LINES_MAX} lines"


def test_names(root: pathlib.Path, files: list[pathlib.Path]) -> None:
    # A name that says nothing gathers everything.
    vague = {"util", "utils", "helper", "helpers", "common", "manager", "misc", "base"}
    found = [path.relative_to(root) for path in python(files) if path.stem in vague]
    assert not found
