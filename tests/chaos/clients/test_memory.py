"""Pains 10, 11 and 12: memory stays flat, whatever is sent and however slowly it is read."""

import contextlib
import itertools
import pathlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from grid_rig import SECONDS, until

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.jobs import Job

MIB = 1 << 20
WINDOW = 2_000


@pytest.fixture
def grid() -> Iterator[Grid]:
    with Grid.temporary(workers=1, slots=2) as grid:
        yield grid


def echo(value: int) -> int:
    return value


def length(value: bytes) -> int:
    return len(value)


def heavy(value: bytes) -> bytes:
    return value


def rss_bytes(pid: int | str) -> int:
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) << 10


def third(samples: list[int], which: int) -> int:
    """The largest of the middle or the last third: the first one is warm-up."""
    length = len(samples) // 3
    return max(samples[which * length : (which + 1) * length])


def test_an_endless_map_with_a_slow_reader_keeps_client_and_broker_flat(
    grid: Grid, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    """Pain 12: 4 KiB in, 4 KiB out; what is ahead of the reader is bounded by the window."""
    seconds, made = sized(15, 300), 0

    def inputs() -> Iterator[bytes]:
        nonlocal made
        for made in itertools.count(1):
            yield made.to_bytes(8, "little") * 512

    client_rss, broker_rss, ahead, read = list[int](), list[int](), 0, 0
    with Client(grid.address) as client:
        stream = client.map(heavy, inputs(), window=WINDOW, tier="batch")
        end = time.monotonic() + seconds
        for read, value in enumerate(stream, 1):
            assert value[:8] == read.to_bytes(8, "little")
            ahead = max(ahead, made - read)
            if not read % 100:
                time.sleep(0.05)  # the slow reader itself
                client_rss.append(rss_bytes("self"))
                broker_rss.append(rss_bytes(grid.pid("broker")))
                if time.monotonic() > end:
                    break
        stream.close()
    growth = {
        "client": third(client_rss, 2) - third(client_rss, 1),
        "broker": third(broker_rss, 2) - third(broker_rss, 1),
    }
    figures(
        seconds=seconds, read=read, ahead_max=ahead, window=WINDOW,
        client_mib=client_rss[-1] // MIB, broker_mib=broker_rss[-1] // MIB,
        client_growth_kib=growth["client"] >> 10, broker_growth_kib=growth["broker"] >> 10,
    )  # fmt: skip
    assert ahead <= 2 * WINDOW, ahead
    # Unbounded, the pump would be ahead by what it makes in all this time: hundreds of MiB.
    assert all(grown < 48 * MIB for grown in growth.values()), growth


def test_the_first_of_a_large_job_runs_before_the_last_was_sent(
    grid: Grid, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    """Pain 11: one job of 100,000 subtasks (a million in a release check)."""
    size = sized(100_000, 1_000_000)
    pid = grid.pid("broker")
    before = peak = rss_bytes(pid)
    jobs = list[Job]()

    def upload(client: Client) -> None:
        jobs.append(client.post(*client.make_spec(length, tier="batch"), inputs()))

    def inputs() -> Iterator[bytes]:
        for number in range(size):
            if number == size // 2:  # a busy host may be slow to start a jail: half is enough
                until("the first runs", lambda: other.jobs(1)[0].started_ms)
            yield number.to_bytes(8, "little") * 32

    with Client(grid.address) as client, Client(grid.address) as other:
        began = time.monotonic()
        uploading = threading.Thread(target=upload, args=[client])
        uploading.start()
        while uploading.is_alive():
            peak = max(peak, rss_bytes(pid))
            uploading.join(0.02)
        submit_s = time.monotonic() - began
        (job,) = jobs
        until("it ends", lambda: job.status().finished_ms, SECONDS + size / 1_000)
        card = job.status()
        peak = max(peak, rss_bytes(pid))
    assert (card.state, card.done) == ("done", size)
    with contextlib.closing(sqlite3.connect(grid.state / "broker" / "journal.db")) as journal:
        ((closed_ms,),) = journal.execute(
            "SELECT ms FROM events WHERE job = ? AND name = 'upload.closed'", (job.job,)
        )
    figures(
        subtasks=size, submit_s=round(submit_s, 2),
        done_s=(card.finished_ms - card.submitted_ms) / 1_000,
        first_started_s=(card.started_ms - card.submitted_ms) / 1_000,
        upload_closed_s=(closed_ms - card.submitted_ms) / 1_000,
        broker_growth_mib=(peak - before) // MIB,
    )  # fmt: skip
    assert 0 < card.started_ms < closed_ms, "the first waited for the last"
    assert peak - before < 400 * MIB, (peak - before) // MIB


def test_a_soak_of_many_small_jobs_leaves_broker_and_ledger_as_they_were(
    grid: Grid, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    """Pain 10: the slope after warm-up, from the middle third to the last."""
    seconds = sized(12, 240)
    names = ("broker", "ledger")
    samples: dict[str, list[int]] = {name: [] for name in names}
    done = list[int]()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(grid.address))
        end = time.monotonic() + seconds
        spec, function = client.make_spec(echo, tier="batch", retention=1)
        while time.monotonic() < end or len(done) < 60:
            jobs = [client.post(spec, function, range(10)) for _ in range(10)]
            assert all(job.wait(SECONDS).done == 10 for job in jobs)
            done += [job.job for job in jobs]
            for name in names:
                samples[name].append(rss_bytes(grid.pid(name)))
        until("the ledger has the last", lambda: client.job(done[-1]).bill(SECONDS).subtasks == 10)
    growth = {name: third(samples[name], 2) - third(samples[name], 1) for name in names}
    per_job = {name: growth[name] * 3 // len(done) for name in names}
    figures(
        seconds=seconds, jobs=len(done), broker_mib=samples["broker"][-1] // MIB,
        ledger_mib=samples["ledger"][-1] // MIB, broker_bytes_per_job=per_job["broker"],
        ledger_bytes_per_job=per_job["ledger"],
    )  # fmt: skip
    # Cards of 10,000 ended jobs stay in memory by design; the rest is the caches of SQLite.
    for name in names:
        assert growth[name] < 16 * MIB + len(done) * 4_096, (name, growth)
