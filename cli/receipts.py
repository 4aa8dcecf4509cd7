"""``gristmill receipt``, ``verify`` and ``audit prove``: what was done and billed, provably."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from gristmill.cli import documents
from gristmill.cli.connection import asked, connect, job_of
from gristmill.cli.files import write_file
from gristmill.cli.output import Terminal, plural
from gristmill.wire import proofs
from gristmill.wire.client import UsageRow
from gristmill.wire.epochs import ReceiptsPage
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK, RemoteError
from gristmill.wire.ids import JobId, format_job, format_receipt, parse_receipt
from gristmill.wire.ledger import Contribution
from gristmill.wire.units import format_credits, format_ms

LOOK_S = 0.5  #: between two questions whether the epoch is closed
GRACE_S = 30.0  #: an epoch may be closed so much later than it promises
TRIES = 5  #: while the bill grows
DIFFERENCES_SHOWN = 20


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """One of the three verbs."""
    if args.verb == "verify":
        return _verify(args, terminal)
    if args.verb == "audit":
        return _prove(args, terminal)
    job, index, number = asked(parse_receipt, args.job)
    with connect(args.address) as client:
        pages = _fetch(lambda: client.receipts(job, index, number), args.wait, terminal)
        count = client.status(job).count if index is not None else 0
    rows = [row for page in pages for row in page.receipts]
    name = format_receipt(job, number) if number else format_job(job)
    name = name if index is None else f"{name}/{index}"
    if not rows:
        raise _without(job, index, number, count)
    text = file_of(job, pages)
    if args.out is None:
        terminal.write_bytes(text.encode())
    else:
        write_file(args.out, "-o", lambda out: out.write(text))
    is_open = sum(not row.epoch for row in rows)
    terminal.say(f"{plural(len(rows), 'receipt')} of {name}{_open_words(is_open, pages)}")
    return EXIT_OK


def _without(job: JobId, index: int | None, number: int, count: int) -> RemoteError:
    name = format_job(job)
    if number:
        told = f"{name} has no receipt {number}"
        return RemoteError("INVALID_SPEC", told, "'gristmill statement' names those that there are")
    if index is None:
        told = f"{name} has no receipts: nothing of it was billed yet"
        return RemoteError("INVALID_SPEC", told, f"gristmill status {name}")
    told = f"{name}/{index} has no receipt: it was not billed yet"
    if index >= count:
        told = f"{name} has {plural(count, 'subtask')}, the first is {name}/0: there is no {index}"
    return RemoteError("INVALID_SPEC", told, f"gristmill status {name} --subtasks")


def file_of(job: JobId, pages: Sequence[ReceiptsPage]) -> str:
    """The text of a receipt file."""
    heads = {one.head.number: one for page in pages for one in page.heads}
    keys = {one.statement: one for page in pages for one in page.keys}
    rows = [row for page in pages for row in page.receipts]
    return proofs.text_of(proofs.document_of(job, rows, heads.values(), keys.values()))


def _open_words(is_open: int, pages: Sequence[ReceiptsPage]) -> str:
    if not is_open:
        return ""
    within = format_ms(pages[-1].epoch_ms)
    return f"; {is_open} of them not proven yet: their epoch ends within {within} (--wait)"


def _fetch(
    ask: Callable[[], list[ReceiptsPage]], is_waiting: bool, terminal: Terminal
) -> list[ReceiptsPage]:
    """All pages; with ``is_waiting`` when each of their receipts has its proof."""
    pages = ask()
    deadline = time.monotonic() + pages[-1].epoch_ms / 1000 + GRACE_S
    is_told = False
    while is_waiting and any(not row.epoch for page in pages for row in page.receipts):
        if not is_told:
            terminal.say(f"waiting for the epoch's end, at most {format_ms(pages[-1].epoch_ms)}")
            is_told = True
        if time.monotonic() > deadline:
            raise RemoteError(
                "LEDGER_DOWN",
                f"an epoch of {format_ms(pages[-1].epoch_ms)} is open for longer than that",
                "look into the ledger's log, then ask again",
            )
        time.sleep(LOOK_S)
        pages = ask()
    return pages


# ---------------------------------------------------------------- verify


def _verify(args: argparse.Namespace, terminal: Terminal) -> int:
    try:
        if args.file == "-":
            raw = sys.stdin.buffer.read(proofs.FILE_BYTES_MAX + 1)
        else:
            with open(args.file, "rb") as file:
                raw = file.read(proofs.FILE_BYTES_MAX + 1)
    except OSError as error:
        told = f"cannot read {args.file}: {error.strerror}"
        raise RemoteError("INVALID_SPEC", told, "gristmill receipt JOB -o FILE") from None
    pins = dict(args.key)
    verdict = proofs.verify(raw, pins)
    total = sum(one.contribution.amount_ucredits for one in verdict.proven)
    if terminal.is_json:
        _document(verdict, total, [str(fault) for fault in verdict.faults], terminal)
        return EXIT_FAILED if verdict.faults else EXIT_OK
    if verdict.faults:
        for fault in verdict.faults[:DIFFERENCES_SHOWN]:
            terminal.print(f"NOT PROVEN  {fault}")
        return EXIT_FAILED
    toll = sum(one.contribution.toll_ucredits for one in verdict.proven)
    count = sum(one.contribution.count for one in verdict.proven)
    terminal.print(
        f"proven: {plural(len(verdict.proven), 'receipt')} of {verdict.job}, "
        f"{plural(count, 'subtask')}, {format_credits(total)} credits, of it toll "
        f"{format_credits(toll)}"
    )
    for whose, public in verdict.publics.items():
        kind = whose.partition(" ")[0]
        word = "trusted" if kind in pins else f"the file's own word; --key {kind}=KEY trusts one"
        terminal.print(f"key of the {whose}: {public} ({word})")
    return EXIT_OK


def _document(verdict: proofs.Verdict, total: int, faults: list[str], terminal: Terminal) -> None:
    terminal.document(
        documents.encode(
            documents.Proof(verdict.job, len(verdict.proven), total, faults, verdict.publics)
        )
    )


# ---------------------------------------------------------------- audit prove


def _prove(args: argparse.Namespace, terminal: Terminal) -> int:
    job = job_of(args.job)
    with connect(args.address) as client:
        for _ in range(TRIES):
            before = client.usage(by="job", job=job)
            pages = _fetch(lambda: client.receipts(job), args.wait, terminal)
            bill = client.usage(by="job", job=job)
            if bill == before:
                break
        spent = client.status(job).spent_ucredits
    rows = [row for page in pages for row in page.receipts]
    verdict = proofs.Verdict([], format_job(job))
    if rows:
        verdict = proofs.verify(file_of(job, pages).encode(), dict(args.key))
    faults = [str(fault) for fault in verdict.faults]
    entries = [row.contribution for row in rows]  # all of them are proven, or there is a fault
    faults += differences(entries, bill, spent)
    total = sum(entry.amount_ucredits for entry in entries)
    if terminal.is_json:
        _document(verdict, total, faults, terminal)
    elif faults:
        for told in faults[:DIFFERENCES_SHOWN]:
            terminal.print(f"NOT PROVEN  {told}")
        if len(faults) > DIFFERENCES_SHOWN:
            terminal.print(f"and {len(faults) - DIFFERENCES_SHOWN} more")
        is_open = sum(not row.epoch for row in rows)
        if is_open:
            terminal.say(f"{plural(len(rows), 'receipt')}{_open_words(is_open, pages)}")
    else:
        terminal.print(
            f"{verdict.job}: {plural(len(verdict.proven), 'receipt')}, each proven, "
            f"{'makes' if len(verdict.proven) == 1 else 'make'} "
            f"{format_credits(total)} credits; the bill is {format_credits(total)} credits"
        )
    return EXIT_FAILED if faults else EXIT_OK


def differences(
    entries: list[Contribution], bill: list[UsageRow], spent_ucredits: int
) -> list[str]:
    """Where receipts, the ledger's bill and the broker's card disagree, in words."""
    found = []
    for field, told in (
        ("amount_ucredits", "amount_ucredits"), ("toll_ucredits", "toll_ucredits"),
        ("subtasks", "subtasks"), ("failed", "failed"), ("cpu_us", "cpu_us"),
        ("wall_us", "wall_us"),
    ):  # fmt: skip
        receipts = sum(getattr(entry, field) for entry in entries)
        billed = sum(getattr(row, told) for row in bill)
        if receipts != billed:
            found.append(
                f"{field}: receipts make {receipts}, the bill has {billed}, {billed - receipts:+d}"
            )
    amount = sum(row.amount_ucredits for row in bill)
    if spent_ucredits != amount:
        found.append(f"amount_ucredits: the broker counts {spent_ucredits}, the bill has {amount}")
    end, of = -1, (-1, -1)
    for entry in sorted(entries, key=lambda one: (one.replica, one.attempt, one.first)):
        if (entry.replica, entry.attempt) != of:
            of, end = (entry.replica, entry.attempt), -1
        if entry.first < end:
            found.append(
                f"subtasks {entry.first} to {min(end, entry.first + entry.count) - 1}, attempt"
                f" {entry.attempt}: in two receipts"
            )
        end = max(end, entry.first + entry.count)
    return found
