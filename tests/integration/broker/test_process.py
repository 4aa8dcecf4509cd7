"""The process: its end, its disk, its sessions."""

import contextlib
import os
import pathlib
import resource
import subprocess

import pytest
import zmq

import gristmill.wire.client as wc
import gristmill.wire.worker as ww


def test_sigterm_commits_and_exits_zero(grid):
    client = grid.client()
    job = client.submit().job
    for first in range(0, 3_000, 100):
        client.parcel(job, first, list(range(100)))
    grid.until(lambda: client.ask("grid")["parcels_kept"] == 30, "the parcels arrived")
    assert grid.terminate() == 0
    assert "ready broker" in grid.text() and "Traceback" not in grid.text()
    grid.start()
    assert grid.client().ask("job", wc.JobStatus, job=job).uploaded == 3_000


def test_a_full_disk_refuses_new_work_and_loses_nothing(broker):
    broker.ledger().start()
    broker.start()
    job = broker.client().submit().job
    assert broker.terminate() == 0
    broker.start(disk_reserve_bytes=1 << 60)
    client = broker.client()
    refused = client.submit()
    assert refused.code == "QUOTA" and "free" in refused.message and "TiB" in refused.message
    client.parcel(job, 0, [1])
    assert client.wait_for(lambda m: isinstance(m, wc.Refused)).code == "QUOTA"
    assert client.ask("job", wc.JobStatus, job=job).uploaded == 0


def test_a_silent_client_is_told_to_join_again_and_keeps_its_jobs(broker):
    broker.ledger().start()
    broker.start(client_ttl_ms=200, client_ping_ms=50)
    client, other = broker.client(), broker.client()
    job = client.submit().job
    client.upload(job, 5)

    def gone():
        other.send(wc.Ping(other.session))
        other.drain()
        return client.receive(0.01) is None and len(expired()) == 1

    def expired():
        return [line for line in broker.text().splitlines() if "left: silent" in line]

    broker.until(gone, "the session expires")
    client.send(wc.Ping(client.session))
    assert client.wait_for(lambda m: isinstance(m, wc.Refused)).code == "REJOIN"
    client.hello()
    # Its open-ended job was closed where it was, and goes on.
    card = client.ask("job", wc.JobStatus, job=job)
    assert (card.count, card.uploaded, card.state) == (5, 5, "accepted")


def test_goodbye_ends_a_session_and_closes_its_open_jobs(grid):
    client = grid.client()
    job = client.submit().job
    client.upload(job, 7)
    client.watch(lambda: client.committed.get(job) == 7)
    client.send(wc.Goodbye(client.session))
    client.send(wc.Ping(client.session))
    assert client.wait_for(lambda m: isinstance(m, wc.Refused)).code == "REJOIN"
    assert grid.client().ask("job", wc.JobStatus, job=job).count == 7


def test_ping_is_answered(grid):
    client = grid.client()
    client.send(wc.Ping(client.session))
    assert isinstance(client.receive()[0], wc.Pong)


def test_a_dry_run_creates_nothing(grid):
    client = grid.client()
    grid.worker().hello()
    answer = client.call(
        wc.Submit, b"d" * 16, grid.function_spec(), True, bodies=(b"def f(x): return x",)
    )
    dry = wc.msgspec.msgpack.decode(answer.body, type=wc.DryRun)
    assert (dry.workers_matching, dry.workers_of) == (1, 1)
    assert client.ask("jobs") == []


def test_pause_and_resume(grid):
    client, worker = grid.client(), grid.worker()
    job = client.submit().job
    client.subscribe(job)
    assert isinstance(client.call(wc.Steer, job, "pause"), wc.Answer)
    client.upload(job, 20)
    client.close_upload(job, 20)
    worker.hello()
    worker.start()
    assert client.ask("job", wc.JobStatus, job=job).state == "paused"
    grid.until(lambda: worker.answers >= 2, "the worker reported twice")
    assert client.ask("job", wc.JobStatus, job=job).leased == 0
    assert isinstance(client.call(wc.Steer, job, "resume"), wc.Answer)
    assert client.finish(job).done == 20


def test_a_worker_that_never_reads_is_dropped_and_others_go_on(broker):
    broker.ledger().start()
    broker.start(peer_queue_messages=16, worker_ttl_ms=600, worker_report_ms=200)
    deaf = broker.worker("deaf")
    deaf.socket.setsockopt(zmq.RCVHWM, 1)
    deaf.hello()
    for _ in range(5_000):
        deaf.report(is_full=True)
    client = broker.client()
    busy = broker.worker("busy")
    assert isinstance(busy.hello(), ww.Welcome)
    busy.start()
    job = client.submit().job
    client.subscribe(job)
    client.upload(job, 100)
    client.close_upload(job, 100)
    assert client.finish(job).done == 100


def test_a_disk_that_fails_ends_the_process_and_loses_nothing(broker):
    broker.ledger().start()
    broker.start()
    client = broker.client()
    job = client.submit().job
    size = (broker.state / "journal.db-wal").stat().st_size
    limit = max(size, 1 << 20)
    resource.prlimit(broker.process.pid, resource.RLIMIT_FSIZE, (limit, limit))  # EFBIG, like EIO
    for first in range(0, 400_000, 4_000):
        client.parcel(job, first, list(range(4_000)))
    assert broker.process.wait(20) == 1
    assert "cannot be written" in broker.text() and "id=" in broker.text()
    client.drain()
    committed = client.committed.get(job, 0)
    broker.start()
    card = broker.client().ask("job", wc.JobStatus, job=job)
    assert card.uploaded >= committed


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.root
def test_a_full_disk_waits_for_room_and_loses_nothing(broker, small_disk):
    broker.state = small_disk / "state"
    broker.state.mkdir(mode=0o700)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (5 << 20))
    broker.ledger().start()
    broker.start(disk_reserve_bytes=0)
    client = broker.client()
    job = client.submit().job
    client.subscribe(job)
    for first in range(0, 400_000, 4_000):
        client.parcel(job, first, list(range(4_000)))
    client.watch(lambda: "journal full" in broker.text(), "the disk is full")
    assert client.submit().code == "QUOTA"
    assert client.committed.get(job, 0) < 400_000
    with contextlib.suppress(FileNotFoundError):
        os.unlink(filler)
    upto = client.watch(lambda: client.committed.get(job, 0) > 200_000 and client.committed[job])
    broker.kill()
    assert pathlib.Path(broker.state / "journal.db").exists()
    broker.start()
    assert broker.client().ask("job", wc.JobStatus, job=job).uploaded >= upto
