"""A27: a client that is away, stopped or dead, comes back to what it left."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from chaos_client_rig import SECONDS, until

from gristmill.cli.grid import Grid
from gristmill.client import Client

TTL_MS = 1_500  #: of a client's session, instead of 15 s

STOPPED = """
import itertools, sys, time
from gristmill.client import Client
from chaos_client_rig import doubled

with Client(sys.argv[1], warn=lambda line: print("told:", line, flush=True)) as client:
    fast = client.with_options(tier="batch")
    futures = [fast.submit(doubled, n, 0.001) for n in range(300)]
    values = client.map(doubled, iter(range(3000)), window=500, tier="batch")
    read = list(itertools.islice(values, 700))
    futures[0].result()
    print("READY", flush=True)
    sys.stdin.readline()
    futures += [fast.submit(doubled, n, 0.001) for n in range(300, 600)]
    read += values
    assert read == [2 * n for n in range(3000)], len(read)
    assert [f.result(50) for f in futures] == [2 * n for n in range(600)]
    print("jobs:", len({f.job for f in futures}), flush=True)
    for future in futures:  # the place of each call is where its value is
        assert future.job and future.index >= 0
    for job in {f.job for f in futures}:
        assert len({f.index for f in futures if f.job == job}) == sum(f.job == job for f in futures)
"""


@pytest.fixture
def grid() -> Iterator[Grid]:
    settings = {"GRISTMILL_BROKER_CLIENT_TTL_MS": f"{TTL_MS}"}
    with Grid.temporary(workers=1, slots=2, environment=settings) as grid:
        yield grid


@contextlib.contextmanager
def program(text: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", text, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.abspath(__file__))},
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            pipe.close()


def test_a_client_that_was_stopped_for_too_long_goes_on(
    grid: Grid, figures: Callable[..., None]
) -> None:
    """Its session ends, its open-ended jobs close; what it has not sent goes on in new jobs."""
    with program(STOPPED, grid.address) as child, Client(grid.address) as other:
        assert child.stdout is not None and child.stdin is not None
        assert "READY\n" in iter(child.stdout.readline, "")
        child.send_signal(signal.SIGSTOP)
        until("its session is over", lambda: other.grid()["clients_expired"] >= 1)
        until("its jobs are closed", lambda: all(job.count >= 0 for job in other.jobs()))
        child.send_signal(signal.SIGCONT)
        child.stdin.write("\n")
        child.stdin.flush()
        told = child.stdout.read()
        assert child.wait(SECONDS) == 0, told
        assert "jobs: 2" in told and told.count("a new job takes the rest") == 2, told
        jobs = other.jobs()
        assert sum(job.done for job in jobs) == 3_600
        assert all(job.state == "done" for job in jobs), jobs
        figures(jobs=len(jobs), inputs=3_600, lost=0)
