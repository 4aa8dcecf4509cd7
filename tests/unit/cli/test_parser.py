"""The command line: what it accepts, what it refuses, and what it costs to start."""

import argparse
import importlib
import subprocess
import sys
from typing import Any

import pytest

from gristmill.cli import main as command
from gristmill.cli import parser
from gristmill.cli.output import Terminal
from gristmill.wire import spec
from gristmill.wire.errors import RemoteError


def parsed(*arguments: str) -> argparse.Namespace:
    return parser.build().parse_args(arguments)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parsed(*arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_tiers_are_those_of_the_wire() -> None:
    assert parser.TIERS == spec.TIERS


def test_units_are_parsed() -> None:
    args = parsed(
        *("submit", "--cpus", "0.5", "--memory", "2G", "--timeout", "5m", "--cap", "2.5"),
        *("--label", "zone=a", "--label", "gpu=b=c", "--priority", "9", "--ok-exit", "0,3"),
    )
    assert args.cpus_milli == 500
    assert args.memory == 2 << 30
    assert args.timeout == 300_000
    assert args.cap == 2_500_000
    assert args.label == [("zone", "a"), ("gpu", "b=c")]
    assert args.priority == 9
    assert args.ok_exit == [0, 3]
    assert args.keep is None
    assert parsed("submit", "--no-keep").keep is False


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--memory", "lots", "512M"),
        ("--timeout", "soon", "90s"),
        ("--cap", "free", "0.25"),
        ("--cpus", "0", "0.5"),
        ("--cpus", "nan", "0.5"),
        ("--cpus", "inf", "0.5"),
        ("--priority", "10", "0 to 9"),
        ("--priority", "-1", "0 to 9"),
        ("--retries", "101", "0 to 100"),
        ("--label", "zone", "KEY=VALUE"),
        ("--ok-exit", "0,256", "0 to 255"),
        ("--tier", "jail", "strict"),
    ],
)
def test_bad_values_are_told_what_is_accepted(
    capsys: pytest.CaptureFixture[str], option: str, value: str, told: str
) -> None:
    err = refused(capsys, "submit", f"{option}={value}")
    assert told in err
    assert option in err
    assert err.endswith("next: gristmill submit --help\n")
    assert len(err.splitlines()) == 2


def test_trusted_is_never_a_plain_tier_of_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed("up", "--tier", "job,batch", "--tier", "strict").tier == [
        "job",
        "batch",
        "strict",
    ]
    assert "trusted" in refused(capsys, "up", "--tier", "trusted")
    assert parsed("up", "--with-trusted").with_trusted


def test_a_typo_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'status'?" in refused(capsys, "statsu")
    assert "known are up, submit" in refused(capsys, "xyzzy")


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--mem" in refused(capsys, "submit", "--mem", "1G")


def test_inputs_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "submit", "--array", "1-3", "--each-line", "x")
    assert "not allowed with" in told


@pytest.mark.parametrize(
    ("given", "before", "after"),
    [
        (
            ["submit", "--wait", "--", "echo", "--", "-n"],
            ["submit", "--wait"],
            ["echo", "--", "-n"],
        ),
        (["up", "--", "sh"], ["up"], ["sh"]),
        (["up", "--"], ["up"], []),
        (["up"], ["up"], None),
        (["status", "--", "x"], ["status", "--", "x"], None),
        ([], [], None),
    ],
)
def test_the_command_after_dashes_is_untouched(
    given: list[str], before: list[str], after: list[str] | None
) -> None:
    assert command.split_command(given) == (before, after)


def test_no_verb_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    assert "first steps:" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed("--version")
    assert caught.value.code == 0
    assert capsys.readouterr().out == "gristmill 0.1.0\n"


def test_every_verb_has_its_module_and_speaks_json() -> None:
    for path, child in parser.walk(parser.build()):
        options = {name for action in child._actions for name in action.option_strings}
        words = (
            "audit",
            "chain",
            "chain key",
            "credits",
            "deploy",
            "ledger",
            "node",
            "token",
            "worker",
        )
        groups = [f"gristmill {name}" for name in words]
        if path in (*groups, "gristmill worker run"):
            continue
        assert "--json" in options, path
        assert callable(importlib.import_module(child.get_default("module")).run), path


def test_help_loads_no_library() -> None:
    script = (
        "import sys; from gristmill.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(*{m.split('.')[0] for m in sys.modules} & {'zmq', 'msgspec', 'nacl', 'cloudpickle',"
        " 'subprocess', 'asyncio', 'importlib.metadata'}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == ""


# ---------------------------------------------------------------- how a command ends


def end(monkeypatch: pytest.MonkeyPatch, error: BaseException | int, is_json: bool = False) -> int:
    """Exit code of a verb that ends in this way."""

    def run(args: object, terminal: Terminal) -> int:
        terminal.way_back = "come back with: gristmill wait j1"
        if isinstance(error, int):
            return error
        raise error

    module = type(sys)("ends")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ends", module)
    return command.run("ends", argparse.Namespace(), Terminal(is_json=is_json))


def test_an_expected_error_is_two_lines_and_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end(monkeypatch, RemoteError("UNKNOWN_JOB", "no job j9")) == 2
    assert end(monkeypatch, RemoteError("UNREACHABLE", "nobody at x")) == 3
    assert end(monkeypatch, RemoteError("UNAUTHORISED", "no")) == 4
    assert end(monkeypatch, RemoteError("INFEASIBLE", "no")) == 5
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["UNKNOWN_JOB no job j9", "  next: list your jobs with 'gristmill status'"]
    assert len(lines) == 8


def test_ctrl_c_says_how_to_come_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end(monkeypatch, KeyboardInterrupt()) == 130
    assert "interrupted; come back with: gristmill wait j1" in capsys.readouterr().err


def test_what_we_did_wrong_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        end(monkeypatch, ZeroDivisionError())


def test_a_reader_that_leaves_is_no_error() -> None:
    """``gristmill schema | head -0``: the pipe is closed before we write."""
    script = "import sys; from gristmill.cli.main import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-P", "-c", script, "schema", "gristmill/status/1"]
    child: subprocess.Popen[Any] = subprocess.Popen(argv, stdout=-1, stderr=-1)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert child.wait(30) == 141
    assert child.stderr.read() == b""
    child.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("ledger", "fund", "ann", "9" * 20, "--ref", "r"), "is more than 1,152,921,504,606.8469"),
        (("ledger", "fund", "ann", "0", "--ref", "r"), "the least is 0.000001 credits"),
        (("ledger", "transfer", "tenant:a,tenant:b,0.0", "--ref", "r"), "'0.0' moves nothing"),
        (("submit", "--cap", "9" * 20, "--", "true"), "is more than 1,152,921,504,606.846976"),
        (("credits", "buy", "9" * 99, "--with", "manual"), "is more than 1,152,921,504,606.846976"),
        (("credits", "status", ""), "they look like pi"),
        (("credits", "cancel", " "), "they look like pi"),
    ],
)
def test_amounts_and_purchases_that_cannot_be(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    assert told in refused(capsys, *command.split_command(arguments)[0])
