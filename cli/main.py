"""The ``gristmill`` command: parse, import the one module that runs the verb, end with its code.

A person who presses Enter pays for argparse and for what the verb needs, nothing else. Expected
errors are ``RemoteError``: two lines on stderr, and the exit code of the table in wire/errors.py.
Anything else is our fault and keeps its traceback.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from gristmill.cli.output import Terminal
from gristmill.cli.parser import build
from gristmill.wire.errors import EXIT_OK, RemoteError

EXIT_INTERRUPTED = 130  #: 128 + SIGINT
EXIT_PIPE = 141  #: 128 + SIGPIPE: whoever read our stdout has gone
_HAS_COMMAND = ("up", "submit", "price")
_WORKER_ACTIONS = ("list", "drain", "-h", "--help")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Entry point of the ``gristmill`` script."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    given, command = split_command(given)
    if given[:1] == ["worker"] and given[1:2] not in [[action] for action in _WORKER_ACTIONS]:
        return _run_worker(given[1:])
    parser = build()
    args = parser.parse_args(given)
    if args.verb is None:
        parser.print_help()
        return EXIT_OK
    args.command = command
    terminal = Terminal(is_json=args.json)
    return run(args.module, args, terminal)


def run(module: str, args: object, terminal: Terminal) -> int:
    """The verb of a module, with every expected end turned into an exit code."""
    try:
        try:
            code: int = importlib.import_module(module).run(args, terminal)
        finally:
            terminal.out.flush()
    except RemoteError as error:
        code = getattr(error, "exit_code", error.spec.exit_code)
        terminal.fault(error.code, error.message, error.hint, code)
    except KeyboardInterrupt:
        terminal.say(f"\ninterrupted{'; ' * bool(terminal.way_back)}{terminal.way_back}")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whatever is still buffered has nowhere to go; the interpreter must not try again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    return code


def split_command(given: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """What stands before and after the first ``--`` of a verb that takes a command.

    argparse would drop a ``--`` of the command's own and read its options as ours.
    """
    if given[:1] and given[0] in _HAS_COMMAND and "--" in given:
        at = list(given).index("--")
        return list(given[:at]), list(given[at + 1 :])
    return list(given), None


def _run_worker(options: Sequence[str]) -> int:
    from gristmill.cli.worker import run_agent

    return run_agent(list(options[1:] if options[:1] == ["run"] else options), Terminal())


if __name__ == "__main__":
    sys.exit(main())
