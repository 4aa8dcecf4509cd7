"""Functions and inputs as bytes: cloudpickle, with the user's own modules by value.

A function of ``__main__`` or of a module that lies beside the user's script does not exist on a
worker, so it travels with its code; one of an installed package is named only. What counts as
installed: modules under the interpreter's own folders, and gristmill itself.
"""

import functools
import operator
import os
import site
import sys
import sysconfig
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from gristmill.client.errors import SizeWarning, UnpicklableError
from gristmill.wire.shared import Ref
from gristmill.wire.units import format_bytes

FUNCTION_BYTES_WARN = 1 << 20
_CAPTURE_DEPTH = 4  #: how far a culprit is followed through functions that call functions
_lock = threading.Lock()  # cloudpickle's registry is global
_seen: dict[str, bool] = {}


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    folders = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    folders.update(sysconfig.get_paths().values())
    folders.update(site.getsitepackages())
    folders.add(site.getusersitepackages())
    # The working folder can be inside a prefix (a project with its venv beside it cannot), and a
    # prefix like /usr holds /usr/lib; a bare root folder would make everything installed.
    return tuple(
        sorted(os.path.realpath(f) + os.sep for f in folders if os.path.realpath(f) != os.sep)
    )


def is_users_own(module: types.ModuleType) -> bool:
    """Whether a module must travel by value: it has a file, and not in an installed place."""
    name = module.__name__
    if name == "__main__" or name.partition(".")[0] == "gristmill":
        return False  # cloudpickle takes __main__ by value anyway
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):
        return False
    known = _seen.get(file)
    if known is None:
        known = _seen[file] = not os.path.realpath(file).startswith(_installed_folders())
    return known


@contextmanager
def own_modules_by_value() -> Iterator[None]:
    """What is pickled inside takes modules of the user along."""
    with _lock:
        already = cloudpickle.list_registry_pickle_by_value()
        mine = [
            module
            for name, module in list(sys.modules.items())
            if isinstance(module, types.ModuleType)
            and module.__name__ == name
            and name not in already
            and is_users_own(module)
        ]
        for module in mine:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in mine:
                cloudpickle.unregister_pickle_by_value(module)


def dumps(value: Any) -> bytes:
    """A pickle of any value, functions and classes of the user's own modules by value."""
    with own_modules_by_value():
        return cloudpickle.dumps(value)  # type: ignore[no-any-return]


def dump_function(function: Callable[..., Any]) -> bytes:
    """The bytes of a function.

    Raises:
        UnpicklableError: names the captured variable that cannot travel.

    Warns:
        SizeWarning: above 1 MiB, with the name of the largest captured variable.
    """
    try:
        body = dumps(function)
    except Exception as error:  # whatever a __reduce__ raises
        raise UnpicklableError("UNPICKLABLE", _blame(function, error)) from error
    if len(body) > FUNCTION_BYTES_WARN:
        sizes = [(len(dumps(value)), name) for name, value in captured(function)]
        largest = max(sizes, default=(0, ""))
        size = format_bytes(largest[0])
        which = f"; {largest[1]!r} is {size} of it" if largest[1] else ""
        warnings.warn(
            f"{_name(function)} travels as {format_bytes(len(body))}{which}. Put it into the store "
            "once with client.put(...) and use the Ref in its place",
            SizeWarning,
            stacklevel=4,
        )
    return body


def dump_values(values: list[Any]) -> bytes:
    """A pickle of a list of inputs.

    Raises:
        UnpicklableError: names the first input that cannot travel.
    """
    try:
        return dumps(values)
    except Exception as error:
        for offset, value in enumerate(values):
            try:
                dumps(value)
            except Exception as one:
                raise UnpicklableError(
                    "UNPICKLABLE",
                    f"input {offset} of this parcel, {value!r:.80} (a {type(value).__qualname__}), "
                    f"cannot be serialised: {one}",
                ) from error
        raise UnpicklableError(
            "UNPICKLABLE", f"the inputs cannot be serialised: {error}"
        ) from error


def captured(function: Any) -> list[tuple[str, Any]]:
    """(name, value) of what a function takes along: closure, globals that it reads, defaults.

    Names are as in the source; of a ``functools.partial`` and a bound method, their parts.
    """
    if isinstance(function, functools.partial):
        parts = [(f"argument {n}", value) for n, value in enumerate(function.args)]
        return [*parts, *function.keywords.items(), *captured(function.func)]
    if isinstance(function, types.MethodType):
        return [("self", function.__self__), *captured(function.__func__)]
    if not isinstance(function, types.FunctionType):
        return sorted(vars(function).items()) if hasattr(function, "__dict__") else []
    found = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found.append((name, cell.cell_contents))
        except ValueError:
            continue  # not assigned yet
    for name in _global_names(function.__code__):
        if name in function.__globals__:
            found.append((name, function.__globals__[name]))
    found += [(f"default {n}", value) for n, value in enumerate(function.__defaults__ or ())]
    found += list((function.__kwdefaults__ or {}).items())
    return found


@functools.lru_cache(512)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(dict.fromkeys(_global_names(constant)))
    return tuple(names)


def _blame(function: Any, error: BaseException, depth: int = _CAPTURE_DEPTH) -> str:
    """Which captured variable of which function cannot travel."""
    for name, value in captured(function):
        if isinstance(value, types.ModuleType):
            continue
        try:
            dumps(value)
        except Exception as one:
            is_own = isinstance(value, types.FunctionType | types.MethodType | functools.partial)
            if is_own and depth:
                return f"{_name(function)} calls {name!r}: {_blame(value, one, depth - 1)}"
            kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
            return (
                f"{_name(function)} captures {name!r}, a {kind}, which cannot be serialised: {one}"
            )
    return f"{_name(function)} cannot be serialised: {error}"


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)[:80]


# ---------------------------------------------------------------- the same function again

_ATOMS: tuple[type, ...] = (
    int,
    float,
    complex,
    str,
    bytes,
    bool,
    type(None),
    type,
    types.ModuleType,
    Ref,
)


class FunctionBytes:
    """Remembers the bytes of functions that cannot have changed, for many submits of one.

    A function whose captured values are all immutable is recognised by its code and by the
    identity of what it captures; any other is serialised each time, because a list that it
    captures may have grown.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[tuple[Any, ...], bytes]] = {}

    def of(self, function: Callable[..., Any]) -> bytes:
        """The bytes of a function, as ``dump_function`` makes them."""
        fingerprint = _fingerprint(function)
        if fingerprint is None:
            return dump_function(function)
        # A lambda inside a loop is a new function each time, of the same code.
        known = self._known.get(id(fingerprint[0]))
        if known is not None and _same(known[0], fingerprint):
            return known[1]
        body = dump_function(function)
        if len(self._known) > 256:
            self._known.clear()
        self._known[id(fingerprint[0])] = (fingerprint, body)
        return body


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _fingerprint(function: Any, depth: int = 3) -> tuple[Any, ...] | None:
    if isinstance(function, types.BuiltinFunctionType):
        return (function,)
    if type(function) is not types.FunctionType or function.__dict__ or not depth:
        return None
    parts: list[Any] = [function.__code__, function.__defaults__, function.__kwdefaults__]
    for _, value in captured(function):
        if type(value) is types.FunctionType:
            if value is function:
                continue
            inner = _fingerprint(value, depth - 1)
            if inner is None:
                return None
            parts += inner
        elif isinstance(value, type):
            if value.__module__ == "__main__":
                return None  # a class of the user can be changed in place
        elif not isinstance(value, (*_ATOMS, types.BuiltinFunctionType)):
            return None
        parts.append(value)
    return tuple(parts)
