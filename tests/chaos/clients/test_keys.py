"""P8: the same key is the same job, whoever crashes; another content under it is refused."""

import contextlib
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chaos_client_rig import doubled
from grid_rig import gristmill

from gristmill.cli.grid import Grid
from gristmill.client import Client, GridError


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    with Grid.temporary(workers=1, slots=2) as grid:
        yield grid


@contextlib.contextmanager
def refused() -> Iterator[Any]:
    with pytest.raises(GridError) as caught:
        yield caught
    assert caught.value.code == "SUBMISSION_CONFLICT"


def test_the_same_key_is_the_same_job_and_gives_the_same_values(grid: Grid) -> None:
    with Client(grid.address) as client:
        first = client.map(doubled, range(50), key="nightly", tier="batch")
        assert list(first) == list(range(0, 100, 2))
        client.wait(first)
    with Client(grid.address) as another:  # the job has ended, its client too
        again = another.map(doubled, range(50), key="nightly", tier="batch")
        assert list(again) == list(range(0, 100, 2))
        assert again.job == first.job
        spec = another.make_spec(doubled, tier="batch")
        posted = another.post(*spec, range(50), key="posted")
        assert another.post(*spec, range(50), key="posted").job == posted.job
        assert posted.wait(30).done == 50
        assert another.post(*spec, range(50), key="posted").job == posted.job


@pytest.mark.parametrize("is_ended", [False, True])
def test_another_content_under_a_key_is_refused_with_the_difference(
    grid: Grid, is_ended: bool
) -> None:
    key = f"conflict-{is_ended}"
    with Client(grid.address) as client:
        job = client.post(*client.make_spec(doubled, memory="512M"), range(9), key=key)
        if is_ended:
            job.wait(30)
        else:
            client.pause(job)
        for change, told in (
            (lambda: client.post(*client.make_spec(doubled), range(9), key=key), "memory_bytes"),
            (lambda: client.map(doubled, range(8), key=key, memory="512M").job, "count was 9"),
            (lambda: client.map(doubled, range(1, 10), key=key, memory="512M").job, "inputs"),
            (lambda: client.map(abs, range(9), key=key, memory="512M").job, "name was 'doubled'"),
        ):
            with refused() as caught:
                change()
            assert job.id in caught.value.message and told in caught.value.message, caught.value
        client.resume(job)
        assert job.wait(30).done == 9


def test_two_clients_at_once_make_one_job(grid: Grid) -> None:
    got: list[tuple[int, list[int]]] = []

    def ask() -> None:
        with Client(grid.address) as client:
            values = client.map(doubled, range(3_000), key="race", tier="batch")
            got.append((values.job, list(values)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [values for _, values in got] == [list(range(0, 6_000, 2))] * 4
    assert len({job for job, _ in got}) == 1


def test_the_command_takes_a_key(grid: Grid) -> None:
    def submit(*more: str) -> "subprocess.CompletedProcess[str]":
        return gristmill(grid, "submit", "--wait", "--cap", "1", "--key", "cli", *more)

    first = submit("--array", "1-3", "--", "echo", "{}")
    again = submit("--array", "1-3", "--", "echo", "{}")
    assert (first.returncode, again.returncode) == (0, 0), (first, again)
    assert again.stdout.split()[0] == first.stdout.split()[0]
    other = submit("--array", "1-4", "--", "echo", "{}")
    assert other.returncode == 2
    assert "SUBMISSION_CONFLICT" in other.stderr and "count was 3 and is 4 now" in other.stderr


def test_a_broker_killed_between_commit_and_ack_makes_no_second_job(
    grid: Grid, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    """The broker dies again and again while submissions are on their way."""
    wanted, dice, is_over = sized(6, 100), random.Random(7), threading.Event()
    jobs: dict[int, int] = {}
    errors = []
    with Client(grid.address, warn=lambda line: None) as client:
        spec = client.make_spec(doubled, tier="batch", cap=1)

        def post() -> None:
            while not is_over.is_set():
                key = f"crash-{len(jobs)}"
                try:
                    job = client.post(*spec, range(5), key=key).job
                    assert client.post(*spec, range(5), key=key).job == job
                except Exception as error:
                    errors.append(error)
                    return
                jobs[len(jobs)] = job

        thread = threading.Thread(target=post)
        thread.start()
        for _ in range(wanted):
            thread.join(0.3 + dice.random() * 0.3)  # the moment is the chance that is tried
            grid.kill("broker")
            grid.restart("broker")
        is_over.set()
        thread.join(60)
        assert not errors and len(set(jobs.values())) == len(jobs)
        assert [row.job for row in client.jobs(len(jobs))][::-1] == sorted(jobs.values())
        figures(keys=len(jobs), kills=wanted, doubled=0)
