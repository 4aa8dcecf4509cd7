"""``gristmill chain reconcile``: the chain held against the ledger, to the unit."""

import argparse

from gristmill.cli import documents
from gristmill.cli.connection import connect
from gristmill.cli.documents_chain import ChainReconcile, ReconcileLine
from gristmill.cli.output import Terminal
from gristmill.cli.rental import check_installed, opened
from gristmill.wire import chain as wire
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Exit 1 on any drift."""
    check_installed()
    from gristmill.ledger.settlement.audit import report
    from gristmill.ledger.settlement.core.reconcile import told

    with connect(args.address) as client, opened(args) as (chain, deployment):
        pool = wire.pool_of(deployment.chain_id, deployment.at("WorkPool").address)

        def books() -> wire.ChainBooks:
            found: wire.ChainBooks = client.on_chain(wire.AskChainBooks(0, pool), wire.ChainBooks)
            return found

        def agreed(specs: list[bytes]) -> list[bool]:
            return list(client.on_chain(wire.AskAgreed(0, specs), list[bool]))

        books()  # before the chain is read: who may not ask is told at once
        found = report(chain, deployment, args.depth, books, agreed)
    if terminal.is_json:
        lines = [
            ReconcileLine(line.name, line.ours, line.theirs, line.drift, line.surplus)
            for line in found.lines
        ]
        document = ChainReconcile(found.block, lines, found.drift, found.foreign, found.faults)
        terminal.document(documents.encode(document))
    else:
        terminal.print(told(found))
    return EXIT_OK if found.is_good else EXIT_FAILED
