"""The ``gristmill`` command: parse, import the one module that runs the verb, end with its code.

A person who presses Enter pays for argparse and for what the verb needs, nothing else. Expected
errors are ``RemoteError``: two lines on stderr, and the exit code of the table in wire/errors.py.
Anything else is our fault and keeps its traceback.
"""

import errno
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
#: writing to stdout ends so where there is no room for it
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_WORKER_ACTIONS = ("list", "drain", "-h", "--help")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Entry point of the ``gristmill`` script."""
    _open_missing()
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
        _drop_output()
        return EXIT_PIPE
    except OSError as error:  # of a file or a socket it would be our fault
        if error.filename is not None or error.errno not in _NO_ROOM:
            raise
        _drop_output()
        error_of = RemoteError("INVALID_SPEC", f"cannot write to stdout: {error.strerror}")
        code = error_of.spec.exit_code
        terminal.fault(error_of.code, error_of.message, "send it where there is room", code)
    return code


def _drop_output() -> None:
    """Whatever is still buffered has nowhere to go; the interpreter must not try again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_missing() -> None:
    """Who was started without stdin, stdout or stderr (``>&-``) has an empty one.

    Else a socket would take its number, and get what was meant for a person.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # the lowest free number is the missing one, unless something has it already
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


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
