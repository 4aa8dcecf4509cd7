"""The options of ``gristmill credits``; see ``cli/parser.py``."""

from typing import Any

from gristmill.cli.parser import Verbs, add_verb, count_of, typed
from gristmill.wire import units


def add(verbs: Verbs) -> None:
    """The verb with every action of it."""
    told = "Buy credits, and see what became of a purchase"
    parser = verbs.add_parser("credits", help=told, description=f"{told}.")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)

    def action(name: str, summary: str) -> Any:
        return add_verb(actions, name, "credits", summary)

    def intent(made: Any) -> None:
        made.add_argument(
            "intent", metavar="INTENT", type=typed(_intent), help="a purchase, as 'buy' printed it"
        )

    action("offers", "Show what credits are sold for, and by what")
    buy = action("buy", "Buy credits: show the price, ask, then show what to pay")
    buy.add_argument(
        "amount", metavar="AMOUNT", type=typed(units.parse_credits), help="credits: 10, 0.25"
    )
    buy.add_argument(
        "--with", dest="backend", metavar="NAME", required=True, help="lnd, btcpay or manual"
    )
    buy.add_argument(
        "--key",
        metavar="K",
        help="the same key is the same purchase (default: a new one)",
    )
    buy.add_argument("--yes", action="store_true", help="agree to the price without being asked")
    status = action("status", "Show what became of a purchase")
    intent(status)
    status.add_argument("--wait", action="store_true", help="until it is settled, or over")
    status.add_argument(
        "--timeout", metavar="TIME", type=typed(units.parse_ms), help="with --wait: at most so long"
    )
    listing = action("list", "List purchases, newest first")
    listing.add_argument("--all", action="store_true", help="of every tenant; for operators")
    intent(action("cancel", "Take no money for a purchase any more"))
    confirm = action("confirm", "Operator: say what came for a purchase by 'manual'")
    intent(confirm)
    confirm.add_argument(
        "--received",
        metavar="N",
        type=typed(count_of(1, 1 << 52)),
        required=True,
        help="in the minor unit",
    )
    confirm.add_argument(
        "--ref", metavar="TEXT", required=True, help="of the payment: the same one counts once"
    )
    decide = action("decide", "Operator: credit an underpayment as it is, or refund it")
    intent(decide)
    decide.add_argument("decision", choices=("credit", "refund"), help="what becomes of it")
    decide.add_argument("--ref", metavar="TEXT", required=True, help="how the money went back, say")


def _intent(text: str) -> str:
    if not text.strip():
        raise ValueError(f"{text!r} is no purchase; they look like pi6fa26e3f0760d1c98c")
    return text
