"""``gristmill rental``: credits locked in a contract for jobs, vouchers, refunds."""

import argparse
import contextlib
import datetime
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gristmill.cli import documents
from gristmill.cli.connection import connect
from gristmill.cli.documents_rental import Rental as RentalDocument
from gristmill.cli.documents_rental import RentalRefund, RentalVoucher
from gristmill.cli.output import Terminal
from gristmill.wire.errors import EXIT_OK, RemoteError
from gristmill.wire.ids import is_digest
from gristmill.wire.units import format_credits, format_ms

if TYPE_CHECKING:
    from gristmill.client.rental import OnChain, Rental
    from gristmill.contracts.deployment import Deployment
    from gristmill.contracts.keys import AccountKey
    from gristmill.contracts.rpc import Chain


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """One of the actions."""
    check_installed()
    actions = {"lock": _lock, "pay": _pay, "show": _show, "refund": _refund}
    return actions[args.action](args, terminal)


def check_installed() -> None:
    """Raises where the libraries of the chain are not there: they are an extra.

    Raises:
        RemoteError: ``INVALID_SPEC``.
    """
    try:
        import gristmill.contracts.ethereum  # noqa: F401
    except ImportError as error:
        told = f"the chain needs {error.name}"
        raise RemoteError("INVALID_SPEC", told, "pip install 'gristmill[chain]'") from None


@contextlib.contextmanager
def opened(args: argparse.Namespace) -> Iterator[tuple["Chain", "Deployment"]]:
    """The chain of ``--rpc``, with the contracts of ``--deployment`` on it, compared.

    Raises:
        RemoteError: ``CHAIN_WRONG``, with what differs; ``CHAIN_DOWN``, ``INVALID_SPEC``.
    """
    from gristmill.contracts import deployment
    from gristmill.contracts.rpc import Chain

    read = deployment.read(pathlib.Path(args.deployment))
    chain = Chain(args.rpc, read.chain_id)
    try:
        deployment.check(read, chain)
        yield chain, read
    finally:
        chain.close()


def opened_key(args: argparse.Namespace) -> "AccountKey":
    """The key of ``--key``."""
    from gristmill.contracts.keys import open_keystore, read_password

    path = pathlib.Path(args.key)
    file = pathlib.Path(args.password_file) if args.password_file else None
    return open_keystore(path, read_password(file, args.password_fd, f"password of {path}"))


def _id(text: str) -> bytes:
    name = text.removeprefix("0x").lower()
    if not is_digest(name):
        raise RemoteError(
            "INVALID_SPEC",
            f"{text!r:.80} is no rental: 64 hexadecimal digits",
            "copy it from what 'gristmill rental lock' said, or from 'gristmill balance'",
        )
    return bytes.fromhex(name)


def _lock(args: argparse.Namespace, terminal: Terminal) -> int:
    from gristmill.client.rental import Rental, now_on
    from gristmill.contracts.abi import parse_address

    provider = parse_address(args.provider, "--provider")
    with connect(args.address) as client, opened(args) as (chain, deployment):
        key = opened_key(args)
        deadline_s = now_on(chain) + args.deadline // 1000
        rental = Rental.lock(client, chain, deployment, key, args.credits, deadline_s, provider)
        terminal.say(f"locked {format_credits(args.credits)} credits in rental {rental.name}")
        if args.wait:
            terminal.way_back = f"the rental goes on: gristmill rental show {rental.name}"
            rental.wait(args.wait / 1000)
        _tell(rental, terminal)
    if not terminal.is_json:
        terminal.say(f"next: gristmill submit --rental {rental.name} --cap CREDITS ...")
    return EXIT_OK


def _pay(args: argparse.Namespace, terminal: Terminal) -> int:
    from gristmill.client.rental import Rental

    id = _id(args.rental)
    with connect(args.address) as client, opened(args) as (chain, deployment):
        rental = Rental(client, chain, deployment, opened_key(args), id)
        proof = rental.proof(*args.jobs)
        shown = rental.pay(*args.jobs, is_last=args.last)
    if terminal.is_json:
        document = RentalVoucher(
            rental.name, shown.cumulative, shown.redeemed, proof.receipts, proof.root.hex(),
            args.last,
        )  # fmt: skip
        terminal.document(documents.encode(document))
        return EXIT_OK
    terminal.card(
        f"voucher of rental {rental.name}",
        [
            ("over", f"{format_credits(shown.cumulative)} credits, by {proof.receipts} receipts"),
            ("on the chain", f"{format_credits(shown.redeemed)} of them by now"),
            ("root", f"0x{proof.root.hex()}"),
        ],
    )
    return EXIT_OK


def _show(args: argparse.Namespace, terminal: Terminal) -> int:
    from gristmill.client.rental import Rental
    from gristmill.contracts.keys import AccountKey

    nobody = AccountKey(b"\1" * 32)  # to look takes no key
    with connect(args.address) as client, opened(args) as (chain, deployment):
        rental = Rental(client, chain, deployment, nobody, _id(args.rental))
        if rental.seen().state == "none":
            raise RemoteError("UNKNOWN_RENTAL", f"there is no rental {rental.name} in the contract")
        _tell(rental, terminal)
    return EXIT_OK


def _refund(args: argparse.Namespace, terminal: Terminal) -> int:
    from gristmill.contracts.abi import show_address
    from gristmill.contracts.act import act

    id = _id(args.rental)
    with opened(args) as (chain, deployment):
        key, contract = opened_key(args), deployment.at("ComputeRental")
        act(chain, key, contract, "refund", id)
        client = chain.call(contract, "rentals", id)[0]  # whoever asked, it is the client's
        owed = chain.call(contract, "owed", client)
        if owed:
            act(chain, key, contract, "withdrawTo", client)
    if terminal.is_json:
        document = RentalRefund(id.hex(), show_address(client), owed)
        terminal.document(documents.encode(document))
    else:
        terminal.say(f"{format_credits(owed)} credits went to {show_address(client)}")
    return EXIT_OK


def _tell(rental: "Rental", terminal: Terminal) -> None:
    from gristmill.contracts.abi import show_address

    seen, credits = rental.seen(), rental.credits()
    state_id, ends_s = rental.state_id().hex(), rental.dispute_ends_s()
    if terminal.is_json:
        document = RentalDocument(
            rental.name,
            seen.state,
            show_address(seen.client),
            show_address(seen.provider),
            show_address(seen.payee),
            seen.deadline_s,
            seen.locked,
            seen.paid,
            -1 if credits is None else credits,
            state_id,
            ends_s,
        )
        terminal.document(documents.encode(document))
        return
    pairs = _pairs(seen, credits)
    if ends_s:
        pairs[1:1] = [("held until", f"{_countdown(ends_s, rental.now_s())}, for its arbiter")]
    terminal.card(f"rental {rental.name}", [*pairs, ("state id", state_id)])


def _countdown(at_s: int, now_s: int) -> str:
    left = f"in {format_ms((at_s - now_s) * 1000)}" if at_s > now_s else "now: anybody may end it"
    return f"{datetime.datetime.fromtimestamp(at_s, datetime.UTC):%Y-%m-%d %H:%M} UTC, {left}"


def _pairs(seen: "OnChain", credits: int | None) -> list[tuple[str, str]]:
    from gristmill.contracts.abi import show_address

    at = datetime.datetime.fromtimestamp(seen.deadline_s, datetime.UTC)
    known = "not known yet" if credits is None else f"{format_credits(credits)} available"
    return [
        ("state", seen.state),
        ("locked", format_credits(seen.locked)),
        ("paid", format_credits(seen.paid)),
        ("at the grid", known),
        ("deadline", f"{at:%Y-%m-%d %H:%M} UTC"),
        ("client", show_address(seen.client)),
        ("provider", show_address(seen.provider)),
        ("payee", show_address(seen.payee)),
    ]
