"""What must be mounted so that a Python runs in a jail as it runs outside, with its packages.

The interpreter is asked once, with ``-I``: its prefixes, its search path, the shared libraries and
the modules that it has loaded (Debian's ``sitecustomize`` is a link into /etc). Everything is
mounted read-only at its own path, since virtual environments, shebang lines and compiled packages
hold absolute paths; where such a path goes through a symbolic link (``versions/3.12 -> 3.12.7``, a
venv's ``bin/python``), both the path and where it leads are mounted. Where it lies does not matter:
paths that the jail's identity cannot reach, as under a 0700 home, are staged by the host (host.py).
"""

import dataclasses
import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from gristmill.sandbox.argv import SYSTEM_DIRECTORIES
from gristmill.sandbox.errors import SandboxError
from gristmill.sandbox.spec import Bind

#: Where our own code is shown in every jail; put it first on PYTHONPATH.
RUNTIME_AT = "/run/gristmill"
ASK_TIMEOUT_S = 30
LINK_HOPS_MAX = 40  #: as the kernel's own

_QUESTION = r"""
import json, sys, sysconfig
maps = set()
try:
    with open("/proc/self/maps") as file:
        for line in file:
            path = line.rstrip("\n").split(None, 5)[5:]
            if path and path[0].startswith("/") and not path[0].endswith(" (deleted)"):
                maps.add(path[0])
except OSError:
    pass
print(json.dumps({
    "executable": sys.executable,
    "prefixes": [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix],
    "path": [entry for entry in sys.path if entry.startswith("/")],
    "libraries": sorted(maps),
    "modules": sorted(
        module.__file__ for module in list(sys.modules.values())
        if (getattr(module, "__file__", None) or "").startswith("/")
    ),
    "version": list(sys.version_info[:3]),
    "tag": sys.implementation.cache_tag,
    "suffix": sysconfig.get_config_var("EXT_SUFFIX") or "",
}))
"""

#: Never mounted whole, even when a .pth file names them: they hold more than packages.
_TOO_WIDE = frozenset(
    {"/", "/home", "/root", "/etc", "/var", "/tmp", "/opt", "/srv", "/mnt", "/run"}
)


@dataclasses.dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that jails can run.

    Attributes:
        executable: what to put into argv: the path inside the jail, same as outside.
        version: ``(3, 11, 7)``.
        cache_tag: ``cpython-311``; compiled packages fit one tag.
        extension_suffix: ``.cpython-311-x86_64-linux-gnu.so``.
        binds: what to mount, all read-only.
        left_out: search-path entries that are too wide to mount (a home, /tmp ...).
    """

    executable: str
    version: tuple[int, int, int]
    cache_tag: str
    extension_suffix: str
    binds: tuple[Bind, ...]
    left_out: tuple[str, ...] = ()


@functools.lru_cache(maxsize=64)
def find_interpreter(executable: str | None = None) -> Interpreter:
    """Ask a Python what it needs; the answer is kept for the life of this process.

    Args:
        executable: a path (a venv's python, a pyenv shim, conda, uv ...), or None for our own.

    Raises:
        SandboxError: it does not run or does not answer.
    """
    asked = os.path.abspath(executable or sys.executable)
    try:
        answer = subprocess.run(
            [asked, "-I", "-B", "-c", _QUESTION],
            capture_output=True,
            timeout=ASK_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        facts = json.loads(answer.stdout)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()[-300:]
        raise SandboxError(f"{asked} does not run as a Python: {said}", f"{asked} -V") from None
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise SandboxError(f"{asked} does not run as a Python: {error}", f"{asked} -V") from None
    if os.path.realpath(asked) != os.path.realpath(facts["executable"]):
        asked = facts["executable"]  # a shim or a wrapper script: name the real one
    binds, left_out = _binds_of(asked, facts)
    return Interpreter(
        executable=asked,
        version=tuple(facts["version"]),
        cache_tag=facts["tag"],
        extension_suffix=facts["suffix"],
        binds=binds,
        left_out=left_out,
    )


def runtime_binds(
    interpreter: Interpreter,
    modules: Iterable[str] = ("gristmill.wire", "gristmill.worker.runners"),
    packages: Iterable[str] = ("msgspec", "cloudpickle"),
    extra: Iterable[Bind] = (),
) -> tuple[Bind, ...]:
    """Our own code, from wherever it is installed or edited, at ``RUNTIME_AT``.

    A package that is compiled for another Python than ``interpreter`` is left out; it must then
    be installed beside that interpreter.

    Raises:
        SandboxError: a module is not installed here.
    """
    binds = []
    for name in (*modules, *packages):
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            spec = None
        if spec is None or (spec.origin is None and not spec.submodule_search_locations):
            raise SandboxError(f"{name} is not installed", "pip install 'gristmill[worker]'")
        if spec.submodule_search_locations:
            source = next(iter(spec.submodule_search_locations))
            target = f"{RUNTIME_AT}/{name.replace('.', '/')}"
        else:
            assert spec.origin is not None
            source = spec.origin
            target = f"{RUNTIME_AT}/{os.path.dirname(name.replace('.', '/'))}"
            target = os.path.join(target, os.path.basename(spec.origin))
        if _fits(Path(source), interpreter.extension_suffix):
            binds.append(Bind(os.path.realpath(source), target))
    return (*binds, *extra)


def _fits(package: Path, suffix: str) -> bool:
    compiled = [path.name for path in package.rglob("*.so")] if package.is_dir() else []
    return not compiled or any(
        name.endswith(suffix) or name.endswith(".abi3.so") for name in compiled
    )


def _binds_of(
    executable: str, facts: dict[str, list[str]]
) -> tuple[tuple[Bind, ...], tuple[str, ...]]:
    trees = _Trees()
    for prefix in facts["prefixes"]:
        trees.add(prefix)
    left_out = []
    for entry in facts["path"]:
        if not os.path.exists(entry) or trees.covers(entry):
            continue
        real = os.path.realpath(entry)
        is_home = os.path.dirname(real) == "/home" or os.path.exists(os.path.join(real, ".ssh"))
        if real in _TOO_WIDE or is_home:
            left_out.append(entry)
        else:
            trees.add(entry)
    for library in facts["libraries"]:
        if library.startswith("/nix/store/"):
            trees.add("/nix/store")
        elif os.path.isfile(library):
            trees.add(library)
    for path in (executable, *facts["modules"]):
        for hop in _hops(path):
            trees.add(hop)
    return trees.binds(), tuple(left_out)


def _hops(path: str) -> list[str]:
    """A path and every symbolic link between it and the file it leads to."""
    hops = [path]
    while os.path.islink(path) and len(hops) < LINK_HOPS_MAX:
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        hops.append(path)
    return hops


class _Trees:
    """Mounts without doubles: a path below a mounted tree, or below /usr, needs none."""

    def __init__(self) -> None:
        self._by_target: dict[str, str] = {}

    def add(self, path: str) -> None:
        if not os.path.exists(path):
            return
        real = os.path.realpath(path)
        for target in (os.path.normpath(path), real):
            if not self.covers(target):
                self._by_target[target] = real

    def covers(self, path: str) -> bool:
        path = os.path.normpath(path)
        if any(_is_below(path, root) for root in SYSTEM_DIRECTORIES):
            return True
        return any(
            _is_below(path, target) and _same(path, target, source)
            for target, source in self._by_target.items()
        )

    def binds(self) -> tuple[Bind, ...]:
        """Parents before children: a later mount lies on top of an earlier one."""
        return tuple(
            Bind(source, target)
            for target, source in sorted(self._by_target.items(), key=lambda item: item[0])
        )


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _same(path: str, target: str, source: str) -> bool:
    """Inside the mounted tree the path leads to the same file as outside."""
    inside = os.path.join(source, os.path.relpath(path, target))
    return os.path.exists(inside)
