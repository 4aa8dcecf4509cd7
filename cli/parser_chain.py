"""The verbs of ``gristmill chain``: contracts on an EVM chain, deployed and looked at."""

from typing import Any

from gristmill.cli.parser import Parser, Verbs, add_verb, count_of, typed
from gristmill.wire import units

_DAY_S = 86_400
_AMOUNT = "10000"


def add(verbs: Verbs) -> None:
    """``gristmill chain deploy|status|verify|key``."""
    parser = verbs.add_parser(
        "chain",
        help="Deploy the contracts on an EVM chain, look at them, make keys for it",
        description="For the operator of a grid that settles on a chain; see docs/chain.md.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    _add_deploy(actions)
    status = add_verb(
        actions,
        "status",
        "chain",
        "Show each contract: its code against what is pinned, owner, fee wallet, money, root",
        has_grid=False,
        more="Exit 5 when the chain or a code is another than the deployment's.",
    )
    _rpc(status)
    _file(status)
    reconcile = add_verb(
        actions,
        "reconcile",
        "reconcile",
        "Read every event of the contracts, and hold them against the ledger, to the unit",
        more="For operators. Exit 1 on any drift. docs/settlement.md says what to do then.",
    )
    _rpc(reconcile)
    _file(reconcile)
    reconcile.add_argument(
        "--depth",
        type=typed(count_of(0, 10_000)),
        default=12,
        metavar="K",
        help="blocks below the newest, as the settlement's own (default: 12)",
    )
    verify = add_verb(
        actions,
        "verify",
        "chain",
        "Compare a deployment file with the contracts of this gristmill; no chain is asked",
        has_grid=False,
        more="Only 'chain status' sees what lies at the addresses.",
    )
    verify.add_argument("deployment", metavar="FILE", help="as 'gristmill chain deploy' wrote it")
    key = actions.add_parser("key", help="Make a key for the chain, in a keystore")
    kinds = key.add_subparsers(dest="kind", metavar="ACTION", title="actions", required=True)
    new = add_verb(
        kinds, "new", "chain", "Make a key in a new keystore file of mode 0600", has_grid=False
    )
    new.add_argument("file", metavar="FILE", help="that is not there yet")
    _password(new)


def _add_deploy(actions: Any) -> None:
    deploy = add_verb(
        actions,
        "deploy",
        "chain",
        "Say what deploying the contracts would do and cost; with --send do it",
        has_grid=False,
        more="Said again after an interruption, it goes on where it was: what the deployment file "
        "has and the chain confirms is not paid for twice.",
    )
    _rpc(deploy)
    _file(deploy)
    deploy.add_argument("--key", metavar="FILE", help="keystore of the key that deploys and pays")
    deploy.add_argument(
        "--signer", metavar="URL", help="of an external signer instead: Clef, web3signer"
    )
    deploy.add_argument(
        "--from", dest="sender", metavar="ADDRESS", help="which key of the external signer"
    )
    _password(deploy)
    token = deploy.add_mutually_exclusive_group(required=True)
    token.add_argument("--token", metavar="ADDRESS", help="what is paid in; 6 decimals")
    token.add_argument(
        "--dev-token", action="store_true", help="deploy one too, on a development chain (31337)"
    )
    for name, what in (
        ("--fee-wallet", "who is owed the 3 %%"),
        ("--arbiter", "who decides disputes"),
        ("--guardian", "who can veto a payout's root"),
    ):
        deploy.add_argument(name, required=True, metavar="ADDRESS", help=what)
    deploy.add_argument(
        "--coordinator", metavar="ADDRESS", help="who posts roots, WorkPool's owner: the deployer"
    )
    for name, days, what in (
        ("--window", 1, "a root waits so long before it can be claimed from"),
        ("--grace", 1, "a provider can redeem so long after the deadline"),
        ("--dispute-window", 7, "after this a silent arbiter is done without"),
    ):
        deploy.add_argument(
            name,
            type=typed(_seconds),
            default=days * _DAY_S,
            metavar="TIME",
            help=f"{what} (default: {days}d)",
        )
    deploy.add_argument(
        "--cap",
        type=typed(units.parse_credits),
        default=units.parse_credits(_AMOUNT),
        metavar="CREDITS",
        help=f"what one root can add to the one before (default: {_AMOUNT})",
    )
    deploy.add_argument("--send", action="store_true", help="do it; without it nothing is sent")


def _rpc(parser: Parser) -> None:
    parser.add_argument(
        "--rpc",
        action="append",
        required=True,
        metavar="URL",
        help="http(s):// of a node of the chain; repeat it for others to fall back on",
    )


def _file(parser: Parser) -> None:
    parser.add_argument(
        "--deployment", required=True, metavar="FILE", help="where the contracts lie, as JSON"
    )


def _password(parser: Parser) -> None:
    given = parser.add_mutually_exclusive_group()
    given.add_argument(
        "--password-file", metavar="FILE", help="of the keystore, mode 0600 (default: it is asked)"
    )
    given.add_argument(
        "--password-fd", type=typed(count_of(0, 1023)), metavar="N", help="an open descriptor"
    )


def _seconds(text: str) -> int:
    ms = units.parse_ms(text)
    if ms % 1000:
        raise ValueError(f"{text!r} is not whole seconds; write it as 90s, 12h or 7d")
    return ms // 1000
