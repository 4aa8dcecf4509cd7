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
import sys
from collections.abc import Callable
from typing import Any

SPARED = ("threading", "logging")
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
