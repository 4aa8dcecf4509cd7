"""``gristmill credits``: buy credits, see what became of them, decide what nobody else can."""

import argparse
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gristmill.cli import documents
from gristmill.cli.connection import connect
from gristmill.cli.output import Terminal, clean
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK, EXIT_UNREACHABLE, RemoteError
from gristmill.wire.payments import (
    FINAL_INTENT_STATES,
    IntentView,
    Offer,
    Price,
    check_reference,
    price_of,
    wrong_amount,
)
from gristmill.wire.units import format_credits, format_ms

if TYPE_CHECKING:
    from gristmill.client import Client

REFERENCE_S = 15.0  #: for the treasury to make what is to be paid
PAUSE_S = 0.2
#: of questions whose answer may be lost with the change that they asked for
_UNCERTAIN = ("LEDGER_DOWN", "UNREACHABLE", "INTERNAL", "RECOVERING")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """One of the actions."""
    with connect(args.address) as client:
        try:
            return _ACTIONS[args.action](client, args, terminal)
        except RemoteError as error:
            if error.code != "LEDGER_CONFLICT":
                raise
            raise RemoteError(error.code, error.message, _next_of(args)) from None


def _next_of(args: argparse.Namespace) -> str:
    """The next command of who is told that the ledger holds something else."""
    if args.action == "buy":
        return "choose another --key for another purchase; 'gristmill credits list' has the first"
    more = "; another payment has another --ref" if args.action == "confirm" else ""
    return f"gristmill credits status {clean(args.intent)}{more}"


# ---------------------------------------------------------------- buying


def _offers(client: "Client", args: argparse.Namespace, terminal: Terminal) -> int:
    answer = client.offers()
    if terminal.is_json:
        document = documents.CreditOffers(answer.offers, answer.ledger_key)
        terminal.document(documents.encode(document))
    elif not answer.offers:
        terminal.say("no credits are sold here now: no treasury is there")
    else:
        head = ["WITH", "CREDITS FOR 1", "FEE", "FROM", "TO", "GOOD FOR"]
        rows = [
            [
                offer.backend,
                f"{format_credits(offer.ucredits_per_unit)} / {offer.unit}",
                f"{offer.fee_ppm / 10_000:g} %",
                format_credits(offer.amount_min_ucredits),
                format_credits(offer.amount_max_ucredits),
                format_ms(offer.expiry_ms),
            ]
            for offer in answer.offers
        ]
        terminal.table(head, rows, right=head[1:], whole=head, styles={"WITH": "bold"})
    return EXIT_OK


def _buy(client: "Client", args: argparse.Namespace, terminal: Terminal) -> int:
    """Show the price, ask, buy under one key, show what to pay."""
    answer = client.offers()
    offer = next((one for one in answer.offers if one.backend == args.backend), None)
    if offer is None:
        known = ", ".join(one.backend for one in answer.offers) or "nothing"
        told = f"nobody sells credits by {args.backend} now; what is sold: {known}"
        raise RemoteError("PAYMENTS_DOWN", told)
    if wrong := wrong_amount(offer, args.amount):
        raise RemoteError("INVALID_SPEC", wrong, "gristmill credits offers")
    price = price_of(offer, args.amount)
    _show_price(offer, args.amount, price, terminal)
    key = args.key or secrets.token_hex(8)
    if not (args.yes or _is_agreed(terminal)):
        terminal.say("nothing was bought")
        return EXIT_FAILED
    view = _made(client, args, price, key, terminal)
    if view is None:
        return EXIT_UNREACHABLE
    view = _until(client, view, lambda one: bool(one.reference), REFERENCE_S)
    if view.reference:
        check_reference(view, answer.ledger_key)
    _show(view, terminal)
    if not view.reference and view.state == "created":
        terminal.say(
            f"{args.backend} has not made an invoice yet; it is made when it answers"
            f"\n  next: gristmill credits status {view.intent}"
        )
    return EXIT_OK


def _show_price(offer: Offer, amount: int, price: Price, terminal: Terminal) -> None:
    terminal.say(
        f"{format_credits(amount)} credits by {offer.backend}: {price.price:,} {offer.unit} and a "
        f"fee of {price.fee:,}, together {price.due:,} {offer.unit}; to be paid within "
        f"{format_ms(offer.expiry_ms)}"
    )


def _is_agreed(terminal: Terminal) -> bool:
    if not sys.stdin.isatty():
        raise RemoteError(
            "INVALID_SPEC",
            "nobody is here to agree to the price",
            "the same command with --yes, and --key K to be able to repeat it",
        )
    terminal.say("buy? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _made(
    client: "Client", args: argparse.Namespace, price: Price, key: str, terminal: Terminal
) -> IntentView | None:
    """The intent; None when nobody can tell whether there is one.

    After a time-out the question is what became of it, not to buy again.
    """
    try:
        return client.buy(args.backend, args.amount, price, key)
    except RemoteError as error:
        if error.code not in _UNCERTAIN:
            raise
        told = error.message
    try:
        found = next((one for one in client.intents() if one.key == key), None)
    except RemoteError as error:
        repeat = f"gristmill credits buy {format_credits(args.amount).replace(',', '')}"
        terminal.say(
            f"UNKNOWN: whether the purchase was made cannot be told now: {told}; {error.message}"
            f"\n  next: {repeat} --with {args.backend} --key {key}  (the same purchase)"
        )
        return None
    if found is None:
        raise RemoteError("LEDGER_DOWN", f"nothing was bought: {told}")
    return found


def _until(
    client: "Client", view: IntentView, is_enough: Callable[[IntentView], bool], patience_s: float
) -> IntentView:
    """The intent as soon as it is so, or ended, or as it is after the patience."""
    deadline = time.monotonic() + patience_s
    while not is_enough(view) and view.state not in FINAL_INTENT_STATES:
        if time.monotonic() >= deadline:
            break
        time.sleep(PAUSE_S)
        (view,) = client.intents(view.intent)
    return view


# ---------------------------------------------------------------- one purchase


def _status(client: "Client", args: argparse.Namespace, terminal: Terminal) -> int:
    try:
        (view,) = client.intents(args.intent)
        if args.wait:
            terminal.way_back = f"the purchase goes on; see: gristmill credits status {args.intent}"
            patience_s = float("inf") if args.timeout is None else args.timeout / 1000
            view = _until(client, view, lambda one: False, patience_s)
            if view.state not in FINAL_INTENT_STATES:
                terminal.say(f"not paid within {format_ms(args.timeout)}; {terminal.way_back}")
    except RemoteError as error:
        if error.code not in _UNCERTAIN:
            raise
        terminal.say(
            f"{clean(args.intent)}: UNKNOWN: {error.message}"
            f"\n  next: gristmill credits status {clean(args.intent)}"
        )
        return EXIT_UNREACHABLE
    if view.reference:
        check_reference(view, view.ledger_key)
    _show(view, terminal)
    return EXIT_OK if not args.wait or view.state == "settled" else EXIT_FAILED


def _list(client: "Client", args: argparse.Namespace, terminal: Terminal) -> int:
    views = client.intents(everyone=args.all)
    if terminal.is_json:
        terminal.document(documents.encode(documents.Purchases(views)))
    elif not views:
        terminal.say("nothing was bought yet\n  next: gristmill credits offers")
    else:
        head = ["INTENT", "TENANT", "STATE", "CREDITS", "DUE", "RECEIVED", "WITH"]
        rows = [
            [
                view.intent,
                view.tenant if args.all else "",
                told_state(view),
                format_credits(view.amount_ucredits),
                f"{view.due:,} {view.unit}",
                f"{view.received:,}" if view.received else "",
                view.backend,
            ]
            for view in views
        ]
        figures = ["CREDITS", "DUE", "RECEIVED"]
        whole = ["INTENT", *figures]
        terminal.table(head, rows, right=figures, whole=whole, styles={"INTENT": "bold"})
    return EXIT_OK


def _cancel(client: "Client", args: argparse.Namespace, terminal: Terminal) -> int:
    view = client.change_purchase("cancel", args.intent)
    _show(_until(client, view, lambda one: False, REFERENCE_S), terminal)
    return EXIT_OK


def _confirm(client: "Client", args: argparse.Namespace, terminal: Terminal) -> int:
    view = client.change_purchase("confirm", args.intent, received=args.received, ref=args.ref)
    _show(view, terminal)
    if view.state != "settled" and view.state in FINAL_INTENT_STATES:
        terminal.say(
            f"{view.intent} had ended: what comes for it now is a purchase of its own, settled late"
            "\n  next: gristmill credits list --all"
        )
    return EXIT_OK


def _decide(client: "Client", args: argparse.Namespace, terminal: Terminal) -> int:
    _show(client.change_purchase(args.decision, args.intent, ref=args.ref), terminal)
    return EXIT_OK


_ACTIONS: dict[str, Callable[["Client", argparse.Namespace, Terminal], int]] = {
    "offers": _offers,
    "buy": _buy,
    "status": _status,
    "list": _list,
    "cancel": _cancel,
    "confirm": _confirm,
    "decide": _decide,
}


# ---------------------------------------------------------------- what it shows


def told_state(view: IntentView) -> str:
    """Its state in a person's words."""
    if view.state == "created" and view.received:
        return "underpaid"
    if view.state == "created" and view.is_cancelling:
        return "cancelling"
    if view.state == "settled" and view.follows:
        return "settled (late)"
    return view.state


def _show(view: IntentView, terminal: Terminal) -> None:
    if terminal.is_json:
        terminal.document(documents.encode(documents.Purchase(told_state(view), view)))
        return
    left_ms = view.expires_ms - time.time_ns() // 1_000_000
    is_open = view.state == "created"
    pairs = [
        ("state", told_state(view)),
        ("credits", format_credits(view.amount_ucredits)),
        ("due", f"{view.due:,} {view.unit} ({view.price:,} and a fee of {view.fee:,})"),
        ("received", f"{view.received:,} {view.unit}" if view.received else ""),
        ("credited", format_credits(view.credited_ucredits) if view.credited_ucredits else ""),
        ("in review", _told_review(view)),
        ("expires", f"in {format_ms(max(0, left_ms))}" if is_open else ""),
        ("follows", f"{view.follows}, which had ended when it was paid" if view.follows else ""),
        ("decision", clean(view.decision)),
        *_payments(view),
        ("signed by", view.ledger_key if is_open and view.reference else ""),
    ]
    terminal.card(f"{view.intent} by {clean(view.backend)}", pairs)
    if is_open and view.reference:
        terminal.print(view.reference)


def _told_review(view: IntentView) -> str:
    if not view.review_ucredits:
        return ""
    left = view.due - view.received
    return (
        f"{format_credits(view.review_ucredits)} credits: pay {left:,} {view.unit} more, or the "
        "operator credits or refunds what came"
    )


def _payments(view: IntentView) -> Sequence[tuple[str, str]]:
    return [
        (
            "payment",
            f"{clean(one.id)}: {one.amount:,} {view.unit}, {format_credits(one.credited_ucredits)}"
            " credits",
        )
        for one in view.payments
    ]
