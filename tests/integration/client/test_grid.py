"""The client against a real grid: broker, ledger, store, a worker and its jails."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from grid_rig import free_port

from gristmill.cli.grid import Grid
from gristmill.client import (
    Client,
    CommandFailed,
    DecomposeError,
    EncodingFailed,
    GridError,
    OutOfMemory,
    SubtaskCancelled,
    TimeLimit,
)
from gristmill.store.client import StoreClient


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)
    return found


def test_a_map_and_its_bill(client: Client) -> None:
    values = client.map(lambda pair: (pair[0] + 1, pair[1] * 2), [(n, str(n)) for n in range(40)])
    assert list(values) == [(n + 1, str(n) * 2) for n in range(40)]
    status = client.wait(values, timeout=20)
    assert (status.state, status.done, status.count) == ("done", 40, 40)
    bill = client.job(values).bill()
    assert bill.subtasks == 40 and bill.amount_ucredits == status.spent_ucredits > 0
    assert client.balance().sum_ucredits == 0
    assert f"<gristmill job j{values.job}" in repr(client.job(values))


def test_many_in_a_batch(client: Client) -> None:
    assert sum(client.map(lambda n: n + 1, range(100_000), tier="batch")) == 5_000_050_000
    pairs = ((n, str(n)) for n in range(30_000))
    results = list(client.map(lambda n, s: (s, n), *zip(*pairs, strict=True), tier="batch"))
    assert results[29_999] == ("29999", 29_999)


def test_one_that_does_not_end_holds_back_no_result(client: Client) -> None:
    def nap(n: int) -> int:
        time.sleep(60 if n == 700 else 0.001)
        return n

    stream = client.map(nap, range(1500), tier="batch", ordered=False)
    got = set(itertools.islice(stream, 1499))
    assert got == set(range(1500)) - {700}, "some waited until it had ended"
    assert client.status(stream.job).leased == 1
    client.cancel(stream)


def test_arrays_and_objects(client: Client) -> None:
    rows = numpy.arange(12.0).reshape(4, 3)
    assert list(client.map(lambda row: float(row.sum()), rows)) == [3.0, 12.0, 21.0, 30.0]
    (back,) = client.map(lambda n: numpy.full(n, 7), [3])
    assert numpy.array_equal(back, [7, 7, 7])
    (mixed,) = client.map(lambda d: {**d, "set": {1}}, [{"a": (1, None)}])
    assert mixed == {"a": (1, None), "set": {1}}


@pytest.mark.parametrize("tier", ["job", "batch"])
def test_arrays_come_back_as_they_were(grid: Grid, tier: Any) -> None:
    def make(dtype: str) -> Any:
        return numpy.arange(6).reshape(3, 2).T.astype(dtype)

    kinds = ["f8", ">i2", "u1", "c16", "?", "U3", "M8[D]", "f4", "f4", "f4"]
    with Client(grid.address, timeout=20, trust="none") as careful:  # and nothing is unpickled
        for dtype, value in zip(kinds, careful.map(make, kinds, tier=tier), strict=True):
            assert value.dtype == numpy.dtype(dtype)
            assert value.shape == (2, 3)
            assert numpy.array_equal(value, make(dtype))
            value[0, 0] = value[1, 1]
        empty = list(careful.map(lambda *shape: numpy.empty(shape), [0, 0], [2, 0], tier=tier))
        assert [value.shape for value in empty] == [(0, 2), (0, 0)]
        (large,) = careful.map(lambda n: numpy.arange(n), [40_000], tier=tier)
        assert numpy.array_equal(large, numpy.arange(40_000))


def test_values_of_a_hundred_kib_make_no_blobs(grid: Grid, client: Client) -> None:
    with StoreClient(f"unix://{grid.run}/store") as store:
        before = store.health()["blobs"]
        inputs = [os.urandom(102_400) for _ in range(5)]
        for tier in ("batch", "job"):
            assert list(client.map(lambda body: body[::-1], inputs, tier=tier)) == [
                body[::-1] for body in inputs
            ]
        assert store.health()["blobs"] == before
        assert len(client.submit(lambda body: body + b"x", bytes(196_700)).result(30)) == 196_701
        assert store.health()["blobs"] == before + 2


def test_large_inputs_values_and_functions_go_through_the_store(client: Client) -> None:
    table = os.urandom(100_000)
    inputs = [bytes([n]) * 200_000 for n in range(3)]
    values = list(client.map(lambda body: body + table, inputs))
    assert values == [body + table for body in inputs]
    assert client.submit(len, os.urandom(250_000)).result(30) == 250_000
    assert len(client.submit(bytes, 250_000).result(30)) == 250_000


class OwnError(Exception):
    pass


def test_an_exception_comes_back_as_itself(client: Client) -> None:
    def fails(number: int) -> int:
        if number == 2:
            raise OwnError("two")
        return number

    with pytest.raises(OwnError, match="two") as caught:
        list(client.map(fails, range(4)))
    assert "in fails" in str(caught.value.__cause__)
    assert any("/2, attempt 1, node " in note for note in caught.value.__notes__)
    values = list(client.map(fails, range(4), return_exceptions=True, retries=1))
    assert isinstance(values[2], OwnError) and values[3] == 3
    assert any("attempt 2" in note for note in values[2].__notes__)


def test_limits_have_names(client: Client) -> None:
    with pytest.raises(TimeLimit, match="ran") as slow:
        list(client.map(time.sleep, [60], timeout="300ms"))
    assert slow.value.limit == 300 and any("timeout=" in n for n in slow.value.__notes__)
    with pytest.raises((OutOfMemory, MemoryError)) as large:
        list(client.map(lambda n: len(bytearray(n)), [400 << 20], memory="64M"))
    if isinstance(large.value, OutOfMemory):  # without a cgroup malloc fails instead
        assert large.value.limit == 64 << 20
        assert any('memory="' in note for note in large.value.__notes__)


def test_futures_and_their_cancel(client: Client) -> None:
    futures = [client.submit(pow, n, 2) for n in range(50)]
    assert [future.result(30) for future in futures] == [n * n for n in range(50)]
    assert client.submit(int, "ff", base=16).result(30) == 255
    sleeper = client.submit(time.sleep, 60)
    wait_until(lambda: sleeper.job and client.status(sleeper.job).leased)
    assert sleeper.cancel()
    wait_until(lambda: client.status(sleeper.job).cancelled == 1)


def test_a_cancelled_job_says_so(client: Client) -> None:
    values = client.map(time.sleep, [60, 60], return_exceptions=True)
    wait_until(lambda: client.status(values.job).leased)
    client.cancel(values)
    assert [type(value) for value in values] == [SubtaskCancelled, SubtaskCancelled]


def test_breaking_out_of_an_endless_map_ends_it(client: Client) -> None:
    for value in client.map(lambda n: n, itertools.count(), window=50):
        if value == 60:
            break
    newest = client.jobs(limit=1)[0]
    # Done, if what was on its way had ended by the time of the cancel.
    wait_until(lambda: client.status(newest.job).state in ("cancelled", "done"))
    assert 60 <= client.status(newest.job).count <= 120


def test_commands(client: Client, tmp_path: pathlib.Path) -> None:
    texts = [one.text for one in client.run(["echo", "{}-{index}"], each=["a", "b"])]
    assert texts == ["a-0", "b-1"]
    (counted,) = client.run(["wc", "-c"], stdin="12345")
    assert counted.text == "5"
    (made,) = client.run(
        ["sh", "-c", "cat in.txt > made.txt; echo $WORD >> made.txt"],
        files_in={"in.txt": b"first\n"},
        files_out=["*.txt"],
        env={"WORD": "second"},
    )
    made.save(tmp_path)
    assert (tmp_path / "made.txt").read_text() == "first\nsecond\n"
    with pytest.raises(CommandFailed) as caught:
        list(client.run(["sh", "-c", "echo why >&2; exit 3"]))
    assert (caught.value.exit_code, caught.value.stderr) == (3, b"why\n")
    (accepted,) = client.run(["sh", "-c", "exit 3"], ok_exit_codes=[0, 3])
    assert accepted.exit_code == 3


def test_output_is_kept(client: Client) -> None:
    values = client.map(lambda n: print("said", n), range(3))
    assert list(values) == [None] * 3
    rows = client.logs(values, 1)
    assert [row.stdout for row in rows if row.index == 1] == [b"said 1\n"]


def test_results_for_another_client(client: Client, grid: Grid) -> None:
    values = client.map(lambda n: n * 3, range(30))
    first = [next(values) for _ in range(3)]
    number = values.job
    with Client(grid.address) as other:
        assert list(other.results(number)) == [n * 3 for n in range(30)]
        assert list(other.results(f"j{number}", ordered=False)) != []
    assert first + list(values) == [n * 3 for n in range(30)]
    with pytest.raises(GridError) as caught:
        client.status("j999999")
    assert caught.value.code == "UNKNOWN_JOB"


def test_plain_values_only_where_the_fleet_is_not_trusted(grid: Grid) -> None:
    with Client(grid.address, trust="none", timeout=20) as client:
        assert list(client.map(lambda n: [n, {"a": None}], [1])) == [[1, {"a": None}]]
        with pytest.raises(EncodingFailed, match="set"):
            list(client.map(lambda n: {n}, [1]))
        with pytest.raises(ZeroDivisionError):
            list(client.map(lambda n: 1 / n, [0]))


def test_a_request_is_split_in_a_jail_for_nothing(client: Client) -> None:
    before = client.balance().accounts
    parts = client.decompose("sweep", a=[1, 2], b=["x", "y"])
    assert parts.ids == ["a=1,b=x", "a=1,b=y", "a=2,b=x", "a=2,b=y"] and not parts.is_reused
    again = client.decompose("sweep", a=[1, 2], b=["x", "y"])
    assert again.is_reused and list(again) == list(parts) and again.job == parts.job
    assert client.balance().accounts == before
    values = client.map(lambda part: part["b"] * part["a"], parts)
    assert list(values) == ["x", "y", "xx", "yy"]
    assert client.status(values).parent == parts.job


def test_a_decomposition_that_fails(client: Client, tmp_path: pathlib.Path) -> None:
    jobs = len(client.jobs(limit=1000))
    path = tmp_path / "latin.txt"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DecomposeError, match="UnicodeDecodeError") as caught:
        client.decompose("lines", path=path)
    assert caught.value.code == "DECOMPOSE_FAILED"
    assert len(client.jobs(limit=1000)) == jobs + 1  # its own, which costs nothing


def test_a_test_suite_has_plain_pytests_verdict(client: Client, tmp_path: pathlib.Path) -> None:
    (tmp_path / "test_good.py").write_text("def test_a(): pass\n")
    (tmp_path / "test_bad.py").write_text("def test_b(): assert 1 == 2\n")
    verdict = client.pytest(tmp_path, junit=tmp_path / "junit.xml")
    assert (verdict.exit_code, verdict.tests, verdict.failures) == (1, 2, 1)
    assert verdict.files == {"test_bad.py": 1, "test_good.py": 0}
    assert "1 == 2" in (tmp_path / "junit.xml").read_text()


IN_WITH = """
import sys, time
from gristmill.client import Client
with Client(sys.argv[1]) as client:
    values = client.map(lambda n: time.sleep(0.5) or n, range(4))
    print(values.job, flush=True)
    list(values)
"""
IN_A_BARE_LOOP = """
import sys, time
from gristmill.client import Client
client = Client(sys.argv[1])
values = client.map(lambda n: time.sleep(0.5) or n, range(4))
print(values.job, flush=True)
for value in values:
    time.sleep(60)
"""


@pytest.mark.parametrize("script", [IN_WITH, IN_A_BARE_LOOP])
def test_control_c_leaves_the_job_running(client: Client, grid: Grid, script: str) -> None:
    command = [sys.executable, "-c", script, grid.address]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        wait_until(lambda: client.status(number).done)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert f"gristmill wait j{number}" in said and "KeyboardInterrupt" in said
    assert client.wait(number, timeout=30).state == "done"
    assert list(client.results(number)) == [0, 1, 2, 3]


def test_over_tcp_nothing_is_unpickled() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with (
        Grid.temporary(workers=1, slots=1, front=address) as grid,
        Client(grid.address, token=grid.token(), timeout=20) as client,
    ):
        assert not client.is_fleet_trusted
        assert client.dry_run(abs).spec.results == "safe"
        assert list(client.map(lambda n: [n], range(3))) == [[0], [1], [2]]
        with pytest.raises(EncodingFailed):
            list(client.map(lambda n: {n}, [1]))
        with pytest.raises(KeyError):
            list(client.map(lambda n: {}[n], [1]))


def test_a_job_that_is_posted_is_read_by_somebody_else(grid: Grid) -> None:
    def root(x: int) -> float:
        print("root of", x)
        if x < 0:
            raise ValueError(x)
        return x**0.5

    with Client(grid.address, timeout=20) as client:
        spec, function = client.make_spec(root, count=3, timeout="5s", tier="batch")
        dry = client.try_out(spec, function)
        assert (dry.spec.limits.wall_ms, dry.workers_matching) == (5000, 1)
        job = client.post(spec, function, [4, -1, 9])
    with Client(grid.address, timeout=20) as client:
        ended = list(client.ended(job.id))
        assert [(each.index, each.value) for each in ended] == [(0, 2.0), (1, None), (2, 3.0)]
        assert [type(each.error) for each in ended] == [type(None), ValueError, type(None)]
        assert {each.index for each in client.ended(job.id, ordered=False)} == {0, 1, 2}
        written = b"".join(row.stdout for row in client.follow_logs(job.id))
        assert sorted(written.splitlines()) == [b"root of -1", b"root of 4", b"root of 9"]


def test_a_posted_command_and_what_it_needs_from_the_store(client: Client) -> None:
    from gristmill.wire.spec import Command, FileIn

    ref = client.store_blob(b"salt\n")
    assert client.fetch_blob(ref) == b"salt\n"
    command = Command(["cat", "in/salt"], files_in=[FileIn("in/salt", ref.digest, ref.size_bytes)])
    job = client.post(*client.make_spec(command, count=2), ["", ""])
    assert [each.value.stdout for each in client.ended(job)] == [b"salt\n"] * 2


def test_inputs_that_cannot_be_read_leave_no_job_behind(client: Client) -> None:
    def inputs() -> Any:
        yield from range(5_000)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        client.post(*client.make_spec(abs), inputs())
    assert client.wait(client.jobs(1)[0].job, 20).state == "cancelled"


def test_ranges_of_subtasks_are_cancelled(client: Client) -> None:
    from gristmill.wire.spec import Command

    spec, _ = client.make_spec(Command(["sleep", "30"]), count=1_000_000)
    job = client.post(spec, b"", range(1_000_000))
    client.cancel(job, [range(2, 1_000_000), 0, 1])
    assert client.wait(job, 20).cancelled == 1_000_000


def test_an_answer_larger_than_a_header_arrives_whole(client: Client) -> None:
    values = client.map(lambda n: print(n, "x" * 6_000), range(600), tier="batch")
    assert list(values) == [None] * 600
    job = client.jobs(limit=1)[0].job
    rows = client.subtasks(job, limit=600)  # about 110 KiB
    assert [row.index for row in rows] == list(range(600))
    logs = client.logs(job, limit=60)
    assert sum(len(row.stdout) for row in logs) > 64 << 10
