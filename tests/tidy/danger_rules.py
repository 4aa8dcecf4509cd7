"""What our code may not do with what came from elsewhere, as checks over its syntax tree.

Each rule has a name and looks at one node; ``findings`` gives what it found in a text. Written by
hand rather than for semgrep: nine small rules need no tool of 200 MB, and these know ``import x as
y``. What they cannot see is listed in test_danger.py.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

PICKLES = {"cPickle", "cloudpickle", "copyreg", "dill", "joblib", "jsonpickle", "marshal", "pickle"}
PICKLES |= {"_pickle", "pickletools", "shelve"}
POOLS = {"asyncio", "concurrent", "multiprocessing", "xmlrpc"}  #: bring pickles, or speak them
#: functions of libraries that unpickle, or run a text, by another name
HIDDEN = {"recv_pyobj", "send_pyobj", "read_pickle", "to_pickle", "runpy", "run_path", "run_module"}
TEXT_RUNNERS = {"eval", "exec", "compile", "__import__", "execfile"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
TABLES = {"globals", "locals", "vars"}


class Found(NamedTuple):
    """Rule, line and the function that it stands in."""

    rule: str
    line: int
    where: str


Check = Callable[[ast.AST, Mapping[str, str]], bool]


def _dotted(node: ast.AST, names: Mapping[str, str]) -> str:
    """``subprocess.run`` of a call's function, with imports resolved; empty for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value, names)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def _is_text(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _pickles(node: ast.AST, names: Mapping[str, str]) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.partition(".")[0] in PICKLES for alias in node.names)
    if isinstance(node, ast.ImportFrom) and not node.level:
        return (node.module or "").partition(".")[0] in PICKLES
    if isinstance(node, ast.Attribute):
        return node.attr in HIDDEN
    if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
        return not (isinstance(node.value, ast.Constant) and node.value.value is False)
    return isinstance(node, ast.Name) and names.get(node.id, "").rpartition(".")[2] in HIDDEN


def _has_pools(node: ast.AST, names: Mapping[str, str]) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.partition(".")[0] in POOLS for alias in node.names)
    if isinstance(node, ast.ImportFrom) and not node.level:
        return (node.module or "").partition(".")[0] in POOLS
    return False


def _runs_text(node: ast.AST, names: Mapping[str, str]) -> bool:
    if not isinstance(node, ast.Call):
        return False
    return _dotted(node.func, names).removeprefix("builtins.") in TEXT_RUNNERS


def _runs_shell(node: ast.AST, names: Mapping[str, str]) -> bool:
    if not isinstance(node, ast.Call):
        return False
    is_shell = any(
        each.arg == "shell" and not (isinstance(each.value, ast.Constant) and not each.value.value)
        for each in node.keywords
    )
    return is_shell or _dotted(node.func, names) in SHELLS


def _gets_by_name(node: ast.AST, names: Mapping[str, str]) -> bool:
    """An attribute whose name is not in the text: of a message, it chooses what is called."""
    if not isinstance(node, ast.Call):
        return False
    called = _dotted(node.func, names)
    if called in ("getattr", "setattr", "delattr", "builtins.getattr"):
        return len(node.args) < 2 or not _is_text(node.args[1])
    if called in ("operator.attrgetter", "operator.methodcaller"):
        return not node.args or not _is_text(node.args[0])
    return called.endswith((".__getattribute__", ".__getattr__"))


def _looks_up_names(node: ast.AST, names: Mapping[str, str]) -> bool:
    """A global, a local or an attribute by its name; a module by its name."""
    if isinstance(node, ast.Subscript):
        table = node.value
        if isinstance(table, ast.Attribute) and table.attr == "__dict__":
            return True
        return isinstance(table, ast.Call) and _dotted(table.func, names) in TABLES
    if not isinstance(node, ast.Call):
        return False
    called = _dotted(node.func, names)
    if called.endswith("import_module"):
        return not node.args or not _is_text(node.args[0])
    table = getattr(node.func, "value", None)
    is_table = isinstance(table, ast.Call) and _dotted(table.func, names) in TABLES
    return is_table and getattr(node.func, "attr", "") in ("get", "__getitem__", "pop")


def _formats(node: ast.AST, names: Mapping[str, str]) -> bool:
    """A format that is not in the text may read attributes: ``{0.__class__}``."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute) and node.func.attr in ("format", "format_map"):
        return not _is_text(node.func.value) and bool(node.args or node.keywords)
    return False


def _unpacks(node: ast.AST, names: Mapping[str, str]) -> bool:
    """An archive that may write where it likes."""
    if not isinstance(node, ast.Call):
        return False
    return isinstance(node.func, ast.Attribute) and node.func.attr in (
        "extractall",
        "unpack_archive",
    )


def _reads_yaml(node: ast.AST, names: Mapping[str, str]) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.partition(".")[0] == "yaml" for alias in node.names)
    return isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "yaml"


RULES: dict[str, Check] = {
    "pickle": _pickles,
    "pool": _has_pools,
    "text as code": _runs_text,
    "text to a shell": _runs_shell,
    "attribute by name": _gets_by_name,
    "look-up by name": _looks_up_names,
    "format from elsewhere": _formats,
    "archive unpacked": _unpacks,
    "yaml": _reads_yaml,
}


def _imported(tree: ast.AST) -> dict[str, str]:
    """Local name to what was imported: ``import os.path as p`` and ``from os import system``."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def findings(text: str) -> Iterator[Found]:
    """What the rules find in a module, with the innermost function or class that has it."""
    tree = ast.parse(text)
    names = _imported(tree)
    yield from _below(tree, names, "")


def _below(node: ast.AST, names: Mapping[str, str], where: str) -> Iterator[Found]:
    for child in ast.iter_child_nodes(node):
        inner = where
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{where}.{child.name}".lstrip(".")
        for rule, check in RULES.items():
            if check(child, names):
                yield Found(rule, getattr(child, "lineno", 0), where)
        yield from _below(child, names, inner)
