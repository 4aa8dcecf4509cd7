"""Every verb against a real grid: what it prints, what it exits with."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from gristmill.cli.documents import BY_NAME

Run = Callable[..., Any]


def submit(run: Run, *arguments: str, **more: Any) -> str:
    """The id of a job that was submitted and has ended."""
    done = run("submit", "--wait", *arguments, **more)
    return str(done.out.split()[0])


# ---------------------------------------------------------------- commands


def test_submit_wait_result(run: Run) -> None:
    done = run("submit", "--wait", "--name", "greeting", "--", "echo", "hello")
    assert done.code == 0, done.err
    name, ended = done.out.splitlines()
    assert ended == f"{name} done: 1 of 1"
    assert f"gristmill result {name}" in done.err
    assert run("result", name).out == "hello\n"
    card = run("status", name).out
    assert card.startswith(f"{name}  greeting\n")
    assert "state      done" in card


def test_submit_returns_before_the_end_and_wait_waits(run: Run) -> None:
    done = run("submit", "--", "sleep", "0.5")
    (name,) = done.out.split()
    assert "1 subtask\n  next: gristmill wait" in done.err
    waited = run("wait", name)
    assert (waited.code, waited.out) == (0, f"{name} done: 1 of 1\n")


def test_each_line_with_its_words_and_indices(run: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "lines").write_text("a b\n\n$(x) 'y'\n")
    name = submit(
        run, "--each-line", str(tmp_path / "lines"), "--", "printf", "%s;", "{}", "#{index}"
    )
    assert run("result", name).out == "a b;#0;;#1;$(x) 'y';#2;"
    words = submit(run, "--each-line", "-", "--", "echo", "{1}-{0}", stdin="a b\nc  d\n")
    assert run("result", words).out == "b-a\nd-c\n"


def test_arrays_and_how_many_at_a_time(run: Run) -> None:
    name = submit(run, "--array", "10-30:10,7%1", "--", "echo", "{}")
    assert run("result", name).out == "10\n20\n30\n7\n"
    rows = run("status", name, "--subtasks", "--json").document
    assert [row["index"] for row in rows["subtasks"]] == [0, 1, 2, 3]
    assert not rows["is_cut"]
    assert run("status", name, "--subtasks", "--limit", "2", "--json").document["is_cut"]


def test_stdin_files_and_environment(run: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "prog").write_text('#!/bin/sh\nmkdir out; wc -c > out/n; echo "$A-$OURS-$HIDDEN"\n')
    (tmp_path / "prog").chmod(0o755)
    name = submit(
        run,
        *("--stdin", "--file-in", f"{tmp_path}/prog=bin/prog", "--file-out", "out/*"),
        *("--env", "A=1 2", "--", "bin/prog"),
        stdin="12345",
    )
    assert run("result", name).out == "1 2--\n"
    done = run("result", name, "--out", str(tmp_path / "got"))
    assert done.code == 0, done.err
    assert (tmp_path / "got" / "0.out").read_text() == "1 2--\n"
    assert (tmp_path / "got" / "0" / "out" / "n").read_text().strip() == "5"
    (document,) = run("result", name, "--json").documents
    assert document["files"][0]["path"] == "out/n"


def test_a_failed_job_has_three_distinct_errors_and_exit_code_1(run: Run) -> None:
    done = run("submit", "--wait", "--array", "1-9", "--", "sh", "-c", "exit $(({} % 5))")
    name = done.out.split()[0]
    assert done.code == 1
    assert f"{name} failed: 1 of 9, 8 failed" in done.out
    assert done.err.count("× exit") == 3
    assert f"next: gristmill logs {name}/" in done.err
    waited = run("wait", name, "--json")
    assert waited.code == 1
    assert waited.document["failed"] == [name]
    result = run("result", name)
    assert result.code == 1
    assert "8 without a value" in result.err
    failed = run("status", name, "--subtasks", "--state", "failed", "--json").document
    assert len(failed["subtasks"]) == 8


def test_other_exit_codes_can_be_a_success(run: Run) -> None:
    name = submit(run, "--ok-exit", "0,3", "--", "sh", "-c", "exit 3")
    (document,) = run("result", name, "--json").documents
    assert document["is_ok"] and document["exit_code"] == 3


def test_limits_are_explained(run: Run) -> None:
    done = run("submit", "--wait", "--timeout", "200ms", "--", "sleep", "60")
    assert done.code == 1
    assert "time:" in done.err and "200 ms" in done.err


def test_a_command_that_does_not_exist_says_where_it_looked(run: Run) -> None:
    done = run("submit", "--wait", "--", "no-such-command")
    assert done.code == 1
    assert "'no-such-command' does not exist in the jail on PATH=" in done.err


def test_logs_of_a_job_and_of_a_subtask(run: Run) -> None:
    name = submit(run, "--array", "1-2", "--", "sh", "-c", "echo out {}; echo err {} >&2")
    assert run("logs", f"{name}/1").out == "out 2\nerr 2\n"
    assert f"==> {name}/0 <==\nout 1\n==> {name}/0 stderr <==\nerr 1\n" in run("logs", name).out
    first, second = run("logs", name, "--json").documents
    assert (first["stdout"], second["stderr"]) == ("out 1\n", "err 2\n")


def test_logs_follow_until_the_end(run: Run) -> None:
    done = run("submit", "--array", "1-3%1", "--", "sh", "-c", "sleep 0.2; echo line {}")
    name = done.out.split()[0]
    followed = run("logs", "-f", name)
    assert followed.code == 0
    assert [line for line in followed.out.splitlines() if line.startswith("line")] == [
        "line 1",
        "line 2",
        "line 3",
    ]


# ---------------------------------------------------------------- functions and requests


def test_python_functions(run: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "beside.py").write_text("K = 3\n")
    (tmp_path / "work.py").write_text(
        "import beside\n"
        "def triple(x): return int(x) * beside.K\n"
        "def greet(): return 'hi'\n"
        "def fail(x): raise KeyError(x)\n"
        "def odd(x): return {x}\n"
    )
    path = str(tmp_path / "work.py")
    name = submit(run, "--python", f"{path}:triple", "--array", "1-3")
    assert run("result", name).out == "3\n6\n9\n"
    assert run("result", f"{name}/2").out == "9\n"
    assert run("result", submit(run, "--python", f"{path}:greet")).out == "hi\n"
    failed = submit(run, "--python", f"{path}:fail", "--array", "5")
    assert f"{failed}/0: KeyError: 5" in run("result", failed).err
    odd = submit(run, "--python", f"{path}:odd", "--array", "5")
    (document,) = run("result", odd, "--json").documents
    assert (document["value"], document["value_repr"]) == (None, "{5}")
    done = run("submit", "--python", f"{path}:missing")
    assert done.code == 2 and "it has: triple, greet" in done.err


def test_a_sweep_names_its_parameters(run: Run) -> None:
    done = run(
        *("submit", "--wait", "--from", "sweep", "--param", "rate=0.1,0.5", "--param", "n=1,2"),
        *("--", "echo", "rate={rate} n={n} #{index}"),
    )
    name = done.out.split()[0]
    assert run("result", name).out.splitlines() == [
        "rate=0.1 n=1 #0",
        "rate=0.1 n=2 #1",
        "rate=0.5 n=1 #2",
        "rate=0.5 n=2 #3",
    ]
    again = run(
        *("submit", "--from", "sweep", "--param", "rate=0.1,0.5", "--param", "n=1,2"),
        *("--", "echo", "{n}"),
    )
    assert "as for the same request before" in again.err


def test_contents_of_files_that_match(run: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.txt").write_text("12345")
    (tmp_path / "b.md").write_text("x")
    name = submit(
        run,
        *("--from", "glob", "--param", f"root={tmp_path}", "--param", "pattern=*.txt"),
        *("--stdin", "--", "wc", "-c"),
    )
    assert run("result", name).out.strip() == "5"


def test_files_that_match_are_there_for_the_command(run: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("12345")
    (tmp_path / "deep" / "b.txt").write_bytes(b"x" * 100_000)
    name = submit(
        run,
        *("--from", "glob", "--param", f"root={tmp_path}", "--param", "pattern=**/*.txt"),
        *("--", "wc", "-c", "{}"),
    )
    assert run("result", name).out == "5 a.txt\n100000 deep/b.txt\n"


@pytest.mark.slow
def test_a_test_suite_has_one_verdict(run: Run, tmp_path: pathlib.Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "test_a.py").write_text("def test_x(): pass\ndef test_y(): assert 0\n")
    (tree / "test_b.py").write_text("def test_z(): pass\n")
    junit = tmp_path / "junit.xml"
    request = ["submit", "--from", "pytest", "--param", f"tree={tree}"]
    done = run(*request, "--param", f"junit={junit}", "--json")
    assert done.code == 1
    assert done.document["files"] == {"test_a.py": 1, "test_b.py": 0}
    assert (done.document["tests"], done.document["failures"]) == (3, 1)
    assert "testsuites" in junit.read_text()


def test_a_request_that_cannot_be_split_creates_nothing(run: Run) -> None:
    done = run("submit", "--from", "lines", "--param", "path=/does/not/exist", "--", "echo")
    assert done.code == 1
    assert done.err.startswith("DECOMPOSE_FAILED lines: ")
    assert run("submit", "--from", "nope", "--", "echo").err.count("sweep") == 1


# ---------------------------------------------------------------- steering, money, workers


def test_cancel_some_and_all(run: Run) -> None:
    name = run("submit", "--array", "0-49%1", "--", "sleep", "30").out.split()[0]
    assert run("cancel", f"{name}/40-49").code == 0
    rows = run("status", name, "--subtasks", "--state", "cancelled", "--json").document
    assert [row["index"] for row in rows["subtasks"]] == list(range(40, 50))
    assert run("cancel", name, "--json").document == {
        "schema": "gristmill/cancel/1",
        "asked": [name],
    }
    waited = run("wait", name)
    assert waited.code == 1
    assert f"{name} cancelled" in waited.out


def test_cancel_reads_every_argument_before_it_acts(run: Run) -> None:
    name = run("submit", "--", "sleep", "30").out.split()[0]
    assert run("cancel", name, "nonsense").code == 2
    assert run("status", name, "--json").document["jobs"][0]["state"] != "cancelled"
    assert run("cancel", name).code == 0


def test_pause_and_resume(run: Run) -> None:
    name = run("submit", "--array", "0-99%1", "--", "sleep", "0.01").out.split()[0]
    paused = run("pause", name, "--json")
    assert paused.document == {"schema": "gristmill/steer/1", "verb": "pause", "asked": [name]}
    (card,) = run("status", name, "--json").document["jobs"]
    assert (card["state"], card["reason"]) == ("paused", "paused by its tenant")
    assert f"gristmill resume {name}" in run("status", name).out
    assert run("resume", name, "nonsense").code == 2
    assert run("status", name, "--json").document["jobs"][0]["state"] == "paused"
    resumed = run("resume", name)
    assert (resumed.code, f"next: gristmill wait {name}" in resumed.err) == (0, True)
    assert run("wait", name).code == 0


@pytest.mark.parametrize("tier", ["batch", "job"])
def test_a_job_that_only_fails_is_paused_and_says_so(
    run: Run, tmp_path: pathlib.Path, tier: str
) -> None:
    (tmp_path / "work.py").write_text("def work(x):\n    raise ValueError('no good')\n")
    name = run(
        *("submit", "--tier", tier, "--array", "0-199", "--failures-max", "2", "--retries", "0"),
        *("--python", f"{tmp_path / 'work.py'}:work"),
    ).out.split()[0]
    card = until_paused(run, name)
    most = 2 + 5  # one may still fail, two slots have two leases each, and one lease has two
    assert 2 <= card["failed"] <= most
    assert "failures_max is 2" in card["reason"]
    (reason,) = run("why", name, "--json").document["reasons"]
    assert reason["change"] == f"gristmill resume {name}, or gristmill cancel {name}"
    run("resume", name)
    again = until_paused(run, name, card["failed"] + 2)
    assert again["failed"] <= card["failed"] + most
    assert run("cancel", name).code == 0
    assert run("wait", name).code == 1


def until_paused(run: Run, name: str, failed: int = 1) -> Any:
    """Its card when nothing of it runs any more."""
    deadline = time.monotonic() + 20
    while True:
        (card,) = run("status", name, "--json").document["jobs"]
        if card["state"] == "paused" and not card["leased"] and card["failed"] >= failed:
            return card
        assert time.monotonic() < deadline, card


def test_why_names_the_constraint(run: Run) -> None:
    name = run("submit", "--memory", "4T", "--", "true").out.split()[0]
    answer = run("why", name, "--json").document
    assert answer["reasons"][0]["constraint"] == "memory"
    assert answer["reasons"][0]["change"]
    assert "memory" in run("why", name).out
    waited = run("wait", name, "--timeout", "100ms")
    assert waited.code == 1
    assert "has not ended within 100 ms" in waited.err
    run("cancel", name)


def test_a_dry_run_creates_nothing(run: Run) -> None:
    before = run("status", "--json").document["jobs"]
    done = run("submit", "--dry-run", "--array", "1-100", "--", "true", "--json")
    assert done.code == 0
    assert "would submit 100 subtasks" in done.out
    answer = run("submit", "--dry-run", "--json", "--memory", "4T", "--", "true")
    assert answer.code == 5
    assert answer.document["workers_matching"] == 0
    assert answer.document["price_max_ucredits"] > answer.document["price_min_ucredits"]
    assert run("status", "--json").document["jobs"] == before


def test_a_tier_that_nobody_admits_is_refused(run: Run) -> None:
    done = run("submit", "--tier", "trusted", "--", "true")
    assert done.code == 5
    assert done.err.startswith("TIER_REFUSED ")


def test_bills_and_balances(run: Run) -> None:
    name = submit(run, "--array", "1-3", "--", "true")
    (row,) = run("usage", name, "--json").document["rows"]
    assert row["subtasks"] == 3 and row["amount_ucredits"] >= 30
    assert "SUBTASKS" in run("usage", "--by", "node").out
    balance = run("balance")
    as_of, total = balance.out.splitlines()[-1].split("; ")
    assert as_of.startswith("as of transfer ") and total == "sum of all accounts: 0"
    statement = run("statement")
    assert "RECEIPT" in statement.out and f"{name}#" in statement.out
    assert run("statement", "--csv", "-").out.startswith("number,at_ms,what,")
    assert run("statement", "--account", "nobody").code == 2
    assert run("balance", "--json").document["sum_ucredits"] == 0


def test_workers(run: Run) -> None:
    (worker,) = run("worker", "list", "--json").document["workers"]
    assert worker["name"] == "worker-0" and worker["slots"] == 2
    assert "worker-0" in run("status", "--workers").out
    done = run("worker", "drain", "nobody")
    assert done.code == 2 and "worker-0" in done.err


def test_doctor_sees_the_grid(run: Run) -> None:
    done = run("doctor", "--json")
    assert done.document["is_able"] is (done.code != 78)
    found = {one["name"]: one["level"] for one in done.document["findings"]}
    assert found["broker"] == found["gristmill"] == found["clock of the broker"] == "ok"


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "j999999"),
        ("wait", "j999999"),
        ("result", "j999999"),
        ("logs", "j999999"),
        ("why", "j999999"),
        ("cancel", "j999999"),
        ("pause", "j999999"),
        ("resume", "j999999"),
        ("usage", "j999999"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_unknown_job(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert done.out == ""
    what, following = done.err.splitlines()
    assert what.startswith("UNKNOWN_JOB ")
    assert following.startswith("  next: ")
    told = run(*arguments, "--json")
    assert told.document["code"] == "UNKNOWN_JOB"
    assert told.document["exit_code"] == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("status", "x17"), "'x17' is not a job id"),
        (("cancel", "j1/9-3"), "j17/3-9,12"),
        (("result", "j1/x"), "j17/3"),
        (("status", "--subtasks"), "need a job"),
        (("submit",), "a command goes after --"),
        (("submit", "--"), "no command after --"),
        (("submit", "--array", "5-1", "--", "true"), "ends before it begins"),
        (("submit", "--each-line", "/does/not/exist", "--", "true"), "No such file"),
        (("submit", "--file-in", "/does/not/exist", "--", "true"), "No such file"),
        (("submit", "--env", "NOT_SET_HERE", "--", "true"), "NOT_SET_HERE is not set here"),
        (("submit", "--python", "x.py:f", "--", "true"), "exclude each other"),
        (("submit", "--memory", "1", "--", "true"), "limits.memory_bytes"),
    ],
)
def test_bad_requests_are_refused_with_their_reason(
    run: Run, arguments: tuple[str, ...], told: str
) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert told in done.err
    assert done.out == ""


def test_input_that_is_no_text_cancels_what_was_begun(run: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "lines").write_bytes(b"fine\n" * 5000 + b"\xff\xfe\n")
    done = run("submit", "--each-line", str(tmp_path / "lines"), "--", "true")
    assert done.code == 2
    assert "no UTF-8" in done.err
    assert done.out == ""
    newest = f"j{run('status', '--json').document['jobs'][0]['job']}"
    run("wait", "--timeout", "30s", newest)  # what had begun comes to its end first
    assert run("status", "--json").document["jobs"][0]["state"] == "cancelled"


def test_no_grid_is_told_at_once(run_anywhere: Run, tmp_path: pathlib.Path) -> None:
    for arguments in (("status",), ("submit", "--", "true"), ("balance",), ("worker", "list")):
        done = run_anywhere(*arguments)
        assert done.code == 3
        assert done.err.startswith(f"UNREACHABLE ipc://{tmp_path}/run/front: no grid is running")
        assert "gristmill up" in done.err


def test_the_address_can_be_given(run_anywhere: Run, grid: Any) -> None:
    assert run_anywhere("status", "--address", grid.address).code == 0
    assert run_anywhere("status", "--address", "nonsense").code == 2


# ---------------------------------------------------------------- documents


def test_every_document_is_of_its_schema(run: Run) -> None:
    name = submit(run, "--array", "1-2", "--", "echo", "{}")
    for arguments in (
        ("status",),
        ("status", name),
        ("status", name, "--subtasks"),
        ("status", "--workers"),
        ("wait", name),
        ("result", name),
        ("logs", name),
        ("why", name),
        ("usage",),
        ("balance",),
        ("worker", "list"),
        ("submit", "--dry-run", "--", "true"),
        ("status", "j999999"),
    ):
        at = arguments.index("--") if "--" in arguments else len(arguments)
        done = run(*arguments[:at], "--json", *arguments[at:])
        for line, document in zip(done.out.splitlines(), done.documents, strict=True):
            kind = BY_NAME[document["schema"]]
            assert msgspec.json.decode(line, type=kind, strict=True) is not None
            known = {field.encode_name for field in msgspec.structs.fields(kind)}
            assert set(document) - {"schema"} == known


def test_a_receipt_that_there_is_not_is_told_as_what_it_is(run: Run) -> None:
    done = run("submit", "--wait", "--array", "1-2", "--", "true")
    name = done.out.split()[0]
    for asked, told in (
        (f"{name}/2", f"{name} has 2 subtasks, the first is {name}/0: there is no 2"),
        (f"{name}#{10**15}", f"{name} has no receipt {10**15}"),
        (f"{name}#{10**23}", f"'{name}#{10**23}' is not a receipt; they look like j17#40"),
    ):
        refused = run("receipt", asked)
        assert refused.code == 2 and told in refused.err, refused.err
        assert "docs/rfc" not in refused.err
