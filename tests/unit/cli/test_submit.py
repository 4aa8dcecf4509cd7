"""From options to what travels: no grid needed."""

import argparse
import os
import pathlib
from typing import Any

import msgspec
import pytest

from gristmill.cli import decomposed, submit
from gristmill.cli.parser import build
from gristmill.cli.worker import agent_command
from gristmill.client.options import make_spec
from gristmill.wire.errors import RemoteError
from gristmill.wire.spec import Command, JobSpec, Limits, Tariff
from gristmill.wire.tariffs import STANDARD_TARIFF


def parsed(*arguments: str, command: list[str] | None = None) -> argparse.Namespace:
    args = build().parse_args(["submit", *arguments])
    args.command = command
    return args


def test_only_what_was_given_is_passed_on() -> None:
    assert submit.options_of(parsed()) == {}
    options = submit.options_of(
        parsed(
            "--cpus",
            "2",
            "--output",
            "2M",
            "--pids",
            "9",
            "--timeout",
            "90s",
            "--cap",
            "0.25",
            "--no-keep",
            "--label",
            "a=b",
        ),
        7,
    )
    assert options == {
        "cpus": 2.0,
        "output": 2 << 20,
        "pids": 9,
        "timeout": 90.0,
        "cap": "0.250000",
        "keep": False,
        "labels": {"a": "b"},
        "concurrency": 7,
    }


def test_every_contradiction_is_named_at_once() -> None:
    args = parsed("--python", "x:y", "--stdin", "--param", "a=b", "--ok-exit", "1", command=["c"])
    with pytest.raises(RemoteError) as caught:
        submit.check_arguments(args)
    assert caught.value.message.count(";") == 3
    for word in ("--python and a command", "--param", "--stdin", "--ok-exit"):
        assert word in caught.value.message


def test_the_environment_of_a_command() -> None:
    own = {"HOME": "/h", "SECRET": "s"}
    assert submit.environment_of(["A=1=2", "HOME", "E="], own) == {
        "A": "1=2",
        "HOME": "/h",
        "E": "",
    }
    for text in ("MISSING", "=x"):
        with pytest.raises(RemoteError, match="--env"):
            submit.environment_of([text], own)


def test_input_files_and_their_names(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_text("A")
    (tmp_path / "with=sign").write_text("B")
    (tmp_path / "with=sign").chmod(0o755)
    found = submit.read_input_files([f"{tmp_path}/a=in/x", f"{tmp_path}/with=sign"])
    assert found == [("in/x", b"A", False), ("with=sign", b"B", True)]
    with pytest.raises(RemoteError, match="would both be 'a'"):
        submit.read_input_files([f"{tmp_path}/a", f"{tmp_path}/with=sign=a"])


def test_arrays_travel_as_ranges() -> None:
    inputs = submit.read_inputs(parsed("--array", "1-100000000%5", command=["c"]))
    assert inputs.values == range(1, 100_000_001)
    assert (inputs.total, inputs.at_once) == (100_000_000, 5)


def test_lines_are_kept_as_they_are(tmp_path: pathlib.Path) -> None:
    (tmp_path / "lines").write_bytes(b"a\r\n\n  b \x0c c\nlast")
    assert list(submit.lines_of(str(tmp_path / "lines"))) == ["a", "", "  b \x0c c", "last"]


def test_a_price_lies_between_the_least_and_the_cap() -> None:
    limits = Limits(cpus_milli=2_000, wall_ms=10_000)
    spec = JobSpec("command", command=Command(["c"]), limits=limits, retries=1)
    tariffs = {"standard": STANDARD_TARIFF, "big": Tariff(2_000_000, 20, 0)}
    low, high = submit.price_of(spec, 10, tariffs)
    assert low == 10 * 10
    assert high == 20 * (2 * 20 * 1_000_000 + 20), "on the dearest class"
    own = msgspec.structs.replace(spec, labels={"class": "standard"})
    assert submit.price_of(own, 10, tariffs)[1] == 20 * (20 * 1_000_000 + 10 + 10 * 50_000)
    capped = JobSpec("command", command=Command(["c"]), limits=limits, cap_ucredits=5)
    assert submit.price_of(capped, 10, tariffs) == (5, 5)
    free = JobSpec("command", command=Command(["c"]), tariff="zero")
    assert submit.price_of(free, 10, tariffs) == (0, 0)


@pytest.mark.parametrize(
    ("name", "given", "arguments"),
    [
        ("sweep", ["r=1,2", "n=a", "r=3"], {"r": ["1", "2", "3"], "n": ["a"]}),
        ("lines", ["path=x", "blank=true"], {"path": "x", "blank": True}),
        ("glob", ["pattern=*.a", "pattern=*.b"], {"pattern": ["*.a", "*.b"]}),
        ("pytest", ["args=-k 'a b'", "args=-x"], {"args": ["-k", "a b", "-x"]}),
    ],
)
def test_parameters_of_decomposers(name: str, given: list[str], arguments: dict[str, Any]) -> None:
    pairs = [(key, value) for key, _, value in (text.partition("=") for text in given)]
    assert decomposed.arguments_of(name, pairs) == arguments


def test_a_switch_is_true_or_false() -> None:
    with pytest.raises(RemoteError, match="write true or false"):
        decomposed.arguments_of("lines", [("blank", "maybe")])


def test_names_of_a_sweep_become_numbers() -> None:
    command = Command(["{rate}", "{n}{index}{}", "{other}"], env={"N": "{n}"}, files_out=["{n}.x"])
    numbered, take = decomposed.with_names(command, {"rate": 0.1, "n": 5})
    assert numbered.argv == ["{0}", "{1}{index}{}", "{other}"]
    assert (numbered.env, numbered.files_out) == ({"N": "{1}"}, ["{1}.x"])
    assert take({"rate": 0.1, "n": 5}) == ["0.1", "5"]
    same, keep = decomposed.with_names(command, "text")
    assert same is command and keep("text") == "text"


def test_a_worker_gets_what_is_missing_only() -> None:
    environment = {"GRISTMILL_RUN": "/r", "GRISTMILL_STATE": "/s"}
    words = agent_command(["--slots", "2"], environment)
    assert words[words.index("--broker") + 1] == "ipc:///r/back"
    name = words[words.index("--name") + 1]
    assert name.endswith(f"-{os.getpid()}")
    assert words[words.index("--state") + 1] == f"/s/worker-{name}"
    given = ["--name=w", "--broker", "tcp://127.0.0.1:1", "--state", "/x"]
    assert agent_command(given, environment)[4:] == given
    told = agent_command([], {**environment, "GRISTMILL_WORKER_NAME": "w"})
    assert "--name" not in told and told[told.index("--state") + 1] == "/s/worker-w"
    assert agent_command(["--help"], environment)[4:] == ["--help"]


def test_every_option_of_a_job_reaches_its_spec() -> None:
    """An option that parses and is then dropped is worse than none."""
    given = {
        "--cpus": "2", "--memory": "64M", "--timeout": "9s", "--scratch": "2M", "--output": "2M",
        "--pids": "9", "--tier": "batch", "--label": "a=b", "--environment": "/p", "--name": "n",
        "--retries": "2", "--failures-max": "3", "--completion": "any", "--priority": "1",
        "--cap": "7",
    }  # fmt: skip
    words = [word for pair in given.items() for word in pair]
    options = submit.options_of(parsed(*words, "--no-keep"), at_once=5)
    plain = make_spec({}, command=Command(["c"]))
    spec = make_spec(options, command=Command(["c"]))
    fields = spec.__struct_fields__
    changed = {name for name in fields if getattr(spec, name) != getattr(plain, name)}
    changed |= {
        name
        for name in spec.limits.__struct_fields__
        if getattr(spec.limits, name) != getattr(plain.limits, name)
    }
    assert changed == {
        *("limits", "cpus_milli", "memory_bytes", "wall_ms", "scratch_bytes", "output_bytes"),
        *("pids_max", "tier", "labels", "environment", "name", "retries", "failures_max"),
        *("completion", "priority", "cap_ucredits", "keep", "concurrency_max"),
    }


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "a/../../secret"])
def test_a_jail_that_names_other_files_gets_none(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / "secret").write_text("private")
    root = tmp_path / "tree"
    root.mkdir()
    (root / "a").write_text("1")
    with pytest.raises(RemoteError, match="not below"):
        list(decomposed.files_of(["a", name], root))
    assert list(decomposed.files_of(["a"], root)) == [("a", b"1")]
    with pytest.raises(RemoteError, match="No such file"):
        list(decomposed.files_of(["b"], root))
