"""A fork without what only a process of several threads needs after it.

``threading`` and ``logging`` ask Python to mend their locks in each forked child, since a thread
that the child does not have may have held one. That is Python code, and every object it counts a
reference to lies in a page that the kernel must copy first: some 170 pages, more than the rest of
a fork and its child's end together. A slot has one thread, so nothing is to be mended; where the
job's own code started more, the hooks run as ever. So they do for every fork but ours.

``spare_hooks`` comes before anything imports these modules, and stays: Python forgets no hook, and
whoever needs them may come late. Where they were there first (a ``.pth`` file may import them),
forks are slower and nothing else.
"""

import _thread
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

SPARED = ("threading", "logging")
CLONE_CALLS = {"x86_64": 56, "aarch64": 220}  #: numbers of the system call
_is_spared = False


def spare_hooks() -> None:
    """From now on ``fork`` knows how to go without the hooks of ``SPARED``, once imported."""
    register = os.register_at_fork

    def register_spared(**hooks: Callable[[], Any]) -> None:
        if sys._getframe(1).f_globals.get("__name__") in SPARED:
            hooks = {when: _unless_spared(hook) for when, hook in hooks.items()}
        register(**hooks)

    os.register_at_fork = register_spared  # type: ignore[assignment]


def _unless_spared(hook: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        if not _is_spared:
            hook()

    return run


def fork() -> int:
    """As ``os.fork``. To be called from the main thread, which holds no lock of these modules."""
    global _is_spared
    _is_spared = not _thread._count()
    try:
        return os.fork()
    finally:
        _is_spared = False


def clone(flags: int) -> int:
    """As ``fork``, with a child in new namespaces (``CLONE_NEW*``); from process 1 to process 1.

    ``os.fork`` takes no flags, so this is the system call itself, between what Python does before
    and after a fork of its own. The C library does not hear of it: what it keeps for a thread is
    the thread's number, which is 1 in both.

    Raises:
        OSError: refused (EPERM, ENOSPC, EAGAIN), or not known for this machine (ENOSYS).
    """
    import ctypes

    global _is_spared
    assert os.getpid() == 1 and not _thread._count()
    libc = ctypes.PyDLL(None, use_errno=True)  # which keeps the lock of the interpreter
    api, number = ctypes.pythonapi, CLONE_CALLS.get(os.uname().machine, -1)
    libc.syscall.restype = ctypes.c_long
    words = [ctypes.c_long(word) for word in (number, flags | signal.SIGCHLD, 0, 0, 0, 0)]
    _is_spared = True
    try:
        api.PyOS_BeforeFork()
        pid = int(libc.syscall(*words))
        if pid == 0:
            api.PyOS_AfterFork_Child()
            return 0
        error = ctypes.get_errno()
        api.PyOS_AfterFork_Parent()
    finally:
        _is_spared = False
    if pid < 0:
        raise OSError(error, os.strerror(error), "clone")
    return pid
