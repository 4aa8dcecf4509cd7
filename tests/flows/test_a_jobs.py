"""Rows of job lifecycle that a client sees: submit, validate, decompose, aggregate, explain."""

import contextlib
import hashlib
import json
import os
import pathlib
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
from grid_rig import free_port, gristmill, until

from gristmill.cli.grid import Grid
from gristmill.client import Client, decompose
from gristmill.client.errors import BrokerUnavailable, DecomposeError, GridError
from gristmill.client.link import Link
from gristmill.wire import client as wire
from gristmill.wire import limits
from gristmill.wire.errors import EXIT_AUTH, EXIT_FAILED, EXIT_UNREACHABLE
from gristmill.wire.spec import Command, JobSpec


def double(x: int) -> int:
    return 2 * x


def fail_on_odd(x: int) -> int:
    if x % 2:
        raise ValueError(f"odd: {x % 6}")
    return x


def test_a01_submit_watch_cancel_fetch_and_bill_by_command_line_alone(grid: Grid) -> None:
    done = gristmill(grid, "submit", "--json", "--array", "1-5", "--", "echo", "n={}")
    job = json.loads(done.stdout)["job"]
    assert done.returncode == 0, done.stderr
    waited = gristmill(grid, "wait", str(job))
    assert waited.returncode == 0, waited.stderr
    assert "n=3" in gristmill(grid, "result", str(job)).stdout
    sleeping = json.loads(gristmill(grid, "submit", "--json", "--", "sleep", "600").stdout)["job"]
    until(
        "it runs",
        lambda: '"running"' in gristmill(grid, "status", str(sleeping), "--json").stdout,
    )
    assert gristmill(grid, "cancel", str(sleeping)).returncode == 0
    assert gristmill(grid, "wait", str(sleeping)).returncode == EXIT_FAILED
    bill = json.loads(gristmill(grid, "usage", "--json").stdout)
    assert any(row["subtasks"] == 5 for row in bill["rows"]), bill


def submission(client: Client, spec: JobSpec, key: bytes) -> wire.Accepted:
    """One raw submission, as any client may send it."""
    link: Link = client._link
    return link.ask(wire.Submit(b"", 0, key, spec), [b""])  # type: ignore[no-any-return]


def test_a07_an_ack_is_on_disk_and_the_same_key_is_the_same_job(
    own_grid: Callable[..., Grid],
) -> None:
    grid = own_grid()
    spec = JobSpec("command", command=Command(["true"]), count=1, name="acked")
    key = os.urandom(16)
    with Client(grid.address) as client:
        first = submission(client, spec, key)
        grid.kill("broker")
        grid.restart("broker")
        assert client.status(first.job).name == "acked"
        again = submission(client, spec, key)
        assert (again.job, again.is_replayed, first.is_replayed) == (first.job, True, False)
        with pytest.raises(GridError) as conflict:
            submission(client, msgspec.structs.replace(spec, name="other"), key)
        assert conflict.value.code == "SUBMISSION_CONFLICT"
        bad = msgspec.structs.replace(spec, retries=-1, priority=77, count=-5)
        with pytest.raises(GridError) as invalid:
            submission(client, bad, os.urandom(16))
        assert invalid.value.code == "INVALID_SPEC"
        for field in ("retries", "priority", "count"):
            assert field in invalid.value.message


def test_a09_what_no_worker_could_run_says_what_binds_and_who_is_nearest(
    grid: Grid, client: Client
) -> None:
    has = max(worker.memory_bytes for worker in client.workers())
    answer = gristmill(grid, "submit", "--json", "--memory", str(has * 2), "--", "true")
    job = json.loads(answer.stdout)["job"]
    status = until("a reason", lambda: client.status(job).reason and client.status(job))
    assert status.state == "accepted" and status.reason.startswith("INFEASIBLE"), status
    assert "memory" in status.reason and "worker-" in status.reason
    why = client.why(job)
    assert why.reasons and why.reasons[0].constraint.startswith("memory")
    assert "INFEASIBLE" in gristmill(grid, "why", str(job)).stdout
    client.cancel(job)


class Custom:
    """A decomposer plug-in of the test: ``split`` travels to the jail by value."""

    name, version = "custom", 1

    def __init__(self, split: Callable[[Any], list[list[Any]]], value: Any) -> None:
        self.split, self.value = split, value

    def prepare(self, arguments: Mapping[str, Any]) -> tuple[Callable[[Any], Any], Any]:
        return self.split, self.value


@pytest.fixture
def split(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., decompose.Decomposition]:
    """Runs a request through a plug-in of the test."""

    def run(
        function: Callable[[Any], list[list[Any]]], value: Any, timeout_ms: int = 30_000
    ) -> decompose.Decomposition:
        monkeypatch.setattr(decompose, "find_decomposer", lambda name: Custom(function, value))
        return decompose.decompose(client, "custom", {}, timeout_ms)

    return run


def test_a04_a_decomposer_that_crashes_creates_and_charges_nothing(
    client: Client, split: Callable[..., decompose.Decomposition]
) -> None:
    def broken(value: Any) -> list[list[Any]]:
        import sys

        print("and wrote this", file=sys.stderr)
        raise RuntimeError("the decomposer said this")

    before = len(client.jobs(1000)), client.usage(by="job")
    with pytest.raises(DecomposeError) as caught:
        split(broken, "x")
    assert caught.value.code == "DECOMPOSE_FAILED"
    assert "the decomposer said this" in str(caught.value)
    assert "and wrote this" in str(caught.value)
    assert len(client.jobs(1000)) == before[0] + 1, "only the decomposition itself"
    assert paid(client) == sum(row.amount_ucredits for row in before[1]), "nothing was charged"


def paid(client: Client) -> int:
    return sum(row.amount_ucredits for row in client.usage(by="job"))


def test_a10_the_same_request_gives_the_same_list_under_a_deadline_and_a_cap(
    grid: Grid, client: Client, split: Callable[..., decompose.Decomposition]
) -> None:
    def count(n: Any) -> list[list[Any]]:
        import os

        return [[f"{i}", f"{i} {os.urandom(4).hex()}"] for i in range(n)]

    def endless(value: Any) -> list[list[Any]]:
        while True:
            pass

    first = split(count, 50)
    jobs = len(client.jobs(1000))
    second = split(count, 50)
    assert second.is_reused and not first.is_reused
    assert msgspec.json.encode(list(first)) == msgspec.json.encode(list(second))
    assert len(client.jobs(1000)) == jobs, "the second was answered from the first"
    with pytest.raises(DecomposeError) as late:
        split(endless, "never", timeout_ms=1_000)
    assert late.value.code == "DECOMPOSE_TIMEOUT"
    with pytest.raises(DecomposeError) as large:
        split(count, limits.DECOMPOSED_MAX + 1)
    assert large.value.code == "DECOMPOSE_TOO_LARGE"
    assert len(client.jobs(1000)) == jobs + 2, "no job was made of either"
    assert "ALARM" not in grid.log("ledger").read_text(), "what is free is no contribution"


def test_a11_one_bad_element_refuses_the_whole_list_and_is_named(
    client: Client, split: Callable[..., decompose.Decomposition]
) -> None:
    def twins(value: Any) -> list[list[Any]]:
        return [["a", 1], ["b", 2], ["a", 3]]

    def no_pair(value: Any) -> list[Any]:
        return [["a", 1], "b"]

    for wrong, index in ((twins, 2), (no_pair, 1)):
        before = len(client.jobs(1000))
        with pytest.raises(DecomposeError, match=f"element {index}"):
            split(wrong, wrong.__name__)
        assert len(client.jobs(1000)) == before + 1


def test_a11_a_million_subtasks_are_one_object(grid: Grid, client: Client) -> None:
    def resident() -> int:
        text = pathlib.Path(f"/proc/{grid.pid('broker')}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) * 1024

    before = resident()
    answer = gristmill(
        grid, "submit", "--json", "--array", "1-1000000", "--label", "never=there", "--", "true"
    )
    job = json.loads(answer.stdout)["job"]
    until("uploaded", lambda: client.status(job).uploaded == 1_000_000)
    assert resident() - before < 100 << 20
    client.cancel(job)
    assert client.wait(job, timeout=30).cancelled == 1_000_000


def test_a17_state_counts_cost_and_the_first_three_errors_are_shown(
    grid: Grid, client: Client
) -> None:
    stream = client.map(fail_on_odd, range(60), return_exceptions=True)
    assert sum(isinstance(value, ValueError) for value in stream) == 30
    job = client.jobs(1)[0].job
    status = client.wait(job, timeout=30)
    assert (status.state, status.done, status.failed) == ("failed", 30, 30)
    assert [(line[1], line[2]) for line in status.errors] == [
        ("ValueError: odd: 1", 10),
        ("ValueError: odd: 3", 10),
        ("ValueError: odd: 5", 10),
    ]
    assert status.spent_ucredits > 0
    waited = gristmill(grid, "wait", str(job))
    assert waited.returncode == EXIT_FAILED
    for error in ("odd: 1", "odd: 3", "odd: 5"):
        assert error in waited.stdout + waited.stderr
    document = json.loads(gristmill(grid, "status", str(job), "--json").stdout)
    assert document["schema"].startswith("gristmill/")


def test_a21_python_and_command_line_see_the_same_job_and_the_same_errors(
    grid: Grid, client: Client
) -> None:
    assert list(client.map(double, range(10))) == [2 * x for x in range(10)]
    job = client.jobs(1)[0].job
    assert f"j{job}" in gristmill(grid, "status").stdout
    with pytest.raises(GridError) as from_python:
        client.status(999_999)
    from_cli = gristmill(grid, "status", "j999999")
    assert from_python.value.code == "UNKNOWN_JOB" and "UNKNOWN_JOB" in from_cli.stderr
    assert "Traceback" not in from_cli.stderr
    with Client("ipc:///nowhere/at/all", timeout=0.5) as offline:
        with pytest.raises(BrokerUnavailable):
            list(offline.map(double, [1]))
    nobody = gristmill(grid, "status", "--address", "ipc:///nowhere/at/all")
    assert nobody.returncode == EXIT_UNREACHABLE and "Traceback" not in nobody.stderr


def test_a22_a_dry_run_gives_the_whole_spec_and_who_matches_and_creates_nothing(
    client: Client,
) -> None:
    before = len(client.jobs(1000))
    plan = client.dry_run(double, memory="64M", retries=2)
    assert plan.spec.limits.memory_bytes == 64 << 20 and plan.spec.retries == 2
    assert plan.workers_matching == plan.workers_of == 3
    assert client.dry_run(argv=["true"], memory="900T").workers_matching == 0
    assert len(client.jobs(1000)) == before
    with pytest.raises(TypeError, match="colour"):
        client.dry_run(double, colour="red")  # type: ignore[call-arg]
    schema = msgspec.json.schema(JobSpec)
    assert schema["$defs"]["JobSpec"]["additionalProperties"] is False


def test_a23_the_queue_is_explainable_and_refuses_beyond_its_cap(
    own_grid: Callable[..., Grid],
) -> None:
    grid = own_grid(environment={"GRISTMILL_BROKER_QUEUED_SUBTASKS_MAX": "1000"})
    with Client(grid.address) as client:
        answer = gristmill(grid, "submit", "--json", "--array", "1-900", "--", "sleep", "60")
        first = json.loads(answer.stdout)["job"]
        with pytest.raises(GridError) as full:
            list(client.map(double, range(200)))
        assert full.value.code == "QUEUE_FULL"
        assert "900 subtasks are queued" in full.value.message
        assert "of at most 1000; the queue drains at 0 a second" in full.value.message
        client.cancel(first)
        client.wait(first, timeout=30)
        assert list(client.map(double, range(200))) == [2 * x for x in range(200)]


def test_a01_a_bad_token_is_one_line_that_names_it(own_grid: Callable[..., Grid]) -> None:
    port = free_port()
    grid = own_grid(front=f"tcp://127.0.0.1:{port}")
    command = [
        sys.executable,
        "-P",
        "-m",
        "gristmill.broker",
        "--state",
        str(grid.state / "broker"),
    ]
    token = subprocess.run(
        [*command, "--new-token", "ann"], capture_output=True, text=True, check=True
    ).stdout.strip()
    with Client(grid.address, token=token) as ann:
        assert ann.jobs() == []
        with pytest.raises(GridError) as forbidden:
            ann.drain("worker-0")
        assert forbidden.value.code == "FORBIDDEN"
    name = token.split("_")[1]
    secret = token.split("_")[2]
    another = token.replace(secret, "5" * 64)
    for wrong in (another, token[:-1], f"gm_{name}_{secret[:32]}", ""):
        answer = gristmill(grid, "status", token=wrong)
        assert answer.returncode == EXIT_AUTH, answer.stderr
        assert "UNAUTHORISED" in answer.stderr and "Traceback" not in answer.stderr
        assert name in answer.stderr or wrong != another
        assert secret not in answer.stderr and "5" * 64 not in answer.stderr, "it is never shown"


def test_a03_a_killed_broker_comes_back_and_each_subtask_ends_once(
    own_grid: Callable[..., Grid],
) -> None:
    grid = own_grid(workers=2)
    with Client(grid.address) as client:
        stream = client.map(slowly, range(10_000), tier="batch")
        got = [next(stream) for _ in range(500)]
        grid.kill("broker")
        grid.restart("broker")
        got += stream
        assert got == list(range(10_000)), "the client resumed by itself"
        job = client.jobs(1)[0]
        status = client.wait(job.job, timeout=30)
        assert (status.state, status.done, status.failed) == ("done", 10_000, 0)

        def billed() -> int:
            try:
                return sum(row.subtasks for row in client.usage(job=job.job))
            except GridError as error:
                assert error.code == "LEDGER_DOWN"
                return -1

        until("the ledger has it all", lambda: billed() == 10_000)
        assert client.balance().sum_ucredits == 0


def slowly(x: int) -> int:

    time.sleep(0.0002)
    return x


def test_a16_what_failed_is_listed_and_the_rest_stays_downloadable(client: Client) -> None:
    values = list(client.map(fail_on_odd, range(20), return_exceptions=True))
    job = client.jobs(1)[0].job
    assert client.wait(job, timeout=30).state == "failed", "the policy is: all"
    failed = client.subtasks(job, state="failed", limit=100)
    assert [row.index for row in failed] == list(range(1, 20, 2))
    assert all(row.outcome == "error" and "odd" in row.message for row in failed)
    with Client(client.address) as other:
        again = list(other.results(job, return_exceptions=True))
    assert [value for value in again if isinstance(value, int)] == list(range(0, 20, 2))
    assert len(values) == len(again) == 20, "each is published once"


def test_a16_completion_is_an_explicit_rule_and_the_manifest_names_every_byte(
    client: Client,
) -> None:
    def state_of(completion: str, inputs: int) -> wire.JobStatus:
        stream = client.map(
            fail_on_odd, range(inputs), return_exceptions=True, completion=completion
        )
        assert len(list(stream)) == inputs
        return client.wait(client.jobs(1)[0].job, timeout=30)

    assert state_of("50%", 20).state == "done" and state_of("51%", 20).state == "failed"
    first = state_of("any", 200)
    assert first.state == "done" and first.cancelled > 0 and first.done >= 1
    with pytest.raises(GridError, match="completion is 'most'"):
        client.map(fail_on_odd, range(3), completion="most")
    assert list(client.map(double, range(3_000), tier="batch")) == [2 * x for x in range(3_000)]
    job = client.jobs(1)[0].job
    rows = client.manifest(job)
    assert sum(row.count for row in rows) == 3_000 and not any(row.failed for row in rows)
    assert [row.sequence for row in rows] == list(range(1, len(rows) + 1))
    again = client.manifest(job)
    assert [row.values for row in again] == [row.values for row in rows]
    assert all(len(row.values) == 64 for row in rows)
    frame = struct.pack(
        f"<{rows[0].count}q", *range(2 * rows[0].first, 2 * (rows[0].first + rows[0].count), 2)
    )
    assert rows[0].codec == "q" and hashlib.sha256(frame).hexdigest() == rows[0].values


LEAVING = """
import itertools, sys, time
from gristmill.client import Client

def slow(x):
    import time
    time.sleep(0.002)
    return 2 * x

with Client(sys.argv[1]) as client:
    job = client.post(*client.make_spec(slow, tier="batch"), range(1000))
    read = list(itertools.islice(client.results(job.id), 10))
    print(job.id, *read, flush=True)
    time.sleep(600)
"""


def test_a27_who_was_away_gets_the_same_result_and_bill_until_an_expiry_that_is_shown(
    own_grid: Callable[..., Grid],
) -> None:
    """A session of 1 s stands for an hour; the process that submitted is killed, not closed."""
    grid = own_grid(environment={"GRISTMILL_BROKER_CLIENT_TTL_MS": "1000"})
    with subprocess.Popen(
        [sys.executable, "-P", "-c", LEAVING, grid.address], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        name, *read = child.stdout.readline().split()
        child.kill()
    assert [int(value) for value in read] == list(range(0, 20, 2))
    number = int(name[1:])
    with Client(grid.address) as other:
        until("its session is over", lambda: other.grid()["clients_expired"] >= 1)
        card = other.wait(number, timeout=60)
        assert (card.state, card.done) == ("done", 1_000), "the job went on without it"
        bill = other.job(number).bill(60)
        assert (bill.subtasks, bill.amount_ucredits) == (1_000, card.spent_ucredits)
        assert bill.amount_ucredits > 0
    with Client(grid.address) as back:
        assert list(back.results(number)) == list(range(0, 2_000, 2))
        assert back.job(number).bill(60) == bill
        spec, function = back.make_spec(double, tier="batch", retention=1)
        brief = back.post(spec, function, range(10))
        over_ms = brief.wait(60).expires_ms
        assert list(back.results(name)) == list(range(0, 2_000, 2)), "read twice, the same twice"
        until("the expiry is over", lambda: time.time() * 1_000 > over_ms)
        with pytest.raises(GridError) as expired:
            list(back.results(brief.id))
        assert back.status(brief.job).state == "done", "never waiting"
    date = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(over_ms // 1_000))
    with contextlib.closing(sqlite3.connect(grid.state / "broker" / "journal.db")) as journal:
        ((content,),) = journal.execute("SELECT spec FROM jobs WHERE job = ?", (brief.job,))
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    assert expired.value.code == "EXPIRED"
    assert date in expired.value.message and digest in expired.value.message
    assert "results kept until" in gristmill(grid, "status", name).stdout
    told = gristmill(grid, "result", brief.id)
    assert told.returncode == EXIT_FAILED and "EXPIRED" in told.stderr and digest in told.stderr
