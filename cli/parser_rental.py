"""The verbs ``gristmill rental`` and ``gristmill claim``: credits that a contract holds."""

from typing import Any

from gristmill.cli.parser import Parser, Verbs, add_verb, count_of, typed
from gristmill.wire import units

_DAY_MS = 86_400_000
_FILE = "where the contracts lie, as the operator published it"


def add(verbs: Verbs) -> None:
    """``gristmill rental lock|show|pay|refund`` and ``gristmill claim at|show|take``."""
    parser = verbs.add_parser(
        "rental",
        help="Lock credits in a contract for jobs, and pay for these by vouchers",
        description="What is not paid by a rental's deadline goes back to you; see "
        "docs/rentals.md.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    lock = add_verb(actions, "lock", "rental", "Lock credits for jobs of this grid, and say the id")
    lock.add_argument("credits", type=typed(units.parse_credits), help="how many, such as 12.5")
    lock.add_argument(
        "--deadline",
        type=typed(units.parse_ms),
        default=7 * _DAY_MS,
        metavar="TIME",
        help="until when the work is to be done (default: 7d)",
    )
    lock.add_argument(
        "--provider", required=True, metavar="ADDRESS", help="who acts for the grid on the chain"
    )
    lock.add_argument(
        "--wait",
        type=typed(units.parse_ms),
        default=600_000,
        metavar="TIME",
        help="for the grid to see it (default: 10m); 0: do not wait",
    )
    pay = add_verb(
        actions, "pay", "rental", "Sign a voucher for what jobs cost by their receipts",
        more="Name all jobs of the rental so far: vouchers are over everything.",
    )  # fmt: skip
    pay.add_argument("rental", metavar="RENTAL", help="its id")
    pay.add_argument("jobs", metavar="JOB", nargs="+", help="each job that it paid for")
    pay.add_argument("--last", action="store_true", help="no more jobs: give the rest back now")
    show = add_verb(
        actions, "show", "rental", "Show what a rental has, at the grid and on the chain"
    )
    show.add_argument("rental", metavar="RENTAL", help="its id")
    refund = add_verb(
        actions, "refund", "rental", "Take back what was not paid, after deadline and grace",
        has_grid=False,
    )  # fmt: skip
    refund.add_argument("rental", metavar="RENTAL", help="its id")
    for verb in (lock, pay, refund):
        _chain(verb)
        _key(verb, is_needed=True)
    _chain(show)
    _add_claim(verbs)


def _add_claim(verbs: Any) -> None:
    parser = verbs.add_parser(
        "claim",
        help="Say where a node is paid, and claim what it earned",
        description="For who lends a machine; see docs/rentals.md.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    at = add_verb(actions, "at", "claim", "Say at which address of the chain a node is paid")
    at.add_argument("to", metavar="ADDRESS", help="of an account whose key you have")
    at.add_argument("--worker-key", required=True, metavar="FILE", help="the node's worker.key")
    at.add_argument("--deployment", required=True, metavar="FILE", help=_FILE)
    show = add_verb(actions, "show", "claim", "Show what an address earned, claimed and can claim")
    take = add_verb(actions, "take", "claim", "Have the pool pay an address what it can claim")
    for verb in (show, take):
        verb.add_argument("to", metavar="ADDRESS", help="that earned it; it gets the money")
        _chain(verb)
    _key(take, is_needed=False)
    take.add_argument("--send", action="store_true", help="do it; without it nothing is sent")


def _chain(parser: Parser) -> None:
    parser.add_argument(
        "--rpc",
        action="append",
        required=True,
        metavar="URL",
        help="http(s):// of a node of the chain; repeat it for others to fall back on",
    )
    parser.add_argument("--deployment", required=True, metavar="FILE", help=_FILE)


def _key(parser: Parser, *, is_needed: bool) -> None:
    parser.add_argument(
        "--key", required=is_needed, metavar="FILE", help="keystore of the account that signs"
    )
    given = parser.add_mutually_exclusive_group()
    given.add_argument(
        "--password-file", metavar="FILE", help="of the keystore, mode 0600 (default: it is asked)"
    )
    given.add_argument(
        "--password-fd", type=typed(count_of(0, 1023)), metavar="N", help="an open descriptor"
    )
