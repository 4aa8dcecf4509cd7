import importlib.util
import pathlib
import pickle
import subprocess
import sys
import threading
from types import ModuleType

import pytest

from gristmill.client import SizeWarning, UnpicklableError
from gristmill.client.pickling import captured, dump_function, dumps, is_users_own

LOCK = threading.Lock()


def uses_the_lock() -> None:
    with LOCK:
        pass


def calls_the_other() -> None:
    uses_the_lock()


def test_the_captured_variable_is_named() -> None:
    with pytest.raises(UnpicklableError, match=r"uses_the_lock captures 'LOCK', a _thread.lock"):
        dump_function(uses_the_lock)
    with pytest.raises(UnpicklableError, match=r"calls_the_other calls 'uses_the_lock'.*'LOCK'"):
        dump_function(calls_the_other)
    inner = threading.Event()

    def closes_over() -> bool:
        return inner.is_set()

    with pytest.raises(UnpicklableError, match="'inner', a threading"):
        dump_function(closes_over)


def test_a_large_function_warns_with_the_name_of_what_is_large() -> None:
    small, table = [1], bytes(3 << 20)

    def looks_up(n: int) -> int:
        return table[n] + small[0]

    with pytest.warns(SizeWarning, match=r"travels as 3.001 MiB; 'table' is 3 MiB of it"):
        dump_function(looks_up)


@pytest.fixture
def own_module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = tmp_path / "someones_module.py"
    functions = "def inner(n): return n * SCALE\ndef outer(n): return inner(n) + 1\n"
    path.write_text(f"SCALE = 3\n{functions}")
    spec = importlib.util.spec_from_file_location("someones_module", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "someones_module", module)
    spec.loader.exec_module(module)
    return module


def test_functions_of_the_users_own_modules_travel_with_their_code(
    own_module: ModuleType, tmp_path: pathlib.Path
) -> None:
    assert is_users_own(own_module)
    body = tmp_path / "function"
    body.write_bytes(dump_function(own_module.outer))
    script = f"import pickle; print(pickle.load(open({str(body)!r}, 'rb'))(5))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd="/", capture_output=True, text=True, timeout=30
    )
    assert done.stdout.strip() == "16", done.stderr


def test_installed_modules_are_named_only() -> None:
    import msgspec

    assert not is_users_own(msgspec) and not is_users_own(pathlib)
    assert b"json" in dumps(__import__("json").dumps) and len(dumps(pickle.dumps)) < 200


def test_captured_looks_into_partials_methods_and_defaults() -> None:
    import functools

    def function(a: int, b: int = 5) -> int:
        return a + b + LOCK_COUNT

    names = dict(captured(functools.partial(function, 1)))
    assert names == {"argument 0": 1, "default 0": 5, "LOCK_COUNT": 7}


LOCK_COUNT = 7
