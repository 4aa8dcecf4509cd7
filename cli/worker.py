"""``gristmill worker``: run an agent here (``list`` and ``drain`` are in node.py)."""

import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence

from gristmill.cli.output import Terminal
from gristmill.cli.places import make_private, run_folder, state_folder
from gristmill.wire.errors import EXIT_USAGE, RemoteError


def run_agent(options: Sequence[str], terminal: Terminal) -> int:
    """Become ``python -m gristmill.worker`` with these options and what they leave out.

    Returns only when that cannot be done.
    """
    try:
        argv = agent_command(options, os.environ)
        at = argv.index("--state") + 1 if "--state" in argv else 0
        if at and at < len(argv):
            make_private_of(argv[at])
    except RemoteError as error:
        terminal.fault(error.code, error.message, error.hint, error.spec.exit_code)
        return error.spec.exit_code
    terminal.out.flush()
    try:
        os.execv(sys.executable, argv)
    except OSError as error:
        terminal.say(f"cannot run {sys.executable}: {error.strerror}")
    return EXIT_USAGE


def make_private_of(folder: str) -> None:
    """The worker's state folder, made if missing."""
    from pathlib import Path

    make_private(Path(folder))


def agent_command(options: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The command line of a worker: the broker of this machine, and a name of this host's.

    ``--broker``, ``--name`` and ``--state`` are filled in where neither an option nor the worker's
    own variable (``GRISTMILL_WORKER_NAME``) says otherwise.
    """
    given = {option.partition("=")[0] for option in options if option.startswith("--")}

    def is_missing(name: str) -> bool:
        return f"--{name}" not in given and f"GRISTMILL_WORKER_{name.upper()}" not in environment

    more = []
    if not given & {"--help"} and "-h" not in options:
        name = _value_of(options, "--name") or environment.get("GRISTMILL_WORKER_NAME")
        if name is None:
            name = f"{re.sub('[^A-Za-z0-9.-]', '-', socket.gethostname())}-{os.getpid()}"
            more += ["--name", name]
        if is_missing("broker"):
            more += ["--broker", f"ipc://{run_folder(environment)}/back"]
        if is_missing("state"):
            more += ["--state", str(state_folder(environment) / f"worker-{name}")]
    return [sys.executable, "-P", "-m", "gristmill.worker", *options, *more]


def _value_of(options: Sequence[str], name: str) -> str | None:
    for at, option in enumerate(options):
        if option == name and at + 1 < len(options):
            return options[at + 1]
        if option.startswith(f"{name}="):
            return option.removeprefix(f"{name}=")
    return None
