"""The verbs that speak to the registry: of ``node``, ``token`` and ``audit``. See ``parser.py``."""

from typing import Any

from gristmill.cli.parser import Parser, Verbs, add_verb, count_of, list_and_drain, typed
from gristmill.wire import units

_ONCE = "The same decision again changes nothing; one about an older version is refused."


def add_nodes(verbs: Verbs) -> None:
    """``gristmill node``."""
    parser = verbs.add_parser(
        "node",
        help="List the grid's nodes, enrol them, approve them, take one out of the grid",
        description="A node is a machine's worker, as an operator sees it.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    list_and_drain(actions)
    _add_actions_of_nodes(actions)


def add(verbs: Verbs) -> None:
    """``gristmill token create|list|revoke``."""
    parser = verbs.add_parser(
        "token",
        help="Make, list and revoke tokens of people",
        description="A token of a person is a key: the grid keeps its public part only.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    create = add_verb(
        actions,
        "create",
        "registry",
        "Make a token for a person or a program; it is shown once",
    )
    create.add_argument("name", metavar="NAME", help="of the token, unique while it is good")
    create.add_argument("--tenant", required=True, help="who works and pays with it")
    create.add_argument(
        "--scope",
        action="append",
        choices=("submit", "read", "pay"),
        help="what it may do; repeat it for more (default: all of these)",
    )
    create.add_argument("--operator", action="store_true", help="it is an operator's")
    create.add_argument(
        "--expires", type=typed(units.parse_ms), metavar="TIME", help="90d, 12h (default: never)"
    )
    create.add_argument("--broker-key", metavar="KEY", help="public key of the broker, 64 digits")
    _desk(create)
    listed = add_verb(actions, "list", "registry", "One line for each token")
    _socket(listed)
    revoke = add_verb(
        actions, "revoke", "registry", "A token is good no more, at once and for ever",
    )  # fmt: skip
    revoke.add_argument("name", metavar="NAME", help="see 'gristmill token list'")
    revoke.add_argument("--reason", metavar="TEXT", help="why, for the audit log")
    _desk(revoke)


def _add_actions_of_nodes(actions: Any) -> None:
    """What is decided about nodes."""
    listed = actions.choices["list"]
    listed.add_argument(
        "--enrolled",
        action="store_true",
        help="nodes as the registry has them: pending, approved, active, quarantined, ended",
    )
    _socket(listed)
    token = add_verb(
        actions,
        "token",
        "registry",
        "Let one machine enrol as NAME, once, within 15 minutes; the token is shown once",
        more="An unused token for the same name is revoked.",
    )
    token.add_argument("name", metavar="NAME", help="of the node: letters, digits, '.' and '-'")
    token.add_argument("--class", dest="node_class", metavar="CLASS", help="of the node's tariff")
    token.add_argument(
        "--owner", metavar="TENANT", default="local", help="whose machine it is (default: local)"
    )
    _ttl(token)
    _desk(token)
    enrol = add_verb(
        actions,
        "enrol",
        "enrol",
        "Make this machine a node of a grid, with the token of an operator",
        has_grid=False,
        more="It makes a key, tries itself, registers, and waits until an operator decides.",
    )
    enrol.add_argument(
        "token", metavar="TOKEN", nargs="?", help="others see it in ps: better in a file"
    )
    enrol.add_argument("--token-file", metavar="FILE", help="the token is in here; - for stdin")
    enrol.add_argument("--state", metavar="DIR", help="the worker's (GRISTMILL_WORKER_STATE)")
    enrol.add_argument("--rotate", action="store_true", help="take a new key in place of the old")
    enrol.add_argument("--no-wait", action="store_true", help="register only; exit 1 while pending")
    enrol.add_argument(
        "--timeout",
        type=typed(units.parse_ms),
        metavar="TIME",
        help="wait so long, then exit 1",
    )
    approve = _decision(actions, "approve", "A pending node may work, once it passes a canary")
    _limits(approve)
    _decision(actions, "reject", "A pending node is turned away")
    _limits(_decision(actions, "limit", "Set how many slots of a node are used, and its class"))
    _decision(actions, "quarantine", "A node gets no more work until it is released")
    _decision(actions, "release", "A node leaves quarantine and is tried by a canary again")
    _decision(actions, "ban", "A node's key is refused for ever; its name is free")
    _decision(actions, "revoke", "A node leaves the grid; it may enrol again with a new token")
    rotate = add_verb(
        actions,
        "rotate",
        "registry",
        "Let a node take a new key: a token for 'gristmill node enrol --rotate' there",
    )
    rotate.add_argument("name", metavar="NAME", help="of the node, which keeps its place")
    _ttl(rotate)
    _desk(rotate)


def add_actions_of_audit(actions: Any) -> None:
    """The log of what operators, nodes and time did."""
    log = add_verb(
        actions,
        "log",
        "registry",
        "One line for each act: who did what to whom, and why",
    )
    log.add_argument("name", metavar="NAME", nargs="?", help="only about this node, token or key")
    log.add_argument("--state", metavar="DIR", help="of the registry (STATE/registry of the grid)")
    _socket(log)
    verify = add_verb(
        actions,
        "verify",
        "registry",
        "Compute the chain of the log from its first record, and name the first that is false",
        has_grid=False,
        more="Reads only, also while the registry runs; exit 1 if anything is not in order.",
    )
    verify.add_argument(
        "--head", metavar="HEAD", help="one that was printed before must still be part of the log"
    )
    verify.add_argument(
        "--state", metavar="DIR", help="of the registry (STATE/registry of the grid)"
    )


def _decision(actions: Any, act: str, summary: str) -> Parser:
    parser = add_verb(actions, act, "registry", summary, more=_ONCE)
    parser.add_argument("name", metavar="NAME", help="of the node, or its public key")
    parser.add_argument("--reason", metavar="TEXT", help="why, for the node and the audit log")
    parser.add_argument(
        "--version",
        type=typed(count_of(1, 1 << 60)),
        metavar="N",
        help="the one that you looked at (default: the present one)",
    )
    _desk(parser)
    return parser


def _limits(parser: Parser) -> None:
    parser.add_argument(
        "--slots", type=typed(count_of(1, 1024)), metavar="N", help="use at most so many"
    )
    parser.add_argument("--class", dest="node_class", metavar="CLASS", help="of the node's tariff")


def _ttl(parser: Parser) -> None:
    parser.add_argument(
        "--ttl", type=typed(units.parse_ms), metavar="TIME", help="good for so long (15m)"
    )


def _desk(parser: Parser) -> None:
    parser.add_argument("--by", metavar="WHO", help="who you are, for the log (default: your user)")
    _socket(parser)


def _socket(parser: Parser) -> None:
    parser.add_argument("--registry", metavar="ADDRESS", help="ipc:///path of its control socket")
