"""``gristmill statement``: every entry of an account, with its receipt, and their sum."""

import argparse
import collections
import csv
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO

import msgspec

from gristmill.cli import documents
from gristmill.cli.connection import connect
from gristmill.cli.documents import Entry
from gristmill.cli.files import write_file
from gristmill.cli.output import Terminal, clean, plural
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK, RemoteError
from gristmill.wire.ids import format_job, format_receipt
from gristmill.wire.units import format_credits

if TYPE_CHECKING:
    from gristmill.client import Client
    from gristmill.client.statement import Statement

COLUMNS = Entry.__struct_fields__
_FORMULAS = tuple("=+-@\t\r\n＝＋－＠")  #: what begins one in a spreadsheet, wide forms included


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Read all of it, add it up, show its end."""
    with connect(args.address) as client:
        statement = _ask(client, args.account)
        if terminal.is_json:
            entries = list(_entries(statement))
            terminal.document(documents.encode(_document(statement, entries)))
        elif args.csv == "-":
            _write(_entries(statement), sys.stdout)
        elif args.csv:
            rows = _entries(statement)
            count = write_file(args.csv, "--csv", lambda out: _write(rows, out))
            terminal.say(f"{plural(count, 'entry')} in {args.csv}")
            _show_totals(statement, terminal)
        else:
            _show(statement, args.last, terminal)
    if not statement.incident:
        return EXIT_OK
    terminal.say(
        f"THIS STATEMENT DOES NOT ADD UP: {statement.incident}\n"
        f"  its entries make {format_credits(statement.made.posted_ucredits)} credits and "
        f"{format_credits(statement.made.held_ucredits)} held; the account has "
        f"{format_credits(statement.totals.posted_ucredits)} and "
        f"{format_credits(statement.totals.held_ucredits)}\n"
        "  next: tell the operator the name of the incident; the ledger's log has it, too",
        "red",
    )
    return EXIT_FAILED


def _ask(client: "Client", account: str) -> "Statement":
    try:
        return client.statement(account)
    except RemoteError as error:
        if error.code != "INVALID_SPEC":
            raise
        hint = "gristmill balance --all, which lists the accounts"
        raise RemoteError(error.code, error.message, hint) from None


def _entries(statement: "Statement") -> Iterator[Entry]:
    """Rows as people and programs see them; the account's credits after each."""
    posted = 0
    for row in statement:
        posted += row.amount_ucredits
        job = row.ref.rpartition("/")[2]
        is_job = row.what in ("held", "paid", "earned", "released", "expired") and job.isdecimal()
        yield Entry(
            row.number, row.at_ms, row.what,
            format_job(int(job)) if is_job else row.ref,
            format_receipt(int(job), row.receipt) if is_job and row.receipt else "",
            row.amount_ucredits, row.toll_ucredits, row.held_ucredits, posted,
        )  # fmt: skip


def _document(statement: "Statement", entries: list[Entry]) -> documents.AccountStatement:
    totals = statement.totals
    return documents.AccountStatement(
        statement.account, statement.upto, totals.came_ucredits, totals.went_ucredits,
        totals.held_ucredits, totals.available_ucredits, statement.incident, entries,
    )  # fmt: skip


# ---------------------------------------------------------------- a file


def _write(entries: Iterable[Entry], out: TextIO) -> int:
    """The number of entries; a spreadsheet must not take a name for a formula."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    count = 0
    for entry in entries:
        count += 1
        row = msgspec.structs.asdict(entry)
        row["ref"] = f"'{entry.ref}" if entry.ref.startswith(_FORMULAS) else entry.ref
        writer.writerow(row.values())
    return count


# ---------------------------------------------------------------- a terminal


def _show(statement: "Statement", last: int, terminal: Terminal) -> None:
    count = 0
    shown: collections.deque[Entry] = collections.deque(maxlen=last)
    for entry in _entries(statement):
        count += 1
        shown.append(entry)
    if not count:
        terminal.say(f"nothing moved {statement.account} yet")
        return
    if count > len(shown):
        before = shown[0].posted_ucredits - shown[0].amount_ucredits
        terminal.say(
            f"{plural(count - len(shown), 'entry')} before these make "
            f"{format_credits(before)} credits (--last {count}, or --csv FILE)"
        )
    head = ["WHEN (UTC)", "WHAT", "FOR", "RECEIPT", "CREDITS", "HELD", "BALANCE"]
    rows = [
        [
            time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.at_ms / 1000)),
            entry.what,
            clean(entry.ref),
            entry.receipt,
            _signed(entry.amount_ucredits),
            _signed(entry.held_ucredits),
            format_credits(entry.posted_ucredits),
        ]
        for entry in shown
    ]
    whole = [name for name in head if name != "FOR"]
    terminal.table(head, rows, right=head[4:], whole=whole, styles={"WHAT": "bold"})
    _show_totals(statement, terminal)


def _signed(ucredits: int) -> str:
    return f"{'+' if ucredits > 0 else ''}{format_credits(ucredits)}" if ucredits else ""


def _show_totals(statement: "Statement", terminal: Terminal) -> None:
    totals = statement.totals
    terminal.card(
        f"{statement.account} as of transfer {statement.upto:,}",
        [
            ("came in", format_credits(totals.came_ucredits)),
            ("spent", format_credits(totals.went_ucredits)),
            ("reserved", format_credits(totals.held_ucredits)),
            ("available", format_credits(totals.available_ucredits)),
        ],
    )
