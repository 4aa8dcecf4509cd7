"""``gristmill usage`` and ``gristmill balance``: what it cost, and where the credits are."""

import argparse
import time
from collections.abc import Sequence

from gristmill.cli import documents
from gristmill.cli.connection import connect, job_of
from gristmill.cli.output import Terminal
from gristmill.wire.client import AccountRow, BalanceAnswer, UsageRow
from gristmill.wire.errors import EXIT_OK, RemoteError
from gristmill.wire.units import format_credits, format_ms

AGAIN_S = 1.0  #: until whoever was away is asked again


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Ask the ledger, through the broker."""
    if args.verb == "balance":
        if args.watch:
            return _watch(args, terminal)
        with connect(args.address) as client:
            _show_answer(client.balance(everyone=args.all), terminal)
        return EXIT_OK
    job = None if args.job is None else job_of(args.job)
    with connect(args.address) as client:
        rows = client.usage(by=args.by, job=job, everyone=args.all)
    if terminal.is_json:
        terminal.document(documents.encode(documents.Usage(args.by, rows)))
    elif not rows:
        terminal.say("nothing was billed yet")
    else:
        _show_usage(args.by, rows, terminal)
    return EXIT_OK


def _watch(args: argparse.Namespace, terminal: Terminal) -> int:
    """Until Ctrl-C; a ledger or a broker that is away for a while is waited for."""
    as_of = -1
    is_told = False
    while True:
        try:
            with connect(args.address) as client:
                for answer in client.watch_balance(everyone=args.all):
                    if answer.transfers != as_of:
                        _show_answer(answer, terminal)
                        terminal.out.flush()
                    as_of, is_told = answer.transfers, False
        except RemoteError as error:
            if as_of < 0 or not error.spec.is_retryable:
                raise
            if not is_told:
                terminal.say(f"{error.message}; the last known is as of transfer {as_of:,}")
            is_told = True
            time.sleep(AGAIN_S)


def _show_answer(answer: BalanceAnswer, terminal: Terminal) -> None:
    if terminal.is_json:
        document = documents.Balance(
            answer.accounts, answer.sum_ucredits, answer.transfers
        )  # fmt: skip
        terminal.document(documents.encode(document))
        return
    _show_balance(answer.accounts, terminal)
    terminal.print(
        f"as of transfer {answer.transfers:,}; sum of all accounts: "
        f"{format_credits(answer.sum_ucredits)}"
    )


def _show_balance(accounts: Sequence[AccountRow], terminal: Terminal) -> None:
    rows = [
        [
            account.name,
            format_credits(account.posted_ucredits),
            format_credits(account.held_ucredits) if account.held_ucredits else "",
            format_credits(account.available_ucredits),
        ]
        for account in accounts
    ]
    head = ["ACCOUNT", "CREDITS", "HELD", "AVAILABLE"]
    terminal.table(head, rows, right=head[1:], whole=head[1:], styles={"ACCOUNT": "bold"})


def _show_usage(by: str, rows: Sequence[UsageRow], terminal: Terminal) -> None:
    names = by.upper().split(",")
    cells = [[*(row.keys or [row.key]), *_usage_cells(row)] for row in rows]
    if len(rows) > 1:
        cells.append(["all", *_usage_cells(total_of(rows))])
    # (the sums, and what did not fit, have one key)
    cells = [line[:1] + [""] * (len(names) + 6 - len(line)) + line[1:] for line in cells]
    head = [*names, "SUBTASKS", "FAILED", "CPU", "WALL", "CREDITS", "OF IT TOLL"]
    figures = head[len(names) :]
    whole = ["JOB", "DAY", *figures]
    terminal.table(head, cells, right=figures, whole=whole, styles={head[0]: "bold"})


def total_of(rows: Sequence[UsageRow]) -> UsageRow:
    """The sum of the rows."""
    return UsageRow(
        "all",
        sum(row.subtasks for row in rows),
        sum(row.failed for row in rows),
        sum(row.cpu_us for row in rows),
        sum(row.wall_us for row in rows),
        sum(row.amount_ucredits for row in rows),
        sum(row.toll_ucredits for row in rows),
    )


def _usage_cells(row: UsageRow) -> list[str]:
    return [
        f"{row.subtasks:,}",
        f"{row.failed:,}" if row.failed else "",
        format_ms(row.cpu_us / 1000),
        format_ms(row.wall_us / 1000),
        format_credits(row.amount_ucredits),
        format_credits(row.toll_ucredits),
    ]
