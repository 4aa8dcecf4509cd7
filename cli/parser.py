"""Every verb and option of the ``gristmill`` command; docs/cli.md is checked against it.

Building it must stay cheap (``gristmill --help`` is answered by this module alone), so a verb names
the module that runs it (``module``), and ``main`` imports only that one.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from gristmill.wire import units

TIERS = ("strict", "job", "batch", "trusted")
ADDRESS_HELP = "of the grid: ipc:///path or tcp://127.0.0.1:PORT (GRISTMILL_ADDRESS)"
EPILOG = """\
first steps:
  gristmill up                                     a whole grid on this machine
  gristmill submit --wait -- echo hello            one command
  gristmill submit --each-line urls.txt -- ./check {}
  gristmill status                                 your jobs; 'status j1' is one of them
  gristmill why j1                                 why it is not running

exit codes: 0 ok, 1 a job failed, 2 usage, 3 unreachable, 4 not allowed, 5 refused by policy,
78 this host cannot make jails, 130 Ctrl-C. docs/cli.md has an example of every command."""


class Parser(argparse.ArgumentParser):
    """Argparse without abbreviations: a prefix that works today must not become an interface."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """The fault and where help is, in the two lines of every error."""
        wrong = re.fullmatch(r"argument \w+: invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if wrong:
            import difflib

            known = re.findall(r"[\w./-]+", wrong[2])
            near = difflib.get_close_matches(wrong[1], known, n=1)
            told = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            message = f"{wrong[1]!r} is not a command; {told}"
        self.exit(2, f"gristmill: {message}\n  next: {self.prog} --help\n")


def typed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """An option's type that keeps the words of the ValueError."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"{text!r} is not KEY=VALUE")
    return key, value


def count_of(low: int, high: int) -> Callable[[str], int]:
    """A number of an option, with its bounds."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"{text!r} is not a number from {low} to {high}")
        return int(text)

    return parse


def _cpus(text: str) -> int:
    try:
        milli = round(float(text) * 1000)
    except (ValueError, OverflowError):
        milli = 0
    if milli < 1:
        raise ValueError(f"{text!r} is not a number of cpus; write it as 1, 4 or 0.5")
    return milli


def _tiers(text: str) -> list[str]:
    tiers = [tier.strip() for tier in text.split(",")]
    wrong = [tier for tier in tiers if tier not in TIERS[:3]]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is not a tier of jails: {', '.join(TIERS[:3])}")
    return tiers


def _exit_codes(text: str) -> list[int]:
    parse = count_of(0, 255)
    return [parse(code.strip()) for code in text.split(",")]


def build() -> Parser:
    """The whole command line."""
    parser = Parser(
        prog="gristmill",
        description="A batch grid: jailed, metered, explained work, billed exactly once.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="show the version and exit")
    # Pages of verbs of their own; they need what is in this module.
    from gristmill.cli import (
        parser_chain,
        parser_credits,
        parser_deploy,
        parser_doctor,
        parser_ledger,
        parser_limits,
        parser_money,
        parser_receipts,
        parser_registry,
        parser_rental,
    )

    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", title="commands")
    for add in (
        _up,
        _submit,
        _status,
        _wait,
        _result,
        _logs,
        _cancel,
        _pause,
        _resume,
        _why,
        parser_limits.add,
        parser_money.add,
        parser_ledger.add,
        parser_receipts.add,
        parser_credits.add,
        _worker,
        parser_registry.add_nodes,
        _login,
        _logout,
        parser_registry.add,
        parser_doctor.add,
        parser_deploy.add,
        parser_chain.add,
        parser_rental.add,
        _drill,
        _schema,
    ):
        add(verbs)
    return parser


def _login(verbs: "Verbs") -> None:
    add_verb(
        verbs,
        "login",
        "login",
        "Keep a grid's address and your token for this user; the token is asked for",
        more="It is read from stdin, never from the command line, tried, and kept with mode 0600.",
    )


def _logout(verbs: "Verbs") -> None:
    add_verb(verbs, "logout", "login", "Forget the grid and the token of 'login'", has_grid=False)


class _Version(argparse.Action):
    """Looked up only when somebody asks: the package's metadata takes long to find."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        import importlib.metadata

        print(f"gristmill {importlib.metadata.version('gristmill')}")
        parser.exit()


Verbs = Any  #: argparse's own type of it is private


def add_verb(
    verbs: Verbs, name: str, module: str, summary: str, *, has_grid: bool = True, more: str = ""
) -> Parser:
    """A verb that ``cli/MODULE.py`` runs, with the options that every verb has."""
    parser: Parser = verbs.add_parser(name, help=summary, description=f"{summary}. {more}".strip())
    parser.set_defaults(module=f"gristmill.cli.{module}")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    if has_grid:
        parser.add_argument("--address", metavar="ADDRESS", help=ADDRESS_HELP)
    return parser


def add_job(parser: Parser, nargs: str | None = None, *, what: str = "a job, such as j17") -> None:
    """The job that a verb is about."""
    parser.add_argument("job", metavar="JOB", nargs=nargs, help=what)


def _up(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "up",
        "up",
        "Start a grid on this machine: broker, ledger, store and workers",
        has_grid=False,
        more="Ctrl-C ends all of it; jobs and money stay in the state folder. With -- COMMAND the "
        "grid lives as long as the command and has its exit code.",
    )
    parser.add_argument(
        "--workers",
        type=typed(count_of(0, 256)),
        default=1,
        metavar="N",
        help="worker processes (default: 1)",
    )
    parser.add_argument(
        "--slots",
        type=typed(count_of(1, 1024)),
        metavar="N",
        help="subtasks at a time in each worker (default: the cpus of this machine, shared out)",
    )
    parser.add_argument(
        "--tier",
        type=typed(_tiers),
        action="extend",
        metavar="TIER",
        help="jail tiers that the workers admit: strict, job, batch (default: all three)",
    )
    parser.add_argument(
        "--with-trusted",
        action="store_true",
        help="also admit tier 'trusted': such jobs run WITHOUT a jail, as you",
    )
    parser.add_argument("--payments", metavar="FILE", help="how credits are paid for, in TOML")
    parser.add_argument("--settlement", metavar="FILE", help="how it settles on a chain, in TOML")
    parser.add_argument(
        "--label",
        type=typed(_pair),
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a label of every worker, for 'submit --label'",
    )
    parser.add_argument(
        "--tariff",
        action="append",
        default=[],
        metavar="CLASS=RATES",
        help="credits on nodes of a class: standard=cpu:1,gib:0.05,subtask:0.00001",
    )
    parser.add_argument("--state", metavar="DIR", help="jobs, money, blobs, logs (GRISTMILL_STATE)")
    parser.add_argument("--run", metavar="DIR", help="sockets; a short path (GRISTMILL_RUN)")
    parser.usage = "gristmill up [options] [-- COMMAND ...]"


def _submit(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "submit",
        "submit",
        "Submit a command, a Python function or a decomposed request as a job",
        more="In the command, {} stands for the input, {0} {1} for its words, {index} for the "
        "subtask's index.",
    )
    parser.usage = (
        "gristmill submit [options] -- COMMAND [ARGUMENT ...]\n"
        "       gristmill submit [options] --python FILE:FUNCTION\n"
        "       gristmill submit [options] --from DECOMPOSER --param KEY=VALUE [-- COMMAND ...]"
    )
    add_request(parser)


def add_request(parser: Parser) -> None:
    """Every argument that says what a job is: of ``submit``, and of ``price``."""
    _submit_inputs(parser.add_argument_group("inputs: one subtask for each"))
    _submit_command(parser.add_argument_group("the command"))
    _submit_limits(parser.add_argument_group("limits of one subtask, and where it may run"))
    _submit_job(parser.add_argument_group("the job"))


def _submit_inputs(group: argparse._ArgumentGroup) -> None:
    inputs = group.add_mutually_exclusive_group()
    inputs.add_argument(
        "--each-line", metavar="FILE", help="each line of the file is an input; - reads stdin"
    )
    inputs.add_argument(
        "--array", metavar="SPEC", help="1-100, 1-100:2, 1,5,9; %%10 at the end: ten at a time"
    )
    inputs.add_argument(
        "--from",
        dest="decomposer",
        metavar="DECOMPOSER",
        help="split one request into inputs, in a jail: lines, glob, sweep, pytest",
    )
    group.add_argument(
        "--param",
        type=typed(_pair),
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of the decomposer",
    )
    group.add_argument(
        "--decompose-timeout",
        type=typed(units.parse_ms),
        metavar="TIME",
        help="deadline of the decomposer (default: 60s)",
    )
    group.add_argument(
        "--python", metavar="FILE:FUNCTION", help="call this function instead of a command"
    )


def _submit_command(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--stdin", action="store_true", help="the input is the command's standard input, not {}"
    )
    group.add_argument(
        "--file-in",
        action="append",
        default=[],
        metavar="PATH[=NAME]",
        help="put this file into every working directory, as NAME",
    )
    group.add_argument(
        "--file-out",
        action="append",
        default=[],
        metavar="PATTERN",
        help="keep files of the working directory that match, such as 'out/{index}.png' or '*.csv'",
    )
    group.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="KEY[=VALUE]",
        help="a variable of the command; without a value, yours. None is passed on by itself",
    )
    group.add_argument(
        "--ok-exit",
        type=typed(_exit_codes),
        metavar="CODES",
        help="exit codes that are a success, such as 0,1 (default: 0)",
    )


def _submit_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--cpus", type=typed(_cpus), dest="cpus_milli", metavar="N", help="default: 1"
    )
    group.add_argument(
        "--memory", type=typed(units.parse_bytes), metavar="SIZE", help="512M, 2G (default: 1G)"
    )
    group.add_argument(
        "--timeout", type=typed(units.parse_ms), metavar="TIME", help="90s, 5m (default: 1h)"
    )
    group.add_argument(
        "--scratch", type=typed(units.parse_bytes), metavar="SIZE", help="of files (default: 256M)"
    )
    group.add_argument(
        "--output",
        type=typed(units.parse_bytes),
        metavar="SIZE",
        help="of stdout and stderr together (default: 1M)",
    )
    group.add_argument(
        "--pids", type=typed(count_of(1, 1 << 20)), metavar="N", help="processes (default: 64)"
    )
    group.add_argument("--tier", choices=TIERS, help="the jail (default: job)")
    group.add_argument(
        "--label",
        type=typed(_pair),
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only on workers with this label",
    )
    group.add_argument(
        "--environment", metavar="PYTHON", help="a Python executable on the workers' hosts"
    )


def _submit_job(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--name", metavar="NAME", help="for people")
    group.add_argument(
        "--key",
        metavar="KEY",
        help="the same key is the same job: safe to type again after any crash",
    )
    group.add_argument(
        "--retries",
        type=typed(count_of(0, 100)),
        metavar="N",
        help="of a subtask that failed by its own doing (default: 0)",
    )
    group.add_argument(
        "--failures-max",
        type=typed(count_of(0, 10**8)),
        metavar="N",
        help="pause the job when N subtasks failed and none was done (default: never)",
    )
    group.add_argument(
        "--completion",
        metavar="RULE",
        help="done when: all, any or N subtasks are done (then the rest is cancelled), or P%%",
    )
    group.add_argument(
        "--quorum",
        metavar="RULE",
        help="compare results of workers of distinct owners: 2/3, or adaptive; replicas are paid",
    )
    group.add_argument(
        "--priority", type=typed(count_of(0, 9)), metavar="0-9", help="among your jobs (default: 4)"
    )
    group.add_argument(
        "--cap",
        type=typed(units.parse_credits),
        metavar="CREDITS",
        help="stop when this is spent; held at the start (default: 10000)",
    )
    group.add_argument("--rental", metavar="ID", help="paid by this rental, not by your credits")
    group.add_argument(
        "--keep",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="keep results after they were fetched, for 7 days (default: keep)",
    )
    group.add_argument(
        "--wait", action="store_true", help="wait for its end; exit 1 if a subtask failed"
    )
    group.add_argument(
        "--progress", action="store_true", help="like --wait, with progress even without a terminal"
    )
    group.add_argument(
        "--dry-run", action="store_true", help="only say what it would do; nothing is created"
    )


def _status(verbs: Verbs) -> None:
    parser = add_verb(
        verbs, "status", "status", "Show your jobs, or one job, its subtasks or the workers"
    )
    add_job(parser, "?")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--subtasks", action="store_true", help="one line for each subtask of JOB")
    shown.add_argument("--workers", action="store_true", help="one line for each worker")
    parser.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    parser.add_argument(
        "--state",
        choices=("waiting", "ready", "leased", "done", "failed", "cancelled"),
        help="only subtasks in this state",
    )
    parser.add_argument(
        "--limit", type=typed(count_of(1, 10**6)), default=100, metavar="N", help="lines (100)"
    )


def _wait(verbs: Verbs) -> None:
    parser = add_verb(verbs, "wait", "wait", "Wait until jobs have ended; exit 1 if one failed")
    parser.add_argument("jobs", metavar="JOB", nargs="+", help="jobs, such as j17")
    parser.add_argument(
        "--timeout", type=typed(units.parse_ms), metavar="TIME", help="give up after this; exit 1"
    )


def _result(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "result",
        "result",
        "Print what a job gave back, or write it to files",
        more="The output of commands is printed as it is; values of functions as text.",
    )
    add_job(parser, what="a job or one subtask: j17, j17/3")
    parser.add_argument(
        "--out", metavar="DIR", help="write a file for each subtask, and the files it gave back"
    )


def _logs(verbs: Verbs) -> None:
    parser = add_verb(verbs, "logs", "logs", "Print what subtasks wrote to stdout and stderr")
    add_job(parser, what="a job or one subtask: j17, j17/3")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job has ended")


def _cancel(verbs: Verbs) -> None:
    parser = add_verb(verbs, "cancel", "cancel", "Cancel jobs, or subtasks of a job")
    parser.add_argument(
        "jobs", metavar="JOB[/INDEX]", nargs="+", help="j17, j17/3, or several: j17/3-9,12"
    )


def _pause(verbs: Verbs) -> None:
    parser = add_verb(
        verbs, "pause", "steer", "Hand out no more subtasks of jobs; what runs goes on to its end"
    )
    parser.add_argument("jobs", metavar="JOB", nargs="+", help="a job, such as j17")


def _resume(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "resume",
        "steer",
        "Hand out subtasks of paused jobs again",
        more="A job that --failures-max paused may fail as often again before it pauses again.",
    )
    parser.add_argument("jobs", metavar="JOB", nargs="+", help="a job, such as j17")


def _why(verbs: Verbs) -> None:
    add_job(add_verb(verbs, "why", "why", "Say why a job is not running, and the cheapest change"))


def _worker(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "worker",
        help="Run a worker here, list workers, or drain one",
        description="Without a word, 'gristmill worker' runs a worker agent on this machine: see "
        "'gristmill worker run --help'.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions")
    run = actions.add_parser(
        "run", help="Run a worker agent here, with the options of python -m gristmill.worker"
    )
    run.set_defaults(module="gristmill.cli.worker", json=False)
    list_and_drain(actions)


def list_and_drain(actions: Any) -> None:
    """``list`` and ``drain``, of workers and of nodes."""
    add_verb(actions, "list", "node", "One line for each worker")
    drain = add_verb(
        actions, "drain", "node", "A worker finishes what it has, takes no more, and ends"
    )
    drain.add_argument("worker", metavar="NAME", help="see 'gristmill node list'")
    drain.add_argument("--wait", action="store_true", help="until it has ended; shows what it runs")
    drain.add_argument(
        "--timeout",
        type=typed(units.parse_ms),
        metavar="TIME",
        help="with --wait, stop waiting after this (exit 1); the worker goes on draining",
    )


def _drill(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "drill",
        "drill",
        "Kill, stop, fill and flood a grid of its own, and prove that nothing is lost or doubled",
        has_grid=False,
        more="The grid lives in a temporary folder; yours is not touched. Exit 0 only if nothing "
        "was lost or doubled and everything recovered. All faults once take about a minute.",
    )
    parser.add_argument(
        "--faults", metavar="NAMES", help="only these, separated by commas (default: all of them)"
    )
    parser.add_argument(
        "--rounds", type=typed(count_of(1, 10**6)), default=1, metavar="N", help="times each (1)"
    )
    parser.add_argument(
        "--seconds", type=typed(count_of(1, 10**6)), metavar="N", help="begin no fault after this"
    )
    parser.add_argument(
        "--seed",
        type=typed(count_of(0, 2**31)),
        metavar="N",
        help="of its choices; the report has it",
    )
    parser.add_argument("--report", metavar="FILE", help="write the report there, as JSON")


def _schema(verbs: Verbs) -> None:
    parser = add_verb(
        verbs, "schema", "schema", "Print the JSON Schema of what --json prints", has_grid=False
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="such as gristmill/status/1")


def walk(parser: argparse.ArgumentParser, path: Sequence[str] = ()) -> list[tuple[str, Parser]]:
    """(``gristmill worker drain``, its parser) of every verb: for the page and its test."""
    found: list[tuple[str, Parser]] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                here = (*path, name)
                found.append((" ".join(("gristmill", *here)), child))
                found += walk(child, here)
    return found
