"""One suite in several runners at once: each takes the modules that no other has taken.

``.ci/lanes.py`` starts the runners. The first takes modules from the front of what was collected,
the second from the back, but no suite of ``RACING``: those see a busy machine only while the second
has something left. What a test sees is what it sees alone: a whole process of pytest.
"""

import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

#: suites of processes that are raced against each other and against clocks
RACING = ("chaos", "fleet", "flows", "integration", "sandbox")


class Lane:
    """A plugin of pytest; ``place`` is ``FOLDER:NUMBER``, the folder one for all the lanes."""

    def __init__(self, place: str) -> None:
        folder, _, number = place.rpartition(":")
        self.folder, self.number = pathlib.Path(folder), int(number)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """pytest's own loop, over what this lane takes."""
        if session.testsfailed:
            raise session.Interrupted(f"{session.testsfailed} errors during collection")
        items = self._taken(session.items)
        item = next(items, None)
        while item is not None:
            following = next(items, None)  # pytest keeps what both have in common
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
            item = following
        return True

    def _taken(self, items: list[pytest.Item]) -> Iterator[pytest.Item]:
        modules = [(path, list(tests)) for path, tests in itertools.groupby(items, _module)]
        own: set[str] = set()  # a wide fixture with parameters brings a module more than once
        for path, tests in modules if self.number % 2 else reversed(modules):
            if self.number > 1 and any(part in RACING for part in path.split("/")[:2]):
                continue
            if path in own or self._take(path):
                own.add(path)
                yield from tests

    def _take(self, path: str) -> bool:
        try:
            (self.folder / path.replace("/", "+")).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def leave(self, told: dict[str, Any]) -> list[dict[str, Any]]:
        """Keeps what this lane has to tell; gives what all told when it is the last, or nothing."""
        (self.folder / f"told-{self.number}.part").write_text(json.dumps(told))
        (self.folder / f"told-{self.number}.part").rename(self.folder / f"told-{self.number}")
        others = json.loads((self.folder / "lanes").read_text())
        kept = [self.folder / f"told-{number}" for number in range(1, others + 1)]
        if not all(path.exists() for path in kept) or not self._take("the end"):
            return []
        return [json.loads(path.read_text()) for path in kept]


def _module(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]
