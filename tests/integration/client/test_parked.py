"""Jails of jobs that share a slot: kept while another runs, small and quiet ones, to the end.

A module's globals live as long as the process does, so they tell whether it is the same one.
"""

from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from grid_rig import until

from gristmill.cli.grid import Grid
from gristmill.client import Client


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    with Grid.temporary(workers=1, slots=1) as grid:
        yield grid


def _job(name: str, mebibytes: int = 0, is_restless: bool = False) -> Callable[[int], str]:
    """A function whose value is a mark of the process that it runs in."""

    def mark(number: int) -> str:
        import os
        import threading

        state = vars(os)
        if "mark" not in state:
            state["mark"] = f"{name} {os.urandom(8).hex()}"
            state["weight"] = bytearray(b"x") * (mebibytes << 20)

            def spin() -> None:
                while True:
                    pass

            if is_restless:
                threading.Thread(target=spin, daemon=True).start()
        return str(state["mark"])

    return mark


def _alternate(client: Client, functions: list[Any], rounds: int) -> list[list[str]]:
    """The marks of each function; one subtask of each in turn, so that each job is to leave."""
    submit = client.with_options(tier="batch").submit
    marks: list[list[str]] = [[] for _ in functions]
    for number in range(rounds):
        for at, function in enumerate(functions):
            marks[at].append(submit(function, number).result(60))
    return marks


def _below(grid: Grid) -> list[psutil.Process]:
    return psutil.Process(grid.pid("worker-0")).children(recursive=True)


def _jails(grid: Grid) -> int:
    found = 0
    for process in _below(grid):
        try:
            found += any("boot.py" in word for word in process.cmdline())
        except psutil.Error:
            continue
    return found


def _is_calm(grid: Grid) -> bool:
    """Whether no process below the worker works now."""
    for process in _below(grid):
        try:
            if process.cpu_percent(interval=0.1) > 20:
                return False
        except psutil.Error:
            continue
    return True


def test_jobs_that_share_a_slot_keep_their_jails_until_they_end(grid: Grid) -> None:
    with Client(grid.address) as client:
        marks = _alternate(client, [_job(name) for name in "abcd"], 4)
        assert [len(set(each)) for each in marks] == [1] * 4, "each job comes back to its jail"
        assert [each[0][0] for each in marks] == list("abcd"), "and to none of another job"
        most = _jails(grid)
        assert most >= 4
    until("they end with their jobs", lambda: _jails(grid) <= most - 3)


def test_a_large_jail_is_not_kept(grid: Grid) -> None:
    with Client(grid.address) as client:
        large, small = _alternate(client, [_job("large", mebibytes=100), _job("small")], 3)
    assert (len(set(large)), len(set(small))) == (3, 1)


def test_a_kept_jail_that_works_on_unseen_is_ended(grid: Grid) -> None:
    with Client(grid.address) as client:
        functions = [_job("restless", is_restless=True), _job("quiet")]
        restless, quiet = _alternate(client, functions, 1)
        until("what did not keep still is gone", lambda: _is_calm(grid))
        again, same = _alternate(client, functions, 1)
        assert again != restless and same == quiet
