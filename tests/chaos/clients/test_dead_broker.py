"""P8, pain 4: nobody waits for ever for a broker that died.

``gristmill up`` starts a dead broker again; here the test does, or does not.
"""

import concurrent.futures
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chaos_client_rig import DEAD_S, doubled
from grid_rig import SECONDS, until

from gristmill.cli.grid import Grid
from gristmill.client import BrokerUnavailable, Client, Future

FUTURES = 1_000


@pytest.fixture
def grid() -> Iterator[Grid]:
    with Grid.temporary(workers=1, slots=2) as grid:
        yield grid


def test_1000_futures_resume_when_the_broker_is_back(
    grid: Grid, figures: Callable[..., None]
) -> None:
    with Client(grid.address) as client:
        fast = client.with_options(tier="batch")
        futures = [fast.submit(doubled, number, 0.01) for number in range(FUTURES)]
        until("the first value", lambda: futures[0].done())
        waiting = sum(not future.done() for future in futures)
        grid.kill("broker")
        began = time.monotonic()
        grid.restart("broker")
        back_s = time.monotonic() - began
        resumed = [future.result(SECONDS) for future in futures]
        assert resumed == [2 * number for number in range(FUTURES)]
        # No second job was needed, and nothing was run for the record twice.
        (status,) = client.jobs()
        assert (status.done, status.count if status.count >= 0 else FUTURES) == (FUTURES, FUTURES)
        figures(waiting=waiting, broker_back_s=round(back_s, 2), right=len(resumed))


def test_an_upload_goes_on_over_restarts_of_the_broker(grid: Grid) -> None:
    """More bytes than a window of credit, before and after; the broker is down three times."""
    inputs = [bytes([n % 256]) * 20_000 for n in range(600)]
    with Client(grid.address, warn=lambda line: None) as client:
        values = client.map(len, iter(inputs), tier="batch", window=300)
        read = list(itertools.islice(values, 5))
        for _ in range(3):
            grid.kill("broker")
            grid.restart("broker")
            read += itertools.islice(values, 100)
        read += values
        assert read == [20_000] * len(inputs)
        (job,) = client.jobs()
        assert (job.done, job.state) == (len(inputs), "done")


def test_1000_futures_of_a_dead_broker_raise_with_the_way_back(
    grid: Grid, figures: Callable[..., None]
) -> None:
    """Waited for in threads, by ``as_completed``, by a map in its upload, by ``wait``."""
    raised: dict[str, tuple[float, BaseException]] = {}

    def waits(name: str, wait: Callable[[], Any]) -> threading.Thread:
        def run() -> None:
            try:
                wait()
            except BaseException as error:  # whatever comes out is what is judged
                raised[name] = time.monotonic() - killed, error

        thread = threading.Thread(target=run, name=name)
        thread.start()
        return thread

    with Client(grid.address, warn=lambda line: None) as client:
        values = client.map(doubled, iter(range(10**9)), window=200)
        assert next(values) == 0
        fast = client.with_options(tier="batch")
        futures = [fast.submit(doubled, number, 0.01) for number in range(FUTURES)]
        until("the first value", lambda: futures[0].done())
        grid.signal("worker-0", signal.SIGSTOP)  # or they would end before the broker does
        job = futures[0].job
        slow = client.map(doubled, [1])
        ids = {"map": values.job, "results": slow.job, "future": job}
        known = sum(future.done() for future in futures)
        assert known < FUTURES - 200
        killed = time.monotonic()
        grid.kill("broker")
        threads = [
            waits("map", lambda: list(values)),
            waits("results", lambda: list(slow)),
            waits("wait", lambda: client.wait(job)),
            waits("future", lambda: futures[-1].result()),
            waits("as_completed", lambda: [f.result() for f in _completed(futures)]),
            waits("status", lambda: client.status(job)),
        ]
        for thread in threads:
            thread.join(SECONDS)
        assert not [thread.name for thread in threads if thread.is_alive()]
        for name, (took_s, error) in raised.items():
            assert isinstance(error, BrokerUnavailable), (name, error)
            assert took_s < DEAD_S, (name, took_s)
        assert len(raised) == len(threads)
        for name, number in ids.items():
            error = raised[name][1]
            assert isinstance(error, BrokerUnavailable) and error.job == number
            assert f"j{number}" in error.call and f"j{number}" in error.command
        # Every one of the thousand, with its own place in the job.
        left = [future for future in futures if future.exception(0) is not None]
        for future in left:
            error = future.exception(0)
            assert isinstance(error, BrokerUnavailable)
            assert (error.job, error.index) == (job, future.index)
        assert len(left) == FUTURES - known

        # The way back, exactly as it is told.
        grid.signal("worker-0", signal.SIGCONT)
        grid.restart("broker")
        found = eval(left[0].exception(0).call, {"client": client})  # type: ignore[union-attr]
        by_index = {each.index: each.value for each in found}
        assert all(by_index[future.index] == 2 * future.index for future in left)
        figures(
            raised=len(left) + len(raised),
            slowest_s=round(max(took_s for took_s, _ in raised.values()), 1),
            read_again=len(by_index),
        )


def _completed(futures: list[Future]) -> Iterator[Any]:
    return concurrent.futures.as_completed(futures)


INTERRUPTED = """
import sys, time
from gristmill.client import Client
from chaos_client_rig import doubled

client = Client(sys.argv[1])
how = sys.argv[2]
if how == "future":
    futures = [client.submit(doubled, n, 0.2) for n in range(100)]
    futures[0].result(); print("READY", flush=True)
    [future.result() for future in futures]
elif how == "map":
    values = client.map(doubled, iter(range(10**9)), window=200)
    next(values); print("READY", flush=True)
    list(values)
elif how == "wait":
    job = client.post(*client.make_spec(doubled), range(10**4))
    print("READY", flush=True)
    job.wait()
"""


def test_ctrl_c_ends_a_client_whose_broker_is_dead(grid: Grid) -> None:
    for how in ("future", "map", "wait"):
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", INTERRUPTED, grid.address, how],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.abspath(__file__))},
        )
        try:
            assert child.stdout is not None and child.stdout.readline() == "READY\n", how
            grid.kill("broker")
            child.send_signal(signal.SIGINT)
            _, told = child.communicate(timeout=SECONDS)
        finally:
            child.kill()
            child.wait()
        assert "KeyboardInterrupt" in told, how
        assert how == "future" or "come back with" in told, told
        grid.restart("broker")
