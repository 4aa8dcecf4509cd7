"""The verbs of ``gristmill ledger``: what an operator does with the books themselves."""

from typing import Any

from gristmill.cli.parser import Verbs, add_verb, typed
from gristmill.wire import units


def add(verbs: Verbs) -> None:
    """``gristmill ledger audit|fund|transfer``."""
    parser = verbs.add_parser(
        "ledger",
        help="Audit the books, mint credits, move credits",
        description="For the operator of a ledger: these speak to its file or to its socket.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    audit = add_verb(
        actions,
        "audit",
        "ledger",
        "Compute every balance again from row one, and name the first bad row",
        has_grid=False,
        more="Reads only, also while the ledger runs; exit 1 if anything is not in order. The "
        "heads that it prints change with every earlier row: keep them somewhere else.",
    )
    audit.add_argument("--state", metavar="DIR", help="of the grid (GRISTMILL_STATE)")
    audit.add_argument("--books", metavar="URL", help="postgresql://... where the books are there")
    fund = add_verb(actions, "fund", "ledger", "Mint credits for a tenant, once", has_grid=False)
    fund.add_argument("tenant", metavar="TENANT")
    fund.add_argument("credits", type=typed(_amount), metavar="CREDITS")
    fund.add_argument(
        "--ref", required=True, help="why, in your words: the same again mints nothing"
    )
    _socket(fund)
    transfer = add_verb(
        actions,
        "transfer",
        "ledger",
        "Move credits between accounts: all of the given legs, or none",
        has_grid=False,
        more="Nothing in the books is ever changed: a correction is a transfer back.",
    )
    transfer.add_argument(
        "legs",
        type=typed(_leg),
        nargs="+",
        metavar="FROM,TO,CREDITS",
        help="such as tenant:ann,tenant:bob,2.5; accounts are those of 'gristmill balance --all'",
    )
    transfer.add_argument(
        "--ref", required=True, help="why, in your words: the same again moves nothing"
    )
    _socket(transfer)


def _socket(parser: Any) -> None:
    parser.add_argument(
        "--ledger", metavar="ADDRESS", help="of the ledger (default: of the grid of this machine)"
    )
    parser.add_argument(
        "--ledger-key",
        metavar="HEX",
        default="",
        help="its public key, needed over tcp://; there your token's key must be an operator's",
    )


def _leg(text: str) -> tuple[str, str, int]:
    parts = text.split(",")
    if len(parts) != 3:
        raise ValueError(f"{text!r} is no transfer; write FROM,TO,CREDITS: tenant:ann,toll,2.5")
    return parts[0], parts[1], _amount(parts[2])


def _amount(text: str) -> int:
    ucredits = units.parse_credits(text)
    if not ucredits:
        raise ValueError(f"{text!r} moves nothing; the least is 0.000001 credits")
    return ucredits
