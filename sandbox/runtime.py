"""Our own code as jails see it: one folder for each Python, compiled once.

A jail cannot write bytecode, and where a host has none (``PYTHONDONTWRITEBYTECODE``, an installer
that does not compile) each jail would compile every module again: some 25 ms, of 60. One mount
instead of one for each package, too. Bytecode that the host has is taken along.
"""

import contextlib
import functools
import importlib.util
import os
import py_compile
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

from gristmill.sandbox.interpreter import (
    ASK_TIMEOUT_S,
    RUNTIME_AT,
    Interpreter,
    runtime_binds,
)
from gristmill.sandbox.spec import Bind

OUR_HOOK = "__editable__.gristmill-*.pth"
_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyi", "py.typed", "*.so")
_UNCHECKED_HASH = py_compile.PycInvalidationMode.UNCHECKED_HASH
_lock = threading.Lock()


def compiled_runtime(
    folder: Path, interpreter: Interpreter, modules: Iterable[str]
) -> tuple[Bind, ...]:
    """What ``runtime_binds`` finds, copied below ``folder`` and compiled; made once.

    Shared libraries are mounted from where they are.

    The first call for an interpreter takes some 50 ms, or 200 where the host has no bytecode; any
    thread may make it.

    Raises:
        SandboxError: a module is not installed here.
        OSError: the folder cannot be written.
    """
    with _lock:  # or two threads would both find nothing there
        return _compiled(folder, interpreter, tuple(modules))


@functools.lru_cache(maxsize=64)
def _compiled(folder: Path, interpreter: Interpreter, modules: tuple[str, ...]) -> tuple[Bind, ...]:
    root = folder / f"{len(list(folder.glob('*')))}"
    root.mkdir(parents=True)
    libraries, taken = [], set()
    for bind in runtime_binds(interpreter, modules):
        source, target = Path(bind.source), root / Path(bind.target).relative_to(RUNTIME_AT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(
                source, target, ignore=_IGNORED, copy_function=shutil.copyfile, dirs_exist_ok=True
            )
            found = {path: target / path.relative_to(source) for path in source.rglob("*.py")}
            for library in source.rglob("*.so"):  # the folder's disk may be mounted noexec
                place = target / library.relative_to(source)
                place.touch()
                shown = f"{bind.target}/{library.relative_to(source)}"
                libraries.append(Bind(os.path.realpath(library), shown))
        else:
            shutil.copyfile(source, target)
            found = {source: target}
        taken |= {at for path, at in found.items() if _take_bytecode(path, at, interpreter)}
    # Folders of ours without __init__.py would be namespace packages: searched for at each import.
    ours = [path for path in (root / "gristmill").rglob("*") if path.suffix != ".pyc"]
    for package in {path.parent for path in ours}:
        if not (at := package / "__init__.py").exists():
            at.touch()
            if _is_like_ours(interpreter):  # nothing, compiled: not worth another process
                py_compile.compile(str(at), invalidation_mode=_UNCHECKED_HASH)
                taken.add(at)
    _compile(root, [path for path in root.rglob("*.py") if path not in taken], interpreter)
    (root / "empty").touch()
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)  # whoever a jail is, and whatever the umask
    return (Bind(str(root), RUNTIME_AT), *libraries, *_hidden(root / "empty", interpreter))


def _hidden(empty: Path, interpreter: Interpreter) -> list[Bind]:
    """The start-up hook of our own editable install: it finds nothing in a jail, in 15 ms."""
    if interpreter.executable != sys.executable:
        return []
    hooks = [path for entry in sys.path for path in Path(entry or ".").glob(OUR_HOOK)]
    return [Bind(str(empty), str(path)) for path in hooks]


def _is_like_ours(interpreter: Interpreter) -> bool:
    """Whether our bytecode is its, too: what another kind of bytecode begins with is not known."""
    return interpreter.cache_tag == sys.implementation.cache_tag


def _take_bytecode(source: Path, target: Path, interpreter: Interpreter) -> bool:
    """The bytecode beside a module, if it is of this very source and for this Python.

    In the jail it is never compared with a source again, whose time is another one there (PEP 552).
    """
    if not _is_like_ours(interpreter):
        return False
    name = f"__pycache__/{source.stem}.{interpreter.cache_tag}.pyc"
    try:
        code, text, made = (source.parent / name).read_bytes(), source.read_bytes(), source.stat()
    except OSError:
        return False
    age = (int(made.st_mtime) & 0xFFFFFFFF, len(text) & 0xFFFFFFFF)
    magic = importlib.util.MAGIC_NUMBER
    if code[:16] != magic + struct.pack("<III", 0, *age):  # 0: it goes by time and size
        return False
    head = magic + struct.pack("<I", 1) + importlib.util.source_hash(text)  # 1: by nothing
    (target.parent / name).parent.mkdir(exist_ok=True)
    (target.parent / name).write_bytes(head + code[16:])
    return True


def _compile(root: Path, modules: list[Path], interpreter: Interpreter) -> None:
    """By the Python that will read it. Where that fails jails compile for themselves, as ever."""
    if not modules:
        return
    command = [interpreter.executable, "-I", "-S", "-m", "compileall", "-q"]
    command += ["--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", RUNTIME_AT]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [*command, *map(str, modules)],
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=ASK_TIMEOUT_S,
            check=False,
        )
