"""Jobs, subtasks, workers, reasons and bills as people see them."""

import io
import json
import time
from typing import Any

import msgspec
import pytest

from gristmill.cli import documents, money, show, why
from gristmill.cli.output import Terminal
from gristmill.wire.client import JobStatus, Reason, SubtaskRow, UsageRow, WorkerRow
from gristmill.wire.worker import HostReading

NOW_MS = int(time.time() * 1000)
JOB = JobStatus(
    job=17,
    name="audit",
    kind="function",
    tenant="local",
    state="running",
    tier="job",
    priority=4,
    count=5_000,
    uploaded=5_000,
    waiting=0,
    ready=3_000,
    leased=24,
    done=1_976,
    failed=0,
    cancelled=0,
    retried=3,
    lost=1,
    superseded=0,
    submitted_ms=NOW_MS - 100_000,
    started_ms=NOW_MS - 90_000,
    finished_ms=0,
    wall_us=20_000_000,
    cpu_us=10_000_000,
    peak_kib=2_048,
    spent_ucredits=2_500_000,
    cap_ucredits=10_000_000_000,
    eta_ms=95_000,
    results=10,
)
WORKER = WorkerRow(
    name="worker-0",
    node="ab" * 32,
    state="active",
    slots=4,
    busy=3,
    cpus_milli=4_000,
    memory_bytes=8 << 30,
    labels={"zone": "a"},
    tiers=["job", "batch"],
    pythons=["3.11"],
    metering="cgroup",
    version="0.1.0",
    seen_ms=NOW_MS,
    done=12_345,
)


def change(status: JobStatus, /, **fields: Any) -> JobStatus:
    return msgspec.structs.replace(status, **fields)


@pytest.fixture
def terminal() -> Terminal:
    return Terminal(io.StringIO(), io.StringIO(), {})


def out(terminal: Terminal) -> str:
    assert isinstance(terminal.out, io.StringIO)
    return terminal.out.getvalue()


def err(terminal: Terminal) -> str:
    assert isinstance(terminal.err, io.StringIO)
    return terminal.err.getvalue()


def test_a_list_of_jobs(terminal: Terminal) -> None:
    waiting = change(
        JOB, job=18, name="", state="accepted", started_ms=0, reason="LEDGER_DOWN", done=0, count=-1
    )
    show.show_jobs([JOB, waiting], terminal)
    head, first, second = out(terminal).splitlines()
    assert head.split() == ["JOB", "NAME", "STATE", "DONE", "TIME", "CREDITS"]
    assert (
        first.split("  ")[0] == "j17" and "1,976 of 5,000" in first and "1 min 35 s left" in first
    )
    assert "function" in second and "0 of 5,000+" in second and second.endswith("LEDGER_DOWN")


def test_no_jobs_says_what_to_type(terminal: Terminal) -> None:
    show.show_jobs([], terminal)
    assert out(terminal) == ""
    assert "gristmill submit" in err(terminal)


def test_the_card_of_a_failed_job_has_three_errors_and_the_next_command(terminal: Terminal) -> None:
    errors = [("exit", f"exit code {n}", 10 - n, n) for n in range(5)]
    failed = change(JOB, state="failed", finished_ms=NOW_MS, failed=3, leased=0, errors=errors)
    show.show_job(failed, terminal)
    text = out(terminal)
    assert "j17  audit" in text
    assert "5,000: 1,976 done · 3,000 ready · 3 failed" in text
    assert "10 × exit: exit code 0 (first: j17/0)" in text
    assert "exit code 2" in text and "exit code 3" not in text
    assert "2.5 of at most 10,000" in text
    assert "10 s cpu · 20 s wall · peak memory 2 MiB" in text
    assert "ran 1 min 30 s" in text
    assert "gristmill logs j17/0" in text


@pytest.mark.parametrize(
    ("fields", "command"),
    [
        ({}, "gristmill wait j17"),
        ({"state": "accepted"}, "gristmill why j17"),
        ({"state": "paused"}, "gristmill resume j17, gristmill cancel j17"),
        ({"state": "done"}, "gristmill result j17"),
        ({"state": "cancelled", "done": 0}, "gristmill usage j17"),
        ({"state": "failed", "failed": 1}, "gristmill logs j17, "),
    ],
)
def test_the_next_command(fields: dict[str, Any], command: str) -> None:
    assert show.next_command(change(JOB, **fields)).startswith(command)


def test_subtasks_with_estimates_and_a_message_of_two_lines(terminal: Terminal) -> None:
    rows = [
        SubtaskRow(0, "done", "ok", 1, "ab" * 32, 1_500_000, 1_000, 2_048, True, "cgroup"),
        SubtaskRow(1, "failed", "exit", 2, "", 0, 0, 0, False, "", "exit 2\nno such file"),
    ]
    show.show_subtasks(JOB, rows, True, terminal)
    lines = out(terminal).splitlines()
    assert lines[1].split() == [
        *("j17/0", "done", "ok", "1", "abababab", "1.5", "s", "1", "ms~", "2", "MiB", "cgroup")
    ]
    assert lines[2].endswith(r"exit 2\nno such file")
    assert "estimated" in err(terminal) and "--limit" in err(terminal)


def test_workers_and_the_ones_without_a_jail(terminal: Terminal) -> None:
    reading = HostReading(100, 45, 1 << 30, 8 << 30, 0)
    bare = msgspec.structs.replace(
        WORKER, name="bare", tiers=["job", "trusted"], metering="wait4", reading=reading
    )
    show.show_workers([WORKER, bare], terminal)
    _, first, second = out(terminal).splitlines()
    assert first.startswith("bare") and "45% cpu" in first and "1 GiB of 8 GiB" in first
    assert second.startswith("worker-0") and "3 of 4" in second and "zone=a" in second
    assert "1 worker admits jobs without a jail" in err(terminal)


def test_reasons_name_the_change(terminal: Terminal) -> None:
    why.show_reasons([Reason("memory", "64 GiB", "8 GiB", 3, 3, "--memory 8G")], terminal)
    assert "memory" in out(terminal) and "3 of 3" in out(terminal)
    assert out(terminal).splitlines()[1].endswith("--memory 8G")


def test_bills_add_up() -> None:
    rows = [
        UsageRow("j1", 10, 1, 100, 200, 1_000, 30),
        UsageRow("j2", 5, 0, 50, 60, 2_000, 60),
    ]
    assert money.total_of(rows) == UsageRow("all", 15, 1, 150, 260, 3_000, 90)


def test_json_documents_carry_their_schema(terminal: Terminal) -> None:
    terminal.is_json = True
    show.show_jobs([JOB], terminal)
    show.show_job(JOB, terminal)
    show.show_subtasks(JOB, [], False, terminal)
    show.show_workers([WORKER], terminal)
    jobs, one, subtasks, workers = map(json.loads, out(terminal).splitlines())
    assert jobs == one
    assert jobs["schema"] == "gristmill/status/1"
    assert jobs["jobs"][0]["job"] == 17
    assert subtasks["schema"] == "gristmill/subtasks/1"
    assert workers["workers"][0]["labels"] == {"zone": "a"}
    assert err(terminal) == ""


def test_every_schema_is_named_versioned_and_printable() -> None:
    assert len(documents.BY_NAME) == len(documents.DOCUMENTS)
    for name, kind in documents.BY_NAME.items():
        assert name.startswith("gristmill/") and name.rpartition("/")[2].isdigit()
        assert msgspec.json.schema(kind)["$defs"][kind.__name__]["required"][0] == "schema"
