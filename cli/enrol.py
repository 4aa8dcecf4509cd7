"""``gristmill node enrol``: this machine becomes a node of a grid, with the token of an operator.

It is a command of its own, not an option of ``gristmill worker``: it ends, so that a unit runs it
before the worker (``ExecStartPre=``), and the agent that starts jails never sees a token. Run again
it asks how things are; with what it has, it ends at once and needs nobody.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.cli import documents
from gristmill.cli.output import Terminal, clean
from gristmill.cli.places import make_private, state_folder
from gristmill.wire.enrolment import NodeToken, fingerprint, parse_token, token_digest
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK, EXIT_POLICY, RemoteError
from gristmill.wire.keys import WORKER_KEY, load_key

if TYPE_CHECKING:
    from nacl.signing import SigningKey

    from gristmill.wire.enrolment import BrokerAt, Enrolled, Report
    from gristmill.worker.enrolment import Door, Kept

_MEMBERS = ("approved", "active", "draining")
_RETRIED = ("UNREACHABLE", "RATE_LIMITED", "REGISTRY_DOWN")
_NEXT_KEY = f"{WORKER_KEY}.next"  #: of a rotation that is under way
_PAUSE_S_MAX = 30.0


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Enrol, and wait for the decision."""
    try:
        from gristmill.worker import enrolment
    except ImportError as error:
        raise RemoteError(
            "INVALID_SPEC", f"a node needs {error.name}", "pip install 'gristmill[worker]'"
        ) from None
    token = parse_token(_text_of(args))
    folder = Path(args.state) if args.state else _default(token.name)
    state = make_private(folder)
    digest = token_digest(token.secret)
    kept = enrolment.read_kept(state)
    if kept is not None and kept.token == digest:
        _take_next_key(state, kept)
        _tell(terminal, "enrolled", kept, f"{kept.name} is enrolled already")
        return EXIT_OK
    old, key = _keys(state, args.rotate)
    report = enrolment.measure(state)
    enrolment.check_self(report)
    with enrolment.Door(token, key, old) as door:
        told = _follow(door, report, args, terminal)
    if told.state not in _MEMBERS:
        return _ended(told, terminal)
    kept = enrolment.Kept(
        name=told.name,
        public=told.public,
        token=digest,
        node_class=told.node_class,
        slots_max=told.slots_max,
        enrolment=_registry_of(token),
        brokers=told.brokers,
    )
    enrolment.keep(state, kept)
    _take_next_key(state, kept)
    _tell(terminal, told.state, kept, f"{told.name} is {told.state}{_limits(told)}")
    return EXIT_OK


def _text_of(args: argparse.Namespace) -> str:
    if bool(args.token) == bool(args.token_file):
        raise RemoteError(
            "INVALID_SPEC",
            "the token is given as an argument, or in a file; not both, not neither",
            "gristmill node enrol --token-file FILE",
        )
    if args.token:
        return str(args.token)
    try:
        if args.token_file == "-":
            return sys.stdin.read(4_096)
        with open(args.token_file) as file:
            return file.read(4_096)
    except (OSError, UnicodeDecodeError) as error:
        raise RemoteError(
            "INVALID_SPEC", f"cannot read the token in {args.token_file}: {error}"
        ) from None


def _default(name: str) -> Path:
    """The folder that 'gristmill worker --name NAME' uses."""
    if os.environ.get("GRISTMILL_WORKER_STATE"):
        return Path(os.environ["GRISTMILL_WORKER_STATE"])
    return state_folder(os.environ) / f"worker-{name}"


def _keys(state: Path, is_rotation: bool) -> "tuple[SigningKey | None, SigningKey]":
    """(the key that is replaced, the key that enrols)."""
    if not is_rotation:
        return None, load_key(state / WORKER_KEY)
    if not (state / WORKER_KEY).exists():
        raise RemoteError(
            "INVALID_SPEC",
            f"{state} has no key that could be replaced",
            "name the state folder of the node's worker: --state DIR",
        )
    return load_key(state / WORKER_KEY), load_key(state / _NEXT_KEY)


def _take_next_key(state: Path, kept: "Kept") -> None:
    """The end of a rotation, also of one that was cut off just before it."""
    path = state / _NEXT_KEY
    if path.exists() and bytes(load_key(path).verify_key).hex() == kept.public:
        os.replace(path, state / WORKER_KEY)


def _registry_of(token: NodeToken) -> "BrokerAt":
    from gristmill.wire.enrolment import BrokerAt

    return BrokerAt(f"tcp://{token.place}", token.public)


def _follow(
    door: "Door", report: "Report", args: argparse.Namespace, terminal: Terminal
) -> "Enrolled":
    """Until somebody decides; the state at the end, which with ``--no-wait`` may be pending."""
    deadline = None if args.timeout is None else time.monotonic() + args.timeout / 1_000
    is_known, told, pause_s = False, "", 2.0
    while True:
        try:
            answer = door.enrol(report)
        except RemoteError as error:
            if not is_known or error.code not in _RETRIED:
                raise
            line = f"{error.code}: {error.message}; it is asked again"
            pause_s = min(pause_s * 2, _PAUSE_S_MAX)
        else:
            is_known, pause_s = True, answer.again_ms / 1_000
            line = (
                f"{clean(answer.name)} is pending, key {fingerprint(answer.public)}"
                f"\n  next: an operator compares that and says: gristmill node approve"
                f" {clean(answer.name)}"
            )
            if answer.state != "pending" or args.no_wait:
                if answer.state == "pending":
                    terminal.say(line)
                return answer
        if line != told:
            terminal.say(line)
            told = line
        if deadline is not None and time.monotonic() + pause_s > deadline:
            return answer
        time.sleep(pause_s)


def _limits(told: "Enrolled") -> str:
    limits = [f"at most {told.slots_max} slots"] if told.slots_max else []
    limits += [f"class {clean(told.node_class)}"] if told.node_class else []
    return f" ({', '.join(limits)})" if limits else ""


def _ended(told: "Enrolled", terminal: Terminal) -> int:
    """It is no member: not yet, or never."""
    if terminal.is_json:
        terminal.document(
            documents.encode(documents.Enrolment(told.name, told.public, told.state, told.reason))
        )
    if told.state == "pending":
        terminal.say(f"{clean(told.name)} still waits; say the same again to go on waiting")
        return EXIT_FAILED
    why = f": {clean(told.reason)}" if told.reason else ""
    terminal.say(f"{clean(told.name)} is {told.state}{why}")
    if told.state == "quarantined":
        terminal.say(f"  next: an operator says: gristmill node release {clean(told.name)}")
    elif told.state != "banned":
        terminal.say(f"  next: an operator says: gristmill node token {clean(told.name)}")
    return EXIT_POLICY


def _tell(terminal: Terminal, state: str, kept: "Kept", text: str) -> None:
    if terminal.is_json:
        terminal.document(
            documents.encode(
                documents.Enrolment(
                    kept.name, kept.public, state, "", [at.address for at in kept.brokers]
                )
            )
        )
    terminal.say(f"{clean(text)}, key {fingerprint(kept.public)}")
