"""``gristmill login`` and ``logout``: a grid's address and our token, kept for this user."""

import argparse
import getpass
import os
import sys

from gristmill.cli import documents
from gristmill.cli.output import Terminal
from gristmill.wire.errors import EXIT_OK, RemoteError
from gristmill.wire.login import Login, login_path, read_login, write_login
from gristmill.wire.tokens import parse_token


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Try the token, then keep it; or forget it."""
    if args.verb == "logout":
        return _forget(terminal)
    address = args.address or os.environ.get("GRISTMILL_ADDRESS", "")
    if not address.startswith("tcp://"):
        raise RemoteError(
            "INVALID_SPEC",
            f"{address!r:.80} is not a grid on TCP: only there a token is asked for",
            "gristmill login --address tcp://HOST:PORT",
        )
    token = parse_token(_read())
    from gristmill.client import Client

    with Client(address, token=token.text) as client:
        welcome = client.who()
    path = write_login(os.environ, Login(address, token.text))
    if terminal.is_json:
        terminal.document(documents.encode(documents.LoggedIn(address, token.name, welcome)))
    else:
        terminal.print(f"{address} knows you as {welcome} by the token {token.name!r} ({path})")
    return EXIT_OK


def _read() -> str:
    """The token; never from the command line, which others can see."""
    if sys.stdin.isatty():
        return getpass.getpass("token: ")
    return sys.stdin.readline(1 << 10)


def _forget(terminal: Terminal) -> int:
    path = login_path(os.environ)
    try:
        login = read_login(os.environ)
    except RemoteError:  # it goes, whatever it is
        login = None
    path.unlink(missing_ok=True)
    if terminal.is_json:
        terminal.document(documents.encode(documents.LoggedIn("", "", "")))
    elif login is None:
        terminal.print("there was no login")
    else:
        terminal.print(
            f"the token for {login.address} is gone from here; it stays good until an operator"
            " revokes it"
        )
    return EXIT_OK
