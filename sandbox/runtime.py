"""Our own code as jails see it: one folder for each Python, compiled once.

A jail cannot write bytecode, and where a host has none (``PYTHONDONTWRITEBYTECODE``, an installer
that does not compile) each jail would compile every module again: some 25 ms, of 60. One mount
instead of one for each package, too.
"""

import contextlib
import functools
import os
import shutil
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
_lock = threading.Lock()


def compiled_runtime(
    folder: Path, interpreter: Interpreter, modules: Iterable[str]
) -> tuple[Bind, ...]:
    """What ``runtime_binds`` finds, copied below ``folder`` and compiled; made once.

    Shared libraries are mounted from where they are.

    The first call for an interpreter takes some 150 ms; any thread may make it.

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
    libraries = []
    for bind in runtime_binds(interpreter, modules):
        source, target = Path(bind.source), root / Path(bind.target).relative_to(RUNTIME_AT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=_IGNORED, dirs_exist_ok=True)
            for library in source.rglob("*.so"):  # the folder's disk may be mounted noexec
                place = target / library.relative_to(source)
                place.touch()
                shown = f"{bind.target}/{library.relative_to(source)}"
                libraries.append(Bind(os.path.realpath(library), shown))
        else:
            shutil.copyfile(source, target)
    # Folders of ours without __init__.py would be namespace packages: searched for at each import.
    for package in {path.parent for path in (root / "gristmill").rglob("*")}:
        (package / "__init__.py").touch()
    _compile(root, interpreter)
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


def _compile(root: Path, interpreter: Interpreter) -> None:
    """By the Python that will read it. Where that fails jails compile for themselves, as ever."""
    command = [interpreter.executable, "-I", "-S", "-m", "compileall", "-q"]
    command += ["--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", RUNTIME_AT]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [*command, str(root)],
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=ASK_TIMEOUT_S,
            check=False,
        )
