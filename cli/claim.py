"""``gristmill claim``: where a node is paid, and what it earned."""

import argparse
import os
import pathlib
import time
from typing import TYPE_CHECKING, NamedTuple

from gristmill.cli import documents
from gristmill.cli.connection import connect
from gristmill.cli.documents_rental import Claim as ClaimDocument
from gristmill.cli.documents_rental import Payee as PayeeDocument
from gristmill.cli.output import Terminal
from gristmill.cli.rental import check_installed, opened, opened_key
from gristmill.wire import chain as wire
from gristmill.wire.errors import EXIT_OK, RemoteError
from gristmill.wire.keys import load_key
from gristmill.wire.units import format_credits

if TYPE_CHECKING:
    from gristmill.client import Client
    from gristmill.contracts.deployment import Deployment
    from gristmill.contracts.rpc import Chain


PAYOUTS_TRIED = 4  #: of the books, the newest first: the chain's root is the last or near to it


class Due(NamedTuple):
    """What an address can claim now, and the proof of it; amounts are micro-credits."""

    payout: int
    earned: int
    claimed: int
    proof: list[bytes]


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """One of the actions."""
    check_installed()
    return {"at": _at, "show": _show, "take": _take}[args.action](args, terminal)


def _at(args: argparse.Namespace, terminal: Terminal) -> int:
    from gristmill.client.rental import state_payee
    from gristmill.contracts import deployment
    from gristmill.contracts.abi import parse_address, show_address

    address = parse_address(args.to)
    read = deployment.read(pathlib.Path(args.deployment))
    path = pathlib.Path(args.worker_key)
    if not path.is_file():
        raise RemoteError(
            "INVALID_SPEC",
            f"{path} is no file: the node's key is worker.key in the folder of its worker",
            "run this where the worker runs, as its user",
        )
    key = load_key(path)
    pool = wire.pool_of(read.chain_id, read.at("WorkPool").address)
    node = key.verify_key.encode().hex()
    payee = wire.Payee(node, pool, address, time.time_ns() // 1_000_000)
    with connect(args.address) as client:
        state_payee(client, payee, wire.sign_payee(payee, key))
    if terminal.is_json:
        document = PayeeDocument(node, pool, show_address(address))
        terminal.document(documents.encode(document))
    else:
        terminal.say(f"the node {node:.16}... is paid at {show_address(address)} from now on")
    return EXIT_OK


def _show(args: argparse.Namespace, terminal: Terminal) -> int:
    from gristmill.contracts.abi import parse_address

    address = parse_address(args.to)
    with connect(args.address) as client, opened(args) as (chain, deployment):
        _tell(address, _due(client, chain, deployment, address), b"", terminal)
    return EXIT_OK


def _take(args: argparse.Namespace, terminal: Terminal) -> int:
    from gristmill.contracts.abi import parse_address
    from gristmill.contracts.act import act

    address = parse_address(args.to)
    if args.send and not args.key:
        raise RemoteError("INVALID_SPEC", "--send needs --key: somebody pays the gas", "--key FILE")
    with connect(args.address) as client, opened(args) as (chain, deployment):
        due = _due(client, chain, deployment, address)
        if not args.send or due.earned <= due.claimed:
            _tell(address, due, b"", terminal)
            if not terminal.is_json and due.earned > due.claimed:
                terminal.say("nothing was sent; the same with --send does it")
            return EXIT_OK
        pool = deployment.at("WorkPool")
        receipt = act(chain, opened_key(args), pool, "claim", address, due.earned, due.proof)
        claimed = chain.call(pool, "claimed", address)
        _tell(address, due._replace(claimed=claimed), receipt.transaction, terminal)
    return EXIT_OK


def _due(client: "Client", chain: "Chain", deployment: "Deployment", address: bytes) -> Due:
    """What the pool's present root gives the address, proved out of the grid's own books.

    Raises:
        RemoteError: ``CHAIN_WRONG``: the books' leaves do not make the root that stands.
    """
    from gristmill.client.rental import leaves
    from gristmill.contracts.merkle import Tree

    pool = deployment.at("WorkPool")
    number, root, _ = chain.call(pool, "current")
    claimed = chain.call(pool, "claimed", address)
    if not number:
        return Due(0, 0, claimed, [])
    name = wire.pool_of(deployment.chain_id, pool.address)
    payout: wire.Payout = client.on_chain(wire.AskPayout(0, name), wire.Payout)
    # A root that was vetoed was posted again under the next number: the root itself is the name.
    for candidate in range(payout.number, max(0, payout.number - PAYOUTS_TRIED), -1):
        found = leaves(client, name, candidate)
        tree = Tree([(leaf.address, leaf.cumulative) for leaf in found])
        if tree.root == root:
            own = {leaf.address: leaf.cumulative for leaf in found}
            if address not in own:
                return Due(candidate, 0, claimed, [])
            return Due(candidate, own[address], claimed, tree.proof_of(address))
    raise RemoteError(
        "CHAIN_WRONG",
        f"the root that stands, 0x{root.hex()}, is made of no payout of this grid's books",
        "tell the guardian of the pool and the operator: it may be forged",
    )


def _tell(address: bytes, due: Due, transaction: bytes, terminal: Terminal) -> None:
    from gristmill.contracts.abi import show_address

    left = max(0, due.earned - due.claimed)
    if terminal.is_json:
        told = f"0x{transaction.hex()}" if transaction else ""
        document = ClaimDocument(
            show_address(address), due.payout, due.earned, due.claimed, left, told
        )
        terminal.document(documents.encode(document))
        return
    pairs = [
        ("earned", f"{format_credits(due.earned)} by payout {due.payout}"),
        ("claimed", format_credits(due.claimed)),
        ("can be claimed", format_credits(left)),
    ]
    if transaction:
        pairs.append(("transaction", f"0x{transaction.hex()}"))
    terminal.card(os.fspath(show_address(address)), pairs)
