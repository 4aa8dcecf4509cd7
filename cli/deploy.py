"""``gristmill deploy``: what systemd needs for a grid on this host, written or shown."""

import argparse
import socket
from pathlib import Path

from gristmill.cli import documents
from gristmill.cli.output import Terminal
from gristmill.deploy.install import (
    LOOPBACK,
    TARGETS,
    Site,
    as_there,
    check_python,
    elsewhere,
    install,
    plan,
    text_of,
    told,
    workers_there,
)
from gristmill.wire.errors import EXIT_OK, RemoteError

#: where the command that belongs to another host is typed: is this host one of workers -> words
_THERE = {
    True: "on the broker's host, which lets in who has these keys",
    False: "on each host of workers for this broker",
}


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """``install`` and ``show``."""
    if args.action == "show":
        return _show(args, terminal)
    root = Path(args.root).absolute()
    if not root.is_dir():
        raise RemoteError("INVALID_SPEC", f"--root {root} is no folder", f"mkdir -p {root}")
    if root == Path("/"):
        check_python(args.python)  # that of an image is not here to be looked at
    host = args.host or socket.gethostname().partition(".")[0]
    workers = () if args.no_worker else tuple(args.worker or workers_there(root))
    site = Site(
        args.python, host, workers, args.address or LOOPBACK, args.broker, args.broker_key,
        tuple(args.allow or ()),
    )  # fmt: skip
    site = as_there(root, site)
    steps = plan(root, site) if args.dry_run else install(root, site, is_forced=args.force)
    rows = [(step.act, str(step.path)) for step in steps] if args.dry_run else told(steps)
    then, there = site.next_command(), "" if args.dry_run else elsewhere(root, site)
    if terminal.is_json:
        files = [documents.DeployedFile(path, act) for act, path in rows]
        terminal.document(documents.encode(documents.Deployed(args.dry_run, files, then, there)))
        return EXIT_OK
    for act, path in rows:
        terminal.print(f"{act:<10}{path}")
    terminal.say(f"next: {'gristmill deploy install' if args.dry_run else then}")
    if there:
        terminal.say(f"{_THERE[bool(site.broker)]}: {there}")
    return EXIT_OK


def _show(args: argparse.Namespace, terminal: Terminal) -> int:
    site = Site(args.python, "")
    if args.name is None:
        if terminal.is_json:
            files = [documents.DeployedFile(f"/{path}", "") for path in TARGETS.values()]
            terminal.document(
                documents.encode(documents.Deployed(True, files, site.next_command()))
            )
            return EXIT_OK
        terminal.table(["FILE", "GOES TO"], [[name, f"/{path}"] for name, path in TARGETS.items()])
        return EXIT_OK
    text = text_of(args.name, site, {}).rstrip("\n")
    if terminal.is_json:
        files = [documents.DeployedFile(f"/{TARGETS[args.name]}", "", text)]
        terminal.document(documents.encode(documents.Deployed(True, files, site.next_command())))
        return EXIT_OK
    terminal.print(text)
    return EXIT_OK
