"""A27: a client that is away, stopped or dead, comes back to what it left."""

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from chaos_client_rig import doubled
from grid_rig import SECONDS, gristmill, until

from gristmill.cli.grid import Grid
from gristmill.client import Client, GridError

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


def test_results_wait_for_their_client_until_an_expiry_that_is_shown(grid: Grid) -> None:
    """Pain 16 too: live, expired, unknown and another tenant's jobs have four different answers."""
    with Client(grid.address) as client:
        kept = client.post(*client.make_spec(doubled, tier="batch"), range(50))
        brief = client.post(*client.make_spec(doubled, tier="batch", retention=1), range(50))
        card = brief.wait(SECONDS)
        assert card.expires_ms == card.finished_ms + 1_000
        assert kept.wait(SECONDS).expires_ms == kept.status().finished_ms + 7 * 86_400_000
        bill = kept.bill(SECONDS)
    until("the expiry is over", lambda: time.time() * 1_000 > card.expires_ms)
    grid.kill("broker")  # the time away, made as bad as can be
    grid.restart("broker")
    with Client(grid.address) as back, Client(grid.address, tenant="another") as stranger:
        assert list(back.results(kept.id)) == list(range(0, 100, 2))
        assert back.job(kept.id).bill(SECONDS) == bill
        told = {}
        for name, client, job in (
            ("expired", back, brief.job),
            ("unknown", back, 123_456),
            ("another's", stranger, kept.job),
        ):
            with pytest.raises(GridError) as caught:
                list(client.results(job))
            told[name] = caught.value
        assert told["expired"].code == "EXPIRED"
        date = datetime.datetime.fromtimestamp(card.expires_ms // 1_000, datetime.UTC)
        assert f"kept until {date:%Y-%m-%d %H:%M:%S} UTC" in told["expired"].message
        assert back.status(brief.job).state == "done"  # known for ever, never waiting
        for name in ("unknown", "another's"):
            assert told[name].code == "UNKNOWN_JOB", name
    for job, code, words in (
        (brief.id, 1, "EXPIRED the results of"),
        ("j123456", 2, "UNKNOWN_JOB"),
        (kept.id, 0, ""),
    ):
        done = gristmill(grid, "result", job)
        assert (done.returncode, words in done.stderr) == (code, True), done
    assert "results kept until" in gristmill(grid, "status", kept.id).stdout
