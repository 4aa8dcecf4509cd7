"""``python -m gristmill.broker``: starts the broker, says when it is ready, ends it cleanly."""

import argparse
import logging
import os
import pathlib
import secrets
import signal
import sys

import msgspec
import zmq

from gristmill.broker.memory import default_limit, limit_private_bytes, resident_bytes
from gristmill.broker.principals import make_token, parse_limits, set_limits
from gristmill.broker.settings import ENVIRONMENT_PREFIX, own_environment, read_settings
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK, RemoteError
from gristmill.wire.keys import BROKER_KEY, load_key
from gristmill.wire.process import (
    announce_ready,
    begin_logging,
    die_with_parent,
    ended_by,
    forbid_unpickling,
    keep_freed_memory,
    raise_descriptor_limit,
)
from gristmill.wire.supervision import supervisor_of
from gristmill.wire.units import format_bytes

log = logging.getLogger("gristmill.broker")


def main(arguments: list[str]) -> int:
    """Runs the broker until SIGTERM or SIGINT; returns an exit code."""
    forbid_unpickling("broker")
    given = _parser().parse_args(arguments)
    begin_logging("%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        if given.print_key:
            return _print_key(given.state)
        if given.new_token:
            return _new_token(given.state, given.new_token, given.operator, given.broker_key)
        if given.limit:
            return _limit(given.state, *given.limit)
        return _serve(given)
    except RemoteError as error:
        return ended_by(error)
    except Exception:  # the edge of the process: say what happened once, with an id, and end
        log.critical("broker failed id=%s", secrets.token_hex(4), exc_info=True)
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gristmill.broker",
        description="The broker of a grid: takes jobs, leases them to workers, keeps results.",
        epilog=f"Every setting may come from the environment as {ENVIRONMENT_PREFIX}NAME.",
    )
    parser.add_argument("--state", help="folder of journal.db and broker.key (made, mode 0700)")
    parser.add_argument("--front", help="address for clients: ipc:///path or tcp://HOST:PORT")
    parser.add_argument("--back", help="address for workers")
    parser.add_argument("--ledger", help="address of the ledger")
    parser.add_argument(
        "--ledger-key", metavar="HEX", help="the ledger's public key; needed over tcp://"
    )
    parser.add_argument(
        "--allow", action="append", metavar="ROLE=KEY",
        help="over TCP: this public key may connect: operator=KEY, client:TENANT=KEY,"
        " worker:NAME=KEY",
    )  # fmt: skip
    parser.add_argument("--registry", help="address of the registry on this host: ipc:///path")
    parser.add_argument(
        "--store",
        help="address of the store: unix:///path, http://127.0.0.1:PORT or https://IP:PORT",
    )
    parser.add_argument("--store-key", help="public key of the store, where it is https://")
    parser.add_argument(
        "--tariff", action="append", metavar="CLASS=cpu:1,gib:0.05,subtask:0.00001",
        help="credits for a cpu second, a GiB-second of reserved memory and a subtask on nodes of"
        " this class; repeat it for other classes",
    )  # fmt: skip
    parser.add_argument("--print-key", action="store_true", help="print the verify key and end")
    parser.add_argument("--new-token", metavar="TENANT", help="print a new token of a tenant, end")
    parser.add_argument("--operator", action="store_true", help="the new token is an operator's")
    parser.add_argument(
        "--broker-key", metavar="HEX", default="",
        help="for the new token, where the broker has its key as a credential: its public half",
    )  # fmt: skip
    parser.add_argument(
        "--limit", nargs=2, metavar=("NAME", "LIMITS"),
        help="change what a key may ask for, within a second, and end:"
        " requests_per_s=100,bytes_per_s=8M; what is not named, or 0, is the broker's setting",
    )  # fmt: skip
    parser.add_argument(
        "--ready-fd", type=int, help="write READY to this descriptor when it serves"
    )
    parser.add_argument("--die-with-parent", action="store_true", help="end when the parent ends")
    return parser


def _print_key(state: str | None) -> int:
    print(load_key(_folder(state) / BROKER_KEY).verify_key.encode().hex())
    return EXIT_OK


def _new_token(state: str | None, tenant: str, is_operator: bool, broker: str) -> int:
    print(make_token(_folder(state), tenant, is_operator, broker))
    return EXIT_OK


def _limit(state: str | None, name: str, text: str) -> int:
    changed = set_limits(_folder(state), name, parse_limits(text))
    own = msgspec.to_builtins(changed.limits)
    told = zip(type(changed.limits).__struct_fields__, own, strict=True)
    words = ", ".join(f"{field}={value}" for field, value in told if value)
    print(f"{changed.name} of tenant {changed.tenant}: {words or 'as the broker is set'}")
    return EXIT_OK


def _folder(state: str | None) -> pathlib.Path:
    folder = state or os.environ.get(ENVIRONMENT_PREFIX + "STATE")
    if not folder:
        raise RemoteError("INVALID_SPEC", "the state folder is not given", "give --state DIR")
    path = pathlib.Path(folder)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _serve(given: argparse.Namespace) -> int:
    from gristmill.broker.app import Broker  # heavy: not for --print-key

    if given.die_with_parent:
        die_with_parent()
    names = "state front back ledger ledger_key allow registry store store_key tariff".split()
    settings = read_settings({name: getattr(given, name) for name in names}, own_environment())
    raise_descriptor_limit()
    keep_freed_memory()
    supervisor = supervisor_of(os.environ)
    limit = settings.memory_bytes or default_limit()
    limit_private_bytes(limit)
    try:
        broker = Broker(settings, supervisor)
    except zmq.ZMQError as error:
        raise RemoteError(
            "UNREACHABLE",
            f"cannot listen on {settings.front} and {settings.back}: {error}",
            "end the process that holds the address, or choose another",
        ) from None
    if (held := resident_bytes()) > limit:
        raise RemoteError(
            "INVALID_SPEC",
            f"after its start the broker holds {format_bytes(held)} of memory; its limit is"
            f" {format_bytes(limit)}",
            "raise GRISTMILL_BROKER_MEMORY_BYTES",
        )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: broker.stop())
    announce_ready("broker", broker.front_address, given.ready_fd, supervisor)
    try:
        broker.run()
    except OSError as error:  # the disk: what was acknowledged is on it
        log.critical("broker ends id=%s: %s", secrets.token_hex(4), error)
        return EXIT_FAILED
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
