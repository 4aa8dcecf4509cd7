"""How long a restarted broker needs: process start to first dispatch, and ``recover`` alone.

A million unfinished subtasks lie on disk in five shapes; each shape is written once, as the broker
itself writes it, and started from ``--rounds`` times. Starts are real processes that end by
``kill -9``; the first dispatch goes to a worker that waits at the socket. Wall time depends on
whoever else uses the machine: read the CPU seconds beside it. Peak memory is the process's own.
"""

import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import apsw
import zmq
from harness.measure import Runs, arguments

from gristmill.broker import records, schema
from gristmill.broker.core import journal_names as names
from gristmill.broker.core.state import Config
from gristmill.broker.journal import JOURNAL_NAME, Journal
from gristmill.broker.metrics import Metrics
from gristmill.broker.replay import recover
from gristmill.wire import limits
from gristmill.wire.client import JobStatus, Results
from gristmill.wire.frames import encode
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec, Tariff
from gristmill.wire.values import pack_plain
from gristmill.wire.worker import Hello, Orders, ResultHead, decode_orders

FUNCTION = b"f" * 400
PARCEL_ITEMS = 1_000
RESULT_ITEMS = 100  #: a slot flushes 20 ms of work: subtasks of 0.2 ms
FINISHED_RESULTS = 4
START_S = 120.0
UTC_MS = 1_790_000_000_000


# ---------------------------------------------------------------- what lies on disk


def write_job(
    db: apsw.Connection, job: int, count: int, done: int = 0, is_final: bool = False
) -> None:
    """One job as the broker writes it: its row, card, inputs, ``done`` results, events."""
    spec = JobSpec("function", function="0" * 64, count=count, tier="batch", retries=2)
    record = records.JobRecord(
        job, "local", b"%016d" % job, UTC_MS, spec, {"standard": Tariff()}, FUNCTION
    )
    db.execute(schema.ADD_JOB, records.job_row(record))
    add_open = getattr(schema, "ADD_OPEN", "")
    if add_open and not is_final:
        db.execute(add_open, (job,))
    db.execute(schema.ADD_EVENT, records.event_row(job, UTC_MS, names.HOLD_GRANTED, {}))
    db.executemany(schema.ADD_RESULT, results(job, done))
    if is_final or done:
        state = "done" if is_final else "running"
        status = JobStatus(
            job, "", "function", "local", state, "batch", 0, count, count, 0, count - done, 0, done,
            0, 0, 0, 0, 0, UTC_MS, UTC_MS, UTC_MS if is_final else 0, 0, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip
        db.execute(schema.SET_STATE, records.state_row("local", status, 10**9))
    if not is_final:
        db.executemany(schema.ADD_PARCEL, parcels(job, count))


def parcels(job: int, count: int) -> Iterator[records.Row]:
    """Inputs: ints in parcels of 1,000."""
    for first in range(0, count, PARCEL_ITEMS):
        size = min(PARCEL_ITEMS, count - first)
        packed = pack_plain(list(range(first, first + size)))
        assert packed
        yield records.parcel_row(job, first, size, packed[0], packed[1])


def results(job: int, done: int) -> Iterator[records.Row]:
    """Results of 100 subtasks each, with values and readings."""
    for sequence, first in enumerate(range(0, done, RESULT_ITEMS), 1):
        size = min(RESULT_ITEMS, done - first)
        packed = pack_plain(list(range(first, first + size)))
        assert packed
        head = ResultHead(
            sequence, 1, job, first, size, packed[0], 200 * size, 100 * size, 9_000, "cgroup",
            True, b"s" * 64,
        )  # fmt: skip
        message = Results(job, sequence, head, 1, "n" * 64)
        meter = pack_meter(size, Outcome.OK, [200] * size)
        readings = (200 * size, 100 * size, 11 * size)
        yield records.result_row(
            encode(message), message, [packed[1], meter, b"", b""], readings, UTC_MS
        )


def fill(folder: pathlib.Path, shape: str, subtasks: int) -> None:
    """Writes one of the shapes into a new state folder."""
    journal = Journal(folder, lambda: None, Metrics())
    journal.close()
    db = apsw.Connection(str(folder / JOURNAL_NAME))
    db.execute("PRAGMA synchronous=OFF; BEGIN")
    job = 0
    if shape == "beside_finished":
        for job in range(1, subtasks // 10 + 1):
            write_job(db, job, FINISHED_RESULTS, FINISHED_RESULTS, is_final=True)
    if shape == "many_jobs":
        for job in range(1, subtasks // 1_000 + 1):
            write_job(db, job, 1_000)
    elif shape == "single_subtasks":
        for job in range(1, subtasks // 100 + 1):
            write_job(db, job, 1)
    else:
        write_job(db, job + 1, subtasks, subtasks // 2 if shape == "half_done" else 0)
    db.execute("COMMIT")
    db.close()


# ---------------------------------------------------------------- starting from it


def recover_alone(folder: pathlib.Path) -> None:
    """``recover`` in this process; prints its figures as JSON (run as a process of its own)."""
    opened = time.perf_counter()
    journal = Journal(folder, lambda: None, Metrics())
    began, cpu = time.perf_counter(), time.process_time()
    found = recover(journal, Config(), 0, UTC_MS, Metrics())
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - began,
                "cpu_s": time.process_time() - cpu,
                "open_s": began - opened,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "subtasks": found.state.queued,
            }
        )
    )
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def first_dispatch(folder: pathlib.Path) -> dict[str, float]:
    """A broker process from its start to the first lease that a waiting worker gets."""
    front, back = f"ipc://{folder}/front", f"ipc://{folder}/back"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    worker = context.socket(zmq.DEALER)
    worker.setsockopt(zmq.LINGER, 0)
    worker.setsockopt(zmq.RECONNECT_IVL, 10)
    worker.connect(back)
    hello = Hello(
        limits.PROTOCOL, "w", "0" * 64, b"i" * 16, 2, 64_000, 1 << 40, 1 << 40, {},
        ["strict", "job", "batch"], ["3.11.7"], "cgroup", "bench",
    )  # fmt: skip
    worker.send(encode(hello))
    began = time.perf_counter()
    broker = subprocess.Popen(
        [sys.executable, "-P", "-m", "gristmill.broker", "--state", str(folder), "--front", front,
         "--back", back, "--ledger", f"ipc://{folder}/ledger"],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while True:
            assert worker.poll(int(START_S * 1_000)), "no dispatch"
            message = decode_orders.decode(worker.recv_multipart()[0])
            if isinstance(message, Orders) and message.leases:
                seconds = time.perf_counter() - began
                break
            if not isinstance(message, Orders) and message.__class__.__name__ == "Refused":
                time.sleep(0.01)
                worker.send(encode(hello))
        fields = pathlib.Path(f"/proc/{broker.pid}/stat").read_text().rpartition(")")[2].split()
        cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        status = pathlib.Path(f"/proc/{broker.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    finally:
        broker.kill()
        broker.wait()
        worker.close()
        context.term()
    return {"seconds": seconds, "cpu_s": cpu_s, "peak_mib": int(peak.split()[1]) / 1024}


SHAPES = {
    "one_job": "one job",
    "many_jobs": "jobs of 1,000",
    "half_done": "one job, half of it done",
    "single_subtasks": "jobs of one subtask",
    "beside_finished": "one job beside finished ones",
}


def main() -> None:
    """Each shape, written once and started from several times."""
    if len(sys.argv) > 2 and sys.argv[1] == "recover":
        recover_alone(pathlib.Path(sys.argv[2]))
    options = arguments(__doc__ or "", quick={"n": 1_000, "rounds": 1}, n=1_000_000, rounds=3)
    runs = Runs("recovery", vars(options))
    summary: dict[str, float] = {}
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="gristmill-recovery-"))
    try:
        for shape in SHAPES:
            folder = scratch / shape
            folder.mkdir(mode=0o700)
            fill(folder, shape, options.n)
            for _ in range(options.rounds):
                runs.add(f"{shape} start", **first_dispatch(folder))
                runs.add(f"{shape} recover", **probe(folder))
            for what in ("start", "recover"):
                for figure in ("seconds", "cpu_s", "peak_mib"):
                    value = runs.median(f"{shape} {what}", figure)
                    summary[f"{shape}_{what}_{figure}"] = round(value, 3)
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    runs.finish(**summary)


def probe(folder: pathlib.Path) -> dict[str, Any]:
    """``recover_alone`` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-P", __file__, "recover", str(folder)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent)},
    )  # fmt: skip
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    main()
