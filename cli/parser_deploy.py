"""The verbs of ``gristmill deploy``: a grid under systemd on this host."""

import re
import sys
from typing import Any

from gristmill.cli.parser import Verbs, add_verb, typed


def add(verbs: Verbs) -> None:
    """``gristmill deploy install|show``."""
    parser = verbs.add_parser(
        "deploy",
        help="Write systemd units, users and settings of a grid, or show them",
        description="For the operator of hosts whose processes systemd starts and watches.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    install = add_verb(
        actions,
        "install",
        "deploy",
        "Write units, users, folders, settings and keys",
        has_grid=False,
        more="Nothing is written when a file is there with other content (exit 4), unless --force "
        "says so. Settings in /etc/gristmill and keys are never written over.",
    )
    install.add_argument(
        "--root", metavar="DIR", default="/", help="of an image, instead of this host's"
    )
    _python(install)
    install.add_argument(
        "--worker",
        action="append",
        type=typed(_worker),
        metavar="NAME",
        help="of gristmill-worker@NAME, which gets a key; repeat it (those that have one, else 1)",
    )
    install.add_argument(
        "--no-worker", action="store_true", help="the broker's host has no workers"
    )
    install.add_argument(
        "--address",
        metavar="IP",
        help="of this host, at which clients and workers elsewhere reach its broker (127.0.0.1)",
    )
    install.add_argument(
        "--allow",
        action="append",
        type=typed(_allowed),
        metavar="worker:NAME=KEY",
        help="let a worker of another host in; repeat it for others",
    )
    install.add_argument(
        "--broker",
        metavar="ADDRESS",
        default="",
        help="of a broker on another host, tcp://HOST:7032: this host has workers alone",
    )
    install.add_argument(
        "--broker-key", metavar="KEY", default="", help="public key of that broker"
    )
    install.add_argument(
        "--host", metavar="NAME", help="of the host, which begins its workers' names: this one's"
    )
    install.add_argument(
        "--force", action="store_true", help="write over units that are there with other content"
    )
    install.add_argument("--dry-run", action="store_true", help="only say what it would do")
    show = add_verb(
        actions, "show", "deploy", "Print a file as it would be written", has_grid=False
    )
    show.add_argument("name", metavar="NAME", nargs="?", help="such as gristmill-broker.service")
    _python(show)


def _worker(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]{1,20}", text):
        raise ValueError(f"{text!r:.40} is no name of a worker: a-z and 0-9, at most 20")
    return text


def _allowed(text: str) -> str:
    match = re.fullmatch(r"(operator|(client|worker):[^\s,=#:]{1,200})=([0-9a-f]{64})", text)
    if not match:
        raise ValueError(f"{text!r:.100} lets nobody in; write worker:NAME=KEY, 64 hex characters")
    return text


def _python(parser: Any) -> None:
    parser.add_argument(
        "--python", metavar="FILE", default=sys.executable, help="the units' interpreter: this one"
    )
