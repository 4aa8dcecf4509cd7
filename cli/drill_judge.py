"""The judge of a drill: the files of broker and ledger, compared with the customers' lists.

It asks no process: it opens ``journal.db`` and ``ledger.db`` for reading, checks every row that it
uses by the rooms' own readers (a row with a wrong checksum counts as gone), and counts:

- *lost*: subtasks that a customer was promised and that the files do not have: of an accepted job
  that is not there, acked without a result, or (when all is over) without a final state;
- *doubled*: subtasks that are final in two results, billed in two contributions, or given to one
  customer twice;
- *problems*: whatever else is not as it must be, in words: values, bills, books.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gristmill.cli.drill_load import Promise
from gristmill.wire.ids import format_job

PROBLEMS_MAX = 20
Database = Any  #: a connection of SQLite, opened for reading by the ledger's room


@dataclasses.dataclass
class Verdict:
    """What was found; see the module's text."""

    lost: int = 0
    doubled: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)
    contributions: int = 0
    billed_ucredits: int = 0
    ledger_sum_ucredits: int = 0

    @property
    def is_ok(self) -> bool:
        """Nothing lost, nothing doubled, nothing odd."""
        return not (self.lost or self.doubled or self.problems)

    def note(self, problem: str) -> None:
        """A fault in words; the first few are kept."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


def judge(state: pathlib.Path, promises: Sequence[Promise], *, is_over: bool) -> Verdict:
    """The verdict on a grid's state folder.

    Args:
        state: of the grid; its processes may run.
        promises: the lists.
        is_over: every job has ended and the ledger has everything.
    """
    verdict = Verdict()
    for promise in promises:
        for told in promise.wrong:
            verdict.note(told)
            verdict.doubled += "came twice" in told
    # The lists first, the files after them: what is in a list by now must be on the disk.
    accepted = [promise for promise in promises if promise.job]
    acked = {promise.job: set(promise.values) for promise in accepted}
    from gristmill.broker import bodies
    from gristmill.ledger.sqlite_checks import open_for_reading

    journal = open_for_reading(state / "broker" / "journal.db")
    bodies.register(journal, state / "broker")
    ledger = open_for_reading(state / "ledger" / "ledger.db")
    try:
        amounts = _judge_journal(journal, accepted, acked, is_over, verdict)
        _judge_bills(ledger, amounts, is_over, verdict)
        _judge_books(ledger, verdict)
    finally:
        journal.close()
        ledger.close()
    return verdict


# ---------------------------------------------------------------- jobs and results


def _judge_journal(
    journal: Database,
    accepted: Sequence[Promise],
    acked: dict[int, set[int]],
    is_over: bool,
    verdict: Verdict,
) -> dict[int, int]:
    """Micro-credits of each job's results, as the journal has them."""
    from gristmill.broker import records
    from gristmill.wire.client import FINAL_JOB_STATES

    amounts: dict[int, int] = {}
    with journal:  # one moment of the file for all questions
        for promise in accepted:
            name = format_job(promise.job)
            row = journal.execute(
                f"SELECT {records.JOB_COLUMNS} FROM jobs WHERE job = ?", (promise.job,)
            ).fetchone()
            try:
                record = records.read_job(row) if row else None
            except records.DamagedError as error:
                verdict.note(str(error))
                record = None
            if record is None or record.submission != promise.submission:
                verdict.lost += promise.count
                verdict.note(f"{name} was accepted as {promise.key} and is not in the journal")
                continue
            final, amounts[promise.job] = _final_of(journal, promise.job, verdict)
            twice = [index for index, times in final.items() if times > 1]
            verdict.doubled += len(twice)
            for index in twice[:1]:
                verdict.note(f"{name}/{index} is final in {final[index]} results")
            wanted = set(range(promise.count)) if is_over else acked[promise.job]
            missing = sorted(wanted - final.keys())
            verdict.lost += len(missing)
            if missing:
                what = "acked" if missing[0] in acked[promise.job] else "accepted"
                verdict.note(f"{name}/{missing[0]} was {what} and has no result ({len(missing)})")
            if is_over:
                card = journal.execute(
                    f"SELECT {records.STATE_COLUMNS} FROM job_states WHERE job = ?", (promise.job,)
                ).fetchone()
                status = records.read_state(card) if card else None
                if status is None or status.state not in FINAL_JOB_STATES:
                    verdict.note(f"{name} has not ended")
                elif status.done != promise.count:
                    verdict.note(f"{name} is {status.state}, {status.done} of {promise.count} done")
    return amounts


def _final_of(
    journal: Database, job: int, verdict: Verdict
) -> tuple[collections.Counter[int], int]:
    """How often each subtask of a job is final, and what its results cost."""
    from gristmill.broker import records

    final: collections.Counter[int] = collections.Counter()
    amount = 0
    for *row, price in journal.execute(
        f"SELECT {records.RESULT_COLUMNS}, amount_ucredits FROM results WHERE job = ?", (job,)
    ):
        try:
            message = records.decode_header(records.read_result(tuple(row))[0])
        except records.DamagedError as error:
            verdict.note(str(error))
            continue
        amount += price
        head = message.head
        again = {
            head.first + offset
            for start, length in message.not_final
            for offset in range(start, start + length)
        }
        final.update(n for n in range(head.first, head.first + head.count) if n not in again)
    return final, amount


# ---------------------------------------------------------------- money


def _judge_bills(
    ledger: Database, amounts: dict[int, int], is_over: bool, verdict: Verdict
) -> None:
    """No attempt of a subtask billed twice; bills as the results say, none too many."""
    billed: dict[int, int] = collections.defaultdict(int)
    by_attempt: dict[tuple[int, int], list[tuple[int, int]]] = collections.defaultdict(list)
    for ref, attempt, first, count, amount in ledger.execute(
        "SELECT ref, attempt, first, count, c.amount FROM contribution AS c"
        " JOIN hold ON hold.id = c.hold"
    ):
        job = int(ref.rpartition("/")[2])
        verdict.contributions += 1
        billed[job] += amount
        by_attempt[job, attempt].append((first, count))
    verdict.billed_ucredits = sum(billed.values())
    for (job, attempt), ranges in by_attempt.items():
        for index in _overlaps(ranges):
            verdict.doubled += 1
            verdict.note(f"{format_job(job)}/{index}, attempt {attempt}, is billed twice")
    if not is_over:
        return  # what the ledger has not got yet lies in the outbox
    for job, amount in amounts.items():
        if billed[job] != amount:
            verdict.note(f"{format_job(job)} is billed {billed[job]}; its results cost {amount}")


def _overlaps(ranges: Iterable[tuple[int, int]]) -> Iterator[int]:
    end = 0
    for first, count in sorted(ranges):
        yield from range(first, min(end, first + count))
        end = max(end, first + count)


def _judge_books(ledger: Database, verdict: Verdict) -> None:
    """The ledger's own audit, and the sum of all accounts."""
    from gristmill.ledger.audit import audit
    from gristmill.ledger.sqlite_checks import check

    with ledger:
        for fault in audit(ledger, check(ledger)):
            verdict.note(f"ledger: {fault}")
        ((total,),) = ledger.execute("SELECT ifnull(sum(credits - debits), 0) FROM account")
    verdict.ledger_sum_ucredits = total
